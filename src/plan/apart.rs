//! Nodes that compute nothing of the network proper: what they make follows from constants and sizes alone, or is read as
//! indices and conditions only. Codes would save nothing there, and could change which element is picked.

use std::collections::{BTreeMap, BTreeSet};

use super::sites::is_move;
use crate::ir::{DType, Graph, Node, NodeId, ValueId};

pub(super) const CONSTANT: &str = "it does not depend on what the model is fed";
pub(super) const INDICES: &str = "it computes indices or conditions";

/// The nodes, with the reason.
pub(super) fn apart(g: &Graph) -> BTreeMap<NodeId, &'static str> {
    let mut found: BTreeMap<NodeId, &'static str> = indices(g).into_iter().map(|n| (n, INDICES)).collect();
    found.extend(unfed(g).into_iter().map(|n| (n, CONSTANT)));
    found
}

/// Operators that find their own numbers.
const RANDOM: &[&str] =
    &["RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"];

/// Nodes whose results are the same, or follow from the sizes of the inputs, whatever these hold. A constant that is only
/// repeated for each sample is none of them: what is computed from it is computed for each sample.
pub(crate) fn unfed(g: &Graph) -> BTreeSet<NodeId> {
    let mut nodes = BTreeSet::new();
    let mut values: BTreeSet<ValueId> = BTreeSet::new();
    for id in g.schedule() {
        let n = g.node(id);
        if n.has_subgraph() || !n.op.is_onnx() || RANDOM.contains(&n.op.name.as_str()) {
            continue;
        }
        let constant = |v: &ValueId| g.constant(*v).is_some();
        let settled = |v: &ValueId| constant(v) || values.contains(v);
        let sized = n.op.is("Shape") || n.op.is("Size");
        let repeated = is_move(n)
            && !n.op.is("Concat")
            && n.input(0).is_some_and(|v| constant(&v))
            && n.inputs.iter().flatten().any(|v| !constant(v));
        if sized || (!repeated && n.inputs.iter().flatten().all(settled)) {
            values.extend(n.outputs.iter().flatten());
            nodes.insert(id);
        }
    }
    nodes
}

/// Element by element; what their result is read for is what they are for.
const ARITHMETIC: &[&str] = &[
    "Add",
    "Sub",
    "Mul",
    "Div",
    "Pow",
    "Sqrt",
    "Exp",
    "Log",
    "Abs",
    "Neg",
    "Sign",
    "Min",
    "Max",
    "Clip",
    "Where",
    "Floor",
    "Ceil",
    "Round",
    "Reciprocal",
    "Cast",
];

/// Nodes of float arithmetic that only leads to integers and truth values.
fn indices(g: &Graph) -> BTreeSet<NodeId> {
    let mut found: BTreeSet<NodeId> = BTreeSet::new();
    let asks = |n: &Node| {
        let whole = |t: i64| i32::try_from(t).is_ok_and(|t| DType(t).is_int() || DType(t) == DType::BOOL);
        match n.op.name.as_str() {
            "Equal" | "Greater" | "Less" | "GreaterOrEqual" | "LessOrEqual" | "IsNaN" | "IsInf" => true,
            "Cast" => n.attrs.int("to").is_some_and(whole),
            _ => false,
        }
    };
    for id in g.schedule().into_iter().rev() {
        let n = g.node(id);
        let open = |v: &ValueId| {
            let uses = g.uses(*v);
            g.is_output(*v)
                || uses.is_empty()
                || !uses.iter().all(|(u, slot)| *slot != usize::MAX && (asks(g.node(*u)) || found.contains(u)))
        };
        let float = |v: &ValueId| g.value(*v).ty.as_ref().is_some_and(|t| t.dtype.is_float());
        if n.op.is_onnx()
            && (ARITHMETIC.contains(&n.op.name.as_str()) || is_move(n))
            && n.out().is_some_and(|v| float(&v))
            && !n.outputs.iter().flatten().any(open)
        {
            found.insert(id);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::infer;
    use crate::text::parse_model;

    fn named(text: &str) -> Vec<(String, &'static str)> {
        let mut m = parse_model(text).unwrap();
        infer::annotate(&mut m);
        let g = &m.graph;
        let found = apart(g);
        let order = g.schedule().into_iter().filter_map(|n| found.get(&n).map(|why| (n, *why)));
        order.map(|(n, why)| (g.name_of(g.node(n).out().unwrap()).to_owned(), why)).collect()
    }

    #[test]
    fn what_is_made_of_sizes_or_read_as_indices_is_left_alone() {
        let found = named(
            r#"<ir_version: 8, opset_import: ["" : 17]>
            g (float[n,4] x, int64[n,4] boxes) => (float[n,4] y, float[n,4] z, float[n,4] p, float[n,4] s)
            <float[1,4] w = {1.0, 2.0, 3.0, 4.0}, float eight = {8.0}, float[9,4] table, int64 zero = {0}>
            {
                size = Shape (x)
                real = Cast <to = 1> (size)
                part = Div (real, eight)
                scale = ReduceMax <keepdims = 0> (part)
                y = Mul (x, scale)
                far = Cast <to = 1> (boxes)
                log = Log (far)
                bucket = Cast <to = 7> (log)
                z = GatherElements <axis = 0> (table, bucket)
                repeated = Expand (w, size)
                p = Add (repeated, repeated)
                shared = Mul (x, eight)
                large = Greater (shared, eight)
                s = Where (large, shared, x)
            }"#,
        );
        let want = [
            ("size", CONSTANT),
            ("real", CONSTANT),
            ("part", CONSTANT),
            ("scale", CONSTANT),
            ("far", INDICES),
            ("log", INDICES),
        ];
        assert_eq!(found, want.map(|(n, why)| (n.to_owned(), why)));
    }
}
