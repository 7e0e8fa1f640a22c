//! The report: what was compiled, from what data, and how far the result is from the original.
//!
//! A [`Report`] is plain data. It renders as JSON for programs, as text for the terminal and as one HTML file without
//! anything outside of it; no rendering computes more than sums, shares and orders of what it was given.

mod attention;
mod beside;
mod channels;
mod disagreements;
mod html;
mod markup;
#[cfg(feature = "tract")]
pub mod parts;
#[cfg(feature = "cli")]
mod terminal;
#[cfg(test)]
mod tests;
pub mod trade;
mod values;

#[cfg(feature = "cli")]
pub(crate) use terminal::table;

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

use super::closer::CloserLook;
use super::disagree::Disagreements;
use super::judge::{Judged, Level};
use super::kinds::Kind;
use super::metrics::{EXACT_DB, TensorMetrics, shown_db as db};
use super::speed::Speed;
use super::thresholds::Check;
use crate::plan::Island;
use crate::plan::precision::{Chosen, Precision};

/// Version of the JSON form; it changes when a field changes its meaning or goes.
pub const VERSION: u32 = 1;

/// How many of the worst layers a rendering names.
#[cfg(feature = "cli")]
const WORST: usize = 3;

/// From this ratio of times on a file is slower than the float model, and not just timed on a busy machine.
const SLOWER: f64 = 1.05;

/// Fewer calibration samples than this are worth a remark.
const FEW_SAMPLES: u64 = 64;

/// Everything the tool has to say about one compilation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    pub version: u32,
    /// The program that made it, with its version.
    pub tool: String,
    pub float: ModelFile,
    pub quantized: ModelFile,
    pub recipe: String,
    pub data: DataReport,
    /// Per output, in the model's order.
    pub outputs: Vec<TensorMetrics>,
    /// Named tapped values, from the input to the output of the model.
    pub blocks: Vec<TensorMetrics>,
    /// How long both models take, where they were timed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub speed: Option<Speed>,
    /// What another runtime makes of both models, where it was asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub judged: Option<Judged>,
    pub coverage: Coverage,
    /// Compute operators that stay in float, with the reason.
    pub islands: Vec<Island>,
    /// What each part has, where parts have precisions of their own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<Chosen>,
    /// What the channels of some values reach: those where they differ most.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub channels: Vec<Channels>,
    /// What a closer look found, where it was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub closer: Option<CloserLook>,
    /// Samples that both models put into different classes, if these are classifiers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disagreements: Option<Disagreements>,
    /// How often each kind of decision was taken.
    pub decisions: IndexMap<String, u64>,
    /// What each pass did to the outputs, where that was asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub passes: Vec<PassReport>,
    /// In the order the stages ran.
    pub timings: Vec<Timing>,
    /// The thresholds that were set.
    pub checks: Vec<Check>,
    /// Things worth telling: what was dropped, assumed, left alone.
    pub notes: Vec<String>,
}

/// What the codes of a value's channels reach.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Channels {
    pub tensor: String,
    /// The part of the model it belongs to.
    #[serde(default)]
    pub part: String,
    /// The largest magnitude that the codes of each channel stand for, in the model's own units.
    pub reach: Vec<f32>,
    /// The factor of each channel's scale, where scales are one base times whole factors.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub factors: Vec<u32>,
}

impl Channels {
    /// How often the largest reach is that of a channel in the middle.
    pub fn spread(&self) -> f64 {
        let mut sorted = self.reach.clone();
        sorted.sort_by(f32::total_cmp);
        match (sorted.get(sorted.len() / 2), sorted.last()) {
            (Some(middle), Some(top)) if *middle > 0.0 => f64::from(*top) / f64::from(*middle),
            _ => 1.0,
        }
    }
}

/// A model file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelFile {
    pub name: String,
    /// With its external data.
    pub bytes: u64,
}

/// The samples behind the figures.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DataReport {
    /// What the calibration samples are.
    pub calibration: String,
    pub calibration_samples: u64,
    /// What the verification samples are.
    pub verification: String,
    pub verification_samples: u64,
    /// Whether the inputs were made up because no data was given.
    pub synthetic: bool,
}

/// How many of the compute operators run on integers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Coverage {
    pub covered: u64,
    pub total: u64,
    pub by_op: IndexMap<String, OpCoverage>,
    /// Norms and Softmax that read codes and compute in float between them; no part of the figures above.
    #[serde(default, skip_serializing_if = "IndexMap::is_empty")]
    pub between: IndexMap<String, u64>,
}

/// How many nodes of one operator compute on integers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpCoverage {
    pub covered: u64,
    pub total: u64,
}

/// What one pass did to the outputs on one sample.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PassReport {
    pub pass: String,
    pub changes: u64,
    /// What the pass says it does to the numbers.
    pub declares: String,
    /// The output that moved most.
    pub output: String,
    /// Largest difference to the model before the pass, as a share of the largest magnitude.
    pub distance: f64,
    /// Against the model before the pass, in dB; 999 without any error.
    pub sqnr_db: f64,
    /// Against the model before the first pass.
    pub total_db: f64,
}

/// How long a stage took.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Timing {
    pub stage: String,
    pub seconds: f64,
}

impl Report {
    /// Whether every threshold is met; true if none was set.
    pub fn passes(&self) -> bool {
        self.checks.iter().all(|c| c.pass)
    }

    /// Up to `n` blocks of the lowest SQNR, the worst first; of equals, the one nearer to the input. Exact blocks are not
    /// among them.
    pub fn worst(&self, n: usize) -> Vec<&TensorMetrics> {
        let mut blocks: Vec<_> = self.blocks.iter().filter(|m| m.sqnr_db < EXACT_DB).collect();
        blocks.sort_by(|a, b| a.sqnr_db.total_cmp(&b.sqnr_db));
        blocks.truncate(n);
        blocks
    }

    /// Pretty-printed JSON, fields in the order of the structure. A non-finite number that slipped in is written as null.
    ///
    /// # Errors
    /// If a number cannot be written; none of a report's is such.
    pub fn to_json(&self) -> Result<String, serde_json::Error> {
        #[derive(Serialize)]
        struct Told<'r> {
            verdict: &'static str,
            #[serde(flatten)]
            report: &'r Report,
        }
        let mut text = serde_json::to_string_pretty(&Told { verdict: self.verdict(), report: self })?;
        text.push('\n');
        Ok(text)
    }

    /// One HTML page, complete in itself: no script, no link, no font from elsewhere.
    pub fn to_html(&self) -> String {
        html::render(self)
    }

    /// Text for a terminal `width` columns wide, without colours: what a person reads in ten seconds, and with `tables` all
    /// figures before it.
    #[cfg(feature = "cli")]
    pub fn to_terminal(&self, width: u16, tables: bool) -> String {
        terminal::render(self, width, tables)
    }

    /// `pass`, `fail`, or that nothing was measured.
    fn verdict(&self) -> &'static str {
        match (self.checks.is_empty(), self.passes()) {
            (true, _) => "not verified",
            (false, true) => "pass",
            (false, false) => "fail",
        }
    }

    /// What to try where a threshold was missed.
    fn next_steps(&self) -> Vec<&'static str> {
        if self.passes() {
            return Vec::new();
        }
        let mut steps = Vec::new();
        if self.checks.iter().any(|c| c.name == Check::QUANTIZED && !c.pass) {
            steps.push("leave fewer parts in float (--keep-float 2), or take a recipe that quantizes more (--recipe)");
            return steps;
        }
        if self.checks.iter().any(|c| c.name == Check::ACCEPTED && !c.pass) {
            steps.push("run the command on the float model; a number that it does not reach no file can (--accept)");
            steps.push("try other recipes (--accept-recipes), or calibrate on more samples");
            return steps;
        }
        if self.data.synthetic && self.data.calibration_samples == 0 {
            steps.push("compare on real data (--data)");
        } else if self.data.synthetic {
            steps.push("calibrate on real data (--calibrate)");
        } else if self.data.calibration_samples < FEW_SAMPLES {
            steps.push("calibrate on more samples: a hundred or so");
        }
        steps.push("leave the most sensitive parts in float (--keep-float 2, or --target-sqnr DB)");
        if self.recipe == "fq-vit" {
            steps.push("keep the residual stream in 16 bits (--recipe fq-vit-r16)");
        }
        if self.recipe.starts_with("fq-vit") {
            steps.push("quantize only what pays on a CPU (--recipe cpu)");
        }
        steps.push("see what each part costs (fqvit-opt sensitivity)");
        steps
    }

    /// The sentence that every rendering shows when no data was given.
    fn synthetic_warning(&self) -> Option<&'static str> {
        self.data.synthetic.then_some(
            "No data was given: inputs are synthetic, so the figures say little about real ones. Use --calibrate.",
        )
    }
}

/// `95.3 %`.
fn percent(x: f64) -> String {
    format!("{:.1} %", 100.0 * x)
}

/// The error of a tensor; labels have none that decibels could tell.
fn error(m: &TensorMetrics) -> String {
    if m.kind == Kind::Labels { "-".to_string() } else { db(m.sqnr_db) }
}

/// The share that an output is judged by, of which there is one at most.
#[derive(Clone, Copy)]
enum Share {
    Classes(f64),
    Labels(f64),
    Detections(f64),
}

impl Share {
    fn of(m: &TensorMetrics) -> Option<Share> {
        let labels = || m.equal.map(Share::Labels);
        let detections = || m.matched.map(Share::Detections);
        m.top1_agreement.map(Share::Classes).or_else(labels).or_else(detections)
    }

    fn value(self) -> f64 {
        let (Share::Classes(x) | Share::Labels(x) | Share::Detections(x)) = self;
        x
    }
}

/// The share that an output is judged by, if it has one: `97.5 % equal`.
fn agreement(m: &TensorMetrics) -> String {
    or_dash(Share::of(m).map(|s| match s {
        Share::Classes(x) => percent(x),
        Share::Labels(x) => format!("{} equal", percent(x)),
        Share::Detections(x) => format!("{} matched", percent(x)),
    }))
}

/// `In float between codes: 25 LayerNormalization, 2 Softmax`, if there are any.
fn between(c: &Coverage) -> Option<String> {
    let ops: Vec<String> = c.between.iter().map(|(op, n)| format!("{n} {op}")).collect();
    (!ops.is_empty()).then(|| format!("in float between codes: {}", ops.join(", ")))
}

/// `-` for what does not exist.
fn or_dash(x: Option<String>) -> String {
    x.unwrap_or_else(|| "-".to_string())
}

/// Four significant digits, whatever the magnitude.
fn number(x: f64) -> String {
    match x.abs() {
        0.0 => "0".to_string(),
        a if (1e-3..1e5).contains(&a) => {
            let digits = (3 - a.log10().floor() as i32).max(0) as usize;
            format!("{x:.digits$}")
        }
        _ => format!("{x:.3e}"),
    }
}

/// Decimal megabytes, as file managers count.
fn megabytes(bytes: u64) -> String {
    format!("{:.2} MB", bytes as f64 / 1e6)
}

/// `4-bit: 5 of 26 parts, float: 1`, if parts have precisions of their own.
fn precisions(r: &Report) -> Option<String> {
    let of = |p: Precision| (r.parts.iter().filter(|c| c.precision == p).count(), p);
    let all = [Precision::Narrow, Precision::Wide, Precision::Float].map(of).into_iter().filter(|(n, _)| *n > 0);
    let told: Vec<String> = all.map(|(n, p)| format!("{}: {n}", p.name())).collect();
    let rest = of(Precision::Recipe).0;
    (!r.parts.is_empty()).then(|| {
        let rest = std::iter::once(format!("as the recipe: {rest}"));
        format!("parts {}", told.into_iter().chain(rest).collect::<Vec<_>>().join(", "))
    })
}

/// `22.9 MB -> 6.1 MB (0.27x)`.
fn sizes(r: &Report) -> String {
    let ratio = if r.float.bytes > 0 {
        format!(" ({:.2}x)", r.quantized.bytes as f64 / r.float.bytes as f64)
    } else {
        String::new()
    };
    format!("{} -> {}{ratio}", megabytes(r.float.bytes), megabytes(r.quantized.bytes))
}

/// `0.36x`; what takes longer than the float model is called slower, since a ratio of times is easily taken for a speed-up.
fn of_float(ratio: f64) -> String {
    if ratio > SLOWER { format!("{ratio:.2}x, slower than float") } else { format!("{ratio:.2}x") }
}

/// `float 39.60 ms, quantized 14.20 ms a run (0.36x): tract, one thread, avx2`.
pub(crate) fn speed(s: &Speed) -> String {
    let threads = if s.threads == 1 { "one thread".to_owned() } else { format!("{} threads", s.threads) };
    format!(
        "float {:.2} ms, quantized {:.2} ms a run ({}): {}, {threads}, {}",
        s.float_ms,
        s.quantized_ms,
        of_float(s.ratio),
        s.runtime,
        s.instructions
    )
}

/// What another runtime says: `onnxruntime 1.31.1, on 16 samples: 18.22 dB at basic, 18.20 dB at all, names the same ..`.
fn judged(j: &Judged) -> String {
    let level = |l: &Level| {
        let worst = l.outputs.iter().filter(|m| m.kind != Kind::Labels).map(|m| m.sqnr_db).reduce(f64::min);
        format!("{} at {}", worst.map_or_else(|| "labels".to_owned(), db), l.level)
    };
    let last = j.levels.last().and_then(|l| l.outputs.iter().find_map(share));
    let all: Vec<String> = j.levels.iter().map(level).chain(last).collect();
    format!("{} {}, on {} samples: {}", j.runtime, j.version, j.samples, all.join(", "))
}

/// How fast both models are there.
fn judged_speed(j: &Judged) -> String {
    format!(
        "float {:.2} ms, quantized {:.2} ms a run ({}) in {}, one thread",
        j.float_ms,
        j.quantized_ms,
        of_float(j.ratio),
        j.runtime
    )
}

/// `float 82.0 %, quantized 81.3 %`.
fn pair(float: f64, quantized: f64) -> String {
    format!("float {}, quantized {}", percent(float), percent(quantized))
}

/// `names the same class on 93.8 % (15 of 16)`, if an output has a share that it is judged by.
fn share(m: &TensorMetrics) -> Option<String> {
    Some(match Share::of(m)? {
        Share::Classes(x) => {
            let hits = (x * m.samples as f64).round();
            let counted = (hits / m.samples.max(1) as f64 - x).abs() < 1e-9;
            let of = if counted { format!(" ({hits} of {})", m.samples) } else { String::new() };
            format!("names the same class on {}{of}", percent(x))
        }
        Share::Labels(x) => format!("labels equal: {}", percent(x)),
        Share::Detections(x) => format!("detections matched: {}", percent(x)),
    })
}

/// A block as people count them, or else by the end of its name.
fn place(m: &TensorMetrics) -> String {
    if m.part.is_empty() { m.tensor.clone() } else { m.part.clone() }
}

/// The worst blocks, each part once: `block 8 attention 12.60 dB`.
#[cfg(feature = "cli")]
fn worst(r: &Report) -> String {
    let mut seen: Vec<(String, f64)> = Vec::new();
    for m in r.worst(usize::MAX) {
        if seen.len() < WORST && !seen.iter().any(|(p, _)| *p == place(m)) {
            seen.push((place(m), m.sqnr_db));
        }
    }
    seen.iter().map(|(p, x)| format!("{p} {}", db(*x))).collect::<Vec<_>>().join(", ")
}

/// The last part of a path, which is what people call a file.
fn file_name(path: &str) -> &str {
    path.rsplit(['/', '\\']).next().unwrap_or(path)
}

/// `26 of 26 compute operators; in float between codes: 9 LayerNormalization`.
fn covered(c: &Coverage) -> String {
    let of = format!("{} of {} compute operators", c.covered, c.total);
    between(c).map_or(of.clone(), |b| format!("{of}; {b}"))
}

/// A threshold's figure and limit in its own unit.
fn check_text(c: &Check) -> String {
    // The runtime may be told after the figure.
    let unit = |x: f64| match c.name.split(' ').next().unwrap_or_default() {
        "sqnr_db" => db(x),
        "top1_agreement" | "top1_drop" | "equal_labels" | "matched_detections" => percent(x),
        Check::QUANTIZED => format!("{x:.0}"),
        _ => number(x),
    };
    let sign = if c.at_least { ">=" } else { "<=" };
    let value = c.value.map_or_else(|| "does not exist".to_string(), unit);
    let because = c.because.as_ref().map_or_else(String::new, |b| format!("; {b}"));
    format!("{} {value}, needs {sign} {}{because}", c.name, unit(c.limit))
}
