//! Content-addressed files: the name is the BLAKE3 of the bytes. Written with sync and rename, so that a name that is
//! there has its bytes.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::StoreError;

/// BLAKE3 of a file's bytes, 64 lower-case hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct ArtifactHash(pub String);

impl ArtifactHash {
    /// The address of some bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(blake3::hash(bytes).to_hex().to_string())
    }

    /// An address as text, if it is one.
    pub fn parse(text: &str) -> Option<Self> {
        let hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        (text.len() == 64 && text.bytes().all(hex)).then(|| Self(text.to_owned()))
    }
}

/// What a sweep took away.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Swept {
    /// Files.
    pub removed: usize,
    /// Their bytes.
    pub bytes: u64,
}

/// The folder of artifacts. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Artifacts {
    dir: Arc<PathBuf>,
}

impl Artifacts {
    /// Opens or makes the folder.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        fs::create_dir_all(dir)?;
        Ok(Self {
            dir: Arc::new(dir.to_owned()),
        })
    }

    /// Where an artifact lies, there or not.
    pub fn path(&self, hash: &ArtifactHash) -> PathBuf {
        self.dir.join(hash.0.get(..2).unwrap_or("00")).join(&hash.0)
    }

    /// Keeps bytes; when this returns, they are on disk under their name.
    pub async fn put(&self, bytes: Vec<u8>) -> Result<ArtifactHash, StoreError> {
        let artifacts = self.clone();
        blocking(move || artifacts.put_now(&bytes)).await
    }

    fn put_now(&self, bytes: &[u8]) -> Result<ArtifactHash, StoreError> {
        let hash = ArtifactHash::of(bytes);
        let path = self.path(&hash);
        if path.exists() {
            return Ok(hash);
        }
        let folder = path.parent().unwrap_or(&self.dir);
        fs::create_dir_all(folder)?;
        let torn = folder.join(format!("{}.{}.tmp", hash.0, uuid::Uuid::new_v4().simple()));
        let mut file = File::create_new(&torn)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&torn, &path)?;
        // The name is in the folder, and the folder's own name in its parent.
        File::open(folder)?.sync_all()?;
        File::open(&*self.dir)?.sync_all()?;
        Ok(hash)
    }

    /// The bytes of an artifact.
    pub async fn read(&self, hash: &ArtifactHash) -> Result<Option<Vec<u8>>, StoreError> {
        let path = self.path(hash);
        blocking(move || match fs::read(path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.into()),
        })
        .await
    }

    /// Removes torn files, and those older than `older_than` that nobody refers to.
    pub async fn sweep(
        &self,
        keep: &HashSet<ArtifactHash>,
        older_than: Duration,
    ) -> Result<Swept, StoreError> {
        let (artifacts, keep) = (self.clone(), keep.clone());
        blocking(move || {
            let mut swept = Swept::default();
            for folder in fs::read_dir(&*artifacts.dir)?
                .flatten()
                .filter(|entry| entry.path().is_dir())
            {
                for entry in fs::read_dir(folder.path())?.flatten() {
                    let name = entry.file_name().to_string_lossy().into_owned();
                    let facts = entry.metadata()?;
                    let old = facts
                        .modified()
                        .ok()
                        .and_then(|at| at.elapsed().ok())
                        .is_some_and(|age| age >= older_than);
                    if name.ends_with(".tmp") || (old && !keep.contains(&ArtifactHash(name))) {
                        fs::remove_file(entry.path())?;
                        swept.removed += 1;
                        swept.bytes += facts.len();
                    }
                }
            }
            Ok(swept)
        })
        .await
    }
}

/// A file's type by its first bytes.
pub fn media_type(bytes: &[u8]) -> &'static str {
    match bytes {
        [0x89, b'P', b'N', b'G', ..] => "image/png",
        [0xFF, 0xD8, 0xFF, ..] => "image/jpeg",
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => "image/webp",
        [b'G', b'I', b'F', b'8', ..] => "image/gif",
        [b'B', b'M', ..] => "image/bmp",
        [b'I', b'I', 42, 0, ..] | [b'M', b'M', 0, 42, ..] => "image/tiff",
        _ => "application/octet-stream",
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| StoreError::Closed)?
}
