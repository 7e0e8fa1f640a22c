//! Subcommands that only look.

use super::args::{ExplainArgs, InspectArgs, PassesArgs};
use super::files::Files;
use super::{Failure, load};
use crate::compile::{self, Journal};
use crate::ir::{Op, validate};
use crate::passes::clean_up::CleanUp;
use crate::passes::{Pass, pipelines, registry};
use crate::pattern::{RuleSet, explain as explain_rule, gelus, layer_norms};
use crate::recipe::{Prepare, Recipe};
use crate::text::{Elide, print_model};

/// For recipes that prepare nothing.
const UNPREPARED: Prepare = Prepare { opset: 17 };

pub fn inspect(a: &InspectArgs) -> Result<bool, Failure> {
    let mut notes = Vec::new();
    let (m, _) = load("MODEL", &a.model, &mut Files::default(), &mut notes)?;
    if a.text {
        say_raw!("{}", print_model(&m, Elide::default()));
        return Ok(true);
    }
    let rules = RuleSet::with_folder(a.prepare.passes_dir.as_deref())?;
    say!("{}: opset {}, {} nodes", a.model.display(), m.opset(), m.graph.node_count());
    let mut ops: std::collections::BTreeMap<&Op, usize> = Default::default();
    for (_, n) in m.graph.nodes() {
        *ops.entry(&n.op).or_default() += 1;
    }
    let list: Vec<String> = ops.iter().map(|(o, n)| format!("{o} {n}")).collect();
    say!("  operators: {}", list.join(", "));
    let (mut clean, _) = compile::unpacked(&m).map_err(|e| format!("{}: {e}", a.model.display()))?;
    validate::validate(&clean).map_err(|e| format!("{}: {e}", a.model.display()))?;
    let recipe = Recipe::find(&a.prepare.recipe, a.prepare.passes_dir.as_deref())?;
    let how = recipe.prepare.unwrap_or(UNPREPARED);
    CleanUp.run_on(&mut clean)?;
    say!("recognised as written:");
    for (what, sites) in [("LayerNorm", layer_norms(&clean, &rules)), ("GELU", gelus(&clean, &rules))] {
        let mut by: std::collections::BTreeMap<&str, usize> = Default::default();
        for s in &sites {
            *by.entry(s.rule.as_str()).or_default() += 1;
        }
        let forms: Vec<String> = by.iter().map(|(r, n)| format!("{n} by {r}")).collect();
        say!("  {what}: {} ({})", sites.len(), if forms.is_empty() { "none".into() } else { forms.join(", ") });
    }
    let mut journal = Journal::default();
    let p = compile::prepare(&m, &how, &rules, a.prepare.keep_opset, &mut journal)
        .map_err(|e| format!("{}: {e}", a.model.display()))?;
    say!("in canonical form (opset {}, {} nodes):", p.model.opset(), p.model.graph.node_count());
    say!(
        "  {} attentions, {} LayerNorms, {} GELUs, {} linear layers, {} values to quantize",
        p.sites.attentions.len(),
        p.sites.norms.len(),
        p.sites.gelus.len(),
        p.sites.linears.len(),
        p.sites.sites.len()
    );
    for at in &p.sites.attentions {
        let name = p.model.graph.name_of(at.out);
        let scale = at.scale.map_or(String::new(), |(_, f)| format!(", scale {f}"));
        let masks = if at.masks.is_empty() { String::new() } else { format!(", {} mask(s)", at.masks.len()) };
        say!("  attention at {name} by {}{scale}{masks}", at.rule);
    }
    for n in &p.sites.softmaxes {
        say!("  Softmax of no recognised attention: {} (stays float)", p.model.graph.label(p.model.graph.node(*n)));
    }
    for (n, why) in &p.sites.islands {
        say!("  stays float: {} ({why})", p.model.graph.label(p.model.graph.node(*n)));
    }
    for n in notes.iter().chain(&journal.notes) {
        say!("  note: {n}");
    }
    Ok(true)
}

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
    for r in rules.iter().filter(|r| a.rule.as_deref().is_none_or(|id| id == r.id)) {
        say!("{}", explain_rule(if r.rewrites() { &before } else { &after }, r));
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
        let pass =
            registry::pass(id).ok_or_else(|| format!("there is no pass `{id}`; `fqvit-opt passes` lists them"))?;
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
