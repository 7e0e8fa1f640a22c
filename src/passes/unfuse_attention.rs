//! The attentions of onnxruntime's transformers optimizer, and the sum of embeddings that stands in front of them in BERT,
//! written out again.

use super::common::over_axes;
use super::split_projection::columns;
use super::unfuse::Unfusing;
use crate::infer::Size;
use crate::ir::{Attrs, DType, Tensor, ValueId};
use crate::rewrite::Ref;

/// Elements of a causal mask that is worth a constant.
const LARGEST_MASK: i64 = 1 << 26;

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
        if sizes.iter().any(|s| *s <= 0 || s % heads != 0) || q != k || q + k + v != total || self.map.rank(x)? != 3 {
            return None;
        }
        let mut from = 0;
        let mut parts = Vec::new();
        for (size, what) in sizes.into_iter().zip(["q", "k", "v"]) {
            let part = self.columns(w, from, size, what);
            let mut y = self.node("MatMul", &format!("{what}_product"), &[x.into(), part]);
            if let Some(b) = self.n.input(2) {
                let part = self.columns(b, from, size, what);
                y = self.node("Add", what, &[y, part]);
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
                        y = self.node("Add", what, &[y, part]);
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
            Some(j.node("Gather", what, &[table, at]))
        };
        let words = look_up(self, 2, ids.into(), "words")?;
        let positions = match self.input(8) {
            Some(at) => look_up(self, 3, at, "positions")?,
            None => {
                let (table, from, axis) = (self.input(3)?, self.ints(&[0], "first"), self.ints(&[0], "rows"));
                let to = match self.map.dims(ids)?.get(1)?.known() {
                    Some(n) => self.ints(&[n], "last"),
                    None => self.size((ids, 1), &[1], "last"),
                };
                self.node("Slice", "positions", &[table, from, to, axis])
            }
        };
        let mut sum = self.node("Add", "words_placed", &[words, positions]);
        if let (Some(at), Some(_)) = (self.input(1), self.input(4)) {
            let segments = look_up(self, 4, at, "segments")?;
            sum = self.node("Add", "sum", &[sum, segments]);
        }
        let y = self.layer_norm(sum, 5, 6, 1e-12)?;
        let count = self.input(7).map(|mask| {
            let one = self.p.constant(&format!("{}_kept_mark", self.name), Tensor::i32(&[], &[1]));
            let keep = self.node("Equal", "kept", &[mask, one]);
            let keep = self.cast(keep, DType::INT32, "kept_whole");
            let attrs = Attrs::new().with_int("keepdims", 0);
            over_axes(&mut self.p, "ReduceSum", &format!("{}_count", self.name), keep, &[1], attrs, self.opset < 13)
        });
        Some((y, sum, count))
    }

    fn head_count(&self) -> Option<i64> {
        self.n.attrs.int("num_heads").filter(|h| *h > 0)
    }

    fn ints(&mut self, v: &[i64], what: &str) -> Ref {
        self.p.constant(&format!("{}_{what}", self.name), Tensor::i64(&[v.len() as i64], v))
    }

    fn turned(&mut self, x: Ref, perm: &[i64], what: &str) -> Ref {
        self.p.node("Transpose", &format!("{}_{what}", self.name), &[x], Attrs::new().with_ints("perm", perm))
    }

    fn unsqueezed(&mut self, x: Ref, axes: &[i64], what: &str) -> Ref {
        let hint = format!("{}_{what}", self.name);
        over_axes(&mut self.p, "Unsqueeze", &hint, x, axes, Attrs::new(), self.opset < 13)
    }

    /// A size of a value, as one number of that shape.
    fn size(&mut self, (x, axis): (ValueId, usize), shape: &[i64], what: &str) -> Ref {
        let sizes = self.node("Shape", &format!("{what}_sizes"), &[x.into()]);
        let at = Tensor::i64(shape, &[axis as i64]);
        let at = self.p.constant(&format!("{}_{what}_axis", self.name), at);
        self.node("Gather", &format!("{what}_size"), &[sizes, at])
    }

    /// Columns of a weight or a bias, cut out now if it is a constant.
    fn columns(&mut self, v: ValueId, from: i64, size: i64, what: &str) -> Ref {
        let hint = format!("{}_{what}", self.g.name_of(v));
        let known = self.g.constant(v).and_then(|t| {
            let axis = t.dims.len().checked_sub(1)?;
            let within = t.dims[axis] >= from + size;
            within.then(|| columns(t, axis, from as usize, size as usize)).flatten()
        });
        if let Some(t) = known {
            return self.p.constant(&hint, t);
        }
        let (from, to) = (self.ints(&[from], "from"), self.ints(&[from + size], "to"));
        let axis = self.ints(&[-1], "columns");
        self.p.node("Slice", &hint, &[v.into(), from, to, axis], Attrs::new())
    }

    /// Heads apart, in front of the tokens.
    fn split(&mut self, x: Ref, heads: i64, size: i64, what: &str) -> Ref {
        let to = self.ints(&[0, 0, heads, size], &format!("{what}_shape"));
        let x = self.node("Reshape", &format!("{what}_split"), &[x, to]);
        self.turned(x, &[0, 2, 1, 3], &format!("{what}_heads"))
    }

    /// Queries, keys or values out of heads that hold them side by side.
    fn packed(&mut self, x: ValueId, which: i64) -> Ref {
        let at = self.p.constant(&format!("{}_which_{which}", self.name), Tensor::i64(&[], &[which]));
        let hint = format!("{}_part_{which}", self.name);
        let x = self.p.node("Gather", &hint, &[x.into(), at], Attrs::new().with_int("axis", 3));
        self.turned(x, &[0, 2, 1, 3], &format!("heads_{which}"))
    }

    fn core(&mut self, h: &Heads, mask: Option<ValueId>, bias: Option<Ref>) -> Option<Ref> {
        let kt = self.turned(h.k, &[0, 1, 3, 2], "keys_turned");
        let s = self.node("MatMul", "scores_product", &[h.q, kt]);
        let scale = self.n.attrs.float("scale").filter(|s| *s != 0.0);
        let scale = self.number(scale.unwrap_or_else(|| (1.0 / (h.head_size as f64).sqrt()) as f32), "scale");
        let mut s = self.node("Mul", "scores", &[s, scale]);
        if let Some(m) = mask
            && let Some(m) = self.hidden(m, h)?
        {
            s = self.node("Add", "masked", &[s, m]);
        }
        if let Some(b) = bias {
            s = self.node("Add", "biased", &[s, b]);
        }
        if self.n.attrs.int("unidirectional").unwrap_or(0) != 0 {
            // Of more keys than queries, onnxruntime lets the last query see all.
            let count = |(x, axis): (ValueId, usize)| self.map.dims(x)?.get(axis);
            count(h.queries).filter(|n| Some(*n) == count(h.keys))?;
            let (ahead, lowest) = (self.ahead(h), self.number(f32::MIN, "lowest"));
            s = self.node("Where", "causal", &[ahead, lowest, s]);
        }
        let w = self.p.node("Softmax", &format!("{}_weights", self.name), &[s], Attrs::new().with_int("axis", -1));
        let y = self.node("MatMul", "by_head", &[w, h.v]);
        let y = self.turned(y, &[0, 2, 1, 3], "by_token");
        let to = self.ints(&[0, 0, -1], "shape");
        Some(self.node("Reshape", "joined", &[y, to]))
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
            let zero = self.p.constant(&format!("{}_hidden_mark", self.name), Tensor::i32(&[], &[0]));
            self.node("Greater", "keep", &[mask.into(), zero])
        };
        let hide = self.node("Not", "hide", &[keep]);
        let hide = self.unsqueezed(hide, axes, "hide_all");
        let hide = self.cast(hide, self.float(), "hidden");
        let fill = self.number(self.n.attrs.float("mask_filter_value").unwrap_or(-10000.0), "fill");
        Some(Some(self.node("Mul", "mask", &[hide, fill])))
    }

    /// True for the keys in front of each sample's end and, if there are two numbers for each sample, from its start on.
    fn in_reach(&mut self, mask: ValueId, count: &Size, h: &Heads) -> Option<Ref> {
        let samples = self.map.dims(h.queries.0)?.first()?;
        let twice = samples.mul(&Size::Known(2)).as_ref() == Some(count);
        if count != samples && !twice {
            return None;
        }
        let at = self.counted(h.keys, "key");
        let ends = self.cast(mask.into(), DType::INT64, "key_ends");
        if !twice {
            let ends = self.unsqueezed(ends, &[1], "key_end");
            return Some(self.node("Less", "keep", &[at, ends]));
        }
        let to = self.ints(&[2, -1, 1], "ends_shape");
        let ends = self.node("Reshape", "ends_apart", &[ends, to]);
        let [end, start] = [0, 1].map(|i| {
            let i = self.p.constant(&format!("{}_end_{i}", self.name), Tensor::i64(&[], &[i]));
            self.node("Gather", "key_end", &[ends, i])
        });
        let (before, early) = (self.node("Less", "before_end", &[at, end]), self.node("Less", "early", &[at, start]));
        let late = self.node("Not", "from_start", &[early]);
        Some(self.node("And", "keep", &[before, late]))
    }

    /// The numbers 0, 1, .. along an axis.
    fn counted(&mut self, of: (ValueId, usize), what: &str) -> Ref {
        if let Some(n) = self.map.dims(of.0).and_then(|d| d.get(of.1)?.known()).filter(|n| *n <= LARGEST_MASK) {
            return self.ints(&(0..n).collect::<Vec<_>>(), &format!("{what}_numbers"));
        }
        let count = self.size(of, &[], what);
        let [from, step] = [0, 1].map(|i| self.p.constant(&format!("{}_step_{i}", self.name), Tensor::i64(&[], &[i])));
        self.node("Range", &format!("{what}_numbers"), &[from, count, step])
    }

    /// True for the keys after each query.
    fn ahead(&mut self, h: &Heads) -> Ref {
        let known = |(x, axis): (ValueId, usize)| self.map.dims(x).and_then(|d| d.get(axis)?.known());
        if let (Some(s), Some(t)) = (known(h.queries), known(h.keys))
            && s.checked_mul(t).is_some_and(|n| n <= LARGEST_MASK)
        {
            let ahead: Vec<bool> = (0..s).flat_map(|i| (0..t).map(move |j| j > i)).collect();
            return self.p.constant(&format!("{}_ahead", self.name), Tensor::bool(&[s, t], &ahead));
        }
        let (i, j) = (self.counted(h.queries, "query"), self.counted(h.keys, "key"));
        let i = self.unsqueezed(i, &[1], "query_column");
        self.node("Greater", "ahead", &[j, i])
    }
}
