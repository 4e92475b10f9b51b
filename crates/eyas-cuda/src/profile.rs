//! What each operation takes on the card, by events around it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use eyas_backend::{OpTime, Result};

use crate::backend::CudaBackend;
use crate::device::Event;

/// The operations that were watched.
#[derive(Debug, Default)]
pub(crate) struct Profile {
    on: AtomicBool,
    spans: Mutex<Vec<(String, Event, Event)>>,
}

impl CudaBackend {
    /// Runs an operation, between two events where it is being measured. `detail` tells shapes of it apart.
    pub(crate) fn timed(
        &self,
        op: &str,
        detail: impl FnOnce() -> String,
        work: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        if !self.profile.on.load(Ordering::Relaxed) {
            return work();
        }
        let (start, end) = (self.device.event()?, self.device.event()?);
        start.record()?;
        work()?;
        end.record()?;
        let mut spans = self.profile.spans.lock().unwrap_or_else(PoisonError::into_inner);
        let detail = detail();
        spans.push((if detail.is_empty() { op.into() } else { format!("{op} {detail}") }, start, end));
        Ok(())
    }

    pub(crate) fn is_measuring(&self) -> bool {
        self.profile.on.load(Ordering::Relaxed)
    }

    pub(crate) fn start_measuring(&self, on: bool) -> Result<()> {
        self.profile.on.store(on, Ordering::Relaxed);
        self.profile.spans.lock().unwrap_or_else(PoisonError::into_inner).clear();
        Ok(())
    }

    /// The operations watched, the longest first.
    pub(crate) fn read_measured(&self) -> Result<Vec<OpTime>> {
        self.device.synchronize()?;
        let spans = self.profile.spans.lock().unwrap_or_else(PoisonError::into_inner);
        let mut times: HashMap<&str, (usize, f64)> = HashMap::new();
        for (op, start, end) in spans.iter() {
            let entry = times.entry(op).or_default();
            entry.0 += 1;
            entry.1 += f64::from(start.milliseconds_to(end)?);
        }
        let mut times: Vec<_> = times
            .into_iter()
            .map(|(op, (calls, milliseconds))| OpTime { op: op.into(), calls, milliseconds })
            .collect();
        times.sort_by(|a, b| b.milliseconds.total_cmp(&a.milliseconds).then_with(|| a.op.cmp(&b.op)));
        Ok(times)
    }
}
