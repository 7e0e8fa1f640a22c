//! What each part of a model costs when it is quantized.

use serde::{Deserialize, Serialize};

use super::super::metrics::noise_share;
use super::markup::{STYLE, esc, put};
use super::{db, file_name};

/// Version of the JSON form.
pub const VERSION: u32 = 1;

/// What `sensitivity` found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Findings {
    pub version: u32,
    pub tool: String,
    pub model: String,
    pub recipe: String,
    /// How the model was divided.
    pub by: String,
    /// Samples measured on.
    pub samples: usize,
    /// SQNR in dB with everything quantized; 999 without any error.
    pub whole_db: f64,
    /// The one that costs most comes first.
    pub parts: Vec<Row>,
    /// What was asked to stay in float.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept_in_float: Option<Kept>,
    pub notes: Vec<String>,
}

/// What one part costs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    pub name: String,
    /// SQNR with this part alone quantized.
    pub alone_db: f64,
    /// SQNR with everything but this part quantized, if it was measured.
    pub without_db: Option<f64>,
    pub activations: usize,
    pub layers: usize,
    pub attentions: usize,
    pub constants: usize,
}

/// Parts that get more precision, and what that reaches.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Kept {
    pub parts: Vec<String>,
    /// Parts whose values get 16 bits where no product reads them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub in_16_bits: Vec<String>,
    pub sqnr_db: f64,
}

impl Findings {
    /// Pretty-printed JSON.
    ///
    /// # Errors
    /// If a number has no JSON form.
    pub fn to_json(&self) -> Result<String, serde_json::Error> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }

    fn head(&self) -> Vec<&str> {
        let both = self.parts.iter().any(|r| r.without_db.is_some());
        let with: &[&str] = if both { &["all but it", "gain"] } else { &[] };
        [&[self.by.as_str(), "alone"], with, &["activations", "layers", "attentions"]].concat()
    }

    fn cells(&self, r: &Row) -> Vec<String> {
        let mut row = vec![r.name.clone(), db(r.alone_db)];
        if let Some(x) = r.without_db {
            row.extend([db(x), format!("{:+.2} dB", x - self.whole_db)]);
        }
        row.extend([r.activations, r.layers, r.attentions].map(|n| n.to_string()));
        row
    }

    fn kept(&self) -> Option<String> {
        let k = self.kept_in_float.as_ref()?;
        let names = |of: &[String]| if of.is_empty() { String::new() } else { format!(": {}", of.join(", ")) };
        let wide = match k.in_16_bits.len() {
            0 => String::new(),
            n => format!(", {n} with values in 16 bits{}", names(&k.in_16_bits)),
        };
        Some(format!("{} with {} kept in float{}{wide}.", db(k.sqnr_db), k.parts.len(), names(&k.parts)))
    }

    fn caption(&self) -> String {
        let whole = db(self.whole_db);
        format!(
            "recipe {}: {whole} with everything quantized (weights rounded, not fitted), {} samples held back",
            self.recipe, self.samples
        )
    }

    /// A table for a terminal `width` columns wide.
    #[cfg(feature = "cli")]
    pub fn to_terminal(&self, width: u16) -> String {
        let mut out = format!("{}, {}\n\n", self.model, self.caption());
        let rows = self.parts.iter().map(|r| self.cells(r)).collect();
        out += &super::table(&self.head(), rows, 1, width);
        self.kept().iter().for_each(|k| out += &format!("\n{k}\n"));
        self.notes.iter().for_each(|n| out += &format!("note: {n}\n"));
        out
    }

    /// One page, complete in itself.
    pub fn to_html(&self) -> String {
        let mut h = String::new();
        let title = esc(file_name(&self.model));
        h += "<!doctype html>\n<html lang=\"en\">\n<head><meta charset=\"utf-8\">";
        h += "<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n";
        let head =
            format_args!("<title>{title}: sensitivity</title>\n<style>\n{STYLE}</style></head>\n<body>\n<main>\n");
        put(&mut h, head);
        let tool = esc(&self.tool);
        put(
            &mut h,
            format_args!(
                "<header>\n<h1>{title}: what each part costs</h1>\n<p class=\"quiet\">{tool}</p>\n</header>\n"
            ),
        );
        put(&mut h, format_args!("<p>{}.</p>\n", esc(&self.caption())));
        self.kept().iter().for_each(|k| put(&mut h, format_args!("<p>{}</p>\n", esc(k))));
        self.chart(&mut h);
        h += "<h2>Figures</h2>\n<div class=\"wide\">\n<table>\n<tr>";
        let class = |i: usize| if i > 0 { " class=\"n\"" } else { "" };
        self.head().iter().enumerate().for_each(|(i, c)| put(&mut h, format_args!("<th{}>{}</th>", class(i), esc(c))));
        h += "</tr>\n";
        for r in &self.parts {
            h += "<tr>";
            self.cells(r)
                .iter()
                .enumerate()
                .for_each(|(i, c)| put(&mut h, format_args!("<td{}>{}</td>", class(i), esc(c))));
            h += "</tr>\n";
        }
        h += "</table>\n</div>\n<p class=\"quiet\">Alone: SQNR of the outputs with this part quantized and all others in float. All \
              but it: with this part in float and all others quantized; the gain is against everything quantized.</p>\n";
        self.notes.iter().for_each(|n| put(&mut h, format_args!("<p class=\"warn\">{}</p>\n", esc(n))));
        h + "</main>\n</body>\n</html>\n"
    }

    /// The noise of each part alone, as a share of the largest: decibels are no lengths.
    fn chart(&self, h: &mut String) {
        let noise = |r: &Row| noise_share(r.alone_db);
        let most = self.parts.iter().map(noise).fold(0.0, f64::max);
        if most <= 0.0 {
            return;
        }
        *h += "<h2>Noise of each part</h2>\n<p class=\"quiet\">Energy of the error at the outputs with this part alone quantized. \
               <code>--keep-float</code> leaves parts in float; begin with the longest.</p>\n<table class=\"chart\">\n";
        for r in &self.parts {
            let share = noise(r) / most;
            let class = match share {
                x if x > 0.5 => "low",
                x if x > 0.1 => "mid",
                _ => "high",
            };
            let (name, width, alone) = (esc(&r.name), 100.0 * share, db(r.alone_db));
            put(
                h,
                format_args!(
                    "<tr><th scope=\"row\">{name}</th><td><div class=\"bar {class}\" style=\"width:{width:.1}%\"></div></td>\
                     <td class=\"n\">{alone}</td></tr>\n"
                ),
            );
        }
        *h += "</table>\n";
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_shows_noise_and_lets_no_name_through_as_markup() {
        let row = |name: &str, alone_db: f64| Row {
            name: name.into(),
            alone_db,
            without_db: Some(21.0),
            activations: 3,
            layers: 2,
            attentions: 1,
            constants: 0,
        };
        let mut f = Findings {
            version: VERSION,
            tool: "fqvit-opt".into(),
            model: "a/b/vit.onnx".into(),
            recipe: "fq-vit".into(),
            by: "part".into(),
            samples: 16,
            whole_db: 18.0,
            parts: vec![row("<block 0>", 20.0), row("head", 30.0), row("none", 999.0)],
            kept_in_float: Some(Kept { parts: vec!["head".into()], in_16_bits: vec!["block 1".into()], sqnr_db: 18.5 }),
            notes: vec!["a & b".into()],
        };
        let h = f.to_html();
        // Ten decibels are a tenth of the energy.
        for want in [
            "width:100.0%",
            "in 16 bits: block 1",
            "width:10.0%",
            "width:0.0%",
            "&lt;block 0&gt;",
            "+3.00 dB",
            "a &amp; b",
            "18.50 dB with 1",
        ] {
            assert!(h.contains(want), "no {want}");
        }
        assert!(!h.contains("<block") && !h.contains("a/b/"));
        f.parts = vec![row("none", 999.0)];
        assert!(!f.to_html().contains("class=\"chart\"") && !f.to_html().contains("NaN"));
        let back: Findings = serde_json::from_str(&f.to_json().unwrap()).unwrap();
        assert_eq!(back, f);
    }
}
