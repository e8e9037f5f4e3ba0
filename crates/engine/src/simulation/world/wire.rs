//! What virtual workers do with the lines that go down to them.

use super::{UNLOAD, Watch, World};
use crate::processing::schedule::WorkerId;
use crate::simulation::event::{Event, line, number};
use crate::simulation::worker::NewRun;
use calotype_protocol::{Down, ModelId};
use std::time::Duration;

impl<W: Watch> World<W> {
    pub(super) fn send(&mut self, worker: WorkerId, down: Down) {
        let index = worker.0 as usize;
        self.work(index);
        let place = &mut self.workers[index];
        let answer = match down {
            Down::Run(run) => {
                let job = number(&run.job);
                let facts = &mut self.jobs[job];
                facts.began_at.get_or_insert(self.now);
                let model = &self.models[facts.job.model];
                place.run(NewRun {
                    job,
                    id: run.job,
                    attempt: run.attempt,
                    model: model.id.clone(),
                    work_ms: facts.job.work_ms(model),
                    steps: facts.job.steps,
                });
                None
            }
            Down::Pause { job, .. } => place.pause(&job),
            Down::Resume { job, .. } => place.resume(&job),
            Down::Cancel { job, .. } => place.cancel(&job),
            Down::Unload { unload, model } => {
                place.unload_begins();
                let model = model.unwrap_or_else(|| ModelId(String::new()));
                let worker = worker.0;
                self.push(
                    UNLOAD,
                    Event::Unloaded {
                        worker,
                        unload,
                        model,
                    },
                );
                None
            }
            other => {
                self.faults.push(format!("nobody expected {other:?}"));
                None
            }
        };
        if let Some(up) = answer {
            self.push_input(Duration::ZERO, line(worker.0, up));
        }
        self.changed(index);
    }
}
