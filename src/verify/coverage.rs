//! How much of a model computes on integers.
//!
//! A MatMul, Gemm, Conv or attention product is covered when both operands come from DequantizeLinear (moves between do
//! not matter) or from integer codes (Log-Int-Softmax weights held in float). Integer operators are covered as they are.
//! Recurrent layers, and norms, Softmax and ConvTranspose that read floats, count as what they are: float. What of these reads
//! codes computes in float *between* codes, which a runtime may or may not fuse; they are counted apart.
//! What does not depend on what the model is fed is not counted. What computes in the bodies of If, Loop and Scan counts as
//! float: bodies are left as they are.

use std::collections::HashSet;

use super::report::{Coverage, OpCoverage};
use crate::infer;
use crate::ir::{AttrValue, Class, Graph, Model, Node, Op, ValueId};
use crate::onnx;
use crate::plan::Island;
use crate::plan::apart::unfed;

/// Counts covered compute operators and names the others.
pub fn measure(model: &Model) -> (Coverage, Vec<Island>) {
    let g = &model.graph;
    let shapes = infer::shapes(model);
    let mut c = Coverage::default();
    let mut islands = Vec::new();
    let unfed = unfed(g);
    for id in g.schedule().into_iter().filter(|id| !unfed.contains(id)) {
        let n = g.node(id);
        let name = n.op.name.as_str();
        if n.has_subgraph() {
            let held = format!("it is in the body of {} `{}`, and bodies stay as they are", n.op, g.label(n));
            inside(n, &mut |node, op| {
                c.by_op.entry(op.to_owned()).or_insert(OpCoverage { covered: 0, total: 0 }).total += 1;
                c.total += 1;
                islands.push(Island { node, op: op.to_owned(), reason: held.clone() });
            });
        }
        let is_int = |v: ValueId| shapes.dtype(v).is_some_and(|d| d.is_int());
        let operands: &[usize] = match name {
            "MatMul" | "Gemm" | "Conv" | "DeformConv" if n.op.is_onnx() => &[0, 1],
            "LSTM" | "GRU" | "RNN" if n.op.is_onnx() => &[0, 1, 2],
            "MatMulInteger" | "ConvInteger" | "QLinearMatMul" | "QLinearConv" if n.op.is_onnx() => &[],
            _ if !computes(n) => continue,
            _ if n.op.is_onnx()
                && (weighs_by_octaves(g, n) || n.input(0).is_some_and(|v| from_codes(g, v, &is_int))) =>
            {
                *c.between.entry(name.to_owned()).or_default() += 1;
                continue;
            }
            _ => &[0],
        };
        let bad: Vec<ValueId> =
            operands.iter().filter_map(|i| n.input(*i)).filter(|v| !from_codes(g, *v, &is_int)).collect();
        let e = c.by_op.entry(name.to_owned()).or_insert(OpCoverage { covered: 0, total: 0 });
        e.total += 1;
        c.total += 1;
        if bad.is_empty() {
            e.covered += 1;
            c.covered += 1;
        } else {
            let names: Vec<String> = bad.iter().map(|v| format!("`{}`", g.name_of(*v))).collect();
            islands.push(Island {
                node: g.label(n),
                op: name.to_owned(),
                reason: format!(
                    "{} {} it in float",
                    names.join(" and "),
                    if names.len() == 1 { "reaches" } else { "reach" }
                ),
            });
        }
    }
    (c, islands)
}

/// True for operators that compute more than element by element, and for every operator of another domain but what is made
/// of integers there.
fn computes(n: &Node) -> bool {
    if n.op.is_onnx() {
        return matches!(n.class(), Some(Class::Product | Class::Compound | Class::Norm | Class::Softmax));
    }
    let op = &n.op.name;
    !(op.starts_with("QLinear") || op.ends_with("Integer") || op.ends_with("QuantizeLinear"))
}

/// How many operators in bodies compute, and the node that holds the first: what `compile` cannot reach.
pub fn in_bodies(g: &Graph) -> Option<(usize, String, Op)> {
    let mut first = None;
    let mut count = 0;
    for n in g.schedule().into_iter().map(|id| g.node(id)).filter(|n| n.has_subgraph()) {
        inside(n, &mut |_, _| {
            count += 1;
            first.get_or_insert_with(|| (g.label(n), n.op.clone()));
        });
    }
    first.map(|(node, op)| (count, node, op))
}

/// Tells `found` of what computes in a node's bodies, and in the bodies inside these.
fn inside(n: &Node, found: &mut impl FnMut(String, &str)) {
    for a in n.attrs.0.iter().filter(|a| matches!(a.value, AttrValue::Graph(_))) {
        // A body that does not open was refused when the model was read.
        let Ok((g, _)) = onnx::open_body(n, &a.name) else { continue };
        for id in g.schedule() {
            let inner = g.node(id);
            if computes(inner) {
                found(g.label(inner), &inner.op.name);
            }
            if inner.has_subgraph() {
                inside(inner, found);
            }
        }
    }
}

/// True for what Round makes, shifted by a constant or not.
fn rounded(g: &Graph, v: ValueId) -> bool {
    let Some(n) = g.producer(v).map(|p| g.node(p)) else { return false };
    let shifted = n.op.is("Add") && n.input(1).is_some_and(|c| g.constant(c).is_some());
    n.op.is("Round") || shifted && n.input(0).and_then(|x| g.producer(x)).is_some_and(|p| g.node(p).op.is("Round"))
}

/// How far is looked back from a Softmax.
const MOST_STEPS: usize = 16;

/// True for a Softmax over codes that count octaves in whole steps: read back with ln 2 over their number for a scale, and only
/// bent, cut off and masked since. Its weights are as few numbers as there are codes: Log-Int-Softmax.
fn weighs_by_octaves(g: &Graph, softmax: &Node) -> bool {
    if !softmax.op.is("Softmax") {
        return false;
    }
    let mut v = softmax.input(0);
    for _ in 0..MOST_STEPS {
        let Some(n) = v.and_then(|v| g.producer(v)).map(|p| g.node(p)).filter(|n| n.op.is_onnx()) else { return false };
        v = match n.op.name.as_str() {
            "DequantizeLinear" => {
                let scale = n.input(1).and_then(|s| g.constant(s)).and_then(|t| t.to_f32s());
                let octaves = |s: &[f32]| s.iter().all(|s| is_whole(std::f32::consts::LN_2 / s));
                return scale.is_some_and(|s| !s.is_empty() && octaves(&s));
            }
            "LeakyRelu" | "Clip" => n.input(0),
            // The cut at the last code is made of the same codes.
            "Min" if n.input(1).and_then(|c| g.producer(c)).is_some_and(|p| g.node(p).op.is("DequantizeLinear")) => {
                n.input(0)
            }
            "Min" | "Max" | "Add" | "Sub" if n.input(1).is_some_and(|c| fixed(g, c, 4)) => n.input(0),
            "Where" if n.input(2).is_some_and(|c| fixed(g, c, 4)) => n.input(1),
            _ if n.is_move() => n.input(0),
            _ => return false,
        };
    }
    false
}

/// True for a constant, or what at most so many nodes make of constants.
fn fixed(g: &Graph, v: ValueId, deep: usize) -> bool {
    let made = |n: &Node| !n.inputs.is_empty() && n.inputs.iter().flatten().all(|x| fixed(g, *x, deep - 1));
    g.constant(v).is_some() || deep > 0 && g.producer(v).is_some_and(|p| made(g.node(p)))
}

/// Steps of an octave, of which there are four at most, or twice as many where they are bent.
fn is_whole(steps: f32) -> bool {
    (0.9..8.1).contains(&steps) && (steps - steps.round()).abs() < 1e-4
}

/// Where to look on for whether a value holds codes.
enum Codes {
    Yes,
    No,
    /// If all of these do.
    If(Vec<ValueId>),
}

/// True if the value holds codes: read back by DequantizeLinear, or integers kept in float, moved or not.
fn from_codes(g: &Graph, v: ValueId, is_int: &impl Fn(ValueId) -> bool) -> bool {
    // Each value is asked once, however many Concats it reaches.
    let (mut seen, mut left) = (HashSet::from([v]), vec![v]);
    while let Some(v) = left.pop() {
        match one_step(g, v, is_int) {
            Codes::Yes => {}
            Codes::No => return false,
            Codes::If(more) => left.extend(more.into_iter().filter(|v| seen.insert(*v))),
        }
    }
    true
}

fn one_step(g: &Graph, v: ValueId, is_int: &impl Fn(ValueId) -> bool) -> Codes {
    let Some(n) = g.producer(v).map(|p| g.node(p)) else { return Codes::No };
    let first = || n.input(0).map_or(Codes::No, |x| Codes::If(vec![x]));
    match n.op.name.as_str() {
        "DequantizeLinear" => Codes::Yes,
        "Softmax" if weighs_by_octaves(g, n) => Codes::Yes,
        "Cast" if n.input(0).is_some_and(is_int) => Codes::Yes,
        // Codes of more than 8 bits are whole numbers in float, cut off at the ends of their range.
        "Round" => Codes::Yes,
        "Clip" if n.input(0).is_some_and(|x| rounded(g, x)) => Codes::Yes,
        // Log-Int-Softmax: weights rounded to the row's precision (w + M) - M, masked, or taken from a table.
        "Sub" | "Add" => first(),
        // A scale per channel, written out.
        "Mul" if n.input(1).is_some_and(|f| g.constant(f).is_some()) => first(),
        "Where" => n.input(1).map_or(Codes::No, |x| Codes::If(vec![x])),
        "Gather" if n.input(1).is_some_and(is_int) && n.input(0).is_some_and(|t| g.constant(t).is_some()) => Codes::Yes,
        "Floor" | "Clip" | "Mul" | "Min" | "LeakyRelu" | "Softmax" if n.origin_is("quantize-attention") => first(),
        "Concat" => Codes::If(n.inputs.iter().flatten().copied().collect()),
        _ if n.is_move() => first(),
        _ => Codes::No,
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::text::parse_model;

    #[test]
    fn products_in_bodies_count_as_float() {
        // A body in a body: the wire form of a graph is what a model holds in its field 7.
        let graph = |text: &str| -> String {
            let m = parse_model(&format!("<ir_version: 8, opset_import: [\"\" : 17]>\n{text}")).unwrap();
            let bytes = onnx::encode(crate::ir::validate::validate(&m).unwrap());
            let whole = Wrapped::decode(&bytes[..]).unwrap();
            whole.graph.iter().map(|b| format!("{b:02x}")).collect()
        };
        let deep = graph("d (float[4,4] w) => (float[4,4] p) { p = MatMul (w, w) }");
        let body = graph(&format!(
            "b (int64 i, bool go, float[4,4] s) => (bool on, float[4,4] t) {{
                on = Identity (go)
                r = Scan <num_scan_inputs = 0, body: graph = \"{deep}\"> (s)
                t = MatMul (r, s)
            }}"
        ));
        let m = parse_model(&format!(
            "<ir_version: 8, opset_import: [\"\" : 17]>
            g (float[4,4] x, float[4,4] k) => (float[4,4] z) {{
                y = Loop <body: graph = \"{body}\"> (,, x)
                z = MatMul (y, k)
            }}"
        ))
        .unwrap();
        let (c, islands) = measure(&m);
        assert_eq!((c.covered, c.total, c.by_op["MatMul"].total), (0, 3, 3));
        let held: Vec<_> = islands.iter().map(|i| (&i.node[..], i.reason.contains("body of Loop `y`"))).collect();
        assert_eq!(held, [("p", true), ("t", true), ("z", false)]);
    }

    #[test]
    fn joined_codes_are_looked_at_once_each() {
        // Each value is both halves of the next: 2^60 ways lead to the first.
        let halves: String = (1..=60).map(|i| format!("v{i} = Concat <axis = 0> (v{}, v{})\n", i - 1, i - 1)).collect();
        let of = |first: &str| {
            let text = format!(
                "<ir_version: 8, opset_import: [\"\" : 17]>
                g (float[n,4] x, uint8[n,4] q) => (float[m,4] y)
                <float step = {{0.5}}, uint8 zero = {{7}},
                 int8[4,4] k = {{1,2,3,4, 1,2,3,4, 1,2,3,4, 1,2,3,4}}>
                {{ v0 = {first}
                   {halves}
                   u = DequantizeLinear (k, step)
                   y = MatMul (v60, u) }}"
            );
            measure(&parse_model(&text).unwrap()).0.covered
        };
        assert_eq!((of("DequantizeLinear (q, step, zero)"), of("Mul (x, step)")), (1, 0));
    }

    #[test]
    fn codes_of_16_bits_are_codes() {
        let m = parse_model(
            r#"<ir_version: 8, opset_import: ["" : 17]>
            g (float[2,4] x) => (float[2,4] a, float[2,4] b)
            <float step = {0.5}, float zero = {7.0}, float low = {0.0}, float high = {65535.0}, float[4] gain = {1,1,1,1}>
            {
                scaled = Div (x, step)
                whole = Round (scaled)
                moved = Add (whole, zero)
                held = Clip (moved, low, high)
                back = Sub (held, zero)
                value = Mul (back, step)
                a = LayerNormalization (value, gain)
                cut = Clip (scaled, low, high)
                b = LayerNormalization (cut, gain)
            }"#,
        )
        .unwrap();
        let (c, islands) = measure(&m);
        assert_eq!(c.between["LayerNormalization"], 1);
        assert_eq!(islands.iter().map(|i| &i.reason[..]).collect::<Vec<_>>(), ["`cut` reaches it in float"]);
    }

    /// A model, of which only the graph is looked at.
    #[derive(Clone, PartialEq, Message)]
    struct Wrapped {
        #[prost(bytes = "vec", tag = "7")]
        graph: Vec<u8>,
    }
}
