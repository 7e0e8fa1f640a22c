use proptest::prelude::*;

use super::super::plan::Exps;
use super::super::{Anchor, LisError, LisFacts, LisSpec, LogBase, MOST_KEYS, Rounding, Tail};
use super::*;
use crate::ir::DType;

const ANCHORS: [Anchor; 4] = [Anchor::Max, Anchor::SumTable, Anchor::SumPoly, Anchor::SumIexp];

fn facts(s: f32) -> LisFacts {
    LisFacts { score_scale: vec![s], v_scale: vec![0.03125], v_zero: 128, v_type: DType::UINT8, keys: None }
}

fn plan(spec: &LisSpec, s: f32) -> LisPlan {
    LisPlan::new(spec, &facts(s), "test").unwrap()
}

fn spec(anchor: Anchor, bits: u8) -> LisSpec {
    LisSpec::new(anchor, bits).unwrap()
}

/// Every anchor, width, tail and rounding that goes together.
fn specs() -> Vec<LisSpec> {
    let mut out = Vec::new();
    for anchor in ANCHORS {
        for bits in 3..=6 {
            for tail in [Tail::Levels17, Tail::Zero, Tail::Saturate] {
                let s = spec(anchor, bits).with_tail(tail);
                out.extend(s.clone().with_rounding(Rounding::Paper));
                out.extend(s.clone().with_base(vec![LogBase::Root3]));
                out.push(s);
            }
        }
    }
    out
}

#[test]
fn max_codes_are_the_rounded_binary_exponent() {
    let p = plan(&LisSpec::default(), 0.1);
    let row: Vec<u8> = (0..=255).rev().collect();
    let got: Vec<u32> = codes(&p, 0, &row, None).into_iter().flatten().collect();
    // 2364 = round(0.1 log2(e) 2^14)
    let want: Vec<u32> = (0..256).map(|d| (2364 * d + 8192) >> 14).collect();
    assert_eq!(got, want);
    let w = weights(&p, 0, &row, None);
    assert_eq!((w[0], w[7], w[97], w[100], w[101]), (16384, 8192, 1, 1, 0));
}

/// For every variant, a key's weight is what its code is said to stand for.
#[test]
fn codes_stand_for_the_weights_they_are_said_to() {
    let fine = LisSpec::default().with_fine(vec![8]).unwrap();
    for s in specs().into_iter().chain([fine]) {
        let p = plan(&s, 0.05);
        let row: Vec<u8> = (0..=255).collect();
        let said = code_weights(&p, 0).unwrap();
        // Integer weights are sums of two shifts at most, each a step too small at most.
        let unit = f64::from(p.unit());
        for (c, w) in codes(&p, 0, &row, None).iter().zip(weights(&p, 0, &row, None)) {
            let c = (c.unwrap() as usize).min(said.len() - 1);
            assert!((f64::from(w) / unit - said[c]).abs() <= 2.5 / unit, "{s:?}: code {c} is {w}, said {}", said[c]);
        }
    }
    assert_eq!(code_weights(&plan(&LisSpec::default().with_rounding(Rounding::None).unwrap(), 0.05), 0), None);
}

#[test]
fn fixed_logarithm_is_within_two_units() {
    let mut worst = 0.0f64;
    for i in 0..40_000u32 {
        let s = if i < 2000 { i + 1 } else { i.wrapping_mul(2_654_435_761).max(1) };
        worst = worst.max((f64::from(log2_fixed(s)) - f64::from(s).log2() * 16384.0).abs());
    }
    assert!(worst < 2.0, "{worst}");
}

#[test]
fn integer_exponentials_follow_the_exponential() {
    for anchor in [Anchor::SumTable, Anchor::SumPoly, Anchor::SumIexp] {
        for s in [0.002f32, 0.03, 0.1, 0.5, 1.3] {
            let p = plan(&spec(anchor, 4), s);
            for d in 0..=255u8 {
                let x = f64::from(d) * f64::from(s);
                // The polynomial is off by 0.31 % at most, at both ends of the quotient. i-exp takes an octave for
                // ceil(ln 2 / s') steps, which is too long by less than a step, in every octave it has passed.
                let within = match &p.exps {
                    Exps::Table(_) => 0.0,
                    Exps::Iexp(e) => {
                        let step = f64::from(s) / f64::from(1u32 << e[0].shift);
                        let late = f64::from(e[0].x0) * step - std::f64::consts::LN_2;
                        0.0062 + 2.0 * step + (late * (x / std::f64::consts::LN_2).floor()).exp_m1()
                    }
                    _ => 0.0062,
                };
                let want = f64::from(p.e0[0]) * (-x).exp();
                let got = f64::from(exponential(&p, 0, d));
                // Rounding K moves a position by half a unit of 2^-14 per step of distance; the result is truncated.
                let rate = if anchor == Anchor::SumPoly { f64::from(d) / 32768.0 } else { 0.0 };
                assert!((got - want).abs() <= 1.0 + (within + rate) * want, "{anchor:?} {s} {d}: {got} for {want}");
            }
        }
    }
}

#[test]
fn sum_codes_are_right_except_close_to_a_border() {
    for anchor in [Anchor::SumTable, Anchor::SumPoly, Anchor::SumIexp] {
        let p = plan(&spec(anchor, 4), 0.083);
        let row: Vec<u8> = (0..197u32).map(|j| (j * j * 31 % 240) as u8).collect();
        let top = f64::from(*row.iter().max().unwrap());
        let s = f64::from(0.083f32);
        let sum: f64 = row.iter().map(|x| ((f64::from(*x) - top) * s).exp()).sum();
        for (x, c) in row.iter().zip(codes(&p, 0, &row, None)) {
            let exact = (sum.ln() + (top - f64::from(*x)) * s) * std::f64::consts::LOG2_E;
            assert!((exact - f64::from(c.unwrap())).abs() < 0.51, "{anchor:?}: {exact} became {c:?}");
        }
    }
}

#[test]
fn paper_codes_are_those_of_the_two_step_rounding() {
    let p = plan(&LisSpec::paper(), 0.1);
    let row: Vec<u8> = (0..197u32).map(|j| (j * 89 % 256) as u8).collect();
    let top = *row.iter().max().unwrap();
    let e = |x: u8| (262_144.0 * (-f64::from(top - x) * f64::from(0.1f32)).exp()).round().max(1.0);
    let sum: f64 = row.iter().map(|x| e(*x)).sum();
    for (x, c) in row.iter().zip(codes(&p, 0, &row, None)) {
        let ratio = (sum / e(*x) + 0.5).floor();
        let low = ratio.log2().floor();
        let want = low as u32 + (ratio - low.exp2() >= (low - 1.0).exp2()) as u32;
        assert_eq!(c.unwrap(), if ratio == 1.0 { 0 } else { want }, "ratio {ratio}");
    }
}

/// Rounding a logarithm to steps of `h` octaves moves each weight by `ln 2 h / sqrt 12` (root mean square, relative);
/// independent between keys, that is an output error of so much times V's deviation times the 2-norm of the weights.
#[test]
fn the_error_against_softmax_is_that_of_rounded_logarithms() {
    let (s, width) = (0.05f32, 32);
    let row: Vec<u8> = (0..197u32).map(|j| (j * 137 % 251) as u8).collect();
    let v: Vec<i32> = (0..197 * width as u32).map(|j| (j.wrapping_mul(2_654_435_761) >> 24) as i32).collect();
    let e: Vec<f64> = row.iter().map(|x| (f64::from(*x) * f64::from(s)).exp()).collect();
    let total: f64 = e.iter().sum();
    let norm = e.iter().map(|e| (e / total).powi(2)).sum::<f64>().sqrt();
    let deviation = 256.0 / 12f64.sqrt() * 0.03125;
    for anchor in ANCHORS {
        let mut before = f64::MAX;
        for (bits, h) in [(4, 1.0), (5, 0.5), (6, 0.25)] {
            let y = attend(&plan(&spec(anchor, bits), s), 0, &row, None, &v, width);
            let off = y.iter().enumerate().map(|(c, y)| {
                let want: f64 = (0..197).map(|j| e[j] / total * f64::from(v[j * width + c] - 128) * 0.03125).sum();
                (f64::from(*y) - want).powi(2)
            });
            let rms = (off.sum::<f64>() / width as f64).sqrt();
            let expected = std::f64::consts::LN_2 * h / 12f64.sqrt() * deviation * norm;
            assert!(rms < 2.0 * expected, "{anchor:?} {bits} bits: {rms}, expected {expected}");
            assert!(rms < before, "{anchor:?}: {bits} bits are no better than {} ({rms}, {before})", bits - 1);
            before = rms;
        }
    }
}

#[test]
fn equal_scores_give_the_mean() {
    let v: Vec<i32> = (0..64 * 3).map(|i| (i * 53) % 256).collect();
    for spec in specs() {
        let y = attend(&plan(&spec, 0.07), 0, &[200; 64], None, &v, 3);
        for (c, y) in y.iter().enumerate() {
            let sum: i32 = (0..64).map(|j| v[j * 3 + c] - 128).sum();
            // Coarse codes may have no weight for 1/64: the row is then 0, which a zero tail means.
            let none = weights(&plan(&spec, 0.07), 0, &[200; 64], None)[0] == 0;
            let mean = if none { 0.0 } else { sum as f32 / 64.0 * 0.03125 };
            assert_eq!(*y, mean, "{spec:?}");
        }
    }
}

proptest! {
    #[test]
    fn a_larger_score_never_weighs_less(
        row in prop::collection::vec(any::<u8>(), 1..300),
        s in prop::sample::select(vec![1e-4f32, 0.01, 0.07, 0.3, 1.0, 9.0]),
        i in 0..100usize,
    ) {
        let all = specs();
        let p = plan(&all[i % all.len()], s);
        let w = weights(&p, 0, &row, None);
        let mut order: Vec<usize> = (0..row.len()).collect();
        order.sort_by_key(|j| row[*j]);
        for pair in order.windows(2) {
            prop_assert!(w[pair[0]] <= w[pair[1]]);
            prop_assert!(row[pair[0]] != row[pair[1]] || w[pair[0]] == w[pair[1]]);
        }
    }

    #[test]
    fn a_dropped_key_is_as_if_it_were_not_there(
        row in prop::collection::vec((any::<u8>(), any::<bool>()), 1..200),
        i in 0..100usize,
    ) {
        let all = specs();
        let p = plan(&all[i % all.len()], 0.09);
        let (x, on): (Vec<u8>, Vec<bool>) = row.iter().copied().unzip();
        let kept: Vec<u8> = row.iter().filter(|r| r.1).map(|r| r.0).collect();
        let v: Vec<i32> = (0..row.len()).map(|j| (j as i32 * 37) % 256).collect();
        let vk: Vec<i32> = v.iter().zip(&on).filter(|p| *p.1).map(|p| *p.0).collect();
        prop_assert!(weights(&p, 0, &x, Some(&on)).iter().zip(&on).all(|(w, on)| *on || *w == 0));
        let y = attend(&p, 0, &x, Some(&on), &v, 1);
        if kept.is_empty() {
            prop_assert_eq!(y[0].to_bits(), 0);
        } else {
            prop_assert_eq!(y, attend(&p, 0, &kept, None, &vk, 1));
        }
    }

    #[test]
    fn weights_that_are_guarded_lose_only_what_lies_below_the_row(
        row in prop::collection::vec(any::<u8>(), 200..2000),
        s in 0.001f32..0.5,
    ) {
        let guarded = plan(&LisSpec::default(), s);
        let facts = LisFacts { keys: Some(row.len()), ..facts(s) };
        let is_guarded = matches!(guarded.product(), Product::Guarded { .. });
        prop_assert!(is_guarded);
        let mut exact = LisPlan::new(&LisSpec::default(), &facts, "test").unwrap();
        exact.product = Product::Float;
        let v: Vec<i32> = row.iter().enumerate().map(|(j, x)| (j as i32 * 91 + i32::from(*x)) % 256).collect();
        let (a, b) = (attend(&guarded, 0, &row, None, &v, 1)[0], attend(&exact, 0, &row, None, &v, 1)[0]);
        // Half of 2^-16 of the row a key, times 128 codes.
        let most = row.len() as f32 * 128.0 * 0.03125 * 1.5 / 131_072.0;
        prop_assert!((a - b).abs() <= most, "{} {}", a, b);
    }
}

/// Values after a Relu have zero point 0 and reach 255 codes far, which is the most.
#[test]
fn values_that_reach_as_far_as_codes_do_need_no_known_number_of_keys() {
    for spec in [LisSpec::default(), LisSpec::default().with_tail(Tail::Saturate)] {
        for keys in [None, Some(MOST_KEYS)] {
            let facts = LisFacts { v_zero: 0, keys, ..facts(0.1) };
            LisPlan::new(&spec, &facts, "test").unwrap();
        }
        let facts = LisFacts { v_zero: 0, keys: Some(2 * MOST_KEYS), ..facts(0.1) };
        assert!(matches!(LisPlan::new(&spec, &facts, "test"), Err(LisError::Keys { .. })));
    }
}
