//! `integer-sums`: an Add between codes becomes one affine expression in the codes.
//!
//! *What it does.* With operands `s_i[c] (q_i - z_i[c])` and a result at scale `s[c]`, zero point `z[c]`:
//! `q = round(q_1 A_1[c] + q_2 A_2[c] + C[c])`, where `A_i = s_i / s` and `C = z - A_1 z_1 - A_2 z_2`. The codes are held
//! as numbers in float32.
//!
//! *When it fires.* For an Add of two DequantizeLinear outputs of computed 8-bit codes, read by one QuantizeLinear only,
//! with one scale or one a channel of the last axis.
//!
//! *Why it is correct.* Algebra.
//!
//! *Numerics.* Close: the same number, rounded to float32 at other steps.
//!
//! *Before / after.* `Q(Add(DQ(q1), DQ(q2)))` becomes `Q1(Add(Add(Mul(n1, A1), Mul(n2, A2)), C))` with `Q1` of scale 1 and
//! `n` the codes as numbers.
//!
//! *Source.* Algebra; it saves three of seven passes over the residual stream.

use super::{Coding, zero_scalar};
use crate::ir::{Attrs, Graph, Model, NodeId, Tensor};
use crate::passes::{Numerics, Outcome, Pass, PassError};
use crate::rewrite::{Patch, Ref, sweep};

/// The pass.
pub struct IntegerSums;

impl Pass for IntegerSums {
    fn id(&self) -> &'static str {
        "integer-sums"
    }

    fn summary(&self) -> &'static str {
        "Adds codes at their ratio of scales, in one affine expression."
    }

    fn numerics(&self) -> Numerics {
        Numerics::Close { rel: 1e-4 }
    }

    fn run(&self, m: &mut Model) -> Result<Outcome, PassError> {
        let mut out = Outcome::default();
        for id in m.graph.schedule() {
            if let Some(p) = m.graph.node(id).op.is("Add").then(|| patch(&m.graph, id)).flatten() {
                p.commit(m)?;
                out.changes += 1;
            }
        }
        sweep(m);
        Ok(out)
    }
}

fn patch(g: &Graph, id: NodeId) -> Option<Patch> {
    let n = g.node(id);
    let y = n.out()?;
    let codes = |slot: usize| Coding::read_back(g, n.input(slot)?).filter(|c| g.constant(c.x).is_none() && c.is_byte());
    let (a, b) = (codes(0)?, codes(1)?);
    let q = match g.uses(y)[..] {
        [(q, 0)] if g.node(q).op.is("QuantizeLinear") && !g.is_output(y) => Coding::of(g, q)?,
        _ => return None,
    };
    let channels = [&a, &b, &q].iter().map(|c| c.scales.len()).max()?;
    let lined_up = |c: &Coding| c.whole().is_some() || (c.scales.len() == channels && c.is_last_axis(g, y));
    if ![&a, &b, &q].into_iter().all(lined_up) || !q.is_byte() {
        return None;
    }
    let at = |c: &Coding, i: usize| -> (f64, f64) {
        let i = if c.scales.len() == 1 { 0 } else { i };
        (f64::from(c.scales[i]), c.zeros[i] as f64)
    };
    let mut factors = [Vec::new(), Vec::new()];
    let mut offsets = Vec::with_capacity(channels);
    for c in 0..channels {
        let (s, z) = at(&q, c);
        let mut offset = z;
        for (f, x) in factors.iter_mut().zip([&a, &b]) {
            let (sx, zx) = at(x, c);
            let r = (sx / s) as f32;
            offset -= f64::from(r) * zx;
            f.push(r);
        }
        offsets.push(offset as f32);
    }
    let name = g.name_of(q.y);
    let mut p = Patch::new("integer-sums").made_from([g.name_of(y).to_owned()]).before(id);
    let vector = |p: &mut Patch, part: &str, v: &[f32]| {
        let t = if v.iter().all(|x| *x == v[0]) { Tensor::scalar_f32(v[0]) } else { Tensor::f32(&[v.len() as i64], v) };
        p.constant(&format!("{name}_{part}"), t)
    };
    let mut terms: Vec<Ref> = Vec::new();
    for (x, (f, which)) in [&a, &b].into_iter().zip(factors.iter().zip(["first", "second"])) {
        let one = p.constant(&format!("{}_unit", g.name_of(x.x)), Tensor::scalar_f32(1.0));
        let zero = p.constant(&format!("{}_none", g.name_of(x.x)), zero_scalar(x.dtype, 0));
        let number =
            p.node("DequantizeLinear", &format!("{}_number", g.name_of(x.x)), &[x.x.into(), one, zero], Attrs::new());
        let f = vector(&mut p, &format!("{which}_factor"), f);
        terms.push(p.node("Mul", &format!("{name}_{which}"), &[number, f], Attrs::new()));
    }
    let sum = p.node("Add", &format!("{name}_sum"), &terms, Attrs::new());
    let offset = vector(&mut p, "offset", &offsets);
    let sum = p.node("Add", &format!("{name}_shifted"), &[sum, offset], Attrs::new());
    let one = p.constant(&format!("{name}_unit"), Tensor::scalar_f32(1.0));
    let zero = p.constant(&format!("{name}_none"), zero_scalar(q.dtype, 0));
    let r = p.node("QuantizeLinear", name, &[sum, one, zero], Attrs::new());
    p.typed(r, q.dtype, g.value(q.y).ty.as_ref().and_then(|t| t.shape.clone()));
    p.succeed(q.y, r);
    Some(p)
}
