//! `quantize-attention`: Softmax becomes Log-Int-Softmax, or a Softmax between uniform codes.
//!
//! *What it does.* The product of queries and keys is quantized to uint8 codes. With `lis` the codes go through the
//! integer arithmetic of [`quant::lis`](crate::quant::lis) straight to the attention output; scale, mask, Softmax and
//! the second product disappear. Where something else reads the weights before the second product does (heads are mixed),
//! the weights themselves are computed. With `uniform` the Softmax stays, between codes.
//!
//! *When it fires.* For each `attentions` entry of the plan.
//!
//! *Why it is correct.* A factor between product and Softmax only changes the scale of the scores' codes; the zero point
//! cancels in the distance to the row's maximum. A masked entry gets weight 0.
//!
//! *Numerics.* Quantizes.
//!
//! *Source.* FQ-ViT, arXiv 2111.13824, section 3.3; anchors, rounding and normalisation as `quant::lis` documents.

use crate::ir::{Attrs, DType, Dim, Graph, Tensor, ValueId};
use crate::passes::common::{moved, moves_between};
use crate::passes::{Context, Numerics, Outcome, Pass, PassError};
use crate::pattern::Attention;
use crate::plan::scores::score_site;
use crate::plan::sites::trace_back;
use crate::plan::{AttentionForm, AttentionPlan, QuantPlan, Target};
use crate::quant::QParams;
use crate::quant::lis::{LisFacts, LisPlan, LisSite, emit, emit_softmax, row_max};
use crate::rewrite::{Patch, Ref};

use super::hiding::{HIDDEN, Hiding, hiding, seen};

/// The pass, for one plan.
pub struct QuantizeAttention;

impl Pass for QuantizeAttention {
    fn id(&self) -> &'static str {
        "quantize-attention"
    }

    fn summary(&self) -> &'static str {
        "Computes attention weights from integer codes: Log-Int-Softmax, or a Softmax between codes."
    }

    fn numerics(&self) -> Numerics {
        Numerics::Quantizes
    }

    fn run(&self, m: &mut Context) -> Result<Outcome, PassError> {
        let mut out = Outcome::default();
        let (whole, sites) = m.carried(self.id())?;
        for plan in &whole.attentions {
            let a = sites.attentions.iter().find(|a| m.graph.try_value(a.out).is_some_and(|v| v.name == plan.output));
            let a = a.ok_or_else(|| PassError::Failed {
                pass: self.id().into(),
                message: format!("the plan's attention `{}` is not in the model; make a new plan", plan.output),
            })?;
            let p = self.patch(&m.graph, m.opset(), a, (whole, plan))?;
            m.commit(p)?;
            out.changes += 1;
        }
        m.sweep();
        Ok(out)
    }
}

impl QuantizeAttention {
    /// The codes of the values, as the second product reads them now: a correction may have come after a layer since the
    /// plan was made.
    fn values(
        &self,
        whole: &QuantPlan,
        g: &Graph,
        a: &Attention,
        v: ValueId,
        p: &mut Patch,
    ) -> Result<(Ref, QParams), String> {
        let read = g.node(a.weighted).input(1).unwrap_or(v);
        let at = trace_back(g, read);
        let plan = whole.activation(g.name_of(at), true);
        let plan = plan.ok_or_else(|| format!("the plan has no entry for its values `{}`", g.name_of(at)))?;
        let codes = super::quantize_linear(p, at.into(), &plan.params, g.name_of(at));
        let codes = moved(g, p, &moves_between(g, at, read), codes, "q");
        Ok((codes, plan.params.clone()))
    }

    fn patch(
        &self,
        g: &Graph,
        opset: i64,
        a: &Attention,
        (whole, plan): (&QuantPlan, &AttentionPlan),
    ) -> Result<Patch, PassError> {
        let failed = |message: String| PassError::Failed {
            pass: self.id().into(),
            message: format!("attention `{}`: {message}", plan.output),
        };
        let site = score_site(g, a).map_err(failed)?;
        let raw = site.value;
        let scores = whole
            .activation(g.name_of(raw), true)
            .ok_or_else(|| failed(format!("the plan has no entry for its scores `{}`", g.name_of(raw))))?;
        let name = g.name_of(raw).to_owned();
        let mut p = Patch::new(self.id()).made_from([plan.output.clone()]).before(a.softmax);
        match &plan.form {
            AttentionForm::Uniform { params } => {
                let mut d = super::round_trip(&mut p, raw.into(), &scores.params, &name);
                // What was hidden before the codes were made has the lowest code now, not none.
                if let Some(keep) = seen(g, &site.masks[..site.early], &mut p).map_err(failed)? {
                    let hidden = p.constant(&format!("{name}_hidden"), Tensor::scalar_f32(HIDDEN));
                    d = p.node("Where", &format!("{name}_kept"), &[keep, d, hidden], Attrs::new());
                }
                p.replace(raw, d);
                if g.node(a.softmax).input(0) == Some(raw) {
                    // onnxruntime makes a QLinearSoftmax of a Softmax between codes, which has other bits and takes longer.
                    // What is taken off a whole row changes no weight.
                    let max = row_max(&mut p, d, opset, (&format!("{name}_max"), &format!("{name}_max_axis")));
                    let below = p.node("Sub", &format!("{name}_below_max"), &[d, max], Attrs::new());
                    p.set_input(a.softmax, 0, Some(below));
                }
                // Weights that others read first are a value like any other, with codes of their own.
                if a.v.is_some() {
                    let w = super::round_trip(&mut p, a.probs.into(), params, g.name_of(a.probs));
                    p.replace(a.probs, w);
                }
            }
            AttentionForm::Lis { spec } => {
                let mut codes = super::quantize_linear(&mut p, raw.into(), &scores.params, &name);
                let values = a.v.map(|v| self.values(whole, g, a, v, &mut p)).transpose().map_err(failed)?;
                let (mut vq, of_values) = values.unzip();
                let reshape = |p: &mut Patch, x: Ref, to: &[i64], hint: String| {
                    let to = p.constant(&format!("{hint}_shape"), Tensor::i64(&[to.len() as i64], to));
                    p.node("Reshape", &hint, &[x, to], Attrs::new())
                };
                if let Some(view) = &site.view {
                    vq = vq.map(|v| reshape(&mut p, v, &view.values, format!("{}_values_view", plan.output)));
                    if let Some(to) = &view.scores {
                        codes = reshape(&mut p, codes, to, format!("{name}_q_view"));
                    }
                }
                let scores_shape = g.shape(raw).or_else(|| g.shape(a.scores));
                let Hiding { keep: mask, left } = hiding(g, a, &site, opset, &mut p).map_err(failed)?;
                if let Some(left) = left {
                    let none = |h: usize| u8::try_from(scores.params.zero(h)).unwrap_or(0);
                    let heads = scores.params.channels();
                    let zeros: Vec<u8> = (0..heads).map(none).collect();
                    let dims = if heads == 1 { vec![] } else { vec![heads as i64, 1, 1] };
                    let zero = p.constant(&format!("{name}_none"), Tensor::u8(&dims, &zeros));
                    codes = p.node("Where", &format!("{name}_left"), &[left, codes, zero], Attrs::new());
                }
                let scales = (0..scores.params.channels()).map(|h| scores.params.scale(h) * site.factor).collect();
                let keys = scores_shape.and_then(|s| match s.last() {
                    Some(Dim::Known(n)) => usize::try_from(*n).ok(),
                    _ => None,
                });
                let mut facts = LisFacts::of_weights(scales, keys);
                if let Some(v) = of_values {
                    (facts.v_scale, facts.v_zero, facts.v_type) = (vec![v.scale(0)], v.zero(0), v.code().dtype());
                }
                let lis = LisSite {
                    codes,
                    v: vq,
                    mask,
                    facts,
                    rank: site.view.as_ref().map_or(scores_shape.map_or(4, <[_]>::len), |v| v.rank),
                    opset,
                    hint: plan.output.clone(),
                };
                let mut y = match whole.target {
                    Target::Integer => emit(&mut p, spec, &lis),
                    Target::Qdq => LisPlan::new(spec, &lis.facts, &lis.hint)
                        .and_then(|of| emit_softmax(&mut p, &of, &lis))
                        .and_then(|y| y.map_or_else(|| emit(&mut p, spec, &lis), Ok)),
                }
                .map_err(|e| failed(e.to_string()))?;
                if let Some(view) = &site.view {
                    y = reshape(&mut p, y, &view.result, format!("{}_whole", plan.output));
                }
                p.typed(y, DType::FLOAT, g.shape(a.out).map(<[_]>::to_vec));
                p.succeed(a.out, y);
            }
        }
        Ok(p)
    }
}
