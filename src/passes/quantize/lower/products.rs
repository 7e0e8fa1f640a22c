//! `integer-products`: MatMul, Gemm and Conv of codes become MatMulInteger and ConvInteger.
//!
//! *What it does.* The codes are multiplied and summed in int32, the int32 bias is added there, and one Mul by
//! `s_x s_w[c] / s_y[c]` brings the sum to the scale of the result's codes, which a QuantizeLinear of scale 1 rounds.
//! Zero points of the result that differ between channels go into the bias. Where the result is not quantized right
//! after the layer, the Mul is by `s_x s_w[c]` and the result stays float; a constant factor per channel that alone reads
//! it is joined with that Mul.
//!
//! *When it fires.* For a MatMul, Gemm or Conv whose operands come from DequantizeLinear: the first with one scale, the
//! second constant with one scale per output channel, or computed with one scale. A float bias stays an Add of floats. (What
//! ConvInteger pads with is the zero point, in tract and onnxruntime alike.)
//!
//! *Why it is correct.* `sum (s_x (q_x - z_x)) (s_w q_w) + s_x s_w b = s_x s_w (sum (q_x - z_x) q_w + b)`.
//!
//! *Numerics.* Close: the sum is exact, where a float product rounds each step; zero points in the bias are rounded to
//! its unit, which is some hundred-thousandths of a code.
//!
//! *Before / after.*
//! ```text
//! y = Add (MatMul (DequantizeLinear (q), DequantizeLinear (w)), DequantizeLinear (b))
//! c = QuantizeLinear (y, s, z)
//! ```
//! becomes
//! ```text
//! a = Add (MatMulInteger (q, w + 128, zq, 128), b)
//! c = QuantizeLinear (Mul (Cast (a), sq sw / s), 1, z)
//! ```
//! On x86 processors without VNNI, onnxruntime adds two products of uint8 and int8 in 16 bits, which saturates. Weights
//! that could make it saturate (see [`pairs`](crate::quant::pairs)) and those of a Conv are stored as uint8 with zero point
//! 128, whose products are exact there, and take twice the time on processors with VNNI.
//!
//! *Source.* Integer-only inference, Jacob et al., arXiv 1712.05877, section 2.2, with a float multiplier.

use super::layers::saturates;
use super::{Coding, UNSIGNED_ZERO, each, factors, transposed, unsigned};
use crate::ir::{Attrs, DType, Graph, NodeId, Tensor, ValueId, axis};
use crate::passes::{Context, Numerics, Outcome, Pass, PassError};
use crate::rewrite::{Patch, Ref, Under};

/// Longest sum of products of two 8-bit codes that int32 holds, with room for a bias of half the range.
const LONGEST: usize = (1 << 30) / (255 * 128);
/// Largest bias in the sum's units.
const BIAS_LIMIT: f64 = (1u32 << 30) as f64;

/// The pass.
pub struct IntegerProducts;

impl Pass for IntegerProducts {
    fn id(&self) -> &'static str {
        "integer-products"
    }

    fn summary(&self) -> &'static str {
        "Multiplies codes with MatMulInteger and ConvInteger, and scales the exact sums."
    }

    fn numerics(&self) -> Numerics {
        Numerics::Close { rel: 1e-4 }
    }

    fn run(&self, m: &mut Context) -> Result<Outcome, PassError> {
        let mut out = Outcome::default();
        for id in m.graph.schedule() {
            let n = m.graph.node(id);
            if !n.is_layer() {
                continue;
            }
            match Product::of(&m.graph, id) {
                Ok(Some(p)) => {
                    m.commit(p.patch(&m.graph))?;
                    out.changes += 1;
                }
                Ok(None) => {}
                Err(why) => out.notes.push(format!("`{}` stays a float operator: {why}", n.name)),
            }
        }
        m.sweep();
        Ok(out)
    }
}

/// What is added to the sums.
enum Bias {
    None,
    /// In the sum's own units.
    Codes(Vec<i64>),
    Float(ValueId),
}

struct Product {
    node: NodeId,
    conv: bool,
    x: Coding,
    w: Coding,
    /// The second operand, constant: codes in the order and type the integer operator wants.
    weight: Option<Tensor>,
    /// `s_x s_w`, one number or one per channel.
    unit: Vec<f64>,
    bias: Bias,
    /// The result, bias included.
    y: ValueId,
    /// The result's only reader, if that makes its codes.
    q: Option<Coding>,
    /// What the result is multiplied by, one number per channel, where that is already part of `y`.
    gain: Option<Vec<f32>>,
}

impl Product {
    /// `None`: not a product of codes. `Err`: one that has no integer form here, and why.
    fn of(g: &Graph, id: NodeId) -> Result<Option<Product>, String> {
        let n = g.node(id);
        let (Some(a), Some(b), Some(mut y)) = (n.input(0), n.input(1), n.out()) else { return Ok(None) };
        let (Some(x), Some(w)) = (Coding::read_back(g, a), Coding::read_back(g, b)) else { return Ok(None) };
        let Some((sx, _)) = x.whole() else { return Err("its input has a scale per channel".into()) };
        if !x.is_byte() || !w.is_byte() {
            return Err("its codes have not 8 bits".into());
        }
        let conv = n.op.is("Conv");
        let weight = match g.constant(w.x) {
            None if w.whole().is_some() && n.op.is("MatMul") => None,
            None => return Err("its second operand has a scale per channel".into()),
            Some(t) => {
                let gemm_back = n.op.is("Gemm") && n.int("transB") != 0;
                let out_axis = if conv || gemm_back { 0 } else { t.dims.len().saturating_sub(1) };
                let along = axis(w.axis, t.dims.len()) == Some(out_axis);
                if w.zeros.iter().any(|z| *z != 0) || w.dtype != DType::INT8 {
                    return Err("its weight is not symmetric int8".into());
                }
                if !(w.whole().is_some() || along) {
                    return Err("its weight's scales do not run along the output channels".into());
                }
                let outs = t.dims.get(out_axis).map_or(1, |n| (*n).max(1) as usize);
                if t.len() / outs > LONGEST {
                    return Err("its sums do not fit 32 bits".into());
                }
                if !conv && t.dims.len() != 2 && w.whole().is_none() {
                    return Err("its weight has a batch".into());
                }
                let t = if gemm_back { transposed(t, outs) } else { Some(t.clone()) };
                // On processors with VNNI, products with int8 take half the time of those with uint8.
                let signed = |t: &Tensor| !conv && t.dims.len() == 2 && !saturates(t, 1, false);
                let t = t.and_then(|t| if signed(&t) { Some(t) } else { unsigned(&t) });
                Some(t.ok_or("its weight cannot be read")?)
            }
        };
        match &n.op.name[..] {
            "Gemm"
                if n.int("transA") != 0
                    || n.float("alpha") != 1.0
                    || n.input(2).is_some() && n.float("beta") != 1.0 =>
            {
                return Err("it scales or transposes its operands".into());
            }
            _ => {}
        }
        let unit: Vec<f64> = w.scales.iter().map(|s| f64::from(sx) * f64::from(*s)).collect();
        let channels = weight.as_ref().map(|t| if conv { t.dims[0] } else { *t.dims.last().unwrap_or(&1) });
        // The bias: an input of its own, or the Add that alone reads the product.
        let mut bias = Bias::None;
        if let Some(c) = n.input(2) {
            bias = Self::bias(g, c, &unit, channels).ok_or("its bias is computed")?;
        } else if let [(add, slot)] = g.uses(y)[..]
            && slot <= 1
            && g.node(add).op.is("Add")
            && !g.is_output(y)
            && !conv
            && weight.is_some()
            && let Some(other) = g.node(add).input(1 - slot)
            && let Some(b) = Self::bias(g, other, &unit, channels)
        {
            bias = b;
            y = g.node(add).out().ok_or("its Add is malformed")?;
        }
        let gain = if conv { None } else { Self::gain(g, y, channels) };
        if let Some((_, scaled)) = gain {
            y = scaled;
        }
        let gain = gain.map(|(f, _)| f);
        // Channels of the result's codes must be those of the layer.
        let q = Coding::written(g, y).filter(|q| {
            q.is_byte()
                && (q.whole().is_some()
                    || (weight.is_none() && q.is_by_head(g))
                    || (channels == Some(q.scales.len() as i64)
                        && if conv { q.axis == 1 } else { q.is_last_axis(g, q.x) }))
        });
        Ok(Some(Product { node: id, conv, x, w, weight, unit, bias, y, q, gain }))
    }

    /// The constant factors of a Mul that alone reads `y`, with its result.
    fn gain(g: &Graph, y: ValueId, channels: Option<i64>) -> Option<(Vec<f32>, ValueId)> {
        let [(mul, slot @ 0..=1)] = g.uses(y)[..] else { return None };
        let n = g.node(mul);
        let t = g.constant(n.input(1 - slot)?).filter(|t| n.op.is("Mul") && t.dtype == DType::FLOAT)?;
        let along = t.len() == 1 || (Some(t.len() as i64) == channels && t.dims.last().copied() == channels);
        (along && !g.is_output(y)).then_some((t.to_f32s()?.into_owned(), n.out()?))
    }

    /// A constant vector over the output channels, after a DequantizeLinear or not.
    fn bias(g: &Graph, v: ValueId, unit: &[f64], channels: Option<i64>) -> Option<Bias> {
        if let Some(d) = Coding::read_back(g, v)
            && let Some(t) = g.constant(d.x)
        {
            let q = t.to_i64s().filter(|q| Some(q.len() as i64) == channels)?;
            // Its scale is the product of the two, rounded: the same unit, up to that rounding.
            let same = (0..q.len()).all(|i| (f64::from(each(&d.scales, i)) / each(unit, i) - 1.0).abs() < 1e-5);
            return Some(if same {
                Bias::Codes(q.iter().enumerate().map(|(i, q)| q - each(&d.zeros, i)).collect())
            } else {
                Bias::Float(v)
            });
        }
        let t = g.constant(v)?;
        let vector = Some(t.len() as i64) == channels && t.dims.last().copied() == channels;
        (vector && t.dtype == DType::FLOAT).then_some(Bias::Float(v))
    }

    fn gain_of(&self, c: usize) -> f32 {
        self.gain.as_ref().map_or(1.0, |f| each(f, c))
    }

    /// The result's channels.
    fn channels(&self) -> Channels {
        match (&self.weight, self.conv) {
            (Some(t), true) => Channels { count: t.dims[0] as usize, after: t.dims.len().saturating_sub(2) },
            (Some(t), false) => Channels { count: *t.dims.last().unwrap_or(&1) as usize, after: 0 },
            // Scores have a scale for all heads, or one for each; a head has queries and keys.
            (None, _) => Channels { count: self.q.as_ref().map_or(1, |q| q.scales.len()), after: 2 },
        }
    }

    fn scaling(&self, g: &Graph, channels: usize) -> Scaling {
        // What one code of the result is worth.
        let scale = |c: usize| self.q.as_ref().map_or(1.0, |q| each(&q.scales, c));
        let factor = |c: usize| each(&self.unit, c) * f64::from(self.gain_of(c)) / f64::from(scale(c));
        let factors: Vec<f64> = (0..channels).map(factor).collect();
        let mut bias = if let Bias::Codes(b) = &self.bias { Some(b.clone()) } else { None };
        let mut offset = vec![0f32; channels];
        let mut zero = 0;
        if let Some(q) = &self.q {
            if q.zeros.iter().all(|z| *z == q.zeros[0]) {
                zero = q.zeros[0];
            } else {
                // Zero points that differ go into the bias, if it can hold them.
                let b = bias.clone().unwrap_or_else(|| vec![0; channels]);
                let sum: Vec<f64> =
                    b.iter().zip(&q.zeros).zip(&factors).map(|((b, z), f)| *b as f64 + *z as f64 / f).collect();
                if sum.iter().all(|s| s.abs() < BIAS_LIMIT) {
                    bias = Some(sum.iter().map(|s| s.round_ties_even() as i64).collect());
                } else {
                    offset = q.zeros.iter().map(|z| *z as f32).collect();
                }
            }
        }
        // What does not go into the sum is added in the units of the result.
        if let Some(b) = bias.take_if(|b| b.iter().any(|b| (*b as f64).abs() >= BIAS_LIMIT)) {
            offset.iter_mut().zip(b).zip(&factors).for_each(|((l, b), f)| *l += (b as f64 * f) as f32);
        }
        if let Bias::Float(v) = self.bias {
            for (c, b) in floats(g, v).iter().enumerate() {
                offset[c] += b * self.gain_of(c) / scale(c);
            }
        }
        Scaling { bias, factors, offset, zero }
    }

    /// The second operand as the integer operator reads it, with its type and zero point.
    fn second(&self, g: &Graph, e: &mut Under<'_>) -> (Ref, DType, i64) {
        let of = g.name_of(self.w.x);
        match &self.weight {
            Some(t) if t.dtype == DType::INT8 => (e.under(of).constant("int8", t.clone()), DType::INT8, 0),
            Some(t) => (e.under(of).constant("unsigned", t.clone()), DType::UINT8, UNSIGNED_ZERO),
            None if self.w.dtype == DType::INT8 => {
                let number = e.at_unit_scale("DequantizeLinear", "w_number", self.w.x.into(), DType::INT8, 0);
                let mut e = e.under(of);
                let w = e.at_unit_scale("QuantizeLinear", "unsigned", number, DType::UINT8, UNSIGNED_ZERO);
                (w, DType::UINT8, self.w.zeros[0] + UNSIGNED_ZERO)
            }
            None => (self.w.x.into(), self.w.dtype, self.w.zeros[0]),
        }
    }

    /// The sums of products of codes, in int32.
    fn sums(&self, g: &Graph, e: &mut Under<'_>) -> Ref {
        let (w, w_type, zw) = self.second(g, e);
        let zx = self.x.whole().map_or(0, |(_, z)| z);
        let mut inputs = vec![self.x.x.into(), w];
        if zx != 0 || zw != 0 {
            inputs.push(e.zero("x_zero", self.x.dtype, zx));
        }
        if zw != 0 {
            inputs.push(e.zero("w_zero", w_type, zw));
        }
        let attrs = g.node(self.node).attrs.clone();
        let (op, attrs) = if self.conv { ("ConvInteger", attrs) } else { ("MatMulInteger", Attrs::new()) };
        let sum = e.op_with(op, "sum", &inputs, attrs);
        e.typed(sum, DType::INT32, g.shape(self.y).map(<[_]>::to_vec))
    }

    fn patch(&self, g: &Graph) -> Patch {
        let mut p = Patch::new("integer-products").made_from([g.node(self.node).name.clone()]).before(self.node);
        let channels = self.channels();
        let Scaling { bias, factors, offset, zero } = self.scaling(g, channels.count);
        let mut e = p.under(g.name_of(self.y));
        let mut a = self.sums(g, &mut e);
        if let Some(b) = bias {
            let b: Vec<i32> = b.iter().map(|b| *b as i32).collect();
            let dims = if self.conv { channels.dims() } else { vec![channels.count as i64] };
            let b = e.constant("bias", Tensor::i32(&dims, &b));
            a = e.op("Add", "biased", &[a, b]);
        }
        a = e.cast("units", a, DType::FLOAT);
        let f: Vec<f32> = factors.iter().map(|f| *f as f32).collect();
        let f = e.constant("factor", channels.vector(&f));
        a = e.op("Mul", if self.q.is_some() { "scaled" } else { "" }, &[a, f]);
        if offset.iter().any(|l| *l != 0.0) {
            let l = e.constant("offset", channels.vector(&offset));
            a = e.op("Add", "shifted", &[a, l]);
        }
        let shape = g.shape(self.y).map(<[_]>::to_vec);
        match &self.q {
            Some(q) => {
                let y = p.under(g.name_of(q.y)).at_unit_scale("QuantizeLinear", "", a, q.dtype, zero);
                p.typed(y, q.dtype, shape);
                p.succeed(q.y, y);
            }
            None => {
                p.typed(a, DType::FLOAT, shape);
                p.succeed(self.y, a);
            }
        }
        p
    }
}

/// The channels of a result: how many there are, and how many axes come after theirs.
struct Channels {
    count: usize,
    after: usize,
}

impl Channels {
    fn dims(&self) -> Vec<i64> {
        [vec![self.count as i64], vec![1; self.after]].concat()
    }

    /// One number per channel, or one for all.
    fn vector(&self, v: &[f32]) -> Tensor {
        let mut t = factors(v);
        if !t.dims.is_empty() {
            t.dims.extend(vec![1i64; self.after]);
        }
        t
    }
}

/// What becomes of the sums of products: `(sum + bias) * factor + offset` a channel, and then codes about `zero`.
struct Scaling {
    /// In units of the sums.
    bias: Option<Vec<i64>>,
    factors: Vec<f64>,
    /// In units of the result.
    offset: Vec<f32>,
    zero: i64,
}

/// The numbers of a constant vector, after a DequantizeLinear or not.
fn floats(g: &Graph, v: ValueId) -> Vec<f32> {
    if let Some(b) = g.constant(v).and_then(|t| t.to_f32s()) {
        return b.into_owned();
    }
    let coded = || {
        let d = Coding::read_back(g, v)?;
        let q = g.constant(d.x)?.to_i64s()?;
        Some(q.iter().enumerate().map(|(i, q)| (*q - each(&d.zeros, i)) as f32 * each(&d.scales, i)).collect())
    };
    coded().unwrap_or_default()
}
