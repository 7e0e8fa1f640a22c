//! Running a model, and the tensors that go in and come out.
//!
//! [`Session`] loads an encoded ONNX file and runs it in tract; this module is the only place that names tract, so that
//! another executor could take its place behind the same three types. [`Array`] is what data sources, calibration and
//! verification exchange. [`kernel`] is the arithmetic of QuantizeLinear and DequantizeLinear, bit for bit what
//! onnxruntime computes. [`fold_samples`] runs independent samples on several threads and hands the results back in
//! sample order, so that a sum over samples has the same bits whatever the thread count.
//!
//! # Why not tract as it comes
//! tract's own QuantizeLinear multiplies by the reciprocal of the scale, and its own DequantizeLinear may replace a
//! chain up to the next QuantizeLinear, a Softmax included, by a table of 256 entries, which is wrong. The session
//! registers operators of its own for both, and a Loop, which tract has none of; it widens 4-bit constants that tract can
//! not hold, and refuses what tract would silently misread (operators of a foreign domain). The tests under `conformance`
//! hold each of these facts, so that an upgrade of tract that changes one shows.

mod array;
pub mod kernel;
mod samples;

#[cfg(feature = "tract")]
mod error;
#[cfg(feature = "tract")]
mod prepare;
#[cfg(feature = "tract")]
mod qdq;
#[cfg(feature = "tract")]
mod repeat;
#[cfg(feature = "tract")]
mod session;

#[cfg(all(test, feature = "tract"))]
mod build;
#[cfg(all(test, feature = "tract"))]
mod conformance;

pub use array::{Array, ArrayError, Element};
pub use samples::{fold_samples, map_samples};

#[cfg(feature = "tract")]
pub use error::RuntimeError;
#[cfg(feature = "tract")]
pub use session::{Outputs, Port, Session, SessionOptions};
