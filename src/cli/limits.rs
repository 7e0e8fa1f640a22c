//! Limits of memory and time: from the flags, or from the size of the model's file.

use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

use super::Failure;
use super::args::LimitArgs;
use crate::budget::{self, Watchdog};

/// What the user said.
static ASKED: OnceLock<LimitArgs> = OnceLock::new();

/// Starts to watch. Until a model is read, the limits are those of the smallest file.
pub(super) fn begin(asked: &LimitArgs) {
    let _ = ASKED.set(asked.clone());
    read(0);
    Watchdog::start(|e| {
        crate::file::stop::abandon();
        super::log::error(&e.to_string());
        std::process::exit(1);
    });
}

/// Runs a command. A fault of the program is an error as any other: it says what was being done.
pub(super) fn whole(command: impl FnOnce() -> Result<bool, Failure>) -> Result<bool, Failure> {
    static PLACE: std::sync::Mutex<String> = std::sync::Mutex::new(String::new());
    std::panic::set_hook(Box::new(|info| {
        let place = info.location().map_or(String::new(), |l| format!("{}:{}", l.file(), l.line()));
        if let Ok(mut p) = PLACE.lock() {
            *p = place;
        }
    }));
    // Whatever the command holds is dropped; nothing of it is looked at again.
    let panic = match std::panic::catch_unwind(std::panic::AssertUnwindSafe(command)) {
        Ok(done) => return done.map_err(|e| about(&e.to_string()).into()),
        Err(panic) => panic,
    };
    let text = budget::panic_message(&*panic);
    let place = PLACE.lock().map_or(String::new(), |p| p.clone());
    let doing = budget::current();
    Err(format!(
        "{doing}: the program has a fault: {text} ({place}); nothing was written. Please report it with the model"
    )
    .into())
}

/// The message with the model's file in front, unless it names that or another file.
fn about(message: &str) -> String {
    let Some(file) = budget::current_file() else { return message.to_owned() };
    let file = file.display().to_string();
    let first = message.split([':', ',']).next().unwrap_or_default();
    let named = message.contains(&file) || message.contains("--") || Path::new(first).exists();
    if named { message.to_owned() } else { format!("{file}: {message}") }
}

/// A model file will be read.
pub(super) fn reading(path: &Path) {
    budget::file(path);
    budget::step("reading the model");
    read(std::fs::metadata(path).map_or(0, |m| m.len()));
}

/// A model of so many bytes was read, its external data included. Of two models the larger counts.
pub(super) fn read(bytes: u64) {
    use std::sync::atomic::{AtomicU64, Ordering};
    static LARGEST: AtomicU64 = AtomicU64::new(0);
    let bytes = LARGEST.fetch_max(bytes, Ordering::Relaxed).max(bytes);
    let asked = ASKED.get();
    let threads = super::threads(None);
    budget::set_memory(asked.and_then(|a| a.memory).unwrap_or_else(|| budget::default_memory(bytes, threads)));
    budget::set_patience(match asked.and_then(|a| a.patience) {
        Some(0) => None,
        Some(s) => Some(Duration::from_secs(s)),
        None => Some(budget::default_patience(bytes)),
    });
}
