//! The report as one HTML page.

use std::fmt::Write;

use super::*;

const STYLE: &str = "body{font:15px/1.45 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;\
color:#1d2733;background:#fff}h1{font-size:1.4rem;margin-bottom:.2rem}h2{font-size:1.1rem;margin-top:2rem;\
border-bottom:1px solid #d5dbe2;padding-bottom:.2rem}table{border-collapse:collapse;width:100%}\
th,td{text-align:left;padding:.25rem .7rem .25rem 0;border-bottom:1px solid #eceff3;vertical-align:top}\
th{font-weight:600;color:#536171}td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}\
code{font:13px ui-monospace,monospace;overflow-wrap:anywhere}.warn{background:#fff3cd;border-left:4px solid #e0a800;\
padding:.5rem .8rem}.ok{color:#11703c}.bad{color:#b3261e;font-weight:600}svg text{font:12px ui-monospace,monospace}\
@media(prefers-color-scheme:dark){body{color:#dce3ea;background:#14191f}h2,th,td{border-color:#2e3843}\
th{color:#94a3b3}.warn{background:#3d3200}.ok{color:#5fd08f}.bad{color:#ff8a80}svg text{fill:#dce3ea}}";

pub(super) fn render(r: &Report) -> String {
    let mut h = String::new();
    let title = format!("{} \u{2192} {}", esc(&r.float.name), esc(&r.quantized.name));
    h += "<!doctype html>\n<html lang=\"en\">\n<head><meta charset=\"utf-8\">";
    h += "<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n";
    put(&mut h, format_args!("<title>{title}</title>\n<style>{STYLE}</style></head>\n<body>\n<h1>{title}</h1>\n"));
    put(
        &mut h,
        format_args!("<p>{} \u{00b7} recipe {} \u{00b7} {}</p>\n", esc(&sizes(r)), esc(&r.recipe), esc(&r.tool)),
    );
    if let Some(s) = &r.speed {
        put(&mut h, format_args!("<p>Speed: {}.</p>\n", esc(&speed(s))));
    }
    let d = &r.data;
    put(
        &mut h,
        format_args!(
            "<p>Calibrated on {} samples ({}), verified on {} ({}).</p>\n",
            d.calibration_samples,
            esc(&d.calibration),
            d.verification_samples,
            esc(&d.verification)
        ),
    );
    if let Some(w) = r.synthetic_warning() {
        put(&mut h, format_args!("<p class=\"warn\">{}</p>\n", esc(w)));
    }
    if !r.checks.is_empty() {
        let (class, word) = if r.passes() { ("ok", "Pass") } else { ("bad", "Fail") };
        put(&mut h, format_args!("<h2 class=\"{class}\">{word}</h2>\n<ul>\n"));
        for c in &r.checks {
            let class = if c.pass { "ok" } else { "bad" };
            put(&mut h, format_args!("<li class=\"{class}\">{}</li>\n", esc(&check_text(c))));
        }
        h += "</ul>\n";
    }
    tensors(&mut h, "Outputs", &r.outputs);
    for (m, a) in r.outputs.iter().filter_map(|m| Some((m, m.accuracy.as_ref()?))) {
        let top5 = a.top5.map_or_else(String::new, |t| format!("; top-5: {}", pair(t.float, t.quantized)));
        put(
            &mut h,
            format_args!(
                "<p><code>{}</code> against {} labels: top-1: {}{top5}.</p>\n",
                esc(&m.tensor),
                a.samples,
                pair(a.top1_float, a.top1_quantized)
            ),
        );
    }
    if !r.blocks.is_empty() {
        tensors(&mut h, "Blocks", &r.blocks);
        let worst: Vec<String> =
            r.worst(WORST).iter().map(|m| format!("<code>{}</code> ({})", esc(&m.tensor), db(m.sqnr_db))).collect();
        if !worst.is_empty() {
            put(&mut h, format_args!("<p>Worst: {}.</p>\n", worst.join(", ")));
        }
        chart(&mut h, &r.blocks);
    }
    put(
        &mut h,
        format_args!(
            "<h2>Integer coverage</h2>\n<p>{} of {} compute operators.</p>\n",
            r.coverage.covered, r.coverage.total
        ),
    );
    let rows = r.coverage.by_op.iter().map(|(op, c)| vec![esc(op), c.covered.to_string(), c.total.to_string()]);
    table(&mut h, &["operator", "covered", "of"], 1, rows.collect());
    if let Some(between) = between(&r.coverage) {
        put(&mut h, format_args!("<p>{}.</p>\n", esc(&between)));
    }
    if !r.islands.is_empty() {
        h += "<h2>Left in float</h2>\n";
        let rows = r.islands.iter().map(|i| vec![code(&i.node), esc(&i.op), esc(&i.reason)]);
        table(&mut h, &["node", "operator", "reason"], 3, rows.collect());
    }
    if !r.decisions.is_empty() {
        h += "<h2>Decisions</h2>\n";
        table(
            &mut h,
            &["decision", "count"],
            1,
            r.decisions.iter().map(|(k, n)| vec![esc(k), n.to_string()]).collect(),
        );
    }
    if !r.passes.is_empty() {
        h += "<h2>Passes, on one sample</h2>\n";
        let rows = r.passes.iter().map(|p| {
            let moved = if p.distance == 0.0 { "same bits".to_owned() } else { number(p.distance) };
            vec![code(&p.pass), p.changes.to_string(), esc(&p.declares), moved, db(p.sqnr_db), db(p.total_db)]
        });
        let head = ["pass", "rewrites", "declares", "moved by", "SQNR of the step", "of all so far"];
        table(&mut h, &head, 3, rows.collect());
    }
    if !r.timings.is_empty() {
        h += "<h2>Time</h2>\n";
        let rows = r.timings.iter().map(|t| vec![esc(&t.stage), format!("{:.1} s", t.seconds)]);
        table(&mut h, &["stage", "time"], 1, rows.collect());
    }
    if !r.notes.is_empty() {
        h += "<h2>Notes</h2>\n<ul>\n";
        r.notes.iter().for_each(|n| put(&mut h, format_args!("<li>{}</li>\n", esc(n))));
        h += "</ul>\n";
    }
    h += "</body>\n</html>\n";
    h
}

fn tensors(h: &mut String, heading: &str, rows: &[TensorMetrics]) {
    put(h, format_args!("<h2>{heading}</h2>\n"));
    let rows = rows
        .iter()
        .map(|m| vec![code(&m.tensor), error(m), format!("{:.5}", m.cosine), number(m.max_abs_error), agreement(m)]);
    table(h, &["tensor", "SQNR", "cosine", "largest error", "agreement"], 1, rows.collect());
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
    *h += "<table>\n";
    *h += &line("th", header.to_vec());
    rows.iter().for_each(|r| *h += &line("td", r.iter().map(String::as_str).collect()));
    *h += "</table>\n";
}

/// Bars of the blocks' SQNR, one below the other. Bars start at 0 dB, or at the lowest value if that is below; an exact
/// tensor's bar is as long as the longest of the others.
fn chart(h: &mut String, blocks: &[TensorMetrics]) {
    const LABEL: f64 = 300.0;
    const BAR: f64 = 520.0;
    const NUMBER: f64 = 90.0;
    const ROW: f64 = 18.0;
    let inexact = || blocks.iter().map(|m| m.sqnr_db).filter(|x| *x < EXACT_DB);
    let top = inexact().fold(1.0, f64::max);
    let low = inexact().filter(|x| *x > -EXACT_DB).fold(0.0, f64::min);
    let scale = BAR / (top - low);
    let (width, height) = (LABEL + BAR + NUMBER, ROW * blocks.len() as f64);
    put(
        h,
        format_args!(
            "<svg viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"SQNR per block\" width=\"100%\">\n"
        ),
    );
    for (i, m) in blocks.iter().enumerate() {
        let y = i as f64 * ROW;
        let v = m.sqnr_db.clamp(low, top);
        let (x, w) = (LABEL + (v.min(0.0) - low) * scale, v.abs() * scale);
        // Red below 10 dB, where a tenth of the signal's energy is wrong; amber below 20.
        let colour = match m.sqnr_db {
            x if x < 10.0 => "#c0392b",
            x if x < 20.0 => "#d9a21b",
            _ => "#2f7d5b",
        };
        put(
            h,
            format_args!(
                "<text x=\"{:.0}\" y=\"{:.0}\" text-anchor=\"end\">{}</text><rect x=\"{x:.1}\" y=\"{:.0}\" width=\"{w:.1}\" \
                 height=\"{:.0}\" fill=\"{colour}\"/><text x=\"{:.1}\" y=\"{:.0}\">{}</text>\n",
                LABEL - 8.0,
                y + 13.0,
                esc(&shortened(&m.tensor, 38)),
                y + 3.0,
                ROW - 6.0,
                x + w + 6.0,
                y + 13.0,
                db(m.sqnr_db)
            ),
        );
    }
    *h += "</svg>\n";
}

/// The end of a long name, which is where names of one model differ.
fn shortened(s: &str, max: usize) -> String {
    let n = s.chars().count();
    if n <= max { s.to_string() } else { format!("\u{2026}{}", s.chars().skip(n - max + 1).collect::<String>()) }
}

fn code(s: &str) -> String {
    format!("<code>{}</code>", esc(s))
}

/// Names come from files: nothing in them may become markup.
fn esc(s: &str) -> String {
    s.chars().fold(String::with_capacity(s.len()), |mut out, c| {
        match c {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            '\'' => out += "&#39;",
            c => out.push(c),
        }
        out
    })
}

fn put(h: &mut String, text: std::fmt::Arguments<'_>) {
    h.write_fmt(text).expect("a String takes every write");
}
