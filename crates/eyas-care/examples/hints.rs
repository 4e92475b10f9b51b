//! Reads messages from standard input, one JSON object with `turns` a line, and writes a JSON object a line: `hints`, all in
//! the turns that could be a hint, and `concern`, the category found or null. `tools/care/fit_hints.py` learns the weights
//! from the first and measures them by the second, with weights of its own in `EYAS_CARE_FILE`.

use std::io::{BufRead, Write};

use eyas_care::{Care, Turn};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let care = match std::env::var_os("EYAS_CARE_FILE") {
        Some(path) => Care::from_file(path)?,
        None => Care::builtin(),
    };
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    for line in std::io::stdin().lock().lines() {
        let message: serde_json::Value = serde_json::from_str(&line?)?;
        let turns = message["turns"].as_array().map(Vec::as_slice).unwrap_or_default();
        let texts: Vec<&str> = turns.iter().filter_map(serde_json::Value::as_str).collect();
        let spoken: Vec<Turn<'_>> = texts.iter().map(|text| Turn::user(text)).collect();
        let concern = care.assess(&spoken).concern.map(|concern| concern.category.name());
        serde_json::to_writer(
            &mut out,
            &serde_json::json!({ "hints": care.hints(&texts), "concern": concern }),
        )?;
        writeln!(out)?;
    }
    Ok(())
}
