//! Lists of detections, compared by what they found: where a box stands in the list follows from scores that may be all but
//! equal, and says nothing.
//!
//! A box of the float model finds its like in the quantized list if the two overlap by at least half (intersection over
//! union, Everingham et al. 2010) and bear the same label. Boxes of higher score choose first. What is counted are scores,
//! not boxes: the tail of a list is noise. Only pairs enter the figures of error.

use crate::runtime::Array;

/// Overlap from which on two boxes are the same find.
const OVERLAP: f32 = 0.5;

/// Which detections of two lists belong together, and how much of the scores they hold.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Pairs {
    /// Places in the float model's list and in the other, by item of the batch.
    pub pairs: Vec<Vec<(usize, usize)>>,
    /// The scores of those of both lists that have their like, and of all.
    pub matched: (f64, f64),
    /// Axis that the detections lie along.
    pub axis: usize,
}

/// One list: boxes `[n, 4]` or `[items, n, 4]`, and what stands beside them.
struct List<'a> {
    boxes: std::borrow::Cow<'a, [f32]>,
    items: usize,
    len: usize,
    scores: Option<Vec<f32>>,
    labels: Option<Vec<f32>>,
}

impl<'a> List<'a> {
    /// `None` where no output holds boxes.
    fn of(outputs: &[&'a Array]) -> Option<(List<'a>, usize)> {
        let is_boxes = |a: &&&Array| matches!(a.dims(), [_, 4] | [_, _, 4]) && !whole(a);
        let boxes = outputs.iter().find(is_boxes)?;
        let axis = boxes.rank() - 2;
        let (items, len) = (if axis == 1 { boxes.dims()[0] } else { 1 }, boxes.dims()[axis]);
        let flat = |a: &&&Array| a.len() == items * len && a.dims().get(axis) == Some(&len);
        let one =
            |integers: bool| outputs.iter().filter(flat).find(|a| whole(a) == integers).map(|a| a.f32s().to_vec());
        // Scores over classes in place of the best one: its largest, and where that lies.
        let table = outputs.iter().find(|a| {
            !std::ptr::eq::<Array>(**a, *boxes) && a.rank() == axis + 2 && a.dims().get(axis) == Some(&len) && !whole(a)
        });
        let rows = |a: &Array| a.f32s().chunks((*a.dims().last().unwrap_or(&1)).max(1)).map(best).collect::<Vec<_>>();
        let (scores, labels) = match (one(false), table) {
            (None, Some(t)) => {
                let (place, score): (Vec<_>, Vec<_>) = rows(t).into_iter().unzip();
                (Some(score), one(true).or(Some(place)))
            }
            (scores, _) => (scores, one(true)),
        };
        Some((List { boxes: boxes.f32s(), items, len, scores, labels }, axis))
    }

    fn score(&self, at: usize) -> f64 {
        // Logits may be below 0; what is weighed is not.
        self.scores.as_ref().map_or(1.0, |s| if (0.0..=1.0).contains(&s[at]) { s[at].into() } else { sigmoid(s[at]) })
    }

    fn label(&self, at: usize) -> f32 {
        self.labels.as_ref().map_or(0.0, |l| l[at])
    }
}

fn sigmoid(x: f32) -> f64 {
    1.0 / (1.0 + f64::from(-x).exp())
}

/// True for integers.
fn whole(a: &Array) -> bool {
    !a.dtype().is_float()
}

/// Place and size of a row's largest element.
fn best(row: &[f32]) -> (f32, f32) {
    let at = (0..row.len()).fold(0, |best, i| if row[i] > row[best] { i } else { best });
    (at as f32, row.get(at).copied().unwrap_or(0.0))
}

/// Pairs of detections of one sample; `None` where there are no boxes to go by, or not as many items.
pub(super) fn pair(float: &[&Array], quantized: &[&Array]) -> Option<Pairs> {
    let ((f, axis), (q, other)) = (List::of(float)?, List::of(quantized)?);
    if f.items != q.items || axis != other {
        return None;
    }
    // Boxes by their corners, or by centre and size if that makes no sense of some.
    let corners = f.boxes.chunks(4).all(|b| b[2] >= b[0] && b[3] >= b[1]);
    let mut found = Pairs { axis, ..Pairs::default() };
    for item in 0..f.items {
        let (f0, q0) = (item * f.len, item * q.len);
        let mut order: Vec<usize> = (0..f.len).collect();
        order.sort_by(|a, b| f.score(f0 + b).total_cmp(&f.score(f0 + a)));
        let mut free = vec![true; q.len];
        let mut pairs = Vec::new();
        for i in order {
            let a = area_of(&f.boxes[4 * (f0 + i)..][..4], corners);
            let like = (0..q.len)
                .filter(|j| free[*j] && f.label(f0 + i) == q.label(q0 + j))
                .map(|j| (j, overlap(a, area_of(&q.boxes[4 * (q0 + j)..][..4], corners))))
                .filter(|(_, o)| *o >= OVERLAP)
                .reduce(|x, y| if y.1 > x.1 { y } else { x });
            if let Some((j, _)) = like {
                free[j] = false;
                pairs.push((i, j));
            }
        }
        pairs.sort_unstable();
        let both = pairs.iter().map(|(i, j)| f.score(f0 + i) + q.score(q0 + j)).sum::<f64>();
        let all = (0..f.len).map(|i| f.score(f0 + i)).sum::<f64>() + (0..q.len).map(|j| q.score(q0 + j)).sum::<f64>();
        found.matched = (found.matched.0 + both, found.matched.1 + all);
        found.pairs.push(pairs);
    }
    Some(found)
}

impl Pairs {
    /// What is listed beside the boxes, its matched entries alone and in one order: `(float, quantized)`. `None` for what has
    /// no entry for each box.
    pub(super) fn aligned(&self, float: &Array, quantized: &Array) -> Option<(Array, Array)> {
        let one = |a: &Array, of: fn(&(usize, usize)) -> usize| {
            let parts: Vec<Array> = self
                .pairs
                .iter()
                .enumerate()
                .map(|(item, p)| {
                    let list = if self.axis == 1 {
                        a.rows(item..item + 1).ok()?.reshape(&a.dims()[1..]).ok()?
                    } else {
                        a.clone()
                    };
                    list.select(&p.iter().map(of).collect::<Vec<_>>()).ok()
                })
                .collect::<Option<_>>()?;
            Array::concat(&parts).ok()
        };
        Some((one(float, |p| p.0)?, one(quantized, |p| p.1)?))
    }
}

/// `[x0, y0, x1, y1]`.
fn area_of(b: &[f32], corners: bool) -> [f32; 4] {
    if corners {
        return [b[0], b[1], b[2], b[3]];
    }
    [b[0] - b[2] / 2.0, b[1] - b[3] / 2.0, b[0] + b[2] / 2.0, b[1] + b[3] / 2.0]
}

/// Intersection over union; two empty boxes at one place are the same.
fn overlap(a: [f32; 4], b: [f32; 4]) -> f32 {
    if a == b {
        return 1.0;
    }
    let side = |lo: f32, hi: f32| (hi - lo).max(0.0);
    let size = |b: [f32; 4]| side(b[0], b[2]) * side(b[1], b[3]);
    let both = side(a[0].max(b[0]), a[2].min(b[2])) * side(a[1].max(b[1]), a[3].min(b[3]));
    let either = size(a) + size(b) - both;
    if either > 0.0 { both / either } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn boxes(v: &[[f32; 4]]) -> Array {
        Array::new(&[v.len(), 4], v.concat()).unwrap()
    }

    fn row(v: &[f32]) -> Array {
        Array::new(&[v.len()], v.to_vec()).unwrap()
    }

    fn labels(v: &[i64]) -> Array {
        Array::new(&[v.len()], v.to_vec()).unwrap()
    }

    #[test]
    fn lists_in_another_order_and_length_are_matched() {
        let (a, b, c) = ([0., 0., 10., 10.], [20., 20., 30., 40.], [50., 0., 60., 10.]);
        let near = [0., 0., 10., 9.];
        let f = [boxes(&[a, b, c]), row(&[0.9, 0.5, 0.1]), labels(&[1, 2, 3])];
        let q = [boxes(&[b, near]), row(&[0.6, 0.8]), labels(&[2, 1])];
        let p = pair(&f.each_ref(), &q.each_ref()).unwrap();
        assert_eq!(p.pairs, [[(0, 1), (1, 0)]]);
        assert!((p.matched.0 - 2.8).abs() < 1e-6 && (p.matched.1 - 2.9).abs() < 1e-6, "{p:?}");
        let (x, y) = p.aligned(&f[1], &q[1]).unwrap();
        assert_eq!((x.f32s().to_vec(), y.f32s().to_vec()), (vec![0.9, 0.5], vec![0.8, 0.6]));
        // Another label, or a place elsewhere, is another find.
        let other = [boxes(&[a, b, c]), row(&[0.9, 0.5, 0.1]), labels(&[2, 2, 3])];
        assert_eq!(pair(&f.each_ref(), &other.each_ref()).unwrap().pairs, [[(1, 1), (2, 2)]]);
    }

    #[test]
    fn batches_of_queries_have_scores_over_classes() {
        let f = Array::new(&[1, 2, 4], vec![0.5, 0.5, 0.2, 0.2, 0.2, 0.2, 0.1, 0.1]).unwrap();
        let q = Array::new(&[1, 2, 4], vec![0.2, 0.2, 0.1, 0.1, 0.5, 0.5, 0.2, 0.2]).unwrap();
        let fl = Array::new(&[1, 2, 3], vec![5., 0., 0., 0., 0., 4.]).unwrap();
        let ql = Array::new(&[1, 2, 3], vec![0., 0., 4., 5., 0., 0.]).unwrap();
        let p = pair(&[&fl, &f], &[&ql, &q]).unwrap();
        assert_eq!((p.pairs.clone(), p.axis), (vec![vec![(0, 1), (1, 0)]], 1));
        assert!((p.matched.0 - p.matched.1).abs() < 1e-9);
        let (x, y) = p.aligned(&fl, &ql).unwrap();
        assert_eq!(x, y);
        assert_eq!(pair(&[&fl], &[&ql]), None, "no boxes, nothing to go by");
    }

    #[test]
    fn empty_lists_agree() {
        let none = [boxes(&[]), row(&[])];
        let p = pair(&none.each_ref(), &none.each_ref()).unwrap();
        assert_eq!((p.matched, p.pairs.len()), ((0.0, 0.0), 1));
    }
}
