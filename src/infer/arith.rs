//! Operators that compute: on integers and bools element by element, known or symbolic; on float constants only where
//! every runtime must give the same bits (IEEE 754 addition, subtraction, multiplication, division, square root,
//! rounding, comparison, conversion). Nothing that a library approximates is computed here.

use std::borrow::Cow;

use super::moves::broadcast_places;
use super::view::View;
use super::{Draft, MAX_ELEMENTS, MAX_FOLD_BYTES, Size};
use crate::ir::vocabulary::class;
use crate::ir::{Class, DType, Tensor};

type Elements = Vec<Option<Size>>;

/// Integers of a constant that are computed with: each takes several times the room it has in a file.
const MAX_INTEGERS: i64 = 1 << 20;

/// Fills in what is known of the contents of a computing operator's first output.
pub(super) fn evaluate(view: &View, out: &mut Draft) {
    let (Some(ty), Some(dims)) = (out.dtype, &out.dims) else { return };
    let Some(dims) = dims.iter().map(|d| d.as_ref()?.known()).collect::<Option<Vec<i64>>>() else { return };
    let count = dims.iter().try_fold(1i64, |a, d| a.checked_mul((*d).max(0)));
    let Some(count) = count.filter(|c| *c as u64 <= (MAX_FOLD_BYTES / 8) as u64) else { return };
    let all_constant = (0..view.node.inputs.len()).all(|i| !view.has(i) || view.constant(i).is_some());
    if view.op() == "ConstantOfShape" {
        constant_of_shape(view, ty, &dims, count, out);
    } else if view.op() == "EyeLike" {
        out.constant = eye(view, ty, &dims, count);
    } else if view.op() == "Trilu" {
        out.constant = triangle(view, ty, &dims);
    } else if all_constant && (view.dtype(0).is_some_and(DType::is_float) || ty.is_float()) {
        out.constant = floats(view, ty, &dims);
    } else if count <= if all_constant { MAX_INTEGERS } else { MAX_ELEMENTS as i64 } {
        let integral = |t: DType| t.is_int() || t == DType::BOOL;
        if integral(ty) && (0..view.node.inputs.len()).all(|i| view.dtype(i).is_some_and(integral)) {
            // Operators that are not computed here keep what their shape rule said (Shape and Size do).
            if let Some(e) = integers(view, ty, &dims).filter(|e| e.len() as i64 == count) {
                out.elements = Some(fit(ty, e));
            }
        }
    }
}

/// The tensor of fully known elements; `None` if one is open or does not fit the type.
pub(super) fn encode(ty: DType, dims: &[i64], elements: &[Option<Size>]) -> Option<Tensor> {
    let mut bytes = Vec::with_capacity(elements.len() * 8);
    for e in elements {
        let n = e.as_ref()?.known().filter(|n| fits(ty, *n))?;
        bytes.extend_from_slice(&n.to_le_bytes()[..width(ty)?]);
    }
    Some(Tensor::raw(ty, dims, bytes))
}

fn width(ty: DType) -> Option<usize> {
    ty.bits().filter(|b| b % 8 == 0 && *b <= 64).map(|b| b / 8)
}

fn fits(ty: DType, n: i64) -> bool {
    match ty {
        DType::INT64 => true,
        DType::INT32 => i32::try_from(n).is_ok(),
        DType::INT16 => i16::try_from(n).is_ok(),
        DType::INT8 => i8::try_from(n).is_ok(),
        DType::UINT64 => n >= 0,
        DType::UINT32 => u32::try_from(n).is_ok(),
        DType::UINT16 => u16::try_from(n).is_ok(),
        DType::UINT8 => u8::try_from(n).is_ok(),
        DType::BOOL => n == 0 || n == 1,
        _ => false,
    }
}

/// What overflowed the element type is not known: runtimes wrap or saturate.
fn fit(ty: DType, e: Elements) -> Elements {
    e.into_iter().map(|s| s.filter(|s| s.known().is_none_or(|n| fits(ty, n)))).collect()
}

fn constant_of_shape(view: &View, ty: DType, dims: &[i64], count: i64, out: &mut Draft) {
    let fill = match view.node.attrs.tensor("value") {
        Some(t) if t.len() == 1 => t.to_le_bytes().map(Cow::into_owned),
        Some(_) => None,
        None => Some(vec![0; 4]),
    };
    if let Some(f) = fill
        && Some(f.len()) == width(ty)
        && view.elements(0).is_some_and(|e| e.len() == dims.len() && e.iter().all(Option::is_some))
    {
        out.constant = Some(Tensor::raw(ty, dims, f.repeat(count as usize)));
    }
}

/// Ones on a diagonal: what EyeLike makes depends on the shape of its input alone.
fn eye(view: &View, ty: DType, dims: &[i64], count: i64) -> Option<Tensor> {
    let one: Vec<u8> = match ty {
        DType::FLOAT => 1.0f32.to_le_bytes().to_vec(),
        DType::DOUBLE => 1.0f64.to_le_bytes().to_vec(),
        DType::FLOAT16 => half::f16::ONE.to_le_bytes().to_vec(),
        DType::BFLOAT16 => half::bf16::ONE.to_le_bytes().to_vec(),
        _ => 1u64.to_le_bytes()[..width(ty).filter(|_| fits(ty, 1))?].to_vec(),
    };
    let [_, columns] = dims else { return None };
    let k = view.node.int("k");
    let zero = vec![0; one.len()];
    let at = |i: i64| if (i % columns).checked_sub(i / columns) == Some(k) { &one } else { &zero };
    Some(Tensor::raw(ty, dims, (0..count).flat_map(|i| at(i).iter().copied()).collect::<Vec<u8>>()))
}

/// A constant with zeros on one side of a diagonal.
fn triangle(view: &View, ty: DType, dims: &[i64]) -> Option<Tensor> {
    let k = if view.has(1) { view.ints(1)?.first().copied()? } else { 0 };
    let upper = view.int("upper") != 0;
    let [.., rows, columns] = dims else { return None };
    let from = view.constant(0)?;
    let mut bytes = from.to_le_bytes()?.into_owned();
    let width = width(ty).filter(|w| Some(*w * from.len()) == Some(bytes.len()))?;
    for (i, element) in bytes.chunks_mut(width).enumerate() {
        let i = i as i64;
        let right_of = (i % columns) - (i / columns % rows);
        if if upper { right_of < k } else { right_of > k } {
            element.fill(0);
        }
    }
    Some(Tensor::raw(ty, dims, bytes))
}

/// Elements of an integer input, decoded from the constant where there are too many to follow.
fn elements<'a>(view: &'a View, i: usize) -> Option<Cow<'a, [Option<Size>]>> {
    match view.elements(i) {
        Some(e) => Some(Cow::Borrowed(e)),
        None => {
            let t = view.constant(i)?.to_i64s()?;
            Some(Cow::Owned(t.into_iter().map(|n| Some(Size::Known(n))).collect()))
        }
    }
}

fn integers(view: &View, ty: DType, dims: &[i64]) -> Option<Elements> {
    let read = |i: usize| -> Option<Elements> {
        let e = elements(view, i)?;
        let at = broadcast_places(&view.known_dims(i)?, dims)?;
        at.into_iter().map(|j| e.get(j).cloned()).collect()
    };
    let each = |f: &dyn Fn(&Size) -> Option<Size>| Some(read(0)?.iter().map(|a| f(a.as_ref()?)).collect());
    let pair = |f: &dyn Fn(&Size, &Size) -> Option<Size>| -> Option<Elements> {
        let (a, b) = (read(0)?, read(1)?);
        Some(a.iter().zip(&b).map(|(a, b)| f(a.as_ref()?, b.as_ref()?)).collect())
    };
    let flag = |b: bool| Some(Size::Known(b as i64));
    match view.op() {
        "Add" => pair(&|a, b| a.add(b)),
        "Sub" => pair(&|a, b| a.sub(b)),
        "Mul" => pair(&|a, b| a.mul(b)),
        "Div" => pair(&divide),
        "Mod" => {
            let fmod = view.int("fmod") != 0;
            pair(&|a, b| modulo(a, b, fmod))
        }
        "Neg" => each(&|a| Size::Known(0).sub(a)),
        "Abs" => {
            each(&|a| if a.is_nonnegative() { Some(a.clone()) } else { a.known()?.checked_abs().map(Size::Known) })
        }
        "Equal" => pair(&|a, b| {
            if a == b {
                flag(true)
            } else if a.differs(b) {
                flag(false)
            } else {
                None
            }
        }),
        "Greater" => pair(&exceeds),
        "Less" => pair(&|a, b| exceeds(b, a)),
        "LessOrEqual" => pair(&|a, b| not(&exceeds(a, b)?)),
        "GreaterOrEqual" => pair(&|a, b| not(&exceeds(b, a)?)),
        "Not" => each(&not),
        "And" => pair(&|a, b| flag(a.known()? != 0 && b.known()? != 0)),
        "Or" => pair(&|a, b| flag(a.known()? != 0 || b.known()? != 0)),
        "Xor" => pair(&|a, b| flag((a.known()? != 0) != (b.known()? != 0))),
        "Max" | "Min" if view.node.inputs.len() == 2 => {
            let big = view.op() == "Max";
            pair(&|a, b| Some(if (exceeds(a, b)? == Size::Known(1)) == big { a.clone() } else { b.clone() }))
        }
        "Cast" if ty == DType::BOOL => {
            each(&|a| if a.differs(&Size::Known(0)) { flag(true) } else { flag(a.known()? != 0) })
        }
        "Cast" => each(&|a| Some(a.clone())),
        "Where" => Some(choice(&read(0)?, &read(1)?, &read(2)?)),
        // One output element from all input elements: no other axis is left over.
        op if class(op) == Some(Class::Reduction) && dims.iter().all(|d| *d == 1) => {
            Some(vec![reduced(op, &elements(view, 0)?)?])
        }
        "Range" => {
            let at = |i: usize| elements(view, i)?.first()?.as_ref()?.known();
            let (start, step) = (at(0)?, at(2)?);
            (0..*dims.first()?).map(|i| Some(Some(Size::Known(start.checked_add(i.checked_mul(step)?)?)))).collect()
        }
        _ => None,
    }
}

/// What a Where makes of a condition and two lists.
fn choice(condition: &[Option<Size>], yes: &[Option<Size>], no: &[Option<Size>]) -> Elements {
    let pick = |i: usize| match condition[i].as_ref().and_then(Size::known) {
        Some(0) => no[i].clone(),
        Some(_) => yes[i].clone(),
        // Undecided, but both ways agree.
        None => yes[i].clone().filter(|a| Some(a) == no[i].as_ref()),
    };
    (0..condition.len()).map(pick).collect()
}

/// One number of all; `None` for a reduction that is not followed here, or of nothing. An element that is not known leaves the
/// result unknown.
fn reduced(op: &str, e: &[Option<Size>]) -> Option<Option<Size>> {
    let join = |a: Size, b: &Option<Size>| -> Option<Size> {
        let b = b.as_ref()?;
        match op {
            "ReduceProd" => a.mul(b),
            "ReduceSum" => a.add(b),
            _ => Some(if (exceeds(&a, b)? == Size::Known(1)) == (op == "ReduceMax") { a } else { b.clone() }),
        }
    };
    if !matches!(op, "ReduceProd" | "ReduceSum" | "ReduceMax" | "ReduceMin") {
        return None;
    }
    let (first, rest) = e.split_first()?;
    Some(rest.iter().try_fold(first.clone()?, join))
}

fn not(a: &Size) -> Option<Size> {
    a.known().map(|n| Size::Known((n == 0) as i64))
}

fn exceeds(a: &Size, b: &Size) -> Option<Size> {
    if a.exceeds(b) { Some(Size::Known(1)) } else { b.sub(a)?.is_nonnegative().then_some(Size::Known(0)) }
}

/// Division that cuts toward 0; of symbolic sizes only where nothing is cut off.
fn divide(a: &Size, b: &Size) -> Option<Size> {
    match (a, b) {
        (Size::Known(a), Size::Known(b)) => a.checked_div(*b).map(Size::Known),
        _ => a.div_exact(b),
    }
}

fn modulo(a: &Size, b: &Size, fmod: bool) -> Option<Size> {
    match (a, b) {
        (Size::Known(a), Size::Known(b)) => {
            let r = a.checked_rem(*b)?;
            // Python's sign unless asked for C's.
            Some(Size::Known(if !fmod && r != 0 && (r < 0) != (*b < 0) { r + b } else { r }))
        }
        _ => a.div_exact(b).map(|_| Size::Known(0)),
    }
}

/// Operators with a float on one side at least, all inputs constant.
fn floats(view: &View, ty: DType, dims: &[i64]) -> Option<Tensor> {
    if view.op() == "Cast" {
        return cast(view.constant(0)?, ty);
    }
    // Half precision is computed in single by some runtimes and rounded at other places by others.
    if !(0..view.node.inputs.len()).all(|i| view.dtype(i) == Some(DType::FLOAT)) {
        return None;
    }
    let read = |i: usize| -> Option<Vec<f32>> {
        let v = view.constant(i)?.to_f32s()?;
        let at = broadcast_places(&view.known_dims(i)?, dims)?;
        at.into_iter().map(|j| v.get(j).copied()).collect()
    };
    let each = |f: fn(f32) -> f32| Some(Tensor::f32(dims, &read(0)?.into_iter().map(f).collect::<Vec<_>>()));
    let two = || -> Option<Vec<(f32, f32)>> {
        if view.node.inputs.len() != 2 {
            return None;
        }
        Some(read(0)?.into_iter().zip(read(1)?).collect())
    };
    let pair =
        |f: fn(f32, f32) -> f32| Some(Tensor::f32(dims, &two()?.into_iter().map(|(a, b)| f(a, b)).collect::<Vec<_>>()));
    let test = |f: fn(f32, f32) -> bool| {
        Some(Tensor::bool(dims, &two()?.into_iter().map(|(a, b)| f(a, b)).collect::<Vec<_>>()))
    };
    let out = match view.op() {
        "Add" => pair(|a, b| a + b),
        "Sub" => pair(|a, b| a - b),
        "Mul" => pair(|a, b| a * b),
        "Div" => pair(|a, b| a / b),
        "Sqrt" => each(f32::sqrt),
        "Neg" => each(|a| -a),
        "Abs" => each(f32::abs),
        "Floor" => each(f32::floor),
        "Ceil" => each(f32::ceil),
        "Round" => each(f32::round_ties_even),
        "Equal" => test(|a, b| a == b),
        "Greater" => test(|a, b| a > b),
        "Less" => test(|a, b| a < b),
        "GreaterOrEqual" => test(|a, b| a >= b),
        "LessOrEqual" => test(|a, b| a <= b),
        "IsNaN" => Some(Tensor::bool(dims, &read(0)?.into_iter().map(f32::is_nan).collect::<Vec<_>>())),
        _ => None,
    }?;
    // The bits of a computed NaN are nobody's promise.
    (out.dtype != DType::FLOAT || !out.to_f32s()?.iter().any(|x| x.is_nan())).then_some(out)
}

/// Conversion of a constant where all runtimes agree: exact ones, and rounding to nearest even.
fn cast(t: &Tensor, to: DType) -> Option<Tensor> {
    if t.dtype == to {
        return Some(t.clone());
    }
    let whole = |e: Vec<i64>| encode(to, &t.dims, &e.into_iter().map(|n| Some(Size::Known(n))).collect::<Vec<_>>());
    match (t.dtype, to) {
        (DType::FLOAT, DType::DOUBLE) => {
            let bytes: Vec<u8> = t.to_f32s()?.iter().flat_map(|x| f64::from(*x).to_le_bytes()).collect();
            Some(Tensor::raw(to, &t.dims, bytes))
        }
        (DType::FLOAT16 | DType::BFLOAT16 | DType::DOUBLE, DType::FLOAT) => Some(t.widened()),
        (DType::FLOAT, DType::FLOAT16) => {
            let bytes: Vec<u8> = t.to_f32s()?.iter().flat_map(|x| half::f16::from_f32(*x).to_le_bytes()).collect();
            Some(Tensor::raw(to, &t.dims, bytes))
        }
        (DType::FLOAT, DType::BOOL) => whole(t.to_f32s()?.iter().map(|x| (*x != 0.0) as i64).collect()),
        // Cut toward 0; what does not fit is undefined.
        (DType::FLOAT, _) if to.is_int() => {
            let cut = |x: &f32| (x.is_finite() && x.abs() < 9.0e18).then(|| x.trunc() as i64);
            whole(t.to_f32s()?.iter().map(cut).collect::<Option<_>>()?)
        }
        (from, DType::FLOAT) if from.is_int() || from == DType::BOOL => {
            Some(Tensor::f32(&t.dims, &t.to_i64s()?.iter().map(|n| *n as f32).collect::<Vec<_>>()))
        }
        (from, DType::DOUBLE) if from.is_int() || from == DType::BOOL => {
            let bytes: Vec<u8> = t.to_i64s()?.iter().flat_map(|n| (*n as f64).to_le_bytes()).collect();
            Some(Tensor::raw(to, &t.dims, bytes))
        }
        _ => None,
    }
}
