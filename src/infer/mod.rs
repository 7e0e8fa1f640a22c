//! Shape inference and constant evaluation.
//!
//! [`shapes`] walks the graph once in execution order and says of every value what can be proved: its element type, its
//! shape, and, for small integer tensors and for constants, its contents. Sizes are [`Size`]s, polynomials over named
//! and unnamed run-time sizes; an unnamed unknown size is still equal to itself, so that chains like
//! `Shape -> Gather -> Unsqueeze -> Concat -> Reshape` are understood whatever the batch size is.
//!
//! The rule of the house: *unknown rather than guessed*. Two assumptions are made and no others:
//! a size that is only known at run time is at least 1 (a model called with an empty batch is outside of what is
//! proved), and the model runs without error (sizes that must be equal for an operator to accept its inputs are).
//! What the file declares is used only for graph inputs and for operators this module does not know, and of the latter
//! only the element type and sizes that are numbers.

mod approximate;
mod arith;
mod attr_types;
mod einsum;
mod follow;
mod legal;
mod memo;
mod moves;
mod rules;
mod size;
mod spatial;
mod view;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;

use crate::budget::{self, OverBudget};
use crate::ir::{AttrValue, DType};
use crate::ir::{Def, Dim, Graph, Model, Node, NodeId, Tensor, TensorType, Value, ValueId};

pub(crate) use einsum::spelt_out;
pub use legal::{Illegal, legal};
#[cfg(feature = "tract")]
pub(crate) use moves::broadcast_places;
pub use size::{Atom, Size};
pub(crate) use view::{Given, View};

/// Constants larger than this many bytes are carried but not computed with.
const MAX_FOLD_BYTES: usize = 64 << 20;
/// A constant that is larger than what it is made of may have this many bytes: a few bytes in a file can ask for any number.
const MAX_GROWN_BYTES: usize = 32 << 20;
/// All constants computed in one walk may have this many bytes together, and four times what the file holds.
const MAX_WALK_BYTES: usize = 96 << 20;
/// Integer tensors up to this many elements are followed element by element.
const MAX_ELEMENTS: usize = 1024;
/// Elements followed in one walk.
const MAX_WALK_ELEMENTS: usize = 4 << 20;
/// Sizes with longer names than this are unnamed.
const MAX_DIM_TEXT: usize = 256;

/// What one walk may still compute. Atomics, because whoever asks holds the facts; there is no second thread in a walk.
#[derive(Debug, Default)]
struct Allowance {
    bytes: AtomicUsize,
    elements: AtomicUsize,
}

impl Allowance {
    fn take(left: &AtomicUsize, n: usize) -> bool {
        let has = left.load(Relaxed);
        let enough = has >= n;
        if enough {
            left.store(has - n, Relaxed);
        }
        enough
    }
}

impl Clone for Allowance {
    fn clone(&self) -> Allowance {
        let copy = |n: &AtomicUsize| AtomicUsize::new(n.load(Relaxed));
        Allowance { bytes: copy(&self.bytes), elements: copy(&self.elements) }
    }
}

/// What is known of one value.
#[derive(Clone, Debug, Default)]
pub struct Fact {
    pub dtype: Option<DType>,
    /// `None`: not even the rank is known.
    pub dims: Option<Vec<Size>>,
    /// Elements of an integer or bool tensor in row-major order, each known, symbolic, or unknown (`None`). Bools are 0
    /// and 1.
    pub elements: Option<Arc<[Option<Size>]>>,
    /// The value's tensor, when it does not depend on what the model is fed.
    pub constant: Option<Tensor>,
}

/// What is known of every value of a graph.
#[derive(Clone, Debug, Default)]
pub struct ShapeMap {
    facts: Vec<Fact>,
    /// Names of the atoms; `None` for an unnamed run-time size.
    atoms: Vec<Option<String>>,
    /// Constants are computed where runtimes differ in the last bit, too.
    approximate: bool,
    allowance: Allowance,
    /// The operator set it was inferred for.
    opset: i64,
    /// The first value whose sizes no memory can hold, with them; nothing is claimed of its shape.
    vast: Option<(ValueId, Vec<i64>)>,
}

impl ShapeMap {
    /// What is known of the value, if it was in the graph.
    pub fn fact(&self, v: ValueId) -> Option<&Fact> {
        self.facts.get(v.0 as usize)
    }

    /// The element type, if it is known.
    pub fn dtype(&self, v: ValueId) -> Option<DType> {
        self.fact(v)?.dtype
    }

    /// The shape; sizes may be symbolic.
    pub fn dims(&self, v: ValueId) -> Option<&[Size]> {
        self.fact(v)?.dims.as_deref()
    }

    /// The number of axes, if it is known.
    pub fn rank(&self, v: ValueId) -> Option<usize> {
        Some(self.dims(v)?.len())
    }

    /// The shape, if every size is a number.
    pub fn known_dims(&self, v: ValueId) -> Option<Vec<i64>> {
        self.dims(v)?.iter().map(Size::known).collect()
    }

    /// The tensor behind a value that does not depend on what the model is fed.
    pub fn constant(&self, v: ValueId) -> Option<&Tensor> {
        self.fact(v)?.constant.as_ref()
    }

    /// The elements of an integer or bool tensor, each known, symbolic or unknown.
    pub fn elements(&self, v: ValueId) -> Option<&[Option<Size>]> {
        self.fact(v)?.elements.as_deref()
    }

    /// True if both shapes are known and equal for all run-time sizes.
    pub fn same_shape(&self, a: ValueId, b: ValueId) -> bool {
        matches!((self.dims(a), self.dims(b)), (Some(x), Some(y)) if x == y)
    }

    /// Keeps what was found of a value. Sizes that no memory can hold are not believed, so that whoever multiplies sizes that
    /// are known here cannot overflow.
    fn keep(&mut self, v: ValueId, mut fact: Fact) {
        if let Some(dims) = &fact.dims {
            // Run-time sizes are at least 1.
            let least: Vec<i64> = dims.iter().map(|d| d.known().unwrap_or(1)).collect();
            if budget::elements(least.iter().copied()).is_none() {
                self.vast.get_or_insert((v, least));
                fact = Fact { dtype: fact.dtype, ..Fact::default() };
            }
        }
        if let Some(e) = &self.facts[v.0 as usize].elements {
            self.allowance.elements.fetch_add(e.len(), Relaxed);
        }
        if let Some(e) = &fact.elements
            && !Allowance::take(&self.allowance.elements, e.len())
        {
            fact.elements = None;
        }
        self.facts[v.0 as usize] = fact;
    }

    /// True if [`ShapeMap::ty`] is this type.
    fn is_ty(&self, v: ValueId, ty: &TensorType) -> bool {
        let Some(f) = self.fact(v) else { return false };
        let same = |(s, d): (&Size, &Dim)| match (s, d) {
            (Size::Known(a), Dim::Known(b)) => a == b,
            (Size::Known(_), _) => false,
            _ => self.dim(s) == *d,
        };
        f.dtype == Some(ty.dtype)
            && match (&f.dims, &ty.shape) {
                (Some(a), Some(b)) => a.len() == b.len() && a.iter().zip(b).all(same),
                (a, b) => a.is_none() && b.is_none(),
            }
    }

    /// The type as the IR writes it: a symbolic size becomes a name (`batch`, `4*batch`), an unnamed one is unknown.
    /// `None` if not even the element type is known.
    pub fn ty(&self, v: ValueId) -> Option<TensorType> {
        let f = self.fact(v)?;
        let shape = f.dims.as_ref().map(|d| d.iter().map(|s| self.dim(s)).collect());
        Some(TensorType { dtype: f.dtype?, shape })
    }

    /// A size as the IR writes it.
    pub fn dim(&self, s: &Size) -> Dim {
        if let Size::Known(n) = s {
            return Dim::Known(*n);
        }
        let mut text = String::new();
        for (m, c) in s.terms() {
            let names: Option<Vec<&str>> =
                m.iter().map(|a| self.atoms.get(a.0 as usize).and_then(|n| n.as_deref())).collect();
            let Some(names) = names else { return Dim::Unknown };
            if !text.is_empty() || c < 0 {
                text.push(if c < 0 { '-' } else { '+' });
            }
            let c = c.unsigned_abs();
            if c != 1 || names.is_empty() {
                text.push_str(&c.to_string());
                text.push_str(if names.is_empty() { "" } else { "*" });
            }
            text.push_str(&names.join("*"));
            if text.len() > MAX_DIM_TEXT {
                return Dim::Unknown;
            }
        }
        Dim::Symbol(text)
    }
}

/// What can be proved of every value. It is kept with the graph, and what changed since it was asked for last is inferred anew
/// with what depends on it.
pub fn shapes(model: &Model) -> Arc<ShapeMap> {
    let g = &model.graph;
    let usable = |map: &ShapeMap| map.opset == model.opset();
    if let Some((when, map)) = g.remembered::<ShapeMap>()
        && when == g.moment()
        && usable(&map)
    {
        return map;
    }
    let stale = g.take_remembered::<ShapeMap>().filter(|(_, map)| usable(map));
    let fresh = stale.and_then(|(when, map)| follow::follow(model, map, when));
    let map = fresh.unwrap_or_else(|| Arc::new(infer(model, ShapeMap::default())));
    g.remember(map.clone());
    map
}

/// As [`shapes`], from one walk over the whole.
#[cfg(test)]
pub(crate) fn shapes_anew(model: &Model) -> ShapeMap {
    infer(model, ShapeMap::default())
}

/// Sets, by name, the shapes of inputs that the file declares without one.
pub fn declare(model: &mut Model, shapes: &[(String, Vec<Dim>)]) {
    for (name, dims) in shapes {
        let Some(v) = model.graph.find(name).filter(|v| model.graph.inputs().contains(v)) else { continue };
        if let Some(TensorType { dtype, shape: None }) = model.graph.value(v).ty {
            model.graph.value_mut(v).ty = Some(TensorType { dtype, shape: Some(dims.clone()) });
        }
    }
}

/// As [`shapes`], of a model that is fed inputs of these sizes, by name.
pub fn shapes_fed(model: &Model, inputs: &[(&str, &[i64])]) -> Arc<ShapeMap> {
    let mut fed = model.clone();
    for v in model.graph.inputs() {
        let given = inputs.iter().find(|(name, _)| *name == model.graph.name_of(*v));
        if let (Some((_, dims)), Some(ty)) = (given, &mut fed.graph.value_mut(*v).ty) {
            ty.shape = Some(dims.iter().map(|n| Dim::Known(*n)).collect());
        }
    }
    shapes(&fed)
}

/// As [`shapes`], and constants also where they are the results of operators that libraries approximate: those are right
/// up to rounding.
pub fn approximate_constants(model: &Model) -> ShapeMap {
    infer(model, ShapeMap { approximate: true, ..ShapeMap::default() })
}

fn infer(model: &Model, mut map: ShapeMap) -> ShapeMap {
    let g = &model.graph;
    map.opset = model.opset();
    map.facts.resize(g.value_bound(), Fact::default());
    let stored: usize = g.initializers().iter().filter_map(|v| g.try_init(*v)).map(Tensor::byte_len).sum();
    map.allowance.bytes = AtomicUsize::new(stored.saturating_mul(4).saturating_add(MAX_WALK_BYTES));
    map.allowance.elements = AtomicUsize::new(MAX_WALK_ELEMENTS);
    let mut names: BTreeMap<String, Size> = BTreeMap::new();
    for (v, val) in g.values() {
        if let Some(fact) = given(val, &mut map.atoms, &mut names) {
            map.keep(v, fact);
        }
    }
    for id in g.schedule() {
        infer_node(g, id, model.opset(), &mut map);
    }
    map
}

/// What is known of a value that no node makes; `None` for others.
fn given(val: &Value, atoms: &mut Vec<Option<String>>, names: &mut BTreeMap<String, Size>) -> Option<Fact> {
    Some(match &val.def {
        Def::Init(t) => of_tensor(t),
        Def::Input | Def::InputWithDefault(_) | Def::Sparse | Def::Nothing => match &val.ty {
            Some(ty) => declared(ty, atoms, Some(names)),
            None => Fact::default(),
        },
        Def::Node { .. } => return None,
    })
}

/// What one node's outputs are, given what is known of its inputs.
fn infer_node(g: &Graph, id: NodeId, opset: i64, map: &mut ShapeMap) {
    let node = g.node(id);
    let (facts, known) = {
        let view = View::new(node, opset, map);
        let known = node.op.is_onnx() && !node.has_subgraph();
        (if known { node_facts(&view) } else { None }, known)
    };
    for (slot, v) in node.outputs.iter().enumerate() {
        let Some(v) = v else { continue };
        let fact = match facts.as_ref().and_then(|f| f.get(slot)) {
            Some(p) => p.clone().settle(&mut map.atoms),
            // An operator nobody here knows: the declaration is all there is, but for what a Loop carries, which keeps its
            // type.
            None => match &g.value(*v).ty {
                Some(ty) if !known || facts.is_none() => declared(ty, &mut map.atoms, None),
                _ if node.op.is("Loop") => {
                    let dtype = node.inputs.get(slot + 2).copied().flatten().and_then(|start| map.dtype(start));
                    Fact { dtype, ..Fact::default() }
                }
                _ => Fact::default(),
            },
        };
        map.keep(*v, fact);
    }
}

/// A fact in the making: sizes nobody knows are `None` until they get an atom.
#[derive(Clone, Debug, Default)]
pub(crate) struct Draft {
    pub dtype: Option<DType>,
    pub dims: Option<Vec<Option<Size>>>,
    pub elements: Option<Vec<Option<Size>>>,
    pub constant: Option<Tensor>,
}

impl Draft {
    pub fn new(dtype: Option<DType>, dims: Option<Vec<Option<Size>>>) -> Draft {
        Draft { dtype, dims, ..Draft::default() }
    }

    fn settle(self, atoms: &mut Vec<Option<String>>) -> Fact {
        if let Some(t) = &self.constant {
            return of_tensor(t);
        }
        // A negative size is a broken file's; whatever follows from it is not known.
        let size = |s: Option<Size>, atoms: &mut _| match s {
            Some(s) if s.known().is_none_or(|n| n >= 0) => s,
            _ => fresh(atoms, None),
        };
        let dims: Option<Vec<Size>> = self.dims.map(|d| d.into_iter().map(|s| size(s, atoms)).collect());
        // Contents are only of use together with a shape that says how many there are.
        let count = dims.as_ref().and_then(|d| d.iter().map(Size::known).try_fold(1i64, |a, n| a.checked_mul(n?)));
        let elements = self.elements.filter(|e| count == Some(e.len() as i64) && e.iter().any(Option::is_some));
        let constant = match (&elements, self.dtype, &dims) {
            (Some(e), Some(ty), Some(d)) => arith::encode(ty, &d.iter().filter_map(Size::known).collect::<Vec<_>>(), e),
            _ => None,
        };
        Fact { dtype: self.dtype, dims, elements: elements.map(Into::into), constant }
    }
}

fn fresh(atoms: &mut Vec<Option<String>>, name: Option<String>) -> Size {
    atoms.push(name);
    Size::atom(Atom(atoms.len() as u32 - 1))
}

/// What a constant is.
fn of_tensor(t: &Tensor) -> Fact {
    // Sizes that no memory could hold are a broken file's; nothing is computed with them.
    let sane = budget::elements(t.dims.iter().copied()).is_some();
    let small = sane && t.len() <= MAX_ELEMENTS && (t.dtype.is_int() || t.dtype == DType::BOOL);
    let elements = if small { t.to_i64s() } else { None };
    Fact {
        dtype: Some(t.dtype),
        dims: sane.then(|| t.dims.iter().map(|d| Size::Known(*d)).collect()),
        elements: elements.map(|e| e.into_iter().map(|n| Some(Size::Known(n))).collect()),
        constant: sane.then(|| t.clone()),
    }
}

/// What a declaration says. A symbol is believed only with `names` at hand (graph inputs): the same name there is the
/// same size.
fn declared(ty: &TensorType, atoms: &mut Vec<Option<String>>, mut names: Option<&mut BTreeMap<String, Size>>) -> Fact {
    let dims = ty.shape.as_ref().map(|shape| {
        shape
            .iter()
            .map(|d| match (d, names.as_deref_mut()) {
                (Dim::Known(n), _) if *n >= 0 => Size::Known(*n),
                (Dim::Symbol(s), Some(names)) => {
                    names.entry(s.clone()).or_insert_with(|| fresh(atoms, Some(s.clone()))).clone()
                }
                _ => fresh(atoms, None),
            })
            .collect()
    });
    Fact { dtype: (ty.dtype != DType::UNDEFINED).then_some(ty.dtype), dims, elements: None, constant: None }
}

/// All that is known of a node's outputs: type and shape first, then the contents.
fn node_facts(view: &View) -> Option<Vec<Draft>> {
    if view.op() == "Constant" {
        let t = constant_tensor(view.node)?;
        return Some(vec![Draft { constant: Some(t), ..Draft::default() }]);
    }
    let out = rules::outputs(view)?;
    if !computable(view, &out) {
        return Some(out);
    }
    memo::remembered(view, &out, |mut out| {
        if let Some(values) = moves::evaluate(view, &out) {
            return values;
        }
        if let [first, ..] = &mut out[..] {
            arith::evaluate(view, first);
            if view.approximates() && first.constant.is_none() {
                first.constant = approximate::evaluate(view, first);
            }
        }
        out
    })
    .into()
}

/// Whether the contents of the outputs may be computed: what is small always, what is large if it is made of something as
/// large, or if this walk has not computed too much already.
fn computable(view: &View, out: &[Draft]) -> bool {
    let bytes = |d: &Draft| {
        let dims = d.dims.as_ref()?.iter().map(|s| s.as_ref()?.known()).collect::<Option<Vec<_>>>()?;
        let n = usize::try_from(budget::elements(dims)?).ok()?;
        n.checked_mul(d.dtype?.bits()?.max(8) / 8)
    };
    let all: usize = out.iter().filter_map(bytes).fold(0, usize::saturating_add);
    if all <= memo::SMALL {
        return true;
    }
    let sources = (0..view.node.inputs.len()).filter_map(|i| view.constant(i)).map(Tensor::byte_len);
    let largest = sources.max().unwrap_or(0);
    // Nothing is computed of the tensors of the network proper.
    let constant = (0..view.node.inputs.len()).all(|i| !view.has(i) || view.constant(i).is_some())
        || matches!(view.op(), "EyeLike" | "ConstantOfShape");
    if !constant {
        return true;
    }
    all <= MAX_FOLD_BYTES && (all <= largest || all <= MAX_GROWN_BYTES) && view.allows(all)
}

/// Refuses a model one of whose values no memory can hold, or more than the budget has: it cannot be run.
///
/// # Errors
/// [`OverBudget`] names the value, what makes it, and its sizes.
pub fn affordable(model: &Model) -> Result<(), OverBudget> {
    let (g, map) = (&model.graph, shapes(model));
    let name = |v: ValueId, dims: &[i64]| {
        let dims = dims.iter().map(i64::to_string).collect::<Vec<_>>().join(", ");
        let dtype = map.dtype(v).unwrap_or(DType::FLOAT);
        match g.producer(v).map(|n| g.node(n)) {
            Some(n) if n.name.is_empty() => format!("value `{}` ({dtype}[{dims}]) of {}", g.name_of(v), n.op),
            Some(n) => format!("value `{}` ({dtype}[{dims}]) of node `{}` ({})", g.name_of(v), n.name, n.op),
            None => format!("input `{}` ({dtype}[{dims}])", g.name_of(v)),
        }
    };
    if let Some((v, dims)) = &map.vast {
        return budget::afford(None, || name(*v, dims));
    }
    for (v, value) in g.values().filter(|(_, value)| !matches!(value.def, Def::Init(_))) {
        let Some(dims) = map.dims(v) else { continue };
        let least: Vec<i64> = dims.iter().map(|d| d.known().unwrap_or(1)).collect();
        let width = map.dtype(v).or(value.ty.as_ref().map(|t| t.dtype)).and_then(DType::bits).unwrap_or(8).max(8) / 8;
        let bytes = budget::elements(least.iter().copied()).and_then(|n| n.checked_mul(width as u64));
        budget::afford(bytes, || name(v, &least))?;
    }
    Ok(())
}

/// The tensor a `Constant` node holds, from whichever attribute it uses; `None` for strings, sparse tensors, and
/// attributes that stand for a function's parameter.
pub fn constant_tensor(node: &Node) -> Option<Tensor> {
    let a = node.attrs.0.iter().find(|a| a.name.starts_with("value"))?;
    Some(match (&a.name[..], &a.value) {
        ("value", AttrValue::Tensor(t)) => t.clone(),
        ("value_float", AttrValue::Float(v)) => Tensor::scalar_f32(*v),
        ("value_floats", AttrValue::Floats(v)) => Tensor::f32(&[v.len() as i64], v),
        ("value_int", AttrValue::Int(v)) => Tensor::i64(&[], &[*v]),
        ("value_ints", AttrValue::Ints(v)) => Tensor::i64(&[v.len() as i64], v),
        _ => return None,
    })
}

#[cfg(test)]
mod tests;

/// Writes what can be proved of every value into the model, as knowledge of this compilation: nothing of it is exported
/// unless the file declared it before. Of a declared value, sizes that the file gives no number for are written.
#[cfg(test)]
pub(crate) fn annotate(model: &mut Model) {
    let map = shapes(model);
    write_types(model, &map);
}

/// As [`annotate`], with what was inferred of this model before.
pub(crate) fn write_types(model: &mut Model, map: &ShapeMap) {
    let ids: Vec<ValueId> = model.graph.values().map(|(v, _)| v).collect();
    for v in ids {
        if matches!(model.graph.value(v).def, Def::Input | Def::InputWithDefault(_)) || model.graph.is_output(v) {
            continue;
        }
        let had = &model.graph.value(v).ty;
        // Most values have had their type for a long time.
        if had.as_ref().is_some_and(|ty| map.is_ty(v, ty)) {
            continue;
        }
        let Some(found) = map.ty(v) else { continue };
        let ty = match had {
            Some(ty) if model.graph.is_declared(v) => {
                let mut ty = ty.clone();
                refine(&mut ty, found);
                ty
            }
            _ => found,
        };
        if had.as_ref() != Some(&ty) {
            model.graph.set_inferred(v, ty);
        }
    }
}

/// Gives the sizes that `ty` leaves open the values that were found, and those that were declared wrongly.
fn refine(ty: &mut TensorType, found: TensorType) {
    ty.dtype = found.dtype;
    match (&mut ty.shape, found.shape) {
        (Some(dims), Some(found)) if dims.len() == found.len() => {
            let wrong = |d: &Dim, f: &Dim| matches!(f, Dim::Known(_)) && d != f;
            for (d, f) in dims.iter_mut().zip(found).filter(|(d, f)| !matches!(d, Dim::Known(_)) || wrong(d, f)) {
                *d = f;
            }
        }
        (shape, Some(found)) => *shape = Some(found),
        (_, None) => {}
    }
}
