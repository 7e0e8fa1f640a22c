//! `expand-by-codes`: a token is repeated for each item without a shape that is computed.
//!
//! *What it does.* An Expand or Tile of a constant to the batch's size, which is read off a Shape, becomes the sum of the
//! constant and of zeros with one place for each item. The zeros are made of codes that are there: the least of a code and
//! 0, in uint8.
//!
//! *When it fires.* In a model with a Conv with a bias whose result goes into a QuantizeLinear or Relu, on an Expand or Tile
//! of a float or uint8 constant along the first axis, if some codes in uint8 have as many items.
//!
//! *Why it is correct.* No uint8 is less than 0, and broadcasting repeats the constant as these did. OpenVINO 2026.4 adds the
//! first channel's bias to all channels of such a Conv if the model holds one of these with a size read off a Shape, wherever
//! it is: vision transformers with a stem of convolutions and a class token had 13 dB there and 33 dB in onnxruntime.
//!
//! *Numerics.* Equal: a constant of -0 becomes 0.
//!
//! *Before / after.* `Expand (token, Concat (Slice (Shape (x)), rest))` becomes
//! `Add (token, Cast (Reshape (Min (Slice (codes), 0), [-1, 1, 1])))`.
//!
//! *Source.* The definition of the operators.

use super::zero_tensor;
use crate::ir::{DType, Dim, Graph, NodeId, ValueId};
use crate::passes::{Context, Numerics, Outcome, Pass, PassError};
use crate::rewrite::{Patch, Ref};

/// The pass.
pub struct ExpandByCodes;

impl Pass for ExpandByCodes {
    fn id(&self) -> &'static str {
        "expand-by-codes"
    }

    fn summary(&self) -> &'static str {
        "Repeats a token for each item of a batch without computing a shape, in models with quantized convolutions."
    }

    fn numerics(&self) -> Numerics {
        Numerics::Close { rel: 0.0 }
    }

    fn run(&self, m: &mut Context) -> Result<Outcome, PassError> {
        let mut out = Outcome::default();
        let coded = |n: NodeId| m.graph.node(n).op.is("QuantizeLinear");
        let conv = m.graph.nodes().any(|(_, n)| {
            let y = n.out().filter(|_| n.op.is("Conv") && n.input(2).is_some());
            y.is_some_and(|y| m.graph.uses(y).iter().any(|(u, _)| coded(*u) || m.graph.node(*u).op.is("Relu")))
        });
        let mut made = Vec::new();
        for id in if conv { m.graph.schedule() } else { Vec::new() } {
            made.extend(codes(&m.graph, id));
            if let Some(p) = patch(&m.graph, id, &made) {
                m.commit(p)?;
                out.changes += 1;
            }
        }
        m.sweep();
        Ok(out)
    }
}

/// The codes in uint8 that a node makes.
fn codes(g: &Graph, id: NodeId) -> Option<ValueId> {
    let y = g.node(id).out().filter(|_| g.node(id).op.is("QuantizeLinear"))?;
    let ty = g.value(y).ty.as_ref()?.dtype;
    (ty == DType::UINT8 && !g.is_output(y)).then_some(y)
}

/// `made`: codes that are there before the node.
fn patch(g: &Graph, id: NodeId, made: &[ValueId]) -> Option<Patch> {
    let n = g.node(id);
    let (x, y) = (n.input(0)?, n.out()?);
    if !(n.op.is("Expand") || n.op.is("Tile")) || g.constant(n.input(1)?).is_some() {
        return None;
    }
    let t = g.constant(x)?;
    let shape = g.shape(y)?;
    let (items, rest) = shape.split_first()?;
    let alike = t.dims.len() == shape.len() && t.dims.first() == Some(&1);
    let same = rest.iter().zip(t.dims.iter().skip(1)).all(|(d, n)| *d == Dim::Known(*n));
    if !alike || !same || matches!(items, Dim::Unknown) || !(t.dtype == DType::FLOAT || t.dtype == DType::UINT8) {
        return None;
    }
    let of_items = |c: &&ValueId| g.shape(**c).is_some_and(|s| s.first() == Some(items));
    let codes = *made.iter().find(of_items)?;
    let rank = g.rank(codes)?;
    let mut p = Patch::new("expand-by-codes").made_from([n.name.clone()]).before(id);
    let mut e = p.under(g.name_of(y));
    let axes: Vec<i64> = (1..rank as i64).collect();
    let mut one: Ref = codes.into();
    if rank > 1 {
        let (from, to) = (e.ints("from", &vec![0; rank - 1]), e.ints("to", &vec![1; rank - 1]));
        let axes = e.ints("axes", &axes);
        one = e.op("Slice", "one", &[one, from, to, axes]);
    }
    let zero = e.constant("nothing", zero_tensor(DType::UINT8, &[], &[0]));
    let least = e.op("Min", "least", &[one, zero]);
    let to: Vec<i64> = std::iter::once(-1).chain(rest.iter().map(|_| 1)).collect();
    let items = e.reshaped("items", least, &to);
    let all = if t.dtype == DType::FLOAT {
        let zeros = e.cast("zeros", items, DType::FLOAT);
        e.op("Add", "", &[x.into(), zeros])
    } else {
        e.op("Max", "", &[x.into(), items])
    };
    p.typed(all, t.dtype, Some(shape.to_vec()));
    p.succeed(y, all);
    Some(p)
}
