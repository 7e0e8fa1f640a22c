use super::common::commit;
use super::{Context, Numerics, Outcome, Pass, PassError};
use crate::infer::{self, ShapeMap};
use crate::ir::{Attrs, DType, Graph, NodeId, ValueId};
use crate::rewrite::{Patch, Ref, Under};

/// # What it does
/// Writes an `Einsum` of two operands as the batched product of matrices that it is: Transpose, MatMul, Transpose, with
/// axes put in or joined where an operand lacks or shares several. Then the rules for attention see it.
///
/// # When it fires
/// On every `Einsum` of two float32 operands in which no operand names an axis twice or sums one up alone, and those with
/// an ellipsis have known ranks. An axis that only one operand has, besides the rows and columns of the product, becomes an
/// axis of the batch. What a Softmax made keeps the axis in front of the summed one for its rows, so that it need not move.
///
/// # Why it is correct
/// Axes that both operands and the result have are the batch, those that the result lacks are summed, and the others are
/// rows and columns: the definition of MatMul. `A B = (B' A')'`, so that the operand with the last axis of the result
/// comes second and the result needs no Transpose after it. Without an axis to sum over it is a Mul under broadcasting.
///
/// # Numerics
/// Close: sums may be taken in another order.
///
/// # Before / after
/// ```text
/// y = Einsum <equation = "bhid,bhjd->bhij"> (q, k)     kt = Transpose <perm = [0, 1, 3, 2]> (k)
///                                                      y = MatMul (q, kt)
/// ```
///
/// # Source
/// ONNX operator documentation, Einsum; attention as MaxViT and many others write it.
pub struct EinsumAsProduct;

impl Pass for EinsumAsProduct {
    fn id(&self) -> &'static str {
        "einsum"
    }

    fn summary(&self) -> &'static str {
        "Writes an Einsum of two operands as a matrix product."
    }

    fn numerics(&self) -> Numerics {
        Numerics::Close { rel: 1e-4 }
    }

    fn run(&self, model: &mut Context) -> Result<Outcome, PassError> {
        each(model, |g, map, id, opset| Einsum::of(g, map, id).map(|e| Some(e.patch(g, id, opset))))
    }
}

/// Commits a patch for each `Einsum` that `of` makes one for, and notes why it makes none for others.
pub(super) fn each(
    model: &mut Context,
    of: impl Fn(&Graph, &ShapeMap, NodeId, i64) -> Result<Option<Patch>, String>,
) -> Result<Outcome, PassError> {
    let mut out = Outcome::default();
    let g = &model.graph;
    // From the outputs to the inputs: what a later one reads is still the value that the map knows.
    let found: Vec<NodeId> = g.schedule().into_iter().rev().filter(|n| g.node(*n).op.is("Einsum")).collect();
    if found.is_empty() {
        return Ok(out);
    }
    let map = model.shapes();
    for id in found {
        match of(&model.graph, &map, id, model.opset()) {
            Ok(Some(patch)) => {
                commit(patch, model, &mut out)?;
            }
            Ok(None) => {}
            Err(why) => {
                let name = model.graph.node(id).out().map_or("", |v| model.graph.name_of(v));
                out.notes.push(format!("the Einsum that makes `{name}` stays as it is: {why}"));
            }
        }
    }
    Ok(out)
}

/// One product. Axes go by their letters.
#[derive(Debug)]
struct Einsum {
    a: ValueId,
    b: ValueId,
    of_a: Vec<char>,
    of_b: Vec<char>,
    result: Vec<char>,
    /// What both operands and the result have, or only one operand besides its row or column.
    batch: Vec<char>,
    summed: Vec<char>,
    row: Option<char>,
    column: Option<char>,
    /// The sizes of the columns, where the second operand is a weight: a constant without an axis of the batch.
    weight: Option<Vec<i64>>,
    y: ValueId,
}

impl Einsum {
    fn of(g: &Graph, map: &ShapeMap, id: NodeId) -> Result<Einsum, String> {
        let n = g.node(id);
        let (Some(mut a), Some(mut b), None, Some(y)) = (n.input(0), n.input(1), n.input(2), n.out()) else {
            return Err("it has not two operands".into());
        };
        if [a, b].iter().any(|v| map.dtype(*v) != Some(DType::FLOAT)) {
            return Err("it does not compute in float32".into());
        }
        let equation = n.attrs.str("equation").unwrap_or("");
        let spelt = infer::spelt_out(equation, |i| map.rank([a, b][i.min(1)]));
        let [mut of_a, mut of_b, result] = letters(&spelt.ok_or("its ellipsis stands for axes that are not known")?)?;
        let fits = |v: ValueId, l: &[char]| map.rank(v).is_none_or(|r| r == l.len());
        if !fits(a, &of_a) || !fits(b, &of_b) {
            return Err("its equation does not fit its operands".into());
        }
        let shared = result.iter().any(|c| of_a.contains(c) && of_b.contains(c));
        let is_weight = |v: ValueId| !shared && map.constant(v).is_some();
        let last = |of: &[char]| result.last().is_some_and(|c| of.contains(c));
        if is_weight(a) && !is_weight(b) || !is_weight(b) && last(&of_a) && !last(&of_b) {
            std::mem::swap(&mut a, &mut b);
            std::mem::swap(&mut of_a, &mut of_b);
        }
        let columns = only(&result, &of_b, &of_a);
        let weights = g.producer_is(a, "Softmax").is_some();
        let rows = only(if weights { &of_a } else { &result }, if weights { &result } else { &of_a }, &of_b);
        let (row, column) = (rows.last().copied(), columns.last().copied());
        let batch = result.iter().copied().filter(|c| Some(*c) != row && Some(*c) != column).collect();
        let summed: Vec<char> = of_a.iter().copied().filter(|c| !result.contains(c)).collect();
        let own = |c: &char, x: &[char]| !x.contains(c) && !result.contains(c);
        if of_a.iter().any(|c| own(c, &of_b)) || of_b.iter().any(|c| own(c, &of_a)) {
            return Err("it sums up an axis of one operand alone".into());
        }
        let sizes = || -> Option<Vec<i64>> {
            let dims = map.known_dims(b)?;
            columns.iter().map(|c| dims.get(of_b.iter().position(|x| x == c)?).copied()).collect()
        };
        let weight = if is_weight(b) && !summed.is_empty() { sizes() } else { None };
        Ok(Einsum { a, b, of_a, of_b, result, batch, summed, row, column, weight, y })
    }

    fn patch(&self, g: &Graph, id: NodeId, opset: i64) -> Patch {
        let name = g.name_of(self.y);
        let mut p = Patch::new("einsum").before(id).made_from([name.to_owned()]);
        let mut w = Writer { e: p.under(name), opset };
        let y = if self.summed.is_empty() {
            // The letters in the order of the result.
            let a = w.laid(self.a, &self.of_a, &self.result, "first");
            let b = w.laid(self.b, &self.of_b, &self.result, "second");
            w.e.op("Mul", "", &[a, b])
        } else if let Some(sizes) = &self.weight {
            self.layer(&mut w, sizes)
        } else {
            // An axis of size 1 where there is no row or column.
            let one = |c: Option<char>| c.map_or(vec![' '], |c| vec![c]);
            let order = |mid: &[char], last: &[char]| [&self.batch[..], mid, last].concat();
            let (row, column) = (one(self.row), one(self.column));
            let a = w.laid(self.a, &self.of_a, &order(&row, &self.summed), "first");
            let a = w.joined(a, self.batch.len() + 1, self.summed.len(), "first");
            let b = if self.summed.len() == 1 {
                w.laid(self.b, &self.of_b, &order(&self.summed, &column), "second")
            } else {
                let b = w.laid(self.b, &self.of_b, &order(&column, &self.summed), "second");
                let b = w.joined(b, self.batch.len() + 1, self.summed.len(), "second");
                let mut perm: Vec<i64> = (0..self.batch.len() as i64 + 2).collect();
                perm.swap(self.batch.len(), self.batch.len() + 1);
                w.transposed(b, &perm, "second_turned")
            };
            let made = order(&row, &column);
            let plain = made == self.result;
            let y = w.e.op("MatMul", if plain { "" } else { "product" }, &[a, b]);
            if plain { y } else { w.taken(y, &made, &self.result) }
        };
        p.succeed(self.y, y);
        p.erase(id);
        p
    }

    /// The product with a weight as a linear layer writes it: the weight has two axes.
    fn layer(&self, w: &mut Writer<'_>, sizes: &[i64]) -> Ref {
        let rows = only(&self.result, &self.of_a, &self.of_b);
        let columns = only(&self.result, &self.of_b, &self.of_a);
        let a = w.laid(self.a, &self.of_a, &[&rows[..], &self.summed].concat(), "first");
        let a = w.joined(a, rows.len(), self.summed.len(), "first");
        let b = w.laid(self.b, &self.of_b, &[&self.summed[..], &columns].concat(), "second");
        let width: i64 = sizes.iter().product();
        let b = w.e.reshaped("second_matrix", b, &[-1, width]);
        let made = [rows.clone(), columns.clone()].concat();
        let (plain, split) = (made == self.result, columns.len() != 1);
        let mut y = w.e.op("MatMul", if plain && !split { "" } else { "product" }, &[a, b]);
        if split {
            let to: Vec<i64> = rows.iter().map(|_| 0).chain(sizes.iter().copied()).collect();
            y = w.e.reshaped(if plain { "" } else { "split" }, y, &to);
        }
        if plain { y } else { w.taken(y, &made, &self.result) }
    }
}

/// The letters of the result that one operand has and the other has not.
fn only(result: &[char], one: &[char], other: &[char]) -> Vec<char> {
    result.iter().copied().filter(|c| one.contains(c) && !other.contains(c)).collect()
}

/// The letters of both operands and the result.
fn letters(equation: &str) -> Result<[Vec<char>; 3], String> {
    let (operands, result) = equation.split_once("->").ok_or("its equation is broken")?;
    let (a, b) = operands.split_once(',').ok_or("it has not two operands")?;
    let result: Vec<char> = result.chars().collect();
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    for part in [&a, &b, &result] {
        if !part.iter().all(char::is_ascii_alphabetic) {
            return Err(format!("its equation `{equation}` has more than letters for axes"));
        }
        if part.iter().enumerate().any(|(i, c)| part[..i].contains(c)) {
            return Err("it names an axis twice".into());
        }
    }
    if !result.iter().all(|c| a.contains(c) || b.contains(c)) {
        return Err("its equation is broken".into());
    }
    Ok([a, b, result])
}

/// Writes the nodes of one product.
struct Writer<'p> {
    e: Under<'p>,
    opset: i64,
}

impl Writer<'_> {
    /// The operand with its axes in the order of `to`, and axes of size 1 for letters it has not.
    fn laid(&mut self, x: ValueId, has: &[char], to: &[char], which: &str) -> Ref {
        let perm: Vec<i64> = to.iter().filter_map(|c| has.iter().position(|h| h == c)).map(|i| i as i64).collect();
        let x = self.transposed(x.into(), &perm, which);
        let lacks: Vec<i64> = to.iter().enumerate().filter(|(_, c)| !has.contains(c)).map(|(i, _)| i as i64).collect();
        self.with_axes("Unsqueeze", &format!("{which}_wide"), x, &lacks)
    }

    fn transposed(&mut self, x: Ref, perm: &[i64], which: &str) -> Ref {
        if perm.is_sorted() { x } else { self.e.turned(which, x, perm) }
    }

    /// The last `n` axes as one.
    fn joined(&mut self, x: Ref, kept: usize, n: usize, which: &str) -> Ref {
        if n == 1 {
            return x;
        }
        let shape: Vec<i64> = (0..kept).map(|_| 0).chain([-1]).collect();
        self.e.part(which).reshaped("joined", x, &shape)
    }

    fn with_axes(&mut self, op: &str, part: &str, x: Ref, axes: &[i64]) -> Ref {
        if axes.is_empty() { x } else { self.e.over(op, part, x, axes, Attrs::new(), self.opset) }
    }

    /// The product without the axes it was given, in the order of the result.
    fn taken(&mut self, y: Ref, made: &[char], result: &[char]) -> Ref {
        let given: Vec<i64> = made.iter().enumerate().filter(|(_, c)| **c == ' ').map(|(i, _)| i as i64).collect();
        let left: Vec<char> = made.iter().copied().filter(|c| *c != ' ').collect();
        let perm: Vec<i64> = result.iter().filter_map(|c| left.iter().position(|l| l == c)).map(|i| i as i64).collect();
        let y = self.with_axes("Squeeze", if perm.is_sorted() { "" } else { "narrow" }, y, &given);
        self.transposed(y, &perm, "")
    }
}
