//! Sequences of tensors, where what is in them is known.

use super::common::patch_nodes;
use super::{Context, Numerics, Outcome, Pass, PassError};
use crate::infer::ShapeMap;
use crate::ir::{Attrs, Graph, NodeId, Tensor, ValueId, axis};
use crate::rewrite::{Patch, Ref, Under};

/// # What it does
/// Writes what is taken out of a sequence of tensors as what was put in: SequenceAt becomes the value, or a part of what was
/// split; ConcatFromSequence a Concat; SequenceLength a number; the element of an optional value the value.
///
/// # When it fires
/// Where a sequence is made by SplitToSequence, SequenceConstruct and SequenceInsert at places that are constants, and, but for
/// places counted from the front of what SplitToSequence made, the number of its entries is known.
///
/// # Why it is correct
/// A sequence is what was put into it.
///
/// # Numerics
/// Bit-exact.
///
/// # Before / after
/// ```text
/// s = SplitToSequence <axis = 1> (x)        y = Slice (x, {1}, {2}, {1})
/// y = SequenceAt (s, 1)
/// ```
///
/// # Source
/// Detectors and Segment Anything, whose lists PyTorch exports so. tract knows no sequences.
pub struct DropSequences;

impl Pass for DropSequences {
    fn id(&self) -> &'static str {
        "drop-sequences"
    }

    fn summary(&self) -> &'static str {
        "Removes sequences of tensors whose entries are known."
    }

    fn numerics(&self) -> Numerics {
        Numerics::BitExact
    }

    fn run(&self, m: &mut Context) -> Result<Outcome, PassError> {
        let uses = |n: &str| n.contains("Sequence") || n.starts_with("Optional");
        if !m.graph.nodes().any(|(_, n)| n.op.is_onnx() && uses(&n.op.name)) {
            return Ok(Outcome::default());
        }
        let map = m.shapes();
        let opset = m.opset();
        patch_nodes(m, |g, id| patch(g, id, &map, opset))
    }
}

/// One entry of a sequence.
#[derive(Clone, Copy)]
enum Entry {
    Value(ValueId),
    /// Elements `from..to` of an axis, which goes if `dropped`.
    Part {
        x: ValueId,
        axis: i64,
        from: i64,
        to: i64,
        dropped: bool,
    },
}

/// Entries of a sequence that are written one by one.
const MOST: i64 = 256;

/// How SplitToSequence cuts an axis.
enum Cut {
    /// So many elements each.
    Every(i64),
    /// So many each, one after the other.
    Sizes(Vec<i64>),
}

struct Split {
    x: ValueId,
    axis: i64,
    dropped: bool,
    cut: Cut,
}

impl Split {
    fn of(g: &Graph, seq: ValueId) -> Option<Split> {
        let n = g.node(g.producer_is(seq, "SplitToSequence")?);
        let cut = match n.input(1) {
            None => Cut::Every(1),
            Some(v) => {
                let t = g.constant(v)?;
                let sizes = t.to_i64s()?;
                if t.dims.is_empty() { Cut::Every(*sizes.first()?) } else { Cut::Sizes(sizes) }
            }
        };
        // Without sizes the axis may go; with sizes it never does.
        let dropped = n.input(1).is_none() && n.int("keepdims") == 0;
        Some(Split { x: n.input(0)?, axis: n.int("axis"), dropped, cut })
    }

    /// The entry at a place counted from the front.
    fn at(&self, i: i64) -> Option<Entry> {
        let (from, to) = match &self.cut {
            Cut::Every(n) => (i.checked_mul(*n)?, i.checked_add(1)?.checked_mul(*n)?),
            Cut::Sizes(s) => {
                let i = usize::try_from(i).ok()?;
                let from = s.get(..i)?.iter().try_fold(0i64, |a, n| a.checked_add(*n))?;
                (from, from.checked_add(*s.get(i)?)?)
            }
        };
        Some(Entry::Part { x: self.x, axis: self.axis, from, to, dropped: self.dropped })
    }

    fn count(&self, map: &ShapeMap) -> Option<i64> {
        match &self.cut {
            Cut::Sizes(s) => Some(s.len() as i64),
            Cut::Every(n) => {
                let dims = map.dims(self.x)?;
                let size = dims[axis(self.axis, dims.len())?].known()?;
                (*n > 0).then(|| size / n + i64::from(size % n != 0))
            }
        }
    }
}

/// All entries of a sequence. `most`: sequences made of sequences that are looked into.
fn entries(g: &Graph, map: &ShapeMap, seq: ValueId, most: u32) -> Option<Vec<Entry>> {
    if let Some(s) = Split::of(g, seq) {
        let n = s.count(map).filter(|n| *n <= MOST)?;
        return (0..n).map(|i| s.at(i)).collect();
    }
    let n = g.node(g.producer(seq)?);
    let less = most.checked_sub(1)?;
    let place = |slot: usize, len: i64| -> Option<i64> {
        match n.input(slot) {
            None => Some(len),
            Some(v) => {
                let at = *g.constant(v)?.to_i64s()?.first()?;
                let at = if at < 0 { at + len } else { at };
                (0..=len).contains(&at).then_some(at)
            }
        }
    };
    match n.op.name.as_str() {
        "SequenceConstruct" => Some(n.inputs.iter().flatten().map(|v| Entry::Value(*v)).collect()),
        "SequenceEmpty" => Some(Vec::new()),
        "SequenceInsert" => {
            let mut all = entries(g, map, n.input(0)?, less)?;
            let at = place(2, all.len() as i64)?;
            all.insert(at as usize, Entry::Value(n.input(1)?));
            Some(all)
        }
        "SequenceErase" => {
            let mut all = entries(g, map, n.input(0)?, less)?;
            let len = all.len() as i64;
            // The last one, where none is named.
            let at = if n.input(1).is_none() { len.checked_sub(1)? } else { place(1, len)? };
            (0..len).contains(&at).then(|| all.remove(at as usize))?;
            Some(all)
        }
        "Identity" | "Optional" | "OptionalGetElement" => entries(g, map, n.input(0)?, less),
        _ => None,
    }
}

fn written(e: &mut Under<'_>, entry: Entry) -> Ref {
    match entry {
        Entry::Value(v) => v.into(),
        Entry::Part { x, axis, from, dropped: true, .. } => {
            let at = e.int("place", from);
            e.op_with("Gather", "", &[x.into(), at], Attrs::new().with_int("axis", axis))
        }
        Entry::Part { x, axis, from, to, .. } => {
            let (from, to, axis) = (e.ints("from", &[from]), e.ints("to", &[to]), e.ints("axis", &[axis]));
            e.op("Slice", "", &[x.into(), from, to, axis])
        }
    }
}

fn patch(g: &Graph, id: NodeId, map: &ShapeMap, opset: i64) -> Option<Patch> {
    const DEPTH: u32 = 64;
    let n = g.node(id);
    let y = n.out().filter(|_| n.op.is_onnx())?;
    let name = g.name_of(y);
    let mut p = Patch::new("drop-sequences").before(id).made_from([name.to_owned()]);
    let mut e = p.under(name);
    let new = match n.op.name.as_str() {
        "SequenceAt" => {
            let seq = n.input(0)?;
            let at = *g.constant(n.input(1)?)?.to_i64s()?.first()?;
            let entry = match Split::of(g, seq) {
                Some(s) if at >= 0 => s.at(at)?,
                _ => {
                    let all = entries(g, map, seq, DEPTH)?;
                    let at = if at < 0 { at + all.len() as i64 } else { at };
                    *all.get(usize::try_from(at).ok()?)?
                }
            };
            written(&mut e, entry)
        }
        "ConcatFromSequence" => {
            let all = entries(g, map, n.input(0)?, DEPTH).filter(|a| !a.is_empty())?;
            let axis = n.attrs.int("axis")?;
            let stacked = n.attrs.int("new_axis").unwrap_or(0) == 1;
            let parts: Vec<Ref> = all
                .into_iter()
                .enumerate()
                .map(|(i, entry)| {
                    let x = written(&mut e.part(&format!("entry_{i}")), entry);
                    match stacked {
                        true => e.over("Unsqueeze", &format!("stacked_{i}"), x, &[axis], Attrs::new(), opset),
                        false => x,
                    }
                })
                .collect();
            e.op_with("Concat", "", &parts, Attrs::new().with_int("axis", axis))
        }
        "SequenceLength" => {
            let all = entries(g, map, n.input(0)?, DEPTH)?;
            e.int("", all.len() as i64)
        }
        "OptionalGetElement" => {
            let x = n.input(0)?;
            let made = g.producer_is(x, "Optional").and_then(|o| g.node(o).input(0)).unwrap_or(x);
            map.dtype(made)?;
            e.op("Identity", "", &[made.into()])
        }
        "OptionalHasElement" => {
            let there = match n.input(0) {
                None => false,
                Some(x) => match g.producer_is(x, "Optional") {
                    Some(o) => g.node(o).input(0).is_some(),
                    None => map.dtype(x).is_some(),
                },
            };
            e.constant("", Tensor::bool(&[], &[there]))
        }
        _ => return None,
    };
    let new = match new {
        Ref::Old(_) => e.op("Identity", "", &[new]),
        new => new,
    };
    p.succeed(y, new);
    Some(p)
}
