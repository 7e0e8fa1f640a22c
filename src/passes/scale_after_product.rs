//! The scale of attention goes after the product.

use crate::ir::{Graph, NodeId, ValueId};
use crate::pattern::{Attention, QueryKey, Scale};
use crate::plan::sites::trace_back;
use crate::rewrite::Patch;

use super::{Context, Numerics, Outcome, Pass, PassError};

/// # What it does
/// Removes a constant factor from the queries, the keys or both (exporters of fused attention split it) and multiplies their
/// product by it instead, where Log-Int-Softmax absorbs it into the scale of the score codes.
///
/// # When it fires
/// At every recognised attention whose product reads, through moves, a Mul or Div by a constant number whose result nothing
/// else reads.
///
/// # Why it is correct
/// `(a Q) (b K)^T = a b (Q K^T)`.
///
/// # Numerics
/// Close: each score is rounded once, instead of each operand.
///
/// # Before / after
/// `MatMul(Mul(q, 0.35), Mul(k, 0.35))` becomes `Mul(MatMul(q, k), 0.125)`.
///
/// # Source
/// Algebra.
pub struct ScaleAfterProduct;

/// The Mul or Div by a number that makes `v`, seen through moves: `(node, data operand, factor)`.
fn factor_of(g: &Graph, v: ValueId) -> Option<(NodeId, ValueId, f32)> {
    let mut at = v;
    loop {
        // Another reader would lose its factor.
        if g.use_count(at) != 1 {
            return None;
        }
        let source = trace_back(g, at);
        if source != at {
            let p = g.producer(at)?;
            at = g.node(p).input(0)?;
            continue;
        }
        break;
    }
    let id = g.producer(at)?;
    let n = g.node(id);
    let scalar = |v: ValueId| g.constant(v).filter(|t| t.len() == 1).and_then(|t| t.as_scalar()).map(|x| x as f32);
    let (a, b) = (n.input(0)?, n.input(1)?);
    let (x, f) = match (n.op.name.as_str(), scalar(a), scalar(b)) {
        ("Mul", None, Some(f)) => (a, f),
        ("Mul", Some(f), None) => (b, f),
        ("Div", None, Some(f)) => (a, 1.0 / f),
        _ => return None,
    };
    (n.op.is_onnx() && f.is_finite() && f > 0.0).then_some((id, x, f))
}

impl ScaleAfterProduct {
    fn patch(&self, g: &Graph, a: &Attention) -> Option<Patch> {
        let QueryKey { q, k, .. } = a.product?;
        let found: Vec<(NodeId, ValueId, f32)> = [q, k].into_iter().filter_map(|v| factor_of(g, v)).collect();
        if found.is_empty() {
            return None;
        }
        let mut p = Patch::new("scale-after-product").made_from([g.name_of(a.out).to_owned()]);
        let mut factor: f32 = 1.0;
        for (n, x, f) in &found {
            factor *= f;
            p.replace(g.node(*n).out()?, (*x).into());
        }
        let name = g.name_of(a.scores_product).to_owned();
        match a.chain.scale {
            Some(Scale { node, factor: f }) => {
                let div = g.node(node).op.is("Div");
                let slot = (0..2).find(|s| g.node(node).input(*s).is_some_and(|v| g.constant(v).is_some()))?;
                let v = if div { 1.0 / (f * factor) } else { f * factor };
                let c = p.under(&name).scalar("scale_factor", v);
                p.set_input(node, slot, Some(c));
            }
            None => {
                let mut e = p.under(&name);
                let c = e.scalar("scale_factor", factor);
                let y = e.op("Mul", "scaled", &[a.scores_product.into(), c]);
                p.replace(a.scores_product, y);
            }
        }
        Some(p)
    }
}

impl Pass for ScaleAfterProduct {
    fn id(&self) -> &'static str {
        "scale-after-product"
    }

    fn summary(&self) -> &'static str {
        "Moves constant factors of queries and keys to their product."
    }

    fn numerics(&self) -> Numerics {
        Numerics::Close { rel: 1e-4 }
    }

    fn run(&self, model: &mut Context) -> Result<Outcome, PassError> {
        let mut out = Outcome::default();
        for a in model.attentions().to_vec() {
            if let Some(p) = self.patch(&model.graph, &a) {
                model.commit(p)?;
                out.changes += 1;
            }
        }
        if out.changes > 0 {
            model.sweep();
        }
        Ok(out)
    }
}
