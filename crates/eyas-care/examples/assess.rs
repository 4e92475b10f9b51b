//! Prints what the detector makes of messages, one turn an argument, the last one judged:
//!
//! ```text
//! cargo run -p eyas-care --example assess -- "I already wrote the note" "tonight"
//! ```

use std::io::Write;

use eyas_care::{Care, Turn};

fn main() -> std::io::Result<()> {
    let texts: Vec<String> = std::env::args().skip(1).collect();
    if texts.is_empty() {
        eprintln!("give the turns of a person as arguments, oldest first");
        std::process::exit(2);
    }
    let turns: Vec<Turn<'_>> = texts.iter().map(|text| Turn::user(text)).collect();
    let assessment = Care::builtin().assess(&turns);
    let mut out = std::io::stdout().lock();
    match &assessment.concern {
        Some(concern) => writeln!(out, "concern: {} ({:.2})", concern.category.name(), concern.severity)?,
        None => writeln!(out, "no concern")?,
    }
    for score in &assessment.scores {
        writeln!(
            out,
            "  {:<12} {:.2} of {:.2}  {}",
            score.category.name(),
            score.severity,
            score.threshold,
            score.matched.join(", ")
        )?;
    }
    Ok(())
}
