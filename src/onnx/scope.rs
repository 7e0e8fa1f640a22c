//! Names in nested graphs: what a body reads from outside, and how that is renamed.

use std::collections::{BTreeMap, BTreeSet};

use super::proto;

/// Names a body defines itself.
fn defined(g: &proto::GraphProto) -> BTreeSet<&str> {
    let declared = g.input.iter().filter_map(|v| v.name.as_deref());
    let inits = g.initializer.iter().filter_map(|t| t.name.as_deref());
    let sparse = g.sparse_initializer.iter().filter_map(|s| s.values.as_ref()?.name.as_deref());
    let made = g.node.iter().flat_map(|n| n.output.iter().map(String::as_str));
    declared.chain(inits).chain(sparse).chain(made).collect()
}

fn bodies(n: &proto::NodeProto) -> impl Iterator<Item = &proto::GraphProto> {
    n.attribute.iter().flat_map(|a| a.g.iter().chain(&a.graphs))
}

/// Names that a body and the bodies inside it define.
pub(super) fn all_defined(g: &proto::GraphProto, out: &mut BTreeSet<String>) {
    out.extend(defined(g).into_iter().map(str::to_owned));
    g.node.iter().flat_map(bodies).for_each(|b| all_defined(b, out));
}

/// Names that a body, or a body inside it, reads but does not define; appended in order of first reading.
pub(super) fn free_names(g: &proto::GraphProto, out: &mut Vec<String>) {
    let mut seen: BTreeSet<String> = out.iter().cloned().collect();
    collect(g, &mut Vec::new(), &mut seen, out);
}

fn collect<'g>(
    g: &'g proto::GraphProto,
    scopes: &mut Vec<BTreeSet<&'g str>>,
    seen: &mut BTreeSet<String>,
    out: &mut Vec<String>,
) {
    scopes.push(defined(g));
    let mut read = |name: &str, scopes: &[BTreeSet<&str>]| {
        if !name.is_empty() && !scopes.iter().any(|s| s.contains(name)) && seen.insert(name.to_owned()) {
            out.push(name.to_owned());
        }
    };
    for n in &g.node {
        n.input.iter().for_each(|name| read(name, scopes));
    }
    g.output.iter().filter_map(|o| o.name.as_deref()).for_each(|name| read(name, scopes));
    for n in &g.node {
        for b in bodies(n) {
            collect(b, scopes, seen, out);
        }
    }
    scopes.pop();
}

/// Renames what a body reads from outside. What the body defines under one of the new names gets another one.
pub(super) fn rename_free(g: &mut proto::GraphProto, names: &BTreeMap<String, String>) {
    let own: BTreeSet<String> = defined(g).into_iter().map(str::to_owned).collect();
    let mut names: BTreeMap<String, String> =
        names.iter().filter(|(k, _)| !own.contains(*k)).map(|(k, v)| (k.clone(), v.clone())).collect();
    let mut free = Vec::new();
    free_names(g, &mut free);
    let free: BTreeSet<String> = free.into_iter().collect();
    names.retain(|k, _| free.contains(k));
    if names.is_empty() {
        return;
    }
    let mut taken: BTreeSet<String> = own.iter().chain(names.values()).chain(&free).cloned().collect();
    let given: Vec<String> = names.values().filter(|n| own.contains(*n)).cloned().collect();
    for name in given {
        let mut aside = format!("{name}_inner");
        while !taken.insert(aside.clone()) {
            aside.push('_');
        }
        names.insert(name, aside);
    }
    let swap = |s: &mut String| {
        if let Some(n) = names.get(s) {
            s.clone_from(n);
        }
    };
    for n in &mut g.node {
        n.input.iter_mut().chain(&mut n.output).for_each(swap);
        for a in &mut n.attribute {
            a.g.iter_mut().chain(&mut a.graphs).for_each(|b| rename_free(b, &names));
        }
    }
    let declared = g.input.iter_mut().chain(&mut g.output).chain(&mut g.value_info).filter_map(|v| v.name.as_mut());
    let sparse = g.sparse_initializer.iter_mut().filter_map(|s| s.values.as_mut()?.name.as_mut());
    let inits = g.initializer.iter_mut().filter_map(|t| t.name.as_mut());
    declared.chain(sparse).chain(inits).for_each(swap);
}
