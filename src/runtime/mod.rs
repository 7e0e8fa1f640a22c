//! Running a model, and the tensors that go in and come out.
//!
//! [`Session`] loads an encoded ONNX file and runs it in tract; this module is the only place that names tract, so that
//! another executor could take its place after the same three types. [`Array`] is what data sources, calibration and
//! verification exchange. [`kernel`] is the arithmetic of QuantizeLinear and DequantizeLinear, bit for bit what
//! onnxruntime computes. [`fold_samples`] runs independent samples on several threads and hands the results back in
//! sample order, so that a sum over samples has the same bits whatever the thread count.
//!
//! # Speed
//! Products of codes run in 8 bits: [`gemm`] multiplies them exactly on every processor, with its vector instructions
//! where there are any. MatMulInteger and ConvInteger are the session's own on top of it, and a MatMul, Gemm or Conv between
//! DequantizeLinear and QuantizeLinear becomes one such product with bias and requantization, packed when the model is
//! loaded ([`SessionOptions::optimize`]). A function between codes is a table, and the weights of Log-Int-Softmax are looked
//! up from codes of scores. [`onnx()`] hands tract's reader with these operators to programs of their own.
//!
//! # Why not tract as it comes
//! tract's own QuantizeLinear multiplies by the reciprocal of the scale, and its own DequantizeLinear may replace a
//! chain up to the next QuantizeLinear, a Softmax included, by a table of 256 entries, which is wrong. The session
//! registers operators of its own for both, and a Loop, which tract has none of; it widens 4-bit constants that tract can
//! not hold, and refuses what tract would silently misread (operators of a foreign domain). The tests under `conformance`
//! hold each of these facts, so that an upgrade of tract that changes one shows.

mod array;
pub mod gemm;
pub mod kernel;
mod samples;

#[cfg(feature = "tract")]
mod absorb;
#[cfg(feature = "tract")]
mod ask;
#[cfg(feature = "tract")]
mod attend;
#[cfg(feature = "tract")]
mod bytes;
#[cfg(feature = "tract")]
mod cast;
#[cfg(feature = "tract")]
mod codes;
#[cfg(feature = "tract")]
mod conv;
#[cfg(feature = "tract")]
mod error;
#[cfg(feature = "tract")]
mod fuse;
#[cfg(feature = "tract")]
mod host;
#[cfg(feature = "tract")]
mod kept;
#[cfg(feature = "tract")]
mod norm;
#[cfg(feature = "tract")]
mod prepare;
#[cfg(feature = "tract")]
mod product;
#[cfg(feature = "tract")]
mod qdq;
#[cfg(feature = "tract")]
mod repeat;
#[cfg(feature = "tract")]
mod session;
#[cfg(feature = "tract")]
mod squeeze;
#[cfg(feature = "tract")]
mod steps;
#[cfg(feature = "tract")]
mod table;
#[cfg(feature = "tract")]
mod weights;

#[cfg(all(test, feature = "tract"))]
mod attend_tests;
#[cfg(all(test, feature = "tract"))]
mod build;
#[cfg(all(test, feature = "tract"))]
mod conformance;
#[cfg(all(test, feature = "tract"))]
mod products_tests;
#[cfg(all(test, feature = "tract"))]
mod tables_tests;

pub use array::{Array, ArrayError, Element};
pub use samples::{fold_samples, map_samples};

#[cfg(feature = "tract")]
pub use error::RuntimeError;
#[cfg(feature = "tract")]
pub use session::{Keeping, Outputs, Port, Session, SessionOptions, Tapped, keep_sessions, lacks, misread, onnx};
