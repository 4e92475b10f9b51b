//! How work is shared out: in pieces of a fixed size, so that no result depends on the number of threads.

use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::prelude::*;

/// Elements of an elementwise operation that one task takes: enough to outweigh handing it over.
pub(super) const TASK: usize = 1 << 15;

/// Rows of `width` elements that one task takes.
pub(super) fn rows_a_task(width: usize) -> usize {
    (TASK / width.max(1)).max(1)
}

/// Runs large tasks, each thread taking the next one when it is free.
///
/// Tasks begin in their order. With the largest first, threads end within about a small task of each other; halving the
/// list, as a parallel iterator does, would leave a thread waiting for half a large one.
pub(super) fn in_order<T: Sync>(tasks: &[T], run: impl Fn(&T) + Sync) {
    let next = AtomicUsize::new(0);
    let takers = tasks.len().min(rayon::current_num_threads());
    (0..takers).into_par_iter().with_max_len(1).for_each(|_| {
        while let Some(task) = tasks.get(next.fetch_add(1, Ordering::Relaxed)) {
            run(task);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once() {
        for threads in [1, 3] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            for n in [0, 1, 2, 50] {
                let tasks: Vec<AtomicUsize> = (0..n).map(|_| AtomicUsize::new(0)).collect();
                pool.install(|| {
                    in_order(&tasks, |task| {
                        task.fetch_add(1, Ordering::Relaxed);
                    });
                });
                assert!(tasks.iter().all(|task| task.load(Ordering::Relaxed) == 1));
            }
        }
    }
}
