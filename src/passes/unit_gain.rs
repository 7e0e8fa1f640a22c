//! Norms that have no gain.

use super::common::{has, over_last, patch_nodes};
use super::{Context, Numerics, Outcome, Pass, PassError};
use crate::infer::ShapeMap;
use crate::ir::{Attrs, DType, Graph, NodeId, Tensor, ValueId};
use crate::rewrite::{Patch, Ref};

/// # What it does
/// Multiplies a value that is divided by the root of the mean of its squares with a gain of ones where the model multiplies
/// with none: the rules for LayerNorm (whose value is a deviation from a mean) and for RMSNorm then take it for one.
///
/// # When it fires
/// On a Div or Mul of a value, over a last axis of known size in float32, with what is computed from the mean of its own
/// squares by Add, Sqrt, Reciprocal, Pow and Div alone, unless a constant vector multiplies the result.
///
/// # Why it is correct
/// `1 x = x`.
///
/// # Numerics
/// Bit-exact.
///
/// # Before / after
/// ```text
/// y = Div (d, sd)                  n = Div (d, sd)
///                                  y = Mul (n, ones)
/// ```
///
/// # Source
/// `elementwise_affine=False`, which models with adaptive norms have; optimizers that drop a gain of ones.
pub struct UnitGain;

impl Pass for UnitGain {
    fn id(&self) -> &'static str {
        "unit-gain"
    }

    fn summary(&self) -> &'static str {
        "a norm without a gain gets one of ones"
    }

    fn numerics(&self) -> Numerics {
        Numerics::BitExact
    }

    fn run(&self, model: &mut Context) -> Result<Outcome, PassError> {
        if !has(model, "ReduceMean") {
            return Ok(Outcome::default());
        }
        let map = model.shapes();
        patch_nodes(model, |g, id| patch(g, id, &map))
    }
}

/// No LayerNorm is wider; a gain of ones takes four bytes per channel.
const MOST_CHANNELS: i64 = 1 << 20;

/// Nodes from the mean of squares to the factor.
const MOST_STEPS: u32 = 5;

fn patch(g: &Graph, id: NodeId, map: &ShapeMap) -> Option<Patch> {
    let n = g.node(id);
    let slots: &[usize] = match n.op.name.as_str() {
        "Div" if n.op.is_onnx() => &[0],
        "Mul" if n.op.is_onnx() => &[0, 1],
        _ => return None,
    };
    let y = n.out().filter(|y| map.dtype(*y) == Some(DType::FLOAT))?;
    let ends = slots.iter().filter_map(|i| Some((n.input(*i)?, n.input(1 - i)?)));
    let (d, by) = ends.filter(|(d, by)| d != by).find(|(d, by)| spread(g, *by, *d, map, MOST_STEPS))?;
    let size = map.dims(d)?.last()?.known().filter(|n| (2..=MOST_CHANNELS).contains(n))?;
    let vector = |v: ValueId| g.constant(v).is_some_and(|t| t.len() > 1);
    let gained = |user: NodeId| g.node(user).op.is("Mul") && g.node(user).inputs.iter().flatten().any(|v| vector(*v));
    // A gain may be in what it is multiplied with, in one product.
    let inside = g.producer_is(by, "Mul").is_some_and(gained);
    if inside || g.uses(y).iter().any(|(user, _)| gained(*user)) || g.uses(y).is_empty() && !g.is_output(y) {
        return None;
    }
    let name = g.name_of(y);
    let mut p = Patch::new("unit-gain").before(id).made_from([name.to_owned()]);
    let inputs: Vec<Ref> = n.inputs.iter().flatten().map(|v| (*v).into()).collect();
    let plain = p.node(&n.op.name, &format!("{name}_plain"), &inputs, n.attrs.clone());
    let ones = p.constant(&format!("{name}_gain"), Tensor::f32(&[size], &vec![1.0; size as usize]));
    let new = p.node("Mul", name, &[plain, ones], Attrs::new());
    p.succeed(y, new);
    Some(p)
}

/// True if `v` is computed from the mean of the squares of `d` over the last axis, and from constants.
fn spread(g: &Graph, v: ValueId, d: ValueId, map: &ShapeMap, most: u32) -> bool {
    let Some(n) = g.producer(v).map(|n| g.node(n)).filter(|n| n.op.is_onnx()) else { return false };
    let Some(less) = most.checked_sub(1) else { return false };
    match n.op.name.as_str() {
        "ReduceMean" => {
            let Some(square) = n.input(0).and_then(|s| g.producer(s)).map(|s| g.node(s)) else { return false };
            let of = |i: usize| square.input(i) == Some(d);
            let two = |v: ValueId| g.constant(v).and_then(|t| t.as_scalar()) == Some(2.0);
            let squares = square.op.is("Mul") && of(0) && of(1)
                || square.op.is("Pow") && of(0) && square.input(1).is_some_and(two);
            let kept = n.attrs.int("keepdims").unwrap_or(1) == 1;
            squares && kept && map.rank(d).is_some_and(|r| over_last(g, n, r as i64))
        }
        "Sqrt" | "Reciprocal" => n.input(0).is_some_and(|x| spread(g, x, d, map, less)),
        "Add" | "Pow" | "Div" => {
            let (a, b) = (n.input(0), n.input(1));
            let constant = |v: Option<ValueId>| v.is_some_and(|v| g.constant(v).is_some_and(|t| t.len() == 1));
            let on = |v: Option<ValueId>| v.is_some_and(|v| spread(g, v, d, map, less));
            constant(b) && on(a) || !n.op.is("Pow") && constant(a) && on(b)
        }
        _ => false,
    }
}
