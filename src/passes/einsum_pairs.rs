use std::collections::BTreeMap;

use super::einsum::each;
use super::{Context, Numerics, Outcome, Pass, PassError};
use crate::infer::{self, ShapeMap};
use crate::ir::{Attrs, DType, Graph, NodeId};
use crate::rewrite::{Patch, Ref, Under};

/// # What it does
/// Writes an `Einsum` as sums, products and moves of which each takes as few numbers as it can: axes that one operand alone
/// has are summed up first, then operands are contracted two at a time, each pair by an `Einsum` of its own.
///
/// # When it fires
/// On an `Einsum` of three operands or more, and on one of two that tract gets wrong or slowly: in which an operand names an axis
/// twice, or has an axis that neither the result nor the other has, or ellipses stand in an equation without an arrow. An
/// `Einsum` of one operand becomes the sum or the Transpose that it is. One that sums up an axis whose sizes differ stays as it
/// is.
///
/// # Why it is correct
/// Sums and products of numbers may change places: a factor without the letter of a sum can stand in front of it. An axis is
/// summed in the step after which neither another operand nor the result has it.
///
/// # Numerics
/// Close: sums are taken in another order. Contracting all operands at once takes as many steps as the product of all axis
/// sizes; contracting pairs takes as many as the largest pair. As in numpy, the pair whose result is smallest relative to its
/// operands comes first.
///
/// # Before / after
/// ```text
/// y = Einsum <equation = "ab,bc,cd->ad"> (u, v, w)     p = Einsum <equation = "ab,bc->ac"> (u, v)
///                                                      y = Einsum <equation = "ac,cd->ad"> (p, w)
/// ```
///
/// # Source
/// ONNX operator documentation, Einsum; `numpy.einsum_path`.
pub struct EinsumPairs;

impl Pass for EinsumPairs {
    fn id(&self) -> &'static str {
        "einsum-pairs"
    }

    fn summary(&self) -> &'static str {
        "Contracts an Einsum of several operands two at a time."
    }

    fn numerics(&self) -> Numerics {
        Numerics::Close { rel: 1e-4 }
    }

    fn run(&self, model: &mut Context) -> Result<Outcome, PassError> {
        each(model, |g, map, id, opset| Ok(Einsum::of(g, map, id)?.map(|e| e.patch(g, id, opset))))
    }
}

/// The size assumed for an axis whose size is unknown.
const OPEN: f64 = 32.0;

/// The next pair is looked for among this many operands. Equations that people write have fewer; the limit keeps the search
/// short for those they do not.
const WINDOW: usize = 12;

/// A value and the letters of its axes.
#[derive(Clone)]
struct Operand {
    value: Ref,
    letters: Vec<char>,
}

struct Einsum {
    operands: Vec<Operand>,
    result: Vec<char>,
    sizes: BTreeMap<char, f64>,
    /// Whether ReduceSum has the type.
    reduces: bool,
}

impl Einsum {
    /// `None` where nothing is to be done.
    fn of(g: &Graph, map: &ShapeMap, id: NodeId) -> Result<Option<Einsum>, String> {
        let n = g.node(id);
        let Some(inputs) = n.inputs.iter().copied().collect::<Option<Vec<_>>>() else { return Ok(None) };
        let equation = n.attrs.str("equation").unwrap_or("");
        let spelt = infer::spelt_out(equation, |i| map.rank(*inputs.get(i)?));
        let spelt = spelt.ok_or("its ellipsis stands for axes that are not known")?;
        let (left, right) = spelt.split_once("->").ok_or("its equation is broken")?;
        let result: Vec<char> = right.chars().collect();
        let parts: Vec<Vec<char>> = left.split(',').map(|p| p.chars().collect()).collect();
        let is_letter = |c: &char| c.is_ascii_alphabetic();
        let known = |c: &char| parts.iter().any(|p| p.contains(c));
        if parts.len() != inputs.len()
            || !parts.iter().flatten().all(is_letter)
            || !result.iter().all(known)
            || twice(&result)
        {
            return Err(format!("its equation `{equation}` is broken"));
        }
        let mut sizes = BTreeMap::new();
        for (v, part) in inputs.iter().zip(&parts) {
            let dims = map.dims(*v);
            if dims.is_some_and(|d| d.len() != part.len()) {
                return Err("its equation does not fit its operands".into());
            }
            for (i, c) in part.iter().enumerate() {
                let n = dims.and_then(|d| d[i].known()).map(|n| n as f64);
                let size = sizes.entry(*c).or_insert(n);
                if size.zip(n).is_some_and(|(a, b)| a != b) && !result.contains(c) {
                    return Err(format!("it sums up axis `{c}`, whose sizes differ"));
                }
                *size = size.zip(n).map(|(a, b)| a.max(b)).or(*size).or(n);
            }
        }
        let dtype = map.dtype(inputs[0]);
        let operands: Vec<Operand> =
            inputs.into_iter().zip(parts).map(|(v, letters)| Operand { value: v.into(), letters }).collect();
        let sizes = sizes.into_iter().map(|(c, n)| (c, n.unwrap_or(OPEN))).collect();
        let reduces = [DType::FLOAT, DType::DOUBLE, DType::FLOAT16, DType::BFLOAT16, DType::INT32, DType::INT64];
        let e = Einsum { operands, result, sizes, reduces: dtype.is_some_and(|t| reduces.contains(&t)) };
        let plain = |i: usize| e.kept(&[i]) == e.operands[i].letters;
        // Without an arrow, what the ellipses stand for is the front of the result, which tract does not know.
        let unsaid = equation.contains("...") && !equation.contains("->");
        Ok(match e.operands.len() {
            // A diagonal has no other operator.
            1 => !twice(&e.operands[0].letters) && (e.reduces || plain(0)),
            2 => unsaid || !plain(0) || !plain(1),
            _ => true,
        }
        .then_some(e))
    }

    /// The letters of these operands that are still wanted when they are one: each once, as they stand.
    fn kept(&self, of: &[usize]) -> Vec<char> {
        let elsewhere = |c: &char| {
            self.result.contains(c)
                || self.operands.iter().enumerate().any(|(i, o)| !of.contains(&i) && o.letters.contains(c))
        };
        let mut kept: Vec<char> = Vec::new();
        for c in of.iter().flat_map(|i| &self.operands[*i].letters).filter(|c| elsewhere(c)) {
            if !kept.contains(c) {
                kept.push(*c);
            }
        }
        kept
    }

    fn size(&self, letters: &[char]) -> f64 {
        letters.iter().map(|c| self.sizes[c]).product()
    }

    /// The next two: those whose result is smallest beside what they were; of these, the ones of the fewest products.
    fn next(&self) -> (usize, usize) {
        let n = self.operands.len().min(WINDOW);
        let cost = |(i, j): (usize, usize)| {
            let (a, b) = (&self.operands[i].letters, &self.operands[j].letters);
            let all: Vec<char> = a.iter().chain(b.iter().filter(|c| !a.contains(c))).copied().collect();
            (self.size(&self.kept(&[i, j])) - self.size(a) - self.size(b), self.size(&all))
        };
        let pairs = (0..n).flat_map(|i| (i + 1..n).map(move |j| (i, j)));
        let less = |x: (f64, f64), y: (f64, f64)| x.0.total_cmp(&y.0).then(x.1.total_cmp(&y.1));
        pairs.min_by(|x, y| less(cost(*x), cost(*y))).expect("there are two operands")
    }

    fn patch(mut self, g: &Graph, id: NodeId, opset: i64) -> Patch {
        let y = g.node(id).out().expect("an Einsum has a result");
        let name = g.name_of(y);
        let mut p = Patch::new("einsum-pairs").before(id).made_from([name.to_owned()]);
        let mut e = p.under(name);
        for i in 0..self.operands.len() {
            let kept = self.kept(&[i]);
            let o = &self.operands[i];
            if kept != o.letters {
                let value = self.summed(&mut e, o, &kept, opset, &format!("operand_{i}"));
                self.operands[i] = Operand { value, letters: kept };
            }
        }
        let mut pairs = 0;
        while self.operands.len() > 1 {
            let (i, j) = self.next();
            let last = self.operands.len() == 2;
            let letters = if last { self.result.clone() } else { self.kept(&[i, j]) };
            let (b, a) = (self.operands[j].clone(), self.operands[i].clone());
            let part = if last { String::new() } else { format!("pair_{pairs}") };
            let value = einsum(&mut e, &[&a, &b], &letters, &part);
            self.operands.remove(j);
            self.operands[i] = Operand { value, letters };
            pairs += 1;
        }
        let made = &self.operands[0];
        let order = |c: &char| made.letters.iter().position(|x| x == c).map(|i| i as i64);
        let perm: Vec<i64> = self.result.iter().filter_map(order).collect();
        let value = match made.value {
            x if !perm.is_sorted() => e.turned("", x, &perm),
            x @ Ref::Old(_) => e.op("Identity", "", &[x]),
            x => x,
        };
        p.succeed(y, value);
        p.erase(id);
        p
    }

    /// An operand without the axes that nothing else has.
    fn summed(&self, e: &mut Under<'_>, o: &Operand, kept: &[char], opset: i64, part: &str) -> Ref {
        if twice(&o.letters) || !self.reduces {
            return einsum(e, &[o], kept, part);
        }
        let axes = o.letters.iter().enumerate().filter(|(_, c)| !kept.contains(c));
        let axes: Vec<i64> = axes.map(|(i, _)| i as i64).collect();
        e.over("ReduceSum", part, o.value, &axes, Attrs::new().with_int("keepdims", 0), opset)
    }
}

fn twice(letters: &[char]) -> bool {
    letters.iter().enumerate().any(|(i, c)| letters[..i].contains(c))
}

fn einsum(e: &mut Under<'_>, of: &[&Operand], result: &[char], part: &str) -> Ref {
    let text = |l: &[char]| l.iter().collect::<String>();
    let operands: Vec<String> = of.iter().map(|o| text(&o.letters)).collect();
    let equation = format!("{}->{}", operands.join(","), text(result));
    let values: Vec<Ref> = of.iter().map(|o| o.value).collect();
    e.op_with("Einsum", part, &values, Attrs::new().with_str("equation", &equation))
}
