//! `equalise`: evens out channels of values, queries and keys between two layers.
//!
//! *What it does.* Output channel `c` of the layer of the values (its weights and its bias) is divided by `f[c]`, and the
//! input channel of the projection after the attention that `c` becomes is multiplied by it. In the same way channels
//! of queries are divided, and those of keys they are multiplied with multiplied. No operator is added.
//!
//! *When it fires.* For each `equalisations` entry of the plan that has factors.
//!
//! *Why it is correct.* Attention weights `P` act on tokens, not on channels: `P (V / f) diag(f) W = P V W`. A score is
//! `sum_c q[c] k[c] = sum_c (q[c] / f[c]) (f[c] k[c])`. Which channels meet is proven by
//! [`channel_map`](crate::plan::channel_map), whatever the plan says; and nothing else reads them.
//!
//! *Numerics.* Close: each weight is rounded once more (relative 1e-4 at most).
//!
//! *Before / after.* `v = MatMul(x, Wv) + bv; y = MatMul(P v, W)` becomes
//! `v = MatMul(x, Wv / f) + bv / f; y = MatMul(P v, f W)`.
//!
//! *Source.* Cross-layer equalization as in Nagel et al. (arXiv 1906.04721), carried through the attention.

use crate::ir::Graph;
use crate::passes::layers::{outputs_scaled, weight_scaled};
use crate::passes::{Context, Numerics, Outcome, Pass, PassError};
use crate::plan::channel_map::{Pair, pairs};
use crate::plan::sites::Sites;
use crate::plan::{Between, Equalisation};
use crate::rewrite::Patch;

/// The pass, for the equalisations of one plan.
pub struct Equalise;

impl Pass for Equalise {
    fn id(&self) -> &'static str {
        "equalise"
    }

    fn summary(&self) -> &'static str {
        "Equalises the channels of queries, keys and values between the layers before and after an attention."
    }

    fn numerics(&self) -> Numerics {
        Numerics::Close { rel: 1e-4 }
    }

    fn run(&self, m: &mut Context) -> Result<Outcome, PassError> {
        let mut out = Outcome::default();
        let Some((equalisations, sites)) = m.equalisations() else { return Ok(out) };
        let wanted: Vec<&Equalisation> = equalisations.iter().filter(|e| !e.factors.is_empty()).collect();
        if wanted.is_empty() {
            return Ok(out);
        }
        let pairs = pairs(&m.graph, &sites);
        for (i, e) in wanted.iter().enumerate() {
            if wanted[..i].iter().any(|o| o.between == e.between && o.divided == e.divided) {
                return Err(self.failed(e, "the plan has it twice; delete one of the two entries"));
            }
            let p = self.patch(&m.graph, &sites, e, &pairs).map_err(|message| self.failed(e, message))?;
            m.commit(p)?;
            out.changes += 1;
        }
        m.reread_sites();
        Ok(out)
    }
}

impl Equalise {
    fn failed(&self, e: &Equalisation, message: &str) -> PassError {
        let message = format!("equalisation of `{}` and `{}`: {message}", e.divided, e.multiplied);
        PassError::Failed { pass: self.id().into(), message }
    }

    fn patch(&self, g: &Graph, sites: &Sites, e: &Equalisation, pairs: &[Pair]) -> Result<Patch, &'static str> {
        let linear = |i: usize| &sites.linears[i];
        let named = |i: usize, name: &str| g.name_of(linear(i).out) == name;
        let pair = pairs
            .iter()
            .find(|p| p.between == e.between && named(p.first, &e.divided) && named(p.second, &e.multiplied))
            .ok_or(
                "these are no two layers whose channels meet one by one in an attention, with nothing but moves between \
                 and no other reader; make a new plan with `fqvit-opt plan`",
            )?;
        if e.factors.len() != pair.to.len() {
            return Err("the number of factors is not the number of channels");
        }
        if e.factors.iter().any(|f| !f.is_finite() || *f <= 0.0) {
            return Err("factors must be positive");
        }
        let mut met = vec![1.0; e.factors.len()];
        pair.to.iter().zip(&e.factors).for_each(|(t, f)| met[*t] = *f);
        let mut p = Patch::new(self.id()).made_from([e.divided.clone(), e.multiplied.clone()]);
        outputs_scaled(g, &mut p, linear(pair.first), |c| 1.0 / e.factors[c])?;
        match e.between {
            Between::ValuesProjection => {
                let l = linear(pair.second);
                weight_scaled(g, &mut p, l, l.in_axis, |c| met[c])?;
            }
            Between::QueriesKeys => outputs_scaled(g, &mut p, linear(pair.second), |c| met[c])?,
        }
        Ok(p)
    }
}

#[cfg(test)]
#[path = "equalise_tests.rs"]
mod tests;
