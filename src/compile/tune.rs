//! A search for the fastest file that reaches a number of the user's own.
//!
//! Recipes are tried from the fastest to the most precise; the first whose file reaches the number is taken. If none does, the
//! one that came nearest is tried with its worst parts in float, by measured sensitivity: the fewest that are enough.
//!
//! The search is a value between two measurements, not a callback: [`Tuner::next`] makes a file to be measured, the caller
//! measures it in whatever way, and [`Tuner::score`] takes the number. Scores, and what was measured on the way, go into a
//! [`State`] that is written as JSON, so that a search that was cut short goes on where it was.

use std::path::Path;

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

use super::error::{CompilerError, StateError};
use super::keep::ranked;
use super::sensitivity::Bench;
use super::stages::{Log, Running, Samples, WHOLE, fitted, open, planned, prepared, statistics};
use super::{Journal, Prepared, apply};
use crate::calibrate::data::{Dataset, split_holdout};
use crate::file;
use crate::ir::Model;
use crate::pattern::RuleSet;
use crate::plan::parts::{By, Part, divide, named};
use crate::plan::{QuantPlan, Target};
use crate::recipe::Recipe;

/// The recipes that are tried if no others are named, the fastest first.
pub const LADDER: [&str; 3] = ["fq-vit", "fq-vit-r16", "linear-w8a8"];

/// Version of the state's JSON form.
const VERSION: u32 = 1;

/// One file that was measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Trial {
    pub recipe: String,
    /// Parts that stay in float, the worst first.
    pub kept: Vec<String>,
    /// The caller's number.
    pub score: f64,
}

/// What is known of a search.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct State {
    version: u32,
    /// What the numbers belong to: the model, the samples, the options.
    key: String,
    /// In the order in which they were measured.
    pub trials: Vec<Trial>,
    /// Names of the parts by recipe, the worst first.
    ranked: IndexMap<String, Vec<String>>,
}

impl State {
    fn new(key: String) -> State {
        State { version: VERSION, key, trials: Vec::new(), ranked: IndexMap::new() }
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

    fn of(&self, recipe: &str, kept: usize) -> Option<&Trial> {
        self.trials.iter().find(|t| t.recipe == recipe && t.kept.len() == kept)
    }
}

/// What comes next.
#[derive(Clone, Debug, PartialEq)]
enum Decision {
    /// Measure the recipe with so many of its worst parts in float.
    Try(String, usize),
    /// Find out which parts of the recipe are the worst.
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
    let Some(parts) = s.ranked.get(&base.recipe).map(Vec::len) else { return Decision::Rank(base.recipe.clone()) };
    let of_base = || s.trials.iter().filter(|t| t.recipe == base.recipe);
    let enough = of_base().filter(|t| t.score >= at_least).min_by_key(|t| t.kept.len());
    let most = enough.map_or(parts, |t| t.kept.len());
    let too_few = of_base().map(|t| t.kept.len()).filter(|n| *n < most || enough.is_none()).max().unwrap_or(0);
    match enough {
        Some(t) if most <= too_few + 1 => Decision::Reached(t.clone()),
        Some(_) => Decision::Try(base.recipe.clone(), too_few + (most - too_few) / 2),
        None if too_few >= parts => {
            let best = s.trials.iter().reduce(|a, b| if b.score > a.score { b } else { a });
            Decision::Missed(best.expect("the base was measured").clone())
        }
        None => Decision::Try(base.recipe.clone(), (too_few * 2).clamp(1, parts)),
    }
}

/// A file to be measured.
#[derive(Clone, Debug)]
pub struct Candidate {
    pub recipe: String,
    pub kept: Vec<String>,
    pub model: Model,
    pub plan: QuantPlan,
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
    asked: Option<(String, Vec<String>)>,
}

/// A recipe's plan for the whole model.
struct Made {
    recipe: String,
    prepared: Prepared,
    plan: QuantPlan,
    data: Dataset,
    held: Vec<usize>,
}

impl Tuner {
    /// Begins a search, or goes on with the one whose state is in `file`.
    ///
    /// # Errors
    /// If no recipe is named or one quantizes nothing, the samples cannot be read, or the file is of another search.
    pub fn new(search: Search, file: Option<&Path>) -> Result<Tuner, CompilerError> {
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
                    let kept = self.state.ranked.get(&recipe).map_or(&[][..], |all| &all[..n]).to_vec();
                    let c = self.candidate(&recipe, &kept, how)?;
                    self.asked = Some((recipe, kept));
                    return Ok(Next::Measure(Box::new(c)));
                }
                Decision::Reached(t) => return self.end(&t, true, how),
                Decision::Missed(t) => return self.end(&t, false, how),
            }
        }
    }

    fn end(&mut self, t: &Trial, reached: bool, how: Running<'_>) -> Result<Next, CompilerError> {
        let best = Box::new(self.candidate(&t.recipe, &t.kept, how)?);
        Ok(Next::Done { best, score: t.score, reached })
    }

    /// Takes the number of the file that [`next`](Tuner::next) made last. NaN counts as less than every number.
    ///
    /// # Errors
    /// If the state cannot be written.
    pub fn score(&mut self, score: f64) -> Result<(), CompilerError> {
        if let Some((recipe, kept)) = self.asked.take() {
            // JSON has no infinities.
            let score = if score.is_nan() { f64::MIN } else { score.clamp(f64::MIN, f64::MAX) };
            self.state.trials.push(Trial { recipe, kept, score });
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
        let parts = divide(&m.prepared.model.graph, &m.prepared.sites, &m.plan, self.search.by);
        let names = ranked(&bench, &parts, false, how)?.into_iter().map(|s| s.part.name).collect();
        self.state.ranked.insert(recipe.to_owned(), names);
        self.remember()
    }

    fn candidate(&mut self, recipe: &str, kept: &[String], how: Running<'_>) -> Result<Candidate, CompilerError> {
        self.make(recipe, how)?;
        let m = self.made.as_ref().expect("it was just made");
        let (g, sites) = (&m.prepared.model.graph, &m.prepared.sites);
        let parts = named(g, sites, &m.plan, kept)
            .map_err(|name| CompilerError::NoPart { name, known: "those of the model that the state is of".into() })?;
        let mut plan = m.plan.clone();
        if !parts.is_empty() {
            plan = plan.without(g, sites, &Part::union(&parts));
            parts.iter().for_each(|p| plan.note_island(p, "kept in float: the number asked for needs it".into()));
        }
        let model = apply(&m.prepared, &plan, &mut Journal::default())?;
        Ok(Candidate { recipe: recipe.to_owned(), kept: kept.to_vec(), model, plan })
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
        let stats = statistics(&p, &r, (&data, &calib), WHOLE, how, log)?;
        let what = stats.data.clone();
        let plan = planned(&p, &r, stats, log)?;
        let plan = fitted(&p, &r, plan, (&data, &calib, &what), how, log)?;
        self.made = Some(Made { recipe: recipe.to_owned(), prepared: p, plan, data, held });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ladder() -> Vec<String> {
        ["fast", "slow"].map(str::to_owned).to_vec()
    }

    /// Runs a search over a made-up model of 12 parts; returns what was measured and how it ended.
    fn search(at_least: f64, score: impl Fn(&str, usize) -> f64) -> (Vec<(String, usize)>, Decision) {
        let mut s = State::new("k".into());
        let mut order = Vec::new();
        loop {
            match decide(&ladder(), at_least, &s) {
                Decision::Try(recipe, n) => {
                    assert!(s.of(&recipe, n).is_none(), "{recipe} with {n} kept was measured already: {order:?}");
                    let kept = (0..n).map(|i| format!("part {i}")).collect();
                    order.push((recipe.clone(), n));
                    s.trials.push(Trial { score: score(&recipe, n), recipe, kept });
                }
                Decision::Rank(recipe) => {
                    assert!(!s.ranked.contains_key(&recipe));
                    s.ranked.insert(recipe, (0..12).map(|i| format!("part {i}")).collect());
                }
                end => return (order, end),
            }
        }
    }

    fn reached(end: &Decision) -> (&str, usize) {
        match end {
            Decision::Reached(t) => (&t.recipe, t.kept.len()),
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
    fn the_fewest_parts_that_are_enough_stay_in_float() {
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
        assert_eq!((best.recipe.as_str(), best.kept.len()), ("fast", 12));
    }

    #[test]
    fn a_state_comes_back_and_one_of_another_search_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let f = dir.path().join("search.json");
        let mut s = State::read(&f, "k".into()).unwrap();
        s.trials.push(Trial { recipe: "fast".into(), kept: vec!["head".into()], score: f64::MIN });
        s.ranked.insert("fast".into(), vec!["head".into()]);
        s.write(&f).unwrap();
        assert_eq!(State::read(&f, "k".into()).unwrap(), s);
        assert!(matches!(State::read(&f, "other".into()), Err(StateError::Other { .. })));
        std::fs::write(&f, "{").unwrap();
        let e = State::read(&f, "k".into()).unwrap_err().to_string();
        assert!(e.contains("search.json") && e.contains("no state of a search"), "{e}");
    }
}
