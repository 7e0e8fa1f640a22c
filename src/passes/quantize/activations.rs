//! `quantize-activations`: QuantizeLinear and DequantizeLinear at every planned value.
//!
//! *What it does.* Each planned value is read through its codes. A fold's Mul is absorbed: codes are made with the scale
//! vector `s f[c]` and read back with the one scale `s`.
//!
//! *When it fires.* For each `activations` entry whose value still has float readers; scores and attention values were
//! taken by [`attention`](super::attention).
//!
//! *Why it is correct.* The convention of the QDQ form: an operator between DequantizeLinear and QuantizeLinear stands
//! for its integer kernel. `x / f / s = x / (s f)`.
//!
//! *Numerics.* Quantizes.
//!
//! *Source.* ONNX operator documentation.

use std::collections::BTreeSet;

use crate::ir::{Class, Graph, NodeId, ValueId};
use crate::passes::common::is_captured;
use crate::passes::{Context, Numerics, Outcome, Pass, PassError};
use crate::plan::{Activation, QuantPlan, Readers, Role};
use crate::quant::QParams;
use crate::rewrite::Patch;

/// The pass, for one plan.
pub struct QuantizeActivations;

impl Pass for QuantizeActivations {
    fn id(&self) -> &'static str {
        "quantize-activations"
    }

    fn summary(&self) -> &'static str {
        "Inserts QuantizeLinear and DequantizeLinear at every planned value."
    }

    fn numerics(&self) -> Numerics {
        Numerics::Quantizes
    }

    fn run(&self, m: &mut Context) -> Result<Outcome, PassError> {
        let mut out = Outcome::default();
        let (plan, _) = m.carried(self.id())?;
        for c in &plan.constants {
            let p = self.constant(&m.graph, &c.value, &c.params)?;
            m.commit(p)?;
            out.changes += 1;
        }
        // Layers, the two products of an attention, and products of any other kind.
        let contracting: BTreeSet<NodeId> =
            m.graph.nodes().filter(|(_, n)| n.is_a(Class::Product)).map(|(id, _)| id).collect();
        for a in &plan.activations {
            if matches!(a.role, Role::Scores | Role::Probs) {
                continue;
            }
            let Some(v) = m.graph.find(&a.value) else {
                return Err(PassError::Failed {
                    pass: self.id().into(),
                    message: format!("the plan's value `{}` is not in the model; make a new plan", a.value),
                });
            };
            // A constant that is an output stays what it is for the caller.
            if m.graph.constant(v).is_some() {
                continue;
            }
            if let Some(p) = self.patch(plan, m, v, a, &contracting)? {
                m.commit(p)?;
                out.changes += 1;
            }
        }
        Ok(out)
    }
}

/// True for a Gather of rows of a matrix whose columns have a scale each.
fn picks_rows(g: &Graph, id: NodeId, q: &QParams) -> bool {
    let n = g.node(id);
    n.op.is("Gather") && n.attrs.int("axis").unwrap_or(0) == 0 && q.axis() == Some(1)
}

impl QuantizeActivations {
    fn constant(&self, g: &Graph, name: &str, q: &QParams) -> Result<Patch, PassError> {
        let failed = |message: String| PassError::Failed {
            pass: self.id().into(),
            message: format!("constant `{name}`: {message}"),
        };
        let v = g.find(name).ok_or_else(|| failed("it is not in the model".into()))?;
        let t = g.constant(v).ok_or_else(|| failed("it is no constant".into()))?;
        let data = t.to_f32s().ok_or_else(|| failed("it cannot be read".into()))?;
        let dims: Vec<usize> = t.dims.iter().map(|d| *d as usize).collect();
        let codes = crate::quant::kernel::quantize_tensor(&data, &dims, q).map_err(|e| failed(e.to_string()))?;
        let mut p = Patch::new(self.id()).made_from([name.to_owned()]);
        let c = p.under(name).constant("codes", crate::quant::qparams::code_tensor(q.code(), &t.dims, &codes));
        // Of a table, only the rows that are picked are read back.
        for (id, _) in g.uses(v).into_iter().filter(|(id, slot)| *slot == 0 && picks_rows(g, *id, q)) {
            let n = g.node(id);
            let (Some(ids), Some(y)) = (n.input(1), n.out()) else { continue };
            let mut e = p.under(g.name_of(y));
            let rows = e.op_with("Gather", "codes", &[c, ids.into()], n.attrs.clone());
            let new = e.dequantized(rows, &q.clone().with_axis(-1));
            p.succeed(y, new);
        }
        let d = p.under(name).dequantized(c, q);
        // A constant that is an output, if through an Identity, stays what it is for the caller.
        let handed_on = |n: NodeId| g.node(n).op.is("Identity") && g.node(n).out().is_some_and(|y| g.is_output(y));
        for (n, slot) in g.uses(v).into_iter().filter(|(n, slot)| *slot != usize::MAX && !handed_on(*n)) {
            // An attention makes these very codes of its values.
            match g.node(n).out().filter(|_| slot == 0 && g.node(n).op.is("QuantizeLinear")) {
                Some(made) => p.replace(made, c),
                None => p.set_input(n, slot, Some(d)),
            }
        }
        Ok(p)
    }

    fn patch(
        &self,
        plan: &QuantPlan,
        cx: &Context,
        v: ValueId,
        a: &Activation,
        contracting: &BTreeSet<NodeId>,
    ) -> Result<Option<Patch>, PassError> {
        let (g, hint) = (&cx.graph, super::codes_hint(a));
        let mut p = Patch::new(self.id()).made_from([a.value.clone()]);
        // A fold's Mul stands between the value, or its Sub of offsets, and the readers.
        let folded = plan.folds.iter().find(|x| x.value == a.value).and_then(|fold| {
            let f = cx.stands_for(&a.value)?;
            let mul = g.node(g.producer_is(f, "Mul")?);
            let x = mul.input(0)?;
            let shifted = g.producer_is(x, "Sub").is_some_and(|n| g.node(n).input(0) == Some(v));
            let factor = g.constant(mul.input(1)?).filter(|_| x == v || shifted)?;
            // The channels are the first axis of the factor.
            Some((fold, f, x, -(factor.dims.len() as i64)))
        });
        if let Some((fold, f, x, axis)) = folded {
            let n = fold.factors.len();
            let scales: Vec<f32> = fold.factors.iter().map(|x| a.params.scale(0) * x).collect();
            let wide = QParams::per_axis(a.params.code(), axis, scales, vec![a.params.zero(0); n]).map_err(|e| {
                PassError::Failed { pass: self.id().into(), message: format!("fold of `{}`: {e}", a.value) }
            })?;
            let codes = p.under(&hint).quantized(x.into(), &wide);
            let d = p.under(&hint).part("folded").dequantized(codes, &a.params);
            p.replace(f, d);
            return Ok(Some(p));
        }
        // Readers that take codes already keep the value as it is.
        let users: Vec<(NodeId, usize)> = g
            .uses(v)
            .into_iter()
            .filter(|(n, slot)| {
                let node = g.node(*n);
                *slot != usize::MAX
                    && !node.op.is("QuantizeLinear")
                    && !node.op.is("Shape")
                    && !feeds_a_body(g, *n)
                    && match a.readers {
                        Readers::All => true,
                        Readers::Contracting => ends_in(g, *n, contracting),
                        Readers::Elementwise => !ends_in(g, *n, contracting),
                    }
            })
            .collect();
        // An input that is an output as well stays what it is for the caller.
        let makes_output = g.is_output(v) && g.producer(v).is_some() && a.readers != Readers::Contracting;
        if users.is_empty() && !makes_output {
            return Ok(None);
        }
        let d = p.under(&hint).round_trip(v.into(), &a.params);
        if makes_output {
            p.replace(v, d);
        } else {
            for (n, slot) in users {
                p.set_input(n, slot, Some(d));
            }
        }
        Ok(Some(p))
    }
}

/// True for a move whose result a nested graph reads, after further moves or not. Bodies compute in float, so codes would
/// only cost accuracy; and onnxruntime dies when it looks for a way past a move between DequantizeLinear and a body.
fn feeds_a_body(g: &Graph, n: NodeId) -> bool {
    let plain = |n: NodeId| g.node(n).is_move() && !g.node(n).has_subgraph();
    plain(n) && behind(g, n, |v| is_captured(g, v), |u, s| (s == 0 && plain(u)).then_some(false))
}

/// True if the reader is a contraction, or moves that lead to one.
fn ends_in(g: &Graph, n: NodeId, contracting: &BTreeSet<NodeId>) -> bool {
    contracting.contains(&n)
        || g.node(n).is_move()
            && behind(
                g,
                n,
                |_| false,
                |u, s| match contracting.contains(&u) {
                    true => Some(true),
                    // The other operands of a move are not moved.
                    false => ((s == 0 || g.node(u).op.is("Concat")) && g.node(u).is_move()).then_some(false),
                },
            )
}

/// Whether `found` holds for a value after the node, or `goes` is `Some(true)` for a reader; readers for which it is
/// `Some(false)` are gone through. Each node is visited once: by paths, n Concats of a value with itself have 2^n.
fn behind(
    g: &Graph,
    from: NodeId,
    found: impl Fn(ValueId) -> bool,
    goes: impl Fn(NodeId, usize) -> Option<bool>,
) -> bool {
    let (mut seen, mut todo) = (BTreeSet::from([from]), vec![from]);
    while let Some(n) = todo.pop() {
        for v in g.node(n).outputs.iter().flatten() {
            if found(*v) {
                return true;
            }
            for (u, s) in g.uses(*v) {
                match goes(u, s) {
                    Some(true) => return true,
                    Some(false) if seen.insert(u) => todo.push(u),
                    _ => {}
                }
            }
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::sites::Sites;
    use crate::text::parse_model;

    /// By paths this has 2^64 of them.
    #[test]
    fn concats_of_a_value_with_itself_are_walked_once() {
        let mut text = "<ir_version: 8, opset_import: [\"\" : 17]> g (float[1] v0) => (float[n] y) {\n".to_owned();
        for i in 0..64 {
            text += &format!("v{} = Concat <axis = 0> (v{i}, v{i})\n", i + 1);
        }
        let m = parse_model(&(text + "y = Relu (v64)\n}")).unwrap();
        let first = m.graph.producer(m.graph.find("v1").unwrap()).unwrap();
        assert!(!ends_in(&m.graph, first, &BTreeSet::new()) && !feeds_a_body(&m.graph, first));
        let last = m.graph.producer(m.graph.find("y").unwrap()).unwrap();
        assert!(ends_in(&m.graph, first, &BTreeSet::from([last])));
    }

    /// Behind moves too, in either operand of a product; and a nested graph gets no code at all.
    #[test]
    fn readers_get_the_code_that_is_meant_for_them() {
        let plan = "
version: 1
recipe: test
model: test
activations:
- { value: v, role: branch, readers: contracting, params: { kind: affine, code: u8, scale: 0.5, zero_point: 3 }, reason: '' }
- { value: v, role: branch, readers: elementwise, params: { kind: affine, code: u8, scale: 0.25, zero_point: 3 }, reason: '' }
";
        let plan = QuantPlan::from_yaml(plan, "test").unwrap();
        let m = parse_model(
            r#"<ir_version: 8, opset_import: ["" : 17]>
            g (float[2,3,4] x, bool c, float[2,4,3] u) => (a, b, d, e) <float[2,4,5] w, int64[3] same = {2, 3, 4}>
            {
                v = Relu (x)
                moved = Reshape (v, same)
                a = MatMul (moved, w)
                keys = Transpose <perm = [0, 2, 1]> (v)
                b = MatMul (v, keys)
                d = Add (v, v)
                read = Transpose <perm = [0, 2, 1]> (v)
                e = If <then_branch: graph = "00", else_branch: graph = "00"> (c) @ (read)
            }"#,
        )
        .unwrap();
        let mut cx = Context::new(m).with_plan(&plan, &Sites::default());
        QuantizeActivations.run(&mut cx).unwrap();
        let g = &cx.graph;
        let scale = |name: &str, slot: usize| {
            let mut v = g.node(g.producer(g.find(name).unwrap()).unwrap()).input(slot).unwrap();
            loop {
                let n = g.node(g.producer(v).unwrap());
                match &n.op.name[..] {
                    "DequantizeLinear" => return g.constant(n.input(1).unwrap()).unwrap().as_scalar(),
                    "Relu" => return None,
                    _ => v = n.input(0).unwrap(),
                }
            }
        };
        assert_eq!([scale("a", 0), scale("b", 0), scale("b", 1)], [Some(0.5); 3]);
        assert_eq!([scale("d", 0), scale("d", 1)], [Some(0.25); 2]);
        assert_eq!(scale("read", 0), None);
    }
}
