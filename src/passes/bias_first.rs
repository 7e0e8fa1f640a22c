use super::common::{flat, patch_nodes, sole_reader, sole_use};
use super::{Context, Numerics, Outcome, Pass, PassError};
use crate::infer::{ShapeMap, Size};
use crate::ir::{Graph, NodeId};
use crate::rewrite::Patch;

/// # What it does
/// Adds a linear layer's bias before the layer's result changes its shape, where it belongs to the layer.
///
/// # When it fires
/// On an Add of a constant to a Reshape of what a MatMul, or a Gemm without a bias, makes, where the constant has the sizes of
/// the axes that the last axis of the product became, and nothing else reads what is in between.
///
/// # Why it is correct
/// A Reshape keeps the order of elements, so that the same number meets the same element.
///
/// # Numerics
/// Bit-exact.
///
/// # Before / after
/// ```text
/// a = MatMul (x, w)                # float[batch, 17, 48]
/// b = Reshape (a, [-1, 17, 4, 12])
/// y = Add (b, bias)                # bias: float[4, 12]
///
/// a = MatMul (x, w)
/// c = Add (a, bias)                # bias: float[48]
/// y = Reshape (c, [-1, 17, 4, 12])
/// ```
///
/// # Source
/// Dense layers of Keras, as `tf.tensordot` and as `einsum("abc,cde->abde")`.
pub struct BiasFirst;

impl Pass for BiasFirst {
    fn id(&self) -> &'static str {
        "bias-first"
    }

    fn summary(&self) -> &'static str {
        "Adds the bias of a linear layer before the result changes shape."
    }

    fn numerics(&self) -> Numerics {
        Numerics::BitExact
    }

    fn run(&self, model: &mut Context) -> Result<Outcome, PassError> {
        let map = model.shapes();
        patch_nodes(model, |g, id| patch(g, id, &map))
    }
}

fn patch(g: &Graph, id: NodeId, map: &ShapeMap) -> Option<Patch> {
    let add = g.node(id);
    if !add.op.is("Add") {
        return None;
    }
    let y = add.out()?;
    let slot = (0..2).find(|i| add.input(*i).is_some_and(|v| g.producer_is(v, "Reshape").is_some()))?;
    let (seen, bias) = (add.input(slot)?, add.input(1 - slot)?);
    let reshape = g.producer(seen)?;
    let product = g.node(reshape).input(0)?;
    let layer = g.node(g.producer(product)?);
    if !(layer.op.is("MatMul") || layer.op.is("Gemm") && layer.input(2).is_none()) {
        return None;
    }
    if sole_use(g, seen) != Some(id) || sole_reader(g, product) != Some(reshape) {
        return None;
    }
    let t = g.constant(bias)?;
    let width = map.dims(product)?.last()?.known()?;
    // The axes that the last axis of the product became, from the last.
    let to = map.dims(seen)?;
    let mut split = 1i64;
    let tail: Vec<i64> = to
        .iter()
        .rev()
        .map_while(Size::known)
        .take_while(|n| {
            let open = split < width;
            split = split.saturating_mul(*n);
            open
        })
        .collect();
    let fits =
        t.len() as i64 == width && t.dims.len() <= to.len() && t.dims.iter().rev().zip(&tail).all(|(a, b)| a == b);
    if !fits || t.dims.len() < tail.len() || tail.iter().product::<i64>() != width {
        return None;
    }
    let mut p = Patch::new("bias-first").before(id).made_from([g.name_of(y).to_owned()]);
    let bias = flat(g, &mut p, bias)?;
    let sum = p.under(g.name_of(product)).op("Add", "biased", &[product.into(), bias]);
    let new = p.under(g.name_of(y)).like(g.node(reshape), "", &[(0, sum)]);
    p.succeed(y, new);
    Some(p)
}
