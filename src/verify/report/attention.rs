//! Which codes attentions use.

use super::markup::{esc, put};
use super::*;
use crate::verify::closer::{AttentionLook, CloserLook, CodeShare, WeightsForm};

/// Attentions that are shown on their own at most.
const SHOWN: usize = 6;

/// Height of a small plot in its own units.
const HEIGHT: f64 = 40.0;

pub(super) fn section(h: &mut String, c: &CloserLook) {
    if c.attentions.is_empty() {
        return;
    }
    *h += "<h2>Codes of attention</h2>\n";
    let of = |form| c.attentions.iter().filter(move |a| a.form == form);
    if let Some((many, codes)) = c.all_codes() {
        summary(h, c, many, &codes);
        each(h, c, codes.len());
    }
    let unread = of(WeightsForm::Lis).filter(|a| a.codes.is_empty()).count();
    let rest = [
        (of(WeightsForm::Uniform).count(), "a Softmax between codes of even steps"),
        (unread, "weights from the scores' codes without codes of their own"),
    ];
    for (n, what) in rest.into_iter().filter(|(n, _)| *n > 0) {
        put(h, format_args!("<p>{n} of {} attentions have {what}.</p>\n", c.attentions.len()));
    }
    let float: Vec<String> = of(WeightsForm::Float).map(|a| esc(&named(a))).collect();
    if !float.is_empty() {
        let some = float.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
        let more = if float.len() > SHOWN { ", .." } else { "" };
        put(h, format_args!("<p>{} kept in float, with a Softmax and no codes: {some}{more}.</p>\n", float.len()));
    }
}

fn named(a: &AttentionLook) -> String {
    if a.part.is_empty() { a.tensor.clone() } else { a.part.clone() }
}

/// A weight as people say it: halves and their halves as fractions.
fn weight([least, most]: [f64; 2]) -> String {
    let one = |w: f64| match w {
        0.0 => "nothing".to_owned(),
        1.0 => "1".to_owned(),
        w => {
            let times = 1.0 / w;
            let whole = times >= 10.0 || (times - times.round()).abs() < 1e-9;
            if whole { format!("1/{times:.0}") } else { format!("1/{times:.1}") }
        }
    };
    if least == most { one(least) } else { format!("{} to {}", one(most), one(least)) }
}

fn summary(h: &mut String, c: &CloserLook, many: usize, codes: &[CodeShare]) {
    let total = codes.iter().map(|c| c.count).sum::<u64>().max(1) as f64;
    let most = codes.iter().map(|c| (c.count as f64 / total).max(c.attention)).fold(f64::MIN_POSITIVE, f64::max);
    put(
        h,
        format_args!(
            "<p class=\"quiet\">Log-Int-Softmax gives each key of a query one of {} codes. How often each was given on {} samples, in \
             {many} of {} attentions, with the weight it stands for: a share of the largest in its row. \
             <span class=\"key f1\"></span>\u{a0}of the keys <span class=\"key f2\"></span>\u{a0}of the attention they get</p>\n\
             <table class=\"chart codes\">\n<tr><th scope=\"col\">code</th><th scope=\"col\">weight</th><td></td>\
             <th scope=\"col\" class=\"n\">keys</th><th scope=\"col\" class=\"n\">attention</th></tr>\n",
            codes.len(),
            c.samples,
            c.attentions.len()
        ),
    );
    for (i, c) in codes.iter().enumerate() {
        let share = c.count as f64 / total;
        put(
            h,
            format_args!(
                "<tr><th scope=\"row\">{i}</th><td class=\"w\">{}</td><td><div class=\"bar f1\" style=\"width:{:.1}%\"></div>\
                 <div class=\"bar f2\" style=\"width:{:.1}%\"></div></td><td class=\"n\">{}</td><td class=\"n\">{}</td></tr>\n",
                weight(c.weight),
                100.0 * share / most,
                100.0 * c.attention / most,
                percent(share),
                percent(c.attention)
            ),
        );
    }
    *h += "</table>\n";
}

/// The attentions that use the fewest of their codes.
fn each(h: &mut String, c: &CloserLook, codes: usize) {
    let mut some: Vec<&AttentionLook> = c.attentions.iter().filter(|a| a.codes.len() == codes).collect();
    if some.len() < 2 {
        return;
    }
    some.sort_by(|a, b| a.codes_in_use().total_cmp(&b.codes_in_use()));
    some.truncate(SHOWN);
    *h += "<h3>The most concentrated</h3>\n<p class=\"quiet\">Attentions that use the fewest codes: how many there would be if all \
           in use were used alike (2 to the power of the entropy).</p>\n<div class=\"cards small\">\n";
    for a in some {
        let total = a.codes.iter().map(|c| c.count).sum::<u64>().max(1) as f64;
        let most = a.codes.iter().map(|c| c.count).max().unwrap_or(1).max(1) as f64;
        let nothing: u64 = a.codes.iter().filter(|c| c.weight[1] == 0.0).map(|c| c.count).sum();
        let in_use = a.codes_in_use();
        put(
            h,
            format_args!(
                "<figure>\n<figcaption><b>{}</b></figcaption>\n<svg class=\"bins\" viewBox=\"0 0 {codes} {HEIGHT}\" \
                 preserveAspectRatio=\"none\" role=\"img\" aria-label=\"how often each code occurs, from code 0 on the left\">\n",
                esc(&named(a))
            ),
        );
        for (i, c) in a.codes.iter().enumerate().filter(|(_, c)| c.count > 0) {
            let tall = (HEIGHT * c.count as f64 / most).max(0.8);
            put(
                h,
                format_args!(
                    "<rect class=\"f1\" x=\"{i}.08\" y=\"{:.1}\" width=\".84\" height=\"{tall:.1}\"/>",
                    HEIGHT - tall
                ),
            );
        }
        put(
            h,
            format_args!(
                "\n</svg>\n<p class=\"axis\"><span>code 0</span><span>{}</span></p>\n<dl><dt>codes in use</dt><dd>{in_use:.1} of {codes}</dd>\
                 <dt>attention on code 0</dt><dd>{}</dd><dt>keys that get nothing</dt><dd>{}</dd></dl>\n</figure>\n",
                codes - 1,
                percent(a.codes[0].attention),
                percent(nothing as f64 / total)
            ),
        );
    }
    *h += "</div>\n";
}
