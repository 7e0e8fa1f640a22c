//! Validation: the one way to a [`Validated`] model, which export, lowering and execution require.

use std::fmt;

use super::{Model, NodeId, ValueId};

/// A model that was found to obey the invariants of this module. Only [`validate`] makes one.
#[derive(Clone, Copy, Debug)]
pub struct Validated<'m>(&'m Model);

impl<'m> Validated<'m> {
    pub fn model(&self) -> &'m Model {
        self.0
    }
}

/// One broken invariant.
#[derive(Clone, Debug, PartialEq)]
pub struct Violation {
    pub node: Option<NodeId>,
    pub value: Option<ValueId>,
    pub message: String,
}

/// Every invariant a model breaks.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub struct Invalid(pub Vec<Violation>);

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the model breaks {} rule(s):", self.0.len())?;
        for v in &self.0 {
            write!(f, "\n  {}", v.message)?;
        }
        Ok(())
    }
}

/// Checks every invariant and collects all that fail.
pub fn validate(model: &Model) -> Result<Validated<'_>, Invalid> {
    let bad: Vec<Violation> =
        model.graph.check_wiring().into_iter().map(|message| Violation { node: None, value: None, message }).collect();
    if bad.is_empty() { Ok(Validated(model)) } else { Err(Invalid(bad)) }
}
