//! Values that hold the numbers masks are made of.
//!
//! A range from minus infinity, or from -10000, leaves no steps for what is not masked: such a value is never made codes,
//! whatever reads it.

use std::collections::BTreeSet;

use super::sites::is_move;
use crate::ir::{Graph, Node, ValueId};

/// At or below this a constant is what a mask is made of, not a measurement.
const MASK: f32 = -1e4;

fn hides(g: &Graph, v: ValueId) -> bool {
    g.constant(v)
        .filter(|t| t.dtype.is_float())
        .and_then(|t| t.to_f32s())
        .is_some_and(|x| x.iter().any(|x| *x <= MASK || !x.is_finite()))
}

/// Operands that hand the values of a mask on.
fn carried(n: &Node) -> &[Option<ValueId>] {
    let data = match n.op.name.as_str() {
        _ if !n.op.is_onnx() => 0,
        "Where" => return n.inputs.get(1..).unwrap_or_default(),
        "Add" | "Sub" | "Mul" | "Div" | "Max" | "Min" | "Sum" | "Concat" => n.inputs.len(),
        "Cast" | "CastLike" | "Neg" | "Abs" => 1,
        _ if is_move(n) => 1,
        _ => 0,
    };
    &n.inputs[..data.min(n.inputs.len())]
}

/// The values that may hold a mask, alone or added to something.
pub(super) fn hidden(g: &Graph) -> BTreeSet<ValueId> {
    let mut found = BTreeSet::new();
    for id in g.schedule() {
        let n = g.node(id);
        // A maximum is not lowered by a bound.
        let made = matches!(n.op.name.as_str(), "Add" | "Sub" | "Mul" | "Where" | "Concat");
        if carried(n).iter().flatten().any(|v| found.contains(v) || made && hides(g, *v)) {
            found.extend(n.outputs.iter().flatten());
        }
    }
    found
}
