//! `calotype serve`.

use std::net::SocketAddr;
use std::path::PathBuf;

use calotype_server::{ApiKey, ServerConfig};
use tokio::signal::unix::{SignalKind, signal};

use crate::console::say;
use crate::exit_code::{Exit, Failure};
use crate::keep::KeepArgs;
use crate::local::{self, EngineArgs};
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
    /// Ask every client for this key.
    #[arg(long, value_name = "KEY", env = "CALOTYPE_API_KEY", hide_env_values = true)]
    api_key: Option<String>,
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

/// Serves until SIGINT or SIGTERM.
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
        api_key: args.api_key.map(ApiKey::from),
        ..ServerConfig::default()
    };
    let shown = data_dir.display().to_string();
    local::runtime()?.block_on(async move {
        let signals = stop_signals()?;
        let listening = move |address| {
            say!("listening on http://{address}, data in {shown}");
            say!("try: curl -s http://{address}/health");
        };
        local::serve(config, server, listening, signals).await
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
        eprintln!("stopping; once more leaves at once");
        tokio::spawn(async move {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            std::process::exit(Exit::Cancelled as i32);
        });
    })
}
