//! `eval`: one model over data.

use super::args::EvalArgs;
use super::files::Files;
use super::{Failure, Progress, load, threads};
use crate::budget::Stop;
use crate::compile::comparison::Read;
use crate::compile::evaluation::{Evaluation, evaluate};
use crate::compile::stages::Running;
use crate::verify::report::ModelFile;

pub fn eval(a: &EvalArgs) -> Result<bool, Failure> {
    let mut files = Files::default();
    files.reads("MODEL", &a.model)?;
    let options = files.samples("--images", &a.data, &a.model)?;
    a.json.iter().try_for_each(|p| files.writes_or_prints("--json", p))?;
    files.check()?;
    let mut notes = Vec::new();
    let (model, bytes) = load("MODEL", &a.model, &mut files, &mut notes)?;
    let (progress, stop) = (Progress::new(a.quiet), Stop::default());
    let listener = progress.listener();
    let how = Running { threads: threads(a.threads), tell: &*listener, stop: &stop };
    let read = Read { model, file: ModelFile { name: a.model.display().to_string(), bytes } };
    let found = evaluate(read, (&options.into(), a.min_top1.is_some()), how, notes)?;
    let missed = match (a.min_top1, found.top1()) {
        (None, _) => false,
        (Some(least), Some(x)) if x < least => {
            let said = format!("FAIL: top-1 is {:.2} %, below the {:.2} % of --min-top1", 100.0 * x, 100.0 * least);
            super::log::plain("fail", &said);
            true
        }
        (Some(_), Some(_)) => false,
        (Some(_), None) => {
            return Err("--min-top1: no output of the model holds scores over classes".into());
        }
    };
    if let Some(f) = &a.json {
        files.write(f, format!("{}\n", serde_json::to_string_pretty(&found)?).as_bytes())?;
    }
    let taken = files.stdout_is_taken();
    files.commit()?;
    if !taken {
        say_raw!("{}", readable(&found));
    }
    Ok(!missed)
}

fn readable(e: &Evaluation) -> String {
    let mut out = format!("{}: {} samples ({}), {:.1} s\n", e.model, e.samples, e.data, e.seconds);
    for o in &e.outputs {
        out += &format!("  {}: ", o.output);
        if let Some(h) = &o.accuracy {
            let hits = (h.top1 * h.samples as f64).round();
            out += &format!("top-1 {:.2} % ({hits} of {})", 100.0 * h.top1, h.samples);
            h.top5.iter().for_each(|x| out += &format!(", top-5 {:.2} %", 100.0 * x));
            out += "; ";
        }
        out += &format!("from {:.4} to {:.4}, mean {:.4}\n", o.least, o.most, o.mean);
    }
    if e.outputs.iter().all(|o| o.accuracy.is_none()) {
        out += "no classes are known: a labels.txt in the folder, a folder for each class, or an array `labels` give top-1\n";
    }
    e.notes.iter().for_each(|n| out += &format!("note: {n}\n"));
    out
}
