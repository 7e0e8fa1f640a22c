use super::*;
use crate::ir::{AttrValue, DType, Def, Payload};

const MLP: &str = r#"<
   ir_version: 8,
   opset_import: ["" : 17, "com.microsoft" : 1]
>
mlp (float[batch,3] x, float flag, float[] any) => (float[batch,4] y, z)
   <float[3] w = {1.5, -2.0, 1e-5},
    int64[2] "shape/0" = {-1, 4},
    float[batch,"d 1",?] h
   >
{
   [first] h, "", r = com.microsoft.Fused <alpha = 0.5, axes = [-1, 2], mode = "a\"b", names = ["p", "q"]> (x, "", w)
   y = Reshape (h, "shape/0")
   z = Constant <value = float[2] {1.0, inf}, none: ints = []> ()
}
"#;

#[test]
fn an_ordinary_model_prints_as_it_was_written() {
    let m = parse_model(MLP).unwrap();
    assert_eq!(print_model(&m, Elide::Full), MLP);
}

#[test]
fn the_parts_of_a_model_land_where_they_belong() {
    let m = parse_model(MLP).unwrap();
    let g = &m.graph;
    assert_eq!((m.ir_version, m.opset(), g.inputs().len(), g.initializers().len()), (8, 17, 3, 2));
    let (_, fused) = g.nodes().next().unwrap();
    assert_eq!(
        (fused.op.domain.as_str(), fused.op.name.as_str(), fused.name.as_str()),
        ("com.microsoft", "Fused", "first")
    );
    assert_eq!((fused.inputs.len(), fused.outputs.len(), fused.output(1)), (3, 3, None));
    assert_eq!(fused.attrs.str("mode"), Some("a\"b"));
    assert_eq!(fused.attrs.float("alpha"), Some(0.5));
    let scalar = g.value(g.find("flag").unwrap()).ty.clone().unwrap();
    let any = g.value(g.find("any").unwrap()).ty.clone().unwrap();
    assert_eq!((scalar.shape.map(|s| s.len()), any.shape), (Some(0), None));
    assert_eq!(g.constant(g.find("z").unwrap()).and_then(|t| t.to_f32s()).as_deref(), Some(&[1.0, f32::INFINITY][..]));
}

#[test]
fn a_default_makes_an_input_overridable() {
    for text in ["g (float[1] x = {2.0}) => (x) {}", "g (float[1] x) => (x) <float[1] x = {2.0}> {}"] {
        let g = parse_graph(text).unwrap();
        let v = g.find("x").unwrap();
        assert!(matches!(g.value(v).def, Def::InputWithDefault(_)), "{text}");
        assert_eq!(g.initializers(), [v]);
    }
}

#[test]
fn large_constants_are_elided_with_a_hash_of_their_contents() {
    let text = |last: &str| {
        format!("g () => (y) <float[3] w = {{1.0, 2.0, {last}}}> {{ y = F <t = int64[3] {{1,2,3}}> (w) }}")
    };
    let print = |last: &str| print_graph(&parse_graph(&text(last)).unwrap(), Elide::Above(2));
    let shown = print("3.0");
    assert!(shown.contains("<float[3] w  # "), "{shown}");
    assert!(shown.contains("t = int64[3] {~ "), "{shown}");
    assert_ne!(shown, print("4.0"));
    let e = parse_graph(&shown).unwrap_err();
    assert!(e.message.contains("print the model in full"), "{e}");
}

#[test]
fn what_onnx_has_no_text_for_survives_in_full() {
    let text = "g (bool c, float x) => (y)\n   <type77[2] odd = {\"0a0b\"},\n    float[2] far = [\"location\": \"w.bin\", \"offset\": \"8\"],\n    string[2] s = {\"a\", \"\\xff\"}\n   >\n{\n   y = If <body: graph = \"00ff\", all: graphs = [\"01\"], r: float = @alpha, k: kind99 = @b, e: encoded = \"7f\"> (c) @ (x)\n}\n";
    let g = parse_graph(text).unwrap();
    assert_eq!(print_graph(&g, Elide::Full), text);
    let (_, n) = g.nodes().next().unwrap();
    assert_eq!(n.attrs.get("body"), Some(&AttrValue::Graph(vec![0, 0xff].into())));
    assert_eq!(n.attrs.get("r"), Some(&AttrValue::Ref { attr: "alpha".into(), kind: 1 }));
    assert_eq!(n.captures, [g.find("x").unwrap()]);
    let odd = g.try_init(g.find("odd").unwrap()).unwrap();
    assert_eq!((odd.dtype, &odd.data), (DType(77), &Payload::Raw(vec![10, 11].into())));
}

#[test]
fn a_node_line_fits_one_line_and_hides_a_repeated_name() {
    let g = parse_graph("g (x) => (y) { [y] y = Relu (x) }").unwrap();
    let id = g.nodes().next().unwrap().0;
    assert_eq!(node_line(&g, id), "y = Relu (x)");
    assert!(print_graph(&g, Elide::Full).contains("[y] y = Relu (x)"));
}

#[test]
fn nodes_on_a_cycle_are_still_printed() {
    let g = parse_graph("g (x) => (y) { a = Add (x, b) b = Relu (a) y = Relu (x) }").unwrap();
    let text = print_graph(&g, Elide::Full);
    assert!(text.ends_with("{\n   y = Relu (x)\n   a = Add (x, b)\n   b = Relu (a)\n}\n"), "{text}");
}

#[test]
fn a_float_is_read_back_to_the_bit() {
    for v in [0.1f32, -0.0, 1e-45, f32::MAX, 16777217.0, 3.0] {
        let g =
            parse_graph(&format!("g () => (y) {{ y = F <a = {}> () }}", crate::ir::show::float_text(v.into(), true)))
                .unwrap();
        assert_eq!(g.nodes().next().unwrap().1.attrs.float("a").map(f32::to_bits), Some(v.to_bits()));
    }
}

mod round_trip {
    use std::collections::BTreeSet;

    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;
    use crate::ir::{Attrs, Dim, Graph, Model, Node, Op, Opset, Rider, Tensor, TensorType, ValueId};

    /// Names as exporters write them, names that look like syntax, and any text at all.
    fn name() -> impl Strategy<Value = String> {
        prop_oneof![
            "[a-z_][a-zA-Z0-9_]{0,6}",
            "/?[a-z]{1,4}(/[a-z.0-9:]{1,5}){0,3}",
            prop_oneof![Just("float"), Just("inf"), Just("nan"), Just("int64"), Just("1"), Just("a\"\\")]
                .prop_map(str::to_owned),
            "\\PC{1,5}",
        ]
    }

    fn float() -> impl Strategy<Value = f32> {
        // One NaN is as good as another; every other pattern must survive.
        any::<u32>().prop_map(|b| {
            let v = f32::from_bits(b);
            if v.is_nan() { 1.0 } else { v }
        })
    }

    /// A tensor of any type in the standard with any bits, except for NaN payloads and the unused bits at the end.
    fn tensor() -> impl Strategy<Value = Tensor> {
        (1..=26i32, prop::collection::vec(0..4i64, 0..3), any::<u64>()).prop_map(|(kind, dims, seed)| {
            let dtype = DType(kind);
            let count = dims.iter().product::<i64>() as usize;
            let mut state = seed;
            let mut byte = || {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                (state >> 56) as u8
            };
            let data = if dtype == DType::STRING {
                Payload::Str((0..count).map(|i| Bytes::from((0..i % 4).map(|_| byte()).collect::<Vec<u8>>())).collect())
            } else {
                let bits = dtype.bits().unwrap();
                let mut raw: Vec<u8> = (0..(count * bits).div_ceil(8)).map(|_| byte()).collect();
                if let Some(last) = raw.last_mut()
                    && !(count * bits).is_multiple_of(8)
                {
                    *last &= (1 << ((count * bits) % 8)) - 1;
                }
                let exponent_byte = match dtype {
                    DType::FLOAT | DType::COMPLEX64 => 4,
                    DType::DOUBLE | DType::COMPLEX128 => 8,
                    _ => 0,
                };
                if exponent_byte != 0 {
                    // Keeps one exponent bit clear: no NaN and no infinity.
                    raw.iter_mut().skip(exponent_byte - 1).step_by(exponent_byte).for_each(|b| *b &= 0xbf);
                }
                if dtype == DType::BOOL {
                    raw.iter_mut().for_each(|b| *b &= 1);
                }
                Payload::Raw(raw.into())
            };
            Tensor { dtype, dims, data, rider: Rider::default() }
        })
    }

    fn blob() -> impl Strategy<Value = Bytes> {
        prop::collection::vec(any::<u8>(), 0..6).prop_map(Bytes::from)
    }

    fn attr() -> impl Strategy<Value = AttrValue> {
        prop_oneof![
            float().prop_map(AttrValue::Float),
            any::<i64>().prop_map(AttrValue::Int),
            blob().prop_map(AttrValue::Str),
            tensor().prop_map(AttrValue::Tensor),
            prop::collection::vec(float(), 0..4).prop_map(|v| AttrValue::Floats(v.into())),
            prop::collection::vec(any::<i64>(), 0..4).prop_map(|v| AttrValue::Ints(v.into())),
            prop::collection::vec(blob(), 0..3).prop_map(|v| AttrValue::Strs(v.into())),
            prop::collection::vec(tensor(), 0..3).prop_map(|v| AttrValue::Tensors(v.into())),
            blob().prop_map(AttrValue::Graph),
            prop::collection::vec(blob(), 0..3).prop_map(|v| AttrValue::Graphs(v.into())),
            (name(), 0..20i32).prop_map(|(attr, kind)| AttrValue::Ref { attr, kind }),
            blob().prop_map(AttrValue::Other),
        ]
    }

    fn ty() -> impl Strategy<Value = TensorType> {
        let dim = prop_oneof![any::<i64>().prop_map(Dim::Known), name().prop_map(Dim::Symbol), Just(Dim::Unknown)];
        (prop_oneof![0..30i32, Just(77)], prop::option::of(prop::collection::vec(dim, 0..4)))
            .prop_map(|(d, shape)| TensorType { dtype: DType(d), shape })
    }

    /// What a node is made from: operator, own name, attributes, and numbers that pick what it reads.
    type Seed = ((String, String), String, Vec<(String, AttrValue)>, Vec<u8>, u8);

    prop_compose! {
        fn model()(
            inputs in prop::collection::vec((name(), prop::option::of(ty()), prop::option::of(tensor())), 0..3),
            inits in prop::collection::vec((name(), tensor()), 0..4),
            nodes in prop::collection::vec(
                ((prop_oneof![Just(String::new()), name()], name()), prop_oneof![Just(String::new()), name()],
                 prop::collection::vec((name(), attr()), 0..4), prop::collection::vec(any::<u8>(), 0..4), 0..4u8),
                0..6),
            types in prop::collection::vec((any::<u8>(), ty()), 0..4),
            outs in prop::collection::vec(any::<u8>(), 0..3),
            title in name(),
        ) -> Model {
            build(inputs, inits, nodes, types, outs, title)
        }
    }

    fn build(
        inputs: Vec<(String, Option<TensorType>, Option<Tensor>)>,
        inits: Vec<(String, Tensor)>,
        nodes: Vec<Seed>,
        types: Vec<(u8, TensorType)>,
        outs: Vec<u8>,
        title: String,
    ) -> Model {
        let mut g = Graph::default();
        g.name = title;
        let mut all: Vec<ValueId> = Vec::new();
        for (hint, ty, default) in inputs {
            let def = default.map_or(Def::Input, Def::InputWithDefault);
            let v = g.add_value(&g.fresh_name(&hint), def, ty).unwrap();
            g.inputs.push(v);
            all.push(v);
        }
        for (hint, t) in inits {
            let ty = Some(crate::ir::show::type_of(&t));
            all.push(g.add_value(&g.fresh_name(&hint), Def::Init(t), ty).unwrap());
        }
        let mut made = Vec::new();
        for ((domain, op), own, attrs, picks, outputs) in nodes {
            let pick = |p: &u8| all.get(*p as usize % (all.len() + 1)).copied();
            let mut reads: Vec<Option<ValueId>> = picks.iter().map(pick).collect();
            let captures = reads.pop().flatten().into_iter().collect();
            let mut list = Attrs::new();
            attrs.into_iter().for_each(|(k, v)| list.set(&k, v));
            let outs: Vec<Option<ValueId>> = (0..outputs)
                .map(|i| (i != 1).then(|| g.add_value(&g.fresh_name(&op), Def::Nothing, None).unwrap()))
                .collect();
            let mut n = Node::new(Op { domain, name: op }, reads, outs.clone(), list);
            n.name = own;
            n.captures = captures;
            g.add_node(n, None);
            all.extend(outs.iter().flatten());
            made.extend(outs.into_iter().flatten());
        }
        for (i, ty) in types {
            if let Some(v) = made.get(i as usize % made.len().max(1)).copied()
                && !g.is_declared(v)
            {
                g.value_mut(v).ty = Some(ty);
                g.add_declared(v);
            }
        }
        g.set_outputs(outs.iter().filter_map(|i| all.get(*i as usize % all.len().max(1)).copied()).collect());
        let opsets = vec![Opset { domain: String::new(), version: 17 }, Opset { domain: "a b".into(), version: -1 }];
        Model { ir_version: 8, opsets, graph: g, functions: vec![("d".into(), "f\"".into())], ..Model::default() }
    }

    /// Everything the text is to carry, with names in place of ids.
    fn facts(m: &Model) -> Vec<String> {
        let g = &m.graph;
        let name = |v: &ValueId| g.name_of(*v).to_owned();
        let names = |v: &[ValueId]| v.iter().map(name).collect::<Vec<_>>();
        let slots = |v: &[Option<ValueId>]| v.iter().map(|v| v.as_ref().map(name)).collect::<Vec<_>>();
        let mut out = vec![
            format!("{} {:?} {:?} {}", m.ir_version, m.opsets, m.functions, g.name),
            format!("{:?} {:?} {:?}", names(g.inputs()), names(g.outputs()), names(g.initializers())),
            format!("{:?}", names(g.declared())),
        ];
        let values: BTreeSet<String> = g
            .values()
            .map(|(_, v)| {
                let def =
                    if let Def::Node { slot, .. } = v.def { format!("slot {slot}") } else { format!("{:?}", v.def) };
                format!("{} {:?} {def}", v.name, v.ty)
            })
            .collect();
        out.extend(values);
        for id in g.schedule() {
            let n = g.node(id);
            out.push(format!("{:?} {:?} {:?} {:?}", n.op, n.name, slots(&n.inputs), slots(&n.outputs)));
            out.push(format!("{:?} {:?}", n.attrs, names(&n.captures)));
        }
        out
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]

        #[test]
        fn a_model_printed_in_full_reads_back_the_same(m in model()) {
            let text = print_model(&m, Elide::Full);
            match parse_model(&text) {
                Ok(again) => {
                    prop_assert_eq!(facts(&again), facts(&m), "{}", text);
                    prop_assert_eq!(print_model(&again, Elide::Full), text);
                }
                Err(e) => prop_assert!(false, "{}\n{}", e, text),
            }
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in "[ a-c0-9<>(){}\\[\\],=:.@\"~?$|#\\\\\n-]{0,60}") {
            let _ = parse_model(&text);
            let _ = parse_graph(&text);
        }

        #[test]
        fn a_damaged_model_is_refused_or_read_but_never_panics(m in model(), at in any::<prop::sample::Index>(), c in any::<char>()) {
            let mut text: Vec<char> = print_model(&m, Elide::Full).chars().collect();
            let i = at.index(text.len());
            text[i] = c;
            if let Ok(m) = parse_model(&text.into_iter().collect::<String>()) {
                let _ = crate::ir::validate::validate(&m);
                print_model(&m, Elide::default());
            }
        }
    }
}
