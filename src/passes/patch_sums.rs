//! Overlapping patches added up.

use super::common::{has, patch_nodes};
use super::{Context, Numerics, Outcome, Pass, PassError};
use crate::infer::ShapeMap;
use crate::ir::{Attrs, DType, Graph, NodeId, Tensor};
use crate::rewrite::Patch;

/// Kernels with more elements than this are not written out.
const MOST_WEIGHTS: i64 = 1 << 24;

/// # What it does
/// Writes Col2Im as the transposed convolution that it is, with a kernel of ones and zeros. tract has no Col2Im.
///
/// # When it fires
/// On a Col2Im of float32 to two-dimensional images, whose sizes are constants and whose number of channels is known.
///
/// # Why it is correct
/// Both add each element of a column, which stands for one place of the kernel, to the pixel that the kernel has there.
/// The kernel of channel `c k + i` is 1 at place `i` and 0 elsewhere; each channel of the image is a group of its own.
///
/// # Numerics
/// Close: a pixel's sum may be taken in another order.
///
/// # Before / after
/// ```text
/// y = Col2Im <strides = [2, 2]> (x, [8, 8], [3, 3])     c = Reshape (x, [0, 0, 4, 4])
///                                                       y = ConvTranspose <group = 6, strides = [2, 2]> (c, places)
/// ```
///
/// # Source
/// `F.fold`, as VOLO's outlook attention has it; ONNX operator documentation, Col2Im and ConvTranspose.
pub struct PatchSums;

impl Pass for PatchSums {
    fn id(&self) -> &'static str {
        "patch-sums"
    }

    fn summary(&self) -> &'static str {
        "Writes Col2Im as a transposed convolution."
    }

    fn numerics(&self) -> Numerics {
        Numerics::Close { rel: 1e-5 }
    }

    fn run(&self, model: &mut Context) -> Result<Outcome, PassError> {
        if !has(model, "Col2Im") {
            return Ok(Outcome::default());
        }
        let map = model.shapes();
        patch_nodes(model, |g, id| patch(g, id, &map))
    }
}

fn patch(g: &Graph, id: NodeId, map: &ShapeMap) -> Option<Patch> {
    let n = g.node(id);
    if !n.op.is("Col2Im") {
        return None;
    }
    let (x, y) = (n.input(0)?, n.out()?);
    let sizes = |slot: usize| -> Option<[i64; 2]> { map.constant(n.input(slot)?)?.to_i64s()?.try_into().ok() };
    let (image, kernel) = (sizes(1)?, sizes(2)?);
    let list = |name: &str, otherwise: Vec<i64>| n.attrs.ints(name).map_or(otherwise, <[i64]>::to_vec);
    let strides: [i64; 2] = list("strides", vec![1; 2]).try_into().ok()?;
    let dilations: [i64; 2] = list("dilations", vec![1; 2]).try_into().ok()?;
    let pads: [i64; 4] = list("pads", vec![0; 4]).try_into().ok()?;
    let columns = map.dims(x)?.get(1)?.known()?;
    let sane = |sizes: &[i64], least: i64| sizes.iter().all(|s| (least..1 << 20).contains(s));
    let places = kernel[0].saturating_mul(kernel[1]);
    if map.dtype(x) != Some(DType::FLOAT)
        || !sane(&[image, kernel, strides, dilations].concat(), 1)
        || !sane(&pads, 0)
        || columns % places != 0
        || columns.saturating_mul(places) > MOST_WEIGHTS
    {
        return None;
    }
    // Places of the kernel along each axis, and the pixels that the last of them leaves.
    let mut grid = [0; 2];
    let mut rest = [0; 2];
    for a in 0..2 {
        let room = image[a] + pads[a] + pads[a + 2] - dilations[a] * (kernel[a] - 1) - 1;
        (grid[a], rest[a]) = (room.div_euclid(strides[a]) + 1, room.rem_euclid(strides[a]));
        if grid[a] < 1 {
            return None;
        }
    }
    // One kernel a column: a channel's columns follow each other.
    let one_hot: Vec<f32> =
        (0..columns * places).map(|i| if i / places % places == i % places { 1.0 } else { 0.0 }).collect();
    let name = g.name_of(y);
    let mut p = Patch::new("patch-sums").before(id).made_from([name.to_owned()]);
    let mut e = p.under(name);
    let dims = e.ints("grid", &[0, columns, grid[0], grid[1]]);
    let cells = e.op("Reshape", "columns", &[x.into(), dims]);
    let weight = e.constant("places", Tensor::f32(&[columns, 1, kernel[0], kernel[1]], &one_hot));
    let attrs = Attrs::new()
        .with_ints("kernel_shape", &kernel)
        .with_ints("strides", &strides)
        .with_ints("dilations", &dilations)
        .with_ints("pads", &pads)
        .with_ints("output_padding", &rest)
        .with_int("group", columns / places);
    let new = e.op_with("ConvTranspose", "", &[cells, weight], attrs);
    p.succeed(y, new);
    Some(p)
}
