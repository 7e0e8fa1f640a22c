//! `integer-sums`: an Add between codes becomes one affine expression in the codes.
//!
//! *What it does.* With operands `s_i[c] (q_i - z_i[c])` and a result at scale `s[c]`, zero point `z[c]`:
//! `q = round(q_1 A_1[c] + q_2 A_2[c] + C[c])`, where `A_i = s_i / s` and `C = z - A_1 z_1 - A_2 z_2`. The codes are held
//! as numbers in float32. An operand that is the result of a linear layer, without codes of its own, is brought to the
//! result's scale the same way (`A = 1 / s`); [`products`](super::products) then joins that factor with the layer's own.
//!
//! *When it fires.* For an Add read by one QuantizeLinear only, of DequantizeLinear outputs of computed 8-bit or 16-bit codes, or of
//! one such and the result of a linear layer over codes, with one scale or one per channel of the last axis.
//!
//! *Why it is correct.* Algebra.
//!
//! *Numerics.* Close: the same number, rounded to float32 at other steps.
//!
//! *Before / after.* `Q(Add(DQ(q1), DQ(q2)))` becomes `Q1(Add(Add(Mul(n1, A1), Mul(n2, A2)), C))` with `Q1` of scale 1 and
//! `n` the codes as numbers.
//!
//! *Source.* Algebra; it saves three of seven passes over the residual stream.

use super::{Coding, each, factors};
use crate::ir::{Graph, NodeId, ValueId};
use crate::passes::common::patch_nodes;
use crate::passes::{Context, Numerics, Outcome, Pass, PassError};
use crate::rewrite::{Patch, Ref};

/// The pass.
#[derive(Clone, Copy, Debug)]
pub enum IntegerSums {
    /// Every operand from its codes: the one reading of them that all runtimes compute alike.
    FromCodes,
    /// A value that is read back anyway is taken as it is.
    Shared,
}

impl Pass for IntegerSums {
    fn id(&self) -> &'static str {
        "integer-sums"
    }

    fn summary(&self) -> &'static str {
        "Adds quantized values in one affine expression of their codes."
    }

    fn numerics(&self) -> Numerics {
        Numerics::Close { rel: 1e-4 }
    }

    fn run(&self, m: &mut Context) -> Result<Outcome, PassError> {
        patch_nodes(m, |g, id| patch(g, id, *self))
    }
}

/// What is added.
enum Term {
    Codes(Coding),
    /// What codes mean, as a value that something else reads as well.
    Value(Coding),
    /// The result of a linear layer.
    Layer(ValueId),
}

impl Term {
    fn of(g: &Graph, v: ValueId, how: IntegerSums) -> Option<Term> {
        if let Some(c) = Coding::read_back(g, v) {
            let shared = matches!(how, IntegerSums::Shared) && c.scales.len() > 1 && g.use_count(v) > 1;
            let term = if shared { Term::Value } else { Term::Codes };
            return (g.constant(c.x).is_none() && c.is_code()).then(|| term(c));
        }
        let n = g.node(g.producer(v)?);
        // After its bias, if that is an Add.
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
            Term::Codes(c) | Term::Value(c) => Some(c),
            Term::Layer(_) => None,
        }
    }

    /// Scale and zero point of channel `i` of what is multiplied by its factor.
    fn unit(&self, i: usize) -> (f64, f64) {
        match self {
            Term::Codes(c) => (f64::from(each(&c.scales, i)), each(&c.zeros, i) as f64),
            Term::Value(_) | Term::Layer(_) => (1.0, 0.0),
        }
    }
}

fn patch(g: &Graph, id: NodeId, how: IntegerSums) -> Option<Patch> {
    let n = g.node(id);
    if !n.op.is("Add") {
        return None;
    }
    let y = n.out()?;
    let terms = [Term::of(g, n.input(0)?, how)?, Term::of(g, n.input(1)?, how)?];
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
    let mut ratios = [Vec::new(), Vec::new()];
    let mut offsets = Vec::with_capacity(channels);
    for c in 0..channels {
        let s = f64::from(each(&q.scales, c));
        let mut offset = each(&q.zeros, c) as f64;
        for (f, x) in ratios.iter_mut().zip(&terms) {
            let (sx, zx) = x.unit(c);
            let r = (sx / s) as f32;
            offset -= f64::from(r) * zx;
            f.push(r);
        }
        offsets.push(offset as f32);
    }
    let mut p = Patch::new(how.id()).made_from([g.name_of(y).to_owned()]).before(id);
    let mut e = p.under(g.name_of(q.y));
    let offset = e.constant("offset", factors(&offsets));
    // The bias of a layer takes what is added right after it.
    let biased = terms.iter().position(|t| matches!((t, how), (Term::Layer(_), IntegerSums::Shared)));
    let mut scaled: Vec<Ref> = Vec::new();
    for (i, (x, (f, which))) in terms.iter().zip(ratios.iter().zip(["first", "second"])).enumerate() {
        let number = match x {
            Term::Layer(v) => Ref::from(*v),
            Term::Value(x) => x.y.into(),
            Term::Codes(x) => {
                let mut e = e.under(g.name_of(x.x));
                e.at_unit_scale("DequantizeLinear", "number", x.x.into(), x.dtype, 0)
            }
        };
        let mut e = e.part(which);
        let f = e.constant("factor", factors(f));
        let mut y = e.op("Mul", "", &[number, f]);
        if biased == Some(i) {
            y = e.op("Add", "shifted", &[y, offset]);
        }
        scaled.push(y);
    }
    let mut sum = e.op("Add", "sum", &scaled);
    if biased.is_none() {
        sum = e.op("Add", "shifted", &[sum, offset]);
    }
    let r = e.at_unit_scale("QuantizeLinear", "", sum, q.dtype, 0);
    p.typed(r, q.dtype, g.shape(q.y).map(<[_]>::to_vec));
    p.succeed(q.y, r);
    Some(p)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::parse_model;

    /// Nodes in front of the codes of `Add(x, layer)`, where `x` is read by a norm as well.
    fn written(how: IntegerSums) -> Vec<String> {
        let m = parse_model(
            r#"<ir_version: 8, opset_import: ["" : 17]>
            g (uint8[3,2] a, uint8[3,4] h) => (q, n)
            <float[2] sa = {0.5, 1}, uint8[2] za = {1, 2}, float[2] so = {0.25, 0.5}, uint8[2] zo = {5, 6},
             float sh = {0.5}, uint8 zh = {3}, int8[4,2] w = {1, 2, 3, 4, 5, 6, 7, 8}, float[2] sw = {0.25, 0.5},
             int8[2] zw = {0, 0}, float[2] gamma = {1, 1}>
            {
                x = DequantizeLinear <axis = -1> (a, sa, za)
                r = DequantizeLinear (h, sh, zh)
                wd = DequantizeLinear <axis = 1> (w, sw, zw)
                p = MatMul (r, wd)
                s = Add (x, p)
                q = QuantizeLinear <axis = -1> (s, so, zo)
                n = LayerNormalization (x, gamma)
            }"#,
        )
        .unwrap();
        let mut cx = Context::new(m);
        how.run(&mut cx).unwrap();
        let g = &cx.graph;
        let from = |v: ValueId| g.producer(v).map(|n| g.node(n));
        let sum = from(from(g.find("q").unwrap()).unwrap().input(0).unwrap()).unwrap();
        let terms = sum.inputs.iter().flatten().map(|v| from(*v).map_or("constant".into(), |n| n.op.name.clone()));
        let read = g.nodes().filter(|(_, n)| n.op.is("DequantizeLinear") && n.input(0) == g.find("a")).count();
        terms.chain([read.to_string()]).collect()
    }

    #[test]
    fn a_value_that_is_read_anyway_is_shared_and_the_offset_goes_to_the_layer() {
        assert_eq!(written(IntegerSums::Shared), ["Mul", "Add", "1"]);
        assert_eq!(written(IntegerSums::FromCodes), ["Add", "constant", "2"]);
    }
}
