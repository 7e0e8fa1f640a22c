//! Sizes of images for a model that leaves them open, where nobody gave data or said them.
//!
//! Some models take any size, and some only look as if they did: a recogniser of lines of text is built for one height, and
//! fails on others somewhere inside. The sizes that models are usually fed are tried one after the other, until the model runs.

use super::data::{DataError, DataOptions, Dataset, InputSpec};
use super::run::open_shapes;
use crate::ir::{Dim, Validated};
use crate::runtime::{Session, SessionOptions};

/// Heights and widths, the most usual first: classifiers, lines of text (PaddleOCR, CRNN), detectors, older classifiers.
const USUAL: [(i64, i64); 9] =
    [(224, 224), (48, 320), (32, 320), (32, 100), (64, 256), (256, 256), (384, 384), (512, 512), (640, 640)];

/// The options with a `--shape` for the first image of open size, if the model runs with one of the usual sizes and not with
/// the first of them; otherwise as they are.
///
/// # Errors
/// If no data can be made up for the inputs.
pub fn settled(options: &DataOptions, model: Validated<'_>, inputs: &[InputSpec]) -> Result<DataOptions, DataError> {
    let open = |d: &Dim| !matches!(d, Dim::Known(_));
    let image = |s: &&InputSpec| s.dims.len() == 4 && s.dims[1..].iter().any(open);
    let asked = options.calibrate.is_some() || options.crop.is_some() || !options.shape.is_empty();
    let Some(spec) = inputs.iter().find(image).filter(|_| !asked) else { return Ok(options.clone()) };
    let sizes = |height: i64, width: i64| -> Vec<i64> {
        let free: Vec<usize> = (1..4).filter(|i| open(&spec.dims[*i])).collect();
        let mut dims: Vec<i64> = spec.dims.iter().map(|d| if let Dim::Known(n) = d { *n } else { 1 }).collect();
        // Channels that are open as well are three, in front of the sides.
        let sides = &free[free.len().saturating_sub(2)..];
        free.iter().for_each(|i| dims[*i] = 3);
        for (i, n) in sides.iter().zip(if sides.len() == 2 { vec![height, width] } else { vec![width] }) {
            dims[*i] = n;
        }
        dims
    };
    for (height, width) in USUAL {
        let text: Vec<String> = sizes(height, width).iter().map(i64::to_string).collect();
        let with = DataOptions { shape: vec![format!("{}={}", spec.name, text.join(","))], ..options.clone() };
        let data = Dataset::open(&DataOptions { samples: Some(1), ..with.clone() }, inputs);
        // A fixed batch may need more than one sample.
        let Ok(data) = data.or_else(|_| Dataset::open(&with, inputs)) else { continue };
        let sample = data.sample(0)?;
        let shapes = open_shapes(&model.model().graph, &sample.inputs);
        let how = SessionOptions { batch: data.batch(), shapes, optimize: false, ..SessionOptions::default() };
        if Session::of(model, &how).and_then(|s| s.run(&sample.inputs)).is_ok() {
            return Ok(if (height, width) == USUAL[0] { options.clone() } else { with });
        }
    }
    Ok(options.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::validate::validate;
    use crate::text::parse_model;

    /// `K`: a matrix of so many rows.
    fn found(text: &str, rows: usize) -> Vec<String> {
        let numbers = vec!["1.0"; 2 * rows].join(", ");
        let text = text.replace('K', &format!("<float[{rows},2] k = {{{numbers}}}>"));
        let m = parse_model(&format!("<ir_version: 8, opset_import: [\"\" : 17]>\n{text}")).unwrap();
        let inputs = InputSpec::of(&m.graph).unwrap();
        settled(&DataOptions::default(), validate(&m).unwrap(), &inputs).unwrap().shape
    }

    #[test]
    fn the_height_that_a_model_is_built_for_is_found() {
        // What is made of the height must fit a matrix of 48 rows.
        let text = "g (float[n,3,h,w] x) => (float[n,3,w,2] y) K
            { t = Transpose <perm = [0, 1, 3, 2]> (x) y = MatMul (t, k) }";
        assert_eq!(found(text, 48), ["x=1,3,48,320"]);
        assert!(found(text, 47).is_empty(), "none of the usual ones");
        let any = "g (float[n,3,h,w] x) => (float[n,3,h,w] y) { y = Relu (x) }";
        assert!(found(any, 1).is_empty());
    }
}
