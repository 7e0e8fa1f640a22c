//! A program that serves a quantized model: tract with the project's operators, loaded once, run for each request.
//!
//! `service model.q.onnx [size]` classifies a picture of `size` x `size` (224) made up on the spot, twenty times, and says
//! how long a run takes on one thread.
#![allow(clippy::print_stdout)]

use std::time::Instant;

use tract_onnx::prelude::*;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let path = args.next().ok_or("give a quantized model")?;
    let size: usize = args.next().map_or(Ok(224), |a| a.parse())?;

    // Instead of `tract_onnx::onnx()`; everything else is tract as its own documentation has it.
    let plan = fqvit_opt::runtime::onnx()
        .model_for_path(&path)?
        .with_input_fact(0, f32::fact([1, 3, size, size]).into())?
        .into_optimized()?
        .into_runnable()?;

    // A service decodes, resizes and normalises a picture here.
    let pixels: Vec<f32> = (0..3 * size * size).map(|i| (i % 255) as f32 / 64.0 - 2.0).collect();
    let picture = Tensor::from_shape(&[1, 3, size, size], &pixels)?;

    let mut times = Vec::new();
    let mut best = None;
    for _ in 0..20 {
        let start = Instant::now();
        let answer = plan.run(tvec!(picture.clone().into_tvalue()))?;
        times.push(start.elapsed().as_secs_f64() * 1e3);
        let scores = answer[0].to_plain_array_view::<f32>()?;
        best = scores.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map(|(i, _)| i);
    }
    times.sort_by(f64::total_cmp);
    println!("class {}, {:.2} ms", best.ok_or("the model has no output")?, times[times.len() / 2]);
    Ok(())
}
