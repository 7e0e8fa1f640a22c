//! `sensitivity`: what each part costs.

use super::args::SensitivityArgs;
use super::compile::{begun, split};
use super::files::Files;
use super::{Failure, Progress, threads};
use crate::budget::Stop;
use crate::calibrate::data::split_holdout;
use crate::compile::checked::checked;
use crate::compile::keep::{Keep, chosen, missed, ranked};
use crate::compile::mixed::Mixed;
use crate::compile::sensitivity::{Bench, SensitivityError};
use crate::compile::stages::{Log, Running, WHOLE, open, planned, read_statistics, statistics};
use crate::plan::parts::divide;
use crate::plan::precision::Precision;
use crate::verify::report::parts::{Findings, Kept, Row, VERSION};

pub fn sensitivity(a: &SensitivityArgs) -> Result<bool, Failure> {
    let mut files = Files::default();
    files.reads("MODEL", &a.model)?;
    let options = files.samples("--calibrate", &a.data, &a.model)?;
    files.preparation(&a.prepare);
    let (stats_given, stats_made) = split(a.stats.as_deref(), files.either("--stats", a.stats.as_deref())?);
    a.json.iter().try_for_each(|p| files.writes_or_prints("--json", p))?;
    a.html.iter().try_for_each(|p| files.writes_or_prints("--html", p))?;
    files.check()?;
    a.keep.check(false, true)?;
    let mut log = Log::default();
    let (recipe, p) = begun(&a.model, (&a.prepare, &a.data), "measure", &mut files, &mut log)?;
    let wanted = a.keep.wanted();
    wanted.as_ref().map_or(Ok(()), |k| k.check(&p, a.prepare.keep_opset))?;
    let data = open(&options.into(), &p.model, &mut log)?;
    let (calib, held) = split_holdout(data.len());
    let (progress, stop) = (Progress::new(a.quiet), Stop::default());
    let how = Running { threads: threads(a.prepare.threads), tell: &*progress.listener(), stop: &stop };
    if held.is_empty() {
        return Err(SensitivityError::Empty.into());
    }
    checked((&data, &[&calib[..], &held].concat()), &p.model, how, &mut log)?;
    let s = match stats_given {
        Some(f) => read_statistics(f, &p, &mut log)?,
        None => statistics(&p, &recipe, (&data, &calib), WHOLE, how, &mut log)?,
    };
    if let Some(f) = stats_made {
        files.write(f, &s.encode())?;
    }
    let plan = planned(&p, &recipe, s, how, &mut log)?;
    let bench = Bench::new(&p, &plan, &data, &held, how.threads)?;
    let parts = divide(&p.model.graph, &p.sites, &plan, a.keep.by());
    let ranked = ranked(&bench, &parts, !a.alone_only, how)?;
    let whole_db = bench.whole()?;
    let choose = |k: &Keep| chosen(&bench, (&p, &plan, &[]), Some(ranked.clone()), (k, 0), how, &mut log);
    let kept = wanted.as_ref().map(choose).transpose()?;
    let short = match (&wanted, &kept) {
        (Some(Keep::Reach(goal, _)), Some(m)) => missed(goal, m).is_some(),
        _ => false,
    };
    let found = Findings {
        version: VERSION,
        tool: format!("fqvit-opt {}", env!("CARGO_PKG_VERSION")),
        model: a.model.display().to_string(),
        recipe: recipe.name.clone(),
        by: a.keep.by().name().to_owned(),
        samples: held.len() * data.batch(),
        whole_db,
        parts: ranked
            .iter()
            .map(|s| Row {
                name: s.part.name.clone(),
                alone_db: s.alone_db,
                without_db: s.without_db,
                activations: s.part.activations.len(),
                layers: s.part.layers.len(),
                attentions: s.part.attentions.len(),
                constants: s.part.constants.len(),
            })
            .collect(),
        kept_in_float: kept.map(|m| Kept {
            parts: at(&m, Precision::Float),
            in_16_bits: at(&m, Precision::Wide),
            sqnr_db: m.sqnr_db,
        }),
        notes: log.notes,
    };
    if let Some(f) = &a.json {
        files.write(f, found.to_json()?.as_bytes())?;
    }
    if let Some(f) = &a.html {
        files.write(f, found.to_html().as_bytes())?;
    }
    let taken = files.stdout_is_taken();
    files.commit()?;
    if !taken {
        say_raw!("{}", found.to_terminal(super::columns()));
    }
    Ok(!short)
}

/// Names of the parts that got this precision.
fn at(m: &Mixed, precision: Precision) -> Vec<String> {
    m.changed.iter().filter(|s| s.to == precision).map(|s| s.part.clone()).collect()
}
