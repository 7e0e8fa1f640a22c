//! A BatchNormalization after a linear layer goes into its weight and bias.

use super::common::{patch_nodes, perm_of, sole_reader};
use super::layers::{bias_changed, bias_given, weight_scaled};
use super::{Context, Numerics, Outcome, Pass, PassError};
use crate::infer::ShapeMap;
use crate::ir::{Graph, Node, NodeId};
use crate::plan::sites;
use crate::rewrite::Patch;

/// # What it does
/// What a BatchNormalization does to each channel of a linear layer's result, a factor and an offset, goes into the layer's
/// weight and bias.
///
/// # When it fires
/// On a BatchNormalization with constant parameters after a MatMul, Gemm or Conv with a constant weight, with nothing but
/// Transposes between, and changes of shape that leave the channels the last axis or all in front of them as it is; nothing
/// else reads what is on the way, and the result is no output of the graph.
///
/// # Why it is correct
/// `a (W x + b) + c = (a W) x + (a b + c)`, channel by channel, with `a = scale / sqrt(variance + epsilon)` and
/// `c = bias - a mean`.
///
/// # Numerics
/// Close: the products are rounded before they are summed, not after.
///
/// # Before / after
/// ```text
/// h = MatMul (x, W)
/// r = Flatten <axis = 2> (h)                              y = Flatten <axis = 2> (Add (MatMul (x, W_2), c))
/// y = BatchNormalization (r, scale, bias, mean, variance)
/// ```
///
/// # Source
/// LeViT's linear layers; Conv and BatchNormalization as Paddle and TensorFlow export them.
pub struct BatchNormLayers;

impl Pass for BatchNormLayers {
    fn id(&self) -> &'static str {
        "batch-norm-layers"
    }

    fn summary(&self) -> &'static str {
        "Moves a BatchNormalization after a linear layer into its weight and bias."
    }

    fn numerics(&self) -> Numerics {
        Numerics::Close { rel: 1e-4 }
    }

    fn run(&self, m: &mut Context) -> Result<Outcome, PassError> {
        let map = m.shapes();
        patch_nodes(m, |g, id| patch(g, id, &map))
    }
}

/// Moves between a layer and its BatchNormalization that are followed.
const MOST_MOVES: usize = 6;

fn patch(g: &Graph, id: NodeId, map: &ShapeMap) -> Option<Patch> {
    let l = sites::linear(g, id, &|v| g.constant(v).is_some())?;
    let rank = map.rank(l.out)?;
    let channels = g.constant(l.weight)?.dims[l.out_axis];
    let (mut v, mut axis) = (l.out, if l.is_conv { 1 } else { rank.checked_sub(1)? });
    let mut left = MOST_MOVES;
    let norm = loop {
        let next = sole_reader(g, v)?;
        let n = g.node(next);
        if n.op.is("BatchNormalization") {
            break n;
        }
        left = left.checked_sub(1)?;
        let y = n.out()?;
        axis = match n.op.name.as_str() {
            "Transpose" => perm_of(g, next, map.rank(v)?)?.iter().position(|a| *a == axis)?,
            "Reshape" | "Flatten" | "Squeeze" | "Unsqueeze" => {
                let (from, to) = (map.dims(v)?, map.dims(y)?);
                let size = |d: &crate::infer::Size| d.known() == Some(channels);
                if axis + 1 == from.len() && to.last().is_some_and(size) {
                    to.len() - 1
                } else if to.get(axis).is_some_and(size) && from[..axis] == to[..axis] {
                    axis
                } else {
                    return None;
                }
            }
            _ => return None,
        };
        v = y;
    };
    if axis != 1 || norm.attrs.int("training_mode").unwrap_or(0) != 0 {
        return None;
    }
    let (factors, offsets) = affine(g, norm, channels as usize)?;
    let y = norm.out().filter(|y| !g.is_output(*y))?;
    let name = g.name_of(y);
    let mut p = Patch::new("batch-norm-layers").made_from([name.to_owned()]);
    weight_scaled(g, &mut p, &l, l.out_axis, |c| factors[c]).ok()?;
    let before = norm.input(0)?;
    if l.bias.is_some() {
        bias_changed(g, &mut p, &l, |c, b| (f64::from(b) * f64::from(factors[c]) + f64::from(offsets[c])) as f32)
            .ok()?;
        p.replace(y, before.into());
        return Some(p);
    }
    let bias = p.under(name).floats("bias", &offsets);
    if !g.node(l.node).op.is("MatMul") {
        bias_given(g, &mut p, &l, bias);
        p.replace(y, before.into());
        return Some(p);
    }
    let sum = p.under(name).op("Add", "biased", &[l.out.into(), bias]);
    // Where the norm reads the layer itself, what follows it reads the sum.
    if before == l.out {
        p.replace(y, sum);
    } else {
        p.replace(l.out, sum);
        p.replace(y, before.into());
    }
    Some(p)
}

/// The factor and the offset of each channel.
fn affine(g: &Graph, n: &Node, channels: usize) -> Option<(Vec<f32>, Vec<f32>)> {
    let vector = |slot: usize| {
        let v = g.constant(n.input(slot)?)?.to_f32s()?;
        (v.len() == channels).then(|| v.iter().map(|x| f64::from(*x)).collect::<Vec<f64>>())
    };
    let (scale, bias, mean, variance) = (vector(1)?, vector(2)?, vector(3)?, vector(4)?);
    let eps = f64::from(n.attrs.float("epsilon").unwrap_or(1e-5));
    let factor: Vec<f64> = scale.iter().zip(&variance).map(|(s, v)| s / (v + eps).sqrt()).collect();
    let offset = (0..channels).map(|c| (bias[c] - factor[c] * mean[c]) as f32).collect::<Vec<f32>>();
    let factor: Vec<f32> = factor.into_iter().map(|f| f as f32).collect();
    factor.iter().chain(&offset).all(|x| x.is_finite()).then_some((factor, offset))
}
