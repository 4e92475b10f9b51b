//! Figures for Prometheus.

use std::sync::Mutex;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// Requests are counted by these.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct RequestLabels {
    /// The route's pattern, never the path that was asked for.
    pub route: String,
    pub status: u16,
}

/// What is counted. Nothing of it says what anyone wrote.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    pub requests: Family<RequestLabels, Counter>,
    pub queue: Gauge,
    pub active: Gauge,
    pub connections: Gauge,
    pub generated_tokens: Counter,
    pub prompt_tokens: Counter,
    pub reused_tokens: Counter,
    pub cancelled: Counter,
    pub care_answers: Counter,
    pub first_token: Histogram,
    pub each_token: Histogram,
    /// Moving mean of how long a sequence runs, in seconds.
    mean_duration: Mutex<f64>,
}

impl Metrics {
    pub fn new() -> Self {
        let requests = Family::<RequestLabels, Counter>::default();
        let (queue, active, connections) = (Gauge::default(), Gauge::default(), Gauge::default());
        let generated_tokens: Counter<u64, AtomicU64> = Counter::default();
        let (prompt_tokens, reused_tokens) = (Counter::<u64, AtomicU64>::default(), Counter::default());
        let (cancelled, care_answers) = (Counter::default(), Counter::default());
        let seconds = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0];
        let first_token = Histogram::new(seconds);
        let each_token = Histogram::new([0.001, 0.0025].into_iter().chain(seconds));

        let mut registry = Registry::with_prefix("eyas");
        registry.register("requests", "Requests by route and status", requests.clone());
        registry.register("queue_length", "Requests that wait for the engine", queue.clone());
        registry.register("active_sequences", "Sequences in the engine", active.clone());
        registry.register("connections", "Open connections", connections.clone());
        registry.register("generated_tokens", "Tokens generated", generated_tokens.clone());
        registry.register("prompt_tokens", "Prompt tokens taken on", prompt_tokens.clone());
        registry.register(
            "reused_prompt_tokens",
            "Prompt tokens that were in the cache and not read again",
            reused_tokens.clone(),
        );
        registry.register(
            "cancelled_sequences",
            "Sequences whose client went away or needed no more",
            cancelled.clone(),
        );
        registry.register("care_answers", "Fixed answers to a concern", care_answers.clone());
        registry.register(
            "time_to_first_token_seconds",
            "From a request's arrival in the queue to its first token",
            first_token.clone(),
        );
        registry.register("time_per_token_seconds", "From one token to the next", each_token.clone());
        Self {
            registry,
            requests,
            queue,
            active,
            connections,
            generated_tokens,
            prompt_tokens,
            reused_tokens,
            cancelled,
            care_answers,
            first_token,
            each_token,
            mean_duration: Mutex::new(0.0),
        }
    }

    /// Notes how long a sequence ran.
    pub fn note_duration(&self, duration: Duration) {
        let mut mean = self.mean_duration.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let seconds = duration.as_secs_f64();
        *mean = if *mean == 0.0 { seconds } else { 0.9 * *mean + 0.1 * seconds };
    }

    /// Seconds after which it is worth asking again, when so many wait for so many slots.
    pub fn retry_after(&self, waiting: usize, slots: usize) -> u64 {
        let mean = *self.mean_duration.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let seconds = mean * waiting as f64 / slots.max(1) as f64;
        (seconds.ceil() as u64).clamp(1, 120)
    }

    /// The figures in Prometheus' text form.
    pub fn text(&self, queue_length: usize) -> String {
        self.queue.set(queue_length as i64);
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_names_every_figure() {
        let metrics = Metrics::new();
        metrics.requests.get_or_create(&RequestLabels { route: "/health".into(), status: 200 }).inc();
        metrics.first_token.observe(0.3);
        let text = metrics.text(3);
        for line in [
            "eyas_requests_total{route=\"/health\",status=\"200\"} 1",
            "eyas_queue_length 3",
            "eyas_time_to_first_token_seconds_bucket{le=\"0.5\"} 1",
            "# TYPE eyas_time_per_token_seconds histogram",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
    }

    #[test]
    fn waiting_is_estimated_from_what_ran() {
        let metrics = Metrics::new();
        assert_eq!(metrics.retry_after(50, 4), 1);
        metrics.note_duration(Duration::from_secs(8));
        assert_eq!(metrics.retry_after(10, 4), 20);
        assert_eq!(metrics.retry_after(10_000, 4), 120);
    }
}
