//! Selections that are written as sums of products.

use super::common::patch_nodes;
use super::{Context, Numerics, Outcome, Pass, PassError};
use crate::infer::ShapeMap;
use crate::ir::{Attrs, DType, Graph, NodeId, Tensor, ValueId};
use crate::rewrite::Patch;

/// # What it does
/// Writes a choice between two values as a Where.
///
/// # When it fires
/// - On `a * m + b * (1 - m)`, with `m` and `1 - m` converted from a condition and its Not.
/// - On `x * m + c` and `x * m - c` with constants, if `m` holds only 0 and one other number, with a 0 among them, and `c` is 0
///   where `m` is not, and one number elsewhere.
///
/// # Why it is correct
/// One of the factors, or summands, is 0. (An infinity on the side that is not chosen would have become NaN.)
///
/// # Numerics
/// Close: -0.0 may become 0.0 or the other way about.
///
/// # Before / after
/// ```text
/// k = Cast <to = 1> (m)
/// n = Cast <to = 1> (Not (m))
/// y = Add (Mul (x, k), Mul (n, c))     y = Where (m, x, c)
/// ```
///
/// # Source
/// `tf.where` by tf2onnx; the causal mask of GPT-2 in TensorFlow.
pub struct SelectByArithmetic;

impl Pass for SelectByArithmetic {
    fn id(&self) -> &'static str {
        "select-by-arithmetic"
    }

    fn summary(&self) -> &'static str {
        "Writes a selection made of products and a sum as a Where."
    }

    fn numerics(&self) -> Numerics {
        Numerics::Close { rel: 0.0 }
    }

    fn run(&self, model: &mut Context) -> Result<Outcome, PassError> {
        let map = model.shapes();
        patch_nodes(model, |g, id| by_condition(g, id, &map).or_else(|| by_constants(g, id)))
    }
}

fn by_condition(g: &Graph, id: NodeId, map: &ShapeMap) -> Option<Patch> {
    let add = g.node(id);
    if !add.op.is("Add") {
        return None;
    }
    let y = add.out()?;
    let condition = |v: ValueId| -> Option<ValueId> {
        let from = g.node(g.producer_is(v, "Cast")?).input(0)?;
        (map.dtype(from) == Some(DType::BOOL)).then_some(from)
    };
    // The condition and the value of a product of both.
    let product = |v: ValueId| -> Vec<(ValueId, ValueId)> {
        let Some(n) = g.producer_is(v, "Mul") else { return Vec::new() };
        let (Some(a), Some(b)) = (g.node(n).input(0), g.node(n).input(1)) else { return Vec::new() };
        [(a, b), (b, a)].into_iter().filter_map(|(c, x)| Some((condition(c)?, x))).collect()
    };
    let negated = |v: ValueId, of: ValueId| g.producer_is(v, "Not").is_some_and(|n| g.node(n).input(0) == Some(of));
    let (left, right) = (product(add.input(0)?), product(add.input(1)?));
    let (keep, a, b) = left.iter().flat_map(|l| right.iter().map(move |r| (*l, *r))).find_map(|((m, a), (n, b))| {
        if negated(n, m) { Some((m, a, b)) } else { negated(m, n).then_some((n, b, a)) }
    })?;
    let name = g.name_of(y);
    let mut p = Patch::new("select-by-arithmetic").before(id).made_from([name.to_owned()]);
    let new = p.node("Where", name, &[keep.into(), a.into(), b.into()], Attrs::new());
    p.succeed(y, new);
    Some(p)
}

fn by_constants(g: &Graph, id: NodeId) -> Option<Patch> {
    let sum = g.node(id);
    let minus = sum.op.is("Sub");
    if !minus && !sum.op.is("Add") {
        return None;
    }
    let y = sum.out()?;
    let slot =
        (0..if minus { 1 } else { 2 }).find(|i| sum.input(*i).is_some_and(|v| g.producer_is(v, "Mul").is_some()))?;
    let product = g.node(g.producer(sum.input(slot)?)?);
    let other = g.constant(sum.input(1 - slot)?).filter(|t| t.dtype == DType::FLOAT)?;
    let at =
        (0..2).find(|i| product.input(*i).is_some_and(|v| g.constant(v).is_some_and(|t| t.dtype == DType::FLOAT)))?;
    let (x, mask) = (product.input(1 - at)?, g.constant(product.input(at)?)?);
    if g.constant(x).is_some() || mask.dims != other.dims {
        return None;
    }
    let (m, c) = (mask.to_f32s()?, other.to_f32s()?);
    let factor = m.iter().copied().find(|m| *m != 0.0)?;
    if !m.iter().all(|m| *m == 0.0 || *m == factor) {
        return None;
    }
    let mut hidden = m.iter().zip(c.iter()).filter(|(m, _)| **m == 0.0).map(|(_, c)| *c);
    let fill = hidden.next()?;
    if hidden.any(|c| c != fill) || m.iter().zip(c.iter()).any(|(m, c)| *m != 0.0 && *c != 0.0) {
        return None;
    }
    let name = g.name_of(y);
    let mut p = Patch::new("select-by-arithmetic").before(id).made_from([name.to_owned()]);
    let keep: Vec<bool> = m.iter().map(|m| *m != 0.0).collect();
    let mut e = p.under(name);
    let keep = e.constant("keep", Tensor::bool(&mask.dims, &keep));
    let fill = e.scalar("fill", if minus { -fill } else { fill });
    let x = if factor == 1.0 {
        x.into()
    } else {
        let factor = e.scalar("factor", factor);
        e.op("Mul", "scaled", &[x.into(), factor])
    };
    let new = e.op("Where", "", &[keep, x, fill]);
    p.succeed(y, new);
    Some(p)
}
