//! What the user says about the data: the `--calibrate` family of flags, and the normalisation presets.

use std::path::PathBuf;

use super::{DataError, InputSpec};
use crate::ir::Dim;

/// Where samples come from and how images become numbers. With the `cli` feature these are the program's own flags.
#[derive(Clone, Debug, Default, PartialEq)]
#[cfg_attr(feature = "cli", derive(clap::Args))]
#[cfg_attr(feature = "cli", command(next_help_heading = "Data"))]
pub struct DataOptions {
    /// Calibration data: a folder of JPEG/PNG images (labels.txt in it may give classes), an .npy or .npz file;
    /// without it the tool makes synthetic images
    #[cfg_attr(feature = "cli", arg(long, visible_alias = "data", value_name = "DIR|FILE.npy|FILE.npz"))]
    pub calibrate: Option<PathBuf>,
    /// How pixels are normalised, and the resize that goes with it
    #[cfg_attr(feature = "cli", arg(long, value_enum, default_value_t = Preset::Imagenet))]
    pub preset: Preset,
    /// Mean per channel of pixels in [0, 1], in place of the preset's (one value, or one per channel)
    #[cfg_attr(feature = "cli", arg(long, num_args = 1..=4, value_delimiter = ',', value_name = "X", value_parser = finite, allow_negative_numbers = true))]
    pub mean: Vec<f32>,
    /// Standard deviation per channel, in place of the preset's
    #[cfg_attr(feature = "cli", arg(long, num_args = 1..=4, value_delimiter = ',', value_name = "X", value_parser = positive, allow_negative_numbers = true))]
    pub std: Vec<f32>,
    /// Resize the short side of every image to N pixels before the crop; 0 leaves images as they are
    /// [default: the preset's: crop / 0.875, clip: the crop]
    #[cfg_attr(feature = "cli", arg(long, value_name = "N"))]
    pub resize: Option<u32>,
    /// Side of the centre crop [default: the height and width of the model's input]
    #[cfg_attr(feature = "cli", arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..)))]
    pub crop: Option<u32>,
    /// Sizes of an input, such as `x=1,3,48,320`, where the model leaves them open; once for each input
    #[cfg_attr(feature = "cli", arg(long, value_name = "INPUT=N,N,.."))]
    pub shape: Vec<String>,
    /// How many samples to use, spread evenly over the data [default: all of them; 64 synthetic ones]
    #[cfg_attr(feature = "cli", arg(long, value_name = "N"))]
    pub samples: Option<usize>,
    /// Seed of the synthetic data
    #[cfg_attr(feature = "cli", arg(long, value_name = "N", default_value_t = 0))]
    pub seed: u64,
}

#[cfg(feature = "cli")]
fn finite(s: &str) -> Result<f32, String> {
    s.parse().ok().filter(|x: &f32| x.is_finite()).ok_or_else(|| "give a finite number".to_owned())
}

#[cfg(feature = "cli")]
fn positive(s: &str) -> Result<f32, String> {
    finite(s).ok().filter(|x| *x > 0.0).ok_or_else(|| "a standard deviation is a positive number".to_owned())
}

/// Named normalisations, as the model families were trained with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum Preset {
    /// Mean 0.485 0.456 0.406, std 0.229 0.224 0.225 (DeiT, Swin, torchvision)
    #[default]
    Imagenet,
    /// Mean and std 0.5: pixels in [-1, 1] (ViT as published by its authors, augreg)
    Inception,
    /// Mean 0.48145466 0.4578275 0.40821073, std 0.26862954 0.26130258 0.27577711 (CLIP)
    Clip,
}

impl Preset {
    /// Channel means of pixels in [0, 1].
    pub fn mean(self) -> [f32; 3] {
        match self {
            Preset::Imagenet => [0.485, 0.456, 0.406],
            Preset::Inception => [0.5; 3],
            Preset::Clip => [0.481_454_66, 0.457_827_5, 0.408_210_73],
        }
    }

    /// Channel standard deviations of pixels in [0, 1].
    pub fn std(self) -> [f32; 3] {
        match self {
            Preset::Imagenet => [0.229, 0.224, 0.225],
            Preset::Inception => [0.5; 3],
            Preset::Clip => [0.268_629_54, 0.261_302_6, 0.275_777_1],
        }
    }

    /// Short side an image is resized to before a crop of side `crop`: 256 for 224 and in proportion, CLIP the crop.
    pub fn resize(self, crop: u32) -> u32 {
        match self {
            Preset::Imagenet | Preset::Inception => (f64::from(crop) / 0.875).round_ties_even() as u32,
            Preset::Clip => crop,
        }
    }
}

impl DataOptions {
    /// The inputs with the sizes that `--shape` gives them. A leading 1 leaves a leading size open: samples come one by one.
    pub(super) fn shapes(&self, inputs: &[InputSpec]) -> Result<Vec<InputSpec>, DataError> {
        let mut out = inputs.to_vec();
        for text in &self.shape {
            let wrong = |reason: String| DataError::Flag { flag: "shape", value: text.clone(), reason };
            let (name, sizes) = text
                .rsplit_once('=')
                .ok_or_else(|| wrong("write it as x=1,3,224,224, with the input's name".into()))?;
            let known = || inputs.iter().map(|s| s.name.as_str()).collect::<Vec<_>>().join(", ");
            let spec = out.iter_mut().find(|s| s.name == name);
            let spec = spec.ok_or_else(|| wrong(format!("the model has no such input; it has {}", known())))?;
            let size = |t: &str| t.trim().parse::<i64>().ok().filter(|n| (1..=1 << 31).contains(n));
            let sizes: Option<Vec<i64>> = sizes.split(',').map(size).collect();
            let sizes = sizes.ok_or_else(|| wrong("sizes are whole numbers from 1 on, separated by commas".into()))?;
            let fits = sizes.len() == spec.dims.len()
                && spec.dims.iter().zip(&sizes).all(|(d, n)| !matches!(d, Dim::Known(k) if k != n));
            if !fits {
                return Err(wrong(format!("the input is {spec}")));
            }
            for (axis, (d, n)) in spec.dims.iter_mut().zip(sizes).enumerate() {
                if axis > 0 || n > 1 {
                    *d = Dim::Known(n);
                }
            }
        }
        Ok(out)
    }

    /// Mean and std for an input of `channels` channels. One value serves every channel; a preset's three values serve
    /// one channel by their average (0.449 and 0.226 for `imagenet`, the customary pair).
    pub(super) fn normalisation(&self, input: &str, channels: usize) -> Result<Vec<(f32, f32)>, DataError> {
        if let Some(s) = self.std.iter().find(|s| !(s.is_finite() && **s > 0.0)) {
            let reason = "a standard deviation is a positive number".to_string();
            return Err(DataError::Flag { flag: "std", value: s.to_string(), reason });
        }
        if let Some(m) = self.mean.iter().find(|m| !m.is_finite()) {
            return Err(DataError::Flag { flag: "mean", value: m.to_string(), reason: "not a number".to_string() });
        }
        let given = |v: &[f32], preset: [f32; 3]| -> Option<Vec<f32>> {
            match (v.len(), channels) {
                (0, 3) => Some(preset.to_vec()),
                (0, 1) => Some(vec![((preset[0] as f64 + preset[1] as f64 + preset[2] as f64) / 3.0) as f32]),
                (1, c) => Some(vec![v[0]; c]),
                (n, c) if n == c => Some(v.to_vec()),
                _ => None,
            }
        };
        match (given(&self.mean, self.preset.mean()), given(&self.std, self.preset.std())) {
            (Some(m), Some(s)) => Ok(m.into_iter().zip(s).collect()),
            _ => Err(DataError::Normalisation {
                mean: self.mean.len(),
                std: self.std.len(),
                input: input.to_string(),
                channels,
            }),
        }
    }

    /// What turns pixels into inputs, in words.
    pub(super) fn how(&self) -> String {
        let preset = match self.preset {
            Preset::Imagenet => "imagenet",
            Preset::Inception => "inception",
            Preset::Clip => "clip",
        };
        let list = |what: &str, v: &[f32]| {
            let all: Vec<String> = v.iter().map(f32::to_string).collect();
            if all.is_empty() { String::new() } else { format!(", {what} {}", all.join(" ")) }
        };
        let one = |what: &str, n: Option<u32>| n.map_or(String::new(), |n| format!(", {what} {n}"));
        format!(
            "preset {preset}{}{}{}{}",
            list("mean", &self.mean),
            list("std", &self.std),
            one("resize", self.resize),
            one("crop", self.crop)
        )
    }

    /// Short side to resize to, `None` for as they are.
    pub(super) fn short_side(&self, crop_height: u32, crop_width: u32) -> Option<u32> {
        match self.resize {
            Some(0) => None,
            Some(n) => Some(n),
            None => Some(self.preset.resize(crop_height.max(crop_width))),
        }
    }
}
