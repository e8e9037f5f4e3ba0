//! One file a command.

pub mod control;
pub mod devices;
pub mod doctor;
pub mod generate;
pub mod jobs;
pub mod journal;
pub mod models;
pub mod serve;
pub mod setup;
pub mod watch;
pub mod worker;

use crate::client::Client;
use crate::console::say;
use crate::exit_code::Failure;

/// Which server a command asks.
#[derive(Debug, Clone, clap::Args)]
pub struct Remote {
    /// Address of the server.
    #[arg(
        long,
        value_name = "URL",
        default_value = "http://127.0.0.1:7801",
        env = "CALOTYPE_SERVER"
    )]
    pub server: String,
    /// Its API key, where it has one.
    #[arg(long, value_name = "KEY", env = "CALOTYPE_API_KEY", hide_env_values = true)]
    pub api_key: Option<String>,
    /// Print JSON for programs.
    #[arg(long)]
    pub json: bool,
}

impl Remote {
    fn client(&self) -> Result<Client, Failure> {
        Client::new(&self.server, self.api_key.clone())
    }
}

fn print_json(value: &impl serde::Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value).map_err(|error| Failure::Other(error.to_string()))?;
    say!("{text}");
    Ok(())
}
