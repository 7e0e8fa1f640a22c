//! What somebody may have meant: the known name that is closest to an unknown one.

/// The closest of these names, whatever their case; `None` if more than a quarter of its letters (and one) would have to change.
pub fn nearest<'n>(wanted: &str, known: impl IntoIterator<Item = &'n str>) -> Option<&'n str> {
    // Names of megabytes are nobody's slip.
    const LONGEST: usize = 500;
    let want = wanted.to_ascii_lowercase();
    if want.len() > LONGEST {
        return None;
    }
    known
        .into_iter()
        .filter(|n| n.len() <= LONGEST && n.len().abs_diff(want.len()) <= allowed(n))
        .map(|n| (distance(&want, &n.to_ascii_lowercase()), n))
        .min()
        .filter(|(d, n)| *d <= allowed(n) && *d < n.len().max(want.len()))
        .map(|(_, n)| n)
}

fn allowed(name: &str) -> usize {
    1 + name.len() / 4
}

/// Edit distance (insertions, deletions and substitutions of bytes).
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let substituted = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_is_found_and_another_word_is_not() {
        let known = ["inspect", "explain", "blocks.10/norm1"];
        assert_eq!(nearest("inspct", known), Some("inspect"));
        assert_eq!(nearest("Explian", known), Some("explain"));
        assert_eq!(nearest("blocks.1/norm1", known), Some("blocks.10/norm1"));
        assert_eq!(nearest("verify", known), None);
        assert_eq!((nearest("", ["ab"]), nearest("y", ["x"])), (None, None));
        assert_eq!(nearest(&"x".repeat(1000), ["x"]), None);
    }

    #[test]
    fn a_distance_counts_single_changes() {
        for (a, b, d) in [("", "", 0), ("abc", "abc", 0), ("abc", "", 3), ("kitten", "sitting", 3), ("ab", "ba", 2)] {
            assert_eq!((distance(a, b), distance(b, a)), (d, d), "{a} {b}");
        }
    }
}
