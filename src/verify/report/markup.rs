//! What all parts of a page are written with.

use std::fmt::Write;
use std::path::Path;

use super::file_name;

pub(super) const STYLE: &str = include_str!("report.css");

pub(super) fn code(s: &str) -> String {
    format!("<code>{}</code>", esc(s))
}

/// Names come from files: nothing in them may become markup.
pub(super) fn esc(s: &str) -> String {
    s.chars().fold(String::with_capacity(s.len()), |mut out, c| {
        match c {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            '\'' => out += "&#39;",
            c => out.push(c),
        }
        out
    })
}

pub(super) fn put(h: &mut String, text: std::fmt::Arguments<'_>) {
    h.write_fmt(text).expect("a String takes every write");
}

/// A page is given to others: where files lay on one machine is nothing to them.
pub(super) fn without_folders(description: &str) -> String {
    let word = |w: &str| if Path::new(w).is_absolute() { file_name(w).to_owned() } else { w.to_owned() };
    description.split(' ').map(word).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_does_not_tell_where_files_lay() {
        assert_eq!(without_folders("images of /home/ada/photos"), "images of photos");
        assert_eq!(without_folders("arrays of data/calib.npz"), "arrays of data/calib.npz");
    }
}
