//! Rewriting by rule.
//!
//! # What it does
//! Applies the replacing rules of a [`RuleSet`]: a decomposed LayerNorm or GELU becomes one node.
//!
//! # When it fires
//! Where a rule's match text fits, its `where` holds, its inner values are read by nobody else, and the model's opset has
//! the operators of the replacement. [`opset_wanted`] tells which opset would let more of them fire.
//!
//! # Why it is correct
//! A rule's author vouches that the two texts compute the same function; the fixtures and `--verify-each` hold it to
//! that. Privacy of inner values keeps a rewrite from doing work twice.
//!
//! # Numerics
//! Close: the fused form sums in another order and rounds fewer intermediate results.
//!
//! # Before / after
//! `Mul (Mul (x, Add (Erf (Div (x, 1.4142)), 1)), 0.5)` becomes `Gelu (x)`.
//!
//! # Source
//! `passes/rules/*.yaml`, documented in `docs/rules.md`.

use std::collections::BTreeSet;

use crate::budget;
use crate::pattern::{Facts, Refusal, Rule, RuleSet, find};

use super::{Context, Numerics, Outcome, Pass, PassError};

/// The pass that runs a set of rules until none fires any more. The default is the context's.
#[derive(Clone, Debug, Default)]
pub struct ApplyRules {
    /// `None`: the context's.
    rules: Option<RuleSet>,
}

impl ApplyRules {
    /// A pass over the rules of the context.
    pub const fn of_context() -> ApplyRules {
        ApplyRules { rules: None }
    }

    /// A pass over the replacing rules of this set; rules that only recognise are left out.
    pub fn new(rules: &RuleSet) -> ApplyRules {
        ApplyRules { rules: Some(rules.filtered(|r| r.rewrites())) }
    }
}

/// Rounds after which rules that keep undoing each other are stopped.
const ROUNDS: usize = 32;

/// Rules make a model no larger than this, or than so many times what it was.
const MOST_NODES: usize = 100_000;
const GROWTH: usize = 8;

impl Pass for ApplyRules {
    fn id(&self) -> &'static str {
        "rules"
    }

    fn summary(&self) -> &'static str {
        "Applies the rewriting rules: decomposed LayerNorm and GELU become one node each."
    }

    fn numerics(&self) -> Numerics {
        Numerics::Close { rel: 1e-4 }
    }

    fn run(&self, cx: &mut Context) -> Result<Outcome, PassError> {
        let rules = &self.rules.clone().unwrap_or_else(|| cx.rules().filtered(|r| r.rewrites()));
        let mut out = Outcome::default();
        let mut last = Vec::new();
        let most = MOST_NODES.max(cx.graph.node_count().saturating_mul(GROWTH));
        for _ in 0..ROUNDS {
            let mut changed = 0;
            out.notes.clear();
            let mut fired: Vec<&Rule> = Vec::new();
            for rule in rules.iter() {
                budget::step(format_args!("rule {}", rule.place()));
                let patches = {
                    let facts = cx.facts();
                    let hits = find(&facts, rule, &mut BTreeSet::new());
                    let name = |n| facts.graph().node(n).out().map_or("", |v| facts.graph().name_of(v));
                    for (m, why) in &hits.refused {
                        out.notes.push(format!("{} does not apply at `{}`: {why}", rule.id, name(m.root)));
                    }
                    for n in &hits.too_long {
                        out.notes.push(format!("{} was given up at `{}`: too many ways to try", rule.id, name(*n)));
                    }
                    let mut patches = Vec::new();
                    for m in &hits.matches {
                        match rule.patch(&facts, m) {
                            Ok(p) => patches.extend(p),
                            Err(why @ Refusal::Opset { .. }) => {
                                out.notes.push(format!("{} leaves {} place(s): {why}", rule.id, hits.matches.len()));
                                break;
                            }
                            Err(why) => {
                                out.notes.push(format!("{} does not apply at `{}`: {why}", rule.id, name(m.root)));
                            }
                        }
                    }
                    patches
                };
                // Matches share no node, and the walk was from the outputs to the inputs: a later patch redirects what an
                // earlier one reads, never what it made.
                if !patches.is_empty() {
                    fired.push(rule);
                }
                for p in patches {
                    cx.commit(p)?;
                    changed += 1;
                }
                if changed > 0 {
                    cx.sweep();
                }
                if cx.graph.node_count() > most {
                    return Err(self.endless(&fired, &format!("{most} nodes")));
                }
            }
            out.changes += changed;
            if changed == 0 {
                return Ok(out);
            }
            last = fired;
        }
        Err(self.endless(&last, &format!("{ROUNDS} rounds")))
    }
}

impl ApplyRules {
    /// Rules that still fire.
    fn endless(&self, fired: &[&Rule], after: &str) -> PassError {
        let places = fired.iter().map(|r| r.place()).collect::<Vec<_>>().join(" and ");
        let message = match fired {
            [_] => format!(
                "rule {places} still fires after {after}: its replacement matches again; let `where` exclude what it makes"
            ),
            _ => format!(
                "rules {places} still fire after {after}: what one makes, another matches; let `where` exclude that, or leave one out"
            ),
        };
        PassError::Failed { pass: self.id().to_owned(), message }
    }
}

/// The lowest opset at which every rule that matches this model can also rewrite it; `None` if the model's own will do.
pub fn opset_wanted(facts: &Facts<'_>, rules: &RuleSet) -> Option<i64> {
    let has = facts.model.opset();
    // What one rule takes for a shape with a name, no later one takes for another: a LayerNorm holds an RMSNorm of a deviation.
    let mut claimed = BTreeSet::new();
    let mut wanted = None;
    for r in rules.iter().filter(|r| r.rewrites()) {
        let own = &mut BTreeSet::new();
        let taken = if r.stands_for.is_some() { &mut claimed } else { own };
        let higher = r.needs_opset().filter(|n| *n > has);
        if (r.stands_for.is_some() || higher.is_some()) && !find(facts, r, taken).matches.is_empty() {
            wanted = wanted.max(higher);
        }
    }
    wanted
}
