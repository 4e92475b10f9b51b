//! The values of keys that are neither a number nor a plain text.

use eyas_backend::{Dtype, MomentFormat, MomentStorage};
use eyas_quant::QuantType;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A 4-bit type's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum QuantName {
    /// 4-bit NormalFloat.
    Nf4,
    /// 4-bit float.
    Fp4,
}

impl From<QuantName> for QuantType {
    fn from(name: QuantName) -> Self {
        match name {
            QuantName::Nf4 => Self::Nf4,
            QuantName::Fp4 => Self::Fp4,
        }
    }
}

/// The type of activations, under torch's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ComputeDtype {
    /// What suits the device.
    Auto,
    /// 32 bits.
    #[serde(alias = "fp32", alias = "torch.float32")]
    Float32,
    /// bfloat16.
    #[serde(alias = "bf16", alias = "torch.bfloat16")]
    Bfloat16,
    /// IEEE half precision.
    #[serde(alias = "fp16", alias = "torch.float16")]
    Float16,
}

impl ComputeDtype {
    /// The type; `None` leaves it to the device.
    pub fn dtype(self) -> Option<Dtype> {
        match self {
            Self::Auto => None,
            Self::Float32 => Some(Dtype::F32),
            Self::Bfloat16 => Some(Dtype::Bf16),
            Self::Float16 => Some(Dtype::F16),
        }
    }
}

/// How turns become text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PromptStyle {
    /// The model's chat template, where it has one.
    Auto,
    /// The model's chat template.
    ChatTemplate,
    /// `<HUMAN>: ...` and `<ASSISTANT>: ...`.
    HumanAssistant,
}

/// An optimiser's name. All of them are AdamW; they differ in where the moments are kept, and in how many bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Optim {
    /// `torch.optim.AdamW`.
    AdamwTorch,
    /// The same in fewer kernels, as every update here is.
    AdamwTorchFused,
    /// Moments in pinned host memory.
    PagedAdamw32bit,
    /// Another name of it.
    PagedAdamw,
    /// Moments of a byte each.
    Adamw8bit,
    /// Another name of it.
    AdamwBnb8bit,
    /// Moments of a byte each, in pinned host memory.
    PagedAdamw8bit,
}

impl Optim {
    const NAMES: [(Self, &'static str, MomentStorage); 7] = {
        use MomentFormat::{Blockwise8, F32};
        const fn kept(format: MomentFormat, paged: bool) -> MomentStorage {
            MomentStorage { format, paged }
        }
        [
            (Self::AdamwTorch, "adamw_torch", kept(F32, false)),
            (Self::AdamwTorchFused, "adamw_torch_fused", kept(F32, false)),
            (Self::PagedAdamw32bit, "paged_adamw_32bit", kept(F32, true)),
            (Self::PagedAdamw, "paged_adamw", kept(F32, true)),
            (Self::Adamw8bit, "adamw_8bit", kept(Blockwise8, false)),
            (Self::AdamwBnb8bit, "adamw_bnb_8bit", kept(Blockwise8, false)),
            (Self::PagedAdamw8bit, "paged_adamw_8bit", kept(Blockwise8, true)),
        ]
    };

    /// How the moments are kept.
    pub fn moments(self) -> MomentStorage {
        let found = Self::NAMES.iter().find(|(known, ..)| *known == self);
        found.map_or_else(MomentStorage::default, |(.., storage)| *storage)
    }
}

impl TryFrom<String> for Optim {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        if let Some((optim, ..)) = Self::NAMES.iter().find(|(_, known, _)| *known == name) {
            return Ok(*optim);
        }
        let names: Vec<String> = Self::NAMES.iter().map(|(_, name, _)| format!("`{name}`")).collect();
        Err(format!("`{name}` is not supported; use one of {}", names.join(", ")))
    }
}

impl From<Optim> for String {
    fn from(optim: Optim) -> Self {
        let found = Optim::NAMES.iter().find(|(known, ..)| *known == optim);
        found.map_or_else(Self::new, |(_, name, _)| (*name).into())
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum FlagOrText {
    Flag(bool),
    Text(String),
}

/// Which blocks are computed twice to save memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GradientCheckpointing {
    /// As many as the memory asks for.
    Auto,
    /// All.
    Always,
    /// None.
    Never,
}

impl<'de> Deserialize<'de> for GradientCheckpointing {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match FlagOrText::deserialize(deserializer) {
            Ok(FlagOrText::Flag(true)) => Ok(Self::Always),
            Ok(FlagOrText::Flag(false)) => Ok(Self::Never),
            Ok(FlagOrText::Text(text)) if text == "auto" => Ok(Self::Auto),
            _ => Err(serde::de::Error::custom("true, false or \"auto\" was expected")),
        }
    }
}

impl Serialize for GradientCheckpointing {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str("auto"),
            Self::Always => serializer.serialize_bool(true),
            Self::Never => serializer.serialize_bool(false),
        }
    }
}

/// Where a run starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ResumeFrom {
    /// At the beginning.
    Never,
    /// At the last whole checkpoint in the output folder; at the beginning where there is none.
    Last,
    /// At this checkpoint.
    Folder(String),
}

impl<'de> Deserialize<'de> for ResumeFrom {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match FlagOrText::deserialize(deserializer) {
            Ok(FlagOrText::Flag(true)) => Ok(Self::Last),
            Ok(FlagOrText::Flag(false)) => Ok(Self::Never),
            Ok(FlagOrText::Text(folder)) => Ok(Self::Folder(folder)),
            Err(_) => Err(serde::de::Error::custom("true, false or a checkpoint's folder was expected")),
        }
    }
}

impl Serialize for ResumeFrom {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Never => serializer.serialize_bool(false),
            Self::Last => serializer.serialize_bool(true),
            Self::Folder(folder) => serializer.serialize_str(folder),
        }
    }
}

/// The memory that a run may take on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryBudget {
    /// What is free.
    Auto,
    /// So many bytes.
    Bytes(u64),
}

/// Units of memory, longest names first.
const UNITS: [(&str, f64); 11] = [
    ("KiB", 1024.0),
    ("MiB", 1_048_576.0),
    ("GiB", 1_073_741_824.0),
    ("TiB", 1_099_511_627_776.0),
    ("kB", 1e3),
    ("KB", 1e3),
    ("MB", 1e6),
    ("GB", 1e9),
    ("TB", 1e12),
    ("G", 1e9),
    ("B", 1.0),
];

impl std::str::FromStr for MemoryBudget {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::parse(text).ok_or_else(|| "\"auto\" or a size as \"6 GB\" was expected".into())
    }
}

impl MemoryBudget {
    fn parse(text: &str) -> Option<Self> {
        if text == "auto" {
            return Some(Self::Auto);
        }
        let (number, unit) = UNITS.iter().find_map(|(unit, size)| Some((text.strip_suffix(unit)?, *size)))?;
        let bytes = number.trim().parse::<f64>().ok()? * unit;
        (1.0..9e18).contains(&bytes).then_some(Self::Bytes(bytes as u64))
    }
}

impl<'de> Deserialize<'de> for MemoryBudget {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum NumberOrText {
            Number(u64),
            Text(String),
        }
        let budget = match NumberOrText::deserialize(deserializer) {
            Ok(NumberOrText::Number(bytes)) if bytes > 0 => Some(Self::Bytes(bytes)),
            Ok(NumberOrText::Text(text)) => Self::parse(&text),
            _ => None,
        };
        budget.ok_or_else(|| {
            serde::de::Error::custom("\"auto\", a number of bytes or a size as \"6 GB\" was expected")
        })
    }
}

impl Serialize for MemoryBudget {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str("auto"),
            Self::Bytes(bytes) => serializer.serialize_u64(*bytes),
        }
    }
}

/// A program that shows metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reporter {
    /// Event files.
    Tensorboard,
    /// Weights & Biases: an offline run.
    Wandb,
}

impl Reporter {
    const ALL: [Self; 2] = [Self::Tensorboard, Self::Wandb];

    /// Its name in a recipe.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tensorboard => "tensorboard",
            Self::Wandb => "wandb",
        }
    }
}

/// Where metrics are written, besides the trainer's state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reporters(Vec<Reporter>);

impl Reporters {
    /// The programs, each once.
    pub fn reporters(&self) -> &[Reporter] {
        &self.0
    }
}

impl<'de> Deserialize<'de> for Reporters {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum OneOrMany {
            One(String),
            Many(Vec<String>),
        }
        let names = match OneOrMany::deserialize(deserializer) {
            Ok(OneOrMany::One(name)) => vec![name],
            Ok(OneOrMany::Many(names)) => names,
            Err(_) => return Err(serde::de::Error::custom("a name or a list of names was expected")),
        };
        let mut reporters = Vec::new();
        for name in &names {
            match (name.as_str(), Reporter::ALL.into_iter().find(|known| known.name() == name)) {
                ("none", _) if names.len() == 1 => {}
                ("all", _) => reporters.extend(Reporter::ALL),
                (_, Some(reporter)) => reporters.push(reporter),
                ("none", _) => {
                    return Err(serde::de::Error::custom(
                        "`none` stands beside other names; keep the one or the others",
                    ));
                }
                (other, _) => {
                    return Err(serde::de::Error::custom(format!(
                        "`{other}` is not supported; use \"tensorboard\", \"wandb\", \"all\" or \"none\". Every metric \
                         is in trainer_state.json too, as Hugging Face writes it"
                    )));
                }
            }
        }
        let listed = Reporter::ALL.into_iter().filter(|reporter| reporters.contains(reporter));
        Ok(Self(listed.collect()))
    }
}

impl Serialize for Reporters {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0.as_slice() {
            [] => serializer.serialize_str("none"),
            reporters => serializer.collect_seq(reporters.iter().map(|reporter| reporter.name())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budgets_are_read_with_their_unit() {
        assert_eq!(MemoryBudget::parse("6 GB"), Some(MemoryBudget::Bytes(6_000_000_000)));
        assert_eq!(MemoryBudget::parse("1.5GiB"), Some(MemoryBudget::Bytes(1_610_612_736)));
        assert_eq!(MemoryBudget::parse("auto"), Some(MemoryBudget::Auto));
        for wrong in ["6", "GB", "-1 GB", "nan GB", "0 B", "6 XB"] {
            assert_eq!(MemoryBudget::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn reporters_are_read_as_transformers_reads_them() {
        use Reporter::{Tensorboard, Wandb};
        let read = |text: &str| serde_json::from_str::<Reporters>(text).map(|reporters| reporters.0);
        assert_eq!(read(r#""none""#).unwrap(), []);
        assert_eq!(read("[]").unwrap(), []);
        assert_eq!(read(r#""tensorboard""#).unwrap(), [Tensorboard]);
        assert_eq!(read(r#"["wandb", "tensorboard", "wandb"]"#).unwrap(), [Tensorboard, Wandb]);
        assert_eq!(read(r#""all""#).unwrap(), [Tensorboard, Wandb]);
        let error = read(r#"["tensorboard", "none"]"#).unwrap_err().to_string();
        assert!(error.contains("keep the one or the others"), "{error}");
        let error = read(r#""mlflow""#).unwrap_err().to_string();
        assert!(error.contains("`mlflow` is not supported") && error.contains("wandb"), "{error}");
        for text in [r#""none""#, r#"["tensorboard","wandb"]"#] {
            assert_eq!(
                serde_json::to_string(&serde_json::from_str::<Reporters>(text).unwrap()).unwrap(),
                text
            );
        }
    }

    #[test]
    fn optimisers_are_known_by_their_names() {
        for (optim, name, _) in Optim::NAMES {
            assert_eq!(Optim::try_from(name.to_owned()), Ok(optim));
            assert_eq!(String::from(optim), name);
            assert_eq!(optim.moments().paged, name.contains("paged"), "{name}");
            assert_eq!(optim.moments().format == MomentFormat::Blockwise8, name.contains("8bit"), "{name}");
        }
        let error = Optim::try_from("lion_8bit".to_owned()).unwrap_err();
        assert!(
            error.contains("`lion_8bit` is not supported") && error.contains("`paged_adamw_8bit`"),
            "{error}"
        );
    }
}
