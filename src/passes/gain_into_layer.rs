//! A factor after a linear layer goes into its weight.

use super::common::{one_a_channel, patch_nodes, perm_of, sole_reader, sole_use};
use super::layers::outputs_scaled;
use super::{Context, Numerics, Outcome, Pass, PassError};
use crate::infer::ShapeMap;
use crate::ir::{Graph, NodeId};
use crate::plan::sites;
use crate::rewrite::Patch;

/// # What it does
/// What a linear layer's result is multiplied with, one constant number or one for each channel, goes into the layer's
/// weight and bias. The layer's integer sums can then be added to the residual stream as they are, where the result and its
/// multiple had codes of their own before.
///
/// # When it fires
/// On a Mul or Div by such a constant after a MatMul, Gemm or Conv with a constant weight, with or without a bias and with
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
        "Moves a constant factor after a linear layer into its weight and bias."
    }

    fn numerics(&self) -> Numerics {
        Numerics::Close { rel: 1e-4 }
    }

    fn run(&self, m: &mut Context) -> Result<Outcome, PassError> {
        let map = m.shapes();
        patch_nodes(m, |g, id| patch(g, id, &map))
    }
}

fn patch(g: &Graph, id: NodeId, map: &ShapeMap) -> Option<Patch> {
    let l = sites::linear(g, id, &|v| g.constant(v).is_some())?;
    let mut v = l.out;
    let rank = map.dims(v)?.len();
    let mut axis = if l.is_conv { 1 } else { rank - 1 };
    if let Some(t) = sole_reader(g, v).filter(|n| g.node(*n).op.is("Transpose")) {
        axis = perm_of(g, t, rank)?.iter().position(|a| *a == axis)?;
        v = g.node(t).out()?;
    }
    let n = g.node(sole_use(g, v)?);
    let slot = (0..2).find(|i| n.input(*i) == Some(v))?;
    if !(n.op.is("Mul") || n.op.is("Div") && slot == 0) {
        return None;
    }
    let by = n.input(1 - slot)?;
    let t = g.constant(by)?;
    let channels = g.constant(l.weight)?.dims[l.out_axis] as usize;
    let mut factors = match t.len() {
        1 if t.dims.len() <= rank => vec![t.to_f32s()?[0]; channels],
        _ => one_a_channel(g, by, rank, axis).filter(|f| f.len() == channels)?,
    };
    if n.op.is("Div") {
        factors.iter_mut().for_each(|f| *f = 1.0 / *f);
    }
    if !factors.iter().all(|f| f.is_finite()) {
        return None;
    }
    let y = n.out().filter(|y| !g.is_output(*y))?;
    let mut p = Patch::new("gain-into-layer").made_from([g.name_of(y).to_owned()]);
    outputs_scaled(g, &mut p, &l, |c| factors[c]).ok()?;
    p.replace(y, v.into());
    Some(p)
}
