//! Inputs that have the same value in every sample: `--fixed NAME=VALUE`.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::arrays::ArrayFile;
use super::layout::{Layout, Lead};
use super::npy::Npy;
use super::{Array, Arrays, DataError, DataOptions, InputSpec};
use crate::ir::Dim;

/// An input that is the same in every sample. As text, `NAME=NUMBER` or `NAME=FILE.npy`.
#[derive(Clone, Debug, PartialEq)]
pub struct FixedInput {
    /// The model's name of the input.
    pub name: String,
    pub value: FixedValue,
}

/// What such an input is.
#[derive(Clone, Debug, PartialEq)]
pub enum FixedValue {
    /// This number in all elements.
    Number(f64),
    /// The array of an `.npy` file, of shape `[1, ...]`.
    File(PathBuf),
    /// An array of the input's name, of one row.
    Array(Arrays),
}

impl FromStr for FixedInput {
    type Err = String;

    fn from_str(text: &str) -> Result<FixedInput, String> {
        let (name, value) = text
            .rsplit_once('=')
            .filter(|(name, value)| !name.is_empty() && !value.is_empty())
            .ok_or("write it as NAME=NUMBER or NAME=FILE.npy, with the input's name")?;
        let value = match value.parse::<f64>() {
            // What is fed would be another number than what is said.
            Ok(x) if value.parse::<i128>().is_ok_and(|n| n != x as i128) => {
                return Err(format!("{value} has more digits than a number here can have; give an .npy file"));
            }
            Ok(x) => FixedValue::Number(x),
            Err(_) => FixedValue::File(value.into()),
        };
        Ok(FixedInput { name: name.to_owned(), value })
    }
}

impl fmt::Display for FixedInput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}=", self.name)?;
        match &self.value {
            FixedValue::Number(x) => f.write_str(&shown(*x)),
            FixedValue::File(path) => write!(f, "{}", path.display()),
            FixedValue::Array(_) => f.write_str("array"),
        }
    }
}

/// A number as a person writes it.
fn shown(x: f64) -> String {
    if x == 0.0 || (1e-4..1e16).contains(&x.abs()) { x.to_string() } else { format!("{x:e}") }
}

/// An input's value, the same for every item.
#[derive(Clone, Debug)]
pub(super) struct Fixed {
    spec: InputSpec,
    file: ArrayFile,
    said: String,
}

impl DataOptions {
    /// The files that `--fixed` names.
    pub fn fixed_files(&self) -> impl Iterator<Item = PathBuf> {
        self.fixed.iter().filter_map(|f| if let FixedValue::File(path) = &f.value { Some(path.clone()) } else { None })
    }

    /// For each input the value that `--fixed` gives it, in samples of `batch` items; `None` for those that the data feed.
    pub(super) fn fixed(&self, inputs: &[InputSpec], batch: usize) -> Result<Vec<Option<Fixed>>, DataError> {
        let mut out: Vec<Option<Fixed>> = vec![None; inputs.len()];
        for given in &self.fixed {
            let wrong = |reason: String| DataError::Flag { flag: "fixed", value: given.to_string(), reason };
            let known = || inputs.iter().map(|s| s.name.as_str()).collect::<Vec<_>>().join(", ");
            let at = inputs.iter().position(|s| s.name == given.name);
            let at = at.ok_or_else(|| wrong(format!("the model has no such input; it has {}", known())))?;
            if out[at].is_some() {
                return Err(wrong("this input was given a value before".into()));
            }
            out[at] = Some(Fixed::of(&inputs[at], &given.value, batch).map_err(|e| match e {
                Refused::Here(reason) => wrong(reason),
                Refused::Data(e) => wrong(one_value(e, &inputs[at])),
            })?);
        }
        if out.iter().all(Option::is_some) {
            let text = self.fixed.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            let reason = "nothing is left that the data could feed: leave one input out".into();
            return Err(DataError::Flag { flag: "fixed", value: text, reason });
        }
        Ok(out)
    }
}

/// Why a value does not fit.
enum Refused {
    Here(String),
    Data(DataError),
}

impl From<DataError> for Refused {
    fn from(e: DataError) -> Refused {
        Refused::Data(e)
    }
}

/// An error about samples, said of a value of which there is one.
fn one_value(e: DataError, spec: &InputSpec) -> String {
    match e {
        DataError::Missing { .. } => "no such file; give a number or an .npy file".into(),
        DataError::UnknownFormat { .. } => "it is not an .npy file".into(),
        DataError::Read { source, .. } => source.to_string(),
        DataError::Malformed { reason, .. } => reason,
        DataError::Shape { shape, expected, .. } => {
            let rest: String = expected.iter().map(|d| format!(", {d}")).collect();
            format!("its shape is {shape:?}, and {spec} needs [1{rest}]")
        }
        DataError::NonFinite { value, .. } if value.is_finite() => {
            format!("{} is more than {spec} can hold", shown(value))
        }
        DataError::NonFinite { value, .. } => format!("it holds {value}"),
        DataError::Lossy { value, from, to, .. } => {
            format!("{value} ({from}) has no exact value in the input's type {to}")
        }
        other => other.to_string(),
    }
}

impl Fixed {
    fn of(spec: &InputSpec, value: &FixedValue, batch: usize) -> Result<Fixed, Refused> {
        let lead = match spec.dims.first() {
            None => Lead::Nothing,
            Some(Dim::Known(n)) if usize::try_from(*n) != Ok(batch) => Lead::Rows(usize::try_from(*n).unwrap_or(0)),
            Some(_) => Lead::Items,
        };
        let layout = Layout { batch: 1, leads: vec![lead] };
        let specs = std::slice::from_ref(spec);
        let arrays = |name: &Path, members: Vec<(String, Npy)>| -> Result<ArrayFile, DataError> {
            Ok(ArrayFile::of(name, members, specs, &layout, &mut Vec::new())?.0)
        };
        let (file, said) = match value {
            FixedValue::Number(x) => {
                let dims = sizes(spec, lead).ok_or_else(|| {
                    Refused::Here(format!("the input is {spec}: say its sizes with --shape, or give an array"))
                })?;
                let count = dims.iter().product::<usize>();
                let bytes: Vec<u8> = x.to_le_bytes().repeat(count);
                let array = Npy::of("<f8", dims, bytes.into()).map_err(Refused::Here)?;
                (arrays(Path::new("--fixed"), vec![(spec.name.clone(), array)])?, shown(*x))
            }
            FixedValue::File(path) => {
                let file = ArrayFile::open(path, specs, &layout, &mut Vec::new())?.0;
                (file, path.file_name().unwrap_or_default().to_string_lossy().into_owned())
            }
            FixedValue::Array(a) => (arrays(&a.name, a.members.clone())?, "an array that the caller gave".to_owned()),
        };
        if file.len() != 1 {
            return Err(Refused::Here(format!("it holds {} samples, and one is needed: [1, ...]", file.len())));
        }
        let fixed = Fixed { spec: spec.clone(), file, said: format!("`{}` is {said}", spec.name) };
        // What cannot be fed is told now, not at the first sample.
        fixed.make(1)?;
        Ok(fixed)
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
    use crate::calibrate::data::{ArrayRows, Dataset, Spool};
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
            fixed: fixed.iter().map(|s| s.parse().unwrap()).collect(),
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
        assert!(open(&["mask=1"]).contains("keep, pixels, ids, temperature"));
        assert!(open(&["ids=3", "ids=4"]).contains("before"));
        assert!(open(&["ids=0.5"]).contains("0.5"));
        assert!(open(&["ids=nowhere.npy"]).contains("nowhere.npy"));
        assert!(open(&["temperature=1e300"]).contains("1e300 is more"));
        assert!(open(&["temperature=nan"]).contains("NaN"));
        assert!(open(&["temperature=-inf"]).contains("-inf"));
        assert!(open(&["keep=1", "ids=3", "temperature=1", "pixels=0"]).contains("nothing is left"));
    }
    #[test]
    fn text_says_a_number_or_a_file() {
        let parse = |text: &str| text.parse::<FixedInput>();
        let of = |name: &str, value| Ok(FixedInput { name: name.into(), value });
        assert_eq!(parse("a=-1e-3"), of("a", FixedValue::Number(-1e-3)));
        assert_eq!(parse("a=b=c.npy"), of("a=b", FixedValue::File("c.npy".into())));
        assert_eq!(parse("a=9007199254740992"), of("a", FixedValue::Number(9007199254740992.0)));
        for (text, says) in
            [("a", "NAME=NUMBER"), ("a=", "NAME=NUMBER"), ("=1", "NAME=NUMBER"), ("a=9007199254740993", ".npy")]
        {
            assert!(parse(text).unwrap_err().contains(says), "{text}");
        }
    }

    #[test]
    fn arrays_that_a_program_gives_are_values() {
        let given = |shape: &[usize], bytes: &[u8]| {
            let mut s = Spool::new("fixed");
            s.push(&[ArrayRows { name: "ids", descr: "|u1", shape, bytes }]).unwrap();
            let ids = FixedInput { name: "ids".into(), value: FixedValue::Array(s.finish().unwrap()) };
            let mut how = options(&["keep=1", "temperature=1"]);
            how.fixed.push(ids);
            Dataset::open(&how, &specs())
        };
        let d = given(&[1, 2], &[7, 9]).unwrap();
        assert_eq!(d.sample(0).unwrap().inputs[2].1, Array::new(&[1, 2], vec![7i64, 9]).unwrap());
        assert!(d.description().contains("`ids` is an array"), "{}", d.description());
        assert!(given(&[1, 2], &[7, 8]).unwrap().fingerprint() != d.fingerprint());
        let e = given(&[1, 3], &[7, 8, 9]).unwrap_err().to_string();
        assert!(e.contains("--fixed ids=array") && e.contains("[1, 3]") && e.contains("[1, 2]"), "{e}");
        assert!(given(&[2, 2], &[7, 8, 9, 0]).unwrap_err().to_string().contains("2 samples"));
    }
}
