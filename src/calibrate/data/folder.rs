//! A folder of pictures: which of its files are some, which class each is of, and which cannot be read.

use std::fs::File;
use std::io::{BufRead, BufReader, Cursor, Read, Seek, SeekFrom};
use std::path::Path;

use image::ImageReader;

use super::decode::{Wanted, fits, is_cut_jpeg, panicked};
use super::extras::{is_png, png_head};
use super::{DataError, labels};
use crate::budget;

/// What a folder holds.
#[derive(Clone, Debug, Default)]
pub(super) struct Listing {
    /// Paths below the folder, with `/`.
    pub(super) names: Vec<String>,
    pub(super) labels: Option<Vec<i64>>,
    /// How many folders of classes there are, if the classes are their places in the order of names: an index says little
    /// without knowing that all classes are there.
    pub(super) class_folders: Option<usize>,
    /// Their names, in the order of the classes.
    pub(super) class_names: Vec<String>,
    pub(super) notes: Vec<String>,
}

/// Endings of pictures that are read here.
const ENDINGS: [&str; 7] = ["jpg", "jpeg", "jpe", "png", "webp", "bmp", "dib"];
/// Endings of pictures that are not.
const FOREIGN: [&str; 12] = ["avif", "heic", "heif", "jxl", "gif", "tif", "tiff", "jp2", "svg", "psd", "ppm", "pgm"];
/// What systems leave in folders.
const LITTER: [&str; 3] = ["thumbs.db", "desktop.ini", "__macosx"];

/// What a file is.
enum FileKind {
    Picture,
    /// A picture of a kind that is not read here.
    Foreign(&'static str),
    Other,
}

/// The pictures of a folder, sorted by name in code point order; or those that its labels.txt names, in that order; or those
/// of the folders in it, one for each class.
///
/// `labels` is a file in place of labels.txt.
pub(super) fn list(folder: &Path, labels: Option<&Path>) -> Result<Listing, DataError> {
    let label_file = labels.map_or_else(|| folder.join("labels.txt"), Path::to_owned);
    if labels.is_some() || label_file.is_file() {
        let (names, classes): (Vec<_>, _) = labels::read(&label_file, folder)?.into_iter().unzip();
        let labels = labels::checked(&label_file, classes)?;
        return Ok(Listing { names, labels, ..Listing::default() });
    }
    let mut own = Entries::default();
    own.read(folder, "")?;
    let empty = own.others.is_empty() && own.folders.is_empty();
    if own.pictures.is_empty() && !own.folders.is_empty() {
        return classes(folder, own);
    }
    refuse(folder, own.foreign, own.pictures.len())?;
    match (own.pictures.is_empty(), empty) {
        (false, _) => {}
        (true, true) => return Err(DataError::EmptyFolder { path: folder.to_path_buf() }),
        (true, false) => return Err(DataError::NoImages { path: folder.to_path_buf() }),
    }
    let mut notes = Vec::new();
    notes.extend(left_out(folder, "no pictures, and left out", &own.others));
    notes.extend(left_out(folder, "folders beside pictures are not looked into", &own.folders));
    Ok(Listing { names: own.pictures, notes, ..Listing::default() })
}

/// A folder of folders: each is a class, and so is all below it.
fn classes(folder: &Path, own: Entries) -> Result<Listing, DataError> {
    // Numbers are classes themselves.
    let number = |n: &String| n.parse::<i64>().ok().filter(|n| *n >= 0);
    let numbers: Option<Vec<i64>> = own.folders.iter().map(number).collect();
    let mut found = Listing::default();
    if numbers.is_none() {
        (found.class_folders, found.class_names) = (Some(own.folders.len()), own.folders.clone());
    }
    let (mut labels, mut others, mut foreign, mut bare) = (Vec::new(), own.others, own.foreign, Vec::new());
    for (i, class) in own.folders.iter().enumerate() {
        let mut below = Entries::default();
        below.read(folder, class)?;
        while let Some(next) = below.folders.pop() {
            below.read(folder, &next)?;
        }
        below.pictures.sort_unstable();
        if below.pictures.is_empty() && below.foreign.is_empty() {
            bare.push(class.clone());
        }
        let index = numbers.as_ref().map_or(i as i64, |n| n[i]);
        labels.extend(below.pictures.iter().map(|_| index));
        found.names.append(&mut below.pictures);
        others.append(&mut below.others);
        foreign.append(&mut below.foreign);
    }
    refuse(folder, foreign, found.names.len())?;
    if found.names.is_empty() {
        return Err(DataError::NoImages { path: folder.to_path_buf() });
    }
    let which = match &numbers {
        Some(_) => "their names are the classes".to_owned(),
        None => format!("{} is class 0, and so on in the order of names", own.folders[0]),
    };
    found.notes.push(format!("{}: {} folders of pictures; {which}", folder.display(), own.folders.len()));
    found.notes.extend(left_out(folder, "folders without a picture", &bare));
    found.notes.extend(left_out(folder, "no pictures, and left out", &others));
    found.labels = Some(labels);
    Ok(found)
}

/// What a folder and those below it hold, as names below the first.
#[derive(Default)]
struct Entries {
    pictures: Vec<String>,
    folders: Vec<String>,
    others: Vec<String>,
    /// With the name of the format.
    foreign: Vec<(String, String)>,
}

impl Entries {
    /// Adds what is in `folder/below`.
    fn read(&mut self, folder: &Path, below: &str) -> Result<(), DataError> {
        let at = folder.join(below);
        let io = |source| DataError::Io { path: at.clone(), source };
        let mut all: Vec<_> = std::fs::read_dir(&at).map_err(io)?.collect::<Result<_, _>>().map_err(io)?;
        all.sort_unstable_by_key(std::fs::DirEntry::file_name);
        for entry in all {
            let path = entry.path();
            let Ok(name) = entry.file_name().into_string() else {
                // Such a name cannot be put into a report or a labels.txt; say so now.
                let reason = "its name is not Unicode".to_string();
                return Err(DataError::Decode { path, reason });
            };
            if name.starts_with('.') || LITTER.contains(&name.to_lowercase().as_str()) {
                continue;
            }
            let name = if below.is_empty() { name } else { format!("{below}/{name}") };
            if path.is_dir() {
                self.folders.push(name);
                continue;
            }
            match kind(&path) {
                FileKind::Picture => self.pictures.push(name),
                FileKind::Foreign(format) => self.foreign.push((name, format!("{format}, which is not read here"))),
                FileKind::Other => self.others.push(name),
            }
        }
        Ok(())
    }
}

/// Whether a file's name ends like that of a picture that is read here.
pub(super) fn is_image_name(path: &Path) -> bool {
    ends(path, &ENDINGS).is_some()
}

fn ends<'a>(path: &Path, endings: &[&'a str]) -> Option<&'a str> {
    path.extension().and_then(|e| endings.iter().copied().find(|x| e.eq_ignore_ascii_case(x)))
}

/// True for what must not be opened as a picture: opening a pipe that nobody writes to waits for ever.
fn is_no_file(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|m| !m.is_file())
}

/// By content where that tells, otherwise by name. What is named like a picture is one: if it is broken, that must be said.
fn kind(path: &Path) -> FileKind {
    if is_no_file(path) {
        return FileKind::Other;
    }
    let mut head = [0; 32];
    let n = File::open(path).and_then(|mut f| f.read(&mut head)).unwrap_or(0);
    match known(&head[..n]) {
        Some(k) => k,
        None if is_image_name(path) => FileKind::Picture,
        None => ends(path, &FOREIGN).map_or(FileKind::Other, FileKind::Foreign),
    }
}

/// What the first bytes say.
fn known(head: &[u8]) -> Option<FileKind> {
    let at = |i: usize, text: &[u8]| head.get(i..).is_some_and(|h| h.starts_with(text));
    let picture = at(0, b"\xff\xd8\xff") || at(0, b"\x89PNG\r\n\x1a\n") || (at(0, b"RIFF") && at(8, b"WEBP"));
    // Of words that begin with BM, the header's size is no letter.
    let bitmap = at(0, b"BM")
        && head.get(14).is_some_and(|n| matches!(n, 12 | 40 | 52 | 56 | 64 | 108 | 124))
        && at(15, &[0; 3]);
    if picture || bitmap {
        return Some(FileKind::Picture);
    }
    let brand = |names: &[&[u8]]| at(4, b"ftyp") && names.iter().any(|n| at(8, n));
    let foreign = [
        (brand(&[b"avif", b"avis"]), "AVIF"),
        (brand(&[b"heic", b"heix", b"hevc", b"mif1", b"msf1"]), "HEIC"),
        (at(0, b"GIF8"), "GIF"),
        (at(0, b"II*\0") || at(0, b"MM\0*"), "TIFF"),
        (at(0, b"\xff\x0a") || at(4, b"JXL "), "JPEG XL"),
        (at(4, b"jP  "), "JPEG 2000"),
        (at(0, b"8BPS"), "Photoshop"),
    ];
    foreign.into_iter().find(|(is, _)| *is).map(|(_, name)| FileKind::Foreign(name))
}

/// Names, few of many.
fn few<T>(all: &[T], name: impl Fn(&T) -> String) -> String {
    const SHOWN: usize = 5;
    let first: Vec<String> = all.iter().take(SHOWN).map(name).collect();
    match all.len() - first.len() {
        0 => first.join(", "),
        more => format!("{} and {more} more", first.join(", ")),
    }
}

fn left_out(folder: &Path, what: &str, names: &[String]) -> Option<String> {
    (!names.is_empty()).then(|| format!("{}: {what}: {}", folder.display(), few(names, String::clone)))
}

/// Refuses a folder with pictures that are not read here: leaving them out would calibrate on a part of what was meant.
fn refuse(folder: &Path, unread: Vec<(String, String)>, readable: usize) -> Result<(), DataError> {
    if unread.is_empty() {
        return Ok(());
    }
    let files = few(&unread, |(name, why)| format!("{name} ({why})"));
    Err(DataError::Unread { path: folder.to_path_buf(), count: unread.len(), of: readable + unread.len(), files })
}

/// Looks at the beginning and the end of pictures, so that one that cannot be read is told before minutes of work, and all
/// of them at once.
pub(super) fn check<'a>(folder: &Path, names: impl Iterator<Item = &'a str>, wanted: &Wanted) -> Result<(), DataError> {
    let (mut unread, mut count) = (Vec::new(), 0);
    for name in names {
        count += 1;
        let path = folder.join(name);
        match size(&path) {
            Err(why) => unread.push((name.to_owned(), why)),
            Ok((w, h)) => {
                // On its side or not: the orientation is not looked at here.
                let laid = |w, h| {
                    let g = &wanted.geometry;
                    fits(&path, g.canvas().unwrap_or_else(|| g.resized(w, h)), wanted)
                };
                laid(w, h).or_else(|e| laid(h, w).map_err(|_| e))?;
            }
        }
    }
    refuse(folder, unread, count).map_err(|e| match e {
        DataError::Unread { path, count: bad, files, .. } => DataError::Unread { path, count: bad, of: count, files },
        e => e,
    })
}

/// Width and height out of the file's header, if the file is whole as far as its last bytes tell.
fn size(path: &Path) -> Result<(u32, u32), String> {
    if is_no_file(path) {
        return Err("it is no file".to_owned());
    }
    let file = File::open(path).map_err(|e| e.to_string())?;
    let mut reader = BufReader::new(file);
    let length = reader.seek(SeekFrom::End(0)).map_err(|e| e.to_string())?;
    if length == 0 {
        return Err("the file is empty".to_owned());
    }
    let begin = length.saturating_sub(1 << 12);
    reader.seek(SeekFrom::Start(begin)).map_err(|e| e.to_string())?;
    let mut tail = Vec::new();
    reader.read_to_end(&mut tail).map_err(|e| e.to_string())?;
    reader.seek(SeekFrom::Start(0)).map_err(|e| e.to_string())?;
    let mut head = [0; 2];
    reader.read_exact(&mut head).map_err(|e| e.to_string())?;
    reader.seek(SeekFrom::Start(0)).map_err(|e| e.to_string())?;
    // What comes after the end marker may be long: then all of it is looked at.
    let cut = head == [0xFF, 0xD8] && {
        let end = tail.windows(2).any(|w| w == [0xFF, 0xD9]);
        !end && std::fs::read(path).is_ok_and(|b| is_cut_jpeg(&b))
    };
    if cut {
        return Err("cut off: it has no end-of-image marker".to_owned());
    }
    if is_png(&head) {
        let head = png_head(&mut reader).map_err(|e| e.to_string())?;
        return dimensions(Cursor::new(head));
    }
    dimensions(reader)
}

fn dimensions(from: impl BufRead + Seek) -> Result<(u32, u32), String> {
    let reader = ImageReader::new(from).with_guessed_format().map_err(|e| e.to_string())?;
    if reader.format().is_none() || !reader.format().is_some_and(|f| f.reading_enabled()) {
        return Err("no picture, whatever its name says".to_owned());
    }
    let size = budget::foreign(|| reader.into_dimensions().map_err(|e| e.to_string()));
    size.map_err(|p| panicked(&p)).flatten()
}
