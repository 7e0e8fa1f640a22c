//! Recipes, rules and plans, changed word by word and line by line.

use rand::RngExt;

use crate::{Rng, few, number, pick};

/// Changes words, numbers and lines of a text.
pub fn mutate(rng: &mut Rng, text: String) -> String {
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    for _ in 0..few(rng) {
        if lines.is_empty() {
            break;
        }
        let at = rng.random_range(0..lines.len());
        match rng.random_range(0..9) {
            0 => drop(lines.remove(at)),
            1 => {
                let copy = lines[at].clone();
                lines.insert(rng.random_range(0..=lines.len()), copy);
            }
            2 => {
                let other = rng.random_range(0..lines.len());
                lines.swap(at, other);
            }
            3 => lines[at] = format!("{}{}", " ".repeat(rng.random_range(0..5)), lines[at].trim_start()),
            4 => {
                let n = rng.random_range(1..3000);
                let nested = format!("y = {}x{}", "Exp (".repeat(n), ")".repeat(n));
                lines[at] = nested;
            }
            5 => {
                let list = vec!["0.5"; rng.random_range(1..5000)].join(", ");
                lines[at] = lines[at].replacen('[', &format!("[{list}, "), 1);
            }
            _ => lines[at] = change_word(rng, &lines[at]),
        }
    }
    lines.join("\n")
}

fn change_word(rng: &mut Rng, line: &str) -> String {
    let mut words: Vec<String> =
        line.split_inclusive([' ', ',', ':', '[', ']', '(', ')', '{', '}']).map(str::to_owned).collect();
    if words.is_empty() {
        return line.to_owned();
    }
    let at = rng.random_range(0..words.len());
    const ODD: [&str; 16] = [
        ".nan", "-.inf", "1e300", "1e-300", "65536", "-1", "0", "\"\"", "~", "[]", "{}", "*a", "&a", "|", "x", "!!str",
    ];
    let end: String = words[at].chars().rev().take_while(|c| !c.is_alphanumeric() && *c != '.').collect();
    let end: String = end.chars().rev().collect();
    words[at] = match rng.random_range(0..4) {
        0 => format!("{}{end}", number(rng)),
        1 => format!("{}{end}", pick(rng, &ODD)),
        2 => pick(rng, &words.clone()).clone(),
        _ => String::new(),
    };
    words.concat()
}
