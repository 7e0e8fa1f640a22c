//! Operators that tract lacks, one per file: plain loops over numbers in row-major order, as ONNX defines them. They are for
//! calibrating and comparing float models, not for speed.

mod deform_conv;
mod pool;
mod reverse_sequence;
mod roi_align;
mod sum;

use std::fmt::Debug;
use std::sync::{Arc, LazyLock};

use tract_onnx::Onnx;
use tract_onnx::model::{OnnxOpRegister, ParsingContext};
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_hir::internal::*;

/// One operator with its attributes.
pub trait Kernel: Debug + Send + Sync + 'static {
    fn name(&self) -> &'static str;

    /// Sizes of the output, given those of the inputs.
    fn shape(&self, inputs: &[TVec<TDim>]) -> TractResult<TVec<TDim>>;

    /// The output, of the first input's type.
    fn eval(&self, inputs: &[Input<'_>]) -> TractResult<Vec<f32>>;
}

/// An input as numbers.
pub struct Input<'a> {
    pub dims: &'a [usize],
    pub values: std::borrow::Cow<'a, [f32]>,
}

impl Input<'_> {
    /// Element at these places.
    pub fn at(&self, places: &[usize]) -> f32 {
        self.values[places.iter().zip(self.dims).fold(0, |at, (p, n)| at * n + p)]
    }
}

/// Gives tract these operators.
pub fn register(onnx: &mut Onnx) {
    onnx.op_register.insert("RoiAlign", |c, n| host(c, n, roi_align::RoiAlign::read));
    onnx.op_register.insert("DeformConv", |c, n| host(c, n, deform_conv::DeformConv::read));
    onnx.op_register.insert("ReverseSequence", |c, n| host(c, n, reverse_sequence::ReverseSequence::read));
    onnx.op_register.insert("LpPool", |c, n| host(c, n, pool::LpPool::read));
    onnx.op_register.insert("Sum", |c, n| many(c, n, sum::Sum::added));
    // tract's own refuses inputs of several ranks.
    onnx.op_register.insert("Mean", |c, n| host(c, n, sum::Sum::averaged));
}

/// tract's own operators.
static USUAL: LazyLock<OnnxOpRegister> = LazyLock::new(|| tract_onnx::onnx().op_register);

/// An operator that tract has, but not for very many inputs.
fn many<K: Kernel>(
    ctx: &ParsingContext,
    node: &NodeProto,
    read: fn(&ParsingContext, &NodeProto) -> TractResult<K>,
) -> TractResult<(Box<dyn InferenceOp>, Vec<String>)> {
    match USUAL.0.get(&node.op_type) {
        Some(usual) if node.input.len() <= sum::FEW => usual(ctx, node),
        _ => host(ctx, node, read),
    }
}

fn host<K: Kernel>(
    ctx: &ParsingContext,
    node: &NodeProto,
    read: fn(&ParsingContext, &NodeProto) -> TractResult<K>,
) -> TractResult<(Box<dyn InferenceOp>, Vec<String>)> {
    // Inputs that are left out have no wire.
    let given = node.input.iter().filter(|n| !n.is_empty()).count();
    Ok((expand(Host { kernel: Arc::new(read(ctx, node)?), inputs: given }), vec![]))
}

#[derive(Clone, Debug)]
struct Host {
    kernel: Arc<dyn Kernel>,
    inputs: usize,
}

impl Expansion for Host {
    fn name(&self) -> StaticName {
        self.kernel.name().into()
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        s: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        check_input_arity(inputs, self.inputs)?;
        check_output_arity(outputs, 1)?;
        s.equals(&inputs[0].datum_type, &outputs[0].datum_type)?;
        let shapes: Vec<_> = inputs.iter().map(|i| &i.shape).collect();
        s.given_all(shapes, move |s, shapes| {
            let shapes: Vec<TVec<TDim>> = shapes;
            s.equals(&outputs[0].shape, self.kernel.shape(&shapes)?)
        })
    }

    fn wire(&self, prefix: &str, target: &mut TypedModel, inputs: &[OutletId]) -> TractResult<TVec<OutletId>> {
        target.wire_node(prefix, TypedHost { kernel: self.kernel.clone() }, inputs)
    }
}

/// The operator as it runs.
#[derive(Clone, Debug)]
struct TypedHost {
    kernel: Arc<dyn Kernel>,
}

/// Copies of one node do the same.
impl PartialEq for TypedHost {
    fn eq(&self, other: &TypedHost) -> bool {
        Arc::ptr_eq(&self.kernel, &other.kernel)
    }
}

impl Eq for TypedHost {}

impl Op for TypedHost {
    fn name(&self) -> StaticName {
        self.kernel.name().into()
    }

    op_as_typed_op!();
}

impl EvalOp for TypedHost {
    op_out_of_plan!();

    fn eval(&self, _ctx: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let wide: Vec<Tensor> = inputs.iter().map(|t| widened(t)).collect::<TractResult<_>>()?;
        let dims: Vec<TVec<TDim>> = inputs.iter().map(|t| t.shape().iter().map(|d| d.to_dim()).collect()).collect();
        let shape = self.kernel.shape(&dims)?;
        let shape: TVec<usize> = shape.iter().map(|d| Ok(d.to_usize()?)).collect::<TractResult<_>>()?;
        let given: Vec<Input<'_>> = wide
            .iter()
            .map(|t| Ok(Input { dims: t.shape(), values: t.try_as_plain_ram()?.as_slice::<f32>()?.into() }))
            .collect::<TractResult<_>>()?;
        let made = self.kernel.eval(&given)?;
        let out = Tensor::from_shape(&shape, &made)?;
        Ok(tvec!(out.cast_to_dt(inputs[0].datum_type())?.into_owned().into_tvalue()))
    }
}

impl TypedOp for TypedHost {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        let dims: Vec<TVec<TDim>> = inputs.iter().map(|f| f.shape.iter().cloned().collect()).collect();
        Ok(tvec!(inputs[0].datum_type.fact(self.kernel.shape(&dims)?)))
    }

    as_op!();
}

/// The elements in float32, in which everything here is computed.
fn widened(t: &Tensor) -> TractResult<Tensor> {
    let wide = t.cast_to::<f32>()?.into_owned();
    // Whole numbers beyond 2^24 would become others.
    let exact = || Ok::<_, TractError>(*wide.cast_to_dt(t.datum_type())? == *t);
    ensure!(!t.datum_type().is_integer() || exact()?, "whole numbers that float32 does not hold are not known here");
    Ok(wide)
}

/// Sizes and steps of a window over the last axes of an image, as Conv and the poolings have them.
#[derive(Clone, Debug)]
pub(super) struct Window {
    pub kernel: Vec<usize>,
    pub strides: Vec<usize>,
    pub dilations: Vec<usize>,
    /// In front of each axis, then after each.
    pub pads: Vec<usize>,
    pub ceil: bool,
}

impl Window {
    pub fn read(node: &NodeProto, kernel: Vec<i64>) -> TractResult<Window> {
        let rank = kernel.len();
        let list = |name: &str, len: usize, default: i64| -> TractResult<Vec<usize>> {
            let given: Option<Vec<i64>> = node.get_attr_opt_vec(name)?;
            let given = given.filter(|v| !v.is_empty()).unwrap_or_else(|| vec![default; len]);
            ensure!(given.len() == len, "{name} has {} entries, not {len}", given.len());
            given.into_iter().map(|x| usize::try_from(x).context("a size is negative")).collect()
        };
        let auto: Option<String> = node.get_attr_opt("auto_pad")?;
        ensure!(auto.is_none_or(|a| matches!(a.as_str(), "NOTSET" | "" | "VALID")), "auto_pad is not known here");
        let window = Window {
            kernel: kernel
                .into_iter()
                .map(|x| usize::try_from(x).context("a size is negative"))
                .collect::<TractResult<_>>()?,
            strides: list("strides", rank, 1)?,
            dilations: list("dilations", rank, 1)?,
            pads: list("pads", 2 * rank, 0)?,
            ceil: node.get_attr_opt::<i64>("ceil_mode")?.unwrap_or(0) != 0,
        };
        ensure!(window.strides.iter().chain(&window.kernel).all(|s| *s > 0), "a stride or a kernel size is 0");
        Ok(window)
    }

    /// How many windows there are along each axis of an image of these sizes.
    pub fn count(&self, sizes: &[TDim]) -> TractResult<TVec<TDim>> {
        ensure!(sizes.len() == self.kernel.len(), "a window of {} axes on {}", self.kernel.len(), sizes.len());
        let rank = sizes.len();
        let one = |(i, n): (usize, &TDim)| {
            let reach = (self.dilations[i] * (self.kernel[i] - 1) + 1) as i64;
            let room = n.clone() + (self.pads[i] + self.pads[rank + i]) as i64 - reach;
            let steps = self.strides[i] as u64;
            (if self.ceil { room.div_ceil(steps) } else { room / steps }) + 1
        };
        Ok(sizes.iter().enumerate().map(one).collect())
    }
}

/// The number between four pixels of a plane, linearly.
pub(super) fn between(plane: &[f32], (height, width): (usize, usize), y: f32, x: f32) -> f32 {
    let (y0, x0) = (y.floor(), x.floor());
    let (dy, dx) = (y - y0, x - x0);
    let at = |y: f32, x: f32| {
        let inside = y >= 0.0 && x >= 0.0 && y < height as f32 && x < width as f32;
        if inside { plane[y as usize * width + x as usize] } else { 0.0 }
    };
    at(y0, x0) * (1.0 - dy) * (1.0 - dx)
        + at(y0, x0 + 1.0) * (1.0 - dy) * dx
        + at(y0 + 1.0, x0) * dy * (1.0 - dx)
        + at(y0 + 1.0, x0 + 1.0) * dy * dx
}
