//! A recipe: what a run does, in TOML, under the names that people already type.
//!
//! Keys stand in their section or without one; every key is unique across the sections, so `key=value` on a command
//! line needs no section either. Whatever cannot be understood is an error that names the file, the line and the
//! key.

mod keys;
mod parse;
mod validate;
mod values;

use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};
use std::path::Path;

pub use keys::{Data, Generation, KEYS, Key, Lora, ModelKeys, Quantization, Sections, Training};
pub use values::{
    ComputeDtype, GradientCheckpointing, MemoryBudget, Optim, PromptStyle, QuantName, Reporter, Reporters,
    ResumeFrom,
};

use crate::{Error, Result};

/// A recipe. Its sections are those of [`Sections`].
///
/// ```
/// use eyas_train::Recipe;
/// let mut recipe = Recipe::parse("example.toml", "r = 16\n[training]\nmax_steps = 20\n")?;
/// recipe.set("learning_rate=1e-3")?;
/// assert_eq!((recipe.lora.r, recipe.training.max_steps, recipe.training.learning_rate), (16, 20, 1e-3));
///
/// let error = Recipe::parse("example.toml", "[lora]\nlora_alfa = 16\n").unwrap_err();
/// assert_eq!(error.to_string(), "example.toml:2: unknown key `lora_alfa`; did you mean `lora_alpha`?");
/// # Ok::<(), eyas_train::Error>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct Recipe {
    sections: Sections,
    /// Where each key was set, for messages.
    places: BTreeMap<&'static str, String>,
}

impl PartialEq for Recipe {
    fn eq(&self, other: &Self) -> bool {
        self.sections == other.sections
    }
}

impl Deref for Recipe {
    type Target = Sections;

    fn deref(&self) -> &Sections {
        &self.sections
    }
}

impl DerefMut for Recipe {
    fn deref_mut(&mut self) -> &mut Sections {
        &mut self.sections
    }
}

impl Recipe {
    /// Reads a file.
    ///
    /// # Errors
    /// When it cannot be read, is no TOML, or has a key or a value that is not understood.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|source| Error::Io { path: path.into(), source })?;
        Self::parse(&path.display().to_string(), &text)
    }

    /// The recipe as TOML, every key that has a value in its section.
    pub fn to_toml(&self) -> String {
        // Every value was read from TOML or is a default, and every type serialises to what it reads.
        toml::to_string(&self.sections).unwrap_or_default()
    }

    /// Every key with its default and meaning, as a Markdown table a section.
    pub fn reference() -> String {
        let defaults = toml::Table::try_from(Sections::default()).unwrap_or_default();
        let mut text = String::new();
        for (section, about) in keys::SECTIONS {
            let about: Vec<&str> = about.iter().map(|line| line.trim()).collect();
            text += &format!("## [{section}]\n\n{}\n\n| key | default | |\n|---|---|---|\n", about.join(" "));
            for key in KEYS.iter().filter(|key| key.section == *section) {
                let default = defaults.get(*section).and_then(|table| table.get(key.name));
                let default = default.map_or("not set".into(), |value| format!("`{value}`"));
                let also = match key.aliases {
                    [] => String::new(),
                    aliases => format!(" Also `{}`.", aliases.join("`, `")),
                };
                let doc = key.doc().replace('|', "\\|");
                text += &format!("| `{}` | {default} | {doc}{also} |\n", key.name);
            }
            text.push('\n');
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
        text
    }

    /// Whether the memory is limited, so that speed gives way to room.
    pub fn is_tight(&self) -> bool {
        matches!(self.training.memory_budget, MemoryBudget::Bytes(_))
    }

    /// The type of activations that the recipe asks for; `None` leaves it to the device.
    pub fn compute_dtype(&self) -> Option<eyas_backend::Dtype> {
        match (self.training.bf16, self.training.fp16) {
            (true, _) => Some(eyas_backend::Dtype::Bf16),
            (_, true) => Some(eyas_backend::Dtype::F16),
            _ => self.quantization.bnb_4bit_compute_dtype.dtype(),
        }
    }
}
