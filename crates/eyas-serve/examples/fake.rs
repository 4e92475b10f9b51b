//! The server over the fake engine: for the page's tests and for load tests.
//!
//!     cargo run -p eyas-serve --example fake -- --port 8081 --delay-ms 50 --slots 8

use std::sync::Arc;
use std::time::Duration;

use eyas_serve::fake::{self, FakeEngine};
use eyas_serve::{CareMode, Config, serve, server};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (mut port, mut delay_ms, mut slots, mut config) = (8081, 20, 8, Config::default());
    let mut args = std::env::args().skip(1);
    while let Some(name) = args.next() {
        let value = args.next().ok_or_else(|| format!("{name} needs a value"))?;
        match name.as_str() {
            "--port" => port = value.parse()?,
            "--delay-ms" => delay_ms = value.parse()?,
            "--slots" => slots = value.parse()?,
            "--max-queue" => config.limits.max_queue = value.parse()?,
            "--max-connections" => config.limits.max_connections = value.parse()?,
            "--care" => {
                config.care.mode = match value.as_str() {
                    "on" => CareMode::On,
                    "off" => CareMode::Off,
                    "strict" => CareMode::Strict,
                    _ => return Err(format!("--care {value}: on, off or strict").into()),
                }
            }
            "--api-key" => config.api_key = Some(value),
            _ => return Err(format!("{name} is not known").into()),
        }
    }
    let folder = tempfile::tempdir()?;
    let tokenizer = Arc::new(fake::tokenizer(folder.path())?);
    let models = fake::models(Arc::clone(&tokenizer), 4096)?;
    let mut engine = FakeEngine::new(tokenizer, slots, Duration::from_millis(delay_ms));
    let address = ([127, 0, 0, 1], port).into();
    serve(config, models, &mut engine, address, server::signal(), |address| println!("http://{address}"))?;
    Ok(())
}
