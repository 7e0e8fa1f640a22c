//! Independent samples on several threads, results in sample order.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Condvar, Mutex};

/// Computes `f(0), f(1), .. f(n - 1)` on up to `threads` threads; the results come back in order.
pub fn map_samples<T: Send>(n: usize, threads: usize, f: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let mut out = Vec::with_capacity(n);
    let run: Result<(), Infallible> = fold_samples(
        n,
        threads,
        |i| Ok(f(i)),
        |_, t| {
            out.push(t);
            Ok(())
        },
    );
    match run {
        Ok(()) => out,
        Err(never) => match never {},
    }
}

/// Computes `f(i)` for `i` in `0..n` on up to `threads` threads (0 counts as 1) and hands each result to `fold` on the
/// calling thread, strictly in the order of `i`: whatever `fold` accumulates has the same bits for every thread count.
///
/// At most `threads + 1` results exist that were not folded yet, so memory does not grow with `n`. The first error, in
/// sample order, ends the run and is returned: `fold` has then seen exactly the samples before it. A panic in `f` is
/// passed on to the caller.
///
/// # Errors
/// The first error of `f` or `fold`, by sample.
pub fn fold_samples<T: Send, E: Send>(
    n: usize,
    threads: usize,
    f: impl Fn(usize) -> Result<T, E> + Sync,
    mut fold: impl FnMut(usize, T) -> Result<(), E>,
) -> Result<(), E> {
    let threads = threads.clamp(1, n.max(1));
    if threads == 1 {
        return (0..n).try_for_each(|i| f(i).and_then(|t| fold(i, t)));
    }
    let desk = Desk {
        state: Mutex::new(State { next: 0, folded: 0, ready: BTreeMap::new(), stopped: false }),
        moved: Condvar::new(),
    };
    std::thread::scope(|scope| {
        let work = || {
            // A worker that dies must not leave the others waiting for it.
            let _stop = StopOnPanic(&desk);
            while let Some(i) = desk.take(n, threads + 1) {
                let result = f(i);
                desk.lock().ready.insert(i, result);
                desk.moved.notify_all();
            }
        };
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let _stop = StopOnPanic(&desk);
        for i in 0..n {
            let Some(result) = desk.await_result(i) else {
                // A worker panicked. Left to the scope, what it said would be lost.
                workers.into_iter().for_each(|w| w.join().unwrap_or_else(|p| std::panic::resume_unwind(p)));
                break;
            };
            if let Err(e) = result.and_then(|t| fold(i, t)) {
                desk.stop();
                return Err(e);
            }
        }
        Ok(())
    })
}

struct State<R> {
    /// The next sample nobody has begun.
    next: usize,
    /// Samples handed to `fold`.
    folded: usize,
    ready: BTreeMap<usize, R>,
    stopped: bool,
}

struct Desk<R> {
    state: Mutex<State<R>>,
    moved: Condvar,
}

impl<R> Desk<R> {
    fn lock(&self) -> std::sync::MutexGuard<'_, State<R>> {
        // The lock is never held over foreign code, so a poisoned state is still a consistent one.
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// The next sample to compute, once fewer than `window` results are outstanding; `None` when there are no more.
    fn take(&self, n: usize, window: usize) -> Option<usize> {
        let mut s = self.lock();
        loop {
            if s.stopped || s.next >= n {
                return None;
            }
            if s.next < s.folded + window {
                s.next += 1;
                return Some(s.next - 1);
            }
            s = self.moved.wait(s).unwrap_or_else(|e| e.into_inner());
        }
    }

    fn await_result(&self, i: usize) -> Option<R> {
        let mut s = self.lock();
        loop {
            if let Some(r) = s.ready.remove(&i) {
                s.folded = i + 1;
                self.moved.notify_all();
                return Some(r);
            }
            if s.stopped {
                return None;
            }
            s = self.moved.wait(s).unwrap_or_else(|e| e.into_inner());
        }
    }

    fn stop(&self) {
        self.lock().stopped = true;
        self.moved.notify_all();
    }
}

struct StopOnPanic<'a, R>(&'a Desk<R>);

impl<R> Drop for StopOnPanic<'_, R> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.stop();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    /// Later samples finish sooner, so an unordered reduction would be seen.
    fn slow(i: usize) -> f32 {
        std::thread::sleep(Duration::from_micros(40 * (50 - i as u64)));
        1.0 / (i as f32 + 3.0)
    }

    #[test]
    fn a_float_sum_has_the_same_bits_for_every_thread_count() {
        let sum = |threads| {
            let mut acc = 0f32;
            let mut seen = vec![];
            let r: Result<(), ()> = fold_samples(
                50,
                threads,
                |i| Ok(slow(i)),
                |i, x| {
                    seen.push(i);
                    acc += x;
                    Ok(())
                },
            );
            assert_eq!(r, Ok(()));
            assert_eq!(seen, (0..50).collect::<Vec<_>>());
            acc.to_bits()
        };
        let one = sum(1);
        assert!([0, 2, 3, 8, 64].into_iter().all(|t| sum(t) == one));
    }

    #[test]
    fn unfolded_results_are_bounded() {
        let (made, peak) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let mut folded = 0;
        let r: Result<(), ()> = fold_samples(
            60,
            3,
            |_| {
                made.fetch_add(1, Ordering::SeqCst);
                Ok(())
            },
            |_, ()| {
                std::thread::sleep(Duration::from_micros(300));
                peak.fetch_max(made.load(Ordering::SeqCst) - folded, Ordering::SeqCst);
                folded += 1;
                Ok(())
            },
        );
        assert_eq!((r, folded), (Ok(()), 60));
        // One more than the window: the sample being folded.
        assert!(peak.load(Ordering::SeqCst) <= 5, "{peak:?}");
    }

    #[test]
    fn the_first_error_in_sample_order_wins() {
        for threads in [1, 4] {
            let mut seen = 0;
            let r = fold_samples(
                40,
                threads,
                |i| {
                    // Sample 5 fails late, sample 6 at once.
                    if i == 5 {
                        std::thread::sleep(Duration::from_millis(3));
                    }
                    if i == 5 || i == 6 { Err(i) } else { Ok(i) }
                },
                |_, _| {
                    seen += 1;
                    Ok(())
                },
            );
            assert_eq!((r, seen), (Err(5), 5));
        }
    }

    #[test]
    fn an_error_of_the_fold_ends_the_run() {
        let r = fold_samples(1000, 4, Ok, |i, _: usize| if i == 3 { Err("stop") } else { Ok(()) });
        assert_eq!(r, Err("stop"));
    }

    #[test]
    #[should_panic(expected = "seventeen")]
    fn a_panic_in_a_sample_reaches_the_caller() {
        map_samples(100, 4, |i| assert_ne!(i, 17, "seventeen"));
    }

    #[test]
    fn nothing_to_do() {
        assert!(map_samples(0, 4, |i| i).is_empty());
        assert_eq!(map_samples(3, 4, |i| i * i), [0, 1, 4]);
    }
}
