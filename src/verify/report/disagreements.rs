//! Samples that both models put into different classes.

use super::markup::{code, esc, put, without_folders};
use super::*;
use crate::verify::disagree::{Disagreement, Score};

type Names = std::collections::BTreeMap<usize, String>;

pub(super) fn section(h: &mut String, r: &Report) {
    let Some(d) = &r.disagreements else { return };
    // Made-up samples are of no class.
    if r.data.synthetic {
        return;
    }
    *h += "<h2>Where the models disagree</h2>\n";
    if d.count == 0 {
        put(h, format_args!("<p>Nowhere: both name the same class on all {} samples.</p>\n", d.samples));
        return;
    }
    let shown = match d.worst.len() as u64 {
        n if n == d.count => String::new(),
        n => format!("; the {n} on which the float model was surest"),
    };
    let pictures = d.worst.iter().any(|x| x.picture.is_some());
    let seen = if pictures { " Pictures are cut as the models see them." } else { "" };
    put(
        h,
        format_args!(
            "<p class=\"quiet\">{} of {} samples{shown}. Three classes of the largest {} each, with their shares by Softmax; \
             the scores themselves are in the JSON report.{seen}</p>\n<div class=\"apart\">\n",
            d.count,
            d.samples,
            code(&d.output)
        ),
    );
    d.worst.iter().for_each(|x| item(h, x, &d.names));
    *h += "</div>\n";
}

fn item(h: &mut String, x: &Disagreement, names: &Names) {
    let name = esc(&without_folders(&x.name));
    *h += "<figure>\n";
    if let Some(p) = &x.picture {
        // Small pictures are drawn pixel by pixel.
        let class = if p.starts_with("data:image/png") { " class=\"px\"" } else { "" };
        put(h, format_args!("<img{class} src=\"{}\" alt=\"{name}\">\n", esc(p)));
    }
    let of_label = |l: i64| usize::try_from(l).map_or_else(|_| l.to_string(), |c| called(c, names));
    let label = x.label.map_or(String::new(), |l| format!("<br>label {}", of_label(l)));
    put(h, format_args!("<figcaption>{name}{label}</figcaption>\n"));
    answers(h, "float", &x.float, x.label, names);
    answers(h, "quantized", &x.quantized, x.label, names);
    *h += "</figure>\n";
}

/// A class by its name, with its number behind it; by its number alone where it has no name.
fn called(class: usize, names: &Names) -> String {
    names.get(&class).map_or_else(|| class.to_string(), |n| format!("{} <small>{class}</small>", esc(n)))
}

fn answers(h: &mut String, who: &str, scores: &[Score], label: Option<i64>, names: &Names) {
    let named = if scores.iter().any(|s| names.contains_key(&s.class)) { " named" } else { "" };
    put(h, format_args!("<table class=\"answers{named}\">\n<caption>{who}</caption>\n"));
    for s in scores {
        let right = label.is_some_and(|l| i64::try_from(s.class) == Ok(l));
        let (class, mark) = if right { (" class=\"right\"", " \u{2713}") } else { ("", "") };
        put(
            h,
            format_args!(
                "<tr{class} title=\"score {}\"><th scope=\"row\">{}{mark}</th><td><div class=\"bar f1\" style=\"width:{:.1}%\"></div>\
                 </td><td class=\"n\">{}</td></tr>\n",
                number(s.score),
                called(s.class, names),
                100.0 * s.share.clamp(0.0, 1.0),
                percent(s.share)
            ),
        );
    }
    *h += "</table>\n";
}
