//! Log-Int-Softmax: attention weights that are powers of two, computed in integers from the score codes.
//!
//! The input is a row of uint8 score codes `x` with scale `s`; with `d[j] = max(x) - x[j]` the float softmax would be
//! `exp(-d s) / sum exp(-d s)`. FQ-ViT (Lin et al., arXiv 2111.13824, section 3.3) stores `-log2` of that ratio in four
//! bits, so that the product with V needs shifts only.
//!
//! * [`LisSpec`] says which of the variants is meant; only its checked constructors make one.
//! * [`LisPlan`] turns a spec and the facts of one attention into the constants of the arithmetic.
//! * [`reference`](mod@reference) computes with a plan in plain integers. It defines the number.
//! * [`emit`] writes the same computation as standard ONNX operators, bit for bit equal in tract and onnxruntime.
//! * [`standalone`] wraps one emission in a model of its own, for conformance tests and measurements.

mod emit;
mod plan;
pub mod reference;
mod softmax;
mod spec;
pub mod standalone;

pub use emit::{LisSite, emit};
pub use plan::{LisFacts, LisPlan, MOST_KEYS, Product};
pub use softmax::emit_softmax;
pub use spec::{Anchor, Form, LisError, LisSpec, LogBase, Normalise, Rounding, Tail};
