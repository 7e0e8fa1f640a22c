//! Which codes an attention gives to its keys.

use super::CodeShare;
use crate::infer::broadcast_places;
use crate::quant::lis::LisPlan;
use crate::quant::lis::reference::{code_weights, codes};

/// The codes of scores that an attention's weights are computed from.
#[derive(Clone, Debug)]
pub struct CodedAttention {
    /// Name of the score codes in the quantized model, `[.., queries, keys]`, heads before the queries.
    pub codes: String,
    /// Name of what keeps keys, true or false, of sizes that broadcast to those of the codes.
    pub mask: Option<String>,
    /// The arithmetic, which [`codes`] defines: the graph computes the same, bit for bit.
    pub plan: LisPlan,
}

/// How often each code occurs, added up over samples.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally {
    count: Vec<u64>,
    /// Sum over the rows of the share of the row's weights that goes to the code.
    attention: Vec<f64>,
    rows: u64,
}

/// What is the same for all samples.
pub(super) struct Table {
    /// Weights of the codes of each head.
    weights: Vec<Vec<f64>>,
    /// Codes by distance to the row's largest score, of each head, where nothing else of the row counts.
    by_distance: Option<Vec<Vec<usize>>>,
}

impl Table {
    /// `None` where weights have no codes.
    pub(super) fn of(plan: &LisPlan) -> Option<Table> {
        let heads = plan.heads();
        let weights: Vec<Vec<f64>> = (0..heads).map(|h| code_weights(plan, h)).collect::<Option<_>>()?;
        let all: Vec<u8> = (0..=u8::MAX).rev().collect();
        let clip = |h: usize, c: u32| (c as usize).min(weights[h].len() - 1);
        let table = |h: usize| codes(plan, h, &all, None).into_iter().flatten().map(|c| clip(h, c)).collect();
        let by_distance = (!plan.spec().anchor().is_sum()).then(|| (0..heads).map(table).collect());
        Some(Table { weights, by_distance })
    }

    /// Codes of a row; `None` where a key is hidden.
    fn row(&self, plan: &LisPlan, head: usize, row: &[u8], mask: Option<&[bool]>, out: &mut Vec<Option<usize>>) {
        out.clear();
        match &self.by_distance {
            Some(tables) => {
                let kept = |j: usize| mask.is_none_or(|m| m[j]);
                let top = row.iter().enumerate().filter(|(j, _)| kept(*j)).map(|(_, x)| *x).max().unwrap_or(0);
                out.extend(row.iter().enumerate().map(|(j, x)| kept(j).then(|| tables[head][usize::from(top - x)])));
            }
            None => {
                let last = self.weights[head].len() - 1;
                out.extend(codes(plan, head, row, mask).into_iter().map(|c| c.map(|c| (c as usize).min(last))));
            }
        }
    }
}

impl Tally {
    /// Of the score codes of one sample. `None` if these are no rows of codes, or have not the heads of the plan.
    pub(super) fn of(
        plan: &LisPlan,
        table: &Table,
        (x, dims): (&[f32], &[usize]),
        mask: Option<(&[f32], &[usize])>,
    ) -> Option<Tally> {
        let [.., queries, keys] = *dims else { return None };
        let heads = plan.heads();
        let head_axis = dims.len().checked_sub(3).map_or(1, |a| dims[a]);
        if keys == 0 || queries == 0 || (heads > 1 && head_axis != heads) {
            return None;
        }
        let mask = match mask {
            Some((m, of)) => Some(broadcast(m, of, dims)?),
            None => None,
        };
        let n = table.weights.iter().map(Vec::len).max()?;
        let mut t = Tally { count: vec![0; n], attention: vec![0.0; n], rows: 0 };
        let (mut row, mut found, mut of_row) = (Vec::with_capacity(keys), Vec::new(), vec![0u64; n]);
        for (i, x) in x.chunks(keys).enumerate() {
            let head = if heads > 1 { i / queries % heads } else { 0 };
            row.clear();
            row.extend(x.iter().map(|x| *x as u8));
            let mask = mask.as_ref().map(|m| &m[i * keys..][..keys]);
            table.row(plan, head, &row, mask, &mut found);
            of_row.iter_mut().for_each(|n| *n = 0);
            found.iter().flatten().for_each(|c| of_row[*c] += 1);
            let total: f64 = of_row.iter().zip(&table.weights[head]).map(|(n, w)| *n as f64 * w).sum();
            t.rows += u64::from(total > 0.0);
            for (c, n) in of_row.iter().enumerate() {
                t.count[c] += n;
                if total > 0.0 {
                    t.attention[c] += *n as f64 * table.weights[head][c] / total;
                }
            }
        }
        Some(t)
    }

    pub(super) fn add(&mut self, other: &Tally) {
        if self.count.is_empty() {
            *self = other.clone();
            return;
        }
        self.count.iter_mut().zip(&other.count).for_each(|(a, b)| *a += b);
        self.attention.iter_mut().zip(&other.attention).for_each(|(a, b)| *a += b);
        self.rows += other.rows;
    }

    pub(super) fn finish(&self, table: &Table) -> Vec<CodeShare> {
        let weight = |c: usize| {
            let all = table.weights.iter().filter_map(|w| w.get(c));
            all.fold([f64::INFINITY, 0.0], |[a, b], w| [w.min(a), w.max(b)])
        };
        let rows = self.rows.max(1) as f64;
        let one = |(c, (n, a)): (usize, (&u64, &f64))| CodeShare { count: *n, weight: weight(c), attention: a / rows };
        self.count.iter().zip(&self.attention).enumerate().map(one).collect()
    }
}

/// Truth values of sizes `of`, for every element of sizes `to`; `None` if they do not broadcast.
fn broadcast(m: &[f32], of: &[usize], to: &[usize]) -> Option<Vec<bool>> {
    if of.iter().product::<usize>() != m.len() {
        return None;
    }
    let sizes = |dims: &[usize]| dims.iter().map(|n| i64::try_from(*n).ok()).collect::<Option<Vec<i64>>>();
    let places = broadcast_places(&sizes(of)?, &sizes(to)?)?;
    Some(places.into_iter().map(|at| m[at] != 0.0).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::lis::{Anchor, LisFacts, LisSpec};

    fn tally(
        spec: &LisSpec,
        scales: &[f32],
        x: &[f32],
        dims: &[usize],
        mask: Option<(&[f32], &[usize])>,
    ) -> Vec<CodeShare> {
        let plan = LisPlan::new(spec, &LisFacts::of_weights(scales.to_vec(), Some(1)), "test").unwrap();
        let table = Table::of(&plan).unwrap();
        let mut all = Tally::default();
        all.add(&Tally::of(&plan, &table, (x, dims), mask).unwrap());
        all.add(&Tally::of(&plan, &table, (x, dims), mask).unwrap());
        all.finish(&table)
    }

    #[test]
    fn codes_are_counted_with_the_attention_they_get() {
        // A score code is an octave: the codes of the row are 0, 1, 3 and nothing.
        let octave = std::f32::consts::LN_2;
        let found = tally(&LisSpec::default(), &[octave], &[100.0, 99.0, 97.0, 50.0], &[1, 4], None);
        let counts: Vec<u64> = found.iter().map(|c| c.count).collect();
        assert_eq!(counts, [2, 2, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
        assert_eq!((found[0].weight, found[1].weight, found[15].weight), ([1.0; 2], [0.5; 2], [0.0; 2]));
        let shares = [found[0].attention, found[1].attention, found[3].attention, found[15].attention];
        assert_eq!(shares, [8.0 / 13.0, 4.0 / 13.0, 1.0 / 13.0, 0.0]);
    }

    #[test]
    fn hidden_keys_are_not_counted_and_raise_no_maximum() {
        let octave = std::f32::consts::LN_2;
        // Two rows, one mask for both: the first key is hidden.
        let x = [200.0, 7.0, 6.0, 0.0, 9.0, 9.0];
        let found = tally(&LisSpec::default(), &[octave], &x, &[1, 2, 3], Some((&[0.0, 1.0, 1.0], &[3])));
        let counts: Vec<u64> = found.iter().map(|c| c.count).collect();
        assert_eq!((counts[0], counts[1], counts.iter().sum::<u64>()), (6, 2, 8));
        // A row without a key left gives nothing.
        let none = tally(&LisSpec::default(), &[octave], &x, &[2, 3], Some((&[0.0], &[1, 1])));
        assert!(none.iter().all(|c| c.count == 0 && c.attention == 0.0));
    }

    #[test]
    fn heads_have_scales_of_their_own() {
        let octave = std::f32::consts::LN_2;
        let x = [9.0, 8.0, 9.0, 8.0];
        let found = tally(&LisSpec::default(), &[octave, 2.0 * octave], &x, &[1, 2, 1, 2], None);
        let counts: Vec<u64> = found.iter().map(|c| c.count).collect();
        assert_eq!(counts[..3], [4, 2, 2]);
        let spec = LisSpec::default().with_fine(vec![0, 8]).unwrap();
        let found = tally(&spec, &[octave], &x, &[1, 2, 1, 2], None);
        assert_eq!(found[1].weight, [0.5, 0.5f64.sqrt()]);
        let plan = LisPlan::new(&spec, &LisFacts::of_weights(vec![octave], Some(1)), "test").unwrap();
        let table = Table::of(&plan).unwrap();
        assert!(Tally::of(&plan, &table, (&x, &[1, 4, 1, 1]), None).is_none(), "four heads are not two");
    }

    /// By the table and row by row, codes are the same where both are defined; sums are of rows.
    #[test]
    fn sums_are_taken_row_by_row() {
        let spec = LisSpec::new(Anchor::SumTable, 4).unwrap();
        let even = tally(&spec, &[0.1], &[50.0; 8], &[1, 8], None);
        assert_eq!(even[3].count, 16, "each of eight has an eighth: {even:?}");
        assert_eq!(even[3].attention, 1.0);
    }

    #[test]
    fn sizes_broadcast_as_onnx_has_it() {
        assert_eq!(broadcast(&[1.0, 0.0], &[2, 1], &[2, 2]), Some(vec![true, true, false, false]));
        assert_eq!(broadcast(&[1.0, 0.0], &[2], &[2, 2]), Some(vec![true, false, true, false]));
        assert_eq!(broadcast(&[1.0, 0.0], &[2], &[2, 3]), None);
        assert_eq!(broadcast(&[1.0], &[], &[1, 2]), Some(vec![true, true]));
    }
}
