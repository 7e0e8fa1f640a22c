//! Which operator after a product can be one of its steps.

use std::sync::Arc;

use tract_onnx::tract_core::ops::binary::TypedBinOp;
use tract_onnx::tract_core::ops::cast::Cast;
use tract_onnx::tract_core::ops::math::{Add, Div, Mul, Sub};
use tract_onnx::tract_hir::internal::*;

use super::ask::only_reader;
use super::qdq::Qdq;
use super::steps::{Step, Steps};
use super::table::Table;

/// The steps of a product with the operator after it as one more, and the type that comes out; `None` if the operator is
/// no step, or if anyone else reads the product. `axis` is the product's axis of columns.
pub fn next(
    model: &TypedModel,
    node: &TypedNode,
    steps: &Steps,
    axis: usize,
) -> TractResult<Option<(Steps, DatumType)>> {
    let Some(next) = only_reader(model, node) else { return Ok(None) };
    let Some(cols) = node.outputs[0].fact.shape[axis].to_usize().ok() else { return Ok(None) };
    if steps.requantize.is_some() {
        let Some(table) = next.op_as::<Table>().filter(|_| steps.tables.is_none()) else { return Ok(None) };
        let tables = table.by_column(axis, cols);
        return Ok(tables.map(|(tables, codes)| (Steps { tables: Some(tables), ..steps.clone() }, codes)));
    }
    if let Some(q) = next.op_as::<Qdq>() {
        let requantize = if steps.float() { q.requantize(axis, cols) } else { None };
        return Ok(requantize.map(|(r, codes)| (Steps { requantize: Some(Arc::new(r)), ..steps.clone() }, codes)));
    }
    if let Some(cast) = next.op_as::<Cast>() {
        let float = !steps.float() && cast.to == f32::datum_type();
        return Ok(float.then(|| (steps.with(Step::Float), f32::datum_type())));
    }
    let Some(op) = next.op_as::<TypedBinOp>() else { return Ok(None) };
    let place = next.inputs.iter().position(|i| i.node == node.id).unwrap_or(0);
    let Some(other) = next.inputs.get(1 - place) else { return Ok(None) };
    let fact = model.outlet_fact(*other)?;
    let Some(k) = fact.konst.as_ref().filter(|_| op.1.is_none()) else { return Ok(None) };
    if next.outputs[0].fact.shape != node.outputs[0].fact.shape || fact.datum_type != node.outputs[0].fact.datum_type {
        return Ok(None);
    }
    let step = if steps.float() {
        let Some(v) = by_column::<f32>(k, axis, cols)? else { return Ok(None) };
        if op.0.is::<Add>() {
            Step::Add(v)
        } else if op.0.is::<Mul>() {
            Step::Mul(v)
        } else if op.0.is::<Sub>() && place == 0 {
            Step::Add(v.into_iter().map(|x| -x).collect())
        } else if op.0.is::<Div>() && place == 0 {
            Step::Div(v)
        } else {
            return Ok(None);
        }
    } else {
        let Some(v) = by_column::<i32>(k, axis, cols)? else { return Ok(None) };
        if op.0.is::<Add>() {
            Step::AddInt(v)
        } else if op.0.is::<Sub>() && place == 0 {
            Step::AddInt(v.into_iter().map(i32::wrapping_neg).collect())
        } else {
            return Ok(None);
        }
    };
    let dt = if steps.float() { f32::datum_type() } else { i32::datum_type() };
    Ok(Some((steps.with(step), dt)))
}

/// A constant as a number for each column: it must be the same along every other axis.
pub fn by_column<T: Datum + Copy>(k: &Tensor, axis: usize, cols: usize) -> TractResult<Option<Vec<T>>> {
    if k.datum_type() != T::datum_type() {
        return Ok(None);
    }
    let plain = k.try_as_plain_ram()?;
    let all = plain.as_slice::<T>()?;
    Ok(match all {
        [x] => Some(vec![*x; cols]),
        _ if all.len() == cols && k.shape().get(axis) == Some(&cols) => Some(all.to_vec()),
        _ => None,
    })
}
