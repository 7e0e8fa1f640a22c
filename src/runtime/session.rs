//! A loaded model.

use std::borrow::Cow;
use std::path::Path;
use std::sync::Arc;

use prost::Message;
use tract_onnx::Onnx;
use tract_onnx::pb;
use tract_onnx::prelude::*;
use tract_onnx::tract_hir::internal::DimLike;

use super::kept::{self, Kept};
use super::{Array, Element, RuntimeError, cast, conv, fuse, host, prepare, product, qdq, repeat, squeeze};
use crate::budget;
use crate::ir::{DType, Dim, Graph, Node, Validated};
use crate::onnx;

/// Takes tract's AMX kernel for 8-bit products out of its choice, before tract asks the processor what it has.
///
/// `avx512amx_mmm_i32_8x8` of tract-linalg 0.23.9 loads whole tiles of the second operand, up to 480 bytes past the end of
/// what was packed where the sum is not a multiple of 64 long. Now and then that is past the end of the heap of a thread,
/// and the process dies. (The AVX-512 VNNI kernel gives the same sums.)
fn leave_amx_alone() {
    #[cfg(target_arch = "x86_64")]
    {
        use tract_linalg::knobs::TRACT_CPU_ISA;
        static ONCE: std::sync::Once = std::sync::Once::new();
        ONCE.call_once(|| {
            let own = TRACT_CPU_ISA.get().map_or(String::new(), |s| s + ",");
            TRACT_CPU_ISA.set(Some(format!("{own}-amx-int8")));
        });
    }
}

/// tract's ONNX reader with the project's operators in place of its own. `optimize`: whether products of codes are fused.
fn operators(optimize: bool) -> Onnx {
    leave_amx_alone();
    let mut onnx = tract_onnx::onnx();
    qdq::register(&mut onnx, optimize);
    cast::register(&mut onnx);
    squeeze::register(&mut onnx);
    product::register(&mut onnx);
    conv::register(&mut onnx);
    if optimize {
        fuse::register(&mut onnx);
    }
    host::register(&mut onnx);
    repeat::register(&mut onnx, optimize);
    onnx
}

/// tract's ONNX reader with the project's operators in place of tract's own, for programs that use tract themselves: a
/// quantized file then runs on products of 8-bit codes. `examples/service.rs` is a whole program.
///
/// Sizes that the file declares for values between input and output are not read, so that an open size (`batch`) can be
/// fixed at the inputs.
///
/// What a [`Session`] does to a file before tract reads it is left out: tract itself holds no constants of 4 bits, and takes
/// an operator of a foreign domain for the standard one of its name. Files that need neither run the same in both.
pub fn onnx() -> Onnx {
    operators(true).with_ignore_value_info(true)
}

fn decoded(message: &[u8]) -> Result<pb::ModelProto, RuntimeError> {
    pb::ModelProto::decode(message).map_err(|e| RuntimeError::Decode(e.to_string()))
}

/// How to load a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionOptions {
    /// What an open first size of an input becomes.
    pub batch: usize,
    /// Whole shapes of inputs, by name, for models with further open sizes.
    pub shapes: Vec<(String, Vec<usize>)>,
    /// Values of the main graph to return beside the outputs, by name; repeats are allowed.
    pub taps: Vec<String>,
    /// Whether the graph's outputs are wanted beside the taps. Without them, nothing after the last tap is computed.
    pub outputs: bool,
    /// Whether tract may rewrite the graph into its fastest form (two to three times faster). Without it the model runs
    /// operator by operator as written, which is the slower and safer reference.
    pub optimize: bool,
}

impl Default for SessionOptions {
    fn default() -> SessionOptions {
        SessionOptions { batch: 1, shapes: vec![], taps: vec![], outputs: true, optimize: true }
    }
}

/// A graph input or output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    pub name: String,
    pub dtype: DType,
    /// Sizes as the file declares them.
    pub declared: Vec<Dim>,
    /// Sizes in this session; `None` for an output whose shape depends on the data.
    pub dims: Option<Vec<usize>>,
}

/// What one run computed.
#[derive(Clone, Debug, PartialEq)]
pub struct Outputs {
    /// The graph's outputs, in its order.
    pub outputs: Vec<Array>,
    /// The tapped values, in the order of [`SessionOptions::taps`].
    pub taps: Vec<Array>,
}

/// The tapped values of one run, where the engine put them: looking at them copies nothing.
pub struct Tapped<'s> {
    session: &'s Session,
    values: TVec<TValue>,
}

impl Tapped<'_> {
    /// The elements of tap number `tap` in row-major order as f32 (see [`Element::to_f32`]), and its sizes.
    ///
    /// # Errors
    /// If the engine gave a type that no array has.
    pub fn value(&self, tap: usize) -> Result<(Cow<'_, [f32]>, &[usize]), RuntimeError> {
        let t: &Tensor = &self.values[self.session.tap_places[tap]];
        let elements = match t.to_plain_array_view::<f32>().ok().and_then(|v| v.to_slice()) {
            Some(s) => Cow::Borrowed(s),
            None => Cow::Owned(array(&self.session.taps[tap], t)?.f32s().into_owned()),
        };
        Ok((elements, t.shape()))
    }
}

static SESSIONS: Kept<Session> = Kept::new();

/// While one of these lives, a session that is asked for again is not loaded again; see [`keep_sessions`].
#[derive(Debug)]
#[must_use = "sessions are kept as long as it lives"]
pub struct Keeping(());

/// Keeps loaded sessions for whoever asks for the same, until the last such value is dropped. What is known of loops goes
/// with each.
pub fn keep_sessions() -> Keeping {
    SESSIONS.hold();
    Keeping(())
}

impl Drop for Keeping {
    fn drop(&mut self) {
        SESSIONS.release();
        // By their names, which another model may have too.
        repeat::forget();
    }
}

/// A model ready to run. Runs may overlap: samples go to threads, each run stays on its caller's
/// (see [`fold_samples`](super::fold_samples)).
#[derive(Clone, Debug)]
pub struct Session {
    plan: Arc<TypedRunnableModel>,
    inputs: Vec<Port>,
    outputs: Vec<Port>,
    taps: Vec<String>,
    /// For each tap, which of the plan's outputs it is.
    tap_places: Vec<usize>,
}

impl Session {
    /// Loads a model, whatever file its weights lie in.
    ///
    /// # Errors
    /// If tract lacks an operator, or cannot load the model.
    pub fn of(model: Validated<'_>, options: &SessionOptions) -> Result<Session, RuntimeError> {
        let g = &model.model().graph;
        if let Some((n, why)) = g.nodes().find_map(|(_, n)| Some((n, misread(g, n)?))) {
            return Err(RuntimeError::Unsupported { node: g.label(n), op: n.op.name.clone(), why: why.into() });
        }
        let (message, weights) = onnx::encode_apart(model);
        let taps = !options.taps.is_empty();
        let key = kept::key(&message, weights.iter().map(|(i, w)| (*i, &w[..])), options, taps);
        if let Some(session) = key.as_ref().and_then(|k| SESSIONS.find(k)) {
            return Ok(session);
        }
        let mut proto = decoded(&message)?;
        drop(message);
        for (i, data) in weights {
            let initializer = proto.graph.as_mut().and_then(|g| g.initializer.get_mut(i));
            initializer.expect("the message holds what was encoded").raw_data = data.to_vec();
        }
        let session = Session::of_proto(&operators(options.optimize), proto, None, options)?;
        if let Some(key) = key {
            SESSIONS.keep(key, &session);
        }
        Ok(session)
    }

    /// Loads an encoded ONNX file. `dir` is where its external data lie, if it has any.
    #[cfg(test)]
    pub(super) fn of_bytes(
        model: &[u8],
        dir: Option<&Path>,
        options: &SessionOptions,
    ) -> Result<Session, RuntimeError> {
        Session::with_operators(&operators(options.optimize), model, dir, options)
    }

    /// [`Session::of_bytes`] with a choice of operators: conformance tests also load with tract's own.
    #[cfg(test)]
    pub(super) fn with_operators(
        onnx: &Onnx,
        model: &[u8],
        dir: Option<&Path>,
        options: &SessionOptions,
    ) -> Result<Session, RuntimeError> {
        Session::of_proto(onnx, decoded(model)?, dir, options)
    }

    fn of_proto(
        onnx: &Onnx,
        mut proto: pb::ModelProto,
        dir: Option<&Path>,
        options: &SessionOptions,
    ) -> Result<Session, RuntimeError> {
        prepare::check_operators(&proto, &onnx.op_register)?;
        let graph = proto.graph.as_mut().ok_or_else(|| RuntimeError::Decode("it holds no graph".into()))?;
        if let (Some(tensor), None) = (prepare::external_tensor(graph), dir) {
            let why =
                "its data lie in another file, which a model in memory does not have; read the model from its file"
                    .into();
            return Err(RuntimeError::Tensor { tensor: tensor.into(), why });
        }
        prepare::widen_bfloats(graph);
        let port = |info: &pb::ValueInfoProto| {
            let (dtype, declared) = prepare::declared(info);
            Port { name: info.name.clone(), dtype, declared, dims: None }
        };
        let mut inputs: Vec<Port> = graph.input.iter().filter(|i| prepare::is_input(graph, i)).map(port).collect();
        let mut outputs: Vec<Port> = graph.output.iter().map(port).collect();
        prepare::widen_constants(graph)?;
        prepare::fix_shapes(graph, options.batch, &options.shapes)?;
        prepare::plain_bodies(graph);
        prepare::own_names(graph);
        let mut tap_places = prepare::add_taps(graph, &options.taps)?;
        if !options.outputs {
            outputs.clear();
            tap_places = prepare::taps_alone(graph, &tap_places);
        }

        let dir = dir.map(|d| {
            d.to_str().ok_or_else(|| RuntimeError::Tensor {
                tensor: "external data".into(),
                why: format!("the folder name {} is not UTF-8", d.display()),
            })
        });
        let dir = dir.transpose()?;
        let optimize = options.optimize;
        let plan = guarded("load", move || {
            let parsed = onnx.parse(&proto, dir)?;
            drop(proto);
            if let Some(name) = parsed.unresolved_inputs.first() {
                tract_onnx::tract_core::internal::bail!("value '{name}' is used but never defined");
            }
            prepare::runnable(parsed.model.into_typed()?, optimize)
        })?;
        let sizes = |fact: &TypedFact| fact.shape.iter().map(|d| d.to_usize().ok()).collect::<Option<Vec<_>>>();
        for (i, p) in inputs.iter_mut().enumerate() {
            p.dims = plan.model().input_fact(i).ok().and_then(sizes);
        }
        for (i, p) in outputs.iter_mut().enumerate() {
            p.dims = plan.model().output_fact(i).ok().and_then(sizes);
        }
        Ok(Session { plan, inputs, outputs, taps: options.taps.clone(), tap_places })
    }

    /// The inputs a run needs, in the file's order.
    pub fn inputs(&self) -> &[Port] {
        &self.inputs
    }

    /// The graph's outputs, in its order.
    pub fn outputs(&self) -> &[Port] {
        &self.outputs
    }

    /// Names of the tapped values, in the order [`Outputs::taps`] has.
    pub fn taps(&self) -> &[String] {
        &self.taps
    }

    /// How many operators of this name tract runs.
    #[cfg(test)]
    pub(super) fn count_of(&self, op: &str) -> usize {
        self.plan.model().nodes().iter().filter(|n| n.op().name() == op).count()
    }

    /// Runs the model on the calling thread, for its taps alone.
    ///
    /// # Errors
    /// If an input is missing, given twice or does not fit, or the model does not run.
    pub fn tapped<N: AsRef<str>>(&self, given: &[(N, Array)]) -> Result<Tapped<'_>, RuntimeError> {
        Ok(Tapped { session: self, values: self.values(given)? })
    }

    fn values<N: AsRef<str>>(&self, given: &[(N, Array)]) -> Result<TVec<TValue>, RuntimeError> {
        for (i, (name, _)) in given.iter().enumerate() {
            let name = name.as_ref();
            if !self.inputs.iter().any(|p| p.name == name) {
                let known = self.inputs.iter().map(|p| p.name.clone()).collect();
                return Err(RuntimeError::UnknownInput { name: name.to_string(), known });
            }
            if given[..i].iter().any(|(n, _)| n.as_ref() == name) {
                return Err(RuntimeError::RepeatedInput(name.to_string()));
            }
        }
        let mut tensors = TVec::new();
        for port in &self.inputs {
            let array = given.iter().find(|(n, _)| n.as_ref() == port.name).map(|(_, a)| a);
            let array = array.ok_or_else(|| RuntimeError::MissingInput(port.name.clone()))?;
            if array.dtype() != port.dtype {
                return Err(RuntimeError::InputType {
                    input: port.name.clone(),
                    expected: port.dtype,
                    given: array.dtype(),
                });
            }
            if let Some(dims) = &port.dims
                && dims != array.dims()
            {
                let declared: Vec<Dim> = dims.iter().map(|n| Dim::Known(*n as i64)).collect();
                return Err(prepare::mismatch(&port.name, &declared, array.dims()));
            }
            tensors.push(tensor(array).into_tvalue());
        }
        let values = guarded("run", || self.plan.run(tensors))?;
        budget::progress();
        Ok(values)
    }

    /// Runs the model on the calling thread. Every input must be given once, in any order.
    ///
    /// # Errors
    /// If an input is missing, given twice or does not fit, or the model does not run.
    pub fn run<N: AsRef<str>>(&self, given: &[(N, Array)]) -> Result<Outputs, RuntimeError> {
        let values = self.values(given)?;
        let name = |i: usize| match self.outputs.get(i) {
            Some(p) => p.name.as_str(),
            None => self.tap_places.iter().position(|p| *p == i).map_or("", |t| self.taps[t].as_str()),
        };
        let mut arrays = values.iter().enumerate().map(|(i, v)| array(name(i), v)).collect::<Result<Vec<_>, _>>()?;
        // A place is handed out once; only a value asked for twice is copied.
        let mut last: Vec<usize> = vec![usize::MAX; arrays.len()];
        for (t, place) in self.tap_places.iter().enumerate() {
            last[*place] = t;
        }
        let mut taps = Vec::with_capacity(self.taps.len());
        for (t, place) in self.tap_places.iter().enumerate() {
            let keep = *place < self.outputs.len() || last[*place] != t;
            taps.push(if keep {
                arrays[*place].clone()
            } else {
                std::mem::replace(&mut arrays[*place], Array::scalar(false))
            });
        }
        arrays.truncate(self.outputs.len());
        Ok(Outputs { outputs: arrays, taps })
    }
}

/// Why tract would compute something else than the standard says, of a node that it takes.
pub fn misread(g: &Graph, n: &Node) -> Option<&'static str> {
    let boolean = |v| {
        let told = g.value(v).ty.as_ref().map(|t| t.dtype);
        told.or_else(|| g.constant(v).map(|t| t.dtype)) == Some(DType::BOOL)
    };
    (n.op.is("Attention") && n.input(3).is_some_and(boolean)).then_some("tract adds a boolean mask to the scores")
}

/// The names among these, of operators of the standard, that no session has.
pub fn lacks<'n>(names: impl Iterator<Item = &'n str>) -> Vec<&'n str> {
    let onnx = operators(true);
    names.filter(|n| !onnx.op_register.0.contains_key(*n)).collect()
}

/// Runs tract code: errors get their whole chain of reasons, and a panic becomes an error.
fn guarded<T>(action: &'static str, f: impl FnOnce() -> TractResult<T>) -> Result<T, RuntimeError> {
    budget::step(format_args!("tract's attempt to {action} the model"));
    match budget::foreign(f) {
        Ok(Ok(x)) => Ok(x),
        Ok(Err(e)) => Err(RuntimeError::Engine { action, message: format!("{e:#}") }),
        Err(message) => Err(RuntimeError::Panicked { action, message }),
    }
}

fn tensor(array: &Array) -> Tensor {
    match array {
        Array::F32(a) => a.clone().into(),
        Array::F64(a) => a.clone().into(),
        Array::F16(a) => a.clone().into(),
        Array::I64(a) => a.clone().into(),
        Array::I32(a) => a.clone().into(),
        Array::I16(a) => a.clone().into(),
        Array::I8(a) => a.clone().into(),
        Array::U64(a) => a.clone().into(),
        Array::U32(a) => a.clone().into(),
        Array::U16(a) => a.clone().into(),
        Array::U8(a) => a.clone().into(),
        Array::Bool(a) => a.clone().into(),
    }
}

fn array(name: &str, t: &Tensor) -> Result<Array, RuntimeError> {
    fn copy<T: Element + Datum>(t: &Tensor) -> TractResult<Array> {
        Ok(t.to_plain_array_view::<T>()?.to_owned().into())
    }
    let copied = match t.datum_type() {
        DatumType::F32 => copy::<f32>(t),
        DatumType::F64 => copy::<f64>(t),
        DatumType::F16 => copy::<half::f16>(t),
        // tract computes int64 as symbolic sizes; all symbols are bound here.
        DatumType::I64 | DatumType::TDim => t.cast_to::<i64>().and_then(|t| copy::<i64>(&t)),
        DatumType::I32 => copy::<i32>(t),
        DatumType::I16 => copy::<i16>(t),
        DatumType::I8 => copy::<i8>(t),
        DatumType::U64 => copy::<u64>(t),
        DatumType::U32 => copy::<u32>(t),
        DatumType::U16 => copy::<u16>(t),
        DatumType::U8 => copy::<u8>(t),
        DatumType::Bool => copy::<bool>(t),
        // Names of classes, say: equal texts are equal numbers, and that is all that is asked of them.
        DatumType::String => t.to_plain_array_view::<String>().map(|x| x.mapv(|s| number_of(&s)).into()),
        other => return Err(RuntimeError::OutputType { value: name.into(), dtype: format!("{other:?}") }),
    };
    copied.map_err(|e| RuntimeError::Engine { action: "read a value of", message: format!("'{name}': {e:#}") })
}

/// A number for a text (FNV-1a, 64 bits), the same in every run.
fn number_of(text: &str) -> i64 {
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    hash as i64
}

#[cfg(test)]
mod tests {
    use super::super::build::Build;
    use super::*;

    #[test]
    fn nothing_behind_the_last_tap_is_computed_where_outputs_are_not_wanted() {
        let bytes = Build::new(13)
            .input("x", DType::FLOAT, &["3"])
            .node("a = Relu(x)", &[])
            .node("b = Exp(a)", &[])
            .node("y = Neg(b)", &[])
            .bytes(&["y"]);
        let x = Array::new(&[3], vec![-1.0f32, 0.0, 2.0]).unwrap();
        let of = |taps: &[&str], outputs| {
            let taps = taps.iter().map(|t| (*t).to_owned()).collect();
            Session::of_bytes(&bytes, None, &SessionOptions { taps, outputs, ..SessionOptions::default() }).unwrap()
        };
        let all = of(&["a", "y", "a"], true);
        let run = all.run(&[("x", x.clone())]).unwrap();
        for (session, taps) in [(all, [0, 1, 2]), (of(&["a", "y", "a"], false), [0, 1, 2])] {
            let seen = session.tapped(&[("x", x.clone())]).unwrap();
            for t in taps {
                let (values, dims) = seen.value(t).unwrap();
                assert_eq!((&values[..], dims), (&run.taps[t].f32s()[..], &[3][..]));
            }
        }
        let early = of(&["a"], false);
        assert_eq!(early.count_of("Exp"), 0);
        assert_eq!(early.tapped(&[("x", x)]).unwrap().value(0).unwrap().0[..], [0.0, 0.0, 2.0]);
        assert!(early.outputs().is_empty());
    }
}
