//! Images: how an input wants them, and a folder of them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use super::decode::{Wanted, load};
use super::folder::{self, Listing};
use super::pictures::Pictures;
use super::{DataError, DataOptions, InputSpec};
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
    /// the second size, unless that is not 1 or 3 and the last one is. Open sizes become those of `crop`, height and width,
    /// or 224.
    pub(super) fn of(spec: &InputSpec, crop: Option<(u32, u32)>) -> Option<ImageShape> {
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
        let side = |d: &Dim, said: Option<u32>| match d {
            Dim::Known(n) => usize::try_from(*n).ok().filter(|n| *n > 0),
            _ => Some(said.map_or(DEFAULT_SIDE, |c| c as usize)),
        };
        let (height, width) = (side(h, crop.map(|c| c.0))?, side(w, crop.map(|c| c.1))?);
        Some(ImageShape { channels, height, width, nhwc, chosen: open(h) || open(w) })
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
pub(super) fn tables(
    spec: &InputSpec,
    options: &DataOptions,
    pictures: &Pictures,
    channels: usize,
) -> Result<Vec<[f32; 256]>, DataError> {
    if spec.dtype == DType::UINT8 {
        return Ok(vec![std::array::from_fn(|x| x as f32); channels]);
    }
    let norm = pictures.normalisation(options, &spec.name, channels)?;
    Ok(norm.into_iter().map(|(mean, std)| std::array::from_fn(|x| (x as f32 / 255.0 - mean) / std)).collect())
}

/// Bytes of pixels that are kept: 100 pictures of 224 by 224. More would show where memory is not to grow with the samples.
const KEPT: usize = 16 << 20;

/// Pixels that were made. Samples are checked, calibrated on, fitted to and verified on, and decoding takes longest of what is
/// done to a picture. Clones share them.
#[derive(Clone, Debug, Default)]
struct Kept(Arc<Mutex<BTreeMap<usize, Arc<[u8]>>>>);

impl Kept {
    fn find(&self, item: usize) -> Option<Arc<[u8]>> {
        self.0.lock().expect("no panic inside").get(&item).cloned()
    }

    fn keep(&self, item: usize, pixels: &Arc<[u8]>) {
        let mut all = self.0.lock().expect("no panic inside");
        if all.values().map(|p| p.len()).sum::<usize>() + pixels.len() <= KEPT {
            all.insert(item, pixels.clone());
        }
    }
}

/// The images of a folder, in name order or in that of its labels.txt.
#[derive(Clone, Debug)]
pub(super) struct ImageFolder {
    folder: PathBuf,
    listing: Listing,
    shape: ImageShape,
    wanted: Wanted,
    tables: Vec<[f32; 256]>,
    kept: Kept,
}

impl ImageFolder {
    /// Lists the folder; the images themselves are read when samples are asked for.
    pub(super) fn open(
        folder: &Path,
        spec: &InputSpec,
        shape: ImageShape,
        options: &DataOptions,
        pictures: &Pictures,
    ) -> Result<ImageFolder, DataError> {
        let listing = folder::list(folder, options.labels.as_deref())?;
        let wanted = Wanted {
            channels: shape.channels,
            geometry: pictures.geometry(shape.height as u32, shape.width as u32),
            interpolation: pictures.interpolation,
            fill: pictures.fill(shape.channels),
            upright: pictures.upright,
        };
        let tables = tables(spec, options, pictures, shape.channels)?;
        Ok(ImageFolder { folder: folder.to_path_buf(), listing, shape, wanted, tables, kept: Kept::default() })
    }

    /// What was found in the folder.
    pub(super) fn listing(&self) -> &Listing {
        &self.listing
    }

    /// Looks at the beginning and the end of these pictures, and names those that cannot be read.
    pub(super) fn check(&self, items: impl Iterator<Item = usize>) -> Result<(), DataError> {
        folder::check(&self.folder, items.map(|i| self.name(i)), &self.wanted)
    }

    pub(super) fn len(&self) -> usize {
        self.listing.names.len()
    }

    pub(super) fn name(&self, item: usize) -> &str {
        &self.listing.names[item]
    }

    /// Bytes of one file; 0 if it is gone.
    pub(super) fn bytes_of(&self, item: usize) -> u64 {
        std::fs::metadata(self.folder.join(self.name(item))).map_or(0, |m| m.len())
    }

    pub(super) fn shape(&self) -> ImageShape {
        self.shape
    }

    /// Mean and std of each of three colours, out of the tables: what 0 and 255 become.
    pub(super) fn normalisation(&self) -> [(f32, f32); 3] {
        std::array::from_fn(|c| {
            let t = &self.tables[c.min(self.tables.len() - 1)];
            let std = 1.0 / (t[255] - t[0]);
            (0.0 - t[0] * std, std)
        })
    }

    /// Appends one image, decoded, resized, cropped and normalised.
    pub(super) fn append(&self, item: usize, out: &mut Vec<f32>) -> Result<(), DataError> {
        self.shape.append(&self.pixels(item)?, &self.tables, out);
        Ok(())
    }

    /// One image, decoded, resized and cropped: interleaved 8-bit pixels.
    pub(super) fn pixels(&self, item: usize) -> Result<Arc<[u8]>, DataError> {
        if let Some(pixels) = self.kept.find(item) {
            return Ok(pixels);
        }
        let pixels = load(&self.folder.join(self.name(item)), &self.wanted)?.into();
        self.kept.keep(item, &pixels);
        Ok(pixels)
    }
}
