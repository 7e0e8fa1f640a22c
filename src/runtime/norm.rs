//! LayerNorm of values that are codes.
//!
//! Where a LayerNormalization over the last axis reads what comes from 8-bit codes by DequantizeLinear and constants a
//! channel, one operator reads the codes themselves, a row at a time: the row's floats stay in the nearest cache from the
//! codes on to those that come out. The input's operators round as they would alone; sums are taken in sixteen lanes, in the
//! same order on every processor.

use std::sync::Arc;

use tract_onnx::tract_core::ops::binary::TypedBinOp;
use tract_onnx::tract_core::ops::math::{Add, Mul, Sub};
use tract_onnx::tract_hir::internal::*;

use super::absorb::{self, by_column};
use super::ask::{code_bytes, constant};
use super::gemm::Strip;
use super::product::{Output, Work, with_work};
use super::qdq::Qdq;
use super::steps::{Place, Step, Steps};
use crate::quant::kernel::dequantize;
use crate::quant::wide::wide;

/// The operator as it runs. Its input is codes.
#[derive(Clone, Debug, PartialEq)]
pub struct CodeNorm {
    /// The numbers of DequantizeLinear, for each column.
    scale: Arc<Vec<f32>>,
    zero: Arc<Vec<i32>>,
    /// Products and sums on the way to the LayerNorm, in order.
    before: Arc<Vec<Step>>,
    epsilon: f32,
    gain: Arc<Vec<f32>>,
    bias: Arc<Vec<f32>>,
    steps: Steps,
    out: DatumType,
}

/// As for [`Product`](super::product::Product).
impl Eq for CodeNorm {}

/// A LayerNormalization over the last axis whose input comes from codes; `None` if it does not.
pub fn fuse(
    name: &str,
    target: &mut TypedModel,
    inputs: &[OutletId],
    (axis, epsilon): (i64, f32),
) -> TractResult<Option<TVec<OutletId>>> {
    let fact = target.outlet_fact(inputs[0])?;
    let Some(last) = fact.rank().checked_sub(1) else { return Ok(None) };
    let Some(cols) = fact.shape[last].to_usize().ok().filter(|c| *c > 0) else { return Ok(None) };
    if axis != -1 && axis != last as i64 || fact.datum_type != f32::datum_type() {
        return Ok(None);
    }
    let column = |at: usize, missing: f32| -> TractResult<Option<Vec<f32>>> {
        let Some(input) = inputs.get(at) else { return Ok(Some(vec![missing; cols])) };
        let Some(k) = constant(target, *input)? else { return Ok(None) };
        by_column::<f32>(&k, k.rank().saturating_sub(1), cols)
    };
    let (Some(gain), Some(bias)) = (column(1, 1.0)?, column(2, 0.0)?) else { return Ok(None) };
    let Some((codes, scale, zero, before)) = origin(target, inputs[0], last, cols)? else { return Ok(None) };
    let op = CodeNorm {
        scale: Arc::new(scale),
        zero: Arc::new(zero),
        before: Arc::new(before),
        epsilon,
        gain: Arc::new(gain),
        bias: Arc::new(bias),
        steps: Steps::default().with(Step::Float),
        out: f32::datum_type(),
    };
    target.wire_node(name, op, &[codes]).map(Some)
}

/// Codes, scales, zero points, and what is done to the values of the codes.
type Origin = (OutletId, Vec<f32>, Vec<i32>, Vec<Step>);

/// Where a value comes from, if that is codes by way of products and sums with one constant per column.
fn origin(model: &TypedModel, value: OutletId, axis: usize, cols: usize) -> TractResult<Option<Origin>> {
    let shape = &model.outlet_fact(value)?.shape;
    let mut steps = Vec::new();
    let mut at = value;
    loop {
        let node = model.node(at.node);
        if model.outlet_fact(at)?.shape != *shape {
            return Ok(None);
        }
        if let Some(params) = node.op_as::<Qdq>().and_then(Qdq::dequantizes) {
            let codes = model.outlet_fact(node.inputs[0])?;
            if !matches!(codes.datum_type, DatumType::U8 | DatumType::I8) || codes.konst.is_some() {
                return Ok(None);
            }
            let Some(r) = params.columns(axis, cols) else { return Ok(None) };
            steps.reverse();
            return Ok(Some((node.inputs[0], r.scale, r.zero, steps)));
        }
        let Some(op) = node.op_as::<TypedBinOp>().filter(|op| op.1.is_none()) else { return Ok(None) };
        let (from, k, second) = match (constant(model, node.inputs[0])?, constant(model, node.inputs[1])?) {
            (None, Some(k)) => (node.inputs[0], k, true),
            (Some(k), None) => (node.inputs[1], k, false),
            _ => return Ok(None),
        };
        let Some(v) = by_column::<f32>(&k, axis, cols)? else { return Ok(None) };
        if op.0.is::<Add>() {
            steps.push(Step::Add(v));
        } else if op.0.is::<Mul>() {
            steps.push(Step::Mul(v));
        } else if op.0.is::<Sub>() && second {
            steps.push(Step::Add(v.into_iter().map(|x| -x).collect()));
        } else {
            return Ok(None);
        }
        at = from;
    }
}

/// Rows that are normalized before they become codes.
const ROWS: usize = 16;

impl CodeNorm {
    fn run(&self, x: &Tensor, work: &mut Work) -> TractResult<Tensor> {
        let (codes, signed) = code_bytes(x)?;
        let cols = self.gain.len();
        ensure!(x.shape().last() == Some(&cols), "{:?} codes for a LayerNorm of {cols} channels", x.shape());
        let mut out = Output::new(self.out, x.shape())?;
        let mut sums = vec![0i32; ROWS * cols];
        for (block, part) in codes.chunks(ROWS * cols).enumerate() {
            work.floats.resize(part.len(), 0.0);
            for (from, to) in part.chunks_exact(cols).zip(work.floats.chunks_exact_mut(cols)) {
                values(from, signed, &self.scale, &self.zero, to);
                for step in &*self.before {
                    match step {
                        Step::Add(v) => add(to, v),
                        Step::Mul(v) => mul(to, v),
                        _ => bail!("a LayerNorm of codes does not know {step:?}"),
                    }
                }
                normalize(to, self.epsilon, &self.gain, &self.bias);
            }
            let rows = part.len() / cols;
            let strip = Strip { sums: &mut sums[..part.len()], width: cols, rows, first: 0, cols };
            let mut to = out.part(block * ROWS * cols, part.len())?;
            self.steps.finish_floats(strip, 0, &mut work.floats, &mut to, Place { row: cols, col: 1 });
        }
        Ok(out.tensor)
    }
}

/// Sums that are taken side by side.
const LANES: usize = 16;

/// The sum of what `f` makes of each element.
#[inline(always)]
fn total(x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let (parts, rest) = x.as_chunks::<LANES>();
    for part in parts {
        for i in 0..LANES {
            lanes[i] += f(part[i]);
        }
    }
    for (lane, x) in lanes.iter_mut().zip(rest) {
        *lane += f(*x);
    }
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

wide! {
    fn values(codes: &[u8], signed: bool, scale: &[f32], zero: &[i32], to: &mut [f32]) {
        let n = to.len();
        let (codes, scale, zero) = (&codes[..n], &scale[..n], &zero[..n]);
        if signed {
            for i in 0..n {
                to[i] = dequantize(codes[i] as i8 as i32, scale[i], zero[i]);
            }
        } else {
            for i in 0..n {
                to[i] = dequantize(codes[i] as i32, scale[i], zero[i]);
            }
        }
    }

    fn add(x: &mut [f32], v: &[f32]) {
        x.iter_mut().zip(v).for_each(|(x, v)| *x += v);
    }

    fn mul(x: &mut [f32], v: &[f32]) {
        x.iter_mut().zip(v).for_each(|(x, v)| *x *= v);
    }

    /// Mean 0 and variance 1, then gain and bias.
    fn normalize(x: &mut [f32], epsilon: f32, gain: &[f32], bias: &[f32]) {
        let n = x.len();
        let mean = total(x, |x| x) / n as f32;
        x.iter_mut().for_each(|x| *x -= mean);
        let variance = total(x, |d| d * d) / n as f32;
        let factor = 1.0 / (variance + epsilon).sqrt();
        let (gain, bias) = (&gain[..n], &bias[..n]);
        for i in 0..n {
            x[i] = x[i] * factor * gain[i] + bias[i];
        }
    }
}

impl Op for CodeNorm {
    fn name(&self) -> StaticName {
        "CodeNorm".into()
    }

    op_as_typed_op!();
}

impl EvalOp for CodeNorm {
    op_out_of_plan!();

    fn eval(&self, _ctx: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let x = args_1!(inputs);
        Ok(tvec!(with_work(|w| self.run(&x, w))?.into_tvalue()))
    }
}

impl TypedOp for CodeNorm {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        Ok(tvec!(self.out.fact(inputs[0].shape.clone())))
    }

    fn declutter(&self, model: &TypedModel, node: &TypedNode) -> TractResult<Option<TypedModelPatch>> {
        let Some(last) = node.outputs[0].fact.rank().checked_sub(1) else { return Ok(None) };
        let Some((steps, out)) = absorb::next(model, node, &self.steps, last)? else { return Ok(None) };
        TypedModelPatch::fuse_with_next(model, node, CodeNorm { steps, out, ..self.clone() }).map(Some)
    }

    as_op!();
}
