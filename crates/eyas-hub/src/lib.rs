//! Where models come from and where adapters go: folders, the Hugging Face hub with its cache, and the small model of
//! the demo.
//!
//! | | |
//! |---|---|
//! | `name`, `settings` | `owner/name[/file][@revision]`; the environment of Hugging Face's tools |
//! | `http`, `repository` | requests with redirects and pauses; a repository's commit, files and refusals |
//! | `select`, `splits` | which files of a model, an adapter or a data set are needed |
//! | `hub`, `fetch`, `store` | fetching them: resumed, checked, into the cache that Python shares |
//! | `push`, `lfs` | sending files: large ones to storage, then one commit |

mod cache;
mod demo;
mod digest;
mod error;
mod events;
mod fetch;
mod http;
mod hub;
mod lfs;
mod locate;
mod name;
mod push;
mod repository;
mod select;
mod settings;
mod splits;
mod store;

pub use cache::cache_dir;
pub use demo::{DEMO_MODEL, demo_model};
pub use error::{Error, Result};
pub use events::{Event, Observer};
pub use hub::{DatasetFiles, Hub};
pub use locate::{locate_adapter, locate_config, locate_dataset, locate_model};
pub use name::{DEFAULT_REVISION, HubName, RepoKind};
pub use push::{Account, Contents, Push, PushFile, Pushed};
pub use settings::{Settings, Token};
