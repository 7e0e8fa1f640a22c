//! What Python holds of Rust's: capsules, each with the name of what is in it.

use std::ffi::CStr;
use std::sync::Arc;

use pyo3::IntoPyObjectExt;
use pyo3::prelude::*;
use pyo3::types::{PyCapsule, PyCapsuleMethods};

/// A kind of capsule.
pub trait Held: Send + Sync + Sized + 'static {
    /// No other kind has it.
    const NAME: &'static CStr;

    /// Puts it into a capsule.
    fn held(self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        Ok(PyCapsule::new_with_value(py, Arc::new(self), Self::NAME)?.into_any().unbind())
    }

    /// What is in a capsule.
    ///
    /// # Errors
    /// If it is none of this kind.
    fn of(x: &Bound<'_, PyAny>) -> PyResult<Arc<Self>> {
        let p = x.cast::<PyCapsule>()?.pointer_checked(Some(Self::NAME))?;
        // SAFETY: only `held` makes capsules of this name, with a pointer to an `Arc<Self>` that lives as long as the capsule,
        // which the caller holds. The clone keeps the value when the capsule goes.
        Ok(unsafe { p.cast::<Arc<Self>>().as_ref() }.clone())
    }
}

/// A value for Python.
pub fn out<'py, T: IntoPyObject<'py>>(py: Python<'py>, x: T) -> PyResult<Py<PyAny>> {
    x.into_py_any(py)
}
