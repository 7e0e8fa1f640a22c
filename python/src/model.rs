//! A model that was read.

use std::path::{Path, PathBuf};

use fqvit_opt::compile::inputs;
use fqvit_opt::ir::{self, Dim};
use fqvit_opt::onnx::{self, Loaded};
use pyo3::prelude::*;

use crate::errors::raise;

/// An ONNX model, with the files it came from.
#[pyclass(frozen, module = "fqvit_opt._native")]
pub struct Model {
    pub inner: ir::Model,
    pub name: String,
    pub bytes: u64,
    pub files: Vec<PathBuf>,
    pub notes: Vec<String>,
}

/// An input: name, element type as ONNX calls it, and sizes, `None` where they are open.
type Input = (String, String, Vec<Option<i64>>);

impl Model {
    fn of(loaded: Loaded, name: String, bytes: u64) -> Model {
        let notes = loaded.unknown.iter().map(|u| format!("{name}: unknown field dropped: {u}")).collect();
        let files = loaded.files.into_iter().map(|(f, _)| f).collect();
        Model { inner: loaded.model, name, bytes, files, notes }
    }
}

#[pymethods]
impl Model {
    /// Reads a file, with the data files beside it.
    #[staticmethod]
    fn load(py: Python<'_>, path: PathBuf) -> PyResult<Model> {
        let loaded = py.detach(|| onnx::load(&path)).map_err(raise)?;
        let bytes = loaded.files.iter().map(|(_, n)| n).sum();
        Ok(Model::of(loaded, path.display().to_string(), bytes))
    }

    /// Reads a model from memory. `folder` is where data files lie.
    #[staticmethod]
    #[pyo3(signature = (data, folder=None))]
    fn parse(py: Python<'_>, data: &[u8], folder: Option<PathBuf>) -> PyResult<Model> {
        const NAME: &str = "the model";
        let bytes = data.to_vec();
        let n = bytes.len() as u64;
        let loaded = py.detach(|| onnx::parse(bytes.into(), folder.as_deref().map(Path::new), NAME)).map_err(raise)?;
        Ok(Model::of(loaded, NAME.to_owned(), n))
    }

    /// What has to be fed.
    fn inputs(&self) -> PyResult<Vec<Input>> {
        let size = |d: &Dim| if let Dim::Known(n) = d { Some(*n) } else { None };
        let specs = inputs(&self.inner.graph).map_err(raise)?;
        Ok(specs.into_iter().map(|s| (s.name, s.dtype.to_string(), s.dims.iter().map(size).collect())).collect())
    }

    /// Names of the outputs.
    fn outputs(&self) -> Vec<String> {
        let g = &self.inner.graph;
        g.outputs().iter().map(|v| g.name_of(*v).to_owned()).collect()
    }
}
