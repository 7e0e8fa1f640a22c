//! Operators on constants whose last bit differs from library to library: exponentials, sums, products of matrices. They
//! are computed in double precision and rounded once, which is as good as any runtime's own value. Only asked for where a
//! pass has declared that it does not keep every bit.

use rayon::prelude::*;

use super::moves::{broadcast_places, strides, walk};
use super::view::{Given, View, axes};
use super::{Draft, MAX_FOLD_BYTES};
use crate::ir::vocabulary::class;
use crate::ir::{Class, DType, Tensor};

/// Products of matrices with more multiplications than this are left to the runtime.
const MAX_PRODUCTS: usize = 1 << 31;

/// The first output, if all inputs are constants and the operator is one of those below.
pub(super) fn evaluate(view: &View, out: &Draft) -> Option<Tensor> {
    if view.op() == "Cast" {
        return cut(view.constant(0)?, out.dtype?);
    }
    let ty = out.dtype.filter(|t| matches!(*t, DType::FLOAT | DType::DOUBLE))?;
    if (0..view.node.inputs.len()).any(|i| view.has(i) && view.constant(i).is_none()) || !view.has(0) {
        return None;
    }
    if view.op() == "Range" {
        return range(view, ty);
    }
    let dims: Vec<i64> = out.dims.as_ref()?.iter().map(|d| d.as_ref()?.known()).collect::<Option<_>>()?;
    let count = dims.iter().try_fold(1i64, |a, d| a.checked_mul((*d).max(0)))?;
    if count as u64 > (MAX_FOLD_BYTES / 8) as u64 || view.dtype(0) != Some(ty) {
        return None;
    }
    let v = match view.op() {
        "Softmax" | "LogSoftmax" if view.opset >= 13 => softmax(view)?,
        "LayerNormalization" => layer_norm(view)?,
        "BatchNormalization" if view.opset >= 14 => batch_norm(view)?,
        "MatMul" => matmul(view, &dims)?,
        "Gemm" => gemm(view, &dims)?,
        "Clip" => clip(view)?,
        op if class(op) == Some(Class::Reduction) => reduce(view, count as usize)?,
        "Pow" | "Min" | "Max" | "Sum" | "Mean" => several(view, &dims)?,
        _ => {
            let f = one(view)?;
            numbers(view, 0)?.into_iter().map(f).collect()
        }
    };
    tensor(ty, &dims, &v)
}

/// Float to integer, with the smallest integer for what lies below all of them, minus infinity first of all: the standard
/// does not say, and the runtimes agree on this. It is what the logarithm of a distance of 0 becomes, before a Where takes
/// another value.
fn cut(t: &Tensor, to: DType) -> Option<Tensor> {
    let (v, fits) = (t.to_f32s().filter(|_| t.dtype == DType::FLOAT)?, |x: &f32| *x < 2f32.powi(31));
    if !v.iter().all(fits) {
        return None;
    }
    match to {
        DType::INT64 => Some(Tensor::i64(&t.dims, &v.iter().map(|x| *x as i64).collect::<Vec<_>>())),
        DType::INT32 => Some(Tensor::i32(&t.dims, &v.iter().map(|x| *x as i32).collect::<Vec<_>>())),
        _ => None,
    }
}

/// The numbers as a tensor; a NaN stays what the runtime makes of it.
fn tensor(ty: DType, dims: &[i64], v: &[f64]) -> Option<Tensor> {
    if v.iter().any(|x| x.is_nan()) || dims.iter().product::<i64>() != v.len() as i64 {
        return None;
    }
    Some(match ty {
        DType::DOUBLE => Tensor::raw(ty, dims, v.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>()),
        _ => Tensor::f32(dims, &v.iter().map(|x| *x as f32).collect::<Vec<_>>()),
    })
}

/// The numbers of a constant of a float or integer type.
fn numbers(view: &View, i: usize) -> Option<Vec<f64>> {
    let t = view.constant(i)?;
    match t.dtype {
        DType::FLOAT => Some(t.to_f32s()?.iter().map(|x| f64::from(*x)).collect()),
        DType::DOUBLE => {
            let b = t.to_le_bytes().filter(|b| b.len() == t.byte_len())?;
            Some(b.chunks_exact(8).map(|c| f64::from_le_bytes(c.try_into().expect("8 bytes"))).collect())
        }
        d if d.is_int() => Some(t.to_i64s()?.iter().map(|x| *x as f64).collect()),
        _ => None,
    }
}

/// The numbers of a constant as if it had the shape `dims`.
fn spread(view: &View, i: usize, dims: &[i64]) -> Option<Vec<f64>> {
    let v = numbers(view, i)?;
    let at = broadcast_places(&view.known_dims(i)?, dims)?;
    at.into_iter().map(|j| v.get(j).copied()).collect()
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + libm::exp(-x))
}

/// Operators of one operand.
fn one(view: &View) -> Option<Box<dyn Fn(f64) -> f64>> {
    let float = |name: &str, default: f32| f64::from(view.node.attrs.float(name).unwrap_or(default));
    Some(match view.op() {
        "Exp" => Box::new(libm::exp),
        "Log" => Box::new(libm::log),
        "Tanh" => Box::new(libm::tanh),
        "Sigmoid" => Box::new(sigmoid),
        "Erf" => Box::new(libm::erf),
        "Sin" => Box::new(libm::sin),
        "Cos" => Box::new(libm::cos),
        "Sqrt" => Box::new(f64::sqrt),
        "Reciprocal" => Box::new(|x| 1.0 / x),
        "Sign" => Box::new(|x| {
            if x > 0.0 {
                1.0
            } else if x < 0.0 {
                -1.0
            } else {
                x
            }
        }),
        "Abs" => Box::new(f64::abs),
        "Neg" => Box::new(|x| -x),
        "Relu" => Box::new(|x| if x < 0.0 { 0.0 } else { x }),
        "LeakyRelu" => {
            let slope = float("alpha", 0.01);
            Box::new(move |x| if x < 0.0 { slope * x } else { x })
        }
        "Softplus" => Box::new(|x| x.max(0.0) + libm::log1p(libm::exp(-x.abs()))),
        "HardSigmoid" => {
            let (a, b) = (float("alpha", 0.2), float("beta", 0.5));
            Box::new(move |x| (a * x + b).clamp(0.0, 1.0))
        }
        "HardSwish" => Box::new(|x| x * (x / 6.0 + 0.5).clamp(0.0, 1.0)),
        "Gelu" if view.node.says("approximate", "none") => {
            Box::new(|x| 0.5 * x * libm::erfc(-x / std::f64::consts::SQRT_2))
        }
        _ => return None,
    })
}

/// Operators of several operands under broadcasting.
fn several(view: &View, dims: &[i64]) -> Option<Vec<f64>> {
    let n = view.node.inputs.len();
    let pair: fn(f64, f64) -> f64 = match view.op() {
        "Pow" if n == 2 => libm::pow,
        "Min" => |a, b| if a.is_nan() || a < b { a } else { b },
        "Max" => |a, b| if a.is_nan() || a > b { a } else { b },
        "Sum" | "Mean" => |a, b| a + b,
        _ => return None,
    };
    let mut all = spread(view, 0, dims)?;
    for i in 1..n {
        let other = spread(view, i, dims)?;
        all.iter_mut().zip(other).for_each(|(a, b)| *a = pair(*a, b));
    }
    if view.op() == "Mean" {
        all.iter_mut().for_each(|a| *a /= n as f64);
    }
    Some(all)
}

fn clip(view: &View) -> Option<Vec<f64>> {
    let bound = |i: usize, name: &str, default: f64| match view.has(i) {
        true => numbers(view, i)?.first().copied(),
        false => Some(view.node.attrs.float(name).map_or(default, f64::from)),
    };
    let (lo, hi) = (bound(1, "min", f64::NEG_INFINITY)?, bound(2, "max", f64::INFINITY)?);
    let held = |x: f64| if x.is_nan() { x } else { x.max(lo).min(hi) };
    Some(numbers(view, 0)?.into_iter().map(held).collect())
}

fn reduce(view: &View, count: usize) -> Option<Vec<f64>> {
    let (x, dims) = (numbers(view, 0)?, view.known_dims(0)?);
    let which = match view.list("axes", 1) {
        Given::Known(a) if !a.is_empty() => axes(&a, dims.len())?,
        Given::Unknown => return None,
        _ if view.int("noop_with_empty_axes") != 0 => return None,
        _ => (0..dims.len()).collect(),
    };
    // Reduced axes do not move the place in the result.
    let kept: Vec<i64> = dims.iter().enumerate().map(|(i, d)| if which.contains(&i) { 1 } else { *d }).collect();
    let to = broadcast_places(&kept, &dims)?;
    let n = x.len().checked_div(count).filter(|n| *n > 0)? as f64;
    let mut top = vec![f64::NEG_INFINITY; count];
    x.iter().zip(&to).for_each(|(x, t)| top[*t] = top[*t].max(*x));
    let fold = |start: f64, f: &dyn Fn(f64, f64) -> f64| {
        let mut acc = vec![start; count];
        x.iter().zip(&to).for_each(|(x, t)| acc[*t] = f(acc[*t], *x));
        acc
    };
    let each = |v: Vec<f64>, f: &dyn Fn(f64) -> f64| v.into_iter().map(f).collect::<Vec<f64>>();
    if x.iter().any(|x| x.is_nan()) {
        return None;
    }
    Some(match view.op() {
        "ReduceSum" => fold(0.0, &|a, x| a + x),
        "ReduceMean" => each(fold(0.0, &|a, x| a + x), &|s| s / n),
        "ReduceMax" => top,
        "ReduceMin" => fold(f64::INFINITY, &f64::min),
        "ReduceProd" => fold(1.0, &|a, x| a * x),
        "ReduceL1" => fold(0.0, &|a, x| a + x.abs()),
        "ReduceL2" => each(fold(0.0, &|a, x| a + x * x), &f64::sqrt),
        "ReduceSumSquare" => fold(0.0, &|a, x| a + x * x),
        "ReduceLogSum" => each(fold(0.0, &|a, x| a + x), &libm::log),
        "ReduceLogSumExp" => {
            let mut acc = vec![0.0; count];
            x.iter().zip(&to).for_each(|(x, t)| acc[*t] += libm::exp(x - top[*t]));
            acc.iter().zip(&top).map(|(a, t)| t + libm::log(*a)).collect()
        }
        _ => return None,
    })
}

fn softmax(view: &View) -> Option<Vec<f64>> {
    let (mut x, dims) = (numbers(view, 0)?, view.known_dims(0)?);
    let axis = view.axis(dims.len())?;
    let (n, step) = (dims[axis] as usize, strides(&dims)[axis] as usize);
    for first in (0..x.len()).filter(|i| i / step % n == 0) {
        let row = || (0..n).map(|k| first + k * step);
        let top = row().map(|i| x[i]).fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = row().map(|i| libm::exp(x[i] - top)).sum();
        for i in row() {
            let shifted = x[i] - top;
            x[i] = if view.op() == "Softmax" { libm::exp(shifted) / sum } else { shifted - libm::log(sum) };
        }
    }
    Some(x)
}

fn layer_norm(view: &View) -> Option<Vec<f64>> {
    let (mut x, dims) = (numbers(view, 0)?, view.known_dims(0)?);
    let axis = view.axis(dims.len())?;
    let row = dims[axis..].iter().product::<i64>().max(1) as usize;
    let epsilon = f64::from(view.node.float("epsilon"));
    let gamma = spread(view, 1, &dims[axis..])?;
    let beta = if view.has(2) { spread(view, 2, &dims[axis..])? } else { vec![0.0; row] };
    // The statistics are outputs too; nobody reads them in a model for inference.
    if view.node.outputs.iter().skip(1).any(Option::is_some) {
        return None;
    }
    for r in x.chunks_mut(row) {
        let mean = r.iter().sum::<f64>() / row as f64;
        let var = r.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / row as f64;
        let inv = 1.0 / (var + epsilon).sqrt();
        r.iter_mut().zip(gamma.iter().zip(&beta)).for_each(|(x, (g, b))| *x = (*x - mean) * inv * g + b);
    }
    Some(x)
}

/// With the statistics given, or, as it trains, with those of each channel of its input.
fn batch_norm(view: &View) -> Option<Vec<f64>> {
    let (mut x, dims) = (numbers(view, 0)?, view.known_dims(0)?);
    let n = usize::try_from(*dims.get(1)?).ok()?;
    let [gamma, beta, means, variances] = [1, 2, 3, 4].map(|i| numbers(view, i).filter(|v| v.len() == n));
    let (gamma, beta, means, variances) = (gamma?, beta?, means?, variances?);
    let epsilon = f64::from(view.node.float("epsilon"));
    let trains = view.node.int("training_mode") != 0;
    let inner = dims[2..].iter().product::<i64>() as usize;
    if x.is_empty() {
        return Some(x);
    }
    for c in 0..n {
        let at: Vec<usize> = (c * inner..x.len()).step_by(n * inner).flat_map(|i| i..i + inner).collect();
        let (mut mean, mut variance) = (means[c], variances[c]);
        if trains {
            mean = at.iter().map(|i| x[*i]).sum::<f64>() / at.len() as f64;
            variance = at.iter().map(|i| (x[*i] - mean).powi(2)).sum::<f64>() / at.len() as f64;
        }
        let scale = gamma[c] / (variance + epsilon).sqrt();
        at.iter().for_each(|i| x[*i] = (x[*i] - mean) * scale + beta[c]);
    }
    Some(x)
}

/// `rows x inner` times `inner x cols`, sums in double precision.
fn product(a: &[f64], b: &[f64], inner: usize, cols: usize, out: &mut [f64]) {
    out.par_chunks_mut(cols.max(1)).enumerate().for_each(|(r, out)| {
        for (k, a) in a[r * inner..(r + 1) * inner].iter().enumerate() {
            out.iter_mut().zip(&b[k * cols..(k + 1) * cols]).for_each(|(o, b)| *o += a * b);
        }
    });
}

fn matmul(view: &View, dims: &[i64]) -> Option<Vec<f64>> {
    let (da, db) = (view.known_dims(0)?, view.known_dims(1)?);
    if da.len() < 2 || db.len() < 2 {
        return None;
    }
    let ((ba, ma), (bb, mb)) = (da.split_at(da.len() - 2), db.split_at(db.len() - 2));
    let (rows, inner, cols) = (ma[0] as usize, ma[1] as usize, mb[1] as usize);
    let batch = &dims[..dims.len() - 2];
    let places = |own: &[i64]| broadcast_places(own, batch);
    let (pa, pb) = (places(ba)?, places(bb)?);
    let all = pa.len().checked_mul(rows)?.checked_mul(inner)?.checked_mul(cols)?;
    if mb[0] != ma[1] || all > MAX_PRODUCTS {
        return None;
    }
    let (a, b) = (numbers(view, 0)?, numbers(view, 1)?);
    let mut out = vec![0.0; pa.len() * rows * cols];
    for (out, (i, j)) in out.chunks_mut((rows * cols).max(1)).zip(pa.iter().zip(&pb)) {
        product(&a[i * rows * inner..], &b[j * inner * cols..], inner, cols, out);
    }
    Some(out)
}

fn gemm(view: &View, dims: &[i64]) -> Option<Vec<f64>> {
    let read = |i: usize, flag: &str| -> Option<(Vec<f64>, i64, i64)> {
        let (v, d) = (numbers(view, i)?, view.known_dims(i)?);
        let [r, c] = d[..] else { return None };
        if view.int(flag) == 0 {
            return Some((v, r, c));
        }
        Some((walk(&[c, r], 0, &[1, c]).into_iter().map(|j| v[j]).collect(), c, r))
    };
    let ((a, rows, inner), (b, same, cols)) = (read(0, "transA")?, read(1, "transB")?);
    let all = (rows as usize).checked_mul(inner as usize)?.checked_mul(cols as usize)?;
    if inner != same || all > MAX_PRODUCTS {
        return None;
    }
    let factor = |name: &str| f64::from(view.node.attrs.float(name).unwrap_or(1.0));
    let mut out = vec![0.0; (rows * cols) as usize];
    product(&a, &b, inner as usize, cols as usize, &mut out);
    out.iter_mut().for_each(|x| *x *= factor("alpha"));
    if view.has(2) {
        out.iter_mut().zip(spread(view, 2, dims)?).for_each(|(x, c)| *x += factor("beta") * c);
    }
    Some(out)
}

fn range(view: &View, ty: DType) -> Option<Tensor> {
    let at = |i: usize| numbers(view, i)?.first().copied();
    let (start, end, step) = (at(0)?, at(1)?, at(2)?);
    let n = ((end - start) / step).ceil().max(0.0);
    if !n.is_finite() || n > (MAX_FOLD_BYTES / 8) as f64 {
        return None;
    }
    tensor(ty, &[n as i64], &(0..n as usize).map(|i| start + i as f64 * step).collect::<Vec<_>>())
}
