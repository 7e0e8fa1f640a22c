//! The distance between what two models compute, tensor by tensor.
//!
//! A [`Deviation`] compares one tensor of one sample; a [`Tally`] adds deviations up. Deviations may be computed on any
//! thread; adding them in sample order makes every figure the same bits for every thread count. Both are a handful of
//! numbers, so memory does not grow with the samples. All sums are in f64.
//!
//! *Decibels.* `SQNR = 10 log10(sum y^2 / sum (yq - y)^2)` over all samples, y from the float model. Without any error the
//! ratio is infinite, which JSON cannot hold: such a tensor has [`EXACT_DB`], 999, and an all-zero reference that is
//! not met has -999. Both compare with thresholds as they should.

use serde::{Deserialize, Serialize};

use super::kinds::Kind;
use crate::runtime::Array;

/// The SQNR of a tensor without any error; its negative is that of an error on an all-zero reference.
pub const EXACT_DB: f64 = 999.0;

/// Why two tensors cannot be compared.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum MetricError {
    #[error(
        "tensor {tensor:?}, sample {sample:?}: the float model gives shape {float:?}, the quantized one {quantized:?}"
    )]
    Shape { tensor: String, sample: String, float: Vec<usize>, quantized: Vec<usize> },
    #[error("tensor {tensor:?}, sample {sample:?}: element {index} of the {model} model is {value}; {}", if *.float {
        "look at the model or the sample: quantization has no part in it" } else {
        "its scale, or an arithmetic overflow near it, is at fault" }, model = if *.float { "float" } else { "quantized" })]
    NonFinite { tensor: String, sample: String, float: bool, index: usize, value: f64 },
    #[error("sample {sample:?}: its label {label} is no class of tensor {tensor:?}, which has {classes}")]
    Label { tensor: String, sample: String, label: i64, classes: usize },
}

/// How one tensor of one sample deviates.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Deviation {
    /// Items of the batch.
    pub items: u64,
    pub elements: u64,
    /// `sum y^2`.
    pub signal: f64,
    /// `sum (yq - y)^2`.
    pub noise: f64,
    /// Sum over the items of the cosine between y and yq.
    pub cosine: f64,
    pub max_abs: f64,
    /// Rows along the axis of the classes, and how many have their largest element at the same place; no rows if these are
    /// no scores of at least two classes.
    pub rows: u64,
    pub agree: u64,
    /// Elements that are the same in both, of labels.
    pub equal: Option<u64>,
    /// What of a list of detections found its like in the other, and what there was to find.
    pub matched: Option<(f64, f64)>,
    /// Hits of the labels, if there are labels.
    pub hits: Option<Hits>,
}

/// How many items have their label among the largest outputs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hits {
    pub items: u64,
    pub classes: u64,
    pub top1_float: u64,
    pub top1_quantized: u64,
    pub top5_float: u64,
    pub top5_quantized: u64,
}

/// What is compared: names for messages, and how many items of the batch lie along the leading axis.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    pub tensor: &'a str,
    pub sample: &'a str,
    /// Items in the sample; a leading axis it does not divide counts as one item.
    pub items: usize,
    /// The class of each item; only for a tensor `[items, classes]`, ignored for others.
    pub labels: Option<&'a [i64]>,
    pub kind: Kind,
}

impl Deviation {
    /// Compares the same tensor of both models on one sample.
    ///
    /// # Errors
    /// If types or shapes differ, or an element is not finite.
    pub fn between(site: Subject<'_>, float: &Array, quantized: &Array) -> Result<Deviation, MetricError> {
        if float.dims() != quantized.dims() {
            return Err(MetricError::Shape {
                tensor: site.tensor.to_string(),
                sample: site.sample.to_string(),
                float: float.dims().to_vec(),
                quantized: quantized.dims().to_vec(),
            });
        }
        let (y, q) = (wide(float), wide(quantized));
        // What hides is minus infinity in both, and no error.
        let alike = |i: usize| y[i] == q[i] || (y[i].is_nan() && q[i].is_nan());
        for (v, float) in [(&y, true), (&q, false)] {
            if let Some(index) = v.iter().enumerate().position(|(i, x)| !(x.is_finite() || alike(i) && y[i] < 0.0)) {
                let (tensor, sample) = (site.tensor.to_string(), site.sample.to_string());
                return Err(MetricError::NonFinite { tensor, sample, float, index, value: v[index] });
            }
        }
        let leading = float.dims().first().copied().unwrap_or(1);
        let items = if site.items > 0 && leading % site.items == 0 { site.items } else { 1 };
        let mut d = Deviation { items: items as u64, elements: y.len() as u64, ..Deviation::default() };
        if y.is_empty() {
            d.cosine = items as f64;
            return Ok(d);
        }
        for (y, q) in y.chunks(y.len() / items).zip(q.chunks(q.len() / items)) {
            let (mut yy, mut qq, mut yq) = (0.0, 0.0, 0.0);
            for (a, b) in y.iter().zip(q).filter(|(a, _)| a.is_finite()) {
                yy += a * a;
                qq += b * b;
                yq += a * b;
                let e = b - a;
                d.noise += e * e;
                d.max_abs = d.max_abs.max(e.abs());
            }
            d.signal += yy;
            d.cosine += match (yy == 0.0, qq == 0.0) {
                (false, false) => number_or(0.0, yq / (yy.sqrt() * qq.sqrt())).clamp(-1.0, 1.0),
                (true, true) => 1.0,
                _ => 0.0,
            };
        }
        if site.kind == Kind::Labels {
            d.equal = Some(y.iter().zip(&q).filter(|(y, q)| y == q).count() as u64);
        }
        if let Kind::Classes { axis } = site.kind
            && let Some(&classes) = float.dims().get(axis).filter(|n| **n >= 2)
        {
            // Element `class` of a row lies `inner` after the one before it.
            let inner: usize = float.dims()[axis + 1..].iter().product();
            let largest = |v: &[f64], row: usize| {
                let first = row / inner * classes * inner + row % inner;
                (1..classes).fold(0, |best, c| if v[first + c * inner] > v[first + best * inner] { c } else { best })
            };
            let rows = y.len() / classes;
            d.rows = rows as u64;
            d.agree = (0..rows).filter(|r| largest(&y, *r) == largest(&q, *r)).count() as u64;
        }
        if let (Some(labels), [n, classes]) = (site.labels, float.dims())
            && *n == labels.len()
            && *classes >= 2
        {
            d.hits = Some(hits(site, labels, *classes, &y, &q)?);
        }
        Ok(d)
    }
}

/// Counts the labels among the largest outputs of both models.
fn hits(site: Subject<'_>, labels: &[i64], classes: usize, y: &[f64], q: &[f64]) -> Result<Hits, MetricError> {
    let mut h = Hits { items: labels.len() as u64, classes: classes as u64, ..Hits::default() };
    for ((label, y), q) in labels.iter().zip(y.chunks(classes)).zip(q.chunks(classes)) {
        let class = usize::try_from(*label).ok().filter(|c| *c < classes).ok_or_else(|| MetricError::Label {
            tensor: site.tensor.to_string(),
            sample: site.sample.to_string(),
            label: *label,
            classes,
        })?;
        let (float, quantized) = (place(y, class), place(q, class));
        h.top1_float += u64::from(float == 0);
        h.top1_quantized += u64::from(quantized == 0);
        h.top5_float += u64::from(float < 5);
        h.top5_quantized += u64::from(quantized < 5);
    }
    Ok(h)
}

/// The elements in f64: exact for every type but 64-bit integers beyond 2^53.
fn wide(a: &Array) -> Vec<f64> {
    match a {
        Array::F64(v) => v.iter().copied().collect(),
        Array::I64(v) => v.iter().map(|x| *x as f64).collect(),
        Array::U64(v) => v.iter().map(|x| *x as f64).collect(),
        Array::I32(v) => v.iter().map(|x| f64::from(*x)).collect(),
        Array::U32(v) => v.iter().map(|x| f64::from(*x)).collect(),
        narrow => narrow.f32s().iter().map(|x| f64::from(*x)).collect(),
    }
}

/// How many elements come before `class` when the largest is first, equals in order of their index.
fn place(v: &[f64], class: usize) -> usize {
    v.iter().enumerate().filter(|(i, x)| **x > v[class] || (**x == v[class] && *i < class)).count()
}

/// The deviations of one tensor, added up in the order they are given.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Tally {
    kind: Kind,
    sum: Deviation,
}

impl Tally {
    /// Of a tensor that is this.
    pub fn of(kind: Kind) -> Tally {
        Tally { kind, ..Tally::default() }
    }

    /// Adds one sample. Of samples with and without labels, only the labelled ones count for the labels.
    pub fn add(&mut self, d: &Deviation) {
        let s = &mut self.sum;
        s.items += d.items;
        s.elements += d.elements;
        s.signal += d.signal;
        s.noise += d.noise;
        s.cosine += d.cosine;
        s.max_abs = s.max_abs.max(d.max_abs);
        s.rows += d.rows;
        s.agree += d.agree;
        if let Some(n) = d.equal {
            *s.equal.get_or_insert_default() += n;
        }
        if let Some((found, all)) = d.matched {
            let m = s.matched.get_or_insert_default();
            *m = (m.0 + found, m.1 + all);
        }
        if let Some(d) = &d.hits {
            let h = s.hits.get_or_insert_default();
            h.items += d.items;
            h.classes = h.classes.max(d.classes);
            h.top1_float += d.top1_float;
            h.top1_quantized += d.top1_quantized;
            h.top5_float += d.top5_float;
            h.top5_quantized += d.top5_quantized;
        }
    }

    /// True if no element was compared. Two lists of no detections are alike.
    pub fn is_empty(&self) -> bool {
        let s = &self.sum;
        s.items == 0 || (s.elements == 0 && s.matched.is_none())
    }

    /// The figures; `None` if there are none.
    pub fn finish(&self, tensor: &str) -> Option<TensorMetrics> {
        let s = &self.sum;
        let share = |n: u64, of: u64| n as f64 / of as f64;
        (!self.is_empty()).then(|| TensorMetrics {
            part: String::new(),
            tensor: tensor.to_string(),
            kind: self.kind,
            samples: s.items,
            sqnr_db: decibels(s.signal, s.noise),
            cosine: s.cosine / s.items as f64,
            max_abs_error: s.max_abs,
            top1_agreement: (s.rows > 0).then(|| share(s.agree, s.rows)),
            equal: s.equal.map(|n| share(n, s.elements)),
            matched: s.matched.map(|(found, all)| if all > 0.0 { found / all } else { 1.0 }),
            accuracy: s.hits.filter(|h| h.items > 0).map(|h| Accuracy {
                samples: h.items,
                top1_float: share(h.top1_float, h.items),
                top1_quantized: share(h.top1_quantized, h.items),
                top5: (h.classes > 5)
                    .then(|| Top5 { float: share(h.top5_float, h.items), quantized: share(h.top5_quantized, h.items) }),
            }),
        })
    }
}

/// `10 log10(signal / noise)`, within the two limits that stand for infinity.
pub fn decibels(signal: f64, noise: f64) -> f64 {
    match (signal > 0.0, noise > 0.0) {
        (_, false) => EXACT_DB,
        (false, true) => -EXACT_DB,
        (true, true) => number_or(-EXACT_DB, 10.0 * (signal / noise).log10()).clamp(-EXACT_DB, EXACT_DB),
    }
}

/// `13.84 dB`, or `exact`.
pub fn shown_db(db: f64) -> String {
    if db >= EXACT_DB { "exact".to_owned() } else { format!("{db:.2} dB") }
}

/// Energy of the error as a share of that of the signal.
pub fn noise_share(db: f64) -> f64 {
    if db >= EXACT_DB { 0.0 } else { 10f64.powf(-db / 10.0) }
}

/// `x`, unless it is the NaN that squares of doubles beyond 1e154 leave.
fn number_or(instead: f64, x: f64) -> f64 {
    if x.is_nan() { instead } else { x }
}

/// The distance of one tensor over all samples.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TensorMetrics {
    pub tensor: String,
    /// The part of the model it is in, as people count parts: `block 3 attention`. Empty where that is not known.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub part: String,
    /// What it is, and so what it is judged by.
    #[serde(default)]
    pub kind: Kind,
    /// Items compared (samples times the batch).
    pub samples: u64,
    /// Signal to quantization noise in dB; [`EXACT_DB`] without any error.
    pub sqnr_db: f64,
    /// Mean over the items of the cosine between both tensors, -1..1.
    pub cosine: f64,
    /// In the float model's units.
    pub max_abs_error: f64,
    /// Share of the rows with the largest element at the same place, along the axis of the classes; `None` for what is
    /// not [`Kind::Classes`].
    pub top1_agreement: Option<f64>,
    /// Share of the elements that are the same in both, 0..1; only of [`Kind::Labels`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub equal: Option<f64>,
    /// Share of the detections that found their like in the other list, 0..1; only of [`Kind::Detections`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub matched: Option<f64>,
    /// Against labels, if there are any.
    pub accuracy: Option<Accuracy>,
}

/// Shares of the labels met, 0..1, by both models on the same samples.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Accuracy {
    /// Items with a label.
    pub samples: u64,
    pub top1_float: f64,
    pub top1_quantized: f64,
    /// `None` with five classes or fewer, where it says nothing.
    pub top5: Option<Top5>,
}

/// How often the label is among the five highest scores.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Top5 {
    pub float: f64,
    pub quantized: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn site<'a>(items: usize, labels: Option<&'a [i64]>) -> Subject<'a> {
        Subject { tensor: "logits", sample: "s", items, labels, kind: Kind::Classes { axis: 1 } }
    }

    fn array(dims: &[usize], v: &[f32]) -> Array {
        Array::new(dims, v.to_vec()).unwrap()
    }

    fn metrics(items: usize, labels: Option<&[i64]>, y: &Array, q: &Array) -> TensorMetrics {
        let mut t = Tally::default();
        t.add(&Deviation::between(site(items, labels), y, q).unwrap());
        t.finish("logits").unwrap()
    }

    #[test]
    fn figures_by_hand() {
        let y = array(&[2, 3], &[3.0, 0.0, 4.0, 1.0, 0.0, 0.0]);
        let q = array(&[2, 3], &[3.0, 0.0, 3.0, 0.0, 1.0, 0.0]);
        let m = metrics(2, None, &y, &q);
        // signal 9 + 16 + 1, noise 1 + 1 + 1
        assert!((m.sqnr_db - 10.0 * (26.0f64 / 3.0).log10()).abs() < 1e-12);
        // item 0: 21 / (5 * sqrt 18); item 1: orthogonal
        assert!((m.cosine - 21.0 / (5.0 * 18.0f64.sqrt()) / 2.0).abs() < 1e-12);
        assert_eq!((m.samples, m.max_abs_error, m.top1_agreement), (2, 1.0, Some(0.0)), "a tie goes to the first");
    }

    #[test]
    fn infinite_ratios_have_stand_ins() {
        let zero = array(&[1, 2], &[0.0; 2]);
        let one = array(&[1, 2], &[1.0, 0.0]);
        let m = metrics(1, None, &one, &one);
        assert_eq!((m.sqnr_db, m.cosine), (EXACT_DB, 1.0));
        let m = metrics(1, None, &zero, &zero);
        assert_eq!((m.sqnr_db, m.cosine), (EXACT_DB, 1.0));
        let m = metrics(1, None, &zero, &one);
        assert_eq!((m.sqnr_db, m.cosine), (-EXACT_DB, 0.0));
        assert_eq!(decibels(1.0, 1e-300), EXACT_DB);
        let text = serde_json::to_string(&m).unwrap();
        assert_eq!(serde_json::from_str::<TensorMetrics>(&text).unwrap(), m);
        assert!(text.contains("\"sqnr_db\":-999.0"));
    }

    #[test]
    fn labels_count_for_both_models() {
        let y = array(&[2, 6], &[9., 8., 7., 6., 5., 4., 1., 2., 3., 4., 5., 6.]);
        let q = array(&[2, 6], &[8., 9., 7., 6., 5., 4., 1., 2., 3., 4., 6., 5.]);
        let a = metrics(2, Some(&[0, 5]), &y, &q).accuracy.unwrap();
        assert_eq!((a.samples, a.top1_float, a.top1_quantized), (2, 1.0, 0.0));
        assert_eq!(a.top5, Some(Top5 { float: 1.0, quantized: 1.0 }));
        let a = metrics(2, Some(&[5, 0]), &y, &q).accuracy.unwrap();
        assert_eq!(a.top5, Some(Top5 { float: 0.0, quantized: 0.0 }), "the sixth is not among five");
        let e = Deviation::between(site(2, Some(&[0, 6])), &y, &q).unwrap_err().to_string();
        assert!(e.contains("label 6") && e.contains("has 6"), "{e}");
        let few = array(&[1, 2], &[1., 0.]);
        assert_eq!(metrics(1, Some(&[0]), &few, &few).accuracy.unwrap().top5, None);
        // A tensor that is not one row per label is compared, but not scored.
        let tokens = array(&[2, 3, 2], &[1.0; 12]);
        assert_eq!(metrics(2, Some(&[0, 1]), &tokens, &tokens).accuracy, None);
    }

    #[test]
    fn what_can_not_be_compared_is_named() {
        let y = array(&[1, 2], &[1.0, 2.0]);
        let e = Deviation::between(site(1, None), &y, &array(&[2], &[1.0, 2.0])).unwrap_err().to_string();
        assert!(e.contains("\"logits\"") && e.contains("[1, 2]") && e.contains("[2]"), "{e}");
        for (bad, word) in [(f32::NAN, "NaN"), (f32::INFINITY, "inf"), (f32::NEG_INFINITY, "-inf")] {
            let q = array(&[1, 2], &[1.0, bad]);
            let e = Deviation::between(site(1, None), &y, &q).unwrap_err().to_string();
            assert!(
                e.contains("\"logits\"") && e.contains("element 1") && e.contains(word) && e.contains("quantized"),
                "{e}"
            );
            let e = Deviation::between(site(1, None), &q, &y).unwrap_err().to_string();
            assert!(e.contains("of the float model"), "{e}");
        }
    }

    #[test]
    fn odd_shapes_do_not_break_it() {
        let scalar = Array::scalar(2.0f32);
        assert_eq!(metrics(1, None, &scalar, &scalar).top1_agreement, None);
        let empty = array(&[0, 4], &[]);
        let mut t = Tally::default();
        t.add(&Deviation::between(site(1, None), &empty, &empty).unwrap());
        assert_eq!(t.finish("logits"), None, "nothing was compared");
        let windows = array(&[3, 2], &[1., 2., 3., 4., 5., 6.]);
        assert_eq!(metrics(2, None, &windows, &windows).samples, 1, "3 rows are no 2 items");
        let big = Array::new(&[1], vec![(1i64 << 40) + 1]).unwrap();
        let near = Array::new(&[1], vec![1i64 << 40]).unwrap();
        assert_eq!(metrics(1, None, &big, &near).max_abs_error, 1.0, "float32 would not see it");
        let huge = |x: f64| Array::new(&[1], vec![x]).unwrap();
        let m = metrics(1, None, &huge(1e200), &huge(-1e200));
        assert_eq!((m.sqnr_db, m.cosine), (-EXACT_DB, 0.0), "squares that overflow leave no NaN");
        assert!(Tally::default().finish("x").is_none());
    }

    #[test]
    fn batches_and_single_items_add_up_to_the_same() {
        let (y, q) = (array(&[2, 2], &[1., 2., 3., 4.]), array(&[2, 2], &[1., 2.5, 3., 3.]));
        let mut single = Tally::default();
        for r in [0..1, 1..2] {
            single.add(&Deviation::between(site(1, None), &y.rows(r.clone()).unwrap(), &q.rows(r).unwrap()).unwrap());
        }
        assert_eq!(single.finish("logits").unwrap(), metrics(2, None, &y, &q));
    }
}
