//! Half-precision models compute in float32 from here on.

use crate::ir::{AttrValue, Attrs, DType, Def, Graph, Model, Node, NodeId, Op, Origin, TensorType, ValueId};

/// Why a model's arithmetic could not be widened. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WidenError {
    #[error(
        "node `{node}` ({op}) is of a domain whose operators are not known to compute in float32; export the model in float32"
    )]
    Foreign { node: String, op: String },
    #[error("node `{node}` ({op}): {why}")]
    Body { node: String, op: String, why: String },
}

/// What becomes of the inputs and outputs of a graph that are narrow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ends {
    /// They keep their types, after a Cast.
    Keep,
    /// They are float32: the ends of a body, which its node feeds and reads.
    Widen,
}

/// New values of attributes of a node: its bodies, widened.
pub type Bodies = Vec<(NodeId, Vec<(String, AttrValue)>)>;

fn narrow(t: DType) -> bool {
    t == DType::FLOAT16 || t == DType::BFLOAT16
}

fn code(t: DType) -> i64 {
    i64::from(t.0)
}

/// The narrowest type of float16 and bfloat16 that some value or weight of the model has.
pub fn narrow_floats(m: &Model) -> Option<DType> {
    let types = m.graph.values().filter_map(|(_, v)| match &v.def {
        Def::Init(t) | Def::InputWithDefault(t) => Some(t.dtype),
        _ => v.ty.as_ref().map(|t| t.dtype),
    });
    types.filter(|t| narrow(*t)).max_by_key(|t| *t == DType::BFLOAT16)
}

/// Makes every float16 and bfloat16 value of a graph float32: weights are widened, which is exact, and conversions to a
/// narrow type convert to float32. `bodies` holds the nested graphs, widened before. Returns how many weights were widened.
///
/// # Errors
/// If an operator of another domain would read or make a value whose type changes. Nothing is changed.
pub(crate) fn widen_graph(m: &mut Model, bodies: Bodies, ends: Ends) -> Result<usize, WidenError> {
    let g = &mut m.graph;
    if let Some((_, n)) = g.nodes().find(|(_, n)| !n.op.is_onnx()) {
        return Err(WidenError::Foreign { node: n.name.clone(), op: n.op.to_string() });
    }
    let outputs = if ends == Ends::Keep { narrow_outputs(g) } else { Vec::new() };
    let weights = widen_values(g, ends);
    // What the file says of a weight's type a second time says nothing, and is wrong now.
    g.undeclare(|v| weights.binary_search(&v).is_ok());
    widen_attributes(g);
    for (n, attrs) in bodies {
        attrs.into_iter().for_each(|(name, value)| g.node_mut(n).attrs.set(&name, value));
    }
    if ends == Ends::Keep {
        widen_inputs(g);
    }
    for (v, ty) in outputs {
        let name = g.fresh_name(&format!("{}_narrow", g.name_of(v)));
        let to = ty.dtype;
        let y = g.add_value(&name, Def::Nothing, Some(ty)).expect("fresh name");
        g.add_node(cast(v, y, to, &name), None);
        g.take_name(v, y);
    }
    Ok(weights.len())
}

/// The outputs that are computed in a narrow type, each once, with the type they keep.
fn narrow_outputs(g: &Graph) -> Vec<(ValueId, TensorType)> {
    let given = |v: ValueId| matches!(g.value(v).def, Def::Input | Def::InputWithDefault(_));
    let mut outputs: Vec<(ValueId, TensorType)> = Vec::new();
    for v in g.outputs() {
        let ty = g.value(*v).ty.clone().filter(|t| narrow(t.dtype) && !given(*v));
        if let Some(ty) = ty
            && outputs.iter().all(|(o, _)| o != v)
        {
            outputs.push((*v, ty));
        }
    }
    outputs
}

/// Widens weights and the types of values. Returns the weights, in the order of their ids.
fn widen_values(g: &mut Graph, ends: Ends) -> Vec<ValueId> {
    let ids: Vec<ValueId> = g.values().map(|(v, _)| v).collect();
    let mut weights = Vec::new();
    for v in ids {
        let x = g.value_mut(v);
        if let Def::Init(t) = &x.def
            && narrow(t.dtype)
        {
            let wide = t.widened();
            x.def = Def::Init(wide);
            weights.push(v);
        }
        if ends == Ends::Keep && matches!(x.def, Def::Input | Def::InputWithDefault(_)) {
            continue;
        }
        if let Some(ty) = x.ty.as_mut().filter(|t| narrow(t.dtype)) {
            ty.dtype = DType::FLOAT;
        }
    }
    weights
}

/// Attributes that name a narrow type name float32, and tensors of a narrow type are widened.
fn widen_attributes(g: &mut Graph) {
    let nodes: Vec<_> = g.nodes().map(|(id, _)| id).collect();
    for id in nodes {
        for a in &mut g.node_mut(id).attrs.0 {
            match &mut a.value {
                AttrValue::Int(t)
                    if matches!(a.name.as_str(), "to" | "dtype" | "output_dtype" | "softmax_precision")
                        && [DType::FLOAT16, DType::BFLOAT16].iter().any(|n| code(*n) == *t) =>
                {
                    *t = code(DType::FLOAT);
                }
                AttrValue::Tensor(t) if narrow(t.dtype) => *t = t.widened(),
                _ => {}
            }
        }
    }
}

/// Readers of a narrow input read it after a Cast.
fn widen_inputs(g: &mut Graph) {
    for v in g.inputs().to_vec() {
        let Some(ty) = g.value(v).ty.clone().filter(|t| narrow(t.dtype)) else { continue };
        let name = g.fresh_name(&format!("{}_wide", g.name_of(v)));
        let wide = TensorType { dtype: DType::FLOAT, ..ty };
        let y = g.add_value(&name, Def::Nothing, Some(wide)).expect("fresh name");
        for (n, slot) in g.uses(v) {
            g.set_operand(n, slot, Some(y));
        }
        g.add_node(cast(v, y, DType::FLOAT, &name), None);
    }
}

fn cast(x: ValueId, y: ValueId, to: DType, name: &str) -> Node {
    let mut n = Node::new(Op::onnx("Cast"), vec![Some(x)], vec![Some(y)], Attrs::new().with_int("to", code(to)));
    n.name = name.to_owned();
    n.origin = Origin::Made { by: "widen-floats".into(), from: Vec::new() };
    n
}
