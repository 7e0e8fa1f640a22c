//! Inputs out of nothing: seeded images with the statistics of photographs, for users without data.
//!
//! Photographs have an amplitude spectrum that falls like 1/f (Field 1987), colour channels that go up and down together,
//! and things that hide each other, with edges between: the dead leaves model (Matheron 1968; Lee, Mumford and Huang 2001).
//! Shapes whose sizes have density 1/r^3, each with its colour and its share of a 1/f texture, are laid over a 1/f
//! background. Edges matter: with the textures alone a vision transformer hardly reaches the ranges it has on photographs.
//! Ranges from synthetic data remain a fallback, and the report says so.
//!
//! The same seed gives the same bytes on every machine. Phases come from a point in a disc, scaled by a square root, not
//! from a sine; the transform is the scalar one in f64, so it does not depend on the processor; and pixels are rounded to
//! 8-bit levels, as photographs are, which absorbs a last-place difference in the transform's twiddle factors.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rustfft::FftPlannerScalar;
use rustfft::num_complex::Complex;

use super::convert::to_array;
use super::images::{ImageShape, tables};
use super::layout::{Layout, Lead};
use super::made_up::{Likeness, Sizes, normal};
use super::pictures::Pictures;
use super::{DataError, DataOptions, InputSpec};
use crate::runtime::Array;

/// Things in a picture.
const LEAVES: usize = 250;

/// Mean and standard deviation of the pixels of ImageNet, per channel and over all three.
const PIXELS: [(f64, f64); 3] = [(0.485, 0.229), (0.456, 0.224), (0.406, 0.225)];
const LUMA: (f64, f64) = (0.449, 0.226);

/// Shares of a brightness field and two colour fields in R, G and B: each channel has variance 1, and each pair a
/// correlation of 0.85.
const MIX: [[f64; 3]; 3] = [
    [0.948_683_298_050_513_8, 0.273_861_278_752_583_1, 0.158_113_883_008_419],
    [0.948_683_298_050_513_8, 0.0, -0.316_227_766_016_838],
    [0.948_683_298_050_513_8, -0.273_861_278_752_583_1, 0.158_113_883_008_419],
];

/// One input of the model, and how it is filled.
#[derive(Clone, Debug)]
enum Fill {
    Image { shape: ImageShape, tables: Vec<[f32; 256]> },
    Other { tail: Vec<usize>, likeness: Likeness },
}

/// A source of synthetic samples.
#[derive(Clone, Debug)]
pub(super) struct Synthetic {
    seed: u64,
    fills: Vec<Fill>,
}

impl Synthetic {
    /// Decides for each input what it is filled with. Notes say what was assumed.
    pub(super) fn new(
        specs: &[InputSpec],
        options: &DataOptions,
        pictures: &Pictures,
        layout: &Layout,
        notes: &mut Vec<String>,
    ) -> Result<Synthetic, DataError> {
        let crop = options.crop.map(|c| (c, c)).or(pictures.size());
        let images: Vec<Option<ImageShape>> = specs.iter().map(|s| ImageShape::of(s, crop)).collect();
        let mut sizes = Sizes::of(specs, &images);
        let side = images.iter().flatten().map(|i| i.height.max(i.width)).next();
        let fill = |(spec, (image, lead)): (&InputSpec, (&Option<ImageShape>, &Lead))| -> Result<Fill, DataError> {
            if let Some(shape) = *image {
                return Ok(Fill::Image { shape, tables: tables(spec, options, pictures, shape.channels)? });
            }
            let tail = sizes.tail(spec, *lead, notes);
            Ok(Fill::Other { likeness: Likeness::of(spec, &tail, side)?, tail })
        };
        let fills = specs.iter().zip(images.iter().zip(&layout.leads)).map(fill).collect::<Result<_, _>>()?;
        Ok(Synthetic { seed: options.seed, fills })
    }

    /// The values of input `input` for these items. Each item and input has a stream of its own, so a sample does not depend
    /// on which others were made, or in what order.
    pub(super) fn make(&self, spec: &InputSpec, input: usize, items: &[usize], lead: Lead) -> Result<Array, DataError> {
        let rng = |item: usize| {
            let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
            rng.set_stream((item * self.fills.len() + input) as u64);
            rng
        };
        let rows = if let Lead::Rows(n) = lead { n } else { 1 };
        match &self.fills[input] {
            Fill::Image { shape, tables } => {
                let mut out = Vec::with_capacity(shape.len() * items.len() * rows);
                for item in items {
                    let mut rng = rng(*item);
                    for _ in 0..rows {
                        let picture = picture(shape.channels, shape.height, shape.width, &mut rng);
                        shape.append(&picture, tables, &mut out);
                    }
                }
                super::image_array(spec, shape, items.len() * rows, out)
            }
            Fill::Other { tail, likeness } => {
                let dims = lead.shape(items.len(), tail);
                let mut made = likeness.numbers();
                for item in items {
                    let mut rng = rng(*item);
                    (0..rows).for_each(|_| likeness.append(tail, &mut rng, &mut made));
                }
                to_array(made, spec.dtype, &dims, spec.mask)
                    .map_err(|_| spec.refused("no synthetic values are made for this element type"))
            }
        }
    }
}

/// One thing in a picture: an ellipse or a box, turned, with a colour and a share of texture.
struct Leaf {
    centre: (f64, f64),
    /// Half axes, in pixels.
    half: (f64, f64),
    turn: Complex<f64>,
    is_box: bool,
    colour: [f64; 3],
    texture: f64,
    /// Where in the texture it is cut out.
    from: (usize, usize),
}

impl Leaf {
    fn new(height: usize, width: usize, rng: &mut ChaCha8Rng) -> Leaf {
        let side = height.max(width) as f64;
        // Density ~ 1 / r^3 between the two bounds, which makes a scene look alike at all distances.
        let (small, large) = (side / 40.0, side / 1.6);
        let (a, b) = (1.0 / (small * small), 1.0 / (large * large));
        let r = 1.0 / (a + (b - a) * rng.random::<f64>()).sqrt();
        Leaf {
            centre: (rng.random::<f64>() * height as f64, rng.random::<f64>() * width as f64),
            half: (r, r * (0.3 + 0.7 * rng.random::<f64>())),
            turn: unit(rng),
            is_box: rng.random::<f64>() < 0.4,
            colour: std::array::from_fn(|_| normal(rng)),
            texture: 0.05 + 0.75 * rng.random::<f64>() * rng.random::<f64>(),
            from: (rng.random_range(0..height), rng.random_range(0..width)),
        }
    }

    fn covers(&self, y: f64, x: f64) -> bool {
        let (dy, dx) = (y - self.centre.0, x - self.centre.1);
        let u = (dy * self.turn.re + dx * self.turn.im) / self.half.0;
        let v = (dx * self.turn.re - dy * self.turn.im) / self.half.1;
        if self.is_box { u.abs().max(v.abs()) <= 1.0 } else { u * u + v * v <= 1.0 }
    }
}

/// Lays things over each other on textures, one a colour, from the back to the front.
fn leaves(fields: &mut [Vec<f64>], height: usize, width: usize, rng: &mut ChaCha8Rng) {
    let texture = fields.to_vec();
    for _ in 0..LEAVES {
        let leaf = Leaf::new(height, width, rng);
        let reach = (leaf.half.0.powi(2) + leaf.half.1.powi(2)).sqrt();
        let span = |c: f64, n: usize| (c - reach).max(0.0) as usize..((c + reach + 1.0).min(n as f64) as usize);
        for y in span(leaf.centre.0, height) {
            for x in span(leaf.centre.1, width).filter(|x| leaf.covers(y as f64, *x as f64)) {
                let cut = (y + leaf.from.0) % height * width + (x + leaf.from.1) % width;
                for (f, (t, colour)) in fields.iter_mut().zip(texture.iter().zip(leaf.colour)) {
                    f[y * width + x] = colour + leaf.texture * t[cut];
                }
            }
        }
    }
}

/// Interleaved 8-bit pixels of one picture.
fn picture(channels: usize, height: usize, width: usize, rng: &mut ChaCha8Rng) -> Vec<u8> {
    let level = |z: f64, (mean, std): (f64, f64)| ((mean + std * z).clamp(0.0, 1.0) * 255.0).round_ties_even() as u8;
    if channels == 1 {
        let mut luma = [field(height, width, rng)];
        leaves(&mut luma, height, width, rng);
        return luma[0].iter().map(|z| level(*z, LUMA)).collect();
    }
    let mut fields: [Vec<f64>; 3] = std::array::from_fn(|_| field(height, width, rng));
    leaves(&mut fields, height, width, rng);
    (0..height * width)
        .flat_map(|i| {
            let fields = &fields;
            (0..3).map(move |c| {
                let z = MIX[c][0] * fields[0][i] + MIX[c][1] * fields[1][i] + MIX[c][2] * fields[2][i];
                level(z, PIXELS[c])
            })
        })
        .collect()
}

/// A random field of mean 0 and variance 1 whose amplitude spectrum is exactly 1/f, with f in cycles per `max(height, width)`
/// pixels so that it is isotropic on any format.
///
/// Opposite frequencies get conjugate values, which makes the field real without throwing half of it away.
pub(super) fn field(height: usize, width: usize, rng: &mut ChaCha8Rng) -> Vec<f64> {
    let side = height.max(width) as f64;
    let cycles = |k: usize, n: usize| if k <= n / 2 { k as f64 } else { k as f64 - n as f64 } * side / n as f64;
    let mut spectrum = vec![Complex::new(0.0, 0.0); height * width];
    for ky in 0..height {
        for kx in 0..width {
            let (i, mirror) = (ky * width + kx, (height - ky) % height * width + (width - kx) % width);
            if i > mirror || i == 0 {
                continue;
            }
            let (fy, fx) = (cycles(ky, height), cycles(kx, width));
            let amplitude = 1.0 / (fy * fy + fx * fx).sqrt();
            let phase = unit(rng);
            let z = if i == mirror { Complex::new(phase.re.signum(), 0.0) } else { phase } * amplitude;
            spectrum[i] = z;
            spectrum[mirror] = z.conj();
        }
    }
    inverse_2d(&mut spectrum, height, width);
    let energy: f64 = spectrum.iter().map(|z| z.re * z.re).sum();
    let scale = if energy > 0.0 { ((height * width) as f64 / energy).sqrt() } else { 0.0 };
    spectrum.into_iter().map(|z| z.re * scale).collect()
}

/// A uniformly distributed point of the unit circle.
fn unit(rng: &mut ChaCha8Rng) -> Complex<f64> {
    loop {
        let (x, y) = (rng.random::<f64>() * 2.0 - 1.0, rng.random::<f64>() * 2.0 - 1.0);
        let r = x * x + y * y;
        if r > 1e-6 && r <= 1.0 {
            let r = r.sqrt();
            return Complex::new(x / r, y / r);
        }
    }
}

/// Inverse transform of a row-major image, in place, without the factor 1/N.
fn inverse_2d(v: &mut [Complex<f64>], height: usize, width: usize) {
    let mut planner = FftPlannerScalar::new();
    planner.plan_fft_inverse(width).process(v);
    let columns = planner.plan_fft_inverse(height);
    let mut column = vec![Complex::new(0.0, 0.0); height];
    for x in 0..width {
        for (y, c) in column.iter_mut().enumerate() {
            *c = v[y * width + x];
        }
        columns.process(&mut column);
        for (y, c) in column.iter().enumerate() {
            v[y * width + x] = *c;
        }
    }
}
