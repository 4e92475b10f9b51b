//! Ctrl-C: the first asks for a clean stop, the second ends the process.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;

/// A flag that Ctrl-C raises, to stop an answer.
///
/// # Errors
/// When the system does not let signals be caught.
pub fn answer_flag() -> anyhow::Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    let raised = Arc::clone(&flag);
    ctrlc::set_handler(move || raised.store(true, Ordering::SeqCst)).context("Ctrl-C cannot be caught")?;
    Ok(flag)
}

/// A flag that Ctrl-C raises, to stop a run.
///
/// # Errors
/// When the system does not let signals be caught.
pub fn stop_flag() -> anyhow::Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    let raised = Arc::clone(&flag);
    ctrlc::set_handler(move || {
        if raised.swap(true, Ordering::SeqCst) {
            std::process::exit(130);
        }
        eprintln!("\nstopping after this micro-batch; press Ctrl-C again to stop at once");
    })
    .context("Ctrl-C cannot be caught")?;
    Ok(flag)
}
