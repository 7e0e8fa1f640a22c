//! The road a model travels, step by step, as library calls.
//!
//! [`prepare`] brings a model into canonical form and finds what can be quantized; [`calibrate`] runs it over samples;
//! [`make_plan`] decides; [`apply`] carries the plan out. Each step returns a value that the next one takes, and every
//! value in between can be written to a file, edited and read again.

use crate::infer;
use crate::ir::{Invalid, Model, validate};
use crate::onnx;
use crate::passes::clean_up::CleanUp;
use crate::passes::cse::Cse;
use crate::passes::quantize::activations::QuantizeActivations;
use crate::passes::quantize::attention::QuantizeAttention;
use crate::passes::quantize::fold::FoldFactors;
use crate::passes::quantize::integer_norm::IntegerNorm;
use crate::passes::quantize::weights::QuantizeWeights;
use crate::passes::raise_opset::RaiseOpset;
use crate::passes::rules::{ApplyRules, opset_wanted};
use crate::passes::scale_after_product::ScaleAfterProduct;
use crate::passes::{Pass, PassError};
use crate::pattern::{RuleSet, attentions};
use crate::plan::planner::{self, PlanningError};
use crate::plan::sites::{self, Sites};
use crate::plan::{PlanError, QuantPlan};
use crate::quant::observe::Stats;
use crate::recipe::{Prepare, Recipe};
use crate::rewrite::sweep;

use indexmap::IndexMap;

#[cfg(feature = "tract")]
pub mod refine;

/// Why a model could not be compiled.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    #[error(transparent)]
    Pass(#[from] PassError),
    #[error(transparent)]
    Invalid(#[from] Invalid),
    #[error(transparent)]
    Planning(#[from] PlanningError),
    #[error(transparent)]
    Plan(#[from] PlanError),
    #[error(
        "no attention was found in this model, so recipe `{recipe}` has nothing to work on; `fqvit-opt inspect` shows what \
         was recognised and `fqvit-opt explain` how close the rules came"
    )]
    NoAttention { recipe: String },
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
    /// `(pass, changes)` in the order they ran.
    pub passes: Vec<(String, usize)>,
    pub notes: Vec<String>,
}

/// Runs one pass and checks that it left a valid model behind.
fn run(
    pass: &dyn Pass,
    m: &mut Model,
    log: &mut Vec<(String, usize)>,
    notes: &mut Vec<String>,
) -> Result<(), CompileError> {
    let out = pass.run(m)?;
    notes.extend(out.notes.into_iter().map(|n| format!("{}: {n}", pass.id())));
    log.push((pass.id().to_owned(), out.changes));
    validate::validate(m)?;
    Ok(())
}

/// Canonical form: constants folded, LayerNorm and GELU as one node each, attention with its scale behind the product.
///
/// `keep_opset` forbids raising the operator set; LayerNorm and GELU that it lacks then stay decomposed.
pub fn prepare(model: &Model, how: &Prepare, rules: &RuleSet, keep_opset: bool) -> Result<Prepared, CompileError> {
    if let Some((_, n)) =
        model.graph.nodes().find(|(_, n)| n.op.name.starts_with("QLinear") || n.op.is("QuantizeLinear"))
    {
        return Err(CompileError::Quantized { node: n.name.clone(), op: n.op.to_string() });
    }
    let mut m = model.clone();
    let (mut log, mut notes) = (Vec::new(), Vec::new());
    validate::validate(&m)?;
    run(&CleanUp, &mut m, &mut log, &mut notes)?;
    if !keep_opset {
        let to = opset_wanted(&m, rules).unwrap_or(0).max(how.opset);
        if to > m.opset() {
            run(&RaiseOpset { to }, &mut m, &mut log, &mut notes)?;
        }
    }
    infer::annotate(&mut m);
    run(&ApplyRules::new(rules), &mut m, &mut log, &mut notes)?;
    infer::annotate(&mut m);
    run(&ScaleAfterProduct { rules }, &mut m, &mut log, &mut notes)?;
    run(&CleanUp, &mut m, &mut log, &mut notes)?;
    infer::annotate(&mut m);
    let sites = sites::find(&m, attentions(&m, rules));
    let fingerprint = blake3::hash(&onnx::encode(validate::validate(&m)?)).to_hex()[..16].to_owned();
    Ok(Prepared { model: m, sites, fingerprint, passes: log, notes })
}

/// Decides, from statistics.
pub fn make_plan(p: &Prepared, stats: &IndexMap<String, Stats>, recipe: &Recipe) -> Result<QuantPlan, CompileError> {
    let Some(q) = &recipe.quantize else {
        return Err(
            PlanError::Read { path: recipe.name.clone(), message: "the recipe quantizes nothing".into() }.into()
        );
    };
    Ok(planner::plan(&p.model, &p.sites, stats, q, &recipe.name, &p.fingerprint)?)
}

/// Carries a plan out.
pub fn apply(p: &Prepared, plan: &QuantPlan) -> Result<Model, CompileError> {
    if plan.model != p.fingerprint {
        return Err(
            PlanError::Model { path: "plan".into(), plan: plan.model.clone(), model: p.fingerprint.clone() }.into()
        );
    }
    let mut m = p.model.clone();
    let sites = &p.sites;
    let (mut log, mut notes) = (Vec::new(), Vec::new());
    let passes: [&dyn Pass; 4] = [
        &FoldFactors { plan, sites },
        &QuantizeWeights { plan, sites },
        &QuantizeAttention { plan, sites },
        &QuantizeActivations { plan, sites },
    ];
    for pass in passes {
        run(pass, &mut m, &mut log, &mut notes)?;
    }
    if plan.integer_norm {
        run(&IntegerNorm, &mut m, &mut log, &mut notes)?;
    }
    sweep(&mut m);
    run(&Cse, &mut m, &mut log, &mut notes)?;
    sweep(&mut m);
    validate::validate(&m)?;
    Ok(m)
}
