use super::common::{over_last, patch_nodes};
use super::{Context, Numerics, Outcome, Pass, PassError};
use crate::infer::{ShapeMap, Size};
use crate::ir::{DType, Graph, Node, NodeId, ValueId};
use crate::rewrite::Patch;

/// # What it does
/// Writes as a mean over the last axis what is one.
///
/// # When it fires
/// - On a GlobalAveragePool of three axes.
/// - On a mean over the last axis that another node takes as well, however each counts the axis.
/// - On a mean over the last axis that is put back by a Reshape or Unsqueeze.
/// - On a sum over the last axis, or a sum of squares, that is divided by the size of the axis; its axis may be put back by a
///   Reshape in between.
///
/// # Why it is correct
/// GlobalAveragePool takes the mean over all axes but the first two, and keeps them with size 1.
///
/// # Numerics
/// Close: a runtime may add up in another order.
///
/// # Before / after
/// ```text
/// m = GlobalAveragePool (x)        # x: float[2, 17, 48]
/// s = ReduceSumSquare <axes = [2], keepdims = 1> (x)
/// v = Div (s, 48.0)
///
/// m = ReduceMean <axes = [-1], keepdims = 1> (x)
/// v = ReduceMean <axes = [-1], keepdims = 1> (Mul (x, x))
/// ```
///
/// # Source
/// tf2onnx writes the mean and the variance of a LayerNorm so, Keras on JAX, and the dynamo exporter `torch.var`.
pub struct PoolMean;

impl Pass for PoolMean {
    fn id(&self) -> &'static str {
        "pool-mean"
    }

    fn summary(&self) -> &'static str {
        "Writes average pooling over the last of three axes, and sums divided by their length, as a mean."
    }

    fn numerics(&self) -> Numerics {
        Numerics::Close { rel: 1e-5 }
    }

    fn run(&self, model: &mut Context) -> Result<Outcome, PassError> {
        let map = model.shapes();
        let opset = model.opset();
        patch_nodes(model, |g, id| patch(g, id, &map, opset))
    }
}

fn patch(g: &Graph, id: NodeId, map: &ShapeMap, opset: i64) -> Option<Patch> {
    let n = g.node(id);
    let y = n.out()?;
    let (x, squared) = match n.op.name.as_str() {
        "GlobalAveragePool" if n.op.is_onnx() => (n.input(0).filter(|x| map.rank(*x) == Some(3))?, false),
        "Div" if n.op.is_onnx() => summed(g, n, map)?,
        "Reshape" | "Unsqueeze" if n.op.is_onnx() => (put_back(g, n, map)?, false),
        "ReduceMean" if n.op.is_onnx() => (n.input(0)?, false),
        _ => return None,
    };
    let name = g.name_of(y);
    let mut p = Patch::new("pool-mean").before(id).made_from([name.to_owned()]);
    let rank = map.rank(x)? as i64;
    let keeps = |n: &Node| n.op.is("ReduceMean") && n.int("keepdims") == 1 && over_last(g, n, rank);
    let known = g.uses(x).into_iter().map(|(n, _)| n).find(|n| keeps(g.node(*n)));
    if n.op.is("ReduceMean") && (!keeps(n) || known == Some(id) || g.is_output(y)) {
        return None;
    }
    match known.and_then(|n| g.node(n).out()).filter(|_| !squared && !g.is_output(y)) {
        // Of one mean, others see that it is the same.
        Some(mean) => p.replace(y, mean.into()),
        None => {
            let mut e = p.under(name);
            let of = if squared { e.op("Mul", "square", &[x.into(), x.into()]) } else { x.into() };
            let mean = e.reduced("ReduceMean", "", of, opset);
            p.succeed(y, mean);
        }
    }
    Some(p)
}

/// What a mean is of whose last axis comes back with size 1.
fn put_back(g: &Graph, n: &Node, map: &ShapeMap) -> Option<ValueId> {
    let mean = g.node(g.producer_is(n.input(0)?, "ReduceMean")?);
    let x = mean.input(0)?;
    let (_, front) = map.dims(x)?.split_last()?;
    let fits = map.dims(n.out()?)?.split_last() == Some((&Size::Known(1), front));
    let dropped = mean.attrs.int("keepdims") == Some(0) && over_last(g, mean, front.len() as i64 + 1);
    (fits && dropped).then_some(x)
}

/// What a quotient is the mean of over the last axis, which it keeps, and whether its squares are meant.
fn summed(g: &Graph, div: &Node, map: &ShapeMap) -> Option<(ValueId, bool)> {
    let (kept, count) = (div.input(0)?, g.constant(div.input(1)?).filter(|t| t.len() == 1)?.to_f32s()?[0]);
    let sum = match g.producer(kept).map(|n| g.node(n)) {
        Some(n) if n.op.is("Reshape") || n.op.is("Unsqueeze") => n.input(0)?,
        _ => kept,
    };
    let n = g.node(g.producer(sum)?);
    let squared = n.op.is("ReduceSumSquare");
    let x = n.input(0).filter(|x| map.dtype(*x) == Some(DType::FLOAT))?;
    let dims = map.dims(x)?;
    let (last, front) = dims.split_last()?;
    let fits = map.dims(kept)?.split_last() == Some((&Size::Known(1), front)) && last.known()? as f32 == count;
    ((squared || n.op.is("ReduceSum")) && fits && over_last(g, n, dims.len() as i64)).then_some((x, squared))
}
