//! For tests: what a pass that must keep the function of a model makes of its outputs.

use crate::compile::inputs;
use crate::ir::validate::validate;
use crate::ir::{Dim, Model};
use crate::runtime::{Array, Session, SessionOptions};

/// Numbers between 0.125 and 8, the same on every machine.
pub fn spread(n: usize, seed: u32) -> Vec<f32> {
    let one = |i: u32| (i.wrapping_add(seed).wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 24) as f32;
    (0..n as u32).map(|i| (one(i) * 6.0 - 3.0).exp2()).collect()
}

/// The largest difference between the outputs of two models on inputs between -3 and 3, as a share of the largest output.
pub fn difference(before: &Model, after: &Model) -> f32 {
    let g = &before.graph;
    let given: Vec<(String, Array)> = inputs(g)
        .expect("inputs that data can be made for")
        .iter()
        .map(|i| {
            let dims: Vec<usize> = g
                .shape(g.find(&i.name).expect("is an input"))
                .expect("has a shape")
                .iter()
                .map(|d| if let Dim::Known(n) = d { *n as usize } else { 2 })
                .collect();
            let x = spread(dims.iter().product(), 77).iter().map(|v| v.log2()).collect::<Vec<f32>>();
            (i.name.clone(), Array::new(&dims, x).expect("fits"))
        })
        .collect();
    let run = |m: &Model| {
        let options = SessionOptions { batch: 2, ..SessionOptions::default() };
        Session::of(validate(m).expect("is valid"), &options).expect("loads").run(&given).expect("runs").outputs
    };
    let mut worst = 0f32;
    for (a, b) in run(before).iter().zip(run(after)) {
        let (a, b) = (a.f32s(), b.f32s());
        let top = a.iter().fold(0f32, |t, v| t.max(v.abs()));
        assert!(top > 0.0 && a.len() == b.len());
        worst = a.iter().zip(b.iter()).fold(worst, |w, (a, b)| w.max((a - b).abs() / top));
    }
    worst
}
