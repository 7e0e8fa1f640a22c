use super::common::{deviation, patch_nodes, root_mean_square, sole_reader};
use super::identity::all_are;
use super::{Context, Numerics, Outcome, Pass, PassError};
use crate::infer::{ShapeMap, Size};
use crate::ir::{Graph, Node, NodeId, ValueId};
use crate::rewrite::Patch;

/// # What it does
/// Writes a BatchNormalization by statistics that the model itself computes, over each row of a value, as what it is: the
/// row less its mean, divided by its standard deviation.
///
/// # When it fires
/// On a BatchNormalization whose input is a view `[1, rows, n, 1]` of a value, whose result only goes into a shape with `n`
/// channels, whose mean and variance are those of the rows, and whose scale is 1 and bias 0 everywhere.
///
/// # Why it is correct
/// Where each channel is one row, the statistics of a channel are those of a row.
///
/// # Numerics
/// Close: the divisor is rounded at another place.
///
/// # Before / after
/// ```text
/// r = Reshape (x, [1, -1, 48, 1])
/// mu = ReduceMean <axes = [0, 2, 3], keepdims = 1> (r)
/// ss = ReduceSumSquare <axes = [0, 2, 3], keepdims = 0> (Sub (r, mu))
/// b = BatchNormalization (r, ones, zeros, Squeeze (mu), Div (ss, 48.0))
/// y = Reshape (b, [-1, 17, 48])
///
/// d = Sub (x, ReduceMean <axes = [-1]> (x))
/// y = Div (d, Sqrt (Add (ReduceMean <axes = [-1]> (Mul (d, d)), eps)))
/// ```
///
/// # Source
/// LayerNormalization of Keras 2 with its default epsilon, by tf2onnx. tract runs no such BatchNormalization.
pub struct BatchNormRows;

impl Pass for BatchNormRows {
    fn id(&self) -> &'static str {
        "batch-norm-rows"
    }

    fn summary(&self) -> &'static str {
        "Decomposes a BatchNormalization that uses the statistics of each row."
    }

    fn numerics(&self) -> Numerics {
        Numerics::Close { rel: 1e-4 }
    }

    fn run(&self, model: &mut Context) -> Result<Outcome, PassError> {
        let map = model.shapes();
        let opset = model.opset();
        patch_nodes(model, |g, id| patch(g, id, &map, opset))
    }
}

/// The axes of a row in a view `[1, rows, n, 1]`.
const ROW: [i64; 3] = [0, 2, 3];

fn patch(g: &Graph, id: NodeId, map: &ShapeMap, opset: i64) -> Option<Patch> {
    let norm = g.node(id);
    if !norm.op.is("BatchNormalization") {
        return None;
    }
    let (r, b) = (norm.input(0)?, norm.out()?);
    let x = g.node(g.producer_is(r, "Reshape")?).input(0)?;
    let one = Size::Known(1);
    let [first, _, n, last] = map.dims(r)? else { return None };
    let width = n.known()?;
    let back = sole_reader(g, b).filter(|n| g.node(*n).op.is("Reshape"))?;
    let y = g.node(back).out()?;
    let rows = map.dims(y)?.last()? == n;
    if *first != one || *last != one || !rows || !filled(g, norm.input(1)?, 1.0) || !filled(g, norm.input(2)?, 0.0) {
        return None;
    }
    if !is_mean(g, unsqueezed(g, norm.input(3)?), r) || !is_variance(g, unsqueezed(g, norm.input(4)?), r, width) {
        return None;
    }
    let name = g.name_of(y);
    let mut p = Patch::new("batch-norm-rows").before(back).made_from([name.to_owned()]);
    let mut e = p.under(name);
    let x = if map.dims(x)? == map.dims(y)? {
        x.into()
    } else {
        let shape = g.node(back).input(1)?;
        e.op_with("Reshape", "rows", &[r.into(), shape.into()], g.node(back).attrs.clone())
    };
    let d = deviation(&mut e, x, opset);
    let eps = e.scalar("epsilon", norm.float("epsilon"));
    let root = root_mean_square(&mut e, d, eps, opset);
    let new = e.op("Div", "", &[d, root]);
    p.succeed(y, new);
    Some(p)
}

/// True for a value that is `x` everywhere: a constant, or a number made as long as it must be.
fn filled(g: &Graph, v: ValueId, x: f32) -> bool {
    let number = |v: ValueId| all_are(g.constant(v), x, false);
    number(v) || g.producer_is(v, "Expand").and_then(|n| g.node(n).input(0)).is_some_and(number)
}

fn unsqueezed(g: &Graph, v: ValueId) -> ValueId {
    g.producer_is(v, "Squeeze").and_then(|n| g.node(n).input(0)).unwrap_or(v)
}

/// True if the node reduces the rows of a view.
fn over_rows(g: &Graph, n: &Node) -> bool {
    let sorted = |mut axes: Vec<i64>| {
        axes.iter_mut().for_each(|a| *a = a.rem_euclid(4));
        axes.sort_unstable();
        axes
    };
    g.ints(n, 1, "axes").map(|a| sorted(a.to_vec())).as_deref() == Some(&ROW)
}

fn is_mean(g: &Graph, v: ValueId, of: ValueId) -> bool {
    g.producer_is(v, "ReduceMean").is_some_and(|n| g.node(n).input(0) == Some(of) && over_rows(g, g.node(n)))
}

fn is_variance(g: &Graph, v: ValueId, of: ValueId, width: i64) -> bool {
    let found = || {
        let quotient = g.node(g.producer_is(v, "Div")?);
        let count = g.constant(quotient.input(1)?)?.to_f32s()?.first().copied()?;
        let sum = g.node(g.producer_is(unsqueezed(g, quotient.input(0)?), "ReduceSumSquare")?);
        let d = g.node(g.producer_is(sum.input(0)?, "Sub")?);
        Some(
            count == width as f32
                && over_rows(g, sum)
                && d.input(0) == Some(of)
                && d.input(1).is_some_and(|mu| is_mean(g, mu, of)),
        )
    };
    found().unwrap_or(false)
}
