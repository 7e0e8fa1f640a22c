use super::*;
use crate::text::{parse_model, type_text};

/// Inferred types of values, as text (`float[]`: a rank nobody knows, `float`: a scalar). `body` reads `x`, a float[batch,197,192], and `k`, an int64[n].
fn infer(body: &str, opset: i64, names: &[&str]) -> Vec<String> {
    let text = format!(
        "<ir_version: 8, opset_import: [\"\" : {opset}]>\ng (float[batch,197,192] x, int64[n] k, float[b,?] u) => (y) {{ {body} }}"
    );
    let m = parse_model(&text).unwrap_or_else(|e| panic!("{e}\n{text}"));
    let map = shapes(&m);
    let ty = |n: &&str| {
        map.ty(m.graph.find(n).expect("a value of the graph"))
            .map_or("?".to_owned(), |t| type_text(&t).replace('"', ""))
    };
    names.iter().map(ty).collect()
}

#[test]
fn a_shape_chain_with_a_dynamic_batch_is_understood() {
    let body = r"
        s = Shape (x)
        zero = Constant <value_int = 0> ()
        b = Gather <axis = 0> (s, zero)
        ax = Constant <value_ints = [0]> ()
        b1 = Unsqueeze (b, ax)
        rest = Constant <value_ints = [197, 3, 3, 64]> ()
        t = Concat <axis = 0> (b1, rest)
        e = Expand (x, s)
        q = Concat <axis = 2> (x, x, x)
        y = Reshape (q, t)";
    assert_eq!(
        infer(body, 17, &["s", "b", "b1", "t", "e", "y"]),
        ["int64[3]", "int64", "int64[1]", "int64[5]", "float[batch,197,192]", "float[batch,197,3,3,64]"]
    );
}

#[test]
fn sizes_multiply_and_divide() {
    let body = r"
        t = Constant <value_ints = [-1, 3, 64]> ()
        m = Reshape (x, t)
        back = Constant <value_ints = [-1, 197, 192]> ()
        y = Reshape (m, back)
        f = Flatten <axis = 2> (x)
        ft = Gemm <transB = 1> (f, f)";
    assert_eq!(
        infer(body, 17, &["m", "y", "f", "ft"]),
        ["float[197*batch,3,64]", "float[batch,197,192]", "float[197*batch,192]", "float[197*batch,197*batch]"]
    );
}

#[test]
fn what_only_run_time_knows_is_unknown_but_equal_to_itself() {
    let body = r"
        a = Relu (u)
        c = Add (a, u)
        r = Expand (u, k)
        w = Add (x, u)
        y = Reshape (x, k)
        z = Squeeze (u)";
    // `k` has an unknown number of elements: not even ranks are known. `192` against an unnamed size stays 192.
    assert_eq!(
        infer(body, 17, &["a", "c", "r", "w", "y", "z"]),
        ["float[b,?]", "float[b,?]", "float[]", "float[batch,197,192]", "float[]", "float[]"]
    );
}

#[test]
fn the_operator_set_decides_where_axes_stand() {
    let old =
        "a = Unsqueeze <axes = [0]> (x) y = Squeeze <axes = [0]> (a) r = ReduceMean <axes = [-1], keepdims = 0> (x)";
    assert_eq!(
        infer(old, 11, &["a", "y", "r"]),
        ["float[1,batch,197,192]", "float[batch,197,192]", "float[batch,197]"]
    );
    let new = "i = Constant <value_ints = [-1]> () r = ReduceMean (x, i) q = ReduceMean (x, k) y = ReduceMean <keepdims = 0> (x, k)";
    assert_eq!(infer(new, 18, &["r", "q", "y"]), ["float[batch,197,1]", "float[?,?,?]", "float[]"]);
}

#[test]
fn products_convolutions_and_slices() {
    let body = r"
        p = Constant <value_ints = [0, 2, 1]> ()
        xt = Transpose <perm = [0, 2, 1]> (x)
        mm = MatMul (x, xt)
        cls = Constant <value_int = 0> ()
        c = Gather <axis = 1> (x, cls)
        a, b = Split <axis = 2> (x)
        z = Constant <value_ints = [0]> ()
        one = Constant <value_ints = [1]> ()
        head = Slice (x, z, one, z)
        end = Constant <value_ints = [9223372036854775807]> ()
        rest = Slice (x, one, end, one)
        y, mean, inv = LayerNormalization <axis = -1> (x, c, c)";
    assert_eq!(
        infer(body, 17, &["mm", "c", "a", "head", "rest", "y", "mean"]),
        [
            "float[batch,197,197]",
            "float[batch,192]",
            "float[batch,197,96]",
            "float[1,197,192]",
            "float[batch,196,192]",
            "float[batch,197,192]",
            "float[batch,197,1]"
        ]
    );
}

#[test]
fn symbolic_elements_are_compared_and_chosen() {
    let body = r"
        s = Shape (x)
        minus = Constant <value_int = -1> ()
        open = Equal (s, minus)
        sh = Shape (s)
        ones = ConstantOfShape <value = int64[1] {1}> (sh)
        t = Where (open, ones, s)
        y = Expand (x, t)";
    let text = format!("<ir_version: 8, opset_import: [\"\" : 17]>\ng (float[batch,197,192] x) => (y) {{ {body} }}");
    let m = parse_model(&text).unwrap();
    let map = shapes(&m);
    let v = |n: &str| m.graph.find(n).unwrap();
    assert_eq!(map.elements(v("t")), map.elements(v("s")));
    assert_eq!(map.constant(v("open")).and_then(Tensor::to_i64s), Some(vec![0, 0, 0]));
    assert_eq!(map.constant(v("ones")).and_then(Tensor::to_i64s), Some(vec![1, 1, 1]));
    assert!(map.same_shape(v("y"), v("x")));
}

#[test]
fn an_operator_of_another_domain_has_the_declared_type() {
    let text = "<ir_version: 8, opset_import: [\"\" : 17, \"acme\" : 1]>
        g (float[batch,4] x) => (y) <float[batch,3] h> { h = acme.Odd (x) y = Relu (h) }";
    let m = parse_model(text).unwrap();
    let map = shapes(&m);
    // Its symbol is not believed: nothing says it is the input's.
    assert_eq!(map.ty(m.graph.find("y").unwrap()).map(|t| type_text(&t)), Some("float[?,3]".to_owned()));
}

/// The constant a body computes, as float or integer elements.
fn folded(body: &str) -> Option<Tensor> {
    let text = format!("<ir_version: 8, opset_import: [\"\" : 17]>\ng (float[2] x) => (y) {{ {body} }}");
    let m = parse_model(&text).unwrap_or_else(|e| panic!("{e}\n{text}"));
    shapes(&m).constant(m.graph.find("y").unwrap()).cloned()
}

#[test]
fn integers_divide_as_the_standard_says() {
    let of = |op: &str| {
        let body = format!(
            "a = Constant <value_ints = [-7, 7, -7]> () b = Constant <value_ints = [2, -2, -2]> () y = {op} (a, b)"
        );
        folded(&body).and_then(|t| t.to_i64s())
    };
    assert_eq!(of("Div"), Some(vec![-3, -3, 3]));
    assert_eq!(of("Mod"), Some(vec![1, -1, -1]));
    assert_eq!(of("Mod <fmod = 1>"), Some(vec![-1, 1, -1]));
    let by_zero = "a = Constant <value_ints = [1]> () b = Constant <value_ints = [0]> () y = Div (a, b)";
    assert_eq!(folded(by_zero), None);
}

#[test]
fn moves_move_constants() {
    let m = "a = Constant <value = int64[2,3] {1,2,3,4,5,6}> ()";
    let of = |rest: &str| folded(&format!("{m} {rest}")).map(|t| (t.dims.clone(), t.to_i64s().unwrap()));
    assert_eq!(of("y = Transpose (a)"), Some((vec![3, 2], vec![1, 4, 2, 5, 3, 6])));
    let slice = "s = Constant <value_ints = [-1]> () e = Constant <value_ints = [-9223372036854775807]> ()
        ax = Constant <value_ints = [1]> () y = Slice (a, s, e, ax, s)";
    assert_eq!(of(slice), Some((vec![2, 3], vec![3, 2, 1, 6, 5, 4])));
    let pad = "p = Constant <value_ints = [0, 1, 0, 0]> () v = Constant <value_int = 9> () y = Pad (a, p, v)";
    assert_eq!(of(pad), Some((vec![2, 4], vec![9, 1, 2, 3, 9, 4, 5, 6])));
    let tile = "r = Constant <value_ints = [1, 2]> () y = Tile (a, r)";
    assert_eq!(of(tile), Some((vec![2, 6], vec![1, 2, 3, 1, 2, 3, 4, 5, 6, 4, 5, 6])));
    let gather = "i = Constant <value_ints = [-1, 0]> () y = Gather <axis = 1> (a, i)";
    assert_eq!(of(gather), Some((vec![2, 2], vec![3, 1, 6, 4])));
    let scatter =
        "i = Constant <value = int64[1,1] {1}> () u = Constant <value = int64[1,3] {7,8,9}> () y = ScatterND (a, i, u)";
    assert_eq!(of(scatter), Some((vec![2, 3], vec![1, 2, 3, 7, 8, 9])));
    assert_eq!(of("y = Concat <axis = 1> (a, a)").map(|r| r.1), Some(vec![1, 2, 3, 1, 2, 3, 4, 5, 6, 4, 5, 6]));
}

#[test]
fn only_exact_float_arithmetic_is_done() {
    let of = |op: &str| {
        folded(&format!("a = Constant <value_floats = [2.0, -0.5]> () y = {op} (a)"))
            .map(|t| t.to_f32s().unwrap().into_owned())
    };
    assert_eq!(of("Neg"), Some(vec![-2.0, 0.5]));
    assert_eq!(of("Round"), Some(vec![2.0, -0.0]));
    assert_eq!(of("Exp"), None);
    // The root of a negative number is a NaN, whose bits nobody promises.
    assert_eq!(of("Sqrt"), None);
    assert_eq!(folded("a = Constant <value_float = 1e30> () y = Cast <to = 7> (a)"), None);
}

#[test]
fn a_hostile_file_overflows_nothing() {
    let body = "a = Constant <value = int64[2,3] {1,2,3,4,5,6}> ()
        s = Constant <value_ints = [0]> () e = Constant <value_ints = [1]> () ax = Constant <value_ints = [1]> ()
        st = Constant <value_ints = [9223372036854775807]> () y = Slice (a, s, e, ax, st)";
    assert_eq!(folded(body).and_then(|t| t.to_i64s()), Some(vec![1, 4]));
    let pads = "a = Constant <value_ints = [1, 2]> () v = Constant <value_int = 0> ()
        p = Constant <value_ints = [-9223372036854775807, 9223372036854775807]> () y = Pad (a, p, v)";
    assert_eq!(folded(pads).and_then(|t| t.to_i64s()), Some(vec![0, 0]));
    let range = "a = Constant <value_int = -9223372036854775807> () b = Constant <value_int = 9223372036854775807> ()
        c = Constant <value_int = 1> () y = Range (a, b, c)";
    assert_eq!(folded(range), None);
    let conv = "w = Constant <value = float[1,1,1] {1.0}> () y = Conv <strides = [9223372036854775807], auto_pad = \"SAME_UPPER\"> (x, w)";
    assert_eq!(infer(conv, 17, &["y"]).len(), 1);
}

#[test]
fn counted_tensors_have_their_sizes_before_they_are_made() {
    let body = r"
        depth = Constant <value_int = 68719476736> ()
        pair = Constant <value_floats = [0.0, 1.0]> ()
        far = OneHot (k, depth, pair)
        front = OneHot <axis = 0> (k, depth, pair)
        zero = Constant <value_float = 0.0> ()
        one = Constant <value_float = 1.0> ()
        step = Constant <value_float = 0.25> ()
        tiny = Constant <value_float = 1e-12> ()
        few = Range (zero, one, step)
        back = Range (one, zero, step)
        many = Range (zero, one, tiny)";
    let found = infer(body, 17, &["far", "front", "few", "back", "many"]);
    assert_eq!(found, ["float[n,68719476736]", "float[68719476736,n]", "float[4]", "float[0]", "float[999999995904]"]);
}

#[test]
fn recurrent_operators_have_the_sizes_of_their_states() {
    let body = |layout: &str| {
        format!(
            "rs = Constant <value_ints = [2, 16, 4]> ()
             r = ConstantOfShape (rs)
             y, h, c = LSTM <hidden_size = 4, direction = \"bidirectional\"{layout}> (x, r, r)"
        )
    };
    let all = infer(&body(""), 17, &["y", "h", "c"]);
    assert_eq!(all, ["float[batch,2,197,4]", "float[2,197,4]", "float[2,197,4]"]);
    let all = infer(&body(", layout = 1"), 17, &["y", "h", "c"]);
    assert_eq!(all, ["float[batch,197,2,4]", "float[batch,2,4]", "float[batch,2,4]"]);
}

#[test]
fn a_range_up_to_a_size_has_that_size() {
    let body = r#"
        zero = Constant <value_int = 0> () one = Constant <value_int = 1> () s = Shape (x) b = Gather (s, zero)
        r = Range (zero, b, one)
        up = Range (one, b, one)"#;
    assert_eq!(infer(body, 17, &["r", "up"]), ["int64[batch]", "int64[?]"]);
}

#[test]
fn an_einsum_has_the_sizes_of_its_letters() {
    let body = r#"
        a = Einsum <equation = "b n d, bmd -> bnm"> (x, x)
        o = Einsum <equation = "bnd,k->nkb"> (x, k)
        e = Einsum <equation = "...d,...d->..."> (x, x)
        h = Einsum <equation = "...d,k->k..."> (x, k)
        f = Einsum <equation = "bn,bm->nm"> (x, x)"#;
    let known = ["float[batch,197,197]", "float[197,n,batch]", "float[batch,197]", "float[n,batch,197]", "float[]"];
    assert_eq!(infer(body, 17, &["a", "o", "e", "h", "f"]), known);
}

#[test]
fn a_triangle_is_cut_out_of_a_constant() {
    let cut = |how: &str, k: &str| {
        format!(
            "a = Constant <value = int32[2,2,3] {{1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 1, 1}}> () k = Constant <value_int = {k}> () y = Trilu <upper = {how}> (a, k)"
        )
    };
    let values = |body: String| folded(&body).and_then(|t| t.to_i64s());
    assert_eq!(values(cut("1", "0")), Some(vec![1, 2, 3, 0, 5, 6, 7, 8, 9, 0, 1, 1]));
    assert_eq!(values(cut("0", "-1")), Some(vec![0, 0, 0, 4, 0, 0, 0, 0, 0, 1, 0, 0]));
}

#[test]
fn constants_up_to_the_last_bit_are_right() {
    let value = |body: &str| -> Option<Vec<f32>> {
        let text = format!(
            "<ir_version: 8, opset_import: [\"\" : 17]>\ng (float[1] x) => (y)\n<float[2,3] a = {{0.5, -1.0, 2.0, 0.25, 3.0, -0.5}}, float[3] v = {{1.0, -2.0, 0.5}}, float two = {{2.0}}, float zero = {{0.0}}>\n{{ {body} }}"
        );
        let m = parse_model(&text).unwrap_or_else(|e| panic!("{e}\n{text}"));
        let y = m.graph.find("y").unwrap();
        assert!(shapes(&m).constant(y).is_none(), "exact evaluation does not know {body}");
        Some(approximate_constants(&m).constant(y)?.to_f32s()?.to_vec())
    };
    let cases: &[(&str, &[f32])] = &[
        ("y = Exp (v)", &[1f32.exp(), (-2f32).exp(), 0.5f32.exp()]),
        ("l = Log (two) y = Neg (l)", &[-std::f32::consts::LN_2]),
        ("y = Log (zero)", &[f32::NEG_INFINITY]),
        ("y = Pow (two, v)", &[2.0, 0.25, 2f32.sqrt()]),
        ("y = Clip (v, zero, two)", &[1.0, 0.0, 0.5]),
        ("y = Max (v, zero)", &[1.0, 0.0, 0.5]),
        ("y = Min (v, zero, two)", &[0.0, -2.0, 0.0]),
        ("y = Sum (v, two)", &[3.0, 0.0, 2.5]),
        ("y = Mean (v, two)", &[1.5, 0.0, 1.25]),
        ("y = Sign (v)", &[1.0, -1.0, 1.0]),
        ("y = ReduceSum <keepdims = 0> (a, o) o = Constant <value_ints = [1]> ()", &[1.5, 2.75]),
        ("y = ReduceMean <axes = [0], keepdims = 0> (a)", &[0.375, 1.0, 0.75]),
        ("y = ReduceMax <axes = [1]> (a)", &[2.0, 3.0]),
        ("y = ReduceMin <axes = [0, 1]> (a)", &[-1.0]),
        ("y = ReduceL2 <axes = [-1]> (v)", &[5.25f32.sqrt()]),
        ("y = ReduceLogSumExp <axes = [-1]> (v)", &[1.504_597]),
        ("y = MatMul (a, t) t = Unsqueeze (v, o) o = Constant <value_ints = [1]> ()", &[3.5, -6.0]),
        ("y = Gemm <transA = 1> (a, b) b = Constant <value = float[2,1] {1.0, -1.0}> ()", &[0.25, -4.0, 2.5]),
        (
            "y = Gemm <transB = 1, alpha = 2.0, beta = 0.5> (a, b, two) b = Constant <value = float[1,3] {1.0, 0.0, -1.0}> ()",
            &[-2.0, 2.5],
        ),
        ("y = Softmax <axis = -1> (v)", &[0.603_748_9, 0.030_058_89, 0.366_192_22]),
        ("y = LayerNormalization <epsilon = 0.0> (v, v)", &[0.889_000_9, 2.794_002_8, 0.254_000_25]),
        (
            "y, m, s = BatchNormalization <epsilon = 0.75, training_mode = 1> (a, v, v, v, v)",
            &[1.142_857_2, -0.164_674_13, 0.910_997_45, 0.857_142_87, -3.835_326, 0.089_002_535],
        ),
        (
            "y = BatchNormalization <epsilon = 0.5> (a, v, v, v, w) w = Constant <value_floats = [0.5, 3.5, 1.5]> ()",
            &[0.5, -3.0, 1.030_330_1, 0.25, -7.0, 0.146_446_6],
        ),
        ("y = Sigmoid (two)", &[0.880_797_1]),
        ("y = Tanh (two)", &[0.964_027_6]),
        ("y = Erf (two)", &[0.995_322_3]),
    ];
    for (body, want) in cases {
        let got = value(body);
        let got = got.unwrap_or_else(|| panic!("not computed: {body}"));
        let near = |(a, b): (&f32, &f32)| a == b || (a - b).abs() <= 3e-7 * b.abs();
        assert!(got.len() == want.len() && got.iter().zip(*want).all(near), "{body}: {got:?}, not {want:?}");
    }
    assert_eq!(value("m = Neg (two) y = Log (m)"), None, "a NaN is the runtime's");
}

#[test]
fn calls_that_leave_out_what_has_a_default_are_legal() {
    let text = r#"<ir_version: 8, opset_import: ["" : 17]>
        g (float[1,4,8,8] x, uint8[1,4,8,8] q) => (float[1,4,4,4] a, float[1,4,4,4] b, int32[1,2,7,7] c, float[1,2,7,7] d, float[1,2,9,9] e,
                                                  int64[1,1,8,8] f, float[1,256] g1, float[1,4,8,8] h)
        <int8[2,4,2,2] k = {1,2,3,4,5,6,7,8,1,2,3,4,5,6,7,8,1,2,3,4,5,6,7,8,1,2,3,4,5,6,7,8}>
        {
            a = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (x)
            b = AveragePool <kernel_shape = [2, 2], strides = [2, 2]> (x)
            c = ConvInteger (q, k)
            w = Cast <to = 1> (k)
            d = Conv (x, w)
            t = Transpose <perm = [1, 0, 2, 3]> (w)
            e = ConvTranspose (x, t)
            i = Transpose <perm = [1, 0, 2, 3]> (x)
            f = ArgMax (i)
            g1 = Flatten (x)
            h = Softmax (x)
        }"#;
    let m = crate::text::parse_model(text).expect("a model");
    assert_eq!(super::legal(&m), Ok(()));
}

#[test]
fn axes_that_are_left_out_are_those_of_the_standard() {
    let text = r#"<ir_version: 8, opset_import: ["" : 17]>
        g (float[4,3,8] x) => (p0, p1, top, at, rows, back, picked, flat, most, soft)
        <int64[1] k = {2}, int64[5] ids = {0, 1, 2, 3, 0}, int64[5,3,8] each, float[3] s = {1, 2, 3}, uint8[3] z = {1, 2, 3}>
        {
            p0, p1 = Split (x)
            top, at = TopK (x, k)
            rows = Gather (x, ids)
            q = QuantizeLinear (x, s, z)
            back = DequantizeLinear (q, s, z)
            picked = GatherElements (x, each)
            flat = Flatten (x)
            most = ArgMax (x)
            soft = Softmax (x)
        }"#;
    let m = crate::text::parse_model(text).expect("a model");
    assert_eq!(super::legal(&m), Ok(()));
    let map = super::shapes(&m);
    let sizes =
        |name: &str| -> Option<Vec<i64>> { map.dims(m.graph.find(name)?)?.iter().map(super::Size::known).collect() };
    for (name, want) in [
        ("p0", &[2, 3, 8][..]),
        ("p1", &[2, 3, 8]),
        ("top", &[4, 3, 2]),
        ("at", &[4, 3, 2]),
        ("rows", &[5, 3, 8]),
        ("q", &[4, 3, 8]),
        ("back", &[4, 3, 8]),
        ("picked", &[5, 3, 8]),
        ("flat", &[4, 24]),
        ("most", &[1, 3, 8]),
        ("soft", &[4, 3, 8]),
    ] {
        assert_eq!(sizes(name).as_deref(), Some(want), "{name}");
    }
    // A call whose channels lie elsewhere is none.
    let wrong = |op: &str, call: &str| {
        let text = format!(
            "<ir_version: 8, opset_import: [\"\" : 17]> g (float[4,3,8] x) => (y)
            <float[8] s = {{1, 1, 1, 1, 1, 1, 1, 1}}, uint8[8] z = {{1, 1, 1, 1, 1, 1, 1, 1}}, int64[1] k = {{9}}, int64[1] far = {{4}}> {{ y = {call} }}"
        );
        let m = crate::text::parse_model(&text).expect("a model");
        let e = super::legal(&m).expect_err(op).to_string();
        assert!(e.contains(op), "{e}");
    };
    wrong("QuantizeLinear", "QuantizeLinear (x, s, z)");
    wrong("TopK", "TopK (x, k)");
    wrong("Gather", "Gather (x, far)");
}

#[test]
fn calls_that_runtimes_refuse_are_told_before_anything_runs() {
    let check = |opset: u32, call: &str| {
        let text = format!(
            "<ir_version: 10, opset_import: [\"\" : {opset}]> g (float[2,3,8] x, float[n,1,8] o) => (y)
            <int64[1] last = {{-1}}, int64[1] middle = {{1}}, int64[1] far = {{4294967296}}, int64[0] empty = {{}}, int64 nothing = {{0}}, int64[2] two = {{1, 2}}, int64[3] three = {{1, 2, 3}},
            int64[1] none = {{0}}, int64[1] back = {{-4294967296}}, float[3] s = {{1, 2, 3}}> {{ {call} }}"
        );
        super::legal(&crate::text::parse_model(&text).expect("a model")).map_err(|e| e.to_string())
    };
    for (opset, call, says) in [
        (17, "y = Squeeze (x, last)", "removes axis -1, which has 8 elements"),
        (17, "y = Squeeze (o, empty)", "list of axes is empty"),
        (17, "y = SplitToSequence (x, back)", "a size of its parts is -4294967296"),
        (17, "y = SplitToSequence (x, nothing)", "a size of its parts is 0"),
        (22, "y = DeformConv <dilations = [0]> (x, x, x)", "`dilations` holds 0"),
        (18, "y = BitwiseAnd (two, three)", "do not go together"),
        (17, "y, z = Split <axis = 1> (x)", "an axis of 3 has no 2 equal parts"),
        (18, "y, z, a, b, c = Split <axis = 1, num_outputs = 5> (x)", "no 5 equal parts"),
        (17, "y = Slice (x, middle, middle, middle, none)", "one of its steps is 0"),
        (17, "y = Slice (x, middle, middle, middle, far)", "2147483647 does the same"),
        (17, "y = Slice (x, middle, middle, middle, back)", "-2147483647 does the same"),
        (17, "y = Flatten <axis = -4> (x)", "`axis` is -4"),
        (17, "y = Flatten <axis = 4> (x)", "`axis` is 4"),
        (17, "y = Transpose <perm = [-1, 0, 1]> (x)", "`perm` is [-1, 0, 1]"),
        (21, "y = GroupNormalization <num_groups = 0> (x, s, s)", "`num_groups` is 0"),
        (21, "y = GroupNormalization <num_groups = 2> (x, s, s)", "for 3 channels"),
        (23, "y = Attention (x, x, x)", "no `q_num_heads`"),
        (23, "y = Attention <q_num_heads = 0, kv_num_heads = 2> (x, x, x)", "`q_num_heads` is 0"),
        (23, "y = Attention <q_num_heads = 4, kv_num_heads = 3> (x, x, x)", "evenly"),
        (17, "y = LpNormalization <axis = 3> (x)", "`axis` is 3"),
        (20, "y = Gelu <approximate = \"zz\"> (x)", "neither none nor tanh"),
    ] {
        let e = check(opset, call).expect_err(call);
        assert!(e.contains(says), "{call}: {e}");
    }
    for (opset, call) in [
        (17, "y = Squeeze (o, middle)"),
        (17, "y = Squeeze (o)"),
        (17, "y, z = Split <axis = 0> (x)"),
        (18, "y, z = Split <axis = 1, num_outputs = 2> (x)"),
        (17, "y = Flatten <axis = 3> (x)"),
        (17, "y = Flatten <axis = -3> (x)"),
        (21, "y = GroupNormalization <num_groups = 3> (x, s, s)"),
        (23, "y = Attention <q_num_heads = 4, kv_num_heads = 2> (x, x, x)"),
        (17, "y = LpNormalization (x)"),
        (20, "y = Gelu <approximate = \"tanh\"> (x)"),
    ] {
        assert_eq!(check(opset, call), Ok(()), "{call}");
    }
}
