//! The samples of a run, each for what it is used, and whatever can be wrong about them before anything runs.

use super::super::Prepared;
use super::super::checked::{checked, labels_fit, sound};
use super::super::error::CompilerError;
use super::super::stages::{Log, Samples, Samplings, open};
use super::{Compiler, Verification};
use crate::calibrate::data::{Dataset, split_holdout};
use crate::recipe::Recipe;
use crate::verify::run::VerifyError;

/// What a first look calibrates and verifies on at most.
const FAST_CALIBRATION: usize = 32;
const FAST_VERIFICATION: usize = 16;

impl Compiler {
    /// The samples, each for what it is used. Whatever can be wrong about a call is told here, before minutes of work.
    pub(super) fn samplings(
        &mut self,
        p: &Prepared,
        recipe: &Recipe,
        log: &mut Log,
    ) -> Result<Samplings, CompilerError> {
        self.keep.as_ref().map_or(Ok(()), |k| k.check(p, self.keep_opset))?;
        if let Some((plan, name)) = &self.plan {
            let known = plan.follows(&recipe.name, &Recipe::shipped());
            known.map_err(|e| CompilerError::from(e).within(name))?;
        }
        if let (Some((_, plan)), true) = (&self.plan, self.wants_four_bits()) {
            return Err(CompilerError::SizeOfPlan { plan: plan.clone() });
        }
        // What is made up says nothing of a plan that was made for real data.
        let given = self.data.options.calibrate.is_some() || self.data.arrays.is_some();
        let from_file = self.plan.is_some() && self.calibrated_on.is_none();
        if from_file && self.keep.is_none() && !given && matches!(self.verification, Verification::HeldBack) {
            if self.limits.can_be_missed() || self.judge.is_some() {
                return Err(CompilerError::NothingToCompareOn);
            }
            self.verification = Verification::None;
            log.notes.push(
                "no data was given to compare the models on, so they are not compared: --verify DIR does that".into(),
            );
        }
        self.place_samples();
        let data = open(&self.data, &p.model, log)?.until(&self.stop);
        let most = |fast: usize| if self.fast { fast } else { usize::MAX };
        let other = match &self.verification {
            Verification::On(samples) => {
                let d = open(samples, &p.model, log)?.until(&self.stop);
                let all = thinned((0..d.len()).collect(), most(FAST_VERIFICATION));
                Some((d, all))
            }
            _ => None,
        };
        let measured = self.holds_back();
        let (calib, held) = if measured { split_holdout(data.len()) } else { ((0..data.len()).collect(), Vec::new()) };
        let (calib, held) = (thinned(calib, most(FAST_CALIBRATION)), thinned(held, most(FAST_VERIFICATION)));
        if measured && held.is_empty() {
            return Err(VerifyError::Empty.into());
        }
        // A plan is carried out without a look at what it was made from.
        let run = [if self.plan.is_none() { &calib[..] } else { &[] }, &held].concat();
        if let (Verification::HeldBack, _) | (_, Some(_)) = (&self.verification, &other) {
            let (d, some) = other.as_ref().map_or((&data, &held), |(d, some)| (d, some));
            labels_fit(d, some, &p.model)?;
        }
        // A label that no class has is a wrong list of labels, whoever is compared with it.
        labels_fit(&data, &run, &p.model)?;
        checked((&data, &run), &p.model, self.how(), log)?;
        match &other {
            // Both are made by the same options, and one look at them is enough.
            Some((d, some)) if run.is_empty() => checked((d, some), &p.model, self.how(), log)?,
            Some((d, some)) => sound(d, some, self.how(), log)?,
            None => {}
        }
        Ok(Samplings { data, calib, held, other })
    }

    /// Whether some of the calibration samples are held back, to measure on.
    pub(super) fn holds_back(&self) -> bool {
        matches!(self.verification, Verification::HeldBack) || self.keep.is_some()
    }

    /// Tells the samples where the model lies.
    fn place_samples(&mut self) {
        let Some(file) = &self.file else { return };
        let place = |s: &mut Samples| s.options = std::mem::take(&mut s.options).beside(file);
        place(&mut self.data);
        if let Verification::On(s) = &mut self.verification {
            place(s);
        }
    }

    /// What both models are to be run over, if they are.
    pub(super) fn verified_on(
        &self,
        (data, held): (&Dataset, Vec<usize>),
        other: Option<(Dataset, Vec<usize>)>,
    ) -> Option<(Dataset, Vec<usize>)> {
        match self.verification {
            Verification::None => None,
            _ => Some(other.unwrap_or_else(|| (data.clone(), held))),
        }
    }
}

/// At most so many of these, spread evenly.
fn thinned(all: Vec<usize>, most: usize) -> Vec<usize> {
    let take = all.len().min(most);
    (0..take).map(|i| all[(i as u128 * all.len() as u128 / take as u128) as usize]).collect()
}
