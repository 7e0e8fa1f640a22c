//! `integer-norm`: LayerNormalization and RMSNormalization whose statistics are computed on codes, in exact integers.
//!
//! *What it does.* With `v[c] = (q[c] - z[c]) f[c]`, the integers that Power-of-Two Factors and whole factors stand for,
//! and `C` channels:
//!
//! 1. `S1 = sum v`, exact; `m = round(S1 / C)`, an integer; `delta = (S1 - C m) / C`, the rest of the mean;
//! 2. `u = v - m`, exact; `S2 = sum u^2`, exact: `u = h + l` with `h` the nearest multiple of `B` (a power of two), and
//!    `S2 = sum h^2 + 2 sum h l + sum l^2`, each of the three an exact sum;
//! 3. `y = (u - delta) / sqrt(S2 / C - delta^2 + eps / s^2) * gamma + beta` in float32.
//!
//! RMSNormalization takes no mean off: `m` and `delta` are 0.
//!
//! The tensor scale `s` cancels, except against epsilon. (The published code drops epsilon; here it stays.)
//!
//! Integers are held in float32, where both runtimes vectorise, as long as no partial sum can pass 2^24 whatever the
//! codes are; otherwise that one sum is accumulated in int32. Which of the two is known when the pass runs: with
//! `R = max v - min v` over all channels and codes, the squares about the mean sum to `C (R/2)^2` at most.
//!
//! *When it fires.* For each LayerNormalization over the last axis that reads a DequantizeLinear of 8-bit or 16-bit codes
//! directly, with scales `s f[c]`, `f` whole numbers up to 256 (powers of two are the published case), or with one scale
//! (all `f` are 1). Other readers of the DequantizeLinear, the residual Add among them, keep it.
//!
//! *Why it is correct.* `x = s v`, so the mean of `x` is `s (m + delta)` and its variance is `s^2 (S2 / C - delta^2)`.
//!
//! *Numerics.* Close. Step 1, `u` and the three sums are exact. `|h| <= 2 |u|` and `|l| <= |u|`, so the three
//! magnitudes add up to `9 S2` at most, and rounding each (int32 to float32) and adding them errs by less than
//! `20 * 2^-24 S2`. As `u` is an integer, `S2 / C >= |delta|`, and `|delta| < 0.52`, so that taking `delta^2` away at
//! most doubles a relative error, and a little more. That leaves the normalised value within 2.5e-6 of itself in the
//! worst case; about 2e-7 is usual.
//!
//! *Before / after.*
//! ```text
//! d = DequantizeLinear (q, scale, zero)      v = DequantizeLinear (q, {1, 8, ...}, zero)
//! y = LayerNormalization (d, gamma, beta)    y = Add (Mul (Mul (Sub (Sub (v, m), delta), rstd), gamma), beta)
//! ```
//!
//! *Source.* FQ-ViT, arXiv 2111.13824, section 3.2 (statistics of shifted codes); the centring by an integer and the
//! digits are this project's.

use std::borrow::Cow;

use crate::ir::{DType, Graph, NodeId, Op, Tensor, ValueId};
use crate::passes::{Context, Numerics, Outcome, Pass, PassError};
use crate::rewrite::{Patch, Ref, Under};

/// Largest factor the error bound is stated for; the planner uses up to 2^7.
const MAX_FACTOR: u32 = 256;
/// Integers up to this magnitude are exact in float32.
const F32_EXACT: f64 = 16_777_216.0;

/// The pass. It takes everything from the graph: the codes' scales and zero points are the plan's.
pub struct IntegerNorm;

impl Pass for IntegerNorm {
    fn id(&self) -> &'static str {
        "integer-norm"
    }

    fn summary(&self) -> &'static str {
        "Computes mean and variance of LayerNormalization from codes, in exact integer arithmetic."
    }

    fn numerics(&self) -> Numerics {
        Numerics::Close { rel: 1e-5 }
    }

    fn run(&self, m: &mut Context) -> Result<Outcome, PassError> {
        let mut out = Outcome::default();
        let is_norm = |op: &Op| op.is("LayerNormalization") || op.is("RMSNormalization");
        let norms: Vec<NodeId> = m.graph.nodes().filter(|(_, n)| is_norm(&n.op)).map(|(i, _)| i).collect();
        for n in norms {
            match Norm::of(&m.graph, n) {
                Ok(norm) => {
                    m.commit(norm.patch(&m.graph, self.id()))?;
                    out.changes += 1;
                }
                Err(why) => {
                    out.notes.push(format!("`{}` keeps its float statistics: {why}", m.graph.node(n).name));
                }
            }
        }
        m.sweep();
        Ok(out)
    }
}

/// How one exact sum is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Held {
    Float,
    Int32,
}

impl Held {
    /// `most`: what the magnitudes of the terms can add up to. `None` if not even int32 holds it.
    fn for_sum(most: f64) -> Option<Held> {
        match most {
            m if m <= F32_EXACT => Some(Held::Float),
            m if m < f64::from(i32::MAX) => Some(Held::Int32),
            _ => None,
        }
    }
}

/// How squares are summed.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Squares {
    /// They fit as they are.
    Whole,
    /// As digits to base `base`.
    Digits { base: f64, high: Held, cross: Held, low: Held },
}

impl Squares {
    /// The cheapest exact form for `channels` values whose root mean square is `rms` at most and whose magnitude is
    /// `reach` at most.
    fn choose(channels: f64, rms: f64, reach: f64) -> Option<Squares> {
        if channels * rms * rms <= F32_EXACT {
            return Some(Squares::Whole);
        }
        // The high digit is at most half off the quotient, so its root mean square is within a half of the quotient's.
        let high = |base: f64| rms / base + 0.5;
        let base = (1..=12)
            .map(|b| f64::powi(2.0, b))
            .min_by(|a, b| high(*a).max(a / 2.0).total_cmp(&high(*b).max(b / 2.0)))?;
        // A single square must be exact in float32 before it goes into any sum.
        if (reach / base + 0.5).powi(2) > F32_EXACT {
            return None;
        }
        let (h, l) = (high(base), base / 2.0);
        Some(Squares::Digits {
            base,
            high: Held::for_sum(channels * h * h)?,
            cross: Held::for_sum(channels * h * l)?,
            low: Held::for_sum(channels * l * l)?,
        })
    }
}

/// The largest scale that all are exact multiples of, with the multiples.
fn common_base(scales: &[f32]) -> Option<(f32, Vec<f32>)> {
    let least = scales.iter().copied().fold(f32::INFINITY, f32::min);
    let multiples = |base: f32| -> Option<Vec<f32>> {
        let whole = |s: &f32| {
            let f = (s / base).round();
            (f <= MAX_FACTOR as f32 && base * f == *s).then_some(f)
        };
        scales.iter().map(whole).collect()
    };
    (1..=MAX_FACTOR).map(|k| least / k as f32).filter(|b| b.is_normal()).find_map(|b| Some((b, multiples(b)?)))
}

/// A LayerNormalization over codes.
#[derive(Debug)]
struct Norm {
    node: NodeId,
    out: ValueId,
    /// What reads the codes.
    dq: NodeId,
    /// `f[c]`, shaped like the scales.
    factors: Tensor,
    channels: usize,
    /// How the sum of a row is held; `None` where no mean is taken off.
    sum: Option<Held>,
    squares: Squares,
    /// `eps / s^2`.
    epsilon: f32,
    gamma: ValueId,
    beta: Option<ValueId>,
}

/// The codes that a LayerNormalization reads.
struct Codes<'g> {
    dq: NodeId,
    scales: Cow<'g, [f32]>,
    /// Of the tensor of scales.
    dims: &'g [i64],
    zeros: Vec<i64>,
    /// Lowest and highest code.
    range: (i64, i64),
}

impl<'g> Codes<'g> {
    /// The DequantizeLinear that makes `v`, or why it is of no use.
    fn read(g: &'g Graph, v: ValueId) -> Result<Codes<'g>, String> {
        let dq = g.producer_is(v, "DequantizeLinear");
        let dq = dq.ok_or_else(|| format!("its input `{}` does not come from codes directly", g.name_of(v)))?;
        let n = g.node(dq);
        let (Some(codes), Some(scale)) = (n.input(0), n.input(1)) else { return Err("it is malformed".into()) };
        let constant = |v: ValueId| g.constant(v).ok_or_else(|| format!("`{}` is no constant", g.name_of(v)));
        let st = constant(scale)?;
        let scales = st.to_f32s().filter(|s| !s.is_empty()).ok_or("its scales cannot be read")?;
        let zt = n.input(2).map(constant).transpose()?;
        let zeros = match zt {
            Some(t) => t.to_i64s().filter(|z| z.len() == scales.len()).ok_or("its zero points cannot be read")?,
            None => vec![0; scales.len()],
        };
        let code = zt.map(|t| t.dtype).or_else(|| g.value(codes).ty.as_ref().map(|t| t.dtype));
        let range = match code {
            Some(DType::UINT8) => (0, 255),
            Some(DType::INT8) => (-128, 127),
            Some(DType::UINT16) => (0, 65535),
            Some(DType::INT16) => (-32768, 32767),
            _ => return Err("its codes are not known to have 8 or 16 bits".into()),
        };
        Ok(Codes { dq, scales, dims: &st.dims, zeros, range })
    }

    /// The smallest and the largest number of each channel, over all codes there can be, with scales of `factors`.
    fn ends(&self, factors: &[f32]) -> Vec<(f64, f64)> {
        let (lo, hi) = self.range;
        let end = |f: f32, q: i64| f64::from(f) * q as f64;
        let of = |(f, z): (&f32, &i64)| (end(*f, lo - z), end(*f, hi - z));
        factors.iter().zip(&self.zeros).map(of).collect()
    }
}

/// How the two sums are held: of the numbers, where a mean is taken off, and of their squares. `None` if 32 bits are too few.
fn sums(ends: &[(f64, f64)], channels: usize, centred: bool) -> Option<(Option<Held>, Squares)> {
    let each = (channels / ends.len()) as f64;
    let total: f64 = ends.iter().map(|(a, b)| a.abs().max(b.abs())).sum::<f64>() * each;
    let low = ends.iter().fold(f64::INFINITY, |m, e| m.min(e.0));
    let high = ends.iter().fold(f64::NEG_INFINITY, |m, e| m.max(e.1));
    let (range, count) = (high - low, channels as f64);
    // `C m` differs from the sum by less than C; the centre from the mean by less than 1.
    let sum = if centred { Some(Held::for_sum(total + count)?) } else { None };
    // About the mean, or about 0.
    let far = low.abs().max(high.abs()) + 1.0;
    let (rms, reach) = if centred { (range / 2.0 + 1.0, range + 1.0) } else { (far, far) };
    Some((sum, Squares::choose(count, rms, reach)?))
}

impl Norm {
    /// What there is to know about a LayerNormalization, or why it stays.
    fn of(g: &Graph, id: NodeId) -> Result<Norm, String> {
        let n = g.node(id);
        let (Some(x), Some(gamma), Some(out)) = (n.input(0), n.input(1), n.out()) else {
            return Err("it is malformed".into());
        };
        if (1..n.outputs.len()).any(|i| n.output(i).is_some_and(|v| g.use_count(v) > 0)) {
            return Err("its mean or deviation is read".into());
        }
        let rank = [out, x].into_iter().find_map(|v| g.rank(v)).map(|r| r as i64);
        let last = |axis: i64| axis == -1 || rank.is_some_and(|r| axis == r - 1);
        if !last(n.int("axis")) {
            return Err("it does not normalise the last axis alone".into());
        }
        let q = Codes::read(g, x)?;
        // Gamma has one element per channel, whatever the scales have.
        let channels = g.constant(gamma).map(Tensor::len).ok_or("its number of channels is not known")?;
        let along = q.scales.len() == channels && last(g.node(q.dq).int("axis"));
        if !(q.dims.is_empty() || q.scales.len() == 1 || (q.dims.len() == 1 && along)) {
            return Err("its scales do not run along the last axis".into());
        }
        let (base, factors) = common_base(&q.scales)
            .ok_or_else(|| format!("its scales are not one scale times whole numbers up to {MAX_FACTOR}"))?;
        let eps = f64::from(n.float("epsilon"));
        let epsilon = (eps / f64::from(base).powi(2)) as f32;
        if !(epsilon.is_normal() || eps == 0.0) {
            return Err(format!("epsilon / scale^2 = {eps} / {base}^2 is no normal float32"));
        }
        let centred = !n.op.is("RMSNormalization");
        let (sum, squares) = sums(&q.ends(&factors), channels, centred)
            .ok_or_else(|| format!("{channels} channels are too many for exact sums in 32 bits"))?;
        Ok(Norm {
            node: id,
            out,
            dq: q.dq,
            factors: Tensor::f32(q.dims, &factors),
            channels,
            sum,
            squares,
            epsilon,
            gamma,
            beta: n.input(2),
        })
    }

    fn patch(&self, g: &Graph, by: &str) -> Patch {
        let name = g.name_of(self.out);
        let mut p = Patch::new(by).made_from([g.node(self.node).name.clone()]).before(self.node);
        let mut e = p.inside(name);
        let factors = e.constant("factors", self.factors.clone());
        let v = e.like(g.node(self.dq), "v", &[(1, factors)]);
        let mean = self.sum.map(|held| mean(&mut e, v, self.channels, held));
        let u = mean.map_or(v, |(m, _)| e.op("Sub", "centred", &[v, m]));
        let squares = squares(&mut e, u, self.squares);

        let inverse = e.scalar("per_channel", 1.0 / self.channels as f32);
        let about = e.op("Mul", "mean_square", &[squares, inverse]);
        let var = mean.map_or(about, |(_, delta)| {
            let rest = e.op("Mul", "rest_square", &[delta, delta]);
            e.op("Sub", "variance", &[about, rest])
        });
        let eps = e.scalar("epsilon", self.epsilon);
        let var = e.op("Add", "variance_epsilon", &[var, eps]);
        let std = e.op("Sqrt", "deviation", &[var]);
        let rstd = e.op("Reciprocal", "inverse_deviation", &[std]);

        let d = mean.map_or(u, |(_, delta)| e.op("Sub", "distance", &[u, delta]));
        let d = e.op("Mul", "normalised", &[d, rstd]);
        let mut y = e.op("Mul", "scaled", &[d, self.gamma.into()]);
        if let Some(beta) = self.beta {
            y = e.op("Add", "shifted", &[y, beta.into()]);
        }
        p.succeed(self.out, y);
        p
    }
}

fn row_sum(e: &mut Under<'_>, part: &str, x: Ref) -> Ref {
    // Integer norms are written in no older operator set.
    e.reduced_by("ReduceSum", part, x, "last_axis", 13)
}

/// The integer nearest to the mean, and what the mean has beyond it.
fn mean(e: &mut Under<'_>, v: Ref, channels: usize, held: Held) -> (Ref, Ref) {
    let inverse = e.scalar("per_channel", 1.0 / channels as f32);
    let (m, rest) = match held {
        Held::Float => {
            let s = row_sum(e, "sum", v);
            let mean = e.op("Mul", "mean", &[s, inverse]);
            let m = e.op("Round", "centre", &[mean]);
            let count = e.scalar("channels", channels as f32);
            let all = e.op("Mul", "centre_sum", &[m, count]);
            (m, e.op("Sub", "rest_sum", &[s, all]))
        }
        Held::Int32 => {
            let v = e.cast("v_i32", v, DType::INT32);
            let s = row_sum(e, "sum", v);
            let near = e.cast("sum_f32", s, DType::FLOAT);
            let mean = e.op("Mul", "mean", &[near, inverse]);
            let m = e.op("Round", "centre", &[mean]);
            let count = e.constant("channels", Tensor::i32(&[], &[channels as i32]));
            let whole = e.cast("centre_i32", m, DType::INT32);
            let all = e.op("Mul", "centre_sum", &[whole, count]);
            let rest = e.op("Sub", "rest_sum_i32", &[s, all]);
            (m, e.cast("rest_sum", rest, DType::FLOAT))
        }
    };
    (m, e.op("Mul", "rest", &[rest, inverse]))
}

/// The sum of squares of a row.
fn squares(e: &mut Under<'_>, u: Ref, how: Squares) -> Ref {
    match how {
        Squares::Whole => {
            let s = e.op("Mul", "square", &[u, u]);
            row_sum(e, "squares", s)
        }
        Squares::Digits { base, high, cross, low } => {
            // Both factors are powers of two. Adding and taking away a large constant would round as well, but a
            // runtime may see that the two cancel.
            let inverse = e.scalar("digit_inverse", (1.0 / base) as f32);
            let digit = e.scalar("digit", base as f32);
            let t = e.op("Mul", "quotient", &[u, inverse]);
            let t = e.op("Round", "high_digit", &[t]);
            let h = e.op("Mul", "high", &[t, digit]);
            let l = e.op("Sub", "low", &[u, h]);
            let hh = product_sum(e, "high_high", h, h, base * base, high);
            let hl = product_sum(e, "high_low", h, l, base, cross);
            let ll = product_sum(e, "low_low", l, l, 1.0, low);
            let two = e.scalar("two", 2.0);
            let hl = e.op("Mul", "high_low_twice", &[hl, two]);
            let s = e.op("Add", "upper_squares", &[hh, hl]);
            e.op("Add", "squares", &[s, ll])
        }
    }
}

/// `sum a b` over a row, the products being multiples of `unit`.
fn product_sum(e: &mut Under<'_>, part: &str, a: Ref, b: Ref, unit: f64, held: Held) -> Ref {
    let ab = e.op("Mul", part, &[a, b]);
    match held {
        // A common power of two takes nothing from what float32 holds exactly.
        Held::Float => row_sum(e, &format!("{part}_sum"), ab),
        Held::Int32 => {
            let down = e.part(part).scalar("unit_inverse", (1.0 / unit) as f32);
            let n = e.part(part).op("Mul", "units", &[ab, down]);
            let n = e.part(part).cast("i32", n, DType::INT32);
            let s = row_sum(e, &format!("{part}_sum_i32"), n);
            let s = e.part(part).cast("sum_units", s, DType::FLOAT);
            let up = e.part(part).scalar("unit", unit as f32);
            e.part(part).op("Mul", "sum", &[s, up])
        }
    }
}
