//! What passes do to the weights and biases of linear layers.

use crate::ir::{Graph, Tensor};
use crate::plan::sites::Linear;
use crate::rewrite::{Patch, Ref};

/// The tensor with index `c` along `axis` multiplied by `f(c)`, in f32.
pub(super) fn scaled(t: &Tensor, axis: usize, f: impl Fn(usize) -> f32) -> Option<Tensor> {
    let data = t.to_f32s()?;
    let n = *t.dims.get(axis)? as usize;
    let inner: usize = t.dims[axis + 1..].iter().map(|d| *d as usize).product();
    let v: Vec<f32> = data.iter().enumerate().map(|(i, x)| x * f((i / inner.max(1)) % n)).collect();
    Some(Tensor::f32(&t.dims, &v))
}

/// Gives a layer the bias `f(c, b)` in place of `b`, channel by channel.
pub(super) fn bias_changed(
    g: &Graph,
    p: &mut Patch,
    l: &Linear,
    f: impl Fn(usize, f32) -> f32,
) -> Result<(), &'static str> {
    let (node, slot, now) = l.bias_now(g).ok_or("a layer has no bias")?;
    let t = g.constant(now).ok_or("a bias is no constant")?;
    let data = t.to_f32s().ok_or("a bias cannot be read")?;
    // One number per channel, however many axes of size one.
    let data: Vec<f32> = data.iter().enumerate().map(|(c, b)| f(c, *b)).collect();
    let c = p.constant(g.name_of(now), Tensor::f32(&t.dims, &data));
    p.set_input(node, slot, Some(c));
    Ok(())
}

/// Gives a Conv or Gemm that has no bias one in its own slot.
pub(super) fn bias_given(g: &Graph, p: &mut Patch, l: &Linear, bias: Ref) {
    p.set_input(l.node, 2, Some(bias));
    // Without a bias, a Gemm may say anything of what it is multiplied by.
    if g.node(l.node).op.is("Gemm") {
        p.set_attr(l.node, "beta", None);
    }
}

/// Multiplies the weight at index `c` of `axis` by `f(c)`.
pub(super) fn weight_scaled(
    g: &Graph,
    p: &mut Patch,
    l: &Linear,
    axis: usize,
    f: impl Fn(usize) -> f32,
) -> Result<(), &'static str> {
    // The weight as it is now: another entry may have replaced the one the sites were found with.
    let now = g.node(l.node).input(1).ok_or("a layer lost its weight")?;
    let t = g.constant(now).and_then(|w| scaled(w, axis, f)).ok_or("a weight cannot be read")?;
    let c = p.constant(g.name_of(now), t);
    p.set_input(l.node, 1, Some(c));
    Ok(())
}

/// Multiplies what a layer makes, weights and bias.
pub(super) fn outputs_scaled(
    g: &Graph,
    p: &mut Patch,
    l: &Linear,
    f: impl Fn(usize) -> f32,
) -> Result<(), &'static str> {
    weight_scaled(g, p, l, l.out_axis, &f)?;
    if l.bias.is_none() {
        return Ok(());
    }
    bias_changed(g, p, l, |c, b| b * f(c))
}
