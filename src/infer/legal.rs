//! What the standard demands of attributes and shapes, checked before anything is computed with them. Runtimes differ in what
//! they do with an axis out of range or a permutation that names an axis twice: some refuse it, some loop, some allocate.

use std::collections::BTreeSet;
use std::fmt;

use super::attr_types::types;
use super::rules::broadcast;
use super::view::{Given, View, axes};
use super::{Size, shapes};
use crate::ir::vocabulary::class;
use crate::ir::{Class, DType, Model, Origin, axis};

/// A node that is no call of its operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Illegal {
    /// The node's name, or that of its first output.
    pub node: String,
    pub op: String,
    pub what: String,
    /// The pass or rule that made the node.
    pub by: Option<String>,
}

impl fmt::Display for Illegal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node `{}` ({}): {}; ", self.node, self.op, self.what)?;
        match &self.by {
            None => f.write_str("no runtime can compute this: correct the model, or export it again"),
            Some(by) => {
                write!(f, "`{by}` made it, and no runtime can compute this: correct the plan or rule that it follows")
            }
        }
    }
}

impl std::error::Error for Illegal {}

/// Checks every standard node of the graph, as far as shapes are known.
///
/// # Errors
/// The first node that breaks a rule of its operator, with the rule.
pub fn legal(model: &Model) -> Result<(), Illegal> {
    let (g, map) = (&model.graph, shapes(model));
    for id in g.schedule() {
        let node = g.node(id);
        if !node.op.is_onnx() {
            continue;
        }
        let view = View::new(node, model.opset(), &map);
        if let Err(what) = check(&view) {
            let by = node.maker().map(str::to_owned);
            return Err(Illegal { node: g.label(node), op: node.op.to_string(), what, by });
        }
    }
    Ok(())
}

type Checked = Result<(), String>;

fn check(view: &View) -> Checked {
    types(view)?;
    match view.op() {
        "Softmax" | "LogSoftmax" | "Hardmax" => one_axis(view, 0)?,
        "LayerNormalization" | "RMSNormalization" => {
            one_axis(view, 0)?;
            if let (Some(x), Some(a)) = (view.dims(0), view.rank(0).and_then(|r| view.axis(r))) {
                (1..view.node.inputs.len()).try_for_each(|i| spreads(view, i, &x[a..]))?;
            }
        }
        "Concat" => concat(view)?,
        "Split" => split(view)?,
        "Gather" | "GatherElements" => {
            one_axis(view, 0)?;
            indices(view)?;
        }
        "ArgMax" | "ArgMin" | "ScatterElements" | "LpNormalization" => one_axis(view, 0)?,
        "TopK" => {
            one_axis(view, 0)?;
            most(view)?;
        }
        "CumSum" => sums_along(view)?,
        "Einsum" => letters(view)?,
        "LSTM" | "GRU" | "RNN" => hidden_size(view)?,
        "Flatten" => one_axis(view, 1)?,
        "QuantizeLinear" | "DequantizeLinear" => steps(view)?,
        "Transpose" => perm(view)?,
        "Squeeze" => {
            many_axes(view, 1, 0)?;
            squeezed(view)?;
        }
        "Unsqueeze" => {
            let more = match view.list("axes", 1) {
                Given::Known(a) => a.len(),
                _ => 0,
            };
            many_axes(view, 1, more)?;
        }
        "Slice" => {
            many_axes(view, 3, 0)?;
            if let Given::Known(steps) = view.list("steps", 4) {
                steps.iter().try_for_each(|s| stride(*s))?;
            }
        }
        op if op.starts_with("Reduce") => many_axes(view, 1, 0)?,
        "Conv" | "ConvInteger" | "ConvTranspose" | "DeformConv" => window(view)?,
        "MaxPool" | "AveragePool" | "LpPool" => {
            if view.node.attrs.ints("kernel_shape").is_none() {
                return Err("it has no `kernel_shape`".to_owned());
            }
            window(view)?;
        }
        "Pad" => pad(view)?,
        "Reshape" => reshape(view)?,
        "Expand" | "ConstantOfShape" => {
            let slot = usize::from(view.op() == "Expand");
            no_less_than(view, slot, 0, "a size of its shape")?;
            if view.op() == "Expand"
                && let (Some(x), Some(s)) = (view.dims(0), view.elements(1))
            {
                broadcasts(x, s)?;
            }
        }
        "Tile" => no_less_than(view, 1, 0, "a repetition")?,
        "Range" => range(view)?,
        "MatMul" => product(view)?,
        "Gemm" => gemm(view)?,
        "Attention" => heads(view)?,
        "GroupNormalization" => groups(view)?,
        "Gelu" => {
            if let Some(a) = view.node.attrs.str("approximate").filter(|a| !["none", "tanh"].contains(a)) {
                return Err(format!("`approximate` is {a:?}, which is neither none nor tanh"));
            }
        }
        "Resize" => resize(view)?,
        "DepthToSpace" | "SpaceToDepth"
            if view.node.attrs.int("blocksize").is_none_or(|b| !(1..1 << 16).contains(&b)) =>
        {
            return Err("its `blocksize` is no positive size".to_owned());
        }
        "Cast" => {
            let to = view.node.attrs.int("to").and_then(|t| i32::try_from(t).ok()).map(DType);
            if to.is_none_or(|t| t == DType::UNDEFINED || t.name().is_none()) {
                return Err("`to` is no element type of the standard".to_owned());
            }
        }
        // One entry for each place; raising the operator set tells that newer ones have no such form.
        "BatchNormalization" if view.opset < 9 && view.node.attrs.int("spatial") == Some(0) => {}
        "BatchNormalization" | "InstanceNormalization" => {
            if let Some([_, c, ..]) = view.dims(0) {
                (1..view.node.inputs.len()).try_for_each(|i| spreads(view, i, std::slice::from_ref(c)))?;
            }
        }
        "SplitToSequence" => {
            one_axis(view, 0)?;
            no_less_than(view, 1, i64::from(view.rank(1) == Some(0)), "a size of its parts")?;
        }
        op if op == "Where" || matches!(class(op), Some(Class::Broadcast | Class::Compare)) => elementwise(view)?,
        _ => {}
    }
    Ok(())
}

/// `axis`; `beyond`: how many places after the last axis it may name.
fn one_axis(view: &View, beyond: usize) -> Checked {
    let Some(rank) = view.rank(0) else { return Ok(()) };
    let a = view.int("axis");
    // Counted from the end, there is nothing beyond the last axis.
    let counted = if a < 0 { rank } else { rank + beyond };
    if axis(a, counted).is_some() {
        return Ok(());
    }
    // What the operator takes by default is not the file's fault; a scalar has one row.
    if view.node.attrs.int("axis").is_none() || (rank == 0 && (a == 0 || a == -1)) {
        return Ok(());
    }
    Err(format!("`axis` is {a}, its input has {rank} axes"))
}

/// One step for all elements, or one for each place of an axis; with blocks, one for each block.
fn steps(view: &View) -> Checked {
    let (Some(x), Some([n])) = (view.dims(0), view.dims(1)) else { return Ok(()) };
    if n.known() == Some(1) || view.int("block_size") != 0 {
        return Ok(());
    }
    let a = view.int("axis");
    let Some(at) = axis(a, x.len()) else {
        return Err(format!("`axis` is {a}, its input has {} axes, and it has several scales", x.len()));
    };
    match (x[at].known(), n.known()) {
        (Some(size), Some(n)) if size != n => Err(format!("it has {n} scales for an axis of {size}")),
        // A plan that scales samples apart; in a model as it was read the size may be that all the same.
        (None, Some(n)) if at == 0 && view.node.origin != Origin::Imported => {
            Err(format!("it has {n} scales for axis 0, whose size only the run knows"))
        }
        _ => Ok(()),
    }
}

fn many_axes(view: &View, slot: usize, more: usize) -> Checked {
    let (Some(rank), Given::Known(list)) = (view.rank(0), view.list("axes", slot)) else { return Ok(()) };
    if rank == 0 && more == 0 && list.iter().all(|a| *a == 0 || *a == -1) {
        return Ok(());
    }
    if axes(&list, rank + more).is_none() {
        let of = if more > 0 { "output" } else { "input" };
        return Err(format!("`axes` are {}, its {of} has {} axes, and each is named once", short(&list), rank + more));
    }
    Ok(())
}

/// A step of a Slice.
fn stride(step: i64) -> Checked {
    match i32::try_from(step) {
        Ok(0) => Err("one of its steps is 0".to_owned()),
        Ok(_) => Ok(()),
        // Runtimes differ in what they make of these.
        Err(_) => {
            let most = step.signum() * i64::from(i32::MAX);
            Err(format!("its step of {step} is longer than any axis; {most} does the same"))
        }
    }
}

fn perm(view: &View) -> Checked {
    let Some(p) = view.node.attrs.ints("perm") else { return Ok(()) };
    let rank = view.rank(0).unwrap_or(p.len());
    if p.len() == rank && axes(p, rank).is_some() && p.iter().all(|a| *a >= 0) {
        return Ok(());
    }
    Err(format!("`perm` is {}, which is no permutation of {rank} axes", short(p)))
}

/// A list, cut where it is long.
fn short(list: &[i64]) -> String {
    let head: Vec<String> = list.iter().take(8).map(i64::to_string).collect();
    format!("[{}{}]", head.join(", "), if list.len() > 8 { ", ..." } else { "" })
}

fn concat(view: &View) -> Checked {
    let ranks: BTreeSet<usize> = (0..view.node.inputs.len()).filter_map(|i| view.rank(i)).collect();
    if ranks.len() > 1 {
        return Err(format!("its inputs have different numbers of axes: {ranks:?}"));
    }
    let Some(rank) = ranks.first().copied() else { return Ok(()) };
    let Some(at) = view.axis(rank) else {
        let what = view.node.attrs.int("axis").map_or("missing".to_owned(), |a| a.to_string());
        return Err(format!("`axis` is {what}, its inputs have {rank} axes"));
    };
    for i in (0..rank).filter(|i| *i != at) {
        let sizes: BTreeSet<i64> = (0..view.node.inputs.len()).filter_map(|k| view.dims(k)?.get(i)?.known()).collect();
        if sizes.len() > 1 {
            return Err(format!("its inputs differ in axis {i}, which it does not join: {sizes:?}"));
        }
    }
    Ok(())
}

fn split(view: &View) -> Checked {
    one_axis(view, 0)?;
    let whole = view.rank(0).and_then(|r| view.dims(0)?.get(view.axis(r)?)?.known());
    let Given::Known(sizes) = view.list("split", 1) else {
        return match whole.filter(|_| !view.has(1)) {
            Some(n) => equal_parts(n, view.node.outputs.len() as i64, view.opset),
            None => Ok(()),
        };
    };
    if sizes.len() != view.node.outputs.len() || sizes.iter().any(|n| *n < 0) {
        return Err(format!("its sizes are {}, for {} outputs", short(&sizes), view.node.outputs.len()));
    }
    let sum = sizes.iter().try_fold(0i64, |a, n| a.checked_add(*n));
    match whole {
        Some(n) if sum != Some(n) => Err(format!("its sizes {} do not add up to {n}", short(&sizes))),
        _ => Ok(()),
    }
}

/// Before opset 18 all parts are equal; from then on the last may be smaller.
fn equal_parts(n: i64, parts: i64, opset: i64) -> Checked {
    let each = n / parts.max(1) + i64::from(n % parts.max(1) != 0);
    let fits = if opset < 18 { each * parts == n } else { each * (parts - 1) <= n };
    if fits { Ok(()) } else { Err(format!("an axis of {n} has no {parts} equal parts")) }
}

/// Only axes of one element can go.
fn squeezed(view: &View) -> Checked {
    let Given::Known(list) = view.list("axes", 1) else { return Ok(()) };
    if list.is_empty() && view.has(1) {
        let read = "which some runtimes read as none and some as all of size 1";
        return Err(format!("its list of axes is empty, {read}: leave it out, or name them"));
    }
    let Some(x) = view.dims(0) else { return Ok(()) };
    let size = |a: &i64| x.get(axis(*a, x.len())?)?.known().filter(|n| *n != 1);
    match list.iter().find_map(|a| Some((a, size(a)?))) {
        Some((a, n)) => Err(format!("it removes axis {a}, which has {n} elements and not one")),
        None => Ok(()),
    }
}

/// Heads of an Attention: said where its inputs do not have an axis for them.
fn heads(view: &View) -> Checked {
    let [q, kv] = ["q_num_heads", "kv_num_heads"].map(|name| view.node.attrs.int(name));
    for (name, n) in [("q_num_heads", q), ("kv_num_heads", kv)] {
        match n {
            Some(n) if n < 1 => return Err(format!("`{name}` is {n}")),
            None if view.rank(0) == Some(3) => return Err(format!("it has no `{name}`, and inputs of 3 axes")),
            _ => {}
        }
    }
    match (q, kv) {
        (Some(q), Some(kv)) if q % kv != 0 => Err(format!("{q} heads of queries do not share {kv} of keys evenly")),
        _ => Ok(()),
    }
}

/// Groups of channels of one size.
fn groups(view: &View) -> Checked {
    let n = view.node.attrs.int("num_groups").unwrap_or(0);
    let channels = view.dims(0).and_then(|x| x.get(1)?.known());
    if n < 1 || channels.is_some_and(|c| c % n != 0) {
        let of = channels.map_or(String::new(), |c| format!(", for {c} channels"));
        return Err(format!("`num_groups` is {n}{of}"));
    }
    Ok(())
}

fn indices(view: &View) -> Checked {
    let n = view.rank(0).and_then(|r| view.dims(0)?.get(view.axis(r)?)?.known());
    let (Some(n), Some(list)) = (n, view.ints(1)) else { return Ok(()) };
    match list.iter().find(|i| !(-n..n).contains(*i)) {
        Some(i) => Err(format!("index {i} is outside of an axis of {n}")),
        None => Ok(()),
    }
}

const AUTO_PADS: [&str; 4] = ["NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"];

/// Strides, dilations, pads, kernel and groups of a window that slides.
fn window(view: &View) -> Checked {
    let a = &view.node.attrs;
    // The channels of other weights lie along other axes, and pools have none.
    let counted = matches!(view.op(), "Conv" | "ConvInteger" | "DeformConv");
    let weighted = counted || view.op() == "ConvTranspose";
    let spatial = match (view.rank(0), view.rank(1).filter(|_| weighted)) {
        (Some(x), Some(w)) if x != w => return Err(format!("its input has {x} axes and its weight {w}")),
        (Some(r), _) | (None, Some(r)) if r < 3 => return Err(format!("its input has {r} axes, it takes 3 or more")),
        (Some(r), _) | (None, Some(r)) => Some(r - 2),
        _ => None,
    };
    if let Some(p) = a.str("auto_pad").filter(|p| !AUTO_PADS.contains(p)) {
        return Err(format!("`auto_pad` is {p:?}, which is none of {}", AUTO_PADS.join(", ")));
    }
    for (name, least, twice) in
        [("strides", 1, 1), ("dilations", 1, 1), ("kernel_shape", 1, 1), ("pads", 0, 2), ("output_padding", 0, 1)]
    {
        let Some(list) = a.ints(name) else { continue };
        if let Some(n) = list.iter().find(|n| !(least..1 << 31).contains(*n)) {
            return Err(format!("`{name}` holds {n}"));
        }
        if spatial.is_some_and(|s| list.len() != s * twice) {
            return Err(format!("`{name}` has {} entries for {} axes", list.len(), spatial.unwrap_or(0)));
        }
    }
    if !weighted {
        return Ok(());
    }
    // Windows of pools have none.
    let group = view.given("group").unwrap_or(1);
    if group < 1 {
        return Err(format!("`group` is {group}"));
    }
    let (x, w) = (view.dims(0), view.dims(1));
    if let (Some(k), Some(w)) = (a.ints("kernel_shape"), w) {
        let differs = k.iter().zip(&w[2..]).any(|(k, w)| w.known().is_some_and(|n| n != *k));
        if differs {
            return Err(format!("`kernel_shape` is {}, its weight has another", short(k)));
        }
    }
    if let (true, Some(x), Some(w)) = (counted, x, w)
        && let (Some(c), Some(outs), Some(ins)) = (x[1].known(), w[0].known(), w[1].known())
        && (ins.checked_mul(group) != Some(c) || outs % group != 0)
    {
        return Err(format!("{c} channels in {group} groups do not fit a weight for {outs} x {ins}"));
    }
    if let Some(w) = w
        && w.iter().any(|d| d.known() == Some(0))
    {
        return Err("its weight has no elements".to_owned());
    }
    Ok(())
}

fn pad(view: &View) -> Checked {
    let Given::Known(p) = view.list("pads", 1) else { return Ok(()) };
    if let Some(n) = p.iter().find(|n| n.unsigned_abs() > 1 << 31) {
        return Err(format!("a padding is {n}"));
    }
    let Some(x) = view.dims(0) else { return Ok(()) };
    let which: Option<Vec<usize>> = match view.ints(3) {
        Some(a) => a.iter().map(|a| axis(*a, x.len())).collect(),
        None if view.has(3) => return Ok(()),
        None => Some((0..x.len()).collect()),
    };
    let Some(which) = which else { return Err(format!("its axes are outside of an input of {} axes", x.len())) };
    if p.len() != 2 * which.len() {
        return Err(format!("it has {} paddings for {} axes", p.len(), which.len()));
    }
    for (i, a) in which.iter().enumerate() {
        if let Some(n) = x[*a].known()
            && n + p[i] + p[i + which.len()] < 0
        {
            return Err(format!("axis {a} of size {n} is padded by {} and {}", p[i], p[i + which.len()]));
        }
    }
    Ok(())
}

fn reshape(view: &View) -> Checked {
    let target = match view.node.attrs.ints("shape") {
        Some(s) if view.opset < 5 => s.to_vec(),
        _ => match view.ints(1) {
            Some(s) => s,
            None => return Ok(()),
        },
    };
    if let Some(n) = target.iter().find(|n| **n < -1) {
        return Err(format!("a size of its shape is {n}"));
    }
    if target.iter().filter(|n| **n == -1).count() > 1 {
        return Err(format!("its shape {} leaves more than one size open", short(&target)));
    }
    let copies = view.int("allowzero") == 0;
    let Some(from) = view.dims(0) else { return Ok(()) };
    let at = |(i, n): (usize, &i64)| if *n == 0 && copies { from.get(i)?.known() } else { Some(*n) };
    let sizes: Option<Vec<i64>> = target.iter().enumerate().map(at).collect();
    let total = from.iter().map(Size::known).collect::<Option<Vec<i64>>>().and_then(crate::budget::elements);
    let (Some(sizes), Some(total)) = (sizes, total) else { return Ok(()) };
    let given = crate::budget::elements(sizes.iter().copied().filter(|n| *n != -1));
    let open = sizes.contains(&-1);
    let fits = given.is_some_and(|n| if open { n != 0 && total.is_multiple_of(n) || total == 0 } else { n == total });
    if fits { Ok(()) } else { Err(format!("{total} elements do not fit the shape {}", short(&target))) }
}

/// A Range's numbers, where they are constants.
fn range(view: &View) -> Checked {
    let number = |slot: usize| view.constant(slot)?.to_f32s()?.first().copied();
    for (slot, what) in ["its start", "its limit", "its step"].into_iter().enumerate() {
        if let Some(n) = number(slot).filter(|n| !n.is_finite()) {
            return Err(format!("{what} is {n}"));
        }
    }
    let whole = view.ints(2).is_some_and(|s| s.first() == Some(&0));
    if whole || number(2) == Some(0.0) { Err("its step is 0".to_owned()) } else { Ok(()) }
}

/// How many elements a TopK takes.
fn most(view: &View) -> Checked {
    let Given::Known(k) = view.list("k", 1) else { return Ok(()) };
    let Some(k) = k.first() else { return Ok(()) };
    let along = view.rank(0).and_then(|r| view.dims(0)?.get(view.axis(r)?)?.known());
    if *k < 0 || along.is_some_and(|n| *k > n) {
        let of = along.map_or("its axis".to_owned(), |n| format!("an axis of {n}"));
        return Err(format!("it takes {k} elements of {of}"));
    }
    Ok(())
}

/// The axis of a CumSum.
fn sums_along(view: &View) -> Checked {
    match (view.list("axis", 1), view.rank(0)) {
        (Given::Known(a), Some(rank)) if a.first().is_some_and(|a| axis(*a, rank).is_none()) => {
            Err(format!("its axis is {}, its input has {rank} axes", short(&a)))
        }
        _ => Ok(()),
    }
}

/// An Einsum's equation: as many operands as inputs, and as many letters as axes.
fn letters(view: &View) -> Checked {
    let Some(equation) = view.node.attrs.str("equation") else { return Err("it has no `equation`".to_owned()) };
    let operands: Vec<String> = equation
        .split("->")
        .next()
        .unwrap_or_default()
        .split(',')
        .map(|part| part.chars().filter(|c| !c.is_whitespace()).collect())
        .collect();
    let inputs = view.node.inputs.len();
    if operands.len() != inputs {
        return Err(format!("`equation` {equation:?} has {} operands, the node {inputs} inputs", operands.len()));
    }
    for (i, part) in operands.iter().enumerate().filter(|(_, part)| !part.contains("...")) {
        if let Some(rank) = view.rank(i).filter(|r| *r != part.chars().count()) {
            return Err(format!("`equation` {equation:?} has {part:?} for input {i}, which has {rank} axes"));
        }
    }
    Ok(())
}

/// A recurrent operator's weights belong to its hidden size.
fn hidden_size(view: &View) -> Checked {
    let Some(size) = view.node.attrs.int("hidden_size") else { return Ok(()) };
    match view.dims(2).and_then(|d| d.last()?.known()) {
        Some(n) if n != size => Err(format!("`hidden_size` is {size}, its recurrent weight is for {n}")),
        _ => Ok(()),
    }
}

fn no_less_than(view: &View, slot: usize, least: i64, what: &str) -> Checked {
    match view.ints(slot).and_then(|v| v.into_iter().find(|n| *n < least)) {
        Some(n) => Err(format!("{what} is {n}")),
        None => Ok(()),
    }
}

fn broadcasts(a: &[Size], b: &[Option<Size>]) -> Checked {
    for (x, y) in a.iter().rev().zip(b.iter().rev()) {
        if let (Some(m), Some(n)) = (x.known(), y.as_ref().and_then(Size::known))
            && m != n
            && m != 1
            && n != 1
        {
            return Err(format!("sizes {m} and {n} of its inputs do not go together"));
        }
    }
    Ok(())
}

/// Whether input `i` spreads over the sizes `over`.
fn spreads(view: &View, i: usize, over: &[Size]) -> Checked {
    let Some(own) = view.dims(i) else { return Ok(()) };
    for (x, y) in own.iter().rev().zip(over.iter().rev()) {
        if let (Some(m), Some(n)) = (x.known(), y.known())
            && m != n
            && m != 1
        {
            return Err(format!("input {i} has {m} entries for {n}"));
        }
    }
    Ok(())
}

fn elementwise(view: &View) -> Checked {
    let mut all: Vec<Option<Size>> = Vec::new();
    for i in 0..view.node.inputs.len() {
        let Some(d) = view.dims(i) else { return Ok(()) };
        broadcasts(d, &all)?;
        all = broadcast(&all, &d.iter().cloned().map(Some).collect::<Vec<_>>());
    }
    Ok(())
}

fn product(view: &View) -> Checked {
    let (Some(a), Some(b)) = (view.dims(0), view.dims(1)) else { return Ok(()) };
    let (Some(inner), false) = (a.last(), b.is_empty()) else {
        return Err("it multiplies a scalar".to_owned());
    };
    let other = &b[b.len().saturating_sub(2)];
    if let (Some(m), Some(n)) = (inner.known(), other.known())
        && m != n
    {
        return Err(format!("it multiplies rows of {m} with columns of {n}"));
    }
    let batch = |d: &[Size]| d[..d.len().saturating_sub(2)].to_vec();
    broadcasts(&batch(a), &batch(b).into_iter().map(Some).collect::<Vec<_>>())
}

fn gemm(view: &View) -> Checked {
    let (Some(a), Some(b)) = (view.dims(0), view.dims(1)) else { return Ok(()) };
    if a.len() != 2 || b.len() != 2 {
        return Err(format!("it multiplies inputs of {} and {} axes; both have two", a.len(), b.len()));
    }
    let (ta, tb) = (view.int("transA") != 0, view.int("transB") != 0);
    if let (Some(m), Some(n)) = (a[usize::from(!ta)].known(), b[usize::from(tb)].known())
        && m != n
    {
        return Err(format!("it multiplies rows of {m} with columns of {n}"));
    }
    spreads(view, 2, &[a[usize::from(ta)].clone(), b[usize::from(!tb)].clone()])
}

fn resize(view: &View) -> Checked {
    if view.opset >= 11 {
        no_less_than(view, 3, 1, "a size")?;
    }
    let slot = if view.opset < 11 { 1 } else { 2 };
    let scales = view.constant(slot).and_then(|t| t.to_f32s());
    match scales.as_ref().and_then(|s| s.iter().find(|s| !(s.is_finite() && **s > 0.0))) {
        Some(s) => Err(format!("a scale is {s}")),
        None => Ok(()),
    }
}
