//! Keeps the threads of the pool awake through a run of small operations.
//!
//! Generation of a token is hundreds of operations of some microseconds each. Between two of them an idle thread goes
//! to sleep, and waking it takes longer than the operation. So the first one asks every other thread of the pool to
//! wait awake: it takes whatever work comes up, and goes to sleep when none has for a while.

use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rayon::Yield;

/// How long a thread waits for the next operation: longer than a token's choice takes between two steps.
const PATIENCE: Duration = Duration::from_micros(1000);
/// How long a thread waits in all before it is asked anew. It may have begun while its own work waits for others, and
/// holds that up for no longer.
const TERM: Duration = Duration::from_millis(4);
/// Looks for work between two looks at the clock.
const LOOKS: u32 = 16;

/// Counts operations.
static OPERATIONS: AtomicUsize = AtomicUsize::new(0);
/// Threads that wait awake.
static AWAKE: AtomicUsize = AtomicUsize::new(0);
/// Threads that were asked to and have not begun.
static ASKED: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static IS_AWAKE: Cell<bool> = const { Cell::new(false) };
}

/// To be called at the beginning of a small operation that other threads should take part in.
pub(super) fn stay_awake() {
    let threads = rayon::current_num_threads();
    if threads == 1 {
        return;
    }
    OPERATIONS.fetch_add(1, Ordering::Relaxed);
    let caller = rayon::current_thread_index();
    // A thread that waits awake may be the one that runs the operation.
    let awake = AWAKE.load(Ordering::Relaxed).saturating_sub(usize::from(IS_AWAKE.get()));
    let others = threads - usize::from(caller.is_some());
    if awake >= others || ASKED.compare_exchange(0, others, Ordering::Relaxed, Ordering::Relaxed).is_err() {
        return;
    }
    rayon::spawn_broadcast(move |context| {
        // The caller finds this too, while it waits for the end of an operation.
        if caller == Some(context.index()) {
            return;
        }
        ASKED.fetch_sub(1, Ordering::Relaxed);
        if !IS_AWAKE.replace(true) {
            AWAKE.fetch_add(1, Ordering::Relaxed);
            wait_awake();
            AWAKE.fetch_sub(1, Ordering::Relaxed);
            IS_AWAKE.set(false);
        }
    });
}

fn wait_awake() {
    let begin = Instant::now();
    let (mut operations, mut last) = (OPERATIONS.load(Ordering::Relaxed), begin);
    loop {
        for _ in 0..LOOKS {
            if rayon::yield_now() != Some(Yield::Executed) {
                std::hint::spin_loop();
            }
        }
        let (now, count) = (Instant::now(), OPERATIONS.load(Ordering::Relaxed));
        if count != operations {
            (operations, last) = (count, now);
        }
        if now - last > PATIENCE || now - begin > TERM {
            return;
        }
        // Where other programs want the core they get it.
        std::thread::yield_now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_of_several_callers_end() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
        let sum = AtomicUsize::new(0);
        pool.scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|_| {
                    for _ in 0..50 {
                        stay_awake();
                        rayon::join(
                            || sum.fetch_add(1, Ordering::Relaxed),
                            || sum.fetch_add(1, Ordering::Relaxed),
                        );
                    }
                });
            }
        });
        assert_eq!(sum.into_inner(), 200);
        // Threads go back to sleep.
        let end = Instant::now() + Duration::from_secs(20);
        while AWAKE.load(Ordering::Relaxed) > 0 && Instant::now() < end {
            std::thread::sleep(PATIENCE);
        }
        assert_eq!(AWAKE.load(Ordering::Relaxed), 0);
    }
}
