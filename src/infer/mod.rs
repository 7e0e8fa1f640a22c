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
mod einsum;
mod moves;
mod rules;
mod size;
mod spatial;
mod view;

use std::sync::Arc;

use crate::ir::{AttrValue, DType};
use crate::ir::{Def, Dim, Graph, Model, Node, NodeId, Tensor, TensorType, ValueId};

pub(crate) use einsum::spelt_out;
pub use size::{Atom, Size};
pub(crate) use view::{Given, View};

/// Constants larger than this many bytes are carried but not computed with.
const MAX_FOLD_BYTES: usize = 64 << 20;
/// Integer tensors up to this many elements are followed element by element.
const MAX_ELEMENTS: usize = 1024;

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
}

impl ShapeMap {
    /// What is known of the value, if it was in the graph.
    pub fn fact(&self, v: ValueId) -> Option<&Fact> {
        self.facts.get(v.0 as usize)
    }

    pub fn dtype(&self, v: ValueId) -> Option<DType> {
        self.fact(v)?.dtype
    }

    /// The shape; sizes may be symbolic.
    pub fn dims(&self, v: ValueId) -> Option<&[Size]> {
        self.fact(v)?.dims.as_deref()
    }

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
        }
        Dim::Symbol(text)
    }
}

/// Infers what can be proved of every value.
pub fn shapes(model: &Model) -> ShapeMap {
    infer(model, ShapeMap::default())
}

/// As [`shapes`], of a model that is fed inputs of these sizes, by name.
pub fn shapes_fed(model: &Model, inputs: &[(&str, &[i64])]) -> ShapeMap {
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
    let count = g.values().last().map_or(0, |(v, _)| v.0 as usize + 1);
    map.facts.resize(count, Fact::default());
    let mut names: Vec<(String, Size)> = Vec::new();
    for (v, val) in g.values() {
        let fact = match &val.def {
            Def::Init(t) => of_tensor(t),
            Def::Input | Def::InputWithDefault(_) | Def::Sparse | Def::Nothing => match &val.ty {
                Some(ty) => declared(ty, &mut map.atoms, Some(&mut names)),
                None => Fact::default(),
            },
            Def::Node { .. } => continue,
        };
        map.facts[v.0 as usize] = fact;
    }
    for id in g.schedule() {
        infer_node(g, id, model.opset(), &mut map);
    }
    map
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
        map.facts[v.0 as usize] = fact;
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
    let sane = t.dims.iter().try_fold(1i64, |a, d| if *d < 0 { None } else { a.checked_mul(*d) }).is_some();
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
fn declared(ty: &TensorType, atoms: &mut Vec<Option<String>>, mut names: Option<&mut Vec<(String, Size)>>) -> Fact {
    let dims = ty.shape.as_ref().map(|shape| {
        shape
            .iter()
            .map(|d| match (d, names.as_deref_mut()) {
                (Dim::Known(n), _) if *n >= 0 => Size::Known(*n),
                (Dim::Symbol(s), Some(names)) => match names.iter().find(|(n, _)| n == s) {
                    Some((_, size)) => size.clone(),
                    None => {
                        let size = fresh(atoms, Some(s.clone()));
                        names.push((s.clone(), size.clone()));
                        size
                    }
                },
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
    let mut out = rules::outputs(view)?;
    if let Some(values) = moves::evaluate(view, &out) {
        return Some(values);
    }
    if let [first, ..] = &mut out[..] {
        arith::evaluate(view, first);
        if view.approximates() && first.constant.is_none() {
            first.constant = approximate::evaluate(view, first);
        }
    }
    Some(out)
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
pub fn annotate(model: &mut Model) {
    let map = shapes(model);
    let ids: Vec<ValueId> = model.graph.values().map(|(v, _)| v).collect();
    for v in ids {
        if model.graph.inputs().contains(&v) || model.graph.is_output(v) {
            continue;
        }
        let declared = model.graph.declared().contains(&v);
        match (map.ty(v), &mut model.graph.value_mut(v).ty) {
            (Some(found), Some(ty)) if declared => refine(ty, found),
            (Some(found), ty) => *ty = Some(found),
            (None, _) => {}
        }
    }
}

/// Gives the sizes that `ty` leaves open the values that were found.
fn refine(ty: &mut TensorType, found: TensorType) {
    match (&mut ty.shape, found.shape) {
        (Some(dims), Some(found)) if dims.len() == found.len() => {
            for (d, f) in dims.iter_mut().zip(found).filter(|(d, _)| !matches!(d, Dim::Known(_))) {
                *d = f;
            }
        }
        (shape @ None, found) => *shape = found,
        _ => {}
    }
}
