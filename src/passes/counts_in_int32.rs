//! Counting in integers that every runtime adds up.

use super::common::{has, patch_nodes};
use super::{Context, Numerics, Outcome, Pass, PassError};
use crate::infer::ShapeMap;
use crate::ir::{DType, Graph, NodeId};
use crate::rewrite::Patch;

/// # What it does
/// Lets a CumSum of booleans add up in int32 instead of int64. tract takes what is cast to int64 for sizes of tensors,
/// and does not add those up along an axis.
///
/// # When it fires
/// On a CumSum after a Cast of booleans to int64.
///
/// # Why it is correct
/// A sum of booleans is at most the number of elements, and no axis has 2^31 of them.
///
/// # Numerics
/// Bit-exact.
///
/// # Before / after
/// ```text
/// i = Cast <to = INT64> (mask)     i = Cast <to = INT32> (mask)
/// y = CumSum (i, axis)             n = CumSum (i, axis)
///                                  y = Cast <to = INT64> (n)
/// ```
///
/// # Source
/// Positions of tokens, as encoders of the RoBERTa family count them from the padding mask.
pub struct CountsInInt32;

impl Pass for CountsInInt32 {
    fn id(&self) -> &'static str {
        "counts-in-int32"
    }

    fn summary(&self) -> &'static str {
        "Computes running counts in int32."
    }

    fn numerics(&self) -> Numerics {
        Numerics::BitExact
    }

    fn run(&self, model: &mut Context) -> Result<Outcome, PassError> {
        if !has(model, "CumSum") {
            return Ok(Outcome::default());
        }
        let map = model.shapes();
        patch_nodes(model, |g, id| patch(g, id, &map))
    }
}

fn patch(g: &Graph, id: NodeId, map: &ShapeMap) -> Option<Patch> {
    let n = g.node(id);
    if !n.op.is("CumSum") {
        return None;
    }
    let (x, axis, y) = (n.input(0)?, n.input(1)?, n.out()?);
    let mask = g.node(g.producer_is(x, "Cast")?).input(0)?;
    if map.dtype(x) != Some(DType::INT64) || map.dtype(mask) != Some(DType::BOOL) {
        return None;
    }
    let name = g.name_of(y);
    let mut p = Patch::new("counts-in-int32").before(id).made_from([name.to_owned()]);
    let mut e = p.under(name);
    let narrow = e.cast("int32", mask.into(), DType::INT32);
    let sum = e.op_with("CumSum", "count", &[narrow, axis.into()], n.attrs.clone());
    let new = e.cast("", sum, DType::INT64);
    p.succeed(y, new);
    Some(p)
}
