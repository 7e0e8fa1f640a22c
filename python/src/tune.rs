//! The search, one step a call.

use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use fqvit_opt::compile::compiler::Listener;
use fqvit_opt::compile::error::CompilerError;
use fqvit_opt::compile::stages::Running;
use fqvit_opt::compile::tune::{self, LADDER, Next, Search, Trial};
use fqvit_opt::ir::validate::validate;
use fqvit_opt::onnx::{self, SaveOptions};
use fqvit_opt::pattern::RuleSet;
use fqvit_opt::plan::climb::Step;
use fqvit_opt::recipe::Recipe;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyTuple;

use crate::errors::{raise, raised};
use crate::handle::{Held, out};
use crate::job::{Options, callback, run, samples_for};
use crate::model::{Model, absolute};

/// A search under way.
struct Tuner {
    inner: Mutex<tune::Tuner>,
    threads: usize,
}

/// A model that is to be measured.
struct Candidate(fqvit_opt::Model);

impl Held for Tuner {
    const NAME: &'static std::ffi::CStr = c"fqvit_opt.Tuner";
}

impl Held for Candidate {
    const NAME: &'static std::ffi::CStr = c"fqvit_opt.Candidate";
}

fn locked(t: &Tuner) -> MutexGuard<'_, tune::Tuner> {
    // A fault inside of a step leaves what was measured before it.
    t.inner.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Begins: model, samples, recipes or none, number to reach, options, file of the state or none.
pub fn new(args: &Bound<'_, PyTuple>) -> PyResult<Py<PyAny>> {
    let m = Model::of(&args.get_item(0)?)?;
    let names: Option<Vec<String>> = args.get_item(2)?.extract()?;
    let at_least: f64 = args.get_item(3)?.extract()?;
    let options = Options::of(&args.get_item(4)?)?;
    // What measures the files may work in another folder.
    let state = args.get_item(5)?.extract::<Option<PathBuf>>()?.map(|f| absolute(&f));
    if at_least.is_nan() {
        return Err(PyValueError::new_err("at_least: give a number to reach; nan is none"));
    }
    let names = names.unwrap_or_else(|| LADDER.map(str::to_owned).to_vec());
    let dir = options.passes_dir.as_deref();
    let ladder: Result<Vec<Recipe>, _> = names.iter().map(|n| Recipe::find(n, dir)).collect();
    let search = Search {
        model: m.inner.clone(),
        name: m.name.clone(),
        rules: RuleSet::with_folder(dir).map_err(raise)?,
        data: samples_for(&m, &args.get_item(1)?)?,
        ladder: ladder.map_err(raise)?,
        at_least,
        target: options.target()?,
        assume_vnni: options.assume_vnni,
        keep_opset: options.keep_opset,
        by: options.by()?,
    };
    let threads = options.threads;
    let inner = args.py().detach(|| tune::Tuner::new(search, state.as_deref())).map_err(|e| raised(&e))?;
    Tuner { inner: Mutex::new(inner), threads }.held(args.py())
}

/// Names of parts with those of their precisions.
fn parts(raised: &[Step]) -> Vec<(String, &'static str)> {
    raised.iter().map(|s| (s.part.clone(), s.to.name())).collect()
}

/// What was measured so far: recipe, parts that are not as it has them with their precision, number.
pub fn trials(args: &Bound<'_, PyTuple>) -> PyResult<Py<PyAny>> {
    let t = Tuner::of(&args.get_item(0)?)?;
    let all: Vec<_> = {
        let t = locked(&t);
        t.trials().iter().map(|Trial { recipe, raised, score, .. }| (recipe.clone(), parts(raised), *score)).collect()
    };
    out(args.py(), all)
}

/// What comes next: tuner, callback. Returns recipe, parts with their precision, plan, candidate; with the last one its number and whether
/// that is enough; and what it was calibrated on, with the number of samples.
pub fn next(args: &Bound<'_, PyTuple>) -> PyResult<Py<PyAny>> {
    let (py, t) = (args.py(), Tuner::of(&args.get_item(0)?)?);
    let progress = callback(&args.get_item(1)?);
    let (c, end) = run(py, t.threads, progress.as_ref(), move |tell: Listener, stop| {
        let how = Running { threads: t.threads, tell: &*tell, stop: &stop };
        Ok(match locked(&t).next(how)? {
            Next::Measure(c) => (c, None),
            Next::Done { best, score, reached } => (best, Some((score, reached))),
        })
    })?;
    let tune::Candidate { recipe, raised, model, plan, calibration } = *c;
    let (score, reached) = end.unzip();
    out(py, (recipe, parts(&raised), plan.to_yaml(), Candidate(model).held(py)?, score, reached, calibration))
}

/// Takes the number of the last candidate: tuner, number.
pub fn score(args: &Bound<'_, PyTuple>) -> PyResult<Py<PyAny>> {
    let (t, score) = (Tuner::of(&args.get_item(0)?)?, args.get_item(1)?.extract()?);
    args.py().detach(|| locked(&t).score(score)).map_err(|e| raised(&e))?;
    Ok(args.py().None())
}

/// Writes a candidate: candidate, path.
pub fn save(args: &Bound<'_, PyTuple>) -> PyResult<Py<PyAny>> {
    let (c, path) = (Candidate::of(&args.get_item(0)?)?, args.get_item(1)?.extract::<PathBuf>()?);
    let done = args.py().detach(|| {
        let valid = validate(&c.0).map_err(CompilerError::from)?;
        Ok(onnx::save(valid, &path, &SaveOptions::default())?)
    });
    done.map_err(|e: CompilerError| raised(&e))?;
    Ok(args.py().None())
}
