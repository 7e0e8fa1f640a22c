//! Functions of single codes, and what is done to an image before it is quantized, through whole models.

use super::build::{Build, Value};
use super::products_tests::{Codes, Dice, session};
use super::{Array, Session, SessionOptions};
use crate::ir::{DType, Tensor as Constant};

/// An activation function between codes is a table, whose codes are those of the operators one by one (`run` compares the
/// two).
#[test]
fn a_function_between_codes_is_a_table() {
    let all: Vec<u8> = (0..=255).collect();
    let input = [("x", Array::new(&[2, 1, 128], all).unwrap())];
    let model = |function: &dyn Fn(Build) -> Build| {
        let b = Build::new(20)
            .input("x", DType::UINT8, &["2", "1", "128"])
            .scalars(&[("s", 0.04), ("t", 0.03), ("half", 0.5), ("one", 1.0), ("root", std::f32::consts::SQRT_2)])
            .constant("zx", Constant::u8(&[], &[131]))
            .constant("zy", Constant::i8(&[], &[-100]))
            .node("f = DequantizeLinear(x, s, zx)", &[]);
        function(b).node("y = QuantizeLinear(g, t, zy)", &[])
    };
    let erf = |b: Build| {
        b.node("d = Div(f, root)", &[])
            .node("e = Erf(d)", &[])
            .node("p = Add(e, one)", &[])
            .node("m = Mul(f, p)", &[])
            .node("g = Mul(m, half)", &[])
    };
    let functions: [&dyn Fn(Build) -> Build; 4] = [
        &erf,
        &|b| b.node("g = Gelu(f)", &[]),
        &|b| b.node("g = Gelu(f)", &[("approximate", Value::Str("tanh"))]),
        &|b| b.node("g = Identity(f)", &[]),
    ];
    for function in functions {
        let s = session(&model(function).bytes(&["y"]));
        assert_eq!(["CodeTable", "Quantize", "Dequantize"].map(|op| s.count_of(op)), [1, 0, 0]);
        model(function).run(&["y"], &input);
    }
    // A function of more than one element is no table.
    let softmax = |b: Build| b.node("g = Softmax(f)", &[("axis", Value::Int(-1))]);
    let s = session(&model(&softmax).bytes(&["y"]));
    assert_eq!(["CodeTable", "Softmax"].map(|op| s.count_of(op)), [0, 1]);
    model(&softmax).run(&["y"], &input);
}

/// Where factors or scales differ from channel to channel there is a table for each, whatever axis they lie along; after a
/// product it is one of the product's steps.
#[test]
fn a_function_of_each_channel_is_a_table_of_each() {
    let mut dice = Dice(11);
    let floats = |n: usize, dims: &[i64]| {
        let v: Vec<f32> = (0..n).map(|i| 0.3 + 0.05 * (i * 7 % 11) as f32).collect();
        Constant::raw(DType::FLOAT, dims, v.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>())
    };
    // The axis of channels, and the shape.
    let shapes: [(usize, &[usize]); 4] = [(1, &[40, 70]), (2, &[2, 33, 5]), (1, &[2, 3, 20, 4]), (0, &[3, 64])];
    for (axis, dims) in shapes {
        let n = dims[axis];
        let x = Codes::new(dims, true, &mut dice);
        let mut column = vec![1i64; dims.len()];
        column[axis] = n as i64;
        let mut inputs = vec![];
        let model = |inputs: &mut Vec<(&'static str, Array)>| {
            x.put(Build::new(20), "a", false, inputs)
                .scalars(&[("s", 0.04), ("t", 0.02)])
                .constant("zx", Constant::i8(&[], &[-13]))
                .constant("zy", Constant::raw(DType::UINT8, &[n as i64], vec![20; n]))
                .constant("u", floats(n, &column))
                .constant("v", floats(n, &[n as i64]))
                .node("d = DequantizeLinear(a, s, zx)", &[])
                .node("f = Mul(d, u)", &[])
                .node("g = Gelu(f)", &[])
                .node("h = Mul(g, t)", &[])
                .node("y = QuantizeLinear(h, v, zy)", &[("axis", Value::Int(axis as i64))])
        };
        let s = session(&model(&mut inputs).bytes(&["y"]));
        assert_eq!(["CodeTable", "Quantize", "Dequantize"].map(|op| s.count_of(op)), [1, 0, 0], "{dims:?}");
        model(&mut vec![]).run(&["y"], &inputs);
    }
    // Constants along two axes, and channels of few elements.
    for (first, second, dims) in [([1, 8], [64, 1], [64, 8]), ([1, 64], [1, 64], [8, 64])] {
        let x = Codes::new(&dims, false, &mut dice);
        let mut inputs = vec![];
        let of = |d: [i64; 2]| floats((d[0] * d[1]) as usize, &d);
        let model = x
            .put(Build::new(20), "a", false, &mut inputs)
            .scalars(&[("s", 0.04)])
            .constant("z", Constant::u8(&[], &[100]))
            .constant("u", of(first))
            .constant("v", of(second))
            .node("d = DequantizeLinear(a, s, z)", &[])
            .node("f = Mul(d, u)", &[])
            .node("g = Mul(f, v)", &[])
            .node("y = QuantizeLinear(g, s, z)", &[]);
        assert_eq!(session(&model.bytes(&["y"])).count_of("CodeTable"), 0, "{dims:?}");
    }
    // Behind a layer, in strips of several columns.
    for per_channel in [false, true] {
        let (a, w) = (Codes::new(&[30, 24], false, &mut dice), Codes::new(&[24, 70], true, &mut dice));
        let mut inputs = vec![];
        let model = |inputs: &mut Vec<(&'static str, Array)>| {
            let b = a.put(Build::new(20), "a", false, inputs);
            w.put(b, "b", true, inputs)
                .scalars(&[("sa", 0.02), ("sb", 0.01), ("s", 0.04)])
                .constant("za", Constant::u8(&[], &[90]))
                .constant("zb", Constant::i8(&[], &[3]))
                .constant("z", Constant::u8(&[], &[110]))
                .constant("zi", Constant::i8(&[], &[-4]))
                .constant("u", if per_channel { floats(70, &[1, 70]) } else { floats(1, &[1, 1]) })
                .node("x = DequantizeLinear(a, sa, za)", &[])
                .node("w = DequantizeLinear(b, sb, zb)", &[])
                .node("p = MatMul(x, w)", &[])
                .node("q = QuantizeLinear(p, s, z)", &[])
                .node("d = DequantizeLinear(q, s, z)", &[])
                .node("f = Mul(d, u)", &[])
                .node("g = Gelu(f)", &[])
                .node("y = QuantizeLinear(g, s, zi)", &[])
        };
        let s = session(&model(&mut inputs).bytes(&["y"]));
        let counts = ["CodeProduct", "CodeTable", "Quantize", "Dequantize"].map(|op| s.count_of(op));
        assert_eq!(counts, [1, 0, 0, 0], "{per_channel}");
        // What the operators make of the product's own codes.
        let (got, q) = {
            let options = |taps: &[&str]| SessionOptions {
                taps: taps.iter().map(|t| (*t).to_owned()).collect(),
                ..SessionOptions::default()
            };
            let bytes = model(&mut vec![]).bytes(&["y"]);
            let tapped = Session::of_bytes(&bytes, None, &options(&["q"])).unwrap().run(&inputs).unwrap();
            (s.run(&inputs).unwrap().outputs[0].clone(), tapped.taps[0].clone())
        };
        let rest = Build::new(20)
            .input("q", DType::UINT8, &["30", "70"])
            .scalars(&[("s", 0.04)])
            .constant("z", Constant::u8(&[], &[110]))
            .constant("zi", Constant::i8(&[], &[-4]))
            .constant("u", if per_channel { floats(70, &[1, 70]) } else { floats(1, &[1, 1]) })
            .node("d = DequantizeLinear(q, s, z)", &[])
            .node("f = Mul(d, u)", &[])
            .node("g = Gelu(f)", &[])
            .node("y = QuantizeLinear(g, s, zi)", &[]);
        assert_eq!(rest.run(&["y"], &[("q", q)])[0], got);
    }
}

/// What is added to each channel of an image goes into its quantization.
#[test]
fn an_image_is_centred_as_it_is_quantized() {
    let image: Vec<f32> = (0..2 * 3 * 5 * 7).map(|i| (i * 37 % 211) as f32 / 211.0 - 0.3).collect();
    let channels = |v: [f32; 3], dims: &[i64]| {
        Constant::raw(DType::FLOAT, dims, v.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>())
    };
    for (call, axis) in [("c = Sub(x, o)", 1), ("c = Add(o, x)", 1), ("c = Add(x, o)", -3)] {
        for each in [false, true] {
            let b = Build::new(17).input("x", DType::FLOAT, &["2", "3", "5", "7"]);
            let b = if each {
                b.constant("s", channels([0.003, 0.004, 0.005], &[3])).constant("z", Constant::u8(&[3], &[3, 120, 130]))
            } else {
                b.scalars(&[("s", 0.004)]).constant("z", Constant::u8(&[], &[100]))
            };
            let model = b
                .constant("o", channels([0.1, -0.2, 0.3], &[3, 1, 1]))
                .node(call, &[])
                .node("y = QuantizeLinear(c, s, z)", &[("axis", Value::Int(axis))]);
            let bytes = Build { opset: 17, graph: model.graph.clone() }.bytes(&["y"]);
            let s = session(&bytes);
            let left = ["Quantize", "Sub", "Add", "OptSubByScalar", "OptAddByScalar", "OptSubUnicast", "OptAddUnicast"];
            assert_eq!(left.map(|op| s.count_of(op)), [1, 0, 0, 0, 0, 0, 0], "{call} {each}");
            model.run(&["y"], &[("x", Array::new(&[2, 3, 5, 7], image.clone()).unwrap())]);
        }
    }
}

/// Codes that are only moved on the way from one DequantizeLinear to a QuantizeLinear like it are moved, and nothing else.
#[test]
fn codes_that_move_stay_codes() {
    let bytes = Build::new(17)
        .input("x", DType::UINT8, &["2", "3"])
        .scalars(&[("s", 0.04)])
        .constant("z", Constant::u8(&[], &[131]))
        .node("f = DequantizeLinear(x, s, z)", &[])
        .node("g = Transpose(f)", &[])
        .node("y = QuantizeLinear(g, s, z)", &[])
        .bytes(&["y"]);
    let s = session(&bytes);
    assert_eq!(["CodeTable", "Quantize", "Dequantize"].map(|op| s.count_of(op)), [0, 0, 0]);
    let input = [("x", Array::new(&[2, 3], vec![0u8, 1, 2, 253, 254, 255]).unwrap())];
    let want = Array::new(&[3, 2], vec![0u8, 253, 1, 254, 2, 255]).unwrap();
    assert_eq!(s.run(&input).unwrap().outputs[0], want);
}
