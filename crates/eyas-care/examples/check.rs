//! Prints what the checks make of a model's answer to a question:
//!
//! ```text
//! cargo run -p eyas-care --example check -- "Am I ill?" "You have depression. Rest a little."
//! ```

use std::io::Write;

use eyas_care::{Care, Language, Verdict};

fn main() -> std::io::Result<()> {
    let [question, answer] = &std::env::args().skip(1).collect::<Vec<_>>()[..] else {
        eprintln!("give a question and an answer as arguments");
        std::process::exit(2);
    };
    let check = Care::builtin().check_answer(question, answer, Language::En);
    let mut out = std::io::stdout().lock();
    if let Verdict::Replace { reasons, .. } = &check.verdict {
        writeln!(out, "{reasons:?}")?;
    }
    writeln!(out, "{}", check.text(answer))
}
