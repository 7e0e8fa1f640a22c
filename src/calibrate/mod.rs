//! Calibration: data in, statistics out.

pub mod data;
#[cfg(feature = "tract")]
pub(crate) mod finite;
pub mod looks;
#[cfg(feature = "tract")]
pub mod run;
#[cfg(feature = "tract")]
pub mod sizes;
#[cfg(feature = "tract")]
pub mod stats;
