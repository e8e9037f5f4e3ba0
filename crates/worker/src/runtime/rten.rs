//! The rten engine: pure Rust, always there. The only file that meets rten's models.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use rten::{Dimension, Model, ModelOptions, NodeId, RunOptions, ThreadPool, ValueOrView};
use rten_tensor::prelude::*;

use super::{Data, Engine, Graph, Port, RuntimeError, Source, Tensor, Value, WEIGHTS_NAME};

const VERSION: &str = "0.27.0";

pub(super) struct Rten {
    pool: Arc<ThreadPool>,
}

impl Rten {
    pub(super) fn new() -> Self {
        Self {
            pool: Arc::new(ThreadPool::with_num_threads(super::default_threads())),
        }
    }
}

impl Engine for Rten {
    fn name(&self) -> String {
        format!("rten {VERSION}")
    }

    fn libraries(&self) -> BTreeMap<String, String> {
        BTreeMap::from([("rten".to_owned(), VERSION.to_owned())])
    }

    fn set_threads(&mut self, threads: usize) {
        self.pool = Arc::new(ThreadPool::with_num_threads(threads.max(1)));
    }

    fn bind(&self, source: Source<'_>) -> Result<Box<dyn Graph>, RuntimeError> {
        let mut options = ModelOptions::with_all_ops();
        options.prepack_weights(true);
        let model = match source {
            Source::Bound { graph, weights } => {
                options.external_data(WEIGHTS_NAME, weights);
                options.load(read(graph)?)
            }
            Source::Plain(path) => options.load_file(path),
        };
        let model = model.map_err(|error| RuntimeError::of(error.to_string()))?;
        let inputs = model.input_ids().iter().map(|id| port(&model, *id)).collect();
        let outputs = model
            .output_ids()
            .iter()
            .map(|id| port(&model, *id).name)
            .collect();
        Ok(Box::new(RtenGraph {
            model,
            pool: self.pool.clone(),
            inputs,
            outputs,
        }))
    }
}

fn read(path: &Path) -> Result<Vec<u8>, RuntimeError> {
    std::fs::read(path).map_err(|error| RuntimeError::Failed(format!("{}: {error}", path.display())))
}

fn port(model: &Model, id: NodeId) -> Port {
    let info = model.node_info(id);
    let shape = info.as_ref().and_then(|info| info.shape()).map(|shape| {
        shape
            .into_iter()
            .map(|dimension| match dimension {
                Dimension::Fixed(extent) => Some(extent),
                Dimension::Symbolic(_) => None,
            })
            .collect()
    });
    Port {
        name: info
            .and_then(|info| info.name().map(str::to_owned))
            .unwrap_or_default(),
        shape,
    }
}

struct RtenGraph {
    model: Model,
    pool: Arc<ThreadPool>,
    inputs: Vec<Port>,
    outputs: Vec<String>,
}

impl RtenGraph {
    fn id(&self, name: &str) -> Result<NodeId, RuntimeError> {
        self.model
            .node_id(name)
            .map_err(|error| RuntimeError::Failed(error.to_string()))
    }

    fn value(&self, id: NodeId, value: &Value) -> Result<rten::Value, RuntimeError> {
        if !value.fits() {
            return Err(RuntimeError::Failed(format!(
                "shape {:?} does not fit its elements",
                value.shape
            )));
        }
        let wants = self.model.node_info(id).and_then(|info| info.dtype());
        let wants_numbers = wants == Some(rten::ValueType::Tensor(rten::DataType::Float));
        let shape = value.shape.as_slice();
        Ok(match &value.data {
            // rten reads int64 as int32; Optimum's UNets take whole timesteps.
            Data::F32(data) if wants_numbers || wants.is_none() => {
                rten_tensor::Tensor::from_data(shape, data.clone()).into()
            }
            Data::F32(data) => {
                rten_tensor::Tensor::from_data(shape, data.iter().map(|x| *x as i32).collect::<Vec<_>>())
                    .into()
            }
            Data::I64(data) => {
                rten_tensor::Tensor::from_data(shape, data.iter().map(|x| *x as i32).collect::<Vec<_>>())
                    .into()
            }
        })
    }
}

impl Graph for RtenGraph {
    fn run(&self, inputs: &[(&str, Value)], outputs: &[&str]) -> Result<Vec<Tensor>, RuntimeError> {
        let mut values: Vec<(NodeId, ValueOrView)> = Vec::with_capacity(inputs.len());
        for (name, value) in inputs {
            let id = self.id(name)?;
            values.push((id, self.value(id, value)?.into()));
        }
        let ids = outputs
            .iter()
            .map(|name| self.id(name))
            .collect::<Result<Vec<_>, _>>()?;
        let options = RunOptions::default().with_thread_pool(Some(self.pool.clone()));
        let results = self
            .model
            .run(values, &ids, Some(options))
            .map_err(|error| RuntimeError::of(error.to_string()))?;
        results
            .into_iter()
            .zip(outputs)
            .map(|(value, name)| {
                let tensor = value
                    .into_tensor::<f32>()
                    .ok_or_else(|| RuntimeError::Failed(format!("output `{name}` is not a tensor of f32")))?;
                Ok(Tensor {
                    shape: tensor.shape().to_vec(),
                    data: tensor.to_vec(),
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
