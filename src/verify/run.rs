//! Runs the float and the quantized model side by side.

use indexmap::IndexMap;

use super::metrics::{Deviation, MetricError, Site, Tally, TensorMetrics};
use crate::calibrate::data::{DataError, Dataset};
use crate::calibrate::run::open_shapes;
use crate::ir::Validated;
use crate::runtime::{Array, ArrayError, RuntimeError, Session, SessionOptions, fold_samples};

/// Why verification stopped.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    #[error(transparent)]
    Data(#[from] DataError),
    #[error("{model} model: {source}")]
    Runtime { model: &'static str, source: RuntimeError },
    #[error(transparent)]
    Metric(#[from] MetricError),
    #[error(transparent)]
    Array(#[from] ArrayError),
    #[error("no samples are left for verification; give --verify data, or at least two samples")]
    Empty,
}

/// What a side-by-side run found.
#[derive(Clone, Debug)]
pub struct Compared {
    /// Per graph output.
    pub outputs: Vec<TensorMetrics>,
    /// Per tapped value.
    pub blocks: Vec<TensorMetrics>,
    /// The quantized model's outputs by name, samples joined along the batch axis.
    pub quantized: IndexMap<String, Array>,
}

/// Compares outputs, and the values `taps` that both models have, on the samples `indices`.
pub fn compare(
    float: Validated<'_>,
    quantized: Validated<'_>,
    data: &Dataset,
    indices: &[usize],
    taps: &[String],
    threads: usize,
    progress: &(dyn Fn(usize) + Sync),
) -> Result<Compared, VerifyError> {
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
    let (f, q) = (open(float, "float")?, open(quantized, "quantized")?);
    let names: Vec<String> = f.outputs().iter().map(|p| p.name.clone()).collect();
    let mut tallies = vec![Tally::default(); names.len() + taps.len()];
    let mut kept: Vec<Vec<Array>> = vec![Vec::new(); names.len()];
    let mut done = 0;
    fold_samples(
        indices.len(),
        threads,
        |i| -> Result<(Vec<Deviation>, Vec<Array>), VerifyError> {
            let s = data.sample(indices[i])?;
            let a = f.run(&s.inputs).map_err(|source| VerifyError::Runtime { model: "float", source })?;
            let b = q.run(&s.inputs).map_err(|source| VerifyError::Runtime { model: "quantized", source })?;
            let outs = names.iter().zip(a.outputs.iter().zip(&b.outputs)).map(|(n, p)| (n, p, true));
            let mids = taps.iter().zip(a.taps.iter().zip(&b.taps)).map(|(n, p)| (n, p, false));
            let devs = outs
                .chain(mids)
                .map(|(n, (x, y), out)| {
                    let labels = if out { s.labels.as_deref() } else { None };
                    let site = Site { tensor: n, sample: &s.name, items: data.batch(), labels };
                    match Deviation::between(site, x, y) {
                        // Between input and output a float model may well hold minus infinity: masks do.
                        Err(MetricError::NonFinite { float: true, .. }) if !out => Ok(Deviation::default()),
                        d => d,
                    }
                })
                .collect::<Result<_, _>>()?;
            Ok((devs, b.outputs))
        },
        |_, (devs, outs)| {
            tallies.iter_mut().zip(&devs).for_each(|(t, d)| t.add(d));
            kept.iter_mut().zip(outs).for_each(|(k, o)| k.push(o));
            done += 1;
            progress(done);
            Ok(())
        },
    )?;
    let mut all: Vec<TensorMetrics> =
        names.iter().chain(&taps).zip(&tallies).filter_map(|(n, t)| t.finish(n)).collect();
    let blocks = all.split_off(names.len().min(all.len()));
    let mut joined = IndexMap::new();
    for (n, parts) in names.iter().zip(kept) {
        joined.insert(n.clone(), Array::concat(&parts)?);
    }
    Ok(Compared { outputs: all, blocks, quantized: joined })
}
