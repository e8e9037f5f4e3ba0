//! `calotype doctor`: what was found, what is missing, and what would mend it.

use std::path::PathBuf;

use calotype_engine::device::{self, HostFacts};
use calotype_engine::model::{Catalogue, ModelKind};
use serde::Serialize;

use crate::console::say;
use crate::exit_code::{Exit, Failure};
use crate::{console, places};

/// What to look at.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The data directory of the server.
    #[arg(long, value_name = "DIR", env = "CALOTYPE_DATA_DIR")]
    data_dir: Option<PathBuf>,
    /// A folder with models; may be given several times.
    #[arg(long = "models", value_name = "DIR")]
    models: Vec<PathBuf>,
    /// The Python that has the worker's packages; by default the one that `calotype setup python` made.
    #[arg(long, value_name = "FILE", env = "CALOTYPE_PYTHON")]
    python: Option<PathBuf>,
    /// Print JSON for programs.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Verdict {
    Good,
    Missing,
    Broken,
}

#[derive(Debug, Serialize)]
struct Finding {
    what: &'static str,
    verdict: Verdict,
    found: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    advice: Option<String>,
}

/// Looks, and fails only where nothing could be served.
pub fn run(args: &Args) -> Result<Exit, Failure> {
    let data_dir = args.data_dir.clone().unwrap_or_else(places::data_dir);
    let gpus: Vec<String> = device::inventory(&[])
        .into_iter()
        .filter(|device| device.kind != "cpu")
        .map(|device| format!("{} ({})", device.id, device.name))
        .collect();
    let findings = [
        host(),
        gpu(&gpus),
        shared_memory(!gpus.is_empty()),
        models(args, &data_dir),
        runtime(),
        python(args, &data_dir),
        writable(&data_dir),
    ];
    if args.json {
        super::print_json(&findings)?;
    } else {
        for Finding {
            what,
            verdict,
            found,
            advice,
        } in &findings
        {
            let mark = match verdict {
                Verdict::Good => "ok     ",
                Verdict::Missing => "missing",
                Verdict::Broken => "broken ",
            };
            say!("{mark} {what}: {found}");
            if let Some(advice) = advice {
                say!("        {advice}");
            }
        }
    }
    let broken = findings.iter().any(|finding| finding.verdict == Verdict::Broken);
    Ok(if broken { Exit::Internal } else { Exit::Ok })
}

fn host() -> Finding {
    let host = HostFacts::read();
    let found = format!(
        "{}, {} cores, {} of {} free",
        host.name,
        host.cores,
        console::bytes(host.free_bytes),
        console::bytes(host.total_bytes)
    );
    let small = host.free_bytes < 1 << 30;
    Finding {
        what: "host",
        verdict: if small { Verdict::Missing } else { Verdict::Good },
        found,
        advice: small
            .then(|| "less than 1 GiB of memory is free; the embedded model needs about 0.5 GiB".into()),
    }
}

fn gpu(gpus: &[String]) -> Finding {
    if gpus.is_empty() {
        let found =
            "none: neither NVML (NVIDIA) nor the driver amdgpu shows one; pictures are made on the CPU"
                .to_owned();
        return Finding {
            what: "gpu",
            verdict: Verdict::Missing,
            found,
            advice: None,
        };
    }
    Finding {
        what: "gpu",
        verdict: Verdict::Good,
        found: gpus.join(", "),
        advice: Some("the Python worker computes on it; see below".into()),
    }
}

/// What keeps weights ready for GPUs; containers have 64 MiB of it unless they are given more.
fn shared_memory(has_gpu: bool) -> Finding {
    const LITTLE_BYTES: u64 = 4 << 30;
    let free_bytes = device::shared_memory_free_bytes();
    let little = has_gpu && free_bytes.unwrap_or(0) < LITTLE_BYTES;
    let found = match free_bytes {
        Some(bytes) => format!("{} free in {}", console::bytes(bytes), device::SHARED_MEMORY),
        None => format!("there is no {}", device::SHARED_MEMORY),
    };
    let advice =
        "models are read from their files at each switch; in a container, give it more: --shm-size 32g";
    Finding {
        what: "shared memory",
        verdict: if little { Verdict::Missing } else { Verdict::Good },
        found,
        advice: little.then(|| advice.into()),
    }
}

fn models(args: &Args, data_dir: &std::path::Path) -> Finding {
    let dirs = places::model_dirs(&args.models, data_dir);
    let catalogue = Catalogue::scan(&dirs);
    let usable: Vec<String> = catalogue
        .models()
        .filter(|model| model.problem.is_none() && !matches!(model.kind, ModelKind::Lora))
        .map(|model| model.id.to_string())
        .collect();
    let places: Vec<String> = dirs.iter().map(|dir| dir.display().to_string()).collect();
    if usable.is_empty() {
        return Finding {
            what: "models",
            verdict: Verdict::Broken,
            found: format!("no usable model in [{}]", places.join(", ")),
            advice: Some("give a folder with --models DIR, or put models/ beside the program".into()),
        };
    }
    let found = format!("{} in {}", usable.join(", "), places.join(", "));
    Finding {
        what: "models",
        verdict: Verdict::Good,
        found,
        advice: None,
    }
}

fn runtime() -> Finding {
    // Opened as a worker would open it, so that what is said is what will be.
    let (engine, note) = calotype_worker::runtime::open(calotype_worker::Runtime::Auto, None);
    let name = engine.name();
    let advice = name.starts_with("rten").then(|| {
        "ONNX Runtime makes pictures faster: `pip install onnxruntime`, or give its library with --onnxruntime FILE".into()
    });
    let found = note.map_or(name.clone(), |note| format!("{name}; {note}"));
    Finding {
        what: "runtime",
        verdict: Verdict::Good,
        found,
        advice,
    }
}

fn python(args: &Args, data_dir: &std::path::Path) -> Finding {
    let finding = |verdict, found, advice: Option<&str>| Finding {
        what: "python worker",
        verdict,
        found,
        advice: advice.map(str::to_owned),
    };
    let install = "`calotype setup python` installs it: PyTorch for GPUs, checkpoints, SDXL and ControlNet";
    let Some(python) = args.python.clone().or_else(|| places::python(data_dir)) else {
        return finding(Verdict::Missing, "not installed".into(), Some(install));
    };
    match crate::python::probe(&python) {
        Ok(probe) => {
            let torch = probe.packages.get("torch").cloned().unwrap_or_default();
            let on = match probe.accelerators.as_slice() {
                [] => "the processor".to_owned(),
                seen => seen.join(", "),
            };
            finding(
                Verdict::Good,
                format!("{}, torch {torch}, on {on}", python.display()),
                None,
            )
        }
        Err(reason) => finding(
            Verdict::Broken,
            format!("{}: {reason}", python.display()),
            Some(install),
        ),
    }
}

fn writable(data_dir: &std::path::Path) -> Finding {
    let tried = std::fs::create_dir_all(data_dir).and_then(|()| tempfile::tempfile_in(data_dir).map(drop));
    match tried {
        Ok(()) => Finding {
            what: "data directory",
            verdict: Verdict::Good,
            found: data_dir.display().to_string(),
            advice: None,
        },
        Err(error) => Finding {
            what: "data directory",
            verdict: Verdict::Broken,
            found: format!("{} cannot be written: {error}", data_dir.display()),
            advice: Some("choose another folder with --data-dir".into()),
        },
    }
}
