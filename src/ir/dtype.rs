//! Element types, with ONNX's own numbers and names.

use std::fmt;

/// An ONNX element type: the number the file holds. Numbers this version does not know are carried, not refused,
/// so that a newer file still makes the round trip; what computes on a tensor asks [`DType::name`] first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DType(pub i32);

macro_rules! dtypes {
    ($($konst:ident = $num:literal, $name:literal, $bits:literal;)*) => {
        impl DType {
            $(pub const $konst: DType = DType($num);)*

            /// The name ONNX's textual syntax uses (`float`, `uint8`, ...), or `None` for a number not in the standard.
            pub fn name(self) -> Option<&'static str> {
                match self.0 { $($num => Some($name),)* _ => None }
            }

            /// The type with this textual name.
            pub fn from_name(name: &str) -> Option<DType> {
                match name { $($name => Some(DType($num)),)* _ => None }
            }

            /// Bits one element takes in `raw_data`; `None` for strings and unknown types.
            pub fn bits(self) -> Option<usize> {
                match self.0 { $($num => if $bits == 0 { None } else { Some($bits) },)* _ => None }
            }
        }
    };
}

dtypes! {
    UNDEFINED = 0, "undefined", 0;
    FLOAT = 1, "float", 32;
    UINT8 = 2, "uint8", 8;
    INT8 = 3, "int8", 8;
    UINT16 = 4, "uint16", 16;
    INT16 = 5, "int16", 16;
    INT32 = 6, "int32", 32;
    INT64 = 7, "int64", 64;
    STRING = 8, "string", 0;
    BOOL = 9, "bool", 8;
    FLOAT16 = 10, "float16", 16;
    DOUBLE = 11, "double", 64;
    UINT32 = 12, "uint32", 32;
    UINT64 = 13, "uint64", 64;
    COMPLEX64 = 14, "complex64", 64;
    COMPLEX128 = 15, "complex128", 128;
    BFLOAT16 = 16, "bfloat16", 16;
    FLOAT8E4M3FN = 17, "float8e4m3fn", 8;
    FLOAT8E4M3FNUZ = 18, "float8e4m3fnuz", 8;
    FLOAT8E5M2 = 19, "float8e5m2", 8;
    FLOAT8E5M2FNUZ = 20, "float8e5m2fnuz", 8;
    UINT4 = 21, "uint4", 4;
    INT4 = 22, "int4", 4;
    FLOAT4E2M1 = 23, "float4e2m1", 4;
    FLOAT8E8M0 = 24, "float8e8m0", 8;
    UINT2 = 25, "uint2", 2;
    INT2 = 26, "int2", 2;
}

impl DType {
    /// True for the IEEE-like types that arithmetic is done in (float, float16, bfloat16, double).
    pub fn is_float(self) -> bool {
        matches!(self, DType::FLOAT | DType::FLOAT16 | DType::BFLOAT16 | DType::DOUBLE)
    }

    /// True for signed and unsigned integers of any width; not for bool.
    pub fn is_int(self) -> bool {
        matches!(
            self,
            DType::UINT8
                | DType::INT8
                | DType::UINT16
                | DType::INT16
                | DType::INT32
                | DType::INT64
                | DType::UINT32
                | DType::UINT64
                | DType::UINT4
                | DType::INT4
                | DType::UINT2
                | DType::INT2
        )
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(n) => f.write_str(n),
            None => write!(f, "type#{}", self.0),
        }
    }
}

impl fmt::Debug for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
