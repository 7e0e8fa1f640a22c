//! The codes of attention scores: scored by the attention weights they lead to, on rows kept from calibration.

use crate::ir::masks::HIDDEN_BELOW;
use crate::plan::AttentionForm;
use crate::plan::recipe::{AttentionRecipe, ScoreRange};
use crate::quant::kernel::quantize;
use crate::quant::lis::{LisError, LisFacts, LisPlan, LisSpec, Normalise, reference};
use crate::quant::observe::{KeptRow, Stats};
use crate::quant::qparams::SCALE_FLOOR;
use crate::quant::range::{self, Range};
use crate::quant::{Code, QParams};

/// Parameters for the raw product of queries and keys (`scale` times it enters the softmax), and the attention's form;
/// `alone` where the weights are changed before they meet values.
///
/// # Errors
/// If the recipe's Log-Int-Softmax does not fit the attention.
pub fn decide(
    st: &Stats,
    scale: f32,
    alone: bool,
    recipe: &AttentionRecipe,
) -> Result<(QParams, AttentionForm, String), String> {
    let (range, families, by_head) = match recipe {
        AttentionRecipe::Lis { spec, scores, fine, bases, scale_by_head, weights_alone } => {
            let (spec, fine, bases) = match weights_alone {
                Some(other) if alone => (other, &[][..], &[][..]),
                _ => (spec, &fine[..], &bases[..]),
            };
            let fine = fine.iter().map(|n| spec.clone().with_fine(vec![*n]));
            let bases = bases.iter().map(|b| spec.clone().with_base(vec![*b]));
            let all = |v: Result<Vec<LisSpec>, LisError>| v.map_err(|e| e.to_string());
            let mut families = vec![all(fine.collect())?, all(bases.collect())?];
            families.retain(|f| !f.is_empty());
            if families.is_empty() {
                families.push(vec![spec.clone()]);
            }
            (*scores, families, *scale_by_head && *scores == ScoreRange::Weights)
        }
        AttentionRecipe::Uniform { scores } => (*scores, Vec::new(), false),
    };
    let tries = match range {
        ScoreRange::MinMax => vec![(range::affine(Code::U8, st, Range::MinMax), "all scores seen".to_owned())],
        ScoreRange::Weights => ranges(st, scale),
    };
    let rows = KeptScores::of(st, scale);
    let mut best: Option<Choice> = None;
    let forms: Vec<Vec<Option<&LisSpec>>> = match &families[..] {
        [] => vec![vec![None]],
        all => all.iter().map(|f| f.iter().map(Some).collect()).collect(),
    };
    for family in &forms {
        let mut found = rows.best(&tries, family)?;
        if by_head && st.axis() == Some(-3) && st.channels.len() > 1 && !rows.kept.is_empty() {
            found = rows.head_by_head(found, family)?;
        }
        if best.as_ref().is_none_or(|b| found.error < b.error) {
            best = Some(found);
        }
    }
    let best = best.expect("one family at least");
    let mut reason = best.what.clone();
    if !rows.kept.is_empty() {
        reason.push_str(&format!(": attention weights at {}", super::db(rows.power, best.error)));
    }
    let form = match best.spec(st.channels.len())? {
        Some(spec) => {
            let fine: Vec<String> = spec.fine().iter().map(u8::to_string).collect();
            if !fine.is_empty() {
                reason.push_str(&format!(", half-octave steps {}", fine.join(" ")));
            }
            if !spec.bases().is_empty() {
                let steps: Vec<String> = spec.bases().iter().map(|b| b.steps().to_string()).collect();
                reason.push_str(&format!(", steps per octave {}", steps.join(" ")));
            }
            AttentionForm::Lis { spec }
        }
        None => {
            AttentionForm::Uniform { params: QParams::affine(Code::U8, 1.0 / 255.0, 0).expect("a constant in range") }
        }
    };
    Ok((best.params, form, reason))
}

/// Parameters of the scores and, head by head, the codes of the weights.
struct Choice<'s> {
    params: QParams,
    what: String,
    specs: Vec<Option<&'s LisSpec>>,
    error: f64,
}

impl Choice<'_> {
    /// The specs of the heads as one.
    fn spec(&self, heads: usize) -> Result<Option<LisSpec>, String> {
        let Some(Some(first)) = self.specs.first() else { return Ok(None) };
        if self.specs.len() != heads || self.specs.iter().all(|s| *s == self.specs[0]) {
            return Ok(Some((*first).clone()));
        }
        let each = || self.specs.iter().flatten();
        let spec = (*first).clone().with_fine(each().flat_map(|s| s.fine()).copied().collect());
        let spec = spec.and_then(|s| s.with_base(each().flat_map(|s| s.bases()).copied().collect()));
        spec.map(Some).map_err(|e| e.to_string())
    }
}

/// Candidates: the full range, and ranges whose lower end is cut where even the row with the smallest maximum gives
/// no weight any more, and a little further.
fn ranges(st: &Stats, scale: f32) -> Vec<(QParams, String)> {
    let (lo, hi) = st.range();
    let seen_lo = st.channels.iter().map(|c| c.min).fold(f32::INFINITY, f32::min).max(lo);
    let top_min = st.row_max_min.iter().copied().fold(f32::INFINITY, f32::min);
    let mut tries: Vec<(QParams, String)> = vec![(QParams::covering(Code::U8, lo, hi), "all scores seen".into())];
    if scale > 0.0 && top_min.is_finite() {
        for nats in [14.0f32, 12.0, 10.4, 9.0, 8.0, 7.0, 6.0, 5.0] {
            let low = top_min - nats / scale;
            if low > seen_lo {
                tries.push((window(low, hi), format!("the {nats} nats below the smallest row maximum")));
            }
        }
        for cut in [0.98f32, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.6] {
            tries.push((window(lo * cut, hi), format!("{cut} of the lower end")));
            tries.push((window(lo * cut, hi * cut), format!("{cut} of the range")));
        }
    }
    tries
}

/// Rows of scores kept from calibration, with the attention weights they lead to.
struct KeptScores<'s> {
    st: &'s Stats,
    kept: &'s [KeptRow],
    truth: Vec<Vec<f64>>,
    /// What no mask hides.
    seen: Vec<Vec<bool>>,
    power: f64,
    scale: f32,
}

impl<'s> KeptScores<'s> {
    fn of(st: &'s Stats, scale: f32) -> KeptScores<'s> {
        let truth: Vec<Vec<f64>> = st.rows.iter().map(|r| softmax(&r.values, scale)).collect();
        let power = truth.iter().flatten().map(|p| p * p).sum();
        let seen = st.rows.iter().map(|r| r.values.iter().map(|v| *v > HIDDEN_BELOW).collect()).collect();
        KeptScores { st, kept: &st.rows, truth, seen, power, scale }
    }

    /// The range and, head by head, the codes of least error; without rows, the first of both.
    fn best<'f>(&self, tries: &[(QParams, String)], forms: &[Option<&'f LisSpec>]) -> Result<Choice<'f>, String> {
        let heads = self.st.channels.len();
        let mut best: Option<Choice> = None;
        for (params, what) in tries {
            let errors: Vec<Vec<f64>> = match self.kept {
                [] => forms.iter().map(|_| vec![0.0; heads]).collect(),
                _ => self.errors(params, forms)?,
            };
            let least = |h: usize| (0..forms.len()).min_by(|a, b| errors[*a][h].total_cmp(&errors[*b][h])).unwrap_or(0);
            let choice: Vec<usize> = (0..heads).map(least).collect();
            let error = choice.iter().enumerate().map(|(h, k)| errors[*k][h]).sum::<f64>();
            if best.as_ref().is_none_or(|b| error < b.error) {
                let specs = choice.iter().map(|k| forms[*k]).collect();
                best = Some(Choice { params: params.clone(), what: what.clone(), specs, error });
            }
        }
        best.ok_or_else(|| "no range to choose from".into())
    }

    /// `start` with a scale per head: each head's share of what it reaches, at the zero point that serves all of them best.
    fn head_by_head<'f>(&self, start: Choice<'f>, forms: &[Option<&'f LisSpec>]) -> Result<Choice<'f>, String> {
        let heads = self.st.channels.len();
        let mut best: Option<(f64, i32, Vec<f32>)> = None;
        for zero in (64..=192).step_by(32) {
            let reach = |h: usize| {
                let (lo, hi) = self.st.channel_range(h);
                (-lo / zero as f32).max(hi / (255 - zero) as f32).max(SCALE_FLOOR)
            };
            let full: Vec<f32> = (0..heads).map(reach).collect();
            let (mut scales, mut errors) = (full.clone(), vec![f64::INFINITY; heads]);
            for share in [1.0f32, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5] {
                let tried: Vec<f32> = full.iter().map(|s| s * share).collect();
                let p = by_head(tried.clone(), zero)?;
                // Heads differ in their codes; every kind of them sees all heads, and each head reads its own.
                let mut got = vec![f64::INFINITY; heads];
                let mut kinds: Vec<Option<&LisSpec>> = start.specs.clone();
                kinds.dedup();
                for (kind, e) in kinds.iter().copied().zip(self.errors(&p, &kinds)?) {
                    (0..heads).filter(|h| start.specs[*h] == kind).for_each(|h| got[h] = e[h]);
                }
                for h in (0..heads).filter(|h| got[*h] < errors[*h]).collect::<Vec<_>>() {
                    (errors[h], scales[h]) = (got[h], tried[h]);
                }
            }
            let error = errors.iter().sum();
            if best.as_ref().is_none_or(|b| error < b.0) {
                best = Some((error, zero, scales));
            }
        }
        let Some((_, zero, scales)) = best else { return Ok(start) };
        let what = format!("a scale per head, zero point {zero}");
        let found = self.best(&[(by_head(scales, zero)?, what)], forms)?;
        Ok(if found.error < start.error { found } else { start })
    }
}

/// Codes of one zero point with a scale for each head.
fn by_head(scales: Vec<f32>, zero: i32) -> Result<QParams, String> {
    let zeros = vec![zero; scales.len()];
    QParams::per_axis(Code::U8, -3, scales, zeros).map_err(|e| e.to_string())
}

/// A window that need not hold 0: the zero point of scores cancels, so it may lie outside the codes' range only as far
/// as uint8 allows.
fn window(lo: f32, hi: f32) -> QParams {
    QParams::covering(Code::U8, lo, hi)
}

/// Softmax of `scale` times a row of scores; hidden ones have the weight 0.
pub(super) fn softmax(row: &[f32], scale: f32) -> Vec<f64> {
    let top = row.iter().copied().filter(|v| *v > HIDDEN_BELOW).fold(f32::NEG_INFINITY, f32::max);
    let e: Vec<f64> =
        row.iter().map(|v| if *v > HIDDEN_BELOW { ((v - top) as f64 * scale as f64).exp() } else { 0.0 }).collect();
    let s: f64 = e.iter().sum();
    e.into_iter().map(|e| e / s.max(1e-300)).collect()
}

/// One form of the weights, for scores of given codes.
struct WeightForm {
    /// None: uniform codes after a Softmax.
    plan: Option<LisPlan>,
    /// For each head, the weight at each distance, where that is all a weight depends on.
    tables: Vec<Option<Vec<u32>>>,
    renormalised: bool,
}

impl WeightForm {
    fn of(st: &Stats, p: &QParams, scale: f32, lis: Option<&LisSpec>) -> Result<WeightForm, String> {
        let Some(spec) = lis else { return Ok(WeightForm { plan: None, tables: Vec::new(), renormalised: false }) };
        let scales = (0..p.channels()).map(|h| p.scale(h) * scale).collect();
        let facts = LisFacts::of_weights(scales, st.dims.last().copied());
        let plan = LisPlan::new(spec, &facts, "scores").map_err(|e| e.to_string())?;
        let tables = (0..st.channels.len()).map(|h| reference::weights_by_distance(&plan, h)).collect();
        Ok(WeightForm { plan: Some(plan), tables, renormalised: spec.normalise() == Normalise::Renormalised })
    }

    /// Squared error of the weights of one row of codes.
    fn error(&self, row: &Coded<'_>, head: usize, truth: &[f64]) -> f64 {
        let Some(plan) = &self.plan else {
            let weights = softmax(&row.back(), row.scale);
            let rounded = weights.into_iter().map(|v| (v * 255.0).round() / 255.0);
            return truth.iter().zip(rounded).map(|(a, b)| (a - b).powi(2)).sum();
        };
        let sums = |w: &[u32]| {
            let sum: u64 = w.iter().map(|w| *w as u64).sum();
            let by = if self.renormalised { sum.max(1) as f64 } else { plan.unit() as f64 };
            truth.iter().zip(w).map(|(a, w)| (a - *w as f64 / by).powi(2)).sum()
        };
        match &self.tables[head] {
            None => sums(&reference::weights(plan, head, &row.codes, Some(row.seen))),
            Some(table) => {
                let top = row.codes.iter().zip(row.seen).filter(|(_, seen)| **seen).map(|(c, _)| *c).max().unwrap_or(0);
                let weight = |(c, seen): (&u8, &bool)| if *seen { table[usize::from(top - c)] } else { 0 };
                sums(&row.codes.iter().zip(row.seen).map(weight).collect::<Vec<u32>>())
            }
        }
    }
}

/// A row of scores in codes.
struct Coded<'r> {
    codes: Vec<u8>,
    /// What no mask hides.
    seen: &'r [bool],
    step: (f32, i32),
    /// Of the scores, in the softmax.
    scale: f32,
}

impl Coded<'_> {
    fn back(&self) -> Vec<f32> {
        let (s, z) = self.step;
        self.codes.iter().map(|c| (i32::from(*c) - z) as f32 * s).collect()
    }
}

impl KeptScores<'_> {
    /// Squared error of the attention weights of the kept rows, for each form and head by head.
    fn errors(&self, p: &QParams, forms: &[Option<&LisSpec>]) -> Result<Vec<Vec<f64>>, String> {
        let (lo, hi) = p.code().range();
        let forms: Vec<WeightForm> =
            forms.iter().map(|f| WeightForm::of(self.st, p, self.scale, *f)).collect::<Result<_, String>>()?;
        let mut errors = vec![vec![0.0; self.st.channels.len()]; forms.len()];
        for ((r, truth), seen) in self.kept.iter().zip(&self.truth).zip(&self.seen) {
            let head = r.head as usize;
            let c = if p.axis().is_some() { head } else { 0 };
            let (s, z) = (p.scale(c), p.zero(c));
            let codes = r.values.iter().map(|v| quantize(*v, s, z, lo, hi) as u8).collect();
            let row = Coded { codes, seen, step: (s, z), scale: self.scale };
            for (e, form) in errors.iter_mut().zip(&forms) {
                e[head] += form.error(&row, head, truth);
            }
        }
        Ok(errors)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::recipe::AttentionRecipe;
    use crate::quant::observe::Watch;

    /// Two heads of 6 queries and 32 keys, the second's scores `ratio` times as large.
    fn stats(ratio: f32) -> Stats {
        let one = |i: usize| ((i * 7919 % 1009) as f32 / 1009.0 - 0.6) * 9.0;
        let x: Vec<f32> = (0..2 * 6 * 32).map(|i| one(i) * if i < 6 * 32 { 1.0 } else { ratio }).collect();
        let mut s = Stats::new(Watch::Scores { by_head: true });
        s.observe(&x, &[1, 2, 6, 32], 0).expect("finite");
        s.finish();
        s
    }

    fn recipe(text: &str) -> AttentionRecipe {
        crate::yaml::from_str(&format!("{{ kind: lis, scores: weights, {text} }}")).expect("a recipe")
    }

    #[test]
    fn heads_that_reach_differently_get_a_scale_each() {
        let s = stats(30.0);
        let (p, _, shared) = decide(&s, 1.0, false, &recipe("fine: [8]")).unwrap();
        assert_eq!(p.axis(), None, "{shared}");
        let (p, form, reason) = decide(&s, 1.0, false, &recipe("fine: [8], scale-by-head: true")).unwrap();
        assert_eq!((p.axis(), p.zero(0)), (Some(-3), p.zero(1)));
        assert!(p.scale(1) > 10.0 * p.scale(0), "{p:?}");
        assert!(reason.contains("a scale per head"), "{reason}");
        assert!(matches!(form, AttentionForm::Lis { spec } if spec.fine() == [8]));
        // The weights of the narrow head gain, and both errors are of the same rows.
        let rows = KeptScores::of(&s, 1.0);
        let spec = LisSpec::default().with_fine(vec![8]).unwrap();
        let error = |p: &QParams| rows.errors(p, &[Some(&spec)]).unwrap().remove(0);
        let (whole, each) = (error(&QParams::covering(Code::U8, s.range().0, s.range().1)), error(&p));
        assert!(each[0] < whole[0] / 2.0, "{each:?} {whole:?}");
    }

    #[test]
    fn bases_are_chosen_head_by_head_where_they_serve_better() {
        // The first head's weights are nearly alike, which small ratios tell apart. In the second head one is large and the
        // others, six octaves below it, come to as much together: five octaves in fifteen codes would lose them.
        let r = |i: usize| (i * 7919 % 1009) as f32 / 1009.0;
        let one = |i: usize| match (i < 6 * 32, i % 32) {
            (true, _) => 1.5 * r(i),
            (false, 0) => 0.0,
            (false, _) => -3.9 - 0.4 * r(i),
        };
        let x: Vec<f32> = (0..2 * 6 * 32).map(one).collect();
        let mut s = Stats::new(Watch::Scores { by_head: true });
        s.observe(&x, &[1, 2, 6, 32], 0).expect("finite");
        s.finish();
        let (_, form, reason) = decide(&s, 1.0, false, &recipe("bases: ['2', sqrt2, cbrt2]")).unwrap();
        let AttentionForm::Lis { spec } = form else { panic!("{reason}") };
        assert_eq!(spec.bases().len(), 2, "{reason}");
        assert!(spec.base_of(0) > spec.base_of(1), "{reason}");
        assert!(reason.contains("steps per octave 3"), "{reason}");
        // Half octaves are a family of their own, and the better family wins.
        let (_, form, _) = decide(&s, 1.0, false, &recipe("bases: ['2'], fine: [0, 4, 8]")).unwrap();
        assert!(matches!(form, AttentionForm::Lis { spec } if spec.bases().is_empty() && !spec.fine().is_empty()));
    }
}
