//! Loop as a tract operator: tract has none.
//!
//! The body is kept as it was read. What it becomes depends on the shapes that reach it, and these may change from one
//! iteration to the next, so a plan is made for each set of shapes that is met, and kept. Constants of the graph around
//! the body are constants in it as well. A body that tract cannot plan without knowing the integers it is handed (a Slice
//! up to the iteration's number) gets a plan for each set of these, too.
//!
//! As in onnxruntime, what the body says of the condition is obeyed whether or not the node is given one; the standard has
//! it ignored where the node has none.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tract_onnx::Onnx;
use tract_onnx::model::{ParseResult, ParsingContext};
use tract_onnx::pb::{self, NodeProto};
use tract_onnx::tract_core::ops::cast::cast;
use tract_onnx::tract_core::ops::konst::Const;
use tract_onnx::tract_hir::internal::*;

use super::prepare;
use super::prepare::runnable;
use crate::budget;

/// Plans of one Loop that are kept at a time.
const KEPT: usize = 64;
/// Elements of an integer tensor that a plan may be made for.
const FEW: usize = 64;

/// Gives tract a Loop. `optimize`: whether bodies are rewritten into their fastest form.
pub fn register(onnx: &mut Onnx, optimize: bool) {
    if optimize {
        onnx.op_register.insert("Loop", |ctx, node| build(ctx, node, true));
    } else {
        onnx.op_register.insert("Loop", |ctx, node| build(ctx, node, false));
    }
}

/// What a Loop does again and again. The body's inputs are the iteration's number, the values carried from one iteration
/// to the next, and what it reads of the graph around it; its outputs are the condition, the values carried on, and those
/// collected. The condition is no input: a body runs where it is true.
#[derive(Clone, Debug)]
struct Body {
    node: String,
    model: InferenceModel,
    /// Whether the number is a vector of one element in the body.
    vector: bool,
    carried: usize,
    /// Names of the body's outputs.
    names: Vec<String>,
    optimize: bool,
}

/// The operator as the file has it. Its inputs are the trip count and the condition where given, then as the body's.
#[derive(Clone, Debug)]
struct Loop {
    body: Body,
    has_trip: bool,
    has_cond: bool,
    /// Which of the body's outputs each output of the node hands out.
    slots: Vec<usize>,
}

fn build(ctx: &ParsingContext, node: &NodeProto, optimize: bool) -> TractResult<(Box<dyn InferenceOp>, Vec<String>)> {
    let name = prepare::label(node);
    let graph: &pb::GraphProto = node.get_attr("body")?;
    let ParseResult { mut model, unresolved_inputs, .. } = ctx.parse_graph(graph)?;
    let given = |i: usize| node.input.get(i).is_some_and(|n| !n.is_empty());
    let carried = node.input.len().saturating_sub(2);
    ensure!((0..carried).all(|i| given(i + 2)), "Loop '{name}': a value it carries has no initial value");
    let takes = model.inputs.len() - unresolved_inputs.len();
    ensure!(
        takes == 2 + carried,
        "Loop '{name}' carries {carried} values, and its body has {takes} inputs, not {}",
        2 + carried
    );
    let made = graph.output.len();
    ensure!(made > carried, "Loop '{name}' carries {carried} values, and its body has {made} outputs");
    ensure!(node.output.len() < made, "Loop '{name}' has {} outputs, and its body {made}", node.output.len());
    let vector = |i: usize| graph.input.get(i).is_some_and(|v| prepare::declared(v).1.len() == 1);
    let runs = if vector(1) { tensor1(&[true]) } else { tensor0(true) };
    settle_constants(&mut model, &[(1, runs.into_arc_tensor())])?;
    let op = Loop {
        has_trip: given(0),
        has_cond: given(1),
        slots: (0..node.output.len()).filter(|i| !node.output[*i].is_empty()).map(|i| i + 1).collect(),
        body: Body {
            node: name,
            model,
            vector: vector(0),
            carried,
            names: graph.output.iter().map(|o| o.name.clone()).collect(),
            optimize,
        },
    };
    Ok((Box::new(op), unresolved_inputs))
}

/// tract computes sizes as symbols; a body sees numbers.
fn number(dt: DatumType) -> DatumType {
    if dt == TDim::datum_type() { i64::datum_type() } else { dt }
}

impl Body {
    /// What the body's inputs are, given those of the node after trip count and condition.
    fn inputs(&self, outer: &[InferenceFact]) -> Vec<InferenceFact> {
        let dims: &[usize] = if self.vector { &[1] } else { &[] };
        let mut facts = vec![InferenceFact::dt_shape(i64::datum_type(), dims)];
        for (i, f) in outer.iter().enumerate() {
            // What is carried has its first value in the first iteration only.
            let mut f = if i < self.carried { f.clone().without_value() } else { f.clone() };
            if let Some(dt) = f.datum_type.concretize() {
                f.datum_type = number(dt).into();
            }
            if f.value.concretize().is_some_and(|t| t.datum_type() == TDim::datum_type()) {
                f = f.without_value();
            }
            facts.push(f);
        }
        facts
    }

    /// What holds of the body's outputs in every iteration. A size that changes is unknown.
    fn settled(&self, outer: &[InferenceFact]) -> TractResult<Vec<InferenceFact>> {
        let mut facts = self.inputs(outer);
        loop {
            let mut model = self.model.clone();
            for (i, f) in facts.iter().enumerate() {
                model.set_input_fact(i, f.clone())?;
            }
            model.analyse(false)?;
            let mut out: Vec<InferenceFact> =
                (0..self.names.len()).map(|i| model.output_fact(i).cloned()).collect::<TractResult<_>>()?;
            let mut same = true;
            for (was, is) in facts[1..].iter_mut().zip(&mut out[1..]).take(self.carried) {
                let both = common(&was.shape, &is.shape);
                same &= both == was.shape;
                was.shape = both.clone();
                // Sizes found in the body of what comes in hold for what goes out, which comes in next.
                is.shape = both;
            }
            if same {
                return Ok(out);
            }
        }
    }
}

/// What two shapes have in common.
fn common(a: &ShapeFactoid, b: &ShapeFactoid) -> ShapeFactoid {
    if a.is_open() || b.is_open() || a.rank() != b.rank() {
        return ShapeFactoid::default();
    }
    let both = |(x, y): (&DimFact, &DimFact)| if x == y { x.clone() } else { DimFact::default() };
    ShapeFactoid::closed(a.dims().zip(b.dims()).map(both).collect())
}

/// Two are never the same: they are not compared.
impl PartialEq for Loop {
    fn eq(&self, _: &Self) -> bool {
        false
    }
}

impl Eq for Loop {}

impl Op for Loop {
    fn name(&self) -> StaticName {
        "Loop".into()
    }

    not_a_typed_op!();
}

impl EvalOp for Loop {
    not_out_of_plan!();
}

impl InferenceOp for Loop {
    fn infer_facts(
        &mut self,
        inputs: TVec<&InferenceFact>,
        outputs: TVec<&InferenceFact>,
        observed: TVec<&InferenceFact>,
    ) -> TractResult<(TVec<InferenceFact>, TVec<InferenceFact>, TVec<InferenceFact>)> {
        let inputs: TVec<InferenceFact> = inputs.into_iter().cloned().collect();
        let mut outputs: TVec<InferenceFact> = outputs.into_iter().cloned().collect();
        let outer = &inputs[self.has_trip as usize + self.has_cond as usize..];
        for (slot, out) in self.slots.iter().zip(&mut outputs) {
            if let Some(dt) =
                outer.get(slot - 1).filter(|_| *slot <= self.body.carried).and_then(|f| f.datum_type.concretize())
            {
                out.datum_type.unify_with(&number(dt).into())?;
            }
        }
        let known = |f: &InferenceFact| f.datum_type.is_concrete() && !f.shape.is_open();
        // A body that cannot be analysed yet may be once integers are known; nothing is known of its outputs then.
        if outer.iter().all(known)
            && let Ok(facts) = self.body.settled(outer)
        {
            for (slot, out) in self.slots.iter().zip(&mut outputs) {
                let fact = &facts[*slot];
                let collected = *slot > self.body.carried;
                if let Some(dt) = fact.datum_type.concretize().filter(|_| collected) {
                    out.datum_type.unify_with(&number(dt).into())?;
                }
                if fact.shape.is_open() {
                    continue;
                }
                let count = collected.then(DimFact::default);
                let dims = count.into_iter().chain(fact.shape.dims().cloned()).collect();
                out.shape.unify_with(&ShapeFactoid::closed(dims))?;
            }
        }
        Ok((inputs, outputs, observed.into_iter().cloned().collect()))
    }

    fn nboutputs(&self) -> TractResult<usize> {
        Ok(self.slots.len())
    }

    fn to_typed(
        &self,
        _source: &InferenceModel,
        node: &InferenceNode,
        target: &mut TypedModel,
        mapping: &HashMap<OutletId, OutletId>,
    ) -> TractResult<TVec<OutletId>> {
        let mut body = self.body.clone();
        let skip = self.has_trip as usize + self.has_cond as usize;
        let mut inputs: TVec<OutletId> = tvec!();
        let mut left = Vec::new();
        for (i, outlet) in node.inputs.iter().enumerate() {
            let wire = mapping[outlet];
            let fact = target.outlet_fact(wire)?.clone();
            let captured = i >= skip + body.carried;
            if let Some(k) = fact.konst.as_ref().filter(|_| captured)
                && let Ok(k) = k.cast_to_dt(number(k.datum_type()))
            {
                left.push((1 + i - skip, k.into_owned().into_arc_tensor()));
                continue;
            }
            inputs.push(if fact.datum_type == TDim::datum_type() {
                let name = target.unique_name(format!("{}.cast", node.name));
                target.wire_node(name, cast(i64::datum_type()), &[wire])?[0]
            } else {
                wire
            });
        }
        settle_constants(&mut body.model, &left)?;
        let given = |i: usize| target.outlet_fact(inputs[i]).ok().and_then(|f| f.konst.clone());
        let begins = !self.has_cond || truth(given(self.has_trip as usize));
        let trip = given(0).filter(|_| self.has_trip && begins).map(|k| k.cast_to_scalar::<i64>()).transpose()?;
        let outer: Vec<TypedFact> =
            inputs[skip..].iter().map(|i| Ok(target.outlet_fact(*i)?.without_value())).collect::<TractResult<_>>()?;
        let runner = Runner { body, plans: Mutex::default(), spent: AtomicU64::new(0) };
        let node_name = &self.body.node;
        let facts = runner.facts(&outer, &self.slots, trip, &target.symbols);
        let facts = facts.with_context(|| format!("Loop '{node_name}'"))?;
        let op = TypedLoop {
            runner: Arc::new(runner),
            has_trip: self.has_trip,
            has_cond: self.has_cond,
            slots: self.slots.clone(),
            facts,
        };
        target.wire_node(&node.name, op, &inputs)
    }

    as_op!();
}

/// Makes constants of inputs, by place.
fn settle_constants(model: &mut InferenceModel, constants: &[(usize, Arc<Tensor>)]) -> TractResult<()> {
    for (place, value) in constants {
        let outlet = model.inputs[*place];
        model.nodes[outlet.node].op = Box::new(Const::new(value.clone())?);
        model.set_outlet_fact(outlet, InferenceFact::try_from(value)?)?;
    }
    let mut place = 0;
    model.inputs.retain(|_| {
        place += 1;
        !constants.iter().any(|(p, _)| p + 1 == place)
    });
    Ok(())
}

/// The loops that took too long, by the names of their nodes, with the patience that there was and the microseconds they took.
static LATE: Mutex<BTreeMap<String, (Duration, u64)>> = Mutex::new(BTreeMap::new());

fn late() -> MutexGuard<'static, BTreeMap<String, (Duration, u64)>> {
    // Entries are put there whole, so what a panic left behind is still good.
    LATE.lock().unwrap_or_else(|e| e.into_inner())
}

/// Forgets which loops took too long: the next model may have others of these names.
pub(super) fn forget() {
    late().clear();
}

type Plan = Arc<TypedRunnableModel>;
/// Types and shapes of the body's inputs, and what the small ones of integers hold where the plan is for these alone.
type Key = (Vec<(DatumType, TVec<usize>)>, Option<Vec<Vec<i64>>>);

/// A body with the plans made of it so far, or why there is none.
#[derive(Debug)]
struct Runner {
    body: Body,
    plans: Mutex<HashMap<Key, Result<Plan, String>>>,
    /// Microseconds that iterations took in all runs of the session: each sample is progress, and a million of iterations in each
    /// of them would never come to an end.
    spent: AtomicU64,
}

impl Runner {
    fn plans(&self) -> MutexGuard<'_, HashMap<Key, Result<Plan, String>>> {
        // A plan is put there whole, so what a panic left behind is still good.
        self.plans.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// `constants`: what of the inputs the key tells the contents of.
    fn plan(&self, key: &Key, constants: &[(usize, Arc<Tensor>)]) -> Result<Plan, String> {
        let make = || {
            let mut model = self.body.model.clone();
            for (i, (dt, dims)) in key.0.iter().enumerate() {
                model.set_input_fact(i, InferenceFact::dt_shape(*dt, dims))?;
            }
            settle_constants(&mut model, constants)?;
            runnable(model.into_typed()?, self.body.optimize)
        };
        let mut plans = self.plans();
        if let Some(plan) = plans.get(key) {
            return plan.clone();
        }
        if plans.len() >= KEPT {
            plans.clear();
        }
        let plan = make().map_err(|e| format!("{e:#}"));
        plans.insert(key.clone(), plan.clone());
        plan
    }

    /// One iteration.
    fn step(&self, feed: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let mut key: Key = (feed.iter().map(|t| (t.datum_type(), t.shape().into())).collect(), None);
        let why = match self.plan(&key, &[]) {
            Ok(plan) => match plan.run(feed.clone()) {
                Ok(out) => return Ok(out),
                Err(e) => {
                    let why = format!("{e:#}");
                    self.plans().insert(key.clone(), Err(why.clone()));
                    why
                }
            },
            Err(why) => why,
        };
        let few = |t: &TValue| (t.datum_type().is_integer() || t.datum_type().is::<bool>()) && t.len() <= FEW;
        let (known, rest): (Vec<_>, Vec<_>) = feed.into_iter().enumerate().partition(|(_, t)| few(t));
        let known: Vec<(usize, Arc<Tensor>)> = known.into_iter().map(|(i, t)| (i, t.into_arc_tensor())).collect();
        let numbers = |t: &Tensor| Ok(t.cast_to::<i64>()?.try_as_plain_ram()?.as_slice::<i64>()?.to_vec());
        key.1 = Some(known.iter().map(|(_, t)| numbers(t)).collect::<TractResult<_>>()?);
        let plan = self.plan(&key, &known);
        let plan = plan.map_err(|e| format_err!("{e}; as one plan for all iterations: {why}"))?;
        plan.run(rest.into_iter().map(|(_, t)| t).collect())
    }

    /// Refuses a loop that has taken as long, in all samples so far, as anything may take without progress. The watchdog, which
    /// knows no node, would end the program a little later.
    fn in_time(&self, since: &mut Instant) -> TractResult<()> {
        let Some(most) = budget::patience() else { return Ok(()) };
        let now = Instant::now();
        // Several threads run the same loop, each another sample.
        let one = now.duration_since(std::mem::replace(since, now)).as_micros() as u64;
        let taken = self.spent.fetch_add(one, Ordering::Relaxed) + one;
        if u128::from(taken) > most.as_micros() * 9 / 10 {
            late().insert(self.body.node.clone(), (most, taken));
        }
        self.is_early()
    }

    /// Refuses a loop that has taken too long, in this session or in one before it: the model is loaded again where it cannot be run
    /// as a whole, and would take as long once more.
    fn is_early(&self) -> TractResult<()> {
        let found = late().get(&self.body.node).copied();
        let Some((_, taken)) = found.filter(|(most, _)| budget::patience().is_some_and(|now| now <= *most)) else {
            return Ok(());
        };
        bail!(
            "its iterations have taken {:.1} s in all samples so far, which is long for a file of this size; if their number is \
             meant, allow more with --patience, or give fewer --samples",
            taken as f64 / 1e6
        )
    }

    /// What the node's outputs are, and sizes that only a run tells as symbols of their own.
    fn facts(
        &self,
        outer: &[TypedFact],
        slots: &[usize],
        // The number of iterations, if nothing but the body's condition can end them before.
        trip: Option<i64>,
        symbols: &SymbolScope,
    ) -> TractResult<TVec<TypedFact>> {
        let inputs: Vec<InferenceFact> = outer.iter().map(InferenceFact::from).collect();
        let settled = self.body.settled(&inputs);
        let first = self.first(&inputs)?;
        let endless = settled.as_ref().is_ok_and(|f| truth(f[0].value.concretize()));
        let count = trip.filter(|_| endless).map(|n| n.max(0).to_dim());
        let fresh = || symbols.new_with_prefix("loop").to_dim();
        let fact = |slot: &usize| {
            let name = &self.body.names[*slot];
            let came = outer.get(slot - 1).filter(|_| *slot <= self.body.carried);
            let (dt, dims) = match (&first, &settled) {
                (Some((facts, true)), _) => (facts[*slot].datum_type, sizes(&facts[*slot])),
                (_, Ok(f)) if f[*slot].datum_type.is_concrete() && !f[*slot].shape.is_open() => {
                    let dims = f[*slot].shape.dims().map(|d| d.concretize().filter(|d| d.to_i64().is_ok()));
                    (f[*slot].datum_type.concretize().unwrap_or(DatumType::F32), dims.collect())
                }
                (Some((facts, false)), _) => (facts[*slot].datum_type, vec![None; facts[*slot].rank()]),
                (None, Err(e)) => bail!("nothing is known of '{name}' before it runs: {e:#}"),
                (None, Ok(_)) => bail!("the number of axes of '{name}' is not known before it runs"),
            };
            let dt = number(dt);
            if let Some(came) = came {
                ensure!(
                    dt == came.datum_type,
                    "it carries '{name}', which comes as {:?} and goes as {dt:?}",
                    came.datum_type
                );
                ensure!(
                    dims.len() == came.rank(),
                    "it carries '{name}', which comes with {} axes and goes with {}; only sizes may change",
                    came.rank(),
                    dims.len()
                );
            }
            let collected = came.is_none().then(|| count.clone());
            Ok(dt.fact(collected.into_iter().chain(dims).map(|d| d.unwrap_or_else(fresh)).collect::<TVec<TDim>>()))
        };
        slots.iter().map(fact).collect()
    }

    /// What the first iteration makes, if all sizes are known, and whether it hands on what it was handed: every other
    /// iteration makes the same then.
    fn first(&self, inputs: &[InferenceFact]) -> TractResult<Option<(Vec<TypedFact>, bool)>> {
        let mut key: Key = (Vec::new(), None);
        for f in self.body.inputs(inputs) {
            match (f.datum_type.concretize(), f.shape.as_concrete_finite()?) {
                (Some(dt), Some(dims)) => key.0.push((dt, dims)),
                _ => return Ok(None),
            }
        }
        // Where there is no such plan, knowing the integers may help. That is not known here.
        let Ok(plan) = self.plan(&key, &[]) else { return Ok(None) };
        let facts: Vec<TypedFact> =
            (0..self.body.names.len()).map(|i| plan.model().output_fact(i).cloned()).collect::<TractResult<_>>()?;
        let same = |(came, goes): (&(DatumType, TVec<usize>), &TypedFact)| {
            came.0 == number(goes.datum_type) && goes.shape.as_concrete().is_some_and(|d| *d == came.1[..])
        };
        let same = key.0[1..].iter().zip(&facts[1..]).take(self.body.carried).all(same);
        Ok(Some((facts, same)))
    }
}

fn sizes(f: &TypedFact) -> Vec<Option<TDim>> {
    f.shape.iter().map(|d| Some(d.clone()).filter(|d| d.to_i64().is_ok())).collect()
}

fn truth(t: Option<Arc<Tensor>>) -> bool {
    t.is_some_and(|t| t.cast_to_scalar::<bool>().unwrap_or(false))
}

/// The operator as it runs: what the body reads of constants is in the body.
#[derive(Clone, Debug)]
struct TypedLoop {
    runner: Arc<Runner>,
    has_trip: bool,
    has_cond: bool,
    slots: Vec<usize>,
    facts: TVec<TypedFact>,
}

/// Copies of one node do the same.
impl PartialEq for TypedLoop {
    fn eq(&self, other: &TypedLoop) -> bool {
        Arc::ptr_eq(&self.runner, &other.runner)
    }
}

impl Eq for TypedLoop {}

impl Op for TypedLoop {
    fn name(&self) -> StaticName {
        "Loop".into()
    }

    fn mints_runtime_symbols(&self) -> bool {
        true
    }

    op_as_typed_op!();
}

impl EvalOp for TypedLoop {
    op_out_of_plan!();

    fn eval(&self, _ctx: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let body = &self.runner.body;
        self.iterate(inputs).with_context(|| format!("Loop '{}'", body.node))
    }
}

impl TypedLoop {
    fn iterate(&self, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let body = &self.runner.body;
        let mut inputs = inputs.into_iter();
        let mut scalar = |given: bool| if given { inputs.next() } else { None };
        let (trip, cond) = (scalar(self.has_trip), scalar(self.has_cond));
        let trip = trip.map(|t| t.cast_to_scalar::<i64>()).transpose()?;
        let mut goes_on = cond.map_or(Ok(true), |t| t.cast_to_scalar::<bool>())?;
        let mut carried: TVec<TValue> = inputs.by_ref().take(body.carried).collect();
        let read: TVec<TValue> = inputs.collect();
        let mut collected: Vec<Vec<Tensor>> = vec![vec![]; body.names.len() - 1 - body.carried];
        let mut at = 0i64;
        self.runner.is_early()?;
        let mut since = Instant::now();
        while goes_on && trip.is_none_or(|n| at < n) {
            let number = if body.vector { tensor1(&[at]) } else { tensor0(at) };
            let mut feed: TVec<TValue> = tvec!(number.into_tvalue());
            feed.extend(carried.drain(..));
            feed.extend(read.iter().cloned());
            let out = self.runner.step(feed).with_context(|| format!("iteration {at}"))?;
            let mut out = out.into_iter();
            let cond = out.next().context("the body makes no condition")?;
            goes_on = cond.cast_to_scalar::<bool>()?;
            for t in out.by_ref().take(body.carried) {
                carried.push(plain(t)?);
            }
            for (all, t) in collected.iter_mut().zip(out) {
                let mut t = plain(t)?.into_tensor();
                t.insert_axis(0)?;
                all.push(t);
            }
            at += 1;
            self.runner.in_time(&mut since).with_context(|| format!("iteration {at}"))?;
        }
        let mut made = tvec!();
        for (slot, fact) in self.slots.iter().zip(&self.facts) {
            made.push(match slot.checked_sub(1 + body.carried) {
                None => carried[slot - 1].clone(),
                Some(i) => self.joined(&collected[i], fact, &body.names[*slot])?.into_tvalue(),
            });
        }
        Ok(made)
    }

    /// What was collected, on a new first axis.
    fn joined(&self, parts: &[Tensor], fact: &TypedFact, name: &str) -> TractResult<Tensor> {
        let Some(first) = parts.first() else {
            // A size that no iteration told is 0.
            let dims: TVec<usize> = fact.shape.iter().skip(1).map(|d| d.to_usize().unwrap_or(0)).collect();
            return Tensor::zero_dt(fact.datum_type, &[&[0], &dims[..]].concat());
        };
        if let Some(other) = parts.iter().find(|t| t.shape() != first.shape()) {
            let (a, b) = (&first.shape()[1..], &other.shape()[1..]);
            bail!("'{name}' is {a:?} in one iteration and {b:?} in another, which makes no tensor");
        }
        Tensor::stack_tensors(0, parts)
    }
}

/// tract's symbols as numbers: in a run there is nothing else.
fn plain(t: TValue) -> TractResult<TValue> {
    if t.datum_type() != TDim::datum_type() {
        return Ok(t);
    }
    Ok(t.cast_to_dt(i64::datum_type())?.into_owned().into_tvalue())
}

impl TypedOp for TypedLoop {
    fn output_facts(&self, _inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        Ok(self.facts.clone())
    }

    as_op!();
}

#[cfg(test)]
mod tests;
