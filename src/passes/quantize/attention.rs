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

use crate::ir::masks::HIDDEN;
use crate::ir::{DType, Dim, Graph, Tensor, ValueId};
use crate::passes::common::{moved, moves_between};
use crate::passes::{Context, Numerics, Outcome, Pass, PassError};
use crate::pattern::Attention;
use crate::plan::scores::{ScoreSite, score_site};
use crate::plan::sites::{fixed, trace_back};
use crate::plan::{AttentionForm, AttentionPlan, QuantPlan, Target};
use crate::quant::QParams;
use crate::quant::lis::{LisFacts, LisPlan, LisSite, LisSpec, emit, emit_softmax};
use crate::rewrite::{Patch, Ref};

use super::hiding::{Hiding, hiding, seen};

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
            let failed = |message: String| PassError::Failed {
                pass: self.id().into(),
                message: format!("attention `{}`: {message}", plan.output),
            };
            let core = Core::of(&m.graph, m.opset(), whole, plan, a).map_err(failed)?;
            m.commit(core.patch().map_err(failed)?)?;
            out.changes += 1;
        }
        m.sweep();
        Ok(out)
    }
}

/// An attention whose scores become codes.
struct Core<'a> {
    g: &'a Graph,
    opset: i64,
    whole: &'a QuantPlan,
    plan: &'a AttentionPlan,
    a: &'a Attention,
    site: ScoreSite<'a>,
    /// Parameters and name of the scores.
    scores: &'a QParams,
    name: &'a str,
}

impl<'a> Core<'a> {
    fn of(
        g: &'a Graph,
        opset: i64,
        whole: &'a QuantPlan,
        plan: &'a AttentionPlan,
        a: &'a Attention,
    ) -> Result<Core<'a>, String> {
        let site = score_site(g, a)?;
        let name = g.name_of(site.value);
        let scores = whole.activation(name, true);
        let scores = &scores.ok_or_else(|| format!("the plan has no entry for its scores `{name}`"))?.params;
        Ok(Core { g, opset, whole, plan, a, site, scores, name })
    }

    fn patch(&self) -> Result<Patch, String> {
        let mut p = Patch::new(QuantizeAttention.id()).made_from([self.plan.output.clone()]).before(self.a.softmax);
        match &self.plan.form {
            AttentionForm::Uniform { params } => self.uniform(&mut p, params)?,
            AttentionForm::Lis { spec } => self.log_int_softmax(&mut p, spec)?,
        }
        Ok(p)
    }

    /// The Softmax stays, between codes.
    fn uniform(&self, p: &mut Patch, weights: &QParams) -> Result<(), String> {
        let (g, a, name, raw) = (self.g, self.a, self.name, self.site.value);
        let mut d = p.under(name).round_trip(raw.into(), self.scores);
        // What was hidden before the codes were made has the lowest code now, not none.
        if let Some(keep) = seen(g, &self.site.masks[..self.site.early], p)? {
            let mut e = p.under(name);
            let hidden = e.scalar("hidden", HIDDEN);
            d = e.op("Where", "kept", &[keep, d, hidden]);
        }
        p.replace(raw, d);
        if g.node(a.softmax).input(0) == Some(raw) {
            // onnxruntime makes a QLinearSoftmax of a Softmax between codes, which has other bits and takes longer.
            // What is taken off a whole row changes no weight.
            let mut e = p.under(name);
            let max = e.reduced_by("ReduceMax", "max", d, "max_axis", self.opset);
            let below = e.op("Sub", "below_max", &[d, max]);
            p.set_input(a.softmax, 0, Some(below));
        }
        // Weights that others read first are a value like any other, with codes of their own.
        if a.v.is_some() {
            let w = p.under(g.name_of(a.probs)).round_trip(a.probs.into(), weights);
            p.replace(a.probs, w);
        }
        Ok(())
    }

    /// From the codes of scores and values to the attention output, in integers.
    fn log_int_softmax(&self, p: &mut Patch, spec: &LisSpec) -> Result<(), String> {
        let (a, output) = (self.a, &self.plan.output);
        let lis = self.lis_site(p)?;
        let mut y = match self.whole.target {
            Target::Integer => emit(p, spec, &lis),
            Target::Qdq => LisPlan::new(spec, &lis.facts, &lis.hint)
                .and_then(|of| emit_softmax(p, &of, &lis))
                .and_then(|y| y.map_or_else(|| emit(p, spec, &lis), Ok)),
        }
        .map_err(|e| e.to_string())?;
        if let Some(view) = &self.site.view {
            y = p.under(output).reshaped("whole", y, &view.result);
        }
        p.typed(y, DType::FLOAT, self.g.shape(a.out).map(<[_]>::to_vec));
        p.succeed(a.out, y);
        Ok(())
    }

    /// What Log-Int-Softmax starts from.
    fn lis_site(&self, p: &mut Patch) -> Result<LisSite, String> {
        let (g, a, name, site, scores) = (self.g, self.a, self.name, &self.site, self.scores);
        let mut codes = p.under(name).quantized(site.value.into(), scores);
        let (mut v, of_values) = a.v.map(|v| self.values(v, p)).transpose()?.unzip();
        if let Some(view) = &site.view {
            v = v.map(|v| p.under(&self.plan.output).reshaped("values_view", v, &view.values));
            if let Some(to) = &view.scores {
                codes = p.under(name).reshaped("q_view", codes, to);
            }
        }
        let Hiding { keep: mask, left } = hiding(g, a, site, self.opset, p)?;
        if let Some(left) = left {
            let mut e = p.under(name);
            let zero = e.constant("none", zero_points(scores));
            codes = e.op("Where", "left", &[left, codes, zero]);
        }
        let shape = g.shape(site.value).or_else(|| g.shape(a.scores));
        let keys = shape.and_then(|s| match s.last() {
            Some(Dim::Known(n)) => usize::try_from(*n).ok(),
            _ => None,
        });
        let scales = (0..scores.channels()).map(|h| scores.scale(h) * site.factor).collect();
        let mut facts = LisFacts::of_weights(scales, keys);
        if let Some(v) = of_values {
            (facts.v_scale, facts.v_zero, facts.v_type) = (vec![v.scale(0)], v.zero(0), v.code().dtype());
        }
        let rank = site.view.as_ref().map_or(shape.map_or(4, <[_]>::len), |v| v.rank);
        Ok(LisSite { codes, v, mask, facts, rank, opset: self.opset, hint: self.plan.output.clone() })
    }

    /// The codes of the values, as the second product reads them now: a correction may have come after a layer since the
    /// plan was made.
    fn values(&self, v: ValueId, p: &mut Patch) -> Result<(Ref, QParams), String> {
        let g = self.g;
        let read = g.node(self.a.weighted).input(1).unwrap_or(v);
        // Constant values have their codes in the file; `quantize-activations` puts these in the place of what makes them.
        let table = fixed(g, self.a.weighted, 1).and_then(|(n, slot)| g.node(n).input(slot));
        let at = table.unwrap_or_else(|| trace_back(g, read));
        let params = match table {
            Some(_) => self.whole.constants.iter().find(|c| c.value == g.name_of(at)).map(|c| &c.params),
            None => self.whole.activation(g.name_of(at), true).map(|a| &a.params),
        };
        let params = params.ok_or_else(|| format!("the plan has no entry for its values `{}`", g.name_of(at)))?;
        let codes = p.under(g.name_of(at)).quantized(at.into(), params);
        let codes = moved(g, p, &moves_between(g, at, read), codes, "q");
        Ok((codes, params.clone()))
    }
}

/// The zero points of scores, one for each head if they have scales of their own.
fn zero_points(scores: &QParams) -> Tensor {
    let heads = scores.channels();
    let zeros: Vec<u8> = (0..heads).map(|h| u8::try_from(scores.zero(h)).unwrap_or(0)).collect();
    let dims = if heads == 1 { vec![] } else { vec![heads as i64, 1, 1] };
    Tensor::u8(&dims, &zeros)
}
