//! Numbers that are none, in places that no output depends on.
//!
//! A row of padding that sees nothing but padding has no attention weights, and everything computed from it is NaN, until
//! something leaves the row out. What the outputs are free of says nothing of the ranges of what reaches them.

use std::sync::OnceLock;

use crate::ir::Validated;
use crate::ir::masks::HIDDEN_BELOW;
use crate::quant::kernel::Layout;
use crate::quant::observe::Watch;
use crate::runtime::{Array, RuntimeError, Session, SessionOptions};

/// The outputs of a model, run only where they are asked for.
pub struct OutputsOf<'m> {
    model: Validated<'m>,
    options: SessionOptions,
    session: OnceLock<Session>,
}

impl<'m> OutputsOf<'m> {
    pub fn new(model: Validated<'m>, batch: usize, shapes: Vec<(String, Vec<usize>)>) -> OutputsOf<'m> {
        let options = SessionOptions { batch, shapes, ..SessionOptions::default() };
        OutputsOf { model, options, session: OnceLock::new() }
    }

    /// True if an output holds NaN for these inputs.
    ///
    /// # Errors
    /// If the model does not run.
    pub fn hold_nan(&self, inputs: &[(String, Array)]) -> Result<bool, RuntimeError> {
        let session = match self.session.get() {
            Some(s) => s,
            None => {
                let made = Session::of(self.model, &self.options)?;
                self.session.get_or_init(|| made)
            }
        };
        let nan = |a: &Array| a.dtype().is_float() && a.f32s().iter().any(|v| v.is_nan());
        Ok(session.run(inputs)?.outputs.iter().any(nan))
    }
}

/// The value with each row that holds NaN or infinity replaced by the row in front of it that does not, or by the first such
/// one: a row that is there twice widens no range. A row are all channels at one place, and of scores the last axis.
/// `None` if there is no whole row.
pub fn mended(x: &[f32], dims: &[usize], watch: &Watch) -> Option<Vec<f32>> {
    let layout = match watch {
        Watch::Channels { axis } | Watch::Tokens { axis, .. } => Layout::of(dims, *axis)?,
        Watch::Scores { .. } => Layout::of(dims, -1)?,
        Watch::Tensor => Layout::whole(x.len()),
    };
    let (channels, inner) = (layout.channels, layout.inner);
    let at = |row: usize, c: usize| (row / inner * channels + c) * inner + row % inner;
    let rows = x.len() / channels.max(1);
    let scores = matches!(watch, Watch::Scores { .. });
    let whole = |row: usize| (0..channels).map(|c| x[at(row, c)]).all(|v| v.is_finite() || scores && v <= HIDDEN_BELOW);
    let mut good = (0..rows).find(|r| whole(*r))?;
    let mut out = x.to_vec();
    for row in 0..rows {
        if whole(row) {
            good = row;
        } else {
            (0..channels).for_each(|c| out[at(row, c)] = x[at(good, c)]);
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broken_rows_repeat_whole_ones() {
        let nan = f32::NAN;
        let last = Watch::Channels { axis: -1 };
        let x = [nan, 1.0, 2.0, 3.0, 4.0, nan];
        assert_eq!(mended(&x, &[3, 2], &last), Some(vec![2.0, 3.0, 2.0, 3.0, 2.0, 3.0]));
        let second = Watch::Channels { axis: 1 };
        assert_eq!(mended(&x, &[1, 2, 3], &second), Some(vec![1.0, 1.0, 1.0, 4.0, 4.0, 4.0]));
        assert_eq!(mended(&[nan, nan], &[1, 2], &last), None);
        let scores = Watch::Scores { by_head: false };
        let rows = [f32::NEG_INFINITY, 0.0, nan, nan];
        assert_eq!(mended(&rows, &[2, 2], &scores), Some([&rows[..2], &rows[..2]].concat()));
    }
}
