//! QuantizeLinear and DequantizeLinear as tract operators, in place of tract's own.
//!
//! Both are opaque to tract's rewriting, except that a change of axes may move through them and that on a constant they
//! become a constant, whatever its size. Where products of codes are fused ([`fuse`](super::fuse)), that waits until the
//! whole model is read, so that a product finds the codes of its weights.

use std::sync::Arc;

use tract_onnx::Onnx;
use tract_onnx::model::ParsingContext;
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_core::ops::array::Slice;
use tract_onnx::tract_core::ops::binary::TypedBinOp;
use tract_onnx::tract_core::ops::change_axes::{AxisChangeConsequence, AxisOp, InOut};
use tract_onnx::tract_core::ops::math::{Add, Sub};
use tract_onnx::tract_core::ops::source::TypedSource;
use tract_onnx::tract_hir::internal::*;

use super::ask::only_reader;
use super::kernel::{CodeType, Grain, Params, Requantize};
use super::prepare::CODE_BITS;
use super::table;
use crate::ir::DType;

/// Puts both operators in place of tract's. `keep`: whether codes of weights are kept as long as the model is read.
pub fn register(onnx: &mut Onnx, keep: bool) {
    onnx.op_register.insert("QuantizeLinear", |_, node| build(node, Direction::Quantize, false));
    if keep {
        onnx.op_register.insert("DequantizeLinear", |_, node| build(node, Direction::Dequantize, true));
    } else {
        onnx.op_register.insert("DequantizeLinear", |_, node| build(node, Direction::Dequantize, false));
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    Quantize,
    Dequantize,
}

/// The operator as the file has it: scale and zero point are inputs, the axis may count from the end.
#[derive(Clone, Debug)]
struct Linear {
    direction: Direction,
    axis: i64,
    block: i64,
    has_zero: bool,
    /// `output_dtype` of QuantizeLinear.
    codes: Option<DatumType>,
    /// Bits of a code, when fewer than its type has.
    bits: Option<u32>,
    /// Whether a tensor of codes is kept until the model is read.
    keep: bool,
}

fn build(node: &NodeProto, direction: Direction, keep: bool) -> TractResult<(Box<dyn InferenceOp>, Vec<String>)> {
    // Absent, empty and 0 (undefined) mean the same.
    let dtype = node.get_attr_opt::<i64>("output_dtype")?.map(|x| DType(x as i32)).filter(|d| *d != DType::UNDEFINED);
    let codes = match (direction, dtype) {
        (_, None) | (Direction::Dequantize, Some(DType::FLOAT)) => None,
        (Direction::Quantize, Some(DType::UINT8 | DType::UINT4 | DType::UINT2)) => Some(DatumType::U8),
        (Direction::Quantize, Some(DType::INT8 | DType::INT4 | DType::INT2)) => Some(DatumType::I8),
        (Direction::Quantize, Some(DType::UINT16)) => Some(DatumType::U16),
        (Direction::Quantize, Some(DType::INT16)) => Some(DatumType::I16),
        (_, Some(other)) => bail!("{} to {other} is not supported", node.op_type),
    };
    let op = Linear {
        direction,
        axis: node.get_attr_opt("axis")?.unwrap_or(1),
        block: node.get_attr_opt("block_size")?.unwrap_or(0),
        has_zero: node.input.get(2).is_some_and(|n| !n.is_empty()),
        codes,
        bits: node.get_attr_opt::<i64>(CODE_BITS)?.and_then(|b| u32::try_from(b).ok()),
        keep,
    };
    Ok((expand(op), vec![]))
}

impl Expansion for Linear {
    fn name(&self) -> StaticName {
        match self.direction {
            Direction::Quantize => "QuantizeLinear".into(),
            Direction::Dequantize => "DequantizeLinear".into(),
        }
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        s: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        check_input_arity(inputs, 2 + self.has_zero as usize)?;
        check_output_arity(outputs, 1)?;
        s.equals(&inputs[0].shape, &outputs[0].shape)?;
        match self.direction {
            Direction::Dequantize => {
                s.equals(&outputs[0].datum_type, f32::datum_type())?;
                if self.has_zero {
                    s.equals(&inputs[0].datum_type, &inputs[2].datum_type)?;
                }
            }
            Direction::Quantize if self.has_zero => s.equals(&outputs[0].datum_type, &inputs[2].datum_type)?,
            Direction::Quantize => s.equals(&outputs[0].datum_type, self.codes.unwrap_or(DatumType::U8))?,
        }
        Ok(())
    }

    fn wire(&self, prefix: &str, target: &mut TypedModel, inputs: &[OutletId]) -> TractResult<TVec<OutletId>> {
        let constant = |i: usize, what: &str| {
            target
                .outlet_fact(inputs[i])?
                .konst
                .clone()
                .with_context(|| format!("the {what} must be a constant, not computed"))
        };
        let x = target.outlet_fact(inputs[0])?.clone();
        let scale = constant(1, "scale")?;
        let zero = if self.has_zero { Some(constant(2, "zero point")?) } else { None };
        let codes = match self.direction {
            Direction::Dequantize => x.datum_type,
            Direction::Quantize => zero.as_ref().map_or(self.codes.unwrap_or(DatumType::U8), |z| z.datum_type()),
        };
        let range = code_range(codes, self.bits)?;
        let zero = zero.map(|z| z.cast_to::<i32>().map(|z| z.into_owned())).transpose()?;
        let grain = self.grain(x.rank(), &scale)?;
        ensure!(scale.datum_type() == f32::datum_type(), "a scale of type {:?} is not supported", scale.datum_type());
        let params = Params::new(
            grain,
            scale.try_as_plain_ram()?.as_slice::<f32>()?,
            match &zero {
                Some(z) => z.try_as_plain_ram()?.as_slice::<i32>()?,
                None => &[],
            },
            range,
        )?;
        let op = Qdq { direction: self.direction, codes, params: Arc::new(params), shift: None };
        // A vector is a bias or the like, and no weights.
        let keep = self.keep && x.rank() > 1 && matches!(codes, DatumType::U8 | DatumType::I8);
        match &x.konst {
            Some(k) if !keep => Ok(tvec!(target.add_const(prefix, op.apply(k)?)?)),
            _ => target.wire_node(prefix, op, &[inputs[0]]),
        }
    }

    fn runs_out_of_plan(&self) -> bool {
        !self.keep
    }
}

impl Linear {
    fn grain(&self, rank: usize, scale: &Tensor) -> TractResult<Grain> {
        if self.block == 0 && scale.len() == 1 {
            return Ok(Grain::Tensor);
        }
        let from_start = if self.axis < 0 { self.axis + rank as i64 } else { self.axis };
        let axis = usize::try_from(from_start).ok().filter(|a| *a < rank);
        let axis = axis.with_context(|| format!("axis {} is not an axis of a rank {rank} tensor", self.axis))?;
        if self.block == 0 {
            return Ok(Grain::Axis(axis));
        }
        let size = usize::try_from(self.block).with_context(|| format!("block_size {} is negative", self.block))?;
        ensure!(scale.rank() == rank, "blocked scales must have the rank of the tensor");
        Ok(Grain::Block { axis, size })
    }
}

/// Lowest and highest code.
fn code_range(dt: DatumType, bits: Option<u32>) -> TractResult<(i32, i32)> {
    let (bits, signed) = match dt {
        DatumType::U8 => (bits.unwrap_or(8), false),
        DatumType::I8 => (bits.unwrap_or(8), true),
        DatumType::U16 => (16, false),
        DatumType::I16 => (16, true),
        DatumType::I32 => return Ok((i32::MIN, i32::MAX)),
        other => bail!("codes of type {other:?} are not supported"),
    };
    let span = 1i32 << bits;
    Ok(if signed { (-span / 2, span / 2 - 1) } else { (0, span - 1) })
}

/// The operator as it runs: one input, everything else constant.
#[derive(Clone, Debug, PartialEq)]
pub struct Qdq {
    direction: Direction,
    codes: DatumType,
    params: Arc<Params>,
    /// What is added to each channel of the model's input before it is quantized.
    shift: Option<Arc<Shift>>,
}

/// A number for each index of an axis.
#[derive(Clone, Debug, PartialEq)]
struct Shift {
    axis: usize,
    by: Vec<f32>,
}

/// Scales are compared as numbers; a NaN scale merely keeps two equal nodes apart.
impl Eq for Qdq {}

/// The parameters of a node that is a DequantizeLinear.
fn dequantized(n: &TypedNode) -> Option<&Params> {
    n.op_as::<Qdq>().and_then(Qdq::dequantizes)
}

impl Qdq {
    pub fn params(&self) -> &Params {
        &self.params
    }

    /// The parameters of a DequantizeLinear.
    pub fn dequantizes(&self) -> Option<&Params> {
        (self.direction == Direction::Dequantize).then_some(&*self.params)
    }

    /// The parameters of a QuantizeLinear, and the type of its codes.
    pub fn quantizes(&self) -> Option<(&Params, DatumType)> {
        (self.direction == Direction::Quantize).then_some((&*self.params, self.codes))
    }

    /// A QuantizeLinear as the last step of a product with `cols` columns along `axis`, and the type of its codes.
    pub fn requantize(&self, axis: usize, cols: usize) -> Option<(Requantize, DatumType)> {
        let (params, codes) = self.quantizes()?;
        if codes == DatumType::I32 {
            return None;
        }
        params.columns(axis, cols).map(|r| (r, codes))
    }

    /// Moves codes instead of values: a quarter of the bytes, and a QuantizeLinear of the same parameters may follow.
    fn behind_a_move(&self, model: &TypedModel, node: &TypedNode) -> TractResult<Option<TypedModelPatch>> {
        let Some(next) = only_reader(model, node) else { return Ok(None) };
        if self.params.grain() != Grain::Tensor || !(next.op_is::<AxisOp>() || next.op_is::<Slice>()) {
            return Ok(None);
        }
        let mut patch = TypedModelPatch::default();
        let codes = patch.tap_model(model, node.inputs[0])?;
        let moved = patch.wire_node(format!("{}.codes", next.name), next.op.clone(), &[codes])?;
        let wire = patch.wire_node(&next.name, self.clone(), &moved)?;
        patch.shunt_outside(model, next.id.into(), wire[0])?;
        Ok(Some(patch))
    }

    /// Takes in a constant that is added to each channel of the model's input: images are centred before they are
    /// quantized.
    fn behind_a_shift(&self, model: &TypedModel, node: &TypedNode) -> TractResult<Option<TypedModelPatch>> {
        let before = model.node(node.inputs[0].node);
        let Some(op) = before.op_as::<TypedBinOp>().filter(|op| op.1.is_none() && self.shift.is_none()) else {
            return Ok(None);
        };
        let constant = |i: usize| model.outlet_fact(before.inputs[i]).map(|f| f.konst.clone());
        let (input, k, sign) = match (constant(0)?, constant(1)?) {
            (None, Some(k)) if op.0.is::<Add>() => (before.inputs[0], k, 1.0),
            (None, Some(k)) if op.0.is::<Sub>() => (before.inputs[0], k, -1.0),
            (Some(k), None) if op.0.is::<Add>() => (before.inputs[1], k, 1.0),
            _ => return Ok(None),
        };
        let fact = model.outlet_fact(input)?;
        let alone = only_reader(model, before).is_some_and(|reader| reader.id == node.id);
        if !alone || !model.node(input.node).op_is::<TypedSource>() || fact.shape != node.outputs[0].fact.shape {
            return Ok(None);
        }
        let Some(axis) = k.shape().iter().position(|d| *d > 1) else { return Ok(None) };
        let same = matches!(self.params.grain(), Grain::Tensor) || self.params.grain() == Grain::Axis(axis);
        let one_axis = k.len() == k.shape()[axis] && fact.shape.get(axis) == Some(&k.len().to_dim());
        if !same || !one_axis || axis + 1 == fact.rank() || k.datum_type() != f32::datum_type() {
            return Ok(None);
        }
        let by = k.try_as_plain_ram()?.as_slice::<f32>()?.iter().map(|x| sign * x).collect();
        let mut patch = TypedModelPatch::default();
        let wire = patch.tap_model(model, input)?;
        let op = Qdq { shift: Some(Arc::new(Shift { axis, by })), ..self.clone() };
        let wire = patch.wire_node(&node.name, op, &[wire])?;
        patch.shunt_outside(model, node.id.into(), wire[0])?;
        Ok(Some(patch))
    }

    fn apply(&self, x: &Tensor) -> TractResult<Tensor> {
        match (self.direction, self.codes) {
            (Direction::Quantize, DatumType::U8) => self.quantize::<u8>(x),
            (Direction::Quantize, DatumType::I8) => self.quantize::<i8>(x),
            (Direction::Quantize, DatumType::U16) => self.quantize::<u16>(x),
            (Direction::Quantize, DatumType::I16) => self.quantize::<i16>(x),
            (Direction::Dequantize, DatumType::U8) => self.dequantize::<u8>(x),
            (Direction::Dequantize, DatumType::I8) => self.dequantize::<i8>(x),
            (Direction::Dequantize, DatumType::U16) => self.dequantize::<u16>(x),
            (Direction::Dequantize, DatumType::I16) => self.dequantize::<i16>(x),
            (Direction::Dequantize, DatumType::I32) => self.dequantize::<i32>(x),
            (d, dt) => bail!("{d:?} with codes of type {dt:?} is not supported"),
        }
    }

    fn quantize<C: CodeType + Datum>(&self, x: &Tensor) -> TractResult<Tensor> {
        let x = x.cast_to::<f32>()?;
        // SAFETY: the kernel writes every element or fails, and a failed tensor is dropped unread; any bits are valid codes.
        let mut y = unsafe { Tensor::uninitialized::<C>(x.shape())? };
        let shape: TVec<usize> = x.shape().into();
        let mut plain = y.try_as_plain_ram_mut()?;
        let (plane, to) = (x.try_as_plain_ram()?, plain.as_slice_mut::<C>()?);
        let from = plane.as_slice::<f32>()?;
        match &self.shift {
            None => self.params.quantize(&shape, from, to)?,
            Some(s) => self.params.quantize_shifted(&shape, (s.axis, &s.by), from, to)?,
        }
        Ok(y)
    }

    fn dequantize<C: CodeType + Datum>(&self, q: &Tensor) -> TractResult<Tensor> {
        // SAFETY: as above.
        let mut y = unsafe { Tensor::uninitialized::<f32>(q.shape())? };
        let mut plain = y.try_as_plain_ram_mut()?;
        self.params.dequantize(q.shape(), q.try_as_plain_ram()?.as_slice::<C>()?, plain.as_slice_mut::<f32>()?)?;
        Ok(y)
    }
}

impl Op for Qdq {
    fn name(&self) -> StaticName {
        match self.direction {
            Direction::Quantize => "Quantize".into(),
            Direction::Dequantize => "Dequantize".into(),
        }
    }

    fn info(&self) -> TractResult<Vec<String>> {
        Ok(vec![format!("{:?} {:?}", self.codes, self.params.grain())])
    }

    op_as_typed_op!();
}

impl EvalOp for Qdq {
    op_out_of_plan!();

    fn eval(&self, _ctx: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let x = args_1!(inputs);
        Ok(tvec!(self.apply(&x)?.into_tvalue()))
    }
}

impl TypedOp for Qdq {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        let dt = match self.direction {
            Direction::Quantize => self.codes,
            Direction::Dequantize => f32::datum_type(),
        };
        Ok(tvec!(dt.fact(inputs[0].shape.clone())))
    }

    fn axes_mapping(&self, inputs: &[&TypedFact], outputs: &[&TypedFact]) -> TractResult<AxesMapping> {
        match self.params.grain() {
            Grain::Tensor if self.shift.is_none() => AxesMapping::natural(inputs, outputs),
            _ => AxesMapping::disconnected(inputs, outputs),
        }
    }

    fn change_axes(
        &self,
        model: &TypedModel,
        node: &TypedNode,
        _io: InOut,
        change: &AxisOp,
    ) -> TractResult<Option<AxisChangeConsequence>> {
        if let (Grain::Axis(_), AxisOp::Reshape(..)) = (self.params.grain(), change) {
            return Ok(None);
        }
        if self.shift.is_some() {
            return Ok(None);
        }
        Ok(self.params.with_axis(|a| change.transform_axis(a)).map(|params| {
            let op = Qdq { params: Arc::new(params), ..self.clone() };
            AxisChangeConsequence::new(model, node, Some(Box::new(op)), change)
        }))
    }

    /// On a constant that only appeared during optimization. tract's own folding stops at 4 MiB.
    fn declutter(&self, model: &TypedModel, node: &TypedNode) -> TractResult<Option<TypedModelPatch>> {
        let Some(k) = &model.outlet_fact(node.inputs[0])?.konst else {
            return match self.direction {
                Direction::Quantize => match table::fuse(model, node, (&self.params, self.codes), dequantized)? {
                    None => self.behind_a_shift(model, node),
                    fused => Ok(fused),
                },
                Direction::Dequantize => self.behind_a_move(model, node),
            };
        };
        let mut patch = TypedModelPatch::default();
        let wire = patch.add_const(&node.name, self.apply(k)?)?;
        patch.shunt_outside(model, node.id.into(), wire)?;
        Ok(Some(patch))
    }

    as_op!();
}

/// The builders do not read the context; its type is named so that a change of tract's signature shows here.
#[expect(clippy::type_complexity, reason = "the signature is tract's")]
const _: fn(&ParsingContext, &NodeProto) -> TractResult<(Box<dyn InferenceOp>, Vec<String>)> =
    |_, node| build(node, Direction::Quantize, false);
