//! From a spec and the facts of one attention to the constants of its arithmetic.
//!
//! Everything is integers or integers over a power of two. A score distance `d` in 0..=255 becomes a position on the
//! code axis by `K d / 2^F` with `K = round(s p log2(e) 2^F)`, `p` the base's steps per octave. `F` is 14, or less where
//! the scale is so large that `255 K` would leave the 24 bits that float32 holds exactly: the emitted graph keeps these
//! numbers in float32.

use crate::ir::DType;

use super::spec::{Anchor, Form, LisError, LisSpec, Normalise, Rounding, Tail};

/// Fraction bits of the fixed-point logarithm of a row sum, and the most a code position has.
pub(crate) const LOG_BITS: u32 = 14;
/// Binary order of the table's largest exponential: with it 8191 keys sum up in int32.
pub(crate) const TABLE_BITS: u32 = 18;
/// Binary order of the polynomial's largest exponential.
pub(crate) const POLY_BITS: u32 = 16;
/// I-BERT's second-order polynomial `a (x + b)^2 + c` for `exp(x)`, x in (-ln 2, 0].
const IBERT: (f64, f64, f64) = (0.3585, 1.353, 0.344);
/// Of so many keys, sums of rows are exact whatever the values are; and so many are assumed where a graph leaves it open.
pub const MOST_KEYS: usize = 1 << 15;
/// Float32 holds every integer up to here.
const EXACT: f64 = (1u32 << 24) as f64;

/// What the arithmetic depends on besides the spec.
#[derive(Clone, Debug, PartialEq)]
pub struct LisFacts {
    /// Scale of the score codes, for the whole tensor or per head.
    pub score_scale: Vec<f32>,
    /// Scale of V's codes, for the whole tensor or per head.
    pub v_scale: Vec<f32>,
    pub v_zero: i32,
    /// `UINT8` or `INT8`.
    pub v_type: DType,
    /// Number of keys (the length of a row), when the graph fixes it.
    pub keys: Option<usize>,
}

impl LisFacts {
    /// Of an attention whose weights are wanted, whatever they are multiplied with.
    pub fn of_weights(score_scale: Vec<f32>, keys: Option<usize>) -> LisFacts {
        LisFacts { score_scale, v_scale: vec![1.0], v_zero: 0, v_type: DType::UINT8, keys }
    }
}

/// How one plan multiplies weights with V.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Product {
    /// Two uint8 planes through `MatMulInteger`.
    Planes,
    /// One float `MatMul`; every partial sum is an integer below 2^24.
    Float,
    /// As `Float`, after weights were rounded to multiples of `P / 2^16` (`ratio` 192) or `P / 2^15` (`ratio` 384),
    /// where P is the row sum rounded to a power of two.
    Guarded { ratio: f32 },
}

/// How a code becomes a weight.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Weights {
    /// `one >> min(c, clip)`.
    Shift { one: u32, clip: u32 },
    /// `table[head][min(c, clip)]`; all tables have `clip + 1` entries.
    Table { tables: Vec<Vec<u32>>, clip: u32 },
    /// Steps of half an octave up to code `fine[head]`, of an octave from there; from code `zero` on nothing. A weight is
    /// `(a >> (k + 1) / 2) + (b >> k / 2)` for `k` half octaves: `a + b` is 1, `a / 2 + b` the root of a half.
    Knee { fine: Vec<u32>, a: u32, b: u32, zero: Option<u32>, clip: u32 },
    /// From the ratio of row sum and exponential, no code position in between (sum anchor, paper rounding): with
    /// `R = (S + e/2) / e` snapped to a power of two P at 1.5 times a power, `max(floor(one / P), floor)`.
    Ratio { one: u32, floor: u32 },
}

/// Constants of the exponentials of one sum anchor, one entry per head (or one for all).
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Exps {
    None,
    /// `table[head][d] = max(1, round(2^18 exp(-d s)))`.
    Table(Vec<Vec<u32>>),
    /// `floor(2^16 poly(f)) >> q` where `q + f = min(k d, 31)`; the multipliers are over `2^bits`.
    Poly {
        k: Vec<u32>,
        bits: u32,
    },
    Iexp(Vec<Iexp>),
}

/// I-BERT's i-exp on `d << shift`, whose scale is `s / 2^shift`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Iexp {
    pub shift: u32,
    /// `ceil(ln 2 / s')`. Ceiling, so that the remainder never leaves the polynomial's interval.
    pub x0: i32,
    /// `floor(d 2^shift / x0) = (d inv) >> inv_bits` for every d in 0..=255.
    pub inv: i32,
    pub inv_bits: u32,
    /// `floor(b / s')` and `floor(c / (a s'^2))`.
    pub qb: i32,
    pub qc: i32,
    /// Bits dropped from the polynomial so that 18 stay.
    pub drop: u32,
}

/// The constants of the polynomial in base 2: `a (f - b)^2 + c` with float32 arithmetic, rounded after every operation.
pub(crate) struct Poly2 {
    pub a: f32,
    pub b: f32,
    pub c: f32,
}

/// `2^POLY_BITS * 2^-f`: I-BERT's polynomial with `x = -f ln 2`; `b` on the grid of code positions, so that `f - b` is
/// exact.
pub(crate) fn poly2() -> Poly2 {
    let (a, b, c) = IBERT;
    let ln2 = std::f64::consts::LN_2;
    let one = f64::from(1u32 << POLY_BITS);
    let grid = f64::from(1u32 << LOG_BITS);
    Poly2 { a: (a * ln2 * ln2 * one) as f32, b: ((b / ln2 * grid).round() / grid) as f32, c: (c * one) as f32 }
}

/// The constants of one log-int-softmax.
#[derive(Clone, Debug, PartialEq)]
pub struct LisPlan {
    pub(crate) spec: LisSpec,
    pub(crate) facts: LisFacts,
    /// Length of the per-head vectors below; 1 when all heads are alike.
    pub(crate) heads: usize,
    /// Fraction bits of code positions.
    pub(crate) bits: u32,
    /// Code positions per unit of distance, over `2^bits`.
    pub(crate) k: Vec<u32>,
    /// Steps per octave.
    pub(crate) steps: Vec<u32>,
    pub(crate) exps: Exps,
    /// Exponential of distance 0, per head; what a row sum is at least.
    pub(crate) e0: Vec<u32>,
    pub(crate) weights: Weights,
    pub(crate) product: Product,
}

impl LisPlan {
    /// Checks the facts against the spec and works out the constants. `hint` names the site in errors.
    ///
    /// # Errors
    /// If the facts contradict the spec or each other, or an integer would overflow.
    pub fn new(spec: &LisSpec, facts: &LisFacts, hint: &str) -> Result<LisPlan, LisError> {
        check(spec, facts, hint)?;
        let heads = [facts.score_scale.len(), facts.v_scale.len(), spec.bases().len(), spec.fine().len()]
            .into_iter()
            .max()
            .unwrap_or(1);
        // Vectors longer than 1 only where they differ, so that graphs stay per-tensor where they can.
        let alike = facts.score_scale.len() == 1 && spec.bases().len() <= 1 && spec.fine().len() <= 1;
        let n = if alike { 1 } else { heads };
        let scale = |h: usize| f64::from(facts.score_scale[h.min(facts.score_scale.len() - 1)]);
        let steps: Vec<u32> = (0..n).map(|h| spec.base_of(h).steps()).collect();
        let by_distance = goes_by_distance(spec);

        let rates: Vec<f64> = if by_distance {
            vec![1.0; n]
        } else {
            (0..n).map(|h| scale(h) * f64::from(steps[h]) * std::f64::consts::LOG2_E).collect()
        };
        let past = f64::from(spec.levels() + 1);
        // A sum adds at most 31 octaves to a position.
        let extra = if spec.anchor().is_sum() {
            31.0 * f64::from(*steps.iter().max().unwrap_or(&1))
        } else if spec.fine().is_empty() {
            0.0
        } else {
            // Half octaves up to the knee, and the borders.
            8.0
        };
        let (k, bits) = fixed(&rates, if by_distance { 1.0 } else { past }, extra);
        let exps = match spec.anchor() {
            Anchor::Max => Exps::None,
            Anchor::SumTable => Exps::Table(
                (0..n)
                    .map(|h| {
                        let one = f64::from(1u32 << TABLE_BITS);
                        (0..256).map(|d| (one * (-f64::from(d) * scale(h)).exp()).round().max(1.0) as u32).collect()
                    })
                    .collect(),
            ),
            Anchor::SumPoly => {
                let octaves: Vec<f64> = (0..n).map(|h| scale(h) * std::f64::consts::LOG2_E).collect();
                let (k, bits) = fixed(&octaves, 32.0, 0.0);
                Exps::Poly { k, bits }
            }
            Anchor::SumIexp => Exps::Iexp((0..n).map(|h| iexp(scale(h))).collect()),
        };
        let weights = weights(spec, facts, n);
        let mut plan = LisPlan {
            spec: spec.clone(),
            facts: facts.clone(),
            heads,
            bits,
            k,
            steps,
            exps,
            e0: Vec::new(),
            weights,
            product: Product::Float,
        };
        if spec.anchor().is_sum() {
            plan.e0 = (0..n).map(|h| exponential(&plan, h, 0)).collect();
            let largest = plan.e0.iter().copied().max().unwrap_or(1);
            let limit = (i32::MAX as u32 / largest) as usize;
            if let Some(keys) = facts.keys
                && keys > limit
            {
                return Err(LisError::Keys { keys, limit, hint: hint.to_owned() });
            }
        }
        plan.product = plan.choose(hint)?;
        Ok(plan)
    }

    /// Weight of code 0; no weight is larger.
    pub fn unit(&self) -> u32 {
        match &self.weights {
            Weights::Shift { one, .. } | Weights::Ratio { one, .. } => *one,
            Weights::Table { tables, .. } => tables[0][0],
            Weights::Knee { a, b, .. } => a + b,
        }
    }

    /// How many heads have an arithmetic of their own; 1 if all are alike.
    pub fn heads(&self) -> usize {
        self.heads
    }

    /// How the product is computed.
    pub fn product(&self) -> Product {
        self.product
    }

    /// What was asked for.
    pub fn spec(&self) -> &LisSpec {
        &self.spec
    }

    /// What it was planned for.
    pub fn facts(&self) -> &LisFacts {
        &self.facts
    }

    /// Largest magnitude of `v - v_zero`.
    fn v_reach(&self) -> u32 {
        let (lo, hi) = if self.facts.v_type == DType::INT8 { (-128, 127) } else { (0, 255) };
        (self.facts.v_zero - lo).unsigned_abs().max((hi - self.facts.v_zero).unsigned_abs())
    }

    /// Upper bound of a row's weight sum.
    fn row_bound(&self, keys: usize) -> f64 {
        let unit = f64::from(self.unit());
        let free = keys as f64 * unit;
        // Rounding the ratio moves a weight by a factor of 1.5 at most (the paper's rounding of 1.5 to 1), and the
        // exponentials that the sum is made of are low by less than the rest.
        if self.spec.anchor().is_sum() { free.min(1.7 * unit) } else { free }
    }

    /// True if float32 adds a row's weights exactly in any order.
    pub(crate) fn sums_in_float(&self) -> bool {
        self.row_bound(self.facts.keys.unwrap_or(usize::MAX)) <= EXACT
    }

    /// True if float32 adds a row's exponentials exactly in any order; none is larger than that of distance 0.
    pub(crate) fn exps_in_float(&self) -> bool {
        let largest = self.e0.iter().copied().max().unwrap_or(0);
        self.facts.keys.is_some_and(|k| k as f64 * f64::from(largest) <= EXACT)
    }

    fn choose(&self, hint: &str) -> Result<Product, LisError> {
        let reach = f64::from(self.v_reach());
        let per_key = f64::from(self.unit()) * reach;
        let bound = self.row_bound(self.facts.keys.unwrap_or(usize::MAX)) * reach;
        if self.spec.form() == Form::Planes {
            if self.facts.keys.is_none() || bound > f64::from(i32::MAX) {
                let limit = (f64::from(i32::MAX) / per_key) as usize;
                let keys = self.facts.keys.map_or_else(|| "an unknown number".to_owned(), |k| k.to_string());
                return Err(LisError::Planes { limit, keys, hint: hint.to_owned() });
            }
            return Ok(Product::Planes);
        }
        if bound <= EXACT {
            return Ok(Product::Float);
        }
        // The row sum is at most 1.5 P, and rounding to multiples of g adds at most g/2 a key. Sums of multiples of g
        // are exact below 2^24 g.
        let keys = self.facts.keys.unwrap_or(MOST_KEYS) as f64;
        let fits = |g: f64| (1.5 + keys * g / 2.0) * reach <= EXACT * g;
        if fits(1.0 / 65536.0) {
            Ok(Product::Guarded { ratio: 192.0 })
        } else if fits(1.0 / 32768.0) {
            Ok(Product::Guarded { ratio: 384.0 })
        } else {
            Err(LisError::Keys { keys: keys as usize, limit: MOST_KEYS, hint: hint.to_owned() })
        }
    }

    /// The factor after the product where no row sum divides: V's scale over the weight of code 0.
    pub(crate) fn plain_factor(&self, head: usize) -> f32 {
        self.v_scale(head) / self.unit() as f32
    }

    /// The paper's code of `exp(d s)`.
    pub(crate) fn paper_code_of(&self, head: usize, d: u8) -> u32 {
        paper_code((f64::from(d) * f64::from(*at(&self.facts.score_scale, head))).exp().round())
    }

    pub(crate) fn v_scale(&self, head: usize) -> f32 {
        self.facts.v_scale[head.min(self.facts.v_scale.len() - 1)]
    }

    /// `1 / s_v`: a row's result is `acc (1 / (R (1 / s_v)))`.
    pub(crate) fn v_inverse(&self, head: usize) -> f32 {
        1.0 / self.v_scale(head)
    }

    pub(crate) fn renormalised(&self) -> bool {
        self.spec.normalise() == Normalise::Renormalised
    }
}

/// The integer exponential of distance `d`, proportional to `exp(-d s)`. 0 for anchor `max`, which has none.
pub fn exponential(plan: &LisPlan, head: usize, d: u8) -> u32 {
    let d = u32::from(d);
    match &plan.exps {
        Exps::None => 0,
        Exps::Table(t) => at(t, head)[d as usize],
        Exps::Poly { k, bits } => {
            let u = (*at(k, head) as f32 * d as f32 / (1u32 << bits) as f32).min(31.0);
            let q = u as u32;
            let c = poly2();
            let g = (u - q as f32) - c.b;
            ((g * g * c.a + c.c) as u32) >> q
        }
        Exps::Iexp(e) => {
            let e = at(e, head);
            let d = d as i32;
            let k = (d * e.inv) >> e.inv_bits;
            let r = (d << e.shift) - k * e.x0;
            let q = (e.qb - r) * (e.qb - r) + e.qc;
            (q as u32) >> (k as u32 + e.drop).min(31)
        }
    }
}

/// A per-head vector holds one entry for all heads or one each.
pub(crate) fn at<T>(v: &[T], head: usize) -> &T {
    &v[head.min(v.len() - 1)]
}

/// True if the weight table is indexed by distance and not by code: under anchor `max`, all but rounding `geometric`.
fn goes_by_distance(spec: &LisSpec) -> bool {
    spec.anchor() == Anchor::Max && spec.rounding() != Rounding::Geometric
}

fn check(spec: &LisSpec, facts: &LisFacts, hint: &str) -> Result<(), LisError> {
    let (s, v, b) = (facts.score_scale.len(), facts.v_scale.len(), spec.bases().len());
    let fine = spec.fine().len();
    let heads = s.max(v).max(b).max(fine).max(1);
    for (what, found) in [("the score scale", s), ("V's scale", v), ("`base`", b.max(1)), ("`fine`", fine.max(1))] {
        if found != 1 && found != heads {
            return Err(LisError::Heads { what, found, heads });
        }
    }
    for (what, values) in [("the scores", &facts.score_scale), ("V", &facts.v_scale)] {
        if let Some(value) = values.iter().find(|x| !(x.is_finite() && **x > 0.0)) {
            return Err(LisError::Scale { what, value: *value, hint: hint.to_owned() });
        }
    }
    let fits = match facts.v_type {
        DType::UINT8 => (0..=255).contains(&facts.v_zero),
        DType::INT8 => (-128..=127).contains(&facts.v_zero),
        other => return Err(LisError::VType { ty: other.to_string(), hint: hint.to_owned() }),
    };
    if !fits {
        return Err(LisError::Zero { zero: facts.v_zero, ty: facts.v_type.to_string(), hint: hint.to_owned() });
    }
    Ok(())
}

/// Rates per unit of distance as integers over a common power of two, such that `255 rate + extra + 1` needs no more
/// than 24 bits. A rate above `past` acts as `past`: one unit of distance already leaves the codes.
fn fixed(rates: &[f64], past: f64, extra: f64) -> (Vec<u32>, u32) {
    let capped: Vec<f64> = rates.iter().map(|r| r.min(past)).collect();
    let top = capped.iter().fold(0.0f64, |a, r| a.max(*r));
    let mut bits = LOG_BITS;
    while (255.0 * top + extra + 2.0) * f64::from(1u32 << bits) > EXACT {
        bits -= 1;
    }
    (capped.iter().map(|r| (r * f64::from(1u32 << bits)).round() as u32).collect(), bits)
}

fn weights(spec: &LisSpec, facts: &LisFacts, n: usize) -> Weights {
    let levels = spec.levels();
    let saturate = spec.tail() == Tail::Saturate;
    if spec.fine().iter().any(|f| *f > 0) {
        let fine = (0..n).map(|h| u32::from(spec.fine()[h.min(spec.fine().len() - 1)])).collect();
        let one = f64::from(1u32 << (levels - 1).max(14));
        let a = ((2.0 - std::f64::consts::SQRT_2) * one).round() as u32;
        let clip = if saturate { levels - 1 } else { 31 };
        return Weights::Knee { fine, a, b: one as u32 - a, zero: (!saturate).then_some(levels), clip };
    }
    let score_scale = |h: usize| f64::from(facts.score_scale[h.min(facts.score_scale.len() - 1)]);
    if spec.rounding() == Rounding::None {
        let weight = |h: usize, d: u32| (32768.0 * (-f64::from(d) * score_scale(h)).exp()).round() as u32;
        return Weights::Table {
            tables: (0..n).map(|h| (0..256).map(|d| weight(h, d)).collect()).collect(),
            clip: 255,
        };
    }
    let two = (0..n).all(|h| spec.base_of(h).steps() == 1);
    if two && spec.bits() <= 4 {
        // The weight of the last code is 1: one step further the shift itself gives 0.
        let one = 1u32 << (levels - 1);
        let weight = |c: u32| one >> if saturate { c.min(levels - 1) } else { c.min(31) };
        if spec.rounding() == Rounding::Geometric {
            return Weights::Shift { one, clip: if saturate { levels - 1 } else { 31 } };
        }
        if spec.anchor().is_sum() {
            return Weights::Ratio { one, floor: saturate as u32 };
        }
        let tables = (0..n)
            .map(|h| {
                let s = score_scale(h);
                (0..256).map(|d| weight(paper_code((f64::from(d) * s).exp().round()))).collect()
            })
            .collect();
        return Weights::Table { tables, clip: 255 };
    }
    let clip = if saturate { levels - 1 } else { levels };
    let tables = (0..n)
        .map(|h| {
            let p = f64::from(spec.base_of(h).steps());
            (0..=clip)
                .map(|c| if c < levels { (32768.0 * (-f64::from(c) / p).exp2()).round().max(0.0) as u32 } else { 0 })
                .collect()
        })
        .collect();
    Weights::Table { tables, clip }
}

/// The paper's code of a rounded ratio: its binary order, one more from 1.5 times the power on; at most 40.
pub(crate) fn paper_code(ratio: f64) -> u32 {
    (0..40).find(|c| ratio < 1.5 * (*c as f64).exp2()).unwrap_or(40)
}

fn iexp(s: f64) -> Iexp {
    let (a, b, c) = IBERT;
    // Below this scale 255 steps change the exponential by less than 2 %, and the polynomial would leave int32.
    let s = s.max(1.0 / 16384.0);
    let poly = |s: f64| ((b / s).floor(), (c / (a * s * s)).floor());
    let fits = |s: f64| {
        let (qb, qc) = poly(s);
        qb * qb + qc < EXACT
    };
    let shift = (0..12).rev().find(|g| fits(s / f64::from(1u32 << g))).unwrap_or(0);
    let s = s / f64::from(1u32 << shift);
    let (qb, qc) = poly(s);
    let x0 = ((std::f64::consts::LN_2 / s).ceil() as i64).max(1);
    let top = (qb * qb + qc) as u64;
    let drop = (64 - top.leading_zeros()).saturating_sub(18);
    // The smallest reciprocal that divides all 256 distances right; 255 inv stays in int32.
    let right = |bits: u32| {
        let inv = ((1i64 << (bits + shift)) + x0 - 1) / x0;
        let ok = 255 * inv <= i64::from(i32::MAX) && (0..256).all(|d| (d * inv) >> bits == (d << shift) / x0);
        ok.then_some((inv as i32, bits))
    };
    let (inv, inv_bits) = (0..32).find_map(right).unwrap_or((0, 0));
    Iexp { shift, x0: x0 as i32, inv, inv_bits, qb: qb as i32, qc: qc as i32, drop }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reciprocal_of_iexp_divides_all_distances_right() {
        for i in -60..12 {
            let s = f64::from(i).mul_add(0.25, 0.0).exp2();
            let e = iexp(s);
            assert!(e.inv > 0 || (255i64 << e.shift) < i64::from(e.x0), "scale {s}: {e:?}");
            for d in 0..256i64 {
                assert_eq!((d * i64::from(e.inv)) >> e.inv_bits, (d << e.shift) / i64::from(e.x0), "scale {s}");
            }
        }
    }

    #[test]
    fn positions_stay_within_float32s_integers() {
        for s in [1e-5, 0.01, 0.1, 0.7, 2.7, 3.0, 50.0, 1e6] {
            let (k, bits) = fixed(&[s], 16.0, 31.0);
            assert!((255.0 * f64::from(k[0]) + 32.0 * f64::from(1u32 << bits)) <= EXACT, "{s}: {k:?} {bits}");
        }
    }

    #[test]
    fn the_paper_rounds_up_at_one_and_a_half() {
        let codes: Vec<u32> = [1., 2., 3., 5., 6., 11., 12., 23., 24.].iter().map(|r| paper_code(*r)).collect();
        assert_eq!(codes, [0, 1, 2, 2, 3, 3, 4, 4, 5]);
    }
}
