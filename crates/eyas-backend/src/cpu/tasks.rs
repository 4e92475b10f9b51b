//! How work is shared out: in pieces of a fixed size, so that no result depends on the number of threads.

/// Elements of an elementwise operation that one task takes: enough to outweigh handing it over.
pub(super) const TASK: usize = 1 << 15;

/// Rows of `width` elements that one task takes.
pub(super) fn rows_a_task(width: usize) -> usize {
    (TASK / width.max(1)).max(1)
}
