use super::common::patch_rounds;
use super::{Context, Numerics, Outcome, Pass, PassError};
use crate::infer::{ShapeMap, Size};
use crate::ir::{Attrs, Graph, NodeId, ValueId};
use crate::rewrite::{Patch, Ref};

/// # What it does
/// Computes attention weights that no input changes once, and repeats them for each sample, where the model repeats the
/// constant they come from. The constant part can be folded then.
///
/// # When it fires
/// On a Softmax of an Expand of a constant along the first axis, or of what MatMul with a constant, elementwise operators
/// with constants and Transposes that keep the first axis make of it; and on the latter where they follow.
///
/// # Why it is correct
/// None of these mixes samples, and all samples are alike.
///
/// # Numerics
/// Close: a product of fewer rows may add in another order.
///
/// # Before / after
/// ```text
/// e = Expand (offsets, shape)      # offsets: float[1, 16, 16, 3], shape: [batch, 16, 16, 3]
/// a = MatMul (e, weight)           a = MatMul (offsets, weight)
/// t = Transpose (a)                t = Transpose (a)
/// y = Softmax (t)                  w = Softmax (t)
/// z = Mul (y, gate)                m = Mul (w, gate)
///                                  z = Expand (m, [batch, 1, 1, 1])
/// ```
///
/// # Source
/// Gated positional self-attention of ConViT (arXiv 2103.10697).
pub struct SoftmaxRepeated;

impl Pass for SoftmaxRepeated {
    fn id(&self) -> &'static str {
        ID
    }

    fn summary(&self) -> &'static str {
        "Computes attention weights that are the same for every sample only once."
    }

    fn numerics(&self) -> Numerics {
        Numerics::Close { rel: 1e-5 }
    }

    fn run(&self, model: &mut Context) -> Result<Outcome, PassError> {
        let opset = model.opset();
        patch_rounds(model, |g, id, map| patch(g, id, map, opset))
    }
}

const ID: &str = "softmax-repeated";
/// Longest way from the Expand to the Softmax.
const MOST_STEPS: usize = 8;

fn patch(g: &Graph, id: NodeId, map: &ShapeMap, opset: i64) -> Option<Patch> {
    let n = g.node(id);
    let softmax = n.op.is("Softmax");
    let slot = match softmax {
        true => (n.axis_at(map.rank(n.input(0)?)?, opset) > 0).then_some(0)?,
        // What follows one that is repeated already.
        false => follows(g, id, map).filter(|slot| {
            let maker = n.input(*slot).and_then(|v| g.producer_is(v, "Expand"));
            maker.is_some_and(|e| g.node(e).origin_is(ID))
        })?,
    };
    // From here back to the Expand: each node with the slot that is followed.
    let (mut way, mut v) = (vec![(id, slot)], n.input(slot)?);
    let expand = loop {
        let maker = g.producer(v)?;
        if g.node(maker).op.is("Expand") {
            break maker;
        }
        let slot = follows(g, maker, map)?;
        way.push((maker, slot));
        v = g.node(maker).input(slot)?;
        (way.len() <= MOST_STEPS).then_some(())?;
    };
    let (one, shape) = (g.node(expand).input(0)?, g.node(expand).input(1)?);
    let (from, to) = (map.dims(one)?, map.dims(v)?);
    let alike = from.len() == to.len() && from.iter().zip(to).skip(1).all(|(a, b)| a.known().is_some() && a == b);
    let y = n.out()?;
    if softmax && g.constant(one).is_none()
        || from.first().and_then(Size::known) != Some(1)
        || !alike
        || map.dims(y)?.first() != to.first()
    {
        return None;
    }
    let name = g.name_of(y);
    let mut p = Patch::new(ID).before(id).made_from([name.to_owned()]);
    let mut x: Ref = one.into();
    for (n, slot) in way.iter().rev() {
        let n = g.node(*n);
        x = p.under(g.name_of(n.out()?)).like(n, "once", &[(*slot, x)]);
    }
    let mut e = p.under(name);
    let (start, end) = (e.ints("first", &[0]), e.ints("second", &[1]));
    let batch = e.op("Slice", "samples", &[shape.into(), start, end]);
    let rest = e.ints("ones", &vec![1; map.rank(y)?.checked_sub(1)?]);
    let to = e.op_with("Concat", "repeats", &[batch, rest], Attrs::new().with_int("axis", 0));
    let new = e.op("Expand", "", &[x, to]);
    p.succeed(y, new);
    Some(p)
}

/// The operand of a node that its result can be computed from for one sample as for all of them.
fn follows(g: &Graph, id: NodeId, map: &ShapeMap) -> Option<usize> {
    let n = g.node(id);
    let rank = map.rank(n.out()?)?;
    // A constant that is the same for all samples.
    let fixed = |v: ValueId| {
        g.constant(v).is_some_and(|t| t.dims.len() < rank || t.dims.len() == rank && t.dims.first() == Some(&1))
    };
    let keeps = |slot: usize| n.input(slot).and_then(|x| map.rank(x)) == Some(rank);
    let slot = match n.op.name.as_str() {
        _ if !n.op.is_onnx() => None,
        "MatMul" => n.input(1).filter(|w| g.constant(*w).is_some_and(|t| t.dims.len() == 2)).map(|_| 0),
        _ if n.is_elementary() => (0..2).find(|s| n.input(1 - s).is_some_and(fixed)),
        "Transpose" => n.attrs.ints("perm").filter(|p| p.first() == Some(&0)).map(|_| 0),
        "Neg" | "Abs" | "Exp" | "Relu" | "Sigmoid" | "Tanh" | "Sqrt" => Some(0),
        _ => None,
    };
    slot.filter(|s| keeps(*s))
}
