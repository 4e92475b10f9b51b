//! What people see while files travel to and from the hub.

use std::io::IsTerminal;

use eyas_hub::{Event, Observer};
use eyas_train::plan::display_bytes;
use indicatif::ProgressBar;

use crate::progress::byte_bar;

/// A bar with the rate and the time left on a terminal; elsewhere a line a file.
pub struct TransferBar {
    bar: ProgressBar,
    doing: &'static str,
    terminal: bool,
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
        Self { bar: byte_bar(doing), doing, terminal: std::io::stderr().is_terminal() }
    }

    fn say(&self, line: &str) {
        if self.terminal { self.bar.suspend(|| eprintln!("{line}")) } else { eprintln!("{line}") }
    }
}

impl Observer for TransferBar {
    fn event(&self, event: Event<'_>) {
        match event {
            Event::Started { what, files, bytes } => {
                let s = if files == 1 { "" } else { "s" };
                self.say(&format!("{} {files} file{s} of {what}, {}", self.doing, display_bytes(bytes)));
                self.bar.reset();
                self.bar.set_length(bytes);
            }
            Event::Moved(bytes) if bytes >= 0 => self.bar.inc(bytes as u64),
            Event::Moved(bytes) => self.bar.dec(bytes.unsigned_abs()),
            Event::Done(file) if !self.terminal => eprintln!("{file} is there"),
            Event::Retry { reason, wait } => {
                self.say(&format!("{reason}; trying again in {:.0} s", wait.as_secs_f64().ceil()));
            }
            Event::Note(text) => self.say(text),
            Event::Finished => self.bar.finish_and_clear(),
            _ => {}
        }
    }
}
