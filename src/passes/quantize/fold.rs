//! `fold`: moves factors out of a value into the weights behind it.
//!
//! *What it does.* For each fold of the plan the value `x[c]` becomes `x[c] / f[c]` and every linear layer that reads it
//! gets `f[c] W[c]`. Behind a LayerNormalization the division goes into its gamma and beta; behind anything else it is a
//! Mul, which [`activations`](super::activations) later absorbs into the QuantizeLinear.
//!
//! *When it fires.* For each `folds` entry of the plan.
//!
//! *Why it is correct.* `(x / f) (diag(f) W) = x W` for a contraction over `c`; LayerNormalization is affine in gamma and
//! beta: `gamma / f * n + beta / f = (gamma n + beta) / f`.
//!
//! *Numerics.* Close: each product is rounded once more (relative 1e-4 at most).
//!
//! *Before / after.* `n = LayerNormalization(x, g, b); y = MatMul(n, W)` becomes
//! `n = LayerNormalization(x, g/f, b/f); y = MatMul(n, f W)`.
//!
//! *Source.* Migration of difficulty as in SmoothQuant (arXiv 2211.10438); factors into LayerNorm as in FQ-ViT.

use crate::ir::{Attrs, Graph, Model, Tensor, ValueId};
use crate::passes::{Numerics, Outcome, Pass, PassError};
use crate::plan::sites::{Linear, Sites};
use crate::plan::{Fold, PlanError, QuantPlan};
use crate::rewrite::Patch;

/// The pass, for one plan.
pub struct FoldFactors<'p> {
    pub plan: &'p QuantPlan,
    pub sites: &'p Sites,
}

/// Name of the value a fold behind no LayerNorm makes.
pub(crate) fn folded_name(value: &str) -> String {
    format!("{value}_folded")
}

impl FoldFactors<'_> {
    fn failed(&self, fold: &Fold, message: &str) -> PassError {
        PassError::Failed { pass: self.id().into(), message: format!("fold of `{}`: {message}", fold.value) }
    }
}

impl Pass for FoldFactors<'_> {
    fn id(&self) -> &'static str {
        "fold"
    }

    fn summary(&self) -> &'static str {
        "Moves factors of a value into the weights behind it."
    }

    fn numerics(&self) -> Numerics {
        Numerics::Close { rel: 1e-4 }
    }

    fn run(&self, m: &mut Model) -> Result<Outcome, PassError> {
        let mut out = Outcome::default();
        for fold in &self.plan.folds {
            let v = m.graph.find(&fold.value).ok_or_else(|| PassError::Failed {
                pass: self.id().into(),
                message: PlanError::Missing { what: fold.value.clone(), kind: "value" }.to_string(),
            })?;
            let linears: Vec<&Linear> = self.sites.linears.iter().filter(|l| l.x == v).collect();
            // Its shape is not changed by a fold.
            let readers =
                m.graph.uses(v).into_iter().filter(|(n, slot)| *slot == usize::MAX || !m.graph.node(*n).op.is("Shape"));
            if linears.is_empty() || linears.len() != readers.count() || m.graph.is_output(v) {
                return Err(self.failed(fold, "not all its readers are linear layers"));
            }
            if fold.factors.iter().any(|f| !f.is_finite() || *f <= 0.0) {
                return Err(self.failed(fold, "factors must be positive"));
            }
            let p = patch(self, &m.graph, v, fold, &linears)?;
            p.commit(m)?;
            out.changes += 1;
        }
        Ok(out)
    }
}

fn patch(pass: &FoldFactors, g: &Graph, v: ValueId, fold: &Fold, linears: &[&Linear]) -> Result<Patch, PassError> {
    let f = &fold.factors;
    let mut p = Patch::new("fold").made_from([fold.value.clone()]);
    for l in linears {
        let w = g.constant(l.weight).ok_or_else(|| pass.failed(fold, "a weight is no constant"))?;
        if w.dims[l.in_axis] as usize != f.len() {
            return Err(pass.failed(fold, "the number of factors is not the number of channels"));
        }
        let t = scaled(w, l.in_axis, |c| f[c]).ok_or_else(|| pass.failed(fold, "a weight can not be read"))?;
        let c = p.constant(g.name_of(l.weight), t);
        p.set_input(l.node, 1, Some(c));
    }
    match g.producer_is(v, "LayerNormalization") {
        Some(norm) => {
            for slot in [1, 2] {
                let Some(x) = g.node(norm).input(slot) else { continue };
                let t = g.constant(x).and_then(|t| scaled(t, 0, |c| 1.0 / f[c])).ok_or_else(|| {
                    pass.failed(fold, "gamma or beta of its LayerNormalization is no constant vector")
                })?;
                let c = p.constant(g.name_of(x), t);
                p.set_input(norm, slot, Some(c));
            }
        }
        None => {
            let inv = Tensor::f32(&[f.len() as i64], &f.iter().map(|f| 1.0 / f).collect::<Vec<_>>());
            let name = folded_name(&fold.value);
            let c = p.constant(&format!("{name}_factor"), inv);
            let y = p.node("Mul", &name, &[v.into(), c], Attrs::new());
            p.replace(v, y);
        }
    }
    Ok(p)
}

/// The tensor with index `c` along `axis` multiplied by `f(c)`, in f32.
pub(super) fn scaled(t: &Tensor, axis: usize, f: impl Fn(usize) -> f32) -> Option<Tensor> {
    let data = t.to_f32s()?;
    let n = *t.dims.get(axis)? as usize;
    let inner: usize = t.dims[axis + 1..].iter().map(|d| *d as usize).product();
    let v: Vec<f32> = data.iter().enumerate().map(|(i, x)| x * f((i / inner.max(1)) % n)).collect();
    Some(Tensor::f32(&t.dims, &v))
}
