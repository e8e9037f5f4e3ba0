//! Content-addressed files: the name is the BLAKE3 of the bytes. Written with sync and rename, so that a name that is
//! there has its bytes.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use super::StoreError;
use super::folder::{Folder, Space};
use super::health::Part;
use super::sweep::{Loose, Manner, Swept, is_wanted_again};
use crate::artifact::ArtifactHash;

/// The name of the folder in the data directory.
pub(super) const FOLDER: &str = "artifacts";
/// A write that takes longer than this was torn by a crash.
const TORN_AFTER: Duration = Duration::from_secs(3600);

/// The folder of artifacts. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Artifacts {
    dir: Arc<PathBuf>,
    folder: Arc<Folder>,
    // Shared by those who put, taken alone by a sweep: it must not take away what a put has just found.
    sweeping: Arc<RwLock<()>>,
}

impl Artifacts {
    /// Opens or makes a folder of artifacts without a journal.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        Self::in_folder(dir.to_owned(), Arc::new(Folder::without_journal(dir)))
    }

    /// Opens or makes the folder, with a folder in it for each first byte: made durable once, not at each put.
    pub(super) fn in_folder(dir: PathBuf, folder: Arc<Folder>) -> Result<Self, StoreError> {
        for first_byte in 0..=u8::MAX {
            fs::create_dir_all(dir.join(format!("{first_byte:02x}")))?;
        }
        File::open(&dir)?.sync_all()?;
        Ok(Self {
            dir: Arc::new(dir),
            folder,
            sweeping: Arc::default(),
        })
    }

    /// Where an artifact lies, there or not. What is no address lies nowhere, and never outside the folder.
    pub fn path(&self, hash: &ArtifactHash) -> PathBuf {
        path_in(&self.dir, hash)
    }

    /// Keeps bytes; when this returns, they are on disk under their name, and young for a sweep.
    pub async fn put(&self, bytes: Vec<u8>) -> Result<ArtifactHash, StoreError> {
        let artifacts = self.clone();
        blocking(move || artifacts.put_now(&bytes)).await
    }

    /// [`put`](Self::put) for a thread that may wait for the disk.
    pub fn put_now(&self, bytes: &[u8]) -> Result<ArtifactHash, StoreError> {
        let hash = ArtifactHash::of(bytes);
        self.tried(|| self.write(&hash, bytes))?;
        Ok(hash)
    }

    /// Writes, syncs and deletes a file of so many bytes: can a picture be kept?
    pub(super) fn try_to_write(&self, bytes: usize) -> Result<(), StoreError> {
        let path = self
            .dir
            .join(format!("probe.{}.tmp", uuid::Uuid::new_v4().simple()));
        self.tried(|| {
            let written = File::create_new(&path).and_then(|mut file| {
                file.write_all(&vec![0xA5; bytes])?;
                file.sync_all()
            });
            let _ = fs::remove_file(&path);
            Ok(written?)
        })
    }

    /// Runs a write that promises something, again after room was made for it, and tells the health how it went.
    fn tried(&self, write: impl Fn() -> Result<(), StoreError>) -> Result<(), StoreError> {
        let once = || {
            self.folder.admit(Space::Takes)?;
            if !self.folder.is_there() {
                let dir = self.folder.dir().to_owned();
                return Err(StoreError::Gone { dir });
            }
            write()
        };
        let mut outcome = once();
        while outcome.as_ref().is_err_and(StoreError::is_full) && self.folder.make_room(Space::Takes) {
            outcome = once();
        }
        let outcome = outcome.map_err(|error| error.at(self.folder.dir()));
        self.folder
            .health
            .tried(Part::Artifacts, outcome.as_ref().copied());
        outcome
    }

    fn write(&self, hash: &ArtifactHash, bytes: &[u8]) -> Result<(), StoreError> {
        let path = self.path(hash);
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
        Ok(())
    }

    /// The bytes of an artifact that is about to be referred to: young again for a sweep that does not know that yet.
    pub async fn renew(&self, hash: &ArtifactHash) -> Result<Option<Vec<u8>>, StoreError> {
        let (artifacts, path) = (self.clone(), self.path(hash));
        blocking(move || {
            let _no_sweep = artifacts.sweeping.read().unwrap_or_else(PoisonError::into_inner);
            match File::options().write(true).open(&path) {
                Ok(file) => file.set_modified(SystemTime::now())?,
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(StoreError::from(error).at(artifacts.folder.dir())),
            }
            Ok(Some(fs::read(path)?))
        })
        .await
    }

    /// The bytes of an artifact, for a client: for an hour from now on it is not swept.
    pub async fn fetch(&self, hash: &ArtifactHash) -> Result<Option<Vec<u8>>, StoreError> {
        let bytes = self.read(hash).await?;
        if bytes.is_some() {
            self.folder.was_fetched(hash);
        }
        Ok(bytes)
    }

    /// A client got the artifact from elsewhere: it counts as fetched.
    pub fn was_fetched(&self, hash: &ArtifactHash) {
        self.folder.was_fetched(hash);
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

    /// Takes loose artifacts away, and deletes torn writes. Returns also which are no longer loose: those that were taken,
    /// and those that were not there.
    pub(super) async fn take_away(
        &self,
        loose: Vec<Loose>,
        manner: Manner,
    ) -> Result<(Swept, Vec<Loose>), StoreError> {
        let artifacts = self.clone();
        blocking(move || {
            let mut swept = Swept::default();
            let fetched = artifacts.folder.fetched();
            let mut done = Vec::new();
            for loose in loose {
                if manner == Manner::Gently && fetched.contains_key(&loose.hash) {
                    continue;
                }
                if artifacts.take_one(&loose, manner, &mut swept)? {
                    done.push(loose);
                }
            }
            artifacts.remove_torn(&mut swept)?;
            Ok((swept, done))
        })
        .await
    }

    /// Returns whether the file is gone.
    fn take_one(&self, loose: &Loose, manner: Manner, swept: &mut Swept) -> Result<bool, StoreError> {
        let path = self.path(&loose.hash);
        let _no_put = self.sweeping.write().unwrap_or_else(PoisonError::into_inner);
        let facts = match fs::metadata(&path) {
            Ok(facts) => facts,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(true),
            Err(error) => return Err(error.into()),
        };
        if is_wanted_again(&facts, loose) {
            return Ok(false);
        }
        match manner {
            Manner::Gently => {
                self.folder.trash.take(&path)?;
            }
            Manner::AtOnce => {
                fs::remove_file(&path)?;
                swept.freed_bytes += facts.len();
            }
        }
        swept.removed += 1;
        Ok(true)
    }

    fn remove_torn(&self, swept: &mut Swept) -> Result<(), StoreError> {
        let ours = (0..=u8::MAX).map(|first_byte| self.dir.join(format!("{first_byte:02x}")));
        for folder in ours.chain([self.dir.to_path_buf()]) {
            for entry in fs::read_dir(folder)? {
                let entry = entry?;
                let name = entry.file_name();
                if !name.to_str().is_some_and(|name| name.ends_with(".tmp")) {
                    continue;
                }
                let facts = entry.metadata()?;
                let age = facts.modified().ok().and_then(|at| at.elapsed().ok());
                if facts.is_file() && age.is_some_and(|age| age >= TORN_AFTER) {
                    fs::remove_file(entry.path())?;
                    swept.torn += 1;
                    swept.freed_bytes += facts.len();
                }
            }
        }
        Ok(())
    }
}

/// Where an artifact lies in a folder of them.
pub(super) fn path_in(dir: &Path, hash: &ArtifactHash) -> PathBuf {
    match ArtifactHash::parse(&hash.0) {
        Some(ArtifactHash(name)) => dir.join(name.get(..2).unwrap_or_default()).join(name),
        None => dir.join("nowhere"),
    }
}

fn write_then_rename(torn: &Path, bytes: &[u8], path: &Path) -> std::io::Result<()> {
    let mut file = File::create_new(torn)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(torn, path)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| StoreError::Closed)?
}
