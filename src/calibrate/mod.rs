//! Calibration: what data the model is watched on, and what is remembered of it.

pub mod data;
