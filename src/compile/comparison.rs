//! Two models that are there already, side by side.

use indexmap::IndexMap;

use super::checked::{checked, labels_fit};
use super::closer::illustrate;
use super::error::CompilerError;
use super::reporting::{Limits, report};
use super::stages::{Listener, Log, Running, Samples, all_threads, open, second_opinion, side_by_side, timing};
use super::{Journal, follow, runnable, unpacked};
use crate::budget::Stop;
use crate::ir::Model;
use crate::passes::widen_floats::WidenFloats;
use crate::passes::{Context, Pass, is_quantized, pipelines};
use crate::runtime::{Array, keep_sessions};
use crate::verify::judge::Judge;
use crate::verify::report::{DataReport, ModelFile, Report};

/// A model, and the file it comes from.
#[derive(Clone, Debug)]
pub struct Read {
    pub model: Model,
    pub file: ModelFile,
}

/// Compares a quantized model with its float original: what to do is said step by step, and done by
/// [`run`](Comparison::run).
#[derive(Clone)]
pub struct Comparison {
    float: Read,
    quantized: Read,
    notes: Vec<String>,
    data: Samples,
    limits: Limits,
    bench: bool,
    closer: bool,
    judge: Option<Judge>,
    threads: usize,
    stop: Stop,
    tell: Listener,
}

/// What [`Comparison::run`] found.
#[derive(Clone, Debug)]
pub struct Compared {
    pub report: Report,
    /// The quantized model's outputs by name, one array a sample.
    pub outputs: IndexMap<String, Vec<Array>>,
}

impl Comparison {
    /// Of these two.
    pub fn new(float: Read, quantized: Read) -> Comparison {
        Comparison {
            float,
            quantized,
            notes: Vec::new(),
            data: Samples::default(),
            limits: Limits::default(),
            bench: true,
            closer: false,
            judge: None,
            threads: all_threads(),
            stop: Stop::default(),
            tell: std::sync::Arc::new(|_| ()),
        }
    }

    /// What the report shall tell besides.
    #[must_use]
    pub fn noted(mut self, notes: Vec<String>) -> Comparison {
        self.notes = notes;
        self
    }

    /// The samples to run over. Default: made up.
    #[must_use]
    pub fn on(mut self, data: impl Into<Samples>) -> Comparison {
        self.data = data.into();
        self
    }

    /// What the quantized model must reach for [`Report::passes`].
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Comparison {
        self.limits = limits;
        self
    }

    /// Whether to time both models, too. Default: yes.
    #[must_use]
    pub fn bench(mut self, yes: bool) -> Comparison {
        self.bench = yes;
        self
    }

    /// Whether to show samples on which the models disagree, for the report's page. Default: no.
    #[must_use]
    pub fn look_closer(mut self, yes: bool) -> Comparison {
        self.closer = yes;
        self
    }

    /// Who runs both models in another runtime, too. Default: nobody.
    #[must_use]
    pub fn judge(mut self, judge: Judge) -> Comparison {
        self.judge = Some(judge);
        self
    }

    /// How many threads run the models. Default: one for each processor.
    #[must_use]
    pub fn threads(mut self, threads: usize) -> Comparison {
        self.threads = threads.max(1);
        self
    }

    /// What is looked at between samples.
    #[must_use]
    pub fn until(mut self, stop: &Stop) -> Comparison {
        self.stop = stop.clone();
        self
    }

    /// Who is told what happens.
    #[must_use]
    pub fn tell(mut self, listener: Listener) -> Comparison {
        self.tell = listener;
        self
    }

    /// Does it.
    ///
    /// # Errors
    /// If a model does not run, the data do not fit, the models have not the same outputs, or somebody asked to stop.
    pub fn run(self) -> Result<Compared, CompilerError> {
        let _kept = keep_sessions();
        let mut log = Log { notes: self.notes, ..Log::default() };
        let float = float_to_run(&self.float.model, &mut log.notes)?;
        let (quantized, _) = unpacked(&self.quantized.model)?;
        let (float, quantized, whole) = in_front(float, quantized, &mut log)?;
        let data = open(&self.data, &float, &mut log)?.until(&self.stop);
        let indices: Vec<usize> = (0..data.len()).collect();
        let how = Running { threads: self.threads, tell: &*self.tell, stop: &self.stop };
        labels_fit(&data, &indices, &float)?;
        checked((&data, &indices), &float, how, &mut log)?;
        if !is_quantized(&self.quantized.model) {
            log.notes.push(format!("{} holds no codes: nothing in it is quantized", self.quantized.file.name));
        }
        let taps = shared_sums(&float, &quantized);
        let mut c = side_by_side((&float, &quantized), &data, &indices, &taps, how, &mut log)?;
        if let Some(d) = &mut c.disagreements {
            illustrate(d, &data, self.closer);
        }
        let speed = if self.bench { timing((&float, &quantized), &data, &mut log) } else { None };
        let models = (&self.float.model, &self.quantized.model);
        let judged = self.judge.as_ref().map(|j| second_opinion(j, models, (&data, &indices[..]), None, how, &mut log));
        let judged = judged.transpose()?;
        let outputs = std::mem::take(&mut c.quantized);
        let used = DataReport {
            calibration: "two files, as they are".into(),
            calibration_samples: 0,
            verification: data.description().to_owned(),
            verification_samples: indices.len() as u64 * data.batch() as u64,
            synthetic: data.is_synthetic(),
        };
        let measured = whole.as_ref().unwrap_or(&quantized);
        let mut r = report(self.float.file, used, Some(c), measured, self.limits, None, log);
        if let Some(j) = judged {
            r.checks.extend(j.check(&self.limits.of(None)));
            r.judged = Some(j);
        }
        Ok(Compared { report: Report { speed, quantized: self.quantized.file, ..r }, outputs })
    }
}

/// A float model as the compiler runs it: tract lacks many operators in half precision. What cannot be widened is run as it
/// is.
///
/// # Errors
/// As [`unpacked`], and if a pass fails.
pub fn float_to_run(float: &Model, notes: &mut Vec<String>) -> Result<Model, CompilerError> {
    let (float, _) = unpacked(float)?;
    let mut cx = Context::new(float);
    cx.settle_types();
    if WidenFloats.run(&mut cx).is_ok_and(|out| out.changes > 0) {
        notes.push("the float model computes in half precision; it is run in float32".into());
    }
    follow(&pipelines::RUNNABLE, &mut cx, &mut Journal::default())?;
    Ok(cx.into_model())
}

/// Both models up to the operators that cannot be run here, and the whole of the quantized one where that is less.
fn in_front(float: Model, quantized: Model, log: &mut Log) -> Result<(Model, Model, Option<Model>), CompilerError> {
    let (f, tail) = runnable(float, &mut log.journal)?;
    log.gather();
    if tail.is_none() {
        return Ok((f, quantized, None));
    }
    let (q, _) = runnable(quantized.clone(), &mut Journal::default())?;
    let outputs = |m: &Model| m.graph.outputs().iter().map(|v| m.graph.name_of(*v).to_owned()).collect::<Vec<_>>();
    if outputs(&f) != outputs(&q) {
        return Err(CompilerError::Cuts { float: outputs(&f).join(", "), quantized: outputs(&q).join(", ") });
    }
    Ok((f, q, Some(quantized)))
}

/// Values of both models under one name that a float Add makes: the residual stream.
fn shared_sums(float: &Model, quantized: &Model) -> Vec<String> {
    let g = &float.graph;
    g.schedule()
        .into_iter()
        .filter(|n| {
            let n = g.node(*n);
            n.op.is("Add") && n.inputs.iter().flatten().all(|v| g.constant(*v).is_none())
        })
        .filter_map(|n| g.node(n).out().map(|v| g.name_of(v).to_owned()))
        .filter(|name| quantized.graph.find(name).is_some_and(|v| quantized.graph.producer(v).is_some()))
        .collect()
}
