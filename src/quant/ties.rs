//! Scales at which no value lies between two codes.
//!
//! A function of a code, such as GELU after DequantizeLinear, takes 256 values and no others. Two runtimes that compute
//! it a little differently agree on every code of the result if none of these values is close to the middle between two
//! codes. A scale has room for that: moving it by some ten-thousandths moves every value past its tie.

/// Steps tried to either side.
const STEPS: i32 = 200;
/// One step, relative.
const STEP: f64 = 1e-4;

/// A value the codes are made from, and how far from it a runtime may be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    pub value: f64,
    pub error: f64,
}

/// True if rounding `value / scale` gives the same code for everything within each point's error, the error of scaling
/// in float32 included. `lo` and `hi` are the smallest and the largest code less the zero point.
pub fn is_clear(points: &[Point], scale: f64, lo: f64, hi: f64) -> bool {
    points.iter().all(|p| {
        let t = p.value / scale;
        // Beyond the last tie everything saturates.
        if t < lo || t > hi {
            return true;
        }
        // Two roundings at most, of numbers up to 2^8 and 2^9.
        let margin = p.error / scale + 1e-4;
        (t - t.floor() - 0.5).abs() > margin
    })
}

/// The scale nearest to `scale` that is clear of ties, within 2 %; `None` if there is none.
pub fn cleared(points: &[Point], scale: f32, lo: f64, hi: f64) -> Option<f32> {
    (0..=STEPS)
        .flat_map(|k| [k, -k])
        .map(|k| (f64::from(scale) * (1.0 + f64::from(k) * STEP)) as f32)
        .find(|s| is_clear(points, f64::from(*s), lo, hi))
}

/// GELU in double precision; `tanh`: the approximation by that function.
pub fn gelu(x: f64, tanh: bool) -> f64 {
    if tanh {
        0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
    } else {
        0.5 * x * libm::erfc(-x / std::f64::consts::SQRT_2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_value_between_two_codes_is_moved_off() {
        let p = [Point { value: 2.5, error: 1e-6 }, Point { value: 7.0, error: 1e-6 }];
        assert!(!is_clear(&p, 1.0, -128.0, 127.0));
        let s = cleared(&p, 1.0, -128.0, 127.0).unwrap();
        assert!(s != 1.0 && (s - 1.0).abs() < 2e-4 && is_clear(&p, f64::from(s), -128.0, 127.0));
    }

    #[test]
    fn what_saturates_does_not_count() {
        let p = [Point { value: 300.5, error: 1e-6 }];
        assert!(is_clear(&p, 1.0, 0.0, 255.0) && !is_clear(&p, 1.0, 0.0, 511.0));
    }

    #[test]
    fn gelu_is_gelu() {
        for (x, y) in [(0.0, 0.0), (1.0, 0.841_344_746_068_543), (-3.0, -0.004_049_694_094_840_7)] {
            assert!((gelu(x, false) - y).abs() < 1e-12, "{x}");
            assert!((gelu(x, true) - y).abs() < 5e-4, "{x}");
        }
    }

    proptest! {
        /// Whatever is within the error rounds to the same code.
        #[test]
        fn a_clear_scale_rounds_alike(values in prop::collection::vec(-9f64..9.0, 1..60), scale in 0.02f32..0.1, e in -1f64..1.0) {
            let points: Vec<Point> = values.iter().map(|v| Point { value: *v, error: 1e-6 }).collect();
            if let Some(s) = cleared(&points, scale, -128.0, 127.0) {
                for p in &points {
                    let exact = (p.value / f64::from(s)).round_ties_even().clamp(-128.0, 127.0);
                    let inverse = (1.0 / f64::from(s)) as f32;
                    let near = ((p.value + e * p.error) as f32 * inverse).round_ties_even().clamp(-128.0, 127.0);
                    prop_assert_eq!(exact, f64::from(near));
                }
            }
        }
    }
}
