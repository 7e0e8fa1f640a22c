//! Operators that onnxruntime's optimizers make of several, written out again.

use super::common::{deviation, last_two_swapped, patch_rounds, root_mean_square};
use super::{Context, Numerics, Outcome, Pass, PassError};
use crate::infer::ShapeMap;
use crate::ir::{AttrValue, Attrs, DType, Graph, Node, NodeId, Op};
use crate::rewrite::{Patch, Ref, Under};

/// # What it does
/// Writes `com.microsoft` operators that stand for several standard ones as these: FusedMatMul, Gelu, BiasGelu, FastGelu,
/// QuickGelu, SkipLayerNormalization, SkipSimplifiedLayerNormalization, SimplifiedLayerNormalization,
/// EmbedLayerNormalization, Attention, MultiHeadAttention, FusedGemm and FusedConv; and LayerNormalization in a model of an
/// opset that lacks it. What they are written as exists from opset 11 on.
///
/// # When it fires
/// On each of them whose operands have known ranks where these matter, and of which no statistics are read. An attention
/// that continues a cache of keys and values or turns them by their position is left alone, and so is one with a mask whose
/// form is not known from its shape.
///
/// # Why it is correct
/// It is what onnxruntime documents each of them to compute.
///
/// # Numerics
/// Close: the fused kernels round at other places.
///
/// # Before / after
/// ```text
/// y = com.microsoft.BiasGelu (x, b)
///
/// s = Add (x, b)
/// y = Mul (Mul (s, Add (Erf (Div (s, 1.4142135)), 1.0)), 0.5)
/// ```
///
/// # Source
/// onnxruntime's ContribOperators.md. Files saved by its extended optimizations and by its transformers optimizer.
pub struct Unfuse;

impl Pass for Unfuse {
    fn id(&self) -> &'static str {
        "unfuse"
    }

    fn summary(&self) -> &'static str {
        "Decomposes the fused operators of onnxruntime's optimizers."
    }

    fn numerics(&self) -> Numerics {
        Numerics::Close { rel: 1e-4 }
    }

    fn run(&self, model: &mut Context) -> Result<Outcome, PassError> {
        // What a node of another domain makes has no type until the node is written out.
        let opset = model.opset();
        if !model.graph.nodes().any(|(_, n)| is_fused(n, opset)) {
            return Ok(Outcome::default());
        }
        patch_rounds(model, |g, id, map| patch(g, id, map, opset))
    }
}

const DOMAIN: &str = "com.microsoft";

fn is_fused(n: &Node, opset: i64) -> bool {
    // onnxruntime writes these in the standard's domain, which has none of the name, or not yet.
    let early = || n.op.name == "SimplifiedLayerNormalization" || opset < 17 && n.op.name == "LayerNormalization";
    n.op.domain == DOMAIN || n.op.is_onnx() && early()
}

/// A node on its way to become several.
pub(super) struct Unfusing<'a> {
    pub g: &'a Graph,
    pub n: &'a Node,
    pub map: &'a ShapeMap,
    pub opset: i64,
    pub e: Under<'a>,
}

fn patch(g: &Graph, id: NodeId, map: &ShapeMap, opset: i64) -> Option<Patch> {
    let n = g.node(id);
    if !is_fused(n, opset) {
        return None;
    }
    let y = n.outputs.first().copied().flatten()?;
    let name = g.name_of(y);
    let mut p = Patch::new("unfuse").before(id).made_from([name.to_owned()]);
    let mut j = Unfusing { g, n, map, opset, e: p.under(name) };
    // What stands for further outputs.
    let mut more: Vec<(usize, Ref)> = Vec::new();
    let new = match n.op.name.as_str() {
        "FusedMatMul" => j.product()?,
        "Gelu" => {
            let x = j.input(0)?;
            j.gelu(x)
        }
        "BiasGelu" => {
            let x = j.plus(0, 1)?;
            j.gelu(x)
        }
        "FastGelu" => {
            let x = j.plus(0, 1)?;
            j.fast_gelu(x)
        }
        "QuickGelu" => j.quick_gelu()?,
        "SkipLayerNormalization" => {
            let s = j.skip_sum(4)?;
            more.push((3, s));
            j.layer_norm(s, 2, 3, 1e-12)?
        }
        "SkipSimplifiedLayerNormalization" => {
            let s = j.skip_sum(3)?;
            more.push((3, s));
            j.rms_norm(s, 2, 1e-12)?
        }
        "SimplifiedLayerNormalization" => {
            let x = j.normed_last()?;
            j.rms_norm(x, 1, 1e-5)?
        }
        "LayerNormalization" => {
            let x = j.normed_last()?;
            j.layer_norm(x, 1, 2, 1e-5)?
        }
        "EmbedLayerNormalization" => {
            let (y, sum, count) = j.embeddings()?;
            more.push((2, sum));
            more.extend(count.map(|c| (1, c)));
            y
        }
        "Attention" => j.attention()?,
        "MultiHeadAttention" => j.multi_head_attention()?,
        "FusedGemm" => j.activated("Gemm")?,
        "FusedConv" => j.activated("Conv")?,
        _ => return None,
    };
    for (i, v) in n.outputs.iter().enumerate().skip(1) {
        let Some(v) = v.filter(|v| g.use_count(*v) > 0 || g.is_output(*v)) else { continue };
        let (_, new) = *more.iter().find(|(slot, _)| *slot == i)?;
        j.e.replace(v, new);
    }
    j.e.succeed(y, new);
    Some(p)
}

impl Unfusing<'_> {
    pub fn input(&self, i: usize) -> Option<Ref> {
        self.n.input(i).map(Ref::from)
    }

    /// The type that the node computes in.
    pub fn float(&self) -> DType {
        let mut types = self.n.inputs.iter().flatten().filter_map(|v| self.map.dtype(*v));
        types.find(|t| t.is_float()).unwrap_or(DType::FLOAT)
    }

    /// A number of that type.
    pub fn number(&mut self, v: f32, what: &str) -> Ref {
        let c = self.e.scalar(what, v);
        match self.float() {
            DType::FLOAT => c,
            t => self.e.part(what).cast("cast", c, t),
        }
    }

    /// One input plus another, if that is there.
    fn plus(&mut self, a: usize, b: usize) -> Option<Ref> {
        let a = self.input(a)?;
        Some(match self.input(b) {
            Some(b) => self.e.op("Add", "sum", &[a, b]),
            None => a,
        })
    }

    fn product(&mut self) -> Option<Ref> {
        let flag = |name: &str| self.n.attrs.int(name).unwrap_or(0) != 0;
        if flag("transBatchA") || flag("transBatchB") {
            return None;
        }
        let turns = [flag("transA"), flag("transB")];
        let mut sides = Vec::new();
        for (i, turn) in turns.into_iter().enumerate() {
            let v = self.n.input(i)?;
            sides.push(if turn {
                let rank = self.map.rank(v).filter(|r| *r >= 2)?;
                self.e.part("turned").turned(&i.to_string(), v.into(), &last_two_swapped(rank))
            } else {
                v.into()
            });
        }
        let y = self.e.op("MatMul", "product", &sides);
        let alpha = self.n.attrs.float("alpha").unwrap_or(1.0);
        Some(if alpha == 1.0 {
            y
        } else {
            let a = self.number(alpha, "alpha");
            self.e.op("Mul", "scaled", &[y, a])
        })
    }

    fn gelu(&mut self, x: Ref) -> Ref {
        let (root, one, half) =
            (self.number(std::f32::consts::SQRT_2, "root"), self.number(1.0, "one"), self.number(0.5, "half"));
        let d = self.e.op("Div", "ratio", &[x, root]);
        let e = self.e.op("Erf", "erf", &[d]);
        let a = self.e.op("Add", "moved", &[e, one]);
        let m = self.e.op("Mul", "twice", &[x, a]);
        self.e.op("Mul", "gelu", &[m, half])
    }

    fn fast_gelu(&mut self, x: Ref) -> Ref {
        let (cubic, root) = (self.number(0.044715, "cubic"), self.number(0.797_884_6, "root"));
        let (one, half, three) = (self.number(1.0, "one"), self.number(0.5, "half"), self.number(3.0, "three"));
        let p = self.e.op("Pow", "cube", &[x, three]);
        let c = self.e.op("Mul", "part", &[p, cubic]);
        let s = self.e.op("Add", "inner", &[x, c]);
        let r = self.e.op("Mul", "scaled", &[s, root]);
        let t = self.e.op("Tanh", "tanh", &[r]);
        let a = self.e.op("Add", "moved", &[t, one]);
        let h = self.e.op("Mul", "half_x", &[x, half]);
        self.e.op("Mul", "gelu", &[h, a])
    }

    fn quick_gelu(&mut self) -> Option<Ref> {
        let x = self.input(0)?;
        let alpha = self.n.attrs.float("alpha").unwrap_or(1.702);
        let scaled = if alpha == 1.0 {
            x
        } else {
            let a = self.number(alpha, "alpha");
            self.e.op("Mul", "scaled", &[x, a])
        };
        let s = self.e.op("Sigmoid", "sigmoid", &[scaled]);
        Some(self.e.op("Mul", "gelu", &[x, s]))
    }

    /// Input, skip and the bias at slot `bias`, which belongs to the layer that makes the input.
    fn skip_sum(&mut self, bias: usize) -> Option<Ref> {
        let (mut x, skip) = (self.input(0)?, self.input(1)?);
        if let Some(b) = self.input(bias) {
            x = self.e.op("Add", "biased", &[x, b]);
        }
        Some(self.e.op("Add", "sum", &[x, skip]))
    }

    /// The first input of a norm over its last axis alone.
    fn normed_last(&self) -> Option<Ref> {
        let axis = self.n.attrs.int("axis").unwrap_or(-1);
        let last = axis == -1 || self.map.rank(self.n.input(0)?).is_some_and(|r| axis == r as i64 - 1);
        last.then(|| self.input(0)).flatten()
    }

    /// `eps` is what the operator adds where the node does not say it.
    pub fn layer_norm(&mut self, x: Ref, gamma: usize, beta: usize, eps: f32) -> Option<Ref> {
        let gamma = self.input(gamma)?;
        let d = deviation(&mut self.e, x, self.opset);
        let n = self.divided(d, eps);
        let y = self.e.op("Mul", "scaled", &[n, gamma]);
        Some(match self.input(beta) {
            Some(b) => self.e.op("Add", "normed", &[y, b]),
            None => y,
        })
    }

    fn rms_norm(&mut self, x: Ref, gamma: usize, eps: f32) -> Option<Ref> {
        let gamma = self.input(gamma)?;
        let n = self.divided(x, eps);
        Some(self.e.op("Mul", "normed", &[n, gamma]))
    }

    /// A value divided by the root of its mean square.
    fn divided(&mut self, d: Ref, eps: f32) -> Ref {
        let eps = self.n.attrs.float("epsilon").unwrap_or(eps);
        // The least that half precision tells from zero.
        let least = if self.float() == DType::FLOAT16 { 2f32.powi(-24) } else { 0.0 };
        let eps = self.number(eps.max(least), "epsilon");
        let r = root_mean_square(&mut self.e, d, eps, self.opset);
        self.e.op("Div", "ratio", &[d, r])
    }

    /// A Gemm or Conv with a function of one operand after it.
    fn activated(&mut self, op: &str) -> Option<Ref> {
        let f = self.n.attrs.str("activation")?.to_owned();
        if !["Relu", "Sigmoid", "Tanh", "LeakyRelu"].contains(&f.as_str()) {
            return None;
        }
        let mut attrs = self.n.attrs.clone();
        attrs.0.retain(|a| !a.name.starts_with("activation"));
        let inputs: Vec<Option<Ref>> = self.n.inputs.iter().take(3).map(|v| v.map(Ref::from)).collect();
        let hint = self.e.name("product");
        let mut y = self.e.node_with(Op::onnx(op), &inputs, &[&hint], attrs)[0];
        if op == "Conv"
            && let Some(z) = self.input(3)
        {
            y = self.e.op("Add", "sum", &[y, z]);
        }
        let params = match self.n.attrs.get("activation_params") {
            Some(AttrValue::Floats(p)) => p.first().copied(),
            _ => None,
        };
        let own = match (f.as_str(), params.or(self.n.attrs.float("activation_alpha"))) {
            ("LeakyRelu", Some(a)) => Attrs::new().with_float("alpha", a),
            _ => Attrs::new(),
        };
        Some(self.e.op_with(&f, "activated", &[y], own))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::validate::validate;
    use crate::text::{Elide, parse_model, print_model};

    #[test]
    fn norms_that_the_standard_lacks_are_written_out() {
        let text = r#"<ir_version: 8, opset_import: ["" : OPSET]>
            g (float[2,4] x, float[4] s) => (y, z) {
                y = LayerNormalization (x, s, s)
                z = SimplifiedLayerNormalization (x, s)
            }"#;
        for (opset, left) in [("11", 0), ("17", 1)] {
            let mut m = parse_model(&text.replace("OPSET", opset)).expect("a model");
            Unfuse.run_on(&mut m).expect("no patch fails");
            validate(&m).expect("a valid model");
            assert_eq!(print_model(&m, Elide::Full).matches("LayerNormalization").count(), left);
        }
    }
}
