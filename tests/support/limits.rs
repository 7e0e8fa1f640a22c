//! Runs the program and measures what it takes.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

/// How a run ended.
pub struct Run {
    /// `None`: by a signal, or because it took too much.
    pub status: Option<i32>,
    pub out: String,
    pub err: String,
    /// Time on processors: a loaded machine does not change it.
    pub seconds: f64,
    pub peak_mb: u64,
}

/// Seconds and megabytes an input may take, whatever it holds.
pub const SECONDS: f64 = 10.0;
pub const MEGABYTES: u64 = 1000;

/// Runs the program in `dir`; one that takes twice what it may is ended.
pub fn run(dir: &Path, args: &[&str]) -> Run {
    let (out, err) = (dir.join(".stdout"), dir.join(".stderr"));
    let mut child = Command::new(assert_cmd::cargo::cargo_bin("fqvit-opt"))
        .args(args)
        .current_dir(dir)
        .env("COLUMNS", "120")
        .stdin(Stdio::null())
        .stdout(fs::File::create(&out).expect("writable"))
        .stderr(fs::File::create(&err).expect("writable"))
        .spawn()
        .expect("the program is built");
    let proc = format!("/proc/{}", child.id());
    let (mut seconds, mut peak_mb) = (0f64, 0u64);
    let status = loop {
        if let Some(s) = child.try_wait().expect("it can be waited for") {
            break s.code();
        }
        if let Ok(t) = fs::read_to_string(format!("{proc}/status"))
            && let Some(kb) = t.lines().find_map(|l| l.strip_prefix("VmHWM:"))
        {
            peak_mb = peak_mb.max(kb.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap_or(0) / 1000);
        }
        if let Ok(t) = fs::read_to_string(format!("{proc}/stat"))
            && let Some((_, rest)) = t.rsplit_once(')')
        {
            let mut f = rest.split_ascii_whitespace().skip(11).filter_map(|x| x.parse::<f64>().ok());
            seconds = seconds.max((f.next().unwrap_or(0.0) + f.next().unwrap_or(0.0)) / 100.0);
        }
        if seconds > 2.0 * SECONDS || peak_mb > 2 * MEGABYTES {
            child.kill().expect("it can be ended");
            child.wait().expect("it can be waited for");
            break None;
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    };
    let read = |p: &Path| fs::read(p).map_or(String::new(), |b| String::from_utf8_lossy(&b).into_owned());
    let run = Run { status, out: read(&out), err: read(&err), seconds, peak_mb };
    let _ = fs::remove_file(out);
    let _ = fs::remove_file(err);
    run
}

impl Run {
    /// Within the limits, and neither a signal nor a fault of the program.
    #[track_caller]
    pub fn bounded(&self, what: &str) -> &Run {
        let tail: String = self.err.chars().take(600).collect();
        assert!(
            self.status.is_some(),
            "{what}: ended by a signal ({:.1} s, {} MB): {tail}",
            self.seconds,
            self.peak_mb
        );
        assert!(self.seconds <= SECONDS, "{what}: {:.1} s: {tail}", self.seconds);
        assert!(self.peak_mb <= MEGABYTES, "{what}: {} MB: {tail}", self.peak_mb);
        assert!(!self.err.contains("has a fault") && !self.err.contains("panicked"), "{what}: {tail}");
        self
    }

    /// Refused, with one error that says all of `words`.
    #[track_caller]
    pub fn refused(&self, what: &str, words: &[&str]) {
        self.bounded(what);
        assert_eq!(self.status, Some(1), "{what}: {}{}", self.out, self.err);
        assert_eq!(self.err.matches("error: ").count(), 1, "{what}: {}", self.err);
        for w in words {
            assert!(self.err.contains(w), "{what}: no `{w}` in: {}", self.err);
        }
    }

    /// Done.
    #[track_caller]
    pub fn done(&self, what: &str) {
        self.bounded(what);
        assert!(matches!(self.status, Some(0 | 2)), "{what}: {:?} {}", self.status, self.err);
    }
}
