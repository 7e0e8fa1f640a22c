//! What the user says about the data: the `--calibrate` family of flags.

use std::path::{Path, PathBuf};

use super::config::Texts;
use super::fixed::FixedInput;
#[cfg(feature = "cli")]
use super::presets::PresetParser;
use super::presets::{Exif, Fit, Interpolation, Preset, Side};
use super::said::Said;
use super::{DataError, InputSpec, config};
use crate::ir::Dim;

/// Where samples come from and how images become numbers. With the `cli` feature these are the program's own flags.
#[derive(Clone, Debug, Default, PartialEq)]
#[cfg_attr(feature = "cli", derive(clap::Args))]
#[cfg_attr(feature = "cli", command(next_help_heading = "Data"))]
pub struct DataOptions {
    /// The data: a folder of JPEG, PNG, WebP or BMP pictures (with labels.txt or a folder for each class, if classes are
    /// known), or an .npy or .npz file [default: synthetic pictures]
    #[cfg_attr(feature = "cli", arg(long, visible_aliases = ["data", "images"], value_name = "DIR|FILE.npy|FILE.npz"))]
    pub calibrate: Option<PathBuf>,
    /// The classes of the pictures, in a file with a line `file class` for each [default: labels.txt in the folder]
    #[cfg_attr(feature = "cli", arg(long, value_name = "FILE"))]
    pub labels: Option<PathBuf>,
    /// What the classes are called in the report's page: a file with a name in each line, the first that of class 0, or JSON with
    /// `id2label` [default: what config.json beside the model says, or the names of the folders of classes]
    #[cfg_attr(feature = "cli", arg(long, value_name = "FILE"))]
    pub class_names: Option<PathBuf>,
    /// Preprocessing of pictures, by name: a family (imagenet, inception, clip, dpn, unit), a normalisation of timm
    /// (openai-clip, imagenet-inception, ..) or an image processor of transformers (ViTImageProcessor, ..) [default: what the
    /// file beside the model says (see --preprocessor), otherwise imagenet]
    #[cfg_attr(feature = "cli", arg(long, value_parser = PresetParser, hide_possible_values = true, value_name = "NAME", conflicts_with = "preprocessor"))]
    pub preset: Option<Preset>,
    /// Preprocessing of pictures, from a file: `preprocessor_config.json` of transformers, `config.json` or
    /// `data_config.json` of timm; `none` for no file [default: the one beside the model]
    #[cfg_attr(feature = "cli", arg(long, value_name = "FILE|none"))]
    pub preprocessor: Option<PathBuf>,
    /// Mean of pixels in [0, 1], one value or one per channel [default: the preset's]
    #[cfg_attr(feature = "cli", arg(long, num_args = 1..=4, value_delimiter = ',', value_name = "X", value_parser = finite, allow_negative_numbers = true))]
    pub mean: Vec<f32>,
    /// Standard deviation of pixels in [0, 1], one value or one per channel [default: the preset's]
    #[cfg_attr(feature = "cli", arg(long, num_args = 1..=4, value_delimiter = ',', value_name = "X", value_parser = positive, allow_negative_numbers = true))]
    pub std: Vec<f32>,
    /// Resize the short side of every picture to N pixels before the crop; 0 for no resize [default: what the file or the
    /// preset says; crop / 0.875 for imagenet]
    #[cfg_attr(feature = "cli", arg(long, value_name = "N"))]
    pub resize: Option<u32>,
    /// Side of the centre crop [default: the height and width of the model's input]
    #[cfg_attr(feature = "cli", arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..)))]
    pub crop: Option<u32>,
    /// Resize the short side to crop / X, instead of giving --resize: timm's crop_pct
    #[cfg_attr(feature = "cli", arg(long, value_name = "X", value_parser = ratio, conflicts_with = "resize"))]
    pub crop_pct: Option<f64>,
    /// How a picture is brought to the model's size [default: what the file or the preset says, otherwise crop]
    #[cfg_attr(feature = "cli", arg(long, value_enum, value_name = "HOW"))]
    pub fit: Option<Fit>,
    /// The filter of the resize, as in Pillow [default: what the file or the preset says, otherwise bicubic]
    #[cfg_attr(feature = "cli", arg(long, value_enum, value_name = "FILTER"))]
    pub interpolation: Option<Interpolation>,
    /// What to do with the orientation in a picture's EXIF data [default: apply]
    #[cfg_attr(feature = "cli", arg(long, value_enum, value_name = "WHAT"))]
    pub exif: Option<Exif>,
    /// The model's file, beside which [`preprocessor`](Self::preprocessor) is looked for
    #[cfg_attr(feature = "cli", arg(skip))]
    pub model: Option<PathBuf>,
    /// Sizes of an input that the model leaves open, such as `x=1,3,48,320`; repeat for each input
    #[cfg_attr(feature = "cli", arg(long, value_name = "INPUT=N,N,.."))]
    pub shape: Vec<String>,
    /// The value of an input that is the same in every sample, such as a mask beside a folder of pictures: a number for all its
    /// elements, or an .npy file of shape [1, ...]; repeat for each input
    #[cfg_attr(feature = "cli", arg(long, value_name = "INPUT=NUMBER|FILE.npy"))]
    pub fixed: Vec<FixedInput>,
    /// How many samples of this data to use, spread evenly [default: all; 64 if they are synthetic]
    #[cfg_attr(feature = "cli", arg(long, value_name = "N"))]
    pub samples: Option<usize>,
    /// Seed of the synthetic data
    #[cfg_attr(feature = "cli", arg(long, value_name = "N", default_value_t = 0))]
    pub seed: u64,
    /// Texts of the files that say how pictures become numbers, as they were read first
    #[cfg_attr(feature = "cli", arg(skip))]
    pub texts: Texts,
}

#[cfg(feature = "cli")]
fn ratio(s: &str) -> Result<f64, String> {
    s.parse().ok().filter(|x| *x > 0.0 && *x <= 1.0).ok_or_else(|| "give a number above 0, and 1 at most".to_owned())
}

#[cfg(feature = "cli")]
fn finite(s: &str) -> Result<f32, String> {
    s.parse().ok().filter(|x: &f32| x.is_finite()).ok_or_else(|| "give a finite number".to_owned())
}

#[cfg(feature = "cli")]
fn positive(s: &str) -> Result<f32, String> {
    finite(s).ok().filter(|x| *x > 0.0).ok_or_else(|| "a standard deviation is a positive number".to_owned())
}

/// The input and the sizes of a `--shape`.
fn name_and_sizes(text: &str) -> Result<(&str, Vec<i64>), DataError> {
    let wrong = |reason: &str| DataError::Flag { flag: "shape", value: text.to_owned(), reason: reason.to_owned() };
    let (name, sizes) =
        text.rsplit_once('=').ok_or_else(|| wrong("write it as x=1,3,224,224, with the input's name"))?;
    let size = |t: &str| t.trim().parse::<i64>().ok().filter(|n| (1..=1 << 31).contains(n));
    let sizes: Option<Vec<i64>> = sizes.split(',').map(size).collect();
    Ok((name, sizes.ok_or_else(|| wrong("sizes are whole numbers from 1 on, separated by commas"))?))
}

/// A size that is given. A leading 1 leaves a leading size open: samples come one by one.
fn given((axis, n): (usize, i64)) -> Option<Dim> {
    (axis > 0 || n > 1).then_some(Dim::Known(n))
}

impl DataOptions {
    /// What `--shape` says of each input, for a file that says nothing.
    ///
    /// # Errors
    /// If a `--shape` is not written as it should be.
    pub fn said_shapes(&self) -> Result<Vec<(String, Vec<Dim>)>, DataError> {
        let one = |text: &String| {
            let (name, sizes) = name_and_sizes(text)?;
            let dims = sizes.into_iter().enumerate().map(|d| given(d).unwrap_or(Dim::Unknown)).collect();
            Ok((name.to_owned(), dims))
        };
        self.shape.iter().map(one).collect()
    }

    /// The inputs with the sizes that `--shape` gives them.
    pub(super) fn shapes(&self, inputs: &[InputSpec]) -> Result<Vec<InputSpec>, DataError> {
        let mut out = inputs.to_vec();
        for text in &self.shape {
            let wrong = |reason: String| DataError::Flag { flag: "shape", value: text.clone(), reason };
            let (name, sizes) = name_and_sizes(text)?;
            let known = || inputs.iter().map(|s| s.name.as_str()).collect::<Vec<_>>().join(", ");
            let spec = out.iter_mut().find(|s| s.name == name);
            let spec = spec.ok_or_else(|| wrong(format!("the model has no such input; it has {}", known())))?;
            let fits = sizes.len() == spec.dims.len()
                && spec.dims.iter().zip(&sizes).all(|(d, n)| !matches!(d, Dim::Known(k) if k != n));
            if !fits {
                return Err(wrong(format!("the input is {spec}")));
            }
            for (d, size) in spec.dims.iter_mut().zip(sizes.into_iter().enumerate()) {
                *d = given(size).unwrap_or_else(|| d.clone());
            }
        }
        Ok(out)
    }

    /// What the flags say about pictures.
    ///
    /// # Errors
    /// If a number is none that it can be.
    pub(super) fn said(&self) -> Result<Said, DataError> {
        let wrong = |flag, value: String, reason: String| Err(DataError::Flag { flag, value, reason });
        if let Some(s) = self.std.iter().find(|s| !(s.is_finite() && **s > 0.0)) {
            return wrong("std", s.to_string(), "a standard deviation is a positive number".to_string());
        }
        if let Some(m) = self.mean.iter().find(|m| !m.is_finite()) {
            return wrong("mean", m.to_string(), "not a number".to_string());
        }
        for (flag, v, most) in [("mean", &self.mean, 1.0f32), ("std", &self.std, 2.0)] {
            if v.iter().any(|x| x.abs() > most) {
                let given = |f: &dyn Fn(&f32) -> f32| v.iter().map(|x| f(x).to_string()).collect::<Vec<_>>().join(" ");
                let over = given(&|x| x / 255.0);
                let reason =
                    format!("it is for pixels from 0 to 1; of pixels from 0 to 255 it would be --{flag} {over}");
                return wrong(flag, given(&|x| *x), reason);
            }
        }
        if let Some(p) = self.crop_pct.filter(|p| !(*p > 0.0 && *p <= 1.0)) {
            return wrong("crop-pct", p.to_string(), "give a number above 0, and 1 at most".to_string());
        }
        let pixels = self.resize.map(|n| if n == 0 { Side::AsIs } else { Side::Pixels(n) });
        let list = |v: &[f32]| (!v.is_empty()).then(|| v.to_vec());
        Ok(Said {
            mean: list(&self.mean),
            std: list(&self.std),
            fit: self.fit,
            side: pixels.or(self.crop_pct.map(Side::Share)),
            interpolation: self.interpolation,
            ..Said::default()
        })
    }

    /// What is said of pictures in vain where the data is none, for a note.
    pub(super) fn idle(&self, what: &str, made_up: bool) -> Option<String> {
        // What is made up is made as pictures are.
        let given = [
            ("--labels", self.labels.is_some()),
            ("--preset", self.preset.is_some() && !made_up),
            ("--preprocessor", self.preprocessor.as_ref().is_some_and(|p| p.as_os_str() != "none") && !made_up),
            ("--mean", !self.mean.is_empty() && !made_up),
            ("--std", !self.std.is_empty() && !made_up),
            ("--resize", self.resize.is_some()),
            ("--crop", self.crop.is_some() && !made_up),
            ("--crop-pct", self.crop_pct.is_some()),
            ("--fit", self.fit.is_some()),
            ("--interpolation", self.interpolation.is_some()),
            ("--exif", self.exif.is_some()),
        ];
        let flags: Vec<&str> = given.into_iter().filter(|(_, is)| *is).map(|(flag, _)| flag).collect();
        let [others @ .., last] = &flags[..] else { return None };
        let all = if others.is_empty() { (*last).to_owned() } else { format!("{} and {last}", others.join(", ")) };
        let why = if made_up { "have nothing of them" } else { "are used as they are" };
        Some(format!("{all}: for a folder of pictures; the {what} {why}"))
    }

    /// The file that says how pictures become numbers, if there is one.
    ///
    /// # Errors
    /// If there is one, and it cannot be read.
    pub fn preprocessing_file(&self) -> Result<Option<PathBuf>, DataError> {
        Ok(match (&self.preprocessor, &self.model) {
            _ if self.preset.is_some() => None,
            // Arrays are no pictures.
            _ if self.calibrate.as_ref().is_some_and(|p| p.is_file()) => None,
            (Some(p), _) if p.as_os_str() == "none" => None,
            (Some(p), _) => Some(p.clone()),
            (None, Some(model)) => config::beside(model, &self.texts)?.map(|(path, _)| path),
            (None, None) => None,
        })
    }

    /// The files that are read besides the data, each with the flag that names it.
    ///
    /// # Errors
    /// As [`preprocessing_file`](DataOptions::preprocessing_file).
    pub fn files_besides(&self) -> Result<Vec<(&'static str, PathBuf)>, DataError> {
        let preprocessor = self.preprocessing_file()?.map(|f| ("--preprocessor", f));
        let labels = self.labels.clone().map(|f| ("--labels", f));
        let names = self.class_names_file().map(|f| ("--class-names", f));
        let fixed = self.fixed_files().map(|f| ("--fixed", f));
        Ok(preprocessor.into_iter().chain(labels).chain(names).chain(fixed).collect())
    }

    /// For a model of this file, beside which may lie what says how pictures become numbers.
    #[must_use]
    pub fn beside(mut self, model: &Path) -> DataOptions {
        self.model.get_or_insert_with(|| model.to_owned());
        self
    }
}
