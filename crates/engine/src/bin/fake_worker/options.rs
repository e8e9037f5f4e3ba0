//! What the command line and the environment say: the fault, and how fast and how large this worker is.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use calotype_protocol::ModelId;

use crate::fault::Fault;

/// What it was told, or what holds where nothing was said.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Options {
    pub(crate) fault: Fault,
    /// Time of a tick with one run in it.
    pub(crate) step: Duration,
    /// What each further run adds to a tick, as a part of `step`: 0 for a batch that costs as much as one, 1 for runs
    /// that gain nothing from going together.
    pub(crate) share: f64,
    /// Time of a load, in ten pieces. It stops everything else, as in the real workers.
    pub(crate) load: Duration,
    /// What a model takes that has no size of its own.
    pub(crate) model_bytes: u64,
    pub(crate) bytes_of_models: BTreeMap<ModelId, u64>,
    /// Most runs in a tick.
    pub(crate) max_batch: u32,
    /// Memory of the device that is reported.
    pub(crate) total_bytes: u64,
    /// Neither progress nor previews are told.
    pub(crate) quiet: bool,
    /// Weights may wait in host memory, and in segments.
    pub(crate) offloads: bool,
    /// The file by which `killed_once` knows that it was already killed.
    pub(crate) marker: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            fault: Fault::Good,
            step: Duration::ZERO,
            share: 0.0,
            load: Duration::ZERO,
            model_bytes: 1000,
            bytes_of_models: BTreeMap::new(),
            max_batch: 8,
            total_bytes: 1 << 30,
            quiet: false,
            offloads: false,
            marker: None,
        }
    }
}

/// Option, and the variable that says the same.
const NAMES: [(&str, &str); 9] = [
    ("--step-ms", "FAKE_STEP_MS"),
    ("--share", "FAKE_SHARE"),
    ("--load-ms", "FAKE_LOAD_MS"),
    ("--model-bytes", "FAKE_MODEL_BYTES"),
    ("--max-batch", "FAKE_MAX_BATCH"),
    ("--total-bytes", "FAKE_TOTAL_BYTES"),
    ("--quiet", "FAKE_QUIET"),
    ("--offloads", "FAKE_OFFLOADS"),
    ("--marker", "FAKE_MARKER"),
];

impl Options {
    /// From this process's arguments and environment; an argument is stronger.
    pub(crate) fn of_process() -> Result<Self, String> {
        Self::of(std::env::args().skip(1), |variable| std::env::var(variable).ok())
    }

    fn of(
        arguments: impl Iterator<Item = String>,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, String> {
        let mut options = Self::default();
        for (name, variable) in NAMES.map(|(name, of)| (name, variable(of))) {
            if let Some(value) = variable {
                options.set(name, &value)?;
            }
        }
        let mut arguments = arguments.peekable();
        if let Some(fault) = arguments.next_if(|first| !first.starts_with("--")) {
            options.fault = Fault::from_name(&fault).ok_or_else(|| format!("unknown fault `{fault}`"))?;
        }
        while let Some(name) = arguments.next() {
            let value = if ["--quiet", "--offloads"].contains(&name.as_str()) {
                "1".to_owned()
            } else {
                arguments
                    .next()
                    .ok_or_else(|| format!("`{name}` needs a value"))?
            };
            options.set(&name, &value)?;
        }
        Ok(options)
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), String> {
        let wrong = || format!("`{name}` does not take `{value}`");
        let number = || value.parse::<u64>().map_err(|_| wrong());
        let time = || {
            let ms: f64 = value.parse().map_err(|_| wrong())?;
            Duration::try_from_secs_f64(ms / 1000.0).map_err(|_| wrong())
        };
        match name {
            "--step-ms" => self.step = time()?,
            "--load-ms" => self.load = time()?,
            "--share" => {
                let share: f64 = value.parse().map_err(|_| wrong())?;
                if !(0.0..=1.0).contains(&share) {
                    return Err(wrong());
                }
                self.share = share;
            }
            "--model-bytes" => {
                for part in value.split(',') {
                    match part.split_once('=') {
                        Some((model, bytes)) => {
                            let bytes = bytes.parse().map_err(|_| wrong())?;
                            self.bytes_of_models.insert(model.into(), bytes);
                        }
                        None => self.model_bytes = part.parse().map_err(|_| wrong())?,
                    }
                }
            }
            "--max-batch" => {
                self.max_batch = value.parse().ok().filter(|most| *most > 0).ok_or_else(wrong)?;
            }
            "--total-bytes" => self.total_bytes = number()?,
            "--quiet" => self.quiet = true,
            "--offloads" => self.offloads = true,
            "--marker" => self.marker = Some(value.into()),
            other => return Err(format!("unknown option `{other}`")),
        }
        Ok(())
    }

    /// What a model takes.
    pub(crate) fn bytes_of(&self, model: &ModelId) -> u64 {
        self.bytes_of_models
            .get(model)
            .copied()
            .unwrap_or(self.model_bytes)
    }

    /// Time of a tick with so many runs in it.
    pub(crate) fn tick(&self, runs: usize) -> Duration {
        self.step
            .mul_f64(1.0 + runs.saturating_sub(1) as f64 * self.share)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(arguments: &[&str], variables: &[(&str, &str)]) -> Result<Options, String> {
        let arguments = arguments.iter().map(|argument| (*argument).to_owned());
        let variable = |name: &str| {
            let found = variables.iter().find(|(variable, _)| *variable == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        Options::of(arguments, variable)
    }

    #[test]
    fn an_argument_is_stronger_than_the_variable_of_the_same_name() {
        let variables = [("FAKE_STEP_MS", "5"), ("FAKE_MAX_BATCH", "2")];
        let both = options(&["fails", "--step-ms", "0.5", "--quiet"], &variables).expect("options");
        assert_eq!(
            (both.fault, both.step),
            (Fault::Fails, Duration::from_micros(500))
        );
        assert_eq!((both.max_batch, both.quiet), (2, true));
        assert_eq!(options(&[], &[]), Ok(Options::default()));
    }

    #[test]
    fn models_have_sizes_of_their_own_beside_the_one_of_all_others() {
        let sizes = options(&["--model-bytes", "7,sd15=2132000000"], &[]).expect("options");
        assert_eq!(
            (sizes.bytes_of(&"sd15".into()), sizes.bytes_of(&"tiny".into())),
            (2_132_000_000, 7)
        );
    }

    #[test]
    fn runs_that_share_a_tick_cost_their_share_of_it() {
        let share = options(&["--step-ms", "10", "--share", "0.25"], &[]).expect("options");
        let ticks = [1, 2, 5].map(|runs| share.tick(runs).as_micros());
        assert_eq!(ticks, [10_000, 12_500, 20_000]);
    }

    #[test]
    fn what_cannot_be_meant_is_refused_with_its_name() {
        for (arguments, said) in [
            (vec!["nonsense"], "unknown fault `nonsense`"),
            (vec!["good", "--speed", "1"], "unknown option `--speed`"),
            (vec!["--step-ms"], "`--step-ms` needs a value"),
            (vec!["--share", "2"], "`--share` does not take `2`"),
            (vec!["--max-batch", "0"], "`--max-batch` does not take `0`"),
            (
                vec!["--model-bytes", "a=b"],
                "`--model-bytes` does not take `a=b`",
            ),
        ] {
            assert_eq!(options(&arguments, &[]), Err(said.to_owned()));
        }
    }
}
