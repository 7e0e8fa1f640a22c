//! `--accept-command`: the search for a file that passes a command of the user's own.

use std::path::Path;
use std::process::{Command, Stdio};

use super::args::CompileArgs;
use super::{Failure, Progress, threads};
use crate::budget::Stop;
use crate::calibrate::data::DataOptions;
use crate::compile::mixed::list;
use crate::compile::stages::Running;
use crate::compile::tune::{LADDER, Next, Search, Trial, Tuner};
use crate::file::{Scratch, output};
use crate::ir::{Model, validate};
use crate::onnx::{self, SaveOptions};
use crate::pattern::RuleSet;
use crate::plan::QuantPlan;
use crate::plan::climb::Step;
use crate::recipe::Recipe;
use crate::verify::thresholds::Check;

/// What stands for the file in the command.
const PLACE: &str = "{model}";

/// What the search ended with.
pub(super) struct Accepted {
    pub recipe: Recipe,
    pub plan: QuantPlan,
    /// What it was calibrated on, and how many samples of it.
    pub calibration: (String, u64),
    /// The command's number, held against the one to reach.
    pub check: Check,
    pub notes: Vec<String>,
}

/// Refuses a command that could not say anything about a file.
pub(super) fn check(command: &str) -> Result<(), Failure> {
    if command.contains(PLACE) {
        return Ok(());
    }
    Err(format!("--accept-command {command}: write {PLACE} where the file to measure goes").into())
}

/// Searches, with a line on standard error for each file that was measured.
pub(super) fn search(
    a: &CompileArgs,
    (command, at_least): (&str, f64),
    (model, rules): (&Model, &RuleSet),
    data: &DataOptions,
    progress: &Progress,
) -> Result<Accepted, Failure> {
    let names: Vec<String> = match &a.accept.accept_recipes[..] {
        [] => LADDER.map(str::to_owned).to_vec(),
        some => some.to_vec(),
    };
    let dir = a.prepare.passes_dir.as_deref();
    let ladder: Vec<Recipe> = names.iter().map(|n| Recipe::find(n, dir)).collect::<Result<_, _>>()?;
    let search = Search {
        model: model.clone(),
        name: a.model.as_deref().map_or(String::new(), |m| m.display().to_string()),
        rules: rules.clone(),
        data: data.clone().into(),
        ladder: ladder.clone(),
        at_least,
        target: a.prepare.target.map(Into::into),
        assume_vnni: a.prepare.assume_vnni,
        keep_opset: a.prepare.keep_opset,
        by: a.keep.by(),
    };
    let mut tuner = Tuner::new(search, a.accept.accept_state.as_deref())?;
    let tell = |t: &Trial, more: &str| {
        if !a.report.quiet {
            let said = format!("measured: {} by {}{}{more}", t.score, t.recipe, besides(&t.raised));
            super::log::plain("note", &said);
        }
    };
    tuner.trials().iter().for_each(|t| tell(t, " (known)"));
    let (listener, stop) = (progress.listener(), Stop::default());
    let how = Running { threads: threads(a.prepare.threads), tell: &*listener, stop: &stop };
    let folder = Scratch::new()?;
    let file = folder.path().join("candidate.onnx");
    loop {
        match tuner.next(how)? {
            Next::Measure(c) => {
                onnx::save(validate::validate(&c.model)?, &file, &SaveOptions::default())?;
                tuner.score(measured(command, &file)?)?;
                tuner.trials().last().into_iter().for_each(|t| tell(t, ""));
            }
            Next::Done { best, score, reached } => {
                let n = tuner.trials().len();
                let kept = besides(&best.raised);
                let what = if reached { "of the chosen file" } else { "of the best file found" };
                let note = format!("{score} {what}, for {at_least} (--accept-command, {n} files measured){kept}");
                let recipe = ladder.into_iter().find(|r| r.name == best.recipe);
                let recipe = recipe.ok_or_else(|| format!("recipe `{}` was none of those to try", best.recipe))?;
                let (plan, calibration) = (best.plan, best.calibration);
                let check = Check {
                    name: Check::ACCEPTED.to_owned(),
                    value: Some(score),
                    limit: at_least,
                    at_least: true,
                    pass: reached,
                    because: None,
                };
                return Ok(Accepted { recipe, plan, calibration, check, notes: vec![note] });
            }
        }
    }
}

/// Parts that are not as the recipe has them, if there are any.
fn besides(raised: &[Step]) -> String {
    if raised.is_empty() { String::new() } else { format!("; {}", list(raised)) }
}

/// The last word of what the command prints, as a number.
fn measured(command: &str, file: &Path) -> Result<f64, Failure> {
    let quoted = format!("'{}'", file.display().to_string().replace('\'', r"'\''"));
    let line = command.replace(PLACE, &quoted);
    let shell = |program: &str, flag: &str| output(Command::new(program).arg(flag).arg(&line).stderr(Stdio::inherit()));
    let out = if cfg!(windows) { shell("cmd", "/C") } else { shell("sh", "-c") };
    let failed = |why: String| -> Failure { format!("--accept-command {command}: {why}").into() };
    let out = out.map_err(|e| failed(e.to_string()))?;
    if !out.status.success() {
        return Err(failed(format!("it failed ({})", out.status)));
    }
    let text = String::from_utf8_lossy(&out.stdout);
    let word = text.split_whitespace().last();
    let number = word.and_then(|w| w.parse::<f64>().ok()).filter(|x| x.is_finite());
    number.ok_or_else(|| failed(format!("its last word is no finite number: {:?}", word.unwrap_or_default())))
}
