//! The matcher: does the graph around a node look like a pattern?
//!
//! The search is a depth-first walk over *goals* ("this value looks like that"). A goal with several ways to be met
//! (alternatives, the two orders of a commutative operator) leaves a choice point behind; whatever fails later, a
//! sibling of an outer call or a precondition at the very end, undoes the bindings made since and takes the next way.
//! So the search is complete: it finds a match if there is one, within its step budget.

use indexmap::IndexMap;

use crate::ir::{AttrValue, DType, NodeId, ValueId};

use super::compile::{AttrPat, CallPat, NameKind, Pat, PatId, Pattern, Slot};
use super::facts::{Facts, close, within};
use super::place::Pos;
use super::syntax::Attribute;

/// What a name of a rule is bound to in a match.
#[derive(Clone, Debug, PartialEq)]
pub enum Bound {
    Value(ValueId),
    Attr(AttrValue),
}

/// One match of a pattern.
#[derive(Clone, Debug, PartialEq)]
pub struct Match {
    /// The node the last line describes.
    pub root: NodeId,
    /// All nodes the pattern describes, the root and Identity nodes between them included, in ascending order.
    pub nodes: Vec<NodeId>,
    /// What each name stands for, in the order of the rule's text; names the match left unbound are absent.
    pub bindings: IndexMap<String, Bound>,
}

impl Match {
    /// The value of this name.
    pub fn value(&self, name: &str) -> Option<ValueId> {
        match self.bindings.get(name)? {
            Bound::Value(v) => Some(*v),
            Bound::Attr(_) => None,
        }
    }
}

/// The attempt of a rule that got furthest without matching.
#[derive(Clone, Debug, PartialEq)]
pub struct NearMiss {
    /// Nodes that did match before it stopped.
    pub matched: usize,
    /// Where in the match text it stopped.
    pub pos: Pos,
    /// The value it stopped at.
    pub value: ValueId,
    /// The node it stopped at; `None` at a constant or graph input.
    pub node: Option<NodeId>,
    pub reason: String,
    /// Which of several attempts that matched as many nodes is told.
    grade: Grade,
}

/// How much a failure says about what was meant. Of the two orders of a commutative operator, or of alternatives, the
/// one that fails last in this order is the one to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Grade {
    /// No node or no constant where one is wanted: most often the wrong order of inputs.
    Kind,
    /// Another operator, or another value.
    Other,
    /// The right operator with a wrong attribute or input; a constant with a wrong number.
    Detail,
}

/// How a search from one node ended.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Found<R> {
    Match(Match),
    /// The shape fits, but this precondition does not hold.
    Refused(Match, R),
    Nothing,
    /// The step budget ran out.
    TooLong,
}

/// Steps one attempt may take. The largest rule shipped needs under 400 on the largest sample.
pub(super) const BUDGET: usize = 50_000;

#[derive(Clone, Copy)]
struct Goal {
    pat: PatId,
    value: ValueId,
    /// The output of the producing node the value has to be; `None` where the line binds several.
    output: Option<usize>,
    /// Where in the text the goal comes from.
    pos: Pos,
}

struct Cell {
    goal: Goal,
    next: Option<usize>,
}

struct Choice {
    head: usize,
    way: usize,
    trail: usize,
    nodes: usize,
    cells: usize,
}

struct Matcher<'a, 'm> {
    facts: &'a Facts<'m>,
    pattern: &'a Pattern,
    bound: Vec<Option<Bound>>,
    trail: Vec<Slot>,
    nodes: Vec<NodeId>,
    cells: Vec<Cell>,
    choices: Vec<Choice>,
    best: &'a mut Option<NearMiss>,
}

/// Looks for a match whose root is `node` and that `accept` agrees to. A match that `accept` refuses makes the search go
/// on; the first refusal is reported if none is accepted.
pub(super) fn search<R>(
    facts: &Facts<'_>,
    pattern: &Pattern,
    node: NodeId,
    budget: usize,
    best: &mut Option<NearMiss>,
    accept: impl Fn(&Match) -> Result<(), R>,
) -> Found<R> {
    let Some(value) = facts.graph().node(node).outputs.iter().flatten().next().copied() else { return Found::Nothing };
    let root = pattern.lines.len() - 1;
    let mut s = Matcher {
        facts,
        pattern,
        bound: vec![None; pattern.names.len()],
        trail: Vec::new(),
        nodes: Vec::new(),
        cells: Vec::new(),
        choices: Vec::new(),
        best,
    };
    let Some(first) = s.line_goal(root, value, None) else { return Found::Nothing };
    let mut head = Some(s.push(first, None));
    let mut way = 0;
    let mut refused = None;
    for _ in 0..budget {
        let advanced = match head {
            None => {
                let m = s.result(node);
                match accept(&m) {
                    Ok(()) => return Found::Match(m),
                    Err(r) => {
                        refused.get_or_insert((m, r));
                        None
                    }
                }
            }
            Some(h) => {
                let goal = s.cells[h].goal;
                if way + 1 < s.ways(goal) {
                    s.choices.push(Choice {
                        head: h,
                        way: way + 1,
                        trail: s.trail.len(),
                        nodes: s.nodes.len(),
                        cells: s.cells.len(),
                    });
                }
                let next = s.cells[h].next;
                s.step(goal, way, next)
            }
        };
        match advanced {
            Some(h) => (head, way) = (h, 0),
            None => match s.choices.pop() {
                Some(c) => {
                    for slot in s.trail.drain(c.trail..) {
                        s.bound[slot] = None;
                    }
                    s.nodes.truncate(c.nodes);
                    s.cells.truncate(c.cells);
                    (head, way) = (Some(c.head), c.way);
                }
                None => return refused.map_or(Found::Nothing, |(m, r)| Found::Refused(m, r)),
            },
        }
    }
    refused.map_or(Found::TooLong, |(m, r)| Found::Refused(m, r))
}

impl<'m> Matcher<'_, 'm> {
    fn push(&mut self, goal: Goal, next: Option<usize>) -> usize {
        self.cells.push(Cell { goal, next });
        self.cells.len() - 1
    }

    fn result(&self, root: NodeId) -> Match {
        let mut nodes = self.nodes.clone();
        nodes.sort();
        nodes.dedup();
        let named = self.pattern.names.iter().zip(&self.bound);
        let bindings = named.filter_map(|(n, b)| Some((n.text.clone(), b.clone()?))).collect();
        Match { root, nodes, bindings }
    }

    /// In how many ways a goal can be met.
    fn ways(&self, g: Goal) -> usize {
        match &self.pattern.pats[g.pat] {
            Pat::Alternatives(all) => all.len(),
            Pat::Call(c) if c.commutes => 2,
            _ => 1,
        }
    }

    /// Remembers where the attempt that got furthest stopped.
    fn miss(&mut self, goal: Goal, grade: Grade, reason: impl FnOnce(&Self) -> String) {
        if self.best.as_ref().is_none_or(|b| (self.nodes.len(), grade) > (b.matched, b.grade)) {
            let node = self.facts.graph().producer(self.facts.source(goal.value));
            let (matched, pos, value) = (self.nodes.len(), goal.pos, goal.value);
            let reason = reason(self);
            *self.best = Some(NearMiss { matched, pos, value, node, reason, grade });
        }
    }

    fn bind(&mut self, slot: Slot, b: Bound) {
        self.bound[slot] = Some(b);
        self.trail.push(slot);
    }

    /// Binds the slot, or compares with what it holds.
    fn bind_value(&mut self, slot: Slot, v: ValueId) -> bool {
        match &self.bound[slot] {
            Some(Bound::Value(old)) => self.facts.same(*old, v),
            Some(Bound::Attr(_)) => false,
            None => {
                self.bind(slot, Bound::Value(v));
                true
            }
        }
    }

    /// Binds what a line names and gives the goal that is left; `None` if the value cannot be the line's.
    fn line_goal(&mut self, line: usize, value: ValueId, output: Option<usize>) -> Option<Goal> {
        let l = &self.pattern.lines[line];
        let pos = match &self.pattern.pats[l.pat] {
            Pat::Call(c) => c.pos,
            _ => self.first_pos(l.pat),
        };
        if let [target] = l.targets[..] {
            if let Some(t) = target {
                self.bind(t, Bound::Value(value));
            }
            return Some(Goal { pat: l.pat, value, output: Some(0), pos });
        }
        let graph = self.facts.graph();
        let source = self.facts.source(value);
        let producer = graph.node(graph.producer(source)?);
        if let Some(i) = output
            && producer.output(i) != Some(source)
        {
            return None;
        }
        for (i, t) in l.targets.iter().enumerate() {
            if let Some(t) = t {
                self.bind(*t, Bound::Value(producer.output(i)?));
            }
        }
        Some(Goal { pat: l.pat, value, output: None, pos })
    }

    fn first_pos(&self, pat: PatId) -> Pos {
        match &self.pattern.pats[pat] {
            Pat::Call(c) => c.pos,
            Pat::Alternatives(all) => self.first_pos(all[0]),
            Pat::Line { line, .. } => self.first_pos(self.pattern.lines[*line].pat),
            _ => Pos { line: 1, column: 1 },
        }
    }

    /// Meets a goal in one of its ways. `Some(head)` is the list of goals then left, `None` a failure.
    fn step(&mut self, g: Goal, way: usize, next: Option<usize>) -> Option<Option<usize>> {
        let pattern = self.pattern;
        match &pattern.pats[g.pat] {
            Pat::Any => Some(next),
            Pat::Free(slot) => {
                if self.bind_value(*slot, g.value) {
                    return Some(next);
                }
                let name = &pattern.names[*slot].text;
                self.miss(g, Grade::Other, |s| format!("{} is not the same value as `{name}`", s.say(g.value)));
                None
            }
            Pat::Line { line, output } => {
                let slot = pattern.lines[*line].targets[*output];
                if let Some(slot) = slot
                    && self.bound[slot].is_some()
                {
                    if self.bind_value(slot, g.value) {
                        return Some(next);
                    }
                    let name = &pattern.names[slot].text;
                    self.miss(g, Grade::Other, |s| format!("{} is not the same value as `{name}`", s.say(g.value)));
                    return None;
                }
                match self.line_goal(*line, g.value, Some(*output)) {
                    Some(goal) => Some(Some(self.push(goal, next))),
                    None => {
                        self.miss(g, Grade::Other, |s| {
                            format!("{} is not output {output} of such a node", s.say(g.value))
                        });
                        None
                    }
                }
            }
            Pat::Constant(slot) => {
                let name = &pattern.names[*slot].text;
                if self.facts.constant(g.value).is_none() {
                    self.miss(g, Grade::Kind, |s| format!("{} is no constant, `${name}` wants one", s.say(g.value)));
                    return None;
                }
                if self.bind_value(*slot, g.value) {
                    return Some(next);
                }
                self.miss(g, Grade::Other, |s| format!("{} is not the same constant as `${name}`", s.say(g.value)));
                None
            }
            Pat::Number(meant) => {
                let c = self.facts.constant(g.value);
                let stored = c.and_then(|c| Some((c.as_scalar()?, c.dtype)));
                match stored {
                    Some((v, t)) if close(v, *meant, if t == DType::FLOAT { pattern.once } else { t }) => Some(next),
                    Some((v, _)) => {
                        self.miss(g, Grade::Detail, |s| format!("{} is {}, not {meant}", s.say(g.value), v as f32));
                        None
                    }
                    None => {
                        let what = if c.is_some() { "a constant of several elements" } else { "no constant" };
                        self.miss(g, Grade::Kind, |s| format!("{} is {what}, not {meant}", s.say(g.value)));
                        None
                    }
                }
            }
            Pat::Alternatives(all) => {
                let goal = Goal { pat: all[way], ..g };
                let pos = if let Pat::Call(c) = &pattern.pats[goal.pat] { c.pos } else { g.pos };
                Some(Some(self.push(Goal { pos, ..goal }, next)))
            }
            Pat::Call(c) => self.call(c, Goal { pos: c.pos, ..g }, way == 1, next),
        }
    }

    fn call(&mut self, c: &CallPat, g: Goal, swapped: bool, next: Option<usize>) -> Option<Option<usize>> {
        let graph = self.facts.graph();
        let (value, crossed) = self.renamed(c, g.value);
        let Some(id) = graph.producer(value) else {
            self.miss(g, Grade::Kind, |s| format!("{} is not made by {}", s.say(value), wanted(c)));
            return None;
        };
        let n = graph.node(id);
        if !c.names(&n.op) {
            self.miss(g, Grade::Other, |s| format!("{} is made by {}, not by {}", s.say(value), n.op, wanted(c)));
            return None;
        }
        if let Some(slot) = g.output
            && n.output(slot) != Some(value)
        {
            self.miss(g, Grade::Other, |s| format!("{} is not output {slot} of {}", s.say(value), n.op));
            return None;
        }
        let taken = self.attributes(c, g, id)?;
        let inputs = n.inputs.iter().enumerate().filter(|(i, _)| !taken.contains(i));
        let mut inputs: Vec<Option<ValueId>> = inputs.map(|(_, v)| *v).collect();
        while inputs.last() == Some(&None) {
            inputs.pop();
        }
        if inputs.len() > c.args.len() && !c.rest {
            self.miss(g, Grade::Detail, |_| {
                format!("{} has {} inputs, the rule names {} (`...` allows more)", n.op, inputs.len(), c.args.len())
            });
            return None;
        }
        if swapped {
            inputs.resize(inputs.len().max(2), None);
            inputs.swap(0, 1);
        }
        let through = self.nodes.len();
        self.nodes.extend(crossed);
        self.nodes.push(id);
        let mut list = next;
        for i in c.order.iter().rev() {
            let arg = c.args[*i];
            match inputs.get(*i).copied().flatten() {
                Some(v) => {
                    let goal = Goal { pat: arg.pat, value: v, output: Some(0), pos: c.pos };
                    list = Some(self.push(goal, list));
                }
                None if arg.optional => {}
                None => {
                    self.nodes.truncate(through);
                    self.miss(g, Grade::Detail, |_| format!("{} has no input {i}", n.op));
                    return None;
                }
            }
        }
        Some(list)
    }

    /// The value before the Identity nodes that rename it, and these: they belong to the match, what they rename is inner as
    /// well.
    fn renamed(&self, c: &CallPat, mut value: ValueId) -> (ValueId, Vec<NodeId>) {
        let graph = self.facts.graph();
        let mut crossed = Vec::new();
        if !c.ops.iter().any(|o| o == "Identity") {
            while let Some(n) = graph.producer_is(value, "Identity")
                && let Some(x) = graph.node(n).input(0)
                && crossed.len() < 64
            {
                crossed.push(n);
                value = x;
            }
        }
        (value, crossed)
    }

    /// Matches the attributes of a node. Returns the inputs that hold one of them.
    fn attributes(&mut self, c: &CallPat, g: Goal, id: NodeId) -> Option<Vec<usize>> {
        let mut taken = Vec::new();
        for (name, want) in &c.attrs {
            let (have, from) = self.facts.attribute(id, name);
            taken.extend(from);
            let fits = match (want, &have) {
                (_, None) => false,
                (AttrPat::Bind(slot), Some(v)) => match &self.bound[*slot] {
                    Some(old) => *old == Bound::Attr(v.clone()),
                    None => {
                        self.bind(*slot, Bound::Attr(v.clone()));
                        true
                    }
                },
                (AttrPat::Is(want), Some(v)) => self.attr_fits(id, name, want, v),
            };
            if !fits {
                self.miss(g, Grade::Detail, |s| {
                    let have = have.as_ref().map_or("not there or not constant".to_owned(), show_attr);
                    let want = match want {
                        AttrPat::Is(a) => format!(", not {}", show_pattern(a)),
                        AttrPat::Bind(_) => String::new(),
                    };
                    format!("attribute `{name}` of {} is {have}{want}", s.facts.graph().node(id).op)
                });
                return None;
            }
        }
        Some(taken)
    }

    fn attr_fits(&self, node: NodeId, name: &str, want: &Attribute, have: &AttrValue) -> bool {
        let axis = matches!(name, "axis" | "axes");
        let from_end = |a: &i64| self.facts.axis_from_end(node, *a);
        let ints_fit = |w: &[i64], h: &[i64]| {
            w == h || axis && w.iter().map(from_end).collect::<Vec<_>>() == h.iter().map(from_end).collect::<Vec<_>>()
        };
        match (want, have) {
            (Attribute::Int(w), AttrValue::Int(h)) => ints_fit(&[*w], &[*h]),
            // A list of one may be stored as a scalar input, and the other way round.
            (Attribute::Ints(w), AttrValue::Int(h)) => ints_fit(w, &[*h]),
            (Attribute::Int(w), AttrValue::Ints(h)) => ints_fit(&[*w], h),
            (Attribute::Ints(w), AttrValue::Ints(h)) => ints_fit(w, h),
            (Attribute::Float(w), AttrValue::Float(h)) => within(*h as f64, *w, 1e-4),
            (Attribute::Int(w), AttrValue::Float(h)) => within(*h as f64, *w as f64, 1e-4),
            (Attribute::Text(w), AttrValue::Str(h)) => w.as_bytes() == &h[..],
            (Attribute::Floats(w), AttrValue::Floats(h)) => {
                w.len() == h.len() && w.iter().zip(h.iter()).all(|(w, h)| within(*h as f64, *w, 1e-4))
            }
            _ => false,
        }
    }

    /// A value in words.
    fn say(&self, v: ValueId) -> String {
        let g = self.facts.graph();
        let kind = match self.facts.constant(v) {
            Some(_) => "constant ",
            None if g.inputs().contains(&v) => "graph input ",
            None => "",
        };
        format!("{kind}`{}`", g.name_of(v))
    }
}

fn wanted(c: &CallPat) -> String {
    if c.ops.is_empty() { "any operator".to_owned() } else { c.ops.join(" or ") }
}

fn show_pattern(a: &Attribute) -> String {
    match a {
        Attribute::Int(v) => v.to_string(),
        Attribute::Float(v) => v.to_string(),
        Attribute::Text(v) => format!("{v:?}"),
        Attribute::Ints(v) => format!("{v:?}"),
        Attribute::Floats(v) => format!("{v:?}"),
        Attribute::Bind(v) => format!("${v}"),
    }
}

fn show_attr(a: &AttrValue) -> String {
    match a {
        AttrValue::Int(v) => v.to_string(),
        AttrValue::Float(v) => v.to_string(),
        AttrValue::Str(v) => format!("{:?}", String::from_utf8_lossy(v)),
        AttrValue::Ints(v) => format!("{v:?}"),
        AttrValue::Floats(v) => format!("{v:?}"),
        _ => "of another type".to_owned(),
    }
}

impl Pattern {
    /// The names this pattern binds that come from outside it (values and constants), for privacy checks: they are not
    /// inner values even if a node of the match makes them.
    pub(super) fn is_inner(&self, name: &str) -> bool {
        self.names.iter().any(|n| n.text == name && matches!(n.kind, NameKind::Line(_)))
    }
}
