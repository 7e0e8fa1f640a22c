//! All passes by name.

use super::Pass;

/// Every pass, in the order help lists them.
pub fn all() -> Vec<Box<dyn Pass>> {
    Vec::new()
}

/// The pass of this name.
pub fn pass(id: &str) -> Option<Box<dyn Pass>> {
    all().into_iter().find(|p| p.id() == id)
}
