//! The report as text.

use comfy_table::{CellAlignment, ContentArrangement, LineStyle, Table, TableStyle};

use super::*;

pub(super) fn render(r: &Report, width: u16, tables: bool) -> String {
    let mut out = Page { text: String::new(), width };
    if tables {
        out.tables(r);
        out.line("");
    } else if !r.passes.is_empty() {
        out.passes(r);
        out.line("");
    }
    out.line(&format!("{}: {} -> {}", r.verdict(), r.float.name, r.quantized.name));
    if let Some(w) = r.synthetic_warning() {
        out.line(&format!("WARNING: {w}"));
    }
    for c in r.checks.iter().filter(|c| !c.pass) {
        out.line(&format!("FAIL {}", check_text(c)));
    }
    for m in r.outputs.iter().take(MOST_OUTPUTS) {
        let share = share(m).map_or(String::new(), |s| format!(", {s}"));
        let error = if m.kind == Kind::Labels { String::new() } else { format!("{} ", error(m)) };
        out.row("accuracy", &format!("{error}on {}{share}", m.tensor));
        if let Some(a) = &m.accuracy {
            let top5 = a.top5.map_or_else(String::new, |t| format!("; top-5 {}", pair(t.float, t.quantized)));
            let top1 = pair(a.top1_float, a.top1_quantized);
            out.row("", &format!("against {} labels: top-1 {top1}{top5}", a.samples));
        }
    }
    if r.outputs.len() > MOST_OUTPUTS {
        out.row("", &format!("and {} outputs more (-v)", r.outputs.len() - MOST_OUTPUTS));
    }
    out.row("size", &sizes(r));
    precisions(r).iter().for_each(|p| out.row("precision", &format!("{p} (-v)")));
    if let Some(s) = &r.speed {
        out.row("speed", &speed(s));
    }
    if let Some(j) = &r.judged {
        out.row("elsewhere", &judged(j));
        out.row("", &judged_speed(j));
        j.baseline.iter().for_each(|b| out.row("", &super::beside::told(&j.runtime, b)));
    }
    out.row("integers", &covered(&r.coverage));
    if let Some(first) = r.islands.first() {
        let more = if r.islands.len() > 1 { format!(", and {} more (-v)", r.islands.len() - 1) } else { String::new() };
        out.row("in float", &format!("{} `{}` ({}){more}", first.op, first.node, first.reason));
    }
    let worst = worst(r);
    if !worst.is_empty() {
        out.row("worst", &worst);
    }
    match r.recipe.as_str() {
        "" => out.row("by", &r.tool),
        recipe => out.row("recipe", &format!("{recipe}, {}", r.tool)),
    }
    let d = &r.data;
    let from = match d.calibration_samples {
        0 => d.calibration.clone(),
        n => format!("calibrated on {n} samples ({})", d.calibration),
    };
    out.row("data", &from);
    if !r.outputs.is_empty() {
        out.row("", &format!("verified in tract on {} samples ({})", d.verification_samples, d.verification));
    }
    if !r.timings.is_empty() {
        let times: Vec<String> = r.timings.iter().map(|t| format!("{} {:.1} s", t.stage, t.seconds)).collect();
        out.row("time", &times.join(", "));
    }
    for n in &r.notes {
        out.line(&format!("note: {n}"));
    }
    for (i, step) in r.next_steps().iter().enumerate() {
        out.row(if i == 0 { "next" } else { "" }, step);
    }
    if !tables && !r.blocks.is_empty() {
        out.line("-v prints the figures of every block; --judge onnxruntime runs the file there as well");
    }
    out.text
}

/// Outputs that the summary tells of.
const MOST_OUTPUTS: usize = 4;

struct Page {
    text: String,
    width: u16,
}

impl Page {
    /// Every figure, as tables.
    fn tables(&mut self, r: &Report) {
        self.tensors("Outputs", &r.outputs.iter().collect::<Vec<_>>());
        self.tensors("Blocks", &r.blocks.iter().collect::<Vec<_>>());
        self.heading("Integer coverage");
        let rows = r.coverage.by_op.iter().map(|(op, c)| vec![op.clone(), c.covered.to_string(), c.total.to_string()]);
        self.table(&["operator", "covered", "of"], rows.collect(), 1);
        if !r.parts.is_empty() {
            self.heading("Parts");
            let cells = |c: &Chosen| {
                [&c.part, c.precision.name(), &c.weights, &c.values, &c.reason].map(str::to_owned).to_vec()
            };
            let head = ["part", "precision", "bits of weights", "bits of values", "reason"];
            self.table(&head, r.parts.iter().map(cells).collect(), 5);
        }
        if !r.islands.is_empty() {
            self.heading("Left in float");
            let rows = r.islands.iter().map(|i| vec![i.node.clone(), i.op.clone(), i.reason.clone()]);
            self.table(&["node", "operator", "reason"], rows.collect(), 3);
        }
        if !r.decisions.is_empty() {
            self.heading("Decisions");
            let rows = r.decisions.iter().map(|(what, n)| vec![what.clone(), n.to_string()]);
            self.table(&["decision", "count"], rows.collect(), 1);
        }
        self.passes(r);
        if !r.checks.is_empty() {
            self.heading("Thresholds");
            for c in &r.checks {
                self.line(&format!("{} {}", if c.pass { "ok  " } else { "FAIL" }, check_text(c)));
            }
        }
    }

    /// What each pass did, where that was asked for.
    fn passes(&mut self, r: &Report) {
        if !r.passes.is_empty() {
            self.heading("Passes, on one sample");
            let rows = r.passes.iter().map(|p| {
                let moved = if p.distance == 0.0 { "same bits".to_owned() } else { number(p.distance) };
                vec![p.pass.clone(), p.changes.to_string(), p.declares.clone(), moved, db(p.sqnr_db), db(p.total_db)]
            });
            self.table(
                &["pass", "rewrites", "declares", "moved by", "SQNR of the step", "of all so far"],
                rows.collect(),
                3,
            );
        }
    }

    /// A line of the summary.
    fn row(&mut self, name: &str, text: &str) {
        self.line(&format!("  {name:9} {text}"));
    }

    fn line(&mut self, s: &str) {
        self.text.push_str(s.trim_end());
        self.text.push('\n');
    }

    fn heading(&mut self, s: &str) {
        self.line("");
        self.line(s);
    }

    fn tensors(&mut self, heading: &str, rows: &[&TensorMetrics]) {
        if rows.is_empty() {
            return;
        }
        self.heading(heading);
        let parts = rows.iter().any(|m| !m.part.is_empty());
        let cells = rows.iter().map(|m| {
            let part = parts.then(|| m.part.clone());
            let figures =
                [m.tensor.clone(), error(m), format!("{:.5}", m.cosine), number(m.max_abs_error), agreement(m)];
            part.into_iter().chain(figures).collect()
        });
        let head = ["part", "tensor", "SQNR", "cosine", "largest error", "agreement"];
        let skipped = usize::from(!parts);
        self.table(&head[skipped..], cells.collect(), 2 - skipped);
    }

    /// A table whose columns from number `right` on are aligned to the right.
    fn table(&mut self, header: &[&str], rows: Vec<Vec<String>>, right: usize) {
        if !rows.is_empty() {
            table(header, rows, right, self.width).lines().for_each(|l| self.line(l));
        }
    }
}

/// A table `width` columns wide whose columns from number `right` on are aligned to the right.
pub(crate) fn table(header: &[&str], rows: Vec<Vec<String>>, right: usize, width: u16) -> String {
    let mut t = Table::new();
    let rule = LineStyle::none().fill('\u{2500}').junction('\u{2500}');
    t.load_style(TableStyle::new().header_separator(rule));
    t.force_no_tty();
    t.set_content_arrangement(ContentArrangement::Dynamic);
    t.set_width(width);
    t.set_header(header.iter().map(|h| h.to_string()).collect::<Vec<_>>());
    t.add_rows(rows);
    for c in t.column_iter_mut().skip(right) {
        c.set_cell_alignment(CellAlignment::Right);
    }
    t.to_string().lines().map(|l| format!("{}\n", l.trim_end())).collect()
}
