//! What is done to the scores of attention between their product and Softmax.

use ndarray::{ArrayD, ArrayViewD, Axis, IxDyn, Zip};

use super::common::{MOST_STEPS, has, leads, moved, moves_between, patch_rounds, sole_use};
use super::{Context, Numerics, Outcome, Pass, PassError};
use crate::infer::{ShapeMap, Size};
use crate::ir::masks::{DROWNED_BELOW, HIDES, HIDES_SCALED, NEVER_MEASURED};
use crate::ir::{DType, Graph, Node, NodeId, Tensor, ValueId};
use crate::pattern::Act;
use crate::rewrite::{Patch, Ref, Under};

/// # What it does
/// Brings what is done to scores into the order that the rules for attention know: one factor, then sums and selections. A
/// number for each row, which Softmax cannot tell, is left out, and so are bounds far outside of all scores; a mask that is
/// taken off is added, one that lifts what counts lets fall what does not, and of an added constant each row loses its
/// largest number, so that very negative entries are those that hide.
///
/// # When it fires
/// On a Softmax over the last axis of a product of two computed values, with a chain of Mul, Div, Add, Sub, Where and Clip in
/// between of which each value has one reader; factors are constants above 0, for all scores or for each head.
///
/// # Why it is correct
/// `(s + b) f = s f + b f`, and Softmax gives the same for a row of which all scores gained the same. What hides does so
/// whatever positive number it is multiplied with; what is chosen instead of a score hides if it is at most -1000.
///
/// # Numerics
/// Close: sums are rounded at other places, and scores that gained thousands had lost their last bits.
///
/// # Before / after
/// ```text
/// a = Where (m, s, -1e9)
/// y = Softmax (Div (a, 8.0))            y = Softmax (Where (m, Mul (s, 0.125), -1.25e8))
///
/// y = Softmax (Add (s, Mul (m, 1e4)))   y = Softmax (Add (s, Mul (Sub (ReduceMax (m), m), -1e4)))
/// ```
///
/// # Source
/// Algebra. Hand-written attention; BLOOM's and MPT's biases by position; the 1e-9 that transformers for TensorFlow adds.
pub struct OrderScoreOps;

impl Pass for OrderScoreOps {
    fn id(&self) -> &'static str {
        "order-score-ops"
    }

    fn summary(&self) -> &'static str {
        "Brings the operations on attention scores into one order: factor, sums, selections."
    }

    fn numerics(&self) -> Numerics {
        Numerics::Close { rel: 1e-3 }
    }

    fn run(&self, model: &mut Context) -> Result<Outcome, PassError> {
        if !has(model, "Softmax") {
            return Ok(Outcome::default());
        }
        let opset = model.opset();
        patch_rounds(model, |g, id, map| patch(g, id, map, opset))
    }
}

/// Rows of a constant whose largest number is further from 0 than this lose it.
const LEVEL: f32 = 30.0;
/// Elements of a constant made of several.
const MOST_ELEMENTS: usize = 1 << 22;

/// One thing done to scores.
struct ScoreStep {
    kind: Done,
    /// The result has the shape of the scores that went in.
    keeps_shape: bool,
}

enum Done {
    /// Positive, for all scores or for each of the axes before the last two. `plain` if a Mul.
    Times {
        by: ArrayD<f32>,
        plain: bool,
    },
    Plus {
        term: ValueId,
        minus: bool,
    },
    Choose {
        condition: ValueId,
        keeps: bool,
        fill: f32,
    },
    /// Bounds that are far out.
    Bound,
}

fn patch(g: &Graph, id: NodeId, map: &ShapeMap, opset: i64) -> Option<Patch> {
    let softmax = g.node(id);
    if !softmax.op.is("Softmax") {
        return None;
    }
    let s = softmax.input(0)?;
    let rank = map.rank(s).filter(|r| *r >= 2)?;
    if softmax.axis_at(rank, opset) != rank - 1 || sole_use(g, s).is_none() {
        return None;
    }
    let (head, steps) = walk(g, map, s, MOST_STEPS)?;
    let chain = Scores { g, map, steps, opset };
    chain.rewritten(Patch::new("order-score-ops").before(id).made_from([g.name_of(s).to_owned()]), head, s)
}

/// From `v` back to where the scores begin, and what is done to them from there on.
fn walk(g: &Graph, map: &ShapeMap, v: ValueId, most: u32) -> Option<(ValueId, Vec<ScoreStep>)> {
    if !leads(g, v, most) {
        return None;
    }
    let n = g.node(g.producer(v)?);
    // What others read as well is not taken apart.
    if most == 0 || !n.op.is_onnx() || sole_use(g, v).is_none() {
        return Some((v, Vec::new()));
    }
    let found = scores_of(g, map, n, most - 1).and_then(|slot| Some((n.input(slot)?, Done::of(g, map, n, slot)?)));
    let Some((x, kind)) = found else { return Some((v, Vec::new())) };
    let (head, mut steps) = walk(g, map, x, most - 1)?;
    steps.push(ScoreStep { kind, keeps_shape: map.same_shape(x, v) });
    Some((head, steps))
}

/// Which operand of a node the scores are.
fn scores_of(g: &Graph, map: &ShapeMap, n: &Node, most: u32) -> Option<usize> {
    let number = |slot: usize| n.input(slot).is_some_and(|v| number(g, v).is_some());
    let leads = |slot: usize| n.input(slot).is_some_and(|v| leads(g, v, most));
    match n.op.name.as_str() {
        "Mul" => Some(if n.input(1).is_some_and(|v| factor(g, v, false).is_some()) { 0 } else { 1 }),
        "Add" | "Sub" => match (leads(0), leads(1)) {
            (true, false) => Some(0),
            (false, true) => Some(1),
            // One number per row, computed from the scores themselves, such as their maximum.
            (true, true) if n.input(1).is_some_and(|v| one_a_row(map, v)) => Some(0),
            _ => None,
        },
        "Where" => match (number(1), number(2)) {
            (false, true) => Some(1),
            (true, false) => Some(2),
            _ => None,
        },
        _ => Some(0),
    }
}

fn number(g: &Graph, v: ValueId) -> Option<f32> {
    g.constant(v).filter(|t| t.dtype == DType::FLOAT)?.as_scalar().map(|x| x as f32)
}

impl Done {
    /// What a node does to the scores that it reads in `slot`, if that can be brought into order.
    fn of(g: &Graph, map: &ShapeMap, n: &Node, slot: usize) -> Option<Done> {
        match Act::of(n, slot)? {
            Act::Times { by, div } => {
                let by = factor(g, by, div)?;
                let fits = map.rank(n.input(slot)?).is_some_and(|r| by.ndim() <= r.max(1));
                fits.then_some(Done::Times { plain: !div || by.len() == 1, by })
            }
            Act::Plus { term, minus } => Some(Done::Plus { term, minus }),
            Act::Choose { condition, keep: keeps, fill } => {
                Some(Done::Choose { condition, keeps, fill: number(g, fill)? })
            }
            Act::Bound => {
                let given = |name: &str| n.attrs.get(name).is_some();
                let far = |slot: usize, sign: f32| match n.input(slot) {
                    None => true,
                    Some(v) => {
                        g.constant(v).and_then(|t| t.as_scalar()).is_some_and(|x| x as f32 * sign <= NEVER_MEASURED)
                    }
                };
                (!given("min") && !given("max") && far(1, 1.0) && far(2, -1.0)).then_some(Done::Bound)
            }
            Act::Move => None,
        }
    }
}

/// A factor that keeps the order of a row: positive numbers, alike for each row and key.
fn factor(g: &Graph, v: ValueId, reciprocal: bool) -> Option<ArrayD<f32>> {
    let t = array(g, v)?;
    let by_head = t.shape().iter().rev().take(2).all(|d| *d == 1);
    let f = if reciprocal { t.mapv(|x| 1.0 / x) } else { t };
    ((f.len() == 1 || by_head) && f.iter().all(|x| *x > 0.0 && x.is_finite())).then_some(f)
}

fn array(g: &Graph, v: ValueId) -> Option<ArrayD<f32>> {
    let t = g.constant(v).filter(|t| t.dtype == DType::FLOAT)?;
    let dims: Option<Vec<usize>> = t.dims.iter().map(|d| usize::try_from(*d).ok()).collect();
    ArrayD::from_shape_vec(IxDyn(&dims?), t.to_f32s()?.into_owned()).ok()
}

fn tensor(x: &ArrayD<f32>) -> Tensor {
    let dims: Vec<i64> = x.shape().iter().map(|d| *d as i64).collect();
    Tensor::f32(&dims, &x.iter().copied().collect::<Vec<_>>())
}

/// True if the value has one number for each row, or one for all.
fn one_a_row(map: &ShapeMap, v: ValueId) -> bool {
    map.dims(v).is_some_and(|d| d.last().is_none_or(|k| *k == Size::Known(1)))
}

/// The shape that two shapes broadcast to.
fn both(a: &[usize], b: &[usize]) -> Option<Vec<usize>> {
    let rank = a.len().max(b.len());
    let at = |x: &[usize], i: usize| (i + x.len()).checked_sub(rank).map_or(1, |i| x[i]);
    let joint = |i: usize| match (at(a, i), at(b, i)) {
        (1, n) | (n, 1) => Some(n),
        (m, n) => (m == n).then_some(n),
    };
    (0..rank).map(joint).collect()
}

fn product(a: &ArrayD<f32>, b: &ArrayD<f32>) -> Option<ArrayD<f32>> {
    let dims = both(a.shape(), b.shape())?;
    Some(&a.broadcast(IxDyn(&dims))? * &b.broadcast(IxDyn(&dims))?)
}

/// What is done to the scores of one Softmax, in order.
struct Scores<'a> {
    g: &'a Graph,
    map: &'a ShapeMap,
    steps: Vec<ScoreStep>,
    opset: i64,
}

/// What becomes of a step.
enum Made {
    Nothing,
    /// Added or chosen, with what it is multiplied with.
    Kept(Option<ArrayD<f32>>),
    /// This constant is added.
    Sum(ArrayD<f32>),
}

impl Scores<'_> {
    fn rewritten(&self, mut p: Patch, head: ValueId, s: ValueId) -> Option<Patch> {
        let name = self.g.name_of(s);
        let mut made = Vec::new();
        for i in 0..self.steps.len() {
            made.push(self.fate(i)?);
        }
        let levelled = self.level(&mut made);
        let moved = (0..made.len()).any(|i| match &self.steps[i].kind {
            Done::Times { plain, .. } => i > 0 || !plain,
            Done::Plus { term, minus } => *minus || matches!(made[i], Made::Nothing) || self.lifts(*term, *minus),
            Done::Choose { .. } => false,
            Done::Bound => true,
        });
        if !moved && !levelled {
            return None;
        }
        let mut x: Ref = head.into();
        if let Some(all) = self.factor_from(0)? {
            let c = p.under(name).constant("factor", tensor(&all));
            x = p.under(name).op("Mul", "scaled", &[x, c]);
        }
        for (i, (step, made)) in self.steps.iter().zip(made).enumerate() {
            let mut e = p.under(&format!("{name}_{i}"));
            let by = match made {
                Made::Nothing => continue,
                Made::Sum(sum) => {
                    let c = e.constant("sum", tensor(&sum));
                    x = e.op("Add", "", &[x, c]);
                    continue;
                }
                Made::Kept(by) => by,
            };
            match &step.kind {
                Done::Plus { term, minus } => {
                    let t = self.term(&mut e, *term, *minus, by.as_ref())?;
                    x = e.op("Add", "", &[x, t]);
                }
                Done::Choose { condition, keeps, fill } => {
                    // What hides for every head does so unscaled.
                    let by = by.filter(|b| b.len() == 1).and_then(|b| b.first().copied()).unwrap_or(1.0);
                    let fill = e.scalar("fill", (fill * by).max(f32::MIN));
                    let order = if *keeps { [x, fill] } else { [fill, x] };
                    x = e.op("Where", "", &[(*condition).into(), order[0], order[1]]);
                }
                Done::Times { .. } | Done::Bound => {}
            }
        }
        p.succeed(s, x);
        Some(p)
    }

    /// The product of all factors from step `i` on.
    fn factor_from(&self, i: usize) -> Option<Option<ArrayD<f32>>> {
        let mut all: Option<ArrayD<f32>> = None;
        for step in &self.steps[i..] {
            if let Done::Times { by, .. } = &step.kind {
                all = Some(match all {
                    None => by.clone(),
                    Some(a) => product(&a, by)?,
                });
            }
        }
        Some(all)
    }

    /// What becomes of a step taken by itself; `None` if the chain must stay as it is.
    fn fate(&self, i: usize) -> Option<Made> {
        let by = self.factor_from(i + 1)?;
        let behind = || self.steps[i + 1..].iter();
        let hiding = |s: &ScoreStep| !matches!(s.kind, Done::Choose { fill, .. } if fill > HIDES_SCALED);
        Some(match &self.steps[i].kind {
            Done::Times { .. } | Done::Bound => Made::Nothing,
            Done::Plus { term, .. } => {
                let idle = one_a_row(self.map, *term) && self.steps[i].keeps_shape && behind().all(hiding);
                if idle { Made::Nothing } else { Made::Kept(by) }
            }
            Done::Choose { fill, .. } => {
                let alike = by.as_ref().is_none_or(|b| b.len() == 1);
                if !alike && *fill > HIDES_SCALED {
                    return None;
                }
                Made::Kept(by)
            }
        })
    }

    /// Constants that are added become one, of which each row loses its largest number among the entries that no constant
    /// selection hides. True if anything changed.
    fn level(&self, made: &mut [Made]) -> bool {
        let Some((at, sum, parts)) = self.levelled(made) else { return false };
        for i in parts {
            made[i] = Made::Nothing;
        }
        if sum.iter().any(|x| *x != 0.0) {
            made[at] = Made::Sum(sum);
        }
        true
    }

    fn levelled(&self, made: &[Made]) -> Option<(usize, ArrayD<f32>, Vec<usize>)> {
        let (mut terms, mut parts, mut hidden) = (Vec::new(), Vec::new(), Vec::new());
        for (i, (step, made)) in self.steps.iter().zip(made).enumerate() {
            match (&step.kind, made) {
                (Done::Plus { term, minus }, Made::Kept(by)) => {
                    let Some(t) = array(self.g, *term) else { continue };
                    let t = by.as_ref().map_or(Some(t.clone()), |by| product(&t, by))?;
                    terms.push(if *minus { -t } else { t });
                    parts.push(i);
                }
                (Done::Choose { condition, keeps, .. }, Made::Kept(_)) => {
                    let Some(c) = self.g.constant(*condition) else { continue };
                    let shape: Vec<usize> = c.dims.iter().map(|d| usize::try_from(*d).ok()).collect::<Option<_>>()?;
                    let gone = c.to_i64s()?.iter().map(|x| (*x != 0) != *keeps).collect();
                    hidden.push(ArrayD::from_shape_vec(IxDyn(&shape), gone).ok()?);
                }
                _ => {}
            }
        }
        let at = *parts.first()?;
        let dims = terms.iter().try_fold(Vec::new(), |d, t| both(&d, t.shape()))?;
        let wide = hidden.iter().try_fold(dims.clone(), |d, h| both(&d, h.shape()))?;
        let count = |d: &[usize]| d.iter().product::<usize>();
        if count(&wide) > MOST_ELEMENTS || wide.last().is_none_or(|k| *k == 0) {
            return None;
        }
        let mut sum = ArrayD::<f32>::zeros(IxDyn(&dims));
        for t in &terms {
            sum += &t.broadcast(IxDyn(&dims))?;
        }
        let mut gone = ArrayD::from_elem(IxDyn(&wide), false);
        for h in &hidden {
            let h: ArrayViewD<bool> = h.broadcast(IxDyn(&wide))?;
            Zip::from(&mut gone).and(&h).for_each(|g, h| *g |= *h);
        }
        let mut level = sum.broadcast(IxDyn(&wide))?.to_owned();
        let (mut uneven, last) = (false, Axis(wide.len() - 1));
        for (mut row, gone) in level.lanes_mut(last).into_iter().zip(gone.lanes(last)) {
            let seen = row.iter().zip(&gone).filter(|(_, g)| !**g).map(|(x, _)| *x);
            let top = seen.fold(f32::NEG_INFINITY, f32::max);
            // Of scores that were lowered further, float32 keeps nothing: all of the row are alike.
            let top = if top > DROWNED_BELOW && top.is_finite() { top } else { 0.0 };
            uneven |= top.abs() > LEVEL;
            for (x, gone) in row.iter_mut().zip(&gone) {
                let now = if *gone { 0.0 } else { *x - top };
                uneven |= !gone && (*x > HIDES) != (now > HIDES);
                *x = now;
            }
        }
        // As they are, they become one only if that is no larger than the largest of them.
        let largest = terms.iter().map(ArrayD::len).max()?;
        match (uneven, parts.len()) {
            (true, _) => Some((at, level, parts)),
            (false, 2..) if sum.len() <= largest => Some((at, sum, parts)),
            _ => None,
        }
    }

    /// A term as it is added: negated, times a factor, or lowered where it would lift.
    fn term(&self, e: &mut Under<'_>, term: ValueId, minus: bool, by: Option<&ArrayD<f32>>) -> Option<Ref> {
        let one = ArrayD::from_elem(IxDyn(&[]), 1.0f32);
        let by = by.unwrap_or(&one);
        let sign = if minus { -1.0 } else { 1.0 };
        if let Some(t) = array(self.g, term) {
            return Some(e.constant("term", tensor(&(product(&t, by)? * sign))));
        }
        let (mut x, mut by): (Ref, _) = (term.into(), by * sign);
        if let Some(s) = scaled(self.g, term) {
            x = moved(self.g, e, &moves_between(self.g, s.product, term), s.of.into(), "plain");
            by *= s.by;
            if self.lifts(term, minus) {
                let top = e.reduced("ReduceMax", "top", x, self.opset);
                x = e.op("Sub", "below", &[top, x]);
                by *= -1.0;
            }
        } else if by.iter().all(|x| *x == -1.0) {
            return Some(e.op("Neg", "negative", &[x]));
        }
        if by.iter().all(|x| *x == 1.0) {
            return Some(x);
        }
        let c = e.constant("times", tensor(&by));
        Some(e.op("Mul", "term", &[x, c]))
    }

    /// True for what is multiplied with a number so large that it lifts some scores far above the others.
    fn lifts(&self, term: ValueId, minus: bool) -> bool {
        let times = scaled(self.g, term).map_or(0.0, |s| if minus { -s.by } else { s.by });
        times >= -HIDES_SCALED && !one_a_row(self.map, term)
    }
}

/// What a Mul by one number multiplies.
struct Scaled {
    of: ValueId,
    by: f32,
    /// What the Mul makes.
    product: ValueId,
}

/// The Mul by one number that `v` comes from by moves that take its elements as they are.
fn scaled(g: &Graph, mut v: ValueId) -> Option<Scaled> {
    loop {
        let n = g.node(g.producer(v)?);
        // What Concat and Pad put in is not multiplied.
        if !n.is_move() || n.op.is("Concat") || n.op.is("Pad") || n.outputs.len() != 1 {
            break;
        }
        v = n.input(0)?;
    }
    let n = g.node(g.producer_is(v, "Mul")?);
    let number = |v: ValueId| array(g, v).filter(|t| t.len() == 1).and_then(|t| t.first().copied());
    let (slot, by) = (0..2).find_map(|i| Some((i, number(n.input(i)?).filter(|c| c.is_finite() && *c != 0.0)?)))?;
    Some(Scaled { of: n.input(1 - slot)?, by, product: v })
}
