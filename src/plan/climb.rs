//! In which order it is worth to give parts of a model more precision, and how far one must go.
//!
//! Each part has rungs: precisions with what they cost and how much noise the part then makes at the outputs. Noise of
//! different parts is taken to add up. [`climb`] puts the rungs of all parts in one order, those first that take away most
//! noise for their cost; how many of these steps are enough, [`probe`] finds out with few measurements of the whole. Both
//! decide from numbers alone.

use serde::{Deserialize, Serialize};

use super::precision::Precision;

/// What a part costs at a precision, and what noise it then makes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rung {
    pub precision: Precision,
    /// Bytes, or what else shall be spared.
    pub cost: f64,
    /// Energy of the error at the output that suffers most, as a share of that of the output; 0: none.
    pub noise: f64,
}

/// A part and its rungs, the least precise first: where it begins.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stair {
    pub part: String,
    pub rungs: Vec<Rung>,
}

/// A part that gets a higher precision than before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    pub part: String,
    pub to: Precision,
}

/// All steps that take away noise, those that take away most of it for their cost first. The steps of a part stand in the order
/// of its precisions; a rung that another one beats in both is left out, and so is one that pays less than the next.
pub fn climb(stairs: &[Stair]) -> Vec<Step> {
    let mut all: Vec<(f64, usize, Step)> = Vec::new();
    for (i, s) in stairs.iter().enumerate() {
        let mut at = 0;
        while let Some((next, worth)) = best_after(&s.rungs, at) {
            all.push((worth, i, Step { part: s.part.clone(), to: s.rungs[next].precision }));
            at = next;
        }
    }
    // Stable: of equals the part nearer to the input.
    all.sort_by(|a, b| b.0.total_cmp(&a.0));
    all.into_iter().map(|(_, _, s)| s).collect()
}

/// Of the rungs above one, that with the steepest way to it, and the noise it takes away for its cost; of equals the higher.
fn best_after(rungs: &[Rung], at: usize) -> Option<(usize, f64)> {
    let from = rungs.get(at)?;
    let worth = |r: &Rung| (from.noise - r.noise) / (r.cost - from.cost).max(f64::MIN_POSITIVE);
    let above = rungs.iter().enumerate().skip(at + 1).filter(|(_, r)| r.noise < from.noise);
    above.map(|(i, r)| (i, worth(r))).reduce(|a, b| if b.1 >= a.1 { b } else { a })
}

/// How many of the first steps cost nothing: they spare more elsewhere in the file than they take.
pub fn free(stairs: &[Stair], steps: &[Step]) -> usize {
    let costs_none = |at: usize| {
        let step = &steps[at];
        let rungs = stairs.iter().find(|s| s.part == step.part).map_or(&[][..], |s| &s.rungs);
        let before = steps[..at].iter().rev().find(|s| s.part == step.part).map(|s| s.to);
        let from = before.map_or(rungs.first(), |p| rungs.iter().find(|r| r.precision == p));
        let to = rungs.iter().find(|r| r.precision == step.to);
        from.zip(to).is_some_and(|(from, to)| to.cost <= from.cost)
    };
    (0..steps.len()).take_while(|at| costs_none(*at)).count()
}

/// Where each part is after some steps, for those that were taken.
pub fn taken(steps: &[Step]) -> Vec<Step> {
    let mut out: Vec<Step> = Vec::new();
    for s in steps {
        match out.iter_mut().find(|o| o.part == s.part) {
            Some(o) => o.to = s.to,
            None => out.push(s.clone()),
        }
    }
    out
}

/// True if a step may be taken after `before`: those of the same part that come earlier in `all` are among these.
pub fn follows(all: &[Step], at: usize, before: &[Step]) -> bool {
    all[..at].iter().filter(|s| s.part == all[at].part).all(|s| before.contains(s))
}

/// What is to be done about a number of steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    /// Find out whether so many are enough.
    Ask(usize),
    /// So many are, and one less is not.
    Least(usize),
    /// Not even all are.
    Never,
}

/// Looks for the least number of steps up to `most` that is enough, by what is known of some numbers: few at first, then twice
/// as many, then by halves.
pub fn probe(most: usize, known: &[(usize, bool)]) -> Probe {
    let enough = known.iter().filter(|(_, yes)| *yes).map(|(n, _)| *n).min();
    let below = |n: &usize| enough.is_none_or(|e| *n < e);
    let too_few = known.iter().filter(|(_, yes)| !yes).map(|(n, _)| *n).filter(below).max();
    match (enough, too_few) {
        (Some(0), _) => Probe::Least(0),
        (_, None) => Probe::Ask(0),
        (Some(e), Some(f)) if e <= f + 1 => Probe::Least(e),
        (Some(e), Some(f)) => Probe::Ask(f + (e - f) / 2),
        (None, Some(f)) if f >= most => Probe::Never,
        (None, Some(f)) => Probe::Ask((f * 2).clamp(1, most)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stair(part: &str, rungs: &[(Precision, f64, f64)]) -> Stair {
        let rungs = rungs.iter().map(|&(precision, cost, noise)| Rung { precision, cost, noise }).collect();
        Stair { part: part.into(), rungs }
    }

    fn told(steps: &[Step]) -> Vec<String> {
        steps.iter().map(|s| format!("{} {}", s.part, s.to.name())).collect()
    }

    use Precision::{Float, Narrow, Recipe, Wide};

    #[test]
    fn what_takes_away_most_noise_for_its_cost_comes_first() {
        let stairs = [
            stair("a", &[(Narrow, 50.0, 10.0), (Recipe, 100.0, 1.0), (Float, 400.0, 0.0)]),
            stair("b", &[(Narrow, 5.0, 2.0), (Recipe, 10.0, 1.0), (Float, 40.0, 0.0)]),
        ];
        // 9 / 50, 1 / 300; 1 / 5, 1 / 30.
        assert_eq!(told(&climb(&stairs)), ["b recipe", "a recipe", "b float", "a float"]);
    }

    #[test]
    fn rungs_that_do_not_pay_are_jumped_over() {
        // 16 bits take away little for their cost, float all.
        let a = stair("a", &[(Recipe, 0.0, 10.0), (Wide, 10.0, 9.9), (Float, 20.0, 0.0)]);
        assert_eq!(told(&climb(&[a])), ["a float"]);
        // 16 bits are as good as float.
        let b = stair("b", &[(Recipe, 0.0, 10.0), (Wide, 10.0, 0.5), (Float, 20.0, 0.5)]);
        assert_eq!(told(&climb(&[b])), ["b 16-bit"]);
        // They cost nothing.
        let c = stair("c", &[(Recipe, 5.0, 10.0), (Wide, 5.0, 1.0), (Float, 20.0, 0.0)]);
        assert_eq!(told(&climb(std::slice::from_ref(&c))), ["c 16-bit", "c float"]);
        assert_eq!(free(std::slice::from_ref(&c), &climb(std::slice::from_ref(&c))), 1);
        // More bits that make more noise are no step.
        let d = stair("d", &[(Narrow, 5.0, 1.0), (Recipe, 10.0, 1.5)]);
        assert!(climb(&[d]).is_empty());
        assert!(climb(&[stair("e", &[])]).is_empty());
    }

    #[test]
    fn a_part_is_where_its_last_step_took_it() {
        let step = |part: &str, to| Step { part: part.into(), to };
        let all = [step("a", Recipe), step("b", Recipe), step("a", Float), step("b", Wide)];
        assert_eq!(told(&taken(&all[..3])), ["a float", "b recipe"]);
        assert!(follows(&all, 2, &all[..1]) && follows(&all, 3, &all[1..2]));
        assert!(!follows(&all, 2, &all[1..2]) && !follows(&all, 3, &all[..1]));
    }

    #[test]
    fn the_least_number_is_found_with_few_questions() {
        for most in 0..40 {
            for least in 0..=most + 1 {
                let mut known = Vec::new();
                let end = loop {
                    match probe(most, &known) {
                        Probe::Ask(n) => {
                            assert!(n <= most && !known.iter().any(|(k, _)| *k == n), "{n} of {most}: {known:?}");
                            known.push((n, n >= least));
                        }
                        end => break end,
                    }
                };
                assert_eq!(end, if least > most { Probe::Never } else { Probe::Least(least) });
                assert!(known.len() <= 12, "{known:?}");
            }
        }
    }
}
