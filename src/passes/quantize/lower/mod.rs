//! Lowering: the same numbers from integer operators.
//!
//! A graph between QuantizeLinear and DequantizeLinear leaves it to each runtime how a product of codes is summed,
//! scaled and rounded, and no two agree: a code that falls the other way at a tie moves the codes of every later layer.
//! These passes spell the arithmetic out so that nothing is left to choose. Products become MatMulInteger and
//! ConvInteger, whose sums are exact; everything else becomes element-wise IEEE arithmetic in a fixed order. The result
//! has the same bits in every runtime, at every optimization level, and is the form that runs fastest: per-channel
//! QuantizeLinear and DequantizeLinear are slow in all runtimes that have them.
//!
//! That is target `integer`. Target `qdq` keeps float operators between codes, and arranges them so that runtimes fuse them:
//! one Gemm per layer, per-tensor scales, codes before moves. Which passes belong to which target, and in which order they run,
//! stands in [`pipelines`](crate::passes::pipelines).

pub mod codes_first;
pub mod delay_reshape;
pub mod expand_by_codes;
pub mod keep_reduced;
pub mod layers;
pub mod merge_gemms;
pub mod patches;
pub mod per_channel;
pub mod product_scales;
pub mod products;
pub mod sums;
pub mod wide_codes;

use crate::ir::{DType, Dim, Graph, NodeId, Tensor, ValueId};
use crate::passes::common::sole_reader;
use crate::quant::Code;
use crate::quant::qparams::code_tensor;
use crate::rewrite::{Ref, Under};

/// A QuantizeLinear or DequantizeLinear with constant parameters.
#[derive(Clone, Debug)]
pub(crate) struct Coding {
    pub node: NodeId,
    /// What it reads.
    pub x: ValueId,
    /// What it makes.
    pub y: ValueId,
    /// One, or one per channel.
    pub scales: Vec<f32>,
    /// As many as there are scales.
    pub zeros: Vec<i64>,
    /// Type of the codes.
    pub dtype: DType,
    /// Axis of the channels as the attribute has it.
    pub axis: i64,
}

impl Coding {
    /// The node at `id`, if it is one of the two and its parameters are constant. Blocked scales are left alone.
    pub fn of(g: &Graph, id: NodeId) -> Option<Coding> {
        let n = g.node(id);
        if !(n.op.is("QuantizeLinear") || n.op.is("DequantizeLinear")) || n.int("block_size") != 0 {
            return None;
        }
        let (x, y) = (n.input(0)?, n.out()?);
        let scales = g.constant(n.input(1)?)?.to_f32s()?.into_owned();
        let (zeros, dtype) = match n.input(2) {
            Some(z) => (g.constant(z)?.to_i64s()?, g.constant(z)?.dtype),
            // Biases of 32 bits have none.
            None => (vec![0; scales.len()], g.constant(x)?.dtype),
        };
        if zeros.len() != scales.len() || zeros.is_empty() {
            return None;
        }
        Some(Coding { node: id, x, y, scales, zeros, dtype, axis: n.int("axis") })
    }

    /// The DequantizeLinear that makes `v`.
    pub fn read_back(g: &Graph, v: ValueId) -> Option<Coding> {
        Coding::of(g, g.producer_is(v, "DequantizeLinear")?)
    }

    /// The QuantizeLinear that alone reads `v`.
    pub fn written(g: &Graph, v: ValueId) -> Option<Coding> {
        Coding::of(g, sole_reader(g, v).filter(|q| g.node(*q).op.is("QuantizeLinear"))?)
    }

    /// The one scale and zero point of the tensor, if there is only one.
    pub fn whole(&self) -> Option<(f32, i64)> {
        match (&self.scales[..], &self.zeros[..]) {
            ([s], [z]) => Some((*s, *z)),
            _ => None,
        }
    }

    /// True if the channels are the last axis of `v`.
    pub fn is_last_axis(&self, g: &Graph, v: ValueId) -> bool {
        self.axis == -1 || g.rank(v).is_some_and(|r| self.axis == r as i64 - 1)
    }

    /// True for a scale for each head of `[.., heads, queries, keys]`, and one zero point.
    pub fn is_by_head(&self, g: &Graph) -> bool {
        let third_last = self.axis == -3 || g.rank(self.x).is_some_and(|r| self.axis == r as i64 - 3);
        third_last && self.zeros.iter().all(|z| *z == self.zeros[0])
    }

    /// True for codes of 8 or 16 bits.
    pub fn is_code(&self) -> bool {
        self.is_byte() || self.is_wide()
    }

    /// True for codes of 16 bits.
    pub fn is_wide(&self) -> bool {
        matches!(self.dtype, DType::UINT16 | DType::INT16)
    }

    /// True for codes of 8 bits.
    pub fn is_byte(&self) -> bool {
        matches!(self.dtype, DType::UINT8 | DType::INT8)
    }
}

/// The number of channel `c`: one per channel, or one for all.
pub(crate) fn each<T: Copy>(v: &[T], c: usize) -> T {
    v[c.min(v.len() - 1)]
}

/// Size of an axis counted from the end (-1 is the last), or from the front; `None` unless it is known.
pub(crate) fn size(g: &Graph, v: ValueId, axis: i64) -> Option<i64> {
    let shape = g.shape(v)?;
    match &shape[crate::ir::axis(axis, shape.len())?] {
        Dim::Known(n) => Some(*n),
        _ => None,
    }
}

/// An axis of `v`, counted from the end.
pub(crate) fn from_end(g: &Graph, axis: i64, v: ValueId) -> Option<i64> {
    if axis < 0 { Some(axis) } else { Some(axis - g.rank(v)? as i64) }
}

/// Zero points in the codes' type.
pub(crate) fn zero_tensor(dtype: DType, dims: &[i64], zeros: &[i64]) -> Tensor {
    let code = match dtype {
        DType::INT8 => Code::S8,
        DType::UINT16 => Code::U16,
        DType::INT16 => Code::I16,
        _ => Code::U8,
    };
    code_tensor(code, dims, &zeros.iter().map(|z| *z as i32).collect::<Vec<_>>())
}

/// One number per channel, along the last axis; a scalar where all are the same.
pub(crate) fn factors(v: &[f32]) -> Tensor {
    if v.iter().all(|x| *x == v[0]) { Tensor::scalar_f32(v[0]) } else { Tensor::f32(&[v.len() as i64], v) }
}

impl Under<'_> {
    /// A zero point as a scalar of the codes' type.
    pub(crate) fn zero(&mut self, part: &str, dtype: DType, z: i64) -> Ref {
        self.constant(part, zero_tensor(dtype, &[], &[z]))
    }

    /// QuantizeLinear or DequantizeLinear with a scale of 1.
    pub(crate) fn at_unit_scale(&mut self, op: &str, part: &str, x: Ref, dtype: DType, zero: i64) -> Ref {
        let mut e = self.part(part);
        let (s, z) = (e.scalar("unit", 1.0), e.zero("zero", dtype, zero));
        e.op(op, "", &[x, s, z])
    }
}

/// Zero point of int8 codes that are stored as uint8.
pub(crate) const UNSIGNED_ZERO: i64 = 128;

/// An int8 tensor as uint8, each code larger by [`UNSIGNED_ZERO`].
pub(crate) fn unsigned(t: &Tensor) -> Option<Tensor> {
    Some(Tensor::u8(&t.dims, &t.to_le_bytes()?.iter().map(|b| b ^ 0x80).collect::<Vec<u8>>()))
}

/// An int8 tensor as a matrix of `rows` rows, transposed.
pub(crate) fn transposed(t: &Tensor, rows: usize) -> Option<Tensor> {
    let bytes = t.to_le_bytes()?;
    let cols = bytes.len() / rows.max(1);
    let mut out = vec![0i8; rows * cols];
    for i in 0..rows {
        for j in 0..cols {
            out[j * rows + i] = bytes[i * cols + j] as i8;
        }
    }
    Some(Tensor::i8(&[cols as i64, rows as i64], &out))
}
