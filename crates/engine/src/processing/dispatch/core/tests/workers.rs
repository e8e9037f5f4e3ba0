//! A virtual worker: takes lines in order, answers as the protocol says, and is run by hand.

use std::collections::{BTreeMap, VecDeque};

use calotype_protocol::{
    Attempt, Capabilities, DeviceFacts, Down, Hello, InstanceId, JobId, LoadId, Loaded, ModelId, PROTOCOL,
    Ready, RunResult, Up,
};

pub(super) use crate::processing::schedule::tests::can;

/// What lies in a worker's pipe.
#[derive(Debug)]
pub(super) enum Order {
    Line(Down),
    Load {
        load: LoadId,
        model: ModelId,
        bytes: u64,
    },
}

/// A run inside.
#[derive(Debug)]
pub(super) struct Inside {
    pub(super) attempt: Attempt,
    pub(super) is_paused: bool,
}

#[derive(Debug)]
pub(super) struct VirtualWorker {
    pub(super) can: Capabilities,
    pub(super) incarnation: u64,
    pub(super) is_alive: bool,
    /// Whether the core wants its process replaced.
    pub(super) is_to_recycle: bool,
    pub(super) inbox: VecDeque<Order>,
    pub(super) outbox: VecDeque<Up>,
    pub(super) runs: BTreeMap<JobId, Inside>,
    pub(super) models: BTreeMap<ModelId, u64>,
    /// Of each model that it drops, so many per cent come back.
    pub(super) returns_percent: u64,
    /// Loads that it was asked for so far.
    pub(super) loads: usize,
    /// Every line that it took, as words.
    pub(super) heard: Vec<String>,
}

impl VirtualWorker {
    pub(super) fn new(can: Capabilities) -> Self {
        Self {
            can,
            incarnation: 0,
            is_alive: false,
            is_to_recycle: false,
            inbox: VecDeque::new(),
            outbox: VecDeque::new(),
            runs: BTreeMap::new(),
            models: BTreeMap::new(),
            returns_percent: 100,
            loads: 0,
            heard: Vec::new(),
        }
    }

    pub(super) fn die(&mut self) {
        self.is_alive = false;
        self.is_to_recycle = false;
        self.inbox.clear();
        self.outbox.clear();
        self.runs.clear();
        self.models.clear();
    }

    pub(super) fn hello(&self) -> Box<Hello> {
        Box::new(Hello {
            protocol: PROTOCOL,
            worker: "virtual 1".into(),
            runtime: "virtual".into(),
            instance: InstanceId(self.incarnation.to_string()),
            pid: self.incarnation as u32,
            libraries: BTreeMap::new(),
        })
    }

    pub(super) fn ready(&self) -> Box<Ready> {
        Box::new(Ready {
            device: DeviceFacts {
                name: "virtual".into(),
                total_bytes: 0,
                free_bytes: 0,
                dtypes: Vec::new(),
                compute_capability: None,
            },
            capabilities: self.can.clone(),
        })
    }

    /// Takes the next line of its pipe. Says whether there was one.
    pub(super) fn work(&mut self) -> bool {
        let Some(order) = self.inbox.pop_front() else {
            return false;
        };
        match order {
            Order::Load { load, model, bytes } => {
                self.heard.push(format!("load {model}"));
                self.loads += 1;
                self.models.insert(model.clone(), bytes);
                self.outbox.push_back(Up::Loaded(Loaded {
                    load,
                    model,
                    resident_bytes: bytes,
                    phases_ms: BTreeMap::new(),
                }));
            }
            Order::Line(line) => self.take(line),
        }
        true
    }

    fn take(&mut self, line: Down) {
        match line {
            Down::Run(run) => {
                self.heard.push(format!("run {}", run.job));
                let inside = Inside {
                    attempt: run.attempt,
                    is_paused: false,
                };
                let before = self.runs.insert(run.job.clone(), inside);
                assert!(before.is_none(), "{} runs twice in one worker", run.job);
            }
            Down::Cancel { job, attempt } => {
                self.heard.push(format!("cancel {job}"));
                if self
                    .runs
                    .get(&job)
                    .is_some_and(|inside| inside.attempt == attempt)
                {
                    self.runs.remove(&job);
                    let at_step = 1;
                    self.outbox.push_back(Up::Cancelled {
                        job,
                        attempt,
                        at_step,
                    });
                }
            }
            Down::Pause { job, attempt, .. } => {
                self.heard.push(format!("pause {job}"));
                if let Some(inside) = self.runs.get_mut(&job).filter(|inside| inside.attempt == attempt) {
                    inside.is_paused = true;
                    let at_step = 1;
                    self.outbox.push_back(Up::Paused {
                        job,
                        attempt,
                        at_step,
                    });
                }
            }
            Down::Resume { job, attempt } => {
                self.heard.push(format!("resume {job}"));
                if let Some(inside) = self.runs.get_mut(&job).filter(|inside| inside.attempt == attempt) {
                    inside.is_paused = false;
                    let at_step = 1;
                    self.outbox.push_back(Up::Resumed {
                        job,
                        attempt,
                        at_step,
                    });
                }
            }
            Down::Unload { unload, model } => {
                let model = model.expect("the core drops models by name");
                self.heard.push(format!("unload {model}"));
                let bytes = self.models.remove(&model).unwrap_or(0);
                self.outbox.push_back(Up::Unloaded {
                    unload,
                    freed_bytes: bytes * self.returns_percent / 100,
                });
            }
            other => panic!("a worker was sent {other:?}"),
        }
    }

    /// A run delivers.
    pub(super) fn deliver(&mut self, job: &JobId) {
        let inside = self.runs.remove(job).expect("the run is in the worker");
        assert!(!inside.is_paused, "a paused run makes nothing");
        self.outbox.push_back(Up::Result(Box::new(RunResult {
            job: job.clone(),
            attempt: inside.attempt,
            images: Vec::new(),
            seeds: Vec::new(),
            timings_ms: BTreeMap::new(),
            peak_bytes: 0,
            phase_peaks_bytes: BTreeMap::new(),
            batch_sizes: Vec::new(),
            engine: "virtual".into(),
            plan: Vec::new(),
        })));
    }
}
