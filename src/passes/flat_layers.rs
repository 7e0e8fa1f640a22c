use super::common::{flat, patch_rounds};
use super::{Context, Numerics, Outcome, Pass, PassError};
use crate::infer::ShapeMap;
use crate::ir::{DType, Graph, NodeId};
use crate::rewrite::Patch;

/// # What it does
/// Applies a linear layer to a value itself where the model first makes one matrix of all its rows: the Reshape comes after
/// the layer, where it meets the one that undoes it.
///
/// # When it fires
/// On a Gemm, or a MatMul, with a constant weight, of a Reshape of a value of three axes or more into a matrix with the
/// same last axis.
///
/// # Why it is correct
/// A layer takes each row by itself, and the rows stay in the same order.
///
/// # Numerics
/// Close: a Gemm may add its bias at another place than MatMul and Add.
///
/// # Before / after
/// ```text
/// r = Reshape (x, [-1, 48])        # x: float[batch, 17, 48]
/// a = Gemm (r, w, bias)
/// y = Reshape (a, [-1, 17, 96])    y = Add (MatMul (x, w), bias)
/// ```
///
/// # Source
/// onnxsim and onnxruntime's optimizer write a layer so; Dense layers of TensorFlow, Linear of flax, Conv1D of GPT-2.
pub struct FlatLayers;

impl Pass for FlatLayers {
    fn id(&self) -> &'static str {
        "flat-layers"
    }

    fn summary(&self) -> &'static str {
        "Applies a layer to a value directly rather than to the value flattened to a matrix."
    }

    fn numerics(&self) -> Numerics {
        Numerics::Close { rel: 1e-5 }
    }

    fn run(&self, model: &mut Context) -> Result<Outcome, PassError> {
        patch_rounds(model, patch)
    }
}

fn patch(g: &Graph, id: NodeId, map: &ShapeMap) -> Option<Patch> {
    let layer = g.node(id);
    let gemm = layer.op.is("Gemm");
    let plain = |name: &str| layer.float(name) == 1.0;
    let one_product = || plain("alpha") && (plain("beta") || layer.input(2).is_none()) && layer.int("transA") == 0;
    if !(layer.op.is("MatMul") || gemm && one_product()) {
        return None;
    }
    let (r, y) = (layer.input(0)?, layer.out()?);
    let x = g.node(g.producer_is(r, "Reshape")?).input(0)?;
    let (from, rows) = (map.dims(x)?, map.dims(r)?);
    let [_, width] = rows else { return None };
    let weight = g.constant(layer.input(1)?).filter(|t| t.dtype == DType::FLOAT && t.dims.len() == 2)?;
    if from.len() < 3 || from.last() != Some(width) || width.known().is_none() {
        return None;
    }
    let name = g.name_of(y);
    let mut p = Patch::new("flat-layers").before(id).made_from([name.to_owned()]);
    let turned = gemm && layer.int("transB") == 1;
    let columns = weight.dims[usize::from(!turned)];
    let w = if turned {
        p.under(g.name_of(layer.input(1)?)).turned("turned", layer.input(1)?.into(), &[1, 0])
    } else {
        layer.input(1)?.into()
    };
    let product = p.under(name).op("MatMul", "product", &[x.into(), w]);
    let whole = match layer.input(2).filter(|_| gemm) {
        // A bias for each row has no place in the value.
        Some(b) if g.constant(b)?.is_row_of(columns as usize) || g.constant(b)?.len() == 1 => {
            let b = if g.constant(b)?.dims.len() > 1 { flat(g, &mut p, b)? } else { b.into() };
            p.under(name).op("Add", "biased", &[product, b])
        }
        Some(_) => return None,
        None => product,
    };
    let new = p.under(name).reshaped("", whole, &[-1, columns]);
    p.succeed(y, new);
    Some(p)
}
