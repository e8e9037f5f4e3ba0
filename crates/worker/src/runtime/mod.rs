//! What computes a graph: one trait for a bound graph, one for an engine, and the choice between the two engines.
//! Knows nothing of models, prompts or jobs.

mod onnxruntime;
mod rten;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use calotype_protocol::Outcome;

/// The name under which a graph refers to its weights.
pub(crate) const WEIGHTS_NAME: &str = "weights.data";

/// Which engine computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Runtime {
    /// ONNX Runtime where its library is found and works, else rten.
    #[default]
    Auto,
    /// Pure Rust, always there.
    Rten,
    /// ONNX Runtime; rten with a warning where it does not work.
    Onnxruntime,
}

/// What goes into a graph. Integers are written as the graph declares them.
#[derive(Debug, Clone, PartialEq)]
pub struct Value {
    /// Extent of each dimension.
    pub shape: Vec<usize>,
    /// The elements, row-major.
    pub data: Data,
}

/// Elements of a [`Value`].
#[derive(Debug, Clone, PartialEq)]
pub enum Data {
    /// Numbers.
    F32(Vec<f32>),
    /// Token ids.
    I64(Vec<i64>),
}

impl Value {
    /// Numbers in a shape.
    pub fn f32(shape: &[usize], data: Vec<f32>) -> Self {
        Self {
            shape: shape.to_vec(),
            data: Data::F32(data),
        }
    }

    /// Integers in a shape.
    pub fn i64(shape: &[usize], data: Vec<i64>) -> Self {
        Self {
            shape: shape.to_vec(),
            data: Data::I64(data),
        }
    }

    fn fits(&self) -> bool {
        let count = self
            .shape
            .iter()
            .try_fold(1usize, |count, extent| count.checked_mul(*extent));
        count
            == Some(match &self.data {
                Data::F32(data) => data.len(),
                Data::I64(data) => data.len(),
            })
    }
}

/// What comes out of a graph.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    /// Extent of each dimension.
    pub shape: Vec<usize>,
    /// The elements, row-major.
    pub data: Vec<f32>,
}

/// Why a graph was not bound or did not run.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// No memory for it.
    #[error("out of memory: {0}")]
    OutOfMemory(String),
    /// Anything else, in the engine's words.
    #[error("{0}")]
    Failed(String),
}

impl RuntimeError {
    pub(crate) fn of(message: impl Into<String>) -> Self {
        let message = message.into();
        let text = message.to_lowercase();
        if text.contains("failed to allocate") || text.contains("bad_alloc") || text.contains("out of memory")
        {
            Self::OutOfMemory(message)
        } else {
            Self::Failed(message)
        }
    }

    pub(crate) fn outcome(&self) -> Outcome {
        match self {
            Self::OutOfMemory(_) => Outcome::OutOfMemory,
            Self::Failed(_) => Outcome::Failed,
        }
    }
}

/// An input or output as the graph declares it.
#[derive(Debug, Clone, PartialEq)]
pub struct Port {
    /// As the graph names it; tensors are given and taken by it.
    pub name: String,
    /// Extents, `None` where they are free; absent where the engine does not know them.
    pub shape: Option<Vec<Option<usize>>>,
}

/// A graph with its weights, ready to run.
pub trait Graph: Send {
    /// Runs once and gives the named outputs, in their order.
    fn run(&self, inputs: &[(&str, Value)], outputs: &[&str]) -> Result<Vec<Tensor>, RuntimeError>;
    /// The inputs as declared.
    fn inputs(&self) -> &[Port];
    /// Names of the outputs.
    fn outputs(&self) -> &[String];
}

/// Where a graph comes from.
#[derive(Debug)]
pub enum Source<'a> {
    /// A graph without weights, and the bytes that it calls `weights.data`.
    Bound {
        /// The ONNX file.
        graph: &'a Path,
        /// The weights in the graph's layout.
        weights: Vec<u8>,
    },
    /// An ONNX file that has its weights inside or beside it.
    Plain(&'a Path),
}

/// Turns files into graphs; several at a time, on threads of their own.
pub trait Engine: Sync {
    /// For instance `rten 0.27.0`.
    fn name(&self) -> String;
    /// Libraries that compute, name to version.
    fn libraries(&self) -> BTreeMap<String, String>;
    /// Most threads from the next bound graph on.
    fn set_threads(&mut self, threads: usize);
    /// Makes a graph ready to run.
    fn bind(&self, source: Source<'_>) -> Result<Box<dyn Graph>, RuntimeError>;
}

/// Opens the engine that was asked for, or the one that there is. The second value is worth a log line.
pub fn open(runtime: Runtime, library: Option<PathBuf>) -> (Box<dyn Engine>, Option<String>) {
    let tried = match runtime {
        Runtime::Rten => return (Box::new(rten::Rten::new()), None),
        Runtime::Auto | Runtime::Onnxruntime => onnxruntime::OnnxRuntime::open(library),
    };
    match (tried, runtime) {
        (Ok(engine), _) => (Box::new(engine), None),
        (Err(onnxruntime::NoLibrary::NotFound), Runtime::Auto) => (Box::new(rten::Rten::new()), None),
        (Err(why), _) => (
            Box::new(rten::Rten::new()),
            Some(format!("computing with rten, because {why}")),
        ),
    }
}

/// Threads to compute with when nobody says: the physical cores that this process may use.
pub fn default_threads() -> usize {
    let usable = std::thread::available_parallelism().map_or(1, usize::from);
    sysinfo::System::physical_core_count().map_or(usable, |physical| physical.clamp(1, usable))
}
