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
    /// What a file says, where flags do not say otherwise: with a note of what neither says.
    ///
    /// # Errors
    /// If a mean or a std that counts is none of pixels from 0 to 1.
    pub(super) fn unless(mut self, flags: &Said) -> Result<Said, String> {
        let both = [("mean", &self.mean, &flags.mean, 1.0f32), ("std", &self.std, &flags.std, 2.0)];
        let mut missing = Vec::new();
        for (what, own, flag, most) in both {
            match own {
                _ if flag.is_some() => {}
                None => missing.push(what),
                Some(v) => {
                    if let Some(x) = v.iter().find(|x| x.abs() > most) {
                        return Err(format!(
                            "its {what} of {x} is none of pixels from 0 to 1, to which it has them brought first"
                        ));
                    }
                }
            }
        }
        if !missing.is_empty() {
            self.notes.push(format!("it says no {} of pictures: that of ImageNet is taken", missing.join(" and no ")));
        }
        Ok(self)
    }

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
