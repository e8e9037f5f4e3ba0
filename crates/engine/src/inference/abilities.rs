//! What the workers of this engine can do, together and each: against it requests are checked before they wait. Pure.

use calotype_protocol::{Capabilities, Mode, Sampler, Schedule};

use super::{GenerateRequest, MissingFeature, Needs, not_served};
use crate::error::Error;

/// Largest edge while there is a worker that has not said its own.
const MOST_EDGE: u32 = 2048;

/// What the workers here can do, together and each.
#[derive(Debug, Clone, PartialEq)]
pub struct Abilities {
    /// Samplers.
    pub samplers: Vec<Sampler>,
    /// Schedules.
    pub schedules: Vec<Schedule>,
    /// Modes.
    pub modes: Vec<Mode>,
    /// Largest edge of an image.
    pub max_edge: u32,
    /// Each worker that has said what it can do.
    pub workers: Vec<(String, Capabilities)>,
    /// Whether there is one that has not: what the others lack may be in it.
    pub unknown: bool,
}

impl Abilities {
    /// Of workers by name. With one that has not said what it can do, everything is possible.
    pub fn of(workers: Vec<(String, Capabilities)>, unknown: bool) -> Self {
        fn union<T: Copy + PartialEq>(
            all: &[T],
            unknown: bool,
            workers: &[(String, Capabilities)],
            list: impl Fn(&Capabilities) -> &Vec<T>,
        ) -> Vec<T> {
            let has = |one: &&T| unknown || workers.iter().any(|(_, can)| list(can).contains(one));
            all.iter().filter(has).copied().collect()
        }
        let own_edge = workers.iter().map(|(_, can)| can.max_edge).max().unwrap_or(0);
        Self {
            samplers: union(Sampler::ALL, unknown, &workers, |can| &can.samplers),
            schedules: union(Schedule::ALL, unknown, &workers, |can| &can.schedules),
            modes: union(Mode::ALL, unknown, &workers, |can| &can.modes),
            max_edge: if unknown {
                own_edge.max(MOST_EDGE)
            } else {
                own_edge
            },
            workers,
            unknown,
        }
    }

    /// Of the native worker.
    #[cfg(test)]
    pub(crate) fn native() -> Self {
        let can = Capabilities {
            engine: "rten".into(),
            families: vec!["sd".into()],
            formats: vec!["graphs".into(), "onnx".into()],
            work: vec!["generate".into()],
            modes: Mode::ALL.to_vec(),
            samplers: vec![
                Sampler::Ddim,
                Sampler::Euler,
                Sampler::EulerAncestral,
                Sampler::Heun,
                Sampler::DpmPp2m,
                Sampler::DpmPp2mSde,
                Sampler::UniPc,
                Sampler::Lcm,
            ],
            schedules: vec![Schedule::Default, Schedule::Karras],
            adapters: vec!["lora".into()],
            plans: Vec::new(),
            segments: false,
            loads_beside_runs: false,
            max_batch: 4,
            pauses: true,
            previews: true,
            max_edge: 1024,
        };
        Self::of(vec![("cpu0-native".into(), can)], false)
    }

    /// Refuses what no worker has at all, before it is looked at any closer.
    pub(super) fn have(&self, request: &GenerateRequest) -> Result<(), Error> {
        let asked = [
            (
                "control",
                "controlnet",
                request.control.as_ref().is_some_and(|units| !units.is_empty()),
            ),
            ("refiner", "refiner", request.refiner.is_some()),
            ("hires", "hires", request.hires.is_some()),
        ];
        let has = |name: &str| {
            let own = |can: &Capabilities| can.adapters.iter().any(|adapter| adapter == name);
            self.unknown || self.workers.iter().any(|(_, can)| own(can))
        };
        match asked.into_iter().find(|(_, name, asked)| *asked && !has(name)) {
            None => Ok(()),
            Some((field, name, _)) => {
                let words = format!("has no {name}");
                let lacks = self.workers.iter().map(|(worker, _)| {
                    let words = words.clone();
                    (worker.clone(), MissingFeature { field, words })
                });
                Err(not_served(&lacks.collect::<Vec<_>>()).field(field))
            }
        }
    }

    /// Whether a worker can do all of it, or what each of them lacks.
    pub(super) fn serve(&self, needs: &Needs) -> Result<(), Error> {
        let lacks: Vec<_> = self
            .workers
            .iter()
            .filter_map(|(name, can)| Some((name.clone(), needs.missing_feature(can)?)))
            .collect();
        if self.unknown || lacks.len() < self.workers.len() {
            return Ok(());
        }
        Err(not_served(&lacks))
    }
}
