//! `compare`: several recipes on one model.

use std::time::Instant;

use super::args::CompareArgs;
use super::files::Files;
use super::{Failure, Progress, columns, load, on, threads};
use crate::compile::compiler::Compiler;
use crate::compile::error::Fault;
use crate::ir::validate;
use crate::onnx::{self, SaveOptions};
use crate::pattern::RuleSet;
use crate::recipe::Recipe;
use crate::verify::report::ModelFile;
use crate::verify::report::trade::{Row, Trade};

pub fn compare(a: &CompareArgs) -> Result<bool, Failure> {
    let mut files = Files::default();
    files.reads("MODEL", &a.model)?;
    let options = files.samples("--calibrate", &a.data, &a.model)?;
    files.data("--verify", a.verify.as_deref())?;
    a.json.iter().try_for_each(|p| files.writes_or_prints("--json", p))?;
    a.html.iter().try_for_each(|p| files.writes_or_prints("--html", p))?;
    let dir = a.passes_dir.as_deref();
    let recipes: Vec<Recipe> = a
        .recipes
        .iter()
        .map(|name| Ok(Recipe::find(name, dir)?.written_for(a.target.map(Into::into), a.assume_vnni)))
        .collect::<Result<_, Failure>>()?;
    if let Some(r) = recipes.iter().enumerate().find(|(i, r)| recipes[..*i].iter().any(|o| o.name == r.name)) {
        return Err(format!("--recipes: two recipes have the name `{}`; give one of them another", r.1.name).into());
    }
    let rules = RuleSet::with_folder(dir)?;
    let place = |r: &Recipe| a.output_dir.as_ref().map(|d| d.join(format!("{}.onnx", r.name)));
    a.output_dir.iter().for_each(|d| files.writes_into("--output-dir", d));
    for r in &recipes {
        place(r).iter().try_for_each(|p| files.model(p))?;
    }
    files.check()?;
    let mut notes = Vec::new();
    let (model, before) = load("MODEL", &a.model, &mut files, &mut notes)?;
    let name = a.model.display().to_string();
    let progress = Progress::new(a.quiet);
    let (mut rows, mut verified) = (Vec::new(), (String::new(), 0));
    for recipe in &recipes {
        let begin = Instant::now();
        if !a.quiet {
            super::log::plain("note", &format!("recipe {}", recipe.name));
        }
        let done = Compiler::new(model.clone())
            .named(&name, before)
            .recipe(recipe.clone())
            .rules(rules.clone())
            .calibrate(options.clone())
            .verify(on(a.verify.as_deref(), &options))
            .fast(a.fast)
            .threads(threads(a.threads))
            .tell(progress.listener())
            .run();
        let seconds = || begin.elapsed().as_secs_f64();
        match done {
            Ok(done) => {
                let valid = validate::validate(&done.model)?;
                let bytes = match place(recipe) {
                    Some(p) => onnx::stage(valid, &p, &SaveOptions::default(), files.batch()?)?,
                    None => onnx::size(valid)?,
                };
                verified = (done.report.data.verification.clone(), done.report.data.verification_samples);
                rows.push(Row::of(&recipe.name, &done.report, bytes, seconds()));
            }
            // What is wrong with the data is wrong for every recipe.
            Err(e) if matches!(e.fault(), Fault::Data | Fault::Stopped) => return Err(e.into()),
            Err(e) => rows.push(Row::failed(&recipe.name, e.to_string(), seconds())),
        }
    }
    if let Some(e) = rows.iter().find_map(|r| r.error.clone())
        && rows.iter().all(|r| r.error.is_some())
    {
        return Err(e.into());
    }
    let trade = Trade::new(ModelFile { name, bytes: before }, verified, rows);
    if let Some(p) = &a.json {
        files.write(p, trade.to_json()?.as_bytes())?;
    }
    if let Some(p) = &a.html {
        files.write(p, trade.to_html().as_bytes())?;
    }
    let taken = files.stdout_is_taken();
    files.commit()?;
    if !taken {
        say_raw!("{}", trade.to_terminal(columns()));
        notes.iter().for_each(|n| say!("note: {n}"));
    }
    Ok(trade.rows.iter().all(|r| r.error.is_none()))
}
