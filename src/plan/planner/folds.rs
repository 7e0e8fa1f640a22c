//! How much of a value's unequal channels goes into the weights behind it.
//!
//! A channel divided down to the range of the others has its own step, and its own end: what a sample never seen has
//! beyond it is clipped. So every way to fold is judged on samples its ranges do not come from: ranges from three
//! quarters of the calibration samples, the error on the fourth, four times. (Channels of a classifier's last layers fire
//! for a few classes only; a hundred photographs do not show how far.) The factors are then made from all samples.

use super::Matrix;
use crate::ir::Graph;
use crate::plan::Fold;
use crate::plan::recipe::{Candidate, FoldRecipe, QuantRecipe};
use crate::plan::sites::{Linear, Site, reading_nodes};
use crate::quant::hist::Moments;
use crate::quant::observe::{Channel, Stats};
use crate::quant::ptf::{self, Range};
use crate::quant::qparams::SCALE_FLOOR;
use crate::quant::{Code, QParams};

/// One way to choose factors.
#[derive(Clone, Copy, Debug)]
enum Way {
    None,
    /// `(range / median)^strength`.
    Strength(f64),
    /// What a range is beyond so many times the median.
    Beyond(f64),
}

impl Way {
    fn name(self) -> String {
        match self {
            Way::None => "no folding".into(),
            Way::Strength(a) => format!("folding at strength {a}"),
            Way::Beyond(b) => format!("folding beyond {b}x the median range"),
        }
    }

    /// Factors for channels of these ranges.
    fn factors(self, ranges: &[(f32, f32)], rule: &FoldRecipe) -> Vec<f32> {
        let wide: Vec<f64> = ranges.iter().map(|(a, b)| f64::from(b - a)).collect();
        let mut sorted = wide.clone();
        sorted.sort_by(f64::total_cmp);
        let median = sorted[sorted.len() / 2].max(SCALE_FLOOR.into());
        let snap = |f: f64| if rule.power_of_two { f64::powi(2.0, f.log2().round() as i32) } else { f };
        let one = |w: &f64| match self {
            Way::None => 1.0,
            Way::Strength(a) => snap((w / median).max(rule.floor).powf(a)),
            Way::Beyond(b) => snap((w / median / b).max(1.0)),
        };
        wide.iter().map(|w| one(w) as f32).collect()
    }
}

/// Samples that ranges come from, and the distributions that errors are counted on, channel by channel.
struct Trial {
    ranges: Vec<(f32, f32)>,
    judged: Vec<Moments>,
}

impl Trial {
    /// One for each quarter of the samples; where there are too few samples for that, one for all.
    fn all_of(st: &Stats) -> Vec<Trial> {
        let one = |(fit, judge): (Stats, Stats)| Trial { ranges: all_ranges(&fit), judged: distributions(&judge) };
        let trials: Vec<Trial> = st.trials().into_iter().map(one).collect();
        if trials.is_empty() { vec![Trial { ranges: all_ranges(st), judged: distributions(st) }] } else { trials }
    }
}

fn distributions(st: &Stats) -> Vec<Moments> {
    st.channels.iter().map(Channel::moments).collect()
}

fn all_ranges(st: &Stats) -> Vec<(f32, f32)> {
    (0..st.channels.len()).map(|c| st.channel_range(c)).collect()
}

/// Parameters for the value divided by `factors`, whose channels had `ranges`.
fn params(st: &Stats, ranges: &[(f32, f32)], factors: &[f32], code: Code, range: Range) -> QParams {
    let seen = ranges.iter().zip(factors).fold((0f32, 0f32), |(a, b), ((l, h), f)| (a.min(l / f), b.max(h / f)));
    let pooled = match range {
        Range::MinMax | Range::Headroom(_) => Moments::default(),
        Range::Percentile(_) | Range::Mse => st.pooled(|c| 1.0 / f64::from(factors[c])),
    };
    ptf::affine_of(code, &pooled, seen, range)
}

/// The best folding of a value into the linear layers that read it; `None` where a reader forbids folding.
pub fn folded(
    g: &Graph,
    s: &Site,
    st: &Stats,
    rule: &FoldRecipe,
    candidates: &[Candidate],
    linears: &[&Linear],
    recipe: &QuantRecipe,
) -> Option<(Option<Fold>, QParams, String)> {
    // Every reader must be a linear layer that reads the value itself and contracts its last axis.
    let readers = reading_nodes(g, s.value);
    let direct = linears.iter().all(|l| l.x == s.value && !l.is_conv);
    if linears.is_empty() || !direct || readers.len() != linears.len() || g.is_output(s.value) || s.axis != -1 {
        return None;
    }
    let mats: Vec<Matrix> = linears.iter().map(|l| Matrix::of(g, l)).collect::<Option<_>>()?;
    let n = st.channels.len();
    if mats.iter().any(|m| m.ins != n) {
        return None;
    }
    let power: Vec<f64> = mats.iter().map(Matrix::in_power).fold(vec![0.0; n], |mut a, p| {
        a.iter_mut().zip(p).for_each(|(a, p)| *a += p);
        a
    });
    let ways = [Way::None].into_iter();
    let ways = ways.chain(rule.strengths.iter().filter(|a| **a != 0.0).map(|a| Way::Strength(*a)));
    let ways: Vec<Way> = ways.chain(rule.beyond.iter().map(|b| Way::Beyond(*b))).collect();
    let trials = Trial::all_of(st);
    let signal: f64 = trials.iter().flat_map(|t| t.judged.iter().zip(&power)).map(|(m, p)| m.power() * p).sum();
    let (_, top) = recipe.weights.code.range();
    let mut best: Option<(f64, Way, Code, Range)> = None;
    for way in &ways {
        let mut tries: Vec<(f64, Code, Range)> = Vec::new();
        for cand in candidates {
            if let Candidate::Affine { code, range } = *cand {
                tries.push((0.0, code, range));
            }
        }
        for t in &trials {
            let f = way.factors(&t.ranges, rule);
            // The error of a rounded weight meets what its input varies by, or all of its input where no bias makes up
            // for the mean.
            let spread = |m: &Moments| if recipe.bias_correction { m.variance() } else { m.power() };
            let input: f64 = t.judged.iter().zip(&f).map(|(m, f)| spread(m) / f64::from(*f).powi(2)).sum();
            let rounding = |m: &Matrix| -> f64 {
                let reach = m.out_reach(|i| f64::from(f[i]));
                reach.iter().map(|r| (r / f64::from(top)).powi(2) / 12.0 * m.inner as f64).sum()
            };
            let weights: f64 = mats.iter().map(rounding).sum::<f64>() * input;
            for (e, code, range) in &mut tries {
                let p = params(st, &t.ranges, &f, *code, *range);
                let (lo, hi) = p.reach(0);
                let one = |c: usize| {
                    let k = f64::from(f[c]);
                    power[c] * t.judged[c].error(f64::from(lo) * k, f64::from(hi) * k, f64::from(p.scale(0)) * k)
                };
                *e += weights + (0..n).map(one).sum::<f64>();
            }
        }
        for (e, code, range) in tries {
            if best.as_ref().is_none_or(|b| e < b.0) {
                best = Some((e, *way, code, range));
            }
        }
    }
    let (e, way, code, range) = best?;
    let ranges = all_ranges(st);
    let factors = way.factors(&ranges, rule);
    let p = params(st, &ranges, &factors, code, range);
    let unseen = if trials.len() > 1 { " on samples that ranges do not come from" } else { "" };
    let reason = format!("{}: {} at the consumers' output{unseen}", way.name(), super::db(signal, e));
    let fold = factors.iter().any(|f| *f != 1.0).then(|| Fold {
        value: g.name_of(s.value).to_owned(),
        role: s.role,
        factors,
        reason: reason.clone(),
    });
    Some((fold, p, reason))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::planner::watches;
    use crate::plan::sites;
    use crate::quant::ptf::Range;
    use crate::recipe::Recipe;
    use crate::text::parse_model;

    /// What is decided for the value behind a GELU with 8 channels: the last but one reaches to 20, the last to
    /// `wide(sample)`, the others to 1.
    fn decision(wide: impl Fn(usize) -> f32) -> String {
        let weights: Vec<String> = (0..8 * 4).map(|i| format!("{}", (i * 5 % 11) as f32 / 11.0 - 0.4)).collect();
        let mut m = parse_model(&format!(
            "<ir_version: 8, opset_import: [\"\" : 20]>
             g (float[1,40,8] x) => (y) <float[8,4] w = {{{}}}> {{ h = Gelu (x) m = MatMul (h, w) y = Relu (m) }}",
            weights.join(", ")
        ))
        .unwrap();
        crate::infer::annotate(&mut m);
        let sites = sites::find(&m, vec![]);
        let recipe = Recipe::find("fq-vit", None).unwrap().quantize.unwrap();
        let site = sites.sites.values().find(|s| m.graph.name_of(s.value) == "h").unwrap();
        let watch = watches(&m, &sites, &recipe).swap_remove("h").unwrap();
        let mut st = Stats::new(watch);
        for sample in 0..8 {
            let one = |i: usize| {
                let x = ((i * 131 + sample * 57) % 97) as f32 / 97.0;
                x * match i % 8 {
                    7 => wide(sample),
                    6 => 20.0,
                    _ => 1.0,
                }
            };
            let x: Vec<f32> = (0..320).map(one).collect();
            st.observe(&x, &[1, 40, 8], sample as u64).unwrap();
        }
        let linears: Vec<&Linear> = sites.linears.iter().collect();
        let how = &recipe.folds[&site.role];
        let affine = [Candidate::Affine { code: Code::U8, range: Range::MinMax }];
        folded(&m.graph, site, &st, how, &affine, &linears, &recipe).unwrap().2
    }

    #[test]
    fn a_channel_that_is_always_wide_is_folded() {
        let reason = decision(|_| 20.0);
        assert!(reason.contains("folding beyond"), "{reason}");
        assert!(reason.contains("do not come from"), "{reason}");
    }

    #[test]
    fn a_channel_that_one_quarter_alone_shows_is_left_room() {
        // Folded to what the other quarters have, it would be clipped at a tenth of its values.
        let reason = decision(|sample| if sample % 4 == 2 { 20.0 } else { 2.0 });
        assert!(reason.contains("no folding"), "{reason}");
    }
}
