//! What each part of a model costs when it is quantized, and which parts to leave in float.
//!
//! Measured, not estimated: a plan with the decisions of one part only, or with all but these, is carried out and run in
//! tract on samples, next to the float model. The figure is the least SQNR of any output.

use super::{CompileError, Journal, Prepared, apply_in_front};
use crate::budget::Stop;
use crate::calibrate::data::{DataError, Dataset};
use crate::calibrate::run::open_shapes;
use crate::ir::{Invalid, Model, validate};
use crate::plan::QuantPlan;
use crate::plan::parts::Part;
use crate::runtime::{Array, RuntimeError, Session, SessionOptions, fold_samples};
use crate::verify::kinds::Kind;
use crate::verify::metrics::{Deviation, EXACT_DB, MetricError, Subject, decibels};

/// Why sensitivities could not be measured.
#[derive(Debug, thiserror::Error)]
pub enum SensitivityError {
    #[error(transparent)]
    Compile(#[from] CompileError),
    #[error(transparent)]
    Invalid(#[from] Invalid),
    #[error(transparent)]
    Data(#[from] DataError),
    #[error("the model {what} does not run: {source}")]
    Runtime { what: String, source: RuntimeError },
    #[error(transparent)]
    Metric(#[from] MetricError),
    #[error("no samples are left to measure on; give at least two samples")]
    Empty,
}

/// A ready measurement: the samples, and what the float model makes of them.
pub struct Bench<'a> {
    prepared: &'a Prepared,
    plan: &'a QuantPlan,
    batch: usize,
    threads: usize,
    stop: Stop,
    inputs: Vec<Vec<(String, Array)>>,
    float: Vec<Vec<Array>>,
}

/// What one part costs.
#[derive(Clone, Debug)]
pub struct Sensitivity {
    pub part: Part,
    /// SQNR in dB with this part alone quantized; 999 without any error.
    pub alone_db: f64,
    /// SQNR with everything but this part quantized, if it was measured.
    pub without_db: Option<f64>,
}

/// Parts to leave in float.
#[derive(Clone, Debug)]
pub struct Choice {
    /// The worst ones, the worst first.
    pub parts: Vec<Part>,
    /// SQNR of what remains quantized.
    pub sqnr_db: f64,
    /// The plan without these parts.
    pub plan: QuantPlan,
}

impl<'a> Bench<'a> {
    /// Runs the float model over the samples `indices` of `data`; they stay in memory.
    ///
    /// # Errors
    /// If there are no samples, one cannot be read, or the float model does not run.
    pub fn new(
        prepared: &'a Prepared,
        plan: &'a QuantPlan,
        data: &Dataset,
        indices: &[usize],
        threads: usize,
    ) -> Result<Bench<'a>, SensitivityError> {
        if indices.is_empty() {
            return Err(SensitivityError::Empty);
        }
        let inputs = indices.iter().map(|i| Ok(data.sample(*i)?.inputs)).collect::<Result<_, DataError>>()?;
        let mut b =
            Bench { prepared, plan, batch: data.batch(), threads, stop: Stop::default(), inputs, float: Vec::new() };
        let mut float = Vec::new();
        b.run(&prepared.model, "in float", |_, outputs| {
            float.push(outputs);
            Ok(())
        })?;
        b.float = float;
        Ok(b)
    }

    /// As it is until somebody asks to stop: then every measurement ends with [`DataError::Stopped`].
    #[must_use]
    pub fn until(self, stop: &Stop) -> Bench<'a> {
        Bench { stop: stop.clone(), ..self }
    }

    fn run(
        &self,
        m: &Model,
        what: &str,
        fold: impl FnMut(usize, Vec<Array>) -> Result<(), SensitivityError>,
    ) -> Result<(), SensitivityError> {
        let failed = |source| SensitivityError::Runtime { what: what.to_owned(), source };
        let shapes = open_shapes(&m.graph, &self.inputs[0]);
        let options = SessionOptions { batch: self.batch, shapes, ..SessionOptions::default() };
        let session = Session::of(validate::validate(m)?, &options).map_err(failed)?;
        let one = |i: usize| match self.stop.asked() {
            true => Err(DataError::Stopped.into()),
            false => Ok(session.run(&self.inputs[i]).map_err(failed)?.outputs),
        };
        fold_samples(self.inputs.len(), self.threads, one, fold)
    }

    /// SQNR in dB of the output that suffers most under a plan.
    ///
    /// # Errors
    /// If the plan cannot be carried out, or the result does not run.
    pub fn sqnr(&self, plan: &QuantPlan, what: &str) -> Result<f64, SensitivityError> {
        let m = apply_in_front(self.prepared, plan, &mut Journal::default())?;
        let g = &self.prepared.model.graph;
        let names: Vec<&str> = g.outputs().iter().map(|v| g.name_of(*v)).collect();
        let mut sums = vec![(0f64, 0f64); names.len()];
        self.run(&m, what, |i, outputs| {
            for ((sum, tensor), (a, b)) in sums.iter_mut().zip(&names).zip(self.float[i].iter().zip(&outputs)) {
                let kind = Kind::Values;
                let site = Subject { tensor, sample: "held back", items: self.batch, labels: None, kind };
                let d = Deviation::between(site, a, b)?;
                *sum = (sum.0 + d.signal, sum.1 + d.noise);
            }
            Ok(())
        })?;
        Ok(sums.iter().map(|(s, n)| decibels(*s, *n)).fold(EXACT_DB, f64::min))
    }

    /// SQNR with the whole plan carried out.
    ///
    /// # Errors
    /// Those of [`Bench::sqnr`].
    pub fn whole(&self) -> Result<f64, SensitivityError> {
        self.sqnr(self.plan, "quantized as a whole")
    }

    /// Measures each part, and returns them ranked: the one that costs most alone comes first; of equals the one nearer
    /// to the input. `progress` is told how many parts are done.
    ///
    /// # Errors
    /// Those of [`Bench::sqnr`].
    pub fn rank(
        &self,
        parts: &[Part],
        all_but: bool,
        progress: &dyn Fn(usize),
    ) -> Result<Vec<Sensitivity>, SensitivityError> {
        let (g, sites) = (&self.prepared.model.graph, &self.prepared.sites);
        let mut out = Vec::with_capacity(parts.len());
        for (i, part) in parts.iter().enumerate() {
            let alone_db = self.sqnr(&self.plan.only(g, sites, part), &format!("with only {} quantized", part.name))?;
            let without = || self.sqnr(&self.plan.without(g, sites, part), &format!("without {}", part.name));
            let without_db = all_but.then(without).transpose()?;
            out.push(Sensitivity { part: part.clone(), alone_db, without_db });
            progress(i + 1);
        }
        out.sort_by(|a, b| a.alone_db.total_cmp(&b.alone_db));
        Ok(out)
    }

    /// The plan without the worst `n` of ranked parts, and what that reaches.
    ///
    /// # Errors
    /// Those of [`Bench::sqnr`].
    pub fn keep_worst(&self, ranked: &[Sensitivity], n: usize) -> Result<Choice, SensitivityError> {
        let why = |s: &Sensitivity| match s.alone_db {
            x if x >= EXACT_DB => "kept in float: asked for".to_owned(),
            x => format!("kept in float: alone it leaves {x:.1} dB"),
        };
        self.keep(ranked.iter().take(n).map(|s| (&s.part, why(s))).collect())
    }

    /// The plan without these parts, each with the reason, and what that reaches.
    ///
    /// # Errors
    /// Those of [`Bench::sqnr`].
    pub fn keep(&self, parts: Vec<(&Part, String)>) -> Result<Choice, SensitivityError> {
        let (g, sites) = (&self.prepared.model.graph, &self.prepared.sites);
        let mut plan = self.plan.without(g, sites, &Part::union(parts.iter().map(|(p, _)| *p)));
        let parts: Vec<Part> = parts
            .into_iter()
            .map(|(p, why)| {
                plan.note_island(p, why);
                p.clone()
            })
            .collect();
        let sqnr_db = self.sqnr(&plan, "with parts kept in float")?;
        Ok(Choice { parts, sqnr_db, plan })
    }
}
