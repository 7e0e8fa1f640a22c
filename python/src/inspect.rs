//! What is recognised in a model.

use fqvit_opt::compile::error::CompilerError;
use fqvit_opt::compile::inspect::{UNPREPARED, inspect as look};
use fqvit_opt::pattern::RuleSet;
use fqvit_opt::recipe::Recipe;
use pyo3::prelude::*;
use pyo3::types::PyTuple;

use crate::errors::{Error, raise, raised};
use crate::handle::{Held, out};
use crate::job::Options;
use crate::model::Model;

/// What a model holds and what is recognised in it, as JSON: model, options.
pub fn inspect(args: &Bound<'_, PyTuple>) -> PyResult<Py<PyAny>> {
    let (m, options) = (Model::of(&args.get_item(0)?)?, Options::of(&args.get_item(1)?)?);
    let dir = options.passes_dir.as_deref();
    let rules = RuleSet::with_folder(dir).map_err(raise)?;
    let how = Recipe::find(options.recipe(), dir).map_err(raise)?.prepare.unwrap_or(UNPREPARED);
    let found = args.py().detach(|| look(&m.inner, &how, &rules, options.keep_opset));
    let found = found.map_err(|e| raised(&CompilerError::from(e).within(&m.name)))?;
    out(args.py(), serde_json::to_string(&found).map_err(|e| Error::new_err(e.to_string()))?)
}
