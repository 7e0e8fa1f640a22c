//! Samples that the float and the quantized model put into different classes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

#[cfg(feature = "tract")]
use crate::calibrate::data::Sample;
#[cfg(feature = "tract")]
use crate::runtime::Array;

/// Samples that are told at most, and classes of each.
#[cfg(feature = "tract")]
const MOST: usize = 12;
#[cfg(feature = "tract")]
const CLASSES: usize = 3;

/// On how many samples the models disagree, and on which most of all.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Disagreements {
    /// The output that holds the scores.
    pub output: String,
    /// Items compared, and on how many of them another class has the largest score.
    pub samples: u64,
    pub count: u64,
    /// Those on which the float model was surest, the surest first.
    pub worst: Vec<Disagreement>,
    /// What the classes among these are called, as far as that is known.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub names: BTreeMap<usize, String>,
}

/// One item with two answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Disagreement {
    /// Which of the verification samples it is in, and which item of the batch there.
    pub sample: usize,
    pub item: usize,
    /// A file's name below its folder, or a row of an array.
    pub name: String,
    /// Its class, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<i64>,
    /// The largest scores of both models, the largest first.
    pub float: Vec<Score>,
    pub quantized: Vec<Score>,
    /// A small picture of what the models saw as a `data:` URI, for the page alone.
    #[serde(skip)]
    pub picture: Option<String>,
}

/// What a model says to a class.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Score {
    pub class: usize,
    /// As the model puts it out.
    pub score: f64,
    /// As a share of all classes, 0..1: the score itself where the model puts out shares, otherwise by Softmax.
    pub share: f64,
}

impl Disagreement {
    /// How much surer the float model was of its own answer than of the quantized model's.
    #[cfg(feature = "tract")]
    fn margin(&self, of_theirs: f64) -> f64 {
        self.float.first().map_or(0.0, |s| s.share - of_theirs)
    }
}

/// What one sample adds: items compared, and those with two answers, each with how sure the float model was.
#[cfg(feature = "tract")]
pub(super) type Apart = (u64, Vec<(f64, Disagreement)>);

/// The items of a sample whose scores, `[items, classes]`, are largest for another class. `None` for other shapes.
#[cfg(feature = "tract")]
pub(super) fn apart(float: &Array, quantized: &Array, s: &Sample, sample: usize, items: usize) -> Option<Apart> {
    let (&[n, classes], true) = (float.dims(), float.dims() == quantized.dims()) else { return None };
    if n != items || classes < 2 {
        return None;
    }
    let (y, q) = (float.f32s(), quantized.f32s());
    let one = |(item, (y, q)): (usize, (&[f32], &[f32]))| {
        let (mine, theirs) = (largest(y), largest(q));
        if mine[0] == theirs[0] {
            return None;
        }
        let (of_mine, of_theirs) = (shares(y), shares(q));
        let told = |order: &[usize], v: &[f32], shares: &[f64]| -> Vec<Score> {
            order.iter().map(|c| Score { class: *c, score: v[*c].into(), share: shares[*c] }).collect()
        };
        let d = Disagreement {
            sample,
            item,
            name: s.name.clone(),
            label: s.labels.as_ref().and_then(|l| l.get(item).copied()),
            float: told(&mine, y, &of_mine),
            quantized: told(&theirs, q, &of_theirs),
            picture: None,
        };
        Some((d.margin(of_mine[theirs[0]]), d))
    };
    let rows = y.chunks(classes).zip(q.chunks(classes)).enumerate();
    Some((n as u64, rows.filter_map(one).collect()))
}

/// The classes of the largest scores, the largest first; of equals, the first.
#[cfg(feature = "tract")]
fn largest(v: &[f32]) -> Vec<usize> {
    let mut best: Vec<usize> = Vec::with_capacity(CLASSES + 1);
    for (c, x) in v.iter().enumerate() {
        let at = best.iter().position(|b| *x > v[*b]).unwrap_or(best.len());
        if at < CLASSES {
            best.insert(at, c);
            best.truncate(CLASSES);
        }
    }
    best
}

/// Scores as shares of all classes: they are some already if none is negative and all add up to 1.
#[cfg(feature = "tract")]
pub fn shares(v: &[f32]) -> Vec<f64> {
    let wide: Vec<f64> = v.iter().map(|x| f64::from(*x)).collect();
    let sum: f64 = wide.iter().sum();
    if (sum - 1.0).abs() < 1e-3 && wide.iter().all(|x| *x >= 0.0) {
        return wide;
    }
    let top = wide.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let e: Vec<f64> = wide.iter().map(|x| (x - top).exp()).collect();
    let sum: f64 = e.iter().sum();
    e.into_iter().map(|x| x / sum).collect()
}

/// What is kept over all samples: memory does not grow with their number.
#[cfg(feature = "tract")]
#[derive(Default)]
pub(super) struct Gathered {
    samples: u64,
    count: u64,
    worst: Vec<(f64, Disagreement)>,
}

#[cfg(feature = "tract")]
impl Gathered {
    /// Adds a sample; of equally sure ones, the earlier stays in front.
    pub(super) fn add(&mut self, sample: Option<Apart>) {
        let Some((items, apart)) = sample else { return };
        self.samples += items;
        for (margin, d) in apart {
            self.count += 1;
            let at = self.worst.iter().position(|w| margin > w.0).unwrap_or(self.worst.len());
            self.worst.insert(at, (margin, d));
            self.worst.truncate(MOST);
        }
    }

    /// `None` if no sample had scores over classes.
    pub(super) fn finish(self, output: &str) -> Option<Disagreements> {
        let worst = self.worst.into_iter().map(|(_, d)| d).collect();
        (self.samples > 0).then(|| Disagreements {
            output: output.to_owned(),
            samples: self.samples,
            count: self.count,
            worst,
            names: BTreeMap::new(),
        })
    }
}

#[cfg(all(test, feature = "tract"))]
mod tests {
    use super::*;

    fn of(y: &[f32], q: &[f32], items: usize, sample: usize) -> Option<Apart> {
        let a = |v: &[f32]| Array::new(&[items, v.len() / items], v.to_vec()).unwrap();
        let s = Sample { inputs: vec![], name: format!("{sample}.png"), labels: Some(vec![7; items]) };
        apart(&a(y), &a(q), &s, sample, items)
    }

    #[test]
    fn items_with_two_answers_are_told_with_their_scores() {
        let y = [0.0, 3.0, 1.0, 2.0, 5.0, 0.0, 0.0, 0.0];
        let q = [0.0, 3.0, 1.0, 2.5, 4.0, 0.0, 0.0, 6.0];
        let (items, found) = of(&y, &q, 2, 4).unwrap();
        assert_eq!((items, found.len()), (2, 1));
        let (margin, d) = &found[0];
        assert_eq!((d.sample, d.item, &d.name[..], d.label), (4, 1, "4.png", Some(7)));
        let classes = |s: &[Score]| s.iter().map(|s| s.class).collect::<Vec<_>>();
        assert_eq!((classes(&d.float), classes(&d.quantized)), (vec![0, 1, 2], vec![3, 0, 1]));
        let e5 = 5f64.exp();
        assert!((d.float[0].share - e5 / (e5 + 3.0)).abs() < 1e-12 && d.float[0].score == 5.0);
        assert!((margin - (e5 - 1.0) / (e5 + 3.0)).abs() < 1e-12, "{margin}");
    }

    #[test]
    fn shares_are_taken_as_they_are() {
        assert_eq!(shares(&[0.25, 0.75]), [0.25, 0.75]);
        assert_eq!(shares(&[1.0, 1.0]), [0.5, 0.5]);
    }

    #[test]
    fn what_is_no_row_of_scores_for_each_item_is_left_out() {
        let map = Array::new(&[1, 4, 2, 2], vec![0f32; 16]).unwrap();
        let s = Sample { inputs: vec![], name: "a".into(), labels: None };
        assert_eq!(apart(&map, &map, &s, 0, 1), None);
        assert_eq!(of(&[0.0; 4], &[0.0; 4], 4, 0), None, "one class");
        assert_eq!(Gathered::default().finish("y"), None);
    }

    /// However many there are, the surest are kept.
    #[test]
    fn few_are_kept_and_all_are_counted() {
        let mut g = Gathered::default();
        (0..100).for_each(|i| g.add(of(&[(i * 37 % 100) as f32 / 10.0, -1.0], &[0.0, 1.0], 1, i)));
        let d = g.finish("logits").unwrap();
        assert_eq!((d.samples, d.count, d.worst.len()), (100, 100, MOST));
        let scores: Vec<f64> = d.worst.iter().map(|d| (d.float[0].score * 10.0).round()).collect();
        assert_eq!(scores, (88..100).rev().map(f64::from).collect::<Vec<_>>());
    }
}
