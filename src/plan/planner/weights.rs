//! Weights: their codes' range, and what nearest rounding shifts the mean output by.

use super::Matrix;
use super::equalise::Known;
use crate::ir::Graph;
use crate::plan::recipe::QuantRecipe;
use crate::plan::sites::{Linear, trace_back};
use crate::plan::{Fold, Layer, Rounding};
use crate::quant::Code;
use crate::quant::qparams::SCALE_FLOOR;

/// The plan of one linear layer, with nearest rounding and the mean error of it in the bias.
pub fn layer(g: &Graph, l: &Linear, stats: &Known<'_>, recipe: &QuantRecipe, folds: &[Fold], code: Code) -> Layer {
    let output = g.name_of(l.out).to_owned();
    let mut out = Layer {
        output,
        weight: code,
        clip: recipe.weights.clip.first().copied().unwrap_or(1.0),
        // `compile::refine` stores better codes where the recipe wants them.
        rounding: Rounding::Nearest,
        stored: None,
        correction: Vec::new(),
        reason: format!("{code:?}, one scale per output channel").to_lowercase(),
    };
    if !recipe.bias_correction {
        return out;
    }
    let Some(mat) = Matrix::of(g, l) else { return out };
    let x = g.name_of(trace_back(g, l.x));
    let Some(st) = stats.get(x).filter(|s| s.channels.len() == mat.ins) else { return out };
    let fold = folds.iter().find(|f| f.value == x);
    let f = |i: usize| fold.map_or(1.0, |f| f.factors[i]);
    let offset = |i: usize| fold.map_or(0.0, |f| f64::from(f.offset(i)));
    let (lo, hi) = out.weight.range();
    let reach = mat.out_reach(|i| f(i) as f64);
    let scale: Vec<f32> = reach.iter().map(|r| ((r / f64::from(hi)) as f32 * out.clip).max(SCALE_FLOOR)).collect();
    let mean: Vec<f64> = (0..mat.ins).map(|i| (st.mean(i) - offset(i)) / f64::from(f(i))).collect();
    let mut shift = vec![0f64; mat.outs];
    mat.each(|o, i, w| {
        let (w, s) = (w * f(i), scale[o]);
        let q = crate::quant::kernel::quantize(w, s, 0, lo, hi);
        shift[o] += mean[i] * (f64::from(w) - f64::from(crate::quant::kernel::dequantize(q, s, 0)));
    });
    out.correction = shift.into_iter().map(|s| s as f32).collect();
    out
}
