//! Samples on their way in.

use std::sync::Mutex;

use fqvit_opt::calibrate::data::{self, ArrayRows};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyTuple};

use crate::errors::raise;
use crate::handle::Held;

/// Takes batches of arrays.
struct Spool(Mutex<Option<data::Spool>>);

/// Arrays that were put aside.
pub struct Arrays(pub data::Arrays);

impl Held for Spool {
    const NAME: &'static std::ffi::CStr = c"fqvit_opt.Spool";
}

impl Held for Arrays {
    const NAME: &'static std::ffi::CStr = c"fqvit_opt.Arrays";
}

/// Name, element type as NumPy writes it, shape, elements in C order.
type Given<'py> = (String, String, Vec<usize>, Bound<'py, PyBytes>);

fn finished() -> PyErr {
    PyValueError::new_err("it is finished")
}

/// An empty one: what messages call it.
pub fn new(args: &Bound<'_, PyTuple>) -> PyResult<Py<PyAny>> {
    let (name,): (String,) = args.extract()?;
    Spool(Mutex::new(Some(data::Spool::new(name)))).held(args.py())
}

/// Adds a batch: spool, list of [`Given`].
pub fn push(args: &Bound<'_, PyTuple>) -> PyResult<Py<PyAny>> {
    let spool = Spool::of(&args.get_item(0)?)?;
    let batch: Vec<Given<'_>> = args.get_item(1)?.extract()?;
    let rows: Vec<ArrayRows<'_>> =
        batch.iter().map(|(name, descr, shape, b)| ArrayRows { name, descr, shape, bytes: b.as_bytes() }).collect();
    let mut spool = spool.0.lock().map_err(|_| finished())?;
    spool.as_mut().ok_or_else(finished)?.push(&rows).map_err(raise)?;
    Ok(args.py().None())
}

/// All that was put in: spool.
pub fn finish(args: &Bound<'_, PyTuple>) -> PyResult<Py<PyAny>> {
    let spool = Spool::of(&args.get_item(0)?)?;
    let taken = spool.0.lock().map_err(|_| finished())?.take().ok_or_else(finished)?;
    Arrays(taken.finish().map_err(raise)?).held(args.py())
}
