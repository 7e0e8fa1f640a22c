//! `codes-first`: moves carry codes instead of floats.
//!
//! *What it does.* QuantizeLinear goes in front of the moves that lead to it, DequantizeLinear behind the moves that
//! follow it.
//!
//! *When it fires.* For QuantizeLinear with one scale behind a Reshape, Transpose, Squeeze, Unsqueeze or Flatten nobody
//! else reads, and for DequantizeLinear with one scale in front of one of these, of a Slice or of a Gather.
//!
//! *Why it is correct.* Both work element by element; a move keeps elements.
//!
//! *Numerics.* Bit-exact.
//!
//! *Before / after.* `q = QuantizeLinear(Reshape(x, s), c, z)` becomes `q = Reshape(QuantizeLinear(x, c, z), s)`.
//!
//! *Source.* The definition of the operators; runtimes know the same transformation as moving Q and DQ.

use super::Coding;
use crate::ir::{Graph, Model, Node};
use crate::passes::{Numerics, Outcome, Pass, PassError};
use crate::rewrite::{Patch, Ref, sweep};

/// The pass.
pub struct CodesFirst;

impl Pass for CodesFirst {
    fn id(&self) -> &'static str {
        "codes-first"
    }

    fn summary(&self) -> &'static str {
        "Lets moves carry codes: QuantizeLinear in front of them, DequantizeLinear behind."
    }

    fn numerics(&self) -> Numerics {
        Numerics::BitExact
    }

    fn run(&self, m: &mut Model) -> Result<Outcome, PassError> {
        let mut out = Outcome::default();
        loop {
            let mut changed = false;
            for id in m.graph.schedule() {
                // Patches of this round may have taken it.
                if m.graph.try_node(id).is_none() {
                    continue;
                }
                let Some(c) = Coding::of(&m.graph, id).filter(|c| c.whole().is_some()) else { continue };
                let p = if m.graph.node(id).op.is("QuantizeLinear") { up(&m.graph, &c) } else { down(&m.graph, &c) };
                for p in p {
                    p.commit(m)?;
                    out.changes += 1;
                    changed = true;
                }
            }
            sweep(m);
            if !changed {
                return Ok(out);
            }
        }
    }
}

fn keeps_elements(n: &Node) -> bool {
    n.op.is_onnx()
        && matches!(&n.op.name[..], "Reshape" | "Transpose" | "Squeeze" | "Unsqueeze" | "Flatten")
        && n.outputs.len() == 1
}

/// QuantizeLinear in front of the move that makes its input.
fn up(g: &Graph, c: &Coding) -> Vec<Patch> {
    let Some(mv) = g.producer(c.x).filter(|n| keeps_elements(g.node(*n))) else { return Vec::new() };
    if g.use_count(c.x) != 1 || g.is_output(c.x) || g.is_output(c.y) {
        return Vec::new();
    }
    let (node, q) = (g.node(mv), g.node(c.node));
    let Some(x) = node.input(0) else { return Vec::new() };
    let mut p = Patch::new("codes-first").made_from([g.name_of(c.y).to_owned()]).before(mv);
    let mut inputs: Vec<Option<Ref>> = q.inputs.iter().map(|v| v.map(Ref::from)).collect();
    inputs[0] = Some(x.into());
    let codes = p.node_with(q.op.clone(), &inputs, &[&format!("{}_q", g.name_of(x))], q.attrs.clone())[0];
    p.typed(codes, c.dtype, g.value(x).ty.as_ref().and_then(|t| t.shape.clone()));
    let moved = moved(&mut p, g, node, codes, g.name_of(c.y), c);
    p.succeed(c.y, moved);
    vec![p]
}

/// DequantizeLinear behind the moves that read it, each with its own.
fn down(g: &Graph, c: &Coding) -> Vec<Patch> {
    if g.constant(c.x).is_some() || g.is_output(c.y) {
        return Vec::new();
    }
    let dq = g.node(c.node);
    g.uses(c.y)
        .into_iter()
        .filter(|(n, slot)| {
            let node = g.node(*n);
            *slot == 0
                && (keeps_elements(node) || (node.op.is_onnx() && matches!(&node.op.name[..], "Slice" | "Gather")))
                && node.out().is_some_and(|v| !g.is_output(v))
        })
        .filter_map(|(n, _)| {
            let node = g.node(n);
            let y = node.out()?;
            let mut p = Patch::new("codes-first").made_from([g.name_of(y).to_owned()]).before(n);
            let moved = moved(&mut p, g, node, c.x.into(), &format!("{}_q", g.name_of(y)), c);
            let mut inputs: Vec<Option<Ref>> = dq.inputs.iter().map(|v| v.map(Ref::from)).collect();
            inputs[0] = Some(moved);
            let back = p.node_with(dq.op.clone(), &inputs, &[g.name_of(y)], dq.attrs.clone())[0];
            p.typed(back, crate::ir::DType::FLOAT, g.value(y).ty.as_ref().and_then(|t| t.shape.clone()));
            p.succeed(y, back);
            Some(p)
        })
        .collect()
}

/// The move, reading codes.
fn moved(p: &mut Patch, g: &Graph, node: &Node, codes: Ref, name: &str, c: &Coding) -> Ref {
    let mut inputs: Vec<Option<Ref>> = node.inputs.iter().map(|v| v.map(Ref::from)).collect();
    inputs[0] = Some(codes);
    let r = p.node_with(node.op.clone(), &inputs, &[name], node.attrs.clone())[0];
    let shape = node.out().and_then(|v| g.value(v).ty.as_ref()?.shape.clone());
    p.typed(r, c.dtype, shape)
}
