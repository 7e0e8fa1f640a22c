//! Runs one model over data: what it answers, and how often that is the label.

use serde::{Deserialize, Serialize};

use super::kinds::{Kind, kinds};
use super::metrics::{Deviation, Subject, Tally};
use super::run::VerifyError;
use crate::calibrate::data::Dataset;
use crate::calibrate::run::open_shapes;
use crate::infer;
use crate::ir::{DType, Validated, ValueId};
use crate::runtime::{Array, Session, SessionOptions, fold_samples};

/// What one output of a model answered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    pub output: String,
    /// Items it was asked about.
    pub samples: u64,
    /// The smallest and the largest element, and the mean.
    pub least: f64,
    pub most: f64,
    pub mean: f64,
    /// Against labels, if there are any and these are scores of classes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accuracy: Option<Hit>,
}

/// How often the label was among the largest scores.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Hit {
    /// Items with a label.
    pub samples: u64,
    /// Shares, 0..1.
    pub top1: f64,
    /// `None` with five classes or fewer, where it says nothing.
    pub top5: Option<f64>,
}

/// Extremes and sum of an output.
#[derive(Clone, Copy)]
struct Spread {
    least: f64,
    most: f64,
    sum: f64,
    count: u64,
}

const NOTHING: Spread = Spread { least: f64::INFINITY, most: f64::NEG_INFINITY, sum: 0.0, count: 0 };

impl Spread {
    fn of(a: &Array) -> Spread {
        a.f32s().iter().fold(NOTHING, |s, x| {
            s.and(Spread { least: f64::from(*x), most: f64::from(*x), sum: f64::from(*x), count: 1 })
        })
    }

    fn and(self, o: Spread) -> Spread {
        Spread {
            least: self.least.min(o.least),
            most: self.most.max(o.most),
            sum: self.sum + o.sum,
            count: self.count + o.count,
        }
    }
}

/// Runs a model over all samples.
///
/// # Errors
/// If a sample cannot be made, the model does not run, an output is not finite, or a label is no class.
pub fn answers(
    model: Validated<'_>,
    data: &Dataset,
    threads: usize,
    progress: &(dyn Fn(usize) + Sync),
) -> Result<Vec<Answer>, VerifyError> {
    let runtime = |source| VerifyError::Runtime { model: "the", source };
    let shapes = open_shapes(&model.model().graph, &data.sample(0)?.inputs);
    let options = SessionOptions { batch: data.batch(), shapes, ..SessionOptions::default() };
    let session = Session::of(model, &options).map_err(runtime)?;
    let names: Vec<String> = session.outputs().iter().map(|p| p.name.clone()).collect();
    let kinds: Vec<Kind> = kinds(model.model());
    // Texts have neither sizes nor a mean.
    let g = &model.model().graph;
    let is_text = |v: &ValueId| infer::shapes(model.model()).dtype(*v) == Some(DType::STRING);
    let texts: Vec<bool> = g.outputs().iter().map(is_text).collect();
    let mut found: Vec<(Tally, Spread)> = kinds.iter().map(|k| (Tally::of(*k), NOTHING)).collect();
    let mut done = 0;
    fold_samples(
        data.len(),
        threads,
        |i| -> Result<Vec<(Deviation, Spread)>, VerifyError> {
            let s = data.sample(i)?;
            let out = session.run(&s.inputs).map_err(runtime)?;
            let one = |((name, a), kind): ((&String, &Array), &Kind)| {
                let labels = s.labels.as_deref();
                let site = Subject { tensor: name, sample: &s.name, items: data.batch(), labels, kind: *kind };
                Ok((Deviation::between(site, a, a)?, Spread::of(a)))
            };
            names.iter().zip(&out.outputs).zip(&kinds).map(one).collect()
        },
        |_, all| {
            found.iter_mut().zip(all).for_each(|((tally, spread), (d, s))| {
                tally.add(&d);
                *spread = spread.and(s);
            });
            done += 1;
            progress(done);
            Ok(())
        },
    )?;
    let told = |((name, (tally, spread)), text): ((&String, &(Tally, Spread)), &bool)| {
        let m = tally.finish(name).filter(|_| !text)?;
        let accuracy =
            m.accuracy.map(|a| Hit { samples: a.samples, top1: a.top1_float, top5: a.top5.map(|t| t.float) });
        let finite = |x: f64| if x.is_finite() { x } else { 0.0 };
        Some(Answer {
            output: name.clone(),
            samples: m.samples,
            least: finite(spread.least),
            most: finite(spread.most),
            mean: finite(spread.sum / spread.count.max(1) as f64),
            accuracy,
        })
    };
    Ok(names.iter().zip(&found).zip(&texts).filter_map(told).collect())
}
