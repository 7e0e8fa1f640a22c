//! `product-scales`: a factor after a product of codes is part of their scale.
//!
//! *What it does.* The Mul by one number that alone reads a MatMul of codes, the scale of an attention, goes into the scale of the
//! first operand's DequantizeLinear.
//!
//! *When it fires.* For a positive constant factor of one element, and two operands that come from DequantizeLinear of computed
//! codes, the first with one scale.
//!
//! *Why it is correct.* `f ((s_a a) (s_b b)) = ((f s_a) a) (s_b b)`.
//!
//! *Numerics.* Close: one rounding less.
//!
//! *Before / after.* `Mul (MatMul (DQ (a, s), DQ (b, t)), f)` becomes `MatMul (DQ (a, f s), DQ (b, t))`.
//!
//! *Source.* Algebra; it saves a pass over the scores, and onnxruntime scales the sums of MatMulIntegerToFloat anyway.

use super::Coding;
use crate::ir::{Graph, NodeId};
use crate::passes::common::{patch_nodes, sole_use};
use crate::passes::{Context, Numerics, Outcome, Pass, PassError};
use crate::rewrite::Patch;

/// The pass.
pub struct ProductScales;

impl Pass for ProductScales {
    fn id(&self) -> &'static str {
        "product-scales"
    }

    fn summary(&self) -> &'static str {
        "Merges a factor after a product of codes into their scale."
    }

    fn numerics(&self) -> Numerics {
        Numerics::Close { rel: 1e-5 }
    }

    fn run(&self, m: &mut Context) -> Result<Outcome, PassError> {
        patch_nodes(m, patch)
    }
}

fn patch(g: &Graph, id: NodeId) -> Option<Patch> {
    let n = g.node(id);
    if !n.op.is("MatMul") {
        return None;
    }
    let product = n.out().filter(|y| !g.is_output(*y))?;
    let mul = sole_use(g, product).filter(|m| g.node(*m).op.is("Mul"))?;
    let slot = g.node(mul).inputs.iter().position(|v| *v == Some(product))?;
    let factor = g.constant(g.node(mul).input(1 - slot)?).filter(|t| t.len() == 1 && t.dims.len() <= 2)?.as_scalar()?;
    let [a, b] = [n.input(0)?, n.input(1)?].map(|v| Coding::read_back(g, v).filter(|c| g.constant(c.x).is_none()));
    let (a, _) = (a?, b?);
    let (scale, _) = a.whole()?;
    let scale = (f64::from(scale) * factor) as f32;
    if !(scale.is_finite() && scale >= f32::MIN_POSITIVE) {
        return None;
    }
    let y = g.node(mul).out()?;
    let name = g.name_of(y);
    let mut p = Patch::new("product-scales").made_from([name.to_owned()]).before(id);
    let mut e = p.under(name);
    let scale = e.scalar("scale", scale);
    let x = e.like(g.node(a.node), "scaled", &[(1, scale)]);
    let z = e.op_with("MatMul", "", &[x, n.input(1)?.into()], n.attrs.clone());
    if let Some(ty) = g.value(y).ty.clone() {
        p.typed(z, ty.dtype, ty.shape);
    }
    p.succeed(y, z);
    Some(p)
}
