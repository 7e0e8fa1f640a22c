//! Verification: how far the quantized model is from the float one, and the report that says so.

pub mod metrics;
pub mod report;
