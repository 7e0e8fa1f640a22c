//! The closed list of preconditions a rule may name under `where`.

use crate::ir::{AttrValue, DType, NodeId, ValueId};

use super::compile::Pattern;
use super::facts::{Facts, within};
use super::matcher::{Bound, Match};
use super::weighing::weighing;
use super::yaml::{Argument, Condition, Field};

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
    /// Values whose numbers of dimensions are not known to differ: a constant with more dimensions than what it is
    /// combined with would add some.
    SameRank(Vec<String>),
    /// Values whose last sizes are not known to differ.
    SameLastSize(Vec<String>),
    /// No constants.
    Computed(Vec<String>),
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
    "at_most",
    "approx",
    "last_axis",
    "rank",
    "same_shape",
    "same_rank",
    "same_last_size",
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
            | Predicate::Computed(n)
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
            Predicate::Opset { .. } => Vec::new(),
        }
    }

    /// Holds the predicate against a match; the text says why it fails.
    pub(super) fn check(&self, f: &Facts<'_>, m: &Match) -> Result<(), String> {
        let g = f.graph();
        let bound = |n: &str| m.value(n);
        let fail = |n: &str, v: ValueId, what: String| Err(format!("`{n}` (`{}`) {what}", g.name_of(v)));
        let every = |names: &[String], test: &dyn Fn(&str, ValueId) -> Result<(), String>| {
            names.iter().try_for_each(|n| bound(n).map_or(Ok(()), |v| test(n, v)))
        };
        // Every element of a constant, and what to say when it is none or an element fails.
        let elements = |names: &[String], what: &str, ok: &dyn Fn(f64) -> bool| {
            every(names, &|n, v| match numbers(f, v) {
                Some(x) if x.iter().all(|x| ok(*x)) => Ok(()),
                Some(_) => fail(n, v, format!("is not {what} everywhere")),
                None => fail(n, v, "is no constant of numbers".to_owned()),
            })
        };
        match self {
            Predicate::Scalar(names) => every(names, &|n, v| match f.constant(v) {
                Some(t) if t.len() == 1 => Ok(()),
                Some(t) => fail(n, v, format!("has {} elements, not one", t.len())),
                None => fail(n, v, "is no constant".to_owned()),
            }),
            Predicate::Vector(names) => every(names, &|n, v| match f.constant(v) {
                Some(t) if t.dims.len() == 1 && t.len() > 1 => Ok(()),
                Some(t) => fail(n, v, format!("has shape {:?}, it is no vector", t.dims)),
                None => fail(n, v, "is no constant".to_owned()),
            }),
            Predicate::Positive(names) => elements(names, "positive", &|x| x > 0.0),
            Predicate::AllTrue(names) => elements(names, "true", &|x| x != 0.0),
            Predicate::AllZero(names) => elements(names, "zero", &|x| x == 0.0),
            Predicate::Binary(names) => elements(names, "0 or 1", &|x| x == 0.0 || x == 1.0),
            Predicate::AtMost(list) => list
                .iter()
                .try_for_each(|(n, top)| elements(std::slice::from_ref(n), &format!("at most {top}"), &|x| x <= *top)),
            Predicate::Approx { values, within: rel } => values.iter().try_for_each(|(n, want)| {
                let Some(v) = bound(n) else { return Ok(()) };
                match f.constant(v).and_then(|t| t.as_scalar()) {
                    Some(x) if within(x, *want, *rel) => Ok(()),
                    Some(x) => fail(n, v, format!("is {x}, not {want}")),
                    None => fail(n, v, "is no one-element constant".to_owned()),
                }
            }),
            Predicate::Computed(names) => every(names, &|n, v| match f.constant(v) {
                Some(_) => fail(n, v, "is a constant".to_owned()),
                None => Ok(()),
            }),
            Predicate::LastAxis(names) => every(names, &|n, v| match last_axis(f, v) {
                Ok(()) => Ok(()),
                Err(why) => fail(n, v, why),
            }),
            Predicate::Rank(list) => list.iter().try_for_each(|(n, want)| {
                let Some(v) = bound(n) else { return Ok(()) };
                match f.rank(v) {
                    Some(r) if r as f64 == *want => Ok(()),
                    Some(r) => fail(n, v, format!("has {r} dimensions, not {want}")),
                    None => fail(n, v, format!("may not have {want} dimensions: its rank is unknown")),
                }
            }),
            Predicate::SameShape(names) => {
                let known: Vec<_> = names.iter().filter_map(|n| Some((n, bound(n)?))).collect();
                known.windows(2).try_for_each(|w| match f.same_shape(w[0].1, w[1].1) {
                    true => Ok(()),
                    false => fail(w[1].0, w[1].1, format!("is not known to have the shape of `{}`", w[0].0)),
                })
            }
            Predicate::SameRank(names) => {
                let known: Vec<_> =
                    names.iter().filter_map(|n| bound(n).and_then(|v| Some((n, v, f.rank(v)?)))).collect();
                known.windows(2).try_for_each(|w| {
                    let ((a, _, x), (b, v, y)) = (&w[0], &w[1]);
                    if x == y { Ok(()) } else { fail(b, *v, format!("has {y} dimensions, `{a}` has {x}")) }
                })
            }
            Predicate::SameLastSize(names) => {
                let known: Vec<_> =
                    names.iter().filter_map(|n| bound(n).and_then(|v| Some((n, v, f.last_size(v)?)))).collect();
                known.windows(2).try_for_each(|w| {
                    let ((a, _, x), (b, v, y)) = (&w[0], &w[1]);
                    if x == y { Ok(()) } else { fail(b, *v, format!("has last size {y}, `{a}` has {x}")) }
                })
            }
            Predicate::DType(list) => list.iter().try_for_each(|(n, want)| {
                let Some(v) = bound(n) else { return Ok(()) };
                match f.dtype(v) {
                    Some(t) if t == *want => Ok(()),
                    Some(t) => fail(n, v, format!("is {t}, not {want}")),
                    None => fail(n, v, format!("may not be {want}: its type is unknown")),
                }
            }),
            Predicate::Opset { min, max } => {
                let has = f.model.opset();
                if (*min..=*max).contains(&has) {
                    return Ok(());
                }
                let range = if *max == i64::MAX { format!("{min} or later") } else { format!("{min} to {max}") };
                Err(format!("the model has opset {has}, the rule is for {range}"))
            }
            Predicate::Weighs(names) => every(names, &|n, v| match weighing(f, v) {
                Some(_) => Ok(()),
                None => fail(n, v, "reaches no product with values".to_owned()),
            }),
            Predicate::Shared(_) => Ok(()),
        }
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
