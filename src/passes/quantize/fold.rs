//! `fold-factors`: moves factors and offsets out of a value into the layers after it.
//!
//! *What it does.* For each fold of the plan the value `x[c]` becomes `(x[c] - o[c]) / f[c]` and every linear layer that
//! reads it gets the weight `f[c] W[c]` and, where there are offsets, the bias `b + o W`. After a LayerNormalization both
//! go into its gamma and beta; after anything else they are a Sub and a Mul, of which
//! [`activations`](super::activations) later absorbs the Mul into the QuantizeLinear.
//!
//! *When it fires.* For each `folds` entry of the plan. Offsets ask for a constant bias in every reader, and do not go
//! through a Conv that pads.
//!
//! *Why it is correct.* `((x - o) / f) (diag(f) W) + b + o W = x W + b` for a contraction over `c`; LayerNormalization is
//! affine in gamma and beta: `gamma / f * n + (beta - o) / f = (gamma n + beta - o) / f`.
//!
//! *Numerics.* Close: each product is rounded once more (relative 1e-4 at most).
//!
//! *Before / after.* `n = LayerNormalization(x, g, b); y = MatMul(n, W)` becomes
//! `n = LayerNormalization(x, g/f, (b - o)/f); y = Add(MatMul(n, f W), o W)`.
//!
//! *Source.* Migration of difficulty as in SmoothQuant (arXiv 2211.10438); factors into LayerNorm as in FQ-ViT.

use crate::ir::{Graph, NodeId, Tensor, ValueId};
use crate::passes::layers::{bias_changed, scaled};
use crate::passes::{Context, Numerics, Outcome, Pass, PassError};
use crate::plan::Fold;
use crate::plan::sites::{Linear, pads};
use crate::rewrite::Patch;

/// The pass, for one plan.
pub struct FoldFactors;

impl FoldFactors {
    fn failed(&self, fold: &Fold, message: &str) -> PassError {
        PassError::Failed { pass: self.id().into(), message: format!("fold of `{}`: {message}", fold.value) }
    }
}

impl Pass for FoldFactors {
    fn id(&self) -> &'static str {
        "fold-factors"
    }

    fn summary(&self) -> &'static str {
        "Moves per-channel factors and offsets of a value into the layers that read it."
    }

    fn numerics(&self) -> Numerics {
        Numerics::Close { rel: 1e-4 }
    }

    fn run(&self, m: &mut Context) -> Result<Outcome, PassError> {
        let mut out = Outcome::default();
        let (plan, sites) = m.carried(self.id())?;
        for fold in &plan.folds {
            let v = m.graph.find(&fold.value).ok_or_else(|| self.failed(fold, "it is not in the model"))?;
            let linears: Vec<&Linear> = sites.linears.iter().filter(|l| l.x == v).collect();
            // Its shape is not changed by a fold.
            let readers =
                m.graph.uses(v).into_iter().filter(|(n, slot)| *slot == usize::MAX || !m.graph.node(*n).op.is("Shape"));
            if linears.is_empty() || linears.len() != readers.count() || m.graph.is_output(v) {
                return Err(self.failed(fold, "not all its readers are linear layers"));
            }
            if fold.factors.iter().any(|f| !f.is_finite() || *f <= 0.0) {
                return Err(self.failed(fold, "factors must be positive"));
            }
            if fold.offsets.iter().any(|o| !o.is_finite()) {
                return Err(self.failed(fold, "offsets must be finite"));
            }
            let p = patch(self, &m.graph, v, fold, &linears)?;
            m.commit(p)?;
            out.changes += 1;
        }
        Ok(out)
    }
}

fn patch(pass: &FoldFactors, g: &Graph, v: ValueId, fold: &Fold, linears: &[&Linear]) -> Result<Patch, PassError> {
    let failed = |message: &str| pass.failed(fold, message);
    let f = &fold.factors;
    if !fold.offsets.is_empty() && fold.offsets.len() != f.len() {
        return Err(failed("the number of offsets is not the number of factors"));
    }
    let mut p = Patch::new("fold-factors").made_from([fold.value.clone()]);
    // Axes after the channels.
    let mut behind = None;
    for l in linears {
        let w = g.constant(l.weight).ok_or_else(|| failed("a weight is no constant"))?;
        if w.dims[l.in_axis] as usize != f.len() {
            return Err(failed("the number of factors is not the number of channels"));
        }
        let axes = if l.is_conv { w.dims.len() - 2 } else { 0 };
        if *behind.get_or_insert(axes) != axes {
            return Err(failed("its readers do not contract the same axis"));
        }
        let t = scaled(w, l.in_axis, |c| f[c]).ok_or_else(|| failed("a weight cannot be read"))?;
        let c = p.constant(g.name_of(l.weight), t);
        p.set_input(l.node, 1, Some(c));
        if fold.offsets.iter().any(|o| *o != 0.0) {
            if l.is_conv && pads(g.node(l.node)) {
                return Err(failed("offsets do not go through a Conv that pads"));
            }
            let shift = shifts(w, l, &fold.offsets).ok_or_else(|| failed("a weight cannot be read"))?;
            bias_changed(g, &mut p, l, |c, b| (f64::from(b) + shift[c]) as f32).map_err(failed)?;
        }
    }
    let behind = behind.unwrap_or(0);
    // A gain for each element of several axes has no place for a factor per channel.
    let by_channel = |n: &NodeId| g.node(*n).input(1).and_then(|x| g.constant(x)).is_none_or(|t| t.dims.len() == 1);
    // A norm that takes no mean off has no beta that could take offsets.
    let gain_alone = || g.producer_is(v, "RMSNormalization").filter(|_| fold.offsets.is_empty());
    let norm = g.producer_is(v, "LayerNormalization").or_else(gain_alone);
    match norm.filter(|_| behind == 0).filter(by_channel) {
        Some(norm) => {
            let vector = |x: ValueId, one: &dyn Fn(usize, f32) -> f32| -> Option<Tensor> {
                let t = g.constant(x).filter(|t| t.dims.len() == 1 && t.len() == f.len())?;
                let data: Vec<f32> = t.to_f32s()?.iter().enumerate().map(|(c, x)| one(c, *x)).collect();
                Some(Tensor::f32(&t.dims, &data))
            };
            let why = "gamma or beta of its LayerNormalization is no constant vector";
            let mut set = |slot: usize, t: Option<Tensor>, x: ValueId| -> Result<(), PassError> {
                let c = p.constant(g.name_of(x), t.ok_or_else(|| failed(why))?);
                p.set_input(norm, slot, Some(c));
                Ok(())
            };
            let n = g.node(norm);
            if let Some(x) = n.input(1) {
                set(1, vector(x, &|c, x| x / f[c]), x)?;
            }
            match n.input(2) {
                Some(x) => set(2, vector(x, &|c, x| (x - fold.offset(c)) / f[c]), x)?,
                None if fold.offsets.is_empty() => {}
                None => {
                    let beta: Vec<f32> = (0..f.len()).map(|c| -fold.offset(c) / f[c]).collect();
                    let c = p.under(&fold.value).floats("folded_beta", &beta);
                    p.set_input(norm, 2, Some(c));
                }
            }
        }
        None => {
            let mut of_value = p.under(&fold.value);
            let mut e = of_value.part("folded");
            let mut dims = vec![f.len() as i64];
            dims.resize(1 + behind, 1);
            let mut x = v.into();
            if !fold.offsets.is_empty() {
                let c = e.constant("offset", Tensor::f32(&dims, &fold.offsets));
                x = e.op("Sub", "shifted", &[x, c]);
            }
            let inv: Vec<f32> = f.iter().map(|f| 1.0 / f).collect();
            let c = e.constant("factor", Tensor::f32(&dims, &inv));
            let y = e.op("Mul", "", &[x, c]);
            p.replace(v, y);
        }
    }
    Ok(p)
}

/// What each output channel gains from inputs that all have their channel's offset.
fn shifts(w: &Tensor, l: &Linear, offsets: &[f32]) -> Option<Vec<f64>> {
    let data = w.to_f32s()?;
    let (outs, ins) = (w.dims[l.out_axis] as usize, w.dims[l.in_axis] as usize);
    let inner = data.len() / (outs * ins).max(1);
    let mut sums = vec![0f64; outs];
    for (i, x) in data.iter().enumerate() {
        let (a, b) = (i / inner.max(1) / if l.out_axis == 0 { ins } else { outs }, i / inner.max(1));
        let (o, c) = if l.out_axis == 0 { (a, b % ins) } else { (b % outs, a) };
        sums[o] += f64::from(*x) * f64::from(offsets[c]);
    }
    Some(sums)
}

#[cfg(test)]
#[path = "fold_tests.rs"]
mod tests;
