//! How much of a model computes on integers.
//!
//! A MatMul, Gemm, Conv or attention product is covered when both operands come from DequantizeLinear (moves between do
//! not matter) or from integer codes (Log-Int-Softmax weights held in float). Integer operators are covered as they are.
//! What does not depend on what the model is fed is not counted.

use super::report::{Coverage, OpCoverage};
use crate::infer;
use crate::ir::{Graph, Model, ValueId};
use crate::plan::Island;
use crate::plan::apart::unfed;
use crate::plan::sites::is_move;

/// Counts covered compute operators and names the others.
pub fn measure(model: &Model) -> (Coverage, Vec<Island>) {
    let g = &model.graph;
    let shapes = infer::shapes(model);
    let mut c = Coverage::default();
    let mut islands = Vec::new();
    let unfed = unfed(g);
    for id in g.schedule().into_iter().filter(|id| !unfed.contains(id)) {
        let n = g.node(id);
        let name = n.op.name.as_str();
        let operands: &[usize] = match name {
            "MatMul" | "Gemm" | "Conv" | "ConvTranspose" if n.op.is_onnx() => &[0, 1],
            "MatMulInteger" | "ConvInteger" | "QLinearMatMul" | "QLinearConv" if n.op.is_onnx() => &[],
            _ => continue,
        };
        let is_int = |v: ValueId| shapes.dtype(v).is_some_and(|d| d.is_int());
        let bad: Vec<ValueId> =
            operands.iter().filter_map(|i| n.input(*i)).filter(|v| !from_codes(g, *v, &is_int)).collect();
        let e = c.by_op.entry(name.to_owned()).or_insert(OpCoverage { covered: 0, total: 0 });
        e.total += 1;
        c.total += 1;
        if bad.is_empty() {
            e.covered += 1;
            c.covered += 1;
        } else {
            let names: Vec<String> = bad.iter().map(|v| format!("`{}`", g.name_of(*v))).collect();
            islands.push(Island {
                node: if n.name.is_empty() {
                    n.out().map_or(String::new(), |v| g.name_of(v).to_owned())
                } else {
                    n.name.clone()
                },
                op: name.to_owned(),
                reason: format!("{} reaches it in float", names.join(" and ")),
            });
        }
    }
    (c, islands)
}

/// True if the value holds codes: read back by DequantizeLinear, or integers kept in float, moved or not.
fn from_codes(g: &Graph, mut v: ValueId, is_int: &impl Fn(ValueId) -> bool) -> bool {
    // A chain in a graph without cycles ends; the bound is for graphs that were not validated.
    for _ in 0..64 {
        let Some(p) = g.producer(v) else { return false };
        let n = g.node(p);
        let next = match n.op.name.as_str() {
            "DequantizeLinear" => return true,
            "Cast" if n.input(0).is_some_and(is_int) => return true,
            // Log-Int-Softmax: weights rounded to the row's precision (w + M) - M, masked, or taken from a table.
            "Sub" | "Add" => n.input(0),
            "Where" => n.input(1),
            "Gather" if n.input(1).is_some_and(is_int) && n.input(0).is_some_and(|t| g.constant(t).is_some()) => {
                return true;
            }
            "Floor" | "Clip" | "Mul" if n.origin_is("quantize-attention") => n.input(0),
            "Concat" => {
                return n.inputs.iter().flatten().all(|x| from_codes(g, *x, is_int));
            }
            _ if is_move(n) => n.input(0),
            _ => return false,
        };
        match next {
            Some(x) => v = x,
            None => return false,
        }
    }
    false
}
