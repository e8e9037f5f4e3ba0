//! `calotype journal` as a person calls it.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::process::{Command, Output};

use calotype_engine::store::Store;
use serde_json::Value;

fn calotype(dir: &Path, words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_calotype"))
        .args(["journal", "--data-dir"])
        .arg(dir)
        .args(words)
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn a_journal_is_checked_copied_and_after_a_loss_recovered() {
    let dir = tempfile::tempdir().unwrap();
    drop(Store::open(dir.path()).unwrap());
    let checked = calotype(dir.path(), &["check", "--json"]);
    assert_eq!(checked.status.code(), Some(0), "{}", text(&checked.stdout));
    let report: Value = serde_json::from_slice(&checked.stdout).unwrap();
    assert_eq!((&report["sound"], &report["version"]), (&true.into(), &4.into()));

    let copy = dir.path().join("copy.sqlite");
    let copied = calotype(dir.path(), &["backup", copy.to_str().unwrap()]);
    assert_eq!(copied.status.code(), Some(0), "{}", text(&copied.stderr));
    assert!(copy.is_file());

    std::fs::remove_file(dir.path().join("journal.sqlite")).unwrap();
    assert_eq!(calotype(dir.path(), &["check"]).status.code(), Some(1));
    let refused = calotype(dir.path(), &["recover"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(
        text(&refused.stderr).contains("--accept-loss"),
        "{}",
        text(&refused.stderr)
    );
    let accepted = calotype(dir.path(), &["recover", "--accept-loss"]);
    assert_eq!(accepted.status.code(), Some(0), "{}", text(&accepted.stderr));
    assert_eq!(calotype(dir.path(), &["check"]).status.code(), Some(0));
    assert!(Store::open(dir.path()).is_ok());

    let help = text(&calotype(dir.path(), &["--help"]).stdout);
    for taught in ["Back up", "Restore", "Exit codes"] {
        assert!(help.contains(taught), "{help}");
    }
}
