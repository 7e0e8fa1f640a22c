//! Images: how an input wants them, and a folder of them.

use std::path::{Path, PathBuf};

use fast_image_resize::images::Image as FirImage;
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};
use image::{DynamicImage, ImageReader};

use super::{DataError, DataOptions, InputSpec, labels};
use crate::budget;
use crate::ir::{DType, Dim};

/// How an image input lays out its numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ImageShape {
    /// 3 (RGB) or 1 (luma).
    pub(super) channels: usize,
    pub(super) height: usize,
    pub(super) width: usize,
    /// Channels last (`[batch, height, width, channels]`).
    pub(super) nhwc: bool,
    /// Whether the model leaves height or width open, so that these were chosen here.
    pub(super) chosen: bool,
}

/// Side of the crop when neither the model nor the user says one.
const DEFAULT_SIDE: usize = 224;

impl ImageShape {
    /// The image layout of an input: rank 4, float or uint8, and 1 or 3 channels; `None` if it is no image. Channels are
    /// the second size, unless that is not 1 or 3 and the last one is. Open sizes become `crop`, or 224.
    pub(super) fn of(spec: &InputSpec, crop: Option<u32>) -> Option<ImageShape> {
        let [_, a, b, c] = spec.dims.as_slice() else { return None };
        if spec.cache {
            return None;
        }
        if !(matches!(spec.dtype, DType::FLOAT | DType::FLOAT16 | DType::BFLOAT16 | DType::DOUBLE | DType::UINT8)) {
            return None;
        }
        let channels = |d: &Dim| match d {
            Dim::Known(n @ (1 | 3)) => Some(*n as usize),
            _ => None,
        };
        let open = |d: &Dim| !matches!(d, Dim::Known(_));
        let (channels, h, w, nhwc) = match (channels(a), channels(c)) {
            (Some(n), _) => (n, b, c, false),
            (None, Some(n)) => (n, a, b, true),
            (None, None) if open(a) => (3, b, c, false),
            _ => return None,
        };
        let side = |d: &Dim| match d {
            Dim::Known(n) => usize::try_from(*n).ok().filter(|n| *n > 0),
            _ => Some(crop.map_or(DEFAULT_SIDE, |c| c as usize)),
        };
        Some(ImageShape { channels, height: side(h)?, width: side(w)?, nhwc, chosen: open(h) || open(w) })
    }

    /// Elements of one image.
    pub(super) fn len(&self) -> usize {
        self.channels * self.height * self.width
    }

    /// The array shape of `batch` images.
    pub(super) fn dims(&self, batch: usize) -> [usize; 4] {
        if self.nhwc {
            [batch, self.height, self.width, self.channels]
        } else {
            [batch, self.channels, self.height, self.width]
        }
    }

    /// Appends an image of interleaved 8-bit pixels in the input's layout, each channel through its table of 256 values.
    pub(super) fn append(&self, pixels: &[u8], tables: &[[f32; 256]], out: &mut Vec<f32>) {
        if self.nhwc {
            out.extend(
                pixels.chunks_exact(self.channels).flat_map(|p| p.iter().zip(tables).map(|(x, t)| t[*x as usize])),
            );
        } else {
            for (c, table) in tables.iter().enumerate() {
                out.extend(pixels.iter().skip(c).step_by(self.channels).map(|x| table[*x as usize]));
            }
        }
    }
}

/// What each of the 256 levels of each channel becomes: `(x / 255 - mean) / std`, in float32 and in this order, as NumPy
/// code does it; or the level itself for a uint8 input, whose model normalises inside.
pub(super) fn tables(spec: &InputSpec, options: &DataOptions, channels: usize) -> Result<Vec<[f32; 256]>, DataError> {
    if spec.dtype == DType::UINT8 {
        return Ok(vec![std::array::from_fn(|x| x as f32); channels]);
    }
    let norm = options.normalisation(&spec.name, channels)?;
    Ok(norm.into_iter().map(|(mean, std)| std::array::from_fn(|x| (x as f32 / 255.0 - mean) / std)).collect())
}

/// The images of a folder, in name order or in that of its labels.txt.
#[derive(Clone, Debug)]
pub(super) struct ImageFolder {
    folder: PathBuf,
    names: Vec<String>,
    shape: ImageShape,
    short_side: Option<u32>,
    tables: Vec<[f32; 256]>,
}

impl ImageFolder {
    /// Lists the folder; the images themselves are read when samples are asked for. Returns the classes too, if known.
    pub(super) fn open(
        folder: &Path,
        spec: &InputSpec,
        shape: ImageShape,
        options: &DataOptions,
    ) -> Result<(ImageFolder, Option<Vec<i64>>), DataError> {
        let label_file = folder.join("labels.txt");
        let (names, labels) = if label_file.exists() {
            let (names, classes) = labels::read(&label_file)?.into_iter().unzip();
            (names, labels::checked(&label_file, classes)?)
        } else {
            (list(folder)?, None)
        };
        let short_side = options.short_side(shape.height as u32, shape.width as u32);
        let tables = tables(spec, options, shape.channels)?;
        Ok((ImageFolder { folder: folder.to_path_buf(), names, shape, short_side, tables }, labels))
    }

    pub(super) fn len(&self) -> usize {
        self.names.len()
    }

    pub(super) fn name(&self, item: usize) -> &str {
        &self.names[item]
    }

    /// Bytes of one file; 0 if it is gone.
    pub(super) fn bytes_of(&self, item: usize) -> u64 {
        std::fs::metadata(self.folder.join(&self.names[item])).map_or(0, |m| m.len())
    }

    pub(super) fn shape(&self) -> ImageShape {
        self.shape
    }

    /// Appends one image, decoded, resized, cropped and normalised.
    pub(super) fn append(&self, item: usize, out: &mut Vec<f32>) -> Result<(), DataError> {
        let path = self.folder.join(&self.names[item]);
        let pixels = load(&path, self.shape, self.short_side)?;
        self.shape.append(&pixels, &self.tables, out);
        Ok(())
    }
}

/// The JPEG and PNG files of a folder, sorted by name in code point order.
fn list(folder: &Path) -> Result<Vec<String>, DataError> {
    let io = |source| DataError::Io { path: folder.to_path_buf(), source };
    let mut names = Vec::new();
    let mut empty = true;
    for entry in std::fs::read_dir(folder).map_err(io)? {
        let entry = entry.map_err(io)?;
        empty = false;
        let path = entry.path();
        if is_image_name(&path) && path.is_file() {
            // A name that is not Unicode cannot be put into a report or a labels.txt; say so now.
            let name = entry
                .file_name()
                .into_string()
                .map_err(|_| DataError::Decode { path: path.clone(), reason: "its name is not Unicode".to_string() })?;
            names.push(name);
        }
    }
    names.sort_unstable();
    match (names.is_empty(), empty) {
        (false, _) => Ok(names),
        (true, true) => Err(DataError::EmptyFolder { path: folder.to_path_buf() }),
        (true, false) => Err(DataError::NoImages { path: folder.to_path_buf() }),
    }
}

/// Whether a file's name ends like a JPEG's or PNG's.
pub(super) fn is_image_name(path: &Path) -> bool {
    path.extension().is_some_and(|e| ["jpg", "jpeg", "png"].iter().any(|x| e.eq_ignore_ascii_case(x)))
}

/// Interleaved 8-bit pixels of the centre crop of one image.
///
/// The steps are those of the usual evaluation code over PIL: open without regard to EXIF orientation, convert to RGB
/// (or luma), resize the short side with the antialiased bicubic filter (a = -0.5, which is Catmull-Rom), sizes rounded half
/// to even, crop from `(size - crop) / 2`.
fn load(path: &Path, shape: ImageShape, short_side: Option<u32>) -> Result<Vec<u8>, DataError> {
    let fail = |reason: String| DataError::Decode { path: path.to_path_buf(), reason };
    let io = |source| DataError::Io { path: path.to_path_buf(), source };
    let room = |needs: Option<u64>, what: String| {
        // Pixels are held several times over, and by several threads.
        let needs = needs.and_then(|n| n.checked_mul(SHARE));
        budget::afford(needs, || format!("{}: {what}", path.display()))
    };
    let length = std::fs::metadata(path).map_err(io)?.len();
    room(Some(length), format!("a picture of {} in the file", budget::readable(length)))?;
    let bytes = std::fs::read(path).map_err(io)?;
    if is_cut_jpeg(&bytes) {
        return Err(fail("the JPEG is cut off: it has no end-of-image marker".to_string()));
    }
    if let Some((w, h)) = jpeg_size(&bytes) {
        room(Some(3 * u64::from(w) * u64::from(h)), format!("a picture of {w}x{h} pixels"))?;
    }
    // By content, not by extension: ImageNet itself has a PNG named .JPEG.
    let image = match jpeg(&bytes) {
        Some(image) => image,
        None => {
            let reader = || ImageReader::new(std::io::Cursor::new(&bytes)).with_guessed_format().map_err(io);
            let (w, h) = reader()?.into_dimensions().map_err(|e| fail(e.to_string()))?;
            room(Some(3 * u64::from(w) * u64::from(h)), format!("a picture of {w}x{h} pixels"))?;
            let mut reader = reader()?;
            let mut limits = image::Limits::default();
            limits.max_alloc = Some((budget::memory() as u64 / 2).min(1 << 32));
            reader.limits(limits);
            reader.decode().map_err(|e| fail(e.to_string()))?
        }
    };
    let (mut width, mut height) = (image.width(), image.height());
    let mut pixels = if shape.channels == 1 { luma(image) } else { rgb(image) };
    if let Some(side) = short_side {
        let scale = f64::from(side) / f64::from(width.min(height).max(1));
        let to = |n: u32| ((f64::from(n) * scale).round_ties_even() as u32).max(1);
        let (w, h) = (to(width), to(height));
        let bytes = (shape.channels as u64)
            .checked_mul(u64::from(w))
            .and_then(|n| n.checked_mul(u64::from(h).max(height.into())));
        room(bytes, format!("its {width}x{height} pixels, resized to {w}x{h} (short side {side}, see --resize),"))?;
        pixels = resize(pixels, shape.channels, (width, height), (w, h)).map_err(fail)?;
        (width, height) = (w, h);
    }
    let (crop_width, crop_height) = (shape.width as u32, shape.height as u32);
    if width < crop_width || height < crop_height {
        let resized = short_side.is_some();
        return Err(DataError::TooSmall { path: path.to_path_buf(), width, height, resized, crop_width, crop_height });
    }
    let (left, top) = (((width - crop_width) / 2) as usize, ((height - crop_height) / 2) as usize);
    let row = width as usize * shape.channels;
    Ok((top..top + shape.height)
        .flat_map(|y| &pixels[y * row + left * shape.channels..][..shape.width * shape.channels])
        .copied()
        .collect())
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

/// A greyscale or colour JPEG, decoded to the same bits as libjpeg-turbo, which is what PIL and torchvision read photographs
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
        _ => None,
    }
}

/// Whether the bytes are a JPEG without an end marker after its first scan: the decoder fills such a picture with grey and
/// says nothing.
fn is_cut_jpeg(bytes: &[u8]) -> bool {
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

/// Antialiased bicubic resize of interleaved 8-bit pixels: rows first, then columns, with 8-bit levels between, because PIL
/// does it so and the rounding between the two shows.
fn resize(pixels: Vec<u8>, channels: usize, from: (u32, u32), to: (u32, u32)) -> Result<Vec<u8>, String> {
    let kind = if channels == 1 { PixelType::U8 } else { PixelType::U8x3 };
    let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::CatmullRom)).use_alpha(false);
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
