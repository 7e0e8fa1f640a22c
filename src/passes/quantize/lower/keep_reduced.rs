//! `keep-reduced`: reductions keep the axes they reduce, and a Squeeze takes these out.
//!
//! *What it does.* A ReduceMean, ReduceSum or ReduceMax without the reduced axes becomes one with them as axes of size 1,
//! followed by a Squeeze.
//!
//! *When it fires.* Where an axis in front of the last is reduced and left out, as in a mean over tokens.
//!
//! *Why it is correct.* That is what leaving axes out means. OpenVINO 2026.4 joins a factor per channel, the reduction and the
//! QuantizeLinear after it into one operator, with the first channel's factor for all channels, unless the axes are kept: a
//! mean over tokens before the head of an RMSNorm model had 10 dB there and 43 dB in onnxruntime.
//!
//! *Numerics.* Bit-exact.
//!
//! *Before / after.* `ReduceMean <axes = [1], keepdims = 0> (x)` becomes
//! `Squeeze (ReduceMean <axes = [1], keepdims = 1> (x), [1])`.
//!
//! *Source.* The definition of the operators.

use super::from_end;
use crate::ir::{AttrValue, Attrs, Graph, NodeId};
use crate::passes::{Context, Numerics, Outcome, Pass, PassError};
use crate::rewrite::Patch;

/// The pass.
pub struct KeepReduced;

impl Pass for KeepReduced {
    fn id(&self) -> &'static str {
        "keep-reduced"
    }

    fn summary(&self) -> &'static str {
        "Lets reductions keep the axes they reduce, and takes these out with a Squeeze."
    }

    fn numerics(&self) -> Numerics {
        Numerics::BitExact
    }

    fn run(&self, m: &mut Context) -> Result<Outcome, PassError> {
        let (mut out, opset) = (Outcome::default(), m.opset());
        for id in m.graph.schedule() {
            if let Some(p) = patch(&m.graph, id, opset) {
                m.commit(p)?;
                out.changes += 1;
            }
        }
        Ok(out)
    }
}

fn patch(g: &Graph, id: NodeId, opset: i64) -> Option<Patch> {
    let n = g.node(id);
    if !["ReduceMean", "ReduceSum", "ReduceMax"].iter().any(|op| n.op.is(op)) || n.int("keepdims") != 0 {
        return None;
    }
    let (x, y) = (n.input(0)?, n.out()?);
    let mut axes = g.ints(n, 1, "axes").filter(|a| !a.is_empty())?;
    // tract takes axes out from the last that is named, and then finds none beyond.
    axes.sort_by_key(|a| from_end(g, *a, x));
    if !axes.iter().any(|a| from_end(g, *a, x).is_some_and(|a| a < -1)) {
        return None;
    }
    let mut p = Patch::new("keep-reduced").made_from([n.name.clone()]).before(id);
    let mut e = p.under(g.name_of(y));
    let inputs: Vec<_> = n.inputs.iter().flatten().map(|v| (*v).into()).collect();
    let mut attrs = n.attrs.clone();
    attrs.set("keepdims", AttrValue::Int(1));
    let kept = e.op_with(&n.op.name, "kept", &inputs, attrs);
    let flat = e.over("Squeeze", "", kept, &axes, Attrs::new(), opset);
    p.typed(flat, g.value(y).ty.as_ref().map(|t| t.dtype)?, g.shape(y).map(<[_]>::to_vec));
    p.succeed(y, flat);
    Some(p)
}
