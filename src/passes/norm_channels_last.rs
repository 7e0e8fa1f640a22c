//! LayerNorm over the channels of an image.

use crate::ir::Graph;
use crate::pattern::Recognition;
use crate::rewrite::Patch;

use super::common::{deviation, one_a_channel, root_mean_square};
use super::{Context, Numerics, Outcome, Pass, PassError};

/// # What it does
/// Writes a LayerNorm over axis 1, as images have their channels, as one over the last axis between two Transposes. The
/// rules for LayerNorm make one node of it then.
///
/// # When it fires
/// On every shape that a rule calls `channel_norm`, whose value has a known number of axes, at least three, and whose
/// gamma and beta are one number per channel.
///
/// # Why it is correct
/// The mean and the variance go over the same elements; gamma and beta meet the same channels.
///
/// # Numerics
/// Close: sums may be taken in another order.
///
/// # Before / after
/// ```text
/// mu = ReduceMean <axes = [1]> (x)     t = Transpose <perm = [0, 2, 3, 1]> (x)
/// d  = Sub (x, mu)                     mu = ReduceMean <axes = [-1]> (t)
/// ...                                  ...
/// y  = Add (w, beta)                   y = Transpose <perm = [0, 3, 1, 2]> (z)
/// ```
///
/// # Source
/// `LayerNorm2d` of ConvNeXt, Segment Anything and others.
pub struct NormChannelsLast;

impl Pass for NormChannelsLast {
    fn id(&self) -> &'static str {
        "norm-channels-last"
    }

    fn summary(&self) -> &'static str {
        "Moves a LayerNorm over the channels of an image to the last axis."
    }

    fn numerics(&self) -> Numerics {
        Numerics::Close { rel: 1e-4 }
    }

    fn run(&self, model: &mut Context) -> Result<Outcome, PassError> {
        let mut out = Outcome::default();
        for norm in model.recognised("channel_norm") {
            if let Some(p) = patch(&model.graph, &norm, model.opset()) {
                model.commit(p)?;
                out.changes += 1;
            }
        }
        if out.changes > 0 {
            model.sweep();
        }
        Ok(out)
    }
}

fn patch(g: &Graph, norm: &Recognition, opset: i64) -> Option<Patch> {
    let (x, y, eps) = (norm.value("x")?, norm.value("y")?, norm.value("epsilon")?);
    let rank = g.rank(x).filter(|r| *r >= 3)?;
    let gamma = one_a_channel(g, norm.value("gamma")?, rank, 1)?;
    let beta = match norm.value("beta") {
        Some(b) => Some(one_a_channel(g, b, rank, 1).filter(|b| b.len() == gamma.len())?),
        None => None,
    };
    let name = g.name_of(y);
    let mut p = Patch::new("norm-channels-last").before(norm.root).made_from([name.to_owned()]);
    let axes = rank as i64;
    let last: Vec<i64> = [0].into_iter().chain(2..axes).chain([1]).collect();
    let back: Vec<i64> = [0, axes - 1].into_iter().chain(1..axes - 1).collect();
    let mut e = p.under(name);
    let t = e.turned("last", x.into(), &last);
    let d = deviation(&mut e, t, opset);
    let sd = root_mean_square(&mut e, d, eps.into(), opset);
    let mut z = e.op("Div", "normed", &[d, sd]);
    let gamma = e.floats("gamma", &gamma);
    z = e.op("Mul", "scaled", &[z, gamma]);
    if let Some(beta) = beta {
        let beta = e.floats("beta", &beta);
        z = e.op("Add", "shifted", &[z, beta]);
    }
    let new = e.turned("", z, &back);
    p.succeed(y, new);
    Some(p)
}
