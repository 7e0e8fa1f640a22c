//! Pictures in colours among the inputs, and what was done to their pixels.

use super::images::ImageShape;
use super::{Dataset, Source};
use crate::ir::DType;

/// An input that is a picture in three colours.
#[derive(Clone, Debug, PartialEq)]
pub struct Coloured {
    /// Its number, and the axis of the colours.
    pub input: usize,
    pub axis: usize,
    /// Mean and std that pixels from 0 to 1 were normalised with, where this program did it.
    pub normalised: Option<[(f32, f32); 3]>,
}

impl Dataset {
    /// The only input that is a picture in colours, if it takes floats.
    pub fn coloured(&self) -> Option<Coloured> {
        let free = self.inputs.iter().zip(&self.fixed).enumerate().filter(|(_, (_, fixed))| fixed.is_none());
        let mut of = free.filter_map(|(input, (spec, _))| {
            let shape = ImageShape::of(spec, None).filter(|s| s.channels == 3 && spec.dtype != DType::UINT8)?;
            let normalised = match &self.source {
                Source::Images(folder) => Some(folder.normalisation()),
                _ => None,
            };
            Some(Coloured { input, axis: if shape.nhwc { 3 } else { 1 }, normalised })
        });
        match (of.next(), of.next()) {
            (Some(one), None) if !self.is_synthetic() => Some(one),
            _ => None,
        }
    }
}
