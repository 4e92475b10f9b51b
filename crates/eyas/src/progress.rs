//! Progress bars: on a terminal they move; elsewhere a few plain lines stand for them.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use eyas_train::plan::display_bytes;
use eyas_train::recipe::Reporter;
use eyas_train::{Event, Observer, Summary};
use indicatif::{ProgressBar, ProgressStyle};

/// A bar of bytes, for loading.
pub struct LoadBar {
    bar: ProgressBar,
}

impl LoadBar {
    /// An empty bar.
    pub fn new(what: &str) -> Self {
        Self { bar: byte_bar(what) }
    }

    /// Moves it.
    pub fn set(&self, done: u64, total: u64) {
        self.bar.set_length(total);
        self.bar.set_position(done);
    }

    /// Takes it away.
    pub fn finish(self) {
        self.bar.finish_and_clear();
    }
}

/// A bar of bytes with their rate and the time left.
pub fn byte_bar(what: &str) -> ProgressBar {
    let bar = hidden_unless_terminal(0);
    bar.set_style(style(
        "{msg} {wide_bar:.cyan/dim} {bytes}/{total_bytes} {binary_bytes_per_sec} {eta} left",
    ));
    bar.set_message(what.to_owned());
    bar
}

/// A bar of things counted, for evaluations.
pub fn count_bar(what: &str, total: u64) -> ProgressBar {
    let bar = hidden_unless_terminal(total);
    bar.set_style(style("{msg} {wide_bar:.cyan/dim} {pos}/{len} {eta} left"));
    bar.set_message(what.to_owned());
    bar
}

fn hidden_unless_terminal(total: u64) -> ProgressBar {
    if std::io::stderr().is_terminal() { ProgressBar::new(total) } else { ProgressBar::hidden() }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("━━─")
}

/// Shows a training run: a bar with loss, rate, time left and memory.
pub struct TrainBar {
    bar: ProgressBar,
    terminal: bool,
    evaluation: Option<ProgressBar>,
    /// Steps of the run, those taken before a resumption included.
    max_steps: u64,
    global_step: u64,
    /// Steps, tokens and seconds of this process.
    steps: u64,
    tokens: u64,
    seconds: f64,
    micro_batches: (usize, usize),
    loss: Option<f64>,
    /// Of each device.
    memory: Vec<u64>,
    last_line: Option<Instant>,
}

impl TrainBar {
    /// Nothing is shown until the run starts.
    pub fn new() -> Self {
        Self {
            bar: ProgressBar::hidden(),
            terminal: std::io::stderr().is_terminal(),
            evaluation: None,
            max_steps: 0,
            global_step: 0,
            steps: 0,
            tokens: 0,
            seconds: 0.0,
            micro_batches: (0, 1),
            loss: None,
            memory: Vec::new(),
            last_line: None,
        }
    }

    fn say(&self, line: &str) {
        if self.terminal { self.bar.println(line) } else { eprintln!("{line}") }
    }

    fn message(&self) -> String {
        let loss = self.loss.map_or_else(|| "loss -".into(), |loss| format!("loss {loss:.3}"));
        let rate = if self.seconds > 0.0 { self.tokens as f64 / self.seconds } else { 0.0 };
        format!("{loss}, {rate:.0} tokens/s{}", memory(&self.memory))
    }

    fn time_left(&self) -> String {
        if self.steps == 0 {
            return "-:-- left".into();
        }
        let (done, of) = self.micro_batches;
        let steps_left = (self.max_steps - self.global_step) as f64 - done as f64 / of.max(1) as f64;
        let left = (steps_left.max(0.0) * self.seconds / self.steps as f64).round() as u64;
        format!("{}:{:02} left", left / 60, left % 60)
    }

    fn place(&mut self, global_step: u64) {
        self.global_step = global_step;
        let (done, of) = self.micro_batches;
        self.bar.set_position(global_step * TICKS + TICKS * done as u64 / of.max(1) as u64);
        self.bar.set_prefix(self.time_left());
        self.bar.set_message(self.message());
    }
}

/// The memory in use on each device; of many, the least and the most.
fn memory(bytes: &[u64]) -> String {
    let (Some(least), Some(most)) = (bytes.iter().min(), bytes.iter().max()) else { return String::new() };
    match bytes.len() {
        1..=4 => {
            format!(", {}", bytes.iter().map(|&bytes| display_bytes(bytes)).collect::<Vec<_>>().join(" + "))
        }
        devices => format!(", {} to {} on {devices} devices", display_bytes(*least), display_bytes(*most)),
    }
}

/// How memory is laid out, once for devices that have the same plan.
fn print_plans(summary: &Summary) {
    let Summary { plans, replicas, .. } = summary;
    if plans.len() == 1 {
        return eprintln!("{}", plans[0]);
    }
    for (number, plan) in plans.iter().enumerate() {
        let same = |other: &usize| plans[*other].parts == plan.parts && plans[*other].memory == plan.memory;
        if (0..number).any(|before| same(&before)) {
            continue;
        }
        let names: Vec<&str> =
            (number..plans.len()).filter(same).map(|other| replicas[other].as_str()).collect();
        eprintln!("on {}:\n{plan}", names.join(", "));
    }
}

/// Ticks of the bar a step, so that it moves with micro-batches too.
const TICKS: u64 = 1000;

impl Observer for TrainBar {
    fn event(&mut self, event: &Event<'_>) {
        match event {
            Event::Started(summary) => {
                let trainable = 100.0 * summary.trainable_parameters as f64 / summary.base_parameters as f64;
                eprintln!(
                    "{}: {} parameters, {} trainable ({trainable:.2}%)",
                    summary.device, summary.base_parameters, summary.trainable_parameters
                );
                eprintln!(
                    "{} rows to learn from ({} tokens), {} held out; {} steps, {} a pass",
                    summary.train_rows,
                    summary.train_tokens,
                    summary.eval_rows,
                    summary.max_steps,
                    summary.steps_per_epoch
                );
                if let Some(folder) = &summary.resumed_from {
                    eprintln!("going on from {} (step {})", folder.display(), summary.global_step);
                }
                print_plans(summary);
                self.max_steps = summary.max_steps;
                self.bar = hidden_unless_terminal(summary.max_steps * TICKS);
                self.bar.set_style(style("{prefix} {wide_bar:.green/dim} {msg}"));
                self.place(summary.global_step);
            }
            Event::Reporting { reporter, folder } => {
                let command = match reporter {
                    Reporter::Tensorboard => "tensorboard --logdir",
                    Reporter::Wandb => "wandb sync",
                };
                eprintln!("metrics: {command} {}", folder.display());
            }
            Event::Warning(text) => self.say(&format!("warning: {text}")),
            Event::MicroBatch { done, of } => {
                self.micro_batches = (*done, *of);
                if done < of {
                    self.place(self.global_step);
                }
            }
            Event::Step(report) => {
                self.steps += 1;
                self.tokens += report.tokens as u64;
                self.seconds += report.seconds;
                self.loss = Some(report.loss);
                self.memory.clone_from(&report.memory);
                self.micro_batches = (0, 1);
                self.place(report.global_step);
                let due = self.last_line.is_none_or(|last| last.elapsed() > Duration::from_secs(10));
                if !self.terminal && (due || report.global_step == report.max_steps) {
                    self.last_line = Some(Instant::now());
                    eprintln!(
                        "step {}/{}: {}, {}",
                        report.global_step,
                        report.max_steps,
                        self.message(),
                        self.time_left()
                    );
                }
            }
            Event::EvaluationBatch { done, of } => {
                let bar = self.evaluation.get_or_insert_with(|| count_bar("evaluating", *of as u64));
                // An evaluation that is repeated in less memory has more batches.
                bar.set_length(*of as u64);
                bar.set_position(*done as u64);
            }
            Event::Evaluated(evaluation) => {
                if let Some(bar) = self.evaluation.take() {
                    bar.finish_and_clear();
                }
                self.say(&format!(
                    "held out after {} steps: loss {:.3}, perplexity {:.2}",
                    evaluation.global_step, evaluation.loss, evaluation.perplexity
                ));
            }
            Event::Finished(_) => self.bar.finish_and_clear(),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_memory_of_each_device_is_shown() {
        assert_eq!(memory(&[]), "");
        assert_eq!(memory(&[2_000_000_000]), ", 2.00 GB");
        assert_eq!(memory(&[2_500_000_000, 2_000_000_000]), ", 2.50 GB + 2.00 GB");
        assert_eq!(
            memory(&[1_000_000, 3_000_000, 2_000_000, 2_000_000, 2_000_000]),
            ", 1.0 MB to 3.0 MB on 5 devices"
        );
    }
}
