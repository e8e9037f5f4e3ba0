//! The figures: builds for release, measures, prints the table, and keeps it in `docs/benchmarks.md`.

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::{Done, root, sh};

/// What is between these lines is ours to replace.
const BEGIN: &str = "<!-- cargo xtask bench: begin -->";
const END: &str = "<!-- cargo xtask bench: end -->";
const FILE: &str = "docs/benchmarks.md";

pub(crate) fn run(arguments: &[String]) -> Done {
    let only_print = match arguments {
        [] => false,
        [one] if one == "--print" => true,
        _ => {
            return Err(
                "usage: cargo xtask bench [--print]; --print leaves docs/benchmarks.md as it is".into(),
            );
        }
    };
    // Bench targets are built like the release, so the worker lands beside the program.
    sh(
        "cargo",
        &[
            "build",
            "--release",
            "--package",
            "calotype-engine",
            "--bin",
            "fake_worker",
        ],
        &[],
    )?;
    let mut child = Command::new("cargo")
        .args(["bench", "--package", "calotype", "--bench", "figures"])
        .current_dir(root())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| format!("failed to start cargo: {error}"))?;
    let mut table = Table::default();
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).lines() {
            let line = line.map_err(|error| error.to_string())?;
            match serde_json::from_str::<Value>(&line) {
                Ok(row) => eprintln!("{}", table.add(&row)),
                Err(_) => eprintln!("{line}"),
            }
        }
    }
    let status = child.wait().map_err(|error| error.to_string())?;
    if !status.success() {
        return Err(format!("the benchmark ended with {status}"));
    }
    println!("{}", table.text);
    if only_print { Ok(()) } else { keep(&table.text) }
}

/// The rows as Markdown.
#[derive(Default)]
struct Table {
    text: String,
    group: String,
}

impl Table {
    /// Adds a row, and gives it back as a line for whoever waits.
    fn add(&mut self, row: &Value) -> String {
        let field = |name: &str| row[name].as_str().unwrap_or_default();
        let (group, what, measured, target) =
            (field("group"), field("what"), field("measured"), field("target"));
        let verdict = match row["met"].as_bool() {
            Some(true) => "met",
            Some(false) => "not met",
            None => "",
        };
        if self.group != group {
            group.clone_into(&mut self.group);
            let _ = write!(
                self.text,
                "\n| {group} | measured | target | |\n|---|---|---|---|\n"
            );
        }
        let _ = writeln!(self.text, "| {what} | {measured} | {target} | {verdict} |");
        format!("{group}: {what}: {measured} {target} {verdict}")
    }
}

fn keep(table: &str) -> Done {
    let path = root().join(FILE);
    let text = fs::read_to_string(&path).map_err(|error| format!("{FILE}: {error}"))?;
    let parts = text.split_once(BEGIN).zip(text.split_once(END));
    let ((head, _), (_, tail)) = parts.ok_or_else(|| format!("{FILE} lacks the lines {BEGIN} and {END}"))?;
    let text = format!("{head}{BEGIN}\n{}\n{table}{END}{tail}", machine()?);
    fs::write(&path, text).map_err(|error| format!("failed to write {FILE}: {error}"))
}

/// When, on what, and of which commit.
pub(crate) fn machine() -> Result<String, String> {
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpus
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':'))
        .map_or("a processor that does not tell its name", |(_, name)| name.trim());
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let memory_kib = fs::read_to_string("/proc/meminfo")
        .unwrap_or_default()
        .lines()
        .find_map(|line| {
            line.strip_prefix("MemTotal:")?
                .split_whitespace()
                .next()?
                .parse::<u64>()
                .ok()
        })
        .unwrap_or(0);
    let date = told("date", &["-u", "+%Y-%m-%d %H:%M UTC"])?;
    let commit = told("git", &["rev-parse", "--short", "HEAD"])?;
    let changed = if told("git", &["status", "--porcelain", "--", "crates"])?.is_empty() {
        ""
    } else {
        ", with changes"
    };
    let system = told("uname", &["-srm"])?;
    Ok(format!(
        "{date}, commit {commit}{changed}. {model}, {cores} cores, {} GiB, {system}. Release build.",
        memory_kib >> 20
    ))
}

fn told(program: &str, arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(program)
        .args(arguments)
        .current_dir(root())
        .output()
        .map_err(|error| format!("failed to start {program}: {error}"))?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
