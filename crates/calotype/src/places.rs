//! Where things are found: the data directory and the folders with models.

use std::path::{Path, PathBuf};

use etcetera::BaseStrategy;

/// The user's data directory for Calotype.
pub fn data_dir() -> PathBuf {
    etcetera::choose_base_strategy().map_or_else(
        |_| PathBuf::from("calotype-data"),
        |base| base.data_dir().join("calotype"),
    )
}

/// Folders with models, those given first: beside the binary, in the repository it was built in, in the data directory.
pub fn model_dirs(given: &[PathBuf], data_dir: &Path) -> Vec<PathBuf> {
    let mut dirs: Vec<PathBuf> = given.to_vec();
    if let Ok(binary) = std::env::current_exe().and_then(|binary| binary.canonicalize()) {
        for folder in binary.ancestors().skip(1).take(4) {
            dirs.push(folder.join("models"));
        }
        if let Some(prefix) = binary.ancestors().nth(2) {
            dirs.push(prefix.join("share/calotype/models"));
        }
    }
    if let Some(repository) = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2) {
        dirs.push(repository.join("models"));
    }
    dirs.push(data_dir.join("models"));
    let mut found: Vec<PathBuf> = Vec::new();
    for dir in dirs {
        if dir.is_dir() && !found.contains(&dir) {
            found.push(dir);
        }
    }
    found
}
