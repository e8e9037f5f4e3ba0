//! `calotype models`: of a server, or of the folders that a server here would use.

use std::path::PathBuf;

use calotype_engine::model::{Catalogue, ModelRecord};

use crate::client::Client;
use crate::console::say;
use crate::exit_code::{Exit, Failure};
use crate::{console, places};

/// Whose models.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Ask this server; without it the folders here are scanned.
    #[arg(long, value_name = "URL", env = "CALOTYPE_SERVER")]
    server: Option<String>,
    /// Its API key.
    #[arg(long, value_name = "KEY", env = "CALOTYPE_API_KEY", hide_env_values = true)]
    api_key: Option<String>,
    /// A folder with models; may be given several times.
    #[arg(long = "models", value_name = "DIR")]
    models: Vec<PathBuf>,
    /// Print JSON for programs.
    #[arg(long)]
    pub json: bool,
}

/// Lists them.
pub fn run(args: &Args) -> Result<Exit, Failure> {
    let records: Vec<ModelRecord> = match &args.server {
        Some(url) => Client::new(url, args.api_key.clone())?.get("/api/models")?,
        None => {
            let dirs = places::model_dirs(&args.models, &places::data_dir());
            Catalogue::scan(&dirs).models().cloned().collect()
        }
    };
    if args.json {
        super::print_json(&records)?;
        return Ok(Exit::Ok);
    }
    let widest = records
        .iter()
        .map(|record| record.id.as_str().chars().count())
        .max();
    let width = widest.unwrap_or(0).clamp(12, 40);
    for record in records {
        let kind = serde_json::to_value(record.kind).unwrap_or_default();
        let kind = kind.as_str().unwrap_or_default();
        say!(
            "{:<width$} {kind:<12} {:>10}  {}",
            record.id.as_str(),
            console::bytes(record.weights_bytes),
            record.name
        );
        if !record.presets.is_empty() {
            let names: Vec<&str> = record.presets.keys().map(String::as_str).collect();
            say!("{:<width$} presets: {}", "", names.join(", "));
        }
        if !record.lacks.is_empty() {
            say!("{:<width$} comes without: {}", "", record.lacks.join(", "));
        }
        if let Some(problem) = &record.problem {
            say!("{:<width$} problem: {problem}", "");
        }
    }
    Ok(Exit::Ok)
}
