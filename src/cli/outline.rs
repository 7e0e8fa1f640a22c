//! `--dry-run` as people read it.

use std::fmt::Write;
use std::path::Path;

use crate::budget::readable;
use crate::compile::outline::Outline;

/// What a run would do; `output` is the file it would write.
pub fn text(o: &Outline, output: Option<&Path>) -> String {
    let mut s = String::new();
    let mut line = |what: &str, text: String| {
        let _ = writeln!(s, "{what:10}{text}");
    };
    let Some(target) = o.target else {
        line("recipe", format!("{}: quantizes nothing, and leaves the model as it is", o.recipe));
        return s;
    };
    line("model", format!("{}, {}", o.model, readable(o.bytes)));
    line(
        "holds",
        format!(
            "{} attentions, {} LayerNorms, {} GELUs, {} linear layers, {} values to quantize",
            o.attentions, o.layer_norms, o.gelus, o.linears, o.values
        ),
    );
    line("recipe", format!("{}, target {}", o.recipe, format!("{target:?}").to_lowercase()));
    let fitted = match o.fitted_to {
        0 => String::new(),
        n => format!("; weights are fitted to {n} of them"),
    };
    match o.calibration_samples {
        0 => line("calibrate", format!("not needed: {}", o.calibration)),
        n => line("calibrate", format!("{n} samples of {}{fitted}", o.calibration)),
    }
    match o.verification_samples {
        0 => line("verify", "no".into()),
        n => line("verify", format!("{n} samples of {}", o.verification)),
    }
    let t = &o.thresholds;
    let wanted = [
        t.sqnr_db.map(|x| format!("SQNR {x} dB")),
        t.cosine.map(|x| format!("cosine {x}")),
        t.agreement.map(|x| format!("agreement {} %", x * 100.0)),
        t.top1_drop.map(|x| format!("at most {} % of top-1 lost", x * 100.0)),
    ];
    line("must reach", format!(" {}", wanted.into_iter().flatten().collect::<Vec<_>>().join(", ")));
    let ms = o.forward_seconds * 1e3;
    line(
        "time",
        format!("about {}, with {} threads; one forward pass takes {ms:.1} ms", span(o.about_seconds), o.threads),
    );
    if let Some(f) = output {
        line("output", format!("{}; nothing was written", f.display()));
    }
    o.notes.iter().for_each(|n| line("note", n.clone()));
    s
}

/// A time as rough as it is known.
fn span(seconds: f64) -> String {
    match seconds {
        s if s < 2.0 => "a second".into(),
        s if s < 100.0 => format!("{s:.0} s"),
        s if s < 5400.0 => format!("{:.0} minutes", s / 60.0),
        s => format!("{:.1} hours", s / 3600.0),
    }
}
