use super::super::build::{Build, Value};
use super::super::{Array, RuntimeError, Session, SessionOptions};
use crate::ir::{DType, Tensor as Constant};

fn f32s(dims: &[usize], x: &[f32]) -> Array {
    Array::new(dims, x.to_vec()).unwrap()
}

/// A body that is handed its number `i`, whether it runs `go`, and `s`, of a type that is not looked at.
fn body() -> Build {
    let body = Build::new(18).input("i", DType::INT64, &[]).input("go", DType::BOOL, &[]);
    body.input("s", DType::FLOAT, &["some"])
}

/// A model that hands a Loop `x`; `call` is its inputs, and its outputs are `y` and, if there are two, `z`.
fn model(call: &str, inner: Build, outputs: &[&str]) -> Build {
    let made = if outputs.len() == 3 { "y, z" } else { "y" };
    let attributes = [("body", Value::Graph(inner.body(outputs)))];
    Build::new(18)
        .input("x", DType::FLOAT, &["2"])
        .constant("yes", Constant::bool(&[], &[true]))
        .constant("no", Constant::bool(&[], &[false]))
        .constant("three", Constant::i64(&[], &[3]))
        .constant("many", Constant::i64(&[1], &[100]))
        .constant("none", Constant::i64(&[], &[0]))
        .constant("half", Constant::scalar_f32(0.5))
        .constant("two", Constant::f32(&[2], &[2.0, 3.0]))
        .node(&format!("{made} = Loop({call})"), &attributes)
}

const X: [f32; 2] = [1.0, 10.0];

fn x() -> [(&'static str, Array); 1] {
    [("x", f32s(&[2], &X))]
}

#[test]
fn a_body_runs_as_often_as_it_is_told() {
    // Reads constants and a computed value of the graph around it.
    let times = |call: &str| {
        let inner = body().node("m = Mul(s, two)", &[]).node("t = Add(m, x)", &[]).node("on = Identity(go)", &[]);
        model(call, inner, &["on", "t"]).run(&["y"], &x())[0].f32s().into_owned()
    };
    assert_eq!(times("three, yes, x"), [15.0, 400.0]);
    assert_eq!(times("three, _, x"), [15.0, 400.0]);
    assert_eq!(times("none, yes, x"), X);
    assert_eq!(times("three, no, x"), X);
}

#[test]
fn the_body_ends_it() {
    // The condition is a scalar here, a vector of one element there; onnxruntime obeys it without a condition given, too.
    for call in ["_, yes, x", "many, yes, x", "many, _, x"] {
        let inner = body()
            .node("t = Mul(s, half)", &[])
            .node("most = ReduceMax(t)", &[("keepdims", Value::Int(0))])
            .node("on = Greater(most, half)", &[]);
        let y = model(call, inner, &["on", "t"]).run(&["y"], &x());
        assert_eq!(y[0].f32s()[..], [1.0 / 32.0, 10.0 / 32.0]);
    }
}

#[test]
fn what_is_collected_gets_a_first_axis() {
    for (call, want) in [("three, yes, x", &[1.0, 10.0, 2.0, 30.0, 4.0, 90.0][..]), ("none, yes, x", &[])] {
        let inner = body().node("t = Mul(s, two)", &[]).node("on = Identity(go)", &[]).node("c = Identity(s)", &[]);
        let b = model(call, inner, &["on", "t", "c"]);
        // Its shape reaches what follows.
        let y = b.node("w = Mul(z, half)", &[]).run(&["z", "w"], &x());
        assert_eq!(y[0].dims(), [want.len() / 2, 2]);
        assert_eq!(y[0].f32s()[..], *want);
        assert_eq!(y[1].f32s()[..], want.iter().map(|v| v / 2.0).collect::<Vec<_>>());
    }
}

/// An input handed on as it is, an outer value handed out, and the number of the iteration.
#[test]
fn outputs_need_no_node() {
    let y = model("three, yes, x", body(), &["go", "s", "i"]).run(&["y", "z"], &x());
    assert_eq!(y[0].f32s()[..], X);
    assert_eq!(y[1].values::<i64>().unwrap()[..], [0, 1, 2]);
    let y = model("three, yes, x", body(), &["go", "two", "go"]).run(&["y", "z"], &x());
    assert_eq!(y[0].f32s()[..], [2.0, 3.0]);
    assert_eq!(y[1].values::<bool>().unwrap()[..], [true; 3]);
}

#[test]
fn sizes_may_change() {
    let axis = || [("axis", Value::Int(0))];
    let inner = body().node("t = Concat(s, x)", &axis());
    let b = model("three, yes, x", inner, &["go", "t"]).node("w = Mul(y, half)", &[]);
    let y = b.node("all = ReduceSum(w)", &[]).run(&["y", "w", "all"], &x());
    assert_eq!((y[0].dims(), y[1].dims()), (&[8usize][..], &[8usize][..]));
    assert_eq!(y[2].f32s()[..], [22.0]);
    // What is collected must fit together.
    let inner = body().node("t = Concat(s, x)", &axis()).node("c = Identity(t)", &[]);
    let bytes = model("three, yes, x", inner, &["go", "t", "c"]).bytes(&["z"]);
    let e =
        Session::of_bytes(&bytes, None, &SessionOptions::default()).and_then(|s| s.run(&x())).unwrap_err().to_string();
    assert!(e.contains("Loop 'node_y'") && e.contains("'c'") && e.contains("makes no tensor"), "{e}");
}

/// A slice whose end is the iteration's number: tract wants to know it.
#[test]
fn integers_may_make_sizes() {
    let inner = Build::new(18)
        .constant("zero", Constant::i64(&[1], &[0]))
        .constant("one", Constant::i64(&[1], &[1]))
        .input("i", DType::INT64, &["1"])
        .input("go", DType::BOOL, &["1"])
        .input("s", DType::FLOAT, &["1"])
        .node("end = Add(i, one)", &[])
        .node("part = Slice(long, zero, end)", &[])
        .node("sum = ReduceSum(part)", &[("keepdims", Value::Int(1))])
        .node("t = Add(s, sum)", &[]);
    let b = model("three, yes, start", inner, &["go", "t"])
        .constant("start", Constant::f32(&[1], &[0.5]))
        .constant("long", Constant::f32(&[4], &[1.0, 2.0, 4.0, 8.0]));
    let y = b.node("w = Add(y, x)", &[]).run(&["w"], &x());
    assert_eq!(y[0].f32s()[..], [12.5, 21.5]);
}

#[test]
fn a_loop_in_a_loop_in_a_branch() {
    let inner = Build::new(18)
        .input("j", DType::INT64, &[])
        .input("more", DType::BOOL, &[])
        .input("r", DType::FLOAT, &["2"])
        .node("p = Mul(s, half)", &[])
        .node("q = Add(p, x)", &[])
        .node("u = Add(r, q)", &[]);
    let inner = [("body", Value::Graph(inner.body(&["more", "u"])))];
    let outer = body().node("n = Identity(i)", &[]).node("t = Loop(n, go, s)", &inner);
    let then = Build::new(18).node("v = Loop(three, yes, x)", &[("body", Value::Graph(outer.body(&["go", "t"])))]);
    let other = Build::new(18).node("e = Neg(x)", &[]);
    let b = Build::new(18)
        .input("x", DType::FLOAT, &["2"])
        .constant("yes", Constant::bool(&[], &[true]))
        .constant("three", Constant::i64(&[], &[3]))
        .constant("half", Constant::scalar_f32(0.5))
        .node("sum = ReduceSum(x)", &[("keepdims", Value::Int(0))])
        .node("large = Greater(sum, half)", &[])
        .node(
            "y = If(large)",
            &[("then_branch", Value::Graph(then.body(&["v"]))), ("else_branch", Value::Graph(other.body(&["e"])))],
        );
    // 0 times, once 1 + 0.5 + 1, then twice half of that and 1.
    let y = b.run(&["y"], &x());
    assert_eq!(y[0].f32s()[..], [7.0, 70.0]);
}

/// Sizes that a sample decides are met one after another, on several threads at once.
#[test]
fn one_session_for_many_shapes() {
    let inner = body().node("t = Concat(s, x)", &[("axis", Value::Int(0))]).node("on = Less(i, last)", &[]);
    let b = model("_, yes, x", inner, &["on", "t"])
        .input("last", DType::INT64, &[])
        .node("total = ReduceSum(y)", &[("keepdims", Value::Int(0))]);
    let session = Session::of_bytes(&b.bytes(&["y", "total"]), None, &SessionOptions::default()).unwrap();
    let run = |n: usize| {
        let last = Array::scalar(n as i64);
        session.run(&[("x", f32s(&[2], &X)), ("last", last)]).unwrap().outputs
    };
    for (n, out) in super::super::map_samples(100, 3, run).into_iter().enumerate() {
        assert_eq!(out[0].dims(), [2 * (n + 2)]);
        assert_eq!(out[1].f32s()[..], [11.0 * (n + 2) as f32]);
    }
}

#[test]
fn what_is_wrong_is_named() {
    let fails = |b: Build| {
        let session = Session::of_bytes(&b.bytes(&["y"]), None, &SessionOptions::default());
        let e = session.and_then(|s| s.run(&x())).unwrap_err();
        assert!(matches!(e, RuntimeError::Engine { .. }), "{e}");
        let e = e.to_string();
        assert!(e.contains("Loop 'node_y'"), "{e}");
        e
    };
    let e = fails(model("three, yes, x", body(), &["go"]));
    assert!(e.contains("carries 1 values, and its body has 1 outputs"), "{e}");
    let e = fails(model("three, yes", body(), &["go", "s"]));
    assert!(e.contains("carries 0 values, and its body has 3 inputs"), "{e}");
    let e = fails(model("three, yes, _", body(), &["go", "s"]));
    assert!(e.contains("no initial value"), "{e}");
    let deeper = body().constant("at", Constant::i64(&[1], &[0])).node("t = Unsqueeze(s, at)", &[]);
    let e = fails(model("three, yes, x", deeper, &["go", "t"]));
    assert!(e.contains("'t'") && e.contains("1 axes") && e.contains("2"), "{e}");
    let other = body().node("t = Cast(s)", &[("to", Value::Int(DType::INT32.0 as i64))]);
    let e = fails(model("three, yes, x", other, &["go", "t"]));
    assert!(e.contains("'t'") && e.contains("F32") && e.contains("I32"), "{e}");
}
