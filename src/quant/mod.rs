//! Quantization: the definitions of the numbers that quantized models compute.

pub mod lis;
