//! Keeps the codes after a GELU clear of ties, so that every runtime rounds them alike.

use std::collections::BTreeSet;

use rayon::prelude::*;

use crate::ir::{Graph, NodeId};
use crate::plan::sites::{Sites, trace_back};
use crate::plan::{Fold, QuantPlan, Role};
use crate::quant::QParams;
use crate::quant::ties::{Point, cleared, gelu};

/// Error of a runtime's GELU, relative to its argument: what polynomials for erf reach in float32.
const GELU_ERROR: f64 = 5e-7;

/// Moves the scale (with a fold: the factor of each channel) of every planned GELU output off ties, by some
/// ten-thousandths. A GELU whose input takes too many values for one scale gets a fold, if its readers allow one.
pub(super) fn separate(g: &Graph, sites: &Sites, plan: &mut QuantPlan) {
    // No GELU has to do with another.
    let moved: Vec<_> = sites.gelus.par_iter().map(|n| one(g, sites, *n, plan)).collect();
    for m in moved.into_iter().flatten() {
        match m {
            Moved::Scale(at, params) => plan.activations[at].params = params,
            Moved::Fold(fold) => match plan.folds.iter_mut().find(|f| f.value == fold.value) {
                Some(f) => *f = fold,
                None => plan.folds.push(fold),
            },
        }
    }
}

/// What keeps the codes after a GELU off ties.
enum Moved {
    /// The parameters of the activation at a place in the plan.
    Scale(usize, QParams),
    Fold(Fold),
}

fn points(p: &QParams, c: usize, tanh: bool) -> Vec<Point> {
    let (lo, hi) = p.code().range();
    let s = f64::from(p.scale(c));
    (lo..=hi)
        .map(|q| {
            let x = s * f64::from(q - p.zero(c));
            Point { value: gelu(x, tanh), error: GELU_ERROR * x.abs() }
        })
        .collect()
}

fn one(g: &Graph, sites: &Sites, n: NodeId, plan: &QuantPlan) -> Option<Moved> {
    let node = g.node(n);
    let tanh = node.attrs.str("approximate") == Some("tanh");
    let y = node.out()?;
    let input = &plan.activation(g.name_of(trace_back(g, node.input(0)?)), false)?.params;
    let name = g.name_of(y).to_owned();
    let at = plan.activations.iter().position(|a| a.value == name && a.params.axis().is_none())?;
    let out = &plan.activations[at].params;
    // 16 bits and more have no room between codes.
    if input.code().steps() > 255.0 || out.code().steps() > 255.0 {
        return None;
    }
    let (lo, hi) = out.code().range();
    let (lo, hi) = (f64::from(lo - out.zero(0)), f64::from(hi - out.zero(0)));
    let mut fold = match plan.folds.iter().find(|f| f.value == name) {
        Some(f) => f.clone(),
        None => {
            let mut seen: BTreeSet<(u32, i32)> = BTreeSet::new();
            let all: Vec<Point> = (0..input.channels())
                .filter(|c| seen.insert((input.scale(*c).to_bits(), input.zero(*c))))
                .flat_map(|c| points(input, c, tanh))
                .collect();
            if let Some(s) = cleared(&all, out.scale(0), lo, hi) {
                return Some(Moved::Scale(at, QParams::affine(out.code(), s, out.zero(0)).ok()?));
            }
            let readers: Vec<_> = sites.linears.iter().filter(|l| l.x == y && !l.is_conv).collect();
            let channels = g.constant(readers.first()?.weight)?.dims[readers[0].in_axis];
            if readers.len() != g.use_count(y) || g.is_output(y) {
                return None;
            }
            let factors = vec![1.0; usize::try_from(channels).ok()?];
            Fold {
                value: name,
                role: Role::GeluOutput,
                factors,
                offsets: Vec::new(),
                reason: "keeps codes off ties".into(),
            }
        }
    };
    // All channels of an input of one scale take the same values.
    let taken: Vec<Vec<Point>> = (0..input.channels()).map(|c| points(input, c, tanh)).collect();
    for (c, f) in fold.factors.iter_mut().enumerate() {
        if let Some(s) = cleared(&taken[c.min(taken.len() - 1)], out.scale(0) * *f, lo, hi) {
            *f = (f64::from(s) / f64::from(out.scale(0))) as f32;
        }
    }
    Some(Moved::Fold(fold))
}
