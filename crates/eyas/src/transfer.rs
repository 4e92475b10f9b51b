//! What people see while files travel to and from the hub.

use std::io::IsTerminal;
use std::sync::atomic::{AtomicBool, Ordering};

use eyas_hub::{Event, Observer};
use eyas_train::plan::display_bytes;
use indicatif::ProgressBar;

use crate::progress::byte_bar;

/// A bar with the rate and the time left on a terminal; elsewhere a line a file.
pub struct TransferBar {
    bar: ProgressBar,
    doing: &'static str,
    terminal: bool,
    /// Whether the bar stands: small files come before it is known how much there is.
    stands: AtomicBool,
}

impl TransferBar {
    /// For files that come here.
    pub fn fetching() -> Self {
        Self::new("fetching")
    }

    /// For files that go there.
    pub fn sending() -> Self {
        Self::new("sending")
    }

    fn new(doing: &'static str) -> Self {
        let terminal = std::io::stderr().is_terminal();
        Self { bar: byte_bar(doing), doing, terminal, stands: AtomicBool::new(false) }
    }

    fn say(&self, line: &str) {
        if self.terminal { self.bar.suspend(|| eprintln!("{line}")) } else { eprintln!("{line}") }
    }
}

impl Observer for TransferBar {
    fn event(&self, event: Event<'_>) {
        let stands = self.stands.load(Ordering::Relaxed);
        match event {
            Event::Started { what, files, bytes } => {
                let s = if files == 1 { "" } else { "s" };
                self.say(&format!("{} {files} file{s} of {what}, {}", self.doing, display_bytes(bytes)));
                self.bar.reset();
                self.bar.set_length(bytes);
                self.stands.store(true, Ordering::Relaxed);
            }
            Event::Moved(bytes) if stands && bytes >= 0 => self.bar.inc(bytes as u64),
            Event::Moved(bytes) if stands => self.bar.dec(bytes.unsigned_abs()),
            Event::Done(file) if !self.terminal => eprintln!("{file} is there"),
            Event::Retry { reason, wait } => {
                self.say(&format!("{reason}; trying again in {:.0} s", wait.as_secs_f64().ceil()));
            }
            Event::Note(text) => self.say(text),
            Event::Finished => {
                self.stands.store(false, Ordering::Relaxed);
                self.bar.finish_and_clear();
            }
            _ => {}
        }
    }
}
