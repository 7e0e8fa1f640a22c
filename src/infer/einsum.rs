//! The letters of an Einsum.

use super::Size;
use super::view::{Dims, View, broadcast_dim};

/// The equation without spaces, with its result, and with a letter of its own for each axis that an ellipsis stands for. Axes
/// of several ellipses are counted from the right. `None` where an operand with an ellipsis has an unknown rank.
pub(crate) fn spelt_out(equation: &str, rank: impl Fn(usize) -> Option<usize>) -> Option<String> {
    let mut plain: String = equation.chars().filter(|c| *c != ' ').collect();
    if !plain.contains("->") {
        plain = format!("{plain}->{}", unsaid(&plain));
    }
    if !plain.contains("...") {
        return Some(plain);
    }
    let (operands, result) = plain.split_once("->")?;
    let parts: Vec<&str> = operands.split(',').collect();
    // How many axes each ellipsis stands for: what the letters beside it leave.
    let count = |(i, part): (usize, &&str)| match part.contains("...") {
        true => (rank(i)? + 3).checked_sub(part.len()),
        false => Some(0),
    };
    let counts: Vec<usize> = parts.iter().enumerate().map(count).collect::<Option<_>>()?;
    let unused: Vec<char> = ('A'..='Z').chain('a'..='z').filter(|c| !plain.contains(*c)).collect();
    let all = unused.get(..*counts.iter().max()?)?;
    let with = |part: &str, n: usize| part.replace("...", &all[all.len() - n..].iter().collect::<String>());
    let parts: Vec<String> = parts.iter().zip(counts).map(|(p, n)| with(p, n)).collect();
    Some(format!("{}->{}", parts.join(","), with(result, all.len())))
}

/// The result of an equation without an arrow: the axes of the ellipses, then every letter that stands once, in the order of
/// the alphabet.
fn unsaid(operands: &str) -> String {
    let mut all: Vec<char> = operands.chars().filter(|c| !matches!(c, ',' | '.')).collect();
    all.sort_unstable();
    let once = all.iter().filter(|c| all.iter().filter(|x| x == c).count() == 1);
    let ellipsis = if operands.contains("...") { "..." } else { "" };
    ellipsis.chars().chain(once.copied()).collect()
}

/// The sizes of the letters of the result.
pub(super) fn shape(view: &View) -> Option<Dims> {
    let equation = spelt_out(view.node.attrs.str("equation")?, |i| view.rank(i))?;
    let (operands, result) = equation.split_once("->")?;
    let mut sizes: Vec<(char, Option<Size>)> = Vec::new();
    for (i, letters) in operands.split(',').enumerate() {
        let d = view.dims(i).filter(|d| d.len() == letters.chars().count())?;
        for (c, d) in letters.chars().zip(d) {
            match sizes.iter_mut().find(|(x, _)| *x == c) {
                Some((_, known)) => *known = broadcast_dim(known.as_ref(), Some(d)),
                None => sizes.push((c, Some(d.clone()))),
            }
        }
    }
    result.chars().map(|c| sizes.iter().find(|(x, _)| *x == c).map(|(_, d)| d.clone())).collect()
}
