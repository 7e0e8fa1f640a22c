//! `integer-sums`: an Add between codes becomes one affine expression in the codes.
//!
//! *What it does.* With operands `s_i[c] (q_i - z_i[c])` and a result at scale `s[c]`, zero point `z[c]`:
//! `q = round(q_1 A_1[c] + q_2 A_2[c] + C[c])`, where `A_i = s_i / s` and `C = z - A_1 z_1 - A_2 z_2`. The codes are held
//! as numbers in float32. An operand that is the result of a linear layer, without codes of its own, is brought to the
//! result's scale the same way (`A = 1 / s`); [`products`](super::products) then joins that factor with the layer's own.
//!
//! *When it fires.* For an Add read by one QuantizeLinear only, of DequantizeLinear outputs of computed 8-bit or 16-bit codes, or of
//! one such and the result of a linear layer over codes, with one scale or one a channel of the last axis.
//!
//! *Why it is correct.* Algebra.
//!
//! *Numerics.* Close: the same number, rounded to float32 at other steps.
//!
//! *Before / after.* `Q(Add(DQ(q1), DQ(q2)))` becomes `Q1(Add(Add(Mul(n1, A1), Mul(n2, A2)), C))` with `Q1` of scale 1 and
//! `n` the codes as numbers.
//!
//! *Source.* Algebra; it saves three of seven passes over the residual stream.

use super::{Coding, at_unit_scale, factors};
use crate::ir::{Attrs, Graph, NodeId, ValueId};
use crate::passes::common::patch_nodes;
use crate::passes::{Context, Numerics, Outcome, Pass, PassError};
use crate::rewrite::{Patch, Ref};

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

    fn run(&self, m: &mut Context) -> Result<Outcome, PassError> {
        patch_nodes(m, patch)
    }
}

/// What is added.
enum Term {
    Codes(Coding),
    /// The result of a linear layer.
    Layer(ValueId),
}

impl Term {
    fn of(g: &Graph, v: ValueId) -> Option<Term> {
        if let Some(c) = Coding::read_back(g, v) {
            return (g.constant(c.x).is_none() && c.is_code()).then_some(Term::Codes(c));
        }
        let n = g.node(g.producer(v)?);
        // Behind its bias, if that is an Add.
        let constant =
            |x: ValueId| g.constant(x).is_some() || Coding::read_back(g, x).is_some_and(|c| g.constant(c.x).is_some());
        let n = match (n.op.is("Add"), n.input(0), n.input(1)) {
            (true, Some(a), Some(b)) if constant(b) => g.node(g.producer(a)?),
            (true, Some(a), Some(b)) if constant(a) => g.node(g.producer(b)?),
            _ => n,
        };
        let coded = |slot: usize| n.input(slot).is_some_and(|x| Coding::read_back(g, x).is_some());
        let layer = (n.op.is("MatMul") || n.op.is("Gemm")) && coded(0) && coded(1);
        (layer && g.use_count(v) == 1 && !g.is_output(v)).then_some(Term::Layer(v))
    }

    fn coding(&self) -> Option<&Coding> {
        match self {
            Term::Codes(c) => Some(c),
            Term::Layer(_) => None,
        }
    }
}

fn patch(g: &Graph, id: NodeId) -> Option<Patch> {
    let n = g.node(id);
    if !n.op.is("Add") {
        return None;
    }
    let y = n.out()?;
    let terms = [Term::of(g, n.input(0)?)?, Term::of(g, n.input(1)?)?];
    if terms.iter().all(|t| t.coding().is_none()) {
        return None;
    }
    let q = Coding::written(g, y)?;
    let codings = || terms.iter().filter_map(Term::coding).chain([&q]);
    let channels = codings().map(|c| c.scales.len()).max()?;
    let lined_up = |c: &Coding| c.whole().is_some() || (c.scales.len() == channels && c.is_last_axis(g, y));
    if !codings().all(lined_up) || !q.is_code() {
        return None;
    }
    let at = |c: &Coding, i: usize| -> (f64, f64) {
        let i = if c.scales.len() == 1 { 0 } else { i };
        (f64::from(c.scales[i]), c.zeros[i] as f64)
    };
    let mut ratios = [Vec::new(), Vec::new()];
    let mut offsets = Vec::with_capacity(channels);
    for c in 0..channels {
        let (s, z) = at(&q, c);
        let mut offset = z;
        for (f, x) in ratios.iter_mut().zip(&terms) {
            let (sx, zx) = x.coding().map_or((1.0, 0.0), |x| at(x, c));
            let r = (sx / s) as f32;
            offset -= f64::from(r) * zx;
            f.push(r);
        }
        offsets.push(offset as f32);
    }
    let name = g.name_of(q.y);
    let mut p = Patch::new("integer-sums").made_from([g.name_of(y).to_owned()]).before(id);
    let mut scaled: Vec<Ref> = Vec::new();
    for (x, (f, which)) in terms.iter().zip(ratios.iter().zip(["first", "second"])) {
        let number = match x {
            Term::Layer(v) => Ref::from(*v),
            Term::Codes(x) => {
                let hint = format!("{}_number", g.name_of(x.x));
                at_unit_scale(&mut p, "DequantizeLinear", &hint, x.x.into(), x.dtype, 0)
            }
        };
        let f = p.constant(&format!("{name}_{which}_factor"), factors(f));
        scaled.push(p.node("Mul", &format!("{name}_{which}"), &[number, f], Attrs::new()));
    }
    let sum = p.node("Add", &format!("{name}_sum"), &scaled, Attrs::new());
    let offset = p.constant(&format!("{name}_offset"), factors(&offsets));
    let sum = p.node("Add", &format!("{name}_shifted"), &[sum, offset], Attrs::new());
    let r = at_unit_scale(&mut p, "QuantizeLinear", name, sum, q.dtype, 0);
    p.typed(r, q.dtype, g.shape(q.y).map(<[_]>::to_vec));
    p.succeed(q.y, r);
    Some(p)
}
