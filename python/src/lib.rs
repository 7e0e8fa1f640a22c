//! The native half of the Python module: models, samples and jobs as objects. What people see is in `fqvit_opt/*.py`.

mod errors;
mod job;
mod model;
mod samples;

use fqvit_opt::budget::Counting;
use fqvit_opt::recipe::Recipe;
use pyo3::prelude::*;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Runs the command line program; returns its exit status.
#[pyfunction]
fn command(py: Python<'_>, args: Vec<std::ffi::OsString>) -> u8 {
    py.detach(|| fqvit_opt::cli::status(args.into_iter()))
}

/// Names and summaries of the shipped recipes.
#[pyfunction]
fn recipes() -> PyResult<Vec<(String, String)>> {
    let one = |name: String| {
        let summary = Recipe::find(&name, None).map_err(|e| errors::raised(&e.into()))?.summary;
        Ok((name, summary))
    };
    Recipe::shipped().into_iter().map(one).collect()
}

#[pymodule]
fn _native(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add("__version__", env!("CARGO_PKG_VERSION"))?;
    m.add_class::<model::Model>()?;
    m.add_class::<samples::Spool>()?;
    m.add_class::<samples::Arrays>()?;
    m.add_class::<job::Compiled>()?;
    m.add_function(wrap_pyfunction!(command, m)?)?;
    m.add_function(wrap_pyfunction!(recipes, m)?)?;
    m.add_function(wrap_pyfunction!(job::compile, m)?)?;
    m.add_function(wrap_pyfunction!(job::compare, m)?)?;
    errors::register(m)
}
