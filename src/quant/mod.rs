//! Quantization: parameters that can not hold nonsense, the one kernel that computes codes, observers, searches, the
//! plan, and the planner that fills it.
//!
//! Nothing here knows the graph's rewriting or the runtime; the numbers come from observers and weights, the decisions
//! go into a [`QuantPlan`](plan::QuantPlan).

pub mod hist;
pub mod kernel;
pub mod lis;
pub mod observe;
pub mod ptf;
pub mod qparams;

pub use qparams::{Code, QParams};
