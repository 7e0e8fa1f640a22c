//! RoiAlign: a grid of samples between the pixels of each region (He et al. 2017, arXiv 1703.06870).

use tract_onnx::model::ParsingContext;
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_hir::internal::*;

use super::{Input, Kernel};

#[derive(Clone, Debug)]
pub struct RoiAlign {
    /// Opset 16 and later shift regions by half a pixel.
    half_pixel: bool,
    max: bool,
    height: usize,
    width: usize,
    /// Samples along each axis of a cell; 0: as many as the cell has pixels.
    samples: usize,
    scale: f32,
}

impl RoiAlign {
    pub fn read(ctx: &ParsingContext, node: &NodeProto) -> TractResult<RoiAlign> {
        let size = |name: &str, default: i64| -> TractResult<usize> {
            usize::try_from(node.get_attr_opt(name)?.unwrap_or(default)).context("a size is negative")
        };
        let mode: Option<String> = node.get_attr_opt("mode")?;
        let frame: Option<String> = node.get_attr_opt("coordinate_transformation_mode")?;
        Ok(RoiAlign {
            half_pixel: frame.map_or(ctx.onnx_operator_set_version >= 16, |f| f == "half_pixel"),
            max: mode.is_some_and(|m| m == "max"),
            height: size("output_height", 1)?,
            width: size("output_width", 1)?,
            samples: size("sampling_ratio", 0)?,
            scale: node.get_attr_opt("spatial_scale")?.unwrap_or(1.0),
        })
    }
}

/// The four pixels around a place and their weights; `None` outside of the image by more than a pixel.
fn corners(height: usize, width: usize, y: f32, x: f32) -> Option<[(usize, f32); 4]> {
    if y < -1.0 || y > height as f32 || x < -1.0 || x > width as f32 {
        return None;
    }
    let axis = |at: f32, n: usize| {
        let at = at.max(0.0);
        let low = at as usize;
        if low + 1 >= n { (n - 1, n - 1, 0.0) } else { (low, low + 1, at - low as f32) }
    };
    let ((y0, y1, dy), (x0, x1, dx)) = (axis(y, height), axis(x, width));
    Some([
        (y0 * width + x0, (1.0 - dy) * (1.0 - dx)),
        (y0 * width + x1, (1.0 - dy) * dx),
        (y1 * width + x0, dy * (1.0 - dx)),
        (y1 * width + x1, dy * dx),
    ])
}

impl Kernel for RoiAlign {
    fn name(&self) -> &'static str {
        "RoiAlign"
    }

    fn shape(&self, inputs: &[TVec<TDim>]) -> TractResult<TVec<TDim>> {
        ensure!(
            inputs.len() == 3 && inputs[0].len() == 4 && inputs[1].len() == 2,
            "RoiAlign reads an image and regions"
        );
        Ok(tvec!(inputs[1][0].clone(), inputs[0][1].clone(), self.height.to_dim(), self.width.to_dim()))
    }

    fn eval(&self, inputs: &[Input<'_>]) -> TractResult<Vec<f32>> {
        let [image, regions, batch] = inputs else { bail!("RoiAlign has three inputs") };
        let [items, channels, height, width] = image.dims[..] else { bail!("RoiAlign reads an image") };
        ensure!(height > 0 && width > 0, "RoiAlign reads an image of no pixels");
        let mut out = Vec::with_capacity(regions.dims[0] * channels * self.height * self.width);
        for (r, item) in regions.values.chunks(4).zip(batch.values.iter()) {
            let item = *item as usize;
            ensure!(item < items, "a region is of image {item}, there are {items}");
            let shift = if self.half_pixel { 0.5 } else { 0.0 };
            let [x0, y0, x1, y1] = [r[0], r[1], r[2], r[3]].map(|v| v * self.scale - shift);
            // Without the shift a region is at least a pixel large.
            let side = |a: f32, b: f32| if self.half_pixel { b - a } else { (b - a).max(1.0) };
            let (cell_y, cell_x) = (side(y0, y1) / self.height as f32, side(x0, x1) / self.width as f32);
            let count = |cell: f32| if self.samples > 0 { self.samples } else { cell.ceil().max(0.0) as usize };
            let (ny, nx) = (count(cell_y), count(cell_x));
            for c in 0..channels {
                let plane = &image.values[(item * channels + c) * height * width..][..height * width];
                for (py, px) in (0..self.height).flat_map(|y| (0..self.width).map(move |x| (y, x))) {
                    let (mut sum, mut most) = (0f32, f32::NEG_INFINITY);
                    for (iy, ix) in (0..ny).flat_map(|y| (0..nx).map(move |x| (y, x))) {
                        let y = y0 + py as f32 * cell_y + (iy as f32 + 0.5) * cell_y / ny as f32;
                        let x = x0 + px as f32 * cell_x + (ix as f32 + 0.5) * cell_x / nx as f32;
                        let four = corners(height, width, y, x);
                        let parts = four.map_or([0.0; 4], |p| p.map(|(at, w)| plane[at] * w));
                        sum += parts.iter().sum::<f32>();
                        most = parts.iter().copied().fold(most, f32::max);
                    }
                    let n = (ny * nx).max(1);
                    out.push(match self.max {
                        true if most.is_finite() => most,
                        true => 0.0,
                        false => sum / n as f32,
                    });
                }
            }
        }
        Ok(out)
    }
}
