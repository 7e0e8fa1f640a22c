//! What can be said on the command line about the precision of parts.

use std::str::FromStr;

use clap::{Args, ValueEnum};

use crate::compile::keep::Keep;
use crate::compile::mixed::Goal;
use crate::plan::parts::By;
use crate::plan::precision::Precision;

/// A number that can be compared with.
pub(super) fn number(s: &str) -> Result<f64, String> {
    s.parse().ok().filter(|x: &f64| x.is_finite()).ok_or_else(|| "give a finite number".to_owned())
}

/// What stays in float. Both flags measure on calibration samples that are held back.
#[derive(Debug, Args)]
#[command(next_help_heading = "Parts in float")]
pub struct KeepArgs {
    /// Leave parts in float: the worst N, or parts by name (`head,block 3 mlp`; `fqvit-opt sensitivity` lists them)
    #[arg(long, value_name = "N|NAMES")]
    pub keep_float: Option<KeepFloat>,
    /// Reach this SQNR with as little as possible: parts get their values in 16 bits, or stay in float, those first that gain
    /// most for what it costs. With --target-size the smallest file that reaches it
    #[arg(long, value_name = "DB", conflicts_with = "keep_float", value_parser = number, allow_negative_numbers = true)]
    pub target_sqnr: Option<f64>,
    /// The most precise that --target-sqnr and --target-size may make a part [default: float; recipe with a size alone, which
    /// keeps the file as fast as the recipe makes it]
    #[arg(long, value_enum, value_name = "PRECISION", conflicts_with = "keep_float")]
    pub up_to: Option<UpToArg>,
    /// What a part is: attention and MLP of each block, whole blocks, one kind of value in all blocks, values of
    /// attention and MLP and the weights of each of their layers, or every value and weight on its own [default: part]
    #[arg(long, value_enum, value_name = "BY")]
    pub by: Option<By>,
}

impl KeepArgs {
    /// Refuses what is said of parts that nobody asked for. `sized`: whether a size is asked for; `divided`: whether something else
    /// needs parts.
    pub fn check(&self, sized: bool, divided: bool) -> Result<(), String> {
        let searches = sized || self.target_sqnr.is_some();
        if self.up_to.is_some() && !searches {
            return Err("--up-to says how far --target-sqnr or --target-size may go; give one of these".to_owned());
        }
        if self.by.is_some() && !searches && !divided {
            let needs = "--keep-float, --target-sqnr, --target-size or --accept-command";
            return Err(format!("--by says what a part is, and nothing here asks for parts; give {needs} with it"));
        }
        Ok(())
    }

    /// What a part is.
    pub(super) fn by(&self) -> By {
        self.by.unwrap_or_default()
    }

    /// What the parts shall reach together, but for a size.
    pub(super) fn goal(&self) -> Goal {
        Goal { sqnr_db: self.target_sqnr, size: None, up_to: self.up_to.map(Into::into) }
    }

    /// What is asked for, if anything is.
    pub fn wanted(&self) -> Option<Keep> {
        let by = self.by();
        match (&self.keep_float, self.target_sqnr) {
            (Some(KeepFloat::Worst(n)), _) => Some(Keep::Worst(*n, by)),
            (Some(KeepFloat::Names(names)), _) => Some(Keep::Names(names.clone(), by)),
            (None, None) => None,
            (None, Some(_)) => Some(Keep::Reach(self.goal(), by)),
        }
    }
}

/// Parts to keep in float.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeepFloat {
    Worst(usize),
    Names(Vec<String>),
}

impl FromStr for KeepFloat {
    type Err = String;

    fn from_str(s: &str) -> Result<KeepFloat, String> {
        if let Ok(n) = s.trim().parse() {
            return Ok(KeepFloat::Worst(n));
        }
        let names: Vec<String> = s.split(',').map(|n| n.trim().to_owned()).filter(|n| !n.is_empty()).collect();
        if names.is_empty() { Err("give a number or names".into()) } else { Ok(KeepFloat::Names(names)) }
    }
}

/// [`Precision`] as a flag's value: the most that a part may get.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum UpToArg {
    /// No part gets more than the recipe gives it
    Recipe,
    /// Values in 16 bits, and nothing in float
    #[value(name = "16-bit")]
    Wide,
    Float,
}

impl From<UpToArg> for Precision {
    fn from(p: UpToArg) -> Precision {
        match p {
            UpToArg::Recipe => Precision::Recipe,
            UpToArg::Wide => Precision::Wide,
            UpToArg::Float => Precision::Float,
        }
    }
}
