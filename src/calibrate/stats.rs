//! The statistics file: what calibration saw, to be used again or joined with other shards.
//!
//! Layout: 8 bytes `FQVSTAT4`, 32 bytes BLAKE3 of the rest, then the postcard encoding of [`StatsFile`].

use std::path::Path;

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

use super::run::{CalibrateError, merge};
use crate::file::{self, WriteError};
use crate::quant::observe::Stats;

const MAGIC: &[u8; 8] = b"FQVSTAT4";

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
    pub values: Vec<(String, Stats)>,
}

/// Why a statistics file could not be used.
#[derive(Debug, thiserror::Error)]
pub enum StatsError {
    #[error("{path}: {source}")]
    Io { path: String, source: std::io::Error },
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error("{path} is no statistics file of this program; make one with `fqvit-opt calibrate`")]
    Kind { path: String },
    #[error("{path} is damaged (its checksum does not fit); make it again with `fqvit-opt calibrate`")]
    Damaged { path: String },
    #[error("{path} was made for another model or recipe (fingerprint {file}, now {model}); make it again")]
    Model { path: String, file: String, model: String },
    #[error("{path}: {source}")]
    Merge { path: String, source: Box<CalibrateError> },
}

impl StatsFile {
    pub fn new(
        model: String,
        data: String,
        synthetic: bool,
        samples: u64,
        values: IndexMap<String, Stats>,
    ) -> StatsFile {
        StatsFile { model, data, synthetic, samples, values: values.into_iter().collect() }
    }

    /// The statistics by value name.
    pub fn into_map(self) -> IndexMap<String, Stats> {
        self.values.into_iter().collect()
    }

    /// Reads a file.
    pub fn read(path: &Path) -> Result<StatsFile, StatsError> {
        let name = || path.display().to_string();
        let bytes = std::fs::read(path).map_err(|source| StatsError::Io { path: name(), source })?;
        let rest = bytes.strip_prefix(MAGIC.as_slice()).filter(|r| r.len() >= 32);
        let (sum, body) = rest.ok_or_else(|| StatsError::Kind { path: name() })?.split_at(32);
        if blake3::hash(body).as_bytes() != sum {
            return Err(StatsError::Damaged { path: name() });
        }
        postcard::from_bytes(body).map_err(|_| StatsError::Kind { path: name() })
    }

    /// Refuses statistics of another model.
    pub fn check(&self, path: &Path, model: &str) -> Result<(), StatsError> {
        if self.model == model {
            return Ok(());
        }
        Err(StatsError::Model { path: path.display().to_string(), file: self.model.clone(), model: model.to_owned() })
    }

    /// Joins another shard: as if both had been one run.
    pub fn join(self, other: StatsFile, path: &Path) -> Result<StatsFile, StatsError> {
        other.check(path, &self.model)?;
        let (model, data, samples) = (self.model.clone(), self.data.clone(), self.samples + other.samples);
        let synthetic = self.synthetic || other.synthetic;
        let mut all = self.into_map();
        merge(&mut all, &other.into_map())
            .map_err(|e| StatsError::Merge { path: path.display().to_string(), source: Box::new(e) })?;
        Ok(StatsFile::new(model, data, synthetic, samples, all))
    }

    /// Writes the file whole or not at all.
    pub fn write(&self, path: &Path) -> Result<(), StatsError> {
        // In one piece: the body is as large as all that is kept.
        let head = MAGIC.len() + 32;
        let mut bytes = postcard::to_extend(self, vec![0; head]).expect("plain data encodes");
        let sum = blake3::hash(&bytes[head..]);
        bytes[..head].copy_from_slice(&[MAGIC.as_slice(), sum.as_bytes()].concat());
        file::write(path, &bytes)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::observe::Watch;

    fn file() -> StatsFile {
        let mut s = Stats::new(Watch::Channels { axis: -1 });
        s.observe(&[1.0, -2.0, 3.0, 4.0], &[2, 2], 0).unwrap();
        StatsFile::new("m".into(), "d".into(), false, 1, [("x".to_owned(), s)].into_iter().collect())
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
    }

    #[test]
    fn joining_is_one_run() {
        let one = file();
        let joined = one.clone().join(file(), Path::new("b")).unwrap();
        assert_eq!(joined.samples, 2);
        assert_eq!(joined.values[0].1.count, 4);
    }
}
