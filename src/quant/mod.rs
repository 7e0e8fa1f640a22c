//! Quantization: parameters that cannot hold nonsense, the one kernel that computes codes, observers, searches, and the
//! arithmetic of Log-Int-Softmax.
//!
//! Nothing here decides what becomes of a model, nor runs one: the [planner](crate::plan::planner) asks, the passes that
//! quantize carry out. Only [`lis`] knows how to write itself into a graph.

pub mod channel;
pub mod count;
mod counts;
mod descent;
mod divided;
pub mod gptq;
pub mod hist;
pub mod kernel;
pub mod levels;
pub mod lis;
pub mod observe;
pub mod pairs;
pub mod ptf;
pub mod qparams;
pub mod range;
pub mod row_sums;
pub mod ties;
pub mod tokens;
mod triangular;
pub mod watch;
pub(crate) mod wide;

pub use qparams::{Code, QParams};
