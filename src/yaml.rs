//! YAML, as recipes, rules and plans are written. The only file that names the crate behind it: `yaml_serde`, the successor
//! of `serde_yaml` that the YAML organisation keeps up. Its errors say line and column.

pub use yaml_serde::{Value, from_str, to_string};
