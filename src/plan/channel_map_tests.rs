use super::*;
use crate::infer;
use crate::ir::Model;
use crate::pattern::{RuleSet, attentions};
use crate::plan::sites;
use crate::text::parse_model;
use proptest::prelude::*;

/// What stands between the layers `q`, `k`, `v` and the projection `y` of a small attention.
pub(crate) struct Layout {
    /// Type of the input.
    pub x: &'static str,
    pub channels: usize,
    /// Output channels of the layers of keys and values.
    pub narrow: usize,
    /// Initializers.
    pub constants: String,
    /// From `q`, `k`, `v` to `o`.
    pub core: String,
    /// From `o` to `r`, which the projection reads.
    pub tail: String,
}

impl Layout {
    /// `heads` heads of `d` channels, heads in front of channels or after them on the way in and on the way out.
    pub fn heads(heads: usize, d: usize, heads_last: [bool; 2]) -> Layout {
        let c = heads * d;
        let (split, q, k) = match heads_last[0] {
            false => (format!("{{0, -1, {heads}, {d}}}"), "[0, 2, 1, 3]", "[0, 2, 3, 1]"),
            true => (format!("{{0, -1, {d}, {heads}}}"), "[0, 3, 1, 2]", "[0, 3, 2, 1]"),
        };
        let out = if heads_last[1] { "[0, 2, 3, 1]" } else { "[0, 2, 1, 3]" };
        Layout {
            x: "b,4",
            channels: c,
            narrow: c,
            constants: format!(", int64[4] split = {split}, int64[3] join = {{0, -1, {c}}}"),
            core: format!(
                "q4 = Reshape (q, split) qh = Transpose <perm = {q}> (q4)
                 k4 = Reshape (k, split) kh = Transpose <perm = {k}> (k4)
                 v4 = Reshape (v, split) vh = Transpose <perm = {q}> (v4)
                 s = MatMul (qh, kh) p = Softmax (s) o = MatMul (p, vh)"
            ),
            tail: format!("o4 = Transpose <perm = {out}> (o) r = Reshape (o4, join)"),
        }
    }

    /// Batch and heads in one axis, keys transposed in two steps.
    pub fn merged(heads: usize, d: usize) -> Layout {
        let c = heads * d;
        let part = |x: &str| {
            format!(
                "{x}4 = Reshape ({x}, split) {x}t = Transpose <perm = [0, 2, 1, 3]> ({x}4) {x}h = Reshape ({x}t, one)\n"
            )
        };
        Layout {
            x: "b,4",
            channels: c,
            narrow: c,
            constants: format!(
                ", int64[4] split = {{0, 4, {heads}, {d}}}, int64[3] one = {{-1, 4, {d}}},
                 int64[4] apart = {{-1, {heads}, 4, {d}}}, int64[3] join = {{0, 4, {c}}}"
            ),
            core: format!(
                "{} {} {} kk = Transpose <perm = [0, 2, 1]> (kh)
                 s = MatMul (qh, kk) p = Softmax (s) o = MatMul (p, vh)",
                part("q"),
                part("k"),
                part("v")
            ),
            tail: "oh = Reshape (o, apart) o4 = Transpose <perm = [0, 2, 1, 3]> (oh) r = Reshape (o4, join)".into(),
        }
    }

    /// One head and no moves but those of the keys.
    pub fn plain(c: usize) -> Layout {
        Layout {
            x: "b,4",
            channels: c,
            narrow: c,
            constants: String::new(),
            core: "kt = Transpose <perm = [0, 2, 1]> (k) s = MatMul (q, kt) p = Softmax (s) o = MatMul (p, v)".into(),
            tail: "r = Identity (o)".into(),
        }
    }

    /// Every query head reads the same keys and values.
    fn shared() -> Layout {
        Layout {
            narrow: 3,
            core: "q4 = Reshape (q, split) qh = Transpose <perm = [0, 2, 1, 3]> (q4)
                   k4 = Unsqueeze (k, one) kh = Transpose <perm = [0, 1, 3, 2]> (k4) vh = Unsqueeze (v, one)
                   s = MatMul (qh, kh) p = Softmax (s) o = MatMul (p, vh)"
                .into(),
            constants: ", int64[4] split = {0, -1, 2, 3}, int64[1] one = {1}, int64[3] join = {0, -1, 6}".into(),
            ..Layout::heads(2, 3, [false, false])
        }
    }

    pub fn model(&self) -> Model {
        let (c, n) = (self.channels, self.narrow);
        let noise = |len: usize, seed: u32| {
            let one = |i: u32| (i.wrapping_add(seed).wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 23) as f32 - 1.0;
            (0..len as u32).map(|i| format!("{:?}", one(i))).collect::<Vec<_>>().join(", ")
        };
        let text = format!(
            "<ir_version: 8, opset_import: [\"\" : 17]>
             g (float[{},{c}] x) => (float[] y) <float[{c},{c}] wq = {{{}}}, float[{c}] bq = {{{}}},
              float[{c},{n}] wk = {{{}}}, float[{n}] bk = {{{}}}, float[{c},{n}] wv = {{{}}}, float[{n}] bv = {{{}}},
              float[{c},{c}] w = {{{}}}, float[{c}] bias = {{{}}}{}> {{
                 qm = MatMul (x, wq) q = Add (qm, bq)
                 km = MatMul (x, wk) k = Add (km, bk)
                 vm = MatMul (x, wv) v = Add (bv, vm)
                 {} {}
                 m = MatMul (r, w) y = Add (m, bias)
             }}",
            self.x,
            noise(c * c, 0),
            noise(c, 1000),
            noise(c * n, 2000),
            noise(n, 3000),
            noise(c * n, 4000),
            noise(n, 5000),
            noise(c * c, 6000),
            noise(c, 7000),
            self.constants,
            self.core,
            self.tail
        )
        .replace("float[] y", "y");
        let mut m = parse_model(&text).expect("parses");
        infer::annotate(&mut m);
        m
    }
}

/// The sites of a model; it has one attention.
pub(crate) fn sites_of(m: &Model) -> Sites {
    let found = attentions(m, &RuleSet::embedded().expect("the rules are sound"));
    assert_eq!(found.len(), 1);
    sites::find(m, found)
}

/// What each kind of pair maps to.
fn maps(l: &Layout) -> (Option<Vec<usize>>, Option<Vec<usize>>) {
    let m = l.model();
    let found = pairs(&m.graph, &sites_of(&m));
    let of = |b: Between| found.iter().find(|p| p.between == b).map(|p| p.to.clone());
    (of(Between::ValuesProjection), of(Between::QueriesKeys))
}

proptest! {
    #[test]
    fn channels_arrive_where_the_layout_takes_them(
        heads in 1usize..5, d in 1usize..6, last_in in any::<bool>(), last_out in any::<bool>(),
    ) {
        // Channel of a head's element, on the way in and out.
        let place = |last: bool, h: usize, j: usize| if last { j * heads + h } else { h * d + j };
        let mut wanted = vec![0; heads * d];
        for h in 0..heads {
            for j in 0..d {
                wanted[place(last_in, h, j)] = place(last_out, h, j);
            }
        }
        let same: Vec<usize> = (0..heads * d).collect();
        prop_assert_eq!(maps(&Layout::heads(heads, d, [last_in, last_out])), (Some(wanted), Some(same)));
    }

    #[test]
    fn a_transpose_moves_every_element(dims in prop::collection::vec(1usize..5, 1..5), seed in any::<u32>()) {
        let n: usize = dims.iter().product();
        let mut perm: Vec<usize> = (0..dims.len()).collect();
        perm.sort_by_key(|i| (*i as u32 + 1).wrapping_mul(seed | 1));
        let t = Numbered { dims: dims.clone(), numbers: (0..n).collect() }.transposed(&perm).unwrap();
        for (at, from) in t.numbers.iter().enumerate() {
            // Both places written out axis by axis.
            let digits = |mut i: usize, dims: &[usize]| {
                let mut out: Vec<usize> = dims.iter().rev().map(|d| { let r = i % d; i /= d; r }).collect();
                out.reverse();
                out
            };
            let (new, old) = (digits(at, &t.dims), digits(*from, &dims));
            prop_assert!(perm.iter().enumerate().all(|(i, p)| new[i] == old[*p]));
        }
    }
}

#[test]
fn other_layouts_are_followed() {
    let same = |n: usize| Some((0..n).collect::<Vec<_>>());
    assert_eq!(maps(&Layout::merged(2, 3)), (same(6), same(6)));
    assert_eq!(maps(&Layout::plain(5)), (same(5), same(5)));
    // Keys whose channels lie otherwise than those of the queries.
    let mut l = Layout::heads(2, 3, [false, false]);
    l.constants += ", int64[4] turned = {0, -1, 3, 2}";
    l.core = l.core.replace(
        "k4 = Reshape (k, split) kh = Transpose <perm = [0, 2, 3, 1]>",
        "k4 = Reshape (k, turned) kh = Transpose <perm = [0, 3, 2, 1]>",
    );
    assert_eq!(maps(&l), (same(6), Some(vec![0, 2, 4, 1, 3, 5])));
}

/// `(values and projection, queries and keys)` are found in the layout once `from` is replaced by `to`.
fn found_with(from: &str, to: &str) -> (bool, bool) {
    let mut l = Layout::heads(2, 3, [false, false]);
    let (core, tail) = (l.core.replace(from, to), l.tail.replace(from, to));
    assert!(core != l.core || tail != l.tail, "`{from}` is in neither");
    (l.core, l.tail) = (core, tail);
    let (v, q) = maps(&l);
    (v.is_some(), q.is_some())
}

#[test]
fn what_others_read_is_left_alone() {
    assert_eq!(found_with("s = MatMul", "extra = Relu (vh) s = MatMul"), (false, true));
    assert_eq!(found_with("s = MatMul", "extra = Relu (v) s = MatMul"), (false, true));
    assert_eq!(found_with("s = MatMul", "extra = Relu (k4) s = MatMul"), (true, false));
    assert_eq!(found_with("r = Reshape", "extra = Relu (o4) r = Reshape"), (false, true));
    assert_eq!(found_with("r = Reshape", "extra = MatMul (o, o) r = Reshape"), (false, true));
    // A shape is no element.
    assert_eq!(found_with("s = MatMul", "extra = Shape (v) s = MatMul"), (true, true));
    // Keys that are the queries.
    assert_eq!(found_with("k4 = Reshape (k,", "k4 = Reshape (q,"), (true, false));
}

#[test]
fn what_is_more_than_a_move_is_not_passed() {
    // A rotary embedding turns pairs of channels into each other; a norm divides by all of them.
    let rotary = "qa = Neg (q0) qb = Cos (q0) qc = Mul (q0, qb) qh = Add (qa, qc)";
    assert_eq!(
        found_with(
            "qh = Transpose <perm = [0, 2, 1, 3]> (q4)",
            &format!("q0 = Transpose <perm = [0, 2, 1, 3]> (q4) {rotary}")
        ),
        (true, false)
    );
    assert_eq!(
        found_with(
            "kh = Transpose <perm = [0, 2, 3, 1]> (k4)",
            "kn = LpNormalization (k4) kh = Transpose <perm = [0, 2, 3, 1]> (kn)"
        ),
        (true, false)
    );
    assert_eq!(found_with("r = Reshape (o4, join)", "o5 = Tanh (o4) r = Reshape (o5, join)"), (false, true));
}

#[test]
fn channels_that_several_heads_share_have_no_factor() {
    assert_eq!(maps(&Layout::shared()), (None, None));
}

#[test]
fn channels_that_tokens_take_turns_in_have_no_factor() {
    // Two axes joined the wrong way round: what is channel 0 in one row is another in the next.
    let mut l = Layout::heads(2, 3, [false, false]);
    l.tail = "o4 = Transpose <perm = [0, 1, 3, 2]> (o) r = Reshape (o4, join)".into();
    l.x = "b,5";
    assert_eq!(maps(&l).0, None);
}
