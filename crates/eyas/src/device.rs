//! Which device a command runs on.

use std::str::FromStr;

use anyhow::{Context, Result, bail};
use eyas_backend::{Backend, CpuBackend, CpuOptions, Dtype, MatmulKernel};
use eyas_cuda::{CudaBackend, CudaOptions, CudaReport, DeviceInfo};
use eyas_model::Model;
use eyas_train::recipe::MemoryBudget;
use eyas_train::{Recipe, Replica};

/// Set to 1, a card may be named twice, for tests of several replicas where there is one card.
const SHARE_CARD: &str = "EYAS_SHARE_CARD";

/// A device as it is named on the command line, or several cards.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum DeviceArg {
    /// The first card where there is one, else the processor.
    #[default]
    Auto,
    /// The processor.
    Cpu,
    /// Cards, by their numbers.
    Cuda(Vec<usize>),
    /// All cards.
    AllCards,
}

impl FromStr for DeviceArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let numbers = |numbers: &str| numbers.split(',').map(str::parse).collect::<Result<_, _>>().ok();
        match text {
            "auto" => Some(Self::Auto),
            "cpu" => Some(Self::Cpu),
            "cuda" => Some(Self::Cuda(vec![0])),
            "cuda:all" => Some(Self::AllCards),
            other => other.strip_prefix("cuda:").and_then(numbers).map(Self::Cuda),
        }
        .ok_or_else(|| "auto, cpu, cuda, cuda:NUMBER, cuda:NUMBER,NUMBER,... or cuda:all was expected".into())
    }
}

/// Reads a size of memory, "11GB" or "10.5GiB".
pub fn memory(text: &str) -> Result<u64, String> {
    match text.parse() {
        Ok(MemoryBudget::Bytes(bytes)) => Ok(bytes),
        _ => Err("a size such as 11GB or 10.5GiB was expected".into()),
    }
}

/// The device that was asked for, and how much of its memory.
#[derive(Clone, Debug, Default)]
pub struct Choice {
    /// Which.
    pub device: DeviceArg,
    /// The most bytes of a card's memory, on each of several.
    pub memory: Option<u64>,
}

/// A device that is open.
#[derive(Debug)]
pub struct Opened<B> {
    /// What it is called: `cuda:1`.
    pub label: String,
    /// The device.
    pub backend: B,
}

/// Devices with the models that are on them.
pub fn replicas<'a, B: Backend>(devices: &'a [Opened<B>], models: &'a [Model<B>]) -> Vec<Replica<'a, B>> {
    let replica = |(device, model): (&'a Opened<B>, &'a Model<B>)| Replica {
        label: device.label.clone(),
        backend: &device.backend,
        model,
    };
    devices.iter().zip(models).map(replica).collect()
}

/// What a command does once it has a device. A trait, since a closure cannot be generic over the device.
pub trait Work {
    /// What comes of it.
    type Output;
    /// Does it.
    fn run<B: Backend>(self, backend: &B) -> Result<Self::Output>;
}

/// What a command does once it has its devices, one or several.
pub trait SharedWork {
    /// What comes of it.
    type Output;
    /// Does it.
    fn run<B: Backend>(self, devices: &[Opened<B>]) -> Result<Self::Output>;
}

/// What a command that has work for one device says to several.
const ONLY_ONE: &str =
    "this command runs on one device, and several are named; `eyas train` runs on several cards";

/// Work for one device as work for several of which there is one.
struct OnOne<W>(W);

impl<W: Work> SharedWork for OnOne<W> {
    type Output = W::Output;

    fn run<B: Backend>(self, devices: &[Opened<B>]) -> Result<W::Output> {
        match devices {
            [device] => self.0.run(&device.backend),
            _ => bail!(ONLY_ONE),
        }
    }
}

impl Choice {
    /// Opens the device, computing in the type that the recipe asks for, and does the work on it.
    ///
    /// # Errors
    /// When the device is not there or lacks something, with what to do, when there are several; and those of the work.
    pub fn run<W: Work>(self, recipe: &Recipe, work: W) -> Result<W::Output> {
        let several = match &self.device {
            DeviceArg::Cuda(cards) => cards.len() > 1,
            DeviceArg::AllCards => self.cards()?.is_some_and(|cards| cards.len() > 1),
            DeviceArg::Auto | DeviceArg::Cpu => false,
        };
        if several {
            bail!(ONLY_ONE);
        }
        self.run_on_all(recipe, OnOne(work))
    }

    /// Opens the device, or all of several, and does the work.
    ///
    /// # Errors
    /// When one is not there or lacks something or does not go with the others, with what to do; and those of the work.
    pub fn run_on_all<W: SharedWork>(self, recipe: &Recipe, work: W) -> Result<W::Output> {
        let Some(cards) = self.cards()? else {
            if self.memory.is_some() {
                bail!("--gpu-memory is about a card; on the processor set memory_budget in the recipe");
            }
            return work.run(&[Opened { label: "cpu".into(), backend: cpu(recipe)? }]);
        };
        let open = |(place, &device): (usize, &usize)| {
            let options = CudaOptions {
                device,
                memory_limit: self.memory,
                compute_dtype: recipe.compute_dtype(),
                lora_path: None,
            };
            let backend = CudaBackend::new(options).with_context(|| match cards.len() {
                1 => "the card cannot be used (--device cpu leaves it out)".into(),
                _ => format!("cuda:{device} cannot be used"),
            })?;
            let before = cards[..place].iter().filter(|card| **card == device).count();
            let label = match before {
                0 => format!("cuda:{device}"),
                before => format!("cuda:{device}, replica {}", before + 1),
            };
            Ok(Opened { label, backend })
        };
        let devices = cards.iter().enumerate().map(open).collect::<Result<Vec<_>>>()?;
        work.run(&devices)
    }

    /// Looks whether several cards are there and go together, before anything is fetched for them.
    ///
    /// # Errors
    /// Says which does not, and what there is.
    pub fn check(&self) -> Result<()> {
        match &self.device {
            DeviceArg::AllCards => self.cards().map(drop),
            DeviceArg::Cuda(cards) if cards.len() > 1 => self.cards().map(drop),
            _ => Ok(()),
        }
    }

    /// Plans a run for the memory that was asked for.
    pub fn limit(&self, recipe: &mut Recipe) {
        if let Some(bytes) = self.memory {
            recipe.training.memory_budget = MemoryBudget::Bytes(bytes);
        }
    }

    /// The same for each of the devices by itself, with `auto` and `cuda:all` decided by what was found.
    pub fn each(&self, found: &CudaReport) -> Vec<Self> {
        let one = |device| Self { device, ..self.clone() };
        let decided = self.decided(found);
        match decided.device {
            DeviceArg::Cuda(cards) => {
                cards.into_iter().map(|card| one(DeviceArg::Cuda(vec![card]))).collect()
            }
            device => vec![one(device)],
        }
    }

    /// The same with `auto` and `cuda:all` decided by what was found. A card that is there but lacks a library is chosen,
    /// and an error later, not a reason to compute for days on the processor.
    fn decided(&self, found: &CudaReport) -> Self {
        let cards = found.devices.as_deref().unwrap_or_default();
        let device = match &self.device {
            DeviceArg::Auto if cards.is_empty() => DeviceArg::Cpu,
            DeviceArg::Auto => DeviceArg::Cuda(vec![0]),
            // Where there is none, opening the first says why.
            DeviceArg::AllCards if cards.is_empty() => DeviceArg::Cuda(vec![0]),
            DeviceArg::AllCards => DeviceArg::Cuda(cards.iter().map(|card| card.ordinal).collect()),
            named => named.clone(),
        };
        Self { device, ..self.clone() }
    }

    /// How many devices an estimate is for, without looking whether those that are named are there.
    ///
    /// # Errors
    /// When all cards are meant and there is none.
    pub fn count(&self) -> Result<usize> {
        Ok(match &self.device {
            DeviceArg::Auto | DeviceArg::Cpu => 1,
            DeviceArg::Cuda(cards) => cards.len(),
            DeviceArg::AllCards => match eyas_cuda::probe().devices {
                Ok(cards) if !cards.is_empty() => cards.len(),
                _ => bail!(
                    "there is no card here; name as many as the estimate is for, as in --device cuda:0,1"
                ),
            },
        })
    }

    /// The cards to use; `None` for the processor.
    fn cards(&self) -> Result<Option<Vec<usize>>> {
        let found = match &self.device {
            DeviceArg::Cpu => return Ok(None),
            DeviceArg::Cuda(cards) if cards.len() == 1 => return Ok(Some(cards.clone())),
            _ => eyas_cuda::probe(),
        };
        let DeviceArg::Cuda(cards) = self.decided(&found).device else { return Ok(None) };
        if cards.len() > 1 {
            let found = found.devices.map_err(anyhow::Error::msg)?;
            let may_share = std::env::var(SHARE_CARD).is_ok_and(|value| value == "1");
            check_together(&cards, &found, may_share)?;
        }
        Ok(Some(cards))
    }
}

/// Checks that several cards are there and compute alike.
fn check_together(cards: &[usize], found: &[DeviceInfo], may_share: bool) -> Result<()> {
    let info = |number: usize| found.iter().find(|card| card.ordinal == number);
    let Some(first) = cards.first().and_then(|&number| info(number)) else {
        bail!("{}", missing(cards.first().copied().unwrap_or(0), found));
    };
    for (place, &number) in cards.iter().enumerate() {
        let Some(card) = info(number) else { bail!("{}", missing(number, found)) };
        if !may_share && cards[..place].contains(&number) {
            bail!(
                "cuda:{number} is named twice; two replicas on one card share its memory and are no faster. For a test of \
                 several replicas on one card set {SHARE_CARD}=1"
            );
        }
        if card.sm != first.sm {
            let of = |card: &DeviceInfo| {
                format!(
                    "cuda:{} ({}, compute capability {}.{})",
                    card.ordinal, card.name, card.sm.0, card.sm.1
                )
            };
            bail!(
                "{} and {} do not compute alike, so the result would depend on which card got which rows; name cards \
                 of one compute capability",
                of(first),
                of(card)
            );
        }
    }
    Ok(())
}

/// That a card is not there, with those that are.
fn missing(number: usize, found: &[DeviceInfo]) -> String {
    let there: Vec<String> =
        found.iter().map(|card| format!("cuda:{} ({})", card.ordinal, card.name)).collect();
    let there = if there.is_empty() { "none".into() } else { there.join(", ") };
    format!("there is no cuda:{number}; there is {there}. See `nvidia-smi` and CUDA_VISIBLE_DEVICES")
}

/// The processor, computing as the recipe asks.
fn cpu(recipe: &Recipe) -> Result<CpuBackend> {
    let matmul = match recipe.compute_dtype() {
        Some(Dtype::F32) => Some(MatmulKernel::F32),
        _ => None,
    };
    Ok(CpuBackend::new(CpuOptions { matmul })?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_named_as_elsewhere() {
        assert_eq!("cuda:1".parse(), Ok(DeviceArg::Cuda(vec![1])));
        assert_eq!("cuda".parse(), Ok(DeviceArg::Cuda(vec![0])));
        assert_eq!("cuda:2,0".parse(), Ok(DeviceArg::Cuda(vec![2, 0])));
        assert_eq!("cuda:all".parse(), Ok(DeviceArg::AllCards));
        assert_eq!("cpu".parse(), Ok(DeviceArg::Cpu));
        for wrong in ["gpu", "cuda:", "cuda:-1", "cuda:0,", "cuda:0,x", "cuda:0 1", "cpu:2", "CPU", ""] {
            assert!(wrong.parse::<DeviceArg>().is_err(), "{wrong}");
        }
        assert_eq!(memory("11GB"), Ok(11_000_000_000));
        assert!(memory("auto").is_err());
    }

    fn cards(capabilities: &[(u32, u32)]) -> Vec<DeviceInfo> {
        let card = |(ordinal, &sm): (usize, &(u32, u32))| DeviceInfo {
            ordinal,
            name: format!("Card {}{}", sm.0, sm.1),
            sm,
            multiprocessors: 80,
            memory: 1 << 34,
        };
        capabilities.iter().enumerate().map(card).collect()
    }

    #[test]
    fn cards_that_do_not_go_together_are_told() {
        let found = cards(&[(8, 0), (8, 0), (7, 5)]);
        let told = |cards: &[usize], may_share| {
            check_together(cards, &found, may_share).map_err(|error| error.to_string())
        };
        assert_eq!(told(&[1, 0], false), Ok(()));
        for (cards, expected) in [
            (
                &[0, 3][..],
                "there is no cuda:3; there is cuda:0 (Card 80), cuda:1 (Card 80), cuda:2 (Card 75)",
            ),
            (&[3, 0], "there is no cuda:3"),
            (&[0, 1, 0], "cuda:0 is named twice"),
            (
                &[0, 2],
                "cuda:0 (Card 80, compute capability 8.0) and cuda:2 (Card 75, compute capability 7.5) do not compute alike",
            ),
        ] {
            let message = told(cards, false).unwrap_err();
            assert!(message.starts_with(expected), "{message}");
        }
        assert_eq!(told(&[0, 0], true), Ok(()));
        assert!(check_together(&[0, 1], &[], false).unwrap_err().to_string().contains("there is none"));
    }

    #[test]
    fn one_card_is_taken_unless_more_are_named() {
        let found = |cards| CudaReport { libraries: Vec::new(), driver: None, devices: Ok(cards) };
        let two = found(cards(&[(9, 0), (9, 0)]));
        let decided = |device: &str, found: &CudaReport| {
            Choice { device: device.parse().unwrap(), memory: None }.decided(found).device
        };
        assert_eq!(decided("auto", &two), DeviceArg::Cuda(vec![0]));
        assert_eq!(decided("cuda", &two), DeviceArg::Cuda(vec![0]));
        assert_eq!(decided("cuda:all", &two), DeviceArg::Cuda(vec![0, 1]));
        assert_eq!(decided("auto", &found(Vec::new())), DeviceArg::Cpu);
        let all = Choice { device: DeviceArg::AllCards, memory: Some(7) };
        let each: Vec<_> = all.each(&two).into_iter().map(|choice| (choice.device, choice.memory)).collect();
        assert_eq!(each, [0, 1].map(|card| (DeviceArg::Cuda(vec![card]), Some(7))));
        assert_eq!(Choice { device: DeviceArg::Cuda(vec![0, 1, 2]), memory: None }.count().unwrap(), 3);
    }

    struct Nothing;

    impl Work for Nothing {
        type Output = String;

        fn run<B: Backend>(self, backend: &B) -> Result<String> {
            Ok(backend.name())
        }
    }

    #[test]
    fn a_command_for_one_device_refuses_several() {
        let recipe = crate::session::builtin("demo").unwrap();
        let on = |device| Choice { device, memory: None }.run(&recipe, Nothing);
        assert!(on(DeviceArg::Cpu).is_ok());
        let message = on(DeviceArg::Cuda(vec![0, 1])).unwrap_err().to_string();
        assert!(message.contains("`eyas train` runs on several cards"), "{message}");
    }
}
