//! The path of a model from file to file, step by step, as library calls.
//!
//! [`prepare`] brings a model into canonical form and finds what can be quantized; [`calibrate`](crate::calibrate) runs it over samples;
//! [`make_plan`] decides; [`apply`] carries the plan out. Each step returns a value that the next one takes, and every
//! value in between can be written to a file, edited and read again.

use crate::budget::{self, OverBudget};
use crate::calibrate::data::{DataError, DataOptions, InputSpec};
use crate::infer;
#[cfg(feature = "tract")]
use crate::ir::{AttrValue, Node, NodeId};
use crate::ir::{DType, Graph, Invalid, Model, ops, validate};
use crate::onnx::{self, names_in_bodies};
use crate::passes::pipelines::{self, Pipeline};
use crate::passes::raise_opset::{self, RaiseOpset};
use crate::passes::unfuse::Unfuse;
use crate::passes::{Context, Pass, PassError, Unmet};
use crate::pattern::RuleSet;
use crate::plan::fed::{continues, table_rows};
use crate::plan::planner::{self, PlanningError};
use crate::plan::recipe::QuantRecipe;
use crate::plan::sites::{self, Site, Sites};
use crate::plan::{Equalisation, Layer, PlanError, QuantPlan};
use crate::quant::Code;
use crate::quant::observe::Stats;
use crate::recipe::{Prepare, Recipe};
#[cfg(feature = "tract")]
use crate::rewrite::cut;
use crate::rewrite::{Tail, open_sizes, shorten_names};
#[cfg(feature = "tract")]
use crate::runtime::{lacks, misread};
use crate::text::{Elide, print_model};

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::Arc;

use indexmap::IndexMap;

#[cfg(feature = "tract")]
pub mod checked;
#[cfg(feature = "tract")]
pub mod closer;
#[cfg(feature = "tract")]
pub mod comparison;
#[cfg(feature = "tract")]
pub mod compiler;
pub mod difference;
#[cfg(feature = "tract")]
pub mod each;
#[cfg(feature = "tract")]
pub mod error;
#[cfg(feature = "tract")]
pub mod evaluation;
#[cfg(feature = "tract")]
mod faithful;
pub mod inspect;
mod journal;
#[cfg(feature = "tract")]
pub mod keep;
#[cfg(all(test, feature = "tract"))]
mod laws_tests;
#[cfg(feature = "tract")]
pub mod mixed;
#[cfg(feature = "tract")]
pub mod normalised;
#[cfg(feature = "tract")]
pub mod outline;
#[cfg(feature = "tract")]
pub mod reach;
#[cfg(feature = "tract")]
pub mod refine;
#[cfg(feature = "tract")]
pub mod reporting;
#[cfg(feature = "tract")]
mod rows;
#[cfg(feature = "tract")]
pub mod sensitivity;
#[cfg(feature = "tract")]
pub mod stages;
#[cfg(feature = "tract")]
pub mod tune;

pub use journal::{Journal, PassRun};

/// Why a model could not be compiled.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    #[error(transparent)]
    Pass(#[from] PassError),
    #[error(transparent)]
    Invalid(#[from] Invalid),
    #[error(transparent)]
    Illegal(#[from] infer::Illegal),
    #[error(transparent)]
    Memory(#[from] OverBudget),
    #[error(
        "node `{node}` ({op}): `{value}` has no elements ({sizes}), so there is nothing to quantize; export the model with \
         sizes of at least 1"
    )]
    Empty { node: String, op: String, value: String, sizes: String },
    #[error(transparent)]
    Planning(#[from] PlanningError),
    #[error(transparent)]
    Plan(#[from] PlanError),
    #[error(
        "neither an attention nor a layer with weights was found in this model, so recipe `{recipe}` has nothing to work \
         on; `fqvit-opt inspect` shows what was recognised and `fqvit-opt explain` how close the rules came"
    )]
    NoAttention { recipe: String },
    #[error(
        "all that computes here ({count} operators) is in the bodies of {op} nodes (the first is `{node}`), and bodies stay as \
         they are: export the parts as models of their own (for a decoder, without a cache and with one)"
    )]
    InBodies { count: usize, node: String, op: String },
    #[error(
        "nothing is left to quantize in front of operators that cannot be run here: {nodes}; cut the model after them and give \
         the rest"
    )]
    Unrunnable { nodes: String },
    #[error(transparent)]
    Inline(#[from] onnx::InlineError),
    #[error(transparent)]
    Sparse(#[from] onnx::SparseError),
    #[error("{source}")]
    Unmet {
        /// The pipeline that requires it.
        pipeline: &'static str,
        source: Unmet,
    },
    #[error(
        "{source}, although pipeline {pipeline} ensures otherwise; this is a fault in the program: please report it"
    )]
    Broken { pipeline: &'static str, source: Unmet },
    #[error(
        "weight `{weight}` of node `{node}` ({op}) holds {what} at element {at}; such a model cannot be quantized: export \
         or train it again"
    )]
    Weight { weight: String, node: String, op: String, what: &'static str, at: usize },
    #[error(
        "{who} stores weights as {code}, which begins with opset {needs}, and this model has opset {has}{kept}; let it be \
         raised, or take codes in int8 (recipe `w4a8`, `code: i4in8`)"
    )]
    Codes { who: String, code: DType, needs: i64, has: i64, kept: &'static str },
    #[error(
        "recipe `{recipe}` needs a scale per channel, which begins with opset {needs}, and this model has opset {has}{why}"
    )]
    Old { recipe: String, needs: i64, has: i64, why: String },
    #[error(
        "all that could be quantized here ({count} operators, the first is `{node}`, {op}) computes in float64, and codes stand \
         for float32: convert the model to float32 (in PyTorch `model.float()`), and export it again"
    )]
    Wide { count: usize, node: String, op: String },
}

/// A model in canonical form, with what was recognised in it.
#[derive(Clone, Debug, Default)]
pub struct Prepared {
    pub model: Model,
    pub sites: Sites,
    /// Fingerprint of the canonical model: statistics and plans carry it.
    pub fingerprint: String,
    /// What follows operators that cannot be run here, and was cut off: it is put back after the quantized rest as it is,
    /// the last first.
    pub tails: Vec<Tail>,
    /// Names of values and nodes of the model as it was read: the quantized model leaves them as they are, and names what
    /// else it holds in short.
    pub names: Arc<BTreeSet<String>>,
}

/// Runs one pass and checks that what it changed is valid.
fn run(pass: &dyn Pass, cx: &mut Context<'_>, journal: &mut Journal) -> Result<(), CompileError> {
    budget::step(format_args!("pass {}", pass.id()));
    cx.settle_types();
    let before = journal.keep_models.then(|| cx.model().clone());
    let (was, then, opsets) = (cx.revision(), cx.graph.moment(), (cx.ir_version, cx.opsets.clone()));
    let out = pass.run(cx)?;
    journal.notes.extend(out.notes.into_iter().map(|n| format!("{}: {n}", pass.id())));
    journal.steps.push(PassRun {
        pass: pass.id().to_owned(),
        changes: out.changes,
        numerics: pass.numerics(),
        models: before.map(|b| [b, cx.model().clone()]),
    });
    if cx.revision() != was {
        if opsets == (cx.ir_version, cx.opsets.clone()) {
            validate::validate_since(cx, then)?;
        } else {
            validate::validate(cx)?;
        }
    }
    Ok(())
}

/// Runs the passes of a pipeline, if what it requires holds, and checks that what it ensures does.
///
/// # Errors
/// If a requirement is not met, or a pass fails.
pub fn follow(pipeline: &Pipeline, cx: &mut Context<'_>, journal: &mut Journal) -> Result<(), CompileError> {
    required(pipeline, cx)?;
    let was = cx.revision();
    for pass in pipeline.passes {
        run(*pass, cx, journal)?;
    }
    // After each pass what it changed was checked, now all of it.
    if cx.revision() != was {
        validate::validate(cx)?;
    }
    let broken = |source| CompileError::Broken { pipeline: pipeline.name, source };
    pipeline.ensures.iter().try_for_each(|r| r.check(cx)).map_err(broken)
}

fn required(pipeline: &Pipeline, cx: &Context<'_>) -> Result<(), CompileError> {
    let unmet = |source| CompileError::Unmet { pipeline: pipeline.name, source };
    pipeline.requires.iter().try_for_each(|r| r.check(cx)).map_err(unmet)
}

/// The model with its functions and the operators that onnxruntime fused written out, its sparse weights dense, and how many
/// of these there were: what every other step takes.
///
/// # Errors
/// If a function cannot be written out, or a sparse weight is malformed; if a node breaks a rule of its operator, or a value
/// has more elements than memory holds, or none where a layer needs some.
pub fn unpacked(model: &Model) -> Result<(Model, usize), CompileError> {
    validate::validate_opsets(model)?;
    budget::step("writing functions out");
    let (mut m, sparse) = onnx::dense_weights(&onnx::inline_functions(model)?)?;
    open_sizes(&mut m);
    Unfuse.run_on(&mut m)?;
    validate::validate(&m)?;
    if m.opset() < raise_opset::ALIKE {
        RaiseOpset::To(raise_opset::ALIKE).run_on(&mut m)?;
    }
    budget::step("checking sizes");
    infer::legal(&m)?;
    infer::affordable(&m)?;
    nonempty(&m)?;
    Ok((m, sparse))
}

/// Refuses layers that read or make a value without elements.
fn nonempty(m: &Model) -> Result<(), CompileError> {
    const LAYERS: [&str; 10] = [
        "MatMul",
        "Gemm",
        "Conv",
        "ConvTranspose",
        "Einsum",
        "Attention",
        "Softmax",
        "LayerNormalization",
        "ReduceMean",
        "ReduceMax",
    ];
    let (g, map) = (&m.graph, infer::shapes(m));
    for (_, n) in g.nodes().filter(|(_, n)| n.op.is_onnx() && LAYERS.contains(&n.op.name.as_str())) {
        let empty = |v: &&crate::ir::ValueId| map.dims(**v).is_some_and(|d| d.iter().any(|s| s.known() == Some(0)));
        // Lists that Reduce operators take may be empty.
        let read = n.inputs.iter().flatten().take(if n.op.name.starts_with("Reduce") { 1 } else { usize::MAX });
        if let Some(v) = read.chain(n.outputs.iter().flatten()).find(empty) {
            let sizes = map.ty(*v).map_or(String::new(), |t| crate::ir::show::type_text(&t));
            let (node, value) = (g.label(n), g.name_of(*v).to_owned());
            return Err(CompileError::Empty { node, op: n.op.to_string(), value, sizes });
        }
    }
    Ok(())
}

/// What a data set must hold to feed the model.
///
/// # Errors
/// If an input has a type that no data can be made for, or no shape.
pub fn inputs(g: &Graph) -> Result<Vec<InputSpec>, DataError> {
    inputs_given(g, &DataOptions::default())
}

/// As [`inputs`], with the shapes that the options give to inputs that have none.
///
/// # Errors
/// As [`inputs`].
pub fn inputs_given(g: &Graph, options: &DataOptions) -> Result<Vec<InputSpec>, DataError> {
    let masks = sites::mask_inputs(g);
    let told = |s: InputSpec| {
        let v = g.find(&s.name);
        let mask = v.is_some_and(|v| masks.contains(&v));
        InputSpec { mask, rows: v.and_then(|v| table_rows(g, v)), cache: v.is_some_and(|v| continues(g, v)), ..s }
    };
    Ok(InputSpec::of_given(g, &options.said_shapes()?)?.into_iter().map(told).collect())
}

/// A model as the rules take it: unpacked, and through the pipeline `plain`.
///
/// `keep_opset` forbids raising the operator set; LayerNorm and GELU that it lacks then stay decomposed.
///
/// # Errors
/// If a pass fails; if the model is quantized already, has malformed sparse weights, or functions or half precision in a
/// form that is not taken apart here.
pub fn plain<'r>(
    model: &Model,
    how: &Prepare,
    rules: &'r RuleSet,
    keep_opset: bool,
    journal: &mut Journal,
) -> Result<Context<'r>, CompileError> {
    required(&pipelines::PLAIN, &Context::new(model.clone()))?;
    let (m, sparse) = unpacked(model)?;
    if sparse > 0 {
        journal.notes.push(format!("{sparse} sparse weights are dense now"));
    }
    let mut cx = Context::new(m).with_rules(rules);
    if !keep_opset {
        cx = cx.with_opset(how.opset);
    }
    follow(&pipelines::PLAIN, &mut cx, journal)?;
    Ok(cx)
}

/// Canonical form: constants folded, LayerNorm and GELU as one node each, attention with its scale after the product.
///
/// # Errors
/// Those of [`plain`], and if a weight holds NaN or infinity: no statistics could mend that.
pub fn prepare(
    model: &Model,
    how: &Prepare,
    rules: &RuleSet,
    keep_opset: bool,
    journal: &mut Journal,
) -> Result<Prepared, CompileError> {
    let mut cx = plain(model, how, rules, keep_opset, journal)?;
    follow(&pipelines::CANONICAL, &mut cx, journal)?;
    cx.settle_types();
    let (m, tail) = runnable(cx.model().clone(), journal)?;
    cx.cut_to(m);
    infer::legal(&cx)?;
    let sites = cx.found_sites();
    finite(&cx.graph, &sites)?;
    let fingerprint = fingerprint(&cx);
    let g = &model.graph;
    let names = g.values().map(|(_, v)| v.name.clone()).chain(g.nodes().map(|(_, n)| n.name.clone())).collect();
    let tails = tail.into_iter().collect();
    Ok(Prepared { model: cx.into_model(), sites, fingerprint, tails, names: Arc::new(names) })
}

/// The model up to the first operators that cannot be run here, and the rest, if there are any.
///
/// # Errors
/// If nothing is left in front of them.
#[cfg(feature = "tract")]
pub fn runnable(m: Model, journal: &mut Journal) -> Result<(Model, Option<Tail>), CompileError> {
    use crate::onnx::open_body;
    let g = &m.graph;
    // Of a node and all that it holds.
    fn names(n: &Node, found: &mut BTreeSet<String>) -> bool {
        let own = n.op.is_onnx();
        found.insert(n.op.name.clone());
        let bodies = n.attrs.0.iter().filter(|a| matches!(a.value, AttrValue::Graph(_)));
        bodies
            .filter_map(|a| open_body(n, &a.name).ok())
            .fold(own, |own, (body, _)| body.nodes().fold(own, |own, (_, n)| names(n, found) && own))
    }
    let held: Vec<(NodeId, BTreeSet<String>, bool)> = g
        .nodes()
        .map(|(id, n)| {
            let mut found = BTreeSet::new();
            let own = names(n, &mut found);
            (id, found, own)
        })
        .collect();
    let lacking = lacks(held.iter().flat_map(|(_, names, _)| names).map(String::as_str));
    let lacking: BTreeSet<&str> = lacking.into_iter().collect();
    let stops = |(id, names, own): &&(NodeId, BTreeSet<String>, bool)| {
        !own || names.iter().any(|n| lacking.contains(n.as_str())) || misread(g, g.node(*id)).is_some()
    };
    let first: BTreeSet<NodeId> = held.iter().filter(stops).map(|h| h.0).collect();
    if first.is_empty() {
        return Ok((m, None));
    }
    let told: Vec<String> = first.iter().map(|id| format!("{} `{}`", g.node(*id).op, g.label(g.node(*id)))).collect();
    let Some((front, tail)) = cut(&m, &first) else { return Err(CompileError::Unrunnable { nodes: told.join(", ") }) };
    let few = told.iter().take(3).cloned().collect::<Vec<_>>().join(", ");
    journal.notes.push(format!(
        "{} operator{} cannot be run here ({few}{}): the model is quantized and measured up to {}; {} operators after them stay as they are",
        told.len(),
        if told.len() == 1 { "" } else { "s" },
        if told.len() > 3 { ", .." } else { "" },
        if tail.cut.is_empty() { "its other outputs".to_owned() } else { tail.cut.iter().map(|v| format!("`{v}`")).collect::<Vec<_>>().join(", ") },
        tail.nodes().count()
    ));
    Ok((front, Some(tail)))
}

#[cfg(not(feature = "tract"))]
fn runnable(m: Model, _: &mut Journal) -> Result<(Model, Option<Tail>), CompileError> {
    Ok((m, None))
}

/// Sixteen hexadecimal digits of a hash over the model's text and, apart, the bytes of its weights where they lie: encoding
/// the model would copy them.
fn fingerprint(m: &Model) -> String {
    let mut h = blake3::Hasher::new();
    h.update(print_model(m, Elide::default()).as_bytes());
    for v in m.graph.initializers() {
        h.update(m.graph.name_of(*v).as_bytes());
        if let Some(bytes) = m.graph.try_init(*v).and_then(|t| t.to_le_bytes()) {
            h.update(&bytes);
        }
    }
    h.finalize().to_hex()[..16].to_owned()
}

/// Refuses constants that would make every result NaN: NaN or infinity in weights, biases and norms, NaN in constants of
/// elementwise operators (an infinity there may be a bound or a mask).
fn finite(g: &Graph, sites: &Sites) -> Result<(), CompileError> {
    let linear =
        sites.linears.iter().flat_map(|l| [Some((l.node, l.weight)), l.bias.as_ref().map(|b| (l.node, b.value))]);
    let norm = sites.norms.iter().flat_map(|n| g.node(*n).inputs.iter().skip(1).map(|v| v.map(|v| (*n, v))));
    let strict = linear.chain(norm).flatten().map(|(n, v)| (n, v, true));
    let loose = sites.constants.iter().filter_map(|(n, slot)| Some((*n, g.node(*n).input(*slot)?, false)));
    for (n, v, strict) in strict.chain(loose) {
        let data = g.constant(v).and_then(|t| t.to_f32s()).unwrap_or_default();
        if let Some(at) = data.iter().position(|x| x.is_nan() || (strict && x.is_infinite())) {
            let n = g.node(n);
            return Err(CompileError::Weight {
                weight: g.name_of(v).to_owned(),
                node: g.label(n),
                op: n.op.to_string(),
                what: if data[at].is_nan() { "NaN" } else { "infinity" },
                at,
            });
        }
    }
    Ok(())
}

/// Refuses codes that the model's operator set has no type for.
fn has_codes(
    m: &Model,
    codes: impl IntoIterator<Item = Code>,
    who: &str,
    kept: &'static str,
) -> Result<(), CompileError> {
    let fits = |s: &ops::OpSchema, t| s.input(0).is_some_and(|p| p.allows(t));
    let has = m.opset();
    let now = ops::schema("DequantizeLinear", has);
    for t in codes.into_iter().map(Code::dtype) {
        if !now.is_some_and(|s| fits(s, t)) {
            let all = ops::versions("DequantizeLinear").unwrap_or_default();
            let needs = all.iter().find(|s| fits(s, t)).map_or(i64::MAX, |s| s.since);
            return Err(CompileError::Codes { who: who.to_owned(), code: t, needs, has, kept });
        }
    }
    Ok(())
}

/// The first operator set in which each channel of a weight has a scale.
const PER_CHANNEL: i64 = 13;

/// Refuses a recipe whose codes the prepared model cannot hold, before anything is run. `keep_opset`: whether the model
/// was to keep its operator set.
///
/// # Errors
/// [`CompileError::Codes`], and if the recipe has nothing for a role that values of the model have.
pub fn suits(p: &Prepared, recipe: &Recipe, keep_opset: bool) -> Result<(), CompileError> {
    let nothing_for = |q: &QuantRecipe, s: &Site| !q.keep_float.contains(&s.role) && q.candidates(s.role).is_empty();
    let whole = recipe.quantize.as_ref().filter(|q| !q.linear_only);
    if let Some(s) = whole.and_then(|q| p.sites.sites.values().find(|s| nothing_for(q, s))) {
        let value = p.model.graph.name_of(s.value).to_owned();
        return Err(PlanningError::NoCandidate { role: s.role.name(), value }.into());
    }
    let has = p.model.opset();
    if recipe.quantize.is_some() && has < PER_CHANNEL && !p.sites.sites.is_empty() {
        let why = match raise_opset::obstacles(&p.model, PER_CHANNEL) {
            _ if keep_opset => ", which it is to keep; leave --keep-opset out".to_owned(),
            bad => format!(", beyond which it cannot be raised: {}; export it with a newer opset", bad.join("; ")),
        };
        return Err(CompileError::Old { recipe: recipe.name.clone(), needs: PER_CHANNEL, has, why });
    }
    let codes = recipe.quantize.iter().flat_map(|q| [Some(q.weights.code), q.weights.ends]).flatten();
    let kept = if keep_opset { ", which it is to keep" } else { ", beyond which it cannot be raised" };
    has_codes(&p.model, codes, &format!("recipe `{}`", recipe.name), kept)
}

/// Decides, from statistics.
///
/// # Errors
/// If the recipe quantizes nothing, or statistics of a value that it names are missing or cannot be used.
pub fn make_plan(p: &Prepared, stats: &IndexMap<String, Stats>, recipe: &Recipe) -> Result<QuantPlan, CompileError> {
    Ok(make_plans(p, stats, recipe, None)?.0)
}

/// As [`make_plan`]; also returns the entries of the layers that the weight settings of `other` would give, with everything
/// else unchanged.
///
/// # Errors
/// As [`make_plan`].
pub fn make_plans(
    p: &Prepared,
    stats: &IndexMap<String, Stats>,
    recipe: &Recipe,
    other: Option<&Recipe>,
) -> Result<(QuantPlan, Vec<Layer>), CompileError> {
    let Some(q) = &recipe.quantize else {
        return Err(
            PlanError::Read { path: recipe.name.clone(), message: "the recipe quantizes nothing".into() }.into()
        );
    };
    let g = &p.model.graph;
    // Everything else is decided for the equalised model.
    let equalisations = planner::equalise::decide(g, &p.sites, stats, q)?;
    let stats = planner::equalise::divided(g, &p.sites, stats, &equalisations);
    let e = equalised(p, &equalisations, &mut Journal::default())?;
    let plan = planner::plan(&e.model, &e.sites, &stats, q, &recipe.name, &p.fingerprint)?;
    let other = other.and_then(|r| r.quantize.as_ref());
    let layers = other.map_or(Vec::new(), |q| planner::layers(&e.model.graph, &e.sites, &stats, q, &plan));
    Ok((QuantPlan { equalisations, ..plan }, layers))
}

/// The model with the plan's equalisations carried out, which is the same function of its inputs: its values are the ones
/// that the rest of the plan is about.
fn equalised<'p>(
    p: &'p Prepared,
    equalisations: &[Equalisation],
    journal: &mut Journal,
) -> Result<Cow<'p, Prepared>, CompileError> {
    if equalisations.is_empty() {
        return Ok(Cow::Borrowed(p));
    }
    let mut cx = Context::new(p.model.clone()).with_equalisations(equalisations, &p.sites);
    follow(&pipelines::EQUALISED, &mut cx, journal)?;
    let sites = cx.sites().cloned().unwrap_or_default();
    Ok(Cow::Owned(Prepared {
        model: cx.into_model(),
        sites,
        names: p.names.clone(),
        fingerprint: p.fingerprint.clone(),
        tails: p.tails.clone(),
    }))
}

/// Carries a plan out, and puts what was cut off after.
///
/// # Errors
/// As [`apply_in_front`] and [`whole`].
pub fn apply(p: &Prepared, plan: &QuantPlan, journal: &mut Journal) -> Result<Model, CompileError> {
    whole(p, apply_in_front(p, plan, journal)?)
}

/// The quantized model with what was cut off after it, under the names it is written with.
///
/// # Errors
/// If the quantized model lacks a value that what was cut off reads, or the two together are no valid model.
pub fn whole(p: &Prepared, front: Model) -> Result<Model, CompileError> {
    let mut m = front;
    for tail in p.tails.iter().rev() {
        m = tail.join(&m).map_err(|message| PassError::Failed { pass: "cut".into(), message })?;
        validate::validate(&m)?;
    }
    let inside = names_in_bodies(&m);
    shorten_names(&mut m, &p.names, inside);
    Ok(m)
}

/// Carries a plan out on what can be run here, which is all of the model but for its [`Prepared::tails`].
///
/// # Errors
/// If the plan is for another model, contradicts itself, asks for codes that the operator set lacks, or a pass cannot carry it out.
pub fn apply_in_front(p: &Prepared, plan: &QuantPlan, journal: &mut Journal) -> Result<Model, CompileError> {
    if plan.model != p.fingerprint {
        return Err(
            PlanError::Model { path: "plan".into(), plan: plan.model.clone(), model: p.fingerprint.clone() }.into()
        );
    }
    plan.check()?;
    plan.fits(&p.model.graph)?;
    has_codes(&p.model, plan.layers.iter().map(|l| l.weight), "the plan", "")?;
    let mut cx = Context::new(p.model.clone()).with_plan(plan, &p.sites);
    for pipeline in [&pipelines::EQUALISED, &pipelines::QUANTIZED, pipelines::lowering(plan.target)] {
        follow(pipeline, &mut cx, journal)?;
    }
    infer::legal(&cx)?;
    Ok(cx.into_model())
}
