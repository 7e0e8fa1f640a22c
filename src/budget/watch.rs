//! The watchdog: ends a process that exceeds its budget, with a message that says what it was doing.

use std::cell::Cell;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock};
use std::thread::Thread;
use std::time::{Duration, Instant};

use super::readable;

/// How often the clock is looked at.
const TICK: Duration = Duration::from_millis(50);

/// The thread that reports, once there is one.
static REPORTER: OnceLock<Thread> = OnceLock::new();
static EXHAUSTED: AtomicBool = AtomicBool::new(false);
/// Live bytes and the request that were too much.
static LIVE: AtomicUsize = AtomicUsize::new(0);
static REQUEST: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// Whether this thread may exceed the budget: the one that reports it.
    static EXEMPT: Cell<bool> = const { Cell::new(false) };
}

/// Milliseconds that may pass without progress; 0 for no limit.
static PATIENCE: AtomicU64 = AtomicU64::new(0);

static DOING: Mutex<Doing> = Mutex::new(Doing { file: None, step: String::new(), since: None });

/// What the process is doing.
struct Doing {
    file: Option<PathBuf>,
    step: String,
    /// Wall clock and processor time of the last progress.
    since: Option<(Instant, Duration)>,
}

fn doing() -> MutexGuard<'static, Doing> {
    DOING.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Tells what is being done, for the message of a process that is ended: `pass clean-up`. Not progress: steps share the time
/// since the last [`progress`].
pub fn step(what: impl fmt::Display) {
    // Without a watchdog nobody asks.
    if REPORTER.get().is_some() {
        let text = what.to_string();
        doing().step = text;
    }
}

/// What is being done, and to which file: `m.onnx: pass clean-up`.
pub fn current() -> String {
    let d = doing();
    let file = d.file.as_ref().map_or(String::new(), |f| f.display().to_string());
    [file.as_str(), d.step.as_str()].into_iter().filter(|s| !s.is_empty()).collect::<Vec<_>>().join(": ")
}

/// The file that the work is about.
pub fn current_file() -> Option<PathBuf> {
    doing().file.clone()
}

/// Tells which file the work is about.
pub fn file(path: &Path) {
    if REPORTER.get().is_some() {
        let path = Some(path.to_owned());
        doing().file = path;
    }
}

/// How long the process may go without [`progress`]; `None` for as long as it likes.
pub fn set_patience(most: Option<Duration>) {
    PATIENCE.store(most.map_or(0, |d| (d.as_millis() as u64).max(1)), Ordering::Relaxed);
}

/// How long the process may go without [`progress`], where that is limited.
pub fn patience() -> Option<Duration> {
    Some(Duration::from_millis(PATIENCE.load(Ordering::Relaxed))).filter(|p| !p.is_zero())
}

/// What a model file of so many bytes gets without a word.
pub fn default_patience(file: u64) -> Duration {
    Duration::from_millis(7_000 + file / 33)
}

/// Tells that work proceeds: a sample was run. The time begins anew.
pub fn progress() {
    if REPORTER.get().is_some() {
        doing().since = Some((Instant::now(), processor_time()));
    }
}

/// Time the process has spent on processors, where the system tells; a loaded machine does not make it grow.
fn processor_time() -> Duration {
    #[cfg(target_os = "linux")]
    if let Some(t) = std::fs::read_to_string("/proc/self/stat").ok().and_then(|s| {
        // Fields 14 and 15, in ticks of 10 ms; the name in front may hold spaces, so count from its closing bracket.
        let mut fields = s.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
        let (user, system) = (fields.next()?.parse::<u64>().ok()?, fields.next()?.parse::<u64>().ok()?);
        Some(Duration::from_millis((user + system) * 10))
    }) {
        return t;
    }
    Duration::MAX
}

/// Why a process was ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exceeded {
    pub file: Option<PathBuf>,
    /// What was being done.
    pub step: String,
    pub limit: Limit,
}

/// Which limit, in bytes or seconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Limit {
    Memory { live: usize, request: usize, budget: usize },
    Time { seconds: u64 },
}

impl fmt::Display for Exceeded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(file) = &self.file {
            write!(f, "{}: ", file.display())?;
        }
        let step = if self.step.is_empty() { "the work" } else { &self.step };
        match self.limit {
            Limit::Memory { live, request, budget } => write!(
                f,
                "{step} needs more memory than the budget of {} ({} are in use, {} of them asked for last); if the model's \
                 sizes are meant, raise it with --memory",
                readable(budget as u64),
                readable(live as u64),
                readable(request as u64)
            ),
            Limit::Time { seconds } => write!(
                f,
                "{step} has not come to an end after {seconds} s without progress, which is long for a file of this size; if \
                 the model's sizes are meant, allow more with --patience"
            ),
        }
    }
}

impl std::error::Error for Exceeded {}

/// True if the calling thread may exceed the budget.
pub(super) fn is_exempt() -> bool {
    EXEMPT.get()
}

/// Called by the allocator: wakes the watchdog and waits for the end of the process. Without a watchdog it returns, and the
/// system decides.
#[cold]
pub(super) fn out_of_memory(live: usize, request: usize) {
    let Some(reporter) = REPORTER.get() else { return };
    if !EXHAUSTED.swap(true, Ordering::SeqCst) {
        LIVE.store(live, Ordering::SeqCst);
        REQUEST.store(request, Ordering::SeqCst);
    }
    reporter.unpark();
    loop {
        std::thread::park();
    }
}

/// Watches the process.
#[derive(Debug)]
pub struct Watchdog;

impl Watchdog {
    /// Starts to watch: `end` is called, once and on a thread of its own, when more than the [budget](super::memory) is live
    /// (in a program whose allocator is [`Counting`](super::Counting)) or the [patience](set_patience) passes without
    /// [`progress`]. It must end the process, since the thread that allocated too much waits for that for ever.
    pub fn start(end: impl FnOnce(Exceeded) + Send + 'static) {
        let run = move || {
            EXEMPT.set(true);
            loop {
                std::thread::park_timeout(TICK);
                let limit = if EXHAUSTED.load(Ordering::SeqCst) {
                    // The numbers come right after the mark.
                    std::thread::sleep(Duration::from_millis(5));
                    let (live, request) = (LIVE.load(Ordering::SeqCst), REQUEST.load(Ordering::SeqCst));
                    Some(Limit::Memory { live, request, budget: super::memory() })
                } else {
                    late()
                };
                if let Some(limit) = limit {
                    // Whoever waits for memory may hold the lock.
                    let (file, step) = match DOING.try_lock() {
                        Ok(d) => (d.file.clone(), d.step.clone()),
                        Err(_) => (None, String::new()),
                    };
                    end(Exceeded { file, step, limit });
                    return;
                }
            }
        };
        if let Ok(t) = std::thread::Builder::new().name("watchdog".into()).spawn(run) {
            let _ = REPORTER.set(t.thread().clone());
            progress();
        }
    }
}

/// Whether the time is over: on the clock and on the processors, so that neither a loaded machine nor many threads shorten
/// it.
fn late() -> Option<Limit> {
    let patience = patience()?;
    let since = match DOING.try_lock() {
        Ok(d) => d.since,
        Err(_) => None,
    };
    let (clock, processors) = since?;
    if clock.elapsed() < patience {
        return None;
    }
    let now = processor_time();
    let used = if now == Duration::MAX { patience } else { now.saturating_sub(processors) };
    (used >= patience).then_some(Limit::Time { seconds: patience.as_secs() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_message_names_file_step_limit_and_remedy() {
        let of = |limit| Exceeded { file: Some("m.onnx".into()), step: "pass clean-up".into(), limit }.to_string();
        let m = of(Limit::Memory { live: 721_000_000, request: 64_000_000, budget: 720_000_000 });
        assert!(["m.onnx", "pass clean-up", "720 MB", "64 MB", "--memory"].iter().all(|w| m.contains(w)), "{m}");
        let t = of(Limit::Time { seconds: 7 });
        assert!(["m.onnx", "pass clean-up", "7 s", "--patience"].iter().all(|w| t.contains(w)), "{t}");
    }
}
