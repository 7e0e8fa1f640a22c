//! Sessions that are asked for again. A compilation runs the same model to verify it, to compare it with the file and to time
//! it, and for a graph of thousands of nodes loading takes far longer than running.

use std::collections::VecDeque;
use std::fmt::Debug;
use std::sync::{Mutex, MutexGuard};

/// How many are kept, and of how many bytes the model of each may be: where weights are large, loading is not what takes time,
/// and memory is. What a session returns beside the outputs is asked for once; without that, the same is asked for often.
const KEPT: usize = 4;
const MOST_BYTES: usize = 32 << 20;
const MOST_BYTES_WITH_TAPS: usize = 8 << 20;

/// What a session is made of.
pub(super) type Key = blake3::Hash;

/// The last sessions that were loaded while somebody wanted them kept.
#[derive(Debug)]
pub(super) struct Kept<S>(Mutex<State<S>>);

#[derive(Debug)]
struct State<S> {
    /// How many want sessions kept.
    holders: usize,
    sessions: VecDeque<(Key, S)>,
}

impl<S: Clone> Kept<S> {
    pub const fn new() -> Kept<S> {
        Kept(Mutex::new(State { holders: 0, sessions: VecDeque::new() }))
    }

    fn all(&self) -> MutexGuard<'_, State<S>> {
        // Sessions are put there whole, so what a panic left behind is still good.
        self.0.lock().unwrap_or_else(|e| e.into_inner())
    }

    pub fn hold(&self) {
        self.all().holders += 1;
    }

    /// Lets go of all sessions if nobody else wants them.
    pub fn release(&self) {
        let mut all = self.all();
        all.holders -= 1;
        if all.holders == 0 {
            all.sessions.clear();
        }
    }

    pub fn find(&self, key: &Key) -> Option<S> {
        self.all().sessions.iter().find(|(k, _)| k == key).map(|(_, s)| s.clone())
    }

    pub fn keep(&self, key: Key, session: &S) {
        let mut all = self.all();
        if all.holders > 0 {
            all.sessions.push_front((key, session.clone()));
            all.sessions.truncate(KEPT);
        }
    }
}

/// The key of a model in its parts, loaded in this way, with `taps` or without; `None` if it is too large to be kept.
pub(super) fn key<'a>(
    message: &[u8],
    weights: impl Iterator<Item = (usize, &'a [u8])> + Clone,
    how: &impl Debug,
    taps: bool,
) -> Option<Key> {
    let bytes = weights.clone().map(|(_, w)| w.len()).sum::<usize>() + message.len();
    if bytes > if taps { MOST_BYTES_WITH_TAPS } else { MOST_BYTES } {
        return None;
    }
    let mut h = blake3::Hasher::new();
    let mut part = |bytes: &[u8]| {
        h.update(&bytes.len().to_le_bytes());
        h.update(bytes);
    };
    part(format!("{how:?}").as_bytes());
    part(message);
    for (i, w) in weights {
        part(&i.to_le_bytes());
        part(w);
    }
    Some(h.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_are_kept_under_what_they_are_made_of() {
        let of =
            |message: &str, weight: &[u8], how: &str| key(message.as_bytes(), [(0, weight)].into_iter(), &how, false);
        let keys: Vec<Key> =
            [of("m", b"w", "a"), of("m", b"v", "a"), of("n", b"w", "a"), of("m", b"w", "b"), of("mw", b"", "a")]
                .into_iter()
                .flatten()
                .collect();
        let kept = Kept::new();
        kept.keep(keys[0], &0);
        assert_eq!(kept.find(&keys[0]), None, "nobody asked for that");
        kept.hold();
        kept.hold();
        keys.iter().enumerate().for_each(|(i, k)| kept.keep(*k, &i));
        let found: Vec<Option<usize>> = keys.iter().map(|k| kept.find(k)).collect();
        assert_eq!(found, [None, Some(1), Some(2), Some(3), Some(4)]);
        kept.release();
        assert_eq!(kept.find(&keys[4]), Some(4));
        kept.release();
        assert_eq!(kept.find(&keys[4]), None);
        assert!(of("m", &vec![0; MOST_BYTES], "a").is_none());
        let large = vec![0; MOST_BYTES_WITH_TAPS];
        assert!(key(b"m", [(0, &large[..])].into_iter(), &"a", true).is_none());
        assert!(of("m", &large, "a").is_some());
    }
}
