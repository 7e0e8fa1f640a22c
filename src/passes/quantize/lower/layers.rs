//! `layers-whole`: a layer between codes, with its bias and all factors per channel, is one Gemm or Conv.
//!
//! *What it does.* The bias, constant factors and offsets that follow a MatMul, Gemm or Conv of codes, and the scales and
//! zero points of the result's codes, go into the scales of the weight and into an int32 bias. The codes of the weight stay
//! what they are. A MatMul becomes a Gemm between two Reshapes: it has a place for the bias.
//!
//! *When it fires.* For a MatMul, Gemm or Conv whose first operand comes from a DequantizeLinear with one scale and whose
//! second from one of a constant, with one scale or one per output channel. A factor is taken if it is positive and the bias
//! still fits int32. A MatMul of rows whose number is open along two axes stays a MatMul, with its bias as an Add.
//!
//! *Why it is correct.* `(s_x q_x) (s_w[c] q_w) f[c] = (s_x q_x) (s_w[c] f[c] q_w)`, and
//! `round(y / s[c]) + z[c] = round(y / s[c] + z[c])` for an integer `z`.
//!
//! *Numerics.* Close: the bias is rounded to its unit, some hundred-thousandths of a code.
//!
//! *Before / after.*
//! ```text
//! y = Add (MatMul (DQ (x), DQ (w, s_w)), DQ (b))
//! q = QuantizeLinear <axis = -1> (Mul (y, f), s, z)
//! ```
//! becomes
//! ```text
//! y = Gemm (DQ (Reshape (x)), DQ (w, s_w f / s), DQ (b'))
//! q = Reshape (QuantizeLinear (y, 1, 0))
//! ```
//!
//! *Source.* ONNX operator documentation. Why it is worth it: onnxruntime makes one QGemm of it (and QLinearConv of a
//! Conv), where a QuantizeLinear with a scale per channel takes 20 ns per element, and each factor a pass over memory.

use super::{Coding, UNSIGNED_ZERO, each, unsigned, zero_tensor};
use crate::ir::{Attrs, DType, Dim, Graph, NodeId, Tensor, ValueId, axis};
use crate::passes::{Context, Numerics, Outcome, Pass, PassError};
use crate::quant::pairs::WeightRows;
use crate::rewrite::{Patch, Ref, Under};

/// Largest bias in the sum's units: a margin of a quarter of int32 leaves room for the products.
const BIAS_LIMIT: f64 = (1u32 << 31) as f64 * 0.75;

/// The pass. Weights whose products saturate on processors without VNNI become uint8, whose products are exact there, unless
/// the plan assumes VNNI.
#[derive(Clone, Copy, Debug)]
pub struct LayersWhole;

impl Pass for LayersWhole {
    fn id(&self) -> &'static str {
        "layers-whole"
    }

    fn summary(&self) -> &'static str {
        "Merges a quantized layer, its bias and the per-channel factors around it into one Gemm or Conv."
    }

    fn numerics(&self) -> Numerics {
        Numerics::Close { rel: 1e-4 }
    }

    fn run(&self, m: &mut Context) -> Result<Outcome, PassError> {
        let mut out = Outcome::default();
        let assume_vnni = m.plan().is_some_and(|p| p.assume_vnni);
        for id in m.graph.schedule() {
            let n = m.graph.node(id);
            if !n.is_layer() {
                continue;
            }
            if let Some(l) = Layer::of(&m.graph, id) {
                let p = l.patch(&m.graph, assume_vnni);
                m.commit(p)?;
                out.changes += 1;
            }
        }
        m.sweep();
        Ok(out)
    }
}

/// True for int8 weights whose products with uint8 saturate on processors without VNNI.
pub(super) fn saturates(t: &Tensor, out_axis: usize, conv: bool) -> bool {
    let dims: Vec<usize> = t.dims.iter().map(|d| *d as usize).collect();
    let Some(rows) = WeightRows::of(&dims, out_axis, conv).filter(|_| t.dtype == DType::INT8) else { return false };
    let codes = t.to_i64s().unwrap_or_default();
    !rows.are_safe(&codes.iter().map(|q| *q as i32).collect::<Vec<_>>())
}

/// A layer and what follows it, as numbers per channel.
struct Layer {
    node: NodeId,
    conv: bool,
    x: Coding,
    w: Coding,
    channels: usize,
    /// Scales of the weight, factors included.
    scales: Vec<f64>,
    /// In the units of the result.
    bias: Option<Vec<f64>>,
    /// What the Gemm stands for: the layer's result, or that of the last factor or offset.
    y: ValueId,
    /// The result's only reader, if that makes its codes.
    q: Option<Coding>,
}

impl Layer {
    fn of(g: &Graph, id: NodeId) -> Option<Layer> {
        let n = g.node(id);
        let x = Coding::read_back(g, n.input(0)?).filter(|x| x.is_byte() && x.whole().is_some())?;
        let w = Coding::read_back(g, n.input(1)?).filter(|w| w.dtype != DType::INT32)?;
        let t = g.constant(w.x)?;
        let conv = n.op.is("Conv");
        let scaled = n.attrs.int("transA").unwrap_or(0) != 0
            || n.attrs.float("alpha").unwrap_or(1.0) != 1.0
            || n.input(2).is_some() && n.attrs.float("beta").unwrap_or(1.0) != 1.0;
        if !conv && (t.dims.len() != 2 || scaled) || conv && t.dims.len() < 3 {
            return None;
        }
        let out_axis = if conv || n.attrs.int("transB").unwrap_or(0) != 0 { 0 } else { 1 };
        let channels = usize::try_from(*t.dims.get(out_axis)?).ok().filter(|c| *c > 0)?;
        let along = axis(w.axis, t.dims.len()) == Some(out_axis);
        if w.whole().is_none() && (!along || w.scales.len() != channels) || w.whole().is_some() && !w.is_byte() {
            return None;
        }
        let scales = (0..channels).map(|c| f64::from(each(&w.scales, c))).collect();
        let mut l = Layer { node: id, conv, x, w, channels, scales, bias: None, y: n.out()?, q: None };
        if let Some(b) = n.input(2) {
            l.bias = Some(l.vector(g, b, true)?);
        }
        while l.follow(g).is_some() {}
        l.codes(g);
        Some(l)
    }

    /// A constant with one number per output channel, or one for all; after a DequantizeLinear or not. `own`: the operand of
    /// the layer itself, which has no axes besides.
    fn vector(&self, g: &Graph, v: ValueId, own: bool) -> Option<Vec<f64>> {
        let (t, back) = match Coding::read_back(g, v) {
            Some(d) => (g.constant(d.x)?, Some(d)),
            None => (g.constant(v).filter(|t| t.dtype == DType::FLOAT)?, None),
        };
        // Axes after the channels are of size 1 in what is added to an image.
        let behind = if self.conv && !own { g.constant(self.w.x)?.dims.len() - 2 } else { 0 };
        let at = t.dims.len().checked_sub(1 + behind);
        let lined_up = at.is_some_and(|at| t.dims[at] == self.channels as i64);
        if t.len() != 1 && (t.len() != self.channels || !lined_up) {
            return None;
        }
        let number = |i: usize| -> Option<f64> {
            match &back {
                Some(d) => {
                    let q = t.to_i64s()?;
                    Some((q[i] - each(&d.zeros, i)) as f64 * f64::from(each(&d.scales, i)))
                }
                None => Some(f64::from(t.to_f32s()?[i])),
            }
        };
        let all: Vec<f64> = (0..t.len()).map(number).collect::<Option<_>>()?;
        Some((0..self.channels).map(|c| each(&all, c)).collect())
    }

    /// True if the bias in the units of the sum fits int32.
    fn fits(&self, scales: &[f64], bias: &[f64]) -> bool {
        let sx = f64::from(self.x.scales[0]);
        let usable = |s: f64| s.is_finite() && s as f32 >= f32::MIN_POSITIVE && s < f64::from(f32::MAX);
        scales.iter().zip(bias).all(|(s, b)| usable(*s) && usable(s * sx) && (b / (s * sx)).abs() < BIAS_LIMIT)
    }

    fn take(&mut self, scales: Vec<f64>, bias: Option<Vec<f64>>) -> Option<()> {
        let none = vec![0.0; self.channels];
        if !self.fits(&scales, bias.as_ref().unwrap_or(&none)) {
            return None;
        }
        (self.scales, self.bias) = (scales, bias);
        Some(())
    }

    /// Takes the Add or Mul of a constant that alone reads the result.
    fn follow(&mut self, g: &Graph) -> Option<()> {
        let [(next, slot @ 0..=1)] = g.uses(self.y)[..] else { return None };
        let n = g.node(next);
        if g.is_output(self.y) || !n.op.is_onnx() {
            return None;
        }
        let other = n.input(1 - slot)?;
        let y = n.out()?;
        // A constant of more axes would change the shape.
        if g.constant(other).map_or(1, |t| t.dims.len()) > g.rank(self.y).unwrap_or(1) {
            return None;
        }
        let v = self.vector(g, other, false)?;
        match &n.op.name[..] {
            "Add" => {
                let bias = self.bias.clone().unwrap_or_else(|| vec![0.0; self.channels]);
                let bias = bias.iter().zip(&v).map(|(b, v)| b + v).collect();
                self.take(self.scales.clone(), Some(bias))?;
            }
            "Mul" if v.iter().all(|f| *f > 0.0) => {
                let times = |x: &[f64]| x.iter().zip(&v).map(|(x, f)| x * f).collect();
                self.take(times(&self.scales), self.bias.as_deref().map(times))?;
            }
            _ => return None,
        }
        self.y = y;
        Some(())
    }

    /// Takes the QuantizeLinear that alone reads the result: as it is with one scale, as one of scale 1 with one per channel.
    fn codes(&mut self, g: &Graph) {
        // Codes of 16 bits are written out later, where the operator set has none, and no runtime fuses them.
        let Some(mut q) = Coding::written(g, self.y).filter(Coding::is_byte) else { return };
        if q.whole().is_some() {
            self.q = Some(q);
            return;
        }
        let along = if self.conv { q.axis == 1 } else { q.is_last_axis(g, q.x) };
        if !along || q.scales.len() != self.channels {
            return;
        }
        let over = |x: &[f64]| -> Vec<f64> { x.iter().zip(&q.scales).map(|(x, s)| x / f64::from(*s)).collect() };
        let (scales, mut bias) = (over(&self.scales), self.bias.as_deref().map(over));
        let mut zero = q.zeros[0];
        if q.zeros.iter().any(|z| *z != zero) {
            let b = bias.take().unwrap_or_else(|| vec![0.0; self.channels]);
            bias = Some(b.iter().zip(&q.zeros).map(|(b, z)| b + *z as f64).collect());
            zero = 0;
        }
        if self.take(scales, bias).is_some() {
            (q.scales, q.zeros) = (vec![1.0], vec![zero]);
            self.q = Some(q);
        }
    }

    /// `[a, b, .., K]` as `[-1, K]` and back, where at most one of the leading sizes is open.
    fn shapes(&self, g: &Graph) -> Option<[Vec<i64>; 2]> {
        let shape = g.shape(g.node(self.node).input(0)?).filter(|s| s.len() != 2)?;
        let (_, lead) = shape.split_last()?;
        let known = |d: &Dim| if let Dim::Known(n) = d { *n } else { -1 };
        let mut back: Vec<i64> = lead.iter().map(known).collect();
        // A size of 0 would mean something else in a Reshape.
        if back.iter().filter(|n| **n == -1).count() > 1 || back.contains(&0) {
            return None;
        }
        back.push(self.channels as i64);
        Some([vec![-1, self.ins(g)], back])
    }

    fn patch(&self, g: &Graph, assume_vnni: bool) -> Patch {
        let n = g.node(self.node);
        let mut p = Patch::new("layers-whole").made_from([n.name.clone()]).before(self.node);
        let shapes = if n.op.is("MatMul") { self.shapes(g) } else { None };
        let flat = n.op.is("MatMul") && (shapes.is_some() || g.rank(n.inputs[0].expect("it has one")) == Some(2));
        let mut e = p.under(g.name_of(self.y));
        // Codes go through the first Reshape; the DequantizeLinear is right in front of the Gemm.
        let x = match &shapes {
            Some([rows, _]) => {
                let rows = e.under(g.name_of(self.x.x)).reshaped("as_rows", self.x.x.into(), rows);
                e.typed(rows, self.x.dtype, Some(vec![Dim::Unknown, Dim::Known(self.ins(g))]));
                e.like(g.node(self.x.node), "x", &[(0, rows)])
            }
            None => n.inputs[0].expect("it has one").into(),
        };
        let scales: Vec<f32> = self.scales.iter().map(|s| *s as f32).collect();
        let w = self.weight(g, &mut e, &scales, assume_vnni);
        let own = self.conv || n.op.is("Gemm") || flat;
        // A product that is then reshaped has a bias in any case: see `bias_of`.
        let none = (flat && shapes.is_some() && self.q.is_none()).then(|| vec![0.0; self.channels]);
        let bias = self.bias.as_ref().or(none.as_ref()).map(|b| self.bias_of(&mut e, &scales, b));
        let shape = g.shape(self.y).map(<[_]>::to_vec);
        let mut inputs = vec![x, w];
        if own {
            inputs.extend(bias);
        }
        let (op, attrs) = if flat { ("Gemm", Attrs::new()) } else { (&n.op.name[..], n.attrs.clone()) };
        let whole = self.q.is_none() && shapes.is_none() && (own || bias.is_none());
        let mut y = e.op_with(op, if whole { "" } else { "product" }, &inputs, attrs);
        if !own && let Some(b) = bias {
            y = e.op("Add", "biased", &[y, b]);
        }
        let dtype = self.q.as_ref().map_or(DType::FLOAT, |q| q.dtype);
        if let Some(q) = &self.q {
            let (s, z) = (e.scalar("q_scale", q.scales[0]), e.zero("q_zero", q.dtype, q.zeros[0]));
            let rounded = if shapes.is_some() { e.name("rounded") } else { g.name_of(q.y).to_owned() };
            y = e.node("QuantizeLinear", &rounded, &[y, s, z], Attrs::new());
        }
        let old = self.q.as_ref().map_or(self.y, |q| q.y);
        if let Some([_, back]) = &shapes {
            p.typed(y, dtype, Some(vec![Dim::Unknown, Dim::Known(self.channels as i64)]));
            y = p.under(g.name_of(old)).reshaped("", y, back);
        }
        p.typed(y, dtype, shape);
        p.succeed(old, y);
        p
    }

    /// Channels that a MatMul contracts.
    fn ins(&self, g: &Graph) -> i64 {
        g.constant(self.w.x).map_or(0, |t| t.dims[0])
    }

    fn out_axis(&self, g: &Graph) -> usize {
        let back = g.node(self.node).attrs.int("transB").unwrap_or(0) != 0;
        if self.conv || back { 0 } else { 1 }
    }

    /// The weight's codes at the new scales.
    fn weight(&self, g: &Graph, p: &mut Patch, scales: &[f32], assume_vnni: bool) -> Ref {
        let name = g.name_of(self.w.x);
        let mut e = p.under(&format!("{name}_{}", g.name_of(self.y)));
        let s = e.floats("scale", scales);
        let attrs = Attrs::new().with_int("axis", self.out_axis(g) as i64);
        let wide = g.constant(self.w.x).filter(|_| !assume_vnni).filter(|t| saturates(t, self.out_axis(g), self.conv));
        let n = [self.channels as i64];
        if let Some(t) = wide.and_then(unsigned) {
            let codes = e.under(name).constant("unsigned", t);
            let zeros: Vec<i64> = (0..self.channels).map(|c| each(&self.w.zeros, c) + UNSIGNED_ZERO).collect();
            let z = e.constant("zero", zero_tensor(DType::UINT8, &n, &zeros));
            return e.op_with("DequantizeLinear", "dq", &[codes, s, z], attrs);
        }
        // A zero point per channel is there already, in whatever type the codes have.
        let z = match g.node(self.w.node).input(2).filter(|_| self.w.whole().is_none()) {
            Some(z) => z.into(),
            None => e.constant("zero", zero_tensor(self.w.dtype, &n, &vec![self.w.zeros[0]; self.channels])),
        };
        e.op_with("DequantizeLinear", "dq", &[self.w.x.into(), s, z], attrs)
    }

    /// The bias as int32 codes at the scale of the sum, in an Add too: onnxruntime makes a float Gemm of a MatMul and an Add
    /// of floats.
    fn bias_of(&self, e: &mut Under<'_>, scales: &[f32], bias: &[f64]) -> Ref {
        let units: Vec<f32> = scales.iter().map(|s| (s * self.x.scales[0]).max(f32::MIN_POSITIVE)).collect();
        let mut codes: Vec<i32> =
            bias.iter().zip(&units).map(|(b, u)| (b / f64::from(*u)).round_ties_even() as i32).collect();
        // OpenVINO 2026.4 takes scales per channel through a Reshape along the wrong axis, or cannot compile the model, where
        // no bias keeps them at the product. Rounding a bias is off by up to half a code; this is
        // off by one, in the channel where that is least.
        if !self.conv && codes.iter().all(|c| *c == 0) {
            let least = units.iter().enumerate().min_by(|a, b| a.1.total_cmp(b.1));
            least.into_iter().for_each(|(c, _)| codes[c] = 1);
        }
        let c = e.constant("bias_codes", Tensor::i32(&[self.channels as i64], &codes));
        let s = e.floats("bias_scale", &units);
        // Codes of 32 bits have no zero point; zeros would be as many bytes as the codes.
        e.op_with("DequantizeLinear", "bias", &[c, s], Attrs::new().with_int("axis", 0))
    }
}
