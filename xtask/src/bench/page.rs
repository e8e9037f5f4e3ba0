//! Where the tables are kept: `docs/benchmarks.md` has a place for each group, with the newest rows alone.

use std::fs;
use std::process::Command;

use super::beside::Other;
use crate::{Done, root};

const FILE: &str = "docs/benchmarks.md";

/// Puts a text in the place of a group. What is between the place's two lines is ours to replace.
pub(super) fn keep(group: &str, text: &str) -> Done {
    let path = root().join(FILE);
    let page = fs::read_to_string(&path).map_err(|error| format!("{FILE}: {error}"))?;
    let page = replaced(&page, group, text)?;
    fs::write(&path, page).map_err(|error| format!("failed to write {FILE}: {error}"))
}

fn replaced(page: &str, group: &str, text: &str) -> Result<String, String> {
    let begin = format!("<!-- cargo xtask bench {group}: begin -->");
    let end = format!("<!-- cargo xtask bench {group}: end -->");
    let parts = page.split_once(&begin).zip(page.split_once(&end));
    let ((head, _), (_, tail)) = parts.ok_or_else(|| format!("{FILE} lacks the lines {begin} and {end}"))?;
    Ok(format!("{head}{begin}\n{text}{end}{tail}"))
}

/// When, on what, and of which commits.
pub(super) fn machine(other: Option<&Other>) -> Result<String, String> {
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
    let beside = other.map_or_else(String::new, |other| format!(", beside {}", other.name));
    let system = told("uname", &["-srm"])?;
    Ok(format!(
        "{date}, commit {commit}{changed}{beside}. {model}, {cores} cores, {} GiB, {system}. Release build.",
        memory_kib >> 20
    ))
}

/// What a program prints.
pub(super) fn told(program: &str, arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(program)
        .args(arguments)
        .current_dir(root())
        .output()
        .map_err(|error| format!("failed to start {program}: {error}"))?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::replaced;

    const PAGE: &str = "a\n<!-- cargo xtask bench x: begin -->\nold\n<!-- cargo xtask bench x: end -->\nb\n";

    #[test]
    fn a_groups_rows_replace_its_older_ones_and_nothing_else() {
        let page = replaced(PAGE, "x", "new\n").unwrap();
        assert_eq!(page, PAGE.replace("old", "new"));
    }

    #[test]
    fn a_group_without_a_place_is_told_which_lines_are_missing() {
        let why = replaced(PAGE, "y", "new\n").unwrap_err();
        assert!(why.contains("<!-- cargo xtask bench y: begin -->"), "{why}");
    }
}
