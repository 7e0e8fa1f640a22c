//! Products of codes as a tract operator: MatMulInteger, and what MatMul and Gemm between codes become.
//!
//! The operator multiplies codes exactly ([`gemm`](super::gemm)) and applies what follows it, as far as that is one
//! constant per column: an integer bias, the scale, a float bias, a factor, QuantizeLinear ([`Steps`]). Weights are packed when
//! the model is loaded.

use std::cell::RefCell;
use std::sync::Arc;

use tract_onnx::Onnx;
use tract_onnx::model::optional_inputs;
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_hir::internal::*;
use tract_onnx::tract_hir::ops::matmul::compute_shapes;

use super::absorb;
use super::ask::code_bytes;
use super::gemm::{Isa, Left, Operand, Packed, Scratch, Side, multiply};
use super::steps::{Out, Place, Steps};

/// Puts MatMulInteger in place of tract's.
pub fn register(onnx: &mut Onnx) {
    onnx.op_register.insert("MatMulInteger", |_, node: &NodeProto| {
        let mut optional = optional_inputs(node).skip(2);
        let zeros = [optional.next().flatten(), optional.next().flatten()];
        Ok((expand(MatMulInteger { zeros }), vec![]))
    });
}

/// A zero point: known when the model is loaded, or an input of the operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Zero {
    Known(Arc<Vec<i32>>),
    Input(usize),
}

/// The right operand, packed.
#[derive(Debug)]
pub struct Weights {
    /// One for each index of the leading axes.
    pub packed: Vec<Packed>,
    /// Shape as it was given, without axes swapped.
    pub shape: TVec<usize>,
}

/// The operator as it runs. Its inputs are the left codes, the right codes where these are no constant, and the zero points
/// that are computed.
#[derive(Clone, Debug)]
pub struct Product {
    /// Whether the last two axes of an operand are swapped.
    pub transposed: [bool; 2],
    pub zeros: [Zero; 2],
    pub weights: Option<Arc<Weights>>,
    pub steps: Steps,
    /// Type of what comes out.
    pub out: DatumType,
}

impl PartialEq for Product {
    fn eq(&self, other: &Self) -> bool {
        let same = match (&self.weights, &other.weights) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            (a, b) => a.is_none() && b.is_none(),
        };
        same && self.transposed == other.transposed
            && self.zeros == other.zeros
            && self.steps == other.steps
            && self.out == other.out
    }
}

/// Constants are compared as numbers; a NaN among them merely keeps two equal nodes apart.
impl Eq for Product {}

/// Memory that products need on the way, one for each thread.
#[derive(Default)]
pub struct Work {
    pub left: Packed,
    pub right: Packed,
    pub scratch: Scratch,
    pub floats: Vec<f32>,
    pub codes: Vec<u8>,
}

/// Lends this thread's memory for products.
pub fn with_work<T>(f: impl FnOnce(&mut Work) -> T) -> T {
    thread_local!(static WORK: RefCell<Work> = RefCell::default());
    WORK.with(|w| match w.try_borrow_mut() {
        Ok(mut w) => f(&mut w),
        Err(_) => f(&mut Work::default()),
    })
}

/// The zero point's numbers.
pub fn zero_points(t: &Tensor) -> TractResult<Vec<i32>> {
    Ok(t.cast_to::<i32>()?.try_as_plain_ram()?.as_slice::<i32>()?.to_vec())
}

/// One matrix of a tensor of matrices.
struct Matrices<'a> {
    codes: &'a [u8],
    signed: bool,
    lines: usize,
    depth: usize,
    line_stride: usize,
    depth_stride: usize,
    zero: &'a [i32],
}

impl<'a> Matrices<'a> {
    /// `shape` is of the last two axes as stored; `swapped` tells that lines are the last of them.
    fn new((codes, signed): (&'a [u8], bool), shape: [usize; 2], swapped: bool, zero: &'a [i32]) -> Matrices<'a> {
        let [rows, cols] = shape;
        let (lines, depth, line_stride, depth_stride) =
            if swapped { (cols, rows, 1, cols) } else { (rows, cols, cols, 1) };
        Matrices { codes, signed, lines, depth, line_stride, depth_stride, zero }
    }

    fn at(&self, index: usize) -> Operand<'a> {
        let size = self.lines * self.depth;
        let zero = match self.zero.len() {
            n if n == 1 || n == self.lines => self.zero,
            // One for each line of each matrix.
            _ => &self.zero[index * self.lines..(index + 1) * self.lines],
        };
        Operand {
            codes: &self.codes[index * size..(index + 1) * size],
            signed: self.signed,
            lines: self.lines,
            depth: self.depth,
            line_stride: self.line_stride,
            depth_stride: self.depth_stride,
            zero,
        }
    }

    fn check(&self, what: &str) -> TractResult<()> {
        let count = self.codes.len().checked_div(self.lines * self.depth).unwrap_or(0);
        let n = self.zero.len();
        ensure!(
            n == 1 || n == self.lines || n == count * self.lines,
            "{n} zero points do not fit {what} of {} lines",
            self.lines
        );
        Ok(())
    }
}

impl Weights {
    /// Packs a tensor of weights: the last two axes are depth and columns, or the other way round if `transposed`.
    pub fn pack(t: &Tensor, transposed: bool, zero: &[i32]) -> TractResult<Weights> {
        let shape = t.shape();
        let last = [shape[shape.len() - 2], shape[shape.len() - 1]];
        let all = Matrices::new(code_bytes(t)?, last, !transposed, zero);
        all.check("weights")?;
        let count: usize = shape[..shape.len() - 2].iter().product();
        let packed = (0..count).map(|i| {
            let mut p = Packed::default();
            p.pack(Isa::best(), Side::Right, all.at(i));
            p
        });
        Ok(Weights { packed: packed.collect(), shape: shape.into() })
    }
}

/// For each matrix of a product, which of the left and which of the right matrices it is the product of.
type Pairs = Vec<(usize, usize)>;

/// The leading axes of a product, and where each of its matrices finds its operands.
fn pairs(a: &[usize], b: &[usize]) -> TractResult<(TVec<usize>, Pairs)> {
    let dims = tract_onnx::tract_core::broadcast::multi_broadcast(&[a, b])?;
    let rank = dims.len();
    let index = |shape: &[usize], at: &[usize]| {
        let skip = rank - shape.len();
        shape.iter().zip(&at[skip..]).fold(0, |i, (d, x)| i * d + if *d == 1 { 0 } else { *x })
    };
    let mut at: TVec<usize> = tvec![0; rank];
    let mut out = Vec::new();
    for _ in 0..dims.iter().product() {
        out.push((index(a, &at), index(b, &at)));
        for (x, d) in at.iter_mut().zip(&dims).rev() {
            *x += 1;
            if *x < *d {
                break;
            }
            *x = 0;
        }
    }
    Ok((dims, out))
}

impl Product {
    /// Number of inputs that are codes.
    fn operands(&self) -> usize {
        2 - self.weights.is_some() as usize
    }

    fn run(&self, inputs: &[TValue], work: &mut Work) -> TractResult<Tensor> {
        let isa = Isa::best();
        let zero = |i: usize| match &self.zeros[i] {
            Zero::Known(z) => Ok(z.clone()),
            Zero::Input(at) => zero_points(&inputs[*at]).map(Arc::new),
        };
        let (za, zb) = (zero(0)?, zero(1)?);
        let ashape = inputs[0].shape();
        let bshape = self.weights.as_ref().map_or_else(|| inputs[1].shape(), |w| &w.shape);
        let last = |s: &[usize]| [s[s.len() - 2], s[s.len() - 1]];
        let (abatch, bbatch) = (&ashape[..ashape.len() - 2], &bshape[..bshape.len() - 2]);
        let mut a = Matrices::new(code_bytes(&inputs[0])?, last(ashape), self.transposed[0], &za);
        let b = match &self.weights {
            Some(_) => Matrices::new((&[], false), last(bshape), !self.transposed[1], &zb),
            None => Matrices::new(code_bytes(&inputs[1])?, last(bshape), !self.transposed[1], &zb),
        };
        ensure!(a.depth == b.depth, "{} columns do not fit {} rows", a.depth, b.depth);
        a.check("the left operand")?;
        if self.weights.is_none() {
            b.check("the right operand")?;
        }
        let (batch, mut pairs) = pairs(abatch, bbatch)?;
        let shape: TVec<usize> = batch.iter().copied().chain([a.lines, b.lines]).collect();
        if bbatch.iter().all(|d| *d == 1) && !self.transposed[0] && za.len() == 1 {
            // One right operand for all: the left ones are one tall matrix.
            a.lines *= pairs.len();
            pairs = vec![(0, 0); usize::from(!pairs.is_empty())];
        }
        let size = a.lines * b.lines;
        let mut out = Output::new(self.out, &shape)?;
        let mut packed = None;
        for (at, (i, j)) in pairs.into_iter().enumerate() {
            let right = match &self.weights {
                Some(w) => &w.packed[j],
                None => {
                    if packed != Some(j) {
                        work.right.pack(isa, Side::Right, b.at(j));
                        packed = Some(j);
                    }
                    &work.right
                }
            };
            let mut to = out.part(at * size, size)?;
            let place = Place { row: b.lines, col: 1 };
            let left = Left::of(isa, a.at(i), &mut work.left);
            multiply(left, right, &mut work.scratch, &mut |strip| {
                self.steps.finish(strip, 0, &mut work.floats, &mut to, place);
            });
        }
        Ok(out.tensor)
    }
}

/// The tensor a product is written to.
pub struct Output {
    pub tensor: Tensor,
}

impl Output {
    pub fn new(dt: DatumType, shape: &[usize]) -> TractResult<Output> {
        // SAFETY: products write every element, and any bits are numbers.
        Ok(Output { tensor: unsafe { Tensor::uninitialized_dt(dt, shape)? } })
    }

    /// `len` elements from `at`.
    pub fn part(&mut self, at: usize, len: usize) -> TractResult<Out<'_>> {
        let dt = self.tensor.datum_type();
        macro_rules! part {
            ($out:path, $ty:ty) => {{
                // SAFETY: the tensor is plain, lives as long as the borrow of it, and the type of the slice is its own.
                let all = unsafe { self.tensor.as_slice_mut_unchecked::<$ty>() };
                $out(&mut all[at..at + len])
            }};
        }
        Ok(match dt {
            DatumType::I32 => part!(Out::I32, i32),
            DatumType::F32 => part!(Out::F32, f32),
            DatumType::U8 => part!(Out::U8, u8),
            DatumType::I8 => part!(Out::I8, i8),
            DatumType::U16 => part!(Out::U16, u16),
            DatumType::I16 => part!(Out::I16, i16),
            other => bail!("a product of type {other:?} is not supported"),
        })
    }
}

impl Op for Product {
    fn name(&self) -> StaticName {
        "CodeProduct".into()
    }

    fn info(&self) -> TractResult<Vec<String>> {
        Ok(vec![format!("{} steps, {:?}", self.steps.list.len(), self.out)])
    }

    op_as_typed_op!();
}

impl EvalOp for Product {
    op_out_of_plan!();

    fn eval(&self, _ctx: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        Ok(tvec!(with_work(|w| self.run(&inputs, w))?.into_tvalue()))
    }
}

impl TypedOp for Product {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        ensure!(inputs.len() >= self.operands(), "a product of {} inputs", inputs.len());
        let b: TVec<TDim> = match &self.weights {
            Some(w) => w.shape.iter().map(|d| d.to_dim()).collect(),
            None => inputs[1].shape.to_tvec(),
        };
        let a = inputs[0].shape.to_tvec();
        let shape = compute_shapes(a, b, self.transposed[0], self.transposed[1], false)?.3;
        Ok(tvec!(self.out.fact(shape)))
    }

    fn declutter(&self, model: &TypedModel, node: &TypedNode) -> TractResult<Option<TypedModelPatch>> {
        let Some(rank) = node.outputs[0].fact.rank().checked_sub(1) else { return Ok(None) };
        let Some((steps, out)) = absorb::next(model, node, &self.steps, rank)? else { return Ok(None) };
        TypedModelPatch::fuse_with_next(model, node, Product { steps, out, ..self.clone() }).map(Some)
    }

    as_op!();
}

/// MatMulInteger as the file has it: which inputs are zero points.
#[derive(Clone, Debug)]
struct MatMulInteger {
    zeros: [Option<usize>; 2],
}

impl Expansion for MatMulInteger {
    fn name(&self) -> StaticName {
        "MatMulInteger".into()
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        s: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        check_input_arity(inputs, 2 + self.zeros.iter().flatten().count())?;
        check_output_arity(outputs, 1)?;
        s.equals(&outputs[0].datum_type, i32::datum_type())?;
        for (i, zero) in self.zeros.iter().enumerate() {
            if let Some(z) = zero {
                s.equals(&inputs[*z].datum_type, &inputs[i].datum_type)?;
            }
        }
        s.given_2(&inputs[0].shape, &inputs[1].shape, move |s, a, b| {
            s.equals(&outputs[0].shape, compute_shapes(a, b, false, false, false)?.3)
        })
    }

    fn wire(&self, prefix: &str, target: &mut TypedModel, inputs: &[OutletId]) -> TractResult<TVec<OutletId>> {
        let mut operands: TVec<OutletId> = inputs[..2].into();
        // A vector is a matrix of one row on the left, of one column on the right.
        let vectors: TVec<bool> =
            operands.iter().map(|o| Ok(target.outlet_fact(*o)?.rank() == 1)).collect::<TractResult<_>>()?;
        for (i, axis) in [0, 1].into_iter().enumerate() {
            if vectors[i] {
                let name = format!("{prefix}.matrix{i}");
                operands[i] = target.wire_node(name, AxisOp::Add(axis), &[operands[i]])?[0];
            }
        }
        let mut wires = operands.clone();
        let mut zeros = [Zero::Known(Arc::new(vec![0])), Zero::Known(Arc::new(vec![0]))];
        for (i, zero) in self.zeros.iter().enumerate() {
            let Some(z) = zero else { continue };
            zeros[i] = match &target.outlet_fact(inputs[*z])?.konst {
                Some(k) => Zero::Known(Arc::new(zero_points(k)?)),
                None => {
                    wires.push(inputs[*z]);
                    Zero::Input(wires.len() - 1)
                }
            };
        }
        let weights = match (&target.outlet_fact(operands[1])?.konst, &zeros[1]) {
            (Some(k), Zero::Known(z)) => {
                let w = Weights::pack(k, false, z)?;
                wires.remove(1);
                if let Zero::Input(at) = &mut zeros[0] {
                    *at -= 1;
                }
                Some(Arc::new(w))
            }
            _ => None,
        };
        let op = Product { transposed: [false; 2], zeros, weights, steps: Steps::default(), out: i32::datum_type() };
        let mut wire = target.wire_node(prefix, op, &wires)?;
        let rank = target.outlet_fact(wire[0])?.rank();
        for (i, axis) in [(1, rank - 1), (0, rank - 2)] {
            if vectors[i] {
                wire = target.wire_node(format!("{prefix}.vector{i}"), AxisOp::Rm(axis), &wire)?;
            }
        }
        Ok(wire)
    }
}
