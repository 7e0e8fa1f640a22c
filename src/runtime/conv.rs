//! Convolutions of codes as a tract operator: ConvInteger, and what Conv between codes becomes.
//!
//! The patches under the kernel are written out as rows of a matrix of codes (where a patch hangs over the border, the
//! zero point stands), and that is multiplied with the weights as in [`Product`](super::product::Product). Groups of a few
//! channels (depthwise convolutions) would leave most of a kernel's tile empty; their sums are taken one by one.

use std::sync::Arc;

use tract_onnx::Onnx;
use tract_onnx::model::{ParsingContext, optional_inputs};
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_core::ops::cnn::PaddingSpec;
use tract_onnx::tract_core::ops::cnn::conv::KernelFormat;
use tract_onnx::tract_core::ops::nn::DataFormat;
use tract_onnx::tract_hir::internal::*;
use tract_onnx::tract_hir::ops::cnn::Conv;

use super::absorb;
use super::ask::code_bytes;
use super::gemm::{Isa, Left, Operand, Packed, Side, Strip, multiply};
use super::product::{Output, Work, Zero, with_work, zero_points};
use super::steps::{Place, Steps};

/// Puts ConvInteger in place of tract's.
pub fn register(onnx: &mut Onnx) {
    onnx.op_register.insert("ConvInteger", |ctx, node| {
        let mut optional = optional_inputs(node).skip(2);
        let zeros = [optional.next().flatten(), optional.next().flatten()];
        let (stock, _) = stock(ctx, node, "ConvInteger")?;
        let spec = Spec::of(&*stock).context("ConvInteger is no convolution")?;
        Ok((expand(ConvInteger { spec, zeros }), vec![]))
    });
}

/// What tract itself makes of a node.
pub fn stock(ctx: &ParsingContext, node: &NodeProto, op: &str) -> TractResult<(Box<dyn InferenceOp>, Vec<String>)> {
    static STOCK: std::sync::OnceLock<Onnx> = std::sync::OnceLock::new();
    let onnx = STOCK.get_or_init(tract_onnx::onnx);
    let build = onnx.op_register.0.get(op).with_context(|| format!("tract has no {op}"))?;
    build(ctx, node)
}

/// How the kernel moves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    padding: PaddingSpec,
    strides: Option<TVec<usize>>,
    dilations: Option<TVec<usize>>,
    group: usize,
}

impl Spec {
    /// Of what tract makes of a convolution: channels before space, weights as output channels, input channels, space.
    pub fn of(stock: &dyn InferenceOp) -> Option<Spec> {
        let conv = stock.as_op().downcast_ref::<Box<dyn Expansion>>()?.as_ref().as_any().downcast_ref::<Conv>()?;
        let usual = conv.data_format == DataFormat::NCHW && conv.kernel_fmt == KernelFormat::OIHW;
        usual.then(|| Spec {
            padding: conv.padding.clone(),
            strides: conv.strides.clone(),
            dilations: conv.dilations.clone(),
            group: conv.group.unwrap_or(1),
        })
    }

    /// Whether groups have so few of the output channels that a convolution in float is faster.
    pub fn narrow(&self, channels: usize) -> bool {
        self.group > 1 && channels / self.group < FEW
    }

    /// For each axis of space, the size that comes out and the border before it.
    fn paddings<D: DimLike>(&self, space: &[D], kernel: &[usize]) -> TVec<(D, D)> {
        let ones: TVec<usize> = tvec![1; kernel.len()];
        let (d, s) = (self.dilations.as_ref().unwrap_or(&ones), self.strides.as_ref().unwrap_or(&ones));
        let all = self.padding.compute(space, kernel, d, s);
        all.into_iter().map(|p| (p.convoluted, p.pad_before)).collect()
    }

    fn shape<D: DimLike>(&self, x: &[D], kernel: &[usize]) -> TractResult<TVec<D>> {
        ensure!(x.len() == kernel.len() && x.len() > 2, "a convolution of ranks {} and {}", x.len(), kernel.len());
        ensure!(x[1] == (self.group * kernel[1]).into(), "the number of input channels does not fit the weights");
        ensure!(
            self.group > 0 && kernel[0].is_multiple_of(self.group),
            "{} channels in {} groups",
            kernel[0],
            self.group
        );
        let mut shape: TVec<D> = tvec![x[0].clone(), kernel[0].into()];
        shape.extend(self.paddings(&x[2..], &kernel[2..]).into_iter().map(|p| p.0));
        Ok(shape)
    }
}

/// Output channels of a group from which on a tile pays.
const FEW: usize = 8;

/// Weights: for each group, a line for each of its output channels.
#[derive(Debug)]
pub struct Kernels {
    groups: Vec<Group>,
    shape: TVec<usize>,
}

#[derive(Debug)]
enum Group {
    Packed(Packed),
    /// Line after line, zero points taken off.
    Few(Vec<i32>),
}

impl Kernels {
    pub fn pack(t: &Tensor, group: usize, zero: &[i32]) -> TractResult<Kernels> {
        let (codes, signed) = code_bytes(t)?;
        let shape: TVec<usize> = t.shape().into();
        ensure!(
            group > 0 && !shape.is_empty() && shape[0].is_multiple_of(group),
            "{shape:?} weights in {group} groups"
        );
        let (lines, depth) = (shape[0] / group, shape[1..].iter().product::<usize>());
        ensure!(zero.len() == 1 || zero.len() == shape[0], "{} zero points for {} channels", zero.len(), shape[0]);
        let groups = (0..group).map(|g| {
            let at = g * lines..(g + 1) * lines;
            if group > 1 && lines < FEW {
                let one = |i: usize| {
                    let code = if signed { codes[i] as i8 as i32 } else { codes[i] as i32 };
                    code - if zero.len() == 1 { zero[0] } else { zero[i / depth] }
                };
                return Group::Few((at.start * depth..at.end * depth).map(one).collect());
            }
            let mut p = Packed::default();
            let x = Operand {
                codes: &codes[at.start * depth..at.end * depth],
                signed,
                lines,
                depth,
                line_stride: depth,
                depth_stride: 1,
                zero: if zero.len() == 1 { zero } else { &zero[at] },
            };
            p.pack(Isa::best(), Side::Right, x);
            Group::Packed(p)
        });
        Ok(Kernels { groups: groups.collect(), shape })
    }
}

/// The operator as it runs. Its inputs are the codes, the weights where these are no constant, and the zero points that are
/// computed.
#[derive(Clone, Debug)]
pub struct CodeConv {
    pub spec: Spec,
    pub zeros: [Zero; 2],
    pub weights: Option<Arc<Kernels>>,
    pub steps: Steps,
    pub out: DatumType,
}

impl PartialEq for CodeConv {
    fn eq(&self, other: &Self) -> bool {
        let same = match (&self.weights, &other.weights) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            (a, b) => a.is_none() && b.is_none(),
        };
        same && self.spec == other.spec
            && self.zeros == other.zeros
            && self.steps == other.steps
            && self.out == other.out
    }
}

/// As for [`Product`](super::product::Product).
impl Eq for CodeConv {}

impl CodeConv {
    /// Wires the operator. `inputs`: codes and weights; `zeros`: known ones, or the outlets that compute them.
    pub fn wire(
        spec: &Spec,
        prefix: &str,
        target: &mut TypedModel,
        inputs: [OutletId; 2],
        zeros: [Result<Vec<i32>, OutletId>; 2],
        (steps, out): (Steps, DatumType),
    ) -> TractResult<TVec<OutletId>> {
        let mut wires: TVec<OutletId> = tvec![inputs[0]];
        let weights = match (&target.outlet_fact(inputs[1])?.konst, &zeros[1]) {
            (Some(k), Ok(z)) => Some(Arc::new(Kernels::pack(k, spec.group, z)?)),
            _ => {
                wires.push(inputs[1]);
                None
            }
        };
        let zeros = zeros.map(|z| match z {
            Ok(z) => Zero::Known(Arc::new(z)),
            Err(outlet) => {
                wires.push(outlet);
                Zero::Input(wires.len() - 1)
            }
        });
        target.wire_node(prefix, CodeConv { spec: spec.clone(), zeros, weights, steps, out }, &wires)
    }

    fn run(&self, inputs: &[TValue], work: &mut Work) -> TractResult<Tensor> {
        let isa = Isa::best();
        let zero = |i: usize| match &self.zeros[i] {
            Zero::Known(z) => Ok(z.clone()),
            Zero::Input(at) => zero_points(&inputs[*at]).map(Arc::new),
        };
        let (za, zb) = (zero(0)?, zero(1)?);
        let [za] = za[..] else { bail!("{} zero points for the input of a convolution", za.len()) };
        let kernels = match &self.weights {
            Some(k) => k.clone(),
            None => Arc::new(Kernels::pack(&inputs[1], self.spec.group, &zb)?),
        };
        let x = inputs[0].shape();
        let shape = self.spec.shape(x, &kernels.shape)?;
        let (codes, signed) = code_bytes(&inputs[0])?;
        let patches = Patches::new(&self.spec, x, &kernels.shape);
        let positions: usize = shape[2..].iter().product();
        let (depth, cols) = (patches.depth(), kernels.shape[0] / self.spec.group);
        let size = positions * cols;
        let plane: usize = x[2..].iter().product();
        let channels = kernels.shape[1];
        let mut out = Output::new(self.out, &shape)?;
        let mut rows = std::mem::take(&mut work.codes);
        for image in 0..x[0] {
            for (g, right) in kernels.groups.iter().enumerate() {
                let from = (image * self.spec.group + g) * channels * plane;
                rows.clear();
                rows.resize(positions * depth, za as u8);
                patches.write(&codes[from..from + channels * plane], &mut rows);
                let mut to = out.part((image * self.spec.group + g) * size, size)?;
                // Of a single position the columns lie side by side, and the rows of a strip are as wide as all of them.
                let place = if positions == 1 { Place { row: cols, col: 1 } } else { Place { row: 1, col: positions } };
                let right = match right {
                    Group::Packed(right) => right,
                    Group::Few(w) => {
                        let mut sums = few(&rows, signed, za, w, depth);
                        let strip = Strip { sums: &mut sums, width: cols, rows: positions, first: 0, cols };
                        self.steps.finish(strip, g * cols, &mut work.floats, &mut to, place);
                        continue;
                    }
                };
                let left = Operand {
                    codes: &rows,
                    signed,
                    lines: positions,
                    depth,
                    line_stride: depth,
                    depth_stride: 1,
                    zero: &[za],
                };
                let left = Left::of(isa, left, &mut work.left);
                let steps = &self.steps;
                multiply(left, right, &mut work.scratch, &mut |strip| {
                    steps.finish(strip, g * cols, &mut work.floats, &mut to, place);
                });
            }
        }
        work.codes = rows;
        Ok(out.tensor)
    }
}

/// Sums of a group of few channels: for each row, one for each line of `w`.
fn few(rows: &[u8], signed: bool, zero: i32, w: &[i32], depth: usize) -> Vec<i32> {
    let value = |b: &u8| (if signed { *b as i8 as i32 } else { *b as i32 }) - zero;
    let depth = depth.max(1);
    rows.chunks_exact(depth)
        .flat_map(|row| w.chunks_exact(depth).map(move |w| row.iter().zip(w).map(|(x, w)| value(x) * w).sum()))
        .collect()
}

/// The way from an image to a matrix with a row for each position of the kernel.
struct Patches {
    channels: usize,
    /// Sizes of the image, of the kernel, of what comes out; steps and border, axis by axis.
    image: TVec<usize>,
    kernel: TVec<usize>,
    out: TVec<usize>,
    strides: TVec<usize>,
    dilations: TVec<usize>,
    before: TVec<usize>,
}

impl Patches {
    fn new(spec: &Spec, x: &[usize], kernel: &[usize]) -> Patches {
        let paddings = spec.paddings(&x[2..], &kernel[2..]);
        let ones: TVec<usize> = tvec![1; kernel.len() - 2];
        Patches {
            channels: kernel[1],
            image: x[2..].into(),
            kernel: kernel[2..].into(),
            out: paddings.iter().map(|p| p.0).collect(),
            strides: spec.strides.clone().unwrap_or_else(|| ones.clone()),
            dilations: spec.dilations.clone().unwrap_or(ones),
            before: paddings.iter().map(|p| p.1).collect(),
        }
    }

    fn depth(&self) -> usize {
        self.channels * self.kernel.iter().product::<usize>()
    }

    /// Writes what lies inside the image; `rows` hold the zero point already.
    fn write(&self, image: &[u8], rows: &mut [u8]) {
        let last = self.kernel.len() - 1;
        let (depth, size): (usize, usize) = (self.depth(), self.image.iter().product());
        let taps: usize = self.kernel.iter().product();
        let mut at: TVec<usize> = tvec![0; last + 1];
        let mut tap: TVec<usize> = tvec![0; last];
        for row in rows.chunks_exact_mut(depth.max(1)) {
            // The run of the last axis that lies inside.
            let place = |axis: usize, k: usize| {
                (at[axis] * self.strides[axis] + k * self.dilations[axis])
                    .checked_sub(self.before[axis])
                    .filter(|p| *p < self.image[axis])
            };
            let width = self.kernel[last];
            let first = (0..width).find(|k| place(last, *k).is_some());
            let end = (0..width).rev().find(|k| place(last, *k).is_some()).map_or(0, |k| k + 1);
            tap.fill(0);
            for line in 0..taps / width.max(1) {
                let start = (0..last).try_fold(0, |s, axis| Some(s * self.image[axis] + place(axis, tap[axis])?));
                if let (Some(start), Some(first)) = (start, first) {
                    let from = start * self.image[last] + place(last, first).unwrap_or(0);
                    for c in 0..self.channels {
                        let to = &mut row[c * taps + line * width..][first..end];
                        let from = &image[c * size + from..];
                        if self.dilations[last] == 1 {
                            to.copy_from_slice(&from[..end - first]);
                        } else {
                            to.iter_mut().enumerate().for_each(|(i, t)| *t = from[i * self.dilations[last]]);
                        }
                    }
                }
                step(&mut tap, &self.kernel[..last]);
            }
            step(&mut at, &self.out);
        }
    }
}

/// The next index, the last axis fastest.
fn step(at: &mut [usize], sizes: &[usize]) {
    for (x, d) in at.iter_mut().zip(sizes).rev() {
        *x += 1;
        if *x < *d {
            return;
        }
        *x = 0;
    }
}

impl Op for CodeConv {
    fn name(&self) -> StaticName {
        "CodeConv".into()
    }

    fn info(&self) -> TractResult<Vec<String>> {
        Ok(vec![format!("{} steps, {:?}", self.steps.list.len(), self.out)])
    }

    op_as_typed_op!();
}

impl EvalOp for CodeConv {
    op_out_of_plan!();

    fn eval(&self, _ctx: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        Ok(tvec!(with_work(|w| self.run(&inputs, w))?.into_tvalue()))
    }
}

impl TypedOp for CodeConv {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        let kernel: TVec<usize> = match &self.weights {
            Some(w) => w.shape.clone(),
            None => inputs[1].shape.as_concrete().context("the weights of a convolution have no known shape")?.into(),
        };
        Ok(tvec!(self.out.fact(self.spec.shape(&inputs[0].shape.to_tvec(), &kernel)?)))
    }

    fn declutter(&self, model: &TypedModel, node: &TypedNode) -> TractResult<Option<TypedModelPatch>> {
        let Some((steps, out)) = absorb::next(model, node, &self.steps, 1)? else { return Ok(None) };
        TypedModelPatch::fuse_with_next(model, node, CodeConv { steps, out, ..self.clone() }).map(Some)
    }

    as_op!();
}

/// ConvInteger as the file has it: which inputs are zero points.
#[derive(Clone, Debug)]
struct ConvInteger {
    spec: Spec,
    zeros: [Option<usize>; 2],
}

impl Expansion for ConvInteger {
    fn name(&self) -> StaticName {
        "ConvInteger".into()
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
        s.equals(&inputs[0].rank, &inputs[1].rank)?;
        s.given_2(&inputs[0].shape, &inputs[1].shape, move |s, x, w| {
            let w: TVec<usize> = w.iter().map(|d| d.to_usize()).collect::<Result<_, _>>()?;
            s.equals(&outputs[0].shape, self.spec.shape(&x, &w)?)
        })
    }

    fn wire(&self, prefix: &str, target: &mut TypedModel, inputs: &[OutletId]) -> TractResult<TVec<OutletId>> {
        let mut zeros = [Ok(vec![0]), Ok(vec![0])];
        for (i, zero) in self.zeros.iter().enumerate() {
            let Some(z) = zero else { continue };
            zeros[i] = match &target.outlet_fact(inputs[*z])?.konst {
                Some(k) => Ok(zero_points(k)?),
                None => Err(inputs[*z]),
            };
        }
        let plain = (Steps::default(), i32::datum_type());
        CodeConv::wire(&self.spec, prefix, target, [inputs[0], inputs[1]], zeros, plain)
    }
}
