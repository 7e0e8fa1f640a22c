//! `wide-codes`: codes of 16 bits, held as whole numbers in float32.
//!
//! *What it does.* QuantizeLinear to uint16 or int16 becomes Mul by `1 / s`, Round, Add of `z` and Clip to the type's range;
//! DequantizeLinear of such codes becomes Sub of `z` and Mul by `s`. Factors of 1 and zero points of 0 fall away.
//!
//! *When it fires.* For QuantizeLinear of 16-bit codes that only DequantizeLinear reads, with one scale or one per channel of
//! the last axis, and for these readers.
//!
//! *Why it is correct.* Every 16-bit code is exact in float32, and Round rounds half to even, as QuantizeLinear does.
//!
//! *Numerics.* Close: `x (1/s)` for `x / s`.
//!
//! *Before / after.* `y = DequantizeLinear (QuantizeLinear (x, s, z), s, z)` becomes
//! `y = Mul (Sub (Clip (Add (Round (Mul (x, 1/s)), z), 0, 65535), z), s)`.
//!
//! *Source.* ONNX operator documentation. Needed because QuantizeLinear has 16-bit codes from operator set 21 only, and
//! tract has none.

use super::{Coding, factors};
use crate::ir::{DType, Graph, NodeId, Tensor};
use crate::passes::common::patch_nodes;
use crate::passes::{Context, Numerics, Outcome, Pass, PassError};
use crate::rewrite::{Patch, Ref};

/// The pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WideCodes {
    /// On every model.
    Always,
    /// On models whose operator set has no codes of 16 bits.
    WhereMissing,
}

/// The first operator set whose QuantizeLinear makes codes of 16 bits.
const WIDE_CODES: i64 = 21;

impl Pass for WideCodes {
    fn id(&self) -> &'static str {
        "wide-codes"
    }

    fn summary(&self) -> &'static str {
        "Stores 16-bit codes as integers in float32."
    }

    fn numerics(&self) -> Numerics {
        Numerics::Close { rel: 1e-4 }
    }

    fn run(&self, m: &mut Context) -> Result<Outcome, PassError> {
        if *self == WideCodes::WhereMissing && m.opset() >= WIDE_CODES {
            return Ok(Outcome::default());
        }
        patch_nodes(m, patch)
    }
}

fn patch(g: &Graph, id: NodeId) -> Option<Patch> {
    let q = Coding::of(g, id).filter(|c| c.is_wide() && g.node(id).op.is("QuantizeLinear"))?;
    let plain = |c: &Coding| c.whole().is_some() || c.is_last_axis(g, c.x);
    let readers: Vec<Coding> = g
        .uses(q.y)
        .into_iter()
        .map(|(n, _)| Coding::of(g, n).filter(|c| g.node(n).op.is("DequantizeLinear") && plain(c)))
        .collect::<Option<_>>()?;
    if readers.is_empty() || g.is_output(q.y) || !plain(&q) {
        return None;
    }
    let name = g.name_of(q.y);
    let mut p = Patch::new("wide-codes").made_from([name.to_owned()]).before(id);
    let mut e = p.under(name);
    let mut x: Ref = q.x.into();
    if q.scales.iter().any(|s| *s != 1.0) {
        let inverse: Vec<f32> = q.scales.iter().map(|s| (1.0 / f64::from(*s)) as f32).collect();
        let k = e.constant("inverse_scale", factors(&inverse));
        x = e.op("Mul", "scaled", &[x, k]);
    }
    x = e.op("Round", "rounded", &[x]);
    if q.zeros.iter().any(|z| *z != 0) {
        let z = e.constant("zeros", numbers(&q.zeros));
        x = e.op("Add", "shifted", &[x, z]);
    }
    let (low, high) = if q.dtype == DType::UINT16 { (0.0, 65535.0) } else { (-32768.0, 32767.0) };
    let (low, high) = (e.scalar("low", low), e.scalar("high", high));
    let codes = e.op("Clip", "held", &[x, low, high]);
    p.typed(codes, DType::FLOAT, g.shape(q.y).map(<[_]>::to_vec));
    for r in &readers {
        let mut e = p.under(g.name_of(r.y));
        let mut y = codes;
        if r.zeros.iter().any(|z| *z != 0) {
            let z = e.constant("zeros", numbers(&r.zeros));
            y = e.op("Sub", "shifted", &[y, z]);
        }
        if r.scales.iter().any(|s| *s != 1.0) {
            let s = e.constant("scale", factors(&r.scales));
            y = e.op("Mul", "scaled", &[y, s]);
        }
        p.replace(r.y, y);
    }
    Some(p)
}

fn numbers(v: &[i64]) -> Tensor {
    factors(&v.iter().map(|z| *z as f32).collect::<Vec<_>>())
}
