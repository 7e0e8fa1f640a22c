//! What is done to a model's encoded form before tract reads it: refuse what tract would misread, rewrite what it cannot
//! hold, fix open sizes, make taps graph outputs.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tract_onnx::model::OnnxOpRegister;
use tract_onnx::pb;
use tract_onnx::prelude::*;
use tract_onnx::tract_core::optim::Optimizer;

use super::RuntimeError;
use crate::ir::{DType, Dim};

/// The attribute that tells our QuantizeLinear how many bits its codes have, when fewer than their type holds.
pub const CODE_BITS: &str = "fqvit.code_bits";

/// A model ready to run, in its fastest form if that is wished.
pub(super) fn runnable(typed: TypedModel, optimize: bool) -> TractResult<Arc<TypedRunnableModel>> {
    if !optimize {
        return typed.into_runnable();
    }
    // tract's rewrites fail on some valid graphs (a strided Slice after a Reshape); as written, these run too.
    match optimized(typed.clone()) {
        Ok(model) => model.into_runnable(),
        Err(_) => typed.into_runnable(),
    }
}

/// Readers of one value beyond which they are not compared two by two, as one of tract's passes does to join equal ones.
const MANY_READERS: usize = 64;

fn optimized(mut model: TypedModel) -> TractResult<TypedModel> {
    let many = model.nodes().iter().flat_map(|n| &n.outputs).any(|o| o.successors.len() > MANY_READERS);
    let passes = |mut all: Optimizer| {
        // The pass has no name but that of its type.
        all.passes.retain(|p| !many || format!("{p:?}") != "PushSplitDown");
        all
    };
    passes(Optimizer::declutter()).session().optimize(&mut model)?;
    model.optimize_with_session(&mut passes(Optimizer::codegen()).session())?;
    Ok(model)
}

/// Refuses operators that tract does not have or would take for others. It looks operators up by name alone.
pub fn check_operators(model: &pb::ModelProto, register: &OnnxOpRegister) -> Result<(), RuntimeError> {
    let functions: BTreeSet<(&str, &str)> = model
        .functions
        .iter()
        .map(|f| (standard(f.domain.as_deref().unwrap_or("")), f.name.as_deref().unwrap_or("")))
        .collect();
    let mut error = None;
    if let Some(graph) = &model.graph {
        each_node(graph, &mut |n| {
            if error.is_none() {
                error = check_operator(n, &functions, register);
            }
        });
    }
    error.map_or(Ok(()), Err)
}

fn check_operator(
    n: &pb::NodeProto,
    functions: &BTreeSet<(&str, &str)>,
    register: &OnnxOpRegister,
) -> Option<RuntimeError> {
    let (node, op) = (label(n), n.op_type.clone());
    if functions.contains(&(standard(&n.domain), n.op_type.as_str())) {
        Some(RuntimeError::LocalFunction { node, op })
    } else if !standard(&n.domain).is_empty() {
        Some(RuntimeError::ForeignDomain { node, op, domain: n.domain.clone() })
    } else if !register.0.contains_key(&n.op_type) {
        Some(RuntimeError::Unsupported { node, op, why: "tract does not implement it".into() })
    } else {
        None
    }
}

/// The standard domain has two names.
fn standard(domain: &str) -> &str {
    if domain == "ai.onnx" { "" } else { domain }
}

/// A node's name, or its first output's, as a user can find it.
pub fn label(n: &pb::NodeProto) -> String {
    if n.name.is_empty() { n.output.first().cloned().unwrap_or_default() } else { n.name.clone() }
}

fn each_node(graph: &pb::GraphProto, f: &mut impl FnMut(&pb::NodeProto)) {
    for n in &graph.node {
        f(n);
        for a in &n.attribute {
            a.g.iter().chain(&a.graphs).for_each(|g| each_node(g, f));
        }
    }
}

/// Rewrites constants that tract cannot hold: integers of 4 and 2 bits become 8-bit ones, and unsigned wide integers
/// leave the typed field that tract does not look into. A QuantizeLinear whose codes are narrower than 8 bits gets the
/// attribute [`CODE_BITS`].
pub fn widen_constants(graph: &mut pb::GraphProto) -> Result<(), RuntimeError> {
    widen_scope(graph, &BTreeMap::new())
}

/// `outer`: names of values of the enclosing graphs that were widened, with their bits.
fn widen_scope(graph: &mut pb::GraphProto, outer: &BTreeMap<String, u32>) -> Result<(), RuntimeError> {
    let mut widened = outer.clone();
    for t in &mut graph.initializer {
        if let Some(bits) = widen(t)? {
            widened.insert(t.name.clone(), bits);
        }
    }
    for n in &mut graph.node {
        for a in &mut n.attribute {
            if let Some(t) = &mut a.t {
                if t.name.is_empty() {
                    t.name = n.output.first().cloned().unwrap_or_default();
                }
                if let (Some(bits), Some(out)) = (widen(t)?, n.output.first()) {
                    widened.insert(out.clone(), bits);
                }
            }
            for g in a.g.iter_mut().chain(&mut a.graphs) {
                widen_scope(g, &widened)?;
            }
        }
        if n.op_type == "QuantizeLinear" {
            let by_attribute = n
                .attribute
                .iter()
                .find(|a| a.name == "output_dtype")
                .and_then(|a| narrow_bits(DType(i32::try_from(a.i).ok()?)));
            let bits = n.input.get(2).and_then(|z| widened.get(z).copied()).or(by_attribute);
            n.attribute.extend(bits.map(|bits| int_attribute(CODE_BITS, bits as i64)));
        }
    }
    Ok(())
}

/// Makes bfloat16 float32, ends of the graph included: tract has no such type. Numbers of it are fed and read as float32
/// that it holds exactly; what a Cast to it would round away is kept.
pub fn widen_bfloats(graph: &mut pb::GraphProto) {
    for info in graph.input.iter_mut().chain(&mut graph.output).chain(&mut graph.value_info) {
        if let Some(pb::TypeProto { value: Some(pb::type_proto::Value::TensorType(t)), .. }) = &mut info.r#type
            && t.elem_type == DType::BFLOAT16.0
        {
            t.elem_type = DType::FLOAT.0;
        }
    }
    for a in graph.node.iter_mut().flat_map(|n| &mut n.attribute) {
        if matches!(a.name.as_str(), "to" | "dtype" | "output_dtype") && a.i == i64::from(DType::BFLOAT16.0) {
            a.i = i64::from(DType::FLOAT.0);
        }
        a.g.iter_mut().chain(&mut a.graphs).for_each(widen_bfloats);
    }
}

fn int_attribute(name: &str, i: i64) -> pb::AttributeProto {
    pb::AttributeProto {
        name: name.into(),
        r#type: pb::attribute_proto::AttributeType::Int as i32,
        i,
        ..Default::default()
    }
}

/// Bits of an integer type that is packed several to a byte.
fn narrow_bits(dtype: DType) -> Option<u32> {
    match dtype {
        DType::INT4 | DType::UINT4 => Some(4),
        DType::INT2 | DType::UINT2 => Some(2),
        _ => None,
    }
}

fn widen(t: &mut pb::TensorProto) -> Result<Option<u32>, RuntimeError> {
    let dtype = DType(t.data_type);
    if dtype == DType::UINT32 || dtype == DType::UINT64 {
        if !t.uint64_data.is_empty() {
            let words = std::mem::take(&mut t.uint64_data).into_iter();
            t.raw_data = if dtype == DType::UINT32 {
                words.flat_map(|x| (x as u32).to_le_bytes()).collect()
            } else {
                words.flat_map(u64::to_le_bytes).collect()
            };
        }
        return Ok(None);
    }
    let Some(bits) = narrow_bits(dtype) else { return Ok(None) };
    let fail = |why: &str| Err(RuntimeError::Tensor { tensor: t.name.clone(), why: why.into() });
    if t.data_location == Some(pb::tensor_proto::DataLocation::External as i32) {
        return fail("4-bit elements in an external file cannot be run; store the tensor inside the model");
    }
    let Some(len) = t.dims.iter().try_fold(1usize, |a, d| a.checked_mul(usize::try_from(*d).ok()?)) else {
        return fail("its sizes are negative or too large");
    };
    let packed: Vec<u8> = if t.raw_data.is_empty() {
        t.int32_data.iter().map(|x| *x as u8).collect()
    } else {
        std::mem::take(&mut t.raw_data)
    };
    let per_byte = 8 / bits as usize;
    if packed.len() != len.div_ceil(per_byte) {
        return fail("its data do not fit its shape");
    }
    let signed = matches!(dtype, DType::INT4 | DType::INT2);
    let spare = 8 - bits;
    t.raw_data = (0..len)
        .map(|i| {
            // The lowest bits hold the first element. Shifting up and back extends the sign.
            let x = packed[i / per_byte] >> (bits as usize * (i % per_byte)) << spare;
            if signed { ((x as i8) >> spare) as u8 } else { x >> spare }
        })
        .collect();
    t.int32_data.clear();
    t.data_type = if signed { DType::INT8.0 } else { DType::UINT8.0 };
    Ok(Some(bits))
}

/// A tensor that only exists in a file beside the model, if there is one.
pub fn external_tensor(graph: &pb::GraphProto) -> Option<&str> {
    graph
        .initializer
        .iter()
        .find(|t| t.data_location == Some(pb::tensor_proto::DataLocation::External as i32))
        .map(|t| t.name.as_str())
}

/// A value's declared type.
pub fn declared(info: &pb::ValueInfoProto) -> (DType, Vec<Dim>) {
    use pb::tensor_shape_proto::dimension::Value::{DimParam, DimValue};
    let Some(pb::TypeProto { value: Some(pb::type_proto::Value::TensorType(t)), .. }) = &info.r#type else {
        return (DType::UNDEFINED, vec![]);
    };
    let dims = t.shape.iter().flat_map(|s| &s.dim).map(|d| match &d.value {
        Some(DimValue(v)) if *v >= 0 => Dim::Known(*v),
        // Names that say nothing are not one size wherever they stand.
        Some(DimParam(name)) if !matches!(name.as_str(), "" | "?" | "-1" | "None") => Dim::Symbol(name.clone()),
        _ => Dim::Unknown,
    });
    (DType(t.elem_type), dims.collect())
}

/// Graph inputs that a caller gives: those that are not initializers at the same time (files of IR version 3 list both).
pub fn is_input(graph: &pb::GraphProto, info: &pb::ValueInfoProto) -> bool {
    !graph.initializer.iter().any(|t| t.name == info.name)
}

/// Writes concrete sizes into the declared inputs. A whole shape given for an input wins; an open first size becomes
/// `batch`; a symbol bound once is bound everywhere.
pub fn fix_shapes(
    graph: &mut pb::GraphProto,
    batch: usize,
    shapes: &[(String, Vec<usize>)],
) -> Result<(), RuntimeError> {
    let given = |name: &str| shapes.iter().find(|(n, _)| n == name).map(|(_, s)| s);
    let inits: BTreeSet<&str> = graph.initializer.iter().map(|t| t.name.as_str()).collect();
    let inputs: Vec<usize> =
        (0..graph.input.len()).filter(|i| !inits.contains(graph.input[*i].name.as_str())).collect();
    for (name, _) in shapes {
        if !inputs.iter().any(|i| graph.input[*i].name == *name) {
            let known = inputs.iter().map(|i| graph.input[*i].name.clone()).collect();
            return Err(RuntimeError::UnknownInput { name: name.clone(), known });
        }
    }
    for i in &inputs {
        let info = &mut graph.input[*i];
        // What says nothing of a shape takes any.
        if let Some(shape) = given(&info.name)
            && let Some(pb::TypeProto { value: Some(pb::type_proto::Value::TensorType(t)), .. }) = &mut info.r#type
            && t.shape.is_none()
        {
            t.shape =
                Some(pb::TensorShapeProto { dim: vec![pb::tensor_shape_proto::Dimension::default(); shape.len()] });
        }
    }
    let mut bound: BTreeMap<String, usize> = BTreeMap::new();
    for info in inputs.iter().map(|i| &graph.input[*i]) {
        let dims = declared(info).1;
        if let Some(shape) = given(&info.name) {
            check_shape(&info.name, &dims, shape)?;
            for (d, n) in dims.iter().zip(shape) {
                if let Dim::Symbol(s) = d
                    && *bound.entry(s.clone()).or_insert(*n) != *n
                {
                    return Err(mismatch(&info.name, &dims, shape));
                }
            }
        }
    }
    // Only now the batch: a shape given for another input may have bound the same symbol.
    for info in inputs.iter().map(|i| &graph.input[*i]) {
        if given(&info.name).is_none()
            && let Some(Dim::Symbol(s)) = declared(info).1.first()
        {
            bound.entry(s.clone()).or_insert(batch);
        }
    }
    for i in inputs {
        let info = &mut graph.input[i];
        let mut sizes = Vec::new();
        for (axis, d) in declared(info).1.into_iter().enumerate() {
            let fixed = given(&info.name).map(|s| s[axis]).or(match &d {
                Dim::Known(n) => usize::try_from(*n).ok(),
                Dim::Symbol(s) => bound.get(s).copied(),
                Dim::Unknown => (axis == 0).then_some(batch),
            });
            sizes.push(fixed.ok_or_else(|| RuntimeError::OpenDim { input: info.name.clone(), axis, dim: show(&d) })?);
        }
        set_shape(info, &sizes);
    }
    // Derived sizes (`batch*197`) would no longer agree with the inputs; tract infers them all by itself.
    graph.value_info.clear();
    Ok(())
}

/// Brings nested graphs into a form that tract reads: sizes declared for values inside are forgotten, since those outside
/// are fixed now and these would disagree; an output that no node inside makes goes through an Identity, since tract finds
/// no outer value there and forgets the type of an input; an input of a Loop's body may be declared without a type.
pub fn plain_bodies(graph: &mut pb::GraphProto) {
    for n in &mut graph.node {
        let looped = n.op_type == "Loop";
        for body in n.attribute.iter_mut().flat_map(|a| a.g.iter_mut().chain(&mut a.graphs)) {
            body.value_info.clear();
            for i in body.input.iter_mut().filter(|i| looped && i.r#type.as_ref().is_none_or(|t| t.value.is_none())) {
                // Which type does not matter: our Loop puts what it is given in its place.
                let tensor = pb::type_proto::Tensor { elem_type: DType::FLOAT.0, shape: None };
                let value = Some(pb::type_proto::Value::TensorType(tensor));
                i.r#type = Some(pb::TypeProto { value, ..Default::default() });
            }
            let made: BTreeSet<String> = body.node.iter().flat_map(|n| n.output.clone()).collect();
            let mut taken: BTreeSet<String> = body.node.iter().flat_map(|n| n.input.clone()).collect();
            for o in &mut body.output {
                if !made.contains(&o.name) {
                    let free = |n: &String| !made.contains(n) && !taken.contains(n);
                    let fresh = (0..).map(|i| format!("{}/out{i}", o.name)).find(free).expect("there are names enough");
                    taken.insert(fresh.clone());
                    body.node.push(identity(&o.name, &fresh));
                    o.name = fresh;
                }
            }
            plain_bodies(body);
        }
    }
}

/// Gives nodes whose name another node or value has the name of what they make: tract takes all of them for nodes, and refuses
/// two of one name. Exporters that number their nodes number their values too. In a body, values of the graphs around it count.
pub fn own_names(graph: &mut pb::GraphProto) {
    let mut values = BTreeSet::new();
    all_values(graph, &mut values);
    name_apart(graph, &values);
}

fn name_apart(graph: &mut pb::GraphProto, values: &BTreeSet<String>) {
    let mut taken = BTreeSet::new();
    for n in &mut graph.node {
        let own = n.output.contains(&n.name);
        if !n.name.is_empty() && (values.contains(&n.name) && !own || !taken.insert(n.name.clone())) {
            n.name = n.output.iter().find(|o| !o.is_empty()).cloned().unwrap_or_default();
        }
        n.attribute.iter_mut().flat_map(|a| a.g.iter_mut().chain(&mut a.graphs)).for_each(|g| name_apart(g, values));
    }
}

/// The names of values in a graph and in its bodies.
fn all_values(graph: &pb::GraphProto, names: &mut BTreeSet<String>) {
    names.extend(graph.input.iter().map(|i| i.name.clone()));
    names.extend(graph.initializer.iter().map(|t| t.name.clone()));
    for n in &graph.node {
        names.extend(n.input.iter().chain(&n.output).cloned());
        n.attribute.iter().flat_map(|a| a.g.iter().chain(&a.graphs)).for_each(|g| all_values(g, names));
    }
}

/// Drops every output that is no tap. Returns, for each tap, its place among those that are left.
pub fn taps_alone(graph: &mut pb::GraphProto, places: &[usize]) -> Vec<usize> {
    let left: BTreeSet<usize> = places.iter().copied().collect();
    graph.output = left.iter().map(|i| graph.output[*i].clone()).collect();
    let place: BTreeMap<usize, usize> = left.into_iter().enumerate().map(|(now, before)| (before, now)).collect();
    places.iter().map(|p| place[p]).collect()
}

fn identity(from: &str, to: &str) -> pb::NodeProto {
    pb::NodeProto {
        op_type: "Identity".into(),
        name: to.into(),
        input: vec![from.into()],
        output: vec![to.into()],
        ..Default::default()
    }
}

fn set_shape(info: &mut pb::ValueInfoProto, sizes: &[usize]) {
    use pb::tensor_shape_proto::{Dimension, dimension::Value};
    if let Some(pb::TypeProto { value: Some(pb::type_proto::Value::TensorType(t)), .. }) = &mut info.r#type {
        let dim = |n: &usize| Dimension { value: Some(Value::DimValue(*n as i64)), ..Default::default() };
        t.shape = Some(pb::TensorShapeProto { dim: sizes.iter().map(dim).collect() });
    }
}

/// Checks a concrete shape against a declared one.
pub fn check_shape(input: &str, dims: &[Dim], shape: &[usize]) -> Result<(), RuntimeError> {
    let fits = dims.len() == shape.len()
        && dims.iter().zip(shape).all(|(d, n)| !matches!(d, Dim::Known(k) if usize::try_from(*k).ok() != Some(*n)));
    if fits { Ok(()) } else { Err(mismatch(input, dims, shape)) }
}

pub fn mismatch(input: &str, dims: &[Dim], shape: &[usize]) -> RuntimeError {
    let declared: Vec<String> = dims.iter().map(show).collect();
    RuntimeError::InputShape {
        input: input.into(),
        declared: format!("[{}]", declared.join(", ")),
        given: shape.to_vec(),
    }
}

fn show(d: &Dim) -> String {
    match d {
        Dim::Known(n) => n.to_string(),
        Dim::Symbol(s) => s.clone(),
        Dim::Unknown => "?".into(),
    }
}

/// Makes every tap a graph output. Returns, for each tap, its place among the outputs.
///
/// tract forgets the type of a graph input or a constant that is a graph output at the same time, so such a value goes
/// out through an Identity, under a name of its own.
pub fn add_taps(graph: &mut pb::GraphProto, taps: &[String]) -> Result<Vec<usize>, RuntimeError> {
    let names = |v: &[pb::NodeProto]| v.iter().flat_map(|n| n.output.clone()).collect::<BTreeSet<String>>();
    let computed = names(&graph.node);
    let given: BTreeSet<String> =
        graph.input.iter().map(|i| i.name.clone()).chain(graph.initializer.iter().map(|t| t.name.clone())).collect();
    let mut through: BTreeMap<String, String> = BTreeMap::new();
    let mut source = |name: &str, nodes: &mut Vec<pb::NodeProto>| -> Result<String, RuntimeError> {
        if computed.contains(name) && !name.is_empty() {
            return Ok(name.to_string());
        }
        if !given.contains(name) {
            return Err(RuntimeError::UnknownValue(name.to_string()));
        }
        let fresh = |n: &String| !computed.contains(n) && !given.contains(n);
        let out = through.entry(name.to_string()).or_insert_with(|| {
            let out = (0..).map(|i| format!("{name}/out{i}")).find(fresh).expect("there are names enough");
            nodes.push(identity(name, &out));
            out
        });
        Ok(out.clone())
    };
    let mut place: BTreeMap<String, usize> = BTreeMap::new();
    for (i, o) in graph.output.iter_mut().enumerate() {
        place.entry(o.name.clone()).or_insert(i);
        o.name = source(&o.name, &mut graph.node)?;
    }
    let mut places = Vec::with_capacity(taps.len());
    for t in taps {
        let next = graph.output.len();
        let at = *place.entry(t.clone()).or_insert(next);
        if at == next {
            let name = source(t, &mut graph.node)?;
            graph.output.push(pb::ValueInfoProto { name, ..Default::default() });
        }
        places.push(at);
    }
    Ok(places)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, op: &str, input: &str, output: &str) -> pb::NodeProto {
        let list = |v: &str| v.split_whitespace().map(str::to_owned).collect();
        pb::NodeProto {
            name: name.into(),
            op_type: op.into(),
            input: list(input),
            output: list(output),
            ..Default::default()
        }
    }

    #[test]
    fn nodes_have_names_of_their_own() {
        let mut branch = node("if", "If", "b", "y");
        // The body's node has the name of a value that the body reads from outside.
        let body = pb::GraphProto { node: vec![node("v1", "Neg", "v1", "i1")], ..Default::default() };
        branch.attribute = vec![pb::AttributeProto { g: Some(body), ..Default::default() }];
        let mut g = pb::GraphProto {
            node: vec![
                node("v1", "Relu", "x", "v1"),
                node("v3", "Abs", "v1", "v2"),
                node("", "Abs", "v1", "v3"),
                node("same", "Abs", "v1", "v4"),
                node("same", "Abs", "v1", "v5"),
                branch,
            ],
            ..Default::default()
        };
        own_names(&mut g);
        let names: Vec<&str> = g.node.iter().map(|n| n.name.as_str()).collect();
        assert_eq!(names, ["v1", "v2", "", "same", "v5", "if"]);
        assert_eq!(g.node[5].attribute[0].g.as_ref().map(|g| g.node[0].name.as_str()), Some("i1"));
    }
}
