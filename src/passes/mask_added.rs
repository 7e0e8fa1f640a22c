use super::common::{patch_nodes, sole_reader};
use super::{Numerics, Outcome, Pass, PassError};
use crate::ir::{Attrs, Graph, Model, NodeId, Tensor, ValueId};
use crate::plan::sites::is_move;
use crate::rewrite::{Patch, Ref};

/// # What it does
/// Adds a mask that is taken off the scores of attention, and leaves out a number that is added to all of them.
///
/// # When it fires
/// On a Sub that only Softmax reads, of a value times a positive number, moved or not; on an Add of one number that only
/// Softmax reads.
///
/// # Why it is correct
/// `s - m c = s + m (-c)`, and both sides are rounded alike. Softmax gives the same for scores that all gained the same.
///
/// # Numerics
/// Close: scores that gained a number had lost some of their last bits.
///
/// # Before / after
/// ```text
/// y = Softmax (Sub (s, Unsqueeze (Mul (m, 10000.0), [1])))
/// y = Softmax (Add (s, Unsqueeze (Mul (m, -10000.0), [1])))
/// ```
///
/// # Source
/// Padding masks of hand-written attention; the 1e-9 that transformers for TensorFlow adds to its scores.
pub struct MaskAdded;

impl Pass for MaskAdded {
    fn id(&self) -> &'static str {
        "mask-added"
    }

    fn summary(&self) -> &'static str {
        "a mask that is taken off the scores is added, a number added to all of them left out"
    }

    fn numerics(&self) -> Numerics {
        Numerics::Close { rel: 1e-5 }
    }

    fn run(&self, model: &mut Model) -> Result<Outcome, PassError> {
        patch_nodes(model, patch)
    }
}

fn patch(g: &Graph, id: NodeId) -> Option<Patch> {
    let sub = g.node(id);
    let y = sub.out()?;
    if !(sub.op.is("Sub") || sub.op.is("Add")) || !g.node(sole_reader(g, y)?).op.is("Softmax") {
        return None;
    }
    let name = g.name_of(y);
    let mut p = Patch::new("mask-added").before(id).made_from([name.to_owned()]);
    if sub.op.is("Add") {
        let number = |v: ValueId| g.constant(v).and_then(|t| t.as_scalar()).is_some_and(f64::is_finite);
        let slot = (0..2).find(|i| sub.input(*i).is_some_and(number))?;
        // A number of more axes would give the scores its own.
        let plain = g.constant(sub.input(slot)?)?.dims.len() <= 1;
        p.replace(y, sub.input(1 - slot).filter(|_| plain)?.into());
        return Some(p);
    }
    let mask = negated(g, &mut p, sub.input(1)?)?;
    let new = p.node("Add", name, &[sub.input(0)?.into(), mask], Attrs::new());
    p.succeed(y, new);
    Some(p)
}

/// The same value with the other sign.
fn negated(g: &Graph, p: &mut Patch, v: ValueId) -> Option<Ref> {
    let n = g.node(g.producer(v)?);
    let hint = format!("{}_negative", g.name_of(v));
    if is_move(n) && !n.op.is("Concat") && n.outputs.len() == 1 {
        let mut inputs: Vec<Option<Ref>> = n.inputs.iter().map(|v| v.map(Ref::from)).collect();
        inputs[0] = Some(negated(g, p, n.input(0)?)?);
        return Some(p.node_with(n.op.clone(), &inputs, &[&hint], n.attrs.clone())[0]);
    }
    if !n.op.is("Mul") {
        return None;
    }
    let positive = |v: ValueId| g.constant(v).filter(|t| t.len() == 1)?.to_f32s().filter(|x| x[0] > 0.0).map(|x| x[0]);
    let (slot, c) = (0..2).find_map(|i| Some((i, positive(n.input(i)?)?)))?;
    let dims = g.constant(n.input(slot)?)?.dims.clone();
    let c = p.constant(&format!("{hint}_factor"), Tensor::f32(&dims, &[-c]));
    Some(p.node("Mul", &hint, &[n.input(1 - slot)?.into(), c], Attrs::new()))
}
