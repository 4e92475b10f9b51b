//! Prints how long an assessment takes: of the last of ten turns, and of one message of 10,000 characters after nine turns.
//!
//! ```text
//! cargo run --release -p eyas-care --example time
//! ```

use std::time::{Duration, Instant};

use eyas_care::{Care, Turn};

/// What a tired person may write; no concern.
const SAID: [&str; 5] = [
    "I have been so tired since the move, and my sister keeps calling about the money for the funeral.",
    "Work is fine, I think. My boss asked me to take the late shift again and I said yes, as always.",
    "最近一直睡不好，半夜三點就醒了，之後只能躺著想東想西。",
    "Do you know whether it is normal to cry over small things, like a broken cup?",
    "My daughter made soup yesterday, which was kind of her, and I could not finish it.",
];

/// The median of many runs.
fn median(mut work: impl FnMut()) -> Duration {
    let mut times: Vec<Duration> = (0..101)
        .map(|_| {
            let start = Instant::now();
            work();
            start.elapsed()
        })
        .collect();
    times.sort_unstable();
    times[times.len() / 2]
}

fn main() {
    let care = Care::builtin();
    let mut turns: Vec<Turn<'_>> = Vec::new();
    for text in SAID.iter().chain(&SAID) {
        turns.push(Turn::user(text));
        turns.push(Turn::assistant("That sounds like a lot. What would help a little today?"));
    }
    turns.pop();
    println!("the last of ten turns: {:?}", median(|| drop(care.assess(&turns))));
    let long: String = SAID.join(" ").chars().cycle().take(10_000).collect();
    turns.pop();
    turns.push(Turn::user(&long));
    println!("10,000 characters after nine turns: {:?}", median(|| drop(care.assess(&turns))));
}
