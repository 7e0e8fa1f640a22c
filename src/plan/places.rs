//! Nodes that compute where in a picture to look: the corners of boxes, the points of a sampling grid.
//!
//! A step of eight bits is several pixels of a picture. What such a place is computed from, back to the layer that predicts it,
//! and what is computed from it, scaled corners that the model returns, costs next to nothing and stays in float.

use std::collections::BTreeSet;

use crate::ir::{Graph, Node, NodeId, ValueId};

/// Operators that read an operand as places in a picture, and which one.
const READ: &[(&str, usize)] =
    &[("NonMaxSuppression", 0), ("RoiAlign", 1), ("MaxRoiPool", 1), ("GridSample", 1), ("DeformConv", 1)];

/// The nodes. `settled` are those that compute with constants, sizes and integers: they may stand between places.
pub(super) fn places(g: &Graph, settled: impl Fn(NodeId) -> bool) -> BTreeSet<NodeId> {
    let order = g.schedule();
    let mut nodes: BTreeSet<NodeId> = BTreeSet::new();
    let mut values: BTreeSet<ValueId> = BTreeSet::new();
    for id in order.iter().rev() {
        let n = g.node(*id);
        let read = READ.iter().filter(|(op, _)| n.op.is(op)).filter_map(|(_, slot)| n.input(*slot));
        values.extend(read.filter(|v| float(g, *v)));
        if carries(n) && !adds_a_bias(g, n) && n.outputs.iter().flatten().any(|v| values.contains(v)) {
            values.extend(n.inputs.iter().flatten().filter(|v| float(g, **v)));
            nodes.insert(*id);
        }
    }
    // What is a place alone, and not what a layer predicts one from.
    let mut made: BTreeSet<ValueId> = nodes.iter().flat_map(|n| g.node(*n).outputs.iter().flatten().copied()).collect();
    for id in order {
        let n = g.node(id);
        let fixed = |v: &ValueId| g.constant(*v).is_some() || g.producer(*v).is_some_and(&settled);
        let mut operands = n.inputs.iter().flatten().filter(|v| float(g, **v)).peekable();
        if carries(n)
            && !nodes.contains(&id)
            && n.inputs.iter().flatten().any(|v| made.contains(v))
            && operands.all(|v| made.contains(v) || fixed(v))
        {
            made.extend(n.outputs.iter().flatten());
            nodes.insert(id);
        }
    }
    nodes
}

fn float(g: &Graph, v: ValueId) -> bool {
    g.value(v).ty.as_ref().is_none_or(|t| t.dtype.is_float())
}

/// True for what makes places of places. A logit is one as well: references are refined before a Sigmoid.
fn carries(n: &Node) -> bool {
    n.op.is_onnx() && (n.is_arithmetic() || n.is_move() || n.op.is("Sigmoid"))
}

/// True for the sum that ends a layer.
fn adds_a_bias(g: &Graph, n: &Node) -> bool {
    let product = |v: &ValueId| g.producer(*v).is_some_and(|p| g.node(p).op.is("MatMul"));
    let vector = |v: &ValueId| g.constant(*v).is_some();
    n.op.is("Add") && n.inputs.iter().flatten().any(product) && n.inputs.iter().flatten().any(vector)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::infer;
    use crate::text::parse_model;

    fn named(text: &str) -> Vec<String> {
        let mut m = parse_model(text).unwrap();
        infer::annotate(&mut m);
        let g = &m.graph;
        let found = places(g, |_| false);
        let order = g.schedule().into_iter().filter(|n| found.contains(n));
        order.map(|n| g.name_of(g.node(n).out().unwrap()).to_owned()).collect()
    }

    #[test]
    fn boxes_are_float_from_the_layer_that_predicts_them_to_the_output() {
        let found = named(
            r#"<ir_version: 8, opset_import: ["" : 17]>
            g (float[1,8] x, float[1,3,16,16] image) => (float[1,4] scaled, float[1,3,2,2] crop, float[1,8] y)
            <float[8,4] w, float[4] b = {1,2,3,4}, float[1,4] anchor = {1,2,3,4}, float half = {0.5}, float four = {4.0}, int64[1] which = {0}>
            {
                h = MatMul (x, w)
                delta = Add (h, b)
                part = Mul (delta, half)
                box = Add (part, anchor)
                crop = RoiAlign <output_height = 2, output_width = 2> (image, box, which)
                scaled = Mul (box, four)
                y = Mul (x, half)
            }"#,
        );
        assert_eq!(found, ["part", "box", "scaled"]);
    }

    #[test]
    fn features_that_meet_a_place_are_features() {
        let found = named(
            r#"<ir_version: 8, opset_import: ["" : 17]>
            g (float[1,2,2,2] grid, float[1,2,16,16] image) => (float[1,2,2,2] mixed, float[1,2,2,2] look)
            <float two = {2.0}>
            {
                turned = Transpose <perm = [0, 2, 3, 1]> (grid)
                at = Mul (turned, two)
                look = GridSample (image, at)
                mixed = Add (look, at)
            }"#,
        );
        assert_eq!(found, ["turned", "at"]);
    }
}
