//! Safetensors files, mapped, and the conversion of their tensors into a graph's layout of f32.
//! Headers are checked before anything is read by them.

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use calotype_protocol::Failure;
use half::slice::HalfFloatSliceExt;
use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors};

use super::graphs::Component;
use super::mapped;
use crate::failure::bad_model;

/// A tensor in a file.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    bytes: Range<usize>,
}

/// A safetensors file whose header was checked.
#[derive(Debug)]
pub(crate) struct WeightFile {
    pub(crate) path: PathBuf,
    map: Mmap,
    entries: HashMap<String, Entry>,
}

impl WeightFile {
    pub(crate) fn open(path: &Path) -> Result<Self, Failure> {
        let wrong = |why: String| {
            bad_model(
                "a weights file cannot be read",
                format!("{}: {why}", path.display()),
            )
        };
        let map = mapped::map(path).map_err(|error| wrong(error.to_string()))?;
        let (header_bytes, metadata) =
            SafeTensors::read_metadata(&map).map_err(|error| wrong(format!("not safetensors: {error}")))?;
        // The data begins after the eight bytes of the header's length and the header itself.
        let start = header_bytes
            .checked_add(8)
            .ok_or_else(|| wrong("the header is too long".into()))?;
        let mut entries = HashMap::new();
        for (name, info) in metadata.tensors() {
            let bytes = start + info.data_offsets.0..start + info.data_offsets.1;
            if bytes.end > map.len() || bytes.start > bytes.end {
                return Err(wrong(format!("`{name}` lies outside the file")));
            }
            entries.insert(
                name,
                Entry {
                    dtype: info.dtype,
                    shape: info.shape.clone(),
                    bytes,
                },
            );
        }
        Ok(Self {
            path: path.to_path_buf(),
            map,
            entries,
        })
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    pub(crate) fn entry(&self, name: &str) -> Option<&Entry> {
        self.entries.get(name)
    }

    /// A tensor as f32 with its shape.
    pub(crate) fn read(&self, name: &str) -> Result<(Vec<usize>, Vec<f32>), Failure> {
        let entry = self.entry(name).ok_or_else(|| self.wrong(name, "is missing"))?;
        let count = entry.shape.iter().product::<usize>();
        let mut out = vec![0.0; count];
        self.convert(name, entry, &mut out)?;
        Ok((entry.shape.clone(), out))
    }

    fn convert(&self, name: &str, entry: &Entry, out: &mut [f32]) -> Result<(), Failure> {
        let bytes = self
            .map
            .get(entry.bytes.clone())
            .ok_or_else(|| self.wrong(name, "lies outside the file"))?;
        let width = match entry.dtype {
            Dtype::F32 => 4,
            Dtype::F16 | Dtype::BF16 => 2,
            other => {
                return Err(self.wrong(
                    name,
                    &format!("has the type {other:?}; f32, f16 and bf16 are read"),
                ));
            }
        };
        if bytes.len() != out.len() * width {
            return Err(self.wrong(name, "has a length that does not fit its shape"));
        }
        match entry.dtype {
            Dtype::F32 => {
                for (value, four) in out.iter_mut().zip(bytes.chunks_exact(4)) {
                    *value = f32::from_le_bytes([four[0], four[1], four[2], four[3]]);
                }
            }
            Dtype::F16 => {
                // In pieces, through an aligned copy: the file's own bytes need not be aligned.
                let mut piece = [half::f16::ZERO; 1024];
                for (values, bytes) in out.chunks_mut(1024).zip(bytes.chunks(2048)) {
                    let piece = &mut piece[..values.len()];
                    for (half, two) in piece.iter_mut().zip(bytes.chunks_exact(2)) {
                        *half = half::f16::from_bits(u16::from_le_bytes([two[0], two[1]]));
                    }
                    piece.convert_to_f32_slice(values);
                }
            }
            _ => {
                for (value, two) in out.iter_mut().zip(bytes.chunks_exact(2)) {
                    *value = f32::from_bits(u32::from(u16::from_le_bytes([two[0], two[1]])) << 16);
                }
            }
        }
        Ok(())
    }

    fn wrong(&self, tensor: &str, why: &str) -> Failure {
        bad_model(
            "the weights are not usable",
            format!("{}: tensor `{tensor}` {why}", self.path.display()),
        )
    }
}

/// All files of one component.
#[derive(Debug)]
pub(crate) struct Weights {
    folder: PathBuf,
    files: Vec<WeightFile>,
}

impl Weights {
    /// Opens a file, or the safetensors files of a folder: the usual single file, else all shards.
    pub(crate) fn open(path: &Path) -> Result<Self, Failure> {
        let mut paths = Vec::new();
        if path.is_dir() {
            let usual =
                ["model.safetensors", "diffusion_pytorch_model.safetensors"].map(|name| path.join(name));
            match usual.into_iter().find(|path| path.is_file()) {
                Some(file) => paths.push(file),
                None => {
                    let entries = std::fs::read_dir(path).map_err(|error| {
                        bad_model(
                            "a model folder cannot be read",
                            format!("{}: {error}", path.display()),
                        )
                    })?;
                    paths.extend(entries.filter_map(|entry| entry.ok().map(|entry| entry.path())));
                    paths.retain(|path| {
                        path.extension()
                            .is_some_and(|extension| extension == "safetensors")
                    });
                    paths.sort();
                }
            }
        } else {
            paths.push(path.to_path_buf());
        }
        if paths.is_empty() {
            return Err(bad_model(
                "the model has no weights",
                format!("{}: no safetensors file", path.display()),
            ));
        }
        let files = paths
            .iter()
            .map(|path| WeightFile::open(path))
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Self {
            folder: path.to_path_buf(),
            files,
        })
    }

    fn find(&self, name: &str) -> Option<(&WeightFile, String)> {
        other_names(name).into_iter().find_map(|name| {
            self.files
                .iter()
                .find(|file| file.entry(&name).is_some())
                .map(|file| (file, name.clone()))
        })
    }

    /// Checks that each tensor of `component` is there with its shape. Reads only headers.
    pub(crate) fn check(&self, component: &Component) -> Result<(), Failure> {
        for slot in &component.tensors {
            let detail = |why: String| {
                bad_model(
                    "the weights do not fit the model's config",
                    format!("{}: tensor `{}` {why}", self.folder.display(), slot.name),
                )
            };
            let (file, name) = self.find(&slot.name).ok_or_else(|| detail("is missing".into()))?;
            let found = file
                .entry(&name)
                .map(|entry| entry.shape.clone())
                .unwrap_or_default();
            if squeezed(&found) != squeezed(&slot.shape) {
                return Err(detail(format!("has the shape {found:?}, not {:?}", slot.shape)));
            }
        }
        Ok(())
    }

    /// The weights in the layout of `component`, as f32. `change` sees each tensor on its way.
    pub(crate) fn fill(
        &self,
        component: &Component,
        mut change: impl FnMut(&str, &mut [f32]) -> Result<(), Failure>,
    ) -> Result<Vec<u8>, Failure> {
        self.check(component)?;
        let mut out = vec![0u8; component.bytes];
        let mut values = Vec::new();
        for slot in &component.tensors {
            let Some((file, name)) = self.find(&slot.name) else {
                continue;
            };
            let Some(entry) = file.entry(&name) else { continue };
            values.clear();
            values.resize(slot.count(), 0.0);
            file.convert(&name, entry, &mut values)?;
            change(&slot.name, &mut values)?;
            let target = out
                .get_mut(slot.offset..slot.offset + values.len() * 4)
                .ok_or_else(|| {
                    bad_model(
                        "the graph's layout is wrong",
                        format!("`{}` lies outside the buffer", slot.name),
                    )
                })?;
            for (four, value) in target.chunks_exact_mut(4).zip(&values) {
                four.copy_from_slice(&value.to_le_bytes());
            }
        }
        Ok(out)
    }
}

/// Shapes are compared without their ones at the end: older files keep 1x1 convolutions where newer have matrices.
fn squeezed(shape: &[usize]) -> &[usize] {
    let kept = shape
        .iter()
        .rposition(|extent| *extent != 1)
        .map_or(0, |last| last + 1);
    &shape[..kept]
}

/// The names that a tensor has had: today's, the attention of older VAEs, the text encoder without its prefix.
fn other_names(name: &str) -> Vec<String> {
    let mut names = vec![name.to_owned()];
    if name.contains(".attentions.") {
        let older = name
            .replace(".to_q.", ".query.")
            .replace(".to_k.", ".key.")
            .replace(".to_v.", ".value.")
            .replace(".to_out.0.", ".proj_attn.");
        if older != name {
            names.push(older);
        }
    }
    if let Some(bare) = name.strip_prefix("text_model.") {
        names.push(bare.to_owned());
    }
    names
}
