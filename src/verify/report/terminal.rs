//! The report as text.

use comfy_table::{CellAlignment, ContentArrangement, LineStyle, Table, TableStyle};

use super::*;

pub(super) fn render(r: &Report, width: u16) -> String {
    let mut out = Page { text: String::new(), width };
    out.line(&format!("{} -> {}   {}", r.float.name, r.quantized.name, sizes(r)));
    if let Some(s) = &r.speed {
        out.line(&format!("speed: {}", speed(s)));
    }
    out.line(&format!("recipe {}, {}", r.recipe, r.tool));
    let d = &r.data;
    out.line(&format!("calibrated on {} samples ({})", d.calibration_samples, d.calibration));
    out.line(&format!("verified on {} samples ({})", d.verification_samples, d.verification));
    if let Some(w) = r.synthetic_warning() {
        out.line(&format!("WARNING: {w}"));
    }

    out.tensors("Outputs", &r.outputs.iter().collect::<Vec<_>>());
    for (m, a) in r.outputs.iter().filter_map(|m| Some((m, m.accuracy.as_ref()?))) {
        let top5 = a.top5.map_or_else(String::new, |t| format!("; top-5 {}", pair(t.float, t.quantized)));
        out.line(&format!(
            "{} against {} labels: top-1 {}{top5}",
            m.tensor,
            a.samples,
            pair(a.top1_float, a.top1_quantized)
        ));
    }

    out.tensors("Blocks", &r.blocks.iter().collect::<Vec<_>>());
    let worst: Vec<String> = r.worst(WORST).iter().map(|m| format!("{} ({})", m.tensor, db(m.sqnr_db))).collect();
    if !worst.is_empty() {
        out.line(&format!("worst: {}", worst.join(", ")));
    }

    out.heading("Integer coverage");
    out.line(&format!("{} of {} compute operators", r.coverage.covered, r.coverage.total));
    let rows = r.coverage.by_op.iter().map(|(op, c)| vec![op.clone(), c.covered.to_string(), c.total.to_string()]);
    out.table(&["operator", "covered", "of"], rows.collect(), 1);
    if let Some(between) = between(&r.coverage) {
        out.line(&between);
    }
    if !r.islands.is_empty() {
        out.heading("Left in float");
        let rows = r.islands.iter().map(|i| vec![i.node.clone(), i.op.clone(), i.reason.clone()]);
        out.table(&["node", "operator", "reason"], rows.collect(), 3);
    }
    if !r.decisions.is_empty() {
        out.heading("Decisions");
        let rows = r.decisions.iter().map(|(what, n)| vec![what.clone(), n.to_string()]);
        out.table(&["decision", "count"], rows.collect(), 1);
    }
    if !r.passes.is_empty() {
        out.heading("Passes, on one sample");
        let rows = r.passes.iter().map(|p| {
            let moved = if p.distance == 0.0 { "same bits".to_owned() } else { number(p.distance) };
            vec![p.pass.clone(), p.changes.to_string(), p.declares.clone(), moved, db(p.sqnr_db), db(p.total_db)]
        });
        out.table(
            &["pass", "rewrites", "declares", "moved by", "SQNR of the step", "of all so far"],
            rows.collect(),
            3,
        );
    }
    if !r.timings.is_empty() {
        let times: Vec<String> = r.timings.iter().map(|t| format!("{} {:.1} s", t.stage, t.seconds)).collect();
        out.line("");
        out.line(&format!("time: {}", times.join(", ")));
    }
    for n in &r.notes {
        out.line(&format!("note: {n}"));
    }
    if !r.checks.is_empty() {
        out.heading(if r.passes() { "PASS" } else { "FAIL" });
        for c in &r.checks {
            out.line(&format!("{} {}", if c.pass { "ok  " } else { "FAIL" }, check_text(c)));
        }
    }
    out.text
}

struct Page {
    text: String,
    width: u16,
}

impl Page {
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
        let cells = rows.iter().map(|m| {
            vec![m.tensor.clone(), error(m), format!("{:.5}", m.cosine), number(m.max_abs_error), agreement(m)]
        });
        self.table(&["tensor", "SQNR", "cosine", "largest error", "agreement"], cells.collect(), 1);
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
