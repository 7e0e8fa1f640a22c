//! What the other runtime's own quantization makes of the float model, beside this file and the float model.

use super::markup::{esc, put};
use super::*;
#[cfg(feature = "cli")]
use crate::verify::judge::Baseline;

/// A row for each figure, where there is something to put beside.
pub(super) fn section(h: &mut String, r: &Report) {
    let Some((j, b)) = r.judged.as_ref().and_then(|j| Some((j, j.baseline.as_ref()?))) else { return };
    let ours = j.levels.last().map_or(&[][..], |l| &l.outputs);
    put(
        h,
        format_args!(
            "<h2>Beside the default of {0}</h2>\n<p class=\"quiet\">The third column is the float model through {0}'s own static \
             quantization with its default settings, calibrated on {1} of the same samples. All three run in {0} {2}, on {3} \
             samples, one thread.</p>\n<div class=\"wide\">\n<table class=\"beside\">\n\
             <tr><th></th><th class=\"n\">float</th><th class=\"n\">this file</th><th class=\"n\">{0}'s default</th></tr>\n",
            esc(&j.runtime),
            b.calibration_samples,
            esc(&j.version),
            j.samples
        ),
    );
    let mut row = |name: &str, cells: [String; 3]| {
        let [float, this, other] = cells;
        put(
            h,
            format_args!(
                "<tr><th scope=\"row\">{name}</th><td class=\"n\">{float}</td><td class=\"n\"><b>{this}</b></td>\
                 <td class=\"n\">{other}</td></tr>\n"
            ),
        );
    };
    let none = || "-".to_owned();
    let noise = |o: &[TensorMetrics]| or_dash(worst_db(o).map(db));
    row("SQNR", [none(), noise(ours), noise(&b.outputs)]);
    let same = |o: &[TensorMetrics]| or_dash(o.iter().find_map(Share::of).map(|s| percent(s.value())));
    if ours.iter().any(|m| Share::of(m).is_some()) {
        row("agreement", [none(), same(ours), same(&b.outputs)]);
    }
    let hits = |o: &[TensorMetrics]| o.iter().find_map(|m| m.accuracy.clone());
    if let (Some(a), Some(t)) = (hits(ours), hits(&b.outputs)) {
        row("top-1", [a.top1_float, a.top1_quantized, t.top1_quantized].map(percent));
    }
    row("size", [r.float.bytes, r.quantized.bytes, b.bytes].map(megabytes));
    let time = |ms: f64, ratio: f64| format!("{ms:.2} ms ({ratio:.2}x)");
    row("time", [format!("{:.2} ms", j.float_ms), time(j.quantized_ms, j.ratio), time(b.ms, b.ratio)]);
    *h += "</table>\n</div>\n";
}

/// Of the output that suffers most.
fn worst_db(outputs: &[TensorMetrics]) -> Option<f64> {
    outputs.iter().filter(|m| m.kind != Kind::Labels).map(|m| m.sqnr_db).reduce(f64::min)
}

/// For the terminal: `onnxruntime's default: 9.61 dB, names the same class on 93.7 % (..), 6.10 MB, 0.62x`.
#[cfg(feature = "cli")]
pub(super) fn told(runtime: &str, b: &Baseline) -> String {
    let noise = worst_db(&b.outputs).map_or_else(|| "labels".to_owned(), db);
    let share = b.outputs.iter().find_map(share).map_or(String::new(), |s| format!(", {s}"));
    format!("{runtime}'s own static quantization: {noise}{share}, {}, {:.2}x the time", megabytes(b.bytes), b.ratio)
}
