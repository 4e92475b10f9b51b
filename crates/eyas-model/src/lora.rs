//! LoRA as PEFT configures it: which layers are targets, and where their updates lie in the adapter's flat vector.

use std::collections::BTreeMap;

use eyas_backend::LoraSlot;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use regex::Regex;
use serde::{Deserialize, Serialize};

use crate::decoder::{Decoder, LinearModule, ProjectionKind};
use crate::{Error, Result};

/// Which modules an option names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Modules {
    /// A regular expression that must match a whole module path; the word `all-linear` means every linear layer but
    /// the head.
    Pattern(String),
    /// Module names, or the ends of module paths.
    Names(Vec<String>),
}

/// Tells whether a module path is meant.
type Matcher = Box<dyn Fn(&str) -> bool>;

impl Modules {
    /// Every linear layer but the head.
    pub fn all_linear() -> Self {
        Self::Pattern("all-linear".into())
    }

    fn matcher(&self) -> Result<Matcher> {
        match self {
            Self::Pattern(all) if all == "all-linear" => Ok(Box::new(|_| true)),
            Self::Pattern(pattern) => {
                let regex = whole(pattern)?;
                Ok(Box::new(move |path| regex.is_match(path)))
            }
            Self::Names(names) => {
                let names = names.clone();
                Ok(Box::new(move |path| names.iter().any(|name| ends_with_module(path, name))))
            }
        }
    }
}

/// The settings of a LoRA adapter, under PEFT's names.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraConfig {
    /// Rank.
    pub r: usize,
    /// Scale of the update before it is divided by the rank.
    pub lora_alpha: f64,
    /// Probability of dropping an input of `A` while training.
    pub lora_dropout: f64,
    /// Which layers have an update.
    pub target_modules: Modules,
    /// Which of these have none after all.
    pub exclude_modules: Option<Modules>,
    /// Divide by the square root of the rank (Kalajdzievski 2023).
    pub use_rslora: bool,
    /// Other ranks for modules whose path ends in a match of the pattern.
    pub rank_pattern: BTreeMap<String, usize>,
    /// Other alphas, likewise.
    pub alpha_pattern: BTreeMap<String, f64>,
}

impl Default for LoraConfig {
    /// PEFT's defaults, on every linear layer.
    fn default() -> Self {
        Self {
            r: 8,
            lora_alpha: 8.0,
            lora_dropout: 0.0,
            target_modules: Modules::all_linear(),
            exclude_modules: None,
            use_rslora: false,
            rank_pattern: BTreeMap::new(),
            alpha_pattern: BTreeMap::new(),
        }
    }
}

/// A target layer: where it is in the model and where its update is in the flat vector.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraTarget {
    /// The layer.
    pub linear: LinearModule,
    /// Its update.
    pub slot: LoraSlot,
}

/// The layout of an adapter: the updates of every projection of every block, in one flat vector.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraLayout {
    /// As configured.
    pub config: LoraConfig,
    /// `[block][projection]`, each with one entry a part.
    slots: Vec<[Vec<Option<LoraSlot>>; 4]>,
    targets: Vec<LoraTarget>,
    parameters: usize,
}

impl LoraLayout {
    /// Finds the targets in a model.
    ///
    /// # Errors
    /// When nothing is a target, a setting makes no sense, or the head is asked for.
    pub fn new(decoder: &Decoder, config: LoraConfig) -> Result<Self> {
        validate(&config)?;
        let is_target = config.target_modules.matcher()?;
        let is_excluded = match &config.exclude_modules {
            Some(modules) => modules.matcher()?,
            None => Box::new(|_: &str| false),
        };
        let all_linear = config.target_modules == Modules::all_linear();
        for module in [decoder.names.head, decoder.names.embedding] {
            if !all_linear && is_target(module) && !is_excluded(module) {
                return Err(Error::Lora(format!(
                    "target_modules names `{module}`; eyas trains updates of the blocks' linear layers only. Leave \
                     it out, or use \"all-linear\""
                )));
            }
        }
        let ranks = patterns(&config.rank_pattern)?;
        let alphas = patterns(&config.alpha_pattern)?;

        let mut layout =
            Self { slots: Vec::with_capacity(decoder.blocks()), targets: Vec::new(), parameters: 0, config };
        for block in 0..decoder.blocks() {
            let mut slots: [Vec<Option<LoraSlot>>; 4] = Default::default();
            for kind in ProjectionKind::ALL {
                for linear in decoder.linears(block, kind) {
                    let slot = (is_target(&linear.path) && !is_excluded(&linear.path)).then(|| {
                        let r = first_match(&ranks, &linear.path).copied().unwrap_or(layout.config.r);
                        let alpha =
                            first_match(&alphas, &linear.path).copied().unwrap_or(layout.config.lora_alpha);
                        layout.add(&linear, r, alpha)
                    });
                    slots[kind as usize].push(slot);
                }
            }
            layout.slots.push(slots);
        }
        if layout.targets.is_empty() {
            let known: Vec<String> = decoder
                .all_linears()
                .take_while(|(block, ..)| *block == 0)
                .map(|(.., linear)| linear.path)
                .collect();
            return Err(Error::Lora(format!(
                "target_modules {} matches no linear layer; a block's layers are {}, and target_modules = \"all-linear\" takes \
                 them all",
                serde_json::to_string(&layout.config.target_modules).unwrap_or_default(),
                known.join(", ")
            )));
        }
        Ok(layout)
    }

    fn add(&mut self, linear: &LinearModule, r: usize, alpha: f64) -> LoraSlot {
        let divisor = if self.config.use_rslora { (r as f64).sqrt() } else { r as f64 };
        let slot = LoraSlot {
            a: self.parameters,
            b: self.parameters + r * linear.in_features,
            r,
            scaling: (alpha / divisor) as f32,
        };
        self.parameters = slot.b + r * linear.out_features;
        self.targets.push(LoraTarget { linear: linear.clone(), slot });
        slot
    }

    /// Trainable parameters: the length of the flat vector.
    pub fn parameters(&self) -> usize {
        self.parameters
    }

    /// The updates of a projection, one entry a part.
    pub fn slots(&self, block: usize, kind: ProjectionKind) -> &[Option<LoraSlot>] {
        &self.slots[block][kind as usize]
    }

    /// Every target, in the order of the flat vector.
    pub fn targets(&self) -> &[LoraTarget] {
        &self.targets
    }

    /// The sum of a projection's ranks.
    pub fn rank(&self, block: usize, kind: ProjectionKind) -> usize {
        self.slots(block, kind).iter().flatten().map(|slot| slot.r).sum()
    }

    /// Fresh parameters: `A` from Kaiming's uniform distribution with `a = sqrt(5)`, which is uniform in
    /// `+-1/sqrt(in_features)`; `B` zero, so that training starts at the base model.
    pub fn initialize(&self, seed: u64) -> Vec<f32> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut params = vec![0.0; self.parameters];
        for LoraTarget { linear, slot } in &self.targets {
            let bound = 1.0 / (linear.in_features as f64).sqrt();
            for value in &mut params[slot.a..slot.b] {
                *value = ((rng.random::<f64>() * 2.0 - 1.0) * bound) as f32;
            }
        }
        params
    }
}

fn validate(config: &LoraConfig) -> Result<()> {
    let fail = |reason: String| Err(Error::Lora(reason));
    if config.r == 0 || config.rank_pattern.values().any(|&r| r == 0) {
        return fail("r must be at least 1".into());
    }
    if !(0.0..1.0).contains(&config.lora_dropout) {
        return fail(format!("lora_dropout is {}; it must be at least 0 and below 1", config.lora_dropout));
    }
    if !config.lora_alpha.is_finite() || config.lora_alpha <= 0.0 {
        return fail(format!("lora_alpha is {}; it must be above 0", config.lora_alpha));
    }
    Ok(())
}

fn ends_with_module(path: &str, name: &str) -> bool {
    path == name || path.strip_suffix(name).is_some_and(|front| front.ends_with('.'))
}

fn regex(pattern: &str) -> Result<Regex> {
    Regex::new(pattern).map_err(|error| Error::Lora(format!("`{pattern}` is no regular expression: {error}")))
}

/// A pattern that must match a whole path, as Python's `re.fullmatch`.
fn whole(pattern: &str) -> Result<Regex> {
    regex(&format!("^(?:{pattern})$"))
}

fn patterns<T: Copy>(map: &BTreeMap<String, T>) -> Result<Vec<(Regex, T)>> {
    map.iter().map(|(pattern, &value)| Ok((regex(&format!(r"^(?:.*\.)?(?:{pattern})$"))?, value))).collect()
}

fn first_match<'a, T>(patterns: &'a [(Regex, T)], path: &str) -> Option<&'a T> {
    patterns.iter().find(|(regex, _)| regex.is_match(path)).map(|(_, value)| value)
}
