//! Small pictures of samples, for a report.

use std::io::Cursor;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use image::codecs::jpeg::JpegEncoder;
use image::{ExtendedColorType, ImageFormat};

use super::images::ImageShape;
use super::presets::Interpolation;
use super::{Array, decode};

/// Quality of photographs, 1 to 100.
const QUALITY: u8 = 72;
/// Pictures no larger than this are drawn pixel by pixel, and are kept so.
const PIXELS: u32 = 64;

/// Interleaved 8-bit pixels.
pub(super) struct Pixels {
    pub(super) pixels: Vec<u8>,
    pub(super) width: u32,
    pub(super) height: u32,
    /// 1 or 3.
    pub(super) channels: usize,
}

impl Pixels {
    /// Interleaved pixels of this many rows and columns.
    pub(super) fn of(pixels: Vec<u8>, shape: &ImageShape) -> Option<Pixels> {
        let (width, height) = (u32::try_from(shape.width).ok()?, u32::try_from(shape.height).ok()?);
        Some(Pixels { pixels, width, height, channels: shape.channels })
    }

    /// One item of an image input, its least element black and its largest white: what mean and deviation were, an array
    /// does not tell. `None` if nothing is finite in it.
    pub(super) fn of_array(a: &Array, shape: &ImageShape, item: usize) -> Option<Pixels> {
        let all = a.f32s();
        let x = all.get(item * shape.len()..(item + 1) * shape.len())?;
        let finite = || x.iter().copied().filter(|x| x.is_finite());
        let (lo, hi) = (finite().reduce(f32::min)?, finite().reduce(f32::max)?);
        let level = |x: f32| if hi > lo { (255.0 * ((x - lo) / (hi - lo))).round() as u8 } else { 128 };
        let area = shape.width * shape.height;
        let at = |i: usize, c: usize| if shape.nhwc { x[i * shape.channels + c] } else { x[c * area + i] };
        let pixels = (0..area).flat_map(|i| (0..shape.channels).map(move |c| (i, c))).map(|(i, c)| level(at(i, c)));
        Pixels::of(pixels.collect(), shape)
    }

    /// As a `data:` URI, its longer side no longer than `side`.
    pub(super) fn uri(self, side: u32) -> Result<String, String> {
        let small = self.within(side)?;
        let color = if small.channels == 1 { ExtendedColorType::L8 } else { ExtendedColorType::Rgb8 };
        let mut bytes = Vec::new();
        let kind = if small.width.max(small.height) <= PIXELS {
            let mut to = Cursor::new(&mut bytes);
            image::write_buffer_with_format(&mut to, &small.pixels, small.width, small.height, color, ImageFormat::Png)
                .map_err(|e| e.to_string())?;
            "png"
        } else {
            let mut to = JpegEncoder::new_with_quality(&mut bytes, QUALITY);
            to.encode(&small.pixels, small.width, small.height, color).map_err(|e| e.to_string())?;
            "jpeg"
        };
        Ok(format!("data:image/{kind};base64,{}", STANDARD.encode(bytes)))
    }

    fn within(self, side: u32) -> Result<Pixels, String> {
        let longer = self.width.max(self.height);
        if longer <= side {
            return Ok(self);
        }
        let scaled = |n: u32| ((u64::from(n) * u64::from(side)).div_ceil(u64::from(longer)) as u32).max(1);
        let (from, to) = ((self.width, self.height), (scaled(self.width), scaled(self.height)));
        let pixels = decode::resize(self.pixels, self.channels, from, to, Interpolation::Bilinear)?;
        Ok(Pixels { pixels, width: to.0, height: to.1, channels: self.channels })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(uri: &str) -> (ImageFormat, image::DynamicImage) {
        let (head, data) = uri.split_once(";base64,").unwrap();
        let bytes = STANDARD.decode(data).unwrap();
        let format = if head == "data:image/png" { ImageFormat::Png } else { ImageFormat::Jpeg };
        (format, image::load_from_memory_with_format(&bytes, format).unwrap())
    }

    #[test]
    fn arrays_of_either_layout_become_pictures() {
        let shape = |nhwc| ImageShape { channels: 3, height: 1, width: 2, nhwc, chosen: false };
        let planes =
            Array::new(&[2, 3, 1, 2], vec![9.0f32; 6].into_iter().chain([-1.0, 0.0, 1.0, -1.0, 0.0, 1.0]).collect());
        let p = Pixels::of_array(&planes.unwrap(), &shape(false), 1).unwrap();
        assert_eq!(p.pixels, [0, 255, 128, 128, 0, 255]);
        let last = Array::new(&[1, 1, 2, 3], vec![-1.0f32, 1.0, 0.0, 0.0, -1.0, 1.0]).unwrap();
        let q = Pixels::of_array(&last, &shape(true), 0).unwrap();
        assert_eq!(q.pixels, p.pixels);
        let (format, back) = read(&q.uri(112).unwrap());
        assert_eq!(
            (format, back.into_rgb8().into_raw()),
            (ImageFormat::Png, p.pixels),
            "small ones are kept as they are"
        );
        assert!(Pixels::of_array(&last, &shape(true), 1).is_none(), "there is one item");
        let grey = Array::new(&[1, 1, 2, 3], vec![3.0f32; 6]).unwrap();
        assert_eq!(Pixels::of_array(&grey, &shape(true), 0).unwrap().pixels, [128; 6]);
    }

    #[test]
    fn large_ones_become_small() {
        let pixels: Vec<u8> = (0..300 * 200).flat_map(|i: u32| [(i % 300 * 255 / 299) as u8, 40, 200]).collect();
        let uri = Pixels { pixels, width: 300, height: 200, channels: 3 }.uri(112).unwrap();
        let (format, back) = read(&uri);
        let back = back.into_rgb8();
        assert_eq!((format, back.dimensions()), (ImageFormat::Jpeg, (112, 75)));
        assert!(back.get_pixel(0, 40)[0] < 30 && back.get_pixel(111, 40)[0] > 225 && uri.len() < 8000, "{}", uri.len());
    }
}
