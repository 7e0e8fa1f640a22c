//! Weights times values, where the weights are known from codes of scores.
//!
//! A MatMul whose left operand is a Softmax, whose input is a function of 8-bit codes of scores and of the largest of each
//! row, with per-head constants: what Log-Int-Softmax leaves of attention. That function is computed once for every code below
//! every largest one, by the operators themselves; it gives the weights ([`RowWeights`]). One operator then reads the codes
//! of scores and of values, and no tensor of floats with an element for each pair of tokens is left.
//!
//! The contract: weights before division have 23 bits after the point; their sum and the weighted sum of the values are
//! exact, and the quotient is rounded once. That is about as close to the exact result as a sum of floats; codes after it may
//! differ by one from another runtime's where the value is close to a tie. Weights that 23 bits would not hold well enough
//! for their number are left to the operators.

use std::sync::Arc;

use tract_onnx::tract_core::ops::binary::TypedBinOp;
use tract_onnx::tract_core::ops::cast::Cast;
use tract_onnx::tract_core::ops::element_wise::ElementWiseOp;
use tract_onnx::tract_core::ops::identity::Identity;
use tract_onnx::tract_core::ops::nn::{Reduce, Reducer, Softmax, SoftmaxKind};
use tract_onnx::tract_hir::internal::*;

use super::absorb;
use super::ask::{code_bytes, constant};
use super::codes::{LONGEST, codes};
use super::gemm::{Isa, Left, Operand, Side, Strip, multiply};
use super::product::{Output, Work, with_work};
use super::qdq::Qdq;
use super::steps::{Place, Step, Steps};
use super::table::{Channels, LARGEST, run};
use super::weights::RowWeights;
use crate::quant::wide::wide;

/// The operator as it runs. Its inputs are the codes of scores and of values.
#[derive(Clone, Debug)]
pub struct Attend {
    weights: Arc<RowWeights>,
    /// The axis of heads; with one head, any.
    axis: usize,
    /// Scale and zero point of the values.
    value: (f32, i32),
    steps: Steps,
    out: DatumType,
}

impl PartialEq for Attend {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.weights, &other.weights)
            && (self.axis, self.value, self.out) == (other.axis, other.value, other.out)
            && self.steps == other.steps
    }
}

/// As for [`Product`](super::product::Product).
impl Eq for Attend {}

/// A MatMul of a Softmax of codes with values that are codes; `None` if it is none.
pub fn fuse(name: &str, target: &mut TypedModel, inputs: &[OutletId]) -> TractResult<Option<TVec<OutletId>>> {
    let softmax = target.node(inputs[0].node);
    let Some(op) = softmax.op_as::<Softmax>() else { return Ok(None) };
    let shape = target.outlet_fact(inputs[0])?.shape.clone();
    let rank = shape.rank();
    let last = op.axes[..] == [rank.wrapping_sub(1)] && op.kind == SoftmaxKind::Softmax;
    if !last || rank < 3 || softmax.outputs[0].fact.datum_type != f32::datum_type() {
        return Ok(None);
    }
    // One matrix of values for each matrix of weights.
    let values = target.outlet_fact(inputs[1])?.shape.clone();
    if values.rank() != rank || values[..rank - 2] != shape[..rank - 2] {
        return Ok(None);
    }
    let keys = values[rank - 2].to_usize().ok().filter(|keys| (1..=LONGEST).contains(keys));
    let Some(keys) = keys else { return Ok(None) };
    let read = softmax.inputs[0];
    let Some(largest) = largest_of_rows(target, read) else { return Ok(None) };
    let scores = target.node(largest).inputs[0];
    let fact = target.outlet_fact(scores)?;
    if fact.datum_type != DatumType::U8 || fact.shape != shape || fact.konst.is_some() {
        return Ok(None);
    }
    let Some((order, channels)) = between(target, read, scores, largest.into()) else { return Ok(None) };
    let heads = match channels.axis() {
        None => None,
        Some(axis) if axis + 2 < rank => match shape[axis].to_usize() {
            Ok(n) => Some((axis, n)),
            Err(_) => return Ok(None),
        },
        Some(_) => return Ok(None),
    };
    let Some(logits) = tabulate(target, &order, [scores, largest.into()], rank, heads)? else { return Ok(None) };
    let Some(weights) = RowWeights::of(&logits, keys) else { return Ok(None) };
    let Some(v) = codes(target, inputs[1], &format!("{name}.b"))? else { return Ok(None) };
    let Some(value) = v.single() else { return Ok(None) };
    let steps = Steps::default().with(Step::Float);
    let axis = heads.map_or(0, |h| h.0);
    let op = Attend { weights: Arc::new(weights), axis, value, steps, out: f32::datum_type() };
    target.wire_node(name, op, &[scores, v.outlet]).map(Some)
}

fn pointwise(n: &TypedNode) -> bool {
    let each = n.op_is::<ElementWiseOp>() || n.op_is::<TypedBinOp>() || n.op_is::<Cast>();
    (each || n.op_is::<Identity>() || n.op_is::<Qdq>()) && n.outputs.len() == 1
}

/// The node that takes the largest of each row, from which a value comes by operators on single elements.
fn largest_of_rows(model: &TypedModel, value: OutletId) -> Option<usize> {
    let rank = model.outlet_fact(value).ok()?.rank();
    let mut seen = vec![value.node];
    let mut at = 0;
    while at < seen.len() && seen.len() <= LARGEST {
        let n = model.node(seen[at]);
        at += 1;
        if let Some(r) = n.op_as::<Reduce>() {
            if r.reducer == Reducer::Max && r.axes[..] == [rank - 1] {
                return Some(n.id);
            }
        } else if pointwise(n) {
            let fresh: Vec<usize> = n.inputs.iter().map(|i| i.node).filter(|i| !seen.contains(i)).collect();
            seen.extend(fresh);
        }
    }
    None
}

/// The nodes between the scores and their largest ones on one side and a value on the other, in the order they run, and
/// where their constants differ; `None` if anything else is read.
fn between(model: &TypedModel, value: OutletId, scores: OutletId, largest: OutletId) -> Option<(Vec<usize>, Channels)> {
    let rank = model.outlet_fact(value).ok()?.rank();
    let mut channels = Channels::default();
    let mut order: Vec<usize> = Vec::new();
    // Nodes to visit; `true` once their inputs are in order.
    let mut stack = vec![(value.node, false)];
    while let Some((id, ready)) = stack.pop() {
        if order.contains(&id) {
            continue;
        }
        if ready {
            order.push(id);
            continue;
        }
        let n = model.node(id);
        if !pointwise(n) || n.outputs[0].fact.rank() != rank || order.len() + stack.len() > LARGEST {
            return None;
        }
        if n.op_as::<Qdq>().is_some_and(|q| !channels.take_grain(q.params())) {
            return None;
        }
        stack.push((id, true));
        for i in n.inputs.iter().filter(|i| **i != scores && **i != largest) {
            match constant(model, *i).ok()? {
                Some(k) if k.len() == 1 || k.rank() == rank && channels.take_constant(&k) => {}
                Some(_) => return None,
                None => stack.push((i.node, false)),
            }
        }
    }
    Some((order, channels))
}

/// Runs the nodes on every code below every largest one, of each head: what Softmax reads.
fn tabulate(
    model: &TypedModel,
    order: &[usize],
    [scores, largest]: [OutletId; 2],
    rank: usize,
    heads: Option<(usize, usize)>,
) -> TractResult<Option<Vec<f32>>> {
    let mut shape: TVec<usize> = tvec![1; rank];
    if let Some((axis, n)) = heads {
        shape[axis] = n;
    }
    let rows = 256 * heads.map_or(1, |h| h.1);
    shape[rank - 2] = 256;
    let of_rows = Tensor::from_shape(&shape, &(0..rows).map(|r| r as u8).collect::<Vec<u8>>())?;
    shape[rank - 1] = 256;
    let all = Tensor::from_shape(&shape, &(0..rows * 256).map(|i| i as u8).collect::<Vec<u8>>())?;
    let mut values: HashMap<OutletId, TValue> = HashMap::default();
    values.insert(scores, all.into_tvalue());
    values.insert(largest, of_rows.into_tvalue());
    for id in order {
        let n = model.node(*id);
        let mut inputs = tvec!();
        for i in &n.inputs {
            match (values.get(i), constant(model, *i)?) {
                (Some(v), _) => inputs.push(v.clone()),
                (None, Some(k)) => inputs.push(k.into_tvalue()),
                (None, None) => return Ok(None),
            }
        }
        let Some(value) = run(&*n.op, inputs)? else { return Ok(None) };
        values.insert((*id).into(), value);
    }
    let Some(read) = order.last().and_then(|id| values.get(&(*id).into())) else { return Ok(None) };
    if read.datum_type() != f32::datum_type() || read.len() != rows * 256 {
        return Ok(None);
    }
    Ok(Some(read.try_as_plain_ram()?.as_slice::<f32>()?.to_vec()))
}

impl Attend {
    fn run(&self, scores: &Tensor, values: &Tensor, work: &mut Work) -> TractResult<Tensor> {
        let isa = Isa::best();
        let (shape, v) = (scores.shape(), values.shape());
        let rank = shape.len();
        ensure!(
            v.len() == rank && v[..rank - 2] == shape[..rank - 2] && v[rank - 2] == shape[rank - 1],
            "values of shape {v:?} do not fit scores of shape {shape:?}"
        );
        let [rows, keys, cols] = [shape[rank - 2], shape[rank - 1], v[rank - 1]];
        let (codes, _) = code_bytes(scores)?;
        let (value_codes, signed) = code_bytes(values)?;
        let mut made: TVec<usize> = shape.into();
        made[rank - 1] = cols;
        let mut out = Output::new(self.out, &made)?;
        if codes.is_empty() || cols == 0 {
            return Ok(out.tensor);
        }
        // Matrices of one head that follow each other.
        let inner: usize = shape[self.axis + 1..rank - 2].iter().product();
        let (heads, digits) = (self.weights.heads(), self.weights.digits());
        let stride = keys.next_multiple_of(4);
        let mut planes = std::mem::take(&mut work.codes);
        planes.resize(digits * rows * stride, 0);
        let mut totals = vec![0f64; rows];
        for i in 0..codes.len() / (rows * keys) {
            let head = if heads == 1 { 0 } else { i / inner % heads };
            let of = &codes[i * rows * keys..(i + 1) * rows * keys];
            self.weights.fill(head, of, keys, stride, &mut planes, &mut totals);
            // What a sum of weighted codes is multiplied with.
            totals.iter_mut().for_each(|t| *t = self.value.0 as f64 / *t);
            let left = Operand {
                codes: &planes,
                signed: false,
                lines: digits * rows,
                depth: keys,
                line_stride: stride,
                depth_stride: 1,
                zero: &[0],
            };
            let right = Operand {
                codes: &value_codes[i * keys * cols..(i + 1) * keys * cols],
                signed,
                lines: cols,
                depth: keys,
                line_stride: 1,
                depth_stride: cols,
                zero: &[self.value.1],
            };
            work.right.pack(isa, Side::Right, right);
            let left = Left::of(isa, left, &mut work.left);
            let mut to = out.part(i * rows * cols, rows * cols)?;
            multiply(left, &work.right, &mut work.scratch, &mut |strip| {
                let Strip { sums, width, first, cols: count, .. } = strip;
                let size = rows * width;
                work.floats.resize(size, 0.0);
                mean(sums, digits, width, &totals, &mut work.floats);
                let strip = Strip { sums: &mut sums[..size], width, rows, first, cols: count };
                self.steps.finish_floats(strip, 0, &mut work.floats, &mut to, Place { row: cols, col: 1 });
            });
        }
        work.codes = planes;
        Ok(out.tensor)
    }
}

wide! {
    /// Sums of digits, one matrix after the other, as the values they stand for.
    fn mean(sums: &[i32], digits: usize, width: usize, factors: &[f64], to: &mut [f32]) {
        let size = to.len();
        for (r, (to, factor)) in to.chunks_exact_mut(width).zip(factors).enumerate() {
            let to = &mut to[..width];
            let at = |digit: usize| &sums[digit * size + r * width..][..width];
            match digits {
                1 => {
                    let a = at(0);
                    for c in 0..width {
                        to[c] = (a[c] as f64 * factor) as f32;
                    }
                }
                2 => {
                    let (a, b) = (at(0), at(1));
                    for c in 0..width {
                        to[c] = ((a[c] as f64 + 256.0 * b[c] as f64) * factor) as f32;
                    }
                }
                _ => {
                    let (a, b, d) = (at(0), at(1), at(2));
                    for c in 0..width {
                        to[c] = ((a[c] as f64 + 256.0 * b[c] as f64 + 65536.0 * d[c] as f64) * factor) as f32;
                    }
                }
            }
        }
    }
}

impl Op for Attend {
    fn name(&self) -> StaticName {
        "CodeAttend".into()
    }

    fn info(&self) -> TractResult<Vec<String>> {
        Ok(vec![format!("{} digits, {:?}", self.weights.digits(), self.out)])
    }

    op_as_typed_op!();
}

impl EvalOp for Attend {
    op_out_of_plan!();

    fn eval(&self, _ctx: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let (scores, values) = args_2!(inputs);
        Ok(tvec!(with_work(|w| self.run(&scores, &values, w))?.into_tvalue()))
    }
}

impl TypedOp for Attend {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        let mut shape = inputs[0].shape.clone();
        let rank = shape.rank();
        shape.set(rank - 1, inputs[1].shape[rank - 1].clone());
        Ok(tvec!(self.out.fact(shape)))
    }

    fn declutter(&self, model: &TypedModel, node: &TypedNode) -> TractResult<Option<TypedModelPatch>> {
        let rank = node.outputs[0].fact.rank();
        let Some((steps, out)) = absorb::next(model, node, &self.steps, rank - 1)? else { return Ok(None) };
        TypedModelPatch::fuse_with_next(model, node, Attend { steps, out, ..self.clone() }).map(Some)
    }

    as_op!();
}
