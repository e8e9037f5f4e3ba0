//! `calotype serve`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use calotype_server::{ApiKey, ServerConfig};
use tokio::signal::unix::{SignalKind, signal};

use crate::console::say;
use crate::exit_code::{Exit, Failure};
use crate::keep::KeepArgs;
use crate::local::{self, Drain, EngineArgs};
use crate::places;

/// Options of the server.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Address to listen on. Anything but loopback needs an API key.
    #[arg(long, default_value = "127.0.0.1:7801")]
    listen: SocketAddr,
    /// Where the journal and the pictures are kept; by default the user's data directory.
    #[arg(long, value_name = "DIR", env = "CALOTYPE_DATA_DIR")]
    data_dir: Option<PathBuf>,
    /// Ask every client for this key; may be given several times. The name before `=` is the client's: the devices are
    /// shared fairly between clients. A key without a name is called `default`; without any key each address is a client.
    #[arg(
        long,
        value_name = "[NAME=]SECRET",
        env = "CALOTYPE_API_KEY",
        hide_env_values = true
    )]
    api_key: Vec<String>,
    /// How long running jobs may end after SIGTERM or Ctrl-C, while new ones are refused; 0 stops at once. Jobs that have
    /// not ended go on at the next start.
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    drain: u64,
    /// Most jobs that wait; more get 429.
    #[arg(long, default_value_t = 10_000)]
    queue: usize,
    /// Most jobs that share one worker; 0 for the worker's own figure.
    #[arg(long, default_value_t = 0)]
    max_concurrency: u32,
    /// Share of a device's memory that models and jobs may take.
    #[arg(long, default_value_t = 0.8)]
    memory_share: f64,
    /// Share of the host's memory that keeps weights ready for GPUs, so that a switch of models runs at the rate of the
    /// bus; 0 for none. Without a GPU nothing is kept.
    #[arg(long, default_value_t = 0.25)]
    weight_cache: f64,
    #[command(flatten)]
    keep: KeepArgs,
    #[command(flatten)]
    engine: EngineArgs,
}

/// Serves until SIGINT or SIGTERM and the drain that follows; a second signal leaves at once.
pub fn run(args: Args) -> Result<Exit, Failure> {
    local::log("info");
    let data_dir = args.data_dir.clone().unwrap_or_else(places::data_dir);
    let mut config = args.engine.config(&data_dir)?;
    config.queue_max_jobs = args.queue;
    config.max_concurrency = args.max_concurrency;
    config.memory_share = args.memory_share;
    config.weight_cache_share = args.weight_cache;
    config.retention = args.keep.retention();
    let server = ServerConfig {
        listen: args.listen,
        api_keys: args.api_key.into_iter().map(ApiKey::from).collect(),
        ..ServerConfig::default()
    };
    let shown = data_dir.display().to_string();
    local::runtime()?.block_on(async move {
        let signals = stop_signals()?;
        let listening = move |address| {
            say!("listening on http://{address}, data in {shown}");
            say!("try: curl -s http://{address}/health");
        };
        let drain = Drain::Within(Duration::from_secs(args.drain));
        local::serve(config, server, listening, signals, drain).await
    })?;
    Ok(Exit::Ok)
}

fn stop_signals() -> Result<impl Future<Output = ()> + Send + 'static, Failure> {
    let failed = |error: std::io::Error| Failure::Other(format!("failed to listen for signals: {error}"));
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        tokio::spawn(async move {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            std::process::exit(Exit::Cancelled as i32);
        });
    })
}
