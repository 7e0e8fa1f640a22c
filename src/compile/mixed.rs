//! Precision part by part: the smallest or the most faithful file, by what each part was measured to cost.
//!
//! Each part is measured alone, the others in float, at every precision that it can have. [`climb`] puts the steps from one
//! precision to the next in order, and files along that order are made, sized and measured as wholes, until it is known which
//! is the first that is good enough, or the last that is small enough.

use std::str::FromStr;

use super::error::CompilerError;
use super::sensitivity::{Bench, Sensitivity};
use super::stages::{Event, Running};
use super::{Journal, Prepared, apply};
use crate::budget;
use crate::ir::validate;
use crate::onnx;
use crate::plan::climb::{Probe, Rung, Stair, Step, climb, follows, free, probe, taken};
use crate::plan::parts::Part;
use crate::plan::precision::{Chosen, Precision};
use crate::plan::{Layer, QuantPlan};
use crate::verify::metrics::{decibels, noise_share, shown_db};

/// How large a file may be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Size {
    Bytes(u64),
    /// A share of the float model's file, 0..1.
    Share(f64),
}

impl Size {
    /// In bytes, for a float model of so many.
    pub fn of(self, float: u64) -> u64 {
        match self {
            Size::Bytes(n) => n,
            Size::Share(s) => (s * float as f64) as u64,
        }
    }
}

impl FromStr for Size {
    type Err = String;

    fn from_str(s: &str) -> Result<Size, String> {
        let wrong = || "write it as 4.5MB, 800kB, 4500000, or 20% of the float file".to_owned();
        let s = s.trim();
        if let Some(percent) = s.strip_suffix('%') {
            let n: f64 = percent.trim().parse().map_err(|_| wrong())?;
            return if n > 0.0 && n <= 100.0 { Ok(Size::Share(n / 100.0)) } else { Err(wrong()) };
        }
        budget::bytes(s).filter(|n| *n <= 1e18).map(|n| Size::Bytes(n as u64)).ok_or_else(wrong)
    }
}

/// What is asked of a file whose parts may differ in precision; at least one of the two.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Goal {
    /// Least SQNR in dB of the output that suffers most.
    pub sqnr_db: Option<f64>,
    pub size: Option<Size>,
    /// The most that a part may get. Where nothing is said, a size alone leaves parts no more than the recipe gives them, whose
    /// speed it keeps, and an SQNR takes what it needs.
    pub up_to: Option<Precision>,
}

impl Goal {
    /// The precisions that parts may have, the least one first.
    fn precisions(&self) -> Vec<Precision> {
        let least = if self.size.is_some() { Precision::Narrow } else { Precision::Recipe };
        let most = self.most();
        Precision::ALL.into_iter().filter(|p| (least..=most).contains(p)).collect()
    }

    /// The most that a part may get.
    pub fn most(&self) -> Precision {
        let usual = if self.sqnr_db.is_some() { Precision::Float } else { Precision::Recipe };
        self.up_to.unwrap_or(usual).max(Precision::Recipe)
    }
}

/// What parts may become where size does not count.
pub const FOR_ACCURACY: [Precision; 3] = [Precision::Recipe, Precision::Wide, Precision::Float];

/// Parts, and what they can become.
pub struct Mixer<'a> {
    pub p: &'a Prepared,
    pub plan: &'a QuantPlan,
    /// The plan's layers with weights in 4 bits; none: no part can have these.
    pub narrow: &'a [Layer],
    pub parts: Vec<Part>,
}

/// Which precisions were chosen, and what that comes to.
#[derive(Clone, Debug)]
pub struct Mixed {
    pub plan: QuantPlan,
    /// The parts that are not as the recipe has them.
    pub changed: Vec<Step>,
    pub sqnr_db: f64,
    /// Bytes of the file, where they were counted.
    pub bytes: Option<u64>,
}

/// What 16 bits cost against float, and what values cost against weights: both cost time. Where size counts, a little only,
/// so that of two parts the one that pays more comes first.
const WIDE_SHARE: f64 = 0.125;
const VALUES_IF_SIZE_COUNTS: f64 = 1.0 / 16.0;

impl Mixer<'_> {
    /// The plan with parts at these precisions, without a word about it.
    fn at(&self, parts: &[(&Part, Precision)]) -> QuantPlan {
        self.plan.with_parts_at(&self.p.model.graph, &self.p.sites, self.narrow, parts)
    }

    /// The plan in which all parts begin at `first` and then take steps.
    fn after(&self, first: Precision, steps: &[Step]) -> QuantPlan {
        let moved = taken(steps);
        let now = |p: &Part| moved.iter().find(|s| s.part == p.name).map_or(first, |s| s.to);
        self.at(&self.parts.iter().map(|p| (p, now(p))).collect::<Vec<_>>())
    }

    /// Measures every part alone at each of the precisions that make a difference to it. `known` has those as the recipe has
    /// them. `sparing_size`: whether bytes are what shall be spared, or time as well.
    ///
    /// # Errors
    /// Those of [`Bench::sqnr`].
    pub fn stairs(
        &self,
        bench: &Bench<'_>,
        precisions: &[Precision],
        known: &[Sensitivity],
        sparing_size: bool,
        how: Running<'_>,
    ) -> Result<Vec<Stair>, CompilerError> {
        let (g, sites) = (&self.p.model.graph, &self.p.sites);
        let measured = precisions.iter().filter(|p| **p != Precision::Float).count();
        let done = how.steps("measuring", measured * self.parts.len());
        let values: usize = self.parts.iter().map(|p| p.activations.len()).sum();
        let all: f64 = self.parts.iter().map(|p| self.plan.weight_bytes(g, sites, &[], p, Precision::Float)).sum();
        let of_value = all / values.max(1) as f64 * if sparing_size { VALUES_IF_SIZE_COUNTS } else { 1.0 };
        let whole = if sparing_size { Some(self.bytes(self.plan)?) } else { None };
        let mut out = Vec::new();
        for (i, part) in self.parts.iter().enumerate() {
            let rungs = self.distinct(part, precisions);
            // What can be nothing else needs no figures.
            let rungs = if rungs.len() > 1 { rungs } else { Vec::new() };
            let mut stair = Stair { part: part.name.clone(), rungs: Vec::new() };
            for (j, (precision, plan)) in rungs.into_iter().enumerate() {
                let above = matches!(precision, Precision::Wide | Precision::Float);
                let bytes = match whole {
                    // Nodes and scales count as well, which weights alone have as many of in 4 bits as in 8.
                    Some(whole) if above => {
                        let own = self.plan.weight_bytes(g, sites, self.narrow, part, Precision::Recipe);
                        own + self.bytes(&plan)? as f64 - whole as f64
                    }
                    _ => self.plan.weight_bytes(g, sites, self.narrow, part, precision),
                };
                let values = part.activations.len() as f64 * of_value;
                let cost = match precision {
                    Precision::Narrow | Precision::Recipe => bytes,
                    Precision::Wide => bytes + values * WIDE_SHARE,
                    Precision::Float => bytes + values,
                };
                let known = known.iter().find(|s| precision == Precision::Recipe && s.part.name == part.name);
                let noise = match (precision, known) {
                    (Precision::Float, _) => 0.0,
                    (_, Some(s)) => noise_share(s.alone_db),
                    _ => {
                        let what = format!("with only {} quantized ({})", part.name, precision.name());
                        noise_share(bench.sqnr(&plan.only(g, sites, part), &what)?)
                    }
                };
                stair.rungs.push(Rung { precision, cost, noise });
                done(measured * i + (j + 1).min(measured));
            }
            done(measured * (i + 1));
            out.push(stair);
        }
        Ok(out)
    }

    /// The precisions that make a difference to a part, each with the plan that has the part at it.
    fn distinct(&self, part: &Part, precisions: &[Precision]) -> Vec<(Precision, QuantPlan)> {
        let mut out: Vec<(Precision, QuantPlan)> = Vec::new();
        for precision in precisions {
            let plan = self.at(&[(part, *precision)]);
            let differs = match precision {
                Precision::Narrow => self.narrows(part),
                _ => out.last().is_none_or(|(_, before)| *before != plan),
            };
            if differs {
                out.push((*precision, plan));
            }
        }
        out
    }

    /// Bytes of the file that a plan makes.
    ///
    /// # Errors
    /// If the plan cannot be carried out.
    pub fn bytes(&self, plan: &QuantPlan) -> Result<u64, CompilerError> {
        let m = apply(self.p, plan, &mut Journal::default())?;
        Ok(onnx::size(validate::validate(&m)?)?)
    }

    /// The plan after steps, with the reasons written into it.
    pub fn told(&self, first: Precision, steps: &[Step], stairs: &[Stair]) -> QuantPlan {
        let (mut plan, moved) = (self.after(first, steps), taken(steps));
        for part in &self.parts {
            let to = moved.iter().find(|s| s.part == part.name).map_or(first, |s| s.to);
            // Where no weights are, 4 bits are no precision of their own.
            let precision = if to == Precision::Narrow && !self.narrows(part) { Precision::Recipe } else { to };
            let rungs = stairs.iter().find(|s| s.part == part.name).map_or(&[][..], |s| &s.rungs);
            let measured = rungs
                .iter()
                .filter(|r| r.precision != Precision::Float)
                .map(|r| format!("{} {}", r.precision.name(), shown_db(decibels(1.0, r.noise))));
            let reason = match measured.collect::<Vec<_>>() {
                none if none.is_empty() => "nothing to choose from".to_owned(),
                some => format!("alone it leaves: {}", some.join(", ")),
            };
            if precision == Precision::Float {
                plan.note_island(part, format!("kept in float; {reason}"));
            }
            let (weights, values) = plan.bits_of(part);
            plan.parts.push(Chosen { part: part.name.clone(), precision, weights, values, reason });
        }
        plan
    }

    /// True if 4 bits change the part.
    fn narrows(&self, part: &Part) -> bool {
        let now = |name: &str| self.plan.layers.iter().find(|l| l.output == name);
        self.narrow.iter().any(|n| part.layers.contains(&n.output) && now(&n.output) != Some(n))
    }

    /// Looks for the plan that a goal asks for: the smallest file that reaches its dB, or the best one below its size. Where
    /// both cannot be had, size goes first. `float` is the size of the float file.
    ///
    /// # Errors
    /// If a size is below that of the smallest file, dB are out of reach without a size, or one cannot be measured.
    pub fn search(
        &self,
        bench: &Bench<'_>,
        (goal, float): (Goal, u64),
        known: &[Sensitivity],
        how: Running<'_>,
    ) -> Result<Mixed, CompilerError> {
        let precisions = goal.precisions();
        let first = precisions[0];
        let most = goal.size.map(|s| s.of(float));
        if let Some(most) = most {
            let smallest = self.bytes(&self.after(first, &[]))?;
            if smallest > most {
                return Err(CompilerError::TooSmall { asked: most, smallest });
            }
        }
        // What fits already needs no measurement of its parts.
        let raises = precisions.iter().any(|p| *p > Precision::Recipe);
        if let (None, Some(most), false) = (goal.sqnr_db, most, raises) {
            let bytes = self.bytes(self.plan)?;
            if bytes <= most {
                let whole =
                    Mixed { plan: self.plan.clone(), changed: Vec::new(), sqnr_db: bench.whole()?, bytes: Some(bytes) };
                return Ok(whole);
            }
        }
        let stairs = self.stairs(bench, &precisions, known, most.is_some(), how)?;
        let all = climb(&stairs);
        let good = match goal.sqnr_db {
            Some(db) => self.least(bench, (first, &all, free(&stairs, &all)), db, how)?,
            None => None,
        };
        let steps = match (good, most) {
            (Some(n), None) => all[..n].to_vec(),
            (Some(n), Some(most)) if self.bytes(&self.after(first, &all[..n]))? <= most => all[..n].to_vec(),
            (None, None) => all.clone(),
            (_, Some(most)) => self.fitting(first, &all, most)?,
        };
        let plan = self.told(first, &steps, &stairs);
        let changed = plan.parts.iter().filter(|c| c.precision != Precision::Recipe);
        let changed = changed.map(|c| Step { part: c.part.clone(), to: c.precision }).collect();
        let sqnr_db = bench.sqnr(&plan, "with parts at precisions of their own")?;
        let bytes = Some(self.bytes(&plan)?);
        Ok(Mixed { plan, changed, sqnr_db, bytes })
    }

    /// How many steps are enough for so many dB, if all are; the first `free` are taken in any case.
    fn least(
        &self,
        bench: &Bench<'_>,
        (first, all, free): (Precision, &[Step], usize),
        db: f64,
        how: Running<'_>,
    ) -> Result<Option<usize>, CompilerError> {
        let mut known = Vec::new();
        loop {
            match probe(all.len() - free, &known) {
                Probe::Least(n) => return Ok(Some(free + n)),
                Probe::Never => return Ok(None),
                Probe::Ask(n) => {
                    let plan = self.after(first, &all[..free + n]);
                    let reached = bench.sqnr(&plan, "with parts at precisions of their own")?;
                    let told = format!("{} of {} steps up: {}, for {db} dB", free + n, all.len(), shown_db(reached));
                    (how.tell)(Event::Note(&told));
                    known.push((n, reached >= db));
                }
            }
        }
    }

    /// The steps that fit into so many bytes: as many of the first ones as do, then those of the others that still do.
    fn fitting(&self, first: Precision, all: &[Step], most: u64) -> Result<Vec<Step>, CompilerError> {
        let mut known = Vec::new();
        let n = loop {
            match probe(all.len(), &known) {
                // So many are too many.
                Probe::Least(n) => break n.saturating_sub(1),
                Probe::Never => break all.len(),
                Probe::Ask(n) => known.push((n, self.bytes(&self.after(first, &all[..n]))? > most)),
            }
        };
        let mut steps = all[..n].to_vec();
        let mut bytes = self.bytes(&self.after(first, &steps))?;
        for at in n..all.len() {
            // What its weights alone take more is known without making the file.
            let more = self.more(first, &steps, &all[at]);
            if follows(all, at, &steps) && bytes as f64 + more <= most as f64 {
                let next = [&steps[..], &all[at..=at]].concat();
                let then = self.bytes(&self.after(first, &next))?;
                if then <= most {
                    (steps, bytes) = (next, then);
                }
            }
        }
        Ok(steps)
    }

    /// Bytes of weights that a step takes more than what was there.
    fn more(&self, first: Precision, before: &[Step], step: &Step) -> f64 {
        let (g, sites) = (&self.p.model.graph, &self.p.sites);
        let held = before.iter().rev().find(|s| s.part == step.part).map_or(first, |s| s.to);
        let bytes = |part: &Part, at| self.plan.weight_bytes(g, sites, self.narrow, part, at);
        let part = self.parts.iter().find(|p| p.name == step.part);
        part.map_or(0.0, |p| bytes(p, step.to) - bytes(p, held))
    }
}

/// Which parts are not as the recipe has them: `4-bit: block 0 mlp, head; float: block 1 mlp`.
pub fn list(changed: &[Step]) -> String {
    let of = |p: Precision| {
        let names: Vec<&str> = changed.iter().filter(|s| s.to == p).map(|s| s.part.as_str()).collect();
        (!names.is_empty()).then(|| format!("{}: {}", p.name(), names.join(", ")))
    };
    [Precision::Narrow, Precision::Wide, Precision::Float].into_iter().filter_map(of).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        let read = |s: &str| s.parse::<Size>();
        assert_eq!(read("4.5MB"), Ok(Size::Bytes(4_500_000)));
        assert_eq!(read("800 kB"), Ok(Size::Bytes(800_000)));
        assert_eq!(read("4500000"), Ok(Size::Bytes(4_500_000)));
        assert_eq!(read("2MiB"), Ok(Size::Bytes(2 << 20)));
        assert_eq!(read("20%"), Ok(Size::Share(0.2)));
        assert_eq!(Size::Share(0.2).of(1000), 200);
        for bad in ["", "MB", "-3MB", "0", "nan", "inf", "150%", "0%", "4.5 MX", "1e30GB", "4,5MB"] {
            assert!(read(bad).is_err_and(|e| e.contains("4.5MB")), "{bad}");
        }
    }
}
