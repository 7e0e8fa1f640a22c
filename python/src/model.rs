//! Models that were read.

use std::path::{Path, PathBuf};

use fqvit_opt::calibrate::data::DataOptions;
use fqvit_opt::compile;
use fqvit_opt::ir::{self, Dim};
use fqvit_opt::onnx::{self, Loaded};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyTuple};

use crate::errors::raise;
use crate::handle::{Held, out};

/// An ONNX model, with the files it came from.
pub struct Model {
    pub inner: ir::Model,
    pub name: String,
    pub bytes: u64,
    pub files: Vec<PathBuf>,
    pub notes: Vec<String>,
}

impl Held for Model {
    const NAME: &'static std::ffi::CStr = c"fqvit_opt.Model";
}

impl Model {
    fn of_loaded(loaded: Loaded, name: String, bytes: u64) -> Model {
        let notes = loaded.unknown.iter().map(|u| format!("{name}: unknown field dropped: {u}")).collect();
        // Where they lie now, whatever folder the process works in when it writes.
        let files = loaded.files.into_iter().map(|(f, _)| absolute(&f)).collect();
        Model { inner: loaded.model, name, bytes, files, notes }
    }
}

/// The path from the root of the file system; what has no such path stays as it is.
pub fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// Of a file, with the data files beside it: `path`.
pub fn load(args: &Bound<'_, PyTuple>) -> PyResult<Py<PyAny>> {
    let (path,): (PathBuf,) = args.extract()?;
    let loaded = args.py().detach(|| onnx::load(&path)).map_err(raise)?;
    let bytes = loaded.files.iter().map(|(_, n)| n).sum();
    Model::of_loaded(loaded, path.display().to_string(), bytes).held(args.py())
}

/// Of memory: `bytes`.
pub fn parse(args: &Bound<'_, PyTuple>) -> PyResult<Py<PyAny>> {
    const NAME: &str = "the model";
    let (data,): (Bound<'_, PyBytes>,) = args.extract()?;
    let bytes = data.as_bytes().to_vec();
    let n = bytes.len() as u64;
    let loaded = args.py().detach(|| onnx::parse(bytes.into(), None, NAME)).map_err(raise)?;
    Model::of_loaded(loaded, NAME.to_owned(), n).held(args.py())
}

/// What has to be fed, of a model and the shapes that are given to inputs that have none: name, element type as ONNX calls it, and
/// sizes, `None` where they are open.
pub fn inputs(args: &Bound<'_, PyTuple>) -> PyResult<Py<PyAny>> {
    let m = Model::of(&args.get_item(0)?)?;
    let given = DataOptions { shape: args.get_item(1)?.extract()?, ..DataOptions::default() };
    let size = |d: &Dim| if let Dim::Known(n) = d { Some(*n) } else { None };
    let specs = compile::inputs_given(&m.inner.graph, &given).map_err(raise)?;
    let one = |s: fqvit_opt::calibrate::data::InputSpec| {
        (s.name, s.dtype.to_string(), s.dims.iter().map(size).collect::<Vec<_>>())
    };
    out(args.py(), specs.into_iter().map(one).collect::<Vec<_>>())
}
