//! Runs the float and the quantized model side by side.

use indexmap::IndexMap;

use super::disagree::{Disagreements, Gathered, apart};
use super::kinds::{Kind, kinds};
use super::lists::{Pairs, pair};
use super::metrics::{Deviation, MetricError, Subject, Tally, TensorMetrics};
use crate::calibrate::data::{DataError, Dataset, Sample};
use crate::calibrate::run::open_shapes;
use crate::ir::Validated;
use crate::runtime::{Array, RuntimeError, Session, SessionOptions, fold_samples};

/// Why verification stopped.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    #[error(transparent)]
    Data(#[from] DataError),
    #[error("{model} model: {source}")]
    Runtime { model: &'static str, source: RuntimeError },
    #[error(transparent)]
    Metric(#[from] MetricError),
    #[error("no samples are left for verification; give --verify data, or at least two samples")]
    Empty,
}

/// What a side-by-side run found.
#[derive(Clone, Debug)]
pub struct SideBySide {
    /// Per graph output.
    pub outputs: Vec<TensorMetrics>,
    /// Names of those that had no elements in any sample, of which nothing was compared.
    pub empty: Vec<String>,
    /// Per tapped value.
    pub blocks: Vec<TensorMetrics>,
    /// The quantized model's outputs by name, one array a sample.
    pub quantized: IndexMap<String, Vec<Array>>,
    /// Of the first output that holds scores over classes, if one does.
    pub disagreements: Option<Disagreements>,
}

/// Compares outputs, and the values `taps` that both models have, on the samples `indices`.
///
/// # Errors
/// If there are no samples, one cannot be read, a model does not run, or the outputs cannot be compared.
pub fn compare(
    float: Validated<'_>,
    quantized: Validated<'_>,
    data: &Dataset,
    indices: &[usize],
    taps: &[String],
    threads: usize,
    progress: &(dyn Fn(usize) + Sync),
) -> Result<SideBySide, VerifyError> {
    if indices.is_empty() {
        return Err(VerifyError::Empty);
    }
    let both =
        |name: &&String| quantized.model().graph.find(name).is_some() && float.model().graph.find(name).is_some();
    let taps: Vec<String> = taps.iter().filter(both).cloned().collect();
    let shapes = open_shapes(&float.model().graph, &data.sample(indices[0])?.inputs);
    let options = SessionOptions { batch: data.batch(), taps: taps.clone(), shapes, ..SessionOptions::default() };
    let open = |model: Validated<'_>, what| {
        Session::of(model, &options).map_err(|source| VerifyError::Runtime { model: what, source })
    };
    let (f, q) = rayon::join(|| open(float, "float"), || open(quantized, "quantized"));
    let (f, q) = (f?, q?);
    let names: Vec<String> = f.outputs().iter().map(|p| p.name.clone()).collect();
    let kinds = kinds(float.model());
    let of_taps = taps.iter().map(|_| Kind::Values);
    let mut tallies: Vec<Tally> = kinds.iter().copied().chain(of_taps).map(Tally::of).collect();
    let mut kept: Vec<Vec<Array>> = vec![Vec::new(); names.len()];
    let scores = kinds.iter().position(|k| *k == Kind::Classes { axis: 1 });
    let mut gathered = Gathered::default();
    let mut done = 0;
    fold_samples(
        indices.len(),
        threads,
        |i| -> Result<_, VerifyError> {
            let s = data.sample(indices[i])?;
            let a = f.run(&s.inputs).map_err(|source| VerifyError::Runtime { model: "float", source })?;
            let b = q.run(&s.inputs).map_err(|source| VerifyError::Runtime { model: "quantized", source })?;
            let mut devs = deviations((&names, &kinds), (&a.outputs, &b.outputs), &s, data.batch())?;
            for (n, (x, y)) in taps.iter().zip(a.taps.iter().zip(&b.taps)) {
                let site =
                    Subject { tensor: n, sample: &s.name, items: data.batch(), labels: None, kind: Kind::Values };
                devs.push(match Deviation::between(site, x, y) {
                    // Between input and output a float model may well hold minus infinity: masks do. And what has another
                    // shape is another value, that a pass gave the name to.
                    Err(MetricError::NonFinite { float: true, .. } | MetricError::Shape { .. }) => Deviation::default(),
                    d => d?,
                });
            }
            let apart = scores.and_then(|o| apart(&a.outputs[o], &b.outputs[o], &s, indices[i], data.batch()));
            Ok((devs, b.outputs, apart))
        },
        |_, (devs, outs, apart)| {
            gathered.add(apart);
            tallies.iter_mut().zip(&devs).for_each(|(t, d)| t.add(d));
            kept.iter_mut().zip(outs).for_each(|(k, o)| k.push(o));
            done += 1;
            progress(done);
            Ok(())
        },
    )?;
    let (of_outputs, of_taps) = tallies.split_at(names.len());
    let figures = |names: &[String], tallies: &[Tally]| -> Vec<TensorMetrics> {
        names.iter().zip(tallies).filter_map(|(n, t)| t.finish(n)).collect()
    };
    let (outputs, blocks) = (figures(&names, of_outputs), figures(&taps, of_taps));
    let empty = names.iter().zip(of_outputs).filter(|(_, t)| t.is_empty()).map(|(n, _)| n.clone()).collect();
    let disagreements = scores.and_then(|o| gathered.finish(&names[o]));
    Ok(SideBySide { outputs, empty, blocks, quantized: names.into_iter().zip(kept).collect(), disagreements })
}

/// How far the outputs of two runs over one sample are apart, each judged as its kind is.
///
/// # Errors
/// If they cannot be compared.
pub(super) fn deviations(
    (names, kinds): (&[String], &[Kind]),
    (float, quantized): (&[Array], &[Array]),
    s: &Sample,
    items: usize,
) -> Result<Vec<Deviation>, MetricError> {
    fn listed<'a>(of: &'a [Array], kinds: &[Kind]) -> Vec<&'a Array> {
        of.iter().zip(kinds).filter(|(_, k)| **k == Kind::Detections).map(|(a, _)| a).collect()
    }
    let pairs = pair(&listed(float, kinds), &listed(quantized, kinds));
    let all = names.iter().zip(float.iter().zip(quantized)).zip(kinds);
    all.map(|((tensor, (x, y)), kind)| {
        let site = Subject { tensor, sample: &s.name, items, labels: s.labels.as_deref(), kind: *kind };
        Deviation::of(site, x, y, pairs.as_ref())
    })
    .collect()
}

impl Deviation {
    /// As [`Deviation::between`]; of detections, only those that belong together are compared, and the share of them counted.
    fn of(
        site: Subject<'_>,
        float: &Array,
        quantized: &Array,
        pairs: Option<&Pairs>,
    ) -> Result<Deviation, MetricError> {
        let Some(p) = pairs.filter(|_| site.kind == Kind::Detections) else {
            return Deviation::between(site, float, quantized);
        };
        let d = match p.aligned(float, quantized) {
            Some((x, y)) => Deviation::between(Subject { items: 1, ..site }, &x, &y)?,
            None => Deviation::between(site, float, quantized)?,
        };
        Ok(Deviation { items: site.items.max(1) as u64, matched: Some(p.matched), ..d })
    }
}
