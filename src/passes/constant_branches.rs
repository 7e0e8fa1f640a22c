use std::collections::BTreeMap;

use super::common::{commit, is_captured};
use super::{Context, Numerics, Outcome, Pass, PassError};
use crate::infer::ShapeMap;
use crate::ir::{Attrs, Def, Graph, NodeId, ValueId};
use crate::onnx;
use crate::rewrite::{Patch, Ref};

/// # What it does
/// Writes the nodes of a branch where its `If` stands, when the condition is a constant.
///
/// # When it fires
/// When the condition is known, be it from shapes.
///
/// # Why it is correct
/// Only one branch can ever run. Its values get names of their own, and what it reads from outside it reads directly; so do
/// the nested graphs in it. Nested graphs that read what the `If` made find it under its old name, by an Identity.
///
/// # Numerics
/// Bit-exact.
///
/// # Before / after
/// ```text
/// y = If <then_branch = { t = Squeeze (x) }, else_branch = { e = Identity (x) }> (true)      y = Squeeze (x)
/// ```
///
/// # Source
/// ONNX operator specification, If. TorchScript writes a squeeze of an axis of unknown size so.
pub struct ConstantBranches;

impl Pass for ConstantBranches {
    fn id(&self) -> &'static str {
        "constant-branches"
    }

    fn summary(&self) -> &'static str {
        "Replaces an If whose condition is constant by the branch that is taken."
    }

    fn numerics(&self) -> Numerics {
        Numerics::BitExact
    }

    fn run(&self, model: &mut Context) -> Result<Outcome, PassError> {
        let mut out = Outcome::default();
        let found: Vec<NodeId> = model.graph.nodes().filter(|(_, n)| n.op.is("If")).map(|(id, _)| id).collect();
        if found.is_empty() {
            return Ok(out);
        }
        let map = model.shapes();
        for id in found {
            if let Some(patch) = inlined(&model.graph, &map, id) {
                commit(patch, model, &mut out)?;
            }
        }
        Ok(out)
    }
}

fn inlined(g: &Graph, map: &ShapeMap, id: NodeId) -> Option<Patch> {
    let node = g.node(id);
    let condition = map.constant(node.input(0)?)?;
    let taken = match condition.to_i64s()?[..] {
        [0] => "else_branch",
        [_] => "then_branch",
        _ => return None,
    };
    let (body, outer) = onnx::open_body(node, taken).ok()?;
    let whole = body.nodes().all(|(_, n)| n.outputs.iter().all(Option::is_some));
    if !whole || body.outputs().len() != node.outputs.len() {
        return None;
    }
    let mut patch = Patch::new("constant-branches").made_from([node.name.clone()]).before(id);
    let mut made: BTreeMap<ValueId, Ref> = outer.into_iter().map(|(inner, v)| (inner, v.into())).collect();
    for (v, x) in body.values() {
        if let Def::Init(t) = &x.def {
            made.insert(v, patch.constant(&x.name, t.clone()));
        }
    }
    for n in body.schedule() {
        let n = body.node(n);
        // A value that is neither made nor read from outside, such as a sparse constant, ends it.
        let read = |v: &Option<ValueId>| v.map_or(Some(None), |v| made.get(&v).map(|r| Some(*r)));
        let inputs: Vec<Option<Ref>> = n.inputs.iter().map(read).collect::<Option<_>>()?;
        let captures: Vec<Ref> = n.captures.iter().map(|v| made.get(v).copied()).collect::<Option<_>>()?;
        let outputs: Vec<ValueId> = n.outputs.iter().flatten().copied().collect();
        let names: Vec<&str> = outputs.iter().map(|v| body.name_of(*v)).collect();
        let new = patch.node_around(n.op.clone(), &inputs, &captures, &names, n.attrs.clone());
        for (v, r) in outputs.into_iter().zip(new) {
            if let Some(ty) = &body.value(v).ty {
                patch.typed(r, ty.dtype, ty.shape.clone());
            }
            made.insert(v, r);
        }
    }
    for (old, new) in node.outputs.iter().zip(body.outputs()) {
        let Some(old) = *old else { continue };
        let new = *made.get(new)?;
        if is_captured(g, old) {
            let same = patch.node("Identity", g.name_of(old), &[new], Attrs::new());
            patch.succeed(old, same);
        } else {
            patch.replace(old, new);
        }
    }
    patch.erase(id);
    Some(patch)
}
