//! Code of other crates that works on what a file says, and may panic over it.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::Once;

thread_local! {
    /// Whether a panic of this thread is caught here and told as an error.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// Keeps the panic hook from printing what becomes an error.
fn quiet_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let hook = take_hook();
        set_hook(Box::new(move |info| {
            if !INSIDE.get() {
                hook(info);
            }
        }));
    });
}

/// Runs code that may panic over bad input. What it was working on is dropped then.
///
/// # Errors
/// What a panic said.
pub fn foreign<T>(f: impl FnOnce() -> T) -> Result<T, String> {
    quiet_panics();
    let outer = INSIDE.replace(true);
    let done = catch_unwind(AssertUnwindSafe(f));
    INSIDE.set(outer);
    done.map_err(|panic| panic_message(&*panic))
}

/// What a panic said; nothing if that is no text.
pub fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|s| s.to_string())).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_an_error_that_says_the_same() {
        assert_eq!(foreign(|| 3), Ok(3));
        assert_eq!(foreign(|| panic!("{} of {}", 1, 2)).map(|()| 0), Err("1 of 2".to_owned()));
        assert_eq!(foreign(|| foreign(|| panic!("inner"))), Ok(Err::<(), _>("inner".to_owned())));
        assert!(!INSIDE.get());
    }
}
