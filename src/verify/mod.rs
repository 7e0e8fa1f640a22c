//! Verification: how far the quantized model is from the float one, and the report that says so.

#[cfg(feature = "tract")]
pub mod alone;
pub mod closer;
pub mod coverage;
pub mod disagree;
pub mod judge;
pub mod kinds;
#[cfg(feature = "tract")]
mod lists;
pub mod metrics;
pub mod report;
#[cfg(feature = "tract")]
pub mod run;
pub mod speed;
pub mod thresholds;
