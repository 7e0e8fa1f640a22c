//! onnxruntime, through a Python that has it.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use ndarray::IxDyn;
use ndarray_npy::{NpzReader, NpzWriter, WriteNpzError};
use serde::Deserialize;

use super::super::kinds::kinds;
use super::super::metrics::{MetricError, Tally, TensorMetrics};
use super::super::run::deviations;
use super::{Baseline, Judged, Level};
use crate::calibrate::data::{DataError, Dataset, Sample};
use crate::file::{Scratch, output};
use crate::ir::{Invalid, Model, validate};
use crate::onnx::{self, SaveError, SaveOptions};
use crate::runtime::Array;

/// The program that runs in Python.
const SCRIPT: &str = include_str!("judge.py");

/// Samples that are run there at most: they are all written to a file.
const MOST: usize = 128;

/// Samples that onnxruntime's own quantization is calibrated on at most: it keeps what it sees of each.
const CALIBRATE: usize = 48;

/// Seconds of timing.
const SECONDS: f64 = 1.0;

/// Why there is no second opinion.
#[derive(Debug, thiserror::Error)]
pub enum JudgeError {
    #[error(
        "--judge onnxruntime: `{python}` cannot import {modules}: {message}. Install them (`pip install {install}`), or name a \
         Python that has them with --python"
    )]
    Missing { python: String, modules: String, message: String, install: &'static str },
    #[error("--judge onnxruntime: {message}")]
    Failed { message: String },
    #[error("--judge onnxruntime: {what}: {message}")]
    Files { what: &'static str, message: String },
    #[error(transparent)]
    Data(#[from] DataError),
    #[error(transparent)]
    Metric(#[from] MetricError),
    #[error(transparent)]
    Invalid(#[from] Invalid),
    #[error(transparent)]
    Save(#[from] SaveError),
}

/// What the script says.
#[derive(Deserialize)]
struct Said {
    version: String,
    outputs: Vec<String>,
    rounds: u64,
    float_ms: f64,
    quantized_ms: f64,
    ratio: f64,
    #[serde(default)]
    baseline: Option<SaidOfBaseline>,
}

/// Figures, or why there are none.
#[derive(Deserialize)]
#[serde(untagged)]
enum SaidOfBaseline {
    Failed { error: String },
    Made { bytes: u64, ms: f64, ratio: f64 },
}

/// A Python that has onnxruntime.
#[derive(Clone, Debug)]
pub struct Judge {
    python: PathBuf,
    baseline: bool,
}

/// Samples, and which of them.
pub type Chosen<'a> = (&'a Dataset, &'a [usize]);

impl Judge {
    /// Asks `python` whether it has what is needed: before minutes of work.
    ///
    /// # Errors
    /// If it does not run, or has not.
    pub fn new(python: impl Into<PathBuf>) -> Result<Judge, JudgeError> {
        let python = python.into();
        imports(&python, "numpy, onnxruntime", "onnxruntime")?;
        Ok(Judge { python, baseline: false })
    }

    /// Also shows what the runtime's own static quantization makes of the float model if nothing is asked of it.
    ///
    /// # Errors
    /// If this Python has not what that takes.
    pub fn with_baseline(self) -> Result<Judge, JudgeError> {
        imports(&self.python, "onnx, onnxruntime.quantization", "onnx onnxruntime")?;
        Ok(Judge { baseline: true, ..self })
    }

    /// Runs both models over some of the samples `on`: as many as there are, and 128 at most. `calibration` is for the baseline;
    /// the text that may come with the result says why there is none.
    ///
    /// # Errors
    /// If a sample cannot be read, a model does not run there, or the outputs cannot be compared.
    pub fn judge(
        &self,
        (float, quantized): (&Model, &Model),
        (data, indices): Chosen<'_>,
        calibration: Option<Chosen<'_>>,
    ) -> Result<(Judged, Option<String>), JudgeError> {
        let folder = Scratch::new().map_err(|e| files("a folder for the models", e))?;
        let folder = folder.path();
        for (name, model) in [("float.onnx", float), ("quantized.onnx", quantized)] {
            onnx::save(validate::validate(model)?, &folder.join(name), &SaveOptions::default())?;
        }
        let samples = given(folder, "samples.npz", data, &spread(indices, MOST))?;
        let names: Vec<&str> = samples[0].inputs.iter().map(|(n, _)| n.as_str()).collect();
        write(folder, "inputs.json", serde_json::to_string(&names).map_err(|e| files("inputs.json", e))?.as_bytes())?;
        let calibration = calibration.filter(|(_, some)| self.baseline && !some.is_empty());
        let calibrated = match calibration {
            Some((data, some)) => {
                given(folder, "calibration.npz", data, &spread(some, CALIBRATE))?.len() * data.batch()
            }
            None => 0,
        };
        let said = self.run(folder)?;
        let file = std::fs::File::open(folder.join("outputs.npz")).map_err(|e| files("outputs.npz", e))?;
        let mut outputs = NpzReader::new(file).map_err(|e| files("outputs.npz", e))?;
        let mut read = |run: &str, i: usize| -> Result<Vec<Array>, JudgeError> {
            (0..said.outputs.len()).map(|k| array(&mut outputs, &format!("{run}.{i}.{k}.npy"))).collect()
        };
        let kinds = kinds(float);
        let mut figures = |run: &str| -> Result<Vec<TensorMetrics>, JudgeError> {
            let mut tallies: Vec<Tally> = kinds.iter().copied().map(Tally::of).collect();
            for (i, s) in samples.iter().enumerate() {
                let (a, b) = (read("float", i)?, read(run, i)?);
                let devs = deviations((&said.outputs, &kinds), (&a, &b), s, data.batch())?;
                tallies.iter_mut().zip(&devs).for_each(|(t, d)| t.add(d));
            }
            Ok(said.outputs.iter().zip(&tallies).filter_map(|(n, t)| t.finish(n)).collect())
        };
        let level = |l: &str, outputs| Level { level: l.to_owned(), outputs };
        let levels = vec![level("basic", figures("basic")?), level("all", figures("all")?)];
        let (baseline, why) = match said.baseline {
            None => (None, None),
            Some(SaidOfBaseline::Failed { error }) => (None, Some(error)),
            Some(SaidOfBaseline::Made { bytes, ms, ratio }) => match figures("static") {
                Ok(outputs) => {
                    (Some(Baseline { bytes, calibration_samples: calibrated as u64, outputs, ms, ratio }), None)
                }
                // It may be so far off that its numbers are none any more.
                Err(e) => (None, Some(e.to_string())),
            },
        };
        let Said { version, rounds, float_ms, quantized_ms, ratio, .. } = said;
        let samples = (samples.len() * data.batch()) as u64;
        let runtime = "onnxruntime".to_owned();
        let judged =
            Judged { runtime, version, samples, levels, threads: 1, rounds, float_ms, quantized_ms, ratio, baseline };
        Ok((judged, why))
    }

    fn run(&self, folder: &Path) -> Result<Said, JudgeError> {
        let failed = |message: String| JudgeError::Failed { message };
        write(folder, "judge.py", SCRIPT.as_bytes())?;
        let args = [folder.join("judge.py").into_os_string(), folder.into(), SECONDS.to_string().into()];
        let done = output(Command::new(&self.python).args(args).stderr(Stdio::piped()));
        let done = done.map_err(|e| failed(e.to_string()))?;
        if !done.status.success() {
            return Err(failed(last_line(&done.stderr)));
        }
        serde_json::from_slice(&done.stdout).map_err(|e| failed(format!("{e} in what Python said")))
    }
}

/// What a Python prints that has all that it was asked for.
const FOUND: &str = "found";

/// Asks a Python for modules; `install` is what has them.
fn imports(python: &Path, modules: &str, install: &'static str) -> Result<(), JudgeError> {
    let name = python.display().to_string();
    let missing =
        |message: String| JudgeError::Missing { python: name.clone(), modules: modules.to_owned(), message, install };
    // It says a word: what ends without one is no Python.
    let program = format!("import {modules}; print('{FOUND}')");
    let tried = output(Command::new(python).args(["-c", &program]).stdout(Stdio::piped()).stderr(Stdio::piped()));
    let tried = tried.map_err(|e| missing(e.to_string()))?;
    match tried.status.success() {
        true if last_line(&tried.stdout) == FOUND => Ok(()),
        true => Err(missing("it runs no Python".to_owned())),
        false => Err(missing(last_line(&tried.stderr))),
    }
}

/// At most so many, spread evenly.
fn spread(indices: &[usize], most: usize) -> Vec<usize> {
    let take = indices.len().min(most);
    (0..take).map(|i| indices[i * indices.len() / take]).collect()
}

/// Makes samples, and writes them for the script.
fn given(folder: &Path, name: &'static str, data: &Dataset, some: &[usize]) -> Result<Vec<Sample>, JudgeError> {
    let samples = some.iter().map(|i| data.sample(*i)).collect::<Result<Vec<_>, _>>()?;
    let file = std::fs::File::create(folder.join(name)).map_err(|e| files(name, e))?;
    let mut w = NpzWriter::new(file);
    for (i, s) in samples.iter().enumerate() {
        for (k, (_, a)) in s.inputs.iter().enumerate() {
            add(&mut w, &format!("{i}.{k}"), a).map_err(|e| files(name, e))?;
        }
    }
    w.finish().map_err(|e| files(name, e))?;
    Ok(samples)
}

/// Errors of Python end with what they are.
fn last_line(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    text.lines().rev().find(|l| !l.trim().is_empty()).unwrap_or("it says nothing").trim().to_owned()
}

fn files(what: &'static str, e: impl std::fmt::Display) -> JudgeError {
    JudgeError::Files { what, message: e.to_string() }
}

fn write(folder: &Path, name: &'static str, bytes: &[u8]) -> Result<(), JudgeError> {
    let made = std::fs::File::create(folder.join(name)).and_then(|mut f| f.write_all(bytes));
    made.map_err(|e| files(name, e))
}

/// Adds an input in its own type; half precision, which numpy's format has but the crate does not, in float32.
fn add(to: &mut NpzWriter<std::fs::File>, name: &str, a: &Array) -> Result<(), WriteNpzError> {
    match a {
        Array::F64(x) => to.add_array(name, x),
        Array::I64(x) => to.add_array(name, x),
        Array::I32(x) => to.add_array(name, x),
        Array::I16(x) => to.add_array(name, x),
        Array::I8(x) => to.add_array(name, x),
        Array::U64(x) => to.add_array(name, x),
        Array::U32(x) => to.add_array(name, x),
        Array::U16(x) => to.add_array(name, x),
        Array::U8(x) => to.add_array(name, x),
        Array::Bool(x) => to.add_array(name, x),
        Array::F32(x) => to.add_array(name, x),
        Array::F16(x) => to.add_array(name, &x.mapv(f32::from)),
    }
}

/// An output, in one of the two types that the script writes.
fn array(from: &mut NpzReader<std::fs::File>, name: &str) -> Result<Array, JudgeError> {
    if let Ok(a) = from.by_name::<ndarray::OwnedRepr<f32>, IxDyn>(name) {
        return Ok(a.into());
    }
    from.by_name::<ndarray::OwnedRepr<i64>, IxDyn>(name).map(Array::from).map_err(|e| files("outputs.npz", e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_python_that_is_not_there_is_told_before_any_work() {
        let e = Judge::new("no/such/python").unwrap_err().to_string();
        assert!(e.contains("no/such/python") && e.contains("pip install onnxruntime"), "{e}");
    }

    #[test]
    fn the_last_line_says_what_went_wrong() {
        assert_eq!(last_line(b"Traceback:\n  line 1\nModuleNotFoundError: none\n\n"), "ModuleNotFoundError: none");
        assert_eq!(last_line(b""), "it says nothing");
    }
}
