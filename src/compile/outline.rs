//! What a run would do, told before it is done.

use std::time::Instant;

use serde::Serialize;

use super::Prepared;
use super::error::CompilerError;
use super::refine::fits_to;
use super::reporting::Limits;
use super::stages::{Log, Samplings, made_up};
use crate::budget;
use crate::calibrate::run::open_shapes;
use crate::ir::validate;
use crate::plan::{Rounding, Target};
use crate::recipe::Recipe;
use crate::runtime::{Session, SessionOptions};
use crate::verify::thresholds::Thresholds;

/// What a run would do.
#[derive(Clone, Debug, Serialize)]
pub struct Outline {
    pub model: String,
    /// Bytes of the model's files.
    pub bytes: u64,
    pub recipe: String,
    /// `None` if the recipe quantizes nothing: then the rest is empty.
    pub target: Option<Target>,
    pub attentions: usize,
    pub layer_norms: usize,
    pub gelus: usize,
    /// Layers with weights.
    pub linears: usize,
    /// Values to quantize.
    pub values: usize,
    /// What decisions come from: the calibration set, or the statistics or the plan given.
    pub calibration: String,
    pub calibration_samples: usize,
    /// How many of them weights are fitted to.
    pub fitted_to: usize,
    pub verification: String,
    pub verification_samples: usize,
    /// What the result must reach.
    pub thresholds: Thresholds,
    /// Of one forward pass of the float model, on one thread.
    pub forward_seconds: f64,
    /// Of the whole run, within a factor of two or so.
    pub about_seconds: f64,
    pub threads: usize,
    pub notes: Vec<String>,
}

/// Forward passes that a sample costs in each stage, with what is counted and compared on the way: measured on ViT-tiny and
/// DeiT-tiny (`timings` of their reports).
const CALIBRATING: f64 = 4.0;
const FITTING: f64 = 4.0;
const VERIFYING: f64 = 4.5;
/// Share of calibration that planning takes.
const PLANNING: f64 = 0.25;
/// Float64 operations a second, of systems of equations on one thread.
const SOLVING: f64 = 15e9;

impl Outline {
    /// Of a recipe that leaves the model as it is.
    pub(super) fn of_nothing(model: &str, recipe: &Recipe, log: Log) -> Outline {
        Outline {
            model: model.to_owned(),
            bytes: 0,
            recipe: recipe.name.clone(),
            target: None,
            attentions: 0,
            layer_norms: 0,
            gelus: 0,
            linears: 0,
            values: 0,
            calibration: "none".into(),
            calibration_samples: 0,
            fitted_to: 0,
            verification: "none".into(),
            verification_samples: 0,
            thresholds: recipe.thresholds.clone(),
            forward_seconds: 0.0,
            about_seconds: 0.0,
            threads: 1,
            notes: log.notes,
        }
    }

    /// Runs the model on one sample, to tell the time.
    ///
    /// # Errors
    /// If the model does not run on it.
    pub(super) fn of(
        model: &str,
        bytes: u64,
        (p, recipe): (&Prepared, &Recipe),
        samples: Samplings,
        (given, verified): (Option<String>, bool),
        (limits, threads): (Limits, usize),
        log: Log,
    ) -> Result<Outline, CompilerError> {
        let Samplings { data, calib, held, other } = samples;
        let forward_seconds = forward(p, &data)?;
        let quant = recipe.quantize.as_ref();
        let fits = given.is_none() && quant.is_some_and(|q| q.weights.rounding == Rounding::Gptq);
        let calibration_samples = if given.is_none() { calib.len() } else { 0 };
        let fitted_to = if fits { fits_to(p, &calib) } else { 0 };
        let (verification, verification_samples) = match &other {
            _ if !verified => ("none".to_owned(), 0),
            Some((d, some)) => (d.description().to_owned(), some.len()),
            None => (data.description().to_owned(), held.len()),
        };
        let mut passes = CALIBRATING * (1.0 + PLANNING) * calibration_samples as f64;
        passes += FITTING * fitted_to as f64 + VERIFYING * verification_samples as f64;
        let solving = if fits { systems(p) / SOLVING } else { 0.0 };
        let bench = if verified { 1.0 } else { 0.0 };
        let sites = &p.sites;
        Ok(Outline {
            model: model.to_owned(),
            bytes,
            recipe: recipe.name.clone(),
            target: quant.map(|q| q.target),
            attentions: sites.attentions.len(),
            layer_norms: sites.norms.len(),
            gelus: sites.gelus.len(),
            linears: sites.linears.len(),
            values: sites.sites.len(),
            calibration: given.unwrap_or_else(|| data.description().to_owned()),
            calibration_samples,
            fitted_to,
            verification,
            verification_samples,
            thresholds: limits.of(Some(recipe)),
            forward_seconds,
            about_seconds: (passes * forward_seconds + solving) / threads as f64 + bench,
            threads,
            notes: log.notes,
        })
    }
}

/// Seconds of one forward pass: the shorter of two.
fn forward(p: &Prepared, data: &crate::calibrate::data::Dataset) -> Result<f64, CompilerError> {
    let sample = data.sample(0)?;
    let shapes = open_shapes(&p.model.graph, &sample.inputs);
    let options = SessionOptions { batch: data.batch(), shapes, ..SessionOptions::default() };
    let wrong = |source| CompilerError::Float { source, hint: made_up(data) };
    let session = Session::of(validate::validate(&p.model)?, &options).map_err(wrong)?;
    let mut least = f64::INFINITY;
    for _ in 0..2 {
        let begun = Instant::now();
        session.run(&sample.inputs).map_err(wrong)?;
        least = least.min(begun.elapsed().as_secs_f64());
    }
    budget::give_back();
    Ok(least)
}

/// Operations that solving for the weights of all layers takes.
fn systems(p: &Prepared) -> f64 {
    let g = &p.model.graph;
    let of = |l: &crate::plan::sites::Linear| {
        let w = g.constant(l.weight)?;
        let outs = *w.dims.get(l.out_axis)? as f64;
        let ins = w.len() as f64 / outs.max(1.0);
        // Three factors, and eight products with all inputs.
        Some(ins.powi(3) + 16.0 * ins * ins * outs)
    };
    p.sites.linears.iter().filter_map(of).sum()
}
