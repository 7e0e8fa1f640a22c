//! One projection for queries, keys and values becomes one for each.

use super::common::{patch_nodes, sole_reader};
use super::{Numerics, Outcome, Pass, PassError};
use crate::ir::{Attrs, DType, Dim, Graph, Model, NodeId, Tensor, ValueId};
use crate::plan::sites::{self, Linear};
use crate::rewrite::{Patch, Ref};

/// # What it does
/// A MatMul whose result is reshaped, transposed and taken apart becomes one MatMul a part, with the part's columns of
/// weight and bias, each followed by a Reshape and a Transpose of its own. Codes for each part, which have their own
/// scale, can then be made right behind the product, and the moves carry codes.
///
/// # When it fires
/// For MatMul or Gemm with constant float weight (and bias) -> Reshape by a constant to `[.., n, rest..]` with
/// `n * rest = C` columns -> Transpose -> each of the `n` parts taken by Split and Squeeze, by Gather of a constant
/// index, or by Slice and Squeeze, with nobody else reading anything on the way. Also where Split along the last axis
/// takes the parts at once.
///
/// # Why it is correct
/// A column of the product depends on that column of the weight alone. Part `i` of axis `n` holds columns
/// `i C/n .. (i+1) C/n`.
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
        "one projection for queries, keys and values becomes one for each"
    }

    fn numerics(&self) -> Numerics {
        Numerics::Close { rel: 1e-4 }
    }

    fn run(&self, m: &mut Model) -> Result<Outcome, PassError> {
        patch_nodes(m, patch)
    }
}

/// The value behind a Squeeze of `axis`, which alone reads `v`.
fn squeezed(g: &Graph, v: ValueId, axis: usize, rank: usize) -> Option<ValueId> {
    let n = sole_reader(g, v).filter(|n| g.node(*n).op.is("Squeeze"))?;
    let axes = g.ints(g.node(n), 1, "axes")?;
    let [a] = axes[..] else { return None };
    (a == axis as i64 || a == axis as i64 - rank as i64).then(|| g.node(n).out()).flatten()
}

/// The parts along `axis`, in their order, without that axis; `None` unless all `count` are there.
fn parts(g: &Graph, v: ValueId, axis: usize, rank: usize, count: usize) -> Option<Vec<ValueId>> {
    let is_axis = |a: i64| a == axis as i64 || a == axis as i64 - rank as i64;
    if let Some(n) = sole_reader(g, v).filter(|n| g.node(*n).op.is("Split")) {
        let node = g.node(n);
        if !is_axis(node.attrs.int("axis").unwrap_or(0)) || node.outputs.len() != count {
            return None;
        }
        if g.ints(g.node(n), 1, "split").is_some_and(|s| s.iter().any(|s| *s != 1)) {
            return None;
        }
        return (0..count).map(|i| squeezed(g, node.output(i)?, axis, rank)).collect();
    }
    let mut found: Vec<Option<ValueId>> = vec![None; count];
    for (n, slot) in g.uses(v) {
        let node = g.node(n);
        if slot != 0 || !node.op.is_onnx() {
            return None;
        }
        let (at, value) = match &node.op.name[..] {
            "Gather" if is_axis(node.attrs.int("axis").unwrap_or(0)) => {
                let index = g.constant(node.input(1)?)?;
                if !index.dims.is_empty() {
                    return None;
                }
                (index.to_i64s()?[0], node.out()?)
            }
            "Slice" => {
                let (from, to) = (g.ints(g.node(n), 1, "starts")?, g.ints(g.node(n), 2, "ends")?);
                let axes = g.ints(g.node(n), 3, "axes")?;
                let steps = g.ints(g.node(n), 4, "steps").unwrap_or(vec![1]);
                let ([from], [to], [a], [1]) = (&from[..], &to[..], &axes[..], &steps[..]) else { return None };
                // The last part may be written as "to the end".
                let end = (*to).min(count as i64);
                if !is_axis(*a) || *from < 0 || end != from + 1 {
                    return None;
                }
                (*from, squeezed(g, node.out()?, axis, rank)?)
            }
            _ => return None,
        };
        let at = usize::try_from(if at < 0 { at + count as i64 } else { at }).ok().filter(|a| *a < count)?;
        if found[at].replace(value).is_some() {
            return None;
        }
    }
    if g.is_output(v) {
        return None;
    }
    found.into_iter().collect()
}

/// What one part must become: where its codes' moves lead, and by which moves.
struct Parts {
    values: Vec<ValueId>,
    /// Reshape target and Transpose of one part; empty where the parts are columns as they are.
    target: Vec<i64>,
    perm: Vec<i64>,
}

fn find(g: &Graph, l: &Linear, columns: i64) -> Option<Parts> {
    let first = sole_reader(g, l.out)?;
    let node = g.node(first);
    if node.op.is("Split") {
        let count = node.outputs.len() as i64;
        let rank = g.rank(l.out)? as i64;
        let axis = node.attrs.int("axis").unwrap_or(0);
        let even = g.ints(g.node(first), 1, "split").is_none_or(|s| s.iter().all(|s| *s * count == columns));
        let values: Vec<ValueId> = node.outputs.iter().copied().collect::<Option<_>>()?;
        let fits = count > 1 && (axis == -1 || axis == rank - 1) && even && columns % count == 0;
        return (fits && !values.iter().any(|v| g.is_output(*v))).then_some(Parts {
            values,
            target: Vec::new(),
            perm: Vec::new(),
        });
    }
    if !node.op.is("Reshape") || node.attrs.int("allowzero").unwrap_or(0) != 0 {
        return None;
    }
    let target = g.constant(node.input(1)?)?.to_i64s()?;
    // The axis that counts the parts: all axes from it on make up the columns.
    let at = (1..target.len().saturating_sub(1))
        .find(|p| target[*p..].iter().all(|d| *d > 0) && target[*p..].iter().product::<i64>() == columns)?;
    let count = usize::try_from(target[at]).ok().filter(|n| *n > 1 && *n <= 8)?;
    let rank = target.len();
    let transpose = sole_reader(g, node.out()?).filter(|n| g.node(*n).op.is("Transpose"))?;
    let perm = g.node(transpose).attrs.ints("perm")?.to_vec();
    if perm.len() != rank {
        return None;
    }
    let axis = perm.iter().position(|p| *p == at as i64)?;
    let values = parts(g, g.node(transpose).out()?, axis, rank, count)?;
    let without = |d: i64| if d > at as i64 { d - 1 } else { d };
    Some(Parts {
        values,
        perm: perm.iter().filter(|p| **p != at as i64).map(|p| without(*p)).collect(),
        target: target.iter().enumerate().filter(|(i, _)| *i != at).map(|(_, d)| *d).collect(),
    })
}

/// Columns `from .. from + n` along `axis` of a tensor with one or two axes.
fn columns(t: &Tensor, axis: usize, from: usize, n: usize) -> Option<Tensor> {
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
    let each = total as usize / parts.values.len();
    let node = g.node(id);
    let name = g.name_of(l.out);
    let mut p = Patch::new("split-projection").made_from([node.name.clone()]).before(id);
    for (i, v) in parts.values.iter().enumerate() {
        let wi = columns(w, l.out_axis, i * each, each)?;
        let wi = p.constant(&format!("{}_part{i}", g.name_of(l.weight)), wi);
        let bias: Option<Ref> = match &l.bias {
            Some(b) => {
                let t = g.constant(b.value)?;
                let t = columns(t, t.dims.len() - 1, i * each, each)?;
                Some(p.constant(&format!("{}_part{i}", g.name_of(b.value)), t))
            }
            None => None,
        };
        let part = format!("{name}_part{i}");
        let shape = g.shape(l.out).map(<[_]>::to_vec).map(|mut s| {
            if let Some(last) = s.last_mut() {
                *last = Dim::Known(each as i64);
            }
            s
        });
        let behind = parts.target.is_empty();
        let mut inputs: Vec<Option<Ref>> = vec![Some(l.x.into()), Some(wi)];
        let own_bias = l.bias.as_ref().is_some_and(|b| b.add.is_none());
        if own_bias {
            inputs.push(bias);
        }
        let hint = if own_bias || bias.is_none() { part.clone() } else { format!("{part}_product") };
        let mut y = p.node_with(node.op.clone(), &inputs, &[&hint], node.attrs.clone())[0];
        p.typed(y, DType::FLOAT, shape.clone());
        if let (false, Some(b)) = (own_bias, bias) {
            y = p.node("Add", &part, &[y, b], Attrs::new());
            p.typed(y, DType::FLOAT, shape);
        }
        if !behind {
            let t = p.constant(&format!("{part}_shape"), Tensor::i64(&[parts.target.len() as i64], &parts.target));
            y = p.node("Reshape", &format!("{part}_heads"), &[y, t], Attrs::new());
            y = p.node("Transpose", g.name_of(*v), &[y], Attrs::new().with_ints("perm", &parts.perm));
            p.typed(y, DType::FLOAT, g.shape(*v).map(<[_]>::to_vec));
        }
        p.succeed(*v, y);
    }
    Some(p)
}
