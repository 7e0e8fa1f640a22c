//! `quantize-attention`: Softmax becomes Log-Int-Softmax, or a Softmax between uniform codes.
//!
//! *What it does.* The product of queries and keys is quantized to uint8 codes. With `lis` the codes go through the
//! integer arithmetic of [`quant::lis`](crate::quant::lis) straight to the attention output; scale, mask, Softmax and
//! the second product disappear. With `uniform` the Softmax stays, between codes.
//!
//! *When it fires.* For each `attentions` entry of the plan.
//!
//! *Why it is correct.* A factor between product and Softmax only changes the scale of the scores' codes; the zero point
//! cancels in the distance to the row's maximum. A masked entry gets weight 0.
//!
//! *Numerics.* Quantizes.
//!
//! *Source.* FQ-ViT, arXiv 2111.13824, section 3.3; anchors, rounding and normalisation as `quant::lis` documents.

use crate::ir::{Attrs, DType, Dim, Graph, Model, Tensor};
use crate::passes::common::over_last_axis;
use crate::passes::{Numerics, Outcome, Pass, PassError};
use crate::pattern::{Attention, Mask, MaskKind};
use crate::plan::scores::score_site;
use crate::plan::sites::{Sites, trace_back};
use crate::plan::{AttentionForm, AttentionPlan, QuantPlan};
use crate::quant::lis::{LisFacts, LisSite, emit};
use crate::quant::observe::MASKED_BELOW;
use crate::rewrite::{Patch, Ref, sweep};

/// The pass, for one plan.
pub struct QuantizeAttention<'p> {
    pub plan: &'p QuantPlan,
    pub sites: &'p Sites,
}

impl Pass for QuantizeAttention<'_> {
    fn id(&self) -> &'static str {
        "quantize-attention"
    }

    fn summary(&self) -> &'static str {
        "Computes attention weights from integer codes: Log-Int-Softmax, or a Softmax between codes."
    }

    fn numerics(&self) -> Numerics {
        Numerics::Quantizes
    }

    fn run(&self, m: &mut Model) -> Result<Outcome, PassError> {
        let mut out = Outcome::default();
        for plan in &self.plan.attentions {
            let a =
                self.sites.attentions.iter().find(|a| m.graph.try_value(a.out).is_some_and(|v| v.name == plan.output));
            let a = a.ok_or_else(|| PassError::Failed {
                pass: self.id().into(),
                message: format!("the plan's attention `{}` is not in the model; make a new plan", plan.output),
            })?;
            let p = self.patch(&m.graph, m.opset(), a, plan)?;
            p.commit(m)?;
            out.changes += 1;
        }
        sweep(m);
        Ok(out)
    }
}

impl QuantizeAttention<'_> {
    fn patch(&self, g: &Graph, opset: i64, a: &Attention, plan: &AttentionPlan) -> Result<Patch, PassError> {
        let failed = |message: String| PassError::Failed {
            pass: self.id().into(),
            message: format!("attention `{}`: {message}", plan.output),
        };
        let site = score_site(g, a).map_err(failed)?;
        let raw = site.value;
        let scores = self
            .plan
            .activation(g.name_of(raw), true)
            .ok_or_else(|| failed(format!("the plan has no entry for its scores `{}`", g.name_of(raw))))?;
        let name = g.name_of(raw).to_owned();
        let mut p = Patch::new(self.id()).made_from([plan.output.clone()]).before(a.softmax);
        match &plan.form {
            AttentionForm::Uniform { params } => {
                let mut d = super::round_trip(&mut p, raw.into(), &scores.params, &name);
                // What was hidden before the codes were made has the lowest code now, not none.
                if let Some(keep) = keep_mask(g, &site.masks[..site.early], MASKED_BELOW, &mut p).map_err(failed)? {
                    let hidden = p.constant(&format!("{name}_hidden"), Tensor::scalar_f32(HIDDEN));
                    d = p.node("Where", &format!("{name}_kept"), &[keep, d, hidden], Attrs::new());
                }
                p.replace(raw, d);
                let w = super::round_trip(&mut p, a.probs.into(), params, g.name_of(a.probs));
                p.replace(a.probs, w);
            }
            AttentionForm::Lis { spec } => {
                let mut codes = super::quantize_linear(&mut p, raw.into(), &scores.params, &name);
                // As the second product reads them now: a correction may have come behind a layer since the plan was made.
                let values = g.node(a.weighted).inputs.iter().flatten().copied().find(|v| *v != a.probs).unwrap_or(a.v);
                let at = trace_back(g, values);
                let v = self
                    .plan
                    .activation(g.name_of(at), true)
                    .ok_or_else(|| failed(format!("the plan has no entry for its values `{}`", g.name_of(at))))?;
                let mut vq = super::quantize_linear(&mut p, at.into(), &v.params, g.name_of(at));
                for mv in super::moves_between(g, at, values) {
                    let n = g.node(mv);
                    let mut inputs: Vec<Option<Ref>> = n.inputs.iter().map(|v| v.map(Ref::from)).collect();
                    inputs[0] = Some(vq);
                    let hint = format!("{}_q", n.out().map_or("", |v| g.name_of(v)));
                    vq = p.node_with(n.op.clone(), &inputs, &[&hint], n.attrs.clone())[0];
                }
                let reshape = |p: &mut Patch, x: Ref, to: &[i64], hint: String| {
                    let to = p.constant(&format!("{hint}_shape"), Tensor::i64(&[to.len() as i64], to));
                    p.node("Reshape", &hint, &[x, to], Attrs::new())
                };
                if let Some(view) = &site.view {
                    vq = reshape(&mut p, vq, &view.values, format!("{}_q_view", g.name_of(a.v)));
                    if let Some(to) = &view.scores {
                        codes = reshape(&mut p, codes, to, format!("{name}_q_view"));
                    }
                }
                let scores_shape = g.shape(raw).or_else(|| g.shape(a.scores));
                let mut mask = keep_mask(g, &site.masks, MASKED_BELOW, &mut p).map_err(failed)?;
                if let Some(keep) = mask.filter(|_| may_hide_a_row(g, a, &site.masks)) {
                    // What is added to scores may be small enough to leave them as they are, if all of a row have it.
                    if let Some(seen) = keep_mask(g, &site.masks, DROWNED_BELOW, &mut p).map_err(failed)? {
                        let lowest = p.constant(&format!("{name}_lowest"), Tensor::u8(&[], &[0]));
                        codes = p.node("Where", &format!("{name}_seen"), &[seen, codes, lowest], Attrs::new());
                    }
                    mask = Some(or_whole_rows(&mut p, keep, &name, opset));
                }
                let lis = LisSite {
                    codes,
                    v: vq,
                    mask,
                    facts: LisFacts {
                        score_scale: (0..scores.params.channels())
                            .map(|h| scores.params.scale(h) * site.factor)
                            .collect(),
                        v_scale: vec![v.params.scale(0)],
                        v_zero: v.params.zero(0),
                        v_type: v.params.code().dtype(),
                        keys: scores_shape.and_then(|s| match s.last() {
                            Some(Dim::Known(n)) => usize::try_from(*n).ok(),
                            _ => None,
                        }),
                    },
                    rank: site.view.as_ref().map_or(scores_shape.map_or(4, <[_]>::len), |v| v.rank),
                    opset,
                    hint: plan.output.clone(),
                };
                let mut y = emit(&mut p, spec, &lis).map_err(|e| failed(e.to_string()))?;
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

/// Instead of a score that gets no weight.
const HIDDEN: f32 = -1e9;

/// True if the masks may hide all keys of some query, without a guard that gives it nothing. Softmax then gives each key
/// the same weight, all scores being one very negative number.
fn may_hide_a_row(g: &Graph, a: &Attention, masks: &[&Mask]) -> bool {
    if a.guard.iter().any(|n| g.node(*n).op.is("IsNaN") || g.node(*n).op.is("Where")) {
        return false;
    }
    let always_seen = |m: &Mask| {
        let seen: Option<Vec<bool>> = g.constant(m.value).and_then(|t| match m.kind {
            MaskKind::Boolean { keep } => Some(t.to_i64s()?.iter().map(|x| (*x != 0) == keep).collect()),
            _ => Some(t.to_f32s()?.iter().map(|x| *x > MASKED_BELOW).collect()),
        });
        let keys =
            g.shape(m.value).and_then(|s| if let Some(Dim::Known(n)) = s.last() { Some(*n as usize) } else { None });
        seen.zip(keys).is_some_and(|(seen, keys)| keys > 0 && seen.chunks(keys).all(|row| row.contains(&true)))
    };
    !masks.is_empty() && !matches!(masks, [m] if always_seen(m))
}

/// `keep`, and all keys of a query of which it keeps none.
fn or_whole_rows(p: &mut Patch, keep: Ref, name: &str, opset: i64) -> Ref {
    let to = |d: DType| Attrs::new().with_int("to", d.0.into());
    let count = p.node("Cast", &format!("{name}_keep_u8"), &[keep], to(DType::UINT8));
    let hint = format!("{name}_keep_any");
    let any = over_last_axis(p, "ReduceMax", &hint, count, opset);
    let any = p.node("Cast", &format!("{hint}_bool"), &[any], to(DType::BOOL));
    let none = p.node("Not", &format!("{name}_keep_none"), &[any], Attrs::new());
    p.node("Or", &format!("{name}_keep_or_none"), &[keep, none], Attrs::new())
}

/// Added to a score, a number above this leaves something of the score: float32 has steps of 1/4 there.
const DROWNED_BELOW: f32 = -3e6;

/// The masks as one condition, true where what is added lies above `limit`: above `MASKED_BELOW` an entry counts.
fn keep_mask(g: &Graph, masks: &[&Mask], limit: f32, p: &mut Patch) -> Result<Option<Ref>, String> {
    let mut keep: Option<Ref> = None;
    for m in masks {
        let name = format!("{}_keep", g.name_of(m.value));
        let one = match m.kind {
            MaskKind::Bias => return Err(format!("`{}` is a bias, not a mask", g.name_of(m.value))),
            MaskKind::Boolean { keep: true } => m.value.into(),
            MaskKind::Boolean { keep: false } => p.node("Not", &name, &[m.value.into()], Attrs::new()),
            MaskKind::Additive | MaskKind::Mixed => {
                match g.constant(m.value).and_then(|t| Some((t.dims.clone(), t.to_f32s()?))) {
                    Some((dims, data)) => {
                        let keep: Vec<bool> = data.iter().map(|x| *x > limit).collect();
                        if !keep.contains(&false) {
                            continue;
                        }
                        p.constant(&name, Tensor::bool(&dims, &keep))
                    }
                    None => {
                        let limit = p.constant(&format!("{name}_limit"), Tensor::scalar_f32(limit));
                        p.node("Greater", &name, &[m.value.into(), limit], Attrs::new())
                    }
                }
            }
        };
        keep = Some(match keep {
            None => one,
            Some(k) => p.node("And", &name, &[k, one], Attrs::new()),
        });
    }
    Ok(keep)
}
