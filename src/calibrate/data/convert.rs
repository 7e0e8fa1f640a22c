//! Numbers from a file into the element type a model's input has.

use half::{bf16, f16};

use super::npy::Numbers;
use crate::ir::DType;
use crate::runtime::Array;

/// What stops a conversion: the position of the element and its value.
#[derive(Debug, PartialEq)]
pub(super) enum Refused {
    /// NaN or infinite, or beyond the largest value of the target.
    NonFinite { at: usize, value: f64 },
    /// The target has no such value.
    Lossy { at: usize, value: String },
    /// Inputs of this type are not fed.
    Type,
    /// The number of elements is not the shape's.
    Length,
}

/// Elements as an array of `dtype` and `shape`. Floats become narrower floats by rounding; every other change of type has to
/// keep every value exactly.
///
/// There is no array of bfloat16: what has this type is float32 that it holds exactly.
///
/// `mask`: minus infinity is a value as any other.
pub(super) fn to_array(numbers: Numbers, dtype: DType, shape: &[usize], mask: bool) -> Result<Array, Refused> {
    if let Numbers::Float(v) = &numbers
        && let Some(at) = v.iter().position(|x| !(x.is_finite() || mask && *x == f64::NEG_INFINITY))
    {
        return Err(Refused::NonFinite { at, value: v[at] });
    }
    macro_rules! floats {
        ($from:expr, $back:expr) => {{
            let from = $from;
            let back = $back;
            let v = match &numbers {
                Numbers::Float(v) => narrow(v, |x| from(x), |y| back(y))?,
                Numbers::Int(v) => {
                    each(v, |x| Some(from(x as f64)).filter(|y| back(*y).is_finite() && back(*y) as i128 == x))?
                }
            };
            Array::new(shape, v).map_err(|_| Refused::Length)
        }};
    }
    macro_rules! ints {
        ($t:ty) => {{
            let v = match &numbers {
                Numbers::Int(v) => each(v, |x| <$t>::try_from(x).ok())?,
                Numbers::Float(v) => {
                    each(v, |x| Some(x as i128).filter(|n| *n as f64 == x).and_then(|n| <$t>::try_from(n).ok()))?
                }
            };
            Array::new(shape, v).map_err(|_| Refused::Length)
        }};
    }
    match dtype {
        DType::FLOAT => floats!(|x: f64| x as f32, |y: f32| f64::from(y)),
        DType::DOUBLE => floats!(|x: f64| x, |y: f64| y),
        DType::BFLOAT16 => floats!(|x: f64| bf16::from_f64(x).to_f32(), |y: f32| f64::from(y)),
        DType::FLOAT16 => floats!(f16::from_f64, |y: f16| y.to_f64()),
        DType::INT64 => ints!(i64),
        DType::INT32 => ints!(i32),
        DType::INT16 => ints!(i16),
        DType::INT8 => ints!(i8),
        DType::UINT64 => ints!(u64),
        DType::UINT32 => ints!(u32),
        DType::UINT16 => ints!(u16),
        DType::UINT8 => ints!(u8),
        DType::BOOL => {
            let v = match &numbers {
                Numbers::Int(v) => each(v, |x| (x == 0 || x == 1).then_some(x == 1))?,
                Numbers::Float(v) => each(v, |x| (x == 0.0 || x == 1.0).then_some(x == 1.0))?,
            };
            Array::new(shape, v).map_err(|_| Refused::Length)
        }
        _ => Err(Refused::Type),
    }
}

/// Rounds floats to a narrower type; a finite value that becomes infinite is refused.
fn narrow<T: Copy>(v: &[f64], from: impl Fn(f64) -> T, back: impl Fn(T) -> f64) -> Result<Vec<T>, Refused> {
    v.iter()
        .enumerate()
        .map(|(at, x)| {
            Some(from(*x))
                .filter(|y| back(*y).is_finite() || !x.is_finite())
                .ok_or(Refused::NonFinite { at, value: *x })
        })
        .collect()
}

fn each<S: Copy + ToString, T>(v: &[S], f: impl Fn(S) -> Option<T>) -> Result<Vec<T>, Refused> {
    v.iter().enumerate().map(|(at, x)| f(*x).ok_or_else(|| Refused::Lossy { at, value: x.to_string() })).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_narrow_but_integers_must_fit() {
        let third = Numbers::Float(vec![1.0 / 3.0]);
        assert_eq!(
            to_array(third.clone(), DType::FLOAT, &[1], false).map(|a| matches!(a, Array::F32(v) if v[0] == 1.0 / 3.0)),
            Ok(true)
        );
        assert_eq!(
            to_array(third, DType::INT64, &[1], false),
            Err(Refused::Lossy { at: 0, value: (1.0f64 / 3.0).to_string() })
        );
        assert!(
            matches!(to_array(Numbers::Float(vec![-4.0]), DType::INT8, &[1], false), Ok(Array::I8(v)) if v[0] == -4)
        );
        assert!(matches!(
            to_array(Numbers::Int(vec![0, 256]), DType::UINT8, &[2], false),
            Err(Refused::Lossy { at: 1, .. })
        ));
        assert!(
            matches!(to_array(Numbers::Int(vec![255]), DType::FLOAT, &[1], false), Ok(Array::F32(v)) if v[0] == 255.0)
        );
        // 2^24 + 1 is the first integer without a float32.
        assert!(matches!(to_array(Numbers::Int(vec![1 << 24]), DType::FLOAT, &[1], false), Ok(Array::F32(_))));
        assert!(matches!(
            to_array(Numbers::Int(vec![(1 << 24) + 1]), DType::FLOAT, &[1], false),
            Err(Refused::Lossy { .. })
        ));
        assert!(matches!(to_array(Numbers::Int(vec![2]), DType::BOOL, &[1], false), Err(Refused::Lossy { .. })));
    }

    #[test]
    fn nan_infinity_and_overflow_are_found() {
        let nan = to_array(Numbers::Float(vec![0.0, f64::NAN]), DType::FLOAT, &[2], false);
        assert!(matches!(nan, Err(Refused::NonFinite { at: 1, value }) if value.is_nan()));
        assert!(matches!(
            to_array(Numbers::Float(vec![1e300]), DType::FLOAT, &[1], false),
            Err(Refused::NonFinite { at: 0, .. })
        ));
        assert!(matches!(
            to_array(Numbers::Float(vec![7e4]), DType::FLOAT16, &[1], false),
            Err(Refused::NonFinite { .. })
        ));
        let rounded = to_array(Numbers::Float(vec![1.0 + 1.0 / 512.0, 3.0]), DType::BFLOAT16, &[2], false);
        assert!(matches!(rounded, Ok(Array::F32(v)) if v[0] == 1.0 && v[1] == 3.0));
        assert_eq!(to_array(Numbers::Float(vec![0.0]), DType::STRING, &[1], false), Err(Refused::Type));
        assert_eq!(to_array(Numbers::Float(vec![0.0]), DType::FLOAT, &[2], false), Err(Refused::Length));
    }

    #[test]
    fn minus_infinity_is_a_value_of_masks_alone() {
        let hidden = || Numbers::Float(vec![0.0, f64::NEG_INFINITY]);
        let get = |n, ty, mask| to_array(n, ty, &[2], mask);
        assert!(matches!(get(hidden(), DType::FLOAT, false), Err(Refused::NonFinite { at: 1, .. })));
        assert!(matches!(get(hidden(), DType::FLOAT, true), Ok(Array::F32(v)) if v[1] == f32::NEG_INFINITY));
        assert!(matches!(get(hidden(), DType::FLOAT16, true), Ok(Array::F16(v)) if v[1] == f16::NEG_INFINITY));
        for bad in [f64::NAN, f64::INFINITY, -1e300] {
            assert!(matches!(
                get(Numbers::Float(vec![0.0, bad]), DType::FLOAT, true),
                Err(Refused::NonFinite { at: 1, .. })
            ));
        }
    }
}
