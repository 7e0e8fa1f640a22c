//! A second opinion: both models in onnxruntime.
//!
//! The verdict of this program is about tract. People deploy in another runtime, whose kernels and fusions round in their own
//! places: there the same samples run as well, at the lowest level of optimization that changes no number and at the
//! default one, and the same figures are made of what comes out.

use serde::{Deserialize, Serialize};

use super::metrics::TensorMetrics;
use super::thresholds::{Check, Thresholds};

#[cfg(feature = "tract")]
mod python;

#[cfg(feature = "tract")]
pub use python::{Chosen, Judge, JudgeError};

/// What another runtime makes of both models.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Judged {
    pub runtime: String,
    pub version: String,
    /// How many samples both models ran over.
    pub samples: u64,
    /// Each level of optimization at which the quantized model was loaded.
    pub levels: Vec<Level>,
    /// Threads, and how often each model ran in turn, at the last of the levels.
    pub threads: u64,
    pub rounds: u64,
    /// Medians in milliseconds, and the median of the quotients.
    pub float_ms: f64,
    pub quantized_ms: f64,
    pub ratio: f64,
    /// What the runtime's own quantization makes of the float model, where that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub baseline: Option<Baseline>,
}

/// The float model as the runtime's own static quantization makes it if nothing is asked of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Baseline {
    /// Of its file, with external data.
    pub bytes: u64,
    /// How many samples it was calibrated on.
    pub calibration_samples: u64,
    /// Per output at the default level of optimization, against the float model.
    pub outputs: Vec<TensorMetrics>,
    /// Median in milliseconds, and the median of the quotients by the float model's.
    pub ms: f64,
    pub ratio: f64,
}

/// The quantized model at one level of optimization, against the float model at the lowest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Level {
    pub level: String,
    /// Per output, in the model's order.
    pub outputs: Vec<TensorMetrics>,
}

impl Judged {
    /// Holds every level to the thresholds.
    pub fn check(&self, limits: &Thresholds) -> Vec<Check> {
        let of = |l: &Level| {
            let place = format!(" in {} at {}", self.runtime, l.level);
            limits.check(&l.outputs).into_iter().map(move |c| Check { name: c.name + &place, ..c }).collect::<Vec<_>>()
        };
        self.levels.iter().flat_map(of).collect()
    }
}
