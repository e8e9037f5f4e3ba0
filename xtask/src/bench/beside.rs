//! The program of another commit, checked out and built below `target/`, once.

use std::fs;
use std::path::PathBuf;

use super::page::told;
use crate::{root, sh, sh_in};

/// Another commit with its release build.
pub(super) struct Other {
    /// The commit's short name.
    pub(super) name: String,
    folder: PathBuf,
}

impl Other {
    /// Checks the commit out in a worktree of its own and builds it, unless that was done before.
    pub(super) fn built(revision: &str) -> Result<Self, String> {
        let name = told(
            "git",
            &[
                "rev-parse",
                "--short",
                "--verify",
                &format!("{revision}^{{commit}}"),
            ],
        )?;
        if name.is_empty() {
            return Err(format!("`{revision}` is no commit of this repository"));
        }
        let below = format!("target/beside/{name}");
        let other = Self {
            folder: root().join(&below),
            name,
        };
        if other
            .programs()
            .iter()
            .skip(1)
            .step_by(2)
            .all(|file| PathBuf::from(file).is_file())
        {
            return Ok(other);
        }
        if !other.folder.join("Cargo.toml").is_file() {
            let above = root().join("target/beside");
            fs::create_dir_all(&above)
                .map_err(|error| format!("failed to make {}: {error}", above.display()))?;
            // A folder that somebody deleted is still in git's list.
            sh("git", &["worktree", "prune"], &[])?;
            sh("git", &["worktree", "add", "--detach", &below, &other.name], &[])?;
        }
        let target = other.folder.join("target").display().to_string();
        sh_in(
            &below,
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
            &[("CARGO_TARGET_DIR", &target)],
        )?;
        Ok(other)
    }

    /// The arguments that name its programs.
    pub(super) fn programs(&self) -> [String; 4] {
        let file = |name: &str| {
            self.folder
                .join("target/release")
                .join(name)
                .display()
                .to_string()
        };
        [
            "--calotype".to_owned(),
            file("calotype"),
            "--fake-worker".to_owned(),
            file("fake_worker"),
        ]
    }
}
