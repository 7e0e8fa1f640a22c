//! `fqvit-opt` compiles a float vision transformer in ONNX into a fully quantized one, and measures the difference.
//!
//! ```
//! use fqvit_opt::{Compiler, DataOptions};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let data = DataOptions {
//!     calibrate: Some("testdata/digits/digits_calib.npz".into()),
//!     samples: Some(8),
//!     ..DataOptions::default()
//! };
//! let done = Compiler::load("testdata/digits/digits_vit.onnx")?.calibrate(data).run()?;
//!
//! // Four bits of every attention weight, the reason for each choice, and what it costs on samples held back.
//! let (plan, float) = (done.plan.as_ref().unwrap(), done.prepared.as_ref().unwrap());
//! assert_eq!(plan.attentions.len(), float.sites.attentions.len());
//! assert!(plan.layers.iter().all(|l| !l.reason.is_empty()));
//! assert!(done.report.outputs[0].sqnr_db > 10.0);
//! # let folder = tempfile::tempdir()?;
//! # let out = folder.path().join("digits.q.onnx");
//! done.save(&out)?;
//! assert!(std::fs::metadata(&out)?.len() < std::fs::metadata("testdata/digits/digits_vit.onnx")?.len());
//! # Ok(())
//! # }
//! ```
//!
//! # What a model is here
//!
//! [`ir::Model`] is an ONNX file read without loss. Its graph has *values*, each made once, by a node, as an input or as a
//! constant, and *nodes*, which read values by number. Names belong to values and are kept: they are how users, plans
//! and reports speak of them. What the IR does not model, such as documentation strings, rides along and is written back.
//! Weights stay handles into the mapped file.
//!
//! A model means what the ONNX standard says its operators compute. Where runtimes disagree with it, or with each other, the
//! compiler writes forms on which they agree.
//!
//! # The path of a model
//!
//! ```text
//! onnx::load ─> compile::prepare ─> calibrate::run::observe ─> compile::make_plan ─> compile::apply ─> onnx::save
//!    Model          Prepared                Stats                  QuantPlan            Model
//! ```
//!
//! - **Prepare.** Passes bring the model into canonical form: exporters write one thing in a dozen ways, and everything after
//!   this sees one of them. The function stays the same. [`pattern`] rules then name attentions, LayerNorms and GELUs.
//! - **Observe.** The float model runs over the calibration set; integer histograms and fixed-point sums are kept, which
//!   join to the same bits in any order.
//! - **Plan.** For each value the recipe's candidates are compared by the squared error they cause where the value is
//!   consumed. The [`plan::QuantPlan`] holds every choice and its reason, and is a file that people read and edit.
//! - **Apply.** Passes carry out the plan. They decide nothing.
//! - **Verify.** [`verify`] runs both models side by side on data that calibration has not seen.
//!
//! [`passes::pipelines`] lists the passes of each part. [`Compiler`] makes it one call; [`compile`] has it step by
//! step.
//!
//! # What a rewrite may do
//!
//! A graph changes through a [`rewrite::Patch`] only: a small graph with taps into the old one, checked as a whole before
//! anything is touched. Types and shapes must fit, nothing that is read may disappear, there is no cycle, graph inputs and
//! outputs keep name, order and type, and every operator exists in the model's operator set.
//!
//! Every pass declares what it does to numbers ([`passes::Numerics`]): nothing, no more than a bound, or quantization; and
//! tests run the model before and after each pass to hold it to that.
//!
//! # What is forbidden
//!
//! - To guess: what cannot be proved of a value is unknown, and a rewrite that needs it does not happen.
//! - To decide while rewriting: numbers come from the plan.
//! - To depend on the number of threads, the order of a hash map, or the processor.
//! - To print, or to panic on a user's file.
//!
//! The laws in full, with the test that holds each: `docs/architecture.md`.

pub mod budget;
pub mod calibrate;
#[cfg(all(feature = "cli", feature = "tract"))]
pub mod cli;
pub mod compile;
pub mod file;
pub mod infer;
pub mod ir;
pub mod onnx;
pub mod passes;
pub mod pattern;
pub mod plan;
pub mod quant;
pub mod recipe;
pub mod rewrite;
pub mod runtime;
pub mod text;
pub mod verify;
mod yaml;

#[cfg(feature = "tract")]
pub use calibrate::data::DataOptions;
#[cfg(feature = "tract")]
pub use compile::comparison::Comparison;
#[cfg(feature = "tract")]
pub use compile::compiler::{Compiled, Compiler};
pub use ir::Model;
pub use pattern::RuleSet;
pub use plan::QuantPlan;
pub use recipe::Recipe;

/// The README's examples are compiled like all others.
#[cfg(all(doctest, feature = "tract"))]
#[doc = include_str!("../README.md")]
struct Readme;
