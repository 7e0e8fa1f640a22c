//! Rules and sets of rules: reading, checking, overriding.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use include_dir::{Dir, include_dir};
use indexmap::IndexMap;

use crate::file;
use crate::ir::DType;
use crate::rewrite::Patch;

use super::action::Replacement;
use super::compile::Pattern;
use super::facts::Facts;
use super::fragments::{Fragments, Wrong, is_name};
use super::matcher::{Bound, Match};
use super::place::{Pos, RuleFault};
use super::predicate::{Predicate, private, values_of};
use super::yaml;

/// The pipelines and rules that come with the program.
static PASSES: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/passes");

/// Why rules could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum RuleError {
    #[error("{file}: {message}")]
    File { file: String, message: String },
    #[error("{file}:{}:{}: {}{message}", pos.line, pos.column, in_rule(rule))]
    At { file: String, rule: Option<String>, pos: Pos, message: String },
    #[error("{file}: {}{message}", in_rule(rule))]
    In { file: String, rule: Option<String>, message: String },
    #[error("rule folder {folder}: {source}", folder = folder.display())]
    Folder { folder: PathBuf, source: std::io::Error },
    #[error("--passes-dir {}: no such folder", folder.display())]
    NoFolder { folder: PathBuf },
    #[error("--passes-dir {}: there are neither rules (rules/*.yaml) nor recipes (recipes/*.yaml) in it", folder.display())]
    NothingIn { folder: PathBuf },
    #[error("there is no rule `{id}`; there are {known}")]
    Unknown { id: String, known: String },
}

impl From<Wrong> for RuleError {
    fn from(w: Wrong) -> RuleError {
        let Wrong { file, rule, pos, message } = w;
        match pos {
            Some(pos) => RuleError::At { file, rule, pos, message },
            None => RuleError::In { file, rule, message },
        }
    }
}

fn in_rule(rule: &Option<String>) -> String {
    rule.as_ref().map_or(String::new(), |r| format!("rule `{r}`: "))
}

/// What a recognised shape stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StandsFor {
    /// `attention`, `layer_norm`, `gelu`, ...
    pub what: String,
    /// Role -> name in the match.
    pub roles: IndexMap<String, String>,
}

/// Why a match was not used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// A `where` predicate or the privacy of inner values fails.
    Precondition(String),
    /// The replacement needs a later opset than the model has.
    Opset { needs: i64, has: i64, op: String },
    /// The replacement cannot say what this match needs.
    Inexpressible(String),
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Refusal::Precondition(m) | Refusal::Inexpressible(m) => f.write_str(m),
            Refusal::Opset { needs, has, op } => write!(f, "{op} needs opset {needs}, the model has {has}"),
        }
    }
}

/// One rule: what a shape looks like, and what follows from it.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    pub id: String,
    pub summary: String,
    /// The file it was read from.
    pub file: String,
    /// The line of its replacement there, from 1.
    line: Option<usize>,
    pub stands_for: Option<StandsFor>,
    pub(super) pattern: Pattern,
    /// For each line of the match the fragment it comes from, `None` for the rule's own, and its line there, from 1.
    pub(super) written: Vec<(Option<String>, usize)>,
    conditions: Vec<Predicate>,
    replacement: Option<Replacement>,
}

impl Rule {
    fn new(raw: &yaml::RawRule, fragments: &Fragments, file: &str, text: &str) -> Result<Rule, RuleError> {
        let id = Some(raw.id.clone());
        let at = |file: &str, part: &str, pos: Option<Pos>, f: &RuleFault| match pos {
            Some(pos) => RuleError::At { file: file.to_owned(), rule: id.clone(), pos, message: f.message.clone() },
            None => RuleError::In { file: file.to_owned(), rule: id.clone(), message: format!("`{part}`, {f}") },
        };
        let matches = fragments.of_rule(&raw.matches)?;
        let in_match = |f: RuleFault| match matches.origin(f.pos) {
            None => at(file, "match", None, &f),
            Some((source, pos)) => at(&source.file, "match", source.place(pos), &f),
        };
        let in_replace = |f: RuleFault| {
            let place = yaml::place_of(text, &raw.id, "replace");
            let place = place.map(|p| Pos { line: p.line + f.pos.line - 1, column: p.column + f.pos.column - 1 });
            at(file, "replace", place, &f)
        };
        let wrong = |message: String| RuleError::In { file: file.to_owned(), rule: id.clone(), message };
        if !is_name(&raw.id) {
            return Err(wrong("an id is made of letters, digits and `-`".to_owned()));
        }
        let pattern = Pattern::new(&matches.text()).map_err(in_match)?;
        let conditions = matches.conditions.iter().map(|c| Predicate::new(c, &pattern));
        let conditions = conditions.collect::<Result<_, _>>().map_err(wrong)?;
        let replacement = raw.replace.as_ref().map(|r| Replacement::new(r, &pattern)).transpose();
        let replacement = replacement.map_err(in_replace)?;
        let roles = || matches.roles.iter().cloned().collect();
        let stands_for = raw.stands_for.clone().map(|what| StandsFor { what, roles: roles() });
        if replacement.is_none() && stands_for.is_none() {
            return Err(wrong("a rule needs `replace`, `stands_for`, or both".to_owned()));
        }
        for name in stands_for.iter().flat_map(|s| s.roles.values()) {
            if pattern.slot_of(name).is_none() {
                return Err(wrong(format!("a role is given to `{name}`, which the match does not bind")));
            }
        }
        Ok(Rule {
            id: raw.id.clone(),
            summary: raw.summary.trim().to_owned(),
            file: file.to_owned(),
            line: yaml::place_of(text, &raw.id, "replace").map(|p| p.line),
            stands_for,
            pattern,
            written: matches.written(),
            conditions,
            replacement,
        })
    }

    /// True if the rule rewrites; false if it only recognises.
    pub fn rewrites(&self) -> bool {
        self.replacement.is_some()
    }

    /// The opset the rule's replacement needs, if it needs more than opset 1.
    pub fn needs_opset(&self) -> Option<i64> {
        self.replacement.as_ref()?.needs.as_ref().map(|n| n.0).filter(|n| *n > 1)
    }

    /// The rule, and where its replacement stands, for messages: `twice (rules/own.yaml, line 7)`.
    pub fn place(&self) -> String {
        let line = self.line.map_or(String::new(), |l| format!(", line {l}"));
        format!("`{}` ({}{line})", self.id, self.file)
    }

    /// The match text, one string a line.
    pub fn match_text(&self) -> &[String] {
        &self.pattern.text
    }

    /// The preconditions, other than the opset. Recognising asks these; rewriting asks for the opset as well.
    pub(super) fn allows(&self, f: &Facts<'_>, m: &Match) -> Result<(), Refusal> {
        self.conditions.iter().try_for_each(|c| c.check(f, m)).map_err(Refusal::Precondition)?;
        self.replacement.iter().try_for_each(|r| r.sized(f, m)).map_err(Refusal::Precondition)?;
        let shared = self.conditions.iter().flat_map(|c| match c {
            Predicate::Shared(names) => names.as_slice(),
            _ => &[],
        });
        let replaced = self.replacement.iter().flat_map(|r| &r.replaced);
        let mut spared = values_of(m, shared.chain(replaced).map(String::as_str));
        // Constants inside a match (Identity and Cast nodes before them) are no inner values: others may use them too.
        spared.extend(m.bindings.iter().filter(|(n, _)| !self.pattern.is_inner(n)).filter_map(|(_, b)| match b {
            Bound::Value(v) => Some(*v),
            Bound::Attr(_) => None,
        }));
        private(f, m, &spared, !self.rewrites()).map_err(Refusal::Precondition)
    }

    /// Does the model's opset have what the replacement makes?
    pub(super) fn opset_allows(&self, f: &Facts<'_>) -> Result<(), Refusal> {
        let has = f.model.opset();
        match self.replacement.as_ref().and_then(|r| r.needs.as_ref()) {
            Some((needs, op)) if *needs > has => Err(Refusal::Opset { needs: *needs, has, op: op.clone() }),
            _ => Ok(()),
        }
    }

    /// The patch that carries a match out; `None` if the rule only recognises.
    ///
    /// # Errors
    /// If the model's opset lacks an operator of the replacement, or an attribute cannot be made of what was bound.
    pub fn patch(&self, f: &Facts<'_>, m: &Match) -> Result<Option<Patch>, Refusal> {
        self.opset_allows(f)?;
        match &self.replacement {
            Some(r) => r.patch(f, m, &self.id).map(Some).map_err(Refusal::Inexpressible),
            None => Ok(None),
        }
    }
}

/// Rules by id, in the order they are tried.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RuleSet {
    rules: IndexMap<String, Rule>,
    /// Those of all files, for the files that are added.
    fragments: Arc<Fragments>,
}

impl RuleSet {
    /// The rules that come with the program.
    ///
    /// # Errors
    /// None in a tested build; a test loads them all.
    pub fn embedded() -> Result<RuleSet, RuleError> {
        let mut set = RuleSet::default();
        let mut files: Vec<_> = PASSES.get_dir("rules").map(|d| d.files().collect()).unwrap_or_default();
        files.sort_by_key(|f| f.path());
        let text = |f: &&include_dir::File<'_>| {
            let name = f.path().display().to_string();
            let text = f.contents_utf8().ok_or_else(|| not_text(&name))?.to_owned();
            Ok((name, text))
        };
        let files: Vec<(String, String)> = files.iter().map(text).collect::<Result<_, RuleError>>()?;
        set.add_texts(&files)?;
        Ok(set)
    }

    /// The shipped rules, and those of a user's passes folder: the files of its folder `rules`, or its own.
    ///
    /// # Errors
    /// If the folder is not there, or one of the rules makes no sense.
    pub fn with_folder(folder: Option<&Path>) -> Result<RuleSet, RuleError> {
        let mut rules = RuleSet::embedded()?;
        if let Some(d) = folder {
            let own = d.join("rules");
            if !d.is_dir() {
                return Err(RuleError::NoFolder { folder: d.to_owned() });
            }
            let found = rules.load_dir(if own.is_dir() { &own } else { d })?;
            if found == 0 && !d.join("recipes").is_dir() {
                return Err(RuleError::NothingIn { folder: d.to_owned() });
            }
        }
        Ok(rules)
    }

    /// Adds the rules of one file's text. A rule of a known id takes the old one's place; fragments are shared with the files
    /// added before.
    ///
    /// # Errors
    /// The first thing wrong with the file; no rule of it is then added.
    pub fn add_text(&mut self, file: &str, text: &str) -> Result<(), RuleError> {
        self.add_texts(&[(file.to_owned(), text.to_owned())])
    }

    /// Adds the rules of several files, each with its name and text: their fragments first, so that each file may use those of
    /// all.
    fn add_texts(&mut self, files: &[(String, String)]) -> Result<(), RuleError> {
        let mut fragments = Fragments::clone(&self.fragments);
        let mut read = Vec::new();
        for (file, text) in files {
            let (rules, own) = yaml::read(file, text)?;
            own.into_iter().try_for_each(|f| fragments.add(f))?;
            read.push((file, text, rules));
        }
        fragments.check()?;
        let mut new: IndexMap<String, Rule> = IndexMap::new();
        for (file, text, rules) in read {
            let mut of_file = BTreeSet::new();
            for raw in &rules {
                let rule = Rule::new(raw, &fragments, file, text)?;
                if !of_file.insert(&raw.id) {
                    let message = "this id is used twice in one file".to_owned();
                    return Err(RuleError::In { file: file.clone(), rule: Some(raw.id.clone()), message });
                }
                new.insert(rule.id.clone(), rule);
            }
        }
        self.rules.extend(new);
        self.fragments = Arc::new(fragments);
        Ok(())
    }

    /// Adds every `*.yaml` and `*.yml` file of a folder, in the order of their names.
    ///
    /// # Errors
    /// The folder or a file cannot be read, or a rule is wrong.
    pub fn load_dir(&mut self, folder: &Path) -> Result<usize, RuleError> {
        let failed = |source| RuleError::Folder { folder: folder.to_owned(), source };
        let entries = std::fs::read_dir(folder).map_err(failed)?;
        let mut files = entries.map(|e| e.map(|e| e.path())).collect::<Result<Vec<_>, _>>().map_err(failed)?;
        files.retain(|p| p.extension().is_some_and(|e| e == "yaml" || e == "yml") && p.is_file());
        files.sort();
        let text = |path: &PathBuf| {
            let name = path.display().to_string();
            let text = file::text(path).map_err(|e| RuleError::File { file: name.clone(), message: e.to_string() })?;
            Ok((name, text))
        };
        let files: Vec<(String, String)> = files.iter().map(text).collect::<Result<_, RuleError>>()?;
        self.add_texts(&files)?;
        Ok(files.len())
    }

    /// The rules in the order they are tried.
    pub fn iter(&self) -> impl Iterator<Item = &Rule> {
        self.rules.values()
    }

    /// How many rules there are.
    pub fn len(&self) -> usize {
        self.rules.len()
    }

    /// True if there is no rule.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// The rule of this id.
    ///
    /// # Errors
    /// If there is none; the message lists those there are.
    pub fn get(&self, id: &str) -> Result<&Rule, RuleError> {
        self.rules.get(id).ok_or_else(|| RuleError::Unknown {
            id: id.to_owned(),
            known: self.rules.keys().map(String::as_str).collect::<Vec<_>>().join(", "),
        })
    }

    /// The rules for a model whose float32 constants were of a narrower type once: they take them for what they meant.
    #[must_use]
    pub fn for_constants_once(&self, ty: DType) -> RuleSet {
        let mut set = self.clone();
        set.rules.values_mut().for_each(|r| r.pattern.once = ty);
        set
    }

    /// Only the rules for which `keep` holds.
    pub fn filtered(&self, keep: impl Fn(&Rule) -> bool) -> RuleSet {
        let rules = self.rules.iter().filter(|(_, r)| keep(r)).map(|(k, r)| (k.clone(), r.clone())).collect();
        RuleSet { rules, fragments: Arc::clone(&self.fragments) }
    }
}

fn not_text(file: &str) -> RuleError {
    RuleError::File { file: file.to_owned(), message: "the file is not UTF-8 text".to_owned() }
}
