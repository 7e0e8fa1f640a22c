//! `per-channel`: a scale and zero point per channel, as element-wise arithmetic around one scale of 1.
//!
//! *What it does.* QuantizeLinear with one scale and zero point per channel becomes Mul by `1 / s[c]`, Add of `z[c]` and a
//! QuantizeLinear of scale 1; DequantizeLinear becomes a DequantizeLinear of scale 1, Mul by `s[c]` and Add of
//! `-s[c] z[c]`. Where all zero points are the same the Add falls away and the one zero point stays where it is.
//!
//! *When it fires.* For QuantizeLinear and DequantizeLinear of 8-bit codes with more than one scale, unless the codes are
//! constant (weights), where the axis is the last or the rank is known. With `WhereSlow`, scales of another axis
//! than the last stay unless a runtime would fuse them with their neighbour.
//!
//! *Why it is correct.* `round(x / s + z) = round(x / s) + z` for an integer `z`; `(q - z) s = q s - z s`.
//!
//! *Numerics.* Close: two roundings to float32 instead of one.
//!
//! *Before / after.* `q = QuantizeLinear <axis = -1> (x, s, z)` becomes
//! `q = QuantizeLinear (Add (Mul (x, 1/s), z), 1, 0)`.
//!
//! *Source.* ONNX operator documentation. Why it is worth it: onnxruntime's per-axis operators take 20 ns per element on
//! the last axis, and its fused kernels (QLinearConv, QLinearGlobalAveragePool, ..) stop at run time at a scale per channel.

use super::Coding;
use crate::ir::{Class, DType, Graph, Node, Tensor};
use crate::passes::{Context, Numerics, Outcome, Pass, PassError};
use crate::rewrite::Patch;

/// The pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PerChannel {
    /// Wherever there is a scale per channel.
    Everywhere,
    /// Not along another axis than the last, of heads say: runtimes take those a block at a time. There it fires only where
    /// a runtime would fuse the operator with its neighbour.
    WhereSlow,
}

impl Pass for PerChannel {
    fn id(&self) -> &'static str {
        "per-channel"
    }

    fn summary(&self) -> &'static str {
        "Writes per-channel scales and zero points as element-wise arithmetic."
    }

    fn numerics(&self) -> Numerics {
        Numerics::Close { rel: 1e-4 }
    }

    fn run(&self, m: &mut Context) -> Result<Outcome, PassError> {
        let mut out = Outcome::default();
        for id in m.graph.schedule() {
            let g = &m.graph;
            let Some(c) = Coding::of(g, id).filter(|c| c.scales.len() > 1 && c.is_byte()) else { continue };
            if g.constant(c.x).is_some() {
                continue;
            }
            if *self == PerChannel::WhereSlow && !c.is_last_axis(g, c.x) && !c.is_last_axis(g, c.y) && !fused(g, &c) {
                continue;
            }
            let Some(dims) = dims(g, &c) else {
                out.notes.push(format!("`{}` keeps its scales: its rank is not known", g.name_of(c.y)));
                continue;
            };
            let p = if g.node(id).op.is("QuantizeLinear") { quantize(g, &c, &dims) } else { read(g, &c, &dims) };
            m.commit(p)?;
            out.changes += 1;
        }
        m.sweep();
        Ok(out)
    }
}

/// True where a runtime may make one operator of an operator between codes and the conversions around it. None of those
/// takes a scale per channel.
fn fused(g: &Graph, c: &Coding) -> bool {
    if g.node(c.node).op.is("QuantizeLinear") {
        let mut from = g.producer(c.x);
        while let Some(n) = from.map(|n| g.node(n)) {
            if n.inputs.iter().flatten().any(|v| g.producer_is(*v, "DequantizeLinear").is_some()) {
                return true;
            }
            from = n.input(0).filter(|_| seen_through(n)).and_then(|v| g.producer(v));
        }
        return false;
    }
    let mut values = vec![c.y];
    while let Some(v) = values.pop() {
        for (n, _) in g.uses(v) {
            let n = g.node(n);
            if n.op.is("QuantizeLinear") && v != c.y || n.is_a(Class::Product) {
                return true;
            }
            let alone = n.op.is("QuantizeLinear") || n.outputs.len() != 1;
            let Some(y) = n.out().filter(|_| !alone) else { continue };
            if seen_through(n) {
                values.push(y);
            } else if g.uses(y).iter().any(|(q, _)| g.node(*q).op.is("QuantizeLinear")) {
                return true;
            }
        }
    }
    false
}

/// Operators that runtimes move conversions across, or leave out in front of one.
fn seen_through(n: &Node) -> bool {
    n.is_move() || n.op.is("Relu") || n.op.is("Clip")
}

/// Shape of a constant that broadcasts along the channel axis.
fn dims(g: &Graph, c: &Coding) -> Option<Vec<i64>> {
    let n = c.scales.len() as i64;
    if c.is_last_axis(g, c.x) || c.is_last_axis(g, c.y) {
        return Some(vec![n]);
    }
    let behind = match c.axis {
        a if a < 0 => -a - 1,
        a => (g.rank(c.x).or_else(|| g.rank(c.y))? as i64) - a - 1,
    };
    let mut d = vec![n];
    d.extend(std::iter::repeat_n(1, usize::try_from(behind).ok()?));
    Some(d)
}

fn one_zero(c: &Coding) -> Option<i64> {
    c.zeros.iter().all(|z| *z == c.zeros[0]).then_some(c.zeros[0])
}

fn quantize(g: &Graph, c: &Coding, dims: &[i64]) -> Patch {
    let name = g.name_of(c.y);
    let mut p = Patch::new("per-channel").made_from([name.to_owned()]).before(c.node);
    let inverse: Vec<f32> = c.scales.iter().map(|s| (1.0 / f64::from(*s)) as f32).collect();
    let mut e = p.under(name);
    let k = e.constant("inverse_scale", Tensor::f32(dims, &inverse));
    let mut x = e.op("Mul", "scaled", &[c.x.into(), k]);
    let zero = one_zero(c);
    if zero.is_none() {
        let z: Vec<f32> = c.zeros.iter().map(|z| *z as f32).collect();
        let z = e.constant("zeros", Tensor::f32(dims, &z));
        x = e.op("Add", "shifted", &[x, z]);
    }
    let q = e.at_unit_scale("QuantizeLinear", "", x, c.dtype, zero.unwrap_or(0));
    p.typed(q, c.dtype, g.shape(c.y).map(<[_]>::to_vec));
    p.succeed(c.y, q);
    p
}

fn read(g: &Graph, c: &Coding, dims: &[i64]) -> Patch {
    let name = g.name_of(c.y);
    let mut p = Patch::new("per-channel").made_from([name.to_owned()]).before(c.node);
    let zero = one_zero(c);
    let mut codes = p.under(g.name_of(c.x));
    let mut y = codes.at_unit_scale("DequantizeLinear", "number", c.x.into(), c.dtype, zero.unwrap_or(0));
    let mut e = p.under(name);
    // A factor of 1 changes nothing.
    if c.scales.iter().any(|s| *s != 1.0) {
        let s = e.constant("scale", Tensor::f32(dims, &c.scales));
        y = e.op("Mul", "scaled", &[y, s]);
    }
    if zero.is_none() {
        let o: Vec<f32> = c.scales.iter().zip(&c.zeros).map(|(s, z)| (-f64::from(*s) * (*z as f64)) as f32).collect();
        let o = e.constant("offset", Tensor::f32(dims, &o));
        y = e.op("Add", "shifted", &[y, o]);
    }
    p.typed(y, DType::FLOAT, g.shape(c.y).map(<[_]>::to_vec));
    p.succeed(c.y, y);
    p
}
