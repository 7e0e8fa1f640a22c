//! What is asked of an observer, and which values it can take in.

use crate::ir::masks::HIDDEN_BELOW;
use serde::{Deserialize, Serialize};

use super::tokens::Read;
use super::wide::wide;

/// How a value is to be watched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Watch {
    /// One set of statistics for the tensor.
    Tensor,
    /// One for each index along the axis (negative: from the end).
    Channels { axis: i64 },
    /// As `Channels`, and for each half of the samples every value counted with the weight of its token, the vector of
    /// all channels at one place: the inverse of the token's variance over the channels, which is what a LayerNorm after
    /// makes of an error.
    Tokens { axis: i64, read: Read },
    /// Attention scores `[.., heads, queries, keys]`: one for each head, the smallest row maximum, and a bounded sample
    /// of whole rows. Without `by_head` all heads are one: their axis holds the batch as well, so that its size is not
    /// that of the next batch.
    Scores { by_head: bool },
}

/// Why a value could not be observed.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ObserveError {
    #[error("holds {what} at element {at}")]
    NotFinite { what: &'static str, at: usize },
    #[error("has shape {now:?}, which does not fit the channels seen before ({channels})")]
    Shape { now: Vec<usize>, channels: usize },
    #[error("has rank {rank}, too small for axis {axis}")]
    Axis { rank: usize, axis: i64 },
}

/// The place of the first value that is not finite; with `masked`, of the first that no mask can have made so: NaN, or above
/// all numbers.
pub fn first_unfit(x: &[f32], masked: bool) -> Option<usize> {
    let fits = |v: &f32| v.is_finite() || (masked && *v <= HIDDEN_BELOW);
    // Without a branch for each value, and as good as always enough.
    let mut top = 0;
    largest_magnitude(x, &mut top);
    if top < f32::INFINITY.to_bits() as i32 { None } else { x.iter().position(|v| !fits(v)) }
}

wide! {
    /// The bits of the largest magnitude; those of NaN are larger than those of infinity.
    fn largest_magnitude(x: &[f32], top: &mut i32) {
        const MAGNITUDE: u32 = 0x7fff_ffff;
        *top = x.iter().fold(0i32, |m, v| m.max((v.to_bits() & MAGNITUDE) as i32));
    }
}

impl Watch {
    /// The axis channels run along, if there is one.
    pub fn axis(&self) -> Option<i64> {
        match self {
            Watch::Tensor => None,
            Watch::Channels { axis } | Watch::Tokens { axis, .. } => Some(*axis),
            Watch::Scores { by_head } => by_head.then_some(-3),
        }
    }

    /// The same of a value of these sizes. A single number has one channel, and scores without an axis for heads are of one
    /// head.
    pub(super) fn axis_of(&self, dims: &[usize]) -> Option<i64> {
        let one = dims.is_empty() || (dims.len() == 2 && matches!(self, Watch::Scores { .. }));
        self.axis().filter(|_| !one)
    }

    /// How many channels a value of these sizes has; `None` if it has no such axis.
    pub(crate) fn channels(&self, dims: &[usize]) -> Option<usize> {
        let Some(axis) = self.axis_of(dims) else { return Some(1) };
        let at = if axis < 0 { axis + dims.len() as i64 } else { axis };
        usize::try_from(at).ok().and_then(|a| dims.get(a).copied())
    }
}
