//! Inputs that have the same value in every sample: `--fixed NAME=VALUE`.

use std::path::{Path, PathBuf};

use super::arrays::ArrayFile;
use super::layout::{Layout, Lead};
use super::npy::Npy;
use super::{Array, DataError, DataOptions, InputSpec};
use crate::ir::Dim;

/// An input's value, the same for every item.
#[derive(Clone, Debug)]
pub(super) struct Fixed {
    spec: InputSpec,
    file: ArrayFile,
    said: String,
}

/// What `--fixed` says: a number for every element, or a file.
fn parts(text: &str) -> Option<(&str, &str)> {
    text.rsplit_once('=').filter(|(name, value)| !name.is_empty() && !value.is_empty())
}

impl DataOptions {
    /// The files that `--fixed` names.
    pub fn fixed_files(&self) -> impl Iterator<Item = PathBuf> {
        let values = self.fixed.iter().filter_map(|text| Some(parts(text)?.1));
        values.filter(|v| v.parse::<f64>().is_err()).map(PathBuf::from)
    }

    /// For each input the value that `--fixed` gives it, in samples of `batch` items; `None` for those that the data feed.
    pub(super) fn fixed(&self, inputs: &[InputSpec], batch: usize) -> Result<Vec<Option<Fixed>>, DataError> {
        let mut out: Vec<Option<Fixed>> = vec![None; inputs.len()];
        for text in &self.fixed {
            let wrong = |reason: String| DataError::Flag { flag: "fixed", value: text.clone(), reason };
            let (name, value) = parts(text)
                .ok_or_else(|| wrong("write it as NAME=NUMBER or NAME=FILE.npy, with the input's name".into()))?;
            let known = || inputs.iter().map(|s| s.name.as_str()).collect::<Vec<_>>().join(", ");
            let at = inputs.iter().position(|s| s.name == name);
            let at = at.ok_or_else(|| wrong(format!("the model has no such input; it has {}", known())))?;
            if out[at].is_some() {
                return Err(wrong("this input was given a value before".into()));
            }
            out[at] = Some(Fixed::of(&inputs[at], value, batch, &wrong)?);
        }
        if out.iter().all(Option::is_some) {
            let text = self.fixed.join(", ");
            let reason = "nothing is left that the data could feed: leave one input out".into();
            return Err(DataError::Flag { flag: "fixed", value: text, reason });
        }
        Ok(out)
    }
}

impl Fixed {
    fn of(
        spec: &InputSpec,
        value: &str,
        batch: usize,
        wrong: &dyn Fn(String) -> DataError,
    ) -> Result<Fixed, DataError> {
        let lead = match spec.dims.first() {
            None => Lead::Nothing,
            Some(Dim::Known(n)) if usize::try_from(*n) != Ok(batch) => Lead::Rows(usize::try_from(*n).unwrap_or(0)),
            Some(_) => Lead::Items,
        };
        let layout = Layout { batch: 1, leads: vec![lead] };
        let specs = std::slice::from_ref(spec);
        let (file, said) = match value.parse::<f64>() {
            Ok(number) => {
                let dims = sizes(spec, lead)
                    .ok_or_else(|| wrong(format!("the input is {spec}: say its sizes with --shape, or give a file")))?;
                let count = dims.iter().product::<usize>();
                let bytes: Vec<u8> = number.to_le_bytes().repeat(count);
                let array = Npy::of("<f8", dims, bytes.into()).map_err(wrong)?;
                let members = vec![(spec.name.clone(), array)];
                let file = ArrayFile::of(Path::new("--fixed"), members, specs, &layout, &mut Vec::new())?.0;
                (file, value.to_owned())
            }
            Err(_) => {
                let path = Path::new(value);
                let file = ArrayFile::open(path, specs, &layout, &mut Vec::new())?.0;
                if file.len() != 1 {
                    return Err(wrong(format!("it holds {} samples, and one is needed: [1, ...]", file.len())));
                }
                (file, path.file_name().unwrap_or_default().to_string_lossy().into_owned())
            }
        };
        let fixed = Fixed { spec: spec.clone(), file, said: format!("`{}` is {said}", spec.name) };
        // What cannot be fed is told now, not at the first sample.
        fixed.make(1).map(|_| fixed)
    }

    /// The input for so many items.
    pub(super) fn make(&self, items: usize) -> Result<Array, DataError> {
        self.file.make(&self.spec, 0, &vec![0; items])
    }

    pub(super) fn digest(&self, h: &mut blake3::Hasher) {
        self.file.digest(h);
    }

    /// What the input is, for a report.
    pub(super) fn said(&self) -> &str {
        &self.said
    }
}

/// The shape of an array that holds one item; `None` where a size is open.
fn sizes(spec: &InputSpec, lead: Lead) -> Option<Vec<usize>> {
    let tail = spec.dims.iter().skip(1).map(|d| match d {
        Dim::Known(n) => usize::try_from(*n).ok(),
        _ => None,
    });
    Some(lead.shape(1, &tail.collect::<Option<Vec<_>>>()?))
}

#[cfg(test)]
mod tests {
    use ndarray::Array2;
    use ndarray_npy::write_npy;

    use super::*;
    use crate::calibrate::data::Dataset;
    use crate::ir::DType;

    const IMAGES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/images");

    fn specs() -> Vec<InputSpec> {
        let spec = |name: &str, dtype, dims: &[i64]| InputSpec {
            name: name.into(),
            dtype,
            dims: dims.iter().map(|d| if *d == 0 { Dim::Symbol("n".into()) } else { Dim::Known(*d) }).collect(),
            mask: false,
            rows: None,
            cache: false,
        };
        vec![
            spec("keep", DType::BOOL, &[0, 5]),
            spec("pixels", DType::FLOAT, &[0, 3, 32, 32]),
            spec("ids", DType::INT64, &[0, 2]),
            spec("temperature", DType::FLOAT, &[]),
        ]
    }

    fn options(fixed: &[&str]) -> DataOptions {
        DataOptions {
            calibrate: Some(IMAGES.into()),
            fixed: fixed.iter().map(|s| s.to_string()).collect(),
            ..DataOptions::default()
        }
    }

    #[test]
    fn inputs_beside_a_folder_have_one_value_in_all_samples() {
        let dir = tempfile::tempdir().unwrap();
        let ids = dir.path().join("ids.npy");
        write_npy(&ids, &Array2::from_shape_vec((1, 2), vec![7i64, 9]).unwrap()).unwrap();
        let file = format!("ids={}", ids.display());
        let how = options(&["keep=1", &file, "temperature=0.25"]);
        let d = Dataset::open(&how, &specs()).unwrap();
        for i in [0, d.len() - 1] {
            let s = d.sample(i).unwrap().inputs;
            assert_eq!(s.iter().map(|(n, _)| n.as_str()).collect::<Vec<_>>(), ["keep", "pixels", "ids", "temperature"]);
            assert_eq!(s[0].1, Array::new(&[1, 5], vec![true; 5]).unwrap());
            assert_eq!(s[1].1.dims(), [1, 3, 32, 32]);
            assert_eq!(s[2].1, Array::new(&[1, 2], vec![7i64, 9]).unwrap());
            assert_eq!(s[3].1, Array::new(&[], vec![0.25f32]).unwrap());
        }
        assert!(
            d.description().ends_with(", `keep` is 1, `ids` is ids.npy, `temperature` is 0.25"),
            "{}",
            d.description()
        );
        assert_eq!(how.fixed_files().collect::<Vec<_>>(), [ids]);
        // Other values are other data.
        let other = Dataset::open(&options(&["keep=0", &file, "temperature=0.25"]), &specs()).unwrap();
        assert!(other.how() != d.how() && other.fingerprint() != d.fingerprint());
    }

    #[test]
    fn values_that_do_not_fit_are_refused_at_once() {
        let open = |fixed: &[&str]| Dataset::open(&options(fixed), &specs()).unwrap_err().to_string();
        let all = ["keep=1", "ids=3", "temperature=1"];
        assert!(Dataset::open(&options(&all), &specs()).is_ok());
        assert!(open(&["keep=1"]).contains("--fixed"));
        assert!(open(&["keep", "ids=3"]).contains("NAME=NUMBER"));
        assert!(open(&["mask=1"]).contains("keep, pixels, ids, temperature"));
        assert!(open(&["ids=3", "ids=4"]).contains("before"));
        assert!(open(&["ids=0.5"]).contains("0.5"));
        assert!(open(&["ids=nowhere.npy"]).contains("nowhere.npy"));
        assert!(open(&["temperature=nan"]).contains("NaN"));
        assert!(open(&["keep=1", "ids=3", "temperature=1", "pixels=0"]).contains("nothing is left"));
    }
}
