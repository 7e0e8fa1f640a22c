use super::common::{bypass, commit, is_plain, is_read};
use super::{Context, Numerics, Outcome, Pass, PassError};
use crate::infer::{Given, ShapeMap, View};
use crate::ir::{DType, Graph, Node, NodeId, Tensor, ValueId};
use crate::rewrite::{Patch, Ref};

/// # What it does
/// Removes operators that hand their input on unchanged.
///
/// # When it fires
/// Identity (initializers shared through one included), Dropout outside of training, Cast to the type the value has,
/// Reshape, Flatten, Expand, Slice and Tile that keep the shape, Transpose in the given order, Concat of one, Pad by
/// nothing, Squeeze and Unsqueeze of no axes, Mul and Div by the number 1, Sub of 0, Add of 0 to integers and of -0.0 to floats,
/// Equal of a boolean and true; two Casts of which the first loses nothing become one.
/// Outputs of the graph are left: their name must stay.
///
/// # Why it is correct
/// Each hands on the same bits in the same shape, which inference has proved. `x + 0.0` is *not* among them: it turns
/// -0.0 into 0.0.
///
/// # Numerics
/// Bit-exact.
///
/// # Before / after
/// ```text
/// g = Identity (gamma)
/// y = Mul (x, g)               y = Mul (x, gamma)
/// ```
///
/// # Source
/// Exporters; IEEE 754 for the arithmetic.
pub struct Identity;

impl Pass for Identity {
    fn id(&self) -> &'static str {
        "identity"
    }

    fn summary(&self) -> &'static str {
        "Removes operators that change nothing."
    }

    fn numerics(&self) -> Numerics {
        Numerics::BitExact
    }

    fn run(&self, model: &mut Context) -> Result<Outcome, PassError> {
        let mut out = Outcome::default();
        let map = model.shapes();
        for id in model.graph.schedule() {
            // A patch of this pass may have erased it.
            if model.graph.try_node(id).is_none() || !is_plain(&model.graph, id) {
                continue;
            }
            if let Some(x) = unchanged(&model.graph, id, model.opset(), &map) {
                bypass(self.id(), id, x, model, &mut out)?;
            } else if let Some((x, first)) = lossless_cast(&model.graph, id, &map) {
                let g = &model.graph;
                let Some(old) = g.node(id).out() else { continue };
                if map.dtype(x) == map.dtype(old) {
                    bypass(self.id(), id, x, model, &mut out)?;
                } else if is_read(g, old) || g.is_output(old) {
                    let mut patch = Patch::new(self.id());
                    patch.set_input(id, 0, Some(Ref::Old(x)));
                    let alone = g.use_count(first) == 1;
                    if let (true, Some(p)) = (alone, g.producer(first)) {
                        patch.erase(p);
                    }
                    commit(patch, model, &mut out)?;
                }
            }
        }
        Ok(out)
    }
}

/// The input a node hands on unchanged.
fn unchanged(g: &Graph, id: NodeId, opset: i64, map: &ShapeMap) -> Option<ValueId> {
    let node = g.node(id);
    let view = View::new(node, opset, map);
    let (x, y) = (node.input(0)?, node.out()?);
    let same = |x: ValueId| map.same_shape(x, y) && map.dtype(x).is_some() && map.dtype(x) == map.dtype(y);
    // The operand beside a constant of `neutral`.
    let either = |neutral: f32, minus: bool| {
        let b = node.input(1)?;
        let beside = |v: ValueId, c: ValueId| same(v) && all_are(map.constant(c), neutral, minus);
        if beside(x, b) { Some(x) } else { beside(b, x).then_some(b) }
    };
    let handed_on = match &node.op.name[..] {
        "Identity" => true,
        "Dropout" => {
            let training = opset >= 12 && view.has(2) && view.ints(2).is_none_or(|t| t != [0]);
            let mask_read = node.output(1).is_some_and(|m| g.use_count(m) > 0);
            !training && !mask_read && node.attrs.int("is_test") != Some(0)
        }
        "Cast" => map.dtype(x).is_some() && map.dtype(x) == map.dtype(y),
        "Reshape" | "Flatten" | "Expand" | "Tile" => same(x),
        "Slice" => same(x) && steps_are_one(&view),
        "Transpose" => match node.attrs.ints("perm") {
            Some(p) => p.iter().enumerate().all(|(i, a)| i as i64 == *a),
            None => map.rank(x).is_some_and(|r| r < 2),
        },
        "Concat" => node.inputs.len() == 1,
        "Pad" => view.list("pads", 1).or(Vec::new()).is_some_and(|p| !p.is_empty() && p.iter().all(|n| *n == 0)),
        "Squeeze" | "Unsqueeze" => matches!(view.list("axes", 1), Given::Known(a) if a.is_empty()),
        // A gain of ones says what the model is: an untrained LayerNorm has one.
        "Mul" => return either(1.0, false).filter(|x| !is_gain(node, *x, map)),
        "Div" => same(x) && all_are(map.constant(node.input(1)?), 1.0, false),
        "Sub" => same(x) && all_are(map.constant(node.input(1)?), 0.0, false),
        // The zero that changes no float: -0.0 + -0.0 is -0.0.
        "Add" => return either(0.0, true),
        "Equal" if map.dtype(x) == Some(DType::BOOL) => return either(1.0, false),
        _ => false,
    };
    handed_on.then_some(x)
}

/// True if what multiplies `x` is a constant of several elements.
fn is_gain(n: &Node, x: ValueId, map: &ShapeMap) -> bool {
    n.inputs.iter().flatten().any(|v| *v != x && map.constant(*v).is_some_and(|t| t.len() > 1))
}

fn steps_are_one(view: &View) -> bool {
    view.list("steps", 4).or(Vec::new()).is_some_and(|s| s.iter().all(|n| *n == 1))
}

/// True if every element is `x` (as a float with that sign: `minus` flips it; integers have no sign of zero).
pub(super) fn all_are(t: Option<&Tensor>, x: f32, minus: bool) -> bool {
    let Some(t) = t.filter(|t| !t.is_empty()) else { return false };
    if t.dtype.is_float() {
        let bits = if minus { -x } else { x }.to_bits();
        // Doubles are not compared: their narrowing could hide a difference.
        t.dtype != DType::DOUBLE && t.to_f32s().is_some_and(|v| v.iter().all(|e| e.to_bits() == bits))
    } else {
        t.to_i64s().is_some_and(|v| v.iter().all(|e| *e == x as i64))
    }
}

/// For a Cast of a Cast whose first step loses nothing: what the first one reads, and what it makes.
fn lossless_cast(g: &Graph, id: NodeId, map: &ShapeMap) -> Option<(ValueId, ValueId)> {
    let node = g.node(id);
    if !node.op.is("Cast") {
        return None;
    }
    let middle = node.input(0)?;
    let x = g.node(g.producer_is(middle, "Cast")?).input(0)?;
    let (a, b) = (map.dtype(x)?, map.dtype(middle)?);
    widens(a, b).then_some((x, middle))
}

/// True if every value of type `a` is one of type `b`, and every further conversion gives the same from both.
fn widens(a: DType, b: DType) -> bool {
    use DType as T;
    let signed = [T::INT8, T::INT16, T::INT32, T::INT64];
    let unsigned = [T::BOOL, T::UINT8, T::UINT16, T::UINT32, T::UINT64];
    let at = |list: &[T], t: T| list.iter().position(|x| *x == t);
    match (at(&signed, a), at(&signed, b), at(&unsigned, a), at(&unsigned, b)) {
        (Some(i), Some(j), ..) => i <= j,
        (.., Some(i), Some(j)) => i <= j,
        // uint8 fits int16, bool fits all.
        (_, Some(j), Some(i), _) => j >= i,
        _ => matches!((a, b), (T::FLOAT16 | T::BFLOAT16, T::FLOAT) | (T::FLOAT, T::DOUBLE)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widening_loses_nothing() {
        assert!(widens(DType::INT32, DType::INT64) && widens(DType::UINT8, DType::INT16));
        assert!(widens(DType::BOOL, DType::INT8) && widens(DType::FLOAT16, DType::FLOAT));
        assert!(!widens(DType::UINT8, DType::INT8) && !widens(DType::INT64, DType::INT32));
        assert!(!widens(DType::INT32, DType::FLOAT) && !widens(DType::FLOAT, DType::FLOAT16));
        assert!(!widens(DType::INT8, DType::UINT8) && !widens(DType::FLOAT16, DType::BFLOAT16));
    }

    #[test]
    fn plus_zero_is_not_the_zero_that_changes_nothing() {
        assert!(!all_are(Some(&Tensor::f32(&[1], &[0.0])), 0.0, true));
        assert!(all_are(Some(&Tensor::f32(&[1], &[-0.0])), 0.0, true));
        assert!(all_are(Some(&Tensor::i64(&[1], &[0])), 0.0, true));
        assert!(!all_are(Some(&Tensor::f32(&[0], &[])), 1.0, false));
    }
}
