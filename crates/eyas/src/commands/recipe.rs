//! `eyas recipe`: the reference of all keys.

use std::process::ExitCode;

use anyhow::Result;
use eyas_train::Recipe;

pub fn run() -> Result<ExitCode> {
    print!("{}", Recipe::reference());
    Ok(ExitCode::SUCCESS)
}
