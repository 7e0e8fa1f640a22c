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

#[test]
fn a_norm_of_groups_has_codes_on_both_sides_and_none_within() {
    let program = |norm: &str, end: &str| {
        format!(
            r#"<ir_version: 8, opset_import: ["" : 17]>
            g (float[1,2,4,4] x) => (float[1,2,4,4] y)
            <float[2,2,1,1] w = {{1, 2, 3, 4}}, float[2] ones = {{1, 1}}, float[2] zeros = {{0, 0}}, int64[3] rows = {{1, 2, 16}},
             int64[4] image = {{1, 2, 4, 4}}, float[2,1,1] gain = {{2, 3}}, float[2,1,1] shift = {{4, 5}}>
            {{ c = Conv (x, w) r = Reshape (c, rows) {norm} b = Reshape (n, image) m = Mul (gain, b) a = Add (m, shift)
               {end} y = Conv (t, w) }}"#
        )
    };
    let instance = "n = InstanceNormalization (r, ones, zeros)";
    let sites = |norm: &str, end: &str| {
        let (m, s) = found(&program(norm, end));
        let named = s.sites.values().map(|s| (m.graph.name_of(s.value).to_owned(), s.role.name(), s.axis));
        named.collect::<Vec<_>>()
    };
    let whole = sites(instance, "t = Relu (a)");
    let names: Vec<(&str, &str, i64)> = whole.iter().map(|(n, r, a)| (&n[..], *r, *a)).collect();
    assert_eq!(names[..2], [("x", "input", 1), ("c", "residual", 1)]);
    let inner = |all: &[(String, &str, i64)]| all.iter().any(|(n, ..)| ["n", "b", "m"].contains(&&n[..]));
    assert!(!inner(&whole) && whole.iter().any(|s| s.0 == "a"), "{whole:?}");
    // What others read is a value like any other.
    let read = sites(instance, "t = Add (a, m)");
    assert!(read.iter().any(|s| s.0 == "m"), "{read:?}");
    // Factors and terms after anything else are operators of their own.
    assert!(inner(&sites("n = Relu (r)", "t = Relu (a)")));
}

#[test]
fn a_number_for_each_row_is_no_bias() {
    let layer = |c: &str| {
        let text = format!(
            r#"<ir_version: 8, opset_import: ["" : 17]> g (float[3,2] x) => (y)
            <float[2,3] w = {{1, 2, 3, 4, 5, 6}}, float[2,1] v = {{1, 2}}, float{c}> {{ y = Gemm (x, {w}, c) }}"#,
            w = if c.ends_with("{5}") { "v" } else { "w" }
        );
        let (m, s) = found(&text);
        s.linears.iter().any(|l| m.graph.name_of(l.out) == "y")
    };
    let (one, all) = ("c = {5}", "c = {1, 2, 3}");
    assert!(layer(&format!("[3] {all}")) && layer(&format!("[1,3] {all}")) && !layer(&format!("[3,1] {all}")));
    assert!(layer(&format!("[1] {one}")) && layer(&format!(" {one}")));
}

#[test]
fn attentions_of_too_many_keys_stay_in_float() {
    let program = |keys: &str| {
        format!(
            r#"<ir_version: 8, opset_import: ["" : 17]>
            g (float[1,2,8,4] q, float[1,2,4,{keys}] k, float[1,2,{keys},4] v) => (float[1,2,8,4] y)
            {{ s = MatMul (q, k) w = Softmax <axis = -1> (s) y = MatMul (w, v) }}"#
        )
    };
    for (keys, coded) in [("32768", true), ("n", true), ("32769", false)] {
        let (m, s) = found(&program(keys));
        assert_eq!(s.attentions.len(), usize::from(coded), "{keys}");
        let told = s.islands.iter().any(|(n, why)| m.graph.node(*n).op.is("Softmax") && why.contains("32769 keys"));
        assert_eq!(told, !coded, "{keys}: {:?}", s.islands);
    }
}
