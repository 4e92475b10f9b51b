//! What a backend is asked about memory before anything is allocated.

use crate::spec::{Dtype, Storage};

/// The largest step of a run, as far as a backend's own working memory is concerned: dequantised weights, sums in
/// pieces and the like, beside the tensors that its callers allocate.
#[derive(Clone, Debug, PartialEq)]
pub struct StepShape {
    /// The type of activations.
    pub dtype: Dtype,
    /// Tokens of the largest batch.
    pub tokens: usize,
    /// Whether there is a backward.
    pub trains: bool,
    /// Query heads.
    pub heads: usize,
    /// Key/value heads.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Every projection of a block, and the head.
    pub projections: Vec<ProjectionShape>,
}

/// A projection of a [`StepShape`].
#[derive(Clone, Debug, PartialEq)]
pub struct ProjectionShape {
    /// Input features.
    pub in_features: usize,
    /// Output features of its parts together.
    pub out_features: usize,
    /// Rank of its parts' low-rank updates together; 0 where there is none.
    pub rank: usize,
    /// The most rows that it is run on.
    pub rows: usize,
    /// How its weights are kept.
    pub storage: Storage,
}

/// Host memory that this process may still take: what is free, less a tenth for everything else, and within the
/// control group's limit. `None` where the system does not tell.
pub fn host_memory() -> Option<u64> {
    let info = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = info.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let free = line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)?;
    let number = |name: &str| {
        let text = std::fs::read_to_string(format!("/sys/fs/cgroup/{name}")).ok()?;
        text.trim().parse::<u64>().ok()
    };
    let group = number("memory.max").zip(number("memory.current")).map(|(max, now)| max.saturating_sub(now));
    let free = group.map_or(free, |group| group.min(free));
    Some(free - free / 10)
}

/// Resident memory of this process in bytes: now, and at its peak. `None` where the system does not tell.
pub fn resident_memory() -> Option<(u64, u64)> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let bytes = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
    };
    Some((bytes("VmRSS:")?, bytes("VmHWM:")?))
}
