//! Several quantized forms of one model against each other: what each costs in accuracy, size and time.

use std::fmt::Write;

use serde::{Deserialize, Serialize};

use super::markup::{STYLE, esc};
use super::{ModelFile, Report, Share, db, file_name, megabytes, or_dash, percent};
use crate::verify::kinds::Kind;

/// Version of the JSON form.
const VERSION: u32 = 1;

/// What several recipes make of one model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Trade {
    pub version: u32,
    pub tool: String,
    pub float: ModelFile,
    /// What they were verified on.
    pub verification: String,
    pub verification_samples: u64,
    /// In the order asked for.
    pub rows: Vec<Row>,
}

/// What one recipe made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    pub recipe: String,
    /// Why there is no file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    pub bytes: u64,
    /// Of the worst output.
    pub sqnr_db: Option<f64>,
    /// The share on which both models say the same, 0..1.
    pub agreement: Option<f64>,
    /// Against labels: float and quantized, 0..1.
    pub top1: Option<[f64; 2]>,
    /// The quantized model's time as a share of the float model's.
    pub latency_ratio: Option<f64>,
    /// What timed it.
    pub runtime: Option<String>,
    /// How long making it took.
    pub seconds: f64,
    /// Whether the recipe's thresholds are met.
    pub pass: Option<bool>,
}

impl Row {
    /// Of a report.
    pub fn of(recipe: &str, r: &Report, bytes: u64, seconds: f64) -> Row {
        let numbers = r.outputs.iter().filter(|m| m.kind != Kind::Labels).map(|m| m.sqnr_db);
        Row {
            recipe: recipe.to_owned(),
            error: None,
            bytes,
            sqnr_db: numbers.min_by(f64::total_cmp),
            agreement: r.outputs.iter().find_map(Share::of).map(Share::value),
            top1: r.outputs.iter().find_map(|m| m.accuracy.as_ref()).map(|a| [a.top1_float, a.top1_quantized]),
            latency_ratio: r.speed.as_ref().map(|s| s.ratio),
            runtime: r.speed.as_ref().map(|s| format!("{}, {}", s.runtime, s.instructions)),
            seconds,
            pass: (!r.checks.is_empty()).then(|| r.passes()),
        }
    }

    /// Of a recipe that made nothing.
    pub fn failed(recipe: &str, error: String, seconds: f64) -> Row {
        Row {
            recipe: recipe.to_owned(),
            error: Some(error),
            bytes: 0,
            sqnr_db: None,
            agreement: None,
            top1: None,
            latency_ratio: None,
            runtime: None,
            seconds,
            pass: None,
        }
    }

    /// Cells for a reader.
    fn cells(&self, float: u64) -> [String; 7] {
        let size = match float {
            _ if self.error.is_some() => "-".to_owned(),
            0 => megabytes(self.bytes),
            f => format!("{} ({:.2}x)", megabytes(self.bytes), self.bytes as f64 / f as f64),
        };
        let verdict = match (&self.error, self.pass) {
            (Some(_), _) => "error",
            (None, Some(true)) => "pass",
            (None, Some(false)) => "fail",
            (None, None) => "not verified",
        };
        [
            self.recipe.clone(),
            size,
            or_dash(self.sqnr_db.map(db)),
            or_dash(self.agreement.map(percent)),
            or_dash(self.top1.map(|[_, q]| percent(q))),
            or_dash(self.latency_ratio.map(|x| format!("{x:.2}x"))),
            verdict.to_owned(),
        ]
    }
}

const HEAD: [&str; 7] = ["recipe", "size", "SQNR", "agreement", "top-1", "latency", "verdict"];

impl Trade {
    /// Of these rows.
    pub fn new(float: ModelFile, verification: (String, u64), rows: Vec<Row>) -> Trade {
        Trade {
            version: VERSION,
            tool: format!("fqvit-opt {}", env!("CARGO_PKG_VERSION")),
            float,
            verification: verification.0,
            verification_samples: verification.1,
            rows,
        }
    }

    /// Pretty-printed JSON.
    ///
    /// # Errors
    /// If a number has no JSON form.
    pub fn to_json(&self) -> Result<String, serde_json::Error> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }

    /// The float model's share of labels met, if there are labels.
    fn top1_float(&self) -> Option<f64> {
        self.rows.iter().find_map(|r| r.top1).map(|[f, _]| f)
    }

    /// What was compared with what, in one sentence.
    fn caption(&self) -> String {
        let top1 = self.top1_float().map_or(String::new(), |x| format!(", top-1 {}", percent(x)));
        let timed = self.rows.iter().find_map(|r| r.runtime.as_ref());
        let timed = timed.map_or(String::new(), |t| format!("; latency in {t}, one thread"));
        format!(
            "Float: {}{top1}. Verified in tract on {} samples ({}){timed}.",
            megabytes(self.float.bytes),
            self.verification_samples,
            self.verification
        )
    }

    /// A table for a terminal `width` columns wide.
    #[cfg(feature = "cli")]
    pub fn to_terminal(&self, width: u16) -> String {
        let rows = self.rows.iter().map(|r| r.cells(self.float.bytes).to_vec()).collect();
        let mut out = super::table(&HEAD, rows, 1, width);
        out += &format!("{}\n", self.caption());
        for r in &self.rows {
            r.error.iter().for_each(|e| out += &format!("{}: {e}\n", r.recipe));
        }
        out
    }

    /// One page, complete in itself.
    pub fn to_html(&self) -> String {
        let mut h = String::new();
        let title = esc(file_name(&self.float.name));
        h += "<!doctype html>\n<html lang=\"en\">\n<head><meta charset=\"utf-8\">";
        h += "<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n";
        h += &format!("<title>{title}: recipes compared</title>\n<style>\n{STYLE}</style></head>\n<body>\n<main>\n");
        h += &format!(
            "<header>\n<h1>{title}: recipes compared</h1>\n<p class=\"quiet\">{}</p>\n</header>\n",
            esc(&self.tool)
        );
        scatter(&mut h, &self.rows);
        h += "<h2>Figures</h2>\n<div class=\"wide\">\n<table>\n<tr>";
        for (i, c) in HEAD.iter().enumerate() {
            h += &format!("<th{}>{c}</th>", if i > 0 { " class=\"n\"" } else { "" });
        }
        h += "</tr>\n";
        for r in &self.rows {
            h += "<tr>";
            for (i, c) in r.cells(self.float.bytes).iter().enumerate() {
                h += &format!("<td{}>{}</td>", if i > 0 { " class=\"n\"" } else { "" }, esc(c));
            }
            h += "</tr>\n";
        }
        h += "</table>\n</div>\n";
        h +=
            &format!("<p class=\"quiet\">{} Size and latency: share of the float model's.</p>\n", esc(&self.caption()));
        for r in &self.rows {
            r.error.iter().for_each(|e| h += &format!("<p class=\"warn\">{}: {}</p>\n", esc(&r.recipe), esc(e)));
        }
        h + "</main>\n</body>\n</html>\n"
    }
}

/// Round numbers that divide a range into a few steps.
fn ticks(from: f64, to: f64) -> Vec<f64> {
    let rough = ((to - from) / 5.0).max(1e-9);
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|k| k * power).find(|s| *s >= rough).unwrap_or(rough);
    let (first, last) = ((from / step).floor() as i64, (to / step).ceil() as i64);
    (first..=last).map(|k| k as f64 * step).collect()
}

/// Size of the plot, and what is free around its field.
const W: f64 = 720.0;
const H: f64 = 420.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 20.0;
const BOTTOM: f64 = 56.0;

/// SQNR over latency; the area of a disc is the file's size. Nothing where nothing was timed.
fn scatter(h: &mut String, rows: &[Row]) {
    let points: Vec<(&Row, f64, f64)> =
        rows.iter().filter_map(|r| Some((r, r.latency_ratio?, r.sqnr_db.filter(|x| x.abs() < 900.0)?))).collect();
    if points.is_empty() {
        return;
    }
    let span = |v: Vec<f64>| {
        (v.iter().copied().fold(f64::INFINITY, f64::min), v.iter().copied().fold(f64::NEG_INFINITY, f64::max))
    };
    let (x0, x1) = span(points.iter().map(|p| p.1).chain([1.0]).collect());
    let (y0, y1) = span(points.iter().map(|p| p.2).collect());
    let (xs, ys) = (ticks(x0 - 0.05, x1 + 0.05), ticks(y0 - 1.0, y1 + 1.0));
    let ends = |t: &[f64]| (t[0], t[t.len() - 1]);
    let ((x0, x1), (y0, y1)) = (ends(&xs), ends(&ys));
    let x = |v: f64| LEFT + (v - x0) / (x1 - x0) * (W - LEFT - RIGHT);
    let y = |v: f64| H - BOTTOM - (v - y0) / (y1 - y0) * (H - TOP - BOTTOM);
    *h += "<h2>Accuracy against time</h2>\n<p class=\"quiet\">Up is nearer to the float model, left is faster. The area of a disc \
           is the size of the file.</p>\n";
    let _ = writeln!(
        h,
        "<svg class=\"plot\" viewBox=\"0 0 {W} {H}\" role=\"img\" aria-label=\"SQNR over latency, one disc a recipe\">"
    );
    for t in &xs {
        let _ = writeln!(
            h,
            "<line class=\"grid\" x1=\"{0:.1}\" x2=\"{0:.1}\" y1=\"{TOP}\" y2=\"{1}\"/>",
            x(*t),
            H - BOTTOM
        );
        let _ =
            writeln!(h, "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{t:.2}</text>", x(*t), H - BOTTOM + 18.0);
    }
    for t in &ys {
        let _ =
            writeln!(h, "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{}\" y1=\"{1:.1}\" y2=\"{1:.1}\"/>", W - RIGHT, y(*t));
        let _ = writeln!(h, "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{t}</text>", LEFT - 8.0, y(*t) + 4.0);
    }
    let _ =
        writeln!(h, "<line class=\"mark\" x1=\"{0:.1}\" x2=\"{0:.1}\" y1=\"{TOP}\" y2=\"{1}\"/>", x(1.0), H - BOTTOM);
    let _ = writeln!(
        h,
        "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">latency, share of the float model's</text>",
        (LEFT + W - RIGHT) / 2.0,
        H - 12.0
    );
    let _ = writeln!(
        h,
        "<text x=\"14\" y=\"{0}\" text-anchor=\"middle\" transform=\"rotate(-90 14 {0})\">SQNR, dB</text>",
        (TOP + H - BOTTOM) / 2.0
    );
    let largest = points.iter().map(|p| p.0.bytes).max().unwrap_or(1).max(1) as f64;
    let mut labels: Vec<(f64, f64)> = Vec::new();
    for (r, px, py) in &points {
        let (cx, cy) = (x(*px), y(*py));
        let radius = (14.0 * (r.bytes as f64 / largest).sqrt()).max(3.0);
        let class = if r.pass == Some(false) { "bad" } else { "ok" };
        let _ = writeln!(
            h,
            "<circle class=\"{class}\" cx=\"{cx:.1}\" cy=\"{cy:.1}\" r=\"{radius:.1}\"><title>{}: {}, {px:.2}x, {}</title></circle>",
            esc(&r.recipe),
            db(*py),
            megabytes(r.bytes)
        );
        // Names of neighbours must not cover each other.
        let mut at = cy + 4.0;
        while labels.iter().any(|(lx, ly)| (lx - cx).abs() < 130.0 && (ly - at).abs() < 14.0) {
            at += 14.0;
        }
        labels.push((cx, at));
        let (side, anchor) = if cx > W - 190.0 { (-radius - 5.0, "end") } else { (radius + 5.0, "start") };
        let _ = writeln!(
            h,
            "<text class=\"name\" x=\"{:.1}\" y=\"{at:.1}\" text-anchor=\"{anchor}\">{}</text>",
            cx + side,
            esc(&r.recipe)
        );
    }
    *h += "</svg>\n";
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(recipe: &str, db: f64, ratio: f64) -> Row {
        Row {
            bytes: 6_500_000,
            sqnr_db: Some(db),
            agreement: Some(0.98),
            latency_ratio: Some(ratio),
            runtime: Some("tract, avx2".into()),
            pass: Some(true),
            ..Row::failed(recipe, String::new(), 1.0)
        }
    }

    #[test]
    fn every_recipe_is_in_every_form() {
        let mut rows: Vec<Row> =
            [("fq-vit", 18.8, 0.65), ("cpu", 21.7, 0.5)].map(|(r, d, t)| Row { error: None, ..row(r, d, t) }).into();
        rows.push(Row::failed("a<b", "no such thing".into(), 0.1));
        let t = Trade::new(ModelFile { name: "/x/vit.onnx".into(), bytes: 23_000_000 }, ("photos".into(), 16), rows);
        let page = t.to_html();
        assert_eq!(page.matches("<circle").count(), 2, "what failed has no place");
        assert!(page.contains("a&lt;b: no such thing") && !page.contains("/x/"), "{page}");
        assert!(!page.contains("http"), "complete in itself");
        let again: Trade = serde_json::from_str(&t.to_json().unwrap()).unwrap();
        assert_eq!(again, t);
        #[cfg(feature = "cli")]
        {
            let text = t.to_terminal(100);
            for word in ["fq-vit", "18.80 dB", "0.50x", "6.50 MB (0.28x)", "98.0 %", "error", "no such thing"] {
                assert!(text.contains(word), "{word} in {text}");
            }
        }
    }

    #[test]
    fn ticks_are_round_and_hold_the_range() {
        for (a, b) in [(0.4, 1.1), (-3.0, 24.0), (17.9, 18.1), (0.0, 1000.0)] {
            let t = ticks(a, b);
            assert!(t[0] <= a && t[t.len() - 1] >= b && (3..=9).contains(&t.len()), "{t:?}");
        }
    }
}
