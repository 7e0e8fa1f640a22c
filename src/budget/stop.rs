//! A word to a computation under way.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Asks a computation to end before it is done. Clones are one and the same: whoever holds one may ask, from any thread, and
/// whoever computes looks between two samples.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Asks.
    pub fn ask(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether somebody has asked.
    pub fn asked(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
