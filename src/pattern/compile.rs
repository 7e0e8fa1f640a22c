//! A parsed match text becomes an immutable pattern; whatever can be wrong with it is found here.

use std::collections::BTreeSet;

use crate::ir::{DType, Op};

use super::ops;
use super::place::{Pos, RuleFault};
use super::syntax::{Attribute, Call, Expr, parse};

pub(super) type PatId = usize;
pub(super) type Slot = usize;

/// What a value must look like.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Pat {
    Any,
    /// A value that comes from outside the pattern.
    Free(Slot),
    /// Output `output` of what line `line` describes.
    Line {
        line: usize,
        output: usize,
    },
    Constant(Slot),
    Number(f64),
    Call(CallPat),
    Alternatives(Vec<PatId>),
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct CallPat {
    /// Empty: any operator.
    pub ops: Vec<String>,
    pub commutes: bool,
    pub attrs: Vec<(String, AttrPat)>,
    pub args: Vec<ArgPat>,
    /// The order in which the inputs are looked at: numbers and constants first, they fail soonest.
    pub order: Vec<usize>,
    pub rest: bool,
    pub pos: Pos,
}

impl CallPat {
    /// True if a node of this operator may match.
    pub fn names(&self, op: &Op) -> bool {
        self.ops.is_empty()
            || self.ops.iter().any(|o| match o.rsplit_once('.') {
                None => op.is(o),
                Some((domain, name)) => op.domain == domain && op.name == name,
            })
    }
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum AttrPat {
    Is(Attribute),
    Bind(Slot),
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct ArgPat {
    pub pat: PatId,
    pub optional: bool,
}

/// What a name of a rule stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NameKind {
    /// Made by a line of the match.
    Line(usize),
    /// Comes from outside.
    Free,
    Constant,
    Attribute,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Name {
    pub text: String,
    pub kind: NameKind,
    /// False if a match can leave it unbound.
    pub certain: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct LinePat {
    pub targets: Vec<Option<Slot>>,
    pub pat: PatId,
}

/// A compiled match text.
#[derive(Clone, Debug, PartialEq)]
pub struct Pattern {
    pub(super) pats: Vec<Pat>,
    pub(super) names: Vec<Name>,
    /// The last one is the root.
    pub(super) lines: Vec<LinePat>,
    pub(super) text: Vec<String>,
    /// Operators the root can be; empty for any.
    pub(super) root_ops: Vec<String>,
    /// The type that constants in float32 may have had before: they are compared as closely as it allows.
    pub(super) once: DType,
}

impl Pattern {
    /// Compiles a match text.
    ///
    /// # Errors
    /// The first thing wrong with it, with its place in the text.
    pub fn new(text: &str) -> Result<Pattern, RuleFault> {
        let lines = parse(text)?;
        let mut p = Pattern {
            pats: Vec::new(),
            names: Vec::new(),
            lines: Vec::new(),
            text: text.lines().map(|l| l.trim_end().to_owned()).collect(),
            root_ops: Vec::new(),
            once: DType::FLOAT,
        };
        let mut later: Vec<&str> = Vec::new();
        for l in &lines {
            later.extend(l.targets.iter().filter_map(|(n, _)| n.as_deref()));
        }
        for (i, line) in lines.iter().enumerate() {
            let pat = p.expr(&line.expr, &later)?;
            let mut targets = Vec::new();
            for (name, pos) in &line.targets {
                targets.push(match name {
                    None => None,
                    Some(n) => {
                        if p.slot_of(n).is_some() {
                            return Err(RuleFault::new(*pos, format!("`{n}` is already taken by an earlier line")));
                        }
                        later.retain(|l| l != n);
                        p.names.push(Name { text: n.clone(), kind: NameKind::Line(i), certain: false });
                        Some(p.names.len() - 1)
                    }
                });
            }
            if targets.len() > 1 {
                p.check_outputs(pat, targets.len(), line.targets[0].1)?;
            }
            p.lines.push(LinePat { targets, pat });
        }
        let root = p.lines.len() - 1;
        let (mut ops, mut seen) = (BTreeSet::new(), BTreeSet::new());
        if !p.roots(p.lines[root].pat, &mut ops, &mut seen) {
            return Err(RuleFault::new(
                lines[root].expr.pos(),
                "the last line is the root and must be an operator in every alternative",
            ));
        }
        if !ops.contains("") {
            p.root_ops = ops.into_iter().collect();
        }
        let mut reached = BTreeSet::new();
        p.reach(p.lines[root].pat, &mut reached);
        reached.insert(root);
        if let Some(i) = (0..p.lines.len()).find(|i| !reached.contains(i)) {
            let (name, pos) = &lines[i].targets[0];
            let name = name.as_deref().unwrap_or("_");
            return Err(RuleFault::new(*pos, format!("nothing that the last line needs uses `{name}`")));
        }
        // Lines name earlier ones only, and each is looked at once: as a tree they may have 2^n leaves.
        let mut certain: Vec<BTreeSet<Slot>> = Vec::with_capacity(p.lines.len());
        for l in &p.lines {
            let mut of_line = p.certain(l.pat, &certain);
            of_line.extend(l.targets.iter().flatten());
            certain.push(of_line);
        }
        for s in certain.pop().unwrap_or_default() {
            p.names[s].certain = true;
        }
        Ok(p)
    }

    pub(super) fn slot_of(&self, name: &str) -> Option<Slot> {
        self.names.iter().position(|n| n.text == name)
    }

    fn add(&mut self, p: Pat) -> PatId {
        self.pats.push(p);
        self.pats.len() - 1
    }

    /// The slot of a name used as `kind`, made on first use.
    fn slot(&mut self, name: &str, kind: NameKind, pos: Pos) -> Result<Slot, RuleFault> {
        let Some(i) = self.slot_of(name) else {
            self.names.push(Name { text: name.to_owned(), kind, certain: false });
            return Ok(self.names.len() - 1);
        };
        if self.names[i].kind == kind {
            return Ok(i);
        }
        let say = |k| match k {
            NameKind::Line(_) => "the value of a line",
            NameKind::Free => "a value",
            NameKind::Constant => "a constant",
            NameKind::Attribute => "an attribute",
        };
        let message = format!("`{name}` is {} here but {} elsewhere", say(kind), say(self.names[i].kind));
        Err(RuleFault::new(pos, message))
    }

    fn expr(&mut self, e: &Expr, later: &[&str]) -> Result<PatId, RuleFault> {
        Ok(match e {
            Expr::Any(_) => self.add(Pat::Any),
            Expr::Number { value, .. } => self.add(Pat::Number(*value)),
            Expr::Constant { name, pos, .. } => {
                let s = self.slot(name, NameKind::Constant, *pos)?;
                self.add(Pat::Constant(s))
            }
            Expr::Name { name, pos, .. } => {
                if later.contains(&name.as_str()) {
                    return Err(RuleFault::new(*pos, format!("`{name}` is used before its own line is complete")));
                }
                match self.slot_of(name).map(|s| (s, self.names[s].kind)) {
                    Some((s, NameKind::Line(line))) => {
                        let output = self.lines[line].targets.iter().position(|t| *t == Some(s)).unwrap_or(0);
                        self.add(Pat::Line { line, output })
                    }
                    _ => {
                        let s = self.slot(name, NameKind::Free, *pos)?;
                        self.add(Pat::Free(s))
                    }
                }
            }
            Expr::Alternatives(all) => {
                let ids = all.iter().map(|e| self.expr(e, later)).collect::<Result<Vec<_>, _>>()?;
                self.add(Pat::Alternatives(ids))
            }
            Expr::Call(c) => self.call(c, later)?,
        })
    }

    fn call(&mut self, c: &Call, later: &[&str]) -> Result<PatId, RuleFault> {
        check_call(c)?;
        let mut attrs = Vec::new();
        for (name, value, pos) in &c.attrs {
            attrs.push((
                name.clone(),
                match value {
                    Attribute::Bind(n) => AttrPat::Bind(self.slot(n, NameKind::Attribute, *pos)?),
                    v => AttrPat::Is(v.clone()),
                },
            ));
        }
        let mut args = Vec::new();
        for a in &c.args {
            let optional = matches!(a, Expr::Name { optional: true, .. } | Expr::Constant { optional: true, .. });
            args.push(ArgPat { pat: self.expr(a, later)?, optional });
        }
        let mut order: Vec<usize> = (0..args.len()).collect();
        order.sort_by_key(|i| match self.pats[args[*i].pat] {
            Pat::Number(_) => 0,
            Pat::Constant(_) => 1,
            _ => 2,
        });
        let first = args.first().map(|a| a.pat);
        let call = CallPat { ops: c.ops.clone(), commutes: c.commutes, attrs, args, order, rest: c.rest, pos: c.pos };
        let id = self.add(Pat::Call(call));
        match first {
            Some(bare) if c.skippable => Ok(self.add(Pat::Alternatives(vec![id, bare]))),
            _ => Ok(id),
        }
    }

    fn check_outputs(&self, pat: PatId, n: usize, pos: Pos) -> Result<(), RuleFault> {
        match &self.pats[pat] {
            Pat::Call(c) => {
                match c
                    .ops
                    .iter()
                    .filter_map(|o| Some((o, ops::info(o)?)))
                    .find(|(_, i)| i.max_outputs.is_some_and(|m| m < n))
                {
                    Some((op, i)) => Err(RuleFault::new(
                        pos,
                        format!("{op} has at most {} output(s), not {n}", i.max_outputs.unwrap_or(n)),
                    )),
                    None => Ok(()),
                }
            }
            Pat::Alternatives(all) => all.iter().try_for_each(|a| self.check_outputs(*a, n, pos)),
            _ => Err(RuleFault::new(pos, "several outputs want an operator after them")),
        }
    }

    /// Collects the operators a root can be (`""`: any); false if some alternative is no operator.
    fn roots(&self, pat: PatId, into: &mut BTreeSet<String>, seen: &mut BTreeSet<usize>) -> bool {
        match &self.pats[pat] {
            Pat::Call(c) if c.ops.is_empty() => {
                into.insert(String::new());
                true
            }
            Pat::Call(c) => {
                into.extend(c.ops.iter().cloned());
                true
            }
            Pat::Alternatives(all) => all.iter().all(|a| self.roots(*a, into, seen)),
            // A line that was no operator has ended the search.
            Pat::Line { line, .. } => !seen.insert(*line) || self.roots(self.lines[*line].pat, into, seen),
            _ => false,
        }
    }

    fn reach(&self, pat: PatId, into: &mut BTreeSet<usize>) {
        match &self.pats[pat] {
            Pat::Call(c) => c.args.iter().for_each(|a| self.reach(a.pat, into)),
            Pat::Alternatives(all) => all.iter().for_each(|a| self.reach(*a, into)),
            Pat::Line { line, .. } if into.insert(*line) => self.reach(self.lines[*line].pat, into),
            _ => {}
        }
    }

    /// Names bound in every match of this part; `lines` has those of the lines before it.
    fn certain(&self, pat: PatId, lines: &[BTreeSet<Slot>]) -> BTreeSet<Slot> {
        match &self.pats[pat] {
            Pat::Any | Pat::Number(_) => BTreeSet::new(),
            Pat::Free(s) | Pat::Constant(s) => BTreeSet::from([*s]),
            Pat::Line { line, .. } => lines[*line].clone(),
            Pat::Call(c) => {
                let binds = c.attrs.iter().filter_map(|(_, a)| if let AttrPat::Bind(s) = a { Some(*s) } else { None });
                let mut s: BTreeSet<Slot> = binds.collect();
                for a in c.args.iter().filter(|a| !a.optional) {
                    s.extend(self.certain(a.pat, lines));
                }
                s
            }
            Pat::Alternatives(all) => {
                let mut each = all.iter().map(|a| self.certain(*a, lines));
                let first = each.next().unwrap_or_default();
                each.fold(first, |acc, s| acc.intersection(&s).copied().collect())
            }
        }
    }
}

/// Operators exist, take that many inputs, and commute only if they have two.
pub(super) fn check_call(c: &Call) -> Result<(), RuleFault> {
    if c.commutes && (c.args.len() != 2 || c.rest) {
        return Err(RuleFault::new(c.pos, format!("`~` wants two inputs, here are {}", c.args.len())));
    }
    if c.skippable && c.args.is_empty() {
        return Err(RuleFault::new(c.pos, "`?` after an operator wants an input that can stand in its place"));
    }
    for op in c.ops.iter().filter(|o| !o.contains('.')) {
        let Some(i) = ops::info(op) else {
            let hint = ops::nearest(op).map_or(String::new(), |n| format!("; did you mean {n}?"));
            return Err(RuleFault::new(c.pos, format!("the standard has no operator `{op}`{hint}")));
        };
        let (given, certain) = (
            c.args.len(),
            c.args
                .iter()
                .filter(|a| !matches!(a, Expr::Name { optional: true, .. } | Expr::Constant { optional: true, .. }))
                .count(),
        );
        // Inputs that an attribute pattern stands for need not be written.
        let by_attr = c.attrs.iter().filter(|(a, _, _)| ops::attr_input(op, a).is_some()).count();
        if let Some(most) = i.max_inputs
            && given > most
        {
            return Err(RuleFault::new(c.pos, format!("{op} takes at most {most} input(s), here are {given}")));
        }
        if certain + by_attr < i.min_inputs && !c.rest {
            return Err(RuleFault::new(
                c.pos,
                format!(
                    "{op} takes at least {} input(s), here are {certain} (`...` stands for the others)",
                    i.min_inputs
                ),
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(text: &str) -> RuleFault {
        Pattern::new(text).unwrap_err()
    }

    #[test]
    fn certain_and_uncertain_names() {
        let p = Pattern::new("n = Sub (x, m)\ny = Add~ (Mul~ (n, $g), $b) | Mul~ (n, $g)").unwrap();
        let certain = |n: &str| p.names[p.slot_of(n).unwrap()].certain;
        assert!(certain("x") && certain("g") && certain("n") && certain("y"));
        assert!(!certain("b"));
        assert_eq!(p.root_ops, ["Add", "Mul"]);
    }

    #[test]
    fn lines_that_double_are_read_once() {
        let mut text = "a0 = Exp (x) | Neg (x)\n".to_owned();
        for i in 1..200 {
            let j = i - 1;
            text += &format!("a{i} = Add (a{j}, a{j}) | Mul (a{j}, a{j}) | a{j}\n");
        }
        let p = Pattern::new(&text).unwrap();
        assert!(p.names[p.slot_of("x").unwrap()].certain);
        assert_eq!(p.root_ops, ["Add", "Exp", "Mul", "Neg"]);
    }

    #[test]
    fn mistakes_are_found_with_their_place() {
        let f = fault("a = Sub (x, m)\ny = Sofmax (a)");
        assert_eq!((f.pos.line, f.pos.column), (2, 5));
        assert!(f.message.contains("did you mean Softmax"), "{f}");
        assert!(fault("y = Sub (x)").message.contains("at least 2"));
        assert!(fault("y = Sub (x, y)").message.contains("before its own line"));
        assert!(fault("y = Sub (x, a, z)").message.contains("at most 2"));
        assert!(fault("a = Exp (x)\ny = Exp (x)").message.contains("`a`"));
        assert!(fault("y = Exp (x) | x").message.contains("root"));
        assert!(fault("y = Exp~ (x)").message.contains("`~`"));
        assert!(fault("y = Add (x, $x)").message.contains("constant"));
        assert!(fault("y = Add (b, x)\nb = Exp (y)").message.contains("before"));
        assert!(fault("a, b, c = Exp (x)\ny = Add (a, b)").message.contains("output"));
        assert!(fault("y = Exp (x)\ny = Exp (x)").message.contains("taken"));
    }

    #[test]
    fn the_root_can_be_reached_through_a_name() {
        let p = Pattern::new("a = Exp (x)\ny = Neg (a) | a").unwrap();
        assert_eq!(p.root_ops, ["Exp", "Neg"]);
    }
}
