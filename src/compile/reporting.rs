//! From what was measured and decided to the report.

use indexmap::{IndexMap, IndexSet};

use super::Prepared;
use super::each::{Moved, verify_each};
use super::error::CompilerError;
use super::stages::{Log, timed};
use crate::calibrate::data::Dataset;
use crate::ir::{DType, Def, Model, Node};
use crate::passes::Numerics;
use crate::plan::parts::{By, Part, divide};
use crate::plan::{Activation, Island, QuantPlan, Role, Rounding, sites};
use crate::recipe::Recipe;
use crate::verify::coverage;
use crate::verify::report::{Channels, DataReport, ModelFile, PassReport, Report, Timing, VERSION};
use crate::verify::run::SideBySide;
use crate::verify::thresholds::{Check, Thresholds};

/// What a call asks of the result, in place of what the recipe asks.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Limits {
    /// Least SQNR of any output in dB.
    pub sqnr_db: Option<f64>,
    /// Least agreement with the float model, 0..1.
    pub agreement: Option<f64>,
}

impl Limits {
    /// True if a result can be worse than that.
    pub fn can_be_missed(&self) -> bool {
        self.sqnr_db.is_some_and(|x| x > 0.0) || self.agreement.is_some_and(|x| x > 0.0)
    }

    /// What must be reached: what is asked for, and for the rest what the recipe says or files of 8 bits usually reach.
    pub(super) fn of(self, recipe: Option<&Recipe>) -> Thresholds {
        let of_recipe = recipe.map_or_else(Thresholds::usual, |r| r.thresholds.clone());
        Thresholds {
            sqnr_db: self.sqnr_db.or(of_recipe.sqnr_db),
            agreement: self.agreement.or(of_recipe.agreement),
            agreement_asked: self.agreement.is_some(),
            ..of_recipe
        }
    }
}

/// Values that stand for the model's progress: sums of the residual stream and attention outputs.
pub(super) fn block_values(p: &Prepared) -> Vec<String> {
    let g = &p.model.graph;
    p.sites
        .sites
        .values()
        .filter(|s| {
            matches!(s.role, sites::Role::Residual | sites::Role::AttentionOutput)
                && matches!(g.value(s.value).def, Def::Node { .. })
        })
        .map(|s| g.name_of(s.value).to_owned())
        .collect()
}

/// A note where most weights are in uint8: no codes in int8 that are as good kept them from saturating.
pub(super) fn slow_weights(quantized: &Model, plan: &QuantPlan) -> Option<String> {
    let g = &quantized.graph;
    let layers = g.nodes().map(|(_, n)| n).filter(|n| n.is_layer());
    let codes = |n: &Node| {
        let read = g.node(g.producer(n.input(1)?)?);
        let stored = read.op.is("DequantizeLinear").then(|| read.input(0)).flatten()?;
        g.constant(stored).map(|t| t.dtype)
    };
    let of: Vec<DType> = layers.filter_map(codes).collect();
    let wide = of.iter().filter(|d| **d == DType::UINT8).count();
    let fitted = plan.layers.iter().any(|l| l.rounding != Rounding::Nearest);
    let why = if fitted {
        "int8 codes that cannot saturate on processors without VNNI round them much worse; --assume-vnni lifts that"
    } else {
        "they are rounded, not fitted to data; with data (--calibrate) and without --fast they are int8"
    };
    (2 * wide > of.len()).then(|| {
        let n = of.len();
        format!(
            "{wide} of {n} weights are stored as uint8, with which onnxruntime takes up to half as long again: {why}"
        )
    })
}

/// A stage that ran twice (over the samples to calibrate on, and over those to compare on) takes the sum of both.
fn by_stage(all: Vec<Timing>) -> Vec<Timing> {
    let mut stages: IndexMap<String, f64> = IndexMap::new();
    all.into_iter().for_each(|t| *stages.entry(t.stage).or_default() += t.seconds);
    stages.into_iter().map(|(stage, seconds)| Timing { stage, seconds }).collect()
}

/// The report of a comparison, or of a model that was not compared. The quantized model has no file yet.
pub(super) fn report(
    float: ModelFile,
    data: DataReport,
    compared: Option<SideBySide>,
    quantized: &Model,
    asked: Limits,
    recipe: Option<&Recipe>,
    log: Log,
) -> Report {
    let (coverage, islands) = coverage::measure(quantized);
    let limits = asked.of(recipe);
    let (outputs, blocks, checks, disagreements) = match compared {
        Some(c) => {
            let mut checks = limits.check(&c.outputs);
            checks.extend((c.outputs.is_empty() && !c.empty.is_empty()).then(Check::of_no_elements));
            (c.outputs, c.blocks, checks, c.disagreements)
        }
        None => Default::default(),
    };
    Report {
        version: VERSION,
        tool: format!("fqvit-opt {}", env!("CARGO_PKG_VERSION")),
        float,
        quantized: ModelFile { name: String::new(), bytes: 0 },
        recipe: recipe.map_or(String::new(), |r| r.name.clone()),
        data,
        outputs,
        blocks,
        speed: None,
        judged: None,
        coverage,
        islands,
        parts: Vec::new(),
        channels: Vec::new(),
        closer: None,
        disagreements,
        decisions: IndexMap::new(),
        passes: Vec::new(),
        timings: by_stage(log.timings),
        checks,
        notes: IndexSet::<String>::from_iter(log.notes).into_iter().collect(),
    }
}

/// Adds what was decided, and in which part of the model each block is.
pub(super) fn tell_plan(report: &mut Report, p: &Prepared, plan: &QuantPlan) {
    // A plan that was given was made by a recipe of its own.
    report.recipe.clone_from(&plan.recipe);
    let parts = divide(&p.model.graph, &p.sites, plan, By::Part);
    for b in &mut report.blocks {
        let holds = |part: &&Part| part.activations.contains(&b.tensor) || part.attentions.contains(&b.tensor);
        b.part = parts.iter().find(holds).map_or(String::new(), |part| part.name.clone());
    }
    report.channels = channels(plan, &parts);
    if let Some(c) = &mut report.closer {
        let of = |tensor: &str| {
            let holds = |p: &&Part| p.activations.contains(tensor) || p.attentions.contains(tensor);
            parts.iter().find(holds).map_or(String::new(), |p| p.name.clone())
        };
        c.worst.iter_mut().for_each(|v| v.part = of(&v.tensor));
        c.attentions.iter_mut().for_each(|a| a.part = of(&a.tensor));
    }
    report.parts.clone_from(&plan.parts);
    let told = |i: &&Island| !report.islands.iter().any(|o| o.node == i.node && o.op == i.op);
    let (parts, more): (Vec<Island>, _) = plan.islands.iter().filter(told).cloned().partition(|i| i.op == Island::PART);
    // What was asked for explains the rest.
    report.islands.splice(0..0, parts);
    report.islands.extend(more);
    for x in &plan.activations {
        *report.decisions.entry(format!("{} {}", x.role.name(), x.params.kind())).or_default() += 1;
    }
    if !plan.sums.is_empty() {
        report.decisions.insert("branch sums".into(), plan.sums.len() as u64);
    }
    for f in &plan.folds {
        *report.decisions.entry(format!("{} folded", f.role.name())).or_default() += 1;
    }
    for e in plan.equalisations.iter().filter(|e| !e.factors.is_empty()) {
        *report.decisions.entry(format!("{} equalised", e.between.name())).or_default() += 1;
    }
}

/// Values that are shown at most.
const MOST_SHOWN: usize = 3;

/// The values with a scale for each channel whose channels differ most.
fn channels(plan: &QuantPlan, parts: &[Part]) -> Vec<Channels> {
    let of = |a: &Activation| {
        let p = &a.params;
        p.axis()?;
        let part = parts.iter().find(|part| part.activations.contains(&a.value));
        let reach: Vec<f32> = (0..p.channels()).map(|c| p.reach(c).0.abs().max(p.reach(c).1.abs())).collect();
        Some(Channels {
            tensor: a.value.clone(),
            part: part.map_or(String::new(), |part| part.name.clone()),
            reach,
            factors: p.factors().map_or(Vec::new(), |(_, f)| f.to_vec()),
        })
    };
    // Scores have a scale for each head, which is another story.
    let of_channels = plan.activations.iter().filter(|a| !matches!(a.role, Role::Scores | Role::Probs));
    let mut all: Vec<(f64, Channels)> = of_channels.filter_map(of).map(|c| (c.spread(), c)).collect();
    all.sort_by(|a, b| b.0.total_cmp(&a.0));
    all.into_iter().take(MOST_SHOWN).map(|(_, c)| c).collect()
}

/// What a pass says it does to the numbers.
fn declares(n: Numerics) -> String {
    match n {
        Numerics::BitExact => "bit-exact".to_owned(),
        Numerics::Close { rel } => format!("within {rel:e}"),
        Numerics::Quantizes => "quantizes".to_owned(),
        Numerics::Widens => "widens".to_owned(),
    }
}

/// The error that a pass broke its word.
pub(super) fn moved_too_far(m: &Moved) -> CompilerError {
    CompilerError::Moved {
        pass: m.pass.clone(),
        declares: declares(m.numerics),
        output: m.output.clone(),
        distance: m.distance,
    }
}

/// Holds every pass to what it declares, on the first sample.
pub(super) fn each_pass(data: &Dataset, log: &mut Log) -> Result<Vec<PassReport>, CompilerError> {
    let Log { timings, journal, .. } = log;
    let moved = timed(timings, "verify-each", || {
        Ok::<_, CompilerError>(verify_each(&journal.steps, &data.sample(0)?.inputs, data.batch())?)
    })?;
    if let Some(m) = moved.iter().find(|m| !m.kept) {
        return Err(moved_too_far(m));
    }
    let row = |m: &Moved| PassReport {
        pass: m.pass.clone(),
        changes: m.changes as u64,
        declares: declares(m.numerics),
        output: m.output.clone(),
        distance: m.distance.into(),
        sqnr_db: m.sqnr_db,
        total_db: m.total_db,
    };
    Ok(moved.iter().map(row).collect())
}
