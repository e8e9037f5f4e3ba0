//! The figures: builds for release, measures, prints the tables, and keeps them in `docs/benchmarks.md`, each group in its
//! place there. `--beside REV` measures another commit's program in the same run, turn by turn.

mod beside;
mod page;
mod table;

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::{Done, root, sh};
use beside::Other;
use table::{Row, table};

/// What is measured together, and kept under one heading.
struct Group {
    name: &'static str,
    /// Whether it speaks HTTP alone, so that the program of any commit can be measured.
    any_commit: bool,
    /// How often it is measured beside another commit; the median is kept. What lasts minutes is measured once.
    rounds: usize,
}

const fn group(name: &'static str, any_commit: bool, rounds: usize) -> Group {
    Group {
        name,
        any_commit,
        rounds,
    }
}

const GROUPS: &[Group] = &[
    group("pipe", false, 1),
    group("control", true, 8),
    group("queue", true, 1),
    group("watch", true, 1),
    group("pictures", false, 1),
];

pub(crate) fn run(arguments: &[String]) -> Done {
    let Arguments {
        groups,
        beside,
        only_print,
    } = Arguments::parse(arguments)?;
    let other = beside.map(|revision| Other::built(&revision)).transpose()?;
    // Bench targets are built like the release, so the worker lands beside the program.
    sh(
        "cargo",
        &[
            "build",
            "--release",
            "--package",
            "calotype",
            "--package",
            "calotype-engine",
            "--bins",
        ],
        &[],
    )?;
    for group in groups {
        let other = other.as_ref().filter(|_| group.any_commit);
        remove_kept(group)?; // of a run that was broken off
        let (mut ours, mut theirs, mut stopped) = (Vec::new(), Vec::new(), false);
        for round in 0..if other.is_some() { group.rounds } else { 1 } {
            // By turns: what one leaves to the disk and its caches the next one meets.
            let ours_first = round % 2 == 1;
            if ours_first {
                ours.push(of_this_tree(group)?);
            }
            if let Some(other) = other {
                let (rows, end) = measured(group, &other.name, &other.programs())?;
                theirs.push(rows);
                // What it showed until then is still told: it may be what this tree has mended.
                if let Err(why) = end {
                    eprintln!("{why}");
                    stopped = true;
                }
            }
            if !ours_first {
                ours.push(of_this_tree(group)?);
            }
        }
        let mut text = table(&ours, other.map(|other| (other.name.as_str(), theirs.as_slice())));
        if let Some(other) = other.filter(|_| stopped) {
            text.push_str(&format!(
                "\n{} gave no answer for two minutes, so its last rows are missing.\n",
                other.name
            ));
        }
        println!("{text}");
        if !only_print {
            page::keep(group.name, &format!("{}\n{text}", page::machine(other)?))?;
        }
        remove_kept(group)?;
    }
    Ok(())
}

struct Arguments {
    groups: Vec<&'static Group>,
    beside: Option<String>,
    only_print: bool,
}

impl Arguments {
    fn parse(arguments: &[String]) -> Result<Self, String> {
        let names: Vec<&str> = GROUPS.iter().map(|group| group.name).collect();
        let usage = || {
            format!(
                "usage: cargo xtask bench [GROUP...] [--beside REV] [--print]; groups: {}; --beside measures another commit \
                 too, where the group can; --print leaves docs/benchmarks.md as it is",
                names.join(", ")
            )
        };
        let (mut groups, mut beside, mut only_print) = (Vec::new(), None, false);
        let mut arguments = arguments.iter();
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--print" => only_print = true,
                "--beside" => beside = Some(arguments.next().ok_or_else(usage)?.clone()),
                name => groups.push(GROUPS.iter().find(|group| group.name == name).ok_or_else(usage)?),
            }
        }
        if groups.is_empty() {
            groups.extend(GROUPS);
        }
        Ok(Self {
            groups,
            beside,
            only_print,
        })
    }
}

fn of_this_tree(group: &Group) -> Result<Vec<Row>, String> {
    let (rows, end) = measured(group, "this tree", &[])?;
    end?;
    Ok(rows)
}

/// One round of a group, with the programs that the arguments name: its rows, and whether it came to its end.
fn measured(group: &Group, whose: &str, programs: &[String]) -> Result<(Vec<Row>, Done), String> {
    eprintln!("{}: {whose}", group.name);
    // Nobody pays for what another has left to write.
    #[cfg(unix)]
    sh("sync", &[], &[])?;
    let mut child = Command::new("cargo")
        .args([
            "bench",
            "--quiet",
            "--package",
            "calotype",
            "--bench",
            "figures",
            "--",
        ])
        .arg(group.name)
        .args(programs)
        .current_dir(root())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| format!("failed to start cargo: {error}"))?;
    let mut rows = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).lines() {
            let line = line.map_err(|error| error.to_string())?;
            match serde_json::from_str::<Value>(&line)
                .ok()
                .and_then(|row| Row::read(&row))
            {
                Some(row) => {
                    eprintln!("{row}");
                    rows.push(row);
                }
                None => eprintln!("{line}"),
            }
        }
    }
    let status = child.wait().map_err(|error| error.to_string())?;
    let end = if status.success() {
        Ok(())
    } else {
        Err(format!("the benchmark of {whose} ended with {status}"))
    };
    Ok((rows, end))
}

/// Removes what the rounds of a group left until the last of them was over.
fn remove_kept(group: &Group) -> Done {
    let told = |error: std::io::Error| format!("failed to remove what the benchmark left: {error}");
    let prefix = format!("{}-", group.name);
    let Ok(entries) = std::fs::read_dir(root().join("target/tmp")) else {
        return Ok(());
    };
    for entry in entries {
        let entry = entry.map_err(told)?;
        if entry.file_name().to_string_lossy().starts_with(&prefix) && entry.path().is_dir() {
            std::fs::remove_dir_all(entry.path()).map_err(told)?;
        }
    }
    Ok(())
}

/// When, on what, and of which commit.
pub(crate) fn machine() -> Result<String, String> {
    page::machine(None)
}
