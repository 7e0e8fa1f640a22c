//! `fqvit-opt` compiles a float vision transformer in ONNX into a fully quantized one and measures the difference.

pub mod infer;
pub mod ir;
pub mod onnx;
pub mod passes;
pub mod quant;
pub mod pattern;
pub mod rewrite;
pub mod text;
