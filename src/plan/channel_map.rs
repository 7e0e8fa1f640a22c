//! Which channel of one layer meets which channel of another through an attention.
//!
//! Channels of values become channels of the projection's input, and channels of queries are multiplied with channels of
//! keys. Where nothing but moves lies between, a factor can be taken from one layer and given to the other. Which channel
//! goes where is not assumed from a layout but found: a tensor that holds the number of its channel at every place goes
//! through the moves that the model makes, and where a channel arrives is read off its end.

use std::collections::BTreeMap;

use rayon::prelude::*;

use super::Between;
use super::sites::{Linear, Sites};
use crate::ir::{Dim, Graph, Node, NodeId, ValueId, axis};
use crate::pattern::Attention;

/// Two layers with nothing but moves and one attention product between.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    pub between: Between,
    /// Place of the attention in [`Sites::attentions`].
    pub attention: usize,
    /// Places in [`Sites::linears`]: of values and projection, or of queries and keys.
    pub first: usize,
    pub second: usize,
    /// The channel of the second layer (of its input for a projection, of its output for keys) that channel `c` of the
    /// first one's output meets.
    pub to: Vec<usize>,
}

/// Every pair of layers whose channels are proven to meet one by one, in the order of the attentions.
pub fn pairs(g: &Graph, sites: &Sites) -> Vec<Pair> {
    let of = |(attention, a): (usize, &Attention)| {
        let found = [
            (Between::ValuesProjection, values_projection(g, sites, a)),
            (Between::QueriesKeys, queries_keys(g, sites, a)),
        ];
        let pair = move |(between, p): (Between, Option<Found>)| {
            p.map(|(first, second, to)| Pair { between, attention, first, second, to })
        };
        found.into_iter().filter_map(pair).collect::<Vec<_>>()
    };
    sites.attentions.par_iter().enumerate().map(of).collect::<Vec<_>>().concat()
}

/// A layer, and the moves from its result to where it is read.
struct Way<'g> {
    layer: usize,
    moves: Vec<&'g Node>,
}

/// The only node that reads elements of `v` and the input it reads them at; `None` if there are several, a nested graph
/// reads it, or the model gives it out.
fn only_reader(g: &Graph, v: ValueId) -> Option<(NodeId, usize)> {
    let asks = |n: NodeId| g.node(n).op.is("Shape");
    let readers: Vec<_> = g.uses(v).into_iter().filter(|(n, slot)| *slot == usize::MAX || !asks(*n)).collect();
    match readers[..] {
        [(n, slot)] if slot != usize::MAX && !g.is_output(v) => Some((n, slot)),
        _ => None,
    }
}

/// The layer that makes what node `reader` reads at `slot`, if moves alone lie between and nobody else reads on the way.
fn way_from<'g>(g: &'g Graph, sites: &Sites, reader: NodeId, slot: usize) -> Option<Way<'g>> {
    let mut v = g.node(reader).input(slot)?;
    let mut read_by = (reader, slot);
    let mut moves = Vec::new();
    loop {
        if only_reader(g, v)? != read_by {
            return None;
        }
        if let Some(layer) = sites.linears.iter().position(|l| l.out == v) {
            moves.reverse();
            return Some(Way { layer, moves });
        }
        let p = g.producer(v).filter(|p| g.node(*p).is_whole_move())?;
        moves.push(g.node(p));
        (v, read_by) = (g.node(p).input(0)?, (p, 0));
    }
}

/// The layer that reads `v`, if moves alone lie between and nobody else reads on the way.
fn way_to<'g>(g: &'g Graph, sites: &Sites, mut v: ValueId) -> Option<Way<'g>> {
    let mut moves = Vec::new();
    loop {
        let (n, slot) = only_reader(g, v)?;
        if let Some(layer) = sites.linears.iter().position(|l| l.node == n) {
            return (slot == 0).then_some(Way { layer, moves });
        }
        let node = g.node(n);
        if slot != 0 || !node.is_whole_move() {
            return None;
        }
        moves.push(node);
        v = node.out()?;
    }
}

type Found = (usize, usize, Vec<usize>);

fn values_projection(g: &Graph, sites: &Sites, a: &Attention) -> Option<Found> {
    let v = a.v?;
    let from = way_from(g, sites, a.weighted, 1)?;
    let to = way_to(g, sites, a.out)?;
    let (first, second) = (&sites.linears[from.layer], &sites.linears[to.layer]);
    // Values that several heads share would need one factor for several channels of the projection.
    let (weights, values) = (g.shape(a.probs)?, g.shape(v)?);
    let lead = values.len().checked_sub(2)?;
    let shared = |(w, v): (&Dim, &Dim)| *v == Dim::Known(1) && *w != Dim::Known(1);
    if weights.len() != values.len() || weights[..lead].iter().zip(values).any(shared) {
        return None;
    }
    let to_channels = agreed(g, &[first.out], |open| {
        let v = Numbered::of(g, first, open)?.through(g, &from.moves, open)?;
        // Every row of the product mixes all rows of the values: a column must be one channel.
        let queries = size(g.shape(a.probs)?.get(lead)?, open, 1);
        let mixed = v.rows_alike()?.repeated(queries);
        let end = mixed.through(g, &to.moves, open)?;
        let axis = if second.is_conv { 1 } else { end.dims.len().checked_sub(1)? };
        let at = end.along(axis)?;
        one_to_one(&(0..at.len()).map(|i| (at[i], i)).collect::<Vec<_>>(), channels(g, first, first.out_axis)?)
    })?;
    let ins = channels(g, second, second.in_axis)?;
    (to_channels.len() == ins).then_some((from.layer, to.layer, to_channels))
}

fn queries_keys(g: &Graph, sites: &Sites, a: &Attention) -> Option<Found> {
    let product = a.product?.node;
    let (q, k) = (way_from(g, sites, product, 0)?, way_from(g, sites, product, 1)?);
    let (first, second) = (&sites.linears[q.layer], &sites.linears[k.layer]);
    let n = channels(g, first, first.out_axis)?;
    if q.layer == k.layer || channels(g, second, second.out_axis)? != n {
        return None;
    }
    let to = agreed(g, &[first.out, second.out], |open| {
        let x = Numbered::of(g, first, open)?.through(g, &q.moves, open)?.rows_alike()?;
        let y = Numbered::of(g, second, open)?.through(g, &k.moves, open)?.transposed_last()?.rows_alike()?;
        // Keys that several heads share have fewer columns than the queries.
        if x.dims != y.dims {
            return None;
        }
        one_to_one(&x.numbers.iter().copied().zip(y.numbers.iter().copied()).collect::<Vec<_>>(), n)
    })?;
    Some((q.layer, k.layer, to))
}

fn channels(g: &Graph, l: &Linear, axis: usize) -> Option<usize> {
    usize::try_from(*g.constant(l.weight)?.dims.get(axis)?).ok()
}

/// What sizes that are not known are taken to be: of the first axis, and of others. Two sets of primes, so that sizes that
/// fit by chance once do not fit twice.
const OPEN: [[usize; 2]; 2] = [[1, 3], [2, 5]];

fn size(d: &Dim, open: [usize; 2], axis: usize) -> usize {
    match d {
        Dim::Known(n) => usize::try_from(*n).unwrap_or(0),
        _ => open[axis.min(1)],
    }
}

/// The map that `find` gives for sizes the model can run with. A model with a batch written into its moves runs with that
/// alone; where several sets of sizes pass, they must agree.
fn agreed(g: &Graph, from: &[ValueId], find: impl Fn([usize; 2]) -> Option<Vec<usize>>) -> Option<Vec<usize>> {
    let known = |v: &ValueId| g.shape(*v).is_some_and(|s| s.iter().all(|d| matches!(d, Dim::Known(_))));
    let fixed = from.iter().all(known);
    let tries = if fixed { &OPEN[..1] } else { &OPEN[..] };
    let mut maps = tries.iter().filter_map(|open| find(*open));
    let one = maps.next()?;
    maps.all(|m| m == one).then_some(one)
}

/// `to[c]` from `(c, to)`, if each of `n` channels has one counterpart and each counterpart one channel.
fn one_to_one(found: &[(usize, usize)], n: usize) -> Option<Vec<usize>> {
    let mut to: BTreeMap<usize, usize> = BTreeMap::new();
    let mut from: BTreeMap<usize, usize> = BTreeMap::new();
    for (c, t) in found {
        if *to.entry(*c).or_insert(*t) != *t || *from.entry(*t).or_insert(*c) != *c {
            return None;
        }
    }
    (to.len() == n && to.keys().copied().eq(0..n) && from.keys().copied().eq(0..n)).then(|| to.into_values().collect())
}

/// A tensor of channel numbers.
#[derive(Clone, Debug, PartialEq)]
struct Numbered {
    dims: Vec<usize>,
    numbers: Vec<usize>,
}

impl Numbered {
    /// The result of a layer, every element the number of its channel.
    fn of(g: &Graph, l: &Linear, open: [usize; 2]) -> Option<Numbered> {
        let shape = g.shape(l.out)?;
        let axis = if l.is_conv { 1 } else { shape.len().checked_sub(1)? };
        let mut dims: Vec<usize> = shape.iter().enumerate().map(|(i, d)| size(d, open, i)).collect();
        *dims.get_mut(axis)? = channels(g, l, l.out_axis)?;
        let inner: usize = dims[axis + 1..].iter().product();
        let (n, len) = (dims[axis], dims.iter().product::<usize>());
        let once: Vec<usize> = (0..n).flat_map(|c| std::iter::repeat_n(c, inner)).collect();
        (len > 0).then(|| Numbered { numbers: once.repeat(len / once.len()), dims })
    }

    fn through(mut self, g: &Graph, moves: &[&Node], open: [usize; 2]) -> Option<Numbered> {
        for n in moves {
            self = self.moved(g, n, open)?;
        }
        Some(self)
    }

    /// What a move makes of it; `None` where that is not known before the model runs.
    fn moved(self, g: &Graph, n: &Node, open: [usize; 2]) -> Option<Numbered> {
        let rank = self.dims.len();
        match n.op.name.as_str() {
            "Identity" => Some(self),
            "Transpose" => {
                let perm: Vec<usize> = match n.attrs.ints("perm") {
                    Some(p) => p.iter().map(|a| axis(*a, rank)).collect::<Option<_>>()?,
                    None => (0..rank).rev().collect(),
                };
                self.transposed(&perm)
            }
            "Reshape" => {
                let whole = n.int("allowzero") == 0;
                let target = match g.constant(n.input(1)?) {
                    Some(t) => t.to_i64s()?,
                    None => open_target(g.shape(n.out()?)?, open)?,
                };
                let len = self.numbers.len();
                let mut dims = Vec::new();
                for (i, d) in target.iter().enumerate() {
                    dims.push(match d {
                        0 if whole => Some(*self.dims.get(i)?),
                        -1 => None,
                        d => Some(usize::try_from(*d).ok()?),
                    });
                }
                let rest: usize = dims.iter().flatten().product();
                let free = dims.iter().filter(|d| d.is_none()).count();
                if free > 1 || rest == 0 || !len.is_multiple_of(rest) {
                    return None;
                }
                self.shaped(dims.into_iter().map(|d| d.unwrap_or(len / rest)).collect())
            }
            "Flatten" => {
                // It may name the place after the last axis.
                let at = if n.int("axis") == rank as i64 { rank } else { axis(n.int("axis"), rank)? };
                let dims = vec![self.dims[..at].iter().product(), self.dims[at..].iter().product()];
                self.shaped(dims)
            }
            "Squeeze" => {
                // Without axes, which ones go depends on sizes that may be open.
                let axes = g.ints(n, 1, "axes")?;
                let axes: Vec<usize> = axes.iter().map(|a| axis(*a, rank)).collect::<Option<_>>()?;
                let keep = |i: &usize| !axes.contains(i);
                let dims = (0..rank).filter(keep).map(|i| self.dims[i]).collect();
                self.shaped(dims)
            }
            "Unsqueeze" => {
                let axes = g.ints(n, 1, "axes")?;
                let all = rank + axes.len();
                let axes: Vec<usize> = axes.iter().map(|a| axis(*a, all)).collect::<Option<_>>()?;
                let mut old = self.dims.iter();
                let dims: Option<Vec<usize>> =
                    (0..all).map(|i| if axes.contains(&i) { Some(1) } else { old.next().copied() }).collect();
                self.shaped(dims?)
            }
            _ => None,
        }
    }

    fn shaped(self, dims: Vec<usize>) -> Option<Numbered> {
        (dims.iter().product::<usize>() == self.numbers.len()).then_some(Numbered { dims, ..self })
    }

    fn transposed(&self, perm: &[usize]) -> Option<Numbered> {
        let mut seen = perm.to_vec();
        seen.sort_unstable();
        if !seen.into_iter().eq(0..self.dims.len()) {
            return None;
        }
        let mut strides = vec![1; self.dims.len()];
        for i in (1..self.dims.len()).rev() {
            strides[i - 1] = strides[i] * self.dims[i];
        }
        let dims: Vec<usize> = perm.iter().map(|a| self.dims[*a]).collect();
        // The last axes often stay where they are: what lies along them is copied at once.
        let still = perm.iter().enumerate().rev().take_while(|(i, a)| i == *a).count();
        let moved = dims.len() - still;
        let run: usize = dims[moved..].iter().product();
        let mut at = vec![0; moved];
        let mut from = 0;
        let mut numbers = Vec::with_capacity(self.numbers.len());
        while numbers.len() < self.numbers.len() {
            numbers.extend_from_slice(&self.numbers[from..from + run]);
            for i in (0..moved).rev() {
                at[i] += 1;
                from += strides[perm[i]];
                if at[i] < dims[i] {
                    break;
                }
                from -= dims[i] * strides[perm[i]];
                at[i] = 0;
            }
        }
        Some(Numbered { dims, numbers })
    }

    fn transposed_last(&self) -> Option<Numbered> {
        let rank = self.dims.len();
        let mut perm: Vec<usize> = (0..rank).collect();
        perm.swap(rank.checked_sub(2)?, rank - 1);
        self.transposed(&perm)
    }

    /// `[.., n, d]` as `[.., 1, d]`, if all `n` rows are alike.
    fn rows_alike(&self) -> Option<Numbered> {
        let rank = self.dims.len();
        let (n, d) = (self.dims[rank.checked_sub(2)?], self.dims[rank - 1]);
        let mut numbers = Vec::new();
        for block in self.numbers.chunks(n * d) {
            if block.chunks(d).any(|row| *row != block[..d]) {
                return None;
            }
            numbers.extend_from_slice(&block[..d]);
        }
        let mut dims = self.dims.clone();
        dims[rank - 2] = 1;
        Some(Numbered { dims, numbers })
    }

    /// `[.., 1, d]` as `[.., n, d]`.
    fn repeated(&self, n: usize) -> Numbered {
        let rank = self.dims.len();
        let mut dims = self.dims.clone();
        dims[rank - 2] = n;
        let rows = self.numbers.chunks(self.dims[rank - 1]);
        Numbered { dims, numbers: rows.flat_map(|row| row.repeat(n)).collect() }
    }

    /// What stands at each index of `axis`, if that is the same everywhere.
    fn along(&self, axis: usize) -> Option<Vec<usize>> {
        let n = *self.dims.get(axis)?;
        let inner: usize = self.dims[axis + 1..].iter().product();
        let mut out: Vec<Option<usize>> = vec![None; n];
        for (i, c) in self.numbers.iter().enumerate() {
            if *out[i / inner % n].get_or_insert(*c) != *c {
                return None;
            }
        }
        out.into_iter().collect()
    }
}

/// The target of a Reshape that is computed: what is known of the shape it makes, with one size at most left to follow
/// from the others.
fn open_target(shape: &[Dim], open: [usize; 2]) -> Option<Vec<i64>> {
    let unknown = shape.iter().filter(|d| !matches!(d, Dim::Known(_))).count();
    let one = |(i, d): (usize, &Dim)| match d {
        Dim::Known(n) => *n,
        _ if unknown == 1 => -1,
        _ => size(d, open, i) as i64,
    };
    Some(shape.iter().enumerate().map(one).collect())
}

#[cfg(test)]
#[path = "channel_map_tests.rs"]
pub(crate) mod tests;
