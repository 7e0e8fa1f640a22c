//! What can be wrong with samples, found before the first forward pass over them.

use super::error::CompilerError;
use super::normalised::doubts;
use super::stages::{Event, Log, Running, timed};
use crate::calibrate::data::Dataset;
use crate::infer;
use crate::ir::{Model, ValueId};
use crate::runtime::fold_samples;
use crate::verify::metrics::MetricError;
use crate::verify::run::VerifyError;

/// Makes each of the samples `indices` once and lets it go: a picture that cannot be decoded, or an array that holds NaN in
/// one place, is an error now and not after minutes of work. Made-up samples are never wrong.
///
/// # Errors
/// The first sample that cannot be made, or somebody asked to stop.
pub fn sound(data: &Dataset, indices: &[usize], how: Running<'_>, log: &mut Log) -> Result<(), CompilerError> {
    timed(&mut log.timings, "check samples", || all_made(data, indices, how))
}

/// As [`sound`]; and pictures that look as if they were normalised with the wrong numbers are a note, which is told at once.
///
/// # Errors
/// As [`sound`].
pub fn checked(
    (data, indices): (&Dataset, &[usize]),
    m: &Model,
    how: Running<'_>,
    log: &mut Log,
) -> Result<(), CompilerError> {
    if data.is_synthetic() || indices.is_empty() {
        return Ok(());
    }
    let doubt = timed(&mut log.timings, "check samples", || {
        all_made(data, indices, how)?;
        doubts(data, m, how)
    })?;
    doubt.iter().for_each(|d| (how.tell)(Event::Note(d)));
    log.notes.extend(doubt);
    Ok(())
}

fn all_made(data: &Dataset, indices: &[usize], how: Running<'_>) -> Result<(), CompilerError> {
    let tell = how.steps("checking samples", indices.len());
    let mut done = 0;
    let made = |i: usize| data.sample(indices[i]).map(drop);
    let told = |_, ()| {
        done += 1;
        tell(done);
        Ok(())
    };
    Ok(fold_samples(indices.len(), how.threads, made, told)?)
}

/// Refuses labels of the samples `indices` that are no class of an output they will be held against, as far as the model says
/// how many classes there are.
///
/// # Errors
/// The first such label.
pub fn labels_fit(data: &Dataset, indices: &[usize], m: &Model) -> Result<(), CompilerError> {
    let Some(labels) = data.labels() else { return Ok(()) };
    let (shapes, batch) = (infer::shapes(m), data.batch());
    let scores = |v: &ValueId| match shapes.dims(*v)? {
        [items, classes] if items.known().is_none_or(|n| n == batch as i64) => {
            classes.known().filter(|n| *n >= 2).and_then(|n| usize::try_from(n).ok())
        }
        _ => None,
    };
    for (v, classes) in m.graph.outputs().iter().filter_map(|v| Some((v, scores(v)?))) {
        for (i, item) in indices.iter().flat_map(|i| (0..batch).map(move |item| (*i, item))) {
            let label = labels[i * batch + item];
            if !usize::try_from(label).is_ok_and(|l| l < classes) {
                let (tensor, sample) = (m.graph.name_of(*v).to_owned(), data.item(i, item));
                return Err(VerifyError::from(MetricError::Label { tensor, sample, label, classes }).into());
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::Stop;
    use crate::calibrate::data::{DataOptions, InputSpec};
    use crate::text::parse_model;

    const CLASSES: &str =
        "<ir_version: 8, opset_import: [\"\" : 17]>\ng (float[n, 4] x) => (float[n, 4] y) { y = Relu (x) }";

    fn opened(dir: &std::path::Path, bad: bool, labels: &[i64]) -> (Dataset, Model) {
        let path = dir.join("x.npz");
        let mut w = ndarray_npy::NpzWriter::new(std::fs::File::create(&path).unwrap());
        let x = ndarray::Array2::from_shape_fn((6, 4), |(i, j)| if bad && (i, j) == (5, 2) { f32::NAN } else { 1.0 });
        w.add_array("x", &x).unwrap();
        w.add_array("labels", &ndarray::Array1::from(labels.to_vec())).unwrap();
        w.finish().unwrap();
        let m = parse_model(CLASSES).unwrap();
        let options = DataOptions { calibrate: Some(path), ..DataOptions::default() };
        (Dataset::open(&options, &InputSpec::of(&m.graph).unwrap()).unwrap(), m)
    }

    #[test]
    fn a_sample_that_can_not_be_made_is_found_among_those_that_will_be() {
        let (dir, stop, mut log) = (tempfile::tempdir().unwrap(), Stop::default(), Log::default());
        let how = Running { threads: 2, tell: &|_| (), stop: &stop };
        let (data, m) = opened(dir.path(), true, &[0; 6]);
        let all: Vec<usize> = (0..6).collect();
        let e = checked((&data, &all), &m, how, &mut log).unwrap_err().to_string();
        assert!(e.contains("x.npz") && e.contains("sample 5"), "{e}");
        assert!(checked((&data, &all[..5]), &m, how, &mut log).is_ok(), "it is not one of these");
    }

    #[test]
    fn a_label_beyond_the_classes_is_found_before_the_models_run() {
        let dir = tempfile::tempdir().unwrap();
        let (data, m) = opened(dir.path(), false, &[0, 1, 2, 3, 7, 0]);
        let e = labels_fit(&data, &[0, 4], &m).unwrap_err().to_string();
        assert!(e.contains("its label 7 is no class of tensor \"y\", which has 4") && e.contains("x.npz[4]"), "{e}");
        assert!(labels_fit(&data, &[0, 1, 2, 3, 5], &m).is_ok());
    }
}
