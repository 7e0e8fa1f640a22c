//! Samples from `.npy` and `.npz` files.

use std::path::{Path, PathBuf};

use super::convert::{Refused, to_array};
use super::folder::is_image_name;
use super::layout::{Layout, Lead};
use super::npy::{self, Npy, Numbers};
use super::{DataError, InputSpec, MAKING, labels};
use crate::budget;
use crate::file::{self, ReadError};
use crate::ir::Dim;
use crate::runtime::Array;

/// One array per input of the model, samples along the leading axis.
#[derive(Clone, Debug)]
pub(super) struct ArrayFile {
    path: PathBuf,
    /// Name in the file and contents, in the order of the model's inputs.
    arrays: Vec<(String, Npy)>,
    leads: Vec<Lead>,
    items: usize,
}

/// What of an array belongs to one item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Per {
    /// So many rows.
    Rows(usize),
    /// One row, whose first axis is the input's own.
    Whole,
    /// All of it.
    Shared,
}

impl ArrayFile {
    /// Opens an `.npy` file, which feeds a model of one input, or an `.npz` file with arrays named as the inputs. Shapes are
    /// checked here; values when a sample is made. Returns the classes too, if an array `labels` gives them; arrays
    /// with other names are ignored, with a note.
    pub(super) fn open(
        path: &Path,
        specs: &[InputSpec],
        layout: &Layout,
        notes: &mut Vec<String>,
    ) -> Result<(ArrayFile, Option<Vec<i64>>), DataError> {
        let bytes = file::read(path).map_err(|source| match source {
            ReadError::Io(e) if e.kind() == std::io::ErrorKind::NotFound => {
                DataError::Missing { path: path.to_path_buf() }
            }
            source => DataError::Read { path: path.to_path_buf(), source },
        })?;
        if !bytes.starts_with(b"\x93NUMPY") && !bytes.starts_with(b"PK") {
            return Err(DataError::UnknownFormat { path: path.to_path_buf(), is_image: is_image_name(path) });
        }
        let (arrays, labels) = if bytes.starts_with(b"\x93NUMPY") {
            let [spec] = specs else {
                let inputs = specs.iter().map(|s| s.name.clone()).collect();
                return Err(DataError::NeedsNpz { path: path.to_path_buf(), inputs });
            };
            let array = Npy::parse(bytes).map_err(|reason| DataError::Malformed {
                path: path.to_path_buf(),
                array: spec.name.clone(),
                reason,
            })?;
            (vec![(spec.name.clone(), array)], None)
        } else {
            return ArrayFile::of(path, npy::read_npz(path, &bytes)?, specs, layout, notes);
        };
        ArrayFile::checked(path, arrays, labels, specs, layout)
    }

    /// Arrays by their names, as an `.npz` file has them.
    pub(super) fn of(
        path: &Path,
        mut members: Vec<(String, Npy)>,
        specs: &[InputSpec],
        layout: &Layout,
        notes: &mut Vec<String>,
    ) -> Result<(ArrayFile, Option<Vec<i64>>), DataError> {
        let mut arrays = Vec::new();
        for spec in specs {
            let at = members.iter().position(|(n, _)| *n == spec.name).ok_or_else(|| DataError::MissingArray {
                path: path.to_path_buf(),
                input: spec.name.clone(),
                have: members.iter().chain(&arrays).map(|(n, _)| n.clone()).collect(),
            })?;
            arrays.push(members.remove(at));
        }
        let labels = members.iter().position(|(n, _)| n == "labels").map(|at| members.remove(at).1);
        if !members.is_empty() {
            let names: Vec<_> = members.into_iter().map(|(n, _)| n).collect();
            notes.push(format!("{}: arrays that feed no input, ignored: {}", path.display(), names.join(", ")));
        }
        ArrayFile::checked(path, arrays, labels, specs, layout)
    }

    fn checked(
        path: &Path,
        arrays: Vec<(String, Npy)>,
        labels: Option<Npy>,
        specs: &[InputSpec],
        layout: &Layout,
    ) -> Result<(ArrayFile, Option<Vec<i64>>), DataError> {
        let mut file = ArrayFile { path: path.to_path_buf(), arrays, leads: layout.leads.clone(), items: 0 };
        file.items = file.check(specs)?;
        let labels = labels.map(|l| file.labels(&l)).transpose()?.flatten();
        Ok((file, labels))
    }

    /// The file's name without its folder.
    pub(super) fn name(&self) -> String {
        self.path.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned())
    }

    /// Adds names, shapes and elements to a hash.
    pub(super) fn digest(&self, h: &mut blake3::Hasher) {
        for (name, a) in &self.arrays {
            h.update(name.as_bytes()).update(format!("{:?} {:?}", a.elem, a.shape).as_bytes());
            h.update(a.bytes());
        }
    }

    pub(super) fn len(&self) -> usize {
        self.items
    }

    /// What of array number `k` is one item's.
    fn per(&self, k: usize, rank: usize) -> Per {
        let shape = &self.arrays[k].1.shape;
        match self.leads[k] {
            Lead::Items => Per::Rows(1),
            Lead::Nothing if shape.is_empty() => Per::Shared,
            Lead::Nothing => Per::Whole,
            Lead::Rows(_) if shape.len() > rank => Per::Whole,
            Lead::Rows(n) if shape.first() == Some(&n) => Per::Shared,
            Lead::Rows(n) => Per::Rows(n),
        }
    }

    /// Checks the shapes; the number of items.
    fn check(&self, specs: &[InputSpec]) -> Result<usize, DataError> {
        let mut items: Option<(usize, usize)> = None;
        for (k, ((name, array), spec)) in self.arrays.iter().zip(specs).enumerate() {
            let per = self.per(k, spec.dims.len());
            let own = usize::from(matches!(per, Per::Rows(_)));
            let (have, want) = match per {
                Per::Whole => (array.shape.get(1..).unwrap_or(&[]), &spec.dims[..]),
                Per::Shared => (&array.shape[..], &spec.dims[..]),
                Per::Rows(_) => (array.shape.get(own..).unwrap_or(&[]), spec.dims.get(1..).unwrap_or(&[])),
            };
            let fits = have.len() == want.len()
                && array.shape.len() >= own
                && have.iter().zip(want).all(|(have, want)| match want {
                    Dim::Known(n) => usize::try_from(*n) == Ok(*have),
                    _ => true,
                });
            if !fits {
                return Err(DataError::Shape {
                    path: self.path.clone(),
                    array: name.clone(),
                    shape: array.shape.clone(),
                    expected: want.iter().map(super::dim_text).collect(),
                });
            }
            self.afford(k, per)?;
            let has = match per {
                Per::Shared => continue,
                Per::Whole => array.rows(),
                Per::Rows(n) if array.rows() % n == 0 => array.rows() / n,
                Per::Rows(n) => {
                    let reason = format!("{} rows are no whole number of samples of {n} rows each", array.rows());
                    return Err(DataError::Malformed { path: self.path.clone(), array: name.clone(), reason });
                }
            };
            match items {
                None => items = Some((k, has)),
                Some((_, n)) if n == has => {}
                Some((first, n)) => {
                    return Err(DataError::Lengths {
                        path: self.path.clone(),
                        array: name.clone(),
                        samples: has,
                        other: self.arrays[first].0.clone(),
                        other_samples: n,
                    });
                }
            }
        }
        if let Some((name, _)) = self.arrays.iter().find(|(_, a)| a.shape.iter().skip(1).any(|n| *n == 0)) {
            let reason = "its samples have no elements".into();
            return Err(DataError::Malformed { path: self.path.clone(), array: name.clone(), reason });
        }
        // All of it is the same in every sample: there is one.
        let (first, items) = items.unwrap_or((0, 1));
        if items == 0 {
            let array = self.arrays.get(first).map_or_else(String::new, |(n, _)| n.clone());
            return Err(DataError::Malformed { path: self.path.clone(), array, reason: "holds no sample".into() });
        }
        Ok(items)
    }

    /// Refuses an array of which one item is more than the memory budget holds: sizes that the model leaves open are the
    /// array's.
    fn afford(&self, k: usize, per: Per) -> Result<(), DataError> {
        let (name, array) = &self.arrays[k];
        let rows = match per {
            Per::Rows(n) => n,
            Per::Whole => 1,
            Per::Shared => array.rows(),
        };
        let bytes = array.shape.iter().skip(1).try_fold(MAKING, |a, n| a.checked_mul(*n as u64));
        let bytes = bytes.and_then(|b| b.checked_mul(rows as u64));
        budget::afford(bytes, || {
            format!("{}, array {name:?}: a sample of shape {:?}", self.path.display(), array.shape)
        })?;
        Ok(())
    }

    fn labels(&self, array: &Npy) -> Result<Option<Vec<i64>>, DataError> {
        let malformed = |reason: &str| DataError::Malformed {
            path: self.path.clone(),
            array: "labels".to_string(),
            reason: reason.to_string(),
        };
        if array.rows() != self.len() {
            return Err(self.lengths("labels", array.rows()));
        }
        if array.shape.is_empty() || array.shape[1..].iter().any(|d| *d != 1) {
            return Err(malformed("a label per sample has the shape [samples]"));
        }
        let rows: Vec<usize> = (0..self.len()).collect();
        let Numbers::Int(v) = array.gather(&rows) else {
            return Err(malformed("labels are integers"));
        };
        let v = v
            .into_iter()
            .map(|x| i64::try_from(x).map_err(|_| malformed("a label exceeds int64")))
            .collect::<Result<_, _>>()?;
        labels::checked(&self.path, v)
    }

    fn lengths(&self, array: &str, samples: usize) -> DataError {
        DataError::Lengths {
            path: self.path.clone(),
            array: array.to_string(),
            samples,
            other: self.arrays.first().map_or_else(String::new, |(n, _)| n.clone()),
            other_samples: self.len(),
        }
    }

    /// The values of input number `input` for these items.
    pub(super) fn make(&self, spec: &InputSpec, input: usize, items: &[usize]) -> Result<Array, DataError> {
        let (name, array) = &self.arrays[input];
        npy::intact(array)?;
        let tail = array.shape.get(1..).unwrap_or(&[]);
        let (rows, dims) = match self.per(input, spec.dims.len()) {
            Per::Rows(n) => {
                let of: Vec<usize> = items.iter().flat_map(|i| i * n..(i + 1) * n).collect();
                let dims = [&[of.len()], tail].concat();
                (of, dims)
            }
            Per::Whole => (items.to_vec(), tail.to_vec()),
            Per::Shared => ((0..array.rows()).collect(), array.shape.clone()),
        };
        let per_row = array.shape.iter().skip(1).product::<usize>().max(1);
        to_array(array.gather(&rows), spec.dtype, &dims, spec.mask).map_err(|e| match e {
            Refused::NonFinite { at, value } => {
                DataError::NonFinite { path: self.path.clone(), array: name.clone(), sample: rows[at / per_row], value }
            }
            Refused::Lossy { at, value } => DataError::Lossy {
                path: self.path.clone(),
                array: name.clone(),
                sample: rows[at / per_row],
                value,
                from: array.elem.name(),
                to: spec.dtype,
            },
            Refused::Type => spec.refused("inputs of this element type cannot be fed"),
            Refused::Length => spec.refused("its shape does not hold one sample after the other"),
        })
    }
}
