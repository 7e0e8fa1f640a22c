//! A node together with what is known of its inputs.

use super::{Fact, ShapeMap, Size};
use crate::ir::{AttrValue, DType, Node, Tensor, axis, vocabulary};

/// A parameter that is an attribute in some operator versions and an input in others.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Given<T> {
    /// Not given: the operator's default holds.
    Absent,
    Known(T),
    /// Given, but only known at run time.
    Unknown,
}

impl<T> Given<T> {
    /// The known value, or the default if absent; `None` if unknown.
    pub fn or(self, default: T) -> Option<T> {
        match self {
            Given::Absent => Some(default),
            Given::Known(v) => Some(v),
            Given::Unknown => None,
        }
    }
}

/// A node together with what is known of its inputs.
pub(crate) struct View<'a> {
    pub node: &'a Node,
    pub opset: i64,
    map: &'a ShapeMap,
}

impl<'a> View<'a> {
    pub fn new(node: &'a Node, opset: i64, map: &'a ShapeMap) -> View<'a> {
        View { node, opset, map }
    }

    /// Whether constants may be computed that are only right up to rounding.
    pub fn approximates(&self) -> bool {
        self.map.approximate
    }

    /// Whether this walk may compute so many more bytes of constants; counts them if it may.
    pub fn allows(&self, bytes: usize) -> bool {
        super::Allowance::take(&self.map.allowance.bytes, bytes)
    }

    pub fn op(&self) -> &'a str {
        &self.node.op.name
    }

    pub fn has(&self, i: usize) -> bool {
        self.node.input(i).is_some()
    }

    pub fn fact(&self, i: usize) -> Option<&'a Fact> {
        self.map.fact(self.node.input(i)?)
    }

    pub fn dtype(&self, i: usize) -> Option<DType> {
        self.fact(i)?.dtype
    }

    pub fn dims(&self, i: usize) -> Option<&'a [Size]> {
        self.fact(i)?.dims.as_deref()
    }

    pub fn rank(&self, i: usize) -> Option<usize> {
        Some(self.dims(i)?.len())
    }

    pub fn known_dims(&self, i: usize) -> Option<Vec<i64>> {
        self.dims(i)?.iter().map(Size::known).collect()
    }

    /// Sizes as a draft takes them.
    pub fn some_dims(&self, i: usize) -> Option<Vec<Option<Size>>> {
        Some(self.dims(i)?.iter().cloned().map(Some).collect())
    }

    pub fn constant(&self, i: usize) -> Option<&'a Tensor> {
        self.fact(i)?.constant.as_ref()
    }

    pub fn elements(&self, i: usize) -> Option<&'a [Option<Size>]> {
        self.fact(i)?.elements.as_deref()
    }

    /// The integers of a constant input.
    pub fn ints(&self, i: usize) -> Option<Vec<i64>> {
        match self.elements(i) {
            Some(e) => e.iter().map(|s| s.as_ref()?.known()).collect(),
            None => self.constant(i)?.to_i64s(),
        }
    }

    /// A list that is attribute `attr` in old versions and input `slot` in new ones.
    pub fn list(&self, attr: &str, slot: usize) -> Given<Vec<i64>> {
        if let Some(v) = self.node.attrs.ints(attr) {
            return Given::Known(v.to_vec());
        }
        if !self.has(slot) {
            return Given::Absent;
        }
        self.ints(slot).map_or(Given::Unknown, Given::Known)
    }

    /// Attribute `attr`, or what the vocabulary says it is where it is absent.
    pub fn int(&self, attr: &str) -> i64 {
        let given = self.given(attr);
        debug_assert!(given.is_some(), "the vocabulary lacks `{attr}` of {}", self.op());
        given.unwrap_or(0)
    }

    /// As [`View::int`]; `None` where the operator has no such attribute, or needs it and has none.
    pub fn given(&self, attr: &str) -> Option<i64> {
        self.node.attrs.int(attr).or_else(|| self.absent(attr))
    }

    fn absent(&self, attr: &str) -> Option<i64> {
        match vocabulary::default(self.op(), attr, self.opset) {
            Some(AttrValue::Int(v)) => Some(v),
            _ => None,
        }
    }

    /// Attribute `axis`, for a tensor of this rank, counted from the front; `None` if out of range, or absent where the
    /// operator needs it.
    pub fn axis(&self, rank: usize) -> Option<usize> {
        axis(self.given("axis")?, rank)
    }
}

/// Several axes counted from the front, sorted; `None` if one is out of range or named twice.
pub(crate) fn axes(list: &[i64], rank: usize) -> Option<Vec<usize>> {
    let mut v = list.iter().map(|a| axis(*a, rank)).collect::<Option<Vec<_>>>()?;
    v.sort_unstable();
    v.windows(2).all(|w| w[0] != w[1]).then_some(v)
}

/// A shape in the making.
pub(super) type Dims = Vec<Option<Size>>;

/// Two sizes under broadcasting. With different symbolic sizes either could be the 1.
pub(super) fn broadcast_dim(a: Option<&Size>, b: Option<&Size>) -> Option<Size> {
    match (a, b) {
        (Some(a), Some(b)) if a == b => Some(a.clone()),
        (Some(Size::Known(1)), x) | (x, Some(Size::Known(1))) => x.cloned(),
        // The other is 1 or the same number, or the operator fails.
        (Some(Size::Known(n)), _) | (_, Some(Size::Known(n))) => Some(Size::Known(*n)),
        _ => None,
    }
}
