//! The log-int-softmax around a float Softmax, with its codes between QuantizeLinear and DequantizeLinear.
//!
//! Softmax of integer multiples of `-ln 2` is the renormalised log-int-softmax: `exp(-c ln 2) / sum exp(-c ln 2)` is
//! `2^-c / sum 2^-c`. So the codes are made by one QuantizeLinear and read by one DequantizeLinear, and what every
//! runtime has as a fast operator does the rest. The codes are those of [`reference::codes`](super::reference::codes),
//! bit for bit; the weights agree with the reference to the rounding of float32.
//!
//! The stored code of the value farthest up is `top`, one less for each step down, and uint8 saturation at 0 cuts the
//! tail: with `y = K (x - max)` positions on the code axis,
//!
//! ```text
//! q = QuantizeLinear(y, 1, top)                 saturate(round(y) + top), the 4-bit code
//! w = Softmax(DequantizeLinear(q, ln 2, top))
//! ```
//!
//! Half-octave steps near the maximum bend the axis: `y = min(2 t, t + knee)` in octaves `t`. With the origin at the
//! knee that is a LeakyRelu, `LeakyRelu(2 (knee - t), 1/2)`, and it is undone by `LeakyRelu(_, 2)`. Where code 0 means
//! weight 0, a second DequantizeLinear with zero point 1 puts it far down and every other code above the
//! first reading, and Min takes the lower of both.

use std::f32::consts::LN_2;

use crate::ir::{Attrs, DType, Tensor};
use crate::rewrite::{Patch, Ref, Under};

use super::emit::LisSite;
use super::plan::{LisPlan, Weights};
use super::spec::{Anchor, LisError, Rounding, Tail};

/// Added to every distance, in code positions: below the grid of positions, which is 2^-14, so that a position in the
/// middle between two codes goes to the farther one, as the reference says, and not to the even one.
const HALVES_DOWN: f32 = 1.0 / 65536.0;
/// How far below the rest a weight of 0 lies, in units of its code: `exp` of it is no number that float32 can add to 1, but
/// not so small that processors slow down over it, which they do from 1e-38 on.
const NOTHING: f32 = 64.0;

/// How a code axis is bent, one entry per head or one for all.
struct Axis {
    /// Code positions per unit of distance.
    rate: Vec<f32>,
    /// Half-octave steps; empty where all steps are alike.
    fine: Vec<u32>,
    /// `ln` of the ratio of two neighbouring weights.
    step: Vec<f32>,
    /// Stored code of the largest weight.
    top: u32,
    /// True if stored code 0 means weight 0.
    zero: bool,
}

impl Axis {
    /// `None` where codes are not positions on one axis (sum anchors, paper rounding), or the bend lies beyond the codes.
    fn of(plan: &LisPlan) -> Option<Axis> {
        let spec = plan.spec();
        if spec.anchor() != Anchor::Max || spec.rounding() != Rounding::Geometric || !plan.renormalised() {
            return None;
        }
        let zero = spec.tail() != Tail::Saturate;
        let top = if zero { spec.levels() } else { spec.levels() - 1 };
        let unit = (1u32 << plan.bits) as f32;
        let fine = match &plan.weights {
            Weights::Knee { fine, .. } => fine.clone(),
            _ => Vec::new(),
        };
        if fine.iter().any(|f| *f >= top) {
            return None;
        }
        let step = plan.steps.iter().map(|p| LN_2 / *p as f32).collect();
        Some(Axis { rate: plan.k.iter().map(|k| *k as f32 / unit).collect(), fine, step, top, zero })
    }
}

/// Adds the operators of a log-int-softmax and its product with V to a patch, in the form described above; `None` if the
/// spec has no such form, and [`emit`](super::emit) writes it.
///
/// Returns what [`emit`](super::emit) does.
///
/// # Errors
/// Where [`LisPlan::new`] fails, per-head vectors meet scores without a head axis, or the opset is below 13.
pub fn emit_softmax(p: &mut Patch, plan: &LisPlan, site: &LisSite) -> Result<Option<Ref>, LisError> {
    if site.opset < 13 {
        return Err(LisError::Opset { has: site.opset, hint: site.hint.clone() });
    }
    if site.rank < 3 && (plan.heads > 1 || site.facts.v_scale.len() > 1) {
        return Err(LisError::Rank { rank: site.rank, hint: site.hint.clone() });
    }
    let mut w = Writer { e: p.inside(&site.hint), site };
    let logits = if plan.spec().rounding() == Rounding::None {
        // No codes between: the scores' own are read, from their largest down.
        let (x, max) = w.scores();
        let scale = &site.facts.score_scale;
        let x = w.read("score", x, scale, &vec![0; scale.len()]);
        let max = w.read("max_score", max, scale, &vec![0; scale.len()]);
        let x = w.e.op("Sub", "below_max", &[x, max]);
        w.hide(x)
    } else {
        match Axis::of(plan) {
            Some(axis) => w.logits(&axis),
            None => return Ok(None),
        }
    };
    let weights = w.e.op_with("Softmax", "weights", &[logits], Attrs::new().with_int("axis", -1));
    let y = match site.v {
        Some(v) => {
            let scale = &site.facts.v_scale;
            let v = w.read("values", v, scale, &vec![site.facts.v_zero; scale.len()]);
            w.e.op("MatMul", "sum", &[weights, v])
        }
        None => weights,
    };
    Ok(Some(w.none_for_hidden_rows(y)))
}

struct Writer<'a> {
    e: Under<'a>,
    site: &'a LisSite,
}

impl Writer<'_> {
    /// QuantizeLinear or DequantizeLinear with a scale and zero point per head, or one of both for all.
    fn coded(&mut self, op: &str, part: &str, x: Ref, (scale, zero): (&[f32], &[i32]), dtype: DType) -> Ref {
        let n = scale.len().max(zero.len());
        let alike = scale.iter().all(|s| *s == scale[0]) && zero.iter().all(|z| *z == zero[0]);
        let n = if alike { 1 } else { n };
        let dims = if n == 1 { vec![] } else { vec![n as i64] };
        let s: Vec<f32> = (0..n).map(|h| scale[h.min(scale.len() - 1)]).collect();
        let z = (0..n).map(|h| zero[h.min(zero.len() - 1)]);
        let z = match dtype {
            DType::INT8 => Tensor::i8(&dims, &z.map(|z| z as i8).collect::<Vec<_>>()),
            _ => Tensor::u8(&dims, &z.map(|z| z as u8).collect::<Vec<_>>()),
        };
        let mut e = self.e.part(part);
        let (s, z) = (e.constant("scale", Tensor::f32(&dims, &s)), e.constant("zero", z));
        // Counted from the end, it would be another axis for the row maximum of fewer dimensions.
        let attrs = if n == 1 { Attrs::new() } else { Attrs::new().with_int("axis", self.site.rank as i64 - 3) };
        self.e.op_with(op, part, &[x, s, z], attrs)
    }

    fn read(&mut self, part: &str, x: Ref, scale: &[f32], zero: &[i32]) -> Ref {
        let dtype = if part == "values" { self.site.facts.v_type } else { DType::UINT8 };
        self.coded("DequantizeLinear", part, x, (scale, zero), dtype)
    }

    /// A number per head that broadcasts against scores.
    fn heads(&mut self, part: &str, v: &[f32]) -> Ref {
        let alike = v.iter().all(|x| *x == v[0]);
        let t = if alike { Tensor::scalar_f32(v[0]) } else { Tensor::f32(&[v.len() as i64, 1, 1], v) };
        self.e.constant(part, t)
    }

    /// Score codes with 0, which never raises a maximum, in the hidden places; and the row maximum.
    fn scores(&mut self) -> (Ref, Ref) {
        let x = match self.site.mask {
            None => self.site.codes,
            Some(m) => {
                let zero = self.e.constant("masked", Tensor::u8(&[], &[0]));
                self.e.op("Where", "kept", &[m, self.site.codes, zero])
            }
        };
        (x, self.row_max("max", x))
    }

    fn row_max(&mut self, part: &str, x: Ref) -> Ref {
        self.e.reduced_by("ReduceMax", part, x, "last_axis", self.site.opset)
    }

    fn leaky(&mut self, part: &str, x: Ref, alpha: f32) -> Ref {
        self.e.op_with("LeakyRelu", part, &[x], Attrs::new().with_float("alpha", alpha))
    }

    /// Logarithms of the weights, hidden ones far below the rest.
    fn logits(&mut self, a: &Axis) -> Ref {
        let (x, max) = self.scores();
        let bent = a.fine.iter().any(|f| *f > 0);
        // Half octaves near the maximum: twice the rate, and half of it from the knee on.
        let rate: Vec<f32> = a.rate.iter().map(|r| if bent { 2.0 * r } else { *r }).collect();
        let none = vec![0; rate.len()];
        let far = self.read("position", x, &rate, &none);
        let near = self.read("max_position", max, &rate, &none);
        let fine = |h: usize| if bent { a.fine[h.min(a.fine.len() - 1)] } else { 0 };
        let heads = a.rate.len().max(a.fine.len());
        let down = if bent { 2.0 * HALVES_DOWN } else { HALVES_DOWN };
        let origin: Vec<f32> = (0..heads).map(|h| down - fine(h) as f32).collect();
        let origin = self.heads("origin", &origin);
        let row = self.e.op("Add", "row", &[near, origin]);
        let mut y = self.e.op("Sub", "below", &[far, row]);
        if bent {
            y = self.leaky("bent", y, 0.5);
        }
        let zero: Vec<i32> = (0..heads).map(|h| a.top as i32 - fine(h) as i32).collect();
        let mut q = self.coded("QuantizeLinear", "code", y, (&[1.0], &zero), DType::UINT8);
        if a.zero
            && let Some(m) = self.site.mask
        {
            let hidden = self.e.constant("hidden_code", Tensor::u8(&[], &[0]));
            q = self.e.op("Where", "code_kept", &[m, q, hidden]);
        }
        let step: Vec<f32> = a.step.iter().map(|s| if bent { s / 2.0 } else { *s }).collect();
        let mut y = self.read("logit", q, &step, &zero);
        if bent {
            y = self.leaky("straight", y, 2.0);
        }
        if a.zero {
            let cut = self.read("cut", q, &[NOTHING], &[1]);
            self.e.op("Min", "logit_cut", &[y, cut])
        } else {
            self.hide(y)
        }
    }

    /// Logits with the hidden ones far down.
    fn hide(&mut self, y: Ref) -> Ref {
        let Some(m) = self.site.mask else { return y };
        let down = self.e.scalar("hidden", -NOTHING);
        self.e.op("Where", "logit_kept", &[m, y, down])
    }

    /// Rows that a mask hides whole give 0, where Softmax gives their mean.
    fn none_for_hidden_rows(&mut self, y: Ref) -> Ref {
        let Some(m) = self.site.mask else { return y };
        let m = self.e.cast("keep_code", m, DType::UINT8);
        let any = self.row_max("any_kept", m);
        let any = self.e.cast("any_kept_f32", any, DType::FLOAT);
        self.e.op("Mul", "seen", &[y, any])
    }
}
