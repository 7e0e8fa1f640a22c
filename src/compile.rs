//! The road a model travels, step by step, as library calls.
//!
//! [`prepare`] brings a model into canonical form and finds what can be quantized; [`calibrate`] runs it over samples;
//! [`make_plan`] decides; [`apply`] carries the plan out. Each step returns a value that the next one takes, and every
//! value in between can be written to a file, edited and read again.

use crate::budget::{self, OverBudget};
use crate::calibrate::data::{DataError, InputSpec};
use crate::infer;
#[cfg(feature = "tract")]
use crate::ir::{AttrValue, Node, NodeId};
use crate::ir::{DType, Graph, Invalid, Model, Op, ops, validate};
use crate::onnx;
use crate::passes::batch_norm_layers::BatchNormLayers;
use crate::passes::batch_norm_rows::BatchNormRows;
use crate::passes::clean_up::CleanUp;
use crate::passes::cse::Cse;
use crate::passes::decompose_attention::DecomposeAttention;
use crate::passes::einsum::EinsumAsProduct;
use crate::passes::fix_defaults::FixDefaults;
use crate::passes::flat_layers::FlatLayers;
use crate::passes::fold_close::FoldClose;
use crate::passes::gain_into_layer::GainIntoLayer;
use crate::passes::heads_apart::HeadsApart;
use crate::passes::keys_by_queries::KeysByQueries;
use crate::passes::norm_channels_last::NormChannelsLast;
use crate::passes::patch_sums::PatchSums;
use crate::passes::plain_scores::PlainScores;
use crate::passes::pool_mean::PoolMean;
use crate::passes::quantize::activations::QuantizeActivations;
use crate::passes::quantize::attention::QuantizeAttention;
use crate::passes::quantize::equalise::Equalise;
use crate::passes::quantize::fold::FoldFactors;
use crate::passes::quantize::integer_norm::IntegerNorm;
use crate::passes::quantize::lower::codes_first::CodesFirst;
use crate::passes::quantize::lower::layers::LayersWhole;
use crate::passes::quantize::lower::patches::PatchesAsRows;
use crate::passes::quantize::lower::per_channel::PerChannel;
use crate::passes::quantize::lower::products::IntegerProducts;
use crate::passes::quantize::lower::rows::Rows;
use crate::passes::quantize::lower::siblings::Siblings;
use crate::passes::quantize::lower::sums::IntegerSums;
use crate::passes::quantize::lower::wide_codes::WideCodes;
use crate::passes::quantize::weights::QuantizeWeights;
use crate::passes::raise_opset::RaiseOpset;
use crate::passes::rules::{ApplyRules, opset_wanted};
use crate::passes::scale_after_product::ScaleAfterProduct;
use crate::passes::select::SelectByArithmetic;
use crate::passes::sequences::Sequences;
use crate::passes::softmax_last::SoftmaxLast;
use crate::passes::softmax_repeated::SoftmaxRepeated;
use crate::passes::split_projection::SplitProjection;
use crate::passes::stack_sums::StackSums;
use crate::passes::unfuse::Unfuse;
use crate::passes::unit_gain::UnitGain;
use crate::passes::unit_sums::UnitSums;
use crate::passes::vectors::Vectors;
use crate::passes::whole_update::WholeUpdate;
use crate::passes::widen_floats::widen_floats;
use crate::passes::{Numerics, Pass, PassError};
use crate::pattern::{RuleSet, attentions};
use crate::plan::fed::{continues, table_rows};
use crate::plan::planner::{self, PlanningError};
use crate::plan::sites::{self, Sites};
use crate::plan::{Equalisation, PlanError, QuantPlan, Target};
use crate::quant::Code;
use crate::quant::observe::Stats;
use crate::recipe::{Prepare, Recipe};
#[cfg(feature = "tract")]
use crate::rewrite::cut;
use crate::rewrite::{Tail, WidenError, narrow_floats, open_sizes, sweep};
#[cfg(feature = "tract")]
use crate::runtime::lacks;
use crate::text::{Elide, print_model};

use std::borrow::Cow;
#[cfg(feature = "tract")]
use std::collections::BTreeSet;

use indexmap::IndexMap;

#[cfg(feature = "tract")]
pub mod each;
#[cfg(feature = "tract")]
pub mod reach;
#[cfg(feature = "tract")]
pub mod refine;
#[cfg(feature = "tract")]
pub mod sensitivity;

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
        "nothing is left to quantize in front of operators that can not be run here: {nodes}; cut the model behind them and give \
         the rest"
    )]
    Unrunnable { nodes: String },
    #[error(
        "node `{node}` is a {op}: onnxruntime saved this model for one kind of processor (ORT_ENABLE_ALL); give the model it \
         was made from, or save it at ORT_ENABLE_EXTENDED"
    )]
    OneProcessor { node: String, op: String },
    #[error(transparent)]
    Inline(#[from] onnx::InlineError),
    #[error(transparent)]
    Widen(#[from] WidenError),
    #[error(transparent)]
    Sparse(#[from] onnx::SparseError),
    #[error(
        "the model's operator set is {found}; this program knows them up to {newest}: export the model at an older one"
    )]
    Opset { found: i64, newest: i64 },
    #[error(
        "weight `{weight}` of node `{node}` ({op}) holds {what} at element {at}; such a model can not be quantized: export \
         or train it again"
    )]
    Weight { weight: String, node: String, op: String, what: &'static str, at: usize },
    #[error("the model has no output, so nothing of it can be compiled or measured; export it again")]
    NoOutput,
    #[error(
        "{who} stores weights as {code}, which begins with opset {needs}, and this model has opset {has}{kept}; let it be \
         raised, or take codes in int8 (recipe `w4a8`, `code: i4in8`)"
    )]
    Codes { who: String, code: DType, needs: i64, has: i64, kept: &'static str },
    #[error("the model is quantized already (node `{node}` is a {op}); give the float model it was made from")]
    Quantized { node: String, op: String },
}

/// A model in canonical form, with what was recognised in it.
#[derive(Clone, Debug)]
pub struct Prepared {
    pub model: Model,
    pub sites: Sites,
    /// Fingerprint of the canonical model: statistics and plans carry it.
    pub fingerprint: String,
    /// What follows operators that can not be run here, and was cut off: it is put back behind the quantized rest as it is,
    /// the last first.
    pub tails: Vec<Tail>,
}

/// What the passes did, in the order they ran.
#[derive(Clone, Debug, Default)]
pub struct Journal {
    pub steps: Vec<Step>,
    /// What the passes want to tell the user.
    pub notes: Vec<String>,
    keep_models: bool,
    /// The model was changed since the last step, by something that is no pass.
    fresh: bool,
}

/// One pass that ran.
#[derive(Clone, Debug)]
pub struct Step {
    pub pass: String,
    pub changes: usize,
    /// What the pass says it does to the numbers.
    pub numerics: Numerics,
    /// The pass did not find the model as the step before left it: what was computed there can not be compared.
    pub fresh: bool,
    /// The model as the pass found and left it, in a journal that keeps models.
    pub models: Option<[Model; 2]>,
}

impl Journal {
    /// A journal that keeps the model before and after each pass, for [`each::verify_each`]. Weights that no pass
    /// replaced are shared, not copied.
    pub fn keeping_models() -> Journal {
        Journal { keep_models: true, ..Journal::default() }
    }
}

/// Runs one pass and checks that it left a valid model behind.
fn run(pass: &dyn Pass, m: &mut Model, journal: &mut Journal) -> Result<(), CompileError> {
    let before = journal.keep_models.then(|| m.clone());
    budget::step(format_args!("pass {}", pass.id()));
    let out = pass.run(m)?;
    journal.notes.extend(out.notes.into_iter().map(|n| format!("{}: {n}", pass.id())));
    journal.steps.push(Step {
        pass: pass.id().to_owned(),
        changes: out.changes,
        numerics: pass.numerics(),
        fresh: std::mem::take(&mut journal.fresh),
        models: before.map(|b| [b, m.clone()]),
    });
    validate::validate(m)?;
    Ok(())
}

/// What brings a model into the form that rules are written for.
pub const BEFORE_RULES: [&dyn Pass; 22] = [
    &CleanUp,
    &Sequences,
    &DecomposeAttention,
    &EinsumAsProduct,
    &PatchSums,
    &BatchNormRows,
    &PoolMean,
    &Vectors,
    &SelectByArithmetic,
    &KeysByQueries,
    &FlatLayers,
    &WholeUpdate,
    &BatchNormLayers,
    &StackSums,
    &CleanUp,
    &HeadsApart,
    &SoftmaxLast,
    &SoftmaxRepeated,
    &PlainScores,
    &UnitGain,
    &FoldClose,
    &UnitSums,
];

/// Of these, what lets the executor run a model as its exporter wrote it.
pub const BEFORE_A_RUN: [&dyn Pass; 4] = [&CleanUp, &Sequences, &PatchSums, &BatchNormRows];

/// The model with its functions and the operators that onnxruntime fused written out, its sparse weights dense, and how many
/// of these there were: what every other step takes.
///
/// # Errors
/// If a function can not be written out, or a sparse weight is malformed; if a node breaks a rule of its operator, or a value
/// has more elements than memory holds, or none where a layer needs some.
pub fn unpacked(model: &Model) -> Result<(Model, usize), CompileError> {
    budget::step("writing functions out");
    let (mut m, sparse) = onnx::dense_weights(&onnx::inline_functions(model)?)?;
    open_sizes(&mut m);
    Unfuse.run(&mut m)?;
    validate::validate(&m)?;
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
            let name = if n.name.is_empty() { n.out().map_or("", |v| g.name_of(v)) } else { &n.name };
            let (node, value) = (name.to_owned(), g.name_of(*v).to_owned());
            return Err(CompileError::Empty { node, op: n.op.to_string(), value, sizes });
        }
    }
    Ok(())
}

/// What a data set must hold to feed the model.
///
/// # Errors
/// If an input has a type that no data can be made for.
pub fn inputs(g: &Graph) -> Result<Vec<InputSpec>, DataError> {
    let masks = sites::mask_inputs(g);
    let told = |s: InputSpec| {
        let v = g.find(&s.name);
        let mask = v.is_some_and(|v| masks.contains(&v));
        InputSpec { mask, rows: v.and_then(|v| table_rows(g, v)), cache: v.is_some_and(|v| continues(g, v)), ..s }
    };
    Ok(InputSpec::of(g)?.into_iter().map(told).collect())
}

/// Canonical form: constants folded, LayerNorm and GELU as one node each, attention with its scale behind the product.
///
/// `keep_opset` forbids raising the operator set; LayerNorm and GELU that it lacks then stay decomposed.
///
/// # Errors
/// If a pass fails, or a weight holds NaN or infinity: no statistics could mend that; if the model is quantized already,
/// has malformed sparse weights, or functions or half precision in a form that is not taken apart here.
pub fn prepare(
    model: &Model,
    how: &Prepare,
    rules: &RuleSet,
    keep_opset: bool,
    journal: &mut Journal,
) -> Result<Prepared, CompileError> {
    if let Some((_, n)) = model.graph.nodes().find(|(_, n)| is_quantized(&n.op)) {
        return Err(CompileError::Quantized { node: model.graph.label(n), op: n.op.to_string() });
    }
    if let Some((_, n)) = model.graph.nodes().find(|(_, n)| n.op.domain == "com.microsoft.nchwc") {
        return Err(CompileError::OneProcessor { node: model.graph.label(n), op: n.op.to_string() });
    }
    if model.graph.outputs().is_empty() {
        return Err(CompileError::NoOutput);
    }
    let (found, newest) = (model.opset(), ops::newest_opset());
    if found > newest {
        return Err(CompileError::Opset { found, newest });
    }
    let (mut m, sparse) = unpacked(model)?;
    if sparse > 0 {
        journal.notes.push(format!("{sparse} sparse weights are dense now"));
    }
    validate::validate(&m)?;
    run(&FixDefaults, &mut m, journal)?;
    // A constant that was narrow once still stands for what it did.
    let of_narrow = narrow_floats(&m).map(|t| rules.for_constants_once(t));
    if of_narrow.is_some() {
        infer::annotate(&mut m);
        let weights = widen_floats(&mut m)?;
        journal.fresh = true;
        journal.notes.push(format!(
            "the model computes in half precision; {weights} weights and all it computes are float32 now"
        ));
        validate::validate(&m)?;
    }
    let rules = of_narrow.as_ref().unwrap_or(rules);
    for pass in BEFORE_RULES {
        run(pass, &mut m, journal)?;
    }
    run(&NormChannelsLast { rules }, &mut m, journal)?;
    if !keep_opset {
        raise(&mut m, how.opset, rules, journal)?;
    }
    infer::annotate(&mut m);
    run(&ApplyRules::new(rules), &mut m, journal)?;
    infer::annotate(&mut m);
    run(&ScaleAfterProduct { rules }, &mut m, journal)?;
    run(&SplitProjection, &mut m, journal)?;
    run(&GainIntoLayer, &mut m, journal)?;
    run(&CleanUp, &mut m, journal)?;
    infer::annotate(&mut m);
    let (m, tail) = runnable(m, journal)?;
    let sites = sites::find(&m, attentions(&m, rules));
    finite(&m.graph, &sites)?;
    let fingerprint = fingerprint(&m);
    Ok(Prepared { model: m, sites, fingerprint, tails: tail.into_iter().collect() })
}

/// The model up to the first operators that can not be run here, and the rest, if there are any.
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
    let stops = |(_, names, own): &&(NodeId, BTreeSet<String>, bool)| {
        !own || names.iter().any(|n| lacking.contains(n.as_str()))
    };
    let first: BTreeSet<NodeId> = held.iter().filter(stops).map(|h| h.0).collect();
    if first.is_empty() {
        return Ok((m, None));
    }
    let told: Vec<String> = first.iter().map(|id| format!("{} `{}`", g.node(*id).op, g.label(g.node(*id)))).collect();
    let Some((front, tail)) = cut(&m, &first) else { return Err(CompileError::Unrunnable { nodes: told.join(", ") }) };
    let few = told.iter().take(3).cloned().collect::<Vec<_>>().join(", ");
    journal.notes.push(format!(
        "{} operator{} can not be run here ({few}{}): the model is quantized and measured up to {}; {} operators behind stay as they are",
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

/// True for operators of a model that was quantized before.
fn is_quantized(op: &Op) -> bool {
    const MARKS: [&str; 5] =
        ["QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "ConvInteger"];
    op.name.starts_with("QLinear") || op.name.starts_with("QAttention") || MARKS.contains(&op.name.as_str())
}

/// Raises the operator set as far as the rules wish, or else as far as the recipe asks. What can not be raised keeps its
/// set, with a note.
fn raise(m: &mut Model, least: i64, rules: &RuleSet, journal: &mut Journal) -> Result<(), CompileError> {
    let wanted = opset_wanted(m, rules).unwrap_or(0).max(least);
    for to in [wanted, least] {
        if to <= m.opset() {
            break;
        }
        match run(&RaiseOpset { to }, m, journal) {
            Ok(()) => break,
            Err(CompileError::Pass(PassError::Failed { message, .. })) => journal.notes.push(message),
            Err(e) => return Err(e),
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

/// Refuses a recipe whose codes the prepared model can not hold, before anything is run. `keep_opset`: whether the model
/// was to keep its operator set.
///
/// # Errors
/// [`CompileError::Codes`].
pub fn suits(p: &Prepared, recipe: &Recipe, keep_opset: bool) -> Result<(), CompileError> {
    let codes = recipe.quantize.iter().flat_map(|q| [Some(q.weights.code), q.weights.ends]).flatten();
    let kept = if keep_opset { ", which it is to keep" } else { ", beyond which it can not be raised" };
    has_codes(&p.model, codes, &format!("recipe `{}`", recipe.name), kept)
}

/// Decides, from statistics.
pub fn make_plan(p: &Prepared, stats: &IndexMap<String, Stats>, recipe: &Recipe) -> Result<QuantPlan, CompileError> {
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
    Ok(QuantPlan { equalisations, ..plan })
}

/// The model with the plan's equalisations carried out, which is the same function of its inputs.
fn equalised<'p>(
    p: &'p Prepared,
    equalisations: &[Equalisation],
    journal: &mut Journal,
) -> Result<Cow<'p, Prepared>, CompileError> {
    if equalisations.is_empty() {
        return Ok(Cow::Borrowed(p));
    }
    let mut e = p.clone();
    run(&Equalise { equalisations, sites: &p.sites }, &mut e.model, journal)?;
    e.sites = p.sites.reread(&e.model.graph);
    Ok(Cow::Owned(e))
}

/// How a target writes the arithmetic between codes: these passes, in this order.
pub fn lowering(target: Target, assume_vnni: bool) -> Vec<Box<dyn Pass>> {
    match target {
        Target::Integer => vec![
            Box::new(PatchesAsRows),
            Box::new(CodesFirst),
            Box::new(IntegerSums),
            Box::new(IntegerProducts),
            Box::new(IntegerNorm),
            Box::new(PerChannel { only_where_slow: false }),
        ],
        Target::Qdq => vec![
            Box::new(PatchesAsRows),
            Box::new(CodesFirst),
            Box::new(IntegerSums),
            Box::new(LayersWhole { assume_vnni }),
            Box::new(Cse),
            Box::new(Siblings),
            Box::new(PerChannel { only_where_slow: true }),
            Box::new(Rows),
        ],
    }
}

/// The first operator set whose QuantizeLinear makes codes of 16 bits.
const WIDE_CODES: i64 = 21;

/// Carries a plan out, and puts what was cut off behind.
pub fn apply(p: &Prepared, plan: &QuantPlan, journal: &mut Journal) -> Result<Model, CompileError> {
    whole(p, apply_in_front(p, plan, journal)?)
}

/// The quantized model with what was cut off behind it.
pub fn whole(p: &Prepared, front: Model) -> Result<Model, CompileError> {
    let mut m = front;
    for tail in p.tails.iter().rev() {
        m = tail.join(&m).map_err(|message| PassError::Failed { pass: "cut".into(), message })?;
        validate::validate(&m)?;
    }
    Ok(m)
}

/// Carries a plan out on what can be run here, which is all of the model but for its [`Prepared::tails`].
pub fn apply_in_front(p: &Prepared, plan: &QuantPlan, journal: &mut Journal) -> Result<Model, CompileError> {
    if plan.model != p.fingerprint {
        return Err(
            PlanError::Model { path: "plan".into(), plan: plan.model.clone(), model: p.fingerprint.clone() }.into()
        );
    }
    plan.check()?;
    has_codes(&p.model, plan.layers.iter().map(|l| l.weight), "the plan", "")?;
    let e = equalised(p, &plan.equalisations, journal)?;
    let (mut m, sites) = (e.model.clone(), &e.sites);
    // Types that the operator set has, the file's version must have too.
    let newer = plan.layers.iter().filter_map(|l| ops::newer_type(l.weight.dtype()));
    m.ir_version = newer.map(|(_, version)| version).fold(m.ir_version, i64::max);
    let passes: [&dyn Pass; 4] = [
        &FoldFactors { plan, sites },
        &QuantizeWeights { plan, sites },
        &QuantizeAttention { plan, sites },
        &QuantizeActivations { plan },
    ];
    for pass in passes {
        run(pass, &mut m, journal)?;
    }
    sweep(&mut m);
    run(&Cse, &mut m, journal)?;
    infer::annotate(&mut m);
    for pass in lowering(plan.target, plan.assume_vnni) {
        run(pass.as_ref(), &mut m, journal)?;
    }
    if plan.target == Target::Integer || m.opset() < WIDE_CODES {
        run(&WideCodes, &mut m, journal)?;
    }
    run(&Cse, &mut m, journal)?;
    sweep(&mut m);
    validate::validate(&m)?;
    Ok(m)
}
