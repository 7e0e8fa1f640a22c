//! A model in half precision computes in float32 from here on, its nested graphs with it.
//!
//! No pass: it changes what a model computes with, which no pass may.

use crate::infer;
use crate::ir::Model;
use crate::onnx;
use crate::rewrite::{Bodies, Ends, WidenError, widen_graph};

/// Makes every float16 and bfloat16 value float32; inputs and outputs of the model keep their types behind a Cast. Returns
/// how many weights were widened, which is exact.
///
/// # Errors
/// If an operator of another domain would read or make a value whose type changes. Nothing is changed.
pub fn widen_floats(m: &mut Model) -> Result<usize, WidenError> {
    widen(m, Ends::Keep)
}

fn widen(m: &mut Model, ends: Ends) -> Result<usize, WidenError> {
    let mut weights = 0;
    let mut bodies: Bodies = Vec::new();
    if m.graph.nodes().any(|(_, n)| n.has_subgraph()) {
        let map = infer::shapes(m);
        for (id, n) in m.graph.nodes().filter(|(_, n)| n.has_subgraph()) {
            let new = onnx::map_bodies(m, n, &|v| map.ty(v), &mut |body| {
                weights += widen(body, Ends::Widen).map_err(|e| e.to_string())?;
                Ok(())
            });
            let new = new.map_err(|why| WidenError::Body { node: n.name.clone(), op: n.op.to_string(), why })?;
            bodies.push((id, new));
        }
    }
    Ok(weights + widen_graph(m, bodies, ends)?)
}
