//! Samples on their way in.

use fqvit_opt::calibrate::data::{self, Rows};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::errors::raise;

/// Takes batches of arrays.
#[pyclass(module = "fqvit_opt._native")]
pub struct Spool(Option<data::Spool>);

/// Arrays that were put aside.
#[pyclass(frozen, module = "fqvit_opt._native")]
pub struct Arrays(pub data::Arrays);

/// Name, element type as NumPy writes it, shape, elements in C order.
type Given<'a> = (String, String, Vec<usize>, &'a [u8]);

#[pymethods]
impl Spool {
    #[new]
    fn new(name: &str) -> Spool {
        Spool(Some(data::Spool::new(name)))
    }

    fn push(&mut self, py: Python<'_>, batch: Vec<Given<'_>>) -> PyResult<()> {
        let spool = self.0.as_mut().ok_or_else(|| PyValueError::new_err("it is finished"))?;
        let rows: Vec<Rows<'_>> =
            batch.iter().map(|(name, descr, shape, bytes)| Rows { name, descr, shape, bytes }).collect();
        py.detach(|| spool.push(&rows)).map_err(raise)
    }

    fn finish(&mut self) -> PyResult<Arrays> {
        let spool = self.0.take().ok_or_else(|| PyValueError::new_err("it is finished"))?;
        spool.finish().map(Arrays).map_err(raise)
    }
}
