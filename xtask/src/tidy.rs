//! The invariants of ARCHITECTURE.md, as a program. Each is an absence.

mod floors;
mod purity;
mod source;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use crate::{Done, root};

/// A text that may stand only in some places, and why.
const ONLY_IN: &[(&str, &[&str], &str)] = &[
    (
        "rusqlite",
        &["crates/engine/src/store/"],
        "SQL stands only in the store",
    ),
    (
        "Command::new",
        &[
            "crates/engine/src/worker/process.rs",
            "crates/engine/src/bin/",
            "crates/calotype/src/python.rs",
            "xtask/",
            "/tests/",
        ],
        "processes are started only by the supervisor, and by what installs",
    ),
    (
        "unsafe {",
        &[
            "crates/engine/src/worker/process.rs",
            "crates/worker/src/model/mapped.rs",
        ],
        "unsafe code stands in one file per foreign thing",
    ),
    (
        "ureq::",
        &["crates/calotype/src/client.rs"],
        "HTTP as a client is spoken in one file",
    ),
    (
        "indicatif",
        &["crates/calotype/src/console.rs"],
        "progress is drawn in one file",
    ),
];

/// Longest source file, its tests left out: the style's.
const MOST_LINES: usize = 400;
pub(crate) fn run(_: &[String]) -> Done {
    let root = root();
    let mut sources = Vec::new();
    for folder in ["crates", "xtask"] {
        collect(&root.join(folder), &mut sources)?;
    }
    let (mut wrong, mut names) = (Vec::new(), Vec::new());
    for path in &sources {
        let text = fs::read_to_string(path)
            .map_err(|error| format!("failed to read {}: {error}", path.display()))?;
        let name = path.strip_prefix(&root).unwrap_or(path).display().to_string();
        look(&name, &text, &mut wrong);
        names.push(name);
    }
    wrong.extend(purity::missing(&names));
    let engine =
        fs::read_to_string(root.join("crates/engine/Cargo.toml")).map_err(|error| error.to_string())?;
    if engine.contains("axum") {
        wrong.push("crates/engine/Cargo.toml: the engine knows no HTTP".to_owned());
    }
    unused(&root, &mut wrong)?;
    map(&root, &mut wrong)?;
    if wrong.is_empty() {
        Ok(())
    } else {
        Err(format!(
            "{} things are out of place:\n  {}",
            wrong.len(),
            wrong.join("\n  ")
        ))
    }
}

fn look(name: &str, text: &str, wrong: &mut Vec<String>) {
    let is_test = ["/tests/", "/benches/"]
        .iter()
        .any(|folder| name.contains(folder))
        || name.ends_with("/tests.rs");
    let lines = source::without_tests(text);
    let program = lines.join("\n");
    for (what, places, why) in ONLY_IN {
        let here = places.iter().any(|place| name.contains(place));
        if !here && !is_test && !name.starts_with("xtask/src/tidy") && program.contains(what) {
            wrong.push(format!("{name}: `{what}`: {why}"));
        }
    }
    if name.starts_with("crates/worker/src") && (text.contains("println!(") || text.contains(" print!(")) {
        let bare = text
            .lines()
            .any(|line| line.contains("println!(") && !line.contains("eprintln!("));
        if bare {
            wrong.push(format!("{name}: stdout belongs to the protocol"));
        }
    }
    if is_test {
        return;
    }
    let lines = lines.len();
    if lines > MOST_LINES {
        wrong.push(format!(
            "{name}: {lines} lines, the most is {MOST_LINES}; a file that needs chapters is two files"
        ));
    }
    floors::look(name, text, wrong);
    purity::look(name, text, wrong);
}

/// Dependencies that no source of their package names.
fn unused(root: &Path, wrong: &mut Vec<String>) -> Done {
    let mut packages: Vec<_> = folders(&root.join("crates"))?
        .into_iter()
        .map(|name| root.join("crates").join(name))
        .collect();
    packages.push(root.join("xtask"));
    for package in packages {
        let manifest = package.join("Cargo.toml");
        let text = fs::read_to_string(&manifest)
            .map_err(|error| format!("failed to read {}: {error}", manifest.display()))?;
        let mut sources = Vec::new();
        collect(&package, &mut sources)?;
        let sources: String = sources
            .iter()
            .filter_map(|path| fs::read_to_string(path).ok())
            .collect();
        let mut in_dependencies = false;
        for line in text.lines() {
            if line.starts_with('[') {
                in_dependencies = line.ends_with("dependencies]");
            } else if in_dependencies
                && let Some(name) = line.split(['.', ' ', '=']).next().filter(|name| !name.is_empty())
                && !name.starts_with('#')
                && !sources.contains(&name.replace('-', "_"))
            {
                wrong.push(format!(
                    "{}: nothing names the dependency `{name}`",
                    manifest.display()
                ));
            }
        }
    }
    Ok(())
}

/// The code map of ARCHITECTURE.md against the folders on disk.
fn map(root: &Path, wrong: &mut Vec<String>) -> Done {
    let text = fs::read_to_string(root.join("ARCHITECTURE.md"))
        .map_err(|error| format!("ARCHITECTURE.md: {error}"))?;
    let mapped: BTreeSet<String> = text
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .filter(|word| word.starts_with("crates/") || *word == "xtask")
        .map(|word| word.trim_end_matches('/').to_owned())
        .collect();
    let mut there = BTreeSet::from(["xtask".to_owned()]);
    for name in folders(&root.join("crates"))? {
        there.insert(format!("crates/{name}"));
        for inner in folders(&root.join("crates").join(&name).join("src"))? {
            there.insert(format!("crates/{name}/src/{inner}"));
        }
    }
    wrong.extend(
        there
            .difference(&mapped)
            .map(|path| format!("ARCHITECTURE.md: {path} is not on the map")),
    );
    wrong.extend(
        mapped
            .difference(&there)
            .map(|path| format!("ARCHITECTURE.md: {path} is on the map and not on disk")),
    );
    Ok(())
}

fn folders(folder: &Path) -> Result<Vec<String>, String> {
    let entries =
        fs::read_dir(folder).map_err(|error| format!("failed to list {}: {error}", folder.display()))?;
    Ok(entries
        .flatten()
        .filter(|entry| entry.path().is_dir())
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect())
}

fn collect(folder: &Path, sources: &mut Vec<std::path::PathBuf>) -> Done {
    let entries =
        fs::read_dir(folder).map_err(|error| format!("failed to list {}: {error}", folder.display()))?;
    for entry in entries.flatten() {
        let path = entry.path();
        if path.is_dir() {
            collect(&path, sources)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            sources.push(path);
        }
    }
    Ok(())
}
