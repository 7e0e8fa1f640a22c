//! The native half of the Python module: functions over models, samples and jobs. The classes that people see, and their
//! types, are in `fqvit_opt/*.py`.
//!
//! Without PyO3's macros, on purpose: they build `syn` with features that nothing else asks for, and with it anew whatever
//! depends on a derive macro, which is all of the compiler.

mod errors;
mod handle;
mod inspect;
mod job;
mod model;
mod samples;
mod tune;

use std::cell::UnsafeCell;
use std::ffi::{CStr, OsString};

use fqvit_opt::budget::Counting;
use fqvit_opt::compile::stages::all_threads;
use fqvit_opt::recipe::Recipe;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyCFunction, PyDict, PyTuple};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What Python calls when it imports the module.
#[unsafe(no_mangle)]
pub extern "C" fn PyInit__native() -> *mut ffi::PyObject {
    Python::attach(|py| match module(py) {
        Ok(m) => m.into_ptr(),
        Err(e) => {
            e.restore(py);
            std::ptr::null_mut()
        }
    })
}

/// A function that takes its arguments by place.
type Function = fn(&Bound<'_, PyTuple>) -> PyResult<Py<PyAny>>;

const FUNCTIONS: [(&CStr, Function); 22] = [
    (c"command", command),
    (c"recipes", recipes),
    (c"model_load", model::load),
    (c"model_parse", model::parse),
    (c"model_inputs", model::inputs),
    (c"model_inspect", inspect::inspect),
    (c"spool_new", samples::new),
    (c"spool_push", samples::push),
    (c"spool_finish", samples::finish),
    (c"options_check", job::options_check),
    (c"output_check", job::output_check),
    (c"compile", job::compile),
    (c"compare", job::compare),
    (c"compiled_model", job::model),
    (c"compiled_save", job::save),
    (c"compiled_plan", job::plan),
    (c"compiled_report", job::report),
    (c"tuner_new", tune::new),
    (c"tuner_trials", tune::trials),
    (c"tuner_next", tune::next),
    (c"tuner_score", tune::score),
    (c"candidate_save", tune::save),
];

/// What the interpreter knows the module by. It writes the module's index into it, once, while it holds the GIL.
struct Definition(UnsafeCell<ffi::PyModuleDef>);

// SAFETY: only the interpreter touches it, under the GIL.
unsafe impl Sync for Definition {}

static DEFINITION: Definition = Definition(UnsafeCell::new(ffi::PyModuleDef {
    m_base: ffi::PyModuleDef_HEAD_INIT,
    m_name: c"_native".as_ptr(),
    m_doc: std::ptr::null(),
    // The module keeps no state of its own.
    m_size: -1,
    m_methods: std::ptr::null_mut(),
    m_slots: std::ptr::null_mut(),
    m_traverse: None,
    m_clear: None,
    m_free: None,
}));

fn module(py: Python<'_>) -> PyResult<Bound<'_, PyModule>> {
    // SAFETY: the definition lives as long as the process, and the call returns a new reference or an error that is set.
    let m = unsafe { Bound::from_owned_ptr_or_err(py, ffi::PyModule_Create(DEFINITION.0.get()))? };
    let m = m.cast_into::<PyModule>()?;
    m.add("__version__", env!("CARGO_PKG_VERSION"))?;
    errors::register(&m)?;
    for (name, f) in FUNCTIONS {
        let f = PyCFunction::new_closure(
            py,
            Some(name),
            None,
            move |args: &Bound<'_, PyTuple>, _: Option<&Bound<'_, PyDict>>| f(args),
        )?;
        m.add(name.to_string_lossy().into_owned(), f)?;
    }
    Ok(m)
}

/// Runs the command line program with these arguments; returns its exit status.
fn command(args: &Bound<'_, PyTuple>) -> PyResult<Py<PyAny>> {
    let (words,): (Vec<OsString>,) = args.extract()?;
    let pool = job::pool(all_threads()).map_err(errors::Error::new_err)?;
    let status = args.py().detach(|| pool.install(|| fqvit_opt::cli::status(words.into_iter())));
    handle::out(args.py(), status)
}

/// Names and summaries of the shipped recipes.
fn recipes(args: &Bound<'_, PyTuple>) -> PyResult<Py<PyAny>> {
    let one = |name: String| {
        let summary = Recipe::find(&name, None).map_err(errors::raise)?.summary;
        Ok((name, summary))
    };
    handle::out(args.py(), Recipe::shipped().into_iter().map(one).collect::<PyResult<Vec<_>>>()?)
}
