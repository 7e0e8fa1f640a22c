//! One picture: from the bytes of its file to the pixels that an input takes.
//!
//! The steps are those of the usual evaluation code over Pillow: open, turn upright, convert to RGB (or luma), resize with an
//! antialiased filter, crop the middle.

use std::io::Cursor;
use std::path::Path;

use fast_image_resize::images::Image as FirImage;
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageReader};

use super::DataError;
use super::extras::without_extras;
use super::pictures::Geometry;
use super::presets::Interpolation;
use crate::budget;

/// What pictures are made into.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    /// 3 (RGB) or 1 (luma).
    pub(super) channels: usize,
    pub(super) geometry: Geometry,
    pub(super) interpolation: Interpolation,
    /// Levels of what a picture is laid on.
    pub(super) fill: Vec<u8>,
    /// Turn them as their EXIF orientation says.
    pub(super) upright: bool,
}

/// Interleaved 8-bit pixels of the crop of one picture.
pub(super) fn load(path: &Path, wanted: &Wanted) -> Result<Vec<u8>, DataError> {
    let fail = |reason: String| DataError::Decode { path: path.to_path_buf(), reason };
    let room = |needs: Option<u64>, what: String| {
        // Pixels are held several times over, and by several threads.
        let needs = needs.and_then(|n| n.checked_mul(SHARE));
        budget::afford(needs, || format!("{}: {what}", path.display()))
    };
    let channels = wanted.channels;
    let image = budget::foreign(|| decoded(path, wanted.upright, &room)).map_err(|p| fail(panicked(&p)))??;
    let (mut width, mut height) = (image.width(), image.height());
    let mut pixels = if channels == 1 { luma(image) } else { rgb(image) };
    let (w, h) = wanted.geometry.resized(width, height);
    if (w, h) != (width, height) {
        let bytes =
            (channels as u64).checked_mul(u64::from(w)).and_then(|n| n.checked_mul(u64::from(h).max(height.into())));
        room(bytes, format!("its {width}x{height} pixels, resized to {w}x{h} (see --resize),"))?;
        pixels = resize(pixels, channels, (width, height), (w, h), wanted.interpolation).map_err(fail)?;
        (width, height) = (w, h);
    }
    if let Some(canvas) = wanted.geometry.canvas() {
        pixels = laid_on(&pixels, (width, height), canvas, &wanted.fill);
        (width, height) = canvas;
    }
    let (crop_height, crop_width) = wanted.geometry.crop;
    fits(path, (width, height), wanted)?;
    let (left, top) = (wanted.geometry.offset(width, crop_width), wanted.geometry.offset(height, crop_height));
    let (row, cut) = (width as usize * channels, crop_width as usize * channels);
    let mut crop = Vec::with_capacity(crop_height as usize * cut);
    for y in top..top + crop_height as usize {
        crop.extend_from_slice(&pixels[y * row + left * channels..][..cut]);
    }
    Ok(crop)
}

/// Refuses a resized picture that the crop does not fit into.
pub(super) fn fits(path: &Path, (width, height): (u32, u32), wanted: &Wanted) -> Result<(), DataError> {
    let (crop_height, crop_width) = wanted.geometry.crop;
    if width >= crop_width && height >= crop_height {
        return Ok(());
    }
    let resized = wanted.geometry.resize != super::pictures::Resize::None;
    Err(DataError::TooSmall { path: path.to_path_buf(), width, height, resized, crop_width, crop_height })
}

/// A picture of any kind there is, upright if it is to be.
fn decoded(
    path: &Path,
    upright: bool,
    room: &dyn Fn(Option<u64>, String) -> Result<(), budget::OverBudget>,
) -> Result<DynamicImage, DataError> {
    let fail = |reason: String| DataError::Decode { path: path.to_path_buf(), reason };
    let io = |source| DataError::Io { path: path.to_path_buf(), source };
    let about = std::fs::metadata(path).map_err(io)?;
    if !about.is_file() {
        return Err(fail("it is no file".to_owned()));
    }
    let length = about.len();
    room(Some(length), format!("a picture of {} in the file", budget::readable(length)))?;
    let bytes = std::fs::read(path).map_err(io)?;
    let bytes = without_extras(&bytes).map_err(fail)?;
    if is_cut_jpeg(&bytes) {
        return Err(fail("the JPEG is cut off: it has no end-of-image marker".to_string()));
    }
    if let Some((w, h)) = jpeg_size(&bytes) {
        room(Some(3 * u64::from(w) * u64::from(h)), format!("a picture of {w}x{h} pixels"))?;
    }
    let decoder = || {
        // By content, not by extension: ImageNet itself has a PNG named .JPEG.
        let mut reader = ImageReader::new(Cursor::new(&bytes[..])).with_guessed_format().map_err(io)?;
        let mut limits = image::Limits::default();
        limits.max_alloc = Some((budget::memory() as u64 / 2).min(1 << 32));
        reader.limits(limits);
        reader.into_decoder().map_err(|e| fail(e.to_string()))
    };
    let as_stored = Orientation::NoTransforms;
    let (mut image, orientation) = match jpeg(&bytes) {
        Some(image) if !upright => (image, as_stored),
        // What no other decoder reads has no orientation that could be read.
        Some(image) => (image, decoder().map_or(as_stored, |mut d| d.orientation().unwrap_or(as_stored))),
        None => {
            let mut d = decoder()?;
            let (w, h) = d.dimensions();
            room(Some(3 * u64::from(w) * u64::from(h)), format!("a picture of {w}x{h} pixels"))?;
            let orientation = if upright { d.orientation().unwrap_or(as_stored) } else { as_stored };
            (DynamicImage::from_decoder(d).map_err(|e| fail(e.to_string()))?, orientation)
        }
    };
    image.apply_orientation(orientation);
    Ok(image)
}

/// The reason that a picture which its decoder panics over is not read.
pub(super) fn panicked(message: &str) -> String {
    format!("it is damaged in a way that its decoder does not expect ({message})")
}

/// How often pixels are held at once.
const SHARE: u64 = 4;

/// Width and height out of a JPEG's frame header; `None` for what is no JPEG or has none.
fn jpeg_size(bytes: &[u8]) -> Option<(u32, u32)> {
    let mut rest = bytes.strip_prefix(&[0xFF, 0xD8])?;
    loop {
        // Any number of fill bytes stands before a marker.
        let at = rest.iter().position(|b| *b != 0xFF)?;
        let marker = rest[at];
        if at == 0 {
            return None;
        }
        rest = &rest[at + 1..];
        if (0xD0..=0xD8).contains(&marker) || marker == 0x01 {
            continue;
        }
        let length = usize::from(u16::from_be_bytes(rest.first_chunk().copied()?));
        let frame = (0xC0..=0xCF).contains(&marker) && !matches!(marker, 0xC4 | 0xC8 | 0xCC);
        if frame {
            let size: &[u8; 4] = rest.get(3..)?.first_chunk()?;
            let two = |i: usize| u32::from(u16::from_be_bytes([size[i], size[i + 1]]));
            return Some((two(2), two(0)));
        }
        rest = rest.get(length.max(2)..)?;
    }
}

/// A JPEG, decoded to the same bits as libjpeg-turbo, which is what PIL and torchvision read photographs
/// with. Decoders differ by a level or two in inverse DCT and chroma, enough to move codes of a quantized model. `None` for
/// anything else, and for what that decoder refuses.
fn jpeg(bytes: &[u8]) -> Option<DynamicImage> {
    if !bytes.starts_with(&[0xFF, 0xD8]) {
        return None;
    }
    let i = libjpeg_turbo_rs::decompress(bytes).ok()?;
    let (w, h) = (u32::try_from(i.width).ok()?, u32::try_from(i.height).ok()?);
    match i.pixel_format {
        libjpeg_turbo_rs::PixelFormat::Grayscale => image::GrayImage::from_raw(w, h, i.data).map(Into::into),
        libjpeg_turbo_rs::PixelFormat::Rgb => image::RgbImage::from_raw(w, h, i.data).map(Into::into),
        libjpeg_turbo_rs::PixelFormat::Cmyk => {
            image::RgbImage::from_raw(w, h, i.data.chunks_exact(4).flat_map(of_cmyk).collect()).map(Into::into)
        }
        _ => None,
    }
}

/// Red, green and blue of the ink that is left away, as Pillow works them out: programs that write such files store them
/// inverted, whatever the format says.
fn of_cmyk(ink: &[u8]) -> [u8; 3] {
    let key = u32::from(ink[3]);
    let level = |left: u8| {
        // x key / 255, rounded.
        let x = (255 - u32::from(left)) * key + 128;
        key.saturating_sub(((x >> 8) + x) >> 8) as u8
    };
    [level(ink[0]), level(ink[1]), level(ink[2])]
}

/// Whether the bytes are a JPEG without an end marker after its first scan: the decoder fills such a picture with grey and
/// says nothing.
pub(super) fn is_cut_jpeg(bytes: &[u8]) -> bool {
    bytes.starts_with(&[0xFF, 0xD8]) && !bytes.windows(2).rev().any(|w| w == [0xFF, 0xD9])
}

/// RGB bytes. Alpha is dropped and 16-bit levels keep their high byte, as in PIL's conversion. (PIL cuts 16-bit *greyscale*
/// at 255, which turns most such pictures white; here it keeps its high byte too.)
fn rgb(image: DynamicImage) -> Vec<u8> {
    let high = |x: &u16| (x >> 8) as u8;
    match image {
        DynamicImage::ImageRgb16(i) => i.as_raw().iter().map(high).collect(),
        DynamicImage::ImageRgba16(i) => i.pixels().flat_map(|p| [high(&p[0]), high(&p[1]), high(&p[2])]).collect(),
        DynamicImage::ImageLuma16(i) => i.pixels().flat_map(|p| [high(&p[0]); 3]).collect(),
        DynamicImage::ImageLumaA16(i) => i.pixels().flat_map(|p| [high(&p[0]); 3]).collect(),
        other => other.into_rgb8().into_raw(),
    }
}

/// Luma bytes: ITU-R 601 weights in 16-bit fixed point, rounded, as in PIL's `convert("L")`.
fn luma(image: DynamicImage) -> Vec<u8> {
    rgb(image)
        .chunks_exact(3)
        .map(|p| ((p[0] as u32 * 19_595 + p[1] as u32 * 38_470 + p[2] as u32 * 7_471 + 0x8000) >> 16) as u8)
        .collect()
}

/// Resizes interleaved 8-bit pixels: rows first, then columns, with 8-bit levels between, because Pillow does it so and the
/// rounding between the two shows.
pub(super) fn resize(
    pixels: Vec<u8>,
    channels: usize,
    from: (u32, u32),
    to: (u32, u32),
    interpolation: Interpolation,
) -> Result<Vec<u8>, String> {
    let kind = if channels == 1 { PixelType::U8 } else { PixelType::U8x3 };
    let filter = match interpolation {
        Interpolation::Nearest => return Ok(nearest(&pixels, channels, from, to)),
        Interpolation::Box => FilterType::Box,
        Interpolation::Bilinear => FilterType::Bilinear,
        Interpolation::Hamming => FilterType::Hamming,
        // Catmull and Rom's is the cubic with a = -0.5.
        Interpolation::Bicubic => FilterType::CatmullRom,
        Interpolation::Lanczos => FilterType::Lanczos3,
    };
    let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(filter)).use_alpha(false);
    let mut image = FirImage::from_vec_u8(from.0, from.1, pixels, kind).map_err(|e| e.to_string())?;
    for (width, height) in [(to.0, from.1), to] {
        if (width, height) != (image.width(), image.height()) {
            let mut target = FirImage::new(width, height, kind);
            Resizer::new().resize(&image, &mut target, &options).map_err(|e| e.to_string())?;
            image = target;
        }
    }
    Ok(image.into_vec())
}

/// The pixel below the middle of each new one.
fn nearest(pixels: &[u8], channels: usize, from: (u32, u32), to: (u32, u32)) -> Vec<u8> {
    let at = |i: u32, from: u32, to: u32| {
        let x = (f64::from(i) + 0.5) * (f64::from(from) / f64::from(to));
        (x as usize).min(from.saturating_sub(1) as usize)
    };
    let columns: Vec<usize> = (0..to.0).map(|x| at(x, from.0, to.0)).collect();
    let mut out = Vec::with_capacity(to.0 as usize * to.1 as usize * channels);
    for y in 0..to.1 {
        let row = at(y, from.1, to.1) * from.0 as usize;
        columns.iter().for_each(|x| out.extend_from_slice(&pixels[(row + x) * channels..][..channels]));
    }
    out
}

/// A picture in the middle of a larger one of one colour.
fn laid_on(pixels: &[u8], (w, h): (u32, u32), canvas: (u32, u32), fill: &[u8]) -> Vec<u8> {
    let channels = fill.len();
    let mut out = fill.repeat(canvas.0 as usize * canvas.1 as usize);
    let (left, top) = (((canvas.0 - w) / 2) as usize, ((canvas.1 - h) / 2) as usize);
    for (y, row) in pixels.chunks_exact((w as usize * channels).max(1)).take(h as usize).enumerate() {
        let at = ((top + y) * canvas.0 as usize + left) * channels;
        out[at..at + row.len()].copy_from_slice(row);
    }
    out
}
