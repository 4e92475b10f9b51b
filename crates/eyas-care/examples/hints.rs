//! Reads messages from standard input, one JSON object with `turns` a line, and writes everything in the last turn of each
//! that could be a hint, a JSON list a line. `tools/care/fit_hints.py` learns the weights from this.

use std::io::{BufRead, Write};

use eyas_care::Care;

fn main() -> std::io::Result<()> {
    let care = Care::builtin();
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    for line in std::io::stdin().lock().lines() {
        let message: serde_json::Value = serde_json::from_str(&line?)?;
        let turns = message["turns"].as_array().map(Vec::as_slice).unwrap_or_default();
        let last = turns.last().and_then(serde_json::Value::as_str).unwrap_or_default();
        serde_json::to_writer(&mut out, &care.hints(last))?;
        writeln!(out)?;
    }
    Ok(())
}
