//! Exponentials of a row, their sum, and its logarithm, in integers.

use super::super::plan::{Iexp, LOG_BITS, poly2};
use super::super::reference::{log2_corners, log2_fixed};
use super::Emitter;
use crate::ir::{DType, Tensor};
use crate::rewrite::Ref;

impl Emitter<'_> {
    /// Positions from int32 exponentials: `(max - x) k + offset + 0.5`.
    pub(super) fn sum_code(&mut self, e: Ref, x: Ref, near: Ref, half: Ref) -> Ref {
        let off = self.offset(e);
        let row = self.e.op("Add", "row_offset", &[near, off]);
        let row = self.e.op("Add", "row", &[row, half]);
        let far = self.scaled("position", x, &self.plan.k, self.plan.bits);
        self.e.op("Sub", "code", &[row, far])
    }

    /// The exponential polynomial on octaves in float32, then a shift by the whole octaves; uint32.
    pub(super) fn poly(&mut self, octaves: Ref) -> Ref {
        let c = poly2();
        let u = self.clip("octaves_clipped", octaves, 31.0);
        let q = self.e.cast("whole", u, DType::UINT32);
        let qf = self.e.cast("whole_f32", q, DType::FLOAT);
        let f = self.e.op("Sub", "fraction", &[u, qf]);
        let b = self.e.scalar("poly_b", c.b);
        let g = self.e.op("Sub", "poly_arg", &[f, b]);
        let g = self.e.op("Mul", "poly_square", &[g, g]);
        let a = self.e.scalar("poly_a", c.a);
        let g = self.e.op("Mul", "poly_term", &[g, a]);
        let k = self.e.scalar("poly_c", c.c);
        let g = self.e.op("Add", "poly", &[g, k]);
        let m = self.e.cast("mantissa", g, DType::UINT32);
        self.shift("exponential", m, q, "RIGHT")
    }

    /// I-BERT's i-exp of int32 distances; uint32.
    pub(super) fn iexp(&mut self, d: Ref, es: &[Iexp]) -> Ref {
        let each = |f: fn(&Iexp) -> i32| es.iter().map(f).collect::<Vec<i32>>();
        let inv = self.heads_i32("inverse", &each(|e| e.inv));
        let t = self.e.op("Mul", "quotient_wide", &[d, inv]);
        let t = self.e.cast("quotient_u32", t, DType::UINT32);
        let by = self.heads_u32("inverse_bits", &es.iter().map(|e| e.inv_bits).collect::<Vec<_>>());
        let k = self.shift("quotient", t, by, "RIGHT");
        let ki = self.e.cast("quotient_i32", k, DType::INT32);
        let x0 = self.heads_i32("ln2", &each(|e| e.x0));
        let whole = self.e.op("Mul", "whole_ln2", &[ki, x0]);
        let one = self.heads_i32("raise", &each(|e| 1 << e.shift));
        let raised = self.e.op("Mul", "raised", &[d, one]);
        let r = self.e.op("Sub", "remainder", &[raised, whole]);
        let qb = self.heads_i32("poly_b", &each(|e| e.qb));
        // The square as minus the product of two different tensors: tract squares int32 through float32.
        let plus = self.e.op("Sub", "poly_plus", &[qb, r]);
        let minus = self.e.op("Sub", "poly_minus", &[r, qb]);
        let sq = self.e.op("Mul", "poly_square", &[plus, minus]);
        let qc = self.heads_i32("poly_c", &each(|e| e.qc));
        let q = self.e.op("Sub", "poly", &[qc, sq]);
        let q = self.e.cast("poly_u32", q, DType::UINT32);
        let drop = self.heads_i32("drop", &each(|e| e.drop as i32));
        let by = self.e.op("Add", "shift_wide", &[ki, drop]);
        let most = self.e.constant("shift_most", Tensor::i32(&[], &[31]));
        let by = self.e.op("Min", "shift_i32", &[by, most]);
        let by = self.e.cast("shift_u32", by, DType::UINT32);
        self.shift("exponential", q, by, "RIGHT")
    }

    /// Sum of a row of exponentials (int32 or uint32), at least the exponential of 0; int32. Added in float32, four
    /// times as fast in onnxruntime, where that is exact.
    pub(super) fn exp_sum(&mut self, e: Ref) -> Ref {
        let s = if self.plan.exps_in_float() {
            let e = self.e.cast("exponential_f32", e, DType::FLOAT);
            let e = self.keep("kept_exponential", e, Tensor::scalar_f32(0.0));
            let s = self.row_sum("exp_sum_f32", e);
            self.e.cast("exp_sum", s, DType::INT32)
        } else {
            let e = self.e.cast("exponential_i32", e, DType::INT32);
            let e = self.keep("kept_exponential", e, Tensor::i32(&[], &[0]));
            self.row_sum("exp_sum", e)
        };
        let least = self.heads_i32("exp_least", &self.plan.e0.iter().map(|e| *e as i32).collect::<Vec<_>>());
        self.e.op("Max", "exp_total", &[s, least])
    }

    /// `steps (log2 S - log2 e(0))` as a float position: the integer logarithm of
    /// [`reference::log2_fixed`](super::super::reference::log2_fixed), on one value per row.
    pub(super) fn offset(&mut self, e: Ref) -> Ref {
        let s = self.exp_sum(e);
        // Binary order: how many powers of two are not above S.
        let powers: Vec<i32> = (1..31).map(|n| 1 << n).collect();
        let powers = self.e.constant("powers", Tensor::i32(&[30], &powers));
        let ge = self.e.op("GreaterOrEqual", "order_bits", &[s, powers]);
        let ge = self.e.cast("order_i32", ge, DType::INT32);
        let n = self.row_sum("order", ge);
        // Mantissa with its leading one at bit 31.
        let top = self.e.constant("top", Tensor::i32(&[], &[31]));
        let up = self.e.op("Sub", "up_i32", &[top, n]);
        let up = self.e.cast("up", up, DType::UINT32);
        let su = self.e.cast("exp_total_u32", s, DType::UINT32);
        let m = self.shift("mantissa", su, up, "LEFT");
        let by = self.e.constant("by_23", Tensor::u32(&[], &[23]));
        let piece = self.shift("piece_u32", m, by, "RIGHT");
        let piece = self.e.cast("piece_i32", piece, DType::INT32);
        let by = self.e.constant("by_9", Tensor::u32(&[], &[9]));
        let fine = self.shift("fine_u32", m, by, "RIGHT");
        let fine = self.e.cast("fine_i32", fine, DType::INT32);
        let whole = self.e.constant("whole_piece", Tensor::i32(&[], &[1 << 14]));
        let base = self.e.op("Mul", "piece_start", &[piece, whole]);
        let frac = self.e.op("Sub", "piece_part", &[fine, base]);
        let first = self.e.constant("first_piece", Tensor::i32(&[], &[256]));
        let piece = self.e.op("Sub", "piece", &[piece, first]);
        let g = log2_corners();
        let slopes: Vec<i32> = g.windows(2).map(|w| w[1] - w[0]).collect();
        let corners = self.e.constant("log2_corners", Tensor::i32(&[256], &g[..256]));
        let slopes = self.e.constant("log2_slopes", Tensor::i32(&[256], &slopes));
        let corner = self.e.op("Gather", "corner", &[corners, piece]);
        let slope = self.e.op("Gather", "slope", &[slopes, piece]);
        let rise = self.e.op("Mul", "rise_wide", &[slope, frac]);
        let rise = self.e.op("Div", "rise", &[rise, whole]);
        let one = self.e.constant("octave_unit", Tensor::i32(&[], &[1 << LOG_BITS]));
        let order = self.e.op("Mul", "order_fixed", &[n, one]);
        let log = self.e.op("Add", "log2_coarse", &[order, corner]);
        let log = self.e.op("Add", "log2", &[log, rise]);
        let e0: Vec<i32> = self.plan.e0.iter().map(|e| log2_fixed(*e)).collect();
        let e0 = self.heads_i32("log2_least", &e0);
        let mut log = self.e.op("Sub", "log2_ratio", &[log, e0]);
        if self.plan.steps.iter().any(|s| *s != 1) {
            let steps = self.heads_i32("steps", &self.plan.steps.iter().map(|s| *s as i32).collect::<Vec<_>>());
            log = self.e.op("Mul", "log_steps", &[log, steps]);
        }
        if self.plan.bits < LOG_BITS {
            let by = self.e.constant("coarser", Tensor::i32(&[], &[1 << (LOG_BITS - self.plan.bits)]));
            log = self.e.op("Div", "log_coarser", &[log, by]);
        }
        let log = self.e.cast("log_f32", log, DType::FLOAT);
        let unit = self.e.scalar("log_unit", 1.0 / (1u32 << self.plan.bits) as f32);
        self.e.op("Mul", "offset", &[log, unit])
    }
}
