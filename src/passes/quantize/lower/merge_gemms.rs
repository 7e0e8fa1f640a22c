//! `merge-gemms`: layers that read the same codes are one Gemm.
//!
//! *What it does.* The weights and biases of Gemms that read one value are laid side by side, and a Split takes the one
//! result apart. Where results become uint8 codes, it is codes that are split: scale and zero point of each go into its
//! columns.
//!
//! *When it fires.* For two or more Gemms of the same DequantizeLinear, each with constant codes of one type and one scale per
//! output channel: the queries, keys and values of an attention. Either all results have a QuantizeLinear to uint8 with one
//! scale as the only reader, or none has a QuantizeLinear.
//!
//! *Why it is correct.* Columns of a product do not know of each other; `round(y / s) + z = round(y / s + z)` for an integer
//! `z`.
//!
//! *Numerics.* Close: zero points in the bias are rounded to its unit. That is half a unit at most, some thousandths of a code, so
//! that a result as near to a tie takes the neighbouring code: with 32 channels about one in a thousand does, in wider layers,
//! whose units are finer, fewer.
//!
//! *Before / after.*
//! ```text
//! q = QuantizeLinear (Gemm (x, DQ (v), DQ (a)), s, z)
//! k = QuantizeLinear (Gemm (x, DQ (w), DQ (b)), t, u)
//! ```
//! becomes
//! ```text
//! q, k = Split (QuantizeLinear (Gemm (x, DQ ([v w]), DQ ([a b])), 1, 0))
//! ```
//!
//! *Source.* Algebra; a projection to queries, keys and values is one product in most exports.

use std::collections::BTreeMap;

use super::{Coding, zero_tensor};
use crate::ir::{Attrs, DType, Dim, Graph, NodeId, Op, Tensor, ValueId};
use crate::passes::{Context, Numerics, Outcome, Pass, PassError};
use crate::rewrite::{Patch, Ref};

/// The pass.
pub struct MergeGemms;

impl Pass for MergeGemms {
    fn id(&self) -> &'static str {
        "merge-gemms"
    }

    fn summary(&self) -> &'static str {
        "Merges layers that read the same codes into one Gemm."
    }

    fn numerics(&self) -> Numerics {
        Numerics::Close { rel: 1e-4 }
    }

    fn run(&self, m: &mut Context) -> Result<Outcome, PassError> {
        let mut out = Outcome::default();
        let mut groups: BTreeMap<(ValueId, DType, bool), Vec<Sibling>> = BTreeMap::new();
        for id in m.graph.schedule() {
            if let Some(s) = Sibling::of(&m.graph, id) {
                groups.entry((s.x, s.w.dtype, s.q.is_some())).or_default().push(s);
            }
        }
        for group in groups.into_values().filter(|g| g.len() > 1) {
            let p = joined(&m.graph, m.opset(), &group);
            m.commit(p)?;
            out.changes += 1;
        }
        m.sweep();
        Ok(out)
    }
}

/// One Gemm `[rows, K] x [K, N]` and what makes codes of it.
struct Sibling {
    node: NodeId,
    x: ValueId,
    /// Scale of the input.
    unit: f32,
    w: Coding,
    weight: Tensor,
    bias: Vec<i64>,
    /// What makes codes of the result, if something does.
    q: Option<Coding>,
    /// The codes, or the result.
    out: ValueId,
}

impl Sibling {
    fn of(g: &Graph, id: NodeId) -> Option<Sibling> {
        let n = g.node(id);
        let plain = n.op.is("Gemm") && n.attrs.0.is_empty();
        let x = n.input(0).filter(|_| plain)?;
        let (unit, _) = Coding::read_back(g, x)?.whole()?;
        let w = Coding::read_back(g, n.input(1)?).filter(Coding::is_byte)?;
        let weight = g.constant(w.x).filter(|t| t.dims.len() == 2 && w.scales.len() as i64 == t.dims[1])?.clone();
        let b = Coding::read_back(g, n.input(2)?).filter(|b| b.dtype == DType::INT32)?;
        let bias = g.constant(b.x)?.to_i64s().filter(|c| c.len() == w.scales.len())?;
        let y = n.out()?;
        let q = Coding::written(g, y);
        let plain = q.as_ref().is_none_or(|q| q.dtype == DType::UINT8 && q.whole().is_some());
        let out = q.as_ref().map_or(y, |q| q.y);
        let coded = q.is_some() || !g.uses(y).iter().any(|(n, _)| g.node(*n).op.is("QuantizeLinear"));
        (plain && coded && !g.is_output(y)).then_some(Sibling { node: id, x, unit, w, weight, bias, q, out })
    }

    fn outs(&self) -> usize {
        self.w.scales.len()
    }

    /// Scales of the weight whose product is in codes of the result.
    fn scales(&self) -> Vec<f32> {
        let code = self.q.as_ref().map_or(1.0, |q| f64::from(q.scales[0]));
        self.w.scales.iter().map(|s| (f64::from(*s) / code) as f32).collect()
    }

    /// The bias with the zero point of the result, in units of the product.
    fn codes(&self) -> Vec<i32> {
        let units = self.scales().into_iter().map(|s| f64::from(s) * f64::from(self.unit));
        let zero = self.q.as_ref().map_or(0.0, |q| q.zeros[0] as f64);
        let moved = self.bias.iter().zip(units).map(|(b, u)| *b as f64 + zero / u);
        moved.map(|b| b.round_ties_even() as i32).collect()
    }
}

fn joined(g: &Graph, opset: i64, group: &[Sibling]) -> Patch {
    let first = &group[0];
    let oldest = group.iter().map(|s| s.node).min().expect("there are two");
    let mut p = Patch::new("merge-gemms").made_from(group.iter().map(|s| g.node(s.node).name.clone())).before(oldest);
    let n: usize = group.iter().map(Sibling::outs).sum();
    let k = first.weight.dims[0] as usize;
    let rows: Vec<Vec<u8>> = group.iter().map(|s| s.weight.to_le_bytes().unwrap_or_default().to_vec()).collect();
    let mut codes = Vec::with_capacity(k * n);
    for i in 0..k {
        for (s, bytes) in group.iter().zip(&rows) {
            codes.extend_from_slice(&bytes[i * s.outs()..(i + 1) * s.outs()]);
        }
    }
    let dims = [k as i64, n as i64];
    let codes = match first.w.dtype {
        DType::INT8 => Tensor::i8(&dims, &codes.iter().map(|b| *b as i8).collect::<Vec<_>>()),
        _ => Tensor::u8(&dims, &codes),
    };
    let scales: Vec<f32> = group.iter().flat_map(Sibling::scales).collect();
    let zeros: Vec<i64> = group.iter().flat_map(|s| s.w.zeros.clone()).collect();
    let bias: Vec<i32> = group.iter().flat_map(Sibling::codes).collect();
    let units: Vec<f32> = scales.iter().map(|s| (s * first.unit).max(f32::MIN_POSITIVE)).collect();
    let name = format!("{}_joined", g.name_of(first.out));
    let mut e = p.under(&name);
    let (c, s) = (e.constant("codes", codes), e.floats("scale", &scales));
    let z = e.constant("zero", zero_tensor(first.w.dtype, &[n as i64], &zeros));
    let w = e.op_with("DequantizeLinear", "dq", &[c, s, z], Attrs::new().with_int("axis", 1));
    let c = e.constant("bias_codes", Tensor::i32(&[n as i64], &bias));
    let s = e.floats("bias_scale", &units);
    let b = e.op_with("DequantizeLinear", "bias", &[c, s], Attrs::new().with_int("axis", 0));
    let y = e.op("Gemm", "product", &[first.x.into(), w, b]);
    let (q, dtype) = match &first.q {
        None => (y, DType::FLOAT),
        Some(_) => (e.at_unit_scale("QuantizeLinear", "q", y, DType::UINT8, 0), DType::UINT8),
    };
    let sizes: Vec<i64> = group.iter().map(|s| s.outs() as i64).collect();
    let names: Vec<String> = group.iter().map(|s| g.name_of(s.out).to_owned()).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut attrs = Attrs::new().with_int("axis", 1);
    let mut inputs: Vec<Option<Ref>> = vec![Some(q)];
    if opset < 13 {
        attrs = attrs.with_ints("split", &sizes);
    } else {
        inputs.push(Some(e.ints("sizes", &sizes)));
    }
    for ((part, s), size) in p.node_with(Op::onnx("Split"), &inputs, &names, attrs).into_iter().zip(group).zip(sizes) {
        let rows = g.shape(s.out).and_then(|d| d.first().cloned()).unwrap_or(Dim::Unknown);
        p.typed(part, dtype, Some(vec![rows, Dim::Known(size)]));
        p.succeed(s.out, part);
    }
    p
}
