//! Samples that a program hands over, batch by batch.
//!
//! A model is run over its samples several times (statistics, fitting, verification), and what comes from an iterator comes
//! once. A [`Spool`] puts the batches aside in files without a name, which the system removes whatever happens, so that memory
//! holds one batch at a time.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;

use bytes::Bytes;

use super::DataError;
use super::npy::{Elem, Npy};
use crate::file::{self, ReadError};

/// Arrays named as the inputs of a model, samples along the leading axis; one called `labels` has their classes.
#[derive(Clone, Debug, PartialEq)]
pub struct Arrays {
    /// What messages call them.
    pub(super) name: PathBuf,
    pub(super) members: Vec<(String, Npy)>,
}

/// Rows of one array.
#[derive(Clone, Copy, Debug)]
pub struct ArrayRows<'a> {
    /// The input they are for.
    pub name: &'a str,
    /// The element type as NumPy writes it, such as `<f4`.
    pub descr: &'a str,
    /// The number of rows first.
    pub shape: &'a [usize],
    /// The elements in C order.
    pub bytes: &'a [u8],
}

/// Takes batches, and makes [`Arrays`] of them.
#[derive(Debug)]
pub struct Spool {
    name: String,
    columns: Vec<Column>,
}

#[derive(Debug)]
struct Column {
    name: String,
    descr: String,
    tail: Vec<usize>,
    rows: usize,
    out: BufWriter<File>,
}

impl Spool {
    /// An empty one; messages call it `name`.
    pub fn new(name: impl Into<String>) -> Spool {
        Spool { name: name.into(), columns: Vec::new() }
    }

    /// Whether nothing was put in.
    pub fn is_empty(&self) -> bool {
        self.columns.iter().all(|c| c.rows == 0)
    }

    /// Adds a batch: rows of every array, after those that are there.
    ///
    /// # Errors
    /// If the element type is unknown, or the bytes are not as many as the shape says; if a batch has other arrays, types or
    /// sizes than the first; if there is no room for temporary files.
    pub fn push(&mut self, batch: &[ArrayRows<'_>]) -> Result<(), DataError> {
        let first = self.columns.is_empty();
        let names = |c: &[Column]| c.iter().map(|c| c.name.clone()).collect::<Vec<_>>().join(", ");
        if !first && batch.len() != self.columns.len() {
            let now = batch.iter().map(|r| r.name).collect::<Vec<_>>().join(", ");
            return Err(self.unlike("the whole", format!("the arrays {now}"), names(&self.columns)));
        }
        for r in batch {
            let at = match self.columns.iter().position(|c| c.name == r.name) {
                Some(at) => at,
                None if first => {
                    self.columns.push(self.column(r)?);
                    self.columns.len() - 1
                }
                None => return Err(self.unlike(r.name, "a place".into(), "none".into())),
            };
            self.check(r, &self.columns[at])?;
            let c = &mut self.columns[at];
            c.rows += r.shape[0];
            c.out.write_all(r.bytes).map_err(|source| DataError::Spool { name: self.name.clone(), source })?;
        }
        Ok(())
    }

    fn column(&self, r: &ArrayRows<'_>) -> Result<Column, DataError> {
        let file = tempfile::tempfile().map_err(|source| DataError::Spool { name: self.name.clone(), source })?;
        let tail = r.shape.get(1..).unwrap_or(&[]).to_vec();
        let out = BufWriter::with_capacity(1 << 16, file);
        Ok(Column { name: r.name.to_owned(), descr: r.descr.to_owned(), tail, rows: 0, out })
    }

    fn check(&self, r: &ArrayRows<'_>, c: &Column) -> Result<(), DataError> {
        let wrong =
            |reason: String| DataError::Malformed { path: PathBuf::from(&self.name), array: r.name.to_owned(), reason };
        let (elem, _) = Elem::of(r.descr).map_err(wrong)?;
        let Some(tail) = r.shape.get(1..) else {
            return Err(wrong("it has no axis along which samples lie".into()));
        };
        if tail != c.tail {
            return Err(self.unlike(r.name, format!("samples of shape {tail:?}"), format!("{:?}", c.tail)));
        }
        if r.descr != c.descr {
            return Err(self.unlike(r.name, format!("elements of type {}", r.descr), c.descr.clone()));
        }
        let need = r.shape.iter().try_fold(elem.width(), |a, n| a.checked_mul(*n));
        if need != Some(r.bytes.len()) {
            return Err(wrong(format!("{} bytes are not what shape {:?} has", r.bytes.len(), r.shape)));
        }
        Ok(())
    }

    fn unlike(&self, array: &str, what: String, other: String) -> DataError {
        DataError::Batches { name: self.name.clone(), array: array.to_owned(), what, other }
    }

    /// All that was put in.
    ///
    /// # Errors
    /// If the last bytes have no room, or the files cannot be mapped.
    pub fn finish(self) -> Result<Arrays, DataError> {
        let name = PathBuf::from(&self.name);
        let failed = |source: io::Error| DataError::Spool { name: self.name.clone(), source };
        let mut members = Vec::new();
        for c in self.columns {
            let shape = [&[c.rows], &c.tail[..]].concat();
            let file = c.out.into_inner().map_err(|e| failed(e.into_error()))?;
            let empty = shape.contains(&0);
            let data = if empty { Ok(Bytes::new()) } else { file::map(file, &name) };
            let data = data.map_err(|e| match e {
                ReadError::Io(e) => failed(e),
                source => DataError::Read { path: name.clone(), source },
            })?;
            let array = Npy::of(&c.descr, shape, data).map_err(|reason| DataError::Malformed {
                path: name.clone(),
                array: c.name.clone(),
                reason,
            })?;
            members.push((c.name, array));
        }
        Ok(Arrays { name, members })
    }
}

#[cfg(test)]
mod tests {
    use super::super::{DataOptions, Dataset, InputSpec};
    use super::*;
    use crate::budget::Stop;
    use crate::ir::{DType, Dim};
    use crate::runtime::Array;

    fn rows<'a>(name: &'a str, shape: &'a [usize], bytes: &'a [u8]) -> ArrayRows<'a> {
        ArrayRows { name, descr: "|u1", shape, bytes }
    }

    fn input() -> InputSpec {
        let dims = vec![Dim::Symbol("n".into()), Dim::Known(2)];
        InputSpec { name: "x".into(), dtype: DType::FLOAT, dims, mask: false, rows: None, cache: false }
    }

    #[test]
    fn batches_of_any_size_make_samples_with_their_labels() {
        let mut s = Spool::new("the data");
        assert!(s.is_empty());
        s.push(&[rows("x", &[2, 2], &[1, 2, 3, 4]), rows("labels", &[2], &[7, 8])]).unwrap();
        s.push(&[rows("labels", &[1], &[9]), rows("x", &[1, 2], &[5, 6])]).unwrap();
        let d = Dataset::of_arrays(&s.finish().unwrap(), &DataOptions::default(), &[input()]).unwrap();
        assert_eq!((d.len(), d.labels()), (3, Some(&[7, 8, 9][..])));
        let third = d.sample(2).unwrap();
        assert_eq!(third.inputs[0].1, Array::new(&[1, 2], vec![5f32, 6.0]).unwrap());
        assert_eq!(third.name, "the data[2]");
    }

    #[test]
    fn a_batch_unlike_the_first_is_refused_by_name() {
        let mut s = Spool::new("the data");
        s.push(&[rows("x", &[1, 2], &[1, 2])]).unwrap();
        let say = |e: Result<(), DataError>| e.unwrap_err().to_string();
        let e = say(s.push(&[rows("x", &[1, 3], &[1, 2, 3])]));
        assert!(e.contains("the data") && e.contains("\"x\"") && e.contains("[3]") && e.contains("[2]"), "{e}");
        let e = say(s.push(&[ArrayRows { descr: "<f4", ..rows("x", &[1, 2], &[0; 8]) }]));
        assert!(e.contains("<f4") && e.contains("|u1"), "{e}");
        assert!(say(s.push(&[rows("y", &[1, 2], &[1, 2])])).contains("\"y\""));
        assert!(say(s.push(&[rows("x", &[1, 2], &[1])])).contains("1 bytes"));
        assert!(say(s.push(&[rows("x", &[], &[1])])).contains("no axis"));
        assert!(say(Spool::new("d").push(&[ArrayRows { descr: "<c8", ..rows("x", &[1], &[0; 8]) }])).contains("<c8"));
        // What was refused is not there.
        assert_eq!(s.finish().unwrap().members[0].1.shape, [1, 2]);
    }

    #[test]
    fn there_are_no_samples_after_a_stop() {
        let mut s = Spool::new("the data");
        s.push(&[rows("x", &[1, 2], &[1, 2])]).unwrap();
        let stop = Stop::default();
        let d = Dataset::of_arrays(&s.finish().unwrap(), &DataOptions::default(), &[input()]).unwrap().until(&stop);
        assert!(d.sample(0).is_ok());
        stop.ask();
        assert!(matches!(d.sample(0), Err(DataError::Stopped)));
    }
}
