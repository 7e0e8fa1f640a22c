use super::{Context, Numerics, Outcome, Pass, PassError};
use crate::infer;
use crate::ir::Model;
use crate::onnx;
use crate::rewrite::{Bodies, Ends, WidenError, narrow_floats, widen_graph};

/// # What it does
/// A model in half precision computes in float32 from here on, its nested graphs with it: every float16 and bfloat16 value
/// becomes float32. Inputs and outputs of the model keep their types after a Cast.
///
/// # When it fires
/// On every model with a float16 or bfloat16 value or weight. An operator of another domain in such a model is an error.
///
/// # Why it is correct
/// Every number of half precision is a float32 number.
///
/// # Numerics
/// Widens: results are those of float32 arithmetic, without the rounding to half precision in between. Constants keep
/// standing for what they meant, which rules are told.
///
/// # Before / after
/// ```text
/// y = Mul (x, half)                        x_wide = Cast <to = 1> (x)
///                                          y_wide = Mul (x_wide, half_as_float32)
///                                          y = Cast <to = 10> (y_wide)
/// ```
///
/// # Source
/// ONNX operator documentation.
pub struct WidenFloats;

impl Pass for WidenFloats {
    fn id(&self) -> &'static str {
        "widen-floats"
    }

    fn summary(&self) -> &'static str {
        "Widens a model in half precision to float32."
    }

    fn numerics(&self) -> Numerics {
        Numerics::Widens
    }

    fn run(&self, cx: &mut Context) -> Result<Outcome, PassError> {
        let Some(was) = narrow_floats(cx) else { return Ok(Outcome::default()) };
        let mut weights = 0;
        let widened = bodies(cx, &mut weights).and_then(|b| cx.widen(was, b));
        let failed = |e: WidenError| PassError::Failed { pass: self.id().to_owned(), message: e.to_string() };
        weights += widened.map_err(failed)?;
        let note =
            format!("the model computes in half precision; {weights} weights and all it computes are float32 now");
        Ok(Outcome { changes: weights.max(1), notes: vec![note] })
    }
}

fn widen(m: &mut Model, ends: Ends) -> Result<usize, WidenError> {
    let mut weights = 0;
    let bodies = bodies(m, &mut weights)?;
    Ok(weights + widen_graph(m, bodies, ends)?)
}

/// The nested graphs of a model, widened; `weights` counts theirs.
fn bodies(m: &Model, weights: &mut usize) -> Result<Bodies, WidenError> {
    let mut bodies: Bodies = Vec::new();
    if m.graph.nodes().any(|(_, n)| n.has_subgraph()) {
        let map = infer::shapes(m);
        for (id, n) in m.graph.nodes().filter(|(_, n)| n.has_subgraph()) {
            let new = onnx::map_bodies(m, n, &|v| map.ty(v), &mut |body| {
                *weights += widen(body, Ends::Widen).map_err(|e| e.to_string())?;
                Ok(())
            });
            let new = new.map_err(|why| WidenError::Body { node: n.name.clone(), op: n.op.to_string(), why })?;
            bodies.push((id, new));
        }
    }
    Ok(bodies)
}
