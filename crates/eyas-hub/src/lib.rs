//! Where models come from: folders, the Hugging Face cache, and the small model of the demo.

mod cache;
mod demo;
mod error;
mod locate;

pub use cache::cache_dir;
pub use demo::{DEMO_MODEL, demo_model};
pub use error::{Error, Result};
pub use locate::locate;
