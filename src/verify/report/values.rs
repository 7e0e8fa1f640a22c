//! Before and after: what the codes of the worst values make of them.

use std::fmt::Write;

use super::markup::{code, esc, put};
use super::*;
use crate::verify::closer::{Bins, CloserLook, ValueLook};

/// Height of a plot in its own units, and how high its lowest bar is, so that one element is seen.
const HEIGHT: f64 = 100.0;
const LEAST: f64 = 3.0;

/// Counts are drawn as logarithms if the fullest bin has this many times what the bins in use have in the middle.
const STEEP: u64 = 8;

pub(super) fn section(h: &mut String, c: &CloserLook) {
    if c.worst.is_empty() {
        return;
    }
    put(
        h,
        format_args!(
            "<h2>Worst values, before and after</h2>\n<p class=\"quiet\">What the float model computes and what the codes of the \
             quantized model stand for, side by side on {} samples: of {} values whose codes were compared, {} of the lowest \
             SQNR. <span class=\"key before\"></span>\u{a0}float <span class=\"key after\"></span>\u{a0}quantized; dashed lines are \
             the ends of the codes. SQNR counts errors that come from earlier parts, too; <em>rounding alone</em> is what the \
             codes make of the float model's own values.</p>\n<div class=\"cards\">\n",
            c.samples,
            c.measured,
            c.worst.len()
        ),
    );
    c.worst.iter().for_each(|v| card(h, v));
    *h += "</div>\n";
}

fn card(h: &mut String, v: &ValueLook) {
    let place = if v.part.is_empty() { String::new() } else { format!("{}: ", esc(&v.part)) };
    put(
        h,
        format_args!(
            "<figure>\n<figcaption><b>{place}{}</b><br>{}</figcaption>\n",
            esc(&v.role.replace('-', " ")),
            code(&v.tensor)
        ),
    );
    plot(h, v);
    let [least, most] = v.step;
    let step = if least == most { number(least) } else { format!("{} to {}", number(least), number(most)) };
    let clipped = match v.clipped {
        0.0 => "none".to_owned(),
        x if x < 1e-4 => "below 0.01 %".to_owned(),
        x => format!("{:.2} %", 100.0 * x),
    };
    let codes = format!("{}, {}", v.levels, v.scales);
    let rows = [
        ("SQNR", db(v.sqnr_db)),
        ("rounding alone", db(v.rounding_db)),
        ("codes", codes),
        ("step", step),
        ("clipped", clipped),
    ];
    *h += "<dl>";
    rows.iter().for_each(|(name, x)| put(h, format_args!("<dt>{name}</dt><dd>{}</dd>", esc(x))));
    *h += "</dl>\n</figure>\n";
}

/// Both histograms over one axis: what was, filled; what became of it, as a line.
fn plot(h: &mut String, v: &ValueLook) {
    let b = &v.bins;
    let n = b.float.len();
    let top = b.float.iter().chain(&b.quantized).copied().max().unwrap_or(0);
    if n == 0 || top == 0 || !(b.width > 0.0 && b.width.is_finite()) {
        return;
    }
    let log = is_steep(b);
    let tall = |count: u64| match (count, log) {
        (0, _) => 0.0,
        (x, true) => LEAST + (HEIGHT - LEAST) * ((x as f64).ln_1p() / (top as f64).ln_1p()),
        (x, false) => (HEIGHT * x as f64 / top as f64).max(LEAST),
    };
    let outline = |counts: &[u64]| {
        let mut d = format!("M0 {HEIGHT}");
        let mut at = 0.0;
        for (i, c) in counts.iter().enumerate() {
            let y = tall(*c);
            if y != at {
                let _ = write!(d, "H{i}V{:.1}", HEIGHT - y);
                at = y;
            }
        }
        d + &format!("H{n}V{HEIGHT}")
    };
    let x = |value: f64| (value - b.from) / b.width;
    let (from, to) = (b.from, b.from + b.width * n as f64);
    put(
        h,
        format_args!(
            "<svg class=\"bins\" viewBox=\"0 0 {n} {HEIGHT}\" preserveAspectRatio=\"none\" role=\"img\" \
             aria-label=\"counts from {} to {}, float and quantized\">\n",
            number(from),
            number(to)
        ),
    );
    put(h, format_args!("<path class=\"before\" d=\"{}Z\"/>\n", outline(&b.float)));
    put(h, format_args!("<path class=\"after\" d=\"{}\"/>\n", outline(&b.quantized)));
    for end in v.reach.map(x).iter().filter(|x| (0.0..=n as f64).contains(*x)) {
        put(h, format_args!("<line class=\"mark\" x1=\"{end:.2}\" x2=\"{end:.2}\" y1=\"0\" y2=\"{HEIGHT}\"/>\n"));
    }
    let ends = [("\u{2264} ", b.open[0]), ("\u{2265} ", b.open[1])].map(|(sign, open)| if open { sign } else { "" });
    let scale = if log { "counts, logarithmic" } else { "counts" };
    put(
        h,
        format_args!(
            "</svg>\n<p class=\"axis\"><span>{}{}</span><span>{scale}</span><span>{}{}</span></p>\n",
            ends[0],
            number(from),
            ends[1],
            number(to)
        ),
    );
}

/// Whether most of the bins in use would be flat beside the fullest.
fn is_steep(b: &Bins) -> bool {
    let mut used: Vec<u64> = b.float.iter().copied().filter(|c| *c > 0).collect();
    used.sort_unstable();
    let middle = used.get(used.len() / 2).copied().unwrap_or(1);
    used.last().is_some_and(|top| *top > STEEP * middle)
}
