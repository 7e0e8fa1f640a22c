//! Operators that only move elements: evaluated the same way on constants (as bytes) and on small integer tensors (as
//! known or symbolic elements).

use super::rules::{slice_range, slices};
use super::view::{Given, View};
use super::{Draft, MAX_ELEMENTS, MAX_FOLD_BYTES, Size};
use crate::ir::axis;
use crate::ir::vocabulary::class;
use crate::ir::{Class, DType, Rider, Tensor};

/// Where each element of an output comes from.
enum Moved {
    /// The elements of one input in their order.
    Same(usize),
    /// Element by element: `(input, element)`.
    From(Vec<(u8, usize)>),
}

/// The outputs of a moving operator with their contents; `None` if the operator is no such or too little is known.
pub(super) fn evaluate(view: &View, shapes: &[Draft]) -> Option<Vec<Draft>> {
    let sources = sources(view)?;
    // Cheap refusals first: nothing below runs for the tensors of the network proper.
    let constant = sources.iter().all(|i| view.constant(*i).is_some());
    if !constant && !sources.iter().any(|i| view.elements(*i).is_some()) {
        return None;
    }
    let slots = if view.op() == "Split" { view.node.outputs.len() } else { 1 };
    let mut out = Vec::with_capacity(slots);
    for (slot, draft) in shapes.iter().take(slots).enumerate() {
        let dims: Vec<i64> = draft.dims.as_ref()?.iter().map(|d| d.as_ref()?.known()).collect::<Option<_>>()?;
        let count = dims.iter().try_fold(1usize, |a, d| a.checked_mul(usize::try_from(*d).ok()?))?;
        let bits = draft.dtype?.bits()?;
        if count.checked_mul(bits)? / 8 > MAX_FOLD_BYTES || (!constant && count > MAX_ELEMENTS) {
            return None;
        }
        // Nothing to move; the loops below would walk over the axes that are not empty.
        let moved = if count == 0 { Moved::From(Vec::new()) } else { moved(view, slot, &dims)? };
        out.push(if constant {
            Draft { constant: Some(take_tensor(view, &moved, draft.dtype?, &dims)?), ..draft.clone() }
        } else {
            Draft { elements: Some(take_elements(view, &sources, &moved, count)?), ..draft.clone() }
        });
    }
    Some(out)
}

/// The inputs whose elements show up in the output.
fn sources(view: &View) -> Option<Vec<usize>> {
    Some(match view.op() {
        "Identity" | "Reshape" | "Flatten" | "Squeeze" | "Unsqueeze" | "Transpose" | "Slice" | "Gather" | "Split"
        | "Expand" | "Tile" => vec![0],
        "Concat" => (0..view.node.inputs.len()).collect(),
        "Pad" if view.node.says("mode", "constant") && view.has(2) => vec![0, 2],
        "Where" if view.constant(0).is_some() => vec![1, 2],
        "GatherND" if view.int("batch_dims") == 0 => vec![0],
        "ScatterND" if view.node.says("reduction", "none") => vec![0, 2],
        _ => return None,
    })
}

fn take_tensor(view: &View, moved: &Moved, ty: DType, dims: &[i64]) -> Option<Tensor> {
    if let Moved::Same(i) = moved {
        // The storage is shared, whatever it is.
        return Some(Tensor { dims: dims.to_vec(), rider: Rider::default(), ..view.constant(*i)?.clone() });
    }
    let Moved::From(from) = moved else { return None };
    let size = ty.bits().filter(|b| b % 8 == 0)? / 8;
    let bytes = (0..view.node.inputs.len())
        .map(|i| view.constant(i).filter(|t| t.dtype == ty).and_then(|t| t.to_le_bytes()))
        .collect::<Vec<_>>();
    let mut out = Vec::with_capacity(from.len() * size);
    for (i, e) in from {
        // A place outside of the input may be any number.
        let at = e.checked_mul(size)?;
        out.extend_from_slice(bytes[*i as usize].as_ref()?.get(at..at.checked_add(size)?)?);
    }
    Some(Tensor::raw(ty, dims, out))
}

fn take_elements(view: &View, sources: &[usize], moved: &Moved, count: usize) -> Option<Vec<Option<Size>>> {
    let integral = |t: DType| t.is_int() || t == DType::BOOL;
    if !sources.iter().all(|i| view.dtype(*i).is_some_and(integral)) {
        return None;
    }
    Some(match moved {
        Moved::Same(i) => view.elements(*i).filter(|e| e.len() == count)?.to_vec(),
        Moved::From(from) => {
            from.iter().map(|(i, e)| view.elements(*i as usize).and_then(|v| v.get(*e).cloned().flatten())).collect()
        }
    })
}

/// Row-major strides.
pub(super) fn strides(dims: &[i64]) -> Vec<i64> {
    let mut s = vec![1i64; dims.len()];
    for i in (1..dims.len()).rev() {
        s[i - 1] = s[i].saturating_mul(dims[i].max(1));
    }
    s
}

/// Strides that read a tensor of shape `dims` as one broadcast to `out`.
fn broadcast_strides(dims: &[i64], out: &[i64]) -> Option<Vec<i64>> {
    let lead = out.len().checked_sub(dims.len())?;
    let own = strides(dims);
    let fits = |i: usize| dims[i] == out[i + lead] || dims[i] == 1;
    (0..dims.len())
        .all(fits)
        .then(|| (0..out.len()).map(|i| if i < lead || dims[i - lead] == 1 { 0 } else { own[i - lead] }).collect())
}

/// The element of a tensor of shape `dims` that each place reads where it is broadcast to `out`; `None` if it cannot be.
pub(crate) fn broadcast_places(dims: &[i64], out: &[i64]) -> Option<Vec<usize>> {
    Some(walk(out, 0, &broadcast_strides(dims, out)?))
}

/// The element each place of a strided reading of shape `out` reads.
pub(super) fn walk(out: &[i64], base: i64, strides: &[i64]) -> Vec<usize> {
    let count: i64 = out.iter().product();
    let mut list = Vec::with_capacity(count.max(0) as usize);
    let (mut at, mut pos) = (vec![0i64; out.len()], base);
    for _ in 0..count {
        list.push(pos as usize);
        for i in (0..out.len()).rev() {
            at[i] += 1;
            pos += strides[i];
            if at[i] < out[i] {
                break;
            }
            pos -= strides[i] * out[i];
            at[i] = 0;
        }
    }
    list
}

fn of_first(list: Vec<usize>) -> Moved {
    Moved::From(list.into_iter().map(|e| (0, e)).collect())
}

fn moved(view: &View, slot: usize, out: &[i64]) -> Option<Moved> {
    let x = || view.known_dims(0);
    match view.op() {
        op if op == "Identity" || class(op) == Some(Class::Relabel) => Some(Moved::Same(0)),
        "Where" => choose(view, out),
        "Transpose" => transpose(view, &x()?, out),
        "Slice" => slice(view, &x()?, out),
        "Split" => split(view, &x()?, slot, out),
        "Expand" => Some(of_first(broadcast_places(&x()?, out)?)),
        "Gather" => gather(view, &x()?),
        "Tile" => Some(tile(&x()?, out)),
        "Concat" => concat(view, out),
        "GatherND" => gather_nd(view, &x()?),
        "Pad" => pad(view, &x()?, out),
        "ScatterND" => scatter(view, &x()?, out),
        _ => None,
    }
}

fn transpose(view: &View, x: &[i64], out: &[i64]) -> Option<Moved> {
    let own = strides(x);
    let perm: Vec<usize> = match view.node.attrs.ints("perm") {
        Some(p) => p.iter().map(|a| axis(*a, x.len())).collect::<Option<_>>()?,
        None => (0..x.len()).rev().collect(),
    };
    Some(of_first(walk(out, 0, &perm.iter().map(|a| own[*a]).collect::<Vec<_>>())))
}

fn slice(view: &View, x: &[i64], out: &[i64]) -> Option<Moved> {
    let (own, mut base) = (strides(x), 0);
    let mut steps = own.clone();
    for (a, start, end, step) in slices(view, x.len())? {
        let (first, len) = slice_range(x[a], start, end, step)?;
        base += first * own[a];
        // A single index is never stepped from, and its step may be any number.
        steps[a] = if len > 1 { own[a] * step } else { 0 };
    }
    Some(of_first(walk(out, base, &steps)))
}

fn split(view: &View, x: &[i64], slot: usize, out: &[i64]) -> Option<Moved> {
    let at = view.axis(x.len())?;
    let before: i64 = match view.list("split", 1) {
        Given::Known(s) => s.iter().take(slot).try_fold(0i64, |a, n| a.checked_add(*n).filter(|_| *n >= 0))?,
        Given::Absent => {
            let n = view.node.outputs.len() as i64;
            (slot as i64 * ((x[at] + n - 1) / n)).min(x[at])
        }
        Given::Unknown => return None,
    };
    let own = strides(x);
    Some(of_first(walk(out, before * own[at], &own)))
}

fn gather(view: &View, x: &[i64]) -> Option<Moved> {
    let (at, index) = (view.axis(x.len())?, view.ints(1)?);
    let inner: i64 = x[at + 1..].iter().product();
    let outer: i64 = x[..at].iter().product();
    let mut list = Vec::new();
    for o in 0..outer {
        for i in &index {
            let i = if *i < 0 { i + x[at] } else { *i };
            if !(0..x[at]).contains(&i) {
                return None;
            }
            let start = (o * x[at] + i) * inner;
            list.extend((start..start + inner).map(|e| e as usize));
        }
    }
    Some(of_first(list))
}

fn tile(x: &[i64], out: &[i64]) -> Moved {
    let (own, places) = (strides(x), strides(out));
    let count: i64 = out.iter().product();
    let at = |n: i64| (0..x.len()).map(|i| (n / places[i] % out[i]) % x[i] * own[i]).sum::<i64>() as usize;
    of_first((0..count).map(at).collect())
}

fn concat(view: &View, out: &[i64]) -> Option<Moved> {
    let at = view.axis(out.len())?;
    let outer: i64 = out[..at].iter().product();
    // Elements of one input that lie together.
    let run = |i| Some(view.known_dims(i)?[at..].iter().product::<i64>());
    let runs: Vec<i64> = (0..view.node.inputs.len()).map(run).collect::<Option<_>>()?;
    let mut list = Vec::new();
    for o in 0..outer {
        for (i, run) in runs.iter().enumerate() {
            let i = u8::try_from(i).ok()?;
            list.extend((o * run..(o + 1) * run).map(|e| (i, e as usize)));
        }
    }
    Some(Moved::From(list))
}

fn choose(view: &View, out: &[i64]) -> Option<Moved> {
    let pick = view.ints(0)?;
    let read = |i: usize| broadcast_places(&view.known_dims(i)?, out);
    let (c, x, y) = (read(0)?, read(1)?, read(2)?);
    Some(Moved::From((0..c.len()).map(|i| if pick[c[i]] != 0 { (1, x[i]) } else { (2, y[i]) }).collect()))
}

fn pad(view: &View, x: &[i64], out: &[i64]) -> Option<Moved> {
    let amounts = view.list("pads", 1).or(Vec::new())?;
    let which: Vec<usize> = match view.ints(3) {
        Some(a) => a.iter().map(|a| axis(*a, x.len())).collect::<Option<_>>()?,
        None => (0..x.len()).collect(),
    };
    let mut front = vec![0; x.len()];
    for (i, a) in which.iter().enumerate() {
        front[*a] = *amounts.get(i)?;
    }
    let (own, places) = (strides(x), strides(out));
    let count: i64 = out.iter().product();
    let at = |n: i64| {
        let mut e = 0;
        for i in 0..x.len() {
            let p = (n / places[i] % out[i]).saturating_sub(front[i]);
            if !(0..x[i]).contains(&p) {
                return (2, 0);
            }
            e += p * own[i];
        }
        (0, e as usize)
    };
    Some(Moved::From((0..count).map(at).collect()))
}

/// Where the elements start that the first indices of a place name.
fn start_of(at: &[i64], x: &[i64], own: &[i64]) -> Option<i64> {
    let mut start = 0;
    for (i, a) in at.iter().enumerate() {
        let a = if *a < 0 { a + x[i] } else { *a };
        if !(0..x[i]).contains(&a) {
            return None;
        }
        start += a * own[i];
    }
    Some(start)
}

fn gather_nd(view: &View, x: &[i64]) -> Option<Moved> {
    let (shape, index) = (view.known_dims(1)?, view.ints(1)?);
    let deep = usize::try_from(*shape.last()?).ok().filter(|d| *d <= x.len() && *d > 0)?;
    let (own, run) = (strides(x), x[deep..].iter().product::<i64>());
    let mut list = Vec::new();
    for at in index.chunks_exact(deep) {
        let start = start_of(at, x, &own)?;
        list.extend((start..start + run).map(|e| e as usize));
    }
    Some(of_first(list))
}

fn scatter(view: &View, x: &[i64], out: &[i64]) -> Option<Moved> {
    let (shape, index) = (view.known_dims(1)?, view.ints(1)?);
    let deep = usize::try_from(*shape.last()?).ok().filter(|d| *d <= x.len() && *d > 0)?;
    let own = strides(x);
    let run: i64 = x[deep..].iter().product();
    let mut list: Vec<(u8, usize)> = (0..out.iter().product::<i64>()).map(|e| (0, e as usize)).collect();
    for (n, at) in index.chunks_exact(deep).enumerate() {
        let start = start_of(at, x, &own)?;
        for r in 0..run {
            *list.get_mut((start + r) as usize)? = (2, n * run as usize + r as usize);
        }
    }
    Some(Moved::From(list))
}
