//! The codes of attention scores: scored by the attention weights they lead to, on rows kept from calibration.

use crate::ir::DType;
use crate::plan::AttentionForm;
use crate::plan::recipe::{AttentionRecipe, ScoreRange};
use crate::quant::kernel::quantize;
use crate::quant::lis::{LisFacts, LisPlan, LisSpec, Normalise, reference};
use crate::quant::observe::{HIDDEN_BELOW, Stats};
use crate::quant::ptf::{self, Range};
use crate::quant::{Code, QParams};

/// Parameters for the raw product of queries and keys (`scale` times it enters the softmax), and the attention's form.
pub fn decide(st: &Stats, scale: f32, recipe: &AttentionRecipe) -> Result<(QParams, AttentionForm, String), String> {
    let (range, specs) = match recipe {
        AttentionRecipe::Lis { spec, scores, fine } if fine.is_empty() => (*scores, vec![spec.clone()]),
        AttentionRecipe::Lis { spec, scores, fine } => {
            let each = |n: &u8| spec.clone().with_fine(vec![*n]).map_err(|e| e.to_string());
            (*scores, fine.iter().map(each).collect::<Result<_, _>>()?)
        }
        AttentionRecipe::Uniform { scores } => (*scores, Vec::new()),
    };
    let tries = match range {
        ScoreRange::MinMax => vec![(ptf::affine(Code::U8, st, Range::MinMax), "all scores seen".to_owned())],
        ScoreRange::Weights => ranges(st, scale),
    };
    let (params, lis, reason) = best(st, scale, tries, &specs)?;
    let form = match lis {
        Some(spec) => AttentionForm::Lis { spec },
        None => {
            AttentionForm::Uniform { params: QParams::affine(Code::U8, 1.0 / 255.0, 0).expect("a constant in range") }
        }
    };
    Ok((params, form, reason))
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

/// The range and, head by head, the codes of least error.
fn best(
    st: &Stats,
    scale: f32,
    mut tries: Vec<(QParams, String)>,
    specs: &[LisSpec],
) -> Result<(QParams, Option<LisSpec>, String), String> {
    if st.rows.is_empty() {
        let (p, what) = tries.swap_remove(0);
        return Ok((p, specs.first().cloned(), what));
    }
    let heads = st.channels.len();
    let truth: Vec<Vec<f64>> = st.rows.iter().map(|r| softmax(&r.values, scale)).collect();
    let power: f64 = truth.iter().flatten().map(|p| p * p).sum();
    let forms: Vec<Option<&LisSpec>> = if specs.is_empty() { vec![None] } else { specs.iter().map(Some).collect() };
    let mut best: Option<(f64, usize, Vec<usize>)> = None;
    for (i, (p, _)) in tries.iter().enumerate() {
        let errors: Vec<Vec<f64>> =
            forms.iter().map(|f| weights_error(st, &truth, scale, p, *f)).collect::<Result<_, _>>()?;
        let choice: Vec<usize> = (0..heads)
            .map(|h| (0..forms.len()).min_by(|a, b| errors[*a][h].total_cmp(&errors[*b][h])).unwrap_or(0))
            .collect();
        let e = (0..heads).map(|h| errors[choice[h]][h]).sum::<f64>();
        if best.as_ref().is_none_or(|b| e < b.0) {
            best = Some((e, i, choice));
        }
    }
    let (e, i, choice) = best.expect("one candidate at least");
    let (p, what) = tries.swap_remove(i);
    let mut reason = format!("{what}: attention weights at {}", super::db(power, e));
    let Some(first) = specs.first() else { return Ok((p, None, reason)) };
    let mut fine: Vec<u8> = choice.iter().flat_map(|k| specs[*k].fine()).copied().collect();
    if fine.len() != heads {
        return Ok((p, Some(first.clone()), reason));
    }
    let words: Vec<String> = fine.iter().map(u8::to_string).collect();
    reason.push_str(&format!(", half-octave steps {}", words.join(" ")));
    if fine.iter().all(|f| *f == fine[0]) {
        fine.truncate(1);
    }
    let spec = first.clone().with_fine(fine).map_err(|e| e.to_string())?;
    Ok((p, Some(spec), reason))
}

/// A window that need not hold 0: the zero point of scores cancels, so it may lie outside the codes' range only as far
/// as uint8 allows.
fn window(lo: f32, hi: f32) -> QParams {
    QParams::covering(Code::U8, lo, hi)
}

fn softmax(row: &[f32], scale: f32) -> Vec<f64> {
    let top = row.iter().copied().filter(|v| *v > HIDDEN_BELOW).fold(f32::NEG_INFINITY, f32::max);
    let e: Vec<f64> =
        row.iter().map(|v| if *v > HIDDEN_BELOW { ((v - top) as f64 * scale as f64).exp() } else { 0.0 }).collect();
    let s: f64 = e.iter().sum();
    e.into_iter().map(|e| e / s.max(1e-300)).collect()
}

/// Squared error of the attention weights of the kept rows, head by head.
fn weights_error(
    st: &Stats,
    truth: &[Vec<f64>],
    scale: f32,
    p: &QParams,
    lis: Option<&LisSpec>,
) -> Result<Vec<f64>, String> {
    let (lo, hi) = p.code().range();
    let plan = lis
        .map(|spec| {
            let facts = LisFacts {
                score_scale: vec![p.scale(0) * scale],
                v_scale: vec![1.0],
                v_zero: 0,
                v_type: DType::UINT8,
                keys: st.dims.last().copied(),
            };
            LisPlan::new(spec, &facts, "scores")
        })
        .transpose()
        .map_err(|e| e.to_string())?;
    let mut error = vec![0.0; st.channels.len()];
    for (r, truth) in st.rows.iter().zip(truth) {
        let mask: Vec<bool> = r.values.iter().map(|v| *v > HIDDEN_BELOW).collect();
        let codes: Vec<i32> = r.values.iter().map(|v| quantize(*v, p.scale(0), p.zero(0), lo, hi)).collect();
        let got: Vec<f64> = match &plan {
            Some(plan) => {
                let row: Vec<u8> = codes.iter().map(|c| *c as u8).collect();
                let w = reference::weights(plan, r.head as usize, &row, Some(&mask));
                let sum: u64 = w.iter().map(|w| *w as u64).sum();
                let by = if lis.is_some_and(|s| s.normalise() == Normalise::Renormalised) {
                    sum.max(1) as f64
                } else {
                    plan.unit() as f64
                };
                w.iter().map(|w| *w as f64 / by).collect()
            }
            None => {
                let back: Vec<f32> = codes.iter().map(|c| (c - p.zero(0)) as f32 * p.scale(0)).collect();
                softmax(&back, scale).into_iter().map(|v| (v * 255.0).round() / 255.0).collect()
            }
        };
        error[r.head as usize] += truth.iter().zip(&got).map(|(a, b)| (a - b).powi(2)).sum::<f64>();
    }
    Ok(error)
}
