//! Inputs out of nothing that are no images: token ids, masks, boxes, points, caches, features.
//!
//! What an input is shows in what reads it (a table, attention scores), in its type, and in the name that exporters give it.
//! Numbers that fit none of these are normal.

use std::collections::{BTreeMap, BTreeSet};

use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;

use super::images::ImageShape;
use super::layout::Lead;
use super::npy::Numbers;
use super::{DataError, InputSpec};
use crate::ir::{DType, Dim};

/// What a size left open by the model becomes in an input that is no image.
const OPEN_SIZE: usize = 16;

/// So many tokens at most are believed to come with one call.
const MOST_NEW: usize = 1 << 12;

/// Integers that pick from no table of known size are uniform over `0..INTEGERS`: token ids of any vocabulary.
const INTEGERS: i64 = 50;

/// The side that corners of boxes in whole numbers are a thousandth of (LayoutLM).
const BOX_SIDE: f64 = 1000.0;

/// What hides in a mask that is added to scores, and is a number in any type.
const HIDDEN: f64 = -1e4;

/// What made-up sizes are, so that one name is one size in all inputs.
pub(super) struct Sizes(BTreeMap<String, usize>);

impl Sizes {
    /// Names that images give a size to.
    pub(super) fn of(specs: &[InputSpec], images: &[Option<ImageShape>]) -> Sizes {
        let mut names = BTreeMap::new();
        for (spec, image) in specs.iter().zip(images).filter_map(|(s, i)| Some((s, (*i)?))) {
            for (d, n) in spec.dims.iter().zip(image.dims(1)).skip(1) {
                if let Dim::Symbol(s) = d {
                    names.entry(s.clone()).or_insert(n);
                }
            }
        }
        let mut sizes = Sizes(names);
        sizes.join_cache(specs);
        sizes
    }

    /// Names that have to fit each other where a model continues a cache: a mask over all keys has one size for the `past` ones and
    /// those that come with this call, whatever it is called; and one of `past + 1` says that one comes.
    fn join_cache(&mut self, specs: &[InputSpec]) {
        let symbols = |of: &dyn Fn(&InputSpec) -> bool| -> BTreeSet<String> {
            let dims = specs.iter().filter(|s| of(s)).flat_map(|s| s.dims.iter().skip(1));
            dims.filter_map(|d| if let Dim::Symbol(s) = d { Some(s.clone()) } else { None }).collect()
        };
        let is_mask = |s: &InputSpec| !s.cache && (s.mask || s.name.to_lowercase().contains("mask"));
        let come: BTreeSet<String> = symbols(&|s| !s.cache && !is_mask(s));
        let past: BTreeSet<String> = symbols(&|s| s.cache).difference(&come).cloned().collect();
        // Where the model says how many come, all inputs say the same.
        let said = |s: &InputSpec| match s.dims.get(1) {
            Some(Dim::Known(n)) if !s.cache && !is_mask(s) => usize::try_from(*n).ok(),
            _ => None,
        };
        let known: BTreeSet<usize> = specs.iter().filter_map(said).collect();
        let (Some(past), 1) = (past.first(), past.len()) else { return };
        let (new, number) = match (come.first(), known.first()) {
            (Some(new), _) if come.len() == 1 => (Some(new), None),
            (None, Some(n)) if known.len() == 1 => (None, Some(*n)),
            _ => return,
        };
        for all in specs.iter().filter(|s| is_mask(s)).filter_map(|s| s.dims.last()) {
            let Dim::Symbol(all) = all else { continue };
            match all.split_once('+').map(|(a, b)| (a.trim(), b.trim())) {
                Some((a, b)) => {
                    let more = if a == past {
                        b
                    } else if b == past {
                        a
                    } else {
                        continue;
                    };
                    if let (Ok(n @ 1..=MOST_NEW), Some(new)) = (more.parse(), new) {
                        self.0.entry(new.clone()).or_insert(n);
                    }
                }
                None if all != past && Some(all) != new => {
                    let new = number.unwrap_or_else(|| new.map_or(0, |new| self.sum(new)));
                    let sum = self.sum(past).saturating_add(new);
                    self.0.entry(all.clone()).or_insert(sum);
                }
                None => {}
            }
        }
    }

    /// Sizes of an input after its leading one. A name such as `past + 1` is worked out of the names in it.
    pub(super) fn tail(&mut self, spec: &InputSpec, lead: Lead, notes: &mut Vec<String>) -> Vec<usize> {
        let tail: Vec<usize> = spec
            .dims
            .iter()
            .skip(usize::from(lead != Lead::Nothing))
            .map(|d| match d {
                Dim::Known(n) => usize::try_from(*n).unwrap_or(0),
                Dim::Symbol(s) => self.sum(s),
                Dim::Unknown => OPEN_SIZE,
            })
            .collect();
        if spec.dims.iter().skip(1).any(|d| !matches!(d, Dim::Known(_))) {
            let sizes: Vec<String> = tail.iter().map(usize::to_string).collect();
            notes.push(format!(
                "input {:?}: {spec} has the sizes {} after the first in the synthetic samples; --shape gives others",
                spec.name,
                sizes.join(", ")
            ));
        }
        tail
    }

    fn sum(&mut self, name: &str) -> usize {
        if let Some(n) = self.0.get(name) {
            return *n;
        }
        let product = |sizes: &mut Sizes, t: &str| {
            t.split('*')
                .map(|f| f.trim().parse().unwrap_or_else(|_| *sizes.0.entry(f.trim().into()).or_insert(OPEN_SIZE)))
                .product::<usize>()
        };
        if name.contains(['+', '*']) && !name.contains(['/', '-', '(']) {
            return name.split('+').map(|t| product(self, t)).sum();
        }
        *self.0.entry(name.to_owned()).or_insert(OPEN_SIZE)
    }
}

/// What an input is made to look like.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Likeness {
    Normal,
    /// Whole numbers from 0 to below this.
    Below(i64),
    /// What counts comes first along the last axis, in each row: `[hidden, seen]`.
    Mask {
        values: [f64; 2],
        whole: bool,
    },
    /// Corners, the first above and left of the second, up to this.
    Boxes {
        side: f64,
        whole: bool,
    },
    /// Between 0 and this.
    Points {
        side: f64,
    },
}

impl Likeness {
    /// `side`: that of the image, if the model takes one.
    pub(super) fn of(spec: &InputSpec, tail: &[usize], side: Option<usize>) -> Result<Likeness, DataError> {
        let name = spec.name.to_lowercase();
        let named = |words: &[&str]| words.iter().any(|w| name.contains(w));
        let floats = matches!(spec.dtype, DType::FLOAT | DType::FLOAT16 | DType::BFLOAT16 | DType::DOUBLE);
        let whole = spec.dtype.is_int() && spec.dtype.bits().is_some_and(|b| b >= 8);
        if !(floats || whole || spec.dtype == DType::BOOL) {
            return Err(spec.refused("no synthetic values are made for this element type"));
        }
        let is_box = tail.last() == Some(&4) && named(&["box", "roi", "rect"]);
        Ok(match (floats, spec.rows) {
            (true, _) if spec.mask => Likeness::Mask { values: [HIDDEN, 0.0], whole: false },
            (_, None) if !tail.is_empty() && named(&["mask"]) && (!floats || tail.len() <= 2) => {
                Likeness::Mask { values: [0.0, 1.0], whole: !floats }
            }
            (true, _) if is_box => Likeness::Boxes { side: side.map_or(1.0, |s| s as f64), whole: false },
            (true, _) if tail.last() == Some(&2) && named(&["point", "coord"]) => {
                Likeness::Points { side: side.map_or(1.0, |s| s as f64) }
            }
            (true, _) => Likeness::Normal,
            (false, rows) if is_box => Likeness::Boxes { side: rows.map_or(BOX_SIDE, |r| (r - 1) as f64), whole: true },
            (false, Some(rows)) => Likeness::Below(rows),
            (false, None) => Likeness::Below(if spec.dtype == DType::BOOL { 2 } else { INTEGERS }),
        })
    }

    /// No numbers yet, of the sort that [`append`](Likeness::append) makes.
    pub(super) fn numbers(&self) -> Numbers {
        match self {
            Likeness::Below(_) | Likeness::Mask { whole: true, .. } | Likeness::Boxes { whole: true, .. } => {
                Numbers::Int(Vec::new())
            }
            _ => Numbers::Float(Vec::new()),
        }
    }

    /// Makes one row of the leading axis more, whose sizes are `tail`.
    pub(super) fn append(&self, tail: &[usize], rng: &mut ChaCha8Rng, out: &mut Numbers) {
        let n: usize = tail.iter().product();
        let mut put = |x: f64| match &mut *out {
            Numbers::Float(v) => v.push(x),
            Numbers::Int(v) => v.push(x as i128),
        };
        match self {
            Likeness::Normal => (0..n).for_each(|_| put(normal(rng))),
            Likeness::Below(top) => (0..n).for_each(|_| put(rng.random_range(0..*top) as f64)),
            Likeness::Mask { values, .. } => {
                // One length for the item, and at least one entry of each: what is 1 in a mask may be what hides.
                let last = *tail.last().unwrap_or(&1);
                let seen = if last > 1 { rng.random_range(last.div_ceil(2)..last) } else { last };
                (0..n).for_each(|i| put(values[usize::from(i % last.max(1) < seen)]));
            }
            Likeness::Boxes { side, whole } => {
                for _ in 0..n / 4 {
                    let mut pair = || {
                        let (a, b) = (rng.random::<f64>() * side, rng.random::<f64>() * side);
                        if *whole { (a.min(b).floor(), a.max(b).ceil()) } else { (a.min(b), a.max(b)) }
                    };
                    let ((x0, x1), (y0, y1)) = (pair(), pair());
                    [x0, y0, x1, y1].into_iter().for_each(&mut put);
                }
            }
            Likeness::Points { side } => (0..n).for_each(|_| put(rng.random::<f64>() * side)),
        }
    }
}

/// A normal number. The sampler's tail calls a logarithm; a grid of 2^-12 absorbs its last place.
pub(super) fn normal(rng: &mut ChaCha8Rng) -> f64 {
    (rng.sample::<f64, _>(StandardNormal) * 4096.0).round_ties_even() / 4096.0
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    fn spec(name: &str, dtype: DType, rows: Option<i64>, mask: bool) -> InputSpec {
        InputSpec { name: name.into(), dtype, dims: Vec::new(), mask, rows, cache: false }
    }

    fn made(spec: &InputSpec, tail: &[usize]) -> Vec<f64> {
        let l = Likeness::of(spec, tail, Some(64)).unwrap();
        let mut out = l.numbers();
        l.append(tail, &mut ChaCha8Rng::seed_from_u64(5), &mut out);
        match out {
            Numbers::Float(v) => v,
            Numbers::Int(v) => v.into_iter().map(|x| x as f64).collect(),
        }
    }

    #[test]
    fn each_looks_like_what_it_is() {
        let ids = made(&spec("input_ids", DType::INT64, Some(7), false), &[200]);
        assert!(ids.iter().all(|x| (0.0..7.0).contains(x)) && ids.contains(&6.0));
        let mask = made(&spec("attention_mask", DType::INT64, None, false), &[2, 9]);
        assert!(mask[0] == 1.0 && mask[8] == 0.0 && mask[..9] == mask[9..], "{mask:?}");
        let added = made(&spec("bias", DType::FLOAT, None, true), &[4, 4]);
        assert!(added[0] == 0.0 && added[3] == HIDDEN && added[12] == 0.0, "a row that hides all has no weights");
        let boxes = made(&spec("bbox", DType::INT64, Some(1024), false), &[5, 4]);
        assert!(boxes.chunks(4).all(|b| b[0] <= b[2] && b[1] <= b[3] && b[3] < 1024.0), "{boxes:?}");
        let boxes = made(&spec("input_boxes", DType::FLOAT, None, false), &[5, 4]);
        assert!(boxes.chunks(4).all(|b| b[0] <= b[2] && b[1] <= b[3]) && boxes.iter().any(|x| *x > 1.0));
        let cache = made(&spec("past_key_values.0.key", DType::FLOAT, None, false), &[2, 3, 4]);
        assert!(cache.iter().any(|x| *x < 0.0));
        assert!(made(&spec("flags", DType::BOOL, None, false), &[50]).iter().all(|x| *x == 0.0 || *x == 1.0));
    }

    #[test]
    fn one_name_is_one_size() {
        let mut sizes = Sizes(BTreeMap::from([("h".to_owned(), 224)]));
        let at = |sizes: &mut Sizes, s: &str| sizes.sum(s);
        assert_eq!(at(&mut sizes, "h"), 224);
        assert_eq!((at(&mut sizes, "past"), at(&mut sizes, "past + 1"), at(&mut sizes, "past+2*h")), (16, 17, 464));
        assert_eq!(at(&mut sizes, "floor(h/2)"), 16);
    }

    #[test]
    fn a_mask_is_as_long_as_a_cache_and_what_comes() {
        let input = |name: &str, cache: bool, dims: &[&str]| InputSpec {
            dims: dims.iter().map(|d| Dim::Symbol((*d).to_owned())).collect(),
            cache,
            ..spec(name, DType::INT64, None, false)
        };
        let of = |mask: &str| {
            let specs = [
                input("input_ids", false, &["batch", "seq"]),
                input("past_key_values.0.key", true, &["batch", "past"]),
                input("attention_mask", false, &["batch", mask]),
            ];
            let mut sizes = Sizes::of(&specs, &[None, None, None]);
            [sizes.sum("seq"), sizes.sum("past"), sizes.sum(mask)]
        };
        assert_eq!(of("total_sequence_length"), [16, 16, 32]);
        assert_eq!((of("past + seq"), of("past + 1"), of("1 + past")), ([16, 16, 32], [1, 16, 17], [1, 16, 17]));
        assert_eq!((of("seq"), of("past")), ([16, 16, 16], [16, 16, 16]));
        assert_eq!((of("past + 0")[0], of("past + 4000000000000")[0]), (16, 16));
        // One token at a time.
        let one = InputSpec { dims: vec![Dim::Symbol("b".into()), Dim::Known(1)], ..input("input_ids", false, &[]) };
        let specs = [one, input("past.key", true, &["b", "past"]), input("attention_mask", false, &["b", "total"])];
        assert_eq!(Sizes::of(&specs, &[None, None, None]).sum("total"), 17);
    }
}
