//! A search for the fastest file that reaches a number of the user's own.
//!
//! Recipes are tried from the fastest to the most precise; the first whose file reaches the number is taken. If none does, parts of
//! the one that came nearest get more precision, 16 bits or float, by measured sensitivity: in the order in which that pays
//! ([`climb`]), as few steps as are enough.
//!
//! The search is a value between two measurements, not a callback: [`Tuner::next`] makes a file to be measured, the caller
//! measures it in whatever way, and [`Tuner::score`] takes the number. Scores, and what was measured on the way, go into a
//! [`State`] that is written as JSON, so that a search that was cut short goes on where it was.

use std::path::Path;

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

use super::checked::checked;
use super::error::{CompilerError, StateError};
use super::mixed::{FOR_ACCURACY, Mixer};
use super::sensitivity::Bench;
use super::stages::{Log, Running, Samples, WHOLE, fitted, open, planned, prepared, statistics};
use super::{Journal, Prepared, apply};
use crate::calibrate::data::{Dataset, split_holdout};
use crate::file::{self, Pending};
use crate::infer;
use crate::ir::Model;
use crate::pattern::RuleSet;
use crate::plan::climb::{Probe, Stair, Step, climb, probe, taken};
use crate::plan::parts::{By, divide};
use crate::plan::precision::Precision;
use crate::plan::{QuantPlan, Target};
use crate::recipe::Recipe;

/// The recipes that are tried if no others are named, the fastest first.
pub const LADDER: [&str; 3] = ["fq-vit", "fq-vit-r16", "linear-w8a8"];

/// Version of the state's JSON form.
const VERSION: u32 = 2;

/// One file that was measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Trial {
    pub recipe: String,
    /// Steps that its parts have taken.
    pub steps: usize,
    /// Where that took those that are not as the recipe has them.
    pub raised: Vec<Step>,
    /// The caller's number.
    pub score: f64,
}

/// Names of the parts that were raised to a precision.
pub fn raised_to(raised: &[Step], to: Precision) -> Vec<String> {
    raised.iter().filter(|s| s.to == to).map(|s| s.part.clone()).collect()
}

/// What is known of a search.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct State {
    version: u32,
    /// What the numbers belong to: the model, the samples, the options.
    key: String,
    /// In the order in which they were measured.
    pub trials: Vec<Trial>,
    /// What the parts of a recipe cost and leave at each precision.
    measured: IndexMap<String, Vec<Stair>>,
}

impl State {
    fn new(key: String) -> State {
        State { version: VERSION, key, trials: Vec::new(), measured: IndexMap::new() }
    }

    /// What a file says, if it is there, of the search `key`; an empty state otherwise.
    fn read(path: &Path, key: String) -> Result<State, StateError> {
        let name = || path.display().to_string();
        let wrong = |message: String| StateError::Read { path: name(), message };
        let text = match std::fs::read_to_string(path) {
            Ok(t) => t,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(State::new(key)),
            Err(e) => return Err(wrong(e.to_string())),
        };
        let s: State = serde_json::from_str(&text).map_err(|e| wrong(format!("it is no state of a search ({e})")))?;
        if s.version != VERSION {
            return Err(wrong("it is of another version of this program".into()));
        }
        if s.key != key { Err(StateError::Other { path: name() }) } else { Ok(s) }
    }

    fn write(&self, path: &Path) -> Result<(), StateError> {
        let mut text = serde_json::to_string_pretty(self).unwrap_or_default();
        text.push('\n');
        Ok(file::write(path, text.as_bytes())?)
    }

    fn of(&self, recipe: &str, steps: usize) -> Option<&Trial> {
        self.trials.iter().find(|t| t.recipe == recipe && t.steps == steps)
    }

    /// Steps of a recipe's parts in the order in which they pay, once these are measured.
    fn steps(&self, recipe: &str) -> Option<Vec<Step>> {
        self.measured.get(recipe).map(|stairs| climb(stairs))
    }
}

/// What comes next.
#[derive(Clone, Debug, PartialEq)]
enum Decision {
    /// Measure the recipe after so many steps of its parts.
    Try(String, usize),
    /// Find out what the parts of the recipe cost and leave.
    Rank(String),
    /// The number is reached by this one.
    Reached(Trial),
    /// It cannot be reached; this one came nearest.
    Missed(Trial),
}

/// Decides from what is known.
fn decide(ladder: &[String], at_least: f64, s: &State) -> Decision {
    let plain: Vec<&Trial> = ladder.iter().filter_map(|r| s.of(r, 0)).collect();
    if let Some(t) = plain.iter().find(|t| t.score >= at_least) {
        return Decision::Reached((*t).clone());
    }
    if let Some(r) = ladder.iter().find(|r| s.of(r, 0).is_none()) {
        return Decision::Try(r.clone(), 0);
    }
    // Of equals the faster one.
    let base = plain.into_iter().reduce(|a, b| if b.score > a.score { b } else { a }).expect("the ladder has a step");
    let Some(steps) = s.steps(&base.recipe) else { return Decision::Rank(base.recipe.clone()) };
    let of_base = s.trials.iter().filter(|t| t.recipe == base.recipe);
    let known: Vec<(usize, bool)> = of_base.map(|t| (t.steps, t.score >= at_least)).collect();
    let best = || s.trials.iter().reduce(|a, b| if b.score > a.score { b } else { a });
    match probe(steps.len(), &known) {
        Probe::Ask(n) => Decision::Try(base.recipe.clone(), n),
        Probe::Least(n) => Decision::Reached(s.of(&base.recipe, n).expect("it is known").clone()),
        Probe::Never => Decision::Missed(best().expect("the base was measured").clone()),
    }
}

/// A file to be measured.
#[derive(Clone, Debug)]
pub struct Candidate {
    pub recipe: String,
    /// Parts that are not as the recipe has them.
    pub raised: Vec<Step>,
    pub model: Model,
    pub plan: QuantPlan,
    /// What it was calibrated on, and how many samples of it.
    pub calibration: (String, u64),
}

/// What [`Tuner::next`] comes back with.
#[derive(Clone, Debug)]
pub enum Next {
    /// To be measured; then [`Tuner::score`] wants the number.
    Measure(Box<Candidate>),
    /// The search is over: the best file, its number, and whether that is enough.
    Done { best: Box<Candidate>, score: f64, reached: bool },
}

/// What a search is about.
#[derive(Clone)]
pub struct Search {
    pub model: Model,
    /// What errors call the model.
    pub name: String,
    pub rules: RuleSet,
    pub data: Samples,
    /// From the fastest to the most precise.
    pub ladder: Vec<Recipe>,
    pub at_least: f64,
    pub target: Option<Target>,
    pub assume_vnni: bool,
    pub keep_opset: bool,
    pub by: By,
}

/// The search.
pub struct Tuner {
    search: Search,
    state: State,
    file: Option<std::path::PathBuf>,
    log: Log,
    /// What was made for the recipe that was tried last.
    made: Option<Made>,
    /// What [`score`](Tuner::score) is of.
    asked: Option<(String, usize)>,
}

/// A recipe's plan for the whole model.
struct Made {
    recipe: String,
    prepared: Prepared,
    plan: QuantPlan,
    data: Dataset,
    held: Vec<usize>,
    /// What it was calibrated on, and how many samples of it.
    calibration: (String, u64),
}

impl Made {
    fn mixer(&self, by: By) -> Mixer<'_> {
        let parts = divide(&self.prepared.model.graph, &self.prepared.sites, &self.plan, by);
        Mixer { p: &self.prepared, plan: &self.plan, narrow: &[], parts }
    }
}

impl Tuner {
    /// Begins a search, or goes on with the one whose state is in `file`.
    ///
    /// # Errors
    /// If no recipe is named or one quantizes nothing, the samples cannot be read, or the file is of another search.
    pub fn new(mut search: Search, file: Option<&Path>) -> Result<Tuner, CompilerError> {
        infer::declare(&mut search.model, &search.data.options.said_shapes()?);
        let nothing =
            |recipe: &str| CompilerError::Nothing { recipe: recipe.to_owned(), what: ": there is nothing to tune" };
        if let Some(r) = search.ladder.iter().find(|r| r.quantize.is_none() || r.prepare.is_none()) {
            return Err(nothing(&r.name));
        }
        let first = search.ladder.first().ok_or_else(|| nothing(""))?;
        let mut log = Log::default();
        let p = prepared(&search.model, &search.name, first, &search.rules, search.keep_opset, &mut log)?;
        let p = p.ok_or_else(|| nothing(&first.name))?;
        let data = open(&search.data, &p.model, &mut log)?;
        let key = format!(
            "{} {} {} {:?} {} {} {}",
            p.fingerprint,
            data.fingerprint(),
            data.how(),
            search.target,
            search.assume_vnni,
            search.keep_opset,
            search.by.name()
        );
        // What was measured is not to be lost for want of a place.
        file.map_or(Ok(()), |f| Pending::create(f).map(drop)).map_err(StateError::from)?;
        let state = file.map_or_else(|| Ok(State::new(key.clone())), |f| State::read(f, key.clone()))?;
        Ok(Tuner { search, state, file: file.map(Path::to_owned), log: Log::default(), made: None, asked: None })
    }

    /// What was measured so far, in order.
    pub fn trials(&self) -> &[Trial] {
        &self.state.trials
    }

    /// Makes the next file to be measured, or the one that the search ends with.
    ///
    /// # Errors
    /// If a recipe cannot be carried out, or somebody asked to stop; the search can then be gone on with.
    pub fn next(&mut self, how: Running<'_>) -> Result<Next, CompilerError> {
        let ladder: Vec<String> = self.search.ladder.iter().map(|r| r.name.clone()).collect();
        loop {
            match decide(&ladder, self.search.at_least, &self.state) {
                Decision::Rank(recipe) => self.rank(&recipe, how)?,
                Decision::Try(recipe, n) => {
                    let c = self.candidate(&recipe, n, how)?;
                    self.asked = Some((recipe, n));
                    return Ok(Next::Measure(Box::new(c)));
                }
                Decision::Reached(t) => return self.end(&t, true, how),
                Decision::Missed(t) => return self.end(&t, false, how),
            }
        }
    }

    fn end(&mut self, t: &Trial, reached: bool, how: Running<'_>) -> Result<Next, CompilerError> {
        let best = Box::new(self.candidate(&t.recipe, t.steps, how)?);
        // The float model is no answer, whatever its number is.
        let reached = reached && !best.plan.quantizes_nothing();
        Ok(Next::Done { best, score: t.score, reached })
    }

    /// Takes the number of the file that [`next`](Tuner::next) made last. NaN counts as less than every number.
    ///
    /// # Errors
    /// If the state cannot be written.
    pub fn score(&mut self, score: f64) -> Result<(), CompilerError> {
        if let Some((recipe, steps)) = self.asked.take() {
            // JSON has no infinities.
            let score = if score.is_nan() { f64::MIN } else { score.clamp(f64::MIN, f64::MAX) };
            let all = self.state.steps(&recipe).unwrap_or_default();
            self.state.trials.push(Trial { recipe, steps, raised: taken(&all[..steps]), score });
            self.remember()?;
        }
        Ok(())
    }

    fn remember(&self) -> Result<(), CompilerError> {
        Ok(self.file.as_deref().map_or(Ok(()), |f| self.state.write(f))?)
    }

    fn rank(&mut self, recipe: &str, how: Running<'_>) -> Result<(), CompilerError> {
        self.make(recipe, how)?;
        let Some(m) = &self.made else { return Ok(()) };
        let bench = Bench::new(&m.prepared, &m.plan, &m.data, &m.held, how.threads)?.until(how.stop);
        let stairs = m.mixer(self.search.by).stairs(&bench, &FOR_ACCURACY, &[], false, how)?;
        self.state.measured.insert(recipe.to_owned(), stairs);
        self.remember()
    }

    fn candidate(&mut self, recipe: &str, steps: usize, how: Running<'_>) -> Result<Candidate, CompilerError> {
        self.make(recipe, how)?;
        let m = self.made.as_ref().expect("it was just made");
        let stairs = self.state.measured.get(recipe).map_or(&[][..], |s| s);
        let all = climb(stairs);
        let steps = &all[..steps];
        let plan = match steps {
            [] => m.plan.clone(),
            _ => m.mixer(self.search.by).told(Precision::Recipe, steps, stairs),
        };
        let model = apply(&m.prepared, &plan, &mut Journal::default())?;
        let calibration = m.calibration.clone();
        Ok(Candidate { recipe: recipe.to_owned(), raised: taken(steps), model, plan, calibration })
    }

    /// The recipe's plan, from calibration samples; every eighth is held back for [`rank`](Tuner::rank).
    fn make(&mut self, recipe: &str, how: Running<'_>) -> Result<(), CompilerError> {
        if self.made.as_ref().is_some_and(|m| m.recipe == recipe) {
            return Ok(());
        }
        let (s, log) = (&self.search, &mut self.log);
        let nothing = || CompilerError::Nothing { recipe: recipe.to_owned(), what: ": there is nothing to tune" };
        let r = s.ladder.iter().find(|r| r.name == recipe).ok_or_else(nothing)?.clone();
        let r = r.written_for(s.target, s.assume_vnni);
        let p = prepared(&s.model, &s.name, &r, &s.rules, s.keep_opset, log)?.ok_or_else(nothing)?;
        let data = open(&s.data, &p.model, log)?.until(how.stop);
        let (calib, held) = split_holdout(data.len());
        if self.made.is_none() {
            checked((&data, &[&calib[..], &held].concat()), &p.model, how, log)?;
        }
        let stats = statistics(&p, &r, (&data, &calib), WHOLE, how, log)?;
        let (what, samples) = (stats.data.clone(), stats.samples);
        let plan = planned(&p, &r, stats, how, log)?;
        let plan = fitted(&p, &r, plan, (&data, &calib, &what), how, log)?;
        self.made =
            Some(Made { recipe: recipe.to_owned(), prepared: p, plan, data, held, calibration: (what, samples) });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::climb::Rung;

    fn ladder() -> Vec<String> {
        ["fast", "slow"].map(str::to_owned).to_vec()
    }

    const PARTS: usize = 6;

    /// Two steps each: 16 bits, then float.
    fn stair(i: usize) -> Stair {
        let rung = |precision, cost, noise| Rung { precision, cost, noise };
        let noise = 1.0 + i as f64;
        let rungs = vec![
            rung(Precision::Recipe, 10.0, noise),
            rung(Precision::Wide, 11.0, noise / 4.0),
            rung(Precision::Float, 40.0, 0.0),
        ];
        Stair { part: format!("part {i}"), rungs }
    }

    /// Runs a search over a made-up model of 6 parts, which can take 12 steps; returns what was measured and how it ended.
    fn search(at_least: f64, score: impl Fn(&str, usize) -> f64) -> (Vec<(String, usize)>, Decision) {
        let mut s = State::new("k".into());
        let mut order = Vec::new();
        loop {
            match decide(&ladder(), at_least, &s) {
                Decision::Try(recipe, n) => {
                    assert!(s.of(&recipe, n).is_none(), "{recipe} with {n} kept was measured already: {order:?}");
                    let raised = s.steps(&recipe).map_or(Vec::new(), |all| taken(&all[..n]));
                    order.push((recipe.clone(), n));
                    s.trials.push(Trial { score: score(&recipe, n), recipe, steps: n, raised });
                }
                Decision::Rank(recipe) => {
                    assert!(!s.measured.contains_key(&recipe));
                    s.measured.insert(recipe, (0..PARTS).map(stair).collect());
                }
                end => return (order, end),
            }
        }
    }

    fn reached(end: &Decision) -> (&str, usize) {
        match end {
            Decision::Reached(t) => (&t.recipe, t.steps),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_fastest_recipe_that_is_enough_is_taken_at_once() {
        let (order, end) = search(0.5, |_, _| 0.7);
        assert_eq!((order.len(), reached(&end)), (1, ("fast", 0)));
        let (order, end) = search(0.5, |r, _| if r == "slow" { 0.6 } else { 0.4 });
        assert_eq!((order.len(), reached(&end)), (2, ("slow", 0)));
    }

    #[test]
    fn as_few_steps_as_are_enough_are_taken() {
        for enough in 1..=12 {
            let (order, end) =
                search(0.9, |r, n| if r == "slow" && n >= enough { 0.95 } else { 0.1 + n as f64 / 100.0 });
            // Of equals the faster recipe is the base, which here never gets there.
            assert!(matches!(end, Decision::Missed(_)), "{order:?}");
            let (order, end) = search(0.9, |r, n| match (r, n) {
                ("fast", 0) => 0.1,
                ("slow", n) if n >= enough => 0.95,
                _ => 0.2,
            });
            assert_eq!(reached(&end), ("slow", enough), "{order:?}");
            assert!(order.len() <= 2 + 8, "{order:?}");
        }
    }

    #[test]
    fn what_can_not_be_reached_ends_with_the_best() {
        let (order, end) = search(2.0, |_, n| n as f64 / 100.0);
        let Decision::Missed(best) = end else { panic!("{order:?}") };
        assert_eq!((best.recipe.as_str(), best.steps), ("fast", 12));
        assert_eq!(raised_to(&best.raised, Precision::Float).len(), PARTS);
    }

    #[test]
    fn a_state_comes_back_and_one_of_another_search_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let f = dir.path().join("search.json");
        let mut s = State::read(&f, "k".into()).unwrap();
        s.trials.push(Trial { recipe: "fast".into(), steps: 0, raised: Vec::new(), score: f64::MIN });
        s.measured.insert("fast".into(), vec![stair(0)]);
        s.write(&f).unwrap();
        assert_eq!(State::read(&f, "k".into()).unwrap(), s);
        assert!(matches!(State::read(&f, "other".into()), Err(StateError::Other { .. })));
        std::fs::write(&f, "{").unwrap();
        let e = State::read(&f, "k".into()).unwrap_err().to_string();
        assert!(e.contains("search.json") && e.contains("no state of a search"), "{e}");
    }
}
