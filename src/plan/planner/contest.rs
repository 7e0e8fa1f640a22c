//! Which codes a value gets: the candidates of the recipe, compared by the error to expect.

use std::borrow::Cow;
use std::collections::BTreeSet;

use super::{PlanningError, db, folds};
use crate::ir::{Graph, ValueId};
use crate::plan::recipe::{Candidate, QuantRecipe};
use crate::plan::sites::{Linear, Site, Sites, reading_nodes};
use crate::plan::{Activation, Fold, Readers, Role};
use crate::quant::hist::Hist;
use crate::quant::observe::Stats;
use crate::quant::ptf;
use crate::quant::range::{self, Range};
use crate::quant::{Code, QParams};

/// The error relative to the variance of the faintest tokens may be this many times the error relative to the variance of
/// ordinary tokens. Only beyond it do the faintest tokens decide.
const MUCH_MORE: f64 = 4.0;

/// What becomes of a value with codes.
#[derive(Default)]
pub(super) struct Coded {
    pub fold: Option<Fold>,
    /// One entry, or one for the readers that contract and one for those that read element by element.
    pub codes: Vec<Activation>,
    /// Why those that read element by element read it in float.
    pub float: Option<String>,
}

/// The codes of one value: of what the recipe names for its role, that of least error to expect.
pub(super) fn decide(
    g: &Graph,
    s: &Site,
    st: &Stats,
    recipe: &QuantRecipe,
    sites: &Sites,
    linears: &[&Linear],
) -> Result<Coded, PlanningError> {
    let name = g.name_of(s.value);
    let candidates = recipe.candidates(s.role);
    if candidates.iter().all(|c| matches!(c, Candidate::Sums | Candidate::Wide { .. })) {
        return Err(PlanningError::NoCandidate { role: s.role.name(), value: name.to_owned() });
    }
    let shared = linears.iter().any(|l| sites.is_shared(l));
    let rule = recipe.folds.get(&s.role).map(|f| if shared { f.without_factors() } else { f.clone() });
    if let Some(f) = &rule
        && let Some((fold, params, reason)) = folds::folded(g, s, st, f, candidates, linears, recipe)
    {
        let all = Winner { params, floor: None, reason }.activation(name, s.role, Readers::All);
        return Ok(Coded { fold, codes: vec![all], float: None });
    }
    let floor = recipe.gelu_floor.filter(|_| only_gelus_read(g, s));
    let contest = Contest::new(s, st, recipe.one_scale_within.get(&s.role).copied(), floor);
    let affine: Vec<Candidate> = candidates.iter().filter(|c| matches!(c, Candidate::Affine { .. })).copied().collect();
    let fallback = [Candidate::Affine { code: Code::U8, range: Range::Mse }];
    let per_tensor: &[Candidate] = if affine.is_empty() { &fallback } else { &affine };
    // A single number has no axis either.
    let needs_tensor = s.contracted || !linears.is_empty() || st.dims.is_empty();
    let codes = if needs_tensor && s.elementwise && affine.len() < candidates.len() && !st.dims.is_empty() {
        match (contest.best(per_tensor), contest.best(candidates)) {
            (Ok(whole), Ok(by_channel)) if whole.params == by_channel.params => vec![(Ok(whole), Readers::All)],
            (whole, by_channel) => vec![(whole, Readers::Contracting), (by_channel, Readers::Elementwise)],
        }
    } else {
        vec![(contest.best(if needs_tensor { per_tensor } else { candidates }), Readers::All)]
    };
    let mut all = Coded::default();
    for (code, readers) in codes {
        match code {
            Ok(c) => all.codes.push(c.activation(name, s.role, readers)),
            Err(why) => all.float = Some(why),
        }
    }
    Ok(all)
}

/// True if nothing but GELUs reads a value.
fn only_gelus_read(g: &Graph, s: &Site) -> bool {
    let readers = reading_nodes(g, s.value);
    let all = !readers.is_empty() && readers.iter().all(|n| g.node(*n).op.is("Gelu"));
    all && !given_out(g, s.value)
}

/// True if an output holds elements of the value, moved or not.
fn given_out(g: &Graph, value: ValueId) -> bool {
    let (mut seen, mut todo) = (BTreeSet::new(), g.outputs().to_vec());
    while let Some(v) = todo.pop() {
        if v == value {
            return true;
        }
        let from = g.producer(v).map(|n| g.node(n)).filter(|n| n.is_move() && seen.insert(v));
        todo.extend(from.iter().flat_map(|n| n.inputs.iter().flatten()));
    }
    false
}

/// Codes for a value, and why these.
struct Winner {
    params: QParams,
    /// Where readers begin to tell values apart.
    floor: Option<f32>,
    reason: String,
}

impl Winner {
    fn activation(self, value: &str, role: Role, readers: Readers) -> Activation {
        Activation {
            value: value.to_owned(),
            role,
            readers,
            params: self.params,
            floor: self.floor,
            reason: self.reason,
        }
    }
}

/// One candidate's codes and their expected squared error.
struct Entrant {
    error: f64,
    params: QParams,
    what: String,
}

/// Candidates for one value, which are compared by the error to expect.
struct Contest<'a> {
    s: &'a Site,
    st: &'a Stats,
    /// One scale is taken where its error is within this many times the least.
    within: Option<f64>,
    /// No reader tells values below this from it.
    floor: Option<f32>,
    /// What was seen, as far as readers tell it apart.
    told: Cow<'a, Stats>,
}

impl<'a> Contest<'a> {
    fn new(s: &'a Site, st: &'a Stats, within: Option<f64>, floor: Option<f32>) -> Contest<'a> {
        let told = floor.map_or(Cow::Borrowed(st), |floor| Cow::Owned(st.at_least(floor)));
        Contest { s, st, within, floor, told }
    }

    fn error(&self, p: &QParams) -> f64 {
        range::expected_error(&self.told, p, |_| 1.0)
    }

    /// The energy of what readers tell apart.
    fn signal(&self) -> f64 {
        let energy = |h: &Hist| h.bins().map(|(x, n)| x * x * f64::from(n)).sum::<f64>();
        match self.floor {
            // Sums are of values as they were.
            Some(_) => self.told.channels.iter().map(|c| energy(&c.hist)).sum(),
            None => (0..self.st.channels.len()).map(|c| self.st.mean_square(c) * self.st.count as f64).sum(),
        }
    }

    /// What was seen, as far as readers tell it apart and a range has to reach.
    fn seen(&self, range: Range) -> Cow<'_, Stats> {
        match self.floor {
            Some(floor) if range.room() != 1.0 => Cow::Owned(self.st.at_least(floor / range.room())),
            _ => Cow::Borrowed(&self.told),
        }
    }

    /// What a candidate comes to; `None` for those that are no codes of 8 bits.
    fn entrant(&self, c: &Candidate) -> Option<Entrant> {
        let (params, what) = match *c {
            Candidate::Sums | Candidate::Wide { .. } => return None,
            Candidate::Affine { code, range } => {
                (range::affine(code, &self.seen(range), range), format!("one scale, {range:?}"))
            }
            Candidate::Ptf { code, rule } => {
                let p = ptf::ptf(code, &self.seen(rule.range), self.s.axis, rule, |_| 1.0);
                let widest = p.factors().map_or(1, |(_, f)| f.iter().copied().max().unwrap_or(1));
                let what = format!("{} up to {widest}, {:?}", p.kind(), rule.range);
                (p, what)
            }
        };
        Some(Entrant { error: self.error(&params), params, what })
    }

    /// The candidate of least error; at least one of them has 8 bits. `Err`: why the value is better left in float.
    fn best(&self, candidates: &[Candidate]) -> Result<Winner, String> {
        let entrants: Vec<(&Candidate, Entrant)> =
            candidates.iter().filter_map(|c| Some((c, self.entrant(c)?))).collect();
        let least = |one_scale: bool| {
            let may = entrants.iter().filter(|(c, _)| !one_scale || matches!(c, Candidate::Affine { .. }));
            may.map(|(_, e)| e).reduce(|a, b| if b.error < a.error { b } else { a })
        };
        let best = least(false).expect("one has 8 bits");
        let near = |e: &&Entrant| self.within.is_some_and(|w| e.error <= w * best.error);
        let best = least(true).filter(near).unwrap_or(best);
        let wide = candidates.iter().find_map(|c| match *c {
            Candidate::Wide { beyond, usual, float } => Some((self.widened(best.error, beyond, usual)?, float)),
            _ => None,
        });
        let st = self.st;
        if let Some((wide, float)) = &wide {
            let drowned = self.mean(wide.error) * st.faintness().0;
            if drowned > *float {
                return Err(format!(
                    "it has no codes where it is read element by element: even in 16 bits their error has {drowned:.2} of the \
                     variance of its faintest tokens"
                ));
            }
        }
        let Entrant { error, params, what } = wide.as_ref().map_or(best, |(w, _)| w);
        let from = self.floor.map_or_else(String::new, |floor| format!(" from {floor} up"));
        let reason = format!("{what}{from}: {}", db(self.signal(), *error));
        Ok(Winner { params: params.clone(), floor: self.floor, reason })
    }

    /// The mean over all elements of an error that is summed over them.
    fn mean(&self, error: f64) -> f64 {
        error / (self.st.count as f64 * self.st.channels.len() as f64).max(1.0)
    }

    /// Codes of 16 bits, where the error of 8 drowns the faintest tokens or the usual ones.
    fn widened(&self, error: f64, beyond: f64, most_of_usual: f64) -> Option<Entrant> {
        let st = self.st;
        let mean = self.mean(error);
        let (faintest, usual) = st.faintness();
        let drowns = mean * (faintest - MUCH_MORE * usual) > beyond || mean * usual > most_of_usual;
        if !drowns {
            return None;
        }
        let room = Range::Headroom(1.5);
        let params = range::affine(Code::U16, &self.seen(room), room);
        let what = format!(
            "one scale in 16 bits, as an error in 8 has {:.2} of the variance of the faintest tokens and {:.2} of the \
             usual ones'",
            mean * faintest,
            mean * usual
        );
        Some(Entrant { error: self.error(&params), params, what })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::ptf::{Factors, PtfRule};
    use crate::quant::watch::Watch;
    use crate::text::parse_model;

    /// What a value gets whose first token is so many times fainter than the other fifteen, one of which holds a value of 100
    /// times their deviation.
    fn chosen(fainter: f32) -> Result<Code, String> {
        let mut st = Stats::new(Watch::Tokens { axis: -1, read: Default::default() });
        for sample in 0..8u32 {
            let noise = |i: u32| ((i + sample * 997).wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 22) as f32 - 2.0;
            let size = |i: u32| if i < 32 { 1.0 / fainter } else { 1.0 };
            let mut x: Vec<f32> = (0..16 * 32).map(|i| noise(i) * size(i)).collect();
            (x[100], x[101]) = (115.0, -1.0);
            st.observe(&x, &[1, 16, 32], sample.into()).unwrap();
        }
        let s = Site { value: ValueId(0), role: Role::Residual, axis: -1, contracted: false, elementwise: true };
        let contest = Contest::new(&s, &st, None, None);
        let eight = Candidate::Affine { code: Code::U8, range: Range::MinMax };
        let wide = Candidate::Wide { beyond: 0.01, usual: 0.03, float: 0.01 };
        contest.best(&[eight, wide]).map(|w| w.params.code())
    }

    #[test]
    fn a_value_gets_the_bits_that_its_faintest_tokens_need() {
        // The error of 8 bits has more than a hundredth of the variance of every token, which is no matter.
        assert_eq!(chosen(1.0), Ok(Code::U8));
        assert_eq!(chosen(20.0), Ok(Code::U16));
        let e = chosen(1000.0).unwrap_err();
        assert!(e.contains("even in 16 bits"), "{e}");
    }

    #[test]
    fn codes_are_not_spent_on_what_gelu_makes_zero() {
        let mut st = Stats::new(Watch::Channels { axis: -1 });
        let x: Vec<f32> = (0..400).map(|i| (i * 7 % 150) as f32 / 10.0 - 12.0).collect();
        st.observe(&x, &[1, 100, 4], 0).unwrap();
        let reach = |text: &str, value: &str, range: Range| {
            let m = parse_model(text).unwrap();
            let value = m.graph.find(value).unwrap();
            let s = Site { value, role: Role::GeluInput, axis: -1, contracted: false, elementwise: true };
            let contest = Contest::new(&s, &st, None, only_gelus_read(&m.graph, &s).then_some(-3.5));
            let rule = PtfRule {
                max_shift: 7,
                channel_zeros: false,
                range,
                published_base: false,
                factors: Factors::Whole,
                normalised: false,
            };
            let candidates = [Candidate::Affine { code: Code::U8, range }, Candidate::Ptf { code: Code::U8, rule }];
            candidates.map(|c| contest.best(&[c]).map(|w| w.params.reach(0).0).unwrap())
        };
        let head = "<ir_version: 8, opset_import: [\"\" : 20]> g (float[1,100,4] x) => ";
        let head2 = head.replace("[1,100,4] x", "[1,100,4] x, bool b");
        for alone in [
            format!("{head}(y) {{ h = Neg (x) y = Gelu (h) }}"),
            format!("{head}(y) {{ h = Neg (x) y = Gelu <approximate = \"tanh\"> (h) }}"),
            format!("{head}(y) {{ h = Neg (x) t = Transpose <perm = [0, 2, 1]> (h) y = Gelu (t) }}"),
        ] {
            for range in [Range::MinMax, Range::Mse, Range::Headroom(1.25)] {
                for low in reach(&alone, "h", range) {
                    assert!((-3.8..=-2.5).contains(&low), "{alone} {range:?}: {low}");
                }
            }
        }
        let nested =
            format!("{head2}(y, z) {{ h = Neg (x) y = Gelu (h) z = If <then_branch: graph = \"00\"> (b) @ (h) }}");
        assert!(reach(&nested, "h", Range::MinMax).iter().all(|low| *low < -11.0), "{nested}");
        // What something else reads, it reads whole.
        for other in ["z = Add (h, x)", "z = Identity (h)", "z = Concat <axis = 1> (x, h)"] {
            let shared = format!("{head}(y, z) {{ h = Neg (x) y = Gelu (h) {other} }}");
            assert!(reach(&shared, "h", Range::MinMax).iter().all(|low| *low < -11.0), "{other}");
        }
        let given = format!("{head}(y, h) {{ h = Neg (x) y = Gelu (h) }}");
        assert!(reach(&given, "h", Range::MinMax).iter().all(|low| *low < -11.0));
    }
}
