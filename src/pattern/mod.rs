//! Rules as data: a small language that says what a shape in a graph looks like, and a matcher that finds it.
//!
//! A rule file is a YAML list; `docs/rules.md` teaches the language. The match text is compiled into an immutable
//! pattern when it is loaded, and everything that can be wrong with it is found then. [`find`] walks a graph from its
//! outputs to its inputs and gives every match; [`explain`] says how close the nearest miss came and where it stopped.
//! What follows from a match is either a replacement, which becomes a [`Patch`](crate::rewrite::Patch), or a
//! recognition: a name for the shape and roles for its values ([`recognise`](mod@recognise)).
//!
//! A rule states; it does not compute. Anything that computes numbers is Rust and reads recognitions.

mod action;
mod compile;
mod condition;
mod driver;
mod facts;
mod fragments;
mod matcher;
pub mod ops;
mod place;
mod predicate;
pub mod recognise;
mod rule;
pub mod scores;
mod syntax;
mod weighing;
mod yaml;

pub use compile::Pattern;
pub use driver::{Explanation, Hits, Near, explain, find};
pub use facts::Facts;
pub use matcher::{Bound, Match, NearMiss};
pub use place::{Pos, RuleFault};
pub use predicate::NAMES as PREDICATES;
pub use recognise::{Attention, Composite, QueryKey, Recognition, attentions, gelus, layer_norms, recognise};
pub use rule::{Refusal, Rule, RuleError, RuleSet, StandsFor};
pub use scores::{Act, Chain, Mask, MaskKind, Scale};

#[cfg(test)]
mod tests;
