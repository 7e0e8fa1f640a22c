//! `fqvit-opt` compiles a float vision transformer in ONNX into a fully quantized one and measures the difference.

pub mod calibrate;
pub mod ir;
pub mod passes;
pub mod rewrite;
