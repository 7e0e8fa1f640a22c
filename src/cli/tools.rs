//! Subcommands that only look.

use super::args::{ExplainArgs, InspectArgs, PassesArgs};
use super::files::Files;
use super::{Failure, load};
use crate::compile::inspect::{UNPREPARED, inspect as look, operators};
use crate::compile::{self, Journal};
use crate::passes::{is_quantized, pipelines, registry};
use crate::pattern::{Explanation, Rule, RuleSet, explain as explain_rule};
use crate::recipe::Recipe;
use crate::text::{Elide, print_model};

pub fn inspect(a: &InspectArgs) -> Result<bool, Failure> {
    let mut notes = Vec::new();
    let (m, _) = load("MODEL", &a.model, &mut Files::default(), &mut notes)?;
    if a.text {
        say_raw!("{}", print_model(&m, Elide::default()));
        return Ok(true);
    }
    let rules = RuleSet::with_folder(a.prepare.passes_dir.as_deref())?;
    let recipe = Recipe::find(a.prepare.recipe(), a.prepare.passes_dir.as_deref())?;
    let how = recipe.prepare.unwrap_or(UNPREPARED);
    let named = |e: compile::CompileError| format!("{}: {e}", a.model.display());
    if a.canonical {
        let p = compile::prepare(&m, &how, &rules, a.prepare.keep_opset, &mut Journal::default()).map_err(named)?;
        say_raw!("{}", print_model(&p.model, Elide::default()));
        return Ok(true);
    }
    say!("{}: opset {}, {} nodes", a.model.display(), m.opset(), m.graph.node_count());
    let counted = |m: &indexmap::IndexMap<String, usize>, form: fn((&String, &usize)) -> String| {
        m.iter().map(form).collect::<Vec<_>>().join(", ")
    };
    say!("  operators: {}", counted(&operators(&m), |(o, n)| format!("{o} {n}")));
    if is_quantized(&m) {
        notes.iter().for_each(|n| say!("  note: {n}"));
        say!("quantized already, so the rules are not asked; `fqvit-opt diff` compares it with its float original");
        return Ok(true);
    }
    let found = look(&m, &how, &rules, a.prepare.keep_opset).map_err(named)?;
    say!("recognised as written:");
    for (what, rules) in &found.as_written {
        let forms = if rules.is_empty() { "none".into() } else { counted(rules, |(r, n)| format!("{n} by {r}")) };
        say!("  {what}: {} ({forms})", rules.values().sum::<usize>());
    }
    let c = &found.canonical;
    say!("in canonical form (opset {}, {} nodes):", c.opset, c.nodes);
    say!(
        "  {} attentions, {} LayerNorms, {} GELUs, {} linear layers, {} values to quantize",
        c.attentions.len(),
        c.layer_norms,
        c.gelus,
        c.linears,
        c.values
    );
    for at in &c.attentions {
        let scale = at.scale.map_or(String::new(), |f| format!(", scale {f}"));
        let masks = if at.masks == 0 { String::new() } else { format!(", {} mask(s)", at.masks) };
        say!("  attention at {} by {}{scale}{masks}", at.output, at.rule);
    }
    c.softmaxes.iter().for_each(|n| say!("  Softmax of no recognised attention: {n} (stays float)"));
    c.islands.iter().for_each(|(n, why)| say!("  stays float: {n} ({why})"));
    notes.iter().chain(&found.notes).for_each(|n| say!("  note: {n}"));
    Ok(true)
}

/// Nodes that a rule matched before it is worth telling where it stopped: with fewer, any product or sum is a near miss.
const WORTH_TELLING: usize = 3;

pub fn explain(a: &ExplainArgs) -> Result<bool, Failure> {
    let mut notes = Vec::new();
    let (m, _) = load("MODEL", &a.model, &mut Files::default(), &mut notes)?;
    let rules = RuleSet::with_folder(a.passes_dir.as_deref())?;
    if let Some(id) = &a.rule
        && rules.get(id).is_err()
    {
        let known: Vec<&str> = rules.iter().map(|r| r.id.as_str()).collect();
        return Err(format!("there is no rule `{id}`; there are {}", known.join(", ")).into());
    }
    let recipe = Recipe::find(&a.recipe, a.passes_dir.as_deref())?;
    let how = recipe.prepare.unwrap_or(UNPREPARED);
    let named = |e: compile::CompileError| format!("{}: {e}", a.model.display());
    let mut journal = Journal::default();
    // As `compile` sees it: rules that rewrite, before they do, and rules that recognise, after that.
    let before = compile::plain(&m, &how, &rules, a.keep_opset, &mut journal).map_err(named)?;
    let mut after = before.clone();
    compile::follow(&pipelines::CANONICAL, &mut after, &mut journal).map_err(named)?;
    let told = |r| explain_rule(if Rule::rewrites(r) { &before } else { &after }, r);
    if let Some(r) = a.rule.as_deref().and_then(|id| rules.get(id).ok()) {
        say!("{}", told(r));
        return Ok(true);
    }
    let (worth, far): (Vec<Explanation>, Vec<Explanation>) =
        rules.iter().map(told).partition(|e| e.progress() >= WORTH_TELLING);
    worth.iter().for_each(|e| say!("{e}"));
    if !far.is_empty() {
        let ids: Vec<&str> = far.iter().map(|e| e.rule.as_str()).collect();
        say!("{} other rules match no {WORTH_TELLING} nodes in a row; --rule ID shows where one stopped:", ids.len());
        say!("  {}", ids.join(", "));
    }
    Ok(true)
}

pub fn recipes() -> Result<bool, Failure> {
    for name in Recipe::shipped() {
        say!("{name:14} {}", Recipe::find(&name, None)?.summary);
    }
    Ok(true)
}

pub fn passes(a: &PassesArgs) -> Result<bool, Failure> {
    if let Some(id) = &a.pass {
        let missing = || {
            let unknown = || format!("there is no pass `{id}`; `fqvit-opt passes` lists them");
            registry::renamed(id).unwrap_or_else(unknown)
        };
        let pass = registry::pass(id).ok_or_else(missing)?;
        say!("{}: {}\n\n{}", pass.id(), pass.summary(), pass.help());
        return Ok(true);
    }
    for p in pipelines::ALL {
        say!("{} - {}", p.name, p.summary);
        p.passes.iter().for_each(|pass| say!("  {:22} {}", pass.id(), pass.summary()));
    }
    let inside = |id: &str| pipelines::ALL.iter().any(|p| p.passes.iter().any(|q| q.id() == id));
    say!("inside of others, or by name only");
    for pass in registry::ALL.iter().filter(|p| !inside(p.id())) {
        say!("  {:22} {}", pass.id(), pass.summary());
    }
    Ok(true)
}
