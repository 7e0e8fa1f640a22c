//! `delay-reshape`: what a layer makes stays a matrix until something needs another shape.
//!
//! *What it does.* A Reshape of a matrix goes after the element-wise operator that alone reads it, and two Reshapes in
//! a row are one, or none where the second brings the matrix back.
//!
//! *When it fires.* For a Reshape of a value of two axes that keeps the last, read by one operator: QuantizeLinear or
//! DequantizeLinear with one scale, an operator of one element, or Add, Sub or Mul with a constant that is one number, or one
//! per channel. A target with a 0 in it counts the axes before, of which there would be others. For a Reshape of the result of
//! a Reshape, if one target says what the two do: a 0 of the second is the size that the first has there.
//!
//! *Why it is correct.* These operators work element by element, and an element keeps its channel.
//!
//! *Numerics.* Bit-exact.
//!
//! *Before / after.* `Reshape (Gelu (Reshape (x, [-1, 197, 768])), [-1, 768])` becomes `Gelu (x)`.
//!
//! *Source.* The definition of the operators.

use super::{Coding, size};
use crate::ir::{Class, DType, Dim, Graph, NodeId, ValueId};
use crate::passes::common::{is_captured, sole_use};
use crate::passes::{Context, Numerics, Outcome, Pass, PassError};
use crate::rewrite::Patch;

/// The pass.
pub struct DelayReshape;

impl Pass for DelayReshape {
    fn id(&self) -> &'static str {
        "delay-reshape"
    }

    fn summary(&self) -> &'static str {
        "Moves the Reshape of a layer's output after the element-wise operators that follow."
    }

    fn numerics(&self) -> Numerics {
        Numerics::BitExact
    }

    fn run(&self, m: &mut Context) -> Result<Outcome, PassError> {
        let mut out = Outcome::default();
        for id in m.graph.schedule() {
            // A Reshape goes down until something stops it.
            let mut at = Some(id);
            while let Some(node) = at.filter(|n| m.graph.try_node(*n).is_some()) {
                let Some(p) = sunk(&m.graph, node).or_else(|| collapsed(&m.graph, node)) else { break };
                let made = m.commit(p)?;
                out.changes += 1;
                at = made.nodes.last().copied();
            }
        }
        m.sweep();
        Ok(out)
    }
}

/// Target of a Reshape with a constant one, in which 0 is the size that the input has there.
fn target(g: &Graph, id: NodeId) -> Option<Vec<i64>> {
    let n = g.node(id);
    let t = g.constant(n.input(1)?).filter(|_| n.op.is("Reshape"))?.to_i64s()?;
    (!t.contains(&0) || n.int("allowzero") == 0).then_some(t)
}

/// The target of a Reshape that does what one of `first` and then one of `second` do, if there is one.
fn joined(first: &[i64], second: &[i64]) -> Option<Vec<i64>> {
    let size = |(i, d): (usize, &i64)| if *d == 0 { first.get(i).copied() } else { Some(*d) };
    let to: Vec<i64> = second.iter().enumerate().map(size).collect::<Option<_>>()?;
    (to.iter().filter(|d| **d == -1).count() <= 1).then_some(to)
}

/// The Reshape after the operator that reads its result.
fn sunk(g: &Graph, id: NodeId) -> Option<Patch> {
    let reshape = g.node(id);
    let to = target(g, id).filter(|t| !t.contains(&0))?;
    let (x, y) = (reshape.input(0)?, reshape.out()?);
    let channels = size(g, x, -1).or_else(|| to.last().copied().filter(|n| *n > 0))?;
    if g.rank(x) != Some(2) || to.len() < 3 || to.last() != Some(&channels) || g.is_output(y) {
        return None;
    }
    let next = sole_use(g, y)?;
    let n = g.node(next);
    let made = n.out().filter(|v| n.op.is_onnx() && n.outputs.len() == 1 && !is_captured(g, *v))?;
    let slot = n.inputs.iter().position(|v| *v == Some(y))?;
    let alike = |v: ValueId| g.constant(v).is_some_and(|t| t.len() == 1 && t.dims.len() <= 2 || t.dims == [channels]);
    let fits = match &n.op.name[..] {
        "QuantizeLinear" | "DequantizeLinear" => slot == 0 && Coding::of(g, next).is_some_and(|c| c.whole().is_some()),
        "Add" | "Sub" | "Mul" => alike(n.input(1 - slot)?),
        _ => n.is_a(Class::Unary),
    };
    if !fits {
        return None;
    }
    let mut p = Patch::new("delay-reshape").made_from([g.name_of(made).to_owned()]).before(next);
    let mut e = p.under(g.name_of(made));
    let flat = e.like(n, "rows", &[(slot, x.into())]);
    let rows = g.shape(x).and_then(|s| s.first().cloned()).unwrap_or(Dim::Unknown);
    let dtype = match (&n.op.name[..], Coding::of(g, next)) {
        ("DequantizeLinear", _) => DType::FLOAT,
        ("QuantizeLinear", Some(c)) => c.dtype,
        _ => g.value(x).ty.as_ref()?.dtype,
    };
    e.typed(flat, dtype, Some(vec![rows, Dim::Known(channels)]));
    let whole = e.op("Reshape", "", &[flat, reshape.input(1)?.into()]);
    p.typed(whole, dtype, g.shape(made).map(<[_]>::to_vec));
    p.succeed(made, whole);
    Some(p)
}

/// One Reshape, or none, in place of one after another.
fn collapsed(g: &Graph, id: NodeId) -> Option<Patch> {
    let first = g.node(id);
    let (x, y) = (first.input(0)?, first.out()?);
    let next = sole_use(g, y)?;
    let to = joined(&target(g, id)?, &target(g, next)?)?;
    let made = g.node(next).out()?;
    if g.is_output(y) || g.node(next).input(0) != Some(y) || is_captured(g, made) {
        return None;
    }
    let mut p = Patch::new("delay-reshape").made_from([g.name_of(made).to_owned()]).before(next);
    // A 0 here is the first axis of `x` itself.
    let same = g.rank(x) == Some(2) && to.len() == 2 && matches!(to[0], -1 | 0) && size(g, x, -1) == Some(to[1]);
    if same && !g.is_output(made) {
        p.replace(made, x.into());
        return Some(p);
    }
    let r = p.under(g.name_of(made)).reshaped("", x.into(), &to);
    if let Some(ty) = g.value(made).ty.clone() {
        p.typed(r, ty.dtype, ty.shape);
    }
    p.succeed(made, r);
    Some(p)
}
