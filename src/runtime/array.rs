//! A tensor of known type and shape, in memory.

use std::borrow::Cow;
use std::ops::Range;

use half::f16;
use ndarray::{ArrayD, Axis, IxDyn, Slice};

use crate::ir::{DType, Tensor};

/// Why an [`Array`] could not be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ArrayError {
    #[error("{len} elements do not fill the shape {dims:?}; give exactly {want}")]
    Length { len: usize, dims: Vec<usize>, want: usize },
    #[error("rows {start}..{end} are not in the shape {dims:?}")]
    Range { start: usize, end: usize, dims: Vec<usize> },
    #[error("cannot join {second} {second_dims:?} to {first} {first_dims:?}: all but the first size must agree")]
    Concat { first: DType, first_dims: Vec<usize>, second: DType, second_dims: Vec<usize> },
    #[error("nothing to join: give at least one array")]
    Empty,
    #[error("elements of type {0} cannot be held in memory here")]
    Type(DType),
    #[error("the tensor's data are missing or do not fit its shape {0:?}")]
    Payload(Vec<i64>),
}

/// An element type an [`Array`] can hold.
pub trait Element: Copy + Send + Sync + 'static + sealed::Sealed {
    /// ONNX's number for this type.
    const DTYPE: DType;
    /// The array as elements of this type; `None` if it holds another type.
    fn of(array: &Array) -> Option<&ArrayD<Self>>;
    /// Wraps without copying.
    fn wrap(array: ArrayD<Self>) -> Array;
    /// This element as f32: exact for types of up to 16 bits, rounded to nearest for the wider ones; bools are 0 and 1.
    fn to_f32(self) -> f32;
}

mod sealed {
    pub trait Sealed {}
}

macro_rules! elements {
    ($($variant:ident, $ty:ty, $dtype:ident, $x:ident => $f32:expr;)*) => {
        /// A tensor: an element type, a shape, the elements. What data sources, the runtime, calibration and
        /// verification exchange. Made by [`Array::new`] or `From<ArrayD<_>>`, both of which keep the elements in row-major order.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Array { $($variant(ArrayD<$ty>),)* }

        $(
            impl sealed::Sealed for $ty {}

            impl Element for $ty {
                const DTYPE: DType = DType::$dtype;

                fn of(array: &Array) -> Option<&ArrayD<$ty>> {
                    match array { Array::$variant(a) => Some(a), _ => None }
                }

                fn wrap(array: ArrayD<$ty>) -> Array {
                    Array::$variant(if array.is_standard_layout() { array } else { array.as_standard_layout().into_owned() })
                }

                fn to_f32(self) -> f32 {
                    let $x = self;
                    $f32
                }
            }
        )*

        /// Runs the same expression on whatever the array holds.
        macro_rules! each {
            ($array:expr, $a:ident => $body:expr) => { match $array { $(Array::$variant($a) => $body,)* } };
        }

        fn dtype_of(array: &Array) -> DType {
            match array { $(Array::$variant(_) => <$ty as Element>::DTYPE,)* }
        }
    };
}

elements! {
    F32, f32, FLOAT, x => x;
    F64, f64, DOUBLE, x => x as f32;
    F16, f16, FLOAT16, x => x.to_f32();
    I64, i64, INT64, x => x as f32;
    I32, i32, INT32, x => x as f32;
    I16, i16, INT16, x => x as f32;
    I8, i8, INT8, x => x as f32;
    U64, u64, UINT64, x => x as f32;
    U32, u32, UINT32, x => x as f32;
    U16, u16, UINT16, x => x as f32;
    U8, u8, UINT8, x => x as f32;
    Bool, bool, BOOL, x => x as u8 as f32;
}

impl<T: Element> From<ArrayD<T>> for Array {
    fn from(a: ArrayD<T>) -> Array {
        T::wrap(a)
    }
}

impl Array {
    /// An array of these sizes (empty: a scalar) over elements in row-major order.
    ///
    /// # Errors
    /// If the elements do not fill the sizes.
    pub fn new<T: Element>(dims: &[usize], elements: Vec<T>) -> Result<Array, ArrayError> {
        let len = elements.len();
        ArrayD::from_shape_vec(IxDyn(dims), elements).map(T::wrap).map_err(|_| ArrayError::Length {
            len,
            dims: dims.to_vec(),
            want: dims.iter().product(),
        })
    }

    /// A single number, without axes.
    pub fn scalar<T: Element>(x: T) -> Array {
        T::wrap(ArrayD::from_elem(IxDyn(&[]), x))
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        dtype_of(self)
    }

    /// Sizes, outermost first; empty for a scalar.
    pub fn dims(&self) -> &[usize] {
        each!(self, a => a.shape())
    }

    /// The number of axes.
    pub fn rank(&self) -> usize {
        self.dims().len()
    }

    /// Number of elements; 1 for a scalar.
    pub fn len(&self) -> usize {
        each!(self, a => a.len())
    }

    /// True if it has no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The elements in row-major order; `None` if they are of another type.
    pub fn values<T: Element>(&self) -> Option<Cow<'_, [T]>> {
        T::of(self).map(row_major)
    }

    /// The elements in row-major order as f32 (see [`Element::to_f32`]); borrowed when they are f32.
    pub fn f32s(&self) -> Cow<'_, [f32]> {
        match self {
            Array::F32(a) => row_major(a),
            other => each!(other, a => Cow::Owned(a.iter().map(|x| x.to_f32()).collect())),
        }
    }

    /// The same elements under another shape of as many elements.
    ///
    /// # Errors
    /// If the sizes have another number of elements.
    pub fn reshape(self, dims: &[usize]) -> Result<Array, ArrayError> {
        let len = self.len();
        let want: usize = dims.iter().product();
        if len != want {
            return Err(ArrayError::Length { len, dims: dims.to_vec(), want });
        }
        Ok(each!(self, a => row_major_owned(a).into_shape_with_order(IxDyn(dims)).expect("length checked").into()))
    }

    /// Rows `range` along axis 0, copied. A scalar has no rows.
    ///
    /// # Errors
    /// If the range goes beyond the rows.
    pub fn rows(&self, range: Range<usize>) -> Result<Array, ArrayError> {
        if range.start > range.end || self.dims().first().is_none_or(|n| range.end > *n) {
            return Err(ArrayError::Range { start: range.start, end: range.end, dims: self.dims().to_vec() });
        }
        Ok(each!(self, a => a.slice_axis(Axis(0), Slice::from(range)).to_owned().into()))
    }

    /// The rows along axis 0 at these places, in this order. A scalar has no rows.
    ///
    /// # Errors
    /// If a place is not on axis 0.
    pub fn select(&self, places: &[usize]) -> Result<Array, ArrayError> {
        let rows = self.dims().first().copied().unwrap_or(0);
        if let Some(p) = places.iter().copied().find(|p| *p >= rows).or((self.rank() == 0).then_some(0)) {
            return Err(ArrayError::Range { start: p, end: p + 1, dims: self.dims().to_vec() });
        }
        Ok(each!(self, a => a.select(Axis(0), places).into()))
    }

    /// Joins arrays of one type along axis 0; all other sizes must agree.
    ///
    /// # Errors
    /// If there are none, or types or other sizes differ.
    pub fn concat(parts: &[Array]) -> Result<Array, ArrayError> {
        let first = parts.first().ok_or(ArrayError::Empty)?;
        for p in parts {
            if p.dtype() != first.dtype() || p.rank() == 0 || p.dims().get(1..) != first.dims().get(1..) {
                return Err(ArrayError::Concat {
                    first: first.dtype(),
                    first_dims: first.dims().to_vec(),
                    second: p.dtype(),
                    second_dims: p.dims().to_vec(),
                });
            }
        }
        fn join<T: Element>(_: &ArrayD<T>, parts: &[Array]) -> Array {
            let views: Vec<_> = parts.iter().filter_map(|p| T::of(p)).map(|a| a.view()).collect();
            ndarray::concatenate(Axis(0), &views).expect("types and shapes checked").into()
        }
        Ok(each!(first, a => join(a, parts)))
    }

    /// A constant of the IR as an array. 4-bit integers widen to 8 bits, bfloat16 to f32.
    ///
    /// # Errors
    /// If the tensor's data are missing, do not fit its sizes, or are of a type that is not held in memory.
    pub fn from_tensor(t: &Tensor) -> Result<Array, ArrayError> {
        let bad = || ArrayError::Payload(t.dims.clone());
        let dims: Vec<usize> =
            t.dims.iter().map(|d| usize::try_from(*d)).collect::<Result<_, _>>().map_err(|_| bad())?;
        let floats = || t.to_f32s().map(Cow::into_owned).ok_or_else(bad);
        let ints = || t.to_i64s().ok_or_else(bad);
        macro_rules! cast {
            ($ty:ty) => {
                Array::new(&dims, ints()?.into_iter().map(|x| x as $ty).collect::<Vec<$ty>>())
            };
        }
        match t.dtype {
            DType::FLOAT | DType::BFLOAT16 => Array::new(&dims, floats()?),
            DType::FLOAT16 => Array::new(&dims, floats()?.into_iter().map(f16::from_f32).collect()),
            DType::INT64 => Array::new(&dims, ints()?),
            DType::INT32 => cast!(i32),
            DType::INT16 => cast!(i16),
            DType::INT8 | DType::INT4 => cast!(i8),
            DType::UINT32 => cast!(u32),
            DType::UINT16 => cast!(u16),
            DType::UINT8 | DType::UINT4 => cast!(u8),
            DType::BOOL => Array::new(&dims, ints()?.into_iter().map(|x| x != 0).collect()),
            DType::DOUBLE | DType::UINT64 => {
                let b = t.to_le_bytes().filter(|b| b.len() == t.byte_len()).ok_or_else(bad)?;
                let words = b.chunks_exact(8).map(|c| u64::from_le_bytes(c.try_into().expect("8 bytes")));
                if t.dtype == DType::UINT64 {
                    Array::new(&dims, words.collect())
                } else {
                    Array::new(&dims, words.map(f64::from_bits).collect())
                }
            }
            other => Err(ArrayError::Type(other)),
        }
    }
}

fn row_major<T: Element>(a: &ArrayD<T>) -> Cow<'_, [T]> {
    match a.as_slice() {
        Some(s) => Cow::Borrowed(s),
        None => Cow::Owned(a.iter().copied().collect()),
    }
}

fn row_major_owned<T: Element>(a: ArrayD<T>) -> ArrayD<T> {
    if a.is_standard_layout() { a } else { a.as_standard_layout().into_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_and_concat_undo_each_other() {
        let a = Array::new(&[4, 2], (0..8i32).collect()).unwrap();
        let parts = [a.rows(0..1).unwrap(), a.rows(1..4).unwrap(), a.rows(4..4).unwrap()];
        assert_eq!(parts[1].dims(), [3, 2]);
        assert_eq!(parts[1].values::<i32>().unwrap()[..2], [2, 3]);
        assert_eq!(Array::concat(&parts).unwrap(), a);
    }

    #[test]
    fn mismatches_are_errors_that_name_both_sides() {
        let a = Array::new(&[1, 2], vec![1f32, 2.]).unwrap();
        let b = Array::new(&[1, 3], vec![1f32, 2., 3.]).unwrap();
        let c = Array::new(&[1, 2], vec![1u8, 2]).unwrap();
        assert!(Array::concat(&[a.clone(), b]).unwrap_err().to_string().contains("[1, 3]"));
        assert!(Array::concat(&[a.clone(), c]).unwrap_err().to_string().contains("uint8"));
        assert!(Array::concat(&[Array::scalar(1f32)]).is_err());
        assert_eq!(Array::concat(&[]), Err(ArrayError::Empty));
        assert!(a.rows(0..2).is_err());
        assert!(Array::scalar(1f32).rows(0..1).is_err());
        assert!(Array::new(&[2, 2], vec![1f32]).is_err());
        assert!(a.reshape(&[3]).is_err());
    }

    #[test]
    fn a_transposed_ndarray_is_stored_row_major() {
        let t = ndarray::arr2(&[[1f32, 2., 3.], [4., 5., 6.]]).reversed_axes().into_dyn();
        let a = Array::from(t);
        assert_eq!(a.dims(), [3, 2]);
        assert_eq!(a.f32s()[..], [1., 4., 2., 5., 3., 6.]);
        assert!(matches!(a.f32s(), Cow::Borrowed(_)));
    }

    #[test]
    fn tensors_of_every_type_arrive() {
        let four = Tensor::raw(DType::INT4, &[3], vec![0xF1u8, 0x07]);
        assert_eq!(Array::from_tensor(&four).unwrap().values::<i8>().unwrap()[..], [1, -1, 7]);
        let wide = Tensor::raw(DType::UINT64, &[1], u64::MAX.to_le_bytes().to_vec());
        assert_eq!(Array::from_tensor(&wide).unwrap().values::<u64>().unwrap()[..], [u64::MAX]);
        let double = Tensor::raw(DType::DOUBLE, &[], 0.1f64.to_le_bytes().to_vec());
        assert_eq!(Array::from_tensor(&double).unwrap(), Array::scalar(0.1f64));
        assert_eq!(Array::from_tensor(&Tensor::bool(&[1], &[true])).unwrap().f32s()[..], [1.]);
        let gone = Tensor { dims: vec![2], ..Tensor::raw(DType::FLOAT, &[1], vec![0; 4]) };
        assert!(Array::from_tensor(&gone).is_err());
    }
}
