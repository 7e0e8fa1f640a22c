//! One log-int-softmax as a model of its own: what conformance tests and measurements run.

use crate::ir::{Attrs, DType, Def, Dim, Model, Node, Op, Opset, TensorType, ValueId};
use crate::rewrite::{Patch, PatchError, Ref, sweep};

use super::emit::{LisSite, emit};
use super::plan::{LisFacts, LisPlan};
use super::softmax::emit_softmax;
use super::spec::{LisError, LisSpec};

/// Sizes of the attention: score codes `[B, H, N, M]`, V `[B, H, M, D]`, output `[B, H, N, D]`. A width D of 0: there is no
/// V, and the output is the weights `[B, H, N, M]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    pub batch: usize,
    pub heads: usize,
    pub queries: usize,
    pub keys: usize,
    pub width: usize,
}

impl Sizes {
    /// Of the output.
    pub fn output(&self) -> [usize; 4] {
        let last = if self.width > 0 { self.width } else { self.keys };
        [self.batch, self.heads, self.queries, last]
    }
}

/// Why no model was made.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum StandaloneError {
    #[error(transparent)]
    Lis(#[from] LisError),
    #[error(transparent)]
    Patch(#[from] PatchError),
}

/// A model with inputs `scores` (uint8), `v` (uint8 or int8) and, if `mask` gives its sizes, `mask` (bool, true =
/// keep), and the output `y` (float). `facts.keys` decides the form; the declared sizes are `sizes` in any case.
///
/// # Errors
/// Where [`emit`] fails.
pub fn model(
    spec: &LisSpec,
    facts: &LisFacts,
    sizes: Sizes,
    mask: Option<&[usize]>,
    opset: i64,
) -> Result<Model, StandaloneError> {
    let made = written(facts, sizes, mask, opset, &|p, site| emit(p, spec, site).map(Some))?;
    Ok(made.expect("every spec can be written in integers"))
}

/// The same model, with the weights from a Softmax of the codes' logarithms, as [`emit_softmax`] writes them; `None` where
/// the spec has no such form.
///
/// # Errors
/// Where [`emit_softmax`] fails.
pub fn softmax_model(
    spec: &LisSpec,
    facts: &LisFacts,
    sizes: Sizes,
    mask: Option<&[usize]>,
    opset: i64,
) -> Result<Option<Model>, StandaloneError> {
    let plan = LisPlan::new(spec, facts, "lis")?;
    written(facts, sizes, mask, opset, &|p, site| emit_softmax(p, &plan, site))
}

type Emission<'a> = dyn Fn(&mut Patch, &LisSite) -> Result<Option<Ref>, LisError> + 'a;

fn written(
    facts: &LisFacts,
    sizes: Sizes,
    mask: Option<&[usize]>,
    opset: i64,
    emission: &Emission<'_>,
) -> Result<Option<Model>, StandaloneError> {
    let mut m = empty(opset);
    let Sizes { batch, heads, queries, keys, width } = sizes;
    let scores = input(&mut m, "scores", DType::UINT8, &[batch, heads, queries, keys]);
    let v = (width > 0).then(|| input(&mut m, "v", facts.v_type, &[batch, heads, keys, width]));
    let mask = mask.map(|dims| input(&mut m, "mask", DType::BOOL, dims));
    let y = output(&mut m, scores, sizes);
    let site = LisSite {
        codes: Ref::Old(scores),
        v: v.map(Ref::Old),
        mask: mask.map(Ref::Old),
        facts: facts.clone(),
        rank: 4,
        opset,
        hint: "lis".to_owned(),
    };
    let mut p = Patch::new("lis-standalone");
    let Some(out) = emission(&mut p, &site)? else { return Ok(None) };
    p.replace(y, out);
    p.commit(&mut m)?;
    sweep(&mut m);
    Ok(Some(m))
}

/// What the log-int-softmax stands for, in float: `y = Softmax(scores) v`, all of them float. The yardstick of
/// measurements.
///
/// # Errors
/// If a patch is refused.
pub fn float_model(sizes: Sizes, opset: i64) -> Result<Model, StandaloneError> {
    let mut m = empty(opset);
    let Sizes { batch, heads, queries, keys, width } = sizes;
    let scores = input(&mut m, "scores", DType::FLOAT, &[batch, heads, queries, keys]);
    let v = input(&mut m, "v", DType::FLOAT, &[batch, heads, keys, width]);
    let y = output(&mut m, v, sizes);
    let mut p = Patch::new("lis-standalone");
    let w = p.node("Softmax", "weights", &[Ref::Old(scores)], Attrs::new().with_int("axis", -1));
    let out = p.node("MatMul", "attention", &[w, Ref::Old(v)], Attrs::new());
    p.replace(y, out);
    p.commit(&mut m)?;
    sweep(&mut m);
    Ok(m)
}

fn empty(opset: i64) -> Model {
    let mut m = Model {
        ir_version: if opset >= 21 { 10 } else { 8 },
        opsets: vec![Opset { domain: String::new(), version: opset }],
        ..Model::default()
    };
    m.graph.name = "lis".to_owned();
    m
}

/// The output `y`, which a stand-in makes until a patch takes it over.
fn output(m: &mut Model, from: ValueId, sizes: Sizes) -> ValueId {
    let ty = typed(DType::FLOAT, &sizes.output());
    let y = m.graph.add_value("y", Def::Nothing, Some(ty)).expect("the graph has no such name");
    let attrs = Attrs::new().with_int("to", DType::FLOAT.0.into());
    m.graph.add_node(Node::new(Op::onnx("Cast"), vec![Some(from)], vec![Some(y)], attrs), None);
    m.graph.add_output(y);
    y
}

fn typed(dtype: DType, dims: &[usize]) -> TensorType {
    TensorType::new(dtype, dims.iter().map(|d| Dim::Known(*d as i64)))
}

fn input(m: &mut Model, name: &str, dtype: DType, dims: &[usize]) -> ValueId {
    let v = m.graph.add_value(name, Def::Input, Some(typed(dtype, dims))).expect("the graph has no such name");
    m.graph.inputs.push(v);
    v
}
