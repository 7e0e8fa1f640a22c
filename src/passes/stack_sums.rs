//! Sums of values that were laid upon each other first.

use super::common::{patch_nodes, sole_reader};
use super::{Context, Numerics, Outcome, Pass, PassError};
use crate::infer::ShapeMap;
use crate::ir::{Attrs, Graph, NodeId, ValueId, axis};
use crate::rewrite::{Patch, Ref};

/// # What it does
/// Adds values up one by one where the model stacks them along a new axis and sums over it, or gives them all to one Sum.
///
/// # When it fires
/// On a ReduceSum or ReduceMean over one axis of a Concat along it, whose parts have one element there each and which nothing
/// else reads; on a Sum or Mean of two values or more, of up to sixteen.
///
/// # Why it is correct
/// The sum over an axis of single elements is the sum of these.
///
/// # Numerics
/// Close: sums of three and more may be rounded in another order.
///
/// # Before / after
/// ```text
/// c = Concat <axis = 0> (Unsqueeze (a, 0), Unsqueeze (b, 0))
/// y = ReduceSum <keepdims = 0> (c, 0)                          y = Add (a, b)
/// ```
///
/// # Source
/// `torch.stack(branches).sum(0)`: parallel branches of Inception-like and mixture models.
pub struct StackSums;

impl Pass for StackSums {
    fn id(&self) -> &'static str {
        "stack-sums"
    }

    fn summary(&self) -> &'static str {
        "Replaces a sum over stacked values by the sum of the values."
    }

    fn numerics(&self) -> Numerics {
        Numerics::Close { rel: 1e-5 }
    }

    fn run(&self, m: &mut Context) -> Result<Outcome, PassError> {
        let map = m.shapes();
        let opset = m.opset();
        patch_nodes(m, |g, id| patch(g, id, &map, opset))
    }
}

/// Values that are added up one by one.
const MOST: usize = 16;

fn patch(g: &Graph, id: NodeId, map: &ShapeMap, opset: i64) -> Option<Patch> {
    let n = g.node(id);
    let y = n.out().filter(|_| n.op.is_onnx())?;
    let name = g.name_of(y);
    let mut p = Patch::new("stack-sums").before(id).made_from([name.to_owned()]);
    let mean = matches!(n.op.name.as_str(), "Mean" | "ReduceMean");
    let (parts, axis): (Vec<Ref>, Option<i64>) = match n.op.name.as_str() {
        "Sum" | "Mean" => (n.inputs.iter().flatten().map(|v| (*v).into()).collect(), None),
        "ReduceSum" | "ReduceMean" => {
            let stack = n.input(0)?;
            let concat = g.node(g.producer_is(stack, "Concat")?);
            sole_reader(g, stack)?;
            let rank = map.rank(stack)?;
            let stacked = axis(concat.attrs.int("axis")?, rank)?;
            let [summed] = g.ints(n, 1, "axes")?[..] else { return None };
            if axis(summed, rank) != Some(stacked) {
                return None;
            }
            let kept = n.attrs.int("keepdims").unwrap_or(1) == 1;
            let parts: Option<Vec<Ref>> =
                concat.inputs.iter().flatten().map(|v| part(g, map, &mut p, *v, stacked as i64, kept, opset)).collect();
            (parts?, Some(stacked as i64))
        }
        _ => return None,
    };
    if !(2..=MOST).contains(&parts.len()) || axis.is_none() && !float(map, y) {
        return None;
    }
    let (count, last) = (parts.len(), parts.len() - 1);
    let (mut e, mut sum) = (p.under(name), parts[0]);
    for (i, part) in parts.into_iter().enumerate().skip(1) {
        let last = i == last && !mean;
        sum = e.op("Add", &if last { String::new() } else { format!("sum_{i}") }, &[sum, part]);
    }
    if mean {
        let by = e.scalar("share", 1.0 / count as f32);
        sum = e.op("Mul", "", &[sum, by]);
    }
    p.succeed(y, sum);
    Some(p)
}

fn float(map: &ShapeMap, v: ValueId) -> bool {
    map.dtype(v).is_some_and(|d| d == crate::ir::DType::FLOAT)
}

/// What is summed of a part of the stack, without its axis of one element unless that is `kept`.
fn part(g: &Graph, map: &ShapeMap, p: &mut Patch, v: ValueId, axis: i64, kept: bool, opset: i64) -> Option<Ref> {
    let single = map.dims(v)?.get(usize::try_from(axis).ok()?)?.known() == Some(1);
    if !single || !float(map, v) {
        return None;
    }
    if kept {
        return Some(v.into());
    }
    let rank = map.rank(v)? as i64;
    let unsqueezed = g.producer_is(v, "Unsqueeze").map(|n| g.node(n)).and_then(|n| {
        let axes = g.ints(n, 1, "axes")?;
        (axes.len() == 1 && axes[0].rem_euclid(rank) == axis).then(|| n.input(0))?
    });
    if let Some(x) = unsqueezed {
        return Some(x.into());
    }
    Some(p.under(g.name_of(v)).over("Squeeze", "part", v.into(), &[axis], Attrs::new(), opset))
}
