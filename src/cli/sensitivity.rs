//! `sensitivity`: what each part costs.

use serde::Serialize;

use super::args::SensitivityArgs;
use super::compile::{begun, split};
use super::files::Files;
use super::{Failure, Progress, threads};
use crate::budget::Stop;
use crate::calibrate::data::split_holdout;
use crate::compile::keep::{chosen, ranked};
use crate::compile::sensitivity::Bench;
use crate::compile::stages::{Log, Running, WHOLE, open, planned, read_statistics, statistics};
use crate::plan::parts::divide;
use crate::verify::report::table;

/// What the subcommand found, for programs.
#[derive(Serialize)]
struct Findings {
    version: u32,
    tool: String,
    model: String,
    recipe: String,
    /// How the model was divided.
    by: &'static str,
    /// Samples measured on.
    samples: usize,
    /// With everything quantized.
    whole_db: f64,
    /// The one that costs most comes first.
    parts: Vec<Row>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kept_in_float: Option<Kept>,
    notes: Vec<String>,
}

#[derive(Serialize)]
struct Row {
    name: String,
    alone_db: f64,
    without_db: Option<f64>,
    activations: usize,
    layers: usize,
    attentions: usize,
    constants: usize,
}

#[derive(Serialize)]
struct Kept {
    parts: Vec<String>,
    sqnr_db: f64,
}

/// Version of the JSON form.
const VERSION: u32 = 1;

pub fn sensitivity(a: &SensitivityArgs) -> Result<bool, Failure> {
    let mut files = Files::default();
    files.reads("MODEL", &a.model)?;
    let options = files.samples("--calibrate", &a.data, &a.model)?;
    files.preparation(&a.prepare);
    let (stats_given, stats_made) = split(a.stats.as_deref(), files.either("--stats", a.stats.as_deref())?);
    a.json.iter().try_for_each(|p| files.writes_or_prints("--json", p))?;
    files.check()?;
    let mut log = Log::default();
    let (recipe, p) = begun(&a.model, &a.prepare, "measure", &mut files, &mut log)?;
    let data = open(&options.into(), &p.model, &mut log)?;
    let (calib, held) = split_holdout(data.len());
    let (progress, stop) = (Progress::new(a.quiet), Stop::default());
    let how = Running { threads: threads(a.prepare.threads), tell: &*progress.listener(), stop: &stop };
    let s = match stats_given {
        Some(f) => read_statistics(f, &p, &mut log)?,
        None => statistics(&p, &recipe, (&data, &calib), WHOLE, how, &mut log)?,
    };
    if let Some(f) = stats_made {
        files.write(f, &s.encode())?;
    }
    let plan = planned(&p, &recipe, s, &mut log)?;
    let bench = Bench::new(&p, &plan, &data, &held, how.threads)?;
    let parts = divide(&p.model.graph, &p.sites, &plan, a.keep.by.into());
    let ranked = ranked(&bench, &parts, !a.alone_only, how)?;
    let whole_db = bench.whole()?;
    let wanted = a.keep.wanted();
    let kept = wanted.map(|k| chosen(&bench, &p, &plan, Some(ranked.clone()), &k, how, &mut log)).transpose()?;
    let found = Findings {
        version: VERSION,
        tool: format!("fqvit-opt {}", env!("CARGO_PKG_VERSION")),
        model: a.model.display().to_string(),
        recipe: recipe.name.clone(),
        by: crate::plan::parts::By::from(a.keep.by).name(),
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
        kept_in_float: kept.map(|c| Kept { parts: c.parts.into_iter().map(|p| p.name).collect(), sqnr_db: c.sqnr_db }),
        notes: log.notes,
    };
    let mut json = serde_json::to_string_pretty(&found)?;
    json.push('\n');
    if let Some(f) = &a.json {
        files.write(f, json.as_bytes())?;
    }
    let taken = files.stdout_is_taken();
    files.commit()?;
    if !taken {
        say_raw!("{}", readable(&found));
    }
    let missed = a.keep.target_sqnr.is_some_and(|t| found.kept_in_float.is_some_and(|k| k.sqnr_db < t));
    Ok(!missed)
}

fn readable(f: &Findings) -> String {
    let db = |x: f64| if x >= 999.0 { "exact".to_owned() } else { format!("{x:.2} dB") };
    let mut out = format!(
        "{}, recipe {}: {} with everything quantized, {} samples held back\n\n",
        f.model,
        f.recipe,
        db(f.whole_db),
        f.samples
    );
    let rows = f.parts.iter().map(|r| {
        let mut row = vec![r.name.clone(), db(r.alone_db)];
        if let Some(x) = r.without_db {
            row.extend([db(x), format!("{:+.2} dB", x - f.whole_db)]);
        }
        row.extend([r.activations, r.layers, r.attentions].map(|n| n.to_string()));
        row
    });
    let with: &[&str] = if f.parts.iter().any(|r| r.without_db.is_some()) { &["all but it", "gain"] } else { &[] };
    let head = [&[f.by, "alone"], with, &["activations", "layers", "attentions"]].concat();
    out += &table(&head, rows.collect(), 1, super::columns());
    if let Some(k) = &f.kept_in_float {
        out += &format!("\n{} with {} kept in float", db(k.sqnr_db), k.parts.len());
        out += &if k.parts.is_empty() { ".\n".to_owned() } else { format!(": {}.\n", k.parts.join(", ")) };
    }
    f.notes.iter().for_each(|n| out += &format!("note: {n}\n"));
    out
}
