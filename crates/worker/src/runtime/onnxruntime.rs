//! The ONNX Runtime engine: a shared library that is found at run time or not at all. The only file that meets `ort`.
//! It downloads nothing and starts no other program to find the library.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};

use ort::environment::Environment;
use ort::session::builder::GraphOptimizationLevel;
use ort::session::{Session, SessionInputValue};
use ort::value::{TensorElementType, ValueType};

use super::{Data, Engine, Graph, Port, RuntimeError, Source, Tensor, Value, WEIGHTS_NAME};

/// One environment a process: `ort` keeps the library and refuses a second.
static OPENED: OnceLock<Result<(Environment, String), String>> = OnceLock::new();

/// Why there is no ONNX Runtime.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoLibrary {
    #[error("no libonnxruntime was found")]
    NotFound,
    #[error("the ONNX Runtime library does not work: {0}")]
    Broken(String),
}

pub(super) struct OnnxRuntime {
    environment: Environment,
    version: String,
    threads: usize,
}

impl OnnxRuntime {
    pub(super) fn open(library: Option<PathBuf>) -> Result<Self, NoLibrary> {
        let candidates = match library {
            Some(path) => vec![path],
            None => candidates(),
        };
        if candidates.is_empty() && OPENED.get().is_none() {
            return Err(NoLibrary::NotFound);
        }
        let opened = OPENED.get_or_init(|| open_first(&candidates));
        let (environment, version) = opened.as_ref().map_err(|why| NoLibrary::Broken(why.clone()))?;
        Ok(Self {
            environment: environment.clone(),
            version: version.clone(),
            threads: super::default_threads(),
        })
    }
}

fn open_first(candidates: &[PathBuf]) -> Result<(Environment, String), String> {
    let mut reasons = Vec::new();
    for path in candidates {
        // A library too old for our API is refused before anything is kept; the next one is tried.
        match ort::init_from(path) {
            Ok(builder) => {
                let environment = builder.with_name("calotype").with_telemetry(false).build();
                return environment
                    .map(|environment| (environment, version_of(path)))
                    .map_err(|error| format!("{}: {error}", path.display()));
            }
            Err(error) => reasons.push(error.to_string()),
        }
    }
    Err(reasons.join("; "))
}

fn version_of(path: &Path) -> String {
    let real = fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
    let name = real
        .file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default();
    match name.split_once(".so.") {
        Some((_, version)) => version.to_owned(),
        None => "of unknown version".to_owned(),
    }
}

/// Where a library may be, best first.
fn candidates() -> Vec<PathBuf> {
    for variable in ["CALOTYPE_ONNXRUNTIME", "ORT_DYLIB_PATH"] {
        if let Some(path) = std::env::var_os(variable).filter(|path| !path.is_empty()) {
            return vec![PathBuf::from(path)];
        }
    }
    let mut found = Vec::new();
    if let Ok(exe) = std::env::current_exe() {
        found.extend(exe.parent().map(libraries_in).unwrap_or_default());
    }
    for folder in [
        "/usr/local/lib",
        "/usr/lib",
        "/usr/lib64",
        "/usr/lib/x86_64-linux-gnu",
        "/usr/lib/aarch64-linux-gnu",
        "/opt/onnxruntime/lib",
        "/opt/homebrew/lib",
    ] {
        found.extend(libraries_in(Path::new(folder)));
    }
    for site in python_folders() {
        found.extend(libraries_in(&site.join("onnxruntime/capi")));
    }
    found
}

fn libraries_in(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut paths: Vec<PathBuf> = entries
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .collect();
    paths.retain(|path| {
        let name = path
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default();
        name.starts_with("libonnxruntime.so") || name == "libonnxruntime.dylib"
    });
    // The longest name says the version most exactly.
    paths.sort_by_key(|path| std::cmp::Reverse(path.as_os_str().len()));
    paths.truncate(1);
    paths
}

/// `site-packages` and `dist-packages` of the active environment, the user and the system.
fn python_folders() -> Vec<PathBuf> {
    let mut roots = Vec::new();
    roots.extend(std::env::var_os("VIRTUAL_ENV").map(PathBuf::from));
    roots.extend(std::env::var_os("CONDA_PREFIX").map(PathBuf::from));
    roots.extend(std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local")));
    roots.extend(["/usr/local", "/usr"].map(PathBuf::from));
    let mut folders = Vec::new();
    for root in roots {
        let Ok(entries) = fs::read_dir(root.join("lib")) else {
            continue;
        };
        let mut pythons: Vec<PathBuf> = entries
            .filter_map(|entry| entry.ok())
            .filter(|entry| entry.file_name().to_string_lossy().starts_with("python3"))
            .map(|entry| entry.path())
            .collect();
        pythons.sort();
        for python in pythons {
            folders.push(python.join("site-packages"));
            folders.push(python.join("dist-packages"));
        }
    }
    folders
}

fn failed(error: impl std::fmt::Display) -> RuntimeError {
    RuntimeError::of(error.to_string())
}

impl Engine for OnnxRuntime {
    fn name(&self) -> String {
        format!("onnxruntime {}", self.version)
    }

    fn libraries(&self) -> BTreeMap<String, String> {
        BTreeMap::from([("onnxruntime".to_owned(), self.version.clone())])
    }

    fn set_threads(&mut self, threads: usize) {
        self.threads = threads.max(1);
    }

    fn bind(&self, source: Source<'_>) -> Result<Box<dyn Graph>, RuntimeError> {
        let mut builder = Session::builder(&self.environment)
            .map_err(failed)?
            .with_optimization_level(GraphOptimizationLevel::All)
            .map_err(failed)?
            .with_intra_threads(self.threads)
            .map_err(failed)?
            // Threads that spin between two runs take the cores from the orchestrator and from who encodes the picture.
            .with_intra_op_spinning(false)
            .map_err(failed)?;
        let session = match source {
            Source::Bound { graph, weights } => {
                let bytes =
                    fs::read(graph).map_err(|error| failed(format!("{}: {error}", graph.display())))?;
                builder = builder
                    .with_external_initializer_file_in_memory(WEIGHTS_NAME, Arc::from(weights))
                    .map_err(failed)?;
                builder.commit_from_memory(&bytes)
            }
            Source::Plain(path) => builder.commit_from_file(path),
        };
        let session = session.map_err(failed)?;
        let mut inputs = Vec::new();
        let mut types = Vec::new();
        for input in session.inputs() {
            let (element, shape) = match input.dtype() {
                ValueType::Tensor { ty, shape, .. } => (
                    *ty,
                    Some(shape.iter().map(|extent| usize::try_from(*extent).ok()).collect()),
                ),
                _ => (TensorElementType::Float32, None),
            };
            inputs.push(Port {
                name: input.name().to_owned(),
                shape,
            });
            types.push(element);
        }
        let outputs = session
            .outputs()
            .iter()
            .map(|output| output.name().to_owned())
            .collect();
        Ok(Box::new(OrtGraph {
            session: Mutex::new(session),
            inputs,
            types,
            outputs,
        }))
    }
}

struct OrtGraph {
    session: Mutex<Session>,
    inputs: Vec<Port>,
    types: Vec<TensorElementType>,
    outputs: Vec<String>,
}

fn tensor<T>(shape: &[usize], data: Vec<T>) -> Result<SessionInputValue<'static>, RuntimeError>
where
    T: ort::value::PrimitiveTensorElementType + std::fmt::Debug + Clone + 'static,
{
    Ok(ort::value::Tensor::from_array((shape.to_vec(), data))
        .map_err(failed)?
        .into())
}

impl OrtGraph {
    fn value(&self, name: &str, value: &Value) -> Result<SessionInputValue<'static>, RuntimeError> {
        if !value.fits() {
            return Err(RuntimeError::Failed(format!(
                "shape {:?} does not fit its elements",
                value.shape
            )));
        }
        let index = self.inputs.iter().position(|port| port.name == name);
        let element = index.and_then(|index| self.types.get(index)).copied();
        let shape = &value.shape;
        match (&value.data, element) {
            (Data::F32(data), Some(TensorElementType::Int64)) => {
                tensor(shape, data.iter().map(|x| *x as i64).collect())
            }
            (Data::F32(data), Some(TensorElementType::Int32)) => {
                tensor(shape, data.iter().map(|x| *x as i32).collect())
            }
            (Data::F32(data), _) => tensor(shape, data.clone()),
            (Data::I64(data), Some(TensorElementType::Int32)) => {
                tensor(shape, data.iter().map(|x| *x as i32).collect())
            }
            (Data::I64(data), _) => tensor(shape, data.clone()),
        }
    }
}

impl Graph for OrtGraph {
    fn run(&self, inputs: &[(&str, Value)], outputs: &[&str]) -> Result<Vec<Tensor>, RuntimeError> {
        let mut values = Vec::with_capacity(inputs.len());
        for (name, value) in inputs {
            values.push(((*name).to_owned(), self.value(name, value)?));
        }
        let mut session = self.session.lock().map_err(failed)?;
        let results = session.run(values).map_err(failed)?;
        outputs
            .iter()
            .map(|name| {
                let value = results
                    .get(name)
                    .ok_or_else(|| RuntimeError::Failed(format!("no output `{name}`")))?;
                let (shape, data) = value.try_extract_tensor::<f32>().map_err(failed)?;
                Ok(Tensor {
                    shape: shape.iter().map(|extent| *extent as usize).collect(),
                    data: data.to_vec(),
                })
            })
            .collect()
    }

    fn inputs(&self) -> &[Port] {
        &self.inputs
    }

    fn outputs(&self) -> &[String] {
        &self.outputs
    }
}
