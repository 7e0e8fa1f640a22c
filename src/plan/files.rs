//! A plan as two files: the text that people read, and beside it the numbers that nobody does.
//!
//! Codes of weights, and lists of more than [`LONG`] numbers that are no whole ones, go into an `.npz` file, which NumPy reads. A
//! line of the text then has what stands for them:
//!
//! ```text
//! codes: '@ 110592 i8 5d0a2be1'
//! scales: '@ 576 f32 90f2c1d4 (0.00031 to 0.0042)'
//! ```
//!
//! that is how many there are, of which type, the first digits of their BLAKE3 hash, and for people the least and the largest. The
//! array has the name of the section, of the entry and of the field: `layers/block/qkv/codes`. A line without a hash takes
//! whatever the other file has, so that numbers can be changed, too.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Cursor;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ndarray::Array1;
use ndarray_npy::{NpzReader, NpzWriter};

use super::{PlanError, QuantPlan, Source};

/// Lists of more numbers than this are moved out of the text.
pub const LONG: usize = 64;

/// What begins the text that stands for numbers elsewhere.
const MARK: &str = "@ ";

/// The readable half of a plan, and the other one if it needs one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanFiles {
    pub text: String,
    pub numbers: Option<Vec<u8>>,
}

/// Where the numbers of a plan lie: `vit.plan.yaml` has `vit.plan.weights.npz`.
pub fn numbers_path(plan: &Path) -> PathBuf {
    plan.with_extension("weights.npz")
}

/// Numbers of one line.
#[derive(Clone, Debug, PartialEq)]
enum Numbers {
    Codes(Vec<i8>),
    Floats(Vec<f32>),
}

impl Numbers {
    /// What a line's text holds, if it is to be moved.
    fn of(field: &str, text: &str) -> Option<Numbers> {
        if field == "codes" {
            return Some(Numbers::Codes(STANDARD.decode(text).ok()?.into_iter().map(|b| b as i8).collect()));
        }
        if text.len() <= 2 * LONG || text.split(' ').nth(LONG).is_none() || !text.contains(['.', 'e']) {
            return None;
        }
        text.split(' ')
            .map(|w| w.parse().ok().filter(|x: &f32| x.is_finite()))
            .collect::<Option<_>>()
            .map(Numbers::Floats)
    }

    fn hash(&self) -> String {
        let mut h = blake3::Hasher::new();
        match self {
            Numbers::Codes(v) => {
                h.update(&v.iter().map(|q| *q as u8).collect::<Vec<_>>());
            }
            Numbers::Floats(v) => {
                h.update(&v.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>());
            }
        }
        h.finalize().to_hex()[..8].to_owned()
    }

    /// What stands for them.
    fn mark(&self) -> String {
        match self {
            Numbers::Codes(v) => format!("{MARK}{} i8 {}", v.len(), self.hash()),
            Numbers::Floats(v) => {
                let (least, most) =
                    v.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(a, b), x| (a.min(*x), b.max(*x)));
                format!("{MARK}{} f32 {} ({} to {})", v.len(), self.hash(), short(least), short(most))
            }
        }
    }

    /// The text of a plan that is one file.
    fn text(&self) -> String {
        match self {
            Numbers::Codes(v) => STANDARD.encode(v.iter().map(|q| *q as u8).collect::<Vec<_>>()),
            Numbers::Floats(v) => v.iter().map(f32::to_string).collect::<Vec<_>>().join(" "),
        }
    }

    fn len(&self) -> usize {
        match self {
            Numbers::Codes(v) => v.len(),
            Numbers::Floats(v) => v.len(),
        }
    }
}

/// Three digits.
fn short(x: f32) -> String {
    let text = format!("{x:.2e}");
    text.parse::<f32>().map_or(text, |x| x.to_string())
}

/// A line `key: text`, with what stands before the text.
fn split(line: &str) -> Option<(&str, &str, &str)> {
    let (before, text) = line.split_once(": ")?;
    let field = before.trim_start_matches([' ', '-']);
    let text = text.trim_end();
    let bare = ['\'', '"'].iter().find_map(|q| text.strip_prefix(*q)?.strip_suffix(*q)).unwrap_or(text);
    Some((&line[..before.len() + 2], field, bare))
}

/// Where in a plan a line is: the section and the entry.
#[derive(Default)]
struct At {
    section: String,
    entry: String,
    names: BTreeSet<String>,
}

impl At {
    fn pass(&mut self, line: &str) {
        if let Some((section, "")) =
            line.split_once(':').map(|(s, rest)| (s, rest.trim())).filter(|_| !line.starts_with([' ', '-']))
        {
            self.section = section.to_owned();
            self.entry.clear();
        } else if let Some((_, "output" | "value" | "divided", name)) = split(line) {
            self.entry = name.to_owned();
        }
    }

    /// The name of the array for a field of this entry.
    fn name(&mut self, field: &str) -> String {
        let first = format!("{}/{}/{field}", self.section, self.entry);
        let mut name = first.clone();
        for i in 2.. {
            if self.names.insert(name.clone()) {
                break;
            }
            name = format!("{first}#{i}");
        }
        name
    }
}

impl QuantPlan {
    /// The two files.
    pub fn to_files(&self) -> PlanFiles {
        let mut at = At::default();
        let mut arrays = Vec::new();
        let mut text = String::new();
        for line in self.to_yaml().lines() {
            at.pass(line);
            let moved = split(line).and_then(|(before, field, t)| Some((before, field, Numbers::of(field, t)?)));
            match moved {
                Some((before, field, numbers)) => {
                    text += &format!("{before}'{}'\n", numbers.mark());
                    arrays.push((at.name(field), numbers));
                }
                None => text += &format!("{line}\n"),
            }
        }
        let numbers = (!arrays.is_empty()).then(|| packed(&arrays));
        PlanFiles { text, numbers }
    }

    /// Reads a plan of one or two files; `path` is the text's, for error messages, and `numbers` what lies at
    /// [`numbers_path`].
    ///
    /// # Errors
    /// As [`QuantPlan::from_yaml`], and if the other file is missing, damaged, or of another plan.
    pub fn from_files(text: &str, path: &str, numbers: Option<&[u8]>) -> Result<QuantPlan, PlanError> {
        let marked = |l: &&str| split(l).is_some_and(|(_, _, t)| t.starts_with(MARK));
        if !text.lines().any(|l| marked(&l)) {
            return QuantPlan::from_yaml(text, path);
        }
        let other = numbers_path(Path::new(path)).display().to_string();
        let wrong = |message: String| PlanError::Read { path: other.clone(), message };
        let arrays = match numbers {
            Some(bytes) => unpacked(bytes).map_err(wrong)?,
            None => {
                return Err(wrong(format!("not there, and {path} has its long lists in it; keep the two together")));
            }
        };
        let mut at = At::default();
        let mut whole = String::with_capacity(text.len());
        for line in text.lines() {
            at.pass(line);
            match split(line).filter(|(_, _, t)| t.starts_with(MARK)) {
                Some((before, field, mark)) => {
                    let name = at.name(field);
                    let found = arrays
                        .get(&name)
                        .ok_or_else(|| wrong(format!("there is no array {name:?}, which {path} names")))?;
                    fits(found, mark).map_err(|e| wrong(format!("{name:?} {e}")))?;
                    whole += &format!("{before}{}\n", found.text());
                }
                None => whole += &format!("{line}\n"),
            }
        }
        // Messages name lines, which are the same in both; the short text is the one to keep.
        let plan = QuantPlan::from_yaml(&whole, path)?;
        Ok(QuantPlan { source: Source(Some(text.into())), ..plan })
    }
}

/// Whether numbers are those that a mark was written for.
fn fits(found: &Numbers, mark: &str) -> Result<(), String> {
    let mut words = mark[MARK.len()..].split_whitespace();
    let count = words.next().unwrap_or_default();
    if count.parse() != Ok(found.len()) {
        return Err(format!(
            "has {} numbers, and the plan says {count}: the two files do not belong together",
            found.len()
        ));
    }
    match words.nth(1) {
        Some(hash) if hash.len() == 8 && hash != found.hash() => Err(
            "holds other numbers than the plan was written with: the two files do not belong together (if they were changed \
             on purpose, take the hash out of the line)"
                .to_owned(),
        ),
        _ => Ok(()),
    }
}

fn packed(arrays: &[(String, Numbers)]) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    let mut w = NpzWriter::new(&mut bytes);
    for (name, numbers) in arrays {
        let done = match numbers {
            Numbers::Codes(v) => w.add_array(name.as_str(), &Array1::from_vec(v.clone())),
            Numbers::Floats(v) => w.add_array(name.as_str(), &Array1::from_vec(v.clone())),
        };
        done.expect("memory takes every array");
    }
    w.finish().expect("memory takes every archive");
    bytes.into_inner()
}

fn unpacked(bytes: &[u8]) -> Result<BTreeMap<String, Numbers>, String> {
    let whole = |e: &dyn std::fmt::Display| format!("no whole .npz file ({e})");
    let mut npz = NpzReader::new(Cursor::new(bytes)).map_err(|e| whole(&e))?;
    let names = npz.names().map_err(|e| whole(&e))?;
    let mut found = BTreeMap::new();
    for file in names {
        let codes: Result<Array1<i8>, _> = npz.by_name(&file);
        let numbers = match codes {
            Ok(c) => Numbers::Codes(c.to_vec()),
            Err(_) => {
                let floats: Array1<f32> = npz.by_name(&file).map_err(|e| format!("array {file:?}: {e}"))?;
                Numbers::Floats(floats.to_vec())
            }
        };
        found.insert(file, numbers);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::super::{Layer, Rounding, StoredWeight, VERSION};
    use super::*;
    use crate::quant::Code;

    fn plan() -> QuantPlan {
        let layer = |output: &str, seed: i32| Layer {
            output: output.into(),
            weight: Code::I8,
            clip: 1.0,
            rounding: Rounding::Gptq,
            stored: Some(StoredWeight {
                scales: (0..100).map(|i| (i + seed) as f32 / 3e4 + 1e-7).collect(),
                codes: (0..1000).map(|i| (i * seed) as i8).collect(),
            }),
            correction: vec![0.5; 3],
            reason: "because: of 'this'".into(),
        };
        let head = format!(
            "version: {VERSION}\nrecipe: r\nmodel: m\nfolds: []\nactivations: []\nconstants: []\nlayers: []\nattentions: []\nislands: []\n"
        );
        let mut p = QuantPlan::from_yaml(&head, "p").unwrap();
        p.layers = vec![layer("/a/b: c", 3), layer("d", 7)];
        p
    }

    #[test]
    fn two_files_are_the_plan() {
        let p = plan();
        let f = p.to_files();
        assert_eq!(f, p.to_files(), "the same bytes each time");
        let numbers = f.numbers.as_deref();
        assert_eq!(QuantPlan::from_files(&f.text, "p.yaml", numbers).unwrap(), p);
        assert!(f.text.contains("codes: '@ 1000 i8 ") && f.text.contains("scales: '@ 100 f32 "), "{}", f.text);
        assert!(f.text.contains("correction: 0.5 0.5 0.5"), "what is short stays: {}", f.text);
        let arrays = unpacked(numbers.unwrap()).unwrap();
        assert_eq!(arrays.len(), 4);
        assert!(arrays.contains_key("layers/d/codes"), "{:?}", arrays.keys());
        // One file is a plan as well.
        assert_eq!(QuantPlan::from_files(&p.to_yaml(), "p.yaml", None).unwrap(), p);
    }

    #[test]
    fn files_that_do_not_belong_together_are_refused() {
        let p = plan();
        let f = p.to_files();
        let mut q = p.clone();
        q.layers[1].stored.as_mut().unwrap().codes[5] ^= 1;
        let other = q.to_files().numbers;
        let said = |text: &str, n: Option<&[u8]>| QuantPlan::from_files(text, "x/p.yaml", n).unwrap_err().to_string();
        assert!(said(&f.text, None).starts_with("x/p.weights.npz: not there"));
        let e = said(&f.text, other.as_deref());
        assert!(e.contains("\"layers/d/codes\" holds other numbers"), "{e}");
        let hash = Numbers::Codes(p.layers[1].stored.as_ref().unwrap().codes.clone()).hash();
        let without = f.text.replace(&format!(" {hash}"), "");
        assert_eq!(QuantPlan::from_files(&without, "p", other.as_deref()).unwrap(), q, "on purpose");
        assert!(said(&f.text, Some(b"PK no")).contains("no whole .npz"));
        let gone = f.text.replace("output: d", "output: e");
        assert!(said(&gone, f.numbers.as_deref()).contains("no array \"layers/e/"));
        q.layers[1].stored.as_mut().unwrap().codes.push(1);
        assert!(said(&f.text, q.to_files().numbers.as_deref()).contains("has 1001 numbers, and the plan says 1000"));
    }
}
