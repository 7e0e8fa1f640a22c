//! The report as one HTML page.

use super::markup::{STYLE, code, esc, put, without_folders};
use super::*;

pub(super) fn render(r: &Report) -> String {
    let mut h = String::new();
    let title = format!("{} \u{2192} {}", esc(file_name(&r.float.name)), esc(file_name(&r.quantized.name)));
    h += "<!doctype html>\n<html lang=\"en\">\n<head><meta charset=\"utf-8\">";
    h += "<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n";
    put(&mut h, format_args!("<title>{title}</title>\n<style>\n{STYLE}</style></head>\n<body>\n<main>\n"));
    head(&mut h, r, &title);
    super::beside::section(&mut h, r);
    outputs(&mut h, r);
    super::disagreements::section(&mut h, r);
    chart(&mut h, &r.blocks);
    if let Some(c) = &r.closer {
        super::values::section(&mut h, c);
        super::attention::section(&mut h, c);
    }
    super::channels::plots(&mut h, &r.channels);
    parts(&mut h, r);
    coverage(&mut h, r);
    details(&mut h, r);
    h += "</main>\n</body>\n</html>\n";
    h
}

/// The verdict, the key figures, and what to do where a threshold was missed.
fn head(h: &mut String, r: &Report, title: &str) {
    let class = match r.verdict() {
        "pass" => "ok",
        "fail" => "bad",
        _ => "none",
    };
    put(h, format_args!("<header>\n<p class=\"verdict {class}\">{}</p>\n<h1>{title}</h1>\n", r.verdict()));
    let recipe = if r.recipe.is_empty() { String::new() } else { format!("recipe {} \u{00b7} ", esc(&r.recipe)) };
    put(h, format_args!("<p class=\"quiet\">{recipe}{}</p>\n</header>\n", esc(&r.tool)));
    if let Some(w) = r.synthetic_warning() {
        put(h, format_args!("<p class=\"warn\">{}</p>\n", esc(w)));
    }
    *h += "<dl class=\"figures\">\n";
    let numbers = || r.outputs.iter().filter(|m| m.kind != Kind::Labels);
    if let Some(m) = numbers().min_by(|a, b| a.sqnr_db.total_cmp(&b.sqnr_db)) {
        let of = if numbers().count() > 1 { "the worst output's signal to noise" } else { "signal to noise" };
        figure(h, "accuracy", &db(m.sqnr_db), of);
    }
    if let Some((m, s)) = r.outputs.iter().find_map(|m| Some((m, Share::of(m)?))) {
        figure(h, "agreement", &percent(s.value()), &share(m).unwrap_or_default());
    }
    if let Some(a) = r.outputs.iter().find_map(|m| m.accuracy.as_ref()) {
        figure(
            h,
            "top-1",
            &percent(a.top1_quantized),
            &format!("float {}, {} labels", percent(a.top1_float), a.samples),
        );
    }
    if r.float.bytes > 0 {
        figure(h, "size", &format!("{:.2}x", r.quantized.bytes as f64 / r.float.bytes as f64), &sizes(r));
    }
    if let Some(s) = &r.speed {
        figure(h, "time", &format!("{:.2}x", s.ratio), &speed(s));
    }
    if let Some(j) = &r.judged {
        let worst = j.levels.iter().flat_map(|l| &l.outputs).filter(|m| m.kind != Kind::Labels);
        if let Some(m) = worst.min_by(|a, b| a.sqnr_db.total_cmp(&b.sqnr_db)) {
            figure(h, &format!("in {}", esc(&j.runtime)), &db(m.sqnr_db), &judged(j));
        }
        figure(h, &format!("time in {}", esc(&j.runtime)), &format!("{:.2}x", j.ratio), &judged_speed(j));
    }
    *h += "</dl>\n";
    if !r.checks.is_empty() {
        *h += "<ul class=\"checks\">\n";
        for c in &r.checks {
            let class = if c.pass { "ok" } else { "bad" };
            put(h, format_args!("<li class=\"{class}\">{}</li>\n", esc(&check_text(c))));
        }
        *h += "</ul>\n";
    }
    let steps = r.next_steps();
    if !steps.is_empty() {
        *h += "<h2>What to try next</h2>\n<ul>\n";
        steps.iter().for_each(|s| put(h, format_args!("<li>{}</li>\n", esc(s))));
        *h += "</ul>\n";
    }
    let d = &r.data;
    put(
        h,
        format_args!(
            "<p class=\"quiet\">Calibrated on {} samples ({}), verified in tract on {} ({}).</p>\n",
            d.calibration_samples,
            esc(&without_folders(&d.calibration)),
            d.verification_samples,
            esc(&without_folders(&d.verification))
        ),
    );
}

pub(super) fn figure(h: &mut String, name: &str, value: &str, remark: &str) {
    put(h, format_args!("<div><dt>{name}</dt><dd><b>{}</b><small>{}</small></dd></div>\n", esc(value), esc(remark)));
}

fn outputs(h: &mut String, r: &Report) {
    if r.outputs.is_empty() {
        return;
    }
    *h += "<h2>Outputs</h2>\n";
    let rows = r
        .outputs
        .iter()
        .map(|m| vec![code(&m.tensor), error(m), format!("{:.5}", m.cosine), number(m.max_abs_error), agreement(m)]);
    table(h, &["output", "SQNR", "cosine", "largest error", "agreement"], 1, rows.collect());
    *h += "<p class=\"quiet\">SQNR: signal to quantization noise, 10 log10(sum y\u{00b2} / sum (y\u{2009}\u{2212}\u{2009}q)\u{00b2}); \
           20 dB is a hundredth of the energy. Largest error: in the model's own units. Agreement: both models say the \
           same.</p>\n";
    for (m, a) in r.outputs.iter().filter_map(|m| Some((m, m.accuracy.as_ref()?))) {
        let top5 = a.top5.map_or_else(String::new, |t| format!("; top-5: {}", pair(t.float, t.quantized)));
        put(
            h,
            format_args!(
                "<p><code>{}</code> against {} labels: top-1: {}{top5}.</p>\n",
                esc(&m.tensor),
                a.samples,
                pair(a.top1_float, a.top1_quantized)
            ),
        );
    }
}

/// The SQNR along the network, from the input down. Bars end at 0 dB; an exact block's bar is as long as the longest of the
/// others.
fn chart(h: &mut String, blocks: &[TensorMetrics]) {
    if blocks.is_empty() {
        return;
    }
    let top = blocks.iter().map(|m| m.sqnr_db).filter(|x| *x < EXACT_DB).fold(1.0, f64::max);
    *h += "<h2>Along the network</h2>\n<p class=\"quiet\">SQNR of the values after each block, against the float model. \
           <span class=\"key low\"></span> below 10 dB <span class=\"key mid\"></span> 10 to 20 dB \
           <span class=\"key high\"></span> 20 dB and more. The outputs may be better than the worst block: later blocks \
           average errors out.</p>\n<table class=\"chart\">\n";
    for m in blocks {
        let class = match m.sqnr_db {
            x if x < 10.0 => "low",
            x if x < 20.0 => "mid",
            _ => "high",
        };
        let width = 100.0 * m.sqnr_db.clamp(0.0, top) / top;
        put(
            h,
            format_args!(
                "<tr><th scope=\"row\" title=\"{}\">{}</th><td><div class=\"bar {class}\" style=\"width:{width:.1}%\"></div></td>\
                 <td class=\"n\">{}</td></tr>\n",
                esc(&m.tensor),
                esc(&shortened(&place(m), 34)),
                db(m.sqnr_db)
            ),
        );
    }
    *h += "</table>\n";
}

/// What each part has, where parts have precisions of their own.
fn parts(h: &mut String, r: &Report) {
    let Some(told) = precisions(r) else { return };
    put(h, format_args!("<h2>Parts</h2>\n<p>{}.</p>\n", esc(&told)));
    let rows = r.parts.iter().map(|c| {
        let cells = [&c.part, c.precision.name(), &c.weights, &c.values, &c.reason];
        cells.map(esc).to_vec()
    });
    table(h, &["part", "precision", "bits of weights", "bits of values", "reason"], 5, rows.collect());
}

fn coverage(h: &mut String, r: &Report) {
    put(h, format_args!("<h2>Integer coverage</h2>\n<p>{}.</p>\n", esc(&covered(&r.coverage))));
    let rows = r.coverage.by_op.iter().map(|(op, c)| vec![esc(op), c.covered.to_string(), c.total.to_string()]);
    table(h, &["operator", "covered", "of"], 1, rows.collect());
    if !r.islands.is_empty() {
        *h += "<h3>Left in float</h3>\n";
        let rows = r.islands.iter().map(|i| vec![code(&i.node), esc(&i.op), esc(&i.reason)]);
        table(h, &["node", "operator", "reason"], 3, rows.collect());
    }
}

/// What few readers want to know.
fn details(h: &mut String, r: &Report) {
    if !r.blocks.is_empty() {
        let rows = r.blocks.iter().map(|m| {
            vec![esc(&m.part), code(&m.tensor), error(m), format!("{:.5}", m.cosine), number(m.max_abs_error)]
        });
        fold(h, "Figures of every block");
        table(h, &["part", "tensor", "SQNR", "cosine", "largest error"], 2, rows.collect());
        *h += "</details>\n";
    }
    if !r.decisions.is_empty() {
        fold(h, "Decisions");
        let rows = r.decisions.iter().map(|(k, n)| vec![esc(k), n.to_string()]);
        table(h, &["decision", "count"], 1, rows.collect());
        *h += "</details>\n";
    }
    if !r.passes.is_empty() {
        fold(h, "Passes, on one sample");
        let rows = r.passes.iter().map(|p| {
            let moved = if p.distance == 0.0 { "same bits".to_owned() } else { number(p.distance) };
            vec![code(&p.pass), p.changes.to_string(), esc(&p.declares), moved, db(p.sqnr_db), db(p.total_db)]
        });
        let head = ["pass", "rewrites", "declares", "moved by", "SQNR of the step", "of all so far"];
        table(h, &head, 3, rows.collect());
        *h += "</details>\n";
    }
    if !r.timings.is_empty() {
        fold(h, "Time of each stage");
        let rows = r.timings.iter().map(|t| vec![esc(&t.stage), format!("{:.1} s", t.seconds)]);
        table(h, &["stage", "time"], 1, rows.collect());
        *h += "</details>\n";
    }
    if !r.notes.is_empty() {
        *h += "<h2>Notes</h2>\n<ul>\n";
        r.notes.iter().for_each(|n| put(h, format_args!("<li>{}</li>\n", esc(n))));
        *h += "</ul>\n";
    }
}

fn fold(h: &mut String, heading: &str) {
    put(h, format_args!("<details>\n<summary>{heading}</summary>\n"));
}

/// A table of cells that are HTML already; columns from number `right` on hold numbers.
fn table(h: &mut String, header: &[&str], right: usize, rows: Vec<Vec<String>>) {
    if rows.is_empty() {
        return;
    }
    let class = |i: usize| if i >= right { " class=\"n\"" } else { "" };
    let line = |tag: &str, cells: Vec<&str>| -> String {
        let cells = cells.iter().enumerate().map(|(i, c)| format!("<{tag}{}>{c}</{tag}>", class(i)));
        format!("<tr>{}</tr>\n", cells.collect::<String>())
    };
    *h += "<div class=\"wide\">\n<table>\n";
    *h += &line("th", header.to_vec());
    rows.iter().for_each(|r| *h += &line("td", r.iter().map(String::as_str).collect()));
    *h += "</table>\n</div>\n";
}

/// The end of a long name, which is where names of one model differ.
fn shortened(s: &str, max: usize) -> String {
    let n = s.chars().count();
    if n <= max { s.to_string() } else { format!("\u{2026}{}", s.chars().skip(n - max + 1).collect::<String>()) }
}
