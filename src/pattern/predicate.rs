//! The closed list of preconditions a rule may name under `where`.

use std::fmt::Display;

use crate::ir::masks::HIDES;
use crate::ir::{AttrValue, DType, NodeId, ValueId};

use super::compile::Pattern;
use super::condition::{Argument, Condition, Field};
use super::facts::{Facts, within};
use super::matcher::{Bound, Match};
use super::weighing::weighing;

/// A precondition of a match. Names that a match left unbound satisfy every predicate.
#[derive(Clone, Debug, PartialEq)]
pub enum Predicate {
    /// Constants of one element.
    Scalar(Vec<String>),
    /// Constants of one dimension and more than one element.
    Vector(Vec<String>),
    /// Constants whose every element is above 0.
    Positive(Vec<String>),
    /// Boolean (or integer) constants with no false (or 0).
    AllTrue(Vec<String>),
    /// Constants with only zeros.
    AllZero(Vec<String>),
    /// Constants with only zeros and ones.
    Binary(Vec<String>),
    /// Constants of which every element takes a score its weight, added to it or put in its place.
    Hides(Vec<String>),
    /// Constants with no element above this.
    AtMost(Vec<(String, f64)>),
    /// One-element constants within a relative distance of a number.
    Approx { values: Vec<(String, f64)>, within: f64 },
    /// Values whose node works along the last axis.
    LastAxis(Vec<String>),
    /// Values with this many dimensions; an unknown rank fails.
    Rank(Vec<(String, f64)>),
    /// Values of provably equal shape.
    SameShape(Vec<String>),
    /// One-element constants that are the last size of a value, raised to a power.
    SizePower { powers: Vec<(String, f64)>, of: String },
    /// Values whose numbers of dimensions are not known to differ: a constant with more dimensions than what it is
    /// combined with would add some.
    SameRank(Vec<String>),
    /// Values whose last sizes are not known to differ.
    SameLastSize(Vec<String>),
    /// No constants.
    Computed(Vec<String>),
    /// Values of which at most one is a constant.
    OneConstant(Vec<String>),
    /// Values of this element type; an unknown type fails.
    DType(Vec<(String, DType)>),
    /// The model's opset lies in this range.
    Opset { min: i64, max: i64 },
    /// Inner values that may be read from outside. All others must be private.
    Shared(Vec<String>),
    /// Values that are multiplied with other computed values and summed: attention weights, changed on the way or not.
    Weighs(Vec<String>),
}

/// The predicates by name, for error messages and documentation.
pub const NAMES: &[&str] = &[
    "scalar",
    "vector",
    "positive",
    "all_true",
    "all_zero",
    "binary",
    "computed",
    "one_constant",
    "hides",
    "at_most",
    "approx",
    "last_axis",
    "rank",
    "same_shape",
    "same_rank",
    "same_last_size",
    "size_power",
    "dtype",
    "opset",
    "shared",
    "weighs",
];

impl Predicate {
    /// Reads one `where` entry and checks it against the rule's names.
    ///
    /// # Errors
    /// An unknown predicate, an argument of the wrong form, a name the match does not bind.
    pub(super) fn new(c: &Condition, pattern: &Pattern) -> Result<Predicate, String> {
        let p = Self::read(c)?;
        for name in p.names() {
            if pattern.slot_of(name).is_none() {
                return Err(format!("`{}` speaks of `{name}`, which the match does not bind", c.name));
            }
        }
        Ok(p)
    }

    fn read(c: &Condition) -> Result<Predicate, String> {
        let names = || match &c.argument {
            Argument::Names(n) => Ok(n.clone()),
            Argument::Fields(_) => Err(format!("`{}` wants a name or a list of names", c.name)),
        };
        let fields = || match &c.argument {
            Argument::Fields(f) => Ok(f.clone()),
            Argument::Names(_) => Err(format!("`{0}` wants `{0}: {{name: value}}`", c.name)),
        };
        let numbers = || {
            let number = |(n, f): (String, Field)| match f {
                Field::Number(v) => Ok((n, v)),
                Field::Text(t) => Err(format!("`{}` wants a number for `{n}`, not `{t}`", c.name)),
            };
            fields()?.into_iter().map(number).collect::<Result<Vec<_>, _>>()
        };
        Ok(match c.name.as_str() {
            "scalar" => Predicate::Scalar(names()?),
            "vector" => Predicate::Vector(names()?),
            "positive" => Predicate::Positive(names()?),
            "all_true" => Predicate::AllTrue(names()?),
            "all_zero" => Predicate::AllZero(names()?),
            "binary" => Predicate::Binary(names()?),
            "computed" => Predicate::Computed(names()?),
            "one_constant" => Predicate::OneConstant(names()?),
            "hides" => Predicate::Hides(names()?),
            "at_most" => Predicate::AtMost(numbers()?),
            "approx" => {
                let (rel, values): (Vec<_>, Vec<_>) = numbers()?.into_iter().partition(|(n, _)| n == "within");
                Predicate::Approx { values, within: rel.first().map_or(1e-4, |r| r.1) }
            }
            "last_axis" => Predicate::LastAxis(names()?),
            "rank" => Predicate::Rank(numbers()?),
            "same_shape" => Predicate::SameShape(names()?),
            "same_rank" => Predicate::SameRank(names()?),
            "same_last_size" => Predicate::SameLastSize(names()?),
            "size_power" => {
                let (of, powers): (Vec<_>, Vec<_>) = fields()?.into_iter().partition(|(n, _)| n == "of");
                let Some((_, Field::Text(of))) = of.into_iter().next() else {
                    return Err("`size_power` wants `of: name`, the value whose last size it is".to_owned());
                };
                let power = |(n, f): (String, Field)| match f {
                    Field::Number(p) => Ok((n, p)),
                    Field::Text(t) => Err(format!("`size_power` wants a number for `{n}`, not `{t}`")),
                };
                Predicate::SizePower { powers: powers.into_iter().map(power).collect::<Result<_, _>>()?, of }
            }
            "dtype" => {
                let typed = |(n, f): (String, Field)| match f {
                    Field::Text(t) => DType::from_name(&t).map(|d| (n, d)).ok_or(format!("`{t}` is no element type")),
                    Field::Number(v) => Err(format!("`dtype` wants a type such as `float` for `{n}`, not {v}")),
                };
                Predicate::DType(fields()?.into_iter().map(typed).collect::<Result<_, _>>()?)
            }
            "opset" => {
                let (mut min, mut max) = (0, i64::MAX);
                for (n, v) in numbers()? {
                    match n.as_str() {
                        "min" => min = v as i64,
                        "max" => max = v as i64,
                        _ => return Err(format!("`opset` knows `min` and `max`, not `{n}`")),
                    }
                }
                Predicate::Opset { min, max }
            }
            "shared" => Predicate::Shared(names()?),
            "weighs" => Predicate::Weighs(names()?),
            other => return Err(format!("there is no predicate `{other}`; there are {}", NAMES.join(", "))),
        })
    }

    fn names(&self) -> Vec<&str> {
        match self {
            Predicate::Scalar(n)
            | Predicate::Vector(n)
            | Predicate::Positive(n)
            | Predicate::AllTrue(n)
            | Predicate::AllZero(n)
            | Predicate::Binary(n)
            | Predicate::Hides(n)
            | Predicate::Computed(n)
            | Predicate::OneConstant(n)
            | Predicate::LastAxis(n)
            | Predicate::SameShape(n)
            | Predicate::SameRank(n)
            | Predicate::SameLastSize(n)
            | Predicate::Weighs(n)
            | Predicate::Shared(n) => n.iter().map(String::as_str).collect(),
            Predicate::AtMost(n) | Predicate::Rank(n) | Predicate::Approx { values: n, .. } => {
                n.iter().map(|x| x.0.as_str()).collect()
            }
            Predicate::DType(n) => n.iter().map(|x| x.0.as_str()).collect(),
            Predicate::SizePower { powers, of } => {
                powers.iter().map(|x| &x.0).chain([of]).map(String::as_str).collect()
            }
            Predicate::Opset { .. } => Vec::new(),
        }
    }

    /// Holds the predicate against a match; the text says why it fails.
    pub(super) fn check(&self, f: &Facts<'_>, m: &Match) -> Result<(), String> {
        let held = Held { f, m };
        match self {
            Predicate::Scalar(names) => held.every(names, |v| scalar(f, v)),
            Predicate::Vector(names) => held.every(names, |v| vector(f, v)),
            Predicate::Positive(names) => held.elements(names, "positive", |x| x > 0.0),
            Predicate::AllTrue(names) => held.elements(names, "true", |x| x != 0.0),
            Predicate::AllZero(names) => held.elements(names, "zero", |x| x == 0.0),
            Predicate::Binary(names) => held.elements(names, "0 or 1", |x| x == 0.0 || x == 1.0),
            Predicate::Hides(names) => {
                held.elements(names, &format!("at most {HIDES}, which hides,"), |x| x <= HIDES.into())
            }
            Predicate::AtMost(list) => list.iter().try_for_each(|(n, top)| {
                held.elements(std::slice::from_ref(n), &format!("at most {top}"), |x| x <= *top)
            }),
            Predicate::Approx { values, within } => held.each(values, |v, want| near(f, v, *want, *within)),
            Predicate::LastAxis(names) => held.every(names, |v| last_axis(f, v)),
            Predicate::Rank(list) => held.each(list, |v, want| rank(f, v, *want)),
            Predicate::SameShape(names) => held.same_shape(names),
            Predicate::SameRank(names) => held.alike(names, |v| f.rank(v), |r| format!("{r} dimensions")),
            Predicate::SameLastSize(names) => held.alike(names, |v| f.last_size(v), |n| format!("last size {n}")),
            Predicate::SizePower { powers, of } => held.each(powers, |v, power| {
                let size = m.value(of).and_then(|x| f.last_size(x));
                let size =
                    size.ok_or_else(|| format!("is held against the last size of `{of}`, which is not known"))?;
                near(f, v, (size as f64).powf(*power), 1e-4)
            }),
            Predicate::Computed(names) => held.every(names, |v| match f.constant(v) {
                Some(_) => Err("is a constant".to_owned()),
                None => Ok(()),
            }),
            Predicate::OneConstant(names) => {
                let fixed = |n: &&String| m.value(n).is_some_and(|v| f.constant(v).is_some());
                match names.iter().filter(fixed).collect::<Vec<_>>()[..] {
                    [a, b, ..] => Err(format!("both `{a}` and `{b}` are constants")),
                    _ => Ok(()),
                }
            }
            Predicate::DType(list) => held.each(list, |v, want| dtype(f, v, *want)),
            Predicate::Opset { min, max } => {
                let has = f.model.opset();
                if (*min..=*max).contains(&has) {
                    return Ok(());
                }
                let range = if *max == i64::MAX { format!("{min} or later") } else { format!("{min} to {max}") };
                Err(format!("the model has opset {has}, the rule is for {range}"))
            }
            Predicate::Weighs(names) => held.every(names, |v| match weighing(f, v) {
                Some(_) => Ok(()),
                None => Err("reaches no product with values".to_owned()),
            }),
            Predicate::Shared(_) => Ok(()),
        }
    }
}

/// What a predicate is held against. Tests of single values return what is wrong with one, which is put after its name.
struct Held<'a, 'm> {
    f: &'a Facts<'m>,
    m: &'a Match,
}

impl Held<'_, '_> {
    fn failed(&self, name: &str, v: ValueId, what: &str) -> String {
        format!("`{name}` (`{}`) {what}", self.f.graph().name_of(v))
    }

    fn every(&self, names: &[String], test: impl Fn(ValueId) -> Result<(), String>) -> Result<(), String> {
        names.iter().try_for_each(|n| {
            let Some(v) = self.m.value(n) else { return Ok(()) };
            test(v).map_err(|what| self.failed(n, v, &what))
        })
    }

    fn each<T>(&self, list: &[(String, T)], test: impl Fn(ValueId, &T) -> Result<(), String>) -> Result<(), String> {
        list.iter().try_for_each(|(n, want)| self.every(std::slice::from_ref(n), |v| test(v, want)))
    }

    /// Every element of constants; `what` they must be.
    fn elements(&self, names: &[String], what: &str, ok: impl Fn(f64) -> bool) -> Result<(), String> {
        self.every(names, |v| match numbers(self.f, v) {
            Some(x) if x.iter().all(|x| ok(*x)) => Ok(()),
            Some(_) => Err(format!("is not {what} everywhere")),
            None => Err("is no constant of numbers".to_owned()),
        })
    }

    fn same_shape(&self, names: &[String]) -> Result<(), String> {
        let bound: Vec<_> = names.iter().filter_map(|n| Some((n, self.m.value(n)?))).collect();
        bound.windows(2).try_for_each(|w| {
            let ((a, x), (b, y)) = (w[0], w[1]);
            match self.f.same_shape(x, y) {
                true => Ok(()),
                false => Err(self.failed(b, y, &format!("is not known to have the shape of `{a}`"))),
            }
        })
    }

    /// Values that do not differ in something, where it is known.
    fn alike<T: PartialEq + Copy + Display>(
        &self,
        names: &[String],
        of: impl Fn(ValueId) -> Option<T>,
        say: impl Fn(T) -> String,
    ) -> Result<(), String> {
        let known = names.iter().filter_map(|n| self.m.value(n).and_then(|v| Some((n, v, of(v)?))));
        let known: Vec<_> = known.collect();
        known.windows(2).try_for_each(|w| {
            let ((a, _, x), (b, v, y)) = (w[0], w[1]);
            if x == y { Ok(()) } else { Err(self.failed(b, v, &format!("has {}, `{a}` has {x}", say(y)))) }
        })
    }
}

fn scalar(f: &Facts<'_>, v: ValueId) -> Result<(), String> {
    match f.constant(v) {
        Some(t) if t.len() == 1 => Ok(()),
        Some(t) => Err(format!("has {} elements, not one", t.len())),
        None => Err("is no constant".to_owned()),
    }
}

fn vector(f: &Facts<'_>, v: ValueId) -> Result<(), String> {
    match f.constant(v) {
        Some(t) if t.dims.len() == 1 && t.len() > 1 => Ok(()),
        Some(t) => Err(format!("has shape {:?}, it is no vector", t.dims)),
        None => Err("is no constant".to_owned()),
    }
}

fn near(f: &Facts<'_>, v: ValueId, want: f64, rel: f64) -> Result<(), String> {
    match f.constant(v).and_then(|t| t.as_scalar()) {
        Some(x) if within(x, want, rel) => Ok(()),
        Some(x) => Err(format!("is {x}, not {want}")),
        None => Err("is no one-element constant".to_owned()),
    }
}

fn rank(f: &Facts<'_>, v: ValueId, want: f64) -> Result<(), String> {
    match f.rank(v) {
        Some(r) if r as f64 == want => Ok(()),
        Some(r) => Err(format!("has {r} dimensions, not {want}")),
        None => Err(format!("may not have {want} dimensions: its rank is unknown")),
    }
}

fn dtype(f: &Facts<'_>, v: ValueId, want: DType) -> Result<(), String> {
    match f.dtype(v) {
        Some(t) if t == want => Ok(()),
        Some(t) => Err(format!("is {t}, not {want}")),
        None => Err(format!("may not be {want}: its type is unknown")),
    }
}

/// Elements of a constant of any numeric type.
fn numbers(f: &Facts<'_>, v: ValueId) -> Option<Vec<f64>> {
    let t = f.constant(v)?;
    if t.dtype.is_float() {
        Some(t.to_f32s()?.iter().map(|x| *x as f64).collect())
    } else {
        Some(t.to_i64s()?.iter().map(|x| *x as f64).collect())
    }
}

/// Does the node that makes `v` work along the last axis?
fn last_axis(f: &Facts<'_>, v: ValueId) -> Result<(), String> {
    let Some(n) = f.graph().producer(f.source(v)) else { return Err("is made by no node".to_owned()) };
    let axes = ["axis", "axes"].iter().find_map(|a| match f.attribute(n, a).0? {
        AttrValue::Int(a) => Some(vec![a]),
        AttrValue::Ints(a) => Some(a.to_vec()),
        _ => None,
    });
    let Some(axes) = axes else { return Err("names no axis".to_owned()) };
    match axes[..] {
        [a] if f.axis_from_end(n, a) == -1 => Ok(()),
        [a] if a >= 0 && f.axis_from_end(n, a) == a => {
            Err(format!("works along axis {a}, which may not be the last: the rank is unknown"))
        }
        _ => Err(format!("works along {axes:?}, not along the last axis")),
    }
}

/// Every inner value of a match is read only inside it. `spared` values may be read from outside; with `measured`, so may
/// any value by Shape and Size, which read no numbers.
pub(super) fn private(f: &Facts<'_>, m: &Match, spared: &[ValueId], measured: bool) -> Result<(), String> {
    let g = f.graph();
    let outside = |n: &NodeId| {
        m.nodes.binary_search(n).is_err() && !(measured && (g.node(*n).op.is("Shape") || g.node(*n).op.is("Size")))
    };
    for n in m.nodes.iter().filter(|n| **n != m.root) {
        for v in g.node(*n).outputs.iter().flatten().filter(|v| !spared.contains(v)) {
            if g.is_output(*v) {
                return Err(format!("the inner value `{}` is an output of the model", g.name_of(*v)));
            }
            if let Some((user, _)) = g.uses(*v).into_iter().find(|(u, _)| outside(u)) {
                let reader = g.node(user).out().map_or("", |o| g.name_of(o));
                return Err(format!(
                    "the inner value `{}` is also read by {} (which makes `{reader}`)",
                    g.name_of(*v),
                    g.node(user).op
                ));
            }
        }
    }
    Ok(())
}

/// The values a match binds to these names.
pub(super) fn values_of<'n>(m: &Match, names: impl Iterator<Item = &'n str>) -> Vec<ValueId> {
    names
        .filter_map(|n| match m.bindings.get(n)? {
            Bound::Value(v) => Some(*v),
            Bound::Attr(_) => None,
        })
        .collect()
}
