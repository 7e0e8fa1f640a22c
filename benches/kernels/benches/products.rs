//! Products of codes against tract's product of floats, on one thread: `cargo bench` in `benches/kernels`.
//!
//! Shapes are those of DeiT-tiny and ViT-base: layers with constant weights, and the two products of attention. Criterion
//! gives multiplications a second; a core's peak is its clock times 16 of them for floats with AVX2 or AVX-512 at half rate,
//! times 32 for codes with AVX2, times 64 with VNNI in 512 bits at half rate.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use fqvit_opt::runtime::gemm::{Isa, Operand, Packed, Scratch, Side, multiply};
use tract_core::internal::*;
use tract_core::ops::einsum::EinSum;

/// Rows, columns and depth.
const SHAPES: [(usize, usize, usize); 7] = [
    (197, 576, 192),
    (197, 192, 192),
    (197, 768, 192),
    (197, 192, 768),
    (197, 768, 768),
    (197, 197, 64),
    (197, 64, 197),
];

fn codes(n: usize) -> Vec<u8> {
    (0..n).map(|i| (i * 7919 % 251) as u8).collect()
}

/// tract's own product of floats, its weights packed beforehand.
fn float(m: usize, n: usize, k: usize) -> TractResult<Arc<TypedRunnableModel>> {
    let mut model = TypedModel::default();
    let a = model.add_source("a", f32::fact([m, k]))?;
    let b: Vec<f32> = codes(k * n).iter().map(|c| *c as f32 / 64.0 - 2.0).collect();
    let b = model.add_const("b", Tensor::from_shape(&[k, n], &b)?)?;
    let op = EinSum { axes: "mk,kn->mn".parse()?, operating_dt: f32::datum_type(), q_params: None };
    let y = model.wire_node("y", op, &[a, b])?;
    model.select_output_outlets(&y)?;
    model.into_optimized()?.into_runnable()
}

fn products(c: &mut Criterion) {
    for (m, n, k) in SHAPES {
        let mut group = c.benchmark_group(format!("{m}x{n}x{k}"));
        group.throughput(Throughput::Elements((m * n * k) as u64));
        let plan = float(m, n, k).expect("tract multiplies floats");
        let a: Vec<f32> = codes(m * k).iter().map(|c| *c as f32 / 64.0 - 2.0).collect();
        let a = Tensor::from_shape(&[m, k], &a).expect("as many as the shape says").into_tvalue();
        group.bench_function("float, tract", |b| b.iter(|| plan.run(tvec!(a.clone())).expect("it runs")));
        let (left, right) = (codes(m * k), codes(n * k));
        for isa in Isa::here().filter(|i| *i != Isa::Portable) {
            let (mut x, mut w, mut scratch) = (Packed::default(), Packed::default(), Scratch::default());
            let right = Operand {
                codes: &right,
                signed: true,
                lines: n,
                depth: k,
                line_stride: 1,
                depth_stride: n,
                zero: &[0],
            };
            w.pack(isa, Side::Right, right);
            let left = Operand {
                codes: &left,
                signed: false,
                lines: m,
                depth: k,
                line_stride: k,
                depth_stride: 1,
                zero: &[117],
            };
            group.bench_function(format!("codes, {}", isa.name()), |b| {
                b.iter(|| {
                    // Activations are packed at every run.
                    x.pack(isa, Side::Left, left);
                    multiply(&x, &w, &mut scratch, &mut |strip| {
                        black_box(strip.sums);
                    });
                })
            });
        }
        group.finish();
    }
}

criterion_group!(benches, products);
criterion_main!(benches);
