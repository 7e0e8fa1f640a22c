//! The product of weights and values.

use super::super::plan::Product;
use super::{Emitter, Weight};
use crate::ir::{DType, Tensor};
use crate::rewrite::Ref;

impl Emitter<'_> {
    /// Weights as shares of their row: divided by what they add up to, or by the weight of code 0.
    pub(super) fn shares(&mut self, w: Weight) -> Ref {
        let (wf, int) = self.float_weight(w);
        let factor = if self.plan.renormalised() {
            let total = self.total(wf, int);
            let one = self.e.scalar("one", 1.0);
            let r = self.e.op("Max", "divisor", &[total, one]);
            self.e.op("Reciprocal", "factor", &[r])
        } else {
            self.e.scalar("factor", self.plan.plain_factor(0))
        };
        self.e.op("Mul", "weights", &[wf, factor])
    }

    pub(super) fn product(&mut self, w: Weight, v: Ref) -> Ref {
        let (acc, total) = match self.plan.product {
            Product::Planes => self.planes(w, v),
            Product::Float | Product::Guarded { .. } => self.float_product(w, v),
        };
        let factor = match total {
            Some(r) => {
                let one = self.e.scalar("one", 1.0);
                let r = self.e.op("Max", "divisor", &[r, one]);
                let n = self.site.facts.v_scale.len();
                let s: Vec<f32> = (0..n).map(|h| self.plan.v_inverse(h)).collect();
                let s = self.heads_f32("v_scale_inverse", &s);
                let r = self.e.op("Mul", "divisor_scaled", &[r, s]);
                self.e.op("Reciprocal", "factor", &[r])
            }
            None => {
                let n = self.site.facts.v_scale.len();
                let f: Vec<f32> = (0..n).map(|h| self.plan.plain_factor(h)).collect();
                self.heads_f32("factor", &f)
            }
        };
        self.e.op("Mul", "attention", &[acc, factor])
    }

    /// V's zero point as a scalar of V's type.
    pub(super) fn v_zero(&mut self) -> Ref {
        let z = self.site.facts.v_zero as u8;
        self.e.constant("v_zero", Tensor::raw(self.site.facts.v_type, &[], vec![z]))
    }

    /// V as uint8 with its zero point: on x86 without VNNI, onnxruntime's products of uint8 and int8 saturate.
    pub(super) fn v_unsigned(&mut self, v: Ref) -> (Ref, Ref) {
        if self.site.facts.v_type != DType::INT8 {
            return (v, self.v_zero());
        }
        let one = self.e.scalar("v_unit", 1.0);
        let from = self.e.constant("v_signed_zero", Tensor::i8(&[], &[0]));
        let to = self.e.constant("v_unsigned_zero", Tensor::u8(&[], &[128]));
        let number = self.e.op("DequantizeLinear", "v_number", &[v, one, from]);
        let v = self.e.op("QuantizeLinear", "v_unsigned", &[number, one, to]);
        (v, self.e.constant("v_zero", Tensor::u8(&[], &[(self.site.facts.v_zero + 128) as u8])))
    }

    /// Weighted sum and, if it is needed, row sum, both float.
    pub(super) fn planes(&mut self, w: Weight, v: Ref) -> (Ref, Option<Ref>) {
        let (lo, hi) = match w {
            Weight::Bytes(lo, hi) => (lo, Some(hi)),
            Weight::Float(w) => {
                let w = self.e.cast("weight_u32", w, DType::UINT32);
                self.bytes(w)
            }
            Weight::Int(w) => self.bytes(w),
        };
        let a_zero = self.e.constant("weight_zero", Tensor::u8(&[], &[0]));
        let (v, v_zero) = self.v_unsigned(v);
        let acc = self.plane_product("sum", lo, hi, v, a_zero, v_zero);
        if !self.plan.renormalised() {
            return (acc, None);
        }
        let keys = self.site.facts.keys.unwrap_or(0);
        let ones = self.e.constant("ones", Tensor::i8(&[keys as i64, 1], &vec![1; keys]));
        let b_zero = self.e.constant("ones_zero", Tensor::i8(&[], &[0]));
        (acc, Some(self.plane_product("total", lo, hi, ones, a_zero, b_zero)))
    }

    /// uint32 weights below 2^16 in bytes; no high byte where the weights have none.
    pub(super) fn bytes(&mut self, w: Ref) -> (Ref, Option<Ref>) {
        if self.plan.unit() < 256 {
            return (self.e.cast("low", w, DType::UINT8), None);
        }
        // Without the high part the conversion stays within uint8's range in any runtime.
        let by = self.e.constant("by_8", Tensor::u32(&[], &[8]));
        let hi = self.shift("high_u32", w, by, "RIGHT");
        (self.e.cast("low", w, DType::UINT8), Some(self.e.cast("high", hi, DType::UINT8)))
    }

    pub(super) fn plane_product(&mut self, part: &str, lo: Ref, hi: Option<Ref>, b: Ref, az: Ref, bz: Ref) -> Ref {
        let mut acc = self.e.part(part).op("MatMulInteger", "low", &[lo, b, az, bz]);
        if let Some(hi) = hi {
            let h = self.e.part(part).op("MatMulInteger", "high", &[hi, b, az, bz]);
            let k = self.e.constant("byte", Tensor::i32(&[], &[256]));
            let h = self.e.part(part).op("Mul", "raised", &[h, k]);
            acc = self.e.part(part).op("Add", "i32", &[h, acc]);
        }
        self.e.part(part).cast("f32", acc, DType::FLOAT)
    }

    /// Weights in float32 and, where they were that first, as integers.
    pub(super) fn float_weight(&mut self, w: Weight) -> (Ref, Option<Ref>) {
        match w {
            Weight::Int(w) => (self.e.cast("weight_f32", w, DType::FLOAT), Some(w)),
            Weight::Float(w) => (w, None),
            Weight::Bytes(..) => unreachable!("bytes are made for planes only"),
        }
    }

    /// Sum of a row's weights, float32.
    pub(super) fn total(&mut self, wf: Ref, int: Option<Ref>) -> Ref {
        if self.plan.sums_in_float() {
            return self.row_sum("total", wf);
        }
        let wi = self.e.cast("weight_i32", int.unwrap_or(wf), DType::INT32);
        let r = self.row_sum("total_i32", wi);
        self.e.cast("total", r, DType::FLOAT)
    }

    pub(super) fn float_product(&mut self, w: Weight, v: Ref) -> (Ref, Option<Ref>) {
        let (mut wf, int) = self.float_weight(w);
        let guarded = matches!(self.plan.product, Product::Guarded { .. });
        let total = (self.plan.renormalised() || guarded).then(|| self.total(wf, int));
        if let (Product::Guarded { ratio }, Some(r)) = (self.plan.product, total) {
            let power = self.snap(r);
            let ratio = self.e.scalar("guard_ratio", ratio);
            let m = self.e.op("Mul", "guard", &[power, ratio]);
            wf = self.e.op("Add", "guard_up", &[wf, m]);
            wf = self.e.op("Sub", "guarded", &[wf, m]);
        }
        let one = self.e.scalar("v_unit", 1.0);
        let zero = self.v_zero();
        let v = self.e.op("DequantizeLinear", "v_codes", &[v, one, zero]);
        let mut acc = self.e.op("MatMul", "sum", &[wf, v]);
        if !self.plan.renormalised() {
            // Cuts nothing: it keeps onnxruntime from moving the constant factor that follows into the product.
            let (lo, hi) = (-16_777_216.0, 16_777_216.0);
            let lo = self.e.scalar("exact_from", lo);
            let hi = self.e.scalar("exact_to", hi);
            acc = self.e.op("Clip", "sum_whole", &[acc, lo, hi]);
        }
        (acc, total)
    }
}
