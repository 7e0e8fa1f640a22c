use super::common::{commit, fits_mask};
use super::{Context, Numerics, Outcome, Pass, PassError};
use crate::infer::ShapeMap;
use crate::ir::{Attrs, DType, Graph, Node, NodeId, Tensor, ValueId};
use crate::rewrite::{Patch, Ref, Under};

/// # What it does
/// Writes the standard operator `Attention` (opset 23 and later) out as the operators it stands for: MatMul, scale,
/// mask, Softmax, MatMul, with the heads split off and joined where its inputs have three axes. Then the rules for
/// attention see it, and so do runtimes that lack the operator.
///
/// # When it fires
/// On every `Attention` over float32 whose head counts and head size are known. One that hides keys by the length of a cache,
/// hands out scores that are masked or capped, or counts the keys of each sample is left alone, with a note that says which.
///
/// # Why it is correct
/// It is the operator's definition. The standard multiplies queries and keys by the root of the scale each; here their
/// product is multiplied once. Query head `h` of `H` reads head `h / (H / G)` of `G` key and value heads: a Gather
/// repeats them (a single head broadcasts). Past keys and values stand before those of this call. A boolean mask of false and
/// the upper triangle of a causal attention put minus infinity in place of the score; where a mask computed at run time may
/// hide a whole row, the row's weights are zeros, as the standard has it. Scores are capped before they are masked, as
/// onnxruntime and the standard's reference implementation do at every version (measured; a drawing of version 23 has them the
/// other way round).
///
/// # Numerics
/// Close: the scale is rounded in another place.
///
/// # Before / after
/// ```text
/// y = Attention (q, k, v, mask)       kt = Transpose <perm = [0, 1, 3, 2]> (k)
///                                     s = Mul (MatMul (q, kt), 0.125)
///                                     y = MatMul (Softmax (Add (s, mask)), v)
/// ```
///
/// # Source
/// ONNX operator documentation, Attention, versions 23 to 25.
pub struct DecomposeAttention;

impl Pass for DecomposeAttention {
    fn id(&self) -> &'static str {
        "decompose-attention"
    }

    fn summary(&self) -> &'static str {
        "Decomposes the Attention operator into products and a Softmax."
    }

    fn numerics(&self) -> Numerics {
        Numerics::Close { rel: 1e-5 }
    }

    fn run(&self, model: &mut Context) -> Result<Outcome, PassError> {
        let mut out = Outcome::default();
        let found: Vec<NodeId> = model.graph.nodes().filter(|(_, n)| n.op.is("Attention")).map(|(id, _)| id).collect();
        if found.is_empty() {
            return Ok(out);
        }
        let map = model.shapes();
        for id in found {
            match Operator::of(&model.graph, &map, id, model.opset()) {
                Ok(site) => {
                    commit(site.patch(&model.graph, id), model, &mut out)?;
                }
                Err(why) => {
                    let name = model.graph.node(id).out().map_or("", |v| model.graph.name_of(v));
                    out.notes.push(format!("the Attention that makes `{name}` stays as it is: {why}"));
                }
            }
        }
        Ok(out)
    }
}

/// Which keys a query may look at.
enum Causal {
    No,
    /// Number of queries and keys.
    Known(i64, i64),
    Computed,
}

/// What is known of one `Attention`.
struct Operator {
    q: ValueId,
    k: ValueId,
    v: ValueId,
    y: ValueId,
    /// The mask, and whether it is boolean.
    mask: Option<(ValueId, bool)>,
    /// A row can lose all its keys, which is not known before run time.
    may_hide_rows: bool,
    causal: Causal,
    q_heads: i64,
    kv_heads: i64,
    /// Heads are an axis of the inputs.
    split: bool,
    head_size: i64,
    scale: f32,
    /// `c` of `c tanh(scores / c)`.
    softcap: Option<f32>,
    /// Keys and values of earlier calls, `[B, G, P, size]`.
    past: Option<[ValueId; 2]>,
    /// The outputs for all keys and all values, where they are read.
    present: [Option<ValueId>; 2],
    /// The output for scores, where it is read, and at which point of the computation they are handed out.
    shown: Option<(ValueId, Shown)>,
}

/// What the output for scores holds.
#[derive(Clone, Copy, PartialEq)]
enum Shown {
    /// Scaled products of queries and keys, neither capped nor masked: so the standard and onnxruntime have it (its reference
    /// implementation hands out capped ones).
    Products,
    Weights,
}

impl Shown {
    fn of(n: &Node) -> Result<Shown, &'static str> {
        match n.int("qk_matmul_output_mode") {
            0 => Ok(Shown::Products),
            3 => Ok(Shown::Weights),
            _ => Err("its masked or capped scores are read"),
        }
    }
}

/// What one node of this operator does that the spelt-out form does not do, if anything.
fn beyond(n: &Node) -> Option<&'static str> {
    let window = |name| n.attrs.int(name).unwrap_or(-1) >= 0;
    if n.input(4).is_some() != n.input(5).is_some() {
        Some("it has past keys or past values, and not both")
    } else if n.input(4).is_some() && n.int("is_causal") != 0 {
        Some("it hides keys by the length of its cache")
    } else if n.input(6).is_some() {
        Some("it counts the keys of each sample")
    } else if window("left_window_size") || window("right_window_size") {
        Some("its keys lie in a sliding window")
    } else {
        None
    }
}

fn softcap(n: &Node) -> Option<f32> {
    n.attrs.float("softcap").filter(|c| *c > 0.0)
}

/// True unless the mask shows at least one key to each query, whatever the causal mask hides.
fn may_hide_rows(map: &ShapeMap, mask: ValueId, boolean: bool, causal: &Causal) -> bool {
    let Some(t) = map.constant(mask) else { return true };
    let last = t.dims.last().copied().unwrap_or(1).max(1) as usize;
    let kept: Option<Vec<bool>> = if boolean {
        t.to_i64s().map(|x| x.iter().map(|x| *x != 0).collect())
    } else {
        t.to_f32s().map(|x| x.iter().map(|x| *x != f32::NEG_INFINITY).collect())
    };
    !matches!(causal, Causal::No) || kept.is_none_or(|k| k.chunks(last).any(|row| row.iter().all(|x| !x)))
}

impl Operator {
    fn of(g: &Graph, map: &ShapeMap, id: NodeId, opset: i64) -> Result<Operator, String> {
        let n = g.node(id);
        let (Some(q), Some(k), Some(v), Some(y)) = (n.input(0), n.input(1), n.input(2), n.out()) else {
            return Err("it lacks an input or its output".into());
        };
        if let Some(why) = beyond(n) {
            return Err(why.into());
        }
        let past = n.input(4).zip(n.input(5)).map(|(k, v)| [k, v]);
        let read = |slot: usize| n.output(slot).filter(|v| g.use_count(*v) > 0);
        let shown = read(3).map(|v| Ok::<_, String>((v, Shown::of(n)?))).transpose()?;
        let floats = [q, k, v].into_iter().chain(past.into_iter().flatten());
        if let Some(t) = floats.filter_map(|x| map.dtype(x)).find(|t| *t != DType::FLOAT) {
            return Err(format!("it computes in {t}"));
        }
        let dims = |v: ValueId| map.dims(v).filter(|d| d.len() == 3 || d.len() == 4);
        let (Some(dq), Some(dk), Some(dv)) = (dims(q), dims(k), dims(v)) else {
            return Err("the number of axes of its inputs is not known".into());
        };
        if dq.len() != dk.len() || dq.len() != dv.len() {
            return Err("its inputs differ in their number of axes".into());
        }
        let split = dq.len() == 4;
        let heads = |name: &str, v: ValueId| match n.attrs.int(name) {
            Some(h) if !split => Some(h),
            _ => dims(v).filter(|_| split)?[1].known(),
        };
        let (Some(q_heads), Some(kv_heads)) = (heads("q_num_heads", q), heads("kv_num_heads", k)) else {
            return Err("its number of heads is not known".into());
        };
        if q_heads < 1 || kv_heads < 1 || q_heads % kv_heads != 0 || q_heads > 1 << 16 {
            return Err(format!("{q_heads} query heads cannot share {kv_heads} heads of keys"));
        }
        let width = dq.last().and_then(|d| d.known()).filter(|w| *w > 0);
        let head_size = width.map(|w| if split { w } else { w / q_heads }).ok_or("its head size is not known")?;
        let scale = n.attrs.float("scale").unwrap_or_else(|| (1.0 / (head_size as f64).sqrt()) as f32);
        let mask = match n.input(3).map(|m| (m, map.dtype(m))) {
            None => None,
            Some((m, Some(DType::BOOL))) => Some((m, true)),
            Some((m, Some(DType::FLOAT))) => Some((m, false)),
            Some(_) => return Err("its mask is neither boolean nor float32".into()),
        };
        let keys = &dk[dk.len() - 2];
        let earlier = past.map_or(Some(0), |[k, _]| map.dims(k).and_then(|d| d.get(2)?.known()));
        let all = keys.known().zip(earlier).and_then(|(n, p)| n.checked_add(p));
        if let (Some((m, _)), true) = (mask, opset >= 24)
            && let Some(Some(last)) = map.dims(m).map(|d| d.last().and_then(|d| d.known()))
            && all.is_some_and(|k| k != last)
        {
            return Err("its mask is shorter than its keys".into());
        }
        let causal = match (n.int("is_causal"), dq[dq.len() - 2].known(), keys.known()) {
            (0, ..) => Causal::No,
            (_, Some(s), Some(t)) if fits_mask(s, t) => Causal::Known(s, t),
            _ => Causal::Computed,
        };
        let may_hide_rows = mask.is_some_and(|(m, boolean)| may_hide_rows(map, m, boolean, &causal));
        let (softcap, present) = (softcap(n), [read(1), read(2)]);
        Ok(Operator {
            q,
            k,
            v,
            y,
            mask,
            may_hide_rows,
            causal,
            q_heads,
            kv_heads,
            split,
            head_size,
            scale,
            softcap,
            past,
            present,
            shown,
        })
    }

    fn patch(&self, g: &Graph, id: NodeId) -> Patch {
        let name = g.name_of(self.y);
        let mut p = Patch::new("decompose-attention").before(id).made_from([name.to_owned()]);
        let mut e = p.under(name);
        let q = self.heads(&mut e.part("q"), self.q, self.q_heads, Some(self.head_size));
        let [past_k, past_v] = self.past.map_or([None; 2], |past| past.map(Some));
        let all_k = self.all_heads(&mut e.part("k"), self.k, past_k);
        let all_v = self.all_heads(&mut e.part("v"), self.v, past_v);
        let k = self.repeated(&mut e.part("k"), all_k);
        let v = self.repeated(&mut e.part("v"), all_v);
        let kt = e.turned("k_transposed", k, &[0, 1, 3, 2]);
        let s = e.op("MatMul", "product", &[q, kt]);
        let scale = e.scalar("scale", self.scale);
        let s = e.op("Mul", "scores", &[s, scale]);
        let w = self.weights(&mut e, s);
        let shown = self.shown.map(|(out, at)| (out, if at == Shown::Weights { w } else { s }));
        let more = [self.present[0].map(|out| (out, all_k)), self.present[1].map(|out| (out, all_v)), shown];
        let y = if self.split {
            e.op("MatMul", "", &[w, v])
        } else {
            let y = e.op("MatMul", "by_head", &[w, v]);
            let y = e.turned("by_token", y, &[0, 2, 1, 3]);
            e.reshaped("", y, &[0, 0, -1])
        };
        p.succeed(self.y, y);
        for (out, made) in more.into_iter().flatten() {
            let made = p.under(g.name_of(out)).op("Identity", "", &[made]);
            p.succeed(out, made);
        }
        p.erase(id);
        p
    }

    /// From the scaled product to the weights: capped, masked, and without those of rows that have no keys.
    fn weights(&self, e: &mut Under<'_>, mut s: Ref) -> Ref {
        if let Some(c) = self.softcap {
            let c = e.scalar("cap", c);
            let t = e.op("Div", "uncapped", &[s, c]);
            let t = e.op("Tanh", "bent", &[t]);
            s = e.op("Mul", "capped", &[t, c]);
        }
        let mut keep = self.causal(e);
        match self.mask {
            Some((m, true)) => keep = Some(keep.map_or(m.into(), |k| e.op("And", "keep", &[m.into(), k]))),
            Some((m, false)) => s = e.op("Add", "masked", &[s, m.into()]),
            None => {}
        }
        if let Some(k) = keep {
            let hidden = e.scalar("hidden", f32::NEG_INFINITY);
            s = e.op("Where", "kept", &[k, s, hidden]);
        }
        let w = e.op_with("Softmax", "weights", &[s], Attrs::new().with_int("axis", -1));
        if !self.may_hide_rows {
            return w;
        }
        let nan = e.op("IsNaN", "no_keys", &[w]);
        let zero = e.scalar("no_weight", 0.0);
        e.op("Where", "guarded", &[nan, zero, w])
    }

    /// The input with its heads on axis 1.
    fn heads(&self, e: &mut Under<'_>, x: ValueId, heads: i64, size: Option<i64>) -> Ref {
        if self.split {
            return x.into();
        }
        let to = e.ints("shape", &[0, 0, heads, size.unwrap_or(-1)]);
        let x = e.op("Reshape", "split", &[x.into(), to]);
        e.turned("heads", x, &[0, 2, 1, 3])
    }

    /// Keys or values with their heads on axis 1, those of earlier calls first.
    fn all_heads(&self, e: &mut Under<'_>, x: ValueId, past: Option<ValueId>) -> Ref {
        let x = self.heads(e, x, self.kv_heads, None);
        match past {
            Some(past) => e.op_with("Concat", "present", &[past.into(), x], Attrs::new().with_int("axis", 2)),
            None => x,
        }
    }

    /// Keys or values, one head for each query head, or one for all.
    fn repeated(&self, e: &mut Under<'_>, x: Ref) -> Ref {
        if self.kv_heads == self.q_heads || self.kv_heads == 1 {
            return x;
        }
        let group = self.q_heads / self.kv_heads;
        let which: Vec<i64> = (0..self.q_heads).map(|h| h / group).collect();
        let which = e.ints("of_head", &which);
        e.op_with("Gather", "repeated", &[x, which], Attrs::new().with_int("axis", 1))
    }

    /// True where a query may look at a key that is not after it.
    fn causal(&self, e: &mut Under<'_>) -> Option<Ref> {
        match self.causal {
            Causal::No => None,
            Causal::Known(s, t) => {
                let keep: Vec<bool> = (0..s).flat_map(|i| (0..t).map(move |j| j <= i)).collect();
                Some(e.constant("causal", Tensor::bool(&[s, t], &keep)))
            }
            Causal::Computed => {
                let axis = if self.split { 2 } else { 1 };
                let mut count = |x: ValueId, part: &str| {
                    let range = Attrs::new().with_int("start", axis).with_int("end", axis + 1);
                    let n = e.op_with("Shape", &format!("{part}s"), &[x.into()], range);
                    let none = e.ints("scalar", &[]);
                    let n = e.part(part).op("Reshape", "count", &[n, none]);
                    let (from, step) = (e.int("first", 0), e.int("step", 1));
                    e.op("Range", part, &[from, n, step])
                };
                let (i, j) = (count(self.q, "query"), count(self.k, "key"));
                let last = e.ints("last_axis", &[-1]);
                let i = e.op("Unsqueeze", "query_column", &[i, last]);
                Some(e.op("LessOrEqual", "causal", &[j, i]))
            }
        }
    }
}
