//! How pictures become numbers: what was said about it by flags, by a file beside the model and by a preset, and what follows.

use super::presets::{Exif, Fit, Interpolation, Side};
use super::said::{Manner, Said};
use super::{DataError, DataOptions, config};

/// How pictures become numbers.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Pictures {
    /// Of pixels in [0, 1]; one, or one per channel.
    mean: Vec<f32>,
    std: Vec<f32>,
    fit: Fit,
    side: Side,
    /// Height and width of the crop that `side` was said for, if that was said.
    meant: Option<(u32, u32)>,
    size: Option<(u32, u32)>,
    pub(super) interpolation: Interpolation,
    manner: Manner,
    /// Turn pictures as their EXIF orientation says.
    pub(super) upright: bool,
    /// Where the numbers come from.
    source: String,
    /// What a reader should know besides.
    pub(super) notes: Vec<String>,
}

impl Pictures {
    /// Flags before a file before a preset, each only for what it says. A preset that was asked for counts before the file.
    pub(super) fn of(options: &DataOptions) -> Result<Pictures, DataError> {
        let found = match options.preprocessing_file()? {
            Some(path) => match config::read(&path, &options.texts)? {
                Some(said) => Some((path, said)),
                None => {
                    let reason = "says nothing of pictures: there is neither `image_mean` (transformers) nor `pretrained_cfg` (timm)";
                    return Err(DataError::Config { path, reason: reason.to_owned() });
                }
            },
            None => None,
        };
        let preset = options.preset.unwrap_or_default();
        let row = Said::of_row(preset.row());
        let flags = options.said()?;
        let (said, mut source) = match found {
            Some((path, said)) => {
                let said = said.unless(&flags).map_err(|reason| DataError::Config { path: path.clone(), reason })?;
                (said, path.display().to_string())
            }
            None if options.preset.is_some() => (Said::default(), format!("preset {}", preset.name())),
            None => (Said::default(), format!("preset {}, the default", preset.name())),
        };
        if flags != Said::default() {
            source = format!("flags, and for the rest {source}");
        }
        let fit = flags.fit.or(said.fit).or(row.fit).unwrap_or(Fit::Crop);
        // A picture that is not to be cut is made as large as the crop, unless somebody says more.
        let usual = if flags.fit.is_some_and(|f| f != Fit::Crop) { Some(Side::Share(1.0)) } else { None };
        let manner = match flags.side {
            Some(Side::Share(_)) => Manner::Torchvision,
            _ => said.manner.unwrap_or_default(),
        };
        let (side, meant) = match (flags.side.or(usual), said.side, row.side) {
            (Some(s), _, _) => (s, None),
            (_, Some(s), _) => (s, said.size),
            (_, _, s) => (s.unwrap_or(Side::AsIs), row.size),
        };
        let interpolation = flags.interpolation.or(said.interpolation).or(row.interpolation);
        Ok(Pictures {
            mean: flags.mean.or(said.mean).or(row.mean).unwrap_or_default(),
            std: flags.std.or(said.std).or(row.std).unwrap_or_default(),
            fit,
            side,
            meant,
            size: said.size.or(row.size),
            interpolation: interpolation.unwrap_or(Interpolation::Bicubic),
            manner,
            upright: options.exif != Some(Exif::Ignore),
            source,
            notes: said.notes,
        })
    }

    /// Height and width of what the model gets, where it leaves these open and somebody said them.
    pub(super) fn size(&self) -> Option<(u32, u32)> {
        self.size
    }

    /// Mean and std for an input of `channels` channels. One value serves every channel; three values serve one channel by
    /// their average (0.449 and 0.226 for `imagenet`, the customary pair), unless flags gave them.
    pub(super) fn normalisation(
        &self,
        options: &DataOptions,
        input: &str,
        channels: usize,
    ) -> Result<Vec<(f32, f32)>, DataError> {
        let fitted = |v: &[f32], asked: bool| -> Option<Vec<f32>> {
            match (v.len(), channels) {
                (1, c) => Some(vec![v[0]; c]),
                (n, c) if n == c => Some(v.to_vec()),
                (n, 1) if n > 1 && !asked => {
                    Some(vec![(v.iter().map(|x| f64::from(*x)).sum::<f64>() / n as f64) as f32])
                }
                _ => None,
            }
        };
        match (fitted(&self.mean, !options.mean.is_empty()), fitted(&self.std, !options.std.is_empty())) {
            (Some(m), Some(s)) => Ok(m.into_iter().zip(s).collect()),
            _ => Err(DataError::Normalisation {
                mean: self.mean.len(),
                std: self.std.len(),
                input: input.to_string(),
                channels,
            }),
        }
    }

    /// For pictures that become `height` by `width`. A size that was said for another crop grows with it.
    pub(super) fn geometry(&self, height: u32, width: u32) -> Geometry {
        let over = |n: u32, p: f64| match self.manner {
            Manner::Plain => (f64::from(n) / p).round_ties_even().max(1.0) as u32,
            // 224 / 0.875 must not become 255 by the last bit of a share.
            _ => ((f64::from(n) / p + 1e-9).floor().max(1.0)) as u32,
        };
        let grown = |n: u32, of: Option<u32>, to: u32| match of {
            Some(c) if c != to => ((u64::from(n) * u64::from(to)) / u64::from(c)).max(1) as u32,
            _ => n,
        };
        let longest = |(h, w): (u32, u32)| h.max(w);
        let resize = match (self.side, self.fit) {
            (Side::AsIs, _) => Resize::None,
            (Side::Pixels(n), fit) => {
                let n = grown(n, self.meant.map(longest), height.max(width));
                match fit {
                    Fit::Crop => Resize::Short(n),
                    Fit::Squash => Resize::Exact(n, n),
                    Fit::Letterbox => Resize::Within(n, n),
                }
            }
            (Side::Exact(h, w), fit) => {
                let (h, w) = (grown(h, self.meant.map(|s| s.0), height), grown(w, self.meant.map(|s| s.1), width));
                if fit == Fit::Letterbox { Resize::Within(h, w) } else { Resize::Exact(h, w) }
            }
            (Side::Share(p), Fit::Crop) => Resize::Short(over(height.max(width), p)),
            (Side::Share(p), Fit::Squash) => Resize::Exact(over(height, p), over(width, p)),
            (Side::Share(p), Fit::Letterbox) => Resize::Within(over(height, p), over(width, p)),
        };
        Geometry { resize, manner: self.manner, crop: (height, width) }
    }

    /// What turns pictures into inputs, in words, without where that was said.
    pub(super) fn how(&self, height: u32, width: u32) -> String {
        let resize = match self.geometry(height, width).resize {
            Resize::None => "as they are".to_owned(),
            Resize::Short(n) => format!("short side {n} ({})", self.interpolation.name()),
            Resize::Exact(h, w) => format!("squashed to {h}x{w} ({})", self.interpolation.name()),
            Resize::Within(h, w) => format!("letterboxed to {h}x{w} ({})", self.interpolation.name()),
        };
        format!("{resize}, crop {height}x{width}, {}", self.numbers())
    }

    /// Mean and std in words.
    pub(super) fn numbers(&self) -> String {
        let list = |v: &[f32]| v.iter().map(f32::to_string).collect::<Vec<_>>().join(" ");
        format!("mean {}, std {}", list(&self.mean), list(&self.std))
    }

    /// Where it was said.
    pub(super) fn source(&self) -> &str {
        &self.source
    }

    /// The level of each channel that is the mean: what letterboxing fills up with.
    pub(super) fn fill(&self, channels: usize) -> Vec<u8> {
        let mean = |c: usize| self.mean.get(c).or(self.mean.first()).copied().unwrap_or(0.0);
        (0..channels).map(|c| (255.0 * mean(c)).round().clamp(0.0, 255.0) as u8).collect()
    }
}

/// A resize, by what it makes of the sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Resize {
    None,
    /// The short side.
    Short(u32),
    /// Height and width.
    Exact(u32, u32),
    /// At most this height and width, and filled up to them.
    Within(u32, u32),
}

/// Sizes on the way from a picture to the crop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Geometry {
    pub(super) resize: Resize,
    manner: Manner,
    /// Height and width.
    pub(super) crop: (u32, u32),
}

impl Geometry {
    /// Width and height that a picture of this width and height is resized to.
    pub(super) fn resized(&self, width: u32, height: u32) -> (u32, u32) {
        let scaled = |n: u32, by: f64| ((f64::from(n) * by).round_ties_even() as u32).max(1);
        match self.resize {
            Resize::None => (width, height),
            Resize::Exact(h, w) => (w, h),
            Resize::Within(h, w) => {
                let by = (f64::from(h) / f64::from(height.max(1))).min(f64::from(w) / f64::from(width.max(1)));
                (scaled(width, by).min(w), scaled(height, by).min(h))
            }
            Resize::Short(n) => {
                let short = width.min(height).max(1);
                let of = |side: u32| match self.manner {
                    Manner::Plain => scaled(side, f64::from(n) / f64::from(short)),
                    _ if side == short => n,
                    _ => u32::try_from(u64::from(n) * u64::from(side) / u64::from(short)).unwrap_or(u32::MAX),
                };
                (of(width), of(height))
            }
        }
    }

    /// Width and height of what a resized picture is laid into the middle of; `None` if it is not.
    pub(super) fn canvas(&self) -> Option<(u32, u32)> {
        if let Resize::Within(h, w) = self.resize { Some((w, h)) } else { None }
    }

    /// Where a crop of side `crop` begins.
    pub(super) fn offset(&self, side: u32, crop: u32) -> usize {
        let free = side.saturating_sub(crop);
        match self.manner {
            Manner::Torchvision => (f64::from(free) / 2.0).round_ties_even() as usize,
            _ => (free / 2) as usize,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::presets::Preset;
    use super::*;

    fn made(options: DataOptions) -> Pictures {
        Pictures::of(&options).unwrap()
    }

    #[test]
    fn presets_match_their_models() {
        let preset = |name: &str| DataOptions { preset: Preset::named(name), ..DataOptions::default() };
        let table = |name: &str, channels| {
            let o = preset(name);
            Pictures::of(&o).unwrap().normalisation(&o, "x", channels).unwrap()
        };
        assert_eq!(table("inception", 3), [(0.5, 0.5); 3]);
        assert_eq!(table("imagenet", 3)[2], (0.406, 0.225));
        assert_eq!(table("imagenet", 1), [(0.449, 0.226)]);
        let resize = |name: &str, n: u32| made(preset(name)).geometry(n, n).resize;
        assert_eq!(resize("imagenet", 224), Resize::Short(256));
        assert_eq!(resize("clip", 224), Resize::Short(224));
        assert_eq!(resize("DeiTImageProcessor", 224), Resize::Exact(256, 256));
        assert_eq!(resize("DeiTImageProcessor", 384), Resize::Exact(438, 438));
        assert_eq!(resize("ViTImageProcessor", 384), Resize::Exact(384, 384));
    }

    #[test]
    fn a_flag_counts_before_a_preset() {
        let with = |o: DataOptions| made(o).geometry(224, 224).resize;
        assert_eq!(with(DataOptions { crop_pct: Some(0.9), ..DataOptions::default() }), Resize::Short(248));
        assert_eq!(with(DataOptions { fit: Some(Fit::Squash), ..DataOptions::default() }), Resize::Exact(224, 224));
        let half = DataOptions { fit: Some(Fit::Letterbox), crop_pct: Some(0.5), ..DataOptions::default() };
        assert_eq!(with(half), Resize::Within(448, 448));
        assert_eq!(with(DataOptions { resize: Some(0), ..DataOptions::default() }), Resize::None);
        let deit =
            DataOptions { preset: Preset::named("DeiTImageProcessor"), resize: Some(300), ..DataOptions::default() };
        assert_eq!(with(deit), Resize::Exact(300, 300));
    }

    #[test]
    fn sizes_are_those_of_the_library_that_is_followed() {
        let short = |manner| Geometry { resize: Resize::Short(256), manner, crop: (224, 224) };
        // 256 * 500 / 375 = 341.33; 256 * 333 / 500 turned
        for (manner, want, at) in [
            (Manner::Plain, (341, 256), 58),
            (Manner::Torchvision, (341, 256), 58),
            (Manner::Transformers, (341, 256), 58),
        ] {
            let g = short(manner);
            assert_eq!(g.resized(500, 375), want);
            assert_eq!(g.offset(341, 224), at, "58.5 to even is 58");
        }
        // 256 * 500 / 333 = 384.38; 256 * 400 / 301 = 340.2; 256 * 401 / 300 = 342.19; 256 * 500 / 335 = 382.09
        assert_eq!(short(Manner::Plain).resized(300, 499), (256, 426));
        assert_eq!(short(Manner::Torchvision).resized(300, 499), (256, 425));
        assert_eq!((short(Manner::Torchvision).offset(227, 224), short(Manner::Transformers).offset(227, 224)), (2, 1));
    }
}
