//! Content-addressed files: the name is the BLAKE3 of the bytes. Written with sync and rename, so that a name that is
//! there has its bytes.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, de};

use super::StoreError;

/// BLAKE3 of a file's bytes, 64 lower-case hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, JsonSchema)]
#[serde(transparent)]
pub struct ArtifactHash(pub String);

impl ArtifactHash {
    /// The address of some bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(blake3::hash(bytes).to_hex().to_string())
    }

    /// An address as text, if it is one.
    pub fn parse(text: &str) -> Option<Self> {
        (text.len() == 64 && is_hex(text)).then(|| Self(text.to_owned()))
    }
}

/// As strict as [`ArtifactHash::parse`]: an address becomes a path.
impl<'de> Deserialize<'de> for ArtifactHash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text)
            .ok_or_else(|| de::Error::custom("not an artifact: 64 lower-case hexadecimal digits"))
    }
}

fn is_hex(text: &str) -> bool {
    text.bytes()
        .all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
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
    // Shared by those who put, taken alone by a sweep: it must not take away what a put has just found.
    sweeping: Arc<RwLock<()>>,
}

impl Artifacts {
    /// Opens or makes the folder, with a folder in it for each first byte: made durable once, not at each put.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        for first_byte in 0..=u8::MAX {
            fs::create_dir_all(dir.join(format!("{first_byte:02x}")))?;
        }
        File::open(dir)?.sync_all()?;
        Ok(Self {
            dir: Arc::new(dir.to_owned()),
            sweeping: Arc::default(),
        })
    }

    /// Where an artifact lies, there or not. What is no address lies nowhere, and never outside the folder.
    pub fn path(&self, hash: &ArtifactHash) -> PathBuf {
        match ArtifactHash::parse(&hash.0) {
            Some(ArtifactHash(name)) => self.dir.join(name.get(..2).unwrap_or_default()).join(name),
            None => self.dir.join("nowhere"),
        }
    }

    /// Keeps bytes; when this returns, they are on disk under their name, and young for a sweep.
    pub async fn put(&self, bytes: Vec<u8>) -> Result<ArtifactHash, StoreError> {
        let artifacts = self.clone();
        blocking(move || artifacts.put_now(&bytes)).await
    }

    /// [`put`](Self::put) for a thread that may wait for the disk.
    pub fn put_now(&self, bytes: &[u8]) -> Result<ArtifactHash, StoreError> {
        let hash = ArtifactHash::of(bytes);
        let path = self.path(&hash);
        let folder = path.parent().unwrap_or(&self.dir);
        let _no_sweep = self.sweeping.read().unwrap_or_else(PoisonError::into_inner);
        match File::options().write(true).open(&path) {
            Ok(file) => file.set_modified(SystemTime::now())?,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let torn = folder.join(format!("{}.{}.tmp", hash.0, uuid::Uuid::new_v4().simple()));
                if let Err(error) = write_then_rename(&torn, bytes, &path) {
                    let _ = fs::remove_file(&torn);
                    return Err(error.into());
                }
            }
            Err(error) => return Err(error.into()),
        }
        // The name, too, must be on disk. Also for a file that was there: whoever renamed it may not have come this far.
        File::open(folder)?.sync_all()?;
        Ok(hash)
    }

    /// The bytes of an artifact that is about to be referred to: young again for a sweep that does not know that yet.
    pub async fn renew(&self, hash: &ArtifactHash) -> Result<Option<Vec<u8>>, StoreError> {
        let (artifacts, path) = (self.clone(), self.path(hash));
        blocking(move || {
            let _no_sweep = artifacts.sweeping.read().unwrap_or_else(PoisonError::into_inner);
            match File::options().write(true).open(&path) {
                Ok(file) => file.set_modified(SystemTime::now())?,
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(error.into()),
            }
            Ok(Some(fs::read(path)?))
        })
        .await
    }

    /// The bytes of an artifact.
    pub async fn read(&self, hash: &ArtifactHash) -> Result<Option<Vec<u8>>, StoreError> {
        let (artifacts, hash) = (self.clone(), hash.clone());
        blocking(move || artifacts.read_now(&hash)).await
    }

    /// [`read`](Self::read) for a thread that may wait for the disk.
    pub fn read_now(&self, hash: &ArtifactHash) -> Result<Option<Vec<u8>>, StoreError> {
        match fs::read(self.path(hash)) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Removes torn files, and those older than `older_than` that nobody refers to. Files of others stay.
    pub async fn sweep(
        &self,
        keep: &HashSet<ArtifactHash>,
        older_than: Duration,
    ) -> Result<Swept, StoreError> {
        let (artifacts, keep) = (self.clone(), keep.clone());
        blocking(move || {
            let mut swept = Swept::default();
            for folder in fs::read_dir(&*artifacts.dir)? {
                let folder = folder?;
                let is_ours = folder
                    .file_name()
                    .to_str()
                    .is_some_and(|name| name.len() == 2 && is_hex(name));
                if is_ours && folder.file_type()?.is_dir() {
                    let _no_put = artifacts.sweeping.write().unwrap_or_else(PoisonError::into_inner);
                    sweep_folder(&folder.path(), &keep, older_than, &mut swept)?;
                }
            }
            Ok(swept)
        })
        .await
    }
}

fn write_then_rename(torn: &Path, bytes: &[u8], path: &Path) -> std::io::Result<()> {
    let mut file = File::create_new(torn)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(torn, path)
}

fn sweep_folder(
    folder: &Path,
    keep: &HashSet<ArtifactHash>,
    older_than: Duration,
    swept: &mut Swept,
) -> Result<(), StoreError> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let facts = entry.metadata()?;
        let is_loose = ArtifactHash::parse(&name).is_some_and(|hash| !keep.contains(&hash));
        let is_old = || {
            facts
                .modified()
                .is_ok_and(|at| at.elapsed().is_ok_and(|age| age >= older_than))
        };
        if facts.is_file() && (name.ends_with(".tmp") || (is_loose && is_old())) {
            fs::remove_file(entry.path())?;
            swept.removed += 1;
            swept.bytes += facts.len();
        }
    }
    Ok(())
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
