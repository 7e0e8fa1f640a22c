//! What several operators ask of tract's models and tensors.

use std::sync::Arc;

use tract_onnx::tract_hir::internal::*;

/// The one node that reads the only output of another, which is no output of the model.
pub fn only_reader<'m>(model: &'m TypedModel, node: &TypedNode) -> Option<&'m TypedNode> {
    let [output] = &*node.outputs else { return None };
    let [reader] = &*output.successors else { return None };
    let next = model.node(reader.node);
    let twice = next.inputs.iter().filter(|i| i.node == node.id).count() != 1;
    let is_output = model.outputs.iter().any(|o| o.node == node.id);
    (!twice && !is_output).then_some(next)
}

/// A constant, or one that was given axes of size one. (While a model is read, tract folds only small ones.)
pub fn constant(model: &TypedModel, outlet: OutletId) -> TractResult<Option<Arc<Tensor>>> {
    if let Some(k) = &model.outlet_fact(outlet)?.konst {
        return Ok(Some(k.clone()));
    }
    let node = model.node(outlet.node);
    let (Some(AxisOp::Add(_)), [input]) = (node.op_as::<AxisOp>(), &node.inputs[..]) else { return Ok(None) };
    let Some(k) = constant(model, *input)? else { return Ok(None) };
    let made = node.op.eval_out_of_plan(tvec!(k.into_tvalue()))?;
    Ok(made.map(|mut v| v.remove(0).into_arc_tensor()))
}

/// The bytes of a tensor of codes, and whether they are signed.
pub fn code_bytes(t: &Tensor) -> TractResult<(&[u8], bool)> {
    match t.datum_type() {
        DatumType::U8 => Ok((t.try_as_plain_ram()?.as_slice::<u8>()?, false)),
        DatumType::I8 => {
            let s = t.try_as_plain_ram()?.as_slice::<i8>()?;
            // SAFETY: the same bytes under another name.
            Ok((unsafe { std::slice::from_raw_parts(s.as_ptr().cast(), s.len()) }, true))
        }
        other => bail!("codes of type {other:?} cannot be multiplied"),
    }
}
