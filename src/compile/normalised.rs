//! Whether pictures have the mean and std that a classifier was trained with, by how sure it is of its answers.
//!
//! A classifier that sees pictures as in training is surer than one that sees them too pale, too dark or off in colour. The
//! same pictures are shown to it as they are given and as the customary normalisations would give them; where one of these
//! leaves clearly less entropy in its answers, picture by picture, the given one is doubted. This takes no labels. On 128
//! photographs ViT-tiny (mean and std 0.5) has 0.68 nats on average, and 1.48 with ImageNet's numbers; DeiT-tiny (ImageNet's)
//! 2.17, and 4.42 with 0.5; with pixels from 0 to 255 both have 4.9 and more.

use super::error::CompilerError;
use super::stages::Running;
use crate::calibrate::data::{self, Coloured, Dataset};
use crate::calibrate::looks::unusual;
use crate::calibrate::run::open_shapes;
use crate::ir::{Model, validate};
use crate::runtime::{Array, Session, SessionOptions, fold_samples};
use crate::verify::disagree::shares;
use crate::verify::kinds::{Kind, kinds};

/// Samples that are looked at first, and as many as settle what these leave in doubt. With the right numbers nearly every
/// sample has about half of the entropy that it has with wrong ones, so few are enough.
const FIRST: usize = 4;
const ALL: usize = 32;
/// Samples below which a difference can be chance.
const FEWEST: usize = 8;
/// Samples by whose range the normalisation of arrays is guessed.
const RANGED: usize = 8;
/// Fewest classes whose entropy says much.
const CLASSES: usize = 10;
/// Entropy that the other must spare, as a share of the most that there can be, and in how many standard errors.
const SPARED: f64 = 0.02;
const SURELY: f64 = 2.5;

/// What pixels from 0 to 1 are normalised with: mean and std of each colour.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Numbers {
    name: &'static str,
    of: [(f32, f32); 3],
}

const IMAGENET: Numbers =
    Numbers { name: "ImageNet's mean and std (--preset imagenet)", of: by_colour(data::IMAGENET) };
const HALF: Numbers = Numbers { name: "mean and std 0.5 (--preset inception)", of: by_colour(data::HALF) };
const UNIT: Numbers = Numbers { name: "pixels from 0 to 1 (--preset unit)", of: [(0.0, 1.0); 3] };
const BYTES: Numbers = Numbers { name: "pixels from 0 to 255", of: [(0.0, 1.0 / 255.0); 3] };

const fn by_colour((mean, std): ([f32; 3], [f32; 3])) -> [(f32, f32); 3] {
    [(mean[0], std[0]), (mean[1], std[1]), (mean[2], std[2])]
}

/// What is to be said about how the pictures of a data set are normalised; nothing if they look right, or cannot be judged.
///
/// # Errors
/// If a sample cannot be made, or somebody asked to stop.
pub fn doubts(data: &Dataset, m: &Model, how: Running<'_>) -> Result<Option<String>, CompilerError> {
    let by_range = unusual(data, m)?;
    let looked = match data.coloured() {
        Some(c) => Look::of(data, m, c, how)?,
        None => None,
    };
    Ok(match looked {
        Some(l) => match l.better(data, how)? {
            Better::Other(said) => Some(said),
            // The model knows better than a range does.
            Better::Given => None,
            Better::Unknown => by_range.into_iter().next(),
        },
        None => by_range.into_iter().next(),
    })
}

/// A classifier, and what its pictures are given as.
struct Look {
    session: Session,
    /// Which output holds the scores.
    output: usize,
    picture: Coloured,
    given: Numbers,
    classes: usize,
}

enum Better {
    Given,
    Other(String),
    Unknown,
}

impl Look {
    /// `None` for what is no classifier, does not run, or gets what cannot be told.
    fn of(data: &Dataset, m: &Model, picture: Coloured, how: Running<'_>) -> Result<Option<Look>, CompilerError> {
        let Some(output) = kinds(m).iter().position(|k| *k == Kind::Classes { axis: 1 }) else { return Ok(None) };
        let given = match picture.normalised {
            Some(of) => Numbers { name: "", of },
            None => match guessed(data, picture.input, how)? {
                Some(n) => n,
                None => return Ok(None),
            },
        };
        let sample = data.sample(0)?;
        let shapes = open_shapes(&m.graph, &sample.inputs);
        let options = SessionOptions { batch: data.batch(), shapes, ..SessionOptions::default() };
        // What does not run is told where it is to run.
        let Ok(session) = Session::of(validate::validate(m)?, &options) else { return Ok(None) };
        let Ok(out) = session.run(&sample.inputs) else { return Ok(None) };
        let classes = match out.outputs[output].dims() {
            [n, classes] if *n == data.batch() && *classes >= CLASSES => *classes,
            _ => return Ok(None),
        };
        Ok(Some(Look { session, output, picture, given, classes }))
    }

    /// Whether another normalisation makes the model surer.
    fn better(&self, data: &Dataset, how: Running<'_>) -> Result<Better, CompilerError> {
        let others: Vec<Numbers> = [IMAGENET, HALF, UNIT, BYTES].into_iter().filter(|n| !n.is(&self.given)).collect();
        let most = data.len().min(ALL);
        if most < FEWEST {
            return Ok(Better::Unknown);
        }
        // Spread over the data, in an order whose beginning is spread as well.
        let spread: Vec<usize> = (0..most).map(|i| i * data.len() / most).collect();
        let step = most.div_ceil(FIRST).max(1);
        let order: Vec<usize> = (0..step).flat_map(|k| spread.iter().skip(k).step_by(step).copied()).collect();
        let done = how.steps("looking at pictures", 1);
        let found = self.among(data, &order, &others, how);
        done(1);
        let Some((given, theirs)) = found? else { return Ok(Better::Unknown) };
        if theirs.iter().all(|t| mean(t) >= mean(&given)) {
            return Ok(Better::Given);
        }
        let spared = |t: &[f64]| given.iter().zip(t).map(|(g, t)| g - t).collect::<Vec<f64>>();
        let enough = SPARED * (self.classes as f64).ln();
        let surely = others.iter().zip(&theirs).filter(|(_, t)| {
            let d = spared(t);
            mean(&d) >= enough && mean(&d) >= SURELY * standard_error(&d)
        });
        let Some((best, t)) = surely.min_by(|a, b| mean(a.1).total_cmp(&mean(b.1))) else { return Ok(Better::Unknown) };
        Ok(Better::Other(format!(
            "the pictures, {}, may be normalised with the wrong numbers: the float model is surer of its classes with {} (entropy \
             {:.2} in place of {:.2} on {} samples; {:.2} is a guess). Look up what it was trained with",
            self.given.said(),
            best.name,
            mean(t),
            mean(&given),
            given.len(),
            (self.classes as f64).ln()
        )))
    }

    /// The entropies with the given normalisation, and with each other one; without the others if none of them leaves less on the
    /// first samples. `None` if the model does not run on one.
    fn among(
        &self,
        data: &Dataset,
        order: &[usize],
        others: &[Numbers],
        how: Running<'_>,
    ) -> Result<Option<Entropies>, CompilerError> {
        let first = &order[..order.len().min(FIRST)];
        let Some(given) = self.entropies(data, first, &self.given, f64::INFINITY, how)? else { return Ok(None) };
        // Entropies are not negative: what reaches the sum of the given ones does not come below it again.
        let most: f64 = given.iter().sum();
        let mut surer = false;
        for n in others {
            let Some(found) = self.entropies(data, first, n, most, how)? else { return Ok(None) };
            surer |= found.iter().sum::<f64>() < most;
        }
        if !surer {
            return Ok(Some((given, Vec::new())));
        }
        let all = |n: &Numbers| self.entropies(data, order, n, f64::INFINITY, how);
        let theirs = others.iter().map(all).collect::<Result<Option<_>, _>>()?;
        Ok(all(&self.given)?.zip(theirs))
    }

    /// For each sample the entropy of the answers, in nats, if it is normalised with these numbers; as far as their sum has not
    /// reached `most`. `None` if the model does not run on one.
    fn entropies(
        &self,
        data: &Dataset,
        indices: &[usize],
        to: &Numbers,
        most: f64,
        how: Running<'_>,
    ) -> Result<Option<Vec<f64>>, CompilerError> {
        let one = |i: usize| -> Result<Option<f64>, CompilerError> {
            let mut inputs = data.sample(indices[i])?.inputs;
            let x = &mut inputs[self.picture.input].1;
            *x = renormalised(x, self.picture.axis, &self.given, to);
            let Ok(out) = self.session.run(&inputs) else { return Ok(None) };
            Ok(Some(entropy(&out.outputs[self.output].f32s(), self.classes)).filter(|x| x.is_finite()))
        };
        let mut all = Vec::new();
        // As many at once as there are threads.
        for some in (0..indices.len()).collect::<Vec<_>>().chunks(how.threads.max(1)) {
            if all.iter().sum::<f64>() >= most {
                break;
            }
            let mut runs = true;
            fold_samples(
                some.len(),
                how.threads,
                |i| one(some[i]),
                |_, x: Option<f64>| {
                    runs &= x.is_some();
                    all.extend(x);
                    Ok::<(), CompilerError>(())
                },
            )?;
            if !runs {
                return Ok(None);
            }
        }
        Ok(Some(all))
    }
}

/// Those of the given normalisation, and of each other.
type Entropies = (Vec<f64>, Vec<Vec<f64>>);

impl Numbers {
    fn is(&self, other: &Numbers) -> bool {
        self.of.iter().zip(&other.of).all(|(a, b)| (a.0 - b.0).abs() < 0.02 && (a.1 / b.1 - 1.0).abs() < 0.05)
    }

    /// As people write them.
    fn said(&self) -> String {
        if !self.name.is_empty() {
            return format!("by their range {}", self.name.split(" (").next().unwrap_or_default());
        }
        let list = |f: fn(&(f32, f32)) -> f32| {
            let all: Vec<String> = self.of.iter().map(|n| format!("{:.3}", f(n))).collect();
            all.join(" ")
        };
        format!("with mean {} and std {}", list(|n| n.0), list(|n| n.1))
    }
}

/// What arrays were normalised with, by what they reach.
fn guessed(data: &Dataset, input: usize, how: Running<'_>) -> Result<Option<Numbers>, CompilerError> {
    let take = data.len().min(RANGED);
    let (mut least, mut most) = (f32::INFINITY, f32::NEG_INFINITY);
    let range = |i: usize| -> Result<(f32, f32), CompilerError> {
        let s = data.sample(i * data.len() / take)?;
        let x = s.inputs[input].1.f32s();
        Ok(x.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(a, b), x| (a.min(*x), b.max(*x))))
    };
    fold_samples(take, how.threads, range, |_, (a, b)| {
        (least, most) = (least.min(a), most.max(b));
        Ok::<(), CompilerError>(())
    })?;
    let within = |a: f32, b: f32| least >= a - 1e-3 && most <= b + 1e-3;
    Ok(if within(0.0, 1.0) {
        Some(UNIT)
    } else if within(0.0, 255.0) && most > 16.0 {
        Some(BYTES)
    } else if within(-1.0, 1.0) {
        Some(HALF)
    } else if within(-2.118, 2.64) {
        Some(IMAGENET)
    } else {
        None
    })
}

/// A picture with other mean and std than it has.
fn renormalised(x: &Array, axis: usize, from: &Numbers, to: &Numbers) -> Array {
    let inner: usize = x.dims()[axis + 1..].iter().product();
    let turn = |(i, x): (usize, &f32)| {
        let ((m, s), (to_m, to_s)) = (from.of[i / inner % 3], to.of[i / inner % 3]);
        (x * s + m - to_m) / to_s
    };
    let turned: Vec<f32> = x.f32s().iter().enumerate().map(turn).collect();
    let made = match x {
        Array::F16(_) => Array::new(x.dims(), turned.into_iter().map(half::f16::from_f32).collect::<Vec<_>>()),
        Array::F64(_) => Array::new(x.dims(), turned.into_iter().map(f64::from).collect::<Vec<_>>()),
        _ => Array::new(x.dims(), turned),
    };
    made.expect("as many elements as before")
}

/// Mean entropy of rows of scores, in nats.
fn entropy(scores: &[f32], classes: usize) -> f64 {
    let of = |row: &[f32]| -> f64 { shares(row).iter().filter(|p| **p > 0.0).map(|p| -p * p.ln()).sum() };
    mean(&scores.chunks(classes).map(of).collect::<Vec<_>>())
}

fn mean(v: &[f64]) -> f64 {
    v.iter().sum::<f64>() / v.len().max(1) as f64
}

/// Of the mean.
fn standard_error(v: &[f64]) -> f64 {
    let (n, m) = (v.len() as f64, mean(v));
    if n < 2.0 {
        return f64::INFINITY;
    }
    (v.iter().map(|x| (x - m).powi(2)).sum::<f64>() / (n - 1.0) / n).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::Stop;
    use crate::calibrate::data::{DataOptions, InputSpec};
    use crate::text::parse_model;

    /// Sure of class 0 by how many elements are near -1 or 1, as those of black and white pictures are with mean and std 0.5.
    fn sure_of_ones() -> Model {
        let w: Vec<&str> = (0..48 * 12).map(|i| if i % 12 == 0 { "0.05" } else { "0.0" }).collect();
        let (w, b) = (w.join(", "), ["0.0"; 12].join(", "));
        parse_model(&format!(
            "<ir_version: 8, opset_import: [\"\" : 17]>\n\
             g (float[n, 3, 4, 4] x) => (float[n, 12] logits) \
             <float[48, 12] w = {{{w}}}, float[12] b = {{{b}}}, float one = {{1.0}}, float four = {{4.0}}, float two = {{2.0}}> {{ \
             s = Mul (x, x) d = Sub (s, one) a = Abs (d) m = Mul (a, four) r = Sub (two, m) f = Relu (r) \
             flat = Flatten <axis = 1> (f) logits = Gemm (flat, w, b) }}"
        ))
        .unwrap()
    }

    /// What is said about black and white pictures with these numbers.
    fn told(n: Numbers, samples: usize) -> Option<String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.npy");
        let a = ndarray::Array4::from_shape_fn((samples, 3, 4, 4), |(i, c, y, x)| {
            let p = if (i + c + y * y + x) % 2 == 0 { 0.0 } else { 1.0 };
            (p - n.of[c].0) / n.of[c].1
        });
        ndarray_npy::write_npy(&path, &a).unwrap();
        let m = sure_of_ones();
        let options = DataOptions { calibrate: Some(path), ..DataOptions::default() };
        let data = Dataset::open(&options, &InputSpec::of(&m.graph).unwrap()).unwrap();
        let stop = Stop::default();
        doubts(&data, &m, Running { threads: 2, tell: &|_| (), stop: &stop }).unwrap()
    }

    #[test]
    fn the_numbers_that_leave_a_model_unsure_are_doubted() {
        for wrong in [IMAGENET, UNIT, BYTES] {
            let said = told(wrong, 24).unwrap_or_else(|| panic!("{wrong:?} is not doubted"));
            assert!(said.contains("surer of its classes with mean and std 0.5 (--preset inception)"), "{said}");
            assert!(said.contains("on 24 samples"), "{said}");
        }
        assert_eq!(told(HALF, 24), None, "these are right");
        assert!(told(IMAGENET, 1).is_none_or(|s| !s.contains("surer")), "one sample says nothing");
    }
}
