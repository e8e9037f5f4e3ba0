//! `calotype devices`.

use calotype_engine::DeviceView;

use super::Remote;
use crate::console::bytes;
use crate::console::say;
use crate::exit_code::{Exit, Failure};

/// Of which server.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub remote: Remote,
}

/// Shows them.
pub fn run(args: &Args) -> Result<Exit, Failure> {
    let devices: Vec<DeviceView> = args.remote.client()?.get("/api/devices")?;
    if args.remote.json {
        super::print_json(&devices)?;
        return Ok(Exit::Ok);
    }
    for DeviceView {
        device,
        state,
        workers,
    } in devices
    {
        let total = bytes(device.total_bytes);
        let memory = match device.free_bytes {
            Some(free_bytes) => format!("{} of {total} free", bytes(free_bytes)),
            None => format!("{total}, no driver tells what is free"),
        };
        say!("{}  {state}  {}  {memory}", device.id, device.name);
        for worker in workers {
            let engine = worker
                .capabilities
                .map(|can| can.engine)
                .unwrap_or_else(|| "no runtime yet".into());
            let resident: Vec<String> = worker.resident.iter().map(ToString::to_string).collect();
            say!(
                "  {} {} ({engine}), resident: {}",
                worker.name,
                worker.state,
                resident.join(", ")
            );
            if let Some(exit) = worker.last_exit {
                say!("  last process left: {exit}");
            }
        }
    }
    Ok(Exit::Ok)
}
