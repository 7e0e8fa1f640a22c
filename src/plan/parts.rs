//! Parts of a model, and plans for some of them only.
//!
//! Every decision of a plan belongs to one part: the embedding, the attention or the MLP of a block, the head; or, seen
//! across blocks, to one kind of value. A plan without the decisions of a part leaves that part in float.

use std::collections::{BTreeMap, BTreeSet};

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

use super::scores::score_value;
use super::sites::{Linear, Sites, trace_back};
use super::{Between, Island, QuantPlan, Role};
use crate::ir::{Graph, NodeId, ValueId};

/// How a model is divided.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum By {
    /// Embedding, attention and MLP of each block, head
    #[default]
    Part,
    /// Embedding, blocks, head
    Block,
    /// Roles of activations, weights, attention weights, constants
    Role,
    /// As `part`, but the weights of layers that read one value are a part of their own
    Layer,
    /// Every decision on its own, by the name of its value
    Site,
}

impl By {
    /// Every way to divide a plan.
    pub const ALL: [By; 5] = [By::Part, By::Block, By::Role, By::Layer, By::Site];

    /// What options and messages call it.
    pub fn name(self) -> &'static str {
        match self {
            By::Part => "part",
            By::Block => "block",
            By::Role => "role",
            By::Layer => "layer",
            By::Site => "site",
        }
    }
}

/// Decisions that are taken or left together, by the names the plan uses.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Part {
    pub name: String,
    /// Values of `activations` entries.
    pub activations: BTreeSet<String>,
    /// Values of `constants` entries.
    pub constants: BTreeSet<String>,
    /// Outputs of `layers` entries.
    pub layers: BTreeSet<String>,
    /// Outputs of `attentions` entries.
    pub attentions: BTreeSet<String>,
}

impl Part {
    fn absorb(&mut self, other: &Part) {
        self.activations.extend(other.activations.iter().cloned());
        self.constants.extend(other.constants.iter().cloned());
        self.layers.extend(other.layers.iter().cloned());
        self.attentions.extend(other.attentions.iter().cloned());
    }

    /// Number of decisions.
    pub fn len(&self) -> usize {
        self.activations.len() + self.constants.len() + self.layers.len() + self.attentions.len()
    }

    /// True if nothing of the plan belongs to it.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Several parts as one.
    pub fn union<'p>(parts: impl IntoIterator<Item = &'p Part>) -> Part {
        parts.into_iter().fold(Part::default(), |mut all, p| {
            all.absorb(p);
            all
        })
    }
}

/// Divides a plan; together the parts hold every decision once, in the order of the model.
pub fn divide(g: &Graph, sites: &Sites, plan: &QuantPlan, by: By) -> Vec<Part> {
    let map = Map::of(g, sites);
    let home = |name: &str| g.find(name).map_or(Home::EMBEDDING, |v| map.home(v));
    let scores: BTreeMap<&str, usize> =
        sites.attentions.iter().enumerate().map(|(i, a)| (g.name_of(score_value(g, a)), i)).collect();
    let core = |i: usize| Home { block: map.rank[i] + 1, mlp: false };
    let mut parts: BTreeMap<Key, Part> = BTreeMap::new();
    let weights = if by == By::Layer { weights(g, sites, &map) } else { BTreeMap::new() };
    let named = |home: Home, role: &str, value: &str| -> (Key, String) {
        let key = match by {
            By::Part => (home.block, home.mlp, String::new()),
            By::Block => (home.block, false, String::new()),
            By::Role => (0, false, role.to_owned()),
            By::Layer => {
                (home.block, home.mlp, weights.get(value).filter(|_| role == "weights").cloned().unwrap_or_default())
            }
            By::Site => (home.block, home.mlp, format!("{value} {role}")),
        };
        let name = match by {
            By::Part => home.name(map.rank.len(), true),
            By::Block => home.name(map.rank.len(), false),
            By::Role => role.to_owned(),
            By::Layer if role == "weights" => weights.get(value).cloned().unwrap_or_default(),
            By::Layer => home.name(map.rank.len(), true),
            By::Site if role == "weights" => format!("{value} (weights)"),
            By::Site => value.to_owned(),
        };
        (key, name)
    };
    let mut at = |home: Home, role: &str, set: fn(&mut Part) -> &mut BTreeSet<String>, value: &str| {
        let (key, name) = named(home, role, value);
        set(parts.entry(key).or_insert_with(|| Part { name, ..Part::default() })).insert(value.to_owned());
    };
    for a in &plan.activations {
        let home = scores.get(a.value.as_str()).map_or_else(|| home(&a.value), |i| core(*i));
        let role = if matches!(a.role, Role::Scores | Role::Probs) { "attention" } else { a.role.name() };
        at(home, role, |p| &mut p.activations, &a.value);
    }
    let readers: BTreeMap<&str, ValueId> = sites
        .constants
        .iter()
        .filter_map(|(n, slot)| Some((g.name_of(g.node(*n).input(*slot)?), g.node(*n).out()?)))
        .collect();
    for c in &plan.constants {
        let home = readers.get(c.value.as_str()).map_or(Home::EMBEDDING, |v| map.home(*v));
        at(home, "constants", |p| &mut p.constants, &c.value);
    }
    for l in &plan.layers {
        at(home(&l.output), "weights", |p| &mut p.layers, &l.output);
    }
    for a in &plan.attentions {
        let i = sites.attentions.iter().position(|x| g.name_of(x.out) == a.output);
        at(i.map_or(Home::EMBEDDING, core), "attention", |p| &mut p.attentions, &a.output);
    }
    parts.into_values().collect()
}

type Key = (usize, bool, String);

/// What the weights of each layer are called, by its output: layers that read one value have one name.
fn weights<'g>(g: &'g Graph, sites: &Sites, map: &Map) -> BTreeMap<&'g str, String> {
    let mut seen: BTreeMap<String, Vec<ValueId>> = BTreeMap::new();
    let of = |l: &Linear| -> (&'g str, String) {
        let home = map.home(l.out).name(map.rank.len(), true);
        let (x, of_home) = (trace_back(g, l.x), seen.entry(home.clone()).or_default());
        let at = of_home.iter().position(|v| *v == x).unwrap_or_else(|| {
            of_home.push(x);
            of_home.len() - 1
        });
        (g.name_of(l.out), format!("{home} weights {}", at + 1))
    };
    sites.linears.iter().map(of).collect()
}

/// Names that a part may have, known before there is a plan: of homes in the model, of roles, and of values that may be
/// quantized or are made by layers and attentions.
pub fn possible(g: &Graph, sites: &Sites) -> BTreeSet<String> {
    let map = Map::of(g, sites);
    let blocks = map.rank.len();
    let homes = (0..=blocks + 1).flat_map(|block| [false, true].map(|mlp| Home { block, mlp }));
    let mut names: BTreeSet<String> = homes.flat_map(|h| [true, false].map(|halves| h.name(blocks, halves))).collect();
    names.extend(["attention", "weights", "constants"].map(str::to_owned));
    names.extend(weights(g, sites, &map).into_values());
    names.extend(sites.sites.values().map(|s| s.role.name().to_owned()));
    let made = sites.linears.iter().map(|l| l.out).chain(sites.attentions.iter().map(|a| a.out));
    let scored = sites.attentions.iter().map(|a| score_value(g, a));
    let read = sites.constants.iter().filter_map(|(n, slot)| g.node(*n).input(*slot));
    for v in sites.sites.values().map(|s| s.value).chain(made).chain(scored).chain(read) {
        names.insert(g.name_of(v).to_owned());
        names.insert(format!("{} (weights)", g.name_of(v)));
    }
    names
}

/// Finds parts by the names people give: of any division, or of single values, layers and attentions of the plan.
///
/// # Errors
/// The first name that means nothing.
pub fn named(g: &Graph, sites: &Sites, plan: &QuantPlan, names: &[String]) -> Result<Vec<Part>, String> {
    let all: Vec<Part> = By::ALL.iter().flat_map(|by| divide(g, sites, plan, *by)).collect();
    let one = |name: &String| {
        if let Some(p) = all.iter().find(|p| p.name == *name) {
            return Ok(p.clone());
        }
        let only = |set: &BTreeSet<String>| set.get(name).cloned().into_iter().collect::<BTreeSet<String>>();
        let whole = Part::union(&all);
        let p = Part {
            name: name.clone(),
            activations: only(&whole.activations),
            constants: only(&whole.constants),
            layers: only(&whole.layers),
            attentions: only(&whole.attentions),
        };
        if p.is_empty() { Err(name.clone()) } else { Ok(p) }
    };
    names.iter().map(one).collect()
}

impl QuantPlan {
    /// The decisions of `part` and no others.
    pub fn only(&self, g: &Graph, sites: &Sites, part: &Part) -> QuantPlan {
        self.keeping(g, sites, &|set: Names, name: &str| set(part).contains(name))
    }

    /// All decisions but those of `part`, which stays in float. Each kept part is named among the islands with `reason`.
    pub fn without(&self, g: &Graph, sites: &Sites, part: &Part) -> QuantPlan {
        self.keeping(g, sites, &|set: Names, name: &str| !set(part).contains(name))
    }

    /// Writes down that a part was left in float.
    pub fn note_island(&mut self, part: &Part, reason: String) {
        self.islands.push(Island { node: part.name.clone(), op: Island::PART.into(), reason });
    }

    /// What stays must still fit together: an attention that stays keeps the codes of its scores and values, a fold stays
    /// where its value or a layer that reads it does, and an equalisation where one of its layers or values does.
    fn keeping(&self, g: &Graph, sites: &Sites, keep: &dyn Fn(Names, &str) -> bool) -> QuantPlan {
        let mut p = self.clone();
        p.attentions.retain(|a| keep(|p| &p.attentions, &a.output));
        let needed: BTreeSet<&str> = sites
            .attentions
            .iter()
            .filter(|a| p.attentions.iter().any(|x| x.output == g.name_of(a.out)))
            .flat_map(|a| {
                let values = a.v.map(|v| g.name_of(trace_back(g, v)));
                [Some(g.name_of(score_value(g, a))), values].into_iter().flatten()
            })
            .collect();
        p.activations.retain(|a| keep(|p| &p.activations, &a.value) || needed.contains(a.value.as_str()));
        let tables = sites.attended(g);
        let operand = |name: &str| !p.attentions.is_empty() && g.find(name).is_some_and(|v| tables.contains(&v));
        p.constants.retain(|c| keep(|p| &p.constants, &c.value) || operand(&c.value));
        p.layers.retain(|l| keep(|p| &p.layers, &l.output));
        let layers: BTreeSet<&str> = p.layers.iter().map(|l| l.output.as_str()).collect();
        let read: BTreeSet<&str> =
            sites.linears.iter().filter(|l| layers.contains(g.name_of(l.out))).map(|l| g.name_of(l.x)).collect();
        let values: BTreeSet<&str> = p.activations.iter().map(|a| a.value.as_str()).collect();
        p.folds.retain(|f| read.contains(f.value.as_str()) || values.contains(f.value.as_str()));
        let met = |name: &str| {
            let l = sites.linears.iter().find(|l| g.name_of(l.out) == name);
            l.is_some_and(|l| values.contains(g.name_of(trace_back(g, l.x))))
        };
        p.equalisations.retain(|e| {
            let ends = [e.divided.as_str(), e.multiplied.as_str()];
            let coded = ends.iter().any(|n| layers.contains(n) || values.contains(n));
            coded || (e.between == Between::ValuesProjection && met(&e.multiplied))
        });
        p
    }
}

/// One of the sets of names a part has.
type Names = fn(&Part) -> &BTreeSet<String>;

/// Where in the model a value is: block 0 is the embedding, block `n + 1` after `n` blocks the head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Home {
    block: usize,
    mlp: bool,
}

impl Home {
    const EMBEDDING: Home = Home { block: 0, mlp: false };

    fn name(self, blocks: usize, halves: bool) -> String {
        match self.block {
            0 => "embedding".to_owned(),
            b if b > blocks => "head".to_owned(),
            b if !halves => format!("block {}", b - 1),
            b => format!("block {} {}", b - 1, if self.mlp { "mlp" } else { "attention" }),
        }
    }
}

/// What leads where.
struct Map {
    /// Place of each attention in the order of the model.
    rank: Vec<usize>,
    /// Number of the last attention upstream, from 1; 0 before the first.
    depth: IndexMap<ValueId, usize>,
    /// Values that nothing but this attention reads, however far down.
    leads: IndexMap<ValueId, usize>,
    /// Values between an attention and the sum that takes it back into the residual stream, that sum included.
    tail: IndexMap<ValueId, usize>,
    head: BTreeSet<ValueId>,
}

impl Map {
    fn of(g: &Graph, sites: &Sites) -> Map {
        let order = g.schedule();
        let place: BTreeMap<NodeId, usize> = order.iter().enumerate().map(|(i, n)| (*n, i)).collect();
        let mut by_place: Vec<usize> = (0..sites.attentions.len()).collect();
        by_place.sort_by_key(|i| g.producer(sites.attentions[*i].out).and_then(|n| place.get(&n)).copied());
        let mut rank = vec![0; by_place.len()];
        by_place.iter().enumerate().for_each(|(r, i)| rank[*i] = r);
        let mut core: BTreeMap<NodeId, usize> = BTreeMap::new();
        for (i, a) in sites.attentions.iter().enumerate() {
            for n in a.nodes() {
                core.insert(n, rank[i]);
            }
        }
        let ends: BTreeMap<ValueId, usize> =
            sites.attentions.iter().enumerate().map(|(i, a)| (a.out, rank[i])).collect();
        let varies = |n: NodeId| -> Vec<ValueId> {
            g.node(n).inputs.iter().flatten().copied().filter(|v| g.constant(*v).is_none()).collect()
        };
        let mut m =
            Map { rank, depth: IndexMap::new(), leads: IndexMap::new(), tail: IndexMap::new(), head: BTreeSet::new() };
        for n in &order {
            let inputs = varies(*n);
            let d = inputs.iter().filter_map(|v| m.depth.get(v)).max().copied().unwrap_or(0);
            // A sum is the end of the tail; its result is not on it any more, so that what reads it is not either.
            let tail = inputs.iter().find_map(|v| m.tail.get(v).filter(|_| !sum_of_two(g, *v, &varies)).copied());
            for v in g.node(*n).outputs.iter().flatten() {
                m.depth.insert(*v, ends.get(v).map_or(d, |r| d.max(r + 1)));
                if let Some(r) = ends.get(v).copied().or(tail) {
                    m.tail.insert(*v, r);
                }
            }
        }
        for n in order.iter().rev() {
            for v in g.node(*n).outputs.iter().flatten().copied() {
                let mut to: BTreeSet<usize> = BTreeSet::new();
                let mut all = !g.is_output(v);
                // Asking for a shape reads no element.
                for (user, _) in g.uses(v).into_iter().filter(|(u, _)| !g.node(*u).op.is("Shape")) {
                    if let Some(r) = core.get(&user) {
                        to.insert(*r);
                        continue;
                    }
                    for o in g.node(user).outputs.iter().flatten() {
                        match m.leads.get(o) {
                            Some(r) => to.extend([*r]),
                            None => all = false,
                        }
                    }
                }
                if all && to.len() == 1 {
                    m.leads.extend(to.pop_first().map(|r| (v, r)));
                }
            }
        }
        // The last sum of a value and what was made from it ends the last block.
        let ancestor = |a: ValueId, of: ValueId| {
            let (mut seen, mut todo) = (BTreeSet::new(), vec![of]);
            while let Some(v) = todo.pop() {
                if v == a {
                    return true;
                }
                if seen.insert(v) {
                    todo.extend(g.producer(v).map(varies).unwrap_or_default());
                }
            }
            false
        };
        let last = order.iter().rev().find(|n| {
            let x = varies(**n);
            g.node(**n).op.is("Add") && x.len() == 2 && (ancestor(x[0], x[1]) || ancestor(x[1], x[0]))
        });
        if let Some(sum) = last.and_then(|n| g.node(*n).out()) {
            for n in &order {
                if varies(*n).iter().any(|v| *v == sum || m.head.contains(v)) {
                    m.head.extend(g.node(*n).outputs.iter().flatten());
                }
            }
        }
        m
    }

    fn home(&self, v: ValueId) -> Home {
        if let Some(r) = self.leads.get(&v).or(self.tail.get(&v)) {
            return Home { block: r + 1, mlp: false };
        }
        if self.head.contains(&v) {
            return Home { block: self.rank.len() + 1, mlp: false };
        }
        match self.depth.get(&v) {
            Some(d) if *d > 0 => Home { block: *d, mlp: true },
            _ => Home::EMBEDDING,
        }
    }
}

/// True for a value that an elementwise operator makes of two that vary.
fn sum_of_two(g: &Graph, v: ValueId, varies: &dyn Fn(NodeId) -> Vec<ValueId>) -> bool {
    g.producer(v).is_some_and(|n| g.node(n).op.is("Add") && varies(n).len() == 2)
}
