//! Symbolic sizes: polynomials with integer coefficients over atoms that stand for sizes at run time.
//!
//! One canonical form for one polynomial, so that equality of sizes is equality of values: two sizes that compare equal
//! are equal whatever the run-time sizes are. The reverse does not hold (`floor` and `max` have no form here), and
//! every operation that leaves the ring gives `None`, which callers turn into a fresh atom.

use std::sync::Arc;

/// A size that is only known at run time: a named dimension, or an unnamed one of some value. At least 1 (see the module's
/// assumptions).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Atom(pub(crate) u32);

/// A product of atoms, sorted; empty for the constant term.
type Mono = Vec<Atom>;

/// Polynomials with more terms or factors than this are given up: nothing in a real model needs them.
const MAX_TERMS: usize = 12;
const MAX_DEGREE: usize = 6;

/// A size, or an element of an integer tensor: a number, or a polynomial over run-time sizes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Size {
    Known(i64),
    /// Never constant; terms sorted, coefficients not 0.
    Poly(Arc<[(Mono, i64)]>),
}

impl From<i64> for Size {
    fn from(n: i64) -> Size {
        Size::Known(n)
    }
}

impl Size {
    pub(crate) fn atom(a: Atom) -> Size {
        Size::Poly([(vec![a], 1)].into())
    }

    /// The number, if this is one.
    pub fn known(&self) -> Option<i64> {
        if let Size::Known(n) = self { Some(*n) } else { None }
    }

    /// The terms as `(atoms, coefficient)`; a constant has one term without atoms, 0 has none.
    pub(crate) fn terms(&self) -> Vec<(Mono, i64)> {
        match self {
            Size::Known(0) => Vec::new(),
            Size::Known(n) => vec![(Vec::new(), *n)],
            Size::Poly(t) => t.to_vec(),
        }
    }

    fn from_terms(mut t: Vec<(Mono, i64)>) -> Option<Size> {
        t.sort();
        let mut out: Vec<(Mono, i64)> = Vec::with_capacity(t.len());
        for (m, c) in t {
            match out.last_mut() {
                Some((lm, lc)) if *lm == m => *lc = lc.checked_add(c)?,
                _ => out.push((m, c)),
            }
        }
        out.retain(|(_, c)| *c != 0);
        if out.len() > MAX_TERMS || out.iter().any(|(m, _)| m.len() > MAX_DEGREE) {
            return None;
        }
        Some(match &out[..] {
            [] => Size::Known(0),
            [(m, c)] if m.is_empty() => Size::Known(*c),
            _ => Size::Poly(out.into()),
        })
    }

    /// The sum, or `None` on overflow.
    pub fn add(&self, o: &Size) -> Option<Size> {
        if let (Size::Known(a), Size::Known(b)) = (self, o) {
            return a.checked_add(*b).map(Size::Known);
        }
        let mut t = self.terms();
        t.extend(o.terms());
        Size::from_terms(t)
    }

    /// The difference, or `None` on overflow.
    pub fn sub(&self, o: &Size) -> Option<Size> {
        self.add(&o.mul(&Size::Known(-1))?)
    }

    /// The product, or `None` on overflow or past the size limit.
    pub fn mul(&self, o: &Size) -> Option<Size> {
        if let (Size::Known(a), Size::Known(b)) = (self, o) {
            return a.checked_mul(*b).map(Size::Known);
        }
        let mut t = Vec::new();
        for (m, c) in self.terms() {
            for (n, d) in o.terms() {
                let mut p = m.clone();
                p.extend(&n);
                p.sort();
                t.push((p, c.checked_mul(d)?));
            }
        }
        Size::from_terms(t)
    }

    /// The polynomial quotient, if the division leaves no remainder as polynomials (then it leaves none for any
    /// run-time sizes that make the divisor non-zero).
    pub fn div_exact(&self, o: &Size) -> Option<Size> {
        if *o == Size::Known(0) {
            return None;
        }
        let divisor = o.terms();
        // Highest term first in degree, then in order: a monomial order, so the leading terms of products multiply.
        let lead = |t: &[(Mono, i64)]| t.iter().max_by_key(|(m, _)| (m.len(), m.clone())).cloned();
        let (dm, dc) = lead(&divisor)?;
        let (mut rest, mut quotient) = (self.clone(), Size::Known(0));
        for _ in 0..=2 * MAX_TERMS {
            let Some((rm, rc)) = lead(&rest.terms()) else { return Some(quotient) };
            let mut m = rm;
            for a in &dm {
                let at = m.iter().position(|x| x == a)?;
                m.remove(at);
            }
            if rc.checked_rem(dc)? != 0 {
                return None;
            }
            let q = Size::from_terms(vec![(m, rc.checked_div(dc)?)])?;
            quotient = quotient.add(&q)?;
            rest = rest.sub(&q.mul(o)?)?;
        }
        None
    }

    /// True if this is at least 0 for all run-time sizes of at least 1 (false means "not proved").
    pub fn is_nonnegative(&self) -> bool {
        let (mut least, mut rising) = (0i64, true);
        for (m, c) in self.terms() {
            rising &= c >= 0 || m.is_empty();
            // Every product of sizes is at least 1.
            least = least.saturating_add(c);
        }
        rising && least >= 0
    }

    /// True if the two differ for all run-time sizes of at least 1 (false means "not proved").
    pub fn differs(&self, o: &Size) -> bool {
        self.exceeds(o) || o.exceeds(self)
    }

    /// True if this is greater than `o` for all run-time sizes of at least 1 (false means "not proved").
    pub fn exceeds(&self, o: &Size) -> bool {
        self.sub(o).and_then(|d| d.sub(&Size::Known(1))).is_some_and(|d| d.is_nonnegative())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn a() -> Size {
        Size::atom(Atom(0))
    }
    fn b() -> Size {
        Size::atom(Atom(1))
    }

    #[test]
    fn one_polynomial_has_one_form() {
        let x = a().add(&b()).unwrap().mul(&Size::Known(3)).unwrap();
        let y = b().mul(&Size::Known(3)).unwrap().add(&a().mul(&Size::Known(3)).unwrap()).unwrap();
        assert_eq!(x, y);
        assert_eq!(x.sub(&y), Some(Size::Known(0)));
        assert_eq!(a().mul(&b()), b().mul(&a()));
    }

    #[test]
    fn exact_division_is_exact_or_refused() {
        let n1 = a().add(&Size::Known(1)).unwrap();
        let total = n1.mul(&b()).unwrap().mul(&Size::Known(12)).unwrap();
        assert_eq!(total.div_exact(&n1), b().mul(&Size::Known(12)));
        assert_eq!(total.div_exact(&b()), n1.mul(&Size::Known(12)));
        assert_eq!(total.div_exact(&Size::Known(5)), None);
        assert_eq!(a().div_exact(&b()), None);
        assert_eq!(Size::Known(12).div_exact(&Size::Known(0)), None);
        assert_eq!(Size::Known(0).div_exact(&a()), Some(Size::Known(0)));
    }

    #[test]
    fn sizes_are_positive_but_may_be_anything_else() {
        assert!(a().differs(&Size::Known(-1)) && a().differs(&Size::Known(0)));
        assert!(!a().differs(&Size::Known(1)));
        assert!(a().add(&b()).unwrap().exceeds(&Size::Known(1)));
        assert!(!a().differs(&b()));
        assert!(!a().sub(&b()).unwrap().is_nonnegative());
    }

    #[test]
    fn overflow_is_unknown() {
        assert_eq!(Size::Known(i64::MAX).add(&Size::Known(1)), None);
        assert_eq!(a().mul(&Size::Known(i64::MAX)).unwrap().mul(&Size::Known(2)), None);
    }
}
