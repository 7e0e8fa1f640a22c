//! Values that hold the numbers masks are made of.
//!
//! A range from minus infinity, or from -10000, leaves no steps for what is not masked: such a value is never made codes,
//! whatever reads it.

use std::collections::BTreeSet;

use crate::ir::masks::{HIDDEN, NEVER_MEASURED};
use crate::ir::{Class, Graph, Node, NodeId, Tensor, ValueId};

/// True for a constant that masks are made of.
pub(super) fn is_low(t: &Tensor) -> bool {
    t.dtype.is_float() && t.to_f32s().is_some_and(|x| x.iter().any(|x| *x <= NEVER_MEASURED || !x.is_finite()))
}

/// Nodes between a layer and the Softmax that its mask is for.
const TO_SOFTMAX: usize = 8;

/// True for a constant that is added to `y` to hide entries and is no bias that a layer learned: very far below, or any number
/// that masks are made of in front of a Softmax.
pub(super) fn masks(g: &Graph, t: &Tensor, y: ValueId) -> bool {
    let Some(x) = t.to_f32s() else { return false };
    let far = x.iter().any(|x| !x.is_finite() || *x <= HIDDEN);
    far || is_low(t) && is_softmaxed(g, y)
}

/// Whether a Softmax reads a value, moved, scaled, shifted or masked.
fn is_softmaxed(g: &Graph, v: ValueId) -> bool {
    let mut todo = vec![v];
    for _ in 0..TO_SOFTMAX {
        let readers: Vec<&Node> = todo
            .iter()
            .flat_map(|v| g.uses(*v))
            .filter(|(_, slot)| *slot != usize::MAX)
            .map(|(n, _)| g.node(n))
            .collect();
        if readers.iter().any(|n| n.op.is("Softmax")) {
            return true;
        }
        let goes_on = |n: &&Node| n.is_move() || n.is_a(Class::Unary) || n.is_a(Class::Broadcast);
        todo = readers.into_iter().filter(goes_on).filter_map(Node::out).collect();
        todo.sort();
        todo.dedup();
    }
    false
}

/// A layer's bias, however low its entries are: a constant of one axis that is added to a product with weights.
fn is_bias(g: &Graph, n: &Node) -> bool {
    let weighted = |x: ValueId| {
        let made = g.producer(x).map(|p| g.node(p)).filter(|p| p.is_a(Class::Product));
        made.and_then(|p| p.input(1)).is_some_and(|w| g.constant(w).is_some())
    };
    let of = |(b, x): (ValueId, ValueId)| {
        let one_axis = |t: &&Tensor| t.dims.last().is_some_and(|n| *n as usize == t.len());
        weighted(x) && g.constant(b).filter(one_axis).is_some_and(|t| !masks(g, t, x))
    };
    let both = n.input(0).zip(n.input(1)).filter(|_| n.op.is("Add"));
    both.is_some_and(|(a, b)| of((a, b)) || of((b, a)))
}

/// What is made of such constants alone, or is one but for its size, which only a run knows.
struct Low<'g> {
    g: &'g Graph,
    made: BTreeSet<ValueId>,
}

impl<'g> Low<'g> {
    fn of(g: &'g Graph) -> Low<'g> {
        let mut low = Low { g, made: BTreeSet::new() };
        for id in g.schedule() {
            let n = g.node(id);
            let hides = match n.op.name.as_str() {
                _ if !n.op.is_onnx() => false,
                "ConstantOfShape" => n.attrs.tensor("value").is_some_and(is_low),
                _ => (n.is_move() || n.op.is("Trilu")) && n.input(0).is_some_and(|x| low.hides(x)),
            };
            if hides {
                low.made.extend(n.outputs.iter().flatten());
            }
        }
        low
    }

    fn hides(&self, v: ValueId) -> bool {
        self.made.contains(&v) || self.g.constant(v).is_some_and(is_low)
    }
}

/// Operands that hand the values of a mask on.
fn carried(n: &Node) -> &[Option<ValueId>] {
    let data = match n.op.name.as_str() {
        _ if !n.op.is_onnx() => 0,
        "Where" => return n.inputs.get(1..).unwrap_or_default(),
        "Add" | "Sub" | "Mul" | "Div" | "Max" | "Min" | "Sum" | "Concat" => n.inputs.len(),
        "Cast" | "CastLike" | "Neg" | "Abs" | "Trilu" => 1,
        _ if n.is_move() => 1,
        _ => 0,
    };
    &n.inputs[..data.min(n.inputs.len())]
}

/// Float inputs that are only ever added to what a Softmax reads, moved or converted before: masks, in which minus infinity
/// hides.
pub fn mask_inputs(g: &Graph) -> Vec<ValueId> {
    let float = |v: &ValueId| g.value(*v).ty.as_ref().is_some_and(|t| t.dtype.is_float());
    g.inputs().iter().copied().filter(float).filter(|v| hides_only(g, *v)).collect()
}

fn compares(n: &Node) -> bool {
    n.is_a(Class::Compare)
}

/// True if a value goes nowhere but into the scores of attention.
fn hides_only(g: &Graph, v: ValueId) -> bool {
    let (mut todo, mut seen, mut added) = (vec![v], BTreeSet::new(), false);
    while let Some(v) = todo.pop() {
        if g.is_output(v) {
            return false;
        }
        for (id, slot) in g.uses(v) {
            if slot == usize::MAX {
                return false;
            }
            if !seen.insert(id) {
                continue;
            }
            let n = g.node(id);
            match n.op.name.as_str() {
                _ if !n.op.is_onnx() => return false,
                // Of a quantized model: the codes of scores.
                "Softmax" | "QuantizeLinear" => {}
                // Its size may be asked for, and a mask may be compared, also with the largest of its row.
                "Shape" | "ReduceMax" => continue,
                _ if compares(n) => continue,
                "Sub"
                    if n.out()
                        .is_some_and(|y| !g.is_output(y) && g.uses(y).iter().all(|(r, _)| compares(g.node(*r)))) =>
                {
                    continue;
                }
                "Attention" if slot == 3 => added = true,
                "Add" => {
                    added = true;
                    todo.extend(n.outputs.iter().flatten());
                }
                "Cast" => todo.extend(n.outputs.iter().flatten()),
                "Where" if slot > 0 => todo.extend(n.outputs.iter().flatten()),
                _ if n.is_move() && (slot == 0 || n.op.is("Concat")) => todo.extend(n.outputs.iter().flatten()),
                _ => return false,
            }
        }
    }
    added
}

/// Values that only become a mask: `1 - m` in `(1 - m) * -10000`. An error of theirs would be as many times as large.
fn becoming(g: &Graph, low: &Low) -> BTreeSet<ValueId> {
    let mut found = BTreeSet::new();
    for id in g.schedule().into_iter().rev() {
        let n = g.node(id);
        let Some(v) = n.out().filter(|v| n.outputs.len() == 1 && !g.is_output(*v)) else { continue };
        let only = |(user, slot): (NodeId, usize)| {
            let n = g.node(user);
            let grows = n.op.is("Mul") && slot < 2 && n.input(1 - slot).is_some_and(|c| low.hides(c));
            grows || slot < carried(n).len() && n.out().is_some_and(|y| found.contains(&y))
        };
        let uses = g.uses(v);
        if !uses.is_empty() && uses.into_iter().all(only) {
            found.insert(v);
        }
    }
    found
}

/// The values that may hold a mask, alone or added to something, and those that become one.
pub(super) fn hidden(g: &Graph) -> BTreeSet<ValueId> {
    let low = Low::of(g);
    let mut found: BTreeSet<ValueId> = mask_inputs(g).into_iter().collect();
    for id in g.schedule() {
        let n = g.node(id);
        // A maximum is not lowered by a bound.
        let made = matches!(n.op.name.as_str(), "Add" | "Sub" | "Mul" | "Where" | "Concat") && !is_bias(g, n);
        // Heads that are mixed after the mask: a weighted sum of what is hidden hides.
        let mixed = n.is_a(Class::Product) && n.input(1).is_some_and(|w| g.constant(w).is_some());
        let mixed = mixed && n.input(0).is_some_and(|x| found.contains(&x));
        if mixed || carried(n).iter().flatten().any(|v| found.contains(v) || made && low.hides(*v)) {
            found.extend(n.outputs.iter().flatten());
        }
    }
    found.extend(becoming(g, &low));
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::parse_model;

    #[test]
    fn inputs_that_only_mask_are_told_from_others() {
        let m = parse_model(
            r#"<ir_version: 8, opset_import: ["" : 17]>
            g (float[1,4] s, float[4] mask, float[4] read, float[4] scaled, float[4] given, int64[4] whole) => (float[1,4] p, float[4] given_out, float[1,4] r)
            <int64[1] zero = {0}>
            {
                row = Unsqueeze (mask, zero)
                both = Concat <axis = 0> (row)
                a = Add (s, both)
                b = Add (a, read)
                c = Mul (b, scaled)
                cast = Cast <to = 1> (whole)
                d = Add (c, cast)
                e = Add (d, given)
                given_out = Identity (given)
                r = Relu (read)
                p = Softmax <axis = -1> (e)
            }"#,
        )
        .unwrap();
        let names = |m: &crate::ir::Model| {
            mask_inputs(&m.graph).into_iter().map(|v| m.graph.name_of(v).to_owned()).collect::<Vec<_>>()
        };
        // All that is added is multiplied after, but for the last ones.
        assert!(names(&m).is_empty(), "{:?}", names(&m));
        let plain = parse_model(
            r#"<ir_version: 8, opset_import: ["" : 17]>
            g (float[1,4] s, float[4] mask, float[4] read, float[4] given) => (float[1,4] p, float[4] given_out, float[1,4] r)
            <int64[1] zero = {0}, bool[4] keep = {1, 1, 1, 0}, float two = {2.0}>
            {
                q = Mul (s, two)
                row = Unsqueeze (mask, zero)
                a = Add (q, row)
                b = Add (a, read)
                e = Add (given, b)
                w = Where (keep, e, two)
                given_out = Identity (given)
                r = Relu (read)
                p = Softmax <axis = -1> (w)
            }"#,
        )
        .unwrap();
        assert_eq!(names(&plain), ["mask"]);
        assert!(hidden(&plain.graph).contains(&plain.graph.find("a").unwrap()));
    }

    #[test]
    fn a_mask_of_open_size_is_one() {
        let m = parse_model(
            r#"<ir_version: 8, opset_import: ["" : 17]>
            g (float[n,n] s, int64[2] size) => (float[n,n] p, float[n,n] q)
            <int64 one = {1}, float[1,1] low = {-1e9}, float half = {0.5}>
            {
                full = ConstantOfShape <value = float[1] {-1e9}> (size)
                upper = Trilu (full, one)
                a = Add (s, upper)
                p = Softmax <axis = -1> (a)
                mild = ConstantOfShape <value = float[1] {-9.0}> (size)
                b = Add (s, mild)
                wide = Expand (low, size)
                c = Sub (b, wide)
                q = Softmax <axis = -1> (c)
            }"#,
        )
        .unwrap();
        let found = hidden(&m.graph);
        let holds = |name: &str| found.contains(&m.graph.find(name).unwrap());
        assert_eq!(["a", "b", "c"].map(holds), [true, false, true]);
    }

    #[test]
    fn heads_that_are_mixed_after_a_mask_hold_it() {
        let m = parse_model(
            r#"<ir_version: 8, opset_import: ["" : 17]>
            g (float[4,2] s) => (float[4,2] after, float[4,2] before)
            <bool[4,1] keep = {1, 1, 1, 0}, float low = {-1e9}, float[2,2] w = {1, 2, 3, 4}>
            {
                masked = Where (keep, s, low)
                after = MatMul (masked, w)
                before = MatMul (s, w)
            }"#,
        )
        .unwrap();
        let found = hidden(&m.graph);
        assert_eq!(
            ["masked", "after", "before"].map(|n| found.contains(&m.graph.find(n).unwrap())),
            [true, true, false]
        );
    }
}
