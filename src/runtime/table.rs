//! From codes to codes by a table.
//!
//! What stands between a DequantizeLinear and a QuantizeLinear, as long as it computes every element by itself from that one
//! element, is a function of 256 codes. It is computed once for each, by the operators themselves, so that the table holds
//! what they would have given. A GELU between codes is one look-up an element.
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
use super::kernel::{Grain, Params};

/// The operator as it runs: codes in, codes out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// By the bit pattern of the code.
    codes: Arc<[u8; 256]>,
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
    if params.grain() != Grain::Tensor || !matches!(out, DatumType::U8 | DatumType::I8) {
        return Ok(None);
    }
    let Some((root, order)) = region(model, node, dequantized) else { return Ok(None) };
    let codes = root.inputs[0];
    let dt = model.outlet_fact(codes)?.datum_type;
    if root.outputs[0].fact.shape != node.outputs[0].fact.shape {
        return Ok(None);
    }
    let mut patch = TypedModelPatch::default();
    let wire = patch.tap_model(model, codes)?;
    let Some(table) = tabulate(model, root, &order, dt)? else { return Ok(None) };
    let same = dt == out && table.iter().enumerate().all(|(i, c)| i == *c as usize);
    let wire =
        if same { wire } else { patch.wire_node(&node.name, Table { codes: Arc::new(table), out }, &[wire])?[0] };
    patch.shunt_outside(model, node.id.into(), wire)?;
    Ok(Some(patch))
}

/// The DequantizeLinear that everything before a node comes from, and the nodes between and the node itself in the order
/// they run.
fn region<'m>(
    model: &'m TypedModel,
    node: &'m TypedNode,
    dequantized: Dequantized,
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
            if root.is_some() || p.grain() != Grain::Tensor || !matches!(codes, DatumType::U8 | DatumType::I8) {
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
                Some(k) if k.len() == 1 => {}
                Some(_) => return None,
                None => stack.push((model.node(i.node), false)),
            }
        }
    }
    let inside = |n: &TypedNode| n.outputs[0].successors.iter().all(|s| order.iter().any(|o| o.id == s.node));
    order.iter().all(|n| n.id == node.id || inside(n)).then_some((root?, order))
}

/// More nodes than any activation function has.
const LARGEST: usize = 32;

/// The only output of an operator, if that can be told without a plan.
fn run(op: &dyn TypedOp, inputs: TVec<TValue>) -> TractResult<Option<TValue>> {
    Ok(op.eval_out_of_plan(inputs)?.and_then(|mut v| v.pop()))
}

/// Runs the nodes on every code.
fn tabulate(
    model: &TypedModel,
    root: &TypedNode,
    order: &[&TypedNode],
    dt: DatumType,
) -> TractResult<Option<[u8; 256]>> {
    let rank = root.outputs[0].fact.rank();
    let mut shape: TVec<usize> = tvec![1; rank];
    let Some(last) = shape.last_mut() else { return Ok(None) };
    *last = 256;
    let all: Vec<u8> = (0..=255).collect();
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
    Ok(code_bytes(last)?.0.try_into().ok())
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
        // SAFETY: both types are bytes of any pattern, and the loop below writes each of them.
        let mut y = unsafe { Tensor::uninitialized_dt(self.out, x.shape())? };
        // SAFETY: codes of either sign are bytes; the tensor is plain.
        let to = unsafe { std::slice::from_raw_parts_mut(y.as_ptr_mut_unchecked::<u8>(), bytes.len()) };
        for (y, x) in to.iter_mut().zip(bytes) {
            *y = self.codes[*x as usize];
        }
        Ok(tvec!(y.into_tvalue()))
    }
}

impl TypedOp for Table {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        Ok(tvec!(self.out.fact(inputs[0].shape.clone())))
    }

    fn axes_mapping(&self, inputs: &[&TypedFact], outputs: &[&TypedFact]) -> TractResult<AxesMapping> {
        AxesMapping::natural(inputs, outputs)
    }

    fn change_axes(
        &self,
        model: &TypedModel,
        node: &TypedNode,
        _io: InOut,
        change: &AxisOp,
    ) -> TractResult<Option<AxisChangeConsequence>> {
        Ok(Some(AxisChangeConsequence::new(model, node, None, change)))
    }

    as_op!();
}
