//! Calibration data: samples for a model's inputs, from images, NumPy files, or nothing.
//!
//! A [`Dataset`] is opened for the inputs of one model and makes its samples one at a time, when asked, on any thread: memory
//! does not grow with their number. Sample `i` is the same bytes whoever asks, in whatever order.
//!
//! *Batch.* Each array of a sample has a leading axis of size 1; if the model fixes its batch at B, a sample is B consecutive
//! items and what is left over at the end is dropped (a note says so). Where inputs have different fixed leading sizes (a
//! picture and the queries asked of it), they are no batches: a sample holds the whole of each. Samples then follow
//! each other along the leading axis, or along one of their own in front; what comes once is the same in every sample.
//!
//! *Sources.* A folder of pictures, an `.npy` file for a model of one input, an `.npz` file with arrays named as the
//! inputs, or, with none given, seeded synthetic inputs ([`DataOptions`] has the flags). Values are checked as samples
//! are made: NaN, infinity (minus infinity in a mask is none), and numbers that the input's type cannot hold are errors
//! that name the sample and the array.

mod arrays;
mod class_names;
mod coloured;
mod config;
mod convert;
mod decode;
mod error;
mod extras;
mod fixed;
mod folder;
mod images;
mod labels;
mod layout;
mod made_up;
mod npy;
mod options;
mod pictures;
mod presets;
mod said;
mod spool;
mod synthetic;
#[cfg(test)]
mod tests;
mod thumbnail;

use std::fmt;
use std::path::Path;

pub use crate::runtime::Array;
pub use class_names::ClassNames;
pub use coloured::Coloured;
pub use error::DataError;
pub use fixed::{FixedInput, FixedValue};
pub use options::DataOptions;
pub use presets::{Exif, Fit, Interpolation, Preset};
#[cfg(feature = "tract")]
pub(crate) use presets::{HALF, IMAGENET};
pub use spool::{ArrayRows, Arrays, Spool};

use crate::budget::{self, Stop};
use crate::ir::{DType, Def, Dim, Graph, Value};
use arrays::ArrayFile;
use fixed::Fixed;
use images::{ImageFolder, ImageShape};
use layout::Layout;
use pictures::Pictures;
use synthetic::Synthetic;
use thumbnail::Pixels;

/// Synthetic samples made when no number is asked for; fewer, but [`FEWEST_SAMPLES`], of inputs so large that they would have
/// more than [`SYNTHETIC_VALUES`] together.
const SYNTHETIC_SAMPLES: usize = 64;
const FEWEST_SAMPLES: usize = 8;
const SYNTHETIC_VALUES: u64 = 1 << 28;
/// More made-up samples than this say nothing new.
const MOST_SYNTHETIC: usize = 100_000;

/// One input of a model: what a sample must supply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InputSpec {
    pub name: String,
    pub dtype: DType,
    /// Sizes, the batch first; what is not [`Dim::Known`] is taken from the data.
    pub dims: Vec<Dim>,
    /// It is added to attention scores and read for nothing else: minus infinity hides.
    pub mask: bool,
    /// Rows of the smallest table that it picks from: its integers are below.
    pub rows: Option<i64>,
    /// It continues what is computed, as a cache of keys does, and is no image whatever its sizes are.
    pub cache: bool,
}

/// One run's worth of inputs.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// In the order of the model's inputs.
    pub inputs: Vec<(String, Array)>,
    /// Where it came from: a file name, `file.npz[7]`, `synthetic[7]`; of the first and last item if it is a batch.
    pub name: String,
    /// The class of each item of the batch, where known.
    pub labels: Option<Vec<i64>>,
}

/// A source of samples.
#[derive(Clone, Debug)]
pub struct Dataset {
    source: Source,
    inputs: Vec<InputSpec>,
    /// For each input what it always is; the others come from the source, in their order.
    fixed: Vec<Option<Fixed>>,
    layout: Layout,
    /// Items per sample.
    batch: usize,
    /// Items in the source.
    total: usize,
    /// Items used: whole batches of the chosen ones.
    used: usize,
    /// Items chosen, of which the last ones may not fill a batch.
    taken: usize,
    labels: Option<Vec<i64>>,
    class_names: ClassNames,
    notes: Vec<String>,
    description: String,
    how: String,
    stop: Stop,
}

#[derive(Clone, Debug)]
enum Source {
    Images(ImageFolder),
    Arrays(ArrayFile),
    Synthetic(Synthetic),
}

/// A source that is open, with the class of each item, the number of items, and what a report calls it.
struct Opened {
    source: Source,
    labels: Option<Vec<i64>>,
    total: usize,
    description: String,
}

/// What sources are opened with, and what there is to tell.
struct Opening<'a> {
    options: &'a DataOptions,
    inputs: &'a [InputSpec],
    layout: &'a Layout,
    pictures: &'a Pictures,
    notes: Vec<String>,
}

impl Opening<'_> {
    fn given(&mut self, a: &Arrays) -> Result<Opened, DataError> {
        let (file, labels) = ArrayFile::of(&a.name, a.members.clone(), self.inputs, self.layout, &mut self.notes)?;
        let (total, description) = (file.len(), "arrays that the caller gave".to_owned());
        Ok(Opened { source: Source::Arrays(file), labels, total, description })
    }

    fn file(&mut self, path: &Path) -> Result<Opened, DataError> {
        let (file, labels) = ArrayFile::open(path, self.inputs, self.layout, &mut self.notes)?;
        let (total, description) = (file.len(), format!("arrays of {}", path.display()));
        Ok(Opened { source: Source::Arrays(file), labels, total, description })
    }

    fn folder(&mut self, path: &Path) -> Result<Opened, DataError> {
        let [spec] = self.inputs else {
            return Err(self.inputs[1].refused(
                "a folder of pictures feeds one input: give the others values with --fixed, or use an .npz file",
            ));
        };
        let shape = check_crop(spec, self.options, self.pictures, &mut self.notes)?
            .ok_or_else(|| spec.refused("not an image: rank 4, float or uint8, with 1 or 3 channels"))?;
        let folder = ImageFolder::open(path, spec, shape, self.options, self.pictures)?;
        let (total, labels) = (folder.len(), folder.listing().labels.clone());
        self.notes.extend(folder.listing().notes.iter().cloned());
        self.notes.extend(told(self.pictures, spec, &shape));
        Ok(Opened {
            source: Source::Images(folder),
            labels,
            total,
            description: format!("images of {}", path.display()),
        })
    }

    /// `values`: how many numbers there are in a sample.
    fn made_up(&mut self, values: u64) -> Result<Opened, DataError> {
        let (options, inputs, batch) = (self.options, self.inputs, self.layout.batch);
        if let Some(n) = options.samples.filter(|n| *n > MOST_SYNTHETIC) {
            let reason = format!("made-up samples are at most {MOST_SYNTHETIC}; give data with --calibrate");
            return Err(DataError::Flag { flag: "samples", value: n.to_string(), reason });
        }
        let fit = usize::try_from(SYNTHETIC_VALUES * batch as u64 / values.max(1)).unwrap_or(usize::MAX);
        let usual = fit.clamp(FEWEST_SAMPLES, SYNTHETIC_SAMPLES);
        let total = options.samples.unwrap_or(usual.next_multiple_of(batch));
        let source = Synthetic::new(inputs, options, self.pictures, self.layout, &mut self.notes)?;
        check_crop(&inputs[0], options, self.pictures, &mut self.notes)?;
        let description = format!("synthetic: made from seed {}, no data was given", options.seed);
        Ok(Opened { source: Source::Synthetic(source), labels: None, total, description })
    }
}

impl Dataset {
    /// Opens the source that `options` name, for a model with these inputs: lists the folder or reads the file's headers,
    /// and checks names, labels and shapes. Asking for more samples than there are is a note, not an error.
    ///
    /// # Errors
    /// If there is none of the data, a file of it cannot be read, or names, labels or shapes do not fit.
    pub fn open(options: &DataOptions, inputs: &[InputSpec]) -> Result<Dataset, DataError> {
        Dataset::open_or(None, options, inputs)
    }

    /// As [`open`](Dataset::open), with these arrays for the data.
    ///
    /// # Errors
    /// If names, labels or shapes do not fit.
    pub fn of_arrays(arrays: &Arrays, options: &DataOptions, inputs: &[InputSpec]) -> Result<Dataset, DataError> {
        Dataset::open_or(Some(arrays), options, inputs)
    }

    fn open_or(arrays: Option<&Arrays>, options: &DataOptions, inputs: &[InputSpec]) -> Result<Dataset, DataError> {
        if inputs.is_empty() {
            return Err(DataError::NoInputs);
        }
        if options.samples == Some(0) {
            let reason = "at least one sample is needed".to_string();
            return Err(DataError::Flag { flag: "samples", value: "0".to_string(), reason });
        }
        let all = options.shapes(inputs)?;
        let pictures = Pictures::of(options)?;
        let crop = options.crop.map(|c| (c, c)).or(pictures.size());
        // Before anything is made of what the sizes say, values of `--fixed` included.
        let values = sample_values(&all, crop)?;
        let fixed = options.fixed(&all, Layout::of(&all)?.batch)?;
        let fed: Vec<InputSpec> = all.iter().zip(&fixed).filter(|(_, f)| f.is_none()).map(|(s, _)| s.clone()).collect();
        let inputs = &fed[..];
        let layout = Layout::of(inputs)?;
        let batch = layout.batch;
        let mut opening = Opening { options, inputs, layout: &layout, pictures: &pictures, notes: Vec::new() };
        let Opened { source, labels, total, description } = match (arrays, &options.calibrate) {
            (Some(a), _) => opening.given(a)?,
            (None, None) => opening.made_up(values)?,
            (None, Some(path)) if path.is_dir() => opening.folder(path)?,
            (None, Some(path)) => opening.file(path)?,
        };
        let mut notes = opening.notes;
        notes.extend(match &source {
            Source::Images(_) => None,
            Source::Arrays(_) => options.idle(&description, false),
            Source::Synthetic(_) => options.idle("made-up samples", true),
        });
        let mut class_names = options.names_of_classes()?;
        if let (Source::Images(folder), true) = (&source, class_names.is_empty()) {
            class_names = folder.listing().class_names.iter().cloned().enumerate().collect();
        }
        let asked = options.samples.unwrap_or(total);
        if asked > total {
            notes.push(format!("{asked} samples were asked for, there are {total}: all are used"));
        }
        let taken = asked.min(total);
        let used = taken - taken % batch;
        if used == 0 {
            return Err(DataError::Batch { have: taken, input: inputs[0].name.clone(), batch });
        }
        if used < taken {
            notes.push(format!("{} samples do not fill a batch of {batch} and are dropped", taken - used));
        }
        // The selection is made before the remainder is dropped, so that a fixed batch sees the same items as batch 1.
        let labels = labels.map(|l| (0..used).map(|i| l[spread(i, taken, total)]).collect());
        let mut how = match &source {
            Source::Images(folder) => {
                folder.check((0..used).map(|i| spread(i, taken, total)))?;
                pictures.how(folder.shape().height as u32, folder.shape().width as u32)
            }
            Source::Arrays(_) => "arrays".to_owned(),
            Source::Synthetic(_) => format!("synthetic, {}", pictures.numbers()),
        };
        let mut description = description;
        for f in fixed.iter().flatten() {
            how += &format!(", {}", f.said());
            description += &format!(", {}", f.said());
        }
        Ok(Dataset {
            source,
            inputs: all,
            fixed,
            layout,
            batch,
            total,
            used,
            labels,
            class_names,
            notes,
            description,
            taken,
            how,
            stop: Stop::default(),
        })
    }

    /// As it is until somebody asks to stop: then there are no more samples, and what runs over them ends with
    /// [`DataError::Stopped`].
    #[must_use]
    pub fn until(self, stop: &Stop) -> Dataset {
        Dataset { stop: stop.clone(), ..self }
    }

    /// Number of samples; at least 1.
    #[allow(clippy::len_without_is_empty, reason = "never empty")]
    pub fn len(&self) -> usize {
        self.used / self.batch
    }

    /// Items in each sample: the model's fixed batch, or 1.
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// The inputs it was opened for.
    pub fn inputs(&self) -> &[InputSpec] {
        &self.inputs
    }

    /// Classes of all items in order, [`batch`](Dataset::batch) per sample, where known.
    pub fn labels(&self) -> Option<&[i64]> {
        self.labels.as_deref()
    }

    /// How many folders of pictures there are, if each is a class by its place in the order of names.
    pub fn class_folders(&self) -> Option<usize> {
        if let Source::Images(f) = &self.source { f.listing().class_folders } else { None }
    }

    /// What a class is called, if that is known.
    pub fn class_name(&self, class: usize) -> Option<&str> {
        self.class_names.get(&class).map(String::as_str)
    }

    /// Without classes, and with a note why.
    #[must_use]
    pub fn unlabelled(mut self, why: String) -> Dataset {
        self.labels = None;
        if let Source::Images(f) = &self.source
            && self.class_names.len() == f.listing().class_names.len()
        {
            self.class_names.clear();
        }
        self.notes.push(why);
        self
    }

    /// Whether the samples were made up because no data was given.
    pub fn is_synthetic(&self) -> bool {
        matches!(self.source, Source::Synthetic(_))
    }

    /// What the samples are, for a report.
    pub fn description(&self) -> &str {
        &self.description
    }

    /// How data become inputs: two data sets with another answer have nothing to do with each other.
    pub fn how(&self) -> &str {
        &self.how
    }

    /// A fingerprint of all its samples: their names and number, and for arrays the elements themselves. It does not
    /// depend on where the data lie.
    pub fn fingerprint(&self) -> String {
        let mut h = blake3::Hasher::new();
        h.update(&(self.taken as u64).to_le_bytes());
        h.update(&(self.total as u64).to_le_bytes());
        match &self.source {
            Source::Images(folder) => (0..folder.len()).for_each(|i| {
                h.update(folder.name(i).as_bytes()).update(&[0]);
                h.update(&folder.bytes_of(i).to_le_bytes());
            }),
            Source::Arrays(file) => file.digest(&mut h),
            Source::Synthetic(_) => {
                h.update(self.description.as_bytes());
            }
        }
        self.fixed.iter().flatten().for_each(|f| f.digest(&mut h));
        h.finalize().to_hex()[..16].to_owned()
    }

    /// Things worth telling the user: samples dropped, sizes assumed, arrays ignored.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Makes sample `index`.
    ///
    /// # Errors
    /// If a file cannot be read or decoded, what it holds does not fit the input, or the work was stopped.
    pub fn sample(&self, index: usize) -> Result<Sample, DataError> {
        if self.stop.asked() {
            return Err(DataError::Stopped);
        }
        if index >= self.len() {
            return Err(DataError::OutOfRange { index, len: self.len() });
        }
        let range = index * self.batch..(index + 1) * self.batch;
        let items: Vec<usize> = range.clone().map(|i| spread(i, self.taken, self.total)).collect();
        let mut fed = 0;
        let make = |(spec, fixed): (&InputSpec, &Option<Fixed>)| -> Result<(String, Array), DataError> {
            if let Some(f) = fixed {
                return Ok((spec.name.clone(), f.make(items.len())?));
            }
            let k = fed;
            fed += 1;
            let array = match &self.source {
                Source::Images(folder) => {
                    let mut values = Vec::with_capacity(folder.shape().len() * items.len());
                    items.iter().try_for_each(|i| folder.append(*i, &mut values))?;
                    image_array(spec, &folder.shape(), items.len(), values)?
                }
                Source::Arrays(file) => file.make(spec, k, &items)?,
                Source::Synthetic(s) => s.make(spec, k, &items, self.layout.leads[k])?,
            };
            Ok((spec.name.clone(), array))
        };
        let inputs = self.inputs.iter().zip(&self.fixed).map(make).collect::<Result<_, _>>()?;
        let (first, last) = (self.item_name(items[0]), self.item_name(items[items.len() - 1]));
        let name = if first == last { first } else { format!("{first} .. {last}") };
        Ok(Sample { inputs, name, labels: self.labels.as_ref().map(|l| l[range].to_vec()) })
    }

    /// What item `item` of sample `index` is called: a file's name below its folder, or a row of an array.
    pub fn item(&self, index: usize, item: usize) -> String {
        self.item_name(spread(index * self.batch + item, self.taken, self.total))
    }

    /// Item `item` of sample `index` as the model gets it, as a `data:` URI of a picture with no side longer than `side`.
    /// `None` if it is no picture, or was made up.
    ///
    /// # Errors
    /// If the sample cannot be made.
    pub fn thumbnail(&self, index: usize, item: usize, side: u32) -> Result<Option<String>, DataError> {
        let pixels = match &self.source {
            Source::Images(folder) => {
                let pixels = folder.pixels(spread(index * self.batch + item, self.taken, self.total))?;
                Pixels::of(pixels.to_vec(), &folder.shape())
            }
            Source::Arrays(_) => {
                let s = self.sample(index)?;
                let images =
                    self.inputs.iter().zip(&self.fixed).zip(&s.inputs).filter(|((_, fixed), _)| fixed.is_none());
                let mut of = images.filter_map(|((spec, _), (_, a))| {
                    let dims =
                        a.dims().iter().map(|n| i64::try_from(*n).map(Dim::Known)).collect::<Result<_, _>>().ok()?;
                    let shape = ImageShape::of(&InputSpec { dims, ..spec.clone() }, None)?;
                    (a.dims()[0] == self.batch).then(|| Pixels::of_array(a, &shape, item))?
                });
                of.next()
            }
            Source::Synthetic(_) => None,
        };
        Ok(pixels.and_then(|p| p.uri(side).ok()))
    }

    fn item_name(&self, item: usize) -> String {
        match &self.source {
            Source::Images(folder) => folder.name(item).to_string(),
            Source::Arrays(file) => format!("{}[{item}]", file.name()),
            Source::Synthetic(_) => format!("synthetic[{item}]"),
        }
    }
}

/// Splits `n` samples into those to calibrate on and those to verify on: every eighth one (7, 15, 23, ..) is held back, of
/// fewer than eight the last. A single sample is for calibration, and nothing is held back.
pub fn split_holdout(n: usize) -> (Vec<usize>, Vec<usize>) {
    let held = |i: &usize| if n < 8 { n > 1 && i + 1 == n } else { i % 8 == 7 };
    (0..n).partition(|i| !held(i))
}

/// The item that is number `i` of `taken` items spread evenly over `total`.
fn spread(i: usize, taken: usize, total: usize) -> usize {
    // 128 bits, because the product of two counts may exceed a 32-bit machine's word.
    (i as u128 * total as u128 / taken as u128) as usize
}

/// Bytes that a value takes as it is made, before it has the input's type, and the room a picture takes while it is drawn.
const MAKING: u64 = 24;

/// Values of one sample, all inputs and the whole batch together, sizes that are left open as images have them or 1. A sample
/// that the memory budget cannot hold is refused before any is made.
fn sample_values(inputs: &[InputSpec], crop: Option<(u32, u32)>) -> Result<u64, DataError> {
    let mut all = 0u64;
    for spec in inputs {
        if spec.dims.iter().any(|d| matches!(d, Dim::Known(n) if *n < 0)) {
            return Err(spec.refused("one of its sizes is negative"));
        }
        let batch = spec.dims.first().map_or(1, |d| if let Dim::Known(n) = d { *n } else { 1 });
        let dims: Vec<i64> = match ImageShape::of(spec, crop) {
            Some(s) => s.dims(1).iter().skip(1).map(|n| i64::try_from(*n).unwrap_or(i64::MAX)).collect(),
            None => spec.dims.iter().skip(1).map(|d| if let Dim::Known(n) = d { *n } else { 1 }).collect(),
        };
        let n = budget::elements(std::iter::once(batch).chain(dims));
        let cut = crop
            .map_or(String::new(), |(h, w)| if h == w { format!(" with --crop {h}") } else { format!(" of {h}x{w}") });
        budget::afford(n.and_then(|n| n.checked_mul(MAKING)), || {
            format!("a sample of input {:?} ({spec}){cut}", spec.name)
        })?;
        all = all.saturating_add(n.unwrap_or(u64::MAX));
    }
    Ok(all)
}

/// The image layout of an input (`None` if it is no image), after a check of `--crop` against the model's own size.
fn check_crop(
    spec: &InputSpec,
    options: &DataOptions,
    pictures: &Pictures,
    notes: &mut Vec<String>,
) -> Result<Option<ImageShape>, DataError> {
    let crop = options.crop.map(|c| (c, c));
    let Some(shape) = ImageShape::of(spec, crop.or(pictures.size())) else { return Ok(None) };
    let own = (shape.height as u32, shape.width as u32);
    if let Some(crop) = options.crop
        && own != (crop, crop)
    {
        let reason = format!("input {:?} of the model is {spec}; leave --crop away", spec.name);
        return Err(DataError::Flag { flag: "crop", value: crop.to_string(), reason });
    }
    match pictures.size() {
        Some((h, w)) if crop.is_none() && own != (h, w) => notes.push(format!(
            "{} is for pictures of {h}x{w}, and input {:?} is {spec}: they are made {}x{}, and resized in proportion",
            pictures.source(),
            spec.name,
            own.0,
            own.1
        )),
        None if shape.chosen && crop.is_none() => notes.push(format!(
            "input {:?} is {spec}: images of {}x{} are used; --crop says another size",
            spec.name, own.0, own.1
        )),
        _ => {}
    }
    Ok(Some(shape))
}

/// How pictures become numbers, and who said so.
fn told(pictures: &Pictures, spec: &InputSpec, shape: &ImageShape) -> Vec<String> {
    let how = pictures.how(shape.height as u32, shape.width as u32);
    let how = match spec.dtype {
        DType::UINT8 => {
            format!("{}, not normalised: the input takes bytes", how.split(", mean").next().unwrap_or_default())
        }
        _ => how,
    };
    let mut all = vec![format!("pictures: {how} (from {})", pictures.source())];
    all.extend(pictures.notes.iter().map(|n| format!("{}: {n}", pictures.source())));
    all
}

/// An array of images in the input's element type.
fn image_array(spec: &InputSpec, shape: &ImageShape, batch: usize, values: Vec<f32>) -> Result<Array, DataError> {
    let dims = shape.dims(batch);
    let array = match spec.dtype {
        DType::FLOAT => Array::new(&dims, values),
        DType::BFLOAT16 => Array::new(&dims, values.into_iter().map(|x| half::bf16::from_f32(x).to_f32()).collect()),
        DType::DOUBLE => Array::new(&dims, values.into_iter().map(f64::from).collect()),
        DType::FLOAT16 => Array::new(&dims, values.into_iter().map(half::f16::from_f32).collect()),
        DType::UINT8 => Array::new(&dims, values.into_iter().map(|x| x as u8).collect()),
        _ => return Err(spec.refused("not the element type of an image")),
    };
    array.map_err(|e| spec.refused(&e.to_string()))
}

impl InputSpec {
    /// What the inputs of a graph need, in its order. An input with a default value (an initializer of the same name) needs
    /// nothing and is left out.
    ///
    /// # Errors
    /// If the type or the number of axes of an input is not declared.
    pub fn of(graph: &Graph) -> Result<Vec<InputSpec>, DataError> {
        InputSpec::of_given(graph, &[])
    }

    /// As [`of`](InputSpec::of), with shapes for inputs that have none, by name.
    ///
    /// # Errors
    /// As [`of`](InputSpec::of).
    pub fn of_given(graph: &Graph, shapes: &[(String, Vec<Dim>)]) -> Result<Vec<InputSpec>, DataError> {
        let free = graph.inputs().iter().map(|id| graph.value(*id)).filter(|v| matches!(v.def, Def::Input));
        let one = |v: &Value| {
            let refused =
                |signature: String, reason: String| DataError::Input { input: v.name.clone(), signature, reason };
            let Some(ty) = &v.ty else {
                return Err(refused("no tensor".to_owned(), "no sample can be made for it".to_owned()));
            };
            let said = || shapes.iter().find(|(name, _)| *name == v.name).map(|(_, dims)| dims.clone());
            let dims = ty.shape.clone().or_else(said).ok_or_else(|| {
                let give = format!("give it, such as --shape {}=1,3,224,224", v.name);
                let reason = format!("the model does not say its shape, so no sample can be made for it; {give}");
                refused(ty.dtype.to_string(), reason)
            })?;
            Ok(InputSpec { name: v.name.clone(), dtype: ty.dtype, dims, mask: false, rows: None, cache: false })
        };
        free.map(one).collect()
    }

    fn refused(&self, reason: &str) -> DataError {
        DataError::Input { input: self.name.clone(), signature: self.to_string(), reason: reason.to_string() }
    }
}

impl fmt::Display for InputSpec {
    /// `float[batch, 3, 224, 224]`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[{}]", self.dtype, self.dims.iter().map(dim_text).collect::<Vec<_>>().join(", "))
    }
}

fn dim_text(d: &Dim) -> String {
    match d {
        Dim::Known(n) => n.to_string(),
        Dim::Symbol(s) => s.clone(),
        Dim::Unknown => "?".to_string(),
    }
}
