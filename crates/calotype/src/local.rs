//! An engine and a server in this process: what `serve` runs, and what `generate` uses when no server is named.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use calotype_engine::device::Declared;
use calotype_engine::{Config, Engine};
use calotype_server::ServerConfig;

use crate::exit_code::Failure;
use crate::places;
use crate::runtimes::{self, RuntimeChoice};

/// Options that a local engine needs, for `serve` and `generate` alike.
#[derive(Debug, Clone, clap::Args)]
pub struct EngineArgs {
    /// A folder with models; may be given several times. Others are found by themselves.
    #[arg(long = "models", value_name = "DIR")]
    pub models: Vec<PathBuf>,
    /// What computes: by itself the native worker on the processor, and the Python worker on GPUs and for what only it
    /// can do; `python`, `rten` or `onnxruntime` for nothing else.
    #[arg(long, value_enum, default_value_t = RuntimeChoice::Auto)]
    pub runtime: RuntimeChoice,
    /// The Python that has the worker's packages; by default the one that `calotype setup python` made.
    #[arg(long, value_name = "FILE", env = "CALOTYPE_PYTHON")]
    pub python: Option<PathBuf>,
    /// The ONNX Runtime library, when it lies in an unusual place.
    #[arg(long, value_name = "FILE", env = "CALOTYPE_ONNXRUNTIME")]
    pub onnxruntime: Option<PathBuf>,
    /// Compile what GPUs run, in the background: faster after a minute or two a model and size.
    #[arg(long)]
    pub compile: bool,
    /// A device that is not found by itself, with the memory that it has: xpu0=16GiB for an Intel card, mps=12GiB for an
    /// Apple GPU, directml=8GiB; may be given several times. NVIDIA's cards, and AMD's on Linux, need none of it.
    #[arg(long = "device", value_name = "KIND[N]=SIZE")]
    pub devices: Vec<Declared>,
    /// CPU threads of a worker; 0 for all cores.
    #[arg(long, default_value_t = 0)]
    pub threads: u32,
    /// Another worker program, for tests.
    #[arg(long, value_name = "FILE", hide = true)]
    pub worker_program: Option<PathBuf>,
    /// Its arguments.
    #[arg(long, value_name = "ARG", hide = true, allow_hyphen_values = true)]
    pub worker_arg: Vec<String>,
}

impl EngineArgs {
    /// The engine's settings.
    pub fn config(&self, data_dir: &Path) -> Result<Config, Failure> {
        let mut config = Config::new(data_dir.to_owned(), runtimes::chosen(self, data_dir)?);
        config.model_dirs = places::model_dirs(&self.models, data_dir);
        config.threads = self.threads;
        config.compile = self.compile;
        config.declared.clone_from(&self.devices);
        Ok(config)
    }
}

/// What becomes of running jobs when the server stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drain {
    /// They are stopped, and a durable one goes on at the next start.
    AtOnce,
    /// They may end for so long, and a person is told what is waited for.
    Within(Duration),
}

/// Starts engine and server, tells where it listens, and serves until `shutdown` and the drain that follows. Meanwhile the
/// health says `draining` and new jobs are refused; everything else is served.
pub async fn serve(
    config: Config,
    server_config: ServerConfig,
    listening: impl FnOnce(SocketAddr),
    shutdown: impl Future<Output = ()> + Send + 'static,
    drain: Drain,
) -> Result<(), Failure> {
    // The address first: a wrong one must not cost the start of an engine.
    let server = calotype_server::bind(server_config)
        .await
        .map_err(|error| Failure::Other(error.to_string()))?;
    let engine = Engine::start(config).await?;
    listening(server.local_addr());
    let stopping = engine.clone();
    server
        .serve(engine, async move {
            shutdown.await;
            stop(&stopping, drain).await;
        })
        .await;
    Ok(())
}

async fn stop(engine: &Engine, drain: Drain) {
    let within = match drain {
        Drain::AtOnce => Duration::ZERO,
        Drain::Within(within) => within,
    };
    engine.begin_drain(within);
    if let Drain::Within(within) = drain {
        eprintln!("{}", waited_for(&engine.health().await.jobs, within));
    }
    engine.shutdown(within).await;
}

/// What a person is told while the server stops. `jobs` counts jobs by their state.
fn waited_for(jobs: &BTreeMap<String, usize>, within: Duration) -> String {
    let counted = |wanted: fn(&str) -> bool| -> usize {
        let of_it = jobs.iter().filter(|(state, _)| wanted(state));
        of_it.map(|(_, count)| count).sum()
    };
    let held = counted(|state| state == "queued" || state == "paused");
    let running = counted(|_| true) - held;
    let mut parts = vec!["stopping: new jobs are refused".to_owned()];
    match (running, within.as_secs()) {
        (0, _) => {}
        (running, 0) => parts.push(format!("{running} running go on at the next start")),
        (running, seconds) => parts.push(format!("waiting up to {seconds} s for {running} running")),
    }
    if held > 0 {
        parts.push(format!("{held} are kept for the next start"));
    }
    format!("{}; once more leaves at once", parts.join(", "))
}

/// A runtime for it.
pub fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::Other(format!("failed to start the async runtime: {error}")))
}

/// Log lines to stderr, by `RUST_LOG` or this default.
pub fn log(default: &str) {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(default));
    let _ = tracing_subscriber::fmt()
        // Where the log lies on a full disk it is lost; told on the same stream, that would panic in whoever logs.
        .log_internal_errors(false)
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .try_init();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_person_is_told_what_a_stop_waits_for() {
        let told = |jobs: &[(&str, usize)], seconds| {
            let jobs = jobs.iter().map(|(state, count)| ((*state).to_owned(), *count));
            waited_for(&jobs.collect(), Duration::from_secs(seconds))
        };
        assert_eq!(
            told(
                &[("running", 3), ("loading", 1), ("queued", 5), ("paused", 1)],
                30
            ),
            "stopping: new jobs are refused, waiting up to 30 s for 4 running, 6 are kept for the next start; once more \
             leaves at once"
        );
        assert_eq!(
            told(&[("running", 1)], 0),
            "stopping: new jobs are refused, 1 running go on at the next start; once more leaves at once"
        );
        assert_eq!(
            told(&[], 30),
            "stopping: new jobs are refused; once more leaves at once"
        );
    }
}
