//! `patches-as-rows`: a Conv whose windows do not overlap becomes a MatMul.
//!
//! *What it does.* The image is cut into its windows by Reshape, Transpose and Reshape, one row per window, and the weight
//! `[O, C, kh, kw]` becomes a matrix `[C kh kw, O]`. Where the exporter flattens and transposes the result right away, as
//! patch embeddings do, that falls away: the MatMul's rows are in this order already.
//!
//! *When it fires.* For a Conv of constant int8 weight whose strides are its kernel's sizes, without padding, dilation or
//! groups, over an image of known height and width that the kernel divides.
//!
//! *Why it is correct.* Every output element is the sum of products of one window with one kernel; a row holds exactly
//! that window in the kernel's order.
//!
//! *Numerics.* Close: the order of float sums may change. (Of integer sums it does not matter.)
//!
//! *Before / after.* `Transpose(Reshape(Conv(x, w, b)))` becomes `Add(MatMul(Reshape(Transpose(Reshape(x))), w'), b)`.
//!
//! *Source.* Patch embedding as the vision transformer paper describes it, arXiv 2010.11929, section 3.1.

use super::{Coding, size, transposed};
use crate::ir::{DType, Dim, Graph, NodeId, ValueId};
use crate::passes::common::{patch_nodes, sole_reader};
use crate::passes::{Context, Numerics, Outcome, Pass, PassError};
use crate::plan::sites::pads;
use crate::quant::QParams;
use crate::rewrite::Patch;

/// The pass.
pub struct PatchesAsRows;

impl Pass for PatchesAsRows {
    fn id(&self) -> &'static str {
        "patches-as-rows"
    }

    fn summary(&self) -> &'static str {
        "Writes a Conv whose windows do not overlap as a MatMul."
    }

    fn numerics(&self) -> Numerics {
        Numerics::Close { rel: 1e-4 }
    }

    fn run(&self, m: &mut Context) -> Result<Outcome, PassError> {
        patch_nodes(m, patch)
    }
}

/// The value after `Reshape [B, O, -1] -> Transpose [0, 2, 1]`, if `y` goes nowhere else.
fn flattened(g: &Graph, y: ValueId, outs: i64, windows: i64) -> Option<ValueId> {
    let only = |v: ValueId, op: &str| sole_reader(g, v).filter(|n| g.node(*n).op.is(op));
    let reshape = only(y, "Reshape").or_else(|| only(y, "Flatten"))?;
    let flat = g.node(reshape).out()?;
    if g.rank(flat) != Some(3) || size(g, flat, 1) != Some(outs) || size(g, flat, 2) != Some(windows) {
        return None;
    }
    let transpose = only(flat, "Transpose")?;
    let rows = g.node(transpose).out()?;
    (g.node(transpose).attrs.ints("perm") == Some(&[0, 2, 1])).then_some(rows)
}

fn patch(g: &Graph, id: NodeId) -> Option<Patch> {
    let n = g.node(id);
    if !n.op.is("Conv") {
        return None;
    }
    let (x, y) = (n.input(0)?, n.out()?);
    let w = Coding::read_back(g, n.input(1)?)?;
    let codes = g.constant(w.x).filter(|t| t.dtype == DType::INT8 && t.dims.len() == 4)?;
    Coding::read_back(g, x)?.whole()?;
    let [o, c, kh, kw] = codes.dims[..] else { return None };
    let list = |name: &str, default: i64| n.attrs.ints(name).map_or(vec![default; 2], <[i64]>::to_vec);
    let plain = list("strides", 1) == [kh, kw] && list("dilations", 1) == [1, 1] && !pads(n) && n.int("group") == 1;
    let (h, wd) = (size(g, x, 2)?, size(g, x, 3)?);
    if !plain || size(g, x, 1) != Some(c) || kh * kw <= 1 || h % kh != 0 || wd % kw != 0 {
        return None;
    }
    let (rows, cols, depth) = (h / kh, wd / kw, c * kh * kw);
    let name = g.name_of(y);
    let mut p = Patch::new("patches-as-rows").made_from([n.name.clone()]).before(id);
    let mut e = p.under(name);
    let cut = e.ints("cut", &[-1, c, rows, kh, cols, kw]);
    let a = e.op("Reshape", "windows", &[x.into(), cut]);
    let a = e.turned("in_order", a, &[0, 2, 4, 1, 3, 5]);
    let flat = e.ints("flat", &[-1, rows * cols, depth]);
    let a = e.op("Reshape", "rows", &[a, flat]);
    let batch = g.shape(x)?.first()?.clone();
    e.typed(a, DType::FLOAT, Some(vec![batch.clone(), Dim::Known(rows * cols), Dim::Known(depth)]));
    // [O, C kh kw] to [C kh kw, O].
    let outs = o as usize;
    let mut of_weight = e.under(g.name_of(w.x));
    let m = of_weight.constant("matrix", transposed(codes, outs)?);
    let scales = if w.scales.len() == 1 { vec![w.scales[0]; outs] } else { w.scales.clone() };
    let params = QParams::per_axis(crate::quant::Code::I8, 1, scales, vec![0; outs]).ok()?;
    let m = of_weight.part("matrix").dequantized(m, &params);
    let mut r = e.op("MatMul", "product", &[a, m]);
    if let Some(b) = n.input(2) {
        r = e.op("Add", "rows_out", &[r, b.into()]);
    }
    e.typed(r, DType::FLOAT, Some(vec![batch, Dim::Known(rows * cols), Dim::Known(o)]));
    match flattened(g, y, o, rows * cols) {
        Some(v) => p.succeed(v, r),
        None => {
            let t = e.turned("columns", r, &[0, 2, 1]);
            let s = e.ints("image", &[-1, o, rows, cols]);
            let t = e.op("Reshape", "", &[t, s]);
            p.typed(t, DType::FLOAT, g.shape(y).map(<[_]>::to_vec));
            p.succeed(y, t);
        }
    }
    Some(p)
}
