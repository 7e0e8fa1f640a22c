//! Whether numbers look like the pictures that a model was trained on.
//!
//! A model of photographs takes `(pixel / 255 - mean) / std`, numbers from -2.2 to 2.7 with the usual constants. Arrays of raw
//! pixels run without an error, and calibrate ranges that no picture ever has.

use std::collections::BTreeSet;

use super::data::{DataError, Dataset, InputSpec};
use crate::ir::{DType, Dim, Graph, Model, ValueId};

/// How many samples are looked at.
const LOOKED_AT: usize = 8;
/// Beyond what normalised pictures reach.
const FAR: f32 = 16.0;

/// What is odd about the numbers of a data set that a model gets as pictures: one sentence an input.
///
/// # Errors
/// If a sample cannot be made.
pub fn unusual(data: &Dataset, model: &Model) -> Result<Vec<String>, DataError> {
    if data.is_synthetic() {
        return Ok(Vec::new());
    }
    let who = if data.how().starts_with("arrays") { ("array", "holds") } else { ("pictures for input", "hold") };
    let pictures = |(k, s): (usize, &InputSpec)| (is_picture(s) && !normalises(&model.graph, &s.name)).then_some(k);
    let inputs: Vec<usize> = data.inputs().iter().enumerate().filter_map(pictures).collect();
    if inputs.is_empty() {
        return Ok(Vec::new());
    }
    let take = data.len().min(LOOKED_AT);
    let mut seen = vec![Seen::default(); inputs.len()];
    for i in 0..take {
        let sample = data.sample(i * data.len() / take)?;
        inputs.iter().zip(&mut seen).for_each(|(k, s)| s.add(&sample.inputs[*k].1.f32s()));
    }
    let of = |k: &usize| &data.inputs()[*k];
    Ok(inputs.iter().zip(&seen).filter_map(|(k, s)| s.told(who, of(k))).collect())
}

/// The numbers of an input.
#[derive(Clone, Debug)]
struct Seen {
    least: f32,
    most: f32,
    sum: f64,
    count: u64,
}

impl Default for Seen {
    fn default() -> Seen {
        Seen { least: f32::INFINITY, most: f32::NEG_INFINITY, sum: 0.0, count: 0 }
    }
}

impl Seen {
    fn add(&mut self, values: &[f32]) {
        for x in values {
            (self.least, self.most) = (self.least.min(*x), self.most.max(*x));
            self.sum += f64::from(*x);
        }
        self.count += values.len() as u64;
    }

    fn told(&self, (who, hold): (&str, &str), spec: &InputSpec) -> Option<String> {
        let colour = spec.dims.iter().skip(1).any(|d| *d == Dim::Known(3));
        // Digits and the like are often trained on pixels in [0, 1], photographs seldom.
        let unit = colour && self.least >= 0.0 && self.most <= 1.0 && self.most > 0.5;
        let raw = self.least >= 0.0 && self.most > FAR;
        (raw || unit).then(|| {
            format!(
                "{who} {:?} {hold} {} to {} (mean {:.3}): these look like pixels that were not normalised; most models take \
                 (pixel / 255 - mean) / std, from -2 to 3. If this one was trained on such numbers, all is well",
                spec.name,
                self.least,
                self.most,
                self.sum / self.count.max(1) as f64
            )
        })
    }
}

/// Rank 4, floats, with 1 or 3 channels, and sides that a picture has.
fn is_picture(s: &InputSpec) -> bool {
    let floats = matches!(s.dtype, DType::FLOAT | DType::FLOAT16 | DType::BFLOAT16 | DType::DOUBLE);
    let channels = |d: &Dim| matches!(d, Dim::Known(1 | 3));
    floats && !s.cache && !s.mask && matches!(&s.dims[..], [_, a, _, c] if channels(a) || channels(c))
}

/// Whether the model scales or shifts an input before anything else is done with it.
fn normalises(g: &Graph, input: &str) -> bool {
    const MOVES: [&str; 12] = [
        "Cast",
        "Transpose",
        "Identity",
        "Pad",
        "Slice",
        "Reshape",
        "Squeeze",
        "Unsqueeze",
        "Resize",
        "Concat",
        "Gather",
        "Split",
    ];
    const SCALES: [&str; 6] = ["Sub", "Div", "Mul", "Add", "BatchNormalization", "InstanceNormalization"];
    let (mut seen, mut next): (BTreeSet<ValueId>, Vec<ValueId>) =
        (BTreeSet::new(), g.find(input).into_iter().collect());
    while let Some(v) = next.pop() {
        if !seen.insert(v) {
            continue;
        }
        for (_, n) in g.nodes().filter(|(_, n)| n.inputs.iter().flatten().any(|x| *x == v)) {
            if SCALES.iter().any(|op| n.op.is(op)) {
                return true;
            }
            if MOVES.iter().any(|op| n.op.is(op)) {
                next.extend(n.outputs.iter().flatten());
            }
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::super::data::DataOptions;
    use super::*;
    use crate::text::parse_model;

    fn told(body: &str, values: impl Fn(usize) -> f32, channels: usize) -> Vec<String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.npy");
        let a =
            ndarray::Array4::from_shape_fn((3, channels, 4, 4), |(i, c, y, x)| values(((i * 3 + c) * 4 + y) * 4 + x));
        ndarray_npy::write_npy(&path, &a).unwrap();
        let text = format!(
            "<ir_version: 8, opset_import: [\"\" : 17]>\ng (float[n,{channels},4,4] x) => (float[n,{channels},4,4] y) <float k = {{2.0}}> {{ {body} }}"
        );
        let m = parse_model(&text).unwrap();
        let options = DataOptions { calibrate: Some(path), ..DataOptions::default() };
        let data = Dataset::open(&options, &InputSpec::of(&m.graph).unwrap()).unwrap();
        unusual(&data, &m).unwrap()
    }

    #[test]
    fn raw_pixels_are_told_and_others_are_not() {
        let plain = "y = Relu (x)";
        let raw = |i: usize| i as f32;
        let all = told(plain, raw, 3);
        assert!(
            all.len() == 1 && all[0].contains("\"x\" holds 0 to 143") && all[0].contains("not normalised"),
            "{all:?}"
        );
        assert_eq!(told(plain, |i| i as f32 / 143.0, 3).len(), 1, "from 0 to 1");
        assert!(told(plain, |i| i as f32 / 143.0, 1).is_empty(), "of one channel");
        assert!(told(plain, |i| i as f32 / 50.0 - 1.0, 3).is_empty(), "normalised");
        assert!(told("c = Transpose <perm = [0, 1, 3, 2]> (x) y = Div (c, k)", raw, 3).is_empty(), "the model does it");
        assert_eq!(told("r = Relu (x) y = Div (r, k)", raw, 3).len(), 1, "later is no normalisation");
    }
}
