//! Long work on a thread of its own, while the thread that called waits for signals and hands progress on.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use fqvit_opt::budget::Stop;
use fqvit_opt::calibrate::data::{DataOptions, Preset};
use fqvit_opt::compile::comparison::{self, Comparison};
use fqvit_opt::compile::compiler::{self, Compiler, Limits, Listener, Verification};
use fqvit_opt::compile::error::CompilerError;
use fqvit_opt::compile::keep::Keep;
use fqvit_opt::compile::stages::{Event, Samples};
use fqvit_opt::file::Ledger;
use fqvit_opt::ir::validate::validate;
use fqvit_opt::onnx::{self, SaveOptions};
use fqvit_opt::pattern::RuleSet;
use fqvit_opt::plan::parts::By;
use fqvit_opt::plan::{QuantPlan, Target};
use fqvit_opt::recipe::Recipe;
use fqvit_opt::verify::report::{ModelFile, Report};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::errors::{Error, PlanError, raise, raised};
use crate::model::Model;
use crate::samples::Arrays;

/// How often signals are looked at.
const TICK: Duration = Duration::from_millis(50);
/// How long work that was asked to stop is waited for. It ends by itself at the next sample, and holds nothing that anybody
/// else needs.
const LEAVE: Duration = Duration::from_secs(2);

enum Message<T> {
    Step(&'static str, usize, usize),
    Note(String),
    Done(Result<T, CompilerError>),
    Fault(String),
}

/// Does `work` on another thread, without the interpreter's lock. `progress` is called here, with the stage and the numbers
/// of what is done and what there is, or with a note.
pub fn run<T: Send + 'static>(
    py: Python<'_>,
    progress: Option<&Bound<'_, PyAny>>,
    work: impl FnOnce(Listener, Stop) -> Result<T, CompilerError> + Send + 'static,
) -> PyResult<T> {
    let (to, from) = channel();
    let stop = Stop::default();
    let told = progress.is_some();
    let (listener, its) = (listener(to.clone(), told), stop.clone());
    let body = move || {
        let done = catch_unwind(AssertUnwindSafe(|| work(listener, its)));
        // Whoever has left needs no answer.
        let _ = to.send(match done {
            Ok(r) => Message::Done(r),
            Err(panic) => Message::Fault(
                panic
                    .downcast_ref::<String>()
                    .cloned()
                    .or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string))
                    .unwrap_or_default(),
            ),
        });
    };
    std::thread::Builder::new()
        .name("fqvit-opt".into())
        .stack_size(16 << 20)
        .spawn(body)
        .map_err(|e| Error::new_err(format!("no thread can be started: {e}")))?;
    let from = std::sync::Mutex::new(from);
    let next = |wait: Duration| py.detach(|| from.lock().expect("one thread alone").recv_timeout(wait));
    let leave = |e: PyErr| {
        stop.ask();
        let begin = Instant::now();
        while begin.elapsed() < LEAVE && !matches!(next(TICK), Ok(Message::Done(_) | Message::Fault(_))) {}
        Err(e)
    };
    loop {
        let said = match next(TICK) {
            Ok(Message::Done(r)) => return r.map_err(|e| raised(&e)),
            Ok(Message::Fault(text)) => {
                return Err(Error::new_err(format!("the program has a fault: {text}. Please report it with the model")));
            }
            Ok(Message::Step(what, done, of)) => progress.map_or(Ok(()), |p| p.call1((what, done, of)).map(drop)),
            Ok(Message::Note(text)) => progress.map_or(Ok(()), |p| p.call1((text, 0, 0)).map(drop)),
            Err(RecvTimeoutError::Timeout) => Ok(()),
            Err(RecvTimeoutError::Disconnected) => return Err(Error::new_err("the work ended without an answer")),
        };
        if let Err(e) = said.and_then(|()| py.check_signals()) {
            return leave(e);
        }
    }
}

fn listener<T: Send + 'static>(to: Sender<Message<T>>, told: bool) -> Listener {
    Arc::new(move |e| {
        let message = match e {
            _ if !told => return,
            Event::Step { what, done, of } => Message::Step(what, done, of),
            Event::Note(text) => Message::Note(text.to_owned()),
        };
        let _ = to.send(message);
    })
}

/// Where samples come from, and how pictures become numbers.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
pub struct Data {
    path: Option<PathBuf>,
    arrays: Option<Py<Arrays>>,
    preset: Option<String>,
    mean: Vec<f32>,
    std: Vec<f32>,
    resize: Option<u32>,
    crop: Option<u32>,
    samples: Option<usize>,
    seed: u64,
}

impl Data {
    pub fn samples(self) -> PyResult<Samples> {
        let preset = match self.preset.as_deref() {
            None | Some("imagenet") => Preset::Imagenet,
            Some("inception") => Preset::Inception,
            Some("clip") => Preset::Clip,
            Some(other) => {
                let known = "there are imagenet, inception and clip";
                return Err(PyValueError::new_err(format!("there is no preset {other:?}; {known}")));
            }
        };
        let options = DataOptions {
            calibrate: self.path,
            preset,
            mean: self.mean,
            std: self.std,
            resize: self.resize,
            crop: self.crop,
            samples: self.samples,
            seed: self.seed,
            ..DataOptions::default()
        };
        Ok(Samples { options, arrays: self.arrays.map(|a| a.get().0.clone()) })
    }
}

/// What is to be done, beside the model and the samples.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
pub struct Options {
    recipe: String,
    passes_dir: Option<PathBuf>,
    target: Option<String>,
    plan: Option<String>,
    keep_float: Option<KeepFloat>,
    target_sqnr: Option<f64>,
    by: String,
    min_sqnr: Option<f64>,
    min_agreement: Option<f64>,
    keep_opset: bool,
    assume_vnni: bool,
    fast: bool,
    bench: bool,
    threads: Option<usize>,
}

#[derive(FromPyObject)]
enum KeepFloat {
    Worst(usize),
    Names(Vec<String>),
}

fn by(name: &str) -> PyResult<By> {
    By::ALL.into_iter().find(|b| b.name() == name).ok_or_else(|| {
        let known = By::ALL.map(By::name).join(", ");
        PyValueError::new_err(format!("by={name:?}: there are {known}"))
    })
}

impl Options {
    fn keep(&self) -> PyResult<Option<Keep>> {
        let by = by(&self.by)?;
        Ok(match (&self.keep_float, self.target_sqnr) {
            (Some(_), Some(_)) => return Err(PyValueError::new_err("give keep_float or target_sqnr, not both")),
            (Some(KeepFloat::Worst(n)), None) => Some(Keep::Worst(*n, by)),
            (Some(KeepFloat::Names(names)), None) => Some(Keep::Names(names.clone(), by)),
            (None, db) => db.map(|db| Keep::Reach(db, by)),
        })
    }

    fn compiler(self, m: &Model) -> PyResult<Compiler> {
        let target = match self.target.as_deref() {
            None => None,
            Some("qdq") => Some(Target::Qdq),
            Some("integer") => Some(Target::Integer),
            Some(other) => {
                return Err(PyValueError::new_err(format!("there is no target {other:?}; there are qdq and integer")));
            }
        };
        let keep = self.keep()?;
        let dir = self.passes_dir.as_deref();
        let mut c = Compiler::new(m.inner.clone())
            .named(&m.name, m.bytes)
            .noted(m.notes.clone())
            .recipe(Recipe::find(&self.recipe, dir).map_err(raise)?)
            .rules(RuleSet::with_folder(dir).map_err(raise)?)
            .limits(Limits { sqnr_db: self.min_sqnr, agreement: self.min_agreement })
            .keep_opset(self.keep_opset)
            .assume_vnni(self.assume_vnni)
            .fast(self.fast)
            .bench(self.bench);
        c = target.into_iter().fold(c, Compiler::target);
        c = keep.into_iter().fold(c, Compiler::keep);
        c = self.threads.into_iter().fold(c, Compiler::threads);
        if let Some(text) = &self.plan {
            c = c.plan(QuantPlan::from_yaml(text, "plan").map_err(|e| PlanError::new_err(e.to_string()))?, "plan");
        }
        Ok(c)
    }
}

/// Compiles. `verify`: samples to compare on, or whether to compare at all on samples held back.
#[pyfunction]
pub fn compile(
    py: Python<'_>,
    model: Py<Model>,
    data: Data,
    verify: Option<Data>,
    compared: bool,
    options: Options,
    progress: Option<&Bound<'_, PyAny>>,
) -> PyResult<Compiled> {
    let m = model.get();
    let verification = match verify {
        _ if !compared => Verification::None,
        Some(v) => Verification::On(v.samples()?),
        None => Verification::HeldBack,
    };
    let job = options.compiler(m)?.calibrate(data.samples()?).verify(verification);
    let done = run(py, progress, move |tell, stop| {
        let mut done = job.tell(tell).until(&stop).run()?;
        done.report.quantized = ModelFile { name: "the model".into(), bytes: onnx::size(validate(&done.model)?)? };
        Ok(done)
    })?;
    Ok(Compiled { inner: done, inputs: m.files.clone() })
}

/// A quantized model, with its report.
#[pyclass(frozen, module = "fqvit_opt._native")]
pub struct Compiled {
    inner: compiler::Compiled,
    /// Files that must not be written over.
    inputs: Vec<PathBuf>,
}

#[pymethods]
impl Compiled {
    /// The file's bytes.
    fn model(&self, py: Python<'_>) -> PyResult<Vec<u8>> {
        py.detach(|| {
            let valid = validate(&self.inner.model).map_err(CompilerError::from)?;
            let mut bytes = Vec::new();
            onnx::write_to(valid, &mut bytes)?;
            Ok(bytes)
        })
        .map_err(|e: CompilerError| raised(&e))
    }

    /// Writes the file: whole, or not at all, and never over a file that was read.
    fn save(&self, py: Python<'_>, path: PathBuf) -> PyResult<()> {
        py.detach(|| save(&self.inner, &self.inputs, &path)).map_err(|e| raised(&e))
    }

    fn plan(&self) -> Option<String> {
        self.inner.plan.as_ref().map(QuantPlan::to_yaml)
    }

    fn report(&self) -> PyResult<String> {
        json(&self.inner.report)
    }

    fn html(&self) -> String {
        self.inner.report.to_html()
    }
}

fn json(report: &Report) -> PyResult<String> {
    report.to_json().map_err(|e| Error::new_err(e.to_string()))
}

fn save(done: &compiler::Compiled, inputs: &[PathBuf], path: &Path) -> Result<(), CompilerError> {
    let mut files = Ledger::default();
    inputs.iter().for_each(|f| files.reads("the model that was read", f));
    files.writes("the file to write", path);
    files.writes("its data file", &onnx::data_path(path));
    files.check()?;
    Ok(onnx::save(validate(&done.model)?, path, &SaveOptions::default())?)
}

/// Compares two models; returns the report as JSON and as a page.
#[pyfunction]
pub fn compare(
    py: Python<'_>,
    float: Py<Model>,
    quantized: Py<Model>,
    data: Data,
    options: Options,
    progress: Option<&Bound<'_, PyAny>>,
) -> PyResult<(String, String)> {
    let samples = data.samples()?;
    let limits = Limits { sqnr_db: options.min_sqnr, agreement: options.min_agreement };
    let threads = options.threads;
    let bench = options.bench;
    let pair = [&float, &quantized].map(|m| {
        let m = m.get();
        comparison::Read { model: m.inner.clone(), file: ModelFile { name: m.name.clone(), bytes: m.bytes } }
    });
    let report = run(py, progress, move |tell, stop| {
        let [float, quantized] = pair;
        let mut c = Comparison::new(float, quantized).on(samples).limits(limits).bench(bench);
        c = threads.into_iter().fold(c, Comparison::threads);
        Ok(c.tell(tell).until(&stop).run()?.report)
    })?;
    Ok((json(&report)?, report.to_html()))
}
