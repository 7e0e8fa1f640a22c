//! Padding that a pool does by itself.

use super::common::{patch_nodes, sole_reader};
use super::{Context, Numerics, Outcome, Pass, PassError};
use crate::ir::{Dim, Graph, NodeId, axis};
use crate::rewrite::Patch;

/// # What it does
/// Takes a Pad with minus infinity into the MaxPool after it. The infinities would have no code.
///
/// # When it fires
/// On `MaxPool(Pad(x))` where the Pad is of mode `constant` with the value minus infinity, adds nothing outside the
/// pooled axes, cuts nothing, and has no other reader; the pool rounds its sizes down, gives no indices, and no window lies
/// in the padding altogether.
///
/// # Why it is correct
/// The padding of a MaxPool is never the largest, and neither is minus infinity beside an element of `x`.
///
/// # Numerics
/// Bit-exact.
///
/// # Before / after
/// ```text
/// p = Pad (x, [0, 0, 0, 0, 0, 0, 1, 1], -inf)
/// y = MaxPool <kernel_shape = [3, 3], strides = [2, 2]> (p)
///                                y = MaxPool <kernel_shape = [3, 3], pads = [0, 0, 1, 1], strides = [2, 2]> (x)
/// ```
///
/// # Source
/// Pools with TensorFlow's "same" padding, as timm writes the stems of its hybrid models.
pub struct FusePad;

impl Pass for FusePad {
    fn id(&self) -> &'static str {
        "fuse-pad"
    }

    fn summary(&self) -> &'static str {
        "Moves padding with minus infinity into the MaxPool after it."
    }

    fn numerics(&self) -> Numerics {
        Numerics::BitExact
    }

    fn run(&self, model: &mut Context) -> Result<Outcome, PassError> {
        patch_nodes(model, patch)
    }
}

/// What a Pad adds in front of and after each of `rank` axes; less than 0 where it cuts.
pub(super) fn added(g: &Graph, pad: NodeId, rank: usize) -> Option<Vec<(i64, i64)>> {
    let n = g.node(pad);
    let list = g.ints(n, 1, "pads")?;
    let axes = match n.input(3) {
        Some(_) => g.ints(n, 3, "axes")?,
        None => (0..rank as i64).collect(),
    };
    if list.len() != 2 * axes.len() {
        return None;
    }
    let mut out = vec![(0, 0); rank];
    for (i, a) in axes.iter().enumerate() {
        out[axis(*a, rank)?] = (list[i], list[axes.len() + i]);
    }
    Some(out)
}

fn patch(g: &Graph, id: NodeId) -> Option<Patch> {
    let pool = g.node(id);
    if !pool.op.is("MaxPool") || pool.outputs.len() != 1 || pool.int("ceil_mode") != 0 {
        return None;
    }
    let padded = pool.input(0)?;
    let pad = g.producer_is(padded, "Pad").filter(|_| sole_reader(g, padded) == Some(id))?;
    let n = g.node(pad);
    let value = match n.input(2) {
        Some(v) => g.constant(v)?.as_scalar()?,
        None => f64::from(n.attrs.float("value")?),
    };
    if !n.says("mode", "constant") || value != f64::NEG_INFINITY {
        return None;
    }
    let kernel = pool.attrs.ints("kernel_shape")?.to_vec();
    let axes = kernel.len();
    let own = match pool.attrs.str("auto_pad").unwrap_or("NOTSET") {
        "NOTSET" => pool.attrs.ints("pads").map_or_else(|| vec![0; 2 * axes], <[i64]>::to_vec),
        "VALID" => vec![0; 2 * axes],
        _ => return None,
    };
    let dilations = pool.attrs.ints("dilations").map_or_else(|| vec![1; axes], <[i64]>::to_vec);
    let added = added(g, pad, axes + 2).filter(|a| a.iter().all(|(a, b)| *a >= 0 && *b >= 0))?;
    if own.len() != 2 * axes || dilations.len() != axes || added[..2] != [(0, 0); 2] {
        return None;
    }
    let x = n.input(0)?;
    let sizes = g.shape(x).filter(|s| s.len() == axes + 2);
    let mut pads = own;
    for (i, (front, behind)) in added[2..].iter().enumerate() {
        pads[i] = pads[i].checked_add(*front)?;
        pads[axes + i] = pads[axes + i].checked_add(*behind)?;
        let reach = kernel[i].checked_sub(1)?.checked_mul(dilations[i])?;
        // Steps longer than the image could miss it.
        let hits = dilations[i] == 1 || matches!(sizes?[i + 2], Dim::Known(n) if n >= dilations[i]);
        if pads[i] > reach || pads[axes + i] > reach || !hits {
            return None;
        }
    }
    let mut attrs = pool.attrs.clone();
    attrs.remove("auto_pad");
    let y = pool.out()?;
    let name = g.name_of(y);
    let mut p = Patch::new("fuse-pad").before(id).made_from([name.to_owned()]);
    let new = p.node_with(pool.op.clone(), &[Some(x.into())], &[name], attrs.with_ints("pads", &pads))[0];
    p.succeed(y, new);
    Some(p)
}
