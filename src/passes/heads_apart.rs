//! Attention whose heads and batch are one axis for the products alone.

use super::common::{patch_rounds, sole_reader, sole_use};
use super::{Context, Numerics, Outcome, Pass, PassError};
use crate::infer::{ShapeMap, Size};
use crate::ir::{Attrs, Graph, NodeId, ValueId};
use crate::rewrite::{Patch, Ref};

/// # What it does
/// Multiplies with batch and heads as two axes where the model makes them one for the product and two again after it.
///
/// # When it fires
/// On a MatMul of which nothing is read but, perhaps after a factor or a sum, a Reshape that takes the first axis apart, if
/// both operands, seen through Softmax, Transpose, factors and sums, are such two axes made one. A product of weights and
/// values only if the scores of these weights are a product of two such axes.
///
/// # Why it is correct
/// The axes before the last two say which products are taken, whether they are one or two.
///
/// # Numerics
/// Bit-exact.
///
/// # Before / after
/// ```text
/// a = Reshape (q, [-1, 17, 16])                  # q: float[batch, 3, 17, 16]
/// b = Reshape (k, [-1, 17, 16])
/// s = MatMul (a, Transpose <perm = [0, 2, 1]> (b))
/// y = Reshape (s, [-1, 3, 17, 17])               y = MatMul (q, Transpose <perm = [0, 1, 3, 2]> (k))
/// ```
///
/// # Source
/// CLIP's text tower, BLOOM and others in transformers, which add their masks to four axes and multiply with three.
pub struct HeadsApart;

impl Pass for HeadsApart {
    fn id(&self) -> &'static str {
        "heads-apart"
    }

    fn summary(&self) -> &'static str {
        "Gives batch and heads an axis each where only a MatMul needs them merged."
    }

    fn numerics(&self) -> Numerics {
        Numerics::BitExact
    }

    fn run(&self, model: &mut Context) -> Result<Outcome, PassError> {
        let opset = model.opset();
        patch_rounds(model, |g, id, map| patch(g, id, map, opset))
    }
}

/// Nodes between a product and the Reshape, or the Reshape and a product.
const MOST_STEPS: u32 = 8;

fn patch(g: &Graph, id: NodeId, map: &ShapeMap, opset: i64) -> Option<Patch> {
    let product = g.node(id);
    if !product.op.is("MatMul") {
        return None;
    }
    let (a, b, y) = (product.input(0)?, product.input(1)?, product.out()?);
    if weights(g, a) && !scores_apart(g, map, a, MOST_STEPS) {
        return None;
    }
    // From the product to the Reshape.
    let (mut v, mut behind) = (y, Vec::new());
    let whole = loop {
        let next = sole_use(g, v)?;
        let n = g.node(next);
        match n.op.name.as_str() {
            "Reshape" if n.op.is_onnx() && n.input(0) == Some(v) => break n.out()?,
            _ if n.is_elementary() && behind.len() < MOST_STEPS as usize => {
                behind.push((next, v));
                v = n.out()?;
            }
            _ => return None,
        }
    };
    let (one, two) = (map.dims(v)?, map.dims(whole)?);
    if one.len() != 3 || two.len() != 4 || one[1..] != two[2..] {
        return None;
    }
    let name = g.name_of(whole);
    let patch = Patch::new("heads-apart").before(sole_reader(g, v)?).made_from([name.to_owned()]);
    let mut job = Split { g, map, lead: [two[0].clone(), two[1].clone()], opset, p: patch };
    let (a, b) = (job.apart(a, MOST_STEPS)?, job.apart(b, MOST_STEPS)?);
    let hint = |v: ValueId| format!("{}_apart", g.name_of(v));
    let mut new =
        job.p.node("MatMul", &if behind.is_empty() { name.to_owned() } else { hint(y) }, &[a, b], Attrs::new());
    for (i, (node, from)) in behind.iter().enumerate() {
        let n = g.node(*node);
        let mut inputs = Vec::new();
        for x in n.inputs.iter().flatten() {
            inputs.push(if x == from { new } else { job.apart(*x, MOST_STEPS)? });
        }
        let out = if i + 1 == behind.len() { name.to_owned() } else { hint(n.out()?) };
        new = job.p.node(&n.op.name, &out, &inputs, Attrs::new());
    }
    job.p.succeed(whole, new);
    Some(job.p)
}

/// True if `v` are weights: made by a Softmax, whatever their shape is seen as.
fn weights(g: &Graph, v: ValueId) -> bool {
    let Some(n) = g.producer(v).map(|n| g.node(n)) else { return false };
    n.op.is("Softmax") || n.op.is("Reshape") && n.input(0).is_some_and(|x| g.producer_is(x, "Softmax").is_some())
}

/// True if weights come from a product of four axes, and no change of shape is in between but the last.
fn scores_apart(g: &Graph, map: &ShapeMap, v: ValueId, most: u32) -> bool {
    let Some(n) = g.producer(v).map(|n| g.node(n)).filter(|n| n.op.is_onnx()) else { return false };
    let Some(less) = most.checked_sub(1) else { return false };
    let four = map.rank(v) == Some(4);
    match n.op.name.as_str() {
        "MatMul" => four,
        "Reshape" => !four && n.input(0).is_some_and(|x| map.rank(x) == Some(4) && scores_apart(g, map, x, less)),
        "Softmax" | "Mul" | "Div" | "Add" | "Sub" | "Where" | "Clip" => {
            n.inputs.iter().flatten().any(|x| scores_apart(g, map, *x, less))
        }
        _ => false,
    }
}

/// True if a value that holds as many elements as `want` says has these sizes. Where inference does not know them: what is made
/// element by element is no smaller than any of its operands along any axis.
fn reaches(g: &Graph, map: &ShapeMap, v: ValueId, want: &[Size], most: u32) -> bool {
    if map.dims(v) == Some(want) {
        return true;
    }
    let Some(n) = g.producer(v).map(|n| g.node(n)).filter(|n| n.op.is_onnx()) else { return false };
    let each = n.is_elementary() || n.op.is("Where") || n.op.is("Clip");
    most > 0 && each && n.inputs.iter().flatten().any(|x| reaches(g, map, *x, want, most - 1))
}

struct Split<'a> {
    g: &'a Graph,
    map: &'a ShapeMap,
    /// Sizes of the two axes.
    lead: [Size; 2],
    opset: i64,
    p: Patch,
}

impl Split<'_> {
    /// A value of three axes with the first as two; a single number as it is.
    fn apart(&mut self, v: ValueId, most: u32) -> Option<Ref> {
        let g = self.g;
        if g.constant(v).is_some_and(|t| t.len() == 1) {
            return Some(v.into());
        }
        let n = g.node(g.producer(v)?);
        let less = most.checked_sub(1)?;
        let dims = self.map.dims(v).filter(|d| d.len() == 3 && n.op.is_onnx())?;
        let name = g.name_of(v);
        match n.op.name.as_str() {
            "Reshape" => {
                let x = n.input(0)?;
                let want = [&self.lead[..], &dims[1..]].concat();
                reaches(g, self.map, x, &want, less).then(|| x.into())
            }
            "Transpose" if n.attrs.ints("perm") == Some(&[0, 2, 1]) => {
                let x = self.apart(n.input(0)?, less)?;
                Some(self.p.under(name).turned("apart", x, &[0, 1, 3, 2]))
            }
            "Softmax" => {
                if n.axis_at(3, self.opset) != 2 {
                    return None;
                }
                let x = self.apart(n.input(0)?, less)?;
                Some(self.p.under(name).op_with("Softmax", "apart", &[x], Attrs::new().with_int("axis", 3)))
            }
            _ if n.is_elementary() => {
                let mut inputs = Vec::new();
                for x in n.inputs.iter().flatten() {
                    inputs.push(self.apart(*x, less)?);
                }
                Some(self.p.under(name).op(&n.op.name, "apart", &inputs))
            }
            _ => None,
        }
    }
}
