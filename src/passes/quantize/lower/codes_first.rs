//! `codes-first`: moves carry codes instead of floats.
//!
//! *What it does.* QuantizeLinear goes in front of the moves that lead to it, with the scales and zero points that its
//! channels have there, and DequantizeLinear after the moves that follow it.
//!
//! *When it fires.* For QuantizeLinear to 8 bits after a move nobody else reads: Reshape, Transpose, Squeeze, Unsqueeze, Flatten,
//! Expand, Concat, Pad, Slice where all of what is sliced is read by Slices (windows that are rolled), Gather that makes no
//! less than it reads, and Split all of whose parts are quantized alike. With per-channel
//! scales the channels must be found again on the other side: an axis that Transpose moves, the last axis of a Reshape
//! that keeps it, the channels one after the other of a Concat along them. Pad needs one zero point, because it then pads
//! with that code: the one that means 0. For DequantizeLinear with one scale in front of a Reshape, Transpose, Squeeze,
//! Unsqueeze, Flatten, Slice, Gather or Split, also where it makes an output of the graph; with a scale per channel in front of
//! the moves after which the channels are found again.
//!
//! *Why it is correct.* Both work element by element; a move keeps elements, and an element keeps its channel.
//!
//! *Numerics.* Bit-exact.
//!
//! *Before / after.* `q = QuantizeLinear(Reshape(x, s), c, z)` becomes `q = Reshape(QuantizeLinear(x, c, z), s)`.
//!
//! *Source.* The definition of the operators; runtimes know the same transformation as moving Q and DQ.

use super::{Coding, from_end, size, zero_tensor};
use crate::ir::{AttrValue, Attrs, Class, DType, Dim, Graph, Node, Tensor, ValueId};
use crate::passes::common::is_captured;
use crate::passes::{Context, Numerics, Outcome, Pass, PassError};
use crate::rewrite::Patch;

/// The pass.
pub struct CodesFirst;

impl Pass for CodesFirst {
    fn id(&self) -> &'static str {
        "codes-first"
    }

    fn summary(&self) -> &'static str {
        "Quantizes before Reshape, Transpose and other moves, so that they carry codes."
    }

    fn numerics(&self) -> Numerics {
        Numerics::BitExact
    }

    fn run(&self, m: &mut Context) -> Result<Outcome, PassError> {
        let mut out = Outcome::default();
        loop {
            let mut changed = false;
            for id in m.graph.schedule() {
                // Patches of this round may have taken it.
                if m.graph.try_node(id).is_none() {
                    continue;
                }
                // Codes of 16 bits are float32 in the end: a move gains nothing by them.
                let Some(c) = Coding::of(&m.graph, id).filter(|c| !c.is_wide()) else { continue };
                let patches = match m.graph.node(id).op.is("QuantizeLinear") {
                    true => up(&m.graph, &c).or_else(|| up_split(&m.graph, &c)).into_iter().collect(),
                    false => down(&m.graph, &c),
                };
                for p in patches {
                    m.commit(p)?;
                    out.changes += 1;
                    changed = true;
                }
            }
            m.sweep();
            if !changed {
                return Ok(out);
            }
        }
    }
}

fn keeps_elements(n: &Node) -> bool {
    (n.is_a(Class::Relabel) || n.op.is("Transpose")) && n.outputs.len() == 1
}

/// Scales and zero points in front of a move. `axis` counts from the end; it means nothing with one scale.
#[derive(Clone, Debug, PartialEq)]
struct Params {
    scales: Vec<f32>,
    zeros: Vec<i64>,
    axis: i64,
}

/// What each data operand of a move is quantized with, so that the move's result has the codes of `p`; `None` where codes
/// cannot go through.
fn through(g: &Graph, n: &Node, p: &Params) -> Option<Vec<(usize, Params)>> {
    let (x, y) = (n.input(0)?, n.out()?);
    let one = p.scales.len() == 1;
    let channels = p.scales.len() as i64;
    let same = || Some(vec![(0, p.clone())]);
    // After a change of shape only a last axis that stays is known to be the channels.
    let keeps_last = || one || (p.axis == -1 && size(g, x, -1) == Some(channels) && size(g, y, -1) == Some(channels));
    match &n.op.name[..] {
        "Reshape" | "Squeeze" | "Unsqueeze" | "Flatten" | "Expand" => keeps_last().then(same).flatten(),
        "Transpose" if one => same(),
        "Transpose" => {
            let perm = n.attrs.ints("perm")?;
            let at = usize::try_from(perm.len() as i64 + p.axis).ok()?;
            let axis = perm.get(at)? - perm.len() as i64;
            Some(vec![(0, Params { axis, ..p.clone() })])
        }
        "Slice" => {
            let all = g.uses(x);
            // The first of the windows may have been turned already.
            let taken = |op: &str| matches!(op, "Slice" | "QuantizeLinear");
            let rolled = all.len() > 1 && all.iter().all(|(u, slot)| *slot == 0 && taken(&g.node(*u).op.name));
            let clear = one || g.ints(n, 3, "axes")?.iter().all(|a| from_end(g, *a, y).is_some_and(|a| a != p.axis));
            (rolled && clear && !g.is_output(x)).then(same).flatten()
        }
        "Gather" => {
            let axis = n.int("axis");
            let ids = n.input(1)?;
            // Quantizing what is not taken would cost more than it saves.
            let taken = (0..g.rank(ids)? as i64).try_fold(1i64, |a, i| a.checked_mul(size(g, ids, i)?))?;
            let (rx, k) = (g.rank(x)? as i64, g.rank(ids)? as i64);
            let at = if axis < 0 { axis + rx } else { axis };
            if taken < size(g, x, axis)? {
                return None;
            }
            let channel = rx - 1 + k + p.axis;
            match () {
                // Axes after the one that is gathered keep their place from the end, those before it from the front.
                _ if one || channel >= at + k => same(),
                _ if channel < at => Some(vec![(0, Params { axis: channel - rx, ..p.clone() })]),
                _ => None,
            }
        }
        "Pad" => {
            let constant = n.says("mode", "constant");
            let zero = n.input(2).is_none_or(|v| g.constant(v).and_then(Tensor::as_scalar) == Some(0.0));
            let none = n.attrs.float("value").unwrap_or(0.0) == 0.0 && n.attrs.get("pads").is_none();
            let common = p.zeros.iter().all(|z| *z == p.zeros[0]);
            // Padding the channel axis would need scales for what is not there.
            let clear = one || {
                let pads = g.ints(n, 1, "pads")?;
                let r = pads.len() / 2;
                let at = usize::try_from(r as i64 + p.axis).ok()?;
                n.input(3).is_none() && pads.get(at) == Some(&0) && pads.get(at + r) == Some(&0)
            };
            (none && clear && (!constant || (zero && common))).then(same).flatten()
        }
        "Concat" => {
            let axis = if one { 0 } else { from_end(g, n.attrs.int("axis")?, y)? };
            let mut at = 0;
            let mut out = Vec::new();
            for (slot, v) in n.inputs.iter().enumerate() {
                let own = if one || axis != p.axis {
                    p.clone()
                } else {
                    let n = usize::try_from(size(g, (*v)?, axis)?).ok()?;
                    let part = Params {
                        scales: p.scales.get(at..at + n)?.to_vec(),
                        zeros: p.zeros.get(at..at + n)?.to_vec(),
                        axis,
                    };
                    at += n;
                    part
                };
                out.push((slot, own));
            }
            Some(out)
        }
        _ => None,
    }
}

/// QuantizeLinear in front of the move that makes its input.
fn up(g: &Graph, c: &Coding) -> Option<Patch> {
    let mv = g.producer(c.x).filter(|n| g.node(*n).op.is_onnx() && g.node(*n).outputs.len() == 1)?;
    if g.use_count(c.x) != 1 || g.is_output(c.x) || !c.is_byte() {
        return None;
    }
    let (node, q) = (g.node(mv), g.node(c.node));
    let axis = match (c.scales.len(), c.axis) {
        (1, _) => -1,
        (_, a) if a < 0 => a,
        (_, a) => a - g.rank(c.x)? as i64,
    };
    let params = Params { scales: c.scales.clone(), zeros: c.zeros.clone(), axis };
    let operands = through(g, node, &params)?;
    let mut p = Patch::new("codes-first").made_from([g.name_of(c.y).to_owned()]).before(mv);
    let mut inputs = Vec::new();
    for (slot, own) in &operands {
        let x = node.input(*slot)?;
        let hint = format!("{}_q", g.name_of(x));
        let mut e = p.under(&hint);
        let n = own.scales.len() as i64;
        let (s, z, attrs) = if *own == params && n == 1 {
            (q.input(1)?.into(), q.input(2)?.into(), Attrs::new())
        } else if n == 1 {
            let s = e.scalar("scale", own.scales[0]);
            let z = e.zero("zero_point", c.dtype, own.zeros[0]);
            (s, z, Attrs::new())
        } else {
            let s = e.floats("scale", &own.scales);
            let z = e.constant("zero_point", zero_tensor(c.dtype, &[n], &own.zeros));
            (s, z, Attrs::new().with_int("axis", own.axis))
        };
        let codes = e.op_with("QuantizeLinear", "", &[x.into(), s, z], attrs);
        p.typed(codes, c.dtype, g.shape(x).map(<[_]>::to_vec));
        inputs.push((*slot, codes));
    }
    let mut e = p.under(g.name_of(c.y));
    if node.op.is("Pad") && node.says("mode", "constant") {
        inputs.push((2, e.zero("nothing", c.dtype, c.zeros[0])));
    }
    let moved = e.like(node, "", &inputs);
    p.typed(moved, c.dtype, node.out().and_then(|v| g.shape(v).map(<[_]>::to_vec)));
    p.succeed(c.y, moved);
    Some(p)
}

/// QuantizeLinear in front of the Split that makes its input, if every part goes into one with the same parameters.
fn up_split(g: &Graph, c: &Coding) -> Option<Patch> {
    let mv = g.producer_is(c.x, "Split")?;
    let node = g.node(mv);
    let x = node.input(0)?;
    let clear = c.whole().is_some() || from_end(g, node.int("axis"), x)? != from_end(g, c.axis, c.x)?;
    if !c.is_byte() || !clear {
        return None;
    }
    let alike = |v: &Option<ValueId>| {
        let own = Coding::written(g, (*v)?)?;
        let same = (own.dtype, &own.scales, &own.zeros) == (c.dtype, &c.scales, &c.zeros)
            && (c.whole().is_some() || own.axis == c.axis);
        // One that nobody reads has been turned already.
        (same && g.use_count(own.y) > 0).then_some(own.y)
    };
    let parts: Vec<ValueId> = node.outputs.iter().map(alike).collect::<Option<_>>()?;
    let q = g.node(c.node);
    let mut p = Patch::new("codes-first").made_from([g.name_of(c.y).to_owned()]).before(mv);
    let codes = [x.into(), q.input(1)?.into(), q.input(2)?.into()];
    let codes = p.under(g.name_of(x)).op_with("QuantizeLinear", "q", &codes, q.attrs.clone());
    p.typed(codes, c.dtype, g.shape(x).map(<[_]>::to_vec));
    let names: Vec<&str> = parts.iter().map(|v| g.name_of(*v)).collect();
    let moved = p.like(node, &[(0, codes)], &names);
    for ((old, new), v) in parts.iter().zip(moved).zip(node.outputs.iter().flatten()) {
        p.typed(new, c.dtype, g.shape(*v).map(<[_]>::to_vec));
        p.succeed(*old, new);
    }
    Some(p)
}

/// Where a move that keeps all elements takes the axis of the channels of `c`.
fn axis_behind(g: &Graph, n: &Node, c: &Coding) -> Option<i64> {
    let (from, to) = (g.shape(c.y)?, g.shape(n.out()?)?);
    let rank = from.len() as i64;
    let axis = if c.axis < 0 { c.axis + rank } else { c.axis };
    let at = usize::try_from(axis).ok().filter(|a| *a < from.len())?;
    match &n.op.name[..] {
        "Transpose" => match n.attrs.ints("perm") {
            Some(perm) => perm.iter().position(|a| *a == axis).map(|a| a as i64),
            None => Some(rank - 1 - axis),
        },
        _ if !keeps_elements(n) => None,
        _ if at + 1 == from.len() && to.last() == from.last() && matches!(from[at], Dim::Known(_)) => {
            Some(to.len() as i64 - 1)
        }
        // All in front of the channels, and these, stay as they are.
        _ => {
            let known = from[1..=at].iter().all(|d| matches!(d, Dim::Known(_)));
            (at > 0 && known && to.get(..=at) == Some(&from[..=at])).then_some(axis)
        }
    }
}

/// DequantizeLinear after the moves that read it, each with its own. A move whose result a nested graph reads stays: that
/// reading cannot be redirected, and there would be a second move, and a third.
fn down(g: &Graph, c: &Coding) -> Vec<Patch> {
    if g.constant(c.x).is_some() {
        return Vec::new();
    }
    g.uses(c.y)
        .into_iter()
        .filter(|(n, slot)| {
            let node = g.node(*n);
            *slot == 0
                && (keeps_elements(node)
                    || (node.op.is_onnx() && matches!(&node.op.name[..], "Slice" | "Gather" | "Split")))
                && node.outputs.iter().all(|v| v.is_some_and(|v| !g.is_output(v) && !is_captured(g, v)))
        })
        .filter_map(|(n, _)| {
            let node = g.node(n);
            let mut dq = g.node(c.node).clone();
            if c.whole().is_none() {
                dq.attrs.set("axis", AttrValue::Int(axis_behind(g, node, c)?));
            }
            let made: Vec<ValueId> = node.outputs.iter().flatten().copied().collect();
            let mut p = Patch::new("codes-first").made_from([g.name_of(*made.first()?).to_owned()]).before(n);
            let names: Vec<String> = made.iter().map(|v| format!("{}_q", g.name_of(*v))).collect();
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            let moved = p.like(node, &[(0, c.x.into())], &names);
            for (y, codes) in made.into_iter().zip(moved) {
                let shape = g.shape(y).map(<[_]>::to_vec);
                p.typed(codes, c.dtype, shape.clone());
                let back = p.like(&dq, &[(0, codes)], &[g.name_of(y)])[0];
                p.typed(back, DType::FLOAT, shape);
                p.succeed(y, back);
            }
            Some(p)
        })
        .collect()
}
