//! Sparse weights, written out densely.

use bytes::Bytes;
use prost::Message;

use super::attr::body;
use super::proto;
use super::tensor::{rest, rider, take_tensor};
use crate::ir::{AttrValue, Attrs, DType, Def, Dim, Model, NodeId, Payload, Rider, Tensor, TensorType};

/// Bytes that all sparse weights of a model together may take once they are dense. The sizes of a sparse tensor are
/// nothing but a claim of the file: a few bytes can ask for any amount of memory.
const MOST_BYTES: usize = 1 << 31;

/// Why a sparse weight could not be made dense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("sparse weight `{value}` {problem}; store it densely, or export the model again")]
pub struct SparseError {
    pub value: String,
    pub problem: String,
}

/// A model whose sparse weights are dense ones: initializers, those of nested graphs, and what Constant nodes hold.
/// Returns how many there were. A model that has none comes back as it is.
///
/// # Errors
/// If values, indices and sizes of one contradict each other, if it names an element twice, if its parts lie in another
/// file, or if the dense weights would take more than 2 GB together.
pub fn dense_weights(m: &Model) -> Result<(Model, usize), SparseError> {
    let mut m = m.clone();
    let mut made = Made::default();
    let mut rest: proto::GraphProto = rest(&m.graph.rider);
    for s in std::mem::take(&mut rest.sparse_initializer) {
        let name = name(&s);
        let t = made.dense(s)?;
        // The front end has made a value of each.
        let Some(v) = m.graph.find(&name) else { continue };
        let value = m.graph.value_mut(v);
        let ty = TensorType::new(t.dtype, t.dims.iter().map(|d| Dim::Known(*d)));
        value.ty.get_or_insert(ty);
        value.def = match value.def {
            Def::Input => Def::InputWithDefault(t),
            _ => Def::Init(t),
        };
        m.graph.inits.push(v);
    }
    if made.count > 0 {
        m.graph.rider = rider(&rest);
    }
    let ids: Vec<NodeId> = m.graph.nodes().map(|(id, _)| id).collect();
    for id in ids {
        let node = m.graph.node(id);
        let constant = node.op.is("Constant");
        if !constant && !node.has_subgraph() {
            continue;
        }
        let label = node.out().map_or("", |v| m.graph.name_of(v)).to_owned();
        let before = made.count;
        let mut attrs = node.attrs.clone();
        if constant {
            made.constant(&label, &mut attrs)?;
        } else {
            made.nested(&mut attrs)?;
        }
        if made.count > before {
            m.graph.node_mut(id).attrs = attrs;
        }
    }
    Ok((m, made.count))
}

fn name(s: &proto::SparseTensorProto) -> String {
    s.values.as_ref().and_then(|v| v.name.clone()).unwrap_or_default()
}

#[derive(Default)]
struct Made {
    count: usize,
    bytes: usize,
}

impl Made {
    /// A Constant node's sparse value becomes its value.
    fn constant(&mut self, label: &str, attrs: &mut Attrs) -> Result<(), SparseError> {
        for a in attrs.0.iter_mut().filter(|a| a.name == "sparse_value") {
            let AttrValue::Other(b) = &a.value else { continue };
            let Ok(p) = proto::AttributeProto::decode(b.clone()) else { continue };
            let Some(mut s) = p.sparse_tensor else { continue };
            // The tensor's own name says nothing: the user finds the value by the node's.
            s.values.get_or_insert_default().name = Some(label.to_owned());
            a.value = AttrValue::Tensor(self.dense(s)?);
            a.name = "value".to_owned();
            a.rider = Rider::default();
        }
        Ok(())
    }

    fn nested(&mut self, attrs: &mut Attrs) -> Result<(), SparseError> {
        for a in &mut attrs.0 {
            match &mut a.value {
                AttrValue::Graph(b) => *b = self.encoded(b)?,
                AttrValue::Graphs(all) => {
                    *all = all.iter().map(|b| self.encoded(b)).collect::<Result<_, _>>()?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn encoded(&mut self, b: &Bytes) -> Result<Bytes, SparseError> {
        let before = self.count;
        let mut g = body(b);
        self.graph(&mut g)?;
        Ok(if self.count > before { g.encode_to_vec().into() } else { b.clone() })
    }

    fn graph(&mut self, g: &mut proto::GraphProto) -> Result<(), SparseError> {
        for s in std::mem::take(&mut g.sparse_initializer) {
            let name = name(&s);
            let t = self.dense(s)?;
            g.initializer.push(proto::TensorProto { name: Some(name), ..super::tensor::tensor_proto(&t) });
        }
        for n in &mut g.node {
            let label = n.output.first().cloned().unwrap_or_default();
            for a in &mut n.attribute {
                if n.op_type.as_deref() == Some("Constant")
                    && let Some(mut s) = a.sparse_tensor.take()
                {
                    s.values.get_or_insert_default().name = Some(label.clone());
                    *a = proto::AttributeProto {
                        name: Some("value".to_owned()),
                        r#type: Some(proto::attribute_proto::AttributeType::Tensor as i32),
                        t: Some(super::tensor::tensor_proto(&self.dense(s)?)),
                        ..Default::default()
                    };
                }
                for b in a.g.iter_mut().chain(&mut a.graphs) {
                    self.graph(b)?;
                }
            }
        }
        Ok(())
    }

    fn dense(&mut self, s: proto::SparseTensorProto) -> Result<Tensor, SparseError> {
        let value = name(&s);
        let t = self.tensor(s).map_err(|problem| SparseError { value, problem })?;
        self.count += 1;
        Ok(t)
    }

    /// The dense tensor, or what is wrong as the end of a sentence that begins with the weight's name.
    fn tensor(&mut self, s: proto::SparseTensorProto) -> Result<Tensor, String> {
        let dims = s.dims;
        let mut values = s.values.ok_or("has no values")?;
        let values = take_tensor(&mut values);
        let mut indices = s.indices.unwrap_or_default();
        let indices = take_tensor(&mut indices);
        for (t, what) in [(&values, "values"), (&indices, "indices")] {
            if matches!(t.data, Payload::External(_)) {
                return Err(format!("keeps its {what} in another file, which was not read"));
            }
        }

        let sizes: Option<Vec<usize>> = dims.iter().map(|d| usize::try_from(*d).ok()).collect();
        let sizes = sizes.ok_or_else(|| format!("has a negative size among {dims:?}"))?;
        let bits = match values.dtype.bits() {
            Some(b) => b,
            None if values.dtype == DType::STRING => 8 * size_of::<Bytes>(),
            None => return Err(format!("has elements of type {}, which is not known here", values.dtype)),
        };
        let len = sizes.iter().try_fold(1usize, |a, d| a.checked_mul(*d));
        let bytes = len.and_then(|n| Some(n.checked_mul(bits)?.div_ceil(8)));
        let fits = bytes.and_then(|b| self.bytes.checked_add(b)).filter(|b| *b <= MOST_BYTES);
        let (Some(len), Some(bytes), Some(all)) = (len, bytes, fits) else {
            return Err(format!(
                "of sizes {dims:?} would make the sparse weights larger than 2 GB once they are dense"
            ));
        };

        let [count] = values.dims[..] else {
            return Err(format!("has values of sizes {:?}; they are a plain list", values.dims));
        };
        let count = usize::try_from(count).map_err(|_| format!("has a negative number of values, {count}"))?;
        let at = places(&indices, count, &sizes, len)?;
        let data = match &values.data {
            Payload::Str(v) => {
                if v.len() != count {
                    return Err(format!("holds {} values where its sizes say {count}", v.len()));
                }
                let mut out = vec![Bytes::new(); len];
                at.iter().zip(v.iter()).for_each(|(i, x)| out[*i] = x.clone());
                Payload::Str(out.into())
            }
            _ => {
                let from = values.to_le_bytes().filter(|b| b.len() == values.byte_len());
                let from = from.ok_or_else(|| format!("holds other values than {count} of {}", values.dtype))?;
                Payload::Raw(scatter(&from, &at, bits, bytes).into())
            }
        };
        self.bytes = all;
        Ok(Tensor { dtype: values.dtype, dims, data, rider: Rider::default() })
    }
}

/// Where each value stands among the elements of the dense tensor. Indices are one number each, or one for each axis.
fn places(indices: &Tensor, count: usize, sizes: &[usize], len: usize) -> Result<Vec<usize>, String> {
    if count == 0 && indices.is_empty() {
        return Ok(Vec::new());
    }
    if indices.dtype != DType::INT64 {
        return Err(format!("has indices of type {}; they are int64", indices.dtype));
    }
    let rank = sizes.len();
    let by_axis = match indices.dims[..] {
        [n] if usize::try_from(n) == Ok(count) => false,
        [n, r] if usize::try_from(n) == Ok(count) && usize::try_from(r) == Ok(rank) => true,
        _ => {
            let wants = format!("[{count}] or [{count}, {rank}]");
            return Err(format!("has indices of sizes {:?}; for {count} values they are {wants}", indices.dims));
        }
    };
    let wanted = if by_axis { count.checked_mul(rank) } else { Some(count) };
    let Some(list) = indices.to_i64s().filter(|l| Some(l.len()) == wanted) else {
        return Err(format!("holds other indices than its sizes {:?} say", indices.dims));
    };
    let outside = |i: i64, size: usize| format!("has the index {i}, which is outside of 0 to {size}");
    let one = |i: i64, size: usize| usize::try_from(i).ok().filter(|i| *i < size).ok_or_else(|| outside(i, size));
    let at: Vec<usize> = if by_axis && rank > 0 {
        let row = |row: &[i64]| row.iter().zip(sizes).try_fold(0, |a, (i, size)| Ok(a * size + one(*i, *size)?));
        list.chunks_exact(rank).map(row).collect::<Result<_, String>>()?
    } else if by_axis {
        // A scalar has one element and no axis to count along.
        vec![0; count]
    } else {
        list.iter().map(|i| one(*i, len)).collect::<Result<_, String>>()?
    };
    let mut sorted = at.clone();
    sorted.sort_unstable();
    if let Some(twice) = sorted.windows(2).find(|w| w[0] == w[1]) {
        return Err(format!("names element {} twice", twice[0]));
    }
    Ok(at)
}

/// Copies elements to their places; everything else is zero. Elements narrower than a byte lie low bits first.
fn scatter(from: &[u8], at: &[usize], bits: usize, bytes: usize) -> Vec<u8> {
    let mut out = vec![0u8; bytes];
    if bits >= 8 {
        let size = bits / 8;
        for (x, i) in from.chunks_exact(size).zip(at) {
            out[i * size..(i + 1) * size].copy_from_slice(x);
        }
        return out;
    }
    let (each, mask) = (8 / bits, (1u8 << bits) - 1);
    for (n, i) in at.iter().enumerate() {
        let x = from[n / each] >> (bits * (n % each)) & mask;
        out[i / each] |= x << (bits * (i % each));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::tests::{info, node, s};
    use super::*;
    use crate::ir::validate::validate;
    use crate::onnx::{encode, parse};

    fn tensor(dtype: DType, dims: &[i64], bytes: Vec<u8>) -> proto::TensorProto {
        proto::TensorProto {
            dims: dims.to_vec(),
            data_type: Some(dtype.0),
            raw_data: Some(bytes.into()),
            ..Default::default()
        }
    }

    fn indices(dims: &[i64], v: &[i64]) -> proto::TensorProto {
        tensor(DType::INT64, dims, v.iter().flat_map(|x| x.to_le_bytes()).collect())
    }

    fn floats(v: &[f32]) -> proto::TensorProto {
        tensor(DType::FLOAT, &[v.len() as i64], v.iter().flat_map(|x| x.to_le_bytes()).collect())
    }

    fn sparse(values: proto::TensorProto, at: proto::TensorProto, dims: &[i64]) -> proto::SparseTensorProto {
        let values = proto::TensorProto { name: s("w"), ..values };
        proto::SparseTensorProto { values: Some(values), indices: Some(at), dims: dims.to_vec() }
    }

    /// `y = Identity (w)`, with `w` sparse.
    fn model(w: proto::SparseTensorProto) -> proto::ModelProto {
        proto::ModelProto {
            ir_version: Some(13),
            opset_import: vec![proto::OperatorSetIdProto { domain: None, version: Some(25) }],
            graph: Some(proto::GraphProto {
                name: s("g"),
                node: vec![node("Identity", "", &["w"], &["y"])],
                output: vec![proto::ValueInfoProto { name: s("y"), ..Default::default() }],
                sparse_initializer: vec![w],
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    fn load(p: &proto::ModelProto) -> Model {
        parse(p.encode_to_vec().into(), None, "test").expect("a model").model
    }

    fn made(w: proto::SparseTensorProto) -> Tensor {
        let (m, n) = dense_weights(&load(&model(w))).expect("a sound weight");
        assert_eq!(n, 1);
        // What is written is an ordinary initializer and nothing besides.
        let bytes = encode(validate(&m).expect("a valid model"));
        let p = proto::ModelProto::decode(&bytes[..]).expect("a model");
        let g = p.graph.expect("a graph");
        assert!(g.sparse_initializer.is_empty() && g.initializer.len() == 1, "{g:?}");
        m.graph.try_init(m.graph.find("w").expect("w")).expect("a constant").clone()
    }

    fn problem(w: proto::SparseTensorProto) -> String {
        dense_weights(&load(&model(w))).expect_err("an unsound weight").to_string()
    }

    #[test]
    fn elements_go_to_their_places() {
        let want = Tensor::f32(&[2, 3], &[0.0, 5.0, 0.0, 7.0, 0.0, 6.0]);
        // Linear places, in no order; and one index for each axis.
        assert_eq!(made(sparse(floats(&[7.0, 5.0, 6.0]), indices(&[3], &[3, 1, 5]), &[2, 3])), want);
        let pairs = indices(&[3, 2], &[1, 2, 0, 1, 1, 0]);
        assert_eq!(made(sparse(floats(&[6.0, 5.0, 7.0]), pairs, &[2, 3])), want);
    }

    #[test]
    fn every_width_of_element_is_moved() {
        let halves = tensor(DType::FLOAT16, &[1], vec![0x34, 0x12]);
        let got = made(sparse(halves, indices(&[1], &[1]), &[3]));
        assert_eq!(got.to_le_bytes().as_deref(), Some(&[0, 0, 0x34, 0x12, 0, 0][..]));
        let complex = tensor(DType::COMPLEX128, &[1], (1..=16).collect());
        let got = made(sparse(complex, indices(&[1], &[1]), &[2]));
        assert_eq!(got.to_le_bytes().map(|b| (b.len(), b[15], b[16], b[31])), Some((32, 0, 1, 16)));
        // Three 4-bit elements, -1 at 4, 7 at 1, 2 at 0.
        let nibbles = tensor(DType::INT4, &[3], vec![0x7F, 0x02]);
        let got = made(sparse(nibbles, indices(&[3], &[4, 1, 0]), &[5]));
        assert_eq!(got.to_i64s(), Some(vec![2, 7, 0, 0, -1]));
        let pairs = tensor(DType::UINT2, &[2], vec![0b1101]);
        let got = made(sparse(pairs, indices(&[2], &[5, 0]), &[6]));
        assert_eq!(got.to_le_bytes().as_deref(), Some(&[0b11, 0b0100][..]));
        let text = proto::TensorProto {
            dims: vec![1],
            data_type: Some(DType::STRING.0),
            string_data: vec![Bytes::from_static(b"abc")],
            ..Default::default()
        };
        let got = made(sparse(text, indices(&[1], &[1]), &[2]));
        assert_eq!(got.data, Payload::Str(vec![Bytes::new(), Bytes::from_static(b"abc")].into()));
    }

    #[test]
    fn nothing_and_scalars_are_weights_too() {
        assert_eq!(made(sparse(floats(&[]), indices(&[0], &[]), &[2])), Tensor::f32(&[2], &[0.0, 0.0]));
        assert_eq!(made(sparse(floats(&[3.0]), indices(&[1], &[0]), &[])), Tensor::scalar_f32(3.0));
        assert_eq!(made(sparse(floats(&[3.0]), indices(&[1, 0], &[]), &[])), Tensor::scalar_f32(3.0));
    }

    #[test]
    fn contradictions_are_refused_by_name() {
        let two = || floats(&[1.0, 2.0]);
        let cases = [
            (sparse(two(), indices(&[2], &[0, 6]), &[2, 3]), "index 6, which is outside of 0 to 6"),
            (sparse(two(), indices(&[2], &[0, -1]), &[2, 3]), "index -1, which is outside"),
            (sparse(two(), indices(&[2, 2], &[0, 0, 0, 3]), &[2, 3]), "index 3, which is outside of 0 to 3"),
            (sparse(two(), indices(&[2], &[4, 4]), &[2, 3]), "names element 4 twice"),
            (sparse(two(), indices(&[2, 2], &[1, 0, 1, 0]), &[2, 3]), "names element 3 twice"),
            (sparse(two(), indices(&[3], &[0, 1, 2]), &[2, 3]), "they are [2] or [2, 2]"),
            (sparse(two(), indices(&[2, 3], &[0; 6]), &[2, 3]), "they are [2] or [2, 2]"),
            (sparse(two(), indices(&[2], &[0]), &[2, 3]), "holds other indices"),
            (sparse(two(), tensor(DType::INT32, &[2], vec![0; 8]), &[2, 3]), "indices of type int32"),
            (sparse(two(), indices(&[2], &[0, 1]), &[2, -3]), "negative size"),
            (
                sparse(tensor(DType::FLOAT, &[2], vec![0; 7]), indices(&[2], &[0, 1]), &[6]),
                "other values than 2 of float",
            ),
            (sparse(tensor(DType::FLOAT, &[-2], vec![]), indices(&[0], &[]), &[6]), "negative number of values"),
            (sparse(tensor(DType::FLOAT, &[2, 1], vec![0; 8]), indices(&[2], &[0, 1]), &[6]), "a plain list"),
            (sparse(tensor(DType(99), &[1], vec![0]), indices(&[1], &[0]), &[6]), "type type#99"),
            // Sizes that ask for more than any memory, or for more than a file of this size has any reason to.
            (sparse(two(), indices(&[2], &[0, 1]), &[i64::MAX, i64::MAX]), "larger than 2 GB"),
            (sparse(two(), indices(&[2], &[0, 1]), &[1 << 30]), "larger than 2 GB"),
        ];
        for (w, says) in cases {
            let e = problem(w);
            assert!(e.starts_with("sparse weight `w` ") && e.contains(says), "{says} is not in {e}");
        }
        let mut far = floats(&[]);
        far.data_location = Some(proto::tensor_proto::DataLocation::External as i32);
        assert!(problem(sparse(far, indices(&[0], &[]), &[6])).contains("its values in another file"));
    }

    #[test]
    fn the_limit_holds_for_all_weights_together() {
        let w = |name: &str| {
            let mut w = sparse(floats(&[]), indices(&[0], &[]), &[3 << 27]);
            w.values.as_mut().expect("values").name = s(name);
            w
        };
        let mut p = model(w("w"));
        assert!(dense_weights(&load(&p)).is_ok());
        p.graph.as_mut().expect("a graph").sparse_initializer.push(w("second"));
        let e = dense_weights(&load(&p)).expect_err("3 GB").to_string();
        assert!(e.contains("`second`") && e.contains("larger than 2 GB"), "{e}");
    }

    #[test]
    fn an_input_keeps_its_sparse_default() {
        let mut p = model(sparse(floats(&[2.0]), indices(&[1], &[1]), &[2]));
        p.graph.as_mut().expect("a graph").input.push(info("w", &[2]));
        let (m, _) = dense_weights(&load(&p)).expect("a sound weight");
        let w = m.graph.find("w").expect("w");
        assert_eq!(m.graph.value(w).def, Def::InputWithDefault(Tensor::f32(&[2], &[0.0, 2.0])));
        assert!(validate(&m).is_ok());
    }

    #[test]
    fn constants_and_nested_graphs_hold_sparse_weights_as_well() {
        let weight = || sparse(floats(&[2.0]), indices(&[1], &[1]), &[2]);
        let constant = |out: &str| proto::NodeProto {
            attribute: vec![proto::AttributeProto {
                name: s("sparse_value"),
                r#type: Some(proto::attribute_proto::AttributeType::SparseTensor as i32),
                sparse_tensor: Some(weight()),
                ..Default::default()
            }],
            ..node("Constant", "", &[], &[out])
        };
        let out = |name: &str| proto::ValueInfoProto { name: s(name), ..Default::default() };
        let branch = |name: &str, g: proto::GraphProto| proto::AttributeProto {
            name: s(name),
            r#type: Some(proto::attribute_proto::AttributeType::Graph as i32),
            g: Some(g),
            ..Default::default()
        };
        let then = proto::GraphProto {
            node: vec![node("Identity", "", &["w"], &["t"])],
            sparse_initializer: vec![weight()],
            output: vec![out("t")],
            ..Default::default()
        };
        let other = proto::GraphProto { node: vec![constant("e")], output: vec![out("e")], ..Default::default() };
        let choose = proto::NodeProto {
            attribute: vec![branch("then_branch", then), branch("else_branch", other)],
            ..node("If", "", &["c"], &["z"])
        };
        let mut p = model(weight());
        let g = p.graph.as_mut().expect("a graph");
        g.sparse_initializer.clear();
        g.node = vec![constant("y"), choose];
        g.input.push(out("c"));
        g.output.push(out("z"));
        let (m, n) = dense_weights(&load(&p)).expect("sound weights");
        assert_eq!(n, 3);
        let want = Tensor::f32(&[2], &[0.0, 2.0]);
        assert_eq!(m.graph.constant(m.graph.find("y").expect("y")), Some(&want));
        let p = proto::ModelProto::decode(&encode(validate(&m).expect("valid"))[..]).expect("a model");
        let bodies: Vec<_> = p.graph.expect("a graph").node[1].attribute.iter().flat_map(|a| a.g.clone()).collect();
        let data = want.to_le_bytes().expect("raw");
        assert_eq!(bodies[0].initializer[0].raw_data.as_deref(), Some(&data[..]));
        assert!(bodies[0].sparse_initializer.is_empty());
        let value = bodies[1].node[0].attribute[0].t.as_ref().expect("a tensor");
        assert_eq!(
            (value.raw_data.as_deref(), bodies[1].node[0].attribute[0].name.as_deref()),
            (Some(&data[..]), Some("value"))
        );
    }
}
