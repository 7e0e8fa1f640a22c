//! `fqvit-opt` compiles a float vision transformer in ONNX into a fully quantized one and measures the difference.

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
