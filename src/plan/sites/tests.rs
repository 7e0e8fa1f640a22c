use super::*;
use crate::infer;
use crate::pattern::{RuleSet, attentions};
use crate::text::parse_model;

fn found(text: &str) -> (crate::ir::Model, Sites) {
    let mut m = parse_model(text).unwrap();
    infer::annotate(&mut m);
    let rules = RuleSet::embedded().unwrap();
    let all = attentions(&m, &rules);
    let sites = find(&m, all);
    (m, sites)
}

/// A table that is an output as well stays what it is for the caller.
#[test]
fn tables_of_values_are_constants_however_they_are_repeated() {
    let program = |made: &str, more: &str| {
        let values = (1..=12).map(|i| i.to_string()).collect::<Vec<_>>().join(", ");
        format!(
            r#"<ir_version: 8, opset_import: ["" : 17]>
            g (float[2,3,4] q, float[2,4,3] k, int64[3] size) => (float[2,3,4] y{more})
            <float[1,3,4] table = {{{values}}}, int64[3] twice = {{2, 1, 1}}, int64[3] whole = {{2, 3, 4}}>
            {{ {made} s = MatMul (q, k) w = Softmax <axis = -1> (s) y = MatMul (w, v) }}"#
        )
    };
    for (made, more, table) in [
        ("v = Identity (table)", "", true),
        ("v = Expand (table, size)", "", true),
        ("t = Tile (table, twice) v = Reshape (t, whole)", "", true),
        ("v = Tile (table, twice)", ", float[2,3,4] v", false),
        ("t = Expand (table, size) v = Tanh (t)", "", false),
    ] {
        let (m, s) = found(&program(made, more));
        assert_eq!(s.attentions.len(), 1, "{made}");
        let names: Vec<&str> = s.attended(&m.graph).iter().map(|v| m.graph.name_of(*v)).collect();
        assert_eq!(names, if table { vec!["table"] } else { vec![] }, "{made}");
        let by_role = s.sites.values().any(|s| s.role == Role::Value);
        assert_eq!(by_role, !table, "{made}");
    }
}
