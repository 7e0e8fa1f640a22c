//! Which sizes of the inputs hold samples.

use super::{DataError, InputSpec};
use crate::ir::Dim;

/// How the inputs of a model are fed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    /// Items in a sample.
    pub(super) batch: usize,
    /// For each input, what a sample has of its leading axis.
    pub(super) leads: Vec<Lead>,
}

/// What leads an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lead {
    /// One row an item.
    Items,
    /// This many rows in every sample, which is one item.
    Rows(usize),
    /// No axis at all: a scalar.
    Nothing,
}

impl Lead {
    /// The shape of an input whose further sizes are `tail`, in a sample of `items` items.
    pub(super) fn shape(self, items: usize, tail: &[usize]) -> Vec<usize> {
        let first = match self {
            Lead::Items => Some(items),
            Lead::Rows(n) => Some(n),
            Lead::Nothing => None,
        };
        first.into_iter().chain(tail.iter().copied()).collect()
    }
}

impl Layout {
    /// Inputs that fix the same leading size fix the batch; where these differ, each is what one sample needs.
    pub(super) fn of(inputs: &[InputSpec]) -> Result<Layout, DataError> {
        let fixed = |spec: &InputSpec| match spec.dims.first() {
            Some(Dim::Known(n)) => {
                usize::try_from(*n).ok().filter(|n| *n > 0).ok_or_else(|| spec.refused("its batch size is 0")).map(Some)
            }
            _ => Ok(None),
        };
        let sizes: Vec<Option<usize>> = inputs.iter().map(fixed).collect::<Result<_, _>>()?;
        let mut known = sizes.iter().flatten();
        let first = known.next().copied();
        let agree = known.all(|n| Some(*n) == first);
        let lead = |(spec, size): (&InputSpec, &Option<usize>)| match size {
            _ if spec.dims.is_empty() => Lead::Nothing,
            Some(n) if !agree => Lead::Rows(*n),
            _ => Lead::Items,
        };
        let leads = inputs.iter().zip(&sizes).map(lead).collect();
        Ok(Layout { batch: first.filter(|_| agree).unwrap_or(1), leads })
    }
}
