//! Which tokens the outputs read.
//!
//! A classifier that takes the class token from the last block reads one row of some hundred: what is lost in that row is
//! lost at the output, what is lost in the others only as far as attention carries it there.

use std::collections::BTreeSet;

use super::sites::{Sites, sliced};
use crate::ir::{Graph, Node, NodeId, ValueId};

/// More rows than these are not a choice of special tokens.
const FEW: i64 = 4;

/// Rows of the second last axis that everything between the last of the nodes `mixing` tokens and the outputs starts from,
/// counted from the front, or from the end if negative. Empty if the outputs read all rows, or it cannot be told.
pub fn rows_read(g: &Graph, mixing: &BTreeSet<NodeId>) -> Vec<i64> {
    let mut rows: BTreeSet<i64> = BTreeSet::new();
    let mut seen: BTreeSet<NodeId> = BTreeSet::new();
    let mut todo: Vec<NodeId> = g.outputs().iter().filter_map(|v| g.producer(*v)).collect();
    while let Some(id) = todo.pop() {
        if !seen.insert(id) {
            continue;
        }
        if mixing.contains(&id) {
            return Vec::new();
        }
        let n = g.node(id);
        match chosen(g, n) {
            Some(few) => rows.extend(few),
            None => todo.extend(n.inputs.iter().flatten().filter_map(|v| g.producer(*v))),
        }
    }
    rows.into_iter().collect()
}

/// [`rows_read`], with the attentions of a model as what mixes tokens.
pub fn read_tokens(g: &Graph, sites: &Sites) -> Vec<i64> {
    rows_read(g, &sites.attentions.iter().map(|a| a.weighted).collect())
}

/// Values that some of the nodes `mixing` tokens depend on: an error in any of their tokens reaches others.
pub fn values_before(g: &Graph, mixing: &BTreeSet<NodeId>) -> BTreeSet<ValueId> {
    let mut seen: BTreeSet<ValueId> = BTreeSet::new();
    let mut todo: Vec<NodeId> = mixing.iter().copied().collect();
    while let Some(id) = todo.pop() {
        for v in g.node(id).inputs.iter().flatten() {
            if seen.insert(*v) {
                todo.extend(g.producer(*v));
            }
        }
    }
    seen
}

/// The rows a Gather or Slice along the second last axis keeps, if they are few and constant.
fn chosen(g: &Graph, n: &Node) -> Option<Vec<i64>> {
    let rank = g.rank(n.input(0)?)? as i64;
    let rows = |axis: i64| rank >= 3 && (axis == rank - 2 || axis == -2);
    if n.op.is("Gather") && rows(n.int("axis")) {
        return g.constant(n.input(1)?)?.to_i64s().filter(|r| r.len() as i64 <= FEW);
    }
    if !n.op.is("Slice") {
        return None;
    }
    let (a, b, axis) = sliced(g, n)?;
    (rows(axis) && (a < 0) == (b < 0) && (1..=FEW).contains(&(b - a))).then(|| (a..b).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::parse_model;

    /// What is read when `tail` makes `y` of `h`, and a Relu stands for attention.
    fn rows(tail: &str) -> Vec<i64> {
        let m = parse_model(&format!(
            "<ir_version: 8, opset_import: [\"\" : 17]>
             g (float[2,9,4] x) => (y) <int64 first = {{0}}, int64[2] two = {{0, 1}}, int64[1] zero = {{0}},
              int64[1] one = {{1}}, int64[1] nine = {{9}}> {{ h0 = Relu (x) h = Sqrt (h0) {tail} }}"
        ))
        .unwrap();
        let mixing = m.graph.nodes().filter(|(_, n)| n.op.is("Relu")).map(|(i, _)| i).collect();
        let mut m = m;
        crate::infer::annotate(&mut m);
        rows_read(&m.graph, &mixing)
    }

    #[test]
    fn the_class_token_is_found() {
        assert_eq!(rows("y = Gather <axis = 1> (h, first)"), [0]);
        assert_eq!(rows("s = Slice (h, zero, one, one) y = Exp (s)"), [0]);
        assert_eq!(rows("a = Gather <axis = 1> (h, first) b = Gather <axis = -2> (h, two) y = Add (a, b)"), [0, 1]);
    }

    #[test]
    fn what_attention_depends_on_is_before_it() {
        let m = parse_model(
            "<ir_version: 8, opset_import: [\"\" : 17]>
             g (float[2,9,4] x) => (y) { a = Sqrt (x) h = Relu (a) s = Add (a, h) y = Exp (s) }",
        )
        .unwrap();
        let mixing = m.graph.nodes().filter(|(_, n)| n.op.is("Relu")).map(|(i, _)| i).collect();
        let names: Vec<&str> = values_before(&m.graph, &mixing).into_iter().map(|v| m.graph.name_of(v)).collect();
        assert_eq!(names, ["x", "a"]);
    }

    #[test]
    fn where_all_tokens_are_read_none_is_special() {
        assert_eq!(rows("y = ReduceMean <axes = [1]> (h)"), [0i64; 0]);
        assert_eq!(rows("s = Slice (h, one, nine, one) y = ReduceMean <axes = [1]> (s)"), [0i64; 0]);
        assert_eq!(rows("a = Gather <axis = 1> (h, first) y = Add (a, h)"), [0i64; 0]);
        // Channels are no tokens.
        assert_eq!(rows("y = Gather <axis = 2> (h, first)"), [0i64; 0]);
    }
}
