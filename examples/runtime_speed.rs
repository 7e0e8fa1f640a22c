//! Milliseconds per run of a model, by way of loading it: `runtime_speed model.onnx [runs] [taps]`.
//!
//! Taps are spread evenly over the node outputs of the main graph. Inputs are a fixed pattern.
#![allow(clippy::print_stdout)]

use std::path::Path;
use std::time::Instant;

use fqvit_opt::ir::validate::validate;
use fqvit_opt::onnx;
use fqvit_opt::runtime::{Array, Session, SessionOptions, fold_samples};

/// Milliseconds this thread has spent on a processor: unlike a clock, not disturbed by other load. `None` where the
/// system does not say.
fn on_cpu() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    stat.split(' ').next()?.parse::<f64>().ok().map(|ns| ns / 1e6)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let path = args.next().ok_or("give a model")?;
    let runs: usize = args.next().map_or(Ok(20), |a| a.parse())?;
    let count: usize = args.next().map_or(Ok(150), |a| a.parse())?;
    let model = onnx::load(Path::new(&path))?.model;
    let g = &model.graph;
    // What calibration looks at: values that are computed from the input.
    let skip = ["Constant", "Shape", "Squeeze", "Unsqueeze", "DequantizeLinear"];
    let names: Vec<String> = g
        .schedule()
        .into_iter()
        .map(|n| g.node(n))
        .filter(|n| !skip.contains(&n.op.name.as_str()))
        .filter_map(|n| n.out().map(|v| g.name_of(v).to_owned()))
        .collect();
    let taps: Vec<String> =
        (0..count.min(names.len())).map(|i| names[i * names.len() / count.min(names.len())].clone()).collect();

    let mut reference: Option<Vec<f32>> = None;
    for (what, taps, optimize) in
        [("optimized", vec![], true), ("optimized, taps", taps.clone(), true), ("as written, taps", taps, false)]
    {
        let n = taps.len();
        let t = Instant::now();
        let session = Session::of(validate(&model)?, &SessionOptions { taps, optimize, ..Default::default() })?;
        let load = t.elapsed();
        let input: Vec<(&str, Array)> = session
            .inputs()
            .iter()
            .map(|p| {
                let dims = p.dims.clone().unwrap_or_default();
                let len = dims.iter().product::<usize>();
                let x = (0..len).map(|i| ((i * 7919) % 1000) as f32 / 250.0 - 2.0).collect();
                Array::new(&dims, x).map(|a| (p.name.as_str(), a))
            })
            .collect::<Result<_, _>>()?;
        let out = session.run(&input)?;
        let mut times = vec![];
        let before = on_cpu();
        for _ in 0..runs {
            let t = Instant::now();
            session.run(&input)?;
            times.push(t.elapsed().as_secs_f64() * 1e3);
        }
        let cpu = before.zip(on_cpu()).map_or(f64::NAN, |(a, b)| (b - a) / runs as f64);
        times.sort_by(f64::total_cmp);
        let t = Instant::now();
        let mut bytes_out = 0usize;
        fold_samples(
            runs,
            2,
            |_| session.run(&input),
            |_, o| {
                bytes_out = o.taps.iter().map(Array::len).sum();
                Ok(())
            },
        )?;
        let two = t.elapsed().as_secs_f64() * 1e3 / runs as f64;
        let first = out.outputs[0].f32s().into_owned();
        let apart = reference
            .as_ref()
            .map_or(0.0, |r: &Vec<f32>| r.iter().zip(&first).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max));
        println!(
            "{what:18} {n:3} taps ({:.1} M elements): load {:4.0} ms, run {:6.1} ms (best {:6.1}, processor {cpu:6.1}), two threads {two:6.1} ms per run, largest difference {apart:.2e}",
            bytes_out as f64 / 1e6,
            load.as_secs_f64() * 1e3,
            times[times.len() / 2],
            times[0],
        );
        reference.get_or_insert(first);
    }
    Ok(())
}
