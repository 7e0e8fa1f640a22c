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

use crate::ir::{Attrs, DType, Tensor};
use crate::rewrite::{Patch, Ref};

use super::plan::{Exps, Iexp, LOG_BITS, LisFacts, LisPlan, Product, Weights, poly2};
use super::reference::log2_corners;
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
    let mut e = Emitter { p, site, plan: &plan };
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
    p: &'a mut Patch,
    site: &'a LisSite,
    plan: &'a LisPlan,
}

impl Emitter<'_> {
    fn name(&self, part: &str) -> String {
        format!("{}/{part}", self.site.hint)
    }

    fn op(&mut self, op: &str, part: &str, inputs: &[Ref]) -> Ref {
        self.op_with(op, part, inputs, Attrs::new())
    }

    fn op_with(&mut self, op: &str, part: &str, inputs: &[Ref], attrs: Attrs) -> Ref {
        let name = self.name(part);
        self.p.node(op, &name, inputs, attrs)
    }

    fn constant(&mut self, part: &str, t: Tensor) -> Ref {
        let name = self.name(part);
        self.p.constant(&name, t)
    }

    /// Shape of a per-head constant that broadcasts against the scores.
    fn head_dims(len: usize) -> Vec<i64> {
        if len == 1 { Vec::new() } else { vec![len as i64, 1, 1] }
    }

    fn heads_f32(&mut self, part: &str, v: &[f32]) -> Ref {
        let v = collapse(v);
        self.constant(part, Tensor::f32(&Self::head_dims(v.len()), v))
    }

    fn heads_i32(&mut self, part: &str, v: &[i32]) -> Ref {
        let v = collapse(v);
        self.constant(part, Tensor::i32(&Self::head_dims(v.len()), v))
    }

    fn heads_u32(&mut self, part: &str, v: &[u32]) -> Ref {
        let v = collapse(v);
        self.constant(part, Tensor::u32(&Self::head_dims(v.len()), v))
    }

    fn cast(&mut self, part: &str, x: Ref, to: DType) -> Ref {
        self.op_with("Cast", part, &[x], Attrs::new().with_int("to", to.0.into()))
    }

    fn shift(&mut self, part: &str, x: Ref, by: Ref, direction: &str) -> Ref {
        self.op_with("BitShift", part, &[x, by], Attrs::new().with_str("direction", direction))
    }

    fn clip(&mut self, part: &str, x: Ref, hi: f32) -> Ref {
        let lo = self.constant("zero", Tensor::scalar_f32(0.0));
        let hi = self.constant("clip_at", Tensor::scalar_f32(hi));
        self.op("Clip", part, &[x, lo, hi])
    }

    fn row_sum(&mut self, part: &str, x: Ref) -> Ref {
        let axes = self.constant("last_axis", Tensor::i64(&[1], &[-1]));
        self.op_with("ReduceSum", part, &[x, axes], Attrs::new().with_int("keepdims", 1))
    }

    fn row_max(&mut self, part: &str, x: Ref) -> Ref {
        let names = (self.name(part), self.name("last_axis"));
        row_max(self.p, x, self.site.opset, (&names.0, &names.1))
    }

    /// Gather from one table a head, laid end to end, by an int32 index within the head's own.
    fn gather(&mut self, part: &str, tables: Tensor, each: usize, index: Ref) -> Ref {
        let n = tables.len() / each;
        let index = if n > 1 {
            let starts: Vec<i32> = (0..n).map(|h| (h * each) as i32).collect();
            let starts = self.heads_i32("table_start", &starts);
            self.op("Add", "table_index", &[index, starts])
        } else {
            index
        };
        let t = self.constant("table", tables);
        self.op("Gather", part, &[t, index])
    }

    /// `x k / 2^bits` for uint8 codes, exact.
    fn scaled(&mut self, part: &str, x: Ref, k: &[u32], bits: u32) -> Ref {
        let k: Vec<f32> = collapse(k).iter().map(|k| *k as f32 / (1u32 << bits) as f32).collect();
        if k.len() == 1 {
            let k = self.constant("rate", Tensor::scalar_f32(k[0]));
            let z = self.constant("rate_zero", Tensor::u8(&[], &[0]));
            return self.op("DequantizeLinear", part, &[x, k, z]);
        }
        let n = k.len() as i64;
        let axis = Attrs::new().with_int("axis", self.site.rank as i64 - 3);
        let z = self.constant("rate_zero", Tensor::u8(&[n], &vec![0; k.len()]));
        let k = self.constant("rate", Tensor::f32(&[n], &k));
        self.op_with("DequantizeLinear", part, &[x, k, z], axis)
    }

    /// Score codes with 0, which never raises a maximum, in the masked places; and the row maximum.
    fn scores(&mut self) -> (Ref, Ref) {
        let x = match self.site.mask {
            None => self.site.codes,
            Some(m) => {
                let zero = self.constant("masked", Tensor::u8(&[], &[0]));
                self.op("Where", "kept", &[m, self.site.codes, zero])
            }
        };
        let max = self.row_max("max", x);
        (x, max)
    }

    /// Distances as int32.
    fn distances(&mut self, x: Ref, max: Ref) -> Ref {
        let x = self.cast("codes_i32", x, DType::INT32);
        let max = self.cast("max_i32", max, DType::INT32);
        self.op("Sub", "distance", &[max, x])
    }

    fn keep(&mut self, part: &str, x: Ref, zero: Tensor) -> Ref {
        let Some(m) = self.site.mask else { return x };
        let zero = self.constant("nothing", zero);
        self.op("Where", part, &[m, x, zero])
    }

    // ---- weights ------------------------------------------------------------------------------------------------

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
        let half = self.constant("half", Tensor::scalar_f32(0.5));
        let pos = match &self.plan.exps {
            Exps::None => {
                let row = self.op("Add", "row", &[near, half]);
                let far = self.scaled("position", x, k, bits);
                self.op("Sub", "code", &[row, far])
            }
            Exps::Poly { k: ek, bits: eb } => {
                let far = self.scaled("position", x, k, bits);
                let u = self.op("Sub", "octaves_or_steps", &[near, far]);
                let octaves = if (collapse(ek), *eb) == (collapse(k), bits) {
                    u
                } else {
                    let near = self.scaled("max_octave", max, ek, *eb);
                    let far = self.scaled("octave", x, ek, *eb);
                    self.op("Sub", "octaves", &[near, far])
                };
                let e = self.poly(octaves);
                let off = self.offset(e);
                let row = self.op("Add", "row", &[off, half]);
                self.op("Add", "code", &[u, row])
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
                let c = self.cast("shift_by", c, DType::UINT32);
                let one = self.constant("unit", Tensor::u32(&[], &[*one]));
                let w = self.shift("weight", one, c, "RIGHT");
                Weight::Int(self.keep("kept_weight", w, Tensor::u32(&[], &[0])))
            }
            Weights::Table { tables, clip } => {
                let c = self.clip("clipped", pos, *clip as f32);
                let c = self.cast("index", c, DType::INT32);
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
        let quarter = self.constant("quarter", Tensor::scalar_f32(0.25));
        let row = self.op("Add", "row", &[near, quarter]);
        let far = self.scaled("position", x, k, bits);
        let t = self.op("Sub", "octaves", &[row, far]);
        let knee = self.heads_f32("knee", &fine.iter().map(|n| (n / 2) as f32 + 0.25).collect::<Vec<_>>());
        let near = self.op("Min", "octaves_near", &[t, knee]);
        let pos = self.op("Add", "code", &[t, near]);
        let c = self.clip("clipped", pos, clip as f32);
        let c = self.cast("code_i32", c, DType::INT32);
        let half = self.constant("half", Tensor::scalar_f32(0.5));
        let h = self.op("DequantizeLinear", "code_half", &[c, half]);
        let fine_half = self.heads_f32("fine_half", &fine.iter().map(|n| *n as f32 / 2.0).collect::<Vec<_>>());
        let behind = self.op("Max", "code_half_behind", &[h, fine_half]);
        let u = self.op("Add", "octaves_down", &[h, behind]);
        let up = self.op("Add", "octaves_up", &[u, half]);
        let term = |e: &mut Self, part: &str, u: Ref, unit: u32| {
            let by = e.cast(&format!("{part}_by"), u, DType::UINT32);
            let unit = e.heads_u32(&format!("{part}_unit"), &fine.iter().map(|n| unit << (n / 2)).collect::<Vec<_>>());
            e.shift(part, unit, by, "RIGHT")
        };
        let a = term(self, "weight_a", up, a);
        let b = term(self, "weight_b", u, b);
        let mut w = self.op("Add", "weight", &[a, b]);
        if let Some(z) = zero {
            // A factor of 0 or 1: onnxruntime takes four times as long for Where.
            let z = self.constant("zero_from", Tensor::scalar_f32(z as f32));
            let counts = self.op("Less", "counts", &[pos, z]);
            let counts = self.cast("counts_u32", counts, DType::UINT32);
            w = self.op("Mul", "weight_cut", &[w, counts]);
        }
        Weight::Int(self.keep("kept_weight", w, Tensor::u32(&[], &[0])))
    }

    /// Positions from int32 exponentials: `(max - x) k + offset + 0.5`.
    fn sum_code(&mut self, e: Ref, x: Ref, near: Ref, half: Ref) -> Ref {
        let off = self.offset(e);
        let row = self.op("Add", "row_offset", &[near, off]);
        let row = self.op("Add", "row", &[row, half]);
        let far = self.scaled("position", x, &self.plan.k, self.plan.bits);
        self.op("Sub", "code", &[row, far])
    }

    /// The exponential polynomial on octaves in float32, then a shift by the whole octaves; uint32.
    fn poly(&mut self, octaves: Ref) -> Ref {
        let c = poly2();
        let u = self.clip("octaves_clipped", octaves, 31.0);
        let q = self.cast("whole", u, DType::UINT32);
        let qf = self.cast("whole_f32", q, DType::FLOAT);
        let f = self.op("Sub", "fraction", &[u, qf]);
        let b = self.constant("poly_b", Tensor::scalar_f32(c.b));
        let g = self.op("Sub", "poly_arg", &[f, b]);
        let g = self.op("Mul", "poly_square", &[g, g]);
        let a = self.constant("poly_a", Tensor::scalar_f32(c.a));
        let g = self.op("Mul", "poly_term", &[g, a]);
        let k = self.constant("poly_c", Tensor::scalar_f32(c.c));
        let g = self.op("Add", "poly", &[g, k]);
        let m = self.cast("mantissa", g, DType::UINT32);
        self.shift("exponential", m, q, "RIGHT")
    }

    /// I-BERT's i-exp of int32 distances; uint32.
    fn iexp(&mut self, d: Ref, es: &[Iexp]) -> Ref {
        let each = |f: fn(&Iexp) -> i32| es.iter().map(f).collect::<Vec<i32>>();
        let inv = self.heads_i32("inverse", &each(|e| e.inv));
        let t = self.op("Mul", "quotient_wide", &[d, inv]);
        let t = self.cast("quotient_u32", t, DType::UINT32);
        let by = self.heads_u32("inverse_bits", &es.iter().map(|e| e.inv_bits).collect::<Vec<_>>());
        let k = self.shift("quotient", t, by, "RIGHT");
        let ki = self.cast("quotient_i32", k, DType::INT32);
        let x0 = self.heads_i32("ln2", &each(|e| e.x0));
        let whole = self.op("Mul", "whole_ln2", &[ki, x0]);
        let one = self.heads_i32("raise", &each(|e| 1 << e.shift));
        let raised = self.op("Mul", "raised", &[d, one]);
        let r = self.op("Sub", "remainder", &[raised, whole]);
        let qb = self.heads_i32("poly_b", &each(|e| e.qb));
        // The square as minus the product of two different tensors: tract squares int32 through float32.
        let plus = self.op("Sub", "poly_plus", &[qb, r]);
        let minus = self.op("Sub", "poly_minus", &[r, qb]);
        let sq = self.op("Mul", "poly_square", &[plus, minus]);
        let qc = self.heads_i32("poly_c", &each(|e| e.qc));
        let q = self.op("Sub", "poly", &[qc, sq]);
        let q = self.cast("poly_u32", q, DType::UINT32);
        let drop = self.heads_i32("drop", &each(|e| e.drop as i32));
        let by = self.op("Add", "shift_wide", &[ki, drop]);
        let most = self.constant("shift_most", Tensor::i32(&[], &[31]));
        let by = self.op("Min", "shift_i32", &[by, most]);
        let by = self.cast("shift_u32", by, DType::UINT32);
        self.shift("exponential", q, by, "RIGHT")
    }

    /// Sum of a row of exponentials (int32 or uint32), at least the exponential of 0; int32. Added in float32, four
    /// times as fast in onnxruntime, where that is exact.
    fn exp_sum(&mut self, e: Ref) -> Ref {
        let s = if self.plan.exps_in_float() {
            let e = self.cast("exponential_f32", e, DType::FLOAT);
            let e = self.keep("kept_exponential", e, Tensor::scalar_f32(0.0));
            let s = self.row_sum("exp_sum_f32", e);
            self.cast("exp_sum", s, DType::INT32)
        } else {
            let e = self.cast("exponential_i32", e, DType::INT32);
            let e = self.keep("kept_exponential", e, Tensor::i32(&[], &[0]));
            self.row_sum("exp_sum", e)
        };
        let least = self.heads_i32("exp_least", &self.plan.e0.iter().map(|e| *e as i32).collect::<Vec<_>>());
        self.op("Max", "exp_total", &[s, least])
    }

    /// `steps (log2 S - log2 e(0))` as a float position: the integer logarithm of
    /// [`reference::log2_fixed`](super::reference::log2_fixed), on one value a row.
    fn offset(&mut self, e: Ref) -> Ref {
        let s = self.exp_sum(e);
        // Binary order: how many powers of two are not above S.
        let powers: Vec<i32> = (1..31).map(|n| 1 << n).collect();
        let powers = self.constant("powers", Tensor::i32(&[30], &powers));
        let ge = self.op("GreaterOrEqual", "order_bits", &[s, powers]);
        let ge = self.cast("order_i32", ge, DType::INT32);
        let n = self.row_sum("order", ge);
        // Mantissa with its leading one at bit 31.
        let top = self.constant("top", Tensor::i32(&[], &[31]));
        let up = self.op("Sub", "up_i32", &[top, n]);
        let up = self.cast("up", up, DType::UINT32);
        let su = self.cast("exp_total_u32", s, DType::UINT32);
        let m = self.shift("mantissa", su, up, "LEFT");
        let by = self.constant("by_23", Tensor::u32(&[], &[23]));
        let piece = self.shift("piece_u32", m, by, "RIGHT");
        let piece = self.cast("piece_i32", piece, DType::INT32);
        let by = self.constant("by_9", Tensor::u32(&[], &[9]));
        let fine = self.shift("fine_u32", m, by, "RIGHT");
        let fine = self.cast("fine_i32", fine, DType::INT32);
        let whole = self.constant("whole_piece", Tensor::i32(&[], &[1 << 14]));
        let base = self.op("Mul", "piece_start", &[piece, whole]);
        let frac = self.op("Sub", "piece_part", &[fine, base]);
        let first = self.constant("first_piece", Tensor::i32(&[], &[256]));
        let piece = self.op("Sub", "piece", &[piece, first]);
        let g = log2_corners();
        let slopes: Vec<i32> = g.windows(2).map(|w| w[1] - w[0]).collect();
        let corners = self.constant("log2_corners", Tensor::i32(&[256], &g[..256]));
        let slopes = self.constant("log2_slopes", Tensor::i32(&[256], &slopes));
        let corner = self.op("Gather", "corner", &[corners, piece]);
        let slope = self.op("Gather", "slope", &[slopes, piece]);
        let rise = self.op("Mul", "rise_wide", &[slope, frac]);
        let rise = self.op("Div", "rise", &[rise, whole]);
        let one = self.constant("octave_unit", Tensor::i32(&[], &[1 << LOG_BITS]));
        let order = self.op("Mul", "order_fixed", &[n, one]);
        let log = self.op("Add", "log2_coarse", &[order, corner]);
        let log = self.op("Add", "log2", &[log, rise]);
        let e0: Vec<i32> = self.plan.e0.iter().map(|e| super::reference::log2_fixed(*e)).collect();
        let e0 = self.heads_i32("log2_least", &e0);
        let mut log = self.op("Sub", "log2_ratio", &[log, e0]);
        if self.plan.steps.iter().any(|s| *s != 1) {
            let steps = self.heads_i32("steps", &self.plan.steps.iter().map(|s| *s as i32).collect::<Vec<_>>());
            log = self.op("Mul", "log_steps", &[log, steps]);
        }
        if self.plan.bits < LOG_BITS {
            let by = self.constant("coarser", Tensor::i32(&[], &[1 << (LOG_BITS - self.plan.bits)]));
            log = self.op("Div", "log_coarser", &[log, by]);
        }
        let log = self.cast("log_f32", log, DType::FLOAT);
        let unit = self.constant("log_unit", Tensor::scalar_f32(1.0 / (1u32 << self.plan.bits) as f32));
        self.op("Mul", "offset", &[log, unit])
    }

    /// Paper rounding under a sum anchor: `one / P` with P the rounded integer ratio snapped to a power of two.
    fn ratio_weights(&mut self, x: Ref, max: Ref, one: u32, floor: u32) -> Weight {
        let d = self.distances(x, max);
        let Exps::Table(tables) = &self.plan.exps else { unreachable!("paper rounding has a table") };
        let flat: Vec<i32> = tables.iter().flatten().map(|e| *e as i32).collect();
        let e = self.gather("exponential", Tensor::i32(&[flat.len() as i64], &flat), 256, d);
        let s = self.exp_sum(e);
        let two = self.constant("two", Tensor::i32(&[], &[2]));
        let h = self.op("Div", "half_exponential", &[e, two]);
        let num = self.op("Add", "numerator", &[s, h]);
        let r = self.op("Div", "ratio", &[num, e]);
        let r = self.cast("ratio_f32", r, DType::FLOAT);
        let p = self.snap(r);
        let w = self.op("Reciprocal", "inverse_power", &[p]);
        let unit = self.constant("unit", Tensor::scalar_f32(one as f32));
        let mut w = self.op("Mul", "weight_f32", &[w, unit]);
        if floor > 0 {
            let least = self.constant("least", Tensor::scalar_f32(floor as f32));
            w = self.op("Max", "weight_floored", &[w, least]);
        }
        let w = self.cast("weight", w, DType::UINT32);
        Weight::Int(self.keep("kept_weight", w, Tensor::u32(&[], &[0])))
    }

    /// A positive float rounded to a power of two, up from 1.5 times one on: 2^23 x has spacing x's own power.
    fn snap(&mut self, x: Ref) -> Ref {
        let far = self.constant("two_23", Tensor::scalar_f32(8_388_608.0));
        let far = self.op("Mul", "far", &[x, far]);
        let near = self.op("Add", "far_plus", &[x, far]);
        self.op("Sub", "power", &[near, far])
    }

    // ---- product ------------------------------------------------------------------------------------------------

    /// Weights as shares of their row: divided by what they add up to, or by the weight of code 0.
    fn shares(&mut self, w: Weight) -> Ref {
        let (wf, int) = self.float_weight(w);
        let factor = if self.plan.renormalised() {
            let total = self.total(wf, int);
            let one = self.constant("one", Tensor::scalar_f32(1.0));
            let r = self.op("Max", "divisor", &[total, one]);
            self.op("Reciprocal", "factor", &[r])
        } else {
            self.constant("factor", Tensor::scalar_f32(self.plan.plain_factor(0)))
        };
        self.op("Mul", "weights", &[wf, factor])
    }

    fn product(&mut self, w: Weight, v: Ref) -> Ref {
        let (acc, total) = match self.plan.product {
            Product::Planes => self.planes(w, v),
            Product::Float | Product::Guarded { .. } => self.float_product(w, v),
        };
        let factor = match total {
            Some(r) => {
                let one = self.constant("one", Tensor::scalar_f32(1.0));
                let r = self.op("Max", "divisor", &[r, one]);
                let n = self.site.facts.v_scale.len();
                let s: Vec<f32> = (0..n).map(|h| self.plan.v_inverse(h)).collect();
                let s = self.heads_f32("v_scale_inverse", &s);
                let r = self.op("Mul", "divisor_scaled", &[r, s]);
                self.op("Reciprocal", "factor", &[r])
            }
            None => {
                let n = self.site.facts.v_scale.len();
                let f: Vec<f32> = (0..n).map(|h| self.plan.plain_factor(h)).collect();
                self.heads_f32("factor", &f)
            }
        };
        self.op("Mul", "attention", &[acc, factor])
    }

    /// V's zero point as a scalar of V's type.
    fn v_zero(&mut self) -> Ref {
        let z = self.site.facts.v_zero as u8;
        self.constant("v_zero", Tensor::raw(self.site.facts.v_type, &[], vec![z]))
    }

    /// V as uint8 with its zero point: on x86 without VNNI, onnxruntime's products of uint8 and int8 saturate.
    fn v_unsigned(&mut self, v: Ref) -> (Ref, Ref) {
        if self.site.facts.v_type != DType::INT8 {
            return (v, self.v_zero());
        }
        let one = self.constant("v_unit", Tensor::scalar_f32(1.0));
        let from = self.constant("v_signed_zero", Tensor::i8(&[], &[0]));
        let to = self.constant("v_unsigned_zero", Tensor::u8(&[], &[128]));
        let number = self.op("DequantizeLinear", "v_number", &[v, one, from]);
        let v = self.op("QuantizeLinear", "v_unsigned", &[number, one, to]);
        (v, self.constant("v_zero", Tensor::u8(&[], &[(self.site.facts.v_zero + 128) as u8])))
    }

    /// Weighted sum and, if it is needed, row sum, both float.
    fn planes(&mut self, w: Weight, v: Ref) -> (Ref, Option<Ref>) {
        let (lo, hi) = match w {
            Weight::Bytes(lo, hi) => (lo, Some(hi)),
            Weight::Float(w) => {
                let w = self.cast("weight_u32", w, DType::UINT32);
                self.bytes(w)
            }
            Weight::Int(w) => self.bytes(w),
        };
        let a_zero = self.constant("weight_zero", Tensor::u8(&[], &[0]));
        let (v, v_zero) = self.v_unsigned(v);
        let acc = self.plane_product("sum", lo, hi, v, a_zero, v_zero);
        if !self.plan.renormalised() {
            return (acc, None);
        }
        let keys = self.site.facts.keys.unwrap_or(0);
        let ones = self.constant("ones", Tensor::i8(&[keys as i64, 1], &vec![1; keys]));
        let b_zero = self.constant("ones_zero", Tensor::i8(&[], &[0]));
        (acc, Some(self.plane_product("total", lo, hi, ones, a_zero, b_zero)))
    }

    /// uint32 weights below 2^16 in bytes; no high byte where the weights have none.
    fn bytes(&mut self, w: Ref) -> (Ref, Option<Ref>) {
        if self.plan.unit() < 256 {
            return (self.cast("low", w, DType::UINT8), None);
        }
        // Without the high part the conversion stays within uint8's range in any runtime.
        let by = self.constant("by_8", Tensor::u32(&[], &[8]));
        let hi = self.shift("high_u32", w, by, "RIGHT");
        (self.cast("low", w, DType::UINT8), Some(self.cast("high", hi, DType::UINT8)))
    }

    fn plane_product(&mut self, part: &str, lo: Ref, hi: Option<Ref>, b: Ref, az: Ref, bz: Ref) -> Ref {
        let mut acc = self.op("MatMulInteger", &format!("{part}_low"), &[lo, b, az, bz]);
        if let Some(hi) = hi {
            let h = self.op("MatMulInteger", &format!("{part}_high"), &[hi, b, az, bz]);
            let k = self.constant("byte", Tensor::i32(&[], &[256]));
            let h = self.op("Mul", &format!("{part}_raised"), &[h, k]);
            acc = self.op("Add", &format!("{part}_i32"), &[h, acc]);
        }
        self.cast(&format!("{part}_f32"), acc, DType::FLOAT)
    }

    /// Weights in float32 and, where they were that first, as integers.
    fn float_weight(&mut self, w: Weight) -> (Ref, Option<Ref>) {
        match w {
            Weight::Int(w) => (self.cast("weight_f32", w, DType::FLOAT), Some(w)),
            Weight::Float(w) => (w, None),
            Weight::Bytes(..) => unreachable!("bytes are made for planes only"),
        }
    }

    /// Sum of a row's weights, float32.
    fn total(&mut self, wf: Ref, int: Option<Ref>) -> Ref {
        if self.plan.sums_in_float() {
            return self.row_sum("total", wf);
        }
        let wi = self.cast("weight_i32", int.unwrap_or(wf), DType::INT32);
        let r = self.row_sum("total_i32", wi);
        self.cast("total", r, DType::FLOAT)
    }

    fn float_product(&mut self, w: Weight, v: Ref) -> (Ref, Option<Ref>) {
        let (mut wf, int) = self.float_weight(w);
        let guarded = matches!(self.plan.product, Product::Guarded { .. });
        let total = (self.plan.renormalised() || guarded).then(|| self.total(wf, int));
        if let (Product::Guarded { ratio }, Some(r)) = (self.plan.product, total) {
            let power = self.snap(r);
            let ratio = self.constant("guard_ratio", Tensor::scalar_f32(ratio));
            let m = self.op("Mul", "guard", &[power, ratio]);
            wf = self.op("Add", "guard_up", &[wf, m]);
            wf = self.op("Sub", "guarded", &[wf, m]);
        }
        let one = self.constant("v_unit", Tensor::scalar_f32(1.0));
        let zero = self.v_zero();
        let v = self.op("DequantizeLinear", "v_codes", &[v, one, zero]);
        let mut acc = self.op("MatMul", "sum", &[wf, v]);
        if !self.plan.renormalised() {
            // Cuts nothing: it keeps onnxruntime from moving the constant factor that follows into the product.
            let (lo, hi) = (-16_777_216.0, 16_777_216.0);
            let lo = self.constant("exact_from", Tensor::scalar_f32(lo));
            let hi = self.constant("exact_to", Tensor::scalar_f32(hi));
            acc = self.op("Clip", "sum_whole", &[acc, lo, hi]);
        }
        (acc, total)
    }
}

/// A per-head vector whose entries are all alike, as one entry.
fn collapse<T: PartialEq>(v: &[T]) -> &[T] {
    if v.iter().all(|x| *x == v[0]) { &v[..1] } else { v }
}

/// The largest element of each row, named `name`; `axes` names the constant that newer operator sets want.
pub(crate) fn row_max(p: &mut Patch, x: Ref, opset: i64, (name, axes): (&str, &str)) -> Ref {
    let keep = Attrs::new().with_int("keepdims", 1);
    if opset < 18 {
        return p.node("ReduceMax", name, &[x], keep.with_ints("axes", &[-1]));
    }
    let axes = p.constant(axes, Tensor::i64(&[1], &[-1]));
    p.node("ReduceMax", name, &[x, axes], keep)
}
