//! Preprocessing by name: the normalisations and image processors that model families were trained with.

/// How a picture is brought to the model's size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum Fit {
    /// Resize the short side and take the centre crop, as most classifiers are evaluated
    Crop,
    /// Resize both sides, without keeping the proportions
    Squash,
    /// Resize until the whole picture fits, and pad with the mean
    Letterbox,
}

impl Fit {
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Fit::Crop => "crop",
            Fit::Squash => "squash",
            Fit::Letterbox => "letterbox",
        }
    }

    /// The one of this name.
    pub fn named(name: &str) -> Option<Fit> {
        [Fit::Crop, Fit::Squash, Fit::Letterbox].into_iter().find(|f| f.name() == name)
    }
}

/// What to do with the orientation in a picture's EXIF data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum Exif {
    /// Turn pictures upright, as transformers, browsers and phones do
    Apply,
    /// Keep pixels as they are stored, as torchvision and timm do
    Ignore,
}

impl Exif {
    /// The one of this name.
    pub fn named(name: &str) -> Option<Exif> {
        [("apply", Exif::Apply), ("ignore", Exif::Ignore)].into_iter().find(|(n, _)| *n == name).map(|(_, e)| e)
    }
}

/// The filter of a resize, as Pillow has it: antialiased, but for `nearest`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum Interpolation {
    Nearest,
    Box,
    Bilinear,
    Hamming,
    /// Cubic with a = -0.5
    Bicubic,
    Lanczos,
}

impl Interpolation {
    /// All, in the order of Pillow's numbers 0, 4, 2, 5, 3, 1.
    pub const ALL: [Interpolation; 6] = {
        use Interpolation::*;
        [Nearest, Box, Bilinear, Hamming, Bicubic, Lanczos]
    };

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Interpolation::Nearest => "nearest",
            Interpolation::Box => "box",
            Interpolation::Bilinear => "bilinear",
            Interpolation::Hamming => "hamming",
            Interpolation::Bicubic => "bicubic",
            Interpolation::Lanczos => "lanczos",
        }
    }

    /// The one of this name.
    pub fn named(name: &str) -> Option<Interpolation> {
        Interpolation::ALL.into_iter().find(|f| f.name() == name)
    }

    /// The one of this number in Pillow's `Image.Resampling`, which configurations of transformers hold.
    pub(super) fn numbered(n: u64) -> Option<Interpolation> {
        let numbers = [0, 4, 2, 5, 3, 1];
        Interpolation::ALL.into_iter().zip(numbers).find(|(_, k)| *k == n).map(|(f, _)| f)
    }
}

/// How large a picture is made before the middle is cut out of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Side {
    /// It is not resized.
    AsIs,
    /// The short side, both sides or the long side, by what [`Fit`] says.
    Pixels(u32),
    /// Height and width.
    Exact(u32, u32),
    /// The crop's sides over this share.
    Share(f64),
}

/// A row of the table of presets.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) name: &'static str,
    /// Other names: timm's and transformers'.
    pub(super) aliases: &'static [&'static str],
    #[cfg_attr(not(feature = "cli"), allow(dead_code, reason = "told by the command line"))]
    pub(super) help: &'static str,
    pub(super) mean: [f32; 3],
    pub(super) std: [f32; 3],
    pub(super) fit: Fit,
    pub(super) side: Side,
    /// Height and width of the crop that `side` is for, where the two belong together.
    pub(super) size: Option<(u32, u32)>,
    pub(super) interpolation: Interpolation,
}

/// Means and stds of pixels from 0 to 1.
pub(crate) const IMAGENET: ([f32; 3], [f32; 3]) = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]);
const CLIP: ([f32; 3], [f32; 3]) =
    ([0.481_454_66, 0.457_827_5, 0.408_210_73], [0.268_629_54, 0.261_302_6, 0.275_777_1]);
/// 124, 117 and 104 of 255, and 1 / (0.0167 * 255).
const DPN: ([f32; 3], [f32; 3]) = ([124.0 / 255.0, 117.0 / 255.0, 104.0 / 255.0], [0.234_832_67; 3]);
pub(crate) const HALF: ([f32; 3], [f32; 3]) = ([0.5; 3], [0.5; 3]);
/// 224 of 256.
const USUAL: Side = Side::Share(0.875);

/// What most presets have in common.
const PLAIN: Row = Row {
    name: "",
    aliases: &[],
    help: "",
    mean: [0.0; 3],
    std: [1.0; 3],
    fit: Fit::Crop,
    side: USUAL,
    size: None,
    interpolation: Interpolation::Bicubic,
};

const ROWS: [Row; 11] = [
    Row {
        name: "imagenet",
        aliases: &["imagenet-default", "deit", "swin", "torchvision"],
        help: "Mean 0.485 0.456 0.406, std 0.229 0.224 0.225 (DeiT, Swin, torchvision)",
        mean: IMAGENET.0,
        std: IMAGENET.1,
        ..PLAIN
    },
    Row {
        name: "inception",
        aliases: &["imagenet-inception", "imagenet-standard", "augreg"],
        help: "Mean and std 0.5: pixels in [-1, 1] (ViT as published by its authors, augreg)",
        mean: HALF.0,
        std: HALF.1,
        ..PLAIN
    },
    Row {
        name: "clip",
        aliases: &["openai-clip", "CLIPImageProcessor", "CLIPFeatureExtractor"],
        help: "Mean 0.48145466 0.4578275 0.40821073, std 0.26862954 0.26130258 0.27577711 (CLIP)",
        mean: CLIP.0,
        std: CLIP.1,
        side: Side::Share(1.0),
        ..PLAIN
    },
    Row {
        name: "dpn",
        aliases: &["imagenet-dpn"],
        help: "Mean 124 117 104 of 255, std 0.235 (dual path networks)",
        mean: DPN.0,
        std: DPN.1,
        ..PLAIN
    },
    Row {
        name: "unit",
        aliases: &["zero-one"],
        help: "Mean 0, std 1: pixels in [0, 1]",
        mean: [0.0; 3],
        std: [1.0; 3],
        ..PLAIN
    },
    Row {
        name: "ViTImageProcessor",
        aliases: &["ViTFeatureExtractor"],
        help: "As ViT is published for transformers: squashed, bilinear, mean and std 0.5",
        mean: HALF.0,
        std: HALF.1,
        fit: Fit::Squash,
        side: Side::Share(1.0),
        interpolation: Interpolation::Bilinear,
        ..PLAIN
    },
    Row {
        name: "DeiTImageProcessor",
        aliases: &["DeiTFeatureExtractor"],
        help: "As DeiT is published for transformers: squashed to 256, crop 224, bicubic, mean and std of ImageNet",
        mean: IMAGENET.0,
        std: IMAGENET.1,
        fit: Fit::Squash,
        side: Side::Exact(256, 256),
        size: Some((224, 224)),
        ..PLAIN
    },
    Row {
        name: "BeitImageProcessor",
        aliases: &["BeitFeatureExtractor"],
        help: "As BEiT is published for transformers: squashed to 256, crop 224, bicubic, mean and std 0.5",
        mean: HALF.0,
        std: HALF.1,
        fit: Fit::Squash,
        side: Side::Exact(256, 256),
        size: Some((224, 224)),
        ..PLAIN
    },
    Row {
        name: "SiglipImageProcessor",
        aliases: &["siglip"],
        help: "As SigLIP is published for transformers: squashed, bicubic, mean and std 0.5",
        mean: HALF.0,
        std: HALF.1,
        fit: Fit::Squash,
        side: Side::Share(1.0),
        ..PLAIN
    },
    Row {
        name: "BitImageProcessor",
        aliases: &["dinov2"],
        help: "As DINOv2 is published for transformers: short side 256, crop 224, bicubic, mean and std of ImageNet",
        mean: IMAGENET.0,
        std: IMAGENET.1,
        ..PLAIN
    },
    Row {
        name: "ConvNextImageProcessor",
        aliases: &["ConvNextFeatureExtractor"],
        help: "As ConvNeXt is published for transformers: short side of crop / 0.875, bilinear, mean and std of ImageNet",
        mean: IMAGENET.0,
        std: IMAGENET.1,
        interpolation: Interpolation::Bilinear,
        ..PLAIN
    },
];

/// A named way to make inputs of pictures. There are names of families, timm's for normalisations (`imagenet-inception`,
/// `openai-clip`), and transformers' for image processors, with what models of these are published with.
#[derive(Clone, Copy)]
pub struct Preset(&'static Row);

impl Preset {
    /// All there are.
    pub fn all() -> impl Iterator<Item = Preset> {
        ROWS.iter().map(Preset)
    }

    /// The one of this name. Case does not matter, nor whether words are joined by `-` or `_`; the `Fast` of transformers'
    /// faster processors is left out.
    pub fn named(name: &str) -> Option<Preset> {
        let plain = |s: &str| s.to_ascii_lowercase().replace('_', "-");
        let asked = plain(name);
        let asked = asked.strip_suffix("processorfast").map_or(asked.clone(), |s| format!("{s}processor"));
        Preset::all().find(|p| plain(p.0.name) == asked || p.0.aliases.iter().any(|a| plain(a) == asked))
    }

    /// Its first name.
    pub fn name(self) -> &'static str {
        self.0.name
    }

    pub(super) fn row(self) -> &'static Row {
        self.0
    }
}

impl Default for Preset {
    fn default() -> Preset {
        Preset(&ROWS[0])
    }
}

impl PartialEq for Preset {
    fn eq(&self, other: &Preset) -> bool {
        self.name() == other.name()
    }
}

impl std::fmt::Debug for Preset {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for Preset {
    type Err = String;

    fn from_str(name: &str) -> Result<Preset, String> {
        Preset::named(name).ok_or_else(|| {
            let known: Vec<&str> = Preset::all().map(Preset::name).collect();
            format!("there is no preset {name:?}; there are {}", known.join(", "))
        })
    }
}

/// Reads a preset from the command line, in any of its names.
#[cfg(feature = "cli")]
#[derive(Clone)]
pub(super) struct PresetParser;

#[cfg(feature = "cli")]
impl clap::builder::TypedValueParser for PresetParser {
    type Value = Preset;

    fn parse_ref(
        &self,
        cmd: &clap::Command,
        arg: Option<&clap::Arg>,
        value: &std::ffi::OsStr,
    ) -> Result<Preset, clap::Error> {
        let name = value.to_string_lossy();
        name.parse().map_err(|e| {
            let flag = arg.map_or_else(|| "--preset".to_owned(), ToString::to_string);
            clap::Error::raw(clap::error::ErrorKind::InvalidValue, format!("{flag}: {e}\n")).with_cmd(cmd)
        })
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = clap::builder::PossibleValue> + '_>> {
        let value = |p: Preset| clap::builder::PossibleValue::new(p.name()).help(p.0.help);
        Some(Box::new(Preset::all().map(value)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_distinct_and_found_in_any_spelling() {
        let mut all: Vec<String> =
            ROWS.iter().flat_map(|r| r.aliases.iter().chain([&r.name])).map(|n| n.to_lowercase()).collect();
        let n = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), n);
        for (name, first) in [
            ("imagenet_inception", "inception"),
            ("OPENAI-CLIP", "clip"),
            ("ViTImageProcessorFast", "ViTImageProcessor"),
            ("imagenet_standard", "inception"),
        ] {
            assert_eq!(Preset::named(name).map(Preset::name), Some(first), "{name}");
        }
        assert!("imagenet21k".parse::<Preset>().unwrap_err().contains("there are imagenet, inception"));
    }

    #[test]
    fn filters_have_pillows_numbers() {
        use Interpolation::*;
        let all: Vec<_> = (0..7).map(Interpolation::numbered).collect();
        assert_eq!(all, [Some(Nearest), Some(Lanczos), Some(Bilinear), Some(Bicubic), Some(Box), Some(Hamming), None]);
    }
}
