//! The log-int-softmax in standard ONNX operators.
//!
//! Values are integers or fixed-point numbers held exactly in float32, where both runtimes vectorise; every step is
//! exact or rounds once to nearest, and no sum depends on its order. What is avoided, and why:
//!
//! * `Div`: tract turns `a / b` into `a (1 / b)` and onnxruntime fuses `(1 / x) y` into `y / x`. `Reciprocal` is safe.
//! * `MatMulInteger -> Cast -> Mul(_, Mul)` and `MatMul -> Mul(_, constant)`: onnxruntime folds the factors into the
//!   product (`MatMulIntegerToFloat`, `FusedMatMul`) and rounds differently. The factor is a `Reciprocal`, or a `Clip`
//!   that cuts nothing stands between.
//! * `Log`, `Exp`, `Pow`: no two libraries round them alike.
//! * shifts by the width of the type or more: codes are clipped at 31 and shifted in uint32.
//! * casting a float beyond the target's range: runtimes saturate or wrap. Clip comes first.
//! * `Gather` per element, except where a weight is no power of two or the exponential is a table: it costs as much as
//!   twenty additions.

mod exponentials;
mod product;

use crate::ir::{Attrs, DType, Tensor};
use crate::rewrite::{Patch, Ref, Under};

use super::plan::{Exps, LisFacts, LisPlan, Product, Weights};
use super::spec::{LisError, LisSpec};

/// One attention: score codes in, weighted sum or weights out.
#[derive(Clone, Debug)]
pub struct LisSite {
    /// uint8 score codes `[.., N, M]`; the zero point is of no importance.
    pub codes: Ref,
    /// Codes of V `[.., M, D]`; `None` if the weights are wanted.
    pub v: Option<Ref>,
    /// bool, true = keep, broadcastable to the scores.
    pub mask: Option<Ref>,
    pub facts: LisFacts,
    /// Rank of scores and V. Heads, where scales or bases differ between them, are axis `rank - 3`.
    pub rank: usize,
    /// Of the model the patch goes into; at least 13.
    pub opset: i64,
    /// Prefix of the new names.
    pub hint: String,
}

/// Adds the operators of a log-int-softmax and its product with V to a patch.
///
/// Returns the attention output, float `[.., N, D]` in V's units, not quantized; without V, the weights `[.., N, M]` as
/// shares of their row. Bit-equal to [`reference::attend`](super::reference::attend) and
/// [`reference::shares`](super::reference::shares) for every row. Fails where [`LisPlan::new`] does, and where per-head
/// vectors meet scores without a head axis or the opset is below 13.
///
/// # Errors
/// If the facts do not fit the spec, or the operator set lacks what the operators need.
pub fn emit(p: &mut Patch, spec: &LisSpec, site: &LisSite) -> Result<Ref, LisError> {
    let mut plan = LisPlan::new(spec, &site.facts, &site.hint)?;
    if site.v.is_none() {
        plan.product = Product::Float;
    }
    if site.opset < 13 {
        return Err(LisError::Opset { has: site.opset, hint: site.hint.clone() });
    }
    if site.rank < 3 && (plan.heads > 1 || site.facts.v_scale.len() > 1) {
        return Err(LisError::Rank { rank: site.rank, hint: site.hint.clone() });
    }
    let mut e = Emitter { e: p.inside(&site.hint), site, plan: &plan };
    let w = e.weights();
    Ok(match site.v {
        Some(v) => e.product(w, v),
        None => e.shares(w),
    })
}

/// Weights on their way to the product.
#[derive(Clone, Copy)]
enum Weight {
    /// uint32.
    Int(Ref),
    /// Integers in float32.
    Float(Ref),
    /// Low and high byte, uint8.
    Bytes(Ref, Ref),
}

struct Emitter<'a> {
    e: Under<'a>,
    site: &'a LisSite,
    plan: &'a LisPlan,
}

impl Emitter<'_> {
    /// Shape of a per-head constant that broadcasts against the scores.
    fn head_dims(len: usize) -> Vec<i64> {
        if len == 1 { Vec::new() } else { vec![len as i64, 1, 1] }
    }

    fn heads_f32(&mut self, part: &str, v: &[f32]) -> Ref {
        let v = collapse(v);
        self.e.constant(part, Tensor::f32(&Self::head_dims(v.len()), v))
    }

    fn heads_i32(&mut self, part: &str, v: &[i32]) -> Ref {
        let v = collapse(v);
        self.e.constant(part, Tensor::i32(&Self::head_dims(v.len()), v))
    }

    fn heads_u32(&mut self, part: &str, v: &[u32]) -> Ref {
        let v = collapse(v);
        self.e.constant(part, Tensor::u32(&Self::head_dims(v.len()), v))
    }

    fn shift(&mut self, part: &str, x: Ref, by: Ref, direction: &str) -> Ref {
        self.e.op_with("BitShift", part, &[x, by], Attrs::new().with_str("direction", direction))
    }

    fn clip(&mut self, part: &str, x: Ref, hi: f32) -> Ref {
        let lo = self.e.scalar("zero", 0.0);
        let hi = self.e.scalar("clip_at", hi);
        self.e.op("Clip", part, &[x, lo, hi])
    }

    fn row_sum(&mut self, part: &str, x: Ref) -> Ref {
        self.e.reduced_by("ReduceSum", part, x, "last_axis", self.site.opset)
    }

    fn row_max(&mut self, part: &str, x: Ref) -> Ref {
        self.e.reduced_by("ReduceMax", part, x, "last_axis", self.site.opset)
    }

    /// Gather from one table per head, laid end to end, by an int32 index within the head's own.
    fn gather(&mut self, part: &str, tables: Tensor, each: usize, index: Ref) -> Ref {
        let n = tables.len() / each;
        let index = if n > 1 {
            let starts: Vec<i32> = (0..n).map(|h| (h * each) as i32).collect();
            let starts = self.heads_i32("table_start", &starts);
            self.e.op("Add", "table_index", &[index, starts])
        } else {
            index
        };
        let t = self.e.constant("table", tables);
        self.e.op("Gather", part, &[t, index])
    }

    /// `x k / 2^bits` for uint8 codes, exact.
    fn scaled(&mut self, part: &str, x: Ref, k: &[u32], bits: u32) -> Ref {
        let k: Vec<f32> = collapse(k).iter().map(|k| *k as f32 / (1u32 << bits) as f32).collect();
        if k.len() == 1 {
            let k = self.e.scalar("rate", k[0]);
            let z = self.e.constant("rate_zero", Tensor::u8(&[], &[0]));
            return self.e.op("DequantizeLinear", part, &[x, k, z]);
        }
        let n = k.len() as i64;
        let axis = Attrs::new().with_int("axis", self.site.rank as i64 - 3);
        let z = self.e.constant("rate_zero", Tensor::u8(&[n], &vec![0; k.len()]));
        let k = self.e.constant("rate", Tensor::f32(&[n], &k));
        self.e.op_with("DequantizeLinear", part, &[x, k, z], axis)
    }

    /// Score codes with 0, which never raises a maximum, in the masked places; and the row maximum.
    fn scores(&mut self) -> (Ref, Ref) {
        let x = match self.site.mask {
            None => self.site.codes,
            Some(m) => {
                let zero = self.e.constant("masked", Tensor::u8(&[], &[0]));
                self.e.op("Where", "kept", &[m, self.site.codes, zero])
            }
        };
        let max = self.row_max("max", x);
        (x, max)
    }

    /// Distances as int32.
    fn distances(&mut self, x: Ref, max: Ref) -> Ref {
        let x = self.e.cast("codes_i32", x, DType::INT32);
        let max = self.e.cast("max_i32", max, DType::INT32);
        self.e.op("Sub", "distance", &[max, x])
    }

    fn keep(&mut self, part: &str, x: Ref, zero: Tensor) -> Ref {
        let Some(m) = self.site.mask else { return x };
        let zero = self.e.constant("nothing", zero);
        self.e.op("Where", part, &[m, x, zero])
    }

    fn weights(&mut self) -> Weight {
        let (x, max) = self.scores();
        if let Weights::Ratio { one, floor } = self.plan.weights {
            return self.ratio_weights(x, max, one, floor);
        }
        if let Weights::Knee { fine, a, b, zero, clip } = &self.plan.weights {
            return self.knee_weights(x, max, fine, (*a, *b), *zero, *clip);
        }
        let (k, bits) = (&self.plan.k, self.plan.bits);
        let near = self.scaled("max_position", max, k, bits);
        let half = self.e.scalar("half", 0.5);
        let pos = match &self.plan.exps {
            Exps::None => {
                let row = self.e.op("Add", "row", &[near, half]);
                let far = self.scaled("position", x, k, bits);
                self.e.op("Sub", "code", &[row, far])
            }
            Exps::Poly { k: ek, bits: eb } => {
                let far = self.scaled("position", x, k, bits);
                let u = self.e.op("Sub", "octaves_or_steps", &[near, far]);
                let octaves = if (collapse(ek), *eb) == (collapse(k), bits) {
                    u
                } else {
                    let near = self.scaled("max_octave", max, ek, *eb);
                    let far = self.scaled("octave", x, ek, *eb);
                    self.e.op("Sub", "octaves", &[near, far])
                };
                let e = self.poly(octaves);
                let off = self.offset(e);
                let row = self.e.op("Add", "row", &[off, half]);
                self.e.op("Add", "code", &[u, row])
            }
            Exps::Table(tables) => {
                let d = self.distances(x, max);
                let flat: Vec<i32> = tables.iter().flatten().map(|e| *e as i32).collect();
                let e = self.gather("exponential", Tensor::i32(&[flat.len() as i64], &flat), 256, d);
                self.sum_code(e, x, near, half)
            }
            Exps::Iexp(es) => {
                let d = self.distances(x, max);
                let e = self.iexp(d, es);
                self.sum_code(e, x, near, half)
            }
        };
        match &self.plan.weights {
            Weights::Shift { one, clip } => {
                let c = self.clip("clipped", pos, *clip as f32);
                let c = self.e.cast("shift_by", c, DType::UINT32);
                let one = self.e.constant("unit", Tensor::u32(&[], &[*one]));
                let w = self.shift("weight", one, c, "RIGHT");
                Weight::Int(self.keep("kept_weight", w, Tensor::u32(&[], &[0])))
            }
            Weights::Table { tables, clip } => {
                let c = self.clip("clipped", pos, *clip as f32);
                let c = self.e.cast("index", c, DType::INT32);
                let each = *clip as usize + 1;
                let flat: Vec<u32> = if tables.iter().all(|t| *t == tables[0]) {
                    tables[0].clone()
                } else {
                    tables.iter().flatten().copied().collect()
                };
                let dims = [flat.len() as i64];
                if self.plan.product == Product::Planes {
                    let byte = |s: u32| Tensor::u8(&dims, &flat.iter().map(|w| (w >> s) as u8).collect::<Vec<_>>());
                    let (lo, hi) = (byte(0), byte(8));
                    let lo = self.gather("low", lo, each, c);
                    let hi = self.gather("high", hi, each, c);
                    let zero = Tensor::u8(&[], &[0]);
                    return Weight::Bytes(self.keep("kept_low", lo, zero.clone()), self.keep("kept_high", hi, zero));
                }
                let t = Tensor::f32(&dims, &flat.iter().map(|w| *w as f32).collect::<Vec<_>>());
                let w = self.gather("weight", t, each, c);
                Weight::Float(self.keep("kept_weight", w, Tensor::scalar_f32(0.0)))
            }
            Weights::Ratio { .. } | Weights::Knee { .. } => unreachable!("handled above"),
        }
    }

    /// Half octaves up to the knee, octaves from there: with `t` octaves of distance the code is
    /// `c = floor(t + min(t, knee) + 0.5)`, its half octaves are `k = c + max(c - fine, 0)`, and the weight is the sum of
    /// two shifts, by `k / 2` rounded up and down. `u = (k + fine) / 2` is made instead, from halves of codes in float32,
    /// which rounds down when it is cast: an addition and a cast take a third of the time of a shift by 1. The units are
    /// larger by as much.
    fn knee_weights(
        &mut self,
        x: Ref,
        max: Ref,
        fine: &[u32],
        (a, b): (u32, u32),
        zero: Option<u32>,
        clip: u32,
    ) -> Weight {
        let (k, bits) = (&self.plan.k, self.plan.bits);
        let near = self.scaled("max_position", max, k, bits);
        let quarter = self.e.scalar("quarter", 0.25);
        let row = self.e.op("Add", "row", &[near, quarter]);
        let far = self.scaled("position", x, k, bits);
        let t = self.e.op("Sub", "octaves", &[row, far]);
        let knee = self.heads_f32("knee", &fine.iter().map(|n| (n / 2) as f32 + 0.25).collect::<Vec<_>>());
        let near = self.e.op("Min", "octaves_near", &[t, knee]);
        let pos = self.e.op("Add", "code", &[t, near]);
        let c = self.clip("clipped", pos, clip as f32);
        let c = self.e.cast("code_i32", c, DType::INT32);
        let half = self.e.scalar("half", 0.5);
        let h = self.e.op("DequantizeLinear", "code_half", &[c, half]);
        let fine_half = self.heads_f32("fine_half", &fine.iter().map(|n| *n as f32 / 2.0).collect::<Vec<_>>());
        let behind = self.e.op("Max", "code_half_behind", &[h, fine_half]);
        let u = self.e.op("Add", "octaves_down", &[h, behind]);
        let up = self.e.op("Add", "octaves_up", &[u, half]);
        let term = |e: &mut Self, part: &str, u: Ref, unit: u32| {
            let by = e.e.part(part).cast("by", u, DType::UINT32);
            let unit = e.heads_u32(&format!("{part}_unit"), &fine.iter().map(|n| unit << (n / 2)).collect::<Vec<_>>());
            e.shift(part, unit, by, "RIGHT")
        };
        let a = term(self, "weight_a", up, a);
        let b = term(self, "weight_b", u, b);
        let mut w = self.e.op("Add", "weight", &[a, b]);
        if let Some(z) = zero {
            // A factor of 0 or 1: onnxruntime takes four times as long for Where.
            let z = self.e.scalar("zero_from", z as f32);
            let counts = self.e.op("Less", "counts", &[pos, z]);
            let counts = self.e.cast("counts_u32", counts, DType::UINT32);
            w = self.e.op("Mul", "weight_cut", &[w, counts]);
        }
        Weight::Int(self.keep("kept_weight", w, Tensor::u32(&[], &[0])))
    }

    /// Paper rounding under a sum anchor: `one / P` with P the rounded integer ratio snapped to a power of two.
    fn ratio_weights(&mut self, x: Ref, max: Ref, one: u32, floor: u32) -> Weight {
        let d = self.distances(x, max);
        let Exps::Table(tables) = &self.plan.exps else { unreachable!("paper rounding has a table") };
        let flat: Vec<i32> = tables.iter().flatten().map(|e| *e as i32).collect();
        let e = self.gather("exponential", Tensor::i32(&[flat.len() as i64], &flat), 256, d);
        let s = self.exp_sum(e);
        let two = self.e.constant("two", Tensor::i32(&[], &[2]));
        let h = self.e.op("Div", "half_exponential", &[e, two]);
        let num = self.e.op("Add", "numerator", &[s, h]);
        let r = self.e.op("Div", "ratio", &[num, e]);
        let r = self.e.cast("ratio_f32", r, DType::FLOAT);
        let p = self.snap(r);
        let w = self.e.op("Reciprocal", "inverse_power", &[p]);
        let unit = self.e.scalar("unit", one as f32);
        let mut w = self.e.op("Mul", "weight_f32", &[w, unit]);
        if floor > 0 {
            let least = self.e.scalar("least", floor as f32);
            w = self.e.op("Max", "weight_floored", &[w, least]);
        }
        let w = self.e.cast("weight", w, DType::UINT32);
        Weight::Int(self.keep("kept_weight", w, Tensor::u32(&[], &[0])))
    }

    /// A positive float rounded to a power of two, up from 1.5 times one on: 2^23 x has spacing x's own power.
    fn snap(&mut self, x: Ref) -> Ref {
        let far = self.e.scalar("two_23", 8_388_608.0);
        let far = self.e.op("Mul", "far", &[x, far]);
        let near = self.e.op("Add", "far_plus", &[x, far]);
        self.e.op("Sub", "power", &[near, far])
    }
}

/// A per-head vector whose entries are all alike, as one entry.
fn collapse<T: PartialEq>(v: &[T]) -> &[T] {
    if v.iter().all(|x| *x == v[0]) { &v[..1] } else { v }
}
