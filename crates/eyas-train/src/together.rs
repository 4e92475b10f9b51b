//! Several workers at one piece of work, a thread each. There is no barrier among them, so none can wait for one that
//! failed: the first that fails tells the others, which stop at their next signal, and all are awaited.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use crate::{Error, Result};

/// How long the pool's own tasks may wait for the thread that waits for the others.
const YIELD: Duration = Duration::from_millis(1);

/// What a worker hears and says between two pieces of its work.
pub(crate) struct Signals<'s> {
    stop: &'s AtomicBool,
    halt: &'s AtomicBool,
    tell: &'s mut dyn FnMut(),
}

impl Signals<'_> {
    /// Whether it was asked to stop, or another worker has failed.
    pub fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed) || self.halt.load(Ordering::Relaxed)
    }

    /// A piece is through.
    pub fn done(&mut self) {
        (self.tell)();
    }
}

/// Runs `work` with each of the workers and its number, the first on this thread; `done` hears how many pieces are through in
/// all. `None` when `stop` was set and one of them heeded it.
///
/// # Errors
/// That of the first worker that failed with something else than a lack of memory, else of the first that failed. A panic is
/// an error too.
pub(crate) fn together<W: Send, T: Send>(
    workers: &mut [W],
    stop: &AtomicBool,
    mut done: impl FnMut(usize),
    work: impl Fn(usize, &mut W, Signals<'_>) -> Result<Option<T>> + Sync,
) -> Result<Option<Vec<T>>, (usize, Error)> {
    let Some((first, others)) = workers.split_first_mut() else { return Ok(Some(Vec::new())) };
    let halt = AtomicBool::new(false);
    let (sender, receiver) = mpsc::channel();
    let mut count = 0;
    let results = thread::scope(|scope| {
        let (halt, work) = (&halt, &work);
        let spawn = others.iter_mut().enumerate().map(|(index, worker)| {
            let number = index + 1;
            let sender = sender.clone();
            let run = move || {
                let mut tell = || {
                    // Nobody listens once the first has panicked.
                    let _ = sender.send(());
                };
                caught(halt, || work(number, worker, Signals { stop, halt, tell: &mut tell }))
            };
            thread::Builder::new().name(format!("replica {number}")).spawn_scoped(scope, run).inspect_err(
                |_| {
                    halt.store(true, Ordering::Relaxed);
                },
            )
        });
        let threads: Vec<_> = spawn.collect();
        drop(sender);
        let mut tell = || {
            count += 1 + receiver.try_iter().count();
            done(count);
        };
        let mut results = vec![caught(halt, || work(0, first, Signals { stop, halt, tell: &mut tell }))];
        // The channel closes when the last of the others is through, however it ended.
        loop {
            match receiver.recv_timeout(YIELD) {
                Ok(()) => {
                    count += 1;
                    done(count);
                }
                Err(RecvTimeoutError::Disconnected) => break,
                // On a thread of the pool: the others' tasks may need it.
                Err(RecvTimeoutError::Timeout) => drop(rayon::yield_now()),
            }
        }
        results.extend(threads.into_iter().map(|thread| match thread {
            Ok(thread) => thread.join().unwrap_or_else(|panic| Err(panicked(&*panic))),
            Err(source) => Err(Error::Thread { source }),
        }));
        results
    });
    let mut failed = None;
    let mut through = Some(Vec::new());
    for (number, result) in results.into_iter().enumerate() {
        match result {
            Ok(result) => {
                through = through.zip(result).map(|(mut all, one)| {
                    all.push(one);
                    all
                })
            }
            Err(error) => {
                let is_worse = failed.as_ref().is_none_or(|(_, before): &(usize, Error)| {
                    before.missing_memory().is_some() && error.missing_memory().is_none()
                });
                if is_worse {
                    failed = Some((number, error));
                }
            }
        }
    }
    failed.map_or(Ok(through), Err)
}

/// Runs a worker; however it fails, the others are told.
fn caught<T>(halt: &AtomicBool, work: impl FnOnce() -> Result<T>) -> Result<T> {
    // What a worker was about when it panicked is not used again: the run ends.
    let result = catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| Err(panicked(&*panic)));
    if result.is_err() {
        halt.store(true, Ordering::Relaxed);
    }
    result
}

fn panicked(panic: &(dyn Any + Send)) -> Error {
    let message = panic.downcast_ref::<String>().map(String::as_str);
    let message = message.or(panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
    Error::Panicked { message: message.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What came of it, and how many pieces were heard of.
    type Heard = (Result<Option<Vec<usize>>, (usize, Error)>, usize);

    fn run(
        workers: usize,
        stop: bool,
        work: impl Fn(usize, &mut usize, Signals<'_>) -> Result<Option<usize>> + Sync,
    ) -> Heard {
        let mut heard = 0;
        let result = together(&mut vec![1; workers], &stop.into(), |done| heard = done, work);
        (result, heard)
    }

    fn broken(number: usize) -> Error {
        Error::Rows(format!("{number} broke"))
    }

    #[test]
    fn all_work_and_are_heard() {
        for workers in [1, 2, 5] {
            let (result, heard) = run(workers, false, |number, worker, mut signals| {
                *worker += number;
                (0..3).for_each(|_| signals.done());
                Ok(Some(*worker))
            });
            assert_eq!(result.unwrap(), Some((1..=workers).collect()));
            assert_eq!(heard, 3 * workers);
        }
        assert_eq!(run(0, false, |number, _, _| Ok(Some(number))).0.unwrap(), Some(Vec::new()));
    }

    #[test]
    fn one_that_fails_stops_the_others() {
        for failing in 0..3 {
            for panics in [false, true] {
                let (result, _) = run(3, false, |number, _, signals| {
                    if number != failing {
                        // Without the other's failure this would never end.
                        while !signals.stopped() {
                            thread::yield_now();
                        }
                        return Ok(None);
                    }
                    if panics {
                        panic!("{number} broke");
                    }
                    Err(broken(number))
                });
                let (number, error) = result.unwrap_err();
                assert_eq!(number, failing);
                assert!(error.to_string().contains(&format!("{failing} broke")), "{error}");
                assert_eq!(matches!(error, Error::Panicked { .. }), panics);
            }
        }
    }

    #[test]
    fn a_lack_of_memory_is_told_only_where_nothing_worse_was() {
        let lacking = || {
            let error =
                eyas_backend::Error::OutOfMemory { device: "card".into(), requested: 2, available: 1 };
            Error::from(error)
        };
        let failed = |worse: Option<usize>| {
            run(3, false, |number, _, _| Err(if Some(number) == worse { broken(number) } else { lacking() }))
                .0
                .unwrap_err()
        };
        let (number, error) = failed(Some(2));
        assert_eq!((number, error.missing_memory()), (2, None));
        let (number, error) = failed(None);
        assert_eq!((number, error.missing_memory()), (0, Some(1)));
    }

    #[test]
    fn one_that_heeds_a_stop_leaves_nothing() {
        let (result, _) = run(3, true, |number, _, signals| {
            Ok(if number == 1 && signals.stopped() { None } else { Some(number) })
        });
        assert_eq!(result.unwrap(), None);
    }

    #[test]
    fn others_may_need_the_pool_that_waits_for_them() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        let sums = pool.install(|| {
            run(2, false, |number, _, _| {
                if number == 0 {
                    return Ok(Some(0));
                }
                Ok(Some(pool.install(|| (0..100).sum())))
            })
            .0
        });
        assert_eq!(sums.unwrap(), Some(vec![0, 4950]));
    }
}
