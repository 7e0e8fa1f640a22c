//! Small models for tests, written line by line.

use prost::Message;
use tract_onnx::pb;

use super::{Array, Session, SessionOptions};
use crate::ir::{DType, Tensor as Constant};

/// A model under construction. Values are written as in ONNX: by name.
pub struct Build {
    pub opset: i64,
    pub graph: pb::GraphProto,
}

impl Build {
    pub fn new(opset: i64) -> Build {
        Build { opset, graph: pb::GraphProto { name: "g".into(), ..Default::default() } }
    }

    pub fn input(mut self, name: &str, dtype: DType, dims: &[&str]) -> Build {
        use pb::tensor_shape_proto::{Dimension, dimension::Value};
        let dim = |d: &&str| {
            let value = d.parse().map(Value::DimValue).unwrap_or_else(|_| Value::DimParam(d.to_string()));
            Dimension { value: Some(value), ..Default::default() }
        };
        let shape = Some(pb::TensorShapeProto { dim: dims.iter().map(dim).collect() });
        let tensor = pb::type_proto::Tensor { elem_type: dtype.0, shape };
        let value = Some(pb::type_proto::Value::TensorType(tensor));
        self.graph.input.push(pb::ValueInfoProto {
            name: name.into(),
            r#type: Some(pb::TypeProto { value, ..Default::default() }),
            ..Default::default()
        });
        self
    }

    pub fn constant(mut self, name: &str, t: Constant) -> Build {
        self.graph.initializer.push(pb::TensorProto {
            name: name.into(),
            dims: t.dims.clone(),
            data_type: t.dtype.0,
            raw_data: t.to_le_bytes().unwrap().into_owned(),
            ..Default::default()
        });
        self
    }

    pub fn scalars(self, values: &[(&str, f32)]) -> Build {
        values.iter().fold(self, |b, (n, v)| b.constant(n, Constant::scalar_f32(*v)))
    }

    /// `line`: `y = Op(a, b)`, or `y, z = Op(a, b)`; `_` stands for an input that is not given.
    pub fn node(mut self, line: &str, attributes: &[(&str, Value)]) -> Build {
        let (out, call) = line.split_once(" = ").unwrap();
        let (op, args) = call.strip_suffix(')').unwrap().split_once('(').unwrap();
        let (domain, op) = op.rsplit_once("::").unwrap_or(("", op));
        self.graph.node.push(pb::NodeProto {
            op_type: op.into(),
            domain: domain.into(),
            name: format!("node_{}", out.split(',').next().unwrap()),
            input: names(args),
            output: names(out),
            attribute: attributes.iter().map(|(n, v)| v.attribute(n)).collect(),
            ..Default::default()
        });
        self
    }

    pub fn bytes(self, outputs: &[&str]) -> Vec<u8> {
        let opset = self.opset;
        Build { opset, graph: self.body(outputs) }.proto().encode_to_vec()
    }

    /// The graph, for a node that holds it.
    pub fn body(mut self, outputs: &[&str]) -> pb::GraphProto {
        self.graph.output =
            outputs.iter().map(|n| pb::ValueInfoProto { name: n.to_string(), ..Default::default() }).collect();
        self.graph
    }

    pub fn proto(self) -> pb::ModelProto {
        pb::ModelProto {
            ir_version: 10,
            opset_import: vec![pb::OperatorSetIdProto { domain: String::new(), version: self.opset }],
            graph: Some(self.graph),
            ..Default::default()
        }
    }

    /// Runs optimized and as written, checks that both agree in every bit, and returns the outputs.
    pub fn run(self, outputs: &[&str], inputs: &[(&str, Array)]) -> Vec<Array> {
        let bytes = self.bytes(outputs);
        let run = |optimize| {
            let options = SessionOptions { optimize, ..Default::default() };
            Session::of_bytes(&bytes, None, &options).unwrap().run(inputs).unwrap().outputs
        };
        let (a, b) = (run(true), run(false));
        assert_eq!(a, b, "optimized and as written differ");
        a
    }
}

fn names(list: &str) -> Vec<String> {
    let all = list.split(',').map(str::trim).filter(|n| !n.is_empty());
    all.map(|n| if n == "_" { String::new() } else { n.to_string() }).collect()
}

pub enum Value {
    Int(i64),
    Ints(Vec<i64>),
    Float(f32),
    Str(&'static str),
    Graph(pb::GraphProto),
}

impl Value {
    fn attribute(&self, name: &str) -> pb::AttributeProto {
        use pb::attribute_proto::AttributeType as T;
        let base = pb::AttributeProto { name: name.into(), ..Default::default() };
        match self {
            Value::Int(i) => pb::AttributeProto { r#type: T::Int as i32, i: *i, ..base },
            Value::Ints(i) => pb::AttributeProto { r#type: T::Ints as i32, ints: i.clone(), ..base },
            Value::Float(f) => pb::AttributeProto { r#type: T::Float as i32, f: *f, ..base },
            Value::Str(s) => pb::AttributeProto { r#type: T::String as i32, s: s.as_bytes().to_vec(), ..base },
            Value::Graph(g) => pb::AttributeProto { r#type: T::Graph as i32, g: Some(g.clone()), ..base },
        }
    }
}
