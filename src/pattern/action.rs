//! What a rule does with a match: a replacement text becomes a patch.

use std::collections::BTreeMap;

use crate::ir::{AttrValue, Attrs, DType, Op, Tensor, ValueId};
use crate::rewrite::{Patch, Ref};

use super::compile::{NameKind, Pattern, check_call};
use super::facts::{Facts, as_attribute};
use super::matcher::{Bound, Match};
use super::ops;
use super::place::RuleFault;
use super::syntax::{Attribute, Call, Expr, Line, parse};

/// A checked replacement text.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Replacement {
    lines: Vec<Line>,
    /// Names of the match that get a new maker.
    pub replaced: Vec<String>,
    /// The opset its operators need, with the operator that needs it.
    pub needs: Option<(i64, String)>,
}

impl Replacement {
    /// Reads a replacement and checks it against the match.
    ///
    /// # Errors
    /// What is wrong with it first: syntax, an operator, a name that is unbound or may be.
    pub fn new(text: &str, pattern: &Pattern) -> Result<Replacement, RuleFault> {
        let lines = parse(text)?;
        let mut made: Vec<String> = Vec::new();
        let mut replaced = Vec::new();
        let mut needs: Option<(i64, String)> = None;
        for l in &lines {
            let several = l.targets.len() > 1;
            match &l.expr {
                Expr::Call(_) => {}
                Expr::Name { .. } if !several => {}
                e => return Err(RuleFault::new(e.pos(), "a line of a replacement is one operator or one name")),
            }
            check_expr(&l.expr, pattern, &made, &mut needs)?;
            for (target, pos) in &l.targets {
                let Some(t) = target else { continue };
                if made.contains(t) {
                    return Err(RuleFault::new(*pos, format!("`{t}` is made twice")));
                }
                match pattern.slot_of(t).map(|s| pattern.names[s].kind) {
                    Some(NameKind::Line(_)) => replaced.push(t.clone()),
                    Some(_) => {
                        let message = format!("`{t}` comes from outside the match and cannot be replaced");
                        return Err(RuleFault::new(*pos, message));
                    }
                    None => {}
                }
                made.push(t.clone());
            }
        }
        let root = pattern.lines.last().and_then(|l| l.targets.iter().flatten().next());
        if let Some(root) = root.map(|s| &pattern.names[*s].text)
            && !replaced.contains(root)
        {
            let pos = lines[0].targets[0].1;
            return Err(RuleFault::new(pos, format!("the replacement does not make `{root}`, the root of the match")));
        }
        Ok(Replacement { lines, replaced, needs })
    }

    /// Whether the constants of ones that the replacement makes for this match have a known size.
    ///
    /// # Errors
    /// In words, which has none.
    pub fn sized(&self, f: &Facts<'_>, m: &Match) -> Result<(), String> {
        self.lines.iter().try_for_each(|l| sized(&l.expr, f, m))
    }

    /// The patch that puts the replacement in.
    ///
    /// # Errors
    /// In words, what about this match the replacement cannot express.
    pub fn patch(&self, f: &Facts<'_>, m: &Match, by: &str) -> Result<Patch, String> {
        let g = f.graph();
        let from = m.nodes.iter().filter_map(|n| Some(g.name_of(g.node(*n).out()?).to_owned()));
        let mut b = Builder { f, m, patch: Patch::new(by).made_from(from), made: BTreeMap::new() };
        for l in &self.lines {
            let hints: Vec<String> = l.targets.iter().map(|(t, _)| b.hint(t.as_deref())).collect();
            let refs = match &l.expr {
                Expr::Call(c) if c.ops != [ONES] => b.call(c, &hints)?,
                e => vec![b.value(e)?.ok_or("a line has no value")?],
            };
            for ((target, _), r) in l.targets.iter().zip(refs) {
                if let Some(t) = target {
                    b.made.insert(t, r);
                }
            }
        }
        for name in &self.replaced {
            if let (Some(old), Some(new)) = (m.value(name), b.made.get(name.as_str())) {
                b.patch.replace(old, *new);
            }
        }
        Ok(b.patch)
    }
}

fn check_expr(e: &Expr, p: &Pattern, made: &[String], needs: &mut Option<(i64, String)>) -> Result<(), RuleFault> {
    match e {
        Expr::Call(c) if c.ops == [ONES] => check_ones(c, p, made, needs),
        Expr::Call(c) => check_made(c, p, made, needs),
        Expr::Name { name, optional, pos } | Expr::Constant { name, optional, pos } => {
            if made.contains(name) {
                return Ok(());
            }
            let Some(s) = p.slot_of(name) else {
                return Err(RuleFault::new(*pos, format!("`{name}` is neither bound by the match nor made before")));
            };
            let n = &p.names[s];
            if n.kind == NameKind::Attribute {
                return Err(RuleFault::new(*pos, format!("`{name}` is an attribute, not a value")));
            }
            if !n.certain && !optional {
                return Err(RuleFault::new(*pos, format!("not every match binds `{name}`: write `{name}?`")));
            }
            Ok(())
        }
        Expr::Number { .. } => Ok(()),
        Expr::Any(pos) => Err(RuleFault::new(*pos, "`_` has no meaning in a replacement")),
        Expr::Alternatives(all) => {
            let Some((last, first)) = all.split_last() else { return Ok(()) };
            for e in first {
                let name = match e {
                    Expr::Name { name, .. } | Expr::Constant { name, .. } => p.slot_of(name).map(|s| &p.names[s]),
                    _ => None,
                };
                if name.is_none_or(|n| n.certain || n.kind == NameKind::Attribute) {
                    let message = "in front of `|` stands a value that not every match binds";
                    return Err(RuleFault::new(e.pos(), message));
                }
            }
            check_expr(last, p, made, needs)
        }
    }
}

/// In a replacement, `Ones (x)` is a constant of ones, as many as the last axis of `x` has places.
const ONES: &str = "Ones";
/// No norm is wider; a gain of ones takes four bytes per channel.
const MOST_ONES: i64 = 1 << 20;

fn check_ones(c: &Call, p: &Pattern, made: &[String], needs: &mut Option<(i64, String)>) -> Result<(), RuleFault> {
    let plain = c.attrs.is_empty() && !c.commutes && !c.skippable && !c.rest;
    match &c.args[..] {
        [e @ Expr::Name { name, .. }] if plain && p.slot_of(name).is_some() => check_expr(e, p, made, needs),
        _ => Err(RuleFault::new(c.pos, format!("`{ONES}` wants one value of the match: `{ONES} (x)`"))),
    }
}

fn check_made(c: &Call, p: &Pattern, made: &[String], needs: &mut Option<(i64, String)>) -> Result<(), RuleFault> {
    if c.ops.len() != 1 || c.commutes || c.skippable || c.rest {
        return Err(RuleFault::new(
            c.pos,
            "a replacement names one operator and all its inputs, without `~`, `?`, `...`",
        ));
    }
    check_call(c)?;
    for (_, v, pos) in &c.attrs {
        if let Attribute::Bind(name) = v {
            match p.slot_of(name).map(|s| &p.names[s]) {
                None => return Err(RuleFault::new(*pos, format!("`${name}` is not bound by the match"))),
                Some(n) if !n.certain => return Err(RuleFault::new(*pos, format!("not every match binds `${name}`"))),
                Some(n) if !matches!(n.kind, NameKind::Constant | NameKind::Attribute) => {
                    return Err(RuleFault::new(*pos, format!("`{name}` is no constant: write `${name}` in the match")));
                }
                Some(_) => {}
            }
        }
    }
    if let Some(i) = ops::info(&c.ops[0])
        && needs.as_ref().is_none_or(|n| n.0 < i.since)
    {
        *needs = Some((i.since, c.ops[0].clone()));
    }
    c.args.iter().try_for_each(|a| check_expr(a, p, made, needs))
}

/// The first alternative that is available: a name only if the match binds it, anything else always.
fn bound<'a>(all: &'a [Expr], m: &Match) -> Option<&'a Expr> {
    all.iter().find(|e| match e {
        Expr::Name { name, .. } | Expr::Constant { name, .. } => m.value(name).is_some(),
        _ => true,
    })
}

fn sized(e: &Expr, f: &Facts<'_>, m: &Match) -> Result<(), String> {
    match e {
        Expr::Alternatives(all) => bound(all, m).map_or(Ok(()), |e| sized(e, f, m)),
        Expr::Call(c) if c.ops == [ONES] => ones(c, f, m).map(|_| ()),
        Expr::Call(c) => c.args.iter().try_for_each(|a| sized(a, f, m)),
        _ => Ok(()),
    }
}

/// How many ones `Ones (x)` is.
fn ones(c: &Call, f: &Facts<'_>, m: &Match) -> Result<i64, String> {
    let [Expr::Name { name, .. }] = &c.args[..] else { return Err(format!("`{ONES}` wants one value")) };
    let size = m.value(name).and_then(|v| f.last_size(v)).filter(|n| (2..=MOST_ONES).contains(n));
    size.ok_or_else(|| format!("the last size of `{name}` is not known to lie in 2..={MOST_ONES}"))
}

struct Builder<'a, 'm> {
    f: &'a Facts<'m>,
    m: &'a Match,
    patch: Patch,
    made: BTreeMap<&'a str, Ref>,
}

impl<'a> Builder<'a, '_> {
    /// A name for a new value: that of the value it stands in for, or the rule's own.
    fn hint(&self, target: Option<&str>) -> String {
        let old = target.and_then(|t| self.m.value(t)).map(|v| self.f.graph().name_of(v).to_owned());
        old.or_else(|| target.map(str::to_owned)).unwrap_or_default()
    }

    fn value(&mut self, e: &'a Expr) -> Result<Option<Ref>, String> {
        match e {
            Expr::Name { name, optional, .. } | Expr::Constant { name, optional, .. } => {
                if let Some(r) = self.made.get(name.as_str()) {
                    return Ok(Some(*r));
                }
                match self.m.value(name) {
                    Some(v) => Ok(Some(v.into())),
                    None if *optional => Ok(None),
                    None => Err(format!("`{name}` is unbound")),
                }
            }
            Expr::Number { value, .. } => {
                let t = literal(*value, self.root_type())?;
                Ok(Some(self.patch.constant("constant", t)))
            }
            Expr::Call(c) if c.ops == [ONES] => self.ones(c).map(Some),
            Expr::Call(c) => {
                let hint = self.f.graph().node(self.m.root).out().map_or("", |v| self.f.graph().name_of(v));
                let hint = format!("{hint}_{}", c.ops[0].to_ascii_lowercase());
                Ok(self.call(c, &[hint])?.first().copied())
            }
            Expr::Alternatives(all) => {
                let first = bound(all, self.m).ok_or("none of the alternatives is bound")?;
                self.value(first)
            }
            Expr::Any(_) => Err("not a replacement".to_owned()),
        }
    }

    fn ones(&mut self, c: &Call) -> Result<Ref, String> {
        let size = ones(c, self.f, self.m)?;
        let one = literal(1.0, self.root_type())?;
        let bytes = one.to_le_bytes().ok_or("ones have no bytes")?.repeat(size as usize);
        let root = self.f.graph().node(self.m.root).out().map_or("", |v| self.f.graph().name_of(v));
        Ok(self.patch.under(root).constant("ones", Tensor::raw(one.dtype, &[size], bytes)))
    }

    fn root_type(&self) -> DType {
        let root: Option<ValueId> = self.f.graph().node(self.m.root).out();
        root.and_then(|v| self.f.dtype(v)).unwrap_or(DType::FLOAT)
    }

    fn call(&mut self, c: &'a Call, hints: &[String]) -> Result<Vec<Ref>, String> {
        let mut inputs = Vec::new();
        for a in &c.args {
            inputs.push(self.value(a)?);
        }
        while inputs.last() == Some(&None) {
            inputs.pop();
        }
        self.one_type(&c.ops[0], &inputs)?;
        let mut attrs = Attrs::new();
        for (name, value, _) in &c.attrs {
            attrs.set(name, self.attribute(value)?);
        }
        let op = match c.ops[0].rsplit_once('.') {
            Some((domain, name)) => Op { domain: domain.to_owned(), name: name.to_owned() },
            None => Op::onnx(&c.ops[0]),
        };
        let hints: Vec<&str> = hints.iter().map(String::as_str).collect();
        Ok(self.patch.node_with(op, &inputs, &hints, attrs))
    }

    /// Refuses operands of several float types, which a match can bind on either side of a Cast and no operator takes.
    fn one_type(&self, op: &str, inputs: &[Option<Ref>]) -> Result<(), String> {
        let of = |r: &Ref| match r {
            Ref::Old(v) => self.f.dtype(*v).filter(|t| t.is_float()),
            Ref::New(_) => None,
        };
        let mut types = inputs.iter().flatten().filter_map(of);
        let first = types.next();
        match types.find(|t| Some(*t) != first).zip(first) {
            Some((other, first)) => Err(format!("{op} would read {first} and {other}")),
            None => Ok(()),
        }
    }

    fn attribute(&self, a: &Attribute) -> Result<AttrValue, String> {
        Ok(match a {
            Attribute::Int(v) => AttrValue::Int(*v),
            Attribute::Float(v) => AttrValue::Float(*v as f32),
            Attribute::Text(v) => AttrValue::Str(v.clone().into_bytes().into()),
            Attribute::Ints(v) => AttrValue::Ints(v.as_slice().into()),
            Attribute::Floats(v) => AttrValue::Floats(v.iter().map(|x| *x as f32).collect()),
            Attribute::Bind(name) => match self.m.bindings.get(name) {
                Some(Bound::Attr(v)) => v.clone(),
                Some(Bound::Value(v)) => {
                    let t = self.f.constant(*v).ok_or_else(|| format!("`${name}` is no constant"))?;
                    // One float is a float whatever its shape; integers keep theirs, `axes` is a list.
                    match t.as_scalar() {
                        Some(x) if t.dtype.is_float() => AttrValue::Float(x as f32),
                        _ => as_attribute(t).ok_or_else(|| format!("`${name}` cannot be an attribute"))?,
                    }
                }
                None => return Err(format!("`${name}` is unbound")),
            },
        })
    }
}

/// A number as a scalar of a float type.
fn literal(v: f64, t: DType) -> Result<Tensor, String> {
    Ok(match t {
        DType::FLOAT => Tensor::scalar_f32(v as f32),
        DType::DOUBLE => Tensor::raw(t, &[], v.to_le_bytes().to_vec()),
        DType::FLOAT16 => Tensor::raw(t, &[], half::f16::from_f64(v).to_le_bytes().to_vec()),
        DType::BFLOAT16 => Tensor::raw(t, &[], half::bf16::from_f64(v).to_le_bytes().to_vec()),
        t => return Err(format!("a number cannot stand where {t} is computed")),
    })
}
