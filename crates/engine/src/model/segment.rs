//! The weights of a component, copied from its files into one file in shared memory, as they are.
//!
//! They keep the number types of their files: what a device computes with is the worker's choice, which differs between
//! the parts of a model, and converting on the device costs next to nothing.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::UNIX_EPOCH;

use super::{folder, header};
use crate::device::{SHARED_MEMORY, shared_memory_free_bytes};
use crate::memory::weight_cache::{Source, Stamp};

/// What others may need of it.
const KEPT_FREE_PERCENT: u64 = 10;
/// Headers are filled up so that what follows begins at a multiple of this.
const ALIGNMENT: usize = 8;
/// A copy looks so often whether it is still wanted.
const PIECE_BYTES: u64 = 64 << 20;

/// The folder for an engine's segments, empty, and how much it may hold. What an engine on this data directory left, that
/// was killed, is deleted.
pub(crate) fn prepare_folder(data_dir: &Path) -> Result<(PathBuf, u64), String> {
    let wrong = |error: std::io::Error| format!("{SHARED_MEMORY}: {error}");
    let folder = clear_folder(data_dir)?;
    // Nobody else reads other people's models.
    DirBuilder::new().mode(0o700).create(&folder).map_err(wrong)?;
    let free_bytes = shared_memory_free_bytes().unwrap_or(0);
    Ok((folder, free_bytes / 100 * (100 - KEPT_FREE_PERCENT)))
}

/// Deletes the segments that an engine on this data directory left; the folder that it would use.
pub(crate) fn clear_folder(data_dir: &Path) -> Result<PathBuf, String> {
    let wrong = |error: std::io::Error| format!("{}: {error}", data_dir.display());
    let data_dir = fs::canonicalize(data_dir).map_err(wrong)?;
    let name = blake3::hash(data_dir.as_os_str().as_encoded_bytes()).to_hex();
    let folder = Path::new(SHARED_MEMORY).join(format!("calotype-{}", &name[..16]));
    delete_folder(&folder)?;
    Ok(folder)
}

/// Deletes such a folder with what is in it.
pub(crate) fn delete_folder(folder: &Path) -> Result<(), String> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(format!("{}: {error}", folder.display()))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// The files of the components that have weights, by role, as they are now. What cannot be looked at is left to the
/// worker, which tells what is wrong with it.
pub(crate) fn sources(components: &BTreeMap<String, String>) -> Vec<(String, Source)> {
    let of = |path: &Path| -> Option<Source> {
        let files = if path.is_dir() {
            folder::taken(path).ok()?
        } else {
            vec![path.to_owned()]
        };
        let are_weights = files
            .iter()
            .all(|file| file.extension().is_some_and(|end| end == "safetensors"));
        if files.is_empty() || !are_weights {
            return None;
        }
        let files: Option<Vec<Stamp>> = files.into_iter().map(stamp).collect();
        Some(Source { files: files? })
    };
    components
        .iter()
        .filter(|(role, _)| {
            !matches!(role.as_str(), "root" | "graphs" | "scheduler") && !role.starts_with("tokenizer")
        })
        .filter_map(|(role, path)| Some((role.clone(), of(Path::new(path))?)))
        .collect()
}

fn stamp(path: PathBuf) -> Option<Stamp> {
    let facts = fs::metadata(&path).ok()?;
    let modified = facts
        .modified()
        .ok()
        .and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    Some(Stamp {
        bytes: facts.len(),
        modified_ns: modified.map(|since| since.as_nanos()),
        path,
    })
}

/// Copies a component's files into one, and gives its length. Nothing is left of one that fails or is given up.
pub(crate) fn fill(source: &Source, to: &Path, give_up: &AtomicBool) -> Result<u64, String> {
    let copied = copy(source, to, give_up);
    if copied.is_err() {
        // It may not even be there.
        let _ = fs::remove_file(to);
    }
    copied
}

fn copy(source: &Source, to: &Path, give_up: &AtomicBool) -> Result<u64, String> {
    let wrong = |path: &Path, error: std::io::Error| format!("{}: {error}", path.display());
    let mut target = File::options()
        .write(true)
        .create_new(true)
        .open(to)
        .map_err(|error| wrong(to, error))?;
    let (head, starts) = match source.files.as_slice() {
        [_] => (Vec::new(), vec![0]),
        _ => joined(source)?,
    };
    target.write_all(&head).map_err(|error| wrong(to, error))?;
    for (file, start) in source.files.iter().zip(starts) {
        let mut from = File::open(&file.path).map_err(|error| wrong(&file.path, error))?;
        from.seek(SeekFrom::Start(start))
            .map_err(|error| wrong(&file.path, error))?;
        loop {
            if give_up.load(Ordering::Relaxed) {
                return Err("given up".into());
            }
            let mut piece = (&mut from).take(PIECE_BYTES);
            let copied = std::io::copy(&mut piece, &mut target).map_err(|error| wrong(to, error))?;
            if copied == 0 {
                break;
            }
        }
    }
    let unchanged = |file: &Stamp| stamp(file.path.clone()).as_ref() == Some(file);
    if !source.files.iter().all(unchanged) {
        return Err("its files changed while they were copied".into());
    }
    let facts = target.metadata().map_err(|error| wrong(to, error))?;
    Ok(facts.len())
}

/// Length and header for all shards in a row, and where the data begin in each.
fn joined(source: &Source) -> Result<(Vec<u8>, Vec<u64>), String> {
    let (mut tensors, mut starts, mut offset) = (BTreeMap::new(), Vec::new(), 0usize);
    for file in &source.files {
        let (_, table, start) = header::table(&file.path)?;
        let mut end = 0;
        for (name, tensor) in table.tensors() {
            let mut tensor = tensor.clone();
            let (from, to) = tensor.data_offsets;
            end = end.max(to);
            tensor.data_offsets = (offset + from, offset + to);
            if tensors.insert(name.clone(), tensor).is_some() {
                return Err(format!(
                    "{}: its tensor `{name}` is in another shard too",
                    file.path.display()
                ));
            }
        }
        offset += end;
        starts.push(start);
    }
    let mut text = serde_json::to_vec(&tensors).map_err(|error| error.to_string())?;
    text.resize(text.len().next_multiple_of(ALIGNMENT), b' ');
    let mut head = (text.len() as u64).to_le_bytes().to_vec();
    head.append(&mut text);
    Ok((head, starts))
}

#[cfg(test)]
mod tests {
    use safetensors::SafeTensors;

    use super::*;
    use crate::model::write_weights;

    /// A shard's name, and its tensors with their shapes.
    type Shard<'a> = (&'a str, &'a [(&'a str, &'a [usize])]);

    fn component(dir: &Path, shards: &[Shard<'_>]) -> BTreeMap<String, String> {
        for (name, tensors) in shards {
            write_weights(&dir.join(name), tensors, &[("format", "pt")]);
        }
        BTreeMap::from([("unet".to_owned(), dir.display().to_string())])
    }

    /// Numbers in place of zeros, so that what is mixed up is seen.
    fn number(path: &Path, first: u8) {
        let mut bytes = fs::read(path).unwrap();
        let start = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        for (at, byte) in bytes[start..].iter_mut().enumerate() {
            *byte = first.wrapping_add(at as u8);
        }
        fs::write(path, bytes).unwrap();
    }

    #[test]
    fn one_file_is_copied_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let components = component(dir.path(), &[("model.safetensors", &[("a", &[3, 2])])]);
        let (role, source) = sources(&components).remove(0);
        let to = dir.path().join("segment");
        assert_eq!(
            (role.as_str(), fill(&source, &to, &AtomicBool::new(false))),
            ("unet", Ok(source.bytes()))
        );
        let original = fs::read(dir.path().join("model.safetensors")).unwrap();
        assert_eq!(fs::read(&to).unwrap(), original);
    }

    #[test]
    fn shards_become_one_file_with_the_same_tensors() {
        let dir = tempfile::tempdir().unwrap();
        let shards = ["model-1.safetensors", "model-2.safetensors"];
        let components = component(
            dir.path(),
            &[
                (shards[0], &[("a", &[3, 2]), ("b", &[1])]),
                (shards[1], &[("c", &[2, 5])]),
            ],
        );
        for (shard, first) in shards.into_iter().zip([10, 100]) {
            number(&dir.path().join(shard), first);
        }
        let (_, source) = sources(&components).remove(0);
        let to = dir.path().join("segment");
        let bytes = fill(&source, &to, &AtomicBool::new(false)).unwrap();
        let whole = fs::read(&to).unwrap();
        assert_eq!(whole.len() as u64, bytes);
        let whole = SafeTensors::deserialize(&whole).unwrap();
        for shard in shards {
            let own = fs::read(dir.path().join(shard)).unwrap();
            for (name, tensor) in SafeTensors::deserialize(&own).unwrap().tensors() {
                assert_eq!(whole.tensor(&name).unwrap(), tensor, "{name}");
            }
        }
        assert_eq!(whole.len(), 3);
    }

    #[test]
    fn what_fails_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let components = component(dir.path(), &[("model.safetensors", &[("a", &[3])])]);
        let (_, source) = sources(&components).remove(0);
        number(&dir.path().join("model.safetensors"), 7);
        let mut older = source.clone();
        older.files[0].modified_ns = Some(1);
        let to = dir.path().join("segment");
        assert_eq!(
            fill(&older, &to, &AtomicBool::new(false)),
            Err("its files changed while they were copied".into())
        );
        assert!(!to.exists());
        let given_up = fill(&sources(&components).remove(0).1, &to, &AtomicBool::new(true));
        assert_eq!((given_up, to.exists()), (Err("given up".into()), false));
    }

    #[test]
    fn configs_and_tokenizers_have_no_weights() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().display().to_string();
        let roles = ["root", "scheduler", "tokenizer_2", "unet"];
        let components = roles.map(|role| (role.to_owned(), place.clone()));
        assert_eq!(sources(&components.into()), []);
    }

    #[test]
    fn the_folder_is_emptied_of_what_a_killed_engine_left() {
        let dir = tempfile::tempdir().unwrap();
        let (folder, room_bytes) = prepare_folder(dir.path()).unwrap();
        assert!(room_bytes > 0);
        fs::write(folder.join("weights-1"), "left").unwrap();
        assert_eq!(prepare_folder(dir.path()).unwrap().0, folder);
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
        delete_folder(&folder).unwrap();
        delete_folder(&folder).unwrap();
        assert!(!folder.exists());
    }
}
