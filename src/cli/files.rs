//! The files of one call: what it reads and what it writes, checked against each other before any work, written together
//! at the end.

use std::path::{Path, PathBuf};

use super::args::{PrepareArgs, ReportArgs};
use super::{Failure, put_bytes};
use crate::calibrate::data::DataOptions;
use crate::file::{self, Batch, Ledger, Pending};
use crate::onnx::Loaded;
use crate::plan::QuantPlan;
use crate::plan::files::numbers_path;
use crate::recipe::Recipe;

/// Read so far and written at the end.
#[derive(Default)]
pub(super) struct Files {
    ledger: Ledger,
    /// Folders whose files are read.
    folders: Vec<(String, PathBuf)>,
    /// Folders that files are written to, made if they are not there.
    made: Vec<(String, PathBuf)>,
    batch: Batch,
    /// Folders that this call made. Declared after the files in them: these go first.
    new: Folders,
    /// What takes standard input, and what goes to standard output.
    stdin: Option<String>,
    stdout: Option<(String, Vec<u8>)>,
}

/// Folders that this call made; those that nothing was put into are removed in the end.
#[derive(Default)]
struct Folders(Vec<PathBuf>);

impl Folders {
    /// Makes a folder and those above it that are not there.
    fn make(&mut self, dir: &Path) -> std::io::Result<()> {
        let missing: Vec<PathBuf> = missing(dir).map(Path::to_owned).collect();
        std::fs::create_dir_all(dir)?;
        self.0.extend(missing.into_iter().rev());
        Ok(())
    }
}

impl Drop for Folders {
    fn drop(&mut self) {
        // One that holds something stays.
        self.0.iter().rev().for_each(|d| drop(std::fs::remove_dir(d)));
    }
}

/// A folder and those above it, as long as there is nothing of that name.
fn missing(dir: &Path) -> impl Iterator<Item = &Path> {
    dir.ancestors().take_while(|p| !p.as_os_str().is_empty() && p.symlink_metadata().is_err())
}

/// Names of the files that standard input and output may be.
const STDIN: &str = "/dev/stdin";
const STDOUT: &str = "/dev/stdout";

fn is_file(path: &str) -> bool {
    std::fs::metadata(path).is_ok_and(|m| m.is_file())
}

/// True for the name of standard input and output.
pub(super) fn is_std(path: &Path) -> bool {
    path == Path::new(file::STDIN)
}

impl Files {
    /// Notes a file that is read; `-` is standard input, which one thing alone can be read from.
    pub fn reads(&mut self, what: &str, path: &Path) -> Result<(), Failure> {
        if !is_std(path) {
            self.ledger.reads(what, path);
            return Ok(());
        }
        // A file that the shell opened is read like any other.
        if is_file(STDIN) {
            self.ledger.reads(what, Path::new(STDIN));
        }
        match self.stdin.replace(what.to_owned()) {
            Some(other) => Err(format!("{what} and {other} both read standard input; give one of them a file").into()),
            None => Ok(()),
        }
    }

    /// Notes calibration or verification data: one file, or all files of a folder.
    pub fn data(&mut self, what: &str, path: Option<&Path>) -> Result<(), Failure> {
        match path {
            Some(p) if p.is_dir() => self.folders.push((what.to_owned(), p.to_owned())),
            Some(p) if !is_std(p) && p.symlink_metadata().is_err() => {
                let kinds = "give a folder of pictures, or an .npy or .npz file";
                return Err(format!("{what} {}: no such file or folder; {kinds}", p.display()).into());
            }
            Some(p) => self.reads(what, p)?,
            None => {}
        }
        Ok(())
    }

    /// Notes where samples for this model come from, and the file beside it that says how pictures become numbers; returns
    /// the options with the model's place in them.
    pub fn samples(&mut self, what: &str, o: &DataOptions, model: &Path) -> Result<DataOptions, Failure> {
        self.data(what, o.calibrate.as_deref())?;
        let o = if is_std(model) { o.clone() } else { o.clone().beside(model) };
        o.files_besides()?.iter().for_each(|(flag, f)| self.ledger.reads(*flag, f));
        Ok(o)
    }

    /// Notes recipe and rules.
    pub fn preparation(&mut self, a: &PrepareArgs) {
        if let Some(f) = Recipe::file(a.recipe(), a.passes_dir.as_deref()) {
            self.ledger.reads("--recipe", &f);
        }
        for d in a.passes_dir.iter().flat_map(|d| [d.clone(), d.join("rules"), d.join("recipes")]) {
            self.folders.push(("--passes-dir".to_owned(), d));
        }
    }

    /// Notes a file that is read if it is there and written if not; true if it is there.
    pub fn either(&mut self, what: &str, path: Option<&Path>) -> Result<bool, Failure> {
        match path {
            Some(p) if !is_std(p) && p.exists() => {
                self.ledger.reads_alone(what, p);
                Ok(true)
            }
            Some(p) => self.writes(what, p).map(|()| false),
            None => Ok(false),
        }
    }

    /// Notes a file that will be written.
    pub fn writes(&mut self, what: &str, path: &Path) -> Result<(), Failure> {
        if is_std(path) {
            let why = "takes the name of a file, and `-` is none (a file of that name is `./-`)";
            return Err(format!("{what} {why}").into());
        }
        self.ledger.writes(what, path);
        Ok(())
    }

    /// Notes a folder that files will be written to.
    pub fn writes_into(&mut self, what: &str, folder: &Path) {
        self.made.push((what.to_owned(), folder.to_owned()));
    }

    /// Notes a file that will be written, or standard output if it is `-`.
    pub fn writes_or_prints(&mut self, what: &str, path: &Path) -> Result<(), Failure> {
        if !is_std(path) {
            return self.writes(what, path);
        }
        if !file::has_output() {
            return Err(format!("{what}: standard output is closed; give it a file, or open standard output").into());
        }
        match self.stdout.replace((what.to_owned(), Vec::new())) {
            Some((other, _)) => {
                Err(format!("{what} and {other} both write to standard output; give one of them a file").into())
            }
            None => Ok(()),
        }
    }

    /// Notes where a plan goes, with the file of its numbers.
    pub fn writes_plan(&mut self, path: &Path) -> Result<(), Failure> {
        self.writes_or_prints("--plan", path)?;
        if !is_std(path) {
            self.ledger.writes("the data file of --plan", &numbers_path(path));
        }
        Ok(())
    }

    /// Notes a plan that is read if it is there and written if not; true if it is there.
    pub fn either_plan(&mut self, path: Option<&Path>) -> Result<bool, Failure> {
        let there = self.either("--plan", path)?;
        match path.map(numbers_path) {
            Some(numbers) if there => self.ledger.reads("the data file of --plan", &numbers),
            Some(numbers) => self.ledger.writes("the data file of --plan", &numbers),
            None => {}
        }
        Ok(there)
    }

    /// Holds a plan ready: two files, or all of it in one text for standard output.
    pub fn write_plan(&mut self, path: &Path, plan: &QuantPlan) -> Result<(), Failure> {
        if is_std(path) {
            return self.write(path, plan.to_yaml().as_bytes());
        }
        let f = plan.to_files();
        self.write(path, f.text.as_bytes())?;
        f.numbers.iter().try_for_each(|n| self.write(&numbers_path(path), n))
    }

    /// Notes where the report goes.
    pub fn report(&mut self, a: &ReportArgs) -> Result<(), Failure> {
        a.json.iter().try_for_each(|p| self.writes_or_prints("--json", p))?;
        a.html.iter().try_for_each(|p| self.writes_or_prints("--html", p))
    }

    /// Notes where a model goes, with the data file that a large one gets.
    pub fn model(&mut self, path: &Path) -> Result<(), Failure> {
        self.writes_or_prints("-o", path)?;
        if !is_std(path) {
            self.ledger.writes("the data file of -o", &crate::onnx::data_path(path));
        }
        Ok(())
    }

    /// Refuses a call that would destroy one of its own files, or could not write one, before minutes of work. Nothing is made
    /// yet: whatever refuses the call later leaves the folders as they were.
    pub fn check(&self) -> Result<(), Failure> {
        self.distinct()?;
        for (what, dir) in &self.made {
            let why = |e: String| format!("{what}: the folder {} cannot be made: {e}", dir.display());
            match missing(dir).last() {
                // What may hold a file of that name may hold a folder.
                Some(first) => Pending::create(first).map(drop).map_err(|e| why(e.to_string()))?,
                None if !dir.is_dir() => return Err(why("there is a file of that name".to_owned()).into()),
                None => {}
            }
        }
        // The data file is only written for large models.
        let named = self.ledger.written().filter(|(what, _)| !what.starts_with("the data file")).map(|(_, p)| p);
        let is_to_come = |p: &Path| self.made.iter().any(|(_, dir)| p.parent() == Some(dir) && !dir.exists());
        Ok(named.filter(|p| !is_to_come(p)).try_for_each(|p| Pending::create(p).map(drop))?)
    }

    /// Notes the files that belong to a model, and checks again.
    pub fn loaded(&mut self, what: &str, l: &Loaded) -> Result<(), Failure> {
        for (f, _) in l.files.iter().skip(1) {
            self.ledger.reads(format!("the data file of {what}"), f);
        }
        self.distinct()
    }

    fn distinct(&self) -> Result<(), Failure> {
        let mut all = self.ledger.clone();
        if let Some((what, _)) = self.stdout.as_ref().filter(|_| is_file(STDOUT)) {
            all.writes(what.clone(), Path::new(STDOUT));
        }
        // A file that is not there yet is none that a folder holds.
        if all.written().any(|(_, p)| p.exists()) {
            for (what, dir) in &self.folders {
                all.reads_folder(what, dir);
            }
        }
        Ok(all.check()?)
    }

    /// True if standard output carries something else than words for people.
    pub fn stdout_is_taken(&self) -> bool {
        self.stdout.is_some()
    }

    /// Files to come, for those who write them.
    pub fn batch(&mut self) -> Result<&mut Batch, Failure> {
        for (what, dir) in std::mem::take(&mut self.made) {
            let why = |e| format!("{what}: the folder {} cannot be made: {e}", dir.display());
            self.new.make(&dir).map_err(why)?;
        }
        Ok(&mut self.batch)
    }

    /// Where bytes for standard output go, if `path` is that.
    pub fn printed(&mut self, path: &Path) -> Option<&mut Vec<u8>> {
        self.stdout.as_mut().filter(|_| is_std(path)).map(|(_, b)| b)
    }

    /// Holds a file ready.
    pub fn write(&mut self, path: &Path, bytes: &[u8]) -> Result<(), Failure> {
        match self.printed(path) {
            Some(b) => b.extend(bytes),
            None => self.batch()?.write(path, bytes)?,
        }
        Ok(())
    }

    /// Puts all files in their places, then prints what standard output was promised.
    pub fn commit(self) -> Result<(), Failure> {
        self.batch.commit()?;
        if let Some((what, bytes)) = self.stdout {
            put_bytes(&bytes, what == "-o");
        }
        Ok(())
    }
}
