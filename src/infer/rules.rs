//! Element types and shapes of operator outputs.

use super::view::{Dims, Given, View, axes, broadcast_dim};
use super::{Draft, Size, einsum, spatial};
use crate::ir::axis;
use crate::ir::vocabulary::class;
use crate::ir::{Class, DType};

const ONE: Size = Size::Known(1);

/// Types and shapes of all outputs; `None` for an operator this module does not know.
pub(super) fn outputs(view: &View) -> Option<Vec<Draft>> {
    several(view).or_else(|| Some(vec![Draft::new(dtype(view), dims(view)?)]))
}

/// Outputs of the operators that may have more than one, or of whose output more is known than type and shape.
fn several(view: &View) -> Option<Vec<Draft>> {
    let ty = view.dtype(0);
    Some(match view.op() {
        "Dropout" => vec![Draft::new(ty, view.some_dims(0)), Draft::new(Some(DType::BOOL), view.some_dims(0))],
        "LayerNormalization" => layer_norm(view),
        "DynamicQuantizeLinear" => vec![
            Draft::new(Some(DType::UINT8), view.some_dims(0)),
            Draft::new(Some(DType::FLOAT), Some(Vec::new())),
            Draft::new(Some(DType::UINT8), Some(Vec::new())),
        ],
        "MaxPool" => {
            let d = spatial::pool(view);
            vec![Draft::new(ty, d.clone()), Draft::new(Some(DType::INT64), d)]
        }
        "Attention" => spatial::attention(view).unwrap_or_else(|| vec![Draft::new(ty, None); view.node.outputs.len()]),
        "LSTM" | "GRU" | "RNN" => recurrent(view),
        "Split" => split(view),
        "Shape" => shape(view),
        "Size" => {
            let n = view.dims(0).and_then(product);
            vec![Draft { elements: n.map(|n| vec![Some(n)]), ..Draft::new(Some(DType::INT64), Some(Vec::new())) }]
        }
        "TopK" => {
            let d = top_k(view);
            vec![Draft::new(ty, d.clone()), Draft::new(Some(DType::INT64), d)]
        }
        _ => return None,
    })
}

/// What a recurrent operator makes: its state after every step, and after the last; an LSTM's second state as well.
fn recurrent(view: &View) -> Vec<Draft> {
    let sizes = || {
        // The recurrent weight is `[directions, gates * hidden, hidden]`.
        let [directions, _, hidden] = <[_; 3]>::try_from(view.some_dims(2)?).ok()?;
        let [first, second, _] = <[_; 3]>::try_from(view.some_dims(0)?).ok()?;
        Some(if view.node.attrs.int("layout") == Some(1) {
            (vec![first.clone(), second, directions.clone(), hidden.clone()], vec![first, directions, hidden])
        } else {
            (vec![first, directions.clone(), second.clone(), hidden.clone()], vec![directions, second, hidden])
        })
    };
    let (every, last) = sizes().unzip();
    let ty = view.dtype(0);
    vec![Draft::new(ty, every), Draft::new(ty, last.clone()), Draft::new(ty, last)]
}

/// The element type of the one output: that of the first input, unless the operator says otherwise.
fn dtype(view: &View) -> Option<DType> {
    let attr = |name: &str| view.node.attrs.int(name).and_then(|n| i32::try_from(n).ok()).map(DType);
    let output = attr("output_dtype").filter(|t| t.0 != 0);
    match view.op() {
        "Cast" => attr("to"),
        "CastLike" | "Where" => view.dtype(1),
        "OneHot" => view.dtype(2),
        "QLinearMatMul" | "QLinearConv" => view.dtype(7),
        "QuantizeLinear" if view.has(2) => view.dtype(2),
        "QuantizeLinear" => Some(output.unwrap_or(DType::UINT8)),
        "DequantizeLinear" => output.or(view.dtype(1)),
        "MatMulInteger" | "ConvInteger" => Some(DType::INT32),
        "ArgMax" | "ArgMin" | "NonZero" => Some(DType::INT64),
        "ConstantOfShape" => Some(view.node.attrs.tensor("value").map_or(DType::FLOAT, |t| t.dtype)),
        "EyeLike" => attr("dtype").or(view.dtype(0)),
        op if class(op) == Some(Class::Compare) => Some(DType::BOOL),
        _ => view.dtype(0),
    }
}

/// The shape of the one output, as far as it is known; `None` for an operator this module does not know.
fn dims(view: &View) -> Option<Option<Dims>> {
    Some(match view.op() {
        "Clip" | "CumSum" | "Identity" | "LRN" | "PRelu" | "ReverseSequence" | "RotaryEmbedding"
        | "ScatterElements" | "ScatterND" | "Trilu" | "Cast" | "CastLike" | "QuantizeLinear" | "DequantizeLinear"
        | "EyeLike" => view.some_dims(0),
        "Where" => broadcast_inputs(view, 0),
        "MatMul" | "MatMulInteger" => matmul(view.dims(0), view.dims(1)),
        "QLinearMatMul" => matmul(view.dims(0), view.dims(3)),
        "Gemm" => gemm(view),
        "Einsum" => einsum::shape(view),
        "Conv" | "ConvInteger" => spatial::conv(view, 1),
        "QLinearConv" => spatial::conv(view, 3),
        "ConvTranspose" => spatial::conv_transpose(view),
        "RoiAlign" => spatial::roi_align(view),
        "AveragePool" | "LpPool" => spatial::pool(view),
        "GlobalAveragePool" | "GlobalMaxPool" => global_pool(view),
        "Resize" if view.opset >= 11 => spatial::resize(view),
        "Pad" => spatial::pad(view),
        "Reshape" => reshape(view),
        "Flatten" => flatten(view),
        "Transpose" => transpose(view),
        "Concat" => concat(view),
        "Slice" => slice(view),
        "Gather" => gather(view),
        "GatherElements" => view.some_dims(1),
        "GatherND" => gather_nd(view),
        "Squeeze" => squeeze(view),
        "Unsqueeze" => unsqueeze(view),
        "Expand" => expand(view),
        "Tile" => tile(view),
        "ConstantOfShape" => as_shape(view, 0),
        "Range" => Some(vec![range(view)]),
        "ArgMax" | "ArgMin" => arg_reduce(view),
        "DepthToSpace" | "SpaceToDepth" => depth(view),
        "OneHot" => one_hot(view),
        "NonZero" => view.rank(0).map(|r| vec![Some(Size::Known(r as i64)), None]),
        op => match class(op)? {
            Class::Unary | Class::Softmax | Class::Norm => view.some_dims(0),
            // Until opset 6 the second operand is laid along the axes of the first.
            Class::Broadcast | Class::Compare if view.opset < 7 && view.node.attrs.get("broadcast").is_some() => {
                view.some_dims(0)
            }
            Class::Broadcast | Class::Compare => broadcast_inputs(view, 0),
            Class::Reduction => reduce(view),
            _ => return None,
        },
    })
}

/// The product of sizes.
pub(super) fn product(dims: &[Size]) -> Option<Size> {
    dims.iter().try_fold(ONE, |a, d| a.mul(d))
}

/// Two shapes under broadcasting.
pub(super) fn broadcast(a: &[Option<Size>], b: &[Option<Size>]) -> Dims {
    let rank = a.len().max(b.len());
    let one = Some(ONE);
    let at = |x: &[Option<Size>], i: usize| (i + x.len()).checked_sub(rank).map_or(one.clone(), |j| x[j].clone());
    (0..rank).map(|i| broadcast_dim(at(a, i).as_ref(), at(b, i).as_ref())).collect()
}

fn broadcast_inputs(view: &View, from: usize) -> Option<Dims> {
    let mut out: Dims = Vec::new();
    for i in from..view.node.inputs.len() {
        out = broadcast(&out, &view.some_dims(i)?);
    }
    Some(out)
}

fn global_pool(view: &View) -> Option<Dims> {
    let one = |(i, d): (usize, &Size)| Some(if i < 2 { d.clone() } else { ONE });
    Some(view.dims(0)?.iter().enumerate().map(one).collect())
}

/// How many numbers a Range has.
fn range(view: &View) -> Option<Size> {
    let at = |i| view.ints(i)?.first().copied().map(i128::from);
    let counted = || {
        let (a, b, step) = (at(0)?, at(1)?, at(2)?);
        let n = match step.signum() {
            1 => (b - a + step - 1) / step,
            -1 => (a - b - step - 1) / -step,
            _ => return None,
        };
        Some(Size::Known(n.max(0).try_into().ok()?))
    };
    // Counting from 0 up to a size that only the run knows.
    let first = |i: usize| view.elements(i)?.first()?.clone();
    let open =
        || if (first(0)?, first(2)?) == (Size::Known(0), ONE) { first(1).filter(Size::is_nonnegative) } else { None };
    let float = |i| Some(*view.constant(i).filter(|t| t.dtype == DType::FLOAT)?.to_f32s()?.first()?);
    let steps = || {
        let (a, b, step) = (float(0)?, float(1)?, float(2)?);
        // Runtimes differ in the precision they count in.
        let (n, wide) = (((b - a) / step).ceil(), ((f64::from(b) - f64::from(a)) / f64::from(step)).ceil());
        let n = f64::from(n).min(wide);
        // What no memory holds need not be known to the last element.
        let sure = n == wide || n > f64::from(i32::MAX);
        (sure && n < i64::MAX as f64).then_some(Size::Known(n.max(0.0) as i64))
    };
    counted().or_else(open).or_else(steps)
}

fn one_hot(view: &View) -> Option<Dims> {
    let mut d = view.some_dims(0)?;
    let at = axis(view.given("axis")?, d.len() + 1)?;
    d.insert(at, view.elements(1).and_then(|e| e.first().cloned().flatten()));
    Some(d)
}

fn top_k(view: &View) -> Option<Dims> {
    let mut d = view.some_dims(0)?;
    let a = view.axis(d.len())?;
    d[a] = view.elements(1).and_then(|e| e.first().cloned().flatten());
    Some(d)
}

fn layer_norm(view: &View) -> Vec<Draft> {
    let ty = view.dtype(0);
    let stats = view.some_dims(0).and_then(|mut d| {
        let a = view.axis(d.len())?;
        d[a..].fill(Some(ONE));
        Some(d)
    });
    let stash = Some(DType(i32::try_from(view.int("stash_type")).unwrap_or(1)));
    vec![Draft::new(ty, view.some_dims(0)), Draft::new(stash, stats.clone()), Draft::new(stash, stats)]
}

fn matmul(a: Option<&[Size]>, b: Option<&[Size]>) -> Option<Dims> {
    let some = |d: &[Size]| -> Dims { d.iter().cloned().map(Some).collect() };
    let (a, b) = (a?, b?);
    let (rows, cols) = (a.len().checked_sub(2), b.len().checked_sub(2));
    if a.is_empty() || b.is_empty() {
        return None;
    }
    let mut out = broadcast(&some(&a[..rows.unwrap_or(0)]), &some(&b[..cols.unwrap_or(0)]));
    out.extend(rows.map(|i| Some(a[i].clone())));
    out.extend(cols.map(|i| Some(b[i + 1].clone())));
    Some(out)
}

fn gemm(view: &View) -> Option<Dims> {
    let (a, b) = (view.dims(0)?, view.dims(1)?);
    if a.len() != 2 || b.len() != 2 {
        return None;
    }
    let (ta, tb) = (view.int("transA") != 0, view.int("transB") != 0);
    Some(vec![Some(a[ta as usize].clone()), Some(b[!tb as usize].clone())])
}

/// The contents of input `i` as a shape: its rank at least.
fn as_shape(view: &View, i: usize) -> Option<Dims> {
    match view.elements(i) {
        Some(e) => Some(e.iter().map(|s| s.clone().filter(|s| !matches!(s, Size::Known(n) if *n < 0))).collect()),
        None => {
            let rank = usize::try_from(view.known_dims(i)?.first().copied()?).ok()?;
            (rank <= 64).then(|| vec![None; rank])
        }
    }
}

/// Reshape. A symbolic size in the target is at least 1 (see the module's assumptions), so it is neither the 0 that
/// copies nor the -1 that is worked out. One size nobody knows is the quotient of what is known, when that is exact.
fn reshape(view: &View) -> Option<Dims> {
    let from = view.dims(0);
    let target: Dims = match view.node.attrs.ints("shape") {
        Some(s) if view.opset < 5 => s.iter().map(|n| Some(Size::Known(*n))).collect(),
        _ => match view.elements(1) {
            Some(e) => e.to_vec(),
            None => as_shape(view, 1)?,
        },
    };
    let allow_zero = view.int("allowzero") != 0;
    let mut out: Dims = Vec::with_capacity(target.len());
    for (i, t) in target.into_iter().enumerate() {
        out.push(match t {
            Some(Size::Known(0)) if !allow_zero => from.and_then(|d| d.get(i).cloned()),
            Some(Size::Known(n)) if n < 0 => None,
            other => other,
        });
    }
    let mut open = out.iter().enumerate().filter(|(_, d)| d.is_none()).map(|(i, _)| i);
    if let (Some(at), None, Some(from)) = (open.next(), open.next(), from) {
        let rest: Option<Size> = out.iter().flatten().try_fold(ONE, |a, d| a.mul(d));
        out[at] = product(from).and_then(|t| t.div_exact(&rest?));
    }
    Some(out)
}

fn flatten(view: &View) -> Option<Dims> {
    let d = view.dims(0)?;
    let a = view.int("axis");
    let a = usize::try_from(if a < 0 { a + d.len() as i64 } else { a }).ok().filter(|a| *a <= d.len())?;
    Some(vec![product(&d[..a]), product(&d[a..])])
}

fn transpose(view: &View) -> Option<Dims> {
    let d = view.some_dims(0)?;
    match view.node.attrs.ints("perm") {
        None => Some(d.into_iter().rev().collect()),
        Some(p) => {
            axes(p, d.len()).filter(|a| a.len() == d.len())?;
            p.iter().map(|a| Some(d[axis(*a, d.len())?].clone())).collect()
        }
    }
}

fn concat(view: &View) -> Option<Dims> {
    let rank = (0..view.node.inputs.len()).find_map(|i| view.rank(i))?;
    let at = view.axis(rank)?;
    let mut out: Dims = vec![None; rank];
    let mut sum = Some(Size::Known(0));
    for i in 0..view.node.inputs.len() {
        let d = view.dims(i).filter(|d| d.len() == rank);
        sum = sum.zip(d).and_then(|(s, d)| s.add(&d[at]));
        for (o, x) in out.iter_mut().zip(d.unwrap_or_default()) {
            // All inputs agree off the axis: the most telling one says it.
            if o.is_none() || x.known().is_some() {
                *o = Some(x.clone());
            }
        }
    }
    out[at] = sum;
    Some(out)
}

fn split(view: &View) -> Vec<Draft> {
    let (ty, n) = (view.dtype(0), view.node.outputs.len().max(1));
    let parts = (|| {
        let d = view.some_dims(0)?;
        let at = view.axis(d.len())?;
        let sizes: Dims = match view.list("split", 1) {
            Given::Known(s) if s.len() == n => s.into_iter().map(|n| Some(Size::Known(n))).collect(),
            Given::Absent => match &d[at] {
                // The last part is the smaller one (opset 18); before that the division leaves no rest.
                Some(Size::Known(total)) => {
                    let chunk = total.saturating_add(n as i64 - 1) / n as i64;
                    (0..n as i64)
                        .map(|i| Some(Size::Known(total.saturating_sub(i.saturating_mul(chunk)).clamp(0, chunk))))
                        .collect()
                }
                Some(s) => vec![s.div_exact(&Size::Known(n as i64)); n],
                None => vec![None; n],
            },
            _ => vec![None; n],
        };
        Some(
            sizes
                .into_iter()
                .map(|s| {
                    let mut d = d.clone();
                    d[at] = s;
                    d
                })
                .collect::<Vec<_>>(),
        )
    })();
    match parts {
        Some(p) => p.into_iter().map(|d| Draft::new(ty, Some(d))).collect(),
        None => vec![Draft::new(ty, None); n],
    }
}

/// Start, end and step of every axis a Slice names: `(axis, start, end, step)`; `None` where only run time knows.
pub(super) fn slices(view: &View, rank: usize) -> Option<Vec<(usize, i64, i64, i64)>> {
    let known = |attr: &str, slot| if let Given::Known(v) = view.list(attr, slot) { Some(v) } else { None };
    let (starts, ends) = (known("starts", 1)?, known("ends", 2)?);
    let which = view.list("axes", 3).or((0..starts.len() as i64).collect())?;
    let steps = view.list("steps", 4).or(vec![1; starts.len()])?;
    if ends.len() != starts.len() || which.len() != starts.len() || steps.len() != starts.len() {
        return None;
    }
    (0..starts.len()).map(|i| Some((axis(which[i], rank)?, starts[i], ends[i], steps[i]))).collect()
}

/// First index, number of indices of one slice of an axis with `n` elements.
pub(super) fn slice_range(n: i64, start: i64, end: i64, step: i64) -> Option<(i64, i64)> {
    let wrap = |x: i64| if x < 0 { x.saturating_add(n) } else { x };
    let (s, e) = (wrap(start), wrap(end));
    if step > 0 {
        let (s, e) = (s.clamp(0, n), e.clamp(0, n));
        Some((s, ((e - s).max(0) as u64).div_ceil(step as u64) as i64))
    } else if step < 0 {
        let (s, e) = (s.clamp(-1, n - 1).max(if n == 0 { -1 } else { 0 }), e.clamp(-1, n - 1));
        Some((s, ((s - e).max(0) as u64).div_ceil(step.unsigned_abs()) as i64))
    } else {
        None
    }
}

fn slice(view: &View) -> Option<Dims> {
    let mut out = view.some_dims(0)?;
    let Some(list) = slices(view, out.len()) else { return Some(slice_unknown(view, out)) };
    for (a, start, end, step) in list {
        let size = out[a].take();
        out[a] = match &size {
            Some(Size::Known(n)) => slice_range(*n, start, end, step).map(|r| Size::Known(r.1)),
            // Everything, forwards or backwards.
            Some(s) if start == 0 && step == 1 && end >= i64::from(i32::MAX) => Some(s.clone()),
            Some(s) if start == -1 && step == -1 && end <= -i64::from(i32::MAX) => Some(s.clone()),
            // A symbolic size is at least 1, and `x[0:1]` of it has one element.
            Some(_) if (start, end, step) == (0, 1, 1) => Some(ONE),
            Some(_) if start == -1 && step == 1 && end >= i64::from(i32::MAX) => Some(ONE),
            _ => None,
        };
    }
    Some(out)
}

/// Axes that a slice with run-time bounds does not touch keep their size.
fn slice_unknown(view: &View, mut out: Dims) -> Dims {
    let rank = out.len();
    let touched = view
        .list("axes", 3)
        .or(Vec::new())
        .filter(|a| !a.is_empty())
        .and_then(|a| a.iter().map(|a| axis(*a, rank)).collect::<Option<Vec<_>>>());
    match touched {
        Some(t) => t.into_iter().for_each(|a| out[a] = None),
        None => out.fill(None),
    }
    out
}

fn gather(view: &View) -> Option<Dims> {
    let (x, i) = (view.some_dims(0)?, view.some_dims(1)?);
    let a = view.axis(x.len())?;
    Some(x[..a].iter().chain(&i).chain(&x[a + 1..]).cloned().collect())
}

fn gather_nd(view: &View) -> Option<Dims> {
    let (x, i) = (view.some_dims(0)?, view.some_dims(1)?);
    let batch = usize::try_from(view.int("batch_dims")).ok()?;
    let (last, front) = i.split_last()?;
    let deep = usize::try_from(last.as_ref()?.known()?).ok()?;
    let rest = x.get(batch.checked_add(deep)?..)?;
    Some(front.iter().chain(rest).cloned().collect())
}

fn squeeze(view: &View) -> Option<Dims> {
    let d = view.some_dims(0)?;
    match view.list("axes", 1) {
        Given::Known(a) => {
            let a = axes(&a, d.len())?;
            Some(d.into_iter().enumerate().filter(|(i, _)| !a.contains(i)).map(|(_, d)| d).collect())
        }
        // Without axes every size of 1 goes; a symbolic size could be 1.
        Given::Absent if view.known_dims(0).is_some() => Some(d.into_iter().filter(|d| *d != Some(ONE)).collect()),
        _ => None,
    }
}

fn unsqueeze(view: &View) -> Option<Dims> {
    let d = view.some_dims(0)?;
    let Given::Known(a) = view.list("axes", 1) else { return None };
    let rank = d.len() + a.len();
    let a = axes(&a, rank)?;
    let mut rest = d.into_iter();
    (0..rank).map(|i| if a.contains(&i) { Some(Some(ONE)) } else { rest.next() }).collect()
}

fn expand(view: &View) -> Option<Dims> {
    Some(broadcast(&view.some_dims(0)?, &as_shape(view, 1)?))
}

fn tile(view: &View) -> Option<Dims> {
    let d = view.dims(0)?;
    match view.elements(1) {
        Some(e) if e.len() == d.len() => Some(d.iter().zip(e).map(|(d, r)| d.mul(r.as_ref()?)).collect()),
        _ => Some(vec![None; d.len()]),
    }
}

fn shape(view: &View) -> Vec<Draft> {
    let ty = Some(DType::INT64);
    let Some(d) = view.some_dims(0) else { return vec![Draft::new(ty, Some(vec![None]))] };
    let rank = d.len() as i64;
    let clamp = |n: i64| (if n < 0 { n.saturating_add(rank) } else { n }).clamp(0, rank) as usize;
    let (from, to) = (clamp(view.int("start")), clamp(view.node.attrs.int("end").unwrap_or(rank)));
    let part = d[from..to.max(from)].to_vec();
    let len = Some(Size::Known(part.len() as i64));
    vec![Draft { elements: Some(part), ..Draft::new(ty, Some(vec![len])) }]
}

fn reduce(view: &View) -> Option<Dims> {
    let mut d = view.some_dims(0)?;
    let keep = view.int("keepdims") != 0;
    let which = match view.list("axes", 1) {
        Given::Known(a) if !a.is_empty() => axes(&a, d.len())?,
        Given::Unknown => return keep.then(|| vec![None; d.len()]),
        _ if view.int("noop_with_empty_axes") != 0 => return Some(d),
        _ => (0..d.len()).collect(),
    };
    if keep {
        which.iter().for_each(|a| d[*a] = Some(ONE));
        return Some(d);
    }
    Some(d.into_iter().enumerate().filter(|(i, _)| !which.contains(i)).map(|(_, d)| d).collect())
}

fn arg_reduce(view: &View) -> Option<Dims> {
    let mut d = view.some_dims(0)?;
    let a = view.axis(d.len())?;
    if view.int("keepdims") != 0 {
        d[a] = Some(ONE);
    } else {
        d.remove(a);
    }
    Some(d)
}

fn depth(view: &View) -> Option<Dims> {
    let d = view.dims(0).filter(|d| d.len() == 4)?;
    let b = Size::Known(view.node.attrs.int("blocksize").filter(|b| *b > 0)?);
    let square = b.mul(&b)?;
    let (c, h, w) = (&d[1], &d[2], &d[3]);
    Some(if view.op() == "DepthToSpace" {
        vec![Some(d[0].clone()), c.div_exact(&square), h.mul(&b), w.mul(&b)]
    } else {
        vec![Some(d[0].clone()), c.mul(&square), h.div_exact(&b), w.div_exact(&b)]
    })
}
