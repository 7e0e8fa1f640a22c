//! Subcommands that only look.

use super::args::{ExplainArgs, InspectArgs};
use super::files::Files;
use super::{Failure, load, rules};
use crate::compile::{self, Journal};
use crate::ir::{Op, validate};
use crate::passes::Pass;
use crate::passes::clean_up::CleanUp;
use crate::pattern::{explain as explain_rule, gelus, layer_norms};
use crate::recipe::{Prepare, Recipe};
use crate::text::{Elide, print_model};

pub fn inspect(a: &InspectArgs) -> Result<bool, Failure> {
    let mut notes = Vec::new();
    let (m, _) = load("MODEL", &a.model, &mut Files::default(), &mut notes)?;
    if a.text {
        say_raw!("{}", print_model(&m, Elide::default()));
        return Ok(true);
    }
    let rules = rules(a.prepare.passes_dir.as_deref())?;
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
    let how = recipe.prepare.unwrap_or(Prepare { opset: 17 });
    CleanUp.run(&mut clean)?;
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
    let (mut m, _) = compile::unpacked(&m).map_err(|e| format!("{}: {e}", a.model.display()))?;
    validate::validate(&m).map_err(|e| format!("{}: {e}", a.model.display()))?;
    for pass in compile::BEFORE_RULES {
        pass.run(&mut m)?;
    }
    let rules = rules(a.passes_dir.as_deref())?;
    if let Some(id) = &a.rule
        && rules.get(id).is_err()
    {
        let known: Vec<&str> = rules.iter().map(|r| r.id.as_str()).collect();
        return Err(format!("there is no rule `{id}`; there are {}", known.join(", ")).into());
    }
    for r in rules.iter().filter(|r| a.rule.as_deref().is_none_or(|id| id == r.id)) {
        say!("{}", explain_rule(&m, r));
    }
    Ok(true)
}

pub fn recipes() -> Result<bool, Failure> {
    for name in Recipe::shipped() {
        say!("{name:14} {}", Recipe::find(&name, None)?.summary);
    }
    Ok(true)
}
