//! Runs a float model over samples and lets observers watch.

use std::collections::{BTreeSet, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use indexmap::IndexMap;

use super::data::{DataError, Dataset, Sample};
use super::finite::{OutputsOf, mended};
use crate::budget;
use crate::ir::{Dim, Graph, Model, Validated};
use crate::quant::observe::{ObserveError, Seen, Stats, Watch};
use crate::runtime::{Array, RuntimeError, Session, SessionOptions};

/// Why calibration stopped.
#[derive(Debug, thiserror::Error)]
pub enum CalibrateError {
    #[error(transparent)]
    Data(#[from] DataError),
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    #[error(
        "sample {sample}: value `{value}` {source}; {}",
        constant.as_deref().unwrap_or("the float model itself does not stay finite or regular on this data")
    )]
    Observe {
        sample: String,
        value: String,
        source: ObserveError,
        /// What is wrong with a constant that the value is computed from.
        constant: Option<String>,
    },
    #[error("no samples are left for calibration; give more data, or --verify other data")]
    Empty,
}

/// Places of a channel that are counted of all samples together, and of one sample at least. A few thousand show a distribution
/// as well as all; ranges, which one value decides, are always those of all.
const COUNTED: usize = 4096;
const COUNTED_OF_ONE: usize = 32;

/// What calibration saw.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    pub stats: IndexMap<String, Stats>,
    /// Values that held NaN or infinity in places that no output depends on; these places are left out.
    pub ignored: BTreeSet<String>,
}

/// Watches values of `model` while it runs over the samples `indices` of `data` on `threads` threads.
///
/// The result does not depend on the thread count or on how samples are divided. `progress` is told the number of
/// samples done, in rising order, from any thread but one at a time.
///
/// # Errors
/// If there are no samples, a sample cannot be read or does not fit the model, the model does not run, or a watched value is not
/// finite: of several faults, that of the earliest sample met.
pub fn observe(
    model: Validated<'_>,
    data: &Dataset,
    indices: &[usize],
    watches: &IndexMap<String, Watch>,
    threads: usize,
    progress: &(dyn Fn(usize) + Sync),
) -> Result<Observed, CalibrateError> {
    let Some(first) = indices.first() else { return Err(CalibrateError::Empty) };
    let m: &Model = model.model();
    let is_input = |name: &str| m.graph.find(name).is_some_and(|v| m.graph.inputs().contains(&v));
    let taps: Vec<String> = watches.keys().filter(|k| !is_input(k)).cloned().collect();
    let shapes = open_shapes(&m.graph, &data.sample(*first)?.inputs);
    let options = SessionOptions { batch: data.batch(), taps: taps.clone(), shapes, ..SessionOptions::default() };
    let watching = Watching {
        g: &m.graph,
        data,
        indices,
        watches,
        taps,
        // Of the whole data set, not of the shard, so that shards count what one run would.
        most: (COUNTED / data.len()).max(COUNTED_OF_ONE),
        outputs: OutputsOf::new(model, data.batch(), options.shapes.clone()),
        session: Session::of(model, &options)?,
        stats: watches.values().map(|w| Mutex::new(Stats::new(w.clone()))).collect(),
        ignored: Mutex::default(),
    };
    budget::give_back();
    each_on(threads, indices.len(), progress, |i| watching.sample(i))?;
    let finished = watching.stats.into_iter().map(|s| {
        let mut s = s.into_inner().expect("no panic inside");
        s.finish();
        s
    });
    let stats = watches.keys().cloned().zip(finished).collect();
    Ok(Observed { stats, ignored: watching.ignored.into_inner().expect("no panic inside") })
}

/// Runs `one` for the numbers below `count` on several threads, until one fails: of several errors that of the smallest number
/// is returned, so that the message does not depend on timing. `progress` is told how many are done, in the order of counting
/// and from one thread at a time.
fn each_on<E: Send>(
    threads: usize,
    count: usize,
    progress: &(dyn Fn(usize) + Sync),
    one: impl Fn(usize) -> Result<(), E> + Sync,
) -> Result<(), E> {
    let (next, done) = (AtomicUsize::new(0), Mutex::new(0));
    let failure: Mutex<Option<(usize, E)>> = Mutex::new(None);
    std::thread::scope(|scope| {
        let work = || {
            loop {
                let i = next.fetch_add(1, Ordering::Relaxed);
                // What comes before the one that failed is run to its end: it may fail too, and is then told.
                let failed = failure.lock().expect("no panic inside").as_ref().map(|(at, _)| *at);
                if i >= count || failed.is_some_and(|at| at < i) {
                    return;
                }
                if let Err(e) = one(i) {
                    let mut f = failure.lock().expect("no panic inside");
                    if f.as_ref().is_none_or(|(at, _)| i < *at) {
                        *f = Some((i, e));
                    }
                    return;
                }
                // Told under the lock: a number told after a larger one would be the last that a listener hears.
                let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
                *done += 1;
                progress(*done);
            }
        };
        let workers: Vec<_> = (0..threads.clamp(1, count.max(1))).map(|_| scope.spawn(work)).collect();
        workers.into_iter().for_each(|w| w.join().unwrap_or_else(|p| std::panic::resume_unwind(p)));
    });
    match failure.into_inner().expect("no panic inside") {
        Some((_, e)) => Err(e),
        None => Ok(()),
    }
}

/// A model that runs while its values are watched.
struct Watching<'a> {
    g: &'a Graph,
    data: &'a Dataset,
    indices: &'a [usize],
    watches: &'a IndexMap<String, Watch>,
    /// Those of the watched values that are no inputs.
    taps: Vec<String>,
    /// Places of a channel that are counted of one sample.
    most: usize,
    outputs: OutputsOf<'a>,
    session: Session,
    /// One set of statistics for all threads, which is all the memory that counts take: in what order samples come does not
    /// show in them.
    stats: Vec<Mutex<Stats>>,
    ignored: Mutex<BTreeSet<String>>,
}

impl Watching<'_> {
    /// Runs one sample and takes in all that is watched.
    fn sample(&self, i: usize) -> Result<(), CalibrateError> {
        let sample = self.data.sample(self.indices[i])?;
        let out = self.session.tapped(&sample.inputs)?;
        let mut reaches = None;
        for (t, name) in self.taps.iter().enumerate() {
            let (x, dims) = out.value(t)?;
            let fault = match self.look(i, name, &x, dims) {
                Ok(()) => continue,
                Err(e) => e,
            };
            let reaches = match reaches {
                Some(known) => known,
                None => *reaches.insert(self.outputs.hold_nan(&sample.inputs)?),
            };
            if reaches || !matches!(fault, ObserveError::NotFinite { .. }) {
                return Err(self.told(&sample, name, fault));
            }
            self.ignored.lock().expect("no panic inside").insert(name.clone());
            if let Some(whole) = mended(&x, dims, &self.watches[name]) {
                self.look(i, name, &whole, dims).map_err(|e| self.told(&sample, name, e))?;
            }
        }
        for (name, a) in sample.inputs.iter().filter(|(name, _)| self.watches.contains_key(name)) {
            self.look(i, name, &a.f32s(), a.dims()).map_err(|e| self.told(&sample, name, e))?;
        }
        Ok(())
    }

    fn look(&self, i: usize, name: &str, x: &[f32], dims: &[usize]) -> Result<(), ObserveError> {
        // What takes long is done before the statistics are locked.
        let (place, _, watch) = self.watches.get_full(name).expect("it is watched");
        let seen = Seen::of(watch, x, dims, self.indices[i] as u64, self.most)?;
        let mut stats = self.stats[place].lock().expect("no panic inside");
        stats.take(&seen)?;
        if i == 0 && watch.channels(dims) != Some(0) {
            stats.dims = dims.to_vec();
        }
        Ok(())
    }

    fn told(&self, sample: &Sample, name: &str, source: ObserveError) -> CalibrateError {
        let not_finite = matches!(source, ObserveError::NotFinite { .. });
        CalibrateError::Observe {
            sample: sample.name.clone(),
            value: name.to_owned(),
            constant: not_finite.then(|| broken_constant(self.g, name)).flatten(),
            source,
        }
    }
}

/// The NaN nearest to `value` among the constants that it is computed from. An infinity may be a mask or a bound.
fn broken_constant(g: &Graph, value: &str) -> Option<String> {
    let mut next = VecDeque::from([g.find(value)?]);
    let mut seen = BTreeSet::new();
    while let Some(v) = next.pop_front() {
        if !seen.insert(v) {
            continue;
        }
        if let Some(at) = g.constant(v).and_then(|t| t.to_f32s()?.iter().position(|x| x.is_nan())) {
            return Some(format!(
                "the constant `{}`, which it is computed from, holds NaN at element {at}",
                g.name_of(v)
            ));
        }
        next.extend(g.producer(v).into_iter().flat_map(|n| g.node(n).inputs.iter().flatten()));
    }
    None
}

/// Shapes of the inputs that leave more open than the batch, as this sample has them.
pub fn open_shapes(g: &Graph, inputs: &[(String, Array)]) -> Vec<(String, Vec<usize>)> {
    let open = |name: &str| {
        let shape = g.find(name).and_then(|v| g.value(v).ty.as_ref()?.shape.as_deref());
        shape.is_none_or(|s| s.iter().skip(1).any(|d| !matches!(d, Dim::Known(_))))
    };
    inputs.iter().filter(|(n, _)| open(n)).map(|(n, a)| (n.clone(), a.dims().to_vec())).collect()
}

/// Joins statistics of another shard into `into`.
///
/// # Errors
/// If a value has other channels in the two shards.
pub fn merge(into: &mut IndexMap<String, Stats>, part: &IndexMap<String, Stats>) -> Result<(), CalibrateError> {
    for (name, s) in part {
        match into.get_mut(name) {
            Some(t) => t.merge(s).map_err(|source| CalibrateError::Observe {
                sample: "of another shard".into(),
                value: name.clone(),
                source,
                constant: None,
            })?,
            None => {
                into.insert(name.clone(), s.clone());
            }
        }
    }
    into.values_mut().for_each(Stats::finish);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_told_in_order() {
        for threads in [1, 2, 8] {
            let told = Mutex::new(Vec::new());
            let slow = |n: usize| {
                if n.is_multiple_of(3) {
                    std::thread::yield_now();
                }
                told.lock().unwrap().push(n);
            };
            each_on(threads, 2000, &slow, |_| Ok::<_, ()>(())).unwrap();
            assert_eq!(told.into_inner().unwrap(), (1..=2000).collect::<Vec<_>>(), "{threads} threads");
        }
    }
}
