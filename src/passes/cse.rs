use std::collections::BTreeMap;

use super::common::{commit, erasable, is_plain, is_read};
use super::{Context, Numerics, Outcome, Pass, PassError};
use crate::infer::{ShapeMap, Size};
use crate::ir::{AttrValue, Attrs, DType, Def, Graph, NodeId, ValueId};
use crate::rewrite::{Patch, Ref};

/// Initializers up to this many bytes are shared; a weight keeps its own copy, which later passes may change. Of codes that is
/// over.
const MAX_SHARED: usize = 256;
const CODES: [DType; 2] = [DType::INT8, DType::UINT8];

/// # What it does
/// Computes once what is computed several times.
///
/// # When it fires
/// - Equal initializers of at most 256 bytes, or of 8-bit codes, become one.
/// - Two nodes with the same operator, attributes and inputs become one. Random operators, operators of other domains
///   and nodes with nested graphs stay.
/// - Two small integer values whose elements are proved equal (`Where(shape == -1, ones, shape)` of a shape, which holds
///   no -1, and the shape) become the earlier one.
///
/// # Why it is correct
/// Operators of the standard domain are functions of their inputs and attributes, random ones excepted.
///
/// # Numerics
/// Bit-exact.
///
/// # Before / after
/// ```text
/// a = Shape (x)
/// b = Shape (x)
/// y, z = F (a, b)              y, z = F (a, a)
/// ```
///
/// # Source
/// Common subexpression elimination; the third form is value numbering over what inference knows.
pub struct Cse;

impl Pass for Cse {
    fn id(&self) -> &'static str {
        "cse"
    }

    fn summary(&self) -> &'static str {
        "Merges nodes that compute the same value."
    }

    fn numerics(&self) -> Numerics {
        Numerics::BitExact
    }

    fn run(&self, model: &mut Context) -> Result<Outcome, PassError> {
        let mut out = Outcome::default();
        self.initializers(model, &mut out)?;
        self.nodes(model, &mut out)?;
        self.elements(model, &mut out)?;
        Ok(out)
    }
}

impl Cse {
    fn initializers(&self, model: &mut Context, out: &mut Outcome) -> Result<(), PassError> {
        let mut first: BTreeMap<(DType, Vec<i64>, Vec<u8>), ValueId> = BTreeMap::new();
        for v in model.graph.initializers().to_vec() {
            let g = &model.graph;
            let Def::Init(t) = &g.value(v).def else { continue };
            if t.byte_len() > MAX_SHARED && !CODES.contains(&t.dtype) || g.is_output(v) {
                continue;
            }
            let Some(bytes) = t.to_le_bytes() else { continue };
            let key = (t.dtype, t.dims.clone(), bytes.into_owned());
            self.share(model, &mut first, key, v, out)?;
        }
        Ok(())
    }

    /// Lets the readers of `v` read the value first seen under this key instead.
    fn share<K: Ord>(
        &self,
        model: &mut Context,
        first: &mut BTreeMap<K, ValueId>,
        key: K,
        v: ValueId,
        out: &mut Outcome,
    ) -> Result<(), PassError> {
        let Some(keep) = first.get(&key) else {
            first.insert(key, v);
            return Ok(());
        };
        if model.graph.is_output(v) || !is_read(&model.graph, v) {
            return Ok(());
        }
        let mut patch = Patch::new(self.id());
        patch.replace(v, Ref::Old(*keep));
        commit(patch, model, out).map(drop)
    }

    fn nodes(&self, model: &mut Context, out: &mut Outcome) -> Result<(), PassError> {
        type Key = (String, Vec<Option<ValueId>>, Vec<(String, Scalars)>);
        let mut seen: BTreeMap<Key, Vec<NodeId>> = BTreeMap::new();
        for id in model.graph.schedule() {
            let g = &model.graph;
            let node = g.node(id);
            if !is_plain(g, id) || !is_pure(g, id) || node.inputs.is_empty() {
                continue;
            }
            let others = seen.entry((node.op.name.clone(), node.inputs.clone(), scalars(&node.attrs))).or_default();
            let twin = others.iter().copied().find(|o| {
                let o = g.node(*o);
                let covers = |(i, v): (usize, &Option<ValueId>)| v.is_none() || o.output(i).is_some();
                same_attrs(&o.attrs, &node.attrs) && node.outputs.iter().enumerate().all(covers)
            });
            let outputs: Vec<(usize, ValueId)> =
                node.outputs.iter().enumerate().filter_map(|(i, v)| Some((i, (*v)?))).collect();
            let Some(twin) = twin else {
                others.push(id);
                continue;
            };
            if outputs.iter().any(|(_, v)| g.is_output(*v)) || !outputs.iter().any(|(_, v)| is_read(g, *v)) {
                continue;
            }
            let mut patch = Patch::new(self.id());
            for (i, v) in &outputs {
                if let Some(keep) = g.node(twin).output(*i) {
                    patch.replace(*v, Ref::Old(keep));
                }
            }
            if erasable(g, id, &outputs.iter().map(|o| o.1).collect::<Vec<_>>()) {
                patch.erase(id);
            }
            commit(patch, model, out)?;
        }
        Ok(())
    }

    fn elements(&self, model: &mut Context, out: &mut Outcome) -> Result<(), PassError> {
        let map = model.shapes();
        let mut first: BTreeMap<(DType, Vec<Size>, Vec<Size>), ValueId> = BTreeMap::new();
        for id in model.graph.schedule() {
            for v in model.graph.node(id).outputs.clone().into_iter().flatten() {
                let Some(key) = contents(&map, v) else { continue };
                self.share(model, &mut first, key, v, out)?;
            }
        }
        Ok(())
    }
}

/// Type, shape and elements of an integer value all of whose elements are known or symbolic, but which is no constant.
fn contents(map: &ShapeMap, v: ValueId) -> Option<(DType, Vec<Size>, Vec<Size>)> {
    let fact = map.fact(v).filter(|f| f.constant.is_none())?;
    let elements: Option<Vec<Size>> = fact.elements.as_ref()?.iter().cloned().collect();
    Some((fact.dtype?, fact.dims.clone()?, elements?))
}

fn is_pure(g: &Graph, id: NodeId) -> bool {
    let node = g.node(id);
    !node.is_random() && !node.op.is("Dropout") && !node.op.is("Constant")
}

/// Numbers of an attribute, floats as their bits.
type Scalars = Vec<i64>;

/// Numbers and lists of numbers among attributes, in order of their names: what tells most calls of one operator on one value
/// apart, without comparing each with each.
fn scalars(attrs: &Attrs) -> Vec<(String, Scalars)> {
    let number = |v: &AttrValue| match v {
        AttrValue::Int(n) => Some(vec![*n]),
        AttrValue::Float(x) => Some(vec![i64::from(x.to_bits())]),
        AttrValue::Ints(v) => Some(v.to_vec()),
        _ => None,
    };
    let mut all: Vec<_> = attrs.0.iter().filter_map(|a| Some((a.name.clone(), number(&a.value)?))).collect();
    all.sort();
    all
}

/// Same attributes in any order; doc strings do not count.
fn same_attrs(a: &Attrs, b: &Attrs) -> bool {
    a.0.len() == b.0.len() && a.0.iter().all(|x| b.get(&x.name) == Some(&x.value))
}
