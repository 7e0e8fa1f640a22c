//! What one source says about pictures: flags, a file beside the model, a preset.

use super::presets::{Fit, Interpolation, Row, Side};

/// Whose arithmetic of sizes: they differ by a pixel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Manner {
    /// Sizes to the nearest, half to even; the crop begins at the whole part.
    #[default]
    Plain,
    /// The long side's whole part; the crop begins at the nearest.
    Torchvision,
    /// Whole parts.
    Transformers,
}

/// What one source says; `None` is not said.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Said {
    pub(super) mean: Option<Vec<f32>>,
    pub(super) std: Option<Vec<f32>>,
    pub(super) fit: Option<Fit>,
    pub(super) side: Option<Side>,
    /// Height and width of what the model gets.
    pub(super) size: Option<(u32, u32)>,
    pub(super) interpolation: Option<Interpolation>,
    pub(super) manner: Option<Manner>,
    pub(super) notes: Vec<String>,
}

impl Said {
    /// What a preset says.
    pub(super) fn of_row(row: &Row) -> Said {
        Said {
            mean: Some(row.mean.to_vec()),
            std: Some(row.std.to_vec()),
            fit: Some(row.fit),
            side: Some(row.side),
            size: row.size,
            interpolation: Some(row.interpolation),
            manner: None,
            notes: Vec::new(),
        }
    }
}
