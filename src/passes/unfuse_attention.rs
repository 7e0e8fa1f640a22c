//! The attentions of onnxruntime's transformers optimizer, and the sum of embeddings that stands in front of them in BERT,
//! written out again.

use super::common::fits_mask;
use super::split_projection::columns;
use super::unfuse::Unfusing;
use crate::infer::Size;
use crate::ir::{Attrs, DType, Tensor, ValueId};
use crate::rewrite::Ref;

/// Queries, keys and values with their heads on axis 1, and the values whose axis 1 counts queries and keys.
struct Heads {
    q: Ref,
    k: Ref,
    v: Ref,
    head_size: i64,
    queries: (ValueId, usize),
    keys: (ValueId, usize),
}

impl Unfusing<'_> {
    /// `Attention`, which projects its input itself.
    pub(super) fn attention(&mut self) -> Option<Ref> {
        let (x, w) = (self.n.input(0)?, self.n.input(1)?);
        let flag = |name: &str| self.n.attrs.int(name).unwrap_or(0) != 0;
        if [4, 6].iter().any(|i| self.n.input(*i).is_some()) || flag("do_rotary") || flag("past_present_share_buffer") {
            return None;
        }
        let heads = self.head_count()?;
        let [_, total] = self.map.known_dims(w)?[..] else { return None };
        let sizes = match self.n.attrs.ints("qkv_hidden_sizes") {
            Some(s) => s.to_vec(),
            None => vec![total / 3; 3],
        };
        let [q, k, v] = sizes[..] else { return None };
        let all = q.checked_add(k).and_then(|n| n.checked_add(v));
        if sizes.iter().any(|s| *s <= 0 || s % heads != 0) || q != k || all != Some(total) || self.map.rank(x)? != 3 {
            return None;
        }
        let mut from = 0;
        let mut parts = Vec::new();
        for (size, what) in sizes.into_iter().zip(["q", "k", "v"]) {
            let part = self.columns(w, from, size, what);
            let mut y = self.e.part(what).op("MatMul", "product", &[x.into(), part]);
            if let Some(b) = self.n.input(2) {
                let part = self.columns(b, from, size, what);
                y = self.e.op("Add", what, &[y, part]);
            }
            from += size;
            parts.push(self.split(y, heads, size / heads, what));
        }
        let [q_heads, k, v] = parts[..] else { return None };
        let h = Heads { q: q_heads, k, v, head_size: q / heads, queries: (x, 1), keys: (x, 1) };
        self.core(&h, self.n.input(3), self.input(5))
    }

    /// `MultiHeadAttention`, whose queries, keys and values are projected before.
    pub(super) fn multi_head_attention(&mut self) -> Option<Ref> {
        let q = self.n.input(0)?;
        if (6..self.n.inputs.len()).any(|i| self.n.input(i).is_some()) {
            return None;
        }
        let (k, v, bias) = (self.n.input(1), self.n.input(2), self.n.input(3));
        let heads = self.head_count()?;
        let last = |x: ValueId| self.map.dims(x)?.last()?.known();
        let rank = |x: Option<ValueId>| x.and_then(|x| self.map.rank(x));
        let size = last(q)?;
        let h = match (self.map.rank(q)?, rank(k), rank(v)) {
            // Heads, and on the next axis what they are, lie after the tokens.
            (5, None, None) if k.is_none() && v.is_none() && bias.is_none() => {
                let [a, b, c] = [0, 1, 2].map(|i| self.packed(q, i));
                Heads { q: a, k: b, v: c, head_size: size, queries: (q, 1), keys: (q, 1) }
            }
            (3, Some(5), None) if v.is_none() && bias.is_none() && size % heads == 0 => {
                let k = k?;
                let [b, c] = [0, 1].map(|i| self.packed(k, i));
                let a = self.split(q.into(), heads, size / heads, "q");
                Heads { q: a, k: b, v: c, head_size: size / heads, queries: (q, 1), keys: (k, 1) }
            }
            (3, Some(kind @ (3 | 4)), Some(same)) if kind == same && size % heads == 0 => {
                let (k, v) = (k?, v?);
                let rows = [("q", q, 0, size), ("k", k, size, size), ("v", v, 2 * size, last(v)?)];
                let mut parts = Vec::new();
                for (what, x, from, columns) in rows {
                    // What has its heads already has its bias.
                    if what != "q" && kind == 4 {
                        parts.push(x.into());
                        continue;
                    }
                    let mut y = x.into();
                    if let Some(b) = bias {
                        let part = self.columns(b, from, columns, what);
                        y = self.e.op("Add", what, &[y, part]);
                    }
                    parts.push(self.split(y, heads, columns / heads, what));
                }
                let [a, b, c] = parts[..] else { return None };
                Heads { q: a, k: b, v: c, head_size: size / heads, queries: (q, 1), keys: (k, kind - 2) }
            }
            _ => return None,
        };
        self.core(&h, self.n.input(4), self.input(5))
    }

    /// The sum of words, positions and segments, its norm, and how many tokens a mask leaves of each sample.
    pub(super) fn embeddings(&mut self) -> Option<(Ref, Ref, Option<Ref>)> {
        let ids = self.n.input(0)?;
        let look_up = |j: &mut Self, table: usize, at: Ref, what: &str| {
            let table = j.input(table)?;
            Some(j.e.op("Gather", what, &[table, at]))
        };
        let words = look_up(self, 2, ids.into(), "words")?;
        let positions = match self.input(8) {
            Some(at) => look_up(self, 3, at, "positions")?,
            None => {
                let (table, from, axis) = (self.input(3)?, self.e.ints("first", &[0]), self.e.ints("rows", &[0]));
                let to = match self.map.dims(ids)?.get(1)?.known() {
                    Some(n) => self.e.ints("last", &[n]),
                    None => self.size((ids, 1), &[1], "last"),
                };
                self.e.op("Slice", "positions", &[table, from, to, axis])
            }
        };
        let mut sum = self.e.op("Add", "words_placed", &[words, positions]);
        if let (Some(at), Some(_)) = (self.input(1), self.input(4)) {
            let segments = look_up(self, 4, at, "segments")?;
            sum = self.e.op("Add", "sum", &[sum, segments]);
        }
        let y = self.layer_norm(sum, 5, 6, 1e-12)?;
        let count = self.input(7).map(|mask| {
            let one = self.e.constant("kept_mark", Tensor::i32(&[], &[1]));
            let keep = self.e.op("Equal", "kept", &[mask, one]);
            let keep = self.e.cast("kept_whole", keep, DType::INT32);
            let attrs = Attrs::new().with_int("keepdims", 0);
            self.e.over("ReduceSum", "count", keep, &[1], attrs, self.opset)
        });
        Some((y, sum, count))
    }

    fn head_count(&self) -> Option<i64> {
        self.n.attrs.int("num_heads").filter(|h| *h > 0)
    }

    fn unsqueezed(&mut self, x: Ref, axes: &[i64], what: &str) -> Ref {
        self.e.over("Unsqueeze", what, x, axes, Attrs::new(), self.opset)
    }

    /// A size of a value, as one number of that shape.
    fn size(&mut self, (x, axis): (ValueId, usize), shape: &[i64], what: &str) -> Ref {
        let mut e = self.e.part(what);
        let sizes = e.op("Shape", "sizes", &[x.into()]);
        let at = e.constant("axis", Tensor::i64(shape, &[axis as i64]));
        e.op("Gather", "size", &[sizes, at])
    }

    /// Columns of a weight or a bias, cut out now if it is a constant.
    fn columns(&mut self, v: ValueId, from: i64, size: i64, what: &str) -> Ref {
        let known = self.g.constant(v).and_then(|t| {
            let axis = t.dims.len().checked_sub(1)?;
            let within = t.dims[axis] >= from + size;
            within.then(|| columns(t, axis, from as usize, size as usize)).flatten()
        });
        let name = self.g.name_of(v);
        if let Some(t) = known {
            return self.e.under(name).constant(what, t);
        }
        let (from, to) = (self.e.ints("from", &[from]), self.e.ints("to", &[from + size]));
        let axis = self.e.ints("columns", &[-1]);
        self.e.under(name).op("Slice", what, &[v.into(), from, to, axis])
    }

    /// Heads apart, in front of the tokens.
    fn split(&mut self, x: Ref, heads: i64, size: i64, what: &str) -> Ref {
        let mut e = self.e.part(what);
        let to = e.ints("shape", &[0, 0, heads, size]);
        let x = e.op("Reshape", "split", &[x, to]);
        e.turned("heads", x, &[0, 2, 1, 3])
    }

    /// Queries, keys or values out of heads that hold them side by side.
    fn packed(&mut self, x: ValueId, which: i64) -> Ref {
        let at = self.e.int(&format!("which_{which}"), which);
        let of = Attrs::new().with_int("axis", 3);
        let x = self.e.op_with("Gather", &format!("part_{which}"), &[x.into(), at], of);
        self.e.turned(&format!("heads_{which}"), x, &[0, 2, 1, 3])
    }

    fn core(&mut self, h: &Heads, mask: Option<ValueId>, bias: Option<Ref>) -> Option<Ref> {
        let kt = self.e.turned("keys_turned", h.k, &[0, 1, 3, 2]);
        let s = self.e.op("MatMul", "scores_product", &[h.q, kt]);
        let scale = self.n.attrs.float("scale").filter(|s| *s != 0.0);
        let scale = self.number(scale.unwrap_or_else(|| (1.0 / (h.head_size as f64).sqrt()) as f32), "scale");
        let mut s = self.e.op("Mul", "scores", &[s, scale]);
        if let Some(m) = mask
            && let Some(m) = self.hidden(m, h)?
        {
            s = self.e.op("Add", "masked", &[s, m]);
        }
        if let Some(b) = bias {
            s = self.e.op("Add", "biased", &[s, b]);
        }
        if self.n.attrs.int("unidirectional").unwrap_or(0) != 0 {
            // Of more keys than queries, onnxruntime lets the last query see all.
            let count = |(x, axis): (ValueId, usize)| self.map.dims(x)?.get(axis);
            count(h.queries).filter(|n| Some(*n) == count(h.keys))?;
            let (ahead, lowest) = (self.ahead(h), self.number(f32::MIN, "lowest"));
            s = self.e.op("Where", "causal", &[ahead, lowest, s]);
        }
        let w = self.e.op_with("Softmax", "weights", &[s], Attrs::new().with_int("axis", -1));
        let y = self.e.op("MatMul", "by_head", &[w, h.v]);
        let y = self.e.turned("by_token", y, &[0, 2, 1, 3]);
        let to = self.e.ints("shape", &[0, 0, -1]);
        Some(self.e.op("Reshape", "joined", &[y, to]))
    }

    /// What is added to scores for a mask of ones and zeros, or for numbers of keys; nothing for a mask that says nothing.
    /// `None` if it is not known which of these it is.
    fn hidden(&mut self, mask: ValueId, h: &Heads) -> Option<Option<Ref>> {
        let dims = self.map.dims(mask)?.to_vec();
        let keys = self.map.dims(h.keys.0)?.get(h.keys.1)?.clone();
        let axes: &[i64] = match dims.len() {
            2 if dims[1].known() == Some(1) && keys.known() != Some(1) => return Some(None),
            1 | 2 => &[1, 2],
            3 => &[1],
            _ => return None,
        };
        let keep = if let [count] = &dims[..] {
            self.in_reach(mask, count, h)?
        } else {
            let zero = self.e.constant("hidden_mark", Tensor::i32(&[], &[0]));
            self.e.op("Greater", "keep", &[mask.into(), zero])
        };
        let hide = self.e.op("Not", "hide", &[keep]);
        let hide = self.unsqueezed(hide, axes, "hide_all");
        let hide = self.e.cast("hidden", hide, self.float());
        let fill = self.number(self.n.attrs.float("mask_filter_value").unwrap_or(-10000.0), "fill");
        Some(Some(self.e.op("Mul", "mask", &[hide, fill])))
    }

    /// True for the keys in front of each sample's end and, if there are two numbers for each sample, from its start on.
    fn in_reach(&mut self, mask: ValueId, count: &Size, h: &Heads) -> Option<Ref> {
        let samples = self.map.dims(h.queries.0)?.first()?;
        let twice = samples.mul(&Size::Known(2)).as_ref() == Some(count);
        if count != samples && !twice {
            return None;
        }
        let at = self.counted(h.keys, "key");
        let ends = self.e.cast("key_ends", mask.into(), DType::INT64);
        if !twice {
            let ends = self.unsqueezed(ends, &[1], "key_end");
            return Some(self.e.op("Less", "keep", &[at, ends]));
        }
        let to = self.e.ints("ends_shape", &[2, -1, 1]);
        let ends = self.e.op("Reshape", "ends_apart", &[ends, to]);
        let [end, start] = [0, 1].map(|i| {
            let i = self.e.int(&format!("end_{i}"), i);
            self.e.op("Gather", "key_end", &[ends, i])
        });
        let (before, early) = (self.e.op("Less", "before_end", &[at, end]), self.e.op("Less", "early", &[at, start]));
        let late = self.e.op("Not", "from_start", &[early]);
        Some(self.e.op("And", "keep", &[before, late]))
    }

    /// The numbers 0, 1, .. along an axis.
    fn counted(&mut self, of: (ValueId, usize), what: &str) -> Ref {
        if let Some(n) = self.map.dims(of.0).and_then(|d| d.get(of.1)?.known()).filter(|n| fits_mask(*n, 1)) {
            return self.e.part(what).ints("numbers", &(0..n).collect::<Vec<_>>());
        }
        let count = self.size(of, &[], what);
        let [from, step] = [0, 1].map(|i| self.e.int(&format!("step_{i}"), i));
        self.e.part(what).op("Range", "numbers", &[from, count, step])
    }

    /// True for the keys after each query.
    fn ahead(&mut self, h: &Heads) -> Ref {
        let known = |(x, axis): (ValueId, usize)| self.map.dims(x).and_then(|d| d.get(axis)?.known());
        if let (Some(s), Some(t)) = (known(h.queries), known(h.keys))
            && fits_mask(s, t)
        {
            let ahead: Vec<bool> = (0..s).flat_map(|i| (0..t).map(move |j| j > i)).collect();
            return self.e.constant("ahead", Tensor::bool(&[s, t], &ahead));
        }
        let (i, j) = (self.counted(h.queries, "query"), self.counted(h.keys, "key"));
        let i = self.unsqueezed(i, &[1], "query_column");
        self.e.op("Greater", "ahead", &[j, i])
    }
}
