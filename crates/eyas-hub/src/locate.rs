//! From what a person types to folders and files on this machine.

use std::path::{Path, PathBuf};

use crate::demo::{DEMO_MODEL, demo_model};
use crate::events::{Event, Observer};
use crate::hub::{DatasetFiles, Hub};
use crate::name::HubName;
use crate::{Error, Result};

/// Finds a model: a path, the demo's model by its name, or a name on the hub (`owner/name[/file][@revision]`), which
/// is fetched as far as the cache does not hold it.
///
/// # Errors
/// When it is nowhere; the message says where it was looked for. Otherwise as [`Hub::model`].
pub fn locate_model(name: &str, observer: &dyn Observer) -> Result<PathBuf> {
    if Path::new(name).exists() {
        return Ok(name.into());
    }
    if name == DEMO_MODEL {
        return demo_model(|| observer.event(Event::Note(&format!("fetching {name} (93 MB, once)"))));
    }
    Hub::from_env()?
        .model(&on_hub(name, &format!("Give a model folder, a GGUF file, `{DEMO_MODEL}`"))?, observer)
}

/// Finds a model's description without fetching its weights: the path of its `config.json` on the hub. `None` where the
/// name is a path, the demo's model, or that of a model without one: [`locate_model`] finds those.
///
/// # Errors
/// As [`locate_model`].
pub fn locate_config(name: &str, observer: &dyn Observer) -> Result<Option<PathBuf>> {
    match HubName::parse(name).filter(|_| !Path::new(name).exists()) {
        Some(on_hub) => Hub::from_env()?.config(&on_hub, observer).map_err(|error| nowhere(name, error)),
        None => Ok(None),
    }
}

/// Finds an adapter: a folder, or a name on the hub.
///
/// # Errors
/// As [`locate_model`].
pub fn locate_adapter(name: &str, observer: &dyn Observer) -> Result<PathBuf> {
    if Path::new(name).exists() {
        return Ok(name.into());
    }
    let on_hub = on_hub(name, "Give the folder that a run wrote")?;
    Hub::from_env()?.adapter(&on_hub, observer).map_err(|error| nowhere(name, error))
}

/// Finds the rows of a data set: a file, or a name on the hub.
///
/// # Errors
/// As [`locate_model`].
pub fn locate_dataset(name: &str, observer: &dyn Observer) -> Result<DatasetFiles> {
    if Path::new(name).exists() {
        return Ok(DatasetFiles { files: vec![name.into()], report: format!("rows of {name}") });
    }
    let on_hub = on_hub(name, "Give a JSONL, JSON, Parquet or CSV file, `builtin`")?;
    Hub::from_env()?.dataset(&on_hub, observer).map_err(|error| nowhere(name, error))
}

fn on_hub(name: &str, advice: &str) -> Result<HubName> {
    HubName::parse(name).ok_or_else(|| {
        Error::NotFound(format!(
            "{name}: there is no such folder or file, and it is no name on the hub (owner/name[@revision]). {advice}, \
             or a name on the hub"
        ))
    })
}

/// What may have been meant as a path is not here either.
fn nowhere(name: &str, error: Error) -> Error {
    match error {
        Error::NoRepository { .. } | Error::Network { .. } | Error::Offline(_) => {
            Error::NotFound(format!("{name}: there is no such file or folder here. On the hub: {error}"))
        }
        error => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_name_is_reported_with_what_to_give() {
        for (name, expected) in [("./no/such/folder", "GGUF file"), ("nothing", DEMO_MODEL)] {
            let message = locate_model(name, &|_: Event<'_>| ()).unwrap_err().to_string();
            assert!(message.contains("no such folder") && message.contains(expected), "{message}");
        }
        let message = locate_dataset("rows.jsonl", &|_: Event<'_>| ()).unwrap_err().to_string();
        assert!(message.contains("builtin"), "{message}");
    }
}
