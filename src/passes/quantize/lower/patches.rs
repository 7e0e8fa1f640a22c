//! `patches-as-rows`: a Conv whose windows do not overlap becomes a MatMul.
//!
//! *What it does.* The image is cut into its windows by Reshape, Transpose and Reshape, one row a window, and the weight
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
use crate::ir::{Attrs, DType, Dim, Graph, NodeId, Tensor, ValueId};
use crate::passes::common::{patch_nodes, sole_reader};
use crate::passes::{Context, Numerics, Outcome, Pass, PassError};
use crate::plan::sites::pads;
use crate::quant::QParams;
use crate::rewrite::{Patch, Ref};

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
    let shape =
        |p: &mut Patch, part: &str, d: &[i64]| p.constant(&format!("{name}_{part}"), Tensor::i64(&[d.len() as i64], d));
    let cut = shape(&mut p, "cut", &[-1, c, rows, kh, cols, kw]);
    let a = p.under(name).op("Reshape", "windows", &[x.into(), cut]);
    let order = Attrs::new().with_ints("perm", &[0, 2, 4, 1, 3, 5]);
    let a = p.node("Transpose", &format!("{name}_in_order"), &[a], order);
    let flat = shape(&mut p, "flat", &[-1, rows * cols, depth]);
    let a = p.under(name).op("Reshape", "rows", &[a, flat]);
    let batch = g.shape(x)?.first()?.clone();
    p.typed(a, DType::FLOAT, Some(vec![batch.clone(), Dim::Known(rows * cols), Dim::Known(depth)]));
    // [O, C kh kw] to [C kh kw, O].
    let outs = o as usize;
    let wname = g.name_of(w.x).to_owned();
    let m = p.constant(&format!("{wname}_matrix"), transposed(codes, outs)?);
    let scales = if w.scales.len() == 1 { vec![w.scales[0]; outs] } else { w.scales.clone() };
    let params = QParams::per_axis(crate::quant::Code::I8, 1, scales, vec![0; outs]).ok()?;
    let m = crate::passes::quantize::dequantize_linear(&mut p, m, &params, &format!("{wname}_matrix"));
    let mut r: Ref = p.under(name).op("MatMul", "product", &[a, m]);
    if let Some(b) = n.input(2) {
        r = p.under(name).op("Add", "rows_out", &[r, b.into()]);
    }
    p.typed(r, DType::FLOAT, Some(vec![batch, Dim::Known(rows * cols), Dim::Known(o)]));
    match flattened(g, y, o, rows * cols) {
        Some(v) => p.succeed(v, r),
        None => {
            let back = Attrs::new().with_ints("perm", &[0, 2, 1]);
            let t = p.node("Transpose", &format!("{name}_columns"), &[r], back);
            let s = shape(&mut p, "image", &[-1, o, rows, cols]);
            let t = p.node("Reshape", name, &[t, s], Attrs::new());
            p.typed(t, DType::FLOAT, g.shape(y).map(<[_]>::to_vec));
            p.succeed(y, t);
        }
    }
    Some(p)
}
