//! Runs the fuzz target: the framing against arbitrary bytes, for as many seconds as are given.

use std::fs;

use crate::{Done, root, sh};

/// Coverage counters and comparisons, as libFuzzer wants them; the address sanitizer would need a nightly compiler.
const COVERAGE: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1";

pub(crate) fn run(arguments: &[String]) -> Done {
    let seconds = match arguments {
        [] => 60,
        [seconds] => seconds
            .parse::<u32>()
            .map_err(|_| format!("`{seconds}` is no number of seconds"))?,
        _ => return Err("usage: cargo xtask fuzz [SECONDS]".into()),
    };
    let corpus = root().join("fuzz/corpus/frames");
    fs::create_dir_all(&corpus).map_err(|error| format!("failed to make {}: {error}", corpus.display()))?;
    // The golden conversations are where to begin; the first byte, 0, keeps all of what follows.
    let golden = root().join("schema/golden");
    for entry in fs::read_dir(&golden)
        .map_err(|error| error.to_string())?
        .flatten()
    {
        let mut bytes = vec![0];
        bytes.extend(fs::read(entry.path()).map_err(|error| error.to_string())?);
        fs::write(corpus.join(entry.file_name()), bytes).map_err(|error| error.to_string())?;
    }
    let time = format!("-max_total_time={seconds}");
    sh(
        "cargo",
        &[
            "run",
            "--release",
            // With a target, build scripts are left without the counters.
            "--target",
            "host-tuple",
            "--manifest-path",
            "fuzz/Cargo.toml",
            "--bin",
            "frames",
            "--",
            "-max_len=65536",
            "-timeout=10",
            &time,
            "-artifact_prefix=fuzz/",
            "fuzz/corpus/frames",
        ],
        &[("RUSTFLAGS", COVERAGE)],
    )
}
