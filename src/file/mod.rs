//! Files: read so that a change under way is noticed, written whole or not at all.
//!
//! *Reading.* [`read`] gives the bytes of a file, a pipe or standard input. A large file is mapped; [`intact`] tells
//! whether the file after some bytes is still the one that was read.
//!
//! *Writing.* A file is written under another name in the same folder and takes its place by a rename, so that a failure
//! leaves what was there untouched, and nobody ever reads half a file. A [`Batch`] holds all files of one call: they take
//! their places together, or none does.
//!
//! *Ends.* [`stop::watch`] lets a program that is told to stop, or whose mapped input is cut short, end in order. What a
//! killed program leaves after is removed by the next one that writes into that folder.
//!
//! *Names.* A [`Ledger`] lists what a call reads and writes, and refuses one file in two places.

mod ledger;
mod read;
mod scratch;
mod standard;
pub mod stop;
mod temp;
mod write;

pub use ledger::{Conflict, Ledger};
pub use read::{ReadError, STDIN, Sources, as_text, intact, map, read, text};
pub use scratch::{Scratch, output};
pub use standard::has_output;
pub use write::{Batch, Pending, WriteError, write};

use std::path::{Path, PathBuf};

/// The files this process has put in their places so far.
pub fn written() -> Vec<PathBuf> {
    temp::hold().written.clone()
}

/// The folder a file lies in.
pub fn folder(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Where a file of this name is written: the name at the end of a chain of links, also where no file has it yet. A chain
/// without an end stays as it is.
pub fn target(path: &Path) -> PathBuf {
    let mut all: Vec<PathBuf> = links(path).collect();
    if all.len() > LINKS { all.swap_remove(0) } else { all.pop().expect("the name itself") }
}

/// As many links as are followed from one name.
const LINKS: usize = 40;

/// A name and those that links lead to from it, one after another.
fn links(path: &Path) -> impl Iterator<Item = PathBuf> {
    let next = |at: &PathBuf| std::fs::read_link(at).ok().map(|to| folder(at).join(to));
    std::iter::successors(Some(path.to_owned()), next).take(LINKS + 1)
}
