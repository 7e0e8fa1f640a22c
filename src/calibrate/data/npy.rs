//! The NumPy formats: `.npy`, one array, and `.npz`, a zip of them.
//!
//! Large files are mapped: an array whose bytes lie in the file as they are (every `.npy`; an `.npz` from `numpy.savez`) is read
//! row by row, and memory does not grow with the file. A compressed member (`savez_compressed`) is unpacked whole.
//! Source: the format description in NumPy's documentation, `numpy.lib.format`, versions 1.0 to 3.0.

use std::io::{Cursor, Read};
use std::path::Path;

use bytes::Bytes;
use half::{bf16, f16};

use super::DataError;
use crate::budget;
use crate::file;

/// An element type NumPy writes and this program reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Elem {
    F16,
    /// As ml_dtypes writes it: NumPy has no name for it but "two bytes".
    Bf16,
    F32,
    F64,
    I8,
    I16,
    I32,
    I64,
    U8,
    U16,
    U32,
    U64,
    Bool,
}

impl Elem {
    fn from_descr(code: &str) -> Option<Elem> {
        Some(match code {
            "f2" => Elem::F16,
            "V2" => Elem::Bf16,
            "f4" => Elem::F32,
            "f8" => Elem::F64,
            "i1" => Elem::I8,
            "i2" => Elem::I16,
            "i4" => Elem::I32,
            "i8" => Elem::I64,
            "u1" => Elem::U8,
            "u2" => Elem::U16,
            "u4" => Elem::U32,
            "u8" => Elem::U64,
            "b1" => Elem::Bool,
            _ => return None,
        })
    }

    /// The type that NumPy calls `descr`, and whether its bytes are in the order of networks.
    pub(super) fn of(descr: &str) -> Result<(Elem, bool), String> {
        let (order, code) = descr.split_at_checked(1).ok_or("it names no element type")?;
        let elem = Elem::from_descr(code)
            .ok_or_else(|| format!("its element type {descr} is not one of float, int, uint, bool"))?;
        Ok((elem, order == ">"))
    }

    /// NumPy's name of the type.
    pub(super) fn name(self) -> &'static str {
        match self {
            Elem::F16 => "float16",
            Elem::Bf16 => "bfloat16",
            Elem::F32 => "float32",
            Elem::F64 => "float64",
            Elem::I8 => "int8",
            Elem::I16 => "int16",
            Elem::I32 => "int32",
            Elem::I64 => "int64",
            Elem::U8 => "uint8",
            Elem::U16 => "uint16",
            Elem::U32 => "uint32",
            Elem::U64 => "uint64",
            Elem::Bool => "bool",
        }
    }

    pub(super) fn width(self) -> usize {
        match self {
            Elem::I8 | Elem::U8 | Elem::Bool => 1,
            Elem::F16 | Elem::Bf16 | Elem::I16 | Elem::U16 => 2,
            Elem::F32 | Elem::I32 | Elem::U32 => 4,
            Elem::F64 | Elem::I64 | Elem::U64 => 8,
        }
    }
}

/// Elements in C order, widened without loss.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Numbers {
    Float(Vec<f64>),
    /// Integers, and bools as 0 and 1; 128 bits hold every int64 and uint64.
    Int(Vec<i128>),
}

/// One array: its header, and its elements where the file has them.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Npy {
    pub(super) elem: Elem,
    pub(super) shape: Vec<usize>,
    big_endian: bool,
    fortran: bool,
    data: Bytes,
}

/// Checks that the file after an array has not been written to since it was opened.
pub(super) fn intact(a: &Npy) -> Result<(), DataError> {
    file::intact([&a.data]).map_err(|path| DataError::Changed { path })
}

impl Npy {
    /// An array in C order of the type that NumPy calls `descr` (`<f4`); the sentence for an error names that.
    pub(super) fn of(descr: &str, shape: Vec<usize>, data: Bytes) -> Result<Npy, String> {
        let (elem, big_endian) = Elem::of(descr)?;
        Ok(Npy { elem, shape, big_endian, fortran: false, data })
    }

    /// Reads the header and checks that the elements are all there. The error is a sentence for
    /// [`DataError::Malformed`].
    pub(super) fn parse(bytes: Bytes) -> Result<Npy, String> {
        let head = bytes.get(..8).filter(|h| h[..6] == *b"\x93NUMPY").ok_or("not in NumPy's .npy format")?;
        let (start, len) = match head[6] {
            1 => (10, bytes.get(8..10).map(|b| u16::from_le_bytes([b[0], b[1]]) as usize)),
            2 | 3 => (12, bytes.get(8..12).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]) as usize)),
            v => return Err(format!(".npy version {v} is not known")),
        };
        let end =
            len.and_then(|l| l.checked_add(start)).filter(|e| *e <= bytes.len()).ok_or("its header is cut off")?;
        let text = std::str::from_utf8(&bytes[start..end]).map_err(|_| "its header is not text")?;
        let descr = quoted(entry(text, "descr")?).ok_or("its elements are records, not numbers")?;
        let (elem, big_endian) = Elem::of(descr)?;
        let fortran = match entry(text, "fortran_order")? {
            order if order.starts_with("True") => true,
            order if order.starts_with("False") => false,
            _ => return Err("its fortran_order is neither True nor False".to_owned()),
        };
        let inner =
            entry(text, "shape")?.strip_prefix('(').and_then(|s| s.split_once(')')).ok_or("its shape is no tuple")?.0;
        let shape = inner
            .split(',')
            .map(str::trim)
            .filter(|s| !s.is_empty())
            .map(|s| s.parse::<usize>().map_err(|_| format!("its shape ({inner}) is not made of sizes")))
            .collect::<Result<Vec<_>, _>>()?;
        let need = shape.iter().try_fold(elem.width(), |a, d| a.checked_mul(*d)).ok_or("its shape is too large")?;
        let data = bytes.slice(end..);
        if data.len() < need {
            return Err(format!("its elements need {need} bytes, the file has {}: it is cut off", data.len()));
        }
        Ok(Npy { elem, shape, big_endian, fortran, data: data.slice(..need) })
    }

    /// The elements as the file has them.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.data
    }

    /// Samples: the leading size; 1 for a scalar.
    pub(super) fn rows(&self) -> usize {
        self.shape.first().copied().unwrap_or(1)
    }

    /// The elements of the given rows (indices into the leading axis, each below [`rows`](Npy::rows)), one row after the
    /// other, each in C order.
    pub(super) fn gather(&self, rows: &[usize]) -> Numbers {
        let per_row: usize = self.shape.iter().skip(1).product();
        let elements = rows.iter().flat_map(|r| (0..per_row).map(move |j| (*r, j)));
        let at = |(row, j): (usize, usize)| if self.fortran { self.fortran_offset(row, j) } else { row * per_row + j };
        macro_rules! ints {
            ($t:ty) => {
                Numbers::Int(elements.map(|e| <$t>::from_le_bytes(self.element(at(e))) as i128).collect())
            };
        }
        match self.elem {
            Elem::F16 => Numbers::Float(elements.map(|e| f16::from_le_bytes(self.element(at(e))).to_f64()).collect()),
            Elem::Bf16 => Numbers::Float(elements.map(|e| bf16::from_le_bytes(self.element(at(e))).to_f64()).collect()),
            Elem::F32 => Numbers::Float(elements.map(|e| f64::from(f32::from_le_bytes(self.element(at(e))))).collect()),
            Elem::F64 => Numbers::Float(elements.map(|e| f64::from_le_bytes(self.element(at(e)))).collect()),
            Elem::I8 => ints!(i8),
            Elem::I16 => ints!(i16),
            Elem::I32 => ints!(i32),
            Elem::I64 => ints!(i64),
            Elem::U8 => ints!(u8),
            Elem::U16 => ints!(u16),
            Elem::U32 => ints!(u32),
            Elem::U64 => ints!(u64),
            Elem::Bool => Numbers::Int(elements.map(|e| i128::from(self.element::<1>(at(e))[0] != 0)).collect()),
        }
    }

    /// The bytes of one element, least significant first.
    fn element<const N: usize>(&self, index: usize) -> [u8; N] {
        let mut b = [0; N];
        b.copy_from_slice(&self.data[index * N..][..N]);
        if self.big_endian {
            b.reverse();
        }
        b
    }

    /// Where the `j`-th element (in C order) of a row lies in a column-major array.
    fn fortran_offset(&self, row: usize, mut j: usize) -> usize {
        let mut offset = 0;
        for (axis, size) in self.shape.iter().enumerate().skip(1).rev() {
            let stride: usize = self.shape[..axis].iter().product();
            offset += (j % size) * stride;
            j /= size;
        }
        offset + row
    }
}

/// What follows `'key':` in the dictionary of an .npy header.
fn entry<'t>(text: &'t str, key: &str) -> Result<&'t str, String> {
    [format!("'{key}'"), format!("\"{key}\"")]
        .iter()
        .find_map(|k| Some(text.split_once(k.as_str())?.1.trim_start().strip_prefix(':')?.trim_start()))
        .ok_or_else(|| format!("its header has no {key}"))
}

/// The text between a pair of quotes at the start.
fn quoted(s: &str) -> Option<&str> {
    let quote = s.chars().next().filter(|c| matches!(c, '\'' | '"'))?;
    Some(s[1..].split_once(quote)?.0)
}

/// The arrays of an .npz file, by name, in file order.
pub(super) fn read_npz(path: &Path, bytes: &Bytes) -> Result<Vec<(String, Npy)>, DataError> {
    let malformed =
        |array: &str, reason: String| DataError::Malformed { path: path.into(), array: array.into(), reason };
    let broken = |e: zip::result::ZipError| DataError::Archive { path: path.into(), reason: e.to_string() };
    let mut zip = zip::ZipArchive::new(Cursor::new(bytes.clone())).map_err(broken)?;
    let mut arrays = Vec::new();
    for i in 0..zip.len() {
        let mut member = zip.by_index(i).map_err(broken)?;
        let Some(name) = member.name().strip_suffix(".npy").map(str::to_string) else { continue };
        let data = if member.compression() == zip::CompressionMethod::Stored {
            let start = usize::try_from(member.data_start()).ok();
            let end = start.and_then(|s| s.checked_add(usize::try_from(member.size()).ok()?));
            match (start, end) {
                // A member that is unpacked is checked as it is read.
                (Some(s), Some(e)) if e <= bytes.len() && crc32fast::hash(&bytes[s..e]) == member.crc32() => {
                    bytes.slice(s..e)
                }
                (Some(_), Some(e)) if e <= bytes.len() => {
                    let why = "its checksum does not fit: the file is damaged; copy it again, or write it again";
                    return Err(malformed(&name, why.to_string()));
                }
                _ => return Err(malformed(&name, "it lies outside of the file".to_string())),
            }
        } else {
            // Not reserved by the size the archive claims: a false one must not ask for that memory.
            let most = budget::memory() as u64 / 4;
            let mut v = Vec::new();
            (&mut member).take(most).read_to_end(&mut v).map_err(|e| malformed(&name, e.to_string()))?;
            if v.len() as u64 == most {
                let what = || format!("{}, array {name:?}: unpacked, it", path.display());
                budget::afford(member.size().max(most).checked_mul(4).or(Some(u64::MAX)), what)?;
            }
            Bytes::from(v)
        };
        let array = Npy::parse(data).map_err(|e| malformed(&name, e))?;
        arrays.push((name, array));
    }
    Ok(arrays)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn npy(descr: &str, fortran: &str, shape: &str, data: &[u8]) -> Bytes {
        let mut head = format!("{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}");
        head.push('\n');
        let mut v = b"\x93NUMPY\x01\x00".to_vec();
        v.extend((head.len() as u16).to_le_bytes());
        v.extend(head.as_bytes());
        v.extend(data);
        v.into()
    }

    #[test]
    fn column_major_and_big_endian_read_as_c_order() {
        let c = Npy::parse(npy("'<i2'", "False", "(2, 3)", &[0, 0, 1, 0, 2, 0, 3, 0, 4, 0, 5, 0])).unwrap();
        let f = Npy::parse(npy("'>i2'", "True", "(2, 3)", &[0, 0, 0, 3, 0, 1, 0, 4, 0, 2, 0, 5])).unwrap();
        assert_eq!(c.gather(&[0, 1]), Numbers::Int(vec![0, 1, 2, 3, 4, 5]));
        assert_eq!(c.gather(&[0, 1]), f.gather(&[0, 1]));
        assert_eq!(f.gather(&[1]), Numbers::Int(vec![3, 4, 5]));
    }

    #[test]
    fn an_order_that_is_no_truth_value_is_refused() {
        for order in ["1", "true", "None"] {
            let e = Npy::parse(npy("'<i2'", order, "(1,)", &[0, 0])).unwrap_err();
            assert!(e.contains("fortran_order"), "{order}: {e}");
        }
    }

    #[test]
    fn column_major_of_three_axes() {
        // element (i, j, k) of shape (2, 2, 2) has the value 4i + 2j + k; column-major order runs i fastest.
        let f = Npy::parse(npy("'|u1'", "True", "(2, 2, 2)", &[0, 4, 2, 6, 1, 5, 3, 7])).unwrap();
        assert_eq!(f.gather(&[0, 1]), Numbers::Int((0..8).collect()));
    }

    #[test]
    fn every_type_reads() {
        let cases: [(&str, &[u8], Numbers); 6] = [
            ("'<f2'", &[0x00, 0x3C], Numbers::Float(vec![1.0])),
            ("'<f4'", &[0, 0, 0x80, 0x3F], Numbers::Float(vec![1.0])),
            ("'<f8'", &[0, 0, 0, 0, 0, 0, 0xF0, 0x3F], Numbers::Float(vec![1.0])),
            ("'|b1'", &[1], Numbers::Int(vec![1])),
            ("'|i1'", &[0xFF], Numbers::Int(vec![-1])),
            ("'<u8'", &[0xFF; 8], Numbers::Int(vec![u64::MAX as i128])),
        ];
        for (descr, data, want) in cases {
            assert_eq!(Npy::parse(npy(descr, "False", "(1,)", data)).unwrap().gather(&[0]), want, "{descr}");
        }
    }

    #[test]
    fn damage_is_named() {
        let say = |b: Bytes| Npy::parse(b).unwrap_err();
        assert!(say(Bytes::from_static(b"PNG")).contains("not in NumPy's"));
        assert!(say(npy("'<f4'", "False", "(2,)", &[0; 4])).contains("cut off"));
        assert!(say(npy("'<c8'", "False", "(1,)", &[0; 8])).contains("<c8"));
        assert!(say(npy("[('a', '<f4')]", "False", "(1,)", &[0; 4])).contains("records"));
        assert!(say(npy("'<f4'", "False", "(-1,)", &[])).contains("sizes"));
        assert!(say(npy("'<f4'", "False", "(99999999999, 99999999999)", &[])).contains("too large"));
        let whole = npy("'<f4'", "False", "(1,)", &[0; 4]);
        for cut in 0..whole.len() {
            assert!(Npy::parse(whole.slice(..cut)).is_err(), "cut at {cut}");
        }
    }
}
