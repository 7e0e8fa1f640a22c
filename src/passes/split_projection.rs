//! One projection for queries, keys and values becomes one for each.

use super::common::{patch_nodes, sole_reader};
use super::{Context, Numerics, Outcome, Pass, PassError};
use crate::ir::{DType, Dim, Graph, NodeId, Tensor, ValueId};
use crate::plan::sites::{self, Linear, sliced};
use crate::rewrite::{Patch, Ref};

/// # What it does
/// A MatMul whose result is reshaped, perhaps transposed, and taken apart becomes one MatMul per part, with the part's columns
/// of weight and bias, each followed by a Reshape and a Transpose of its own. Codes for each part, which have their own
/// scale, can then be made right after the product, and the moves carry codes.
///
/// # When it fires
/// For MatMul or Gemm with constant float weight (and bias) -> Reshape by a constant to `[.., n, rest..]` with
/// `n * rest = C` columns -> Transpose or nothing -> each of the `n` parts taken by Split, by Gather of a constant index or by Slice,
/// with nobody else reading anything on the way; also where one Split or several Slices along the columns take the parts
/// at once, which may then be of any sizes that do not overlap.
///
/// # Why it is correct
/// A column of the product depends on that column of the weight alone. Part `i` of axis `n` holds columns
/// `i C/n .. (i+1) C/n`, and stays that part of the axis, now of size 1, until a Squeeze takes the axis away.
///
/// # Numerics
/// Close: each column is the same sum, but a kernel may add it in another order for another width.
///
/// # Before / after
/// `Split(Transpose(Reshape(MatMul(x, W) + b)))` becomes `Transpose(Reshape(MatMul(x, W_i) + b_i))` for each `i`.
///
/// # Source
/// How timm, torchvision and torch.nn write their attention.
pub struct SplitProjection;

impl Pass for SplitProjection {
    fn id(&self) -> &'static str {
        "split-projection"
    }

    fn summary(&self) -> &'static str {
        "Splits a joint projection into one each for queries, keys and values."
    }

    fn numerics(&self) -> Numerics {
        Numerics::Close { rel: 1e-4 }
    }

    fn run(&self, m: &mut Context) -> Result<Outcome, PassError> {
        patch_nodes(m, patch)
    }
}

/// The value after a Squeeze of `axis`, which alone reads `v`.
fn squeezed(g: &Graph, v: ValueId, axis: usize, rank: usize) -> Option<ValueId> {
    let n = sole_reader(g, v).filter(|n| g.node(*n).op.is("Squeeze"))?;
    let axes = g.ints(g.node(n), 1, "axes")?;
    let [a] = axes[..] else { return None };
    (a == axis as i64 || a == axis as i64 - rank as i64).then(|| g.node(n).out()).flatten()
}

/// Columns of a projection, and the value they become after the moves.
struct Columns {
    from: i64,
    columns: i64,
    value: ValueId,
    /// The axis that counted the parts is still there, with the size 1.
    counted: bool,
}

/// The value after a Squeeze of `axis` that alone reads `v`, or `v` itself, whoever reads it.
fn taken(g: &Graph, v: ValueId, axis: usize, rank: usize, at: usize, columns: i64) -> Columns {
    let squeezed = squeezed(g, v, axis, rank);
    Columns { from: at as i64 * columns, columns, value: squeezed.unwrap_or(v), counted: squeezed.is_none() }
}

/// The `count` parts along `axis`, each of `columns` columns; `None` unless all are there, one by one.
fn parts(g: &Graph, v: ValueId, axis: usize, rank: usize, count: usize, columns: i64) -> Option<Vec<Columns>> {
    let is_axis = |a: i64| a == axis as i64 || a == axis as i64 - rank as i64;
    if g.is_output(v) {
        return None;
    }
    if let Some(n) = sole_reader(g, v).filter(|n| g.node(*n).op.is("Split")) {
        let node = g.node(n);
        if !is_axis(node.int("axis")) || node.outputs.len() != count {
            return None;
        }
        if g.ints(g.node(n), 1, "split").is_some_and(|s| s.iter().any(|s| *s != 1)) {
            return None;
        }
        return (0..count).map(|i| Some(taken(g, node.output(i)?, axis, rank, i, columns))).collect();
    }
    let mut found: Vec<Option<Columns>> = (0..count).map(|_| None).collect();
    for (n, slot) in g.uses(v) {
        let node = g.node(n);
        if slot != 0 || !node.op.is_onnx() {
            return None;
        }
        let place = |at: i64| usize::try_from(if at < 0 { at + count as i64 } else { at }).ok().filter(|a| *a < count);
        let (at, part) = match &node.op.name[..] {
            "Gather" if is_axis(node.int("axis")) => {
                let index = g.constant(node.input(1)?)?;
                let at = place(index.to_i64s().filter(|_| index.len() == 1)?[0])?;
                let part = match index.dims.len() {
                    0 => Columns { from: at as i64 * columns, columns, value: node.out()?, counted: false },
                    1 => taken(g, node.out()?, axis, rank, at, columns),
                    _ => return None,
                };
                (at, part)
            }
            "Slice" => {
                let (from, to, a) = sliced(g, node)?;
                // The last part may be written as "to the end".
                let end = to.min(count as i64);
                if !is_axis(a) || from < 0 || end != from + 1 {
                    return None;
                }
                let at = place(from)?;
                (at, taken(g, node.out()?, axis, rank, at, columns))
            }
            _ => return None,
        };
        if found[at].replace(part).is_some() {
            return None;
        }
    }
    found.into_iter().collect()
}

/// Where the parts are, and the moves that each goes through.
struct Parts {
    list: Vec<Columns>,
    /// Reshape target and Transpose with the axis that counts the parts, and its place in the target; none where the parts
    /// are columns as they are.
    moves: Option<(Vec<i64>, Vec<i64>, usize)>,
}

/// The parts that are taken along the columns themselves: all by one Split, or each by a Slice.
fn columns_taken(g: &Graph, v: ValueId, total: i64) -> Option<Vec<Columns>> {
    let rank = g.rank(v)? as i64;
    let last = |a: i64| a == -1 || a == rank - 1;
    let mut list: Vec<Columns> = Vec::new();
    for (n, slot) in g.uses(v) {
        let node = g.node(n);
        if slot != 0 || !node.op.is_onnx() {
            return None;
        }
        match &node.op.name[..] {
            "Split" if list.is_empty() && last(node.int("axis")) => {
                let count = node.outputs.len() as i64;
                let sizes = match g.ints(node, 1, "split") {
                    Some(s) => s,
                    None if total % count == 0 && node.input(1).is_none() => vec![total / count; node.outputs.len()],
                    None => return None,
                };
                let mut from = 0i64;
                for (columns, value) in sizes.iter().zip(&node.outputs) {
                    list.push(Columns { from, columns: *columns, value: (*value)?, counted: false });
                    from = from.checked_add(*columns)?;
                }
                if from != total || list.len() != node.outputs.len() {
                    return None;
                }
            }
            "Slice" => {
                let (from, to, axis) = sliced(g, node)?;
                let place = |at: i64| if at < 0 { at + total } else { at.min(total) };
                let (from, to) = (place(from), place(to));
                if !last(axis) || from < 0 || to <= from {
                    return None;
                }
                list.push(Columns { from, columns: to - from, value: node.out()?, counted: false });
            }
            _ => return None,
        }
    }
    // Each column in one part at most: two would compute it twice.
    list.sort_by_key(|p| p.from);
    let apart = list.windows(2).all(|w| w[0].from + w[0].columns <= w[1].from);
    let sound = apart && list.len() > 1 && list.iter().all(|p| p.columns > 0);
    (sound && !list.iter().any(|p| g.is_output(p.value)) && !g.is_output(v)).then_some(list)
}

fn find(g: &Graph, l: &Linear, columns: i64) -> Option<Parts> {
    if let Some(list) = columns_taken(g, l.out, columns) {
        return Some(Parts { list, moves: None });
    }
    let first = sole_reader(g, l.out)?;
    let node = g.node(first);
    if !node.op.is("Reshape") {
        return None;
    }
    let mut target = g.constant(node.input(1)?)?.to_i64s()?;
    // An open size that is known after all.
    let open = target.iter().position(|d| *d == -1);
    if let (Some(i), Some(dims)) = (open, node.out().and_then(|y| g.shape(y)))
        && let Some(Dim::Known(n)) = dims.get(i)
    {
        target[i] = *n;
    }
    // Where a 0 is a size; without one, `allowzero` says nothing.
    if node.int("allowzero") != 0 && target.contains(&0) {
        return None;
    }
    // The axis that counts the parts: all axes from it on make up the columns.
    let at = (1..target.len().saturating_sub(1))
        .find(|p| target[*p..].iter().all(|d| *d > 0) && target[*p..].iter().product::<i64>() == columns)?;
    let count = usize::try_from(target[at]).ok().filter(|n| *n > 1 && *n <= 8)?;
    let rank = target.len();
    let seen = node.out()?;
    let (whole, perm) = match sole_reader(g, seen).filter(|n| g.node(*n).op.is("Transpose")) {
        Some(turn) => (g.node(turn).out()?, g.node(turn).attrs.ints("perm")?.to_vec()),
        // The parts are turned one by one, if at all.
        None => (seen, (0..rank as i64).collect()),
    };
    if perm.len() != rank {
        return None;
    }
    let axis = perm.iter().position(|p| *p == at as i64)?;
    let list = parts(g, whole, axis, rank, count, columns / count as i64)?;
    Some(Parts { list, moves: Some((target, perm, at)) })
}

/// Reshape target and Transpose of one part.
fn moves_of(part: &Columns, (target, perm, at): &(Vec<i64>, Vec<i64>, usize)) -> (Vec<i64>, Vec<i64>) {
    let mut target = target.clone();
    if part.counted {
        target[*at] = 1;
        return (target, perm.clone());
    }
    target.remove(*at);
    let at = *at as i64;
    (target, perm.iter().filter(|p| **p != at).map(|p| if *p > at { p - 1 } else { *p }).collect())
}

/// Columns `from .. from + n` along `axis` of a tensor with one or two axes.
pub(super) fn columns(t: &Tensor, axis: usize, from: usize, n: usize) -> Option<Tensor> {
    if t.dtype != DType::FLOAT {
        return None;
    }
    let data = t.to_f32s()?;
    let inner: usize = t.dims[axis + 1..].iter().map(|d| *d as usize).product();
    let all = t.dims[axis] as usize;
    let mut v = Vec::with_capacity(data.len() / all * n);
    for block in data.chunks(all * inner) {
        v.extend_from_slice(&block[from * inner..(from + n) * inner]);
    }
    let mut dims = t.dims.clone();
    dims[axis] = n as i64;
    Some(Tensor::f32(&dims, &v))
}

fn patch(g: &Graph, id: NodeId) -> Option<Patch> {
    let l = sites::linear(g, id, &|v| g.constant(v).is_some()).filter(|l| !l.is_conv)?;
    let w = g.constant(l.weight)?;
    let total = w.dims[l.out_axis];
    let parts = find(g, &l, total)?;
    let node = g.node(id);
    let name = g.name_of(l.out);
    let mut p = Patch::new("split-projection").made_from([node.name.clone()]).before(id);
    for (i, part) in parts.list.iter().enumerate() {
        let (from, each) = (part.from as usize, part.columns as usize);
        let wi = columns(w, l.out_axis, from, each)?;
        let wi = p.under(g.name_of(l.weight)).constant(&format!("part{i}"), wi);
        let bias: Option<Ref> = match &l.bias {
            Some(b) => {
                let t = g.constant(b.value)?;
                let t = columns(t, t.dims.len() - 1, from, each)?;
                Some(p.under(g.name_of(b.value)).constant(&format!("part{i}"), t))
            }
            None => None,
        };
        let mut e = p.under(&format!("{name}_part{i}"));
        let shape = g.shape(l.out).map(<[_]>::to_vec).map(|mut s| {
            if let Some(last) = s.last_mut() {
                *last = Dim::Known(each as i64);
            }
            s
        });
        let mut inputs = vec![l.x.into(), wi];
        let own_bias = l.bias.as_ref().is_some_and(|b| b.add.is_none());
        if own_bias {
            inputs.extend(bias);
        }
        let product = if own_bias || bias.is_none() { "" } else { "product" };
        let mut y = e.op_with(&node.op.name, product, &inputs, node.attrs.clone());
        e.typed(y, DType::FLOAT, shape.clone());
        if let (false, Some(b)) = (own_bias, bias) {
            y = e.op("Add", "", &[y, b]);
            e.typed(y, DType::FLOAT, shape);
        }
        if let Some(moves) = &parts.moves {
            let (target, perm) = moves_of(part, moves);
            let t = e.ints("shape", &target);
            if perm.is_sorted() {
                y = e.under(g.name_of(part.value)).op("Reshape", "", &[y, t]);
            } else {
                y = e.op("Reshape", "heads", &[y, t]);
                y = e.under(g.name_of(part.value)).turned("", y, &perm);
            }
            e.typed(y, DType::FLOAT, g.shape(part.value).map(<[_]>::to_vec));
        }
        p.succeed(part.value, y);
    }
    Some(p)
}
