//! Exceptions, one for each thing that can be at fault, with the words of the command line.

use fqvit_opt::compile::error::{CompilerError, Fault};
use pyo3::exceptions::{PyException, PyKeyboardInterrupt};
use pyo3::prelude::*;
use pyo3::types::PyModule;

pyo3::create_exception!(fqvit_opt, Error, PyException, "What every error of this module is.");
pyo3::create_exception!(fqvit_opt, ModelError, Error, "The model cannot be read, run or quantized.");
pyo3::create_exception!(fqvit_opt, DataError, Error, "The samples cannot be read, or do not fit the model.");
pyo3::create_exception!(fqvit_opt, RecipeError, Error, "There is no such recipe, or it makes no sense.");
pyo3::create_exception!(fqvit_opt, PlanError, Error, "The plan is malformed, or another model's.");
pyo3::create_exception!(fqvit_opt, OutputError, Error, "A file cannot be written.");

/// The exception for an error.
pub fn raised(e: &CompilerError) -> PyErr {
    let text = e.to_string();
    match e.fault() {
        Fault::Model => ModelError::new_err(text),
        Fault::Data => DataError::new_err(text),
        Fault::Recipe => RecipeError::new_err(text),
        Fault::Plan => PlanError::new_err(text),
        Fault::Output => OutputError::new_err(text),
        Fault::Stopped => PyKeyboardInterrupt::new_err(text),
    }
}

/// As [`raised`], for any error that is one of the compiler's.
pub fn raise<E: Into<CompilerError>>(e: E) -> PyErr {
    raised(&e.into())
}

pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    let py = m.py();
    m.add("Error", py.get_type::<Error>())?;
    m.add("ModelError", py.get_type::<ModelError>())?;
    m.add("DataError", py.get_type::<DataError>())?;
    m.add("RecipeError", py.get_type::<RecipeError>())?;
    m.add("PlanError", py.get_type::<PlanError>())?;
    m.add("OutputError", py.get_type::<OutputError>())
}
