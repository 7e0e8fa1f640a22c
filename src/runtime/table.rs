//! From codes to codes by a table.
//!
//! What stands between a DequantizeLinear and a QuantizeLinear, as long as it computes every element by itself from that one
//! element, is a function of 256 codes. It is computed once for each, by the operators themselves, so that the table holds
//! what they would have given. A GELU between codes is one look-up an element. Where scales or factors differ from channel to
//! channel, there is a table for each.
//!
//! tract has such tables of its own, which take in operators along an axis (Softmax) as well and are wrong then; these know
//! what may stand in them.

use std::sync::Arc;

use tract_onnx::tract_core::ops::binary::TypedBinOp;
use tract_onnx::tract_core::ops::cast::Cast;
use tract_onnx::tract_core::ops::change_axes::{AxisChangeConsequence, InOut};
use tract_onnx::tract_core::ops::element_wise::ElementWiseOp;
use tract_onnx::tract_hir::internal::*;

use super::ask::code_bytes;
use super::bytes::look_up;
use super::kernel::{Grain, Params};

/// Codes by the bit patterns of codes: one table for all elements, or one for each channel.
pub type Tables = Arc<Vec<[u8; 256]>>;

/// The operator as it runs: codes in, codes out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    tables: Tables,
    /// The axis of channels; of one table, any.
    axis: usize,
    out: DatumType,
}

/// The parameters of a node that is a DequantizeLinear.
type Dequantized = fn(&TypedNode) -> Option<&Params>;

/// A QuantizeLinear, with its parameters and the type of its codes, and what stands before it, down to one
/// DequantizeLinear, as a table; `None` if it is none.
pub fn fuse(
    model: &TypedModel,
    node: &TypedNode,
    (params, out): (&Params, DatumType),
    dequantized: Dequantized,
) -> TractResult<Option<TypedModelPatch>> {
    if !matches!(out, DatumType::U8 | DatumType::I8) {
        return Ok(None);
    }
    let mut channels = Channels::default();
    if !channels.take_grain(params) {
        return Ok(None);
    }
    let Some((root, order)) = region(model, node, dequantized, &mut channels) else { return Ok(None) };
    let codes = root.inputs[0];
    let dt = model.outlet_fact(codes)?.datum_type;
    let shape = &node.outputs[0].fact.shape;
    if root.outputs[0].fact.shape != *shape {
        return Ok(None);
    }
    let Some(axis) = channels.worth(shape) else { return Ok(None) };
    let Some(tables) = tabulate(model, root, &order, dt, axis)? else { return Ok(None) };
    let mut patch = TypedModelPatch::default();
    let wire = patch.tap_model(model, codes)?;
    let same = dt == out && tables.iter().all(|t| t.iter().enumerate().all(|(i, c)| i == *c as usize));
    let table = Table { tables: Arc::new(tables), axis: axis.map_or(0, |(axis, _)| axis), out };
    let wire = if same { wire } else { patch.wire_node(&node.name, table, &[wire])?[0] };
    patch.shunt_outside(model, node.id.into(), wire)?;
    Ok(Some(patch))
}

/// Along which axis the constants of a function differ.
#[derive(Clone, Copy, Debug, Default)]
pub struct Channels {
    axis: Option<usize>,
}

impl Channels {
    /// `false` if constants differ along two axes.
    fn take(&mut self, axis: usize) -> bool {
        *self.axis.get_or_insert(axis) == axis
    }

    pub fn take_grain(&mut self, params: &Params) -> bool {
        match params.grain() {
            Grain::Tensor => true,
            Grain::Axis(axis) => self.take(axis),
            Grain::Block { .. } => false,
        }
    }

    pub fn take_constant(&mut self, k: &Tensor) -> bool {
        k.shape().iter().enumerate().all(|(axis, d)| *d == 1 || self.take(axis))
    }

    pub fn axis(&self) -> Option<usize> {
        self.axis
    }

    /// The axis of channels and how many there are, if any; `None` where tables are not worth their memory.
    fn worth(self, shape: &ShapeFact) -> Option<Option<(usize, usize)>> {
        let Some(axis) = self.axis else { return Some(None) };
        let channels = shape.get(axis)?.to_usize().ok()?;
        let elements = shape.volume().to_usize().unwrap_or(usize::MAX);
        let worth = shape.rank() > 1 && channels <= MOST_CHANNELS && elements / FEWEST_ELEMENTS >= channels;
        worth.then_some(Some((axis, channels)))
    }
}

/// Tables of more channels than this (4 MiB) are not made.
const MOST_CHANNELS: usize = 1 << 14;

/// Elements of a channel from which on a table of 256 entries is worth it.
const FEWEST_ELEMENTS: usize = 16;

/// The DequantizeLinear that everything before a node comes from, and the nodes between and the node itself in the order
/// they run.
fn region<'m>(
    model: &'m TypedModel,
    node: &'m TypedNode,
    dequantized: Dequantized,
    channels: &mut Channels,
) -> Option<(&'m TypedNode, Vec<&'m TypedNode>)> {
    let mut root: Option<&TypedNode> = None;
    let mut order: Vec<&TypedNode> = Vec::new();
    // Nodes to visit; `true` once their inputs are in order.
    let mut stack = vec![(node, false)];
    while let Some((n, ready)) = stack.pop() {
        if order.iter().any(|o| o.id == n.id) || root.is_some_and(|r| r.id == n.id) {
            continue;
        }
        if ready {
            order.push(n);
            continue;
        }
        if n.outputs.len() != 1 || order.len() + stack.len() > LARGEST {
            return None;
        }
        if let Some(p) = dequantized(n) {
            let codes = model.outlet_fact(n.inputs[0]).ok()?.datum_type;
            if root.is_some() || !channels.take_grain(p) || !matches!(codes, DatumType::U8 | DatumType::I8) {
                return None;
            }
            root = Some(n);
            continue;
        }
        let pointwise = n.op_is::<ElementWiseOp>() || n.op_is::<TypedBinOp>() || n.op_is::<Cast>();
        if n.id != node.id && (!pointwise || model.outputs.iter().any(|o| o.node == n.id)) {
            return None;
        }
        stack.push((n, true));
        for i in &n.inputs {
            let fact = model.outlet_fact(*i).ok()?;
            match &fact.konst {
                Some(k) if k.len() == 1 || k.rank() == n.outputs[0].fact.rank() && channels.take_constant(k) => {}
                Some(_) => return None,
                None => stack.push((model.node(i.node), false)),
            }
        }
    }
    let inside = |n: &TypedNode| n.outputs[0].successors.iter().all(|s| order.iter().any(|o| o.id == s.node));
    order.iter().all(|n| n.id == node.id || inside(n)).then_some((root?, order))
}

/// More nodes than any activation function has.
pub const LARGEST: usize = 32;

/// The only output of an operator, if that can be told without a plan.
pub fn run(op: &dyn TypedOp, inputs: TVec<TValue>) -> TractResult<Option<TValue>> {
    Ok(op.eval_out_of_plan(inputs)?.and_then(|mut v| v.pop()))
}

/// Runs the nodes on every code, of each channel where there are some.
fn tabulate(
    model: &TypedModel,
    root: &TypedNode,
    order: &[&TypedNode],
    dt: DatumType,
    channels: Option<(usize, usize)>,
) -> TractResult<Option<Vec<[u8; 256]>>> {
    let mut shape: TVec<usize> = tvec![1; root.outputs[0].fact.rank()];
    let (axis, count) = channels.unwrap_or((0, 1));
    // Codes run along another axis than channels.
    let along = if channels.is_some() && axis == shape.len() - 1 {
        shape.len().checked_sub(2)
    } else {
        shape.len().checked_sub(1)
    };
    let Some(along) = along else { return Ok(None) };
    shape[along] = 256;
    if channels.is_some() {
        shape[axis] = count;
    }
    // Whether neighbours are channels of one code, or codes of one channel.
    let by_code = channels.is_some() && along < axis;
    let all: Vec<u8> = (0..256 * count).map(|i| (if by_code { i / count } else { i % 256 }) as u8).collect();
    let all = if dt == DatumType::I8 {
        Tensor::from_shape(&shape, &all.iter().map(|b| *b as i8).collect::<Vec<_>>())?
    } else {
        Tensor::from_shape(&shape, &all)?
    };
    let mut values: HashMap<usize, TValue> = HashMap::default();
    let Some(value) = run(&*root.op, tvec!(all.into_tvalue()))? else { return Ok(None) };
    values.insert(root.id, value);
    for n in order {
        let mut inputs = tvec!();
        for i in &n.inputs {
            match (&model.outlet_fact(*i)?.konst, values.get(&i.node)) {
                (Some(k), _) => inputs.push(k.clone().into_tvalue()),
                (None, Some(v)) => inputs.push(v.clone()),
                (None, None) => return Ok(None),
            }
        }
        let Some(value) = run(&*n.op, inputs)? else { return Ok(None) };
        values.insert(n.id, value);
    }
    let Some(last) = order.last().and_then(|n| values.get(&n.id)) else { return Ok(None) };
    let (codes, _) = code_bytes(last)?;
    ensure!(codes.len() == 256 * count, "{} codes of {count} tables", codes.len());
    let at = |channel: usize, code: usize| if by_code { code * count + channel } else { channel * 256 + code };
    Ok(Some((0..count).map(|c| std::array::from_fn(|code| codes[at(c, code)])).collect()))
}

/// Channels whose tables are looked up in turn, so that they stay in the nearest cache.
const NEAR: usize = 64;

impl Table {
    /// The tables, if there is one for all or one for each of `cols` columns along `axis`; and the type of the codes.
    pub fn by_column(&self, axis: usize, cols: usize) -> Option<(Tables, DatumType)> {
        let fits = self.tables.len() == 1 || self.axis == axis && self.tables.len() == cols;
        fits.then(|| (self.tables.clone(), self.out))
    }

    fn look_up(&self, shape: &[usize], from: &[u8], to: &mut [u8]) {
        let channels = self.tables.len();
        let inner: usize = if channels == 1 { from.len() } else { shape[self.axis + 1..].iter().product() };
        if from.is_empty() {
            return;
        }
        if inner > 1 || channels == 1 {
            let lines = from.chunks_exact(inner).zip(to.chunks_exact_mut(inner));
            for ((x, y), table) in lines.zip(self.tables.iter().cycle()) {
                look_up(table, x, y);
            }
            return;
        }
        for (block, tables) in self.tables.chunks(NEAR).enumerate() {
            let at = block * NEAR..block * NEAR + tables.len();
            for (x, y) in from.chunks_exact(channels).zip(to.chunks_exact_mut(channels)) {
                let row = x[at.clone()].iter().zip(&mut y[at.clone()]);
                row.zip(tables).for_each(|((x, y), table)| *y = table[*x as usize]);
            }
        }
    }
}

impl Op for Table {
    fn name(&self) -> StaticName {
        "CodeTable".into()
    }

    op_as_typed_op!();
}

impl EvalOp for Table {
    op_out_of_plan!();

    fn eval(&self, _ctx: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let x = args_1!(inputs);
        let (bytes, _) = code_bytes(&x)?;
        // SAFETY: both types are bytes of any pattern, and each of them is written below.
        let mut y = unsafe { Tensor::uninitialized_dt(self.out, x.shape())? };
        // SAFETY: codes of either sign are bytes; the tensor is plain.
        let to = unsafe { std::slice::from_raw_parts_mut(y.as_ptr_mut_unchecked::<u8>(), bytes.len()) };
        self.look_up(x.shape(), bytes, to);
        Ok(tvec!(y.into_tvalue()))
    }
}

impl TypedOp for Table {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        Ok(tvec!(self.out.fact(inputs[0].shape.clone())))
    }

    fn axes_mapping(&self, inputs: &[&TypedFact], outputs: &[&TypedFact]) -> TractResult<AxesMapping> {
        if self.tables.len() == 1 {
            AxesMapping::natural(inputs, outputs)
        } else {
            AxesMapping::disconnected(inputs, outputs)
        }
    }

    fn change_axes(
        &self,
        model: &TypedModel,
        node: &TypedNode,
        _io: InOut,
        change: &AxisOp,
    ) -> TractResult<Option<AxisChangeConsequence>> {
        if self.tables.len() == 1 {
            return Ok(Some(AxisChangeConsequence::new(model, node, None, change)));
        }
        let moved = if let AxisOp::Reshape(..) = change { None } else { change.transform_axis(self.axis) };
        Ok(moved.map(|axis| {
            let op = Table { axis, ..self.clone() };
            AxisChangeConsequence::new(model, node, Some(Box::new(op)), change)
        }))
    }

    as_op!();
}
