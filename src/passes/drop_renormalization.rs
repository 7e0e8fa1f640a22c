use ndarray::{ArrayD, Axis, IxDyn};

use super::common::{over_last, patch_rounds};
use super::{Context, Numerics, Outcome, Pass, PassError};
use crate::infer::ShapeMap;
use crate::ir::{Graph, NodeId, Tensor, ValueId};
use crate::rewrite::Patch;

/// # What it does
/// Leaves out a division by the sums of rows that add up to 1.
///
/// # When it fires
/// On a Div of a value by its ReduceSum over the last axis, where the value is put together from Softmaxes over the last
/// axis and constants by Mul with one constant for each row, Add and Sub, so that every row adds up to 1 within 1e-5.
///
/// # Why it is correct
/// The sum of a sum is the sum of the sums, and a Softmax adds up to 1.
///
/// # Numerics
/// Close: the sums were 1 but for rounding.
///
/// # Before / after
/// ```text
/// w = Softmax (x)
/// m = Mul (w, gate)
/// a = Add (m, rest)                a = Add (m, rest)
/// s = ReduceSum (a)
/// y = Div (a, s)                   y is a
/// ```
///
/// # Source
/// Gated positional self-attention of ConViT (arXiv 2103.10697) divides by a sum that its gates keep at 1.
pub struct DropRenormalization;

impl Pass for DropRenormalization {
    fn id(&self) -> &'static str {
        "drop-renormalization"
    }

    fn summary(&self) -> &'static str {
        "Removes the division of rows by their sum where the sum is 1."
    }

    fn numerics(&self) -> Numerics {
        Numerics::Close { rel: 1e-4 }
    }

    fn run(&self, model: &mut Context) -> Result<Outcome, PassError> {
        let opset = model.opset();
        patch_rounds(model, |g, id, map| patch(g, id, map, opset))
    }
}

/// Furthest from 1 that a sum may be.
const NEAR: f32 = 1e-5;
/// How far back sums are followed.
const MOST_STEPS: u32 = 8;

fn patch(g: &Graph, id: NodeId, map: &ShapeMap, opset: i64) -> Option<Patch> {
    let div = g.node(id);
    if !div.op.is("Div") {
        return None;
    }
    let (x, s, y) = (div.input(0)?, div.input(1)?, div.out()?);
    let rank = map.rank(x)?;
    // The axis stays, or is taken away and put back.
    let put_back = g.producer_is(s, "Unsqueeze").map(|n| g.node(n));
    let sum = match put_back {
        Some(n) => n.input(0).filter(|_| over_last(g, n, rank as i64))?,
        None => s,
    };
    let sum = g.node(g.producer_is(sum, "ReduceSum")?);
    let kept = sum.attrs.int("keepdims") != Some(0);
    if sum.input(0) != Some(x)
        || kept == put_back.is_some()
        || !over_last(g, sum, rank as i64)
        || g.is_output(y)
        || !sums(g, x, rank, map, opset, MOST_STEPS)?.iter().all(|s| (s - 1.0).abs() <= NEAR)
    {
        return None;
    }
    let mut p = Patch::new("drop-renormalization");
    p.replace(y, x.into());
    Some(p)
}

/// What the rows of a value of this rank add up to, in a shape that broadcasts against it with a last axis of 1.
fn sums(g: &Graph, v: ValueId, rank: usize, map: &ShapeMap, opset: i64, steps: u32) -> Option<ArrayD<f32>> {
    if let Some(t) = g.constant(v) {
        // A constant of fewer entries is added to every key.
        let keys = map.dims(v)?.last()?.known()?;
        let a = array(t)?;
        let whole = t.dims.len() == rank && t.dims.last() == Some(&keys);
        return whole.then(|| a.sum_axis(Axis(rank - 1)).insert_axis(Axis(rank - 1)));
    }
    let n = g.node(g.producer(v)?);
    let steps = steps.checked_sub(1)?;
    let of = |slot: usize| {
        let x = n.input(slot)?;
        (map.rank(x) == Some(rank)).then(|| sums(g, x, rank, map, opset, steps)).flatten()
    };
    match n.op.name.as_str() {
        "Softmax" => (n.axis_at(rank, opset) + 1 == rank).then(|| ArrayD::ones(IxDyn(&vec![1; rank]))),
        "Add" | "Sub" => {
            let (a, b) = (of(0)?, of(1)?);
            // Both are whole rows: of one that is a single entry, each key has the sum.
            let whole = |slot: usize| map.dims(n.input(slot)?).map(|d| d.last().cloned());
            (whole(0)?? == whole(1)??).then(|| if n.op.is("Add") { a + b } else { a - b })
        }
        // Repeated for each sample or head.
        "Expand" => (map.dims(n.input(0)?)?.last() == map.dims(v)?.last()).then(|| of(0)).flatten(),
        "Mul" => (0..2).find_map(|slot| {
            let gate = g.constant(n.input(1 - slot)?)?;
            let one = gate.dims.last().is_none_or(|d| *d == 1);
            Some(of(slot)? * array(gate).filter(|_| one)?)
        }),
        _ => None,
    }
}

fn array(t: &Tensor) -> Option<ArrayD<f32>> {
    let dims: Vec<usize> = t.dims.iter().map(|d| usize::try_from(*d).ok()).collect::<Option<_>>()?;
    ArrayD::from_shape_vec(IxDyn(&dims), t.to_f32s()?.into_owned()).ok()
}
