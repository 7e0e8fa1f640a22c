//! The picture of what channels reach: why one scale for all of them is not enough.

use super::markup::{code, esc, put};
use super::*;

/// Codes of a channel that reaches no further than a sixteenth of the largest one, if they had one scale: 16 of 256.
const FEW: f32 = 1.0 / 16.0;

/// Height of the plot in its own units; a channel is one unit wide.
const HEIGHT: f32 = 60.0;

/// Reaches in falling order, on a logarithmic scale; darker for each doubling of the factor.
pub(super) fn plots(h: &mut String, all: &[Channels]) {
    if all.is_empty() {
        return;
    }
    *h += "<h2>Channels</h2>\n<p class=\"quiet\">How far the codes of each channel reach, the widest channel first, on a logarithmic \
           scale: the values whose channels differ most. With one scale for all, channels that end below the dashed line would \
           have 16 of 256 codes or fewer. ";
    if all.iter().any(|c| !c.factors.is_empty()) {
        *h += "Shades tell how many times as large a channel's step is as the finest one: <span class=\"key f0\"></span> 1 <span class=\"key f1\"></span> 2 to 3 \
               <span class=\"key f2\"></span> 4 to 7 <span class=\"key f3\"></span> 8 and more.";
    }
    *h += "</p>\n";
    all.iter().for_each(|c| plot(h, c));
}

fn plot(h: &mut String, c: &Channels) {
    let mut order: Vec<usize> = (0..c.reach.len()).collect();
    order.sort_by(|a, b| c.reach[*b].total_cmp(&c.reach[*a]));
    let Some(top) = order.first().map(|i| c.reach[*i]).filter(|t| *t > 0.0 && t.is_finite()) else { return };
    // Channels that hold nothing reach next to nothing: they are drawn as the least there is room for.
    let least = order.iter().rev().map(|i| c.reach[*i]).find(|r| *r > top * 1e-6).unwrap_or(top);
    let least = least.min(top * FEW) * 0.8;
    let y = |r: f32| HEIGHT * ((r / least).log2() / (top / least).log2()).clamp(0.0, 1.0);
    let few = c.reach.iter().filter(|r| **r <= top * FEW).count();
    let name = if c.part.is_empty() { String::new() } else { format!("{} ", esc(&c.part)) };
    put(
        h,
        format_args!(
            "<h3>{name}{}</h3>\n<p>The widest channel reaches {}, {:.0} times as far as the median one; {few} of {} channels reach \
             no further than a sixteenth of it.</p>\n",
            code(&c.tensor),
            number(f64::from(top)),
            c.spread(),
            c.reach.len()
        ),
    );
    let n = order.len();
    let finest = c.factors.iter().copied().min().unwrap_or(1).max(1);
    put(
        h,
        format_args!(
            "<svg class=\"ranges\" viewBox=\"0 0 {n} {HEIGHT}\" preserveAspectRatio=\"none\" role=\"img\" \
             aria-label=\"{few} of {n} channels reach no further than a sixteenth of the widest\">\n"
        ),
    );
    for (x, i) in order.iter().enumerate() {
        let class = c.factors.get(*i).map_or(0, |f| (f / finest).max(1).ilog2().min(3));
        let tall = y(c.reach[*i]).max(0.5);
        put(
            h,
            format_args!(
                "<rect class=\"f{class}\" x=\"{x}\" y=\"{:.1}\" width=\"1\" height=\"{tall:.1}\"/>",
                HEIGHT - tall
            ),
        );
    }
    let line = HEIGHT - y(top * FEW);
    put(h, format_args!("\n<line class=\"mark\" x1=\"0\" x2=\"{n}\" y1=\"{line:.1}\" y2=\"{line:.1}\"/>\n</svg>\n"));
}
