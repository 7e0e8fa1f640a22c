//! Where rules meet graphs: every place a rule matches, and an explanation where it does not.

use std::collections::BTreeSet;
use std::fmt;

use crate::ir::{Model, NodeId};
use crate::text::node_line;

use super::facts::Facts;
use super::matcher::{BUDGET, Found, Match, NearMiss, search};
use super::rule::{Refusal, Rule};

/// What became of one rule on one model.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Hits {
    /// Matches that can be used; no two share a node. From the outputs to the inputs.
    pub matches: Vec<Match>,
    /// Matches that a precondition forbids: worth telling the user.
    pub refused: Vec<(Match, Refusal)>,
    /// Matches of nodes that a longer match already explains: not worth telling.
    pub pointless: usize,
    /// Roots whose search ran out of steps.
    pub too_long: Vec<NodeId>,
    /// The attempt that got furthest without matching.
    pub near: Option<NearMiss>,
}

/// Finds all places where a rule matches. The walk goes from the outputs to the inputs, so that the longest form is found
/// first; `claimed` holds the nodes that matches already took and gets those of the new ones.
pub fn find(facts: &Facts<'_>, rule: &Rule, claimed: &mut BTreeSet<NodeId>) -> Hits {
    find_within(facts, rule, claimed, BUDGET)
}

pub(super) fn find_within(facts: &Facts<'_>, rule: &Rule, claimed: &mut BTreeSet<NodeId>, budget: usize) -> Hits {
    let g = facts.graph();
    let mut hits = Hits::default();
    for id in g.schedule().into_iter().rev() {
        let op = &g.node(id).op;
        let root_ops = &rule.pattern.root_ops;
        let is_root = |r: &String| if op.is_onnx() { *r == op.name } else { *r == op.to_string() };
        if !root_ops.is_empty() && !root_ops.iter().any(is_root) || claimed.contains(&id) {
            continue;
        }
        let accept = |m: &Match| {
            if m.nodes.iter().any(|n| claimed.contains(n)) {
                return Err(None);
            }
            rule.allows(facts, m).map_err(Some)
        };
        match search(facts, &rule.pattern, id, budget, &mut hits.near, accept) {
            Found::Match(m) => {
                claimed.extend(m.nodes.iter().copied());
                hits.matches.push(m);
            }
            Found::Refused(m, Some(why)) => hits.refused.push((m, why)),
            Found::Refused(_, None) => hits.pointless += 1,
            Found::TooLong => hits.too_long.push(id),
            Found::Nothing => {}
        }
    }
    hits
}

/// Why a rule fired, or did not, on a model. Its text form is for people.
#[derive(Clone, Debug, PartialEq)]
pub struct Explanation {
    pub rule: String,
    pub summary: String,
    /// For each match, the node at its root as a line of text.
    pub matched: Vec<String>,
    /// For each refused match, its root and the reason.
    pub refused: Vec<(String, Refusal)>,
    pub pointless: usize,
    /// Roots at which the search was given up.
    pub too_long: Vec<String>,
    pub near: Option<Near>,
}

impl Explanation {
    /// Nodes that the best attempt matched; all there could be for a rule that matches, whether it may be used or not.
    pub fn progress(&self) -> usize {
        let met = !self.matched.is_empty() || !self.refused.is_empty() || !self.too_long.is_empty();
        if met { usize::MAX } else { self.near.as_ref().map_or(0, |n| n.matched) }
    }
}

/// The attempt that got furthest, told with texts.
#[derive(Clone, Debug, PartialEq)]
pub struct Near {
    /// Nodes that did match.
    pub matched: usize,
    /// The fragment whose line it stopped in; `None` for a line of the rule itself.
    pub fragment: Option<String>,
    /// That line, counted from 1, and its text as the rule has it.
    pub line: usize,
    pub line_text: String,
    pub column: usize,
    /// The node it stopped at, as a line of text, or the value where no node makes it.
    pub at: String,
    pub reason: String,
}

/// Explains what a rule does on a model.
pub fn explain(model: &Model, rule: &Rule) -> Explanation {
    let facts = Facts::new(model);
    let g = &model.graph;
    let hits = find(&facts, rule, &mut BTreeSet::new());
    let opset = if rule.rewrites() { rule.opset_allows(&facts).err() } else { None };
    let mut refused: Vec<(String, Refusal)> =
        hits.refused.into_iter().map(|(m, why)| (node_line(g, m.root), why)).collect();
    let mut matched: Vec<String> = hits.matches.iter().map(|m| node_line(g, m.root)).collect();
    if let Some(why) = opset {
        refused.extend(matched.drain(..).map(|m| (m, why.clone())));
    }
    Explanation {
        rule: rule.id.clone(),
        summary: rule.summary.clone(),
        matched,
        refused,
        pointless: hits.pointless,
        too_long: hits.too_long.iter().map(|n| node_line(g, *n)).collect(),
        near: hits.near.map(|n| {
            let (fragment, line) = rule.written.get(n.pos.line - 1).cloned().unwrap_or((None, n.pos.line));
            Near {
                matched: n.matched,
                fragment,
                line,
                line_text: rule.pattern.text.get(n.pos.line - 1).cloned().unwrap_or_default(),
                column: n.pos.column,
                at: n.node.map_or_else(|| g.name_of(n.value).to_owned(), |id| node_line(g, id)),
                reason: n.reason,
            }
        }),
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "rule {}: {}", self.rule, self.summary)?;
        writeln!(f, "  matches at {} place(s)", self.matched.len())?;
        for m in &self.matched {
            writeln!(f, "    {m}")?;
        }
        for (at, why) in &self.refused {
            writeln!(f, "  matches, but must not be used: {why}\n    {at}")?;
        }
        for at in &self.too_long {
            writeln!(f, "  the search from here was given up after {BUDGET} steps\n    {at}")?;
        }
        if let Some(n) = &self.near
            && self.matched.is_empty()
        {
            writeln!(f, "  the nearest miss matched {} node(s) and stopped at", n.matched)?;
            writeln!(f, "    {}", n.at)?;
            let of = n.fragment.as_ref().map_or("the rule".to_owned(), |f| format!("fragment `{f}`"));
            writeln!(f, "  in line {} of {of}", n.line)?;
            writeln!(f, "    {}", n.line_text)?;
            writeln!(f, "    {}^ {}", " ".repeat(n.column.saturating_sub(1)), n.reason)?;
        }
        Ok(())
    }
}
