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
