//! Nodes that compute nothing of the network proper: what they make follows from constants, sizes and integers alone, or is
//! read as indices, conditions and angles only, or is a norm's measure of its input. Codes would save nothing there, and could
//! change which element is picked, turn a phase by more than a step, or drown what is small in squares of what is large.

use std::collections::{BTreeMap, BTreeSet};

use super::places::places;
use crate::ir::{Class, DType, Dim, Graph, Node, NodeId, ValueId};

pub(super) const CONSTANT: &str = "it does not depend on what the model is fed";
pub(super) const INDICES: &str = "it computes indices, conditions or angles";
const POSITIONS: &str = "it is computed from positions, sizes or a mask alone";
const MEASURE: &str = "it measures what a norm divides by";
const PLACES: &str = "it computes where in a picture to look";
const LOGARITHMS: &str = "it computes with logarithms";
const COUNTED: &str = "how many elements it has depends on the data";

/// The nodes, with the reason.
pub(super) fn apart(g: &Graph) -> BTreeMap<NodeId, &'static str> {
    let mut found: BTreeMap<NodeId, &'static str> = indices(g).into_iter().map(|n| (n, INDICES)).collect();
    found.extend(measures(g).into_iter().map(|n| (n, MEASURE)));
    found.extend(positions(g).into_iter().map(|n| (n, POSITIONS)));
    found.extend(unfed(g).into_iter().map(|n| (n, CONSTANT)));
    logarithms(g).into_iter().for_each(|n| _ = found.entry(n).or_insert(LOGARITHMS));
    let places = places(g, |n| found.contains_key(&n));
    places.into_iter().for_each(|n| _ = found.entry(n).or_insert(PLACES));
    counted(g).into_iter().for_each(|n| _ = found.entry(n).or_insert(COUNTED));
    found
}

/// Nodes of arithmetic that lead to a Log, and those that lead on from one, as far as the next layer, Softmax or activation
/// function. A logarithm of what is near 0 is large, and sums of logarithms are small differences of such (Stirling's
/// formula, log-likelihoods, the inverse of a Sigmoid).
fn logarithms(g: &Graph) -> BTreeSet<NodeId> {
    let order = g.schedule();
    let carries = |n: &Node| n.is_arithmetic() || n.op.is_onnx() && n.is_move();
    let float = |v: &ValueId| g.value(*v).ty.as_ref().is_none_or(|t| t.dtype.is_float());
    let mut found: BTreeSet<NodeId> = order.iter().copied().filter(|id| g.node(*id).op.is("Log")).collect();
    let mut read: BTreeSet<ValueId> = BTreeSet::new();
    for id in order.iter().rev() {
        let n = g.node(*id);
        // What others compute with as well is theirs.
        let alone = |v: &ValueId| read.contains(v) && !g.is_output(*v) && g.use_count(*v) == 1;
        if found.contains(id) || (carries(n) && n.out().is_some_and(|v| alone(&v))) {
            found.insert(*id);
            read.extend(n.inputs.iter().flatten().filter(|v| float(v)));
        }
    }
    let mut made: BTreeSet<ValueId> = BTreeSet::new();
    for id in order {
        let n = g.node(id);
        if n.op.is("Log") || carries(n) && n.inputs.iter().flatten().any(|v| made.contains(v)) {
            made.extend(n.outputs.iter().flatten());
            found.insert(id);
        }
    }
    found
}

/// Nodes that make a list without channels whose length depends on the data: for example the scores of the boxes a detector
/// keeps.
fn counted(g: &Graph) -> BTreeSet<NodeId> {
    let mut values: BTreeSet<ValueId> = BTreeSet::new();
    let mut nodes = BTreeSet::new();
    for id in g.schedule() {
        let n = g.node(id);
        if n.counts_elements() || n.inputs.iter().flatten().any(|v| values.contains(v)) {
            values.extend(n.outputs.iter().flatten());
            let list = |v: &ValueId| {
                g.value(*v).ty.as_ref().is_some_and(|t| {
                    t.shape.as_ref().is_some_and(|s| matches!(s[..], [ref d] if !matches!(d, Dim::Known(_))))
                })
            };
            nodes.extend(n.out().filter(list).map(|_| id));
        }
    }
    nodes
}

/// Nodes whose results are the same, or follow from the sizes of the inputs, whatever these hold. A constant that is only
/// repeated for each sample is none of them: what is computed from it is computed for each sample.
pub(crate) fn unfed(g: &Graph) -> BTreeSet<NodeId> {
    let mut nodes = BTreeSet::new();
    let mut values: BTreeSet<ValueId> = BTreeSet::new();
    for id in g.schedule() {
        let n = g.node(id);
        if n.has_subgraph() || !n.op.is_onnx() || n.is_random() {
            continue;
        }
        let constant = |v: &ValueId| g.constant(*v).is_some();
        let settled = |v: &ValueId| constant(v) || values.contains(v);
        let sized = n.op.is("Shape") || n.op.is("Size");
        let repeated = n.is_move()
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

/// Nodes of float arithmetic that only leads to integers and truth values.
fn indices(g: &Graph) -> BTreeSet<NodeId> {
    let mut found: BTreeSet<NodeId> = BTreeSet::new();
    // An angle has no range that steps could be chosen for: it is read modulo a turn.
    let asks = |n: &Node| {
        let whole = |t: i64| i32::try_from(t).is_ok_and(|t| DType(t).is_int() || DType(t) == DType::BOOL);
        match n.op.name.as_str() {
            "Sin" | "Cos" => true,
            "Cast" => n.attrs.int("to").is_some_and(whole),
            _ => n.is_a(Class::Compare),
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
            && (n.is_arithmetic() || n.is_move() || turned(g, n, &found))
            && n.out().is_some_and(|v| float(&v))
            && !n.outputs.iter().flatten().any(open)
        {
            found.insert(id);
        }
    }
    found
}

/// A product with constant frequencies, all of which is angles.
fn turned(g: &Graph, n: &Node, found: &BTreeSet<NodeId>) -> bool {
    let angles = |v: ValueId| {
        !g.uses(v).is_empty()
            && g.uses(v).iter().all(|(u, _)| {
                let n = g.node(*u);
                n.op.is("Sin") || n.op.is("Cos") || found.contains(u)
            })
    };
    n.op.is("MatMul") && n.inputs.iter().flatten().any(|v| g.constant(*v).is_some()) && n.out().is_some_and(angles)
}

/// True for a type of whole numbers or truth values.
fn whole(g: &Graph, v: ValueId) -> bool {
    g.value(v).ty.as_ref().is_some_and(|t| t.dtype.is_int() || t.dtype == DType::BOOL)
}

/// Nodes of arithmetic whose results follow from integers, truth values and sizes alone: grids, weights of an interpolation,
/// masks. What is picked from a table by integers as they are fed is an embedding, and what a layer makes is the
/// network's.
fn positions(g: &Graph) -> BTreeSet<NodeId> {
    let mut nodes = BTreeSet::new();
    // Values that follow from integers, and of these the ones that a wave was made of.
    let mut values: BTreeSet<ValueId> = g.inputs().iter().copied().filter(|v| whole(g, *v)).collect();
    let mut waves: BTreeSet<ValueId> = BTreeSet::new();
    for id in g.schedule() {
        let n = g.node(id);
        if n.has_subgraph() || !n.op.is_onnx() || n.is_random() {
            continue;
        }
        let constant = |v: &ValueId| g.constant(*v).is_some();
        let inputs = || n.inputs.iter().flatten();
        let settled = n.op.is("Shape") || n.op.is("Size") || inputs().all(|v| constant(v) || values.contains(v));
        // As in `unfed`: what a repeated constant is computed with is computed for each sample.
        let repeated = n.is_move() && !n.op.is("Concat") && n.input(0).is_some_and(|v| constant(&v) && !whole(g, v));
        if !settled || repeated && n.inputs.len() > 1 && !inputs().all(constant) && !n.op.is("Gather") {
            continue;
        }
        let wave = inputs().any(|v| waves.contains(v)) || n.op.is("Sin") || n.op.is("Cos");
        let allowed = match n.op.name.as_str() {
            "Gather" | "GatherND" | "GatherElements" => {
                let table = n.input(0).is_some_and(|t| constant(&t) && !whole(g, t));
                !table || n.input(1).is_none_or(|i| !as_fed(g, i))
            }
            // Interpolation is a product with a table; features that an MLP makes of a wave are the network's.
            "MatMul" => !wave && !biased(g, n),
            "OneHot" | "Gemm" | "Conv" | "ConvTranspose" | "LayerNormalization" | "Softmax" | "Gelu" | "LSTM"
            | "GRU" => false,
            _ => true,
        };
        if allowed {
            values.extend(n.outputs.iter().flatten());
            if wave {
                waves.extend(n.outputs.iter().flatten());
            }
            nodes.insert(id);
        }
    }
    // What follows from constants alone is told apart by `unfed`.
    nodes.retain(|id: &NodeId| !g.node(*id).inputs.iter().flatten().all(|v| g.constant(*v).is_some()));
    nodes
}

/// True for integers as a graph input has them, moved or converted.
fn as_fed(g: &Graph, mut v: ValueId) -> bool {
    while let Some(n) = g.producer(v).map(|p| g.node(p)) {
        let offset = n.op.is("Add") && n.inputs.iter().flatten().any(|v| g.constant(*v).is_some());
        let on = n.is_move() || n.op.is("Cast") || offset;
        let Some(x) = n.inputs.iter().flatten().copied().find(|v| g.constant(*v).is_none()).filter(|_| on) else {
            return false;
        };
        v = x;
    }
    g.inputs().contains(&v)
}

fn biased(g: &Graph, n: &Node) -> bool {
    let Some(y) = n.out() else { return false };
    let vector = |v: &ValueId| g.constant(*v).is_some_and(|t| t.len() > 1);
    g.uses(y).iter().any(|(u, _)| g.node(*u).op.is("Add") && g.node(*u).inputs.iter().flatten().any(vector))
}

/// Nodes from the square of a value to the root of its mean, or of its sum, along an axis.
fn measures(g: &Graph) -> BTreeSet<NodeId> {
    let mut nodes = BTreeSet::new();
    let two = |v: ValueId| g.constant(v).and_then(|t| t.as_scalar()) == Some(2.0);
    let square = |id: NodeId| {
        let n = g.node(id);
        let same = n.input(0).is_some() && n.input(0) == n.input(1);
        n.op.is("Mul") && same || n.op.is("Pow") && n.input(1).is_some_and(two)
    };
    for id in g.schedule() {
        let n = g.node(id);
        let own = n.op.is("ReduceL2") || n.op.is("ReduceSumSquare");
        let sum = n.op.is("ReduceMean") || n.op.is("ReduceSum");
        let made = n.input(0).and_then(|x| g.producer(x)).filter(|s| sum && square(*s));
        let Some(mut at) = n.out().filter(|_| own || made.is_some()) else { continue };
        let mut chain = vec![id];
        let mut root = n.op.is("ReduceL2");
        // A root, of what a small number may be added to or bound, and what one divided by it is.
        while let [(user, slot)] = g.uses(at)[..] {
            if slot == usize::MAX {
                break;
            }
            let n = g.node(user);
            let scalar = |i: usize| n.input(i).and_then(|v| g.constant(v)).is_some_and(|t| t.len() == 1);
            let on = match n.op.name.as_str() {
                "Sqrt" | "Reciprocal" | "Cast" | "Relu" => true,
                "Add" | "Max" | "Mul" => scalar(1 - slot.min(1)),
                "Div" => scalar(1 - slot.min(1)),
                "Clip" => slot == 0,
                "Pow" => slot == 0 && scalar(1),
                _ => false,
            };
            if !on {
                break;
            }
            root |= n.op.is("Sqrt") || n.op.is("Pow");
            chain.push(user);
            let Some(y) = n.out() else { break };
            at = y;
        }
        if root {
            // A square that others read as well is a value like any other.
            nodes.extend(made.filter(|s| g.node(*s).out().is_some_and(|v| g.use_count(v) == 1)));
            nodes.extend(chain);
        }
    }
    nodes
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
            ("far", POSITIONS),
            ("log", POSITIONS),
            ("bucket", POSITIONS),
        ];
        assert_eq!(found, want.map(|(n, why)| (n.to_owned(), why)));
    }

    #[test]
    fn sums_of_logarithms_are_left_alone() {
        let found = named(
            r#"<ir_version: 8, opset_import: ["" : 17]>
            g (float[2,4] x) => (float[2,4] y, float[2,4] z)
            <float one = {1.0}, float[4] k = {0, 1, 2, 3}, float two = {2.0}>
            {
                s = Sigmoid (x)
                rest = Sub (one, s)
                low = Clip (rest, two)
                log = Log (low)
                part = Mul (log, k)
                y = Softmax (part)
                z = Mul (s, two)
            }"#,
        );
        assert_eq!(found, ["rest", "low", "log", "part"].map(|n| (n.to_owned(), LOGARITHMS)));
    }

    #[test]
    fn grids_of_integers_are_left_alone_and_embeddings_are_not() {
        let found = named(
            r#"<ir_version: 8, opset_import: ["" : 17]>
            g (float[1,6,4] x, int64[1,2] sides, int64[1,6] ids) => (float[1,6,4] y, float[1,6,2] e)
            <float two = {2.0}, float[2,4] grid = {1,2,3,4,5,6,7,8}, float[3,2] words = {1,2,3,4,5,6}, int64[3] shape = {1, 1, 4},
             float[2,2] w = {1,2,3,4}, float[2] b = {1,2}>
            {
                real = Cast <to = 1> (sides)
                half = Div (real, two)
                flat = MatMul (half, grid)
                place = Reshape (flat, shape)
                y = Add (x, place)
                word = Gather (words, ids)
                h = MatMul (word, w)
                e = Add (h, b)
            }"#,
        );
        assert_eq!(found, ["real", "half", "flat", "place"].map(|n| (n.to_owned(), POSITIONS)));
    }

    #[test]
    fn what_a_norm_divides_by_and_angles_are_left_alone() {
        let found = named(
            r#"<ir_version: 8, opset_import: ["" : 17]>
            g (float[1,6,4] x, float[1,6,2] at) => (float[1,6,4] y, float[1,6,4] z, float[1,6,4] sq)
            <float two = {2.0}, float eps = {1e-6}, float[2,4] freq = {1,2,3,4,5,6,7,8}, float turn = {6.2831853}>
            {
                s = Mul (x, x)
                m = ReduceMean <axes = [-1]> (s)
                me = Add (m, eps)
                r = Sqrt (me)
                y = Div (x, r)
                f = MatMul (at, freq)
                a = Mul (f, turn)
                z = Sin (a)
                sq = Pow (y, two)
            }"#,
        );
        let want = [("s", MEASURE), ("m", MEASURE), ("me", MEASURE), ("r", MEASURE), ("f", INDICES), ("a", INDICES)];
        assert_eq!(found, want.map(|(n, why)| (n.to_owned(), why)));
    }
}
