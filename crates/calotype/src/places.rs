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

/// Where a folder may lie that came with the program.
fn beside_the_binary(name: &str, installed: &str) -> Vec<PathBuf> {
    let mut dirs = Vec::new();
    if let Ok(binary) = std::env::current_exe().and_then(|binary| binary.canonicalize()) {
        dirs.extend(binary.ancestors().skip(1).take(4).map(|folder| folder.join(name)));
        dirs.extend(binary.ancestors().nth(2).map(|prefix| prefix.join(installed)));
    }
    if let Some(repository) = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2) {
        dirs.push(repository.join(name));
    }
    dirs
}

/// Folders with models, those given first: beside the binary, in the repository it was built in, in the data directory.
pub fn model_dirs(given: &[PathBuf], data_dir: &Path) -> Vec<PathBuf> {
    let mut dirs: Vec<PathBuf> = given.to_vec();
    dirs.extend(beside_the_binary("models", "share/calotype/models"));
    dirs.push(data_dir.join("models"));
    let mut found: Vec<PathBuf> = Vec::new();
    for dir in dirs {
        if dir.is_dir() && !found.contains(&dir) {
            found.push(dir);
        }
    }
    found
}

/// The Python that `calotype setup python` made, in this data directory or in the user's.
pub fn python(data: &Path) -> Option<PathBuf> {
    [data.to_owned(), data_dir()]
        .into_iter()
        .map(|dir| python_of(&dir))
        .find(|python| python.is_file())
}

/// Where `calotype setup python` puts its Python in a data directory.
pub fn python_of(data: &Path) -> PathBuf {
    python_environment(data).join("bin/python")
}

/// The environment around it.
pub fn python_environment(data: &Path) -> PathBuf {
    data.join("python")
}

/// The folder with the package of the Python worker: beside the binary, or in the repository it was built in.
pub fn python_package() -> Option<PathBuf> {
    beside_the_binary("python", "share/calotype/python")
        .into_iter()
        .find(|dir| dir.join("calotype_worker").is_dir())
}
