//! Shapes of convolutions, pooling and resizing.

use super::view::View;
use super::{Draft, Given, Size};

type Dims = Vec<Option<Size>>;

/// Output size of a window sliding over one axis, in all the ways ONNX spells the padding.
fn slide(view: &View, i: usize, spatial: usize, x: &Size, kernel: i64) -> Option<Size> {
    let a = &view.node.attrs;
    let at = |name: &str, i: usize, default: i64| a.ints(name).map_or(Some(default), |v| v.get(i).copied());
    let (stride, dilation) = (at("strides", i, 1)?, at("dilations", i, 1)?);
    if stride <= 0 || dilation <= 0 || kernel <= 0 {
        return None;
    }
    let span = dilation.checked_mul(kernel - 1)?.checked_add(1)?;
    match a.str("auto_pad").unwrap_or("NOTSET") {
        "SAME_UPPER" | "SAME_LOWER" if stride == 1 => return Some(x.clone()),
        "SAME_UPPER" | "SAME_LOWER" => {
            let n = x.known()?;
            return Some(Size::Known(n.checked_add(stride - 1)? / stride));
        }
        "VALID" | "NOTSET" => {}
        _ => return None,
    }
    let valid = a.str("auto_pad") == Some("VALID");
    let pad = if valid { 0 } else { at("pads", i, 0)?.checked_add(at("pads", i + spatial, 0)?)? };
    let room = x.add(&Size::Known(pad.checked_sub(span)?))?;
    if let Some(n) = room.known() {
        if n < 0 {
            return None;
        }
        let ceil = a.int("ceil_mode").unwrap_or(0) == 1;
        if !ceil {
            return Some(Size::Known(n / stride + 1));
        }
        // Runtimes differ on a last window that lies wholly in the padding; claim only what they agree on.
        return (n % stride == 0).then(|| Size::Known(n / stride + 1));
    }
    if stride == 1 { room.add(&Size::Known(1)) } else { None }
}

/// Conv and ConvInteger: `[N, C, spatial...] x [M, C/group, kernel...] -> [N, M, ...]`.
pub(super) fn conv(view: &View, weight: usize) -> Option<Dims> {
    let (x, w) = (view.dims(0)?, view.dims(weight)?);
    if x.len() < 3 || w.len() != x.len() {
        return None;
    }
    let spatial = x.len() - 2;
    let mut out = vec![Some(x[0].clone()), Some(w[0].clone())];
    for i in 0..spatial {
        let kernel = view.node.attrs.ints("kernel_shape").and_then(|k| k.get(i).copied()).or(w[2 + i].known());
        out.push(kernel.and_then(|k| slide(view, i, spatial, &x[2 + i], k)));
    }
    Some(out)
}

/// ConvTranspose: `[N, C, spatial...] x [C, M/group, kernel...] -> [N, M, ...]`. Of padding that follows from the stride nothing
/// is claimed.
pub(super) fn conv_transpose(view: &View) -> Option<Dims> {
    let (x, w) = (view.dims(0)?, view.dims(1)?);
    let spatial = x.len().checked_sub(2)?;
    if spatial == 0 || w.len() != x.len() {
        return None;
    }
    let a = &view.node.attrs;
    let group = Size::Known(a.int("group").unwrap_or(1));
    let mut out = vec![Some(x[0].clone()), w[1].mul(&group)];
    for i in 0..spatial {
        let at = |name: &str, i: usize, default: i64| a.ints(name).map_or(Some(default), |v| v.get(i).copied());
        let size = || -> Option<Size> {
            if let Some(sizes) = a.ints("output_shape") {
                // With or without the first two.
                return Some(Size::Known(*sizes.get(sizes.len().checked_sub(spatial)? + i)?));
            }
            if !matches!(a.str("auto_pad").unwrap_or("NOTSET"), "NOTSET" | "VALID") {
                return None;
            }
            let kernel = a.ints("kernel_shape").and_then(|k| k.get(i).copied()).or(w[2 + i].known())?;
            let span = at("dilations", i, 1)?.checked_mul(kernel - 1)?.checked_add(1)?;
            let pads = at("pads", i, 0)?.checked_add(at("pads", i + spatial, 0)?)?;
            let more = span.checked_sub(pads)?.checked_add(at("output_padding", i, 0)?)?;
            x[2 + i].sub(&Size::Known(1))?.mul(&Size::Known(at("strides", i, 1)?))?.add(&Size::Known(more))
        };
        out.push(size());
    }
    Some(out)
}

/// RoiAlign: one image per region.
pub(super) fn roi_align(view: &View) -> Option<Dims> {
    let side = |name: &str| Some(Size::Known(view.node.attrs.int(name).unwrap_or(1)));
    let channels = view.dims(0).and_then(|d| d.get(1).cloned());
    Some(vec![view.dims(1).and_then(|d| d.first().cloned()), channels, side("output_height"), side("output_width")])
}

/// MaxPool, AveragePool, LpPool.
pub(super) fn pool(view: &View) -> Option<Dims> {
    let (x, k) = (view.dims(0)?, view.node.attrs.ints("kernel_shape")?);
    if x.len() < 3 || k.len() != x.len() - 2 {
        return None;
    }
    let mut out: Dims = x[..2].iter().cloned().map(Some).collect();
    out.extend(k.iter().enumerate().map(|(i, k)| slide(view, i, x.len() - 2, &x[2 + i], *k)));
    Some(out)
}

/// Resize: from `sizes`, or from `scales` where the product is a whole number (rounding is not guessed at).
pub(super) fn resize(view: &View) -> Option<Dims> {
    let x = view.dims(0)?;
    let keeps = view.node.says("keep_aspect_ratio_policy", "stretch");
    let which = match view.node.attrs.ints("axes") {
        Some(a) => super::view::axes(a, x.len()).filter(|s| s.len() == a.len() && a.windows(2).all(|w| w[0] < w[1]))?,
        None => (0..x.len()).collect(),
    };
    let mut out: Dims = x.iter().cloned().map(Some).collect();
    let sizes = view.elements(3).filter(|s| s.len() == which.len());
    let scales = view.constant(2).and_then(|t| t.to_f32s()).filter(|s| s.len() == which.len()).map(|s| s.into_owned());
    for (i, axis) in which.iter().enumerate() {
        out[*axis] = match (&sizes, &scales) {
            (Some(s), _) if keeps => s[i].clone(),
            (_, Some(s)) if s[i] == 1.0 => Some(x[*axis].clone()),
            (_, Some(s)) if s[i].fract() == 0.0 && s[i] > 0.0 && s[i] < 1e12 => x[*axis].mul(&Size::Known(s[i] as i64)),
            _ => None,
        };
    }
    Some(out)
}

/// Pad: amounts from the attribute (opset < 11) or the input, on all axes or on those named.
pub(super) fn pad(view: &View) -> Option<Dims> {
    let x = view.dims(0)?;
    let mut out: Dims = x.iter().cloned().map(Some).collect();
    let which: Vec<usize> = match view.ints(3) {
        Some(a) => a.iter().map(|a| crate::ir::axis(*a, x.len())).collect::<Option<_>>()?,
        None if view.has(3) => return Some(vec![None; x.len()]),
        None => (0..x.len()).collect(),
    };
    let amounts: Vec<Option<Size>> = match (view.list("pads", 1), view.elements(1)) {
        (Given::Known(p), _) => p.into_iter().map(|n| Some(Size::Known(n))).collect(),
        (_, Some(e)) => e.to_vec(),
        _ => vec![None; 2 * which.len()],
    };
    if amounts.len() != 2 * which.len() {
        return None;
    }
    for (i, axis) in which.iter().enumerate() {
        out[*axis] = match (&amounts[i], &amounts[i + which.len()]) {
            (Some(a), Some(b)) => x[*axis].add(a).and_then(|s| s.add(b)),
            _ => None,
        };
    }
    Some(out)
}

/// The `Attention` operator of opset 23: output, then present key and value, then the score matrix.
pub(super) fn attention(view: &View) -> Option<Vec<Draft>> {
    let ty = view.dtype(0);
    let mut out = vec![Draft::new(ty, None); view.node.outputs.len()];
    let (q, v) = (view.dims(0)?, view.dims(2)?);
    out[0].dims = match (q.len(), v.len()) {
        (4, 4) => Some(vec![Some(q[0].clone()), Some(q[1].clone()), Some(q[2].clone()), Some(v[3].clone())]),
        (3, 3) => {
            let heads = |a: &str| view.node.attrs.int(a).filter(|n| *n > 0).map(Size::Known);
            let width = match (heads("q_num_heads"), heads("kv_num_heads")) {
                (Some(a), Some(b)) => v[2].div_exact(&b).and_then(|d| d.mul(&a)),
                _ => None,
            };
            Some(vec![Some(q[0].clone()), Some(q[1].clone()), width])
        }
        _ => None,
    };
    Some(out)
}
