//! The statistics file: what calibration saw, to be used again or joined with other shards.
//!
//! Layout: 8 bytes `FQVSTAT8`, 32 bytes BLAKE3 of the rest, then the postcard encoding of [`StatsFile`],
//! as zlib packs it.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::Path;

use flate2::Compression;
use flate2::read::ZlibDecoder;
use flate2::write::ZlibEncoder;
use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

use super::run::{CalibrateError, merge};
use crate::budget;
use crate::file::{self, ReadError, WriteError};
use crate::quant::observe::Stats;

const MAGIC: &[u8; 8] = b"FQVSTAT8";

/// What all kinds of this program's statistics files begin with.
const FAMILY: &[u8; 7] = b"FQVSTAT";

/// Statistics with where they come from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StatsFile {
    /// Fingerprint of the canonical model.
    pub model: String,
    /// What data they were made from.
    pub data: String,
    /// Whether any of the data were made up, not given.
    pub synthetic: bool,
    pub samples: u64,
    /// How data become inputs (normalisation, resizing): see [`Origin::how`].
    how: String,
    /// Which parts of which data have been seen, by the fingerprint of the data.
    seen: BTreeMap<String, Shards>,
    pub values: Vec<(String, Stats)>,
}

/// Where statistics come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// What data, for people.
    pub data: String,
    /// Whether they were made up.
    pub synthetic: bool,
    /// How data become inputs; statistics made in two ways have nothing to do with each other.
    pub how: String,
    /// A fingerprint of the data as a whole.
    pub source: String,
    /// The part that was seen, of how many; from 1.
    pub shard: (u32, u32),
}

/// Parts of one data set: part `i` of `of` has every `of`-th sample.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Shards {
    of: u32,
    /// Sorted, from 1.
    parts: Vec<u32>,
}

impl Shards {
    /// How many parts are missing. A file may say that there are more of them than memory has room for.
    fn missing(&self) -> usize {
        self.of as usize - self.parts.len()
    }

    /// Parts that are missing: `3/4`. The first of them, if there are many.
    fn missing_parts(&self) -> Vec<String> {
        let missing = (1..=self.of).filter(|p| self.parts.binary_search(p).is_err());
        let mut told: Vec<String> = missing.take(MOST_TOLD).map(|p| format!("{p}/{}", self.of)).collect();
        if self.missing() > told.len() {
            told.push(format!("and {} others", self.missing() - told.len()));
        }
        told
    }

    /// Whether the parts are in order and of those there are.
    fn hold_together(&self) -> bool {
        !self.parts.is_empty()
            && self.parts.windows(2).all(|w| w[0] < w[1])
            && self.parts.iter().all(|p| (1..=self.of).contains(p))
    }
}

/// Parts that a message names.
const MOST_TOLD: usize = 16;

/// Why a statistics file could not be used.
#[derive(Debug, thiserror::Error)]
pub enum StatsError {
    #[error("{path}: {source}")]
    Io { path: String, source: ReadError },
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error("{path} is no statistics file of this program; make one with `fqvit-opt calibrate`")]
    Kind { path: String },
    #[error("{path} holds statistics of another version of this program; make it again with `fqvit-opt calibrate`")]
    Version { path: String },
    #[error("{path} is damaged (its checksum does not fit); make it again with `fqvit-opt calibrate`")]
    Damaged { path: String },
    #[error(
        "{path}: the statistics of {value} contradict each other: no calibration writes them; make the file again with \
         `fqvit-opt calibrate`"
    )]
    Torn { path: String, value: String },
    #[error("{path} was made for another model or recipe (fingerprint {file}, now {model}); make it again")]
    Model { path: String, file: String, model: String },
    #[error("{path} was made with {file}, the others with {other}; make it again as the others")]
    How { path: String, file: String, other: String },
    #[error("{path} watches other values than the others do: it was made for another recipe; make it again")]
    Values { path: String },
    #[error("{path} holds {what} of {data}, which is in the others already; give each part once")]
    Twice { path: String, what: String, data: String },
    #[error(
        "{path} holds a part of other data than the others ({data}), or of another division; only whole data sets of \
         different data can be joined"
    )]
    Data { path: String, data: String },
    #[error(
        "{path} lacks {missing} of {of} parts ({}); join them all with `fqvit-opt calibrate --join`",
        .parts.join(", ")
    )]
    Part { path: String, missing: usize, of: u32, parts: Vec<String> },
    #[error("{path}: {source}")]
    Merge { path: String, source: Box<CalibrateError> },
}

impl StatsFile {
    /// Statistics of one part of data.
    pub fn new(model: String, from: Origin, samples: u64, values: IndexMap<String, Stats>) -> StatsFile {
        let Origin { data, synthetic, how, source, shard: (part, of) } = from;
        let seen = [(source, Shards { of, parts: vec![part] })].into();
        StatsFile { model, data, synthetic, samples, how, seen, values: values.into_iter().collect() }
    }

    /// The statistics by value name.
    pub fn into_map(self) -> IndexMap<String, Stats> {
        self.values.into_iter().collect()
    }

    /// Reads a file.
    ///
    /// # Errors
    /// If it cannot be read, is no statistics file of this version, is damaged, or contradicts itself.
    pub fn read(path: &Path) -> Result<StatsFile, StatsError> {
        let name = || path.display().to_string();
        let bytes = file::read(path).map_err(|source| StatsError::Io { path: name(), source })?;
        let Some(rest) = bytes.strip_prefix(MAGIC.as_slice()).filter(|r| r.len() >= 32) else {
            return Err(match bytes.starts_with(FAMILY) && !bytes.starts_with(MAGIC) {
                true => StatsError::Version { path: name() },
                false => StatsError::Kind { path: name() },
            });
        };
        let (sum, body) = rest.split_at(32);
        if blake3::hash(body).as_bytes() != sum {
            return Err(StatsError::Damaged { path: name() });
        }
        let mut plain = Vec::new();
        let unpacked = ZlibDecoder::new(body).take(budget::memory() as u64).read_to_end(&mut plain);
        unpacked.map_err(|_| StatsError::Damaged { path: name() })?;
        let file: StatsFile = postcard::from_bytes(&plain).map_err(|_| StatsError::Kind { path: name() })?;
        // The checksum tells what was damaged, not what was written wrongly.
        let torn = |value: String| Err(StatsError::Torn { path: name(), value });
        if let Some((value, _)) = file.values.iter().find(|(_, s)| !s.holds_together()) {
            return torn(format!("`{value}`"));
        }
        if file.seen.is_empty() || !file.seen.values().all(Shards::hold_together) {
            return torn("its parts".to_owned());
        }
        Ok(file)
    }

    /// Refuses statistics of another model, and those of a part of the data: they would pass for the whole.
    ///
    /// # Errors
    /// What is wrong with them, with the file's name.
    pub fn check(&self, path: &Path, model: &str) -> Result<(), StatsError> {
        self.of_model(path, model)?;
        let Some(shards) = self.seen.values().find(|s| s.missing() > 0) else { return Ok(()) };
        let (missing, parts) = (shards.missing(), shards.missing_parts());
        Err(StatsError::Part { path: path.display().to_string(), missing, of: shards.of, parts })
    }

    /// Refuses statistics of another model.
    ///
    /// # Errors
    /// If the fingerprint in the file `path` is another one.
    pub fn of_model(&self, path: &Path, model: &str) -> Result<(), StatsError> {
        if self.model == model {
            return Ok(());
        }
        Err(StatsError::Model { path: path.display().to_string(), file: self.model.clone(), model: model.to_owned() })
    }

    /// Whether they hold any of this data set, by its fingerprint.
    pub fn have_seen(&self, source: &str) -> bool {
        self.seen.contains_key(source)
    }

    /// Parts that are still to be joined: `3/4`. Of many the first, and in the end `and 9 others`.
    pub fn missing(&self) -> Vec<String> {
        self.seen.values().flat_map(Shards::missing_parts).collect()
    }

    /// Joins another shard: as if both had been one run.
    ///
    /// # Errors
    /// If it is of another model, was made in another way, or is there already.
    pub fn join(self, other: StatsFile, path: &Path) -> Result<StatsFile, StatsError> {
        let name = || path.display().to_string();
        other.of_model(path, &self.model)?;
        if other.how != self.how {
            return Err(StatsError::How { path: name(), file: other.how, other: self.how });
        }
        let watched = |s: &StatsFile| s.values.iter().map(|(n, v)| (n.clone(), v.watch.clone())).collect::<Vec<_>>();
        if watched(&self) != watched(&other) {
            return Err(StatsError::Values { path: name() });
        }
        let mut seen = self.seen.clone();
        for (source, s) in &other.seen {
            let whole = |m: &BTreeMap<String, Shards>| m.values().all(|s| s.missing() == 0);
            let foreign = || StatsError::Data { path: name(), data: other.data.clone() };
            let Some(mine) = seen.get_mut(source) else {
                // Other data may be added, but a part of them is a part of something else.
                if !(whole(&self.seen) && whole(&other.seen)) {
                    return Err(foreign());
                }
                seen.insert(source.clone(), s.clone());
                continue;
            };
            if let Some(p) = s.parts.iter().find(|p| mine.parts.binary_search(p).is_ok() || mine.of != s.of) {
                if mine.of != s.of {
                    return Err(foreign());
                }
                let what = if s.of == 1 { "all".to_owned() } else { format!("part {p}/{}", s.of) };
                return Err(StatsError::Twice { path: name(), what, data: other.data.clone() });
            }
            mine.parts.extend(&s.parts);
            mine.parts.sort_unstable();
        }
        let data = if other.seen.keys().all(|k| self.seen.contains_key(k)) {
            self.data.clone()
        } else {
            format!("{}, {}", self.data, other.data)
        };
        let (model, how, samples) = (self.model.clone(), self.how.clone(), self.samples.saturating_add(other.samples));
        let synthetic = self.synthetic || other.synthetic;
        let mut all = self.into_map();
        merge(&mut all, &other.into_map()).map_err(|e| StatsError::Merge { path: name(), source: Box::new(e) })?;
        Ok(StatsFile { model, data, synthetic, samples, how, seen, values: all.into_iter().collect() })
    }

    /// The bytes of the file.
    pub fn encode(&self) -> Vec<u8> {
        let body = postcard::to_stdvec(self).expect("plain data encodes");
        // Most bins of a histogram are empty or small: an eighth of the bytes is left, and a higher level gains little.
        let mut packed = ZlibEncoder::new(Vec::new(), Compression::fast());
        packed.write_all(&body).expect("memory takes every byte");
        let packed = packed.finish().expect("memory takes every byte");
        [MAGIC.as_slice(), blake3::hash(&packed).as_bytes(), &packed].concat()
    }

    /// Writes the file whole or not at all.
    ///
    /// # Errors
    /// As [`file::write`].
    pub fn write(&self, path: &Path) -> Result<(), StatsError> {
        Ok(file::write(path, &self.encode())?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::hist::Hist;
    use crate::quant::watch::Watch;

    fn of(source: &str, shard: (u32, u32), how: &str) -> StatsFile {
        let mut s = Stats::new(Watch::Channels { axis: -1 });
        s.observe(&[1.0, -2.0, 3.0, 4.0], &[2, 2], 0).unwrap();
        let from = Origin { data: source.into(), synthetic: false, how: how.into(), source: source.into(), shard };
        StatsFile::new("m".into(), from, 1, [("x".to_owned(), s)].into_iter().collect())
    }

    fn file() -> StatsFile {
        of("d", (1, 1), "imagenet")
    }

    fn joined(files: &[StatsFile]) -> Result<StatsFile, String> {
        let mut all = files.iter().cloned();
        let first = all.next().unwrap();
        all.try_fold(first, |a, b| a.join(b, Path::new("b"))).map_err(|e| e.to_string())
    }

    #[test]
    fn written_and_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.stats");
        file().write(&path).unwrap();
        assert_eq!(StatsFile::read(&path).unwrap(), file());
    }

    #[test]
    fn damage_and_foreign_files_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.stats");
        file().write(&path).unwrap();
        let mut b = std::fs::read(&path).unwrap();
        *b.last_mut().unwrap() ^= 1;
        std::fs::write(&path, &b).unwrap();
        assert!(matches!(StatsFile::read(&path), Err(StatsError::Damaged { .. })));
        std::fs::write(&path, b"hello").unwrap();
        assert!(matches!(StatsFile::read(&path), Err(StatsError::Kind { .. })));
        std::fs::write(&path, b"FQVSTAT4 and so on").unwrap();
        assert!(matches!(StatsFile::read(&path), Err(StatsError::Version { .. })));
    }

    #[test]
    fn joining_is_one_run() {
        let all = joined(&[of("d", (2, 2), "i"), of("d", (1, 2), "i")]).unwrap();
        assert_eq!((all.samples, all.values[0].1.count, all.data.as_str()), (2, 4, "d"));
        assert!(all.check(Path::new("a"), "m").is_ok());
        // Two whole data sets.
        let all = joined(&[of("d", (1, 1), "i"), of("e", (1, 1), "i")]).unwrap();
        assert_eq!((all.samples, all.data.as_str()), (2, "d, e"));
    }

    #[test]
    fn what_does_not_belong_together_is_refused() {
        let part = |p| of("d", (p, 3), "i");
        let told = |files: &[StatsFile]| joined(files).unwrap_err();
        assert!(told(&[file(), file()]).contains("b holds all of d, which is in the others already"));
        assert!(told(&[part(1), part(2), part(1)]).contains("part 1/3"));
        assert!(
            told(&[joined(&[part(1), part(2)]).unwrap(), joined(&[part(2), part(3)]).unwrap()]).contains("part 2/3")
        );
        assert!(told(&[part(1), of("e", (2, 3), "i")]).contains("other data"));
        assert!(told(&[part(1), of("d", (2, 2), "i")]).contains("another division"));
        assert!(told(&[part(1), of("e", (1, 1), "i")]).contains("other data"));
        assert!(told(&[part(1), of("d", (2, 3), "clip")]).contains("made with clip"));
        assert!(told(&[part(1), StatsFile { model: "n".into(), ..part(2) }]).contains("another model"));
        let mut other = part(2);
        other.values[0].0 = "y".into();
        assert!(told(&[part(1), other]).contains("other values"));
    }

    #[test]
    fn what_no_calibration_writes_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.stats");
        let mut s = Stats::new(Watch::Tokens { axis: -1, read: Default::default() });
        s.observe(&[1.0, -2.0, 3.0, 4.0], &[1, 2, 2], 0).unwrap();
        s.observe(&[1.0, -2.0, 3.0, 5.0], &[1, 2, 2], 1).unwrap();
        let hist = |exp: i32, first: i32| -> Hist {
            postcard::from_bytes(&postcard::to_stdvec(&(exp, first, vec![1u32])).unwrap()).unwrap()
        };
        let told = |change: &dyn Fn(&mut Stats)| {
            let mut changed = file();
            changed.values[0].1 = s.clone();
            change(&mut changed.values[0].1);
            changed.write(&path).unwrap();
            StatsFile::read(&path).map(|_| ()).map_err(|e| e.to_string())
        };
        assert_eq!(told(&|_| ()), Ok(()));
        assert_eq!(told(&|s| s.channels[0].hist = hist(-8, 200)), Ok(()));
        let wrong: [&dyn Fn(&mut Stats); 12] = [
            &|s| s.channels.clear(),
            &|s| s.channels.truncate(1),
            &|s| s.dims = vec![],
            &|s| s.watch = Watch::Channels { axis: 3 },
            &|s| s.watch = Watch::Channels { axis: i64::MIN },
            &|s| s.channels[0].min = f32::NAN,
            &|s| s.channels[0].max = f32::INFINITY,
            &|s| s.channels[0].quarters.truncate(3),
            &|s| s.channels[1].halves.truncate(1),
            &|s| s.channels[0].hist = hist(0, i32::MAX - 1),
            &|s| s.channels[0].halves[1] = hist(1000, 0),
            &|s| s.row_max_min = vec![0.0],
        ];
        for (i, change) in wrong.into_iter().enumerate() {
            let e = told(change).expect_err(&format!("change {i}"));
            assert!(e.contains("the statistics of `x` contradict each other"), "{i}: {e}");
        }
    }

    #[test]
    fn parts_without_end_are_counted_and_not_listed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.stats");
        let many = of("d", (2, u32::MAX), "i");
        many.write(&path).unwrap();
        let e = StatsFile::read(&path).unwrap().check(&path, "m").unwrap_err().to_string();
        assert!(e.contains("lacks 4294967294 of 4294967295 parts (1/4294967295, 3/4294967295, "), "{e}");
        assert!(e.contains("and 4294967278 others"), "{e}");
        let nothing = StatsFile { seen: BTreeMap::new(), ..file() };
        let no_part = Shards { of: 0, parts: Vec::new() };
        let none = StatsFile { seen: [("d".to_owned(), no_part)].into(), ..file() };
        for wrong in [of("d", (3, 2), "i"), nothing, none] {
            wrong.write(&path).unwrap();
            let e = StatsFile::read(&path).unwrap_err().to_string();
            assert!(e.contains("the statistics of its parts contradict each other"), "{e}");
        }
    }

    #[test]
    fn a_part_does_not_pass_for_the_whole() {
        let some = joined(&[of("d", (1, 4), "i"), of("d", (3, 4), "i")]).unwrap();
        assert_eq!(some.missing(), ["2/4", "4/4"]);
        let e = some.check(Path::new("a"), "m").unwrap_err().to_string();
        assert!(e.contains("a lacks 2 of 4 parts (2/4, 4/4)"), "{e}");
    }
}
