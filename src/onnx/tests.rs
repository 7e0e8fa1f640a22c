use bytes::Bytes;
use prost::Message;
use rand::{RngExt, SeedableRng};

use super::proto::attribute_proto::AttributeType as Kind;
use super::proto::*;
use super::{LoadError, encode, parse};
use crate::ir::validate::validate;
use crate::ir::{Def, Payload, Validated};

pub(super) fn s(s: &str) -> Option<String> {
    Some(s.to_owned())
}

pub(super) fn node(op: &str, name: &str, input: &[&str], output: &[&str]) -> NodeProto {
    NodeProto {
        input: input.iter().map(|x| (*x).to_owned()).collect(),
        output: output.iter().map(|x| (*x).to_owned()).collect(),
        name: if name.is_empty() { None } else { s(name) },
        op_type: s(op),
        ..Default::default()
    }
}

pub(super) fn info(name: &str, dims: &[i64]) -> ValueInfoProto {
    use tensor_shape_proto::{Dimension, dimension::Value};
    let dim = |d: &i64| Dimension { value: Some(Value::DimValue(*d)), denotation: None };
    ValueInfoProto {
        name: s(name),
        r#type: Some(TypeProto {
            tensor_type: Some(type_proto::Tensor {
                elem_type: Some(1),
                shape: Some(TensorShapeProto { dim: dims.iter().map(dim).collect() }),
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

pub(super) fn model(graph: GraphProto) -> ModelProto {
    ModelProto {
        ir_version: Some(8),
        opset_import: vec![OperatorSetIdProto { domain: None, version: Some(17) }],
        graph: Some(graph),
        ..Default::default()
    }
}

pub(super) fn weight(name: &str, n: usize) -> TensorProto {
    TensorProto {
        dims: vec![n as i64],
        data_type: Some(1),
        name: s(name),
        raw_data: Some((0..4 * n).map(|i| (i % 251) as u8).collect::<Vec<u8>>().into()),
        ..Default::default()
    }
}

/// x -> Add(w) -> t -> Relu -> y
pub(super) fn small() -> ModelProto {
    model(GraphProto {
        name: s("g"),
        node: vec![node("Add", "add", &["x", "w"], &["t"]), node("Relu", "", &["t"], &["y"])],
        initializer: vec![weight("w", 2)],
        input: vec![info("x", &[2])],
        output: vec![info("y", &[2])],
        value_info: vec![info("t", &[2])],
        ..Default::default()
    })
}

fn graph(p: &mut ModelProto) -> &mut GraphProto {
    p.graph.as_mut().expect("test models have a graph")
}

fn parsed(p: &ModelProto) -> Result<super::Loaded, LoadError> {
    parse(p.encode_to_vec().into(), None, "test.onnx")
}

fn back(p: &ModelProto) -> Vec<u8> {
    let l = parsed(p).unwrap_or_else(|e| panic!("{e}"));
    let v = Validated::unchecked(&l.model);
    encode(v)
}

fn refused(p: &ModelProto) -> String {
    match parsed(p) {
        Ok(_) => panic!("was accepted"),
        Err(e) => e.to_string(),
    }
}

fn attr(name: &str, kind: Option<Kind>) -> AttributeProto {
    AttributeProto { name: s(name), r#type: kind.map(|k| k as i32), ..Default::default() }
}

fn prop(k: &str, v: &str) -> StringStringEntryProto {
    StringStringEntryProto { key: s(k), value: s(v) }
}

/// A model that uses every corner the IR does not model itself.
pub(super) fn everything() -> ModelProto {
    let mut p = small();
    p.producer_name = s("");
    p.producer_version = s("1.0");
    p.domain = s("d");
    p.model_version = Some(0);
    p.doc_string = s("doc");
    p.metadata_props = vec![prop("k", "v"), StringStringEntryProto { key: None, value: s("") }];
    p.opset_import = vec![
        OperatorSetIdProto { domain: s(""), version: Some(17) },
        OperatorSetIdProto { domain: s("com.acme"), version: None },
        OperatorSetIdProto { domain: s("com.other"), version: Some(0) },
    ];
    p.training_info = vec![TrainingInfoProto { initialization: Some(GraphProto::default()), ..Default::default() }];
    p.functions = vec![FunctionProto {
        name: s("F"),
        domain: s("com.acme"),
        overload: s("o"),
        input: vec!["a".into()],
        output: vec!["b".into()],
        attribute: vec!["alpha".into()],
        node: vec![NodeProto {
            attribute: vec![AttributeProto { ref_attr_name: s("alpha"), ..attr("alpha", Some(Kind::Float)) }],
            ..node("Elu", "", &["a"], &["b"])
        }],
        ..Default::default()
    }];
    p.configuration = vec![DeviceConfigurationProto { name: s("c"), num_devices: Some(2), device: vec!["cpu".into()] }];

    let g = graph(&mut p);
    g.doc_string = s("graph doc");
    g.metadata_props = vec![prop("a", "b")];
    g.quantization_annotation =
        vec![TensorAnnotation { tensor_name: s("t"), quant_parameter_tensor_names: vec![prop("SCALE_TENSOR", "w")] }];
    g.sparse_initializer = vec![SparseTensorProto {
        values: Some(weight("sparse", 1)),
        indices: Some(TensorProto { dims: vec![1], data_type: Some(7), int64_data: vec![0], ..Default::default() }),
        dims: vec![2],
    }];
    // An input with a default, a declaration with denotation, a non-tensor input, an input without a type.
    g.input.push(info("d", &[2]));
    g.initializer.push(TensorProto {
        doc_string: s("default"),
        raw_data: None,
        float_data: vec![1.0, 2.0],
        ..weight("d", 2)
    });
    let mut denoted = info("image", &[1, 3]);
    let t = denoted.r#type.as_mut().expect("typed");
    t.denotation = s("IMAGE");
    t.tensor_type.as_mut().expect("tensor").shape.as_mut().expect("shape").dim[0].denotation = s("DATA_BATCH");
    g.input.push(denoted);
    g.input.push(ValueInfoProto {
        name: s("maybe"),
        r#type: Some(TypeProto {
            denotation: s("X"),
            optional_type: Some(Box::new(type_proto::Optional { elem_type: Some(Box::new(TypeProto::default())) })),
            ..Default::default()
        }),
        doc_string: s("a doc"),
        metadata_props: vec![prop("p", "q")],
    });
    g.input.push(ValueInfoProto { name: s("bare"), ..Default::default() });
    g.input.push(ValueInfoProto { name: s("void"), r#type: Some(TypeProto::default()), ..Default::default() });
    g.input.push(ValueInfoProto {
        name: s("elemless"),
        r#type: Some(TypeProto {
            tensor_type: Some(type_proto::Tensor { elem_type: None, shape: Some(TensorShapeProto::default()) }),
            ..Default::default()
        }),
        ..Default::default()
    });
    // Values declared twice, with other words each time; a declaration of nothing; a constant declared.
    g.output.push(ValueInfoProto { doc_string: s("as output"), ..info("x", &[2]) });
    g.value_info.push(ValueInfoProto { doc_string: s("inside"), ..info("y", &[2]) });
    g.value_info.push(info("y", &[2]));
    g.value_info.push(info("nowhere", &[7]));
    g.value_info.push(info("w", &[2]));
    g.value_info.push(ValueInfoProto { name: None, ..info("", &[1]) });

    // Every kind of attribute, typed, untyped, unwritten, of an unknown kind.
    let mut n = node("Everything", "", &["x", "", "sparse", "d", ""], &["e", "", "f"]);
    n.name = s("");
    n.domain = s("");
    n.overload = s("v2");
    n.doc_string = s("node doc");
    n.metadata_props = vec![prop("m", "n")];
    n.device_configurations = vec![NodeDeviceConfigurationProto {
        configuration_id: s("c"),
        sharding_spec: vec![ShardingSpecProto {
            tensor_name: s("x"),
            device: vec![0, 1],
            index_to_device_group_map: vec![IntIntListEntryProto { key: Some(-1), value: vec![1, 2] }],
            sharded_dim: vec![ShardedDimProto {
                axis: Some(0),
                simple_sharding: vec![SimpleShardedDimProto {
                    dim: Some(simple_sharded_dim_proto::Dim::DimParam("n".into())),
                    num_shards: Some(2),
                }],
            }],
        }],
        pipeline_stage: Some(0),
    }];
    n.attribute = vec![
        AttributeProto { f: Some(0.0), ..attr("f0", Some(Kind::Float)) },
        AttributeProto { f: Some(-0.0), ..attr("f-0", Some(Kind::Float)) },
        AttributeProto { f: Some(f32::NAN), ..attr("nan", Some(Kind::Float)) },
        attr("f unwritten", Some(Kind::Float)),
        attr("i unwritten", Some(Kind::Int)),
        attr("s unwritten", Some(Kind::String)),
        attr("t unwritten", Some(Kind::Tensor)),
        attr("g unwritten", Some(Kind::Graph)),
        AttributeProto { i: Some(3), doc_string: s("doc"), ..attr("untyped", None) },
        AttributeProto { i: Some(3), f: Some(1.0), ..attr("two values, untyped", None) },
        AttributeProto { i: Some(3), f: Some(1.0), ..attr("two values", Some(Kind::Int)) },
        AttributeProto { i: Some(0), ..attr("undefined", Some(Kind::Undefined)) },
        attr("nothing", None),
        AttributeProto { r#type: Some(77), ..attr("new kind", None) },
        AttributeProto { s: Some(Bytes::from_static(b"\xff\x00")), ..attr("bytes", Some(Kind::String)) },
        AttributeProto { s: Some(Bytes::new()), ..attr("empty", Some(Kind::String)) },
        attr("no ints", Some(Kind::Ints)),
        AttributeProto { ints: vec![1, -2], ..attr("ints", Some(Kind::Ints)) },
        AttributeProto { floats: vec![1.5], ..attr("floats", None) },
        AttributeProto { strings: vec![Bytes::new()], ..attr("strings", Some(Kind::Strings)) },
        AttributeProto { t: Some(weight("inner", 3)), ..attr("t", Some(Kind::Tensor)) },
        AttributeProto { tensors: vec![weight("a", 1), TensorProto::default()], ..attr("ts", Some(Kind::Tensors)) },
        AttributeProto { sparse_tensor: Some(SparseTensorProto::default()), ..attr("sp", Some(Kind::SparseTensor)) },
        AttributeProto { tp: Some(TypeProto::default()), ..attr("tp", Some(Kind::TypeProto)) },
        AttributeProto { ref_attr_name: s("r"), ..attr("ref", Some(Kind::Ints)) },
        AttributeProto { ref_attr_name: s("r"), i: Some(1), ..attr("ref and value", Some(Kind::Int)) },
        AttributeProto { name: None, i: Some(1), ..attr("", Some(Kind::Int)) },
        AttributeProto { name: s(""), i: Some(1), ..attr("", Some(Kind::Int)) },
        AttributeProto { g: Some(body()), ..attr("g", Some(Kind::Graph)) },
        AttributeProto { graphs: vec![body(), GraphProto::default()], ..attr("gs", Some(Kind::Graphs)) },
    ];
    g.node.push(n);

    // Every way to store elements, or not to.
    let bare =
        |name: &str, data_type: i32| TensorProto { name: s(name), data_type: Some(data_type), ..Default::default() };
    g.initializer.extend([
        TensorProto { dims: vec![1], int32_data: vec![0x3c00], ..bare("half", 10) },
        TensorProto { dims: vec![1], double_data: vec![f64::NAN], ..bare("double", 11) },
        TensorProto { dims: vec![1], uint64_data: vec![u64::MAX], ..bare("u64", 13) },
        TensorProto { dims: vec![1], string_data: vec![Bytes::from_static(b"\xff")], ..bare("string", 8) },
        TensorProto { dims: vec![0], ..bare("none", 1) },
        TensorProto { dims: vec![0], raw_data: Some(Bytes::new()), ..bare("empty raw", 1) },
        TensorProto { dims: vec![3], raw_data: Some(Bytes::from_static(&[1])), ..bare("wrong size", 1) },
        TensorProto { raw_data: Some(Bytes::from_static(&[1])), float_data: vec![1.0], ..bare("two payloads", 1) },
        TensorProto { raw_data: Some(Bytes::from_static(&[1])), ..bare("new type", 99) },
        TensorProto { raw_data: Some(Bytes::from_static(&[1])), ..bare("undefined", 0) },
        TensorProto { data_type: None, ..bare("untyped", 0) },
        TensorProto { data_location: Some(0), raw_data: Some(Bytes::new()), ..bare("here", 1) },
        TensorProto { segment: Some(tensor_proto::Segment { begin: Some(0), end: None }), ..bare("segment", 1) },
        TensorProto { data_location: Some(1), external_data: vec![prop("location", "w.bin")], ..bare("far", 1) },
        TensorProto {
            data_location: Some(1),
            external_data: vec![StringStringEntryProto { key: s("location"), value: None }],
            raw_data: Some(Bytes::new()),
            ..bare("odd and far", 1)
        },
        TensorProto { external_data: vec![prop("location", "w.bin")], ..bare("not far", 1) },
    ]);
    p
}

/// A body that reads `x` and, in a body of its own, `d` and `w`.
fn body() -> GraphProto {
    let inner = GraphProto {
        node: vec![node("Mul", "", &["d", "own"], &["z"])],
        initializer: vec![weight("own", 1)],
        output: vec![info("z", &[]), info("w", &[])],
        ..Default::default()
    };
    GraphProto {
        name: s("body"),
        node: vec![
            node("Abs", "", &["x"], &["own"]),
            NodeProto {
                attribute: vec![AttributeProto { g: Some(inner), ..attr("then_branch", Some(Kind::Graph)) }],
                ..node("If", "", &["own"], &["r"])
            },
        ],
        output: vec![info("r", &[])],
        ..Default::default()
    }
}

#[test]
fn everything_comes_back_byte_for_byte() {
    let p = everything();
    // Compared field by field first, so that a failure can be read.
    let now = ModelProto::decode(&back(&p)[..]).expect("decodes");
    let (a, b) = (p.graph.as_ref().expect("graph"), now.graph.as_ref().expect("graph"));
    for (a, b) in a.initializer.iter().zip(&b.initializer) {
        assert_eq!(a.encode_to_vec(), b.encode_to_vec(), "{a:?}\n{b:?}");
    }
    for (a, b) in a.node.iter().zip(&b.node).flat_map(|(a, b)| a.attribute.iter().zip(&b.attribute)) {
        assert_eq!(a.encode_to_vec(), b.encode_to_vec(), "{a:?}\n{b:?}");
    }
    assert_eq!(a.input, b.input);
    assert_eq!(a.output, b.output);
    assert_eq!(a.value_info, b.value_info);
    assert!(back(&p) == p.encode_to_vec());
}

#[test]
fn files_leave_nothing_in_riders_that_the_ir_holds() {
    let l = parsed(&small()).unwrap_or_else(|e| panic!("{e}"));
    let g = &l.model.graph;
    assert!(l.model.rider.is_empty() && g.rider.is_empty());
    assert!(g.nodes().all(|(_, n)| n.rider.is_empty()));
    assert!(g.values().all(|(_, v)| v.rider.is_empty()));
}

#[test]
fn what_an_input_with_default_is() {
    let l = parsed(&everything()).unwrap_or_else(|e| panic!("{e}"));
    let g = &l.model.graph;
    let d = g.find("d").expect("value d");
    assert!(matches!(&g.value(d).def, Def::InputWithDefault(t) if matches!(t.data, Payload::F32(_))));
    assert!(g.constant(d).is_none(), "a caller may override it");
    assert!(matches!(g.value(g.find("sparse").expect("value")).def, Def::Sparse));
}

#[test]
fn nested_graphs_tell_what_they_read_and_follow_renames() {
    let l = parsed(&everything()).unwrap_or_else(|e| panic!("{e}"));
    let mut m = l.model;
    let (_, n) = m.graph.nodes().find(|(_, n)| n.op.name == "Everything").expect("the node");
    let names: Vec<&str> = n.captures.iter().map(|v| m.graph.name_of(*v)).collect();
    assert_eq!(names, ["x", "d", "w"]);
    let w = m.graph.find("w").expect("value w");
    m.graph.rename(w, "own").expect("free in the outer graph");
    let p = ModelProto::decode(&encode(Validated::unchecked(&m))[..]).expect("decodes");
    let g = p.graph.expect("graph").node.pop().expect("node").attribute.into_iter().find_map(|a| a.g).expect("body");
    let inner = g.node[1].attribute[0].g.as_ref().expect("inner body");
    assert_eq!(inner.output[1].name.as_deref(), Some("own"));
    assert_eq!(g.node[0].input, ["x"]);
}

#[test]
fn unknown_fields_are_reported_wherever_they_stand() {
    let mut bytes = small().encode_to_vec();
    assert_eq!(parse(bytes.clone().into(), None, "t").map(|l| l.unknown).expect("loads"), []);
    // Field 999, a varint, after the model.
    bytes.extend([0xb8, 0x3e, 0x05]);
    // A whole second graph field merges with the first: field 77 (fixed32) in a second node of it.
    let mut node_bytes = node("Neg", "n", &["y"], &["u"]).encode_to_vec();
    node_bytes.extend([0xed, 0x04, 1, 2, 3, 4]);
    let mut extra = vec![0x0a, node_bytes.len() as u8];
    extra.extend(&node_bytes);
    bytes.extend([0x3a, extra.len() as u8]);
    bytes.extend(&extra);
    let l = parse(bytes.into(), None, "t").unwrap_or_else(|e| panic!("{e}"));
    let told: Vec<String> = l.unknown.iter().map(|u| u.to_string()).collect();
    assert_eq!(
        told,
        [
            "field 999 of onnx.ModelProto in the model (3 bytes)",
            "field 77 of onnx.NodeProto in graph[1].node (6 bytes)"
        ]
    );
    assert_eq!(l.model.graph.node_count(), 3);
}

#[test]
fn every_prefix_is_an_error_or_a_model() {
    for p in [small(), everything()] {
        let bytes = Bytes::from(p.encode_to_vec());
        let mut cut = 0;
        for n in 0..bytes.len() {
            match parse(bytes.slice(..n), None, "t") {
                Ok(l) => assert!(!encode(Validated::unchecked(&l.model)).is_empty()),
                Err(LoadError::Truncated { at, .. }) => {
                    assert!(at <= n);
                    cut += 1;
                }
                Err(e) => assert!(!e.to_string().is_empty()),
            }
        }
        assert!(cut > bytes.len() / 2, "only {cut} of {} prefixes were recognised as cut", bytes.len());
    }
}

/// The lines in which two decoded models differ.
fn difference(a: &[u8], b: &[u8]) -> String {
    let text = |b: &[u8]| format!("{:#?}", ModelProto::decode(b).expect("decodes"));
    let (a, b) = (text(a), text(b));
    similar::TextDiff::from_lines(&a, &b).unified_diff().to_string()
}

/// Random damage never panics, and what still loads still obeys the no-op law.
#[test]
fn damaged_files_are_refused_or_come_back_whole() {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(7);
    let mut loaded = 0;
    for original in [small().encode_to_vec(), everything().encode_to_vec()] {
        for _ in 0..20_000 {
            let mut bytes = original.clone();
            for _ in 0..rng.random_range(1..4) {
                let i = rng.random_range(0..bytes.len());
                match rng.random_range(0..3) {
                    0 => bytes[i] = rng.random_range(0..=255u8),
                    1 => bytes[i] ^= 1 << rng.random_range(0..8),
                    _ => {
                        let j = rng.random_range(0..bytes.len());
                        bytes[i] = bytes[j];
                    }
                }
            }
            let bytes = Bytes::from(bytes);
            let Ok(l) = parse(bytes.clone(), None, "t") else { continue };
            let Ok(valid) = validate(&l.model) else { continue };
            loaded += 1;
            let now = encode(valid);
            let was = ModelProto::decode(bytes).expect("it loaded").encode_to_vec();
            // Decoding and encoding is what a faithful reader would do; unsorted nodes are put in order.
            if was != now {
                let nodes = |b: &[u8]| {
                    let mut p = ModelProto::decode(b).expect("decodes");
                    let mut v: Vec<Vec<u8>> =
                        p.graph.as_mut().expect("graph").node.drain(..).map(|n| n.encode_to_vec()).collect();
                    let order = v.clone();
                    v.sort();
                    (v, order, p.encode_to_vec())
                };
                let (a, b) = (nodes(&was), nodes(&now));
                assert!(a.0 == b.0 && a.2 == b.2, "the content changed:\n{}", difference(&was, &now));
                assert!(a.1 != b.1, "bytes changed though the content and the order did not");
            }
        }
    }
    assert!(loaded > 1000, "only {loaded} damaged files loaded: the test tests nothing");
}

#[test]
fn files_that_are_no_models_are_told_apart() {
    let told = |b: &[u8]| match parse(Bytes::copy_from_slice(b), None, "f.onnx") {
        Ok(_) => panic!("was accepted"),
        Err(e) => e.to_string(),
    };
    assert!(told(b"").contains("empty"));
    assert!(told(b"hello world\n").contains("a text file"));
    assert!(told("ein längerer Text ".repeat(100).as_bytes()).contains("a text file"));
    assert!(told(b"<!DOCTYPE html><html>").contains("a web page"));
    assert!(told(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n").contains("git lfs pull"));
    assert!(told(b"PK\x03\x04\0\0").contains("ZIP"));
    assert!(told(&[8, 8]).contains("no graph"));
    assert!(told(&[0xff; 64]).contains("not an ONNX model"));
}

#[test]
fn malformed_graphs_are_refused_by_name() {
    let mut p = small();
    graph(&mut p).node[1].input[0] = "lost".into();
    assert_eq!(refused(&p), "test.onnx: node #1 (Relu) reads `lost`, which nothing defines; export the model again");

    let mut p = small();
    graph(&mut p).node[1].output[0] = "t".into();
    let e = refused(&p);
    assert!(e.contains("`t` is defined twice, by node `add` (Add) and by node #1 (Relu)"), "{e}");

    let mut p = small();
    graph(&mut p).initializer[0].name = s("y");
    assert!(refused(&p).contains("`y` is defined twice, by an initializer and by node #1 (Relu)"));

    let mut p = small();
    graph(&mut p).node[0].input[0] = "y".into();
    let e = refused(&p);
    assert!(e.contains("must not have cycles") && (e.contains("`add`") || e.contains("(Relu)")), "{e}");

    let mut p = small();
    graph(&mut p).output[0].name = s("gone");
    assert!(refused(&p).contains("graph output 0 reads `gone`"));

    let mut p = small();
    graph(&mut p).input[0].name = None;
    assert!(refused(&p).contains("graph input 0 has no name"));

    let mut p = small();
    graph(&mut p).initializer[0].name = None;
    assert!(refused(&p).contains("initializer 0 has no name"));

    let mut p = small();
    graph(&mut p).node[0].op_type = None;
    assert!(refused(&p).contains("node `add` (?) names no operator"));

    let mut p = small();
    p.opset_import.clear();
    assert!(refused(&p).contains("imports no operator set"));

    let mut p = everything();
    graph(&mut p).node[2].attribute[28].g.as_mut().expect("body").node[0].input[0] = "lost".into();
    assert!(refused(&p).contains("reads `lost`"));
}

#[test]
fn unsorted_nodes_are_put_in_order_and_sorted_ones_are_not_moved() {
    let mut p = small();
    graph(&mut p).node.swap(0, 1);
    let sorted = ModelProto::decode(&back(&p)[..]).expect("decodes");
    assert_eq!(sorted, small());

    // Independent chains in the file's own, interleaved order.
    let mut p = small();
    let g = graph(&mut p);
    g.node = (0..300)
        .map(|i| {
            let from = if i < 7 { "x".to_owned() } else { format!("v{}", i - 7) };
            node("Relu", "", &[&from], &[&format!("v{i}")])
        })
        .collect();
    g.node.push(node("Relu", "", &["v123"], &["y"]));
    g.value_info.clear();
    assert!(back(&p) == p.encode_to_vec());
}

#[test]
fn long_chains_load_fast_and_need_no_deep_stack() {
    let n = 100_000;
    let mut p = small();
    let g = graph(&mut p);
    g.value_info = (0..n).map(|i| info(&format!("v{i}"), &[2])).collect();
    g.node = (0..n)
        .map(|i| {
            let from = if i == 0 { "x".to_owned() } else { format!("v{}", i - 1) };
            node("Add", "", &[&from, "w"], &[&format!("v{i}")])
        })
        .collect();
    g.node.push(node("Relu", "", &[&format!("v{}", n - 1)], &["y"]));
    let bytes = Bytes::from(p.encode_to_vec());
    let start = std::time::Instant::now();
    let l = parse(bytes.clone(), None, "long").unwrap_or_else(|e| panic!("{e}"));
    let took = start.elapsed();
    assert_eq!(l.model.graph.node_count(), n + 1);
    // Loading takes about a tenth of this; anything quadratic takes minutes.
    assert!(took.as_secs() < 10, "loading took {took:?}");
    assert!(super::back::model(&l.model).encode_to_vec() == bytes);
}

#[test]
fn no_declaration_contradicts_a_weight_that_was_widened() {
    let mut p = small();
    let g = graph(&mut p);
    g.initializer[0] = TensorProto { data_type: Some(10), raw_data: Some(vec![0; 4].into()), ..weight("w", 2) };
    // Declared once more, in words of its own.
    g.value_info.push(ValueInfoProto { doc_string: s("a weight"), ..info("w", &[2]) });
    for v in g.value_info.iter_mut().chain(&mut g.input).chain(&mut g.output) {
        v.r#type.as_mut().and_then(|t| t.tensor_type.as_mut()).expect("a tensor").elem_type = Some(10);
    }
    let bytes = p.encode_to_vec();
    let mut m = parse(bytes.clone().into(), None, "t").unwrap().model;
    assert_eq!(encode(validate(&m).unwrap()), bytes, "it comes back as it was");
    assert_eq!(crate::rewrite::widen_graph(&mut m, Vec::new(), crate::rewrite::Ends::Keep), Ok(1));
    let g = ModelProto::decode(&encode(validate(&m).unwrap())[..]).unwrap().graph.unwrap();
    assert_eq!(g.initializer[0].data_type, Some(1));
    assert!(g.value_info.iter().all(|v| v.name != s("w")), "{:?}", g.value_info);
}
