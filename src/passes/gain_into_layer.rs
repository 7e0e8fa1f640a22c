//! A factor behind a linear layer goes into its weight.

use super::common::{patch_nodes, perm_of, sole_reader, sole_use};
use super::layers::outputs_scaled;
use super::{Numerics, Outcome, Pass, PassError};
use crate::infer::{self, ShapeMap};
use crate::ir::{Graph, Model, NodeId, Tensor};
use crate::plan::sites::{self, Linear};
use crate::rewrite::Patch;

/// # What it does
/// What a linear layer's result is multiplied with, one constant number or one for each channel, goes into the layer's
/// weight and bias. The layer's integer sums can then be added to the residual stream as they are, where the result and its
/// multiple had codes of their own before.
///
/// # When it fires
/// On a Mul or Div by such a constant behind a MatMul, Gemm or Conv with a constant weight, with or without a bias and with
/// or without a Transpose in between, where nothing else reads what is on the way, and the multiple is no output of the graph.
///
/// # Why it is correct
/// `c (W x + b) = (c W) x + c b`, channel by channel.
///
/// # Numerics
/// Close: the products are rounded before they are summed, not after.
///
/// # Before / after
/// `Mul(Add(MatMul(x, W), b), gamma)` becomes `Add(MatMul(x, W_2), b_2)`.
///
/// # Source
/// LayerScale (Touvron et al., "Going deeper with Image Transformers", 2021), as CaiT, BEiT, DINOv2 and ConvNeXt have it.
pub struct GainIntoLayer;

impl Pass for GainIntoLayer {
    fn id(&self) -> &'static str {
        "gain-into-layer"
    }

    fn summary(&self) -> &'static str {
        "a constant factor behind a linear layer goes into its weight and bias"
    }

    fn numerics(&self) -> Numerics {
        Numerics::Close { rel: 1e-4 }
    }

    fn run(&self, m: &mut Model) -> Result<Outcome, PassError> {
        let map = infer::shapes(m);
        patch_nodes(m, |g, id| patch(g, id, &map))
    }
}

fn patch(g: &Graph, id: NodeId, map: &ShapeMap) -> Option<Patch> {
    let l = sites::linear(g, id, &|v| g.constant(v).is_some())?;
    let (mut v, mut perm) = (l.out, None);
    if let Some(t) = sole_reader(g, v).filter(|n| g.node(*n).op.is("Transpose")) {
        perm = Some(perm_of(g, t, map.dims(v)?.len())?);
        v = g.node(t).out()?;
    }
    let at = sole_use(g, v)?;
    let n = g.node(at);
    let slot = (0..2).find(|i| n.input(*i) == Some(v))?;
    if !(n.op.is("Mul") || n.op.is("Div") && slot == 0) || n.inputs.len() != 2 {
        return None;
    }
    let t = g.constant(n.input(1 - slot)?)?;
    let channels = g.constant(l.weight)?.dims[l.out_axis] as usize;
    if !by_channel(t, map.dims(v)?.len(), &l, channels, perm.as_deref()) {
        return None;
    }
    let factors: Vec<f32> = t.to_f32s()?.iter().map(|x| if n.op.is("Div") { 1.0 / x } else { *x }).collect();
    if !factors.iter().all(|f| f.is_finite()) {
        return None;
    }
    let factor = |c: usize| if factors.len() == 1 { factors[0] } else { factors[c] };
    let y = n.out().filter(|y| !g.is_output(*y))?;
    let mut p = Patch::new("gain-into-layer").made_from([g.name_of(y).to_owned()]);
    outputs_scaled(g, &mut p, &l, factor).ok()?;
    p.replace(y, v.into());
    Some(p)
}

/// True if a constant of this shape has one number for all channels of the layer or one for each, and adds no axis to the
/// `rank` there are.
fn by_channel(t: &Tensor, rank: usize, l: &Linear, channels: usize, perm: Option<&[usize]>) -> bool {
    if t.dims.len() > rank {
        return false;
    }
    if t.len() == 1 {
        return true;
    }
    let Some(axis) = t.dims.iter().position(|d| *d as usize == channels).map(|i| i + rank - t.dims.len()) else {
        return false;
    };
    let before = perm.map_or(axis, |p| p[axis]);
    t.len() == channels && before == if l.is_conv { 1 } else { rank - 1 }
}
