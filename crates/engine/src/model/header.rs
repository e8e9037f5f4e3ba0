//! A safetensors header: names, types, shapes and bounds, without reading a weight.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::Read;
use std::path::Path;

use safetensors::tensor::Metadata;

/// The largest header that is read; safetensors itself allows 100 MB.
const MOST_BYTES: u64 = 100_000_000;

/// What a header says.
#[derive(Debug, Clone)]
pub(super) struct Header {
    pub(super) file_bytes: u64,
    pub(super) parameters: u64,
    /// Tensors by name, with their shapes.
    pub(super) shapes: BTreeMap<String, Vec<usize>>,
    /// What the file says of itself.
    pub(super) said: HashMap<String, String>,
}

impl Header {
    /// Whether a tensor is named so or a tensor's name begins so.
    pub(super) fn has(&self, prefix: &str) -> bool {
        self.shapes
            .range(prefix.to_owned()..)
            .next()
            .is_some_and(|(name, _)| name.starts_with(prefix))
    }

    /// The extent of a tensor along an axis.
    pub(super) fn extent(&self, name: &str, axis: usize) -> Option<u32> {
        let extent = self.shapes.get(name)?.get(axis)?;
        u32::try_from(*extent).ok()
    }

    /// The extent along an axis of the first tensor whose name is one of these.
    pub(super) fn extent_of(&self, wanted: impl Fn(&str) -> bool, axis: usize) -> Option<u32> {
        let (name, _) = self.shapes.iter().find(|(name, _)| wanted(name))?;
        self.extent(name, axis)
    }
}

/// Reads and checks the header of a file.
pub(super) fn read(path: &Path) -> Result<Header, String> {
    table(path).map(|(header, _, _)| header)
}

/// The same, with the table of the tensors as it stands there, and where the data begin behind it.
pub(super) fn table(path: &Path) -> Result<(Header, Metadata, u64), String> {
    let wrong = |what: String| format!("{}: {what}", path.display());
    let facts = std::fs::metadata(path).map_err(|error| wrong(error.to_string()))?;
    // Opening a pipe would wait for its writer.
    if !facts.is_file() {
        return Err(wrong("not a file".into()));
    }
    let mut file = File::open(path).map_err(|error| wrong(error.to_string()))?;
    let file_bytes = facts.len();
    let mut length = [0; 8];
    file.read_exact(&mut length)
        .map_err(|_| wrong("too short for a safetensors file".into()))?;
    let header_bytes = u64::from_le_bytes(length);
    if header_bytes > MOST_BYTES || header_bytes.saturating_add(8) > file_bytes {
        return Err(wrong(format!(
            "its header says {header_bytes} bytes, the file has {file_bytes}"
        )));
    }
    let mut bytes = Vec::new();
    file.take(header_bytes)
        .read_to_end(&mut bytes)
        .map_err(|error| wrong(error.to_string()))?;
    // Not `SafeTensors::read_metadata`: it wants the weights behind the header, and adds their sizes unchecked.
    let metadata: Metadata = serde_json::from_slice(&bytes).map_err(|error| wrong(error.to_string()))?;
    let mut shapes = BTreeMap::new();
    let (mut parameters, mut end) = (0u64, 0u64);
    for name in metadata.offset_keys() {
        let Some(tensor) = metadata.info(&name) else {
            continue;
        };
        let (from, to) = (tensor.data_offsets.0 as u64, tensor.data_offsets.1 as u64);
        let elements = tensor
            .shape
            .iter()
            .try_fold(1u64, |product, extent| product.checked_mul(*extent as u64));
        let bits = elements.and_then(|elements| elements.checked_mul(tensor.dtype.bitsize() as u64));
        if from != end || to < from || bits.is_none_or(|bits| bits % 8 != 0 || bits / 8 != to - from) {
            return Err(wrong(format!("the bounds of its tensor `{name}` are wrong")));
        }
        end = to;
        parameters = parameters.saturating_add(elements.unwrap_or(0));
        shapes.insert(name, tensor.shape.clone());
    }
    let need_bytes = end.saturating_add(8 + header_bytes);
    if need_bytes != file_bytes {
        return Err(wrong(format!(
            "its tensors need {need_bytes} bytes, the file has {file_bytes}: it is cut off or damaged"
        )));
    }
    let header = Header {
        file_bytes,
        parameters,
        shapes,
        said: metadata.metadata().clone().unwrap_or_default(),
    };
    Ok((header, metadata, 8 + header_bytes))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Writes a safetensors file of half-precision zeros.
    pub(crate) fn write(path: &Path, tensors: &[(&str, &[usize])], said: &[(&str, &str)]) {
        let mut end = 0;
        let mut header = serde_json::Map::new();
        for (name, shape) in tensors {
            let from = end;
            end += 2 * shape.iter().product::<usize>();
            let tensor = serde_json::json!({"dtype": "F16", "shape": shape, "data_offsets": [from, end]});
            header.insert((*name).to_owned(), tensor);
        }
        let said: BTreeMap<&str, &str> = said.iter().copied().collect();
        header.insert("__metadata__".into(), serde_json::json!(said));
        let header = serde_json::to_vec(&header).unwrap();
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header);
        bytes.resize(bytes.len() + end, 0);
        std::fs::write(path, bytes).unwrap();
    }

    fn file(header: &str, data_bytes: usize) -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.safetensors");
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.resize(bytes.len() + data_bytes, 0);
        std::fs::write(&path, bytes).unwrap();
        (dir, path)
    }

    #[test]
    fn a_header_is_read_without_its_weights() {
        let (_dir, path) = file(r#"{"a":{"dtype":"F16","shape":[2,3],"data_offsets":[0,12]}}"#, 12);
        let header = read(&path).unwrap();
        assert_eq!(
            (header.parameters, header.shapes["a"].as_slice()),
            (6, &[2, 3][..])
        );
        assert_eq!(
            (
                header.extent("a", 1),
                header.extent("a", 2),
                header.extent("b", 0)
            ),
            (Some(3), None, None)
        );
        assert!(header.has("a") && !header.has("ab") && !header.has("b"));
    }

    #[test]
    fn a_file_that_is_cut_off_is_told_from_a_whole_one() {
        let (_dir, path) = file(r#"{"a":{"dtype":"F16","shape":[2,3],"data_offsets":[0,12]}}"#, 11);
        assert!(read(&path).unwrap_err().contains("cut off"));
    }

    #[test]
    fn tensors_that_claim_all_memory_are_refused_and_do_not_overflow() {
        let each = (1u64 << 61) - 1;
        let tensors: Vec<String> = (0..8u64)
            .map(|i| {
                let (from, to) = (i * each, (i + 1) * each);
                format!(r#""t{i}":{{"dtype":"U8","shape":[{each}],"data_offsets":[{from},{to}]}}"#)
            })
            .collect();
        let (_dir, path) = file(&format!("{{{}}}", tensors.join(",")), 16);
        assert!(read(&path).is_err());
        let (_dir, path) = file(
            r#"{"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]}}"#,
            0,
        );
        assert!(read(&path).is_err());
    }

    #[test]
    fn overlapping_tensors_are_refused_by_name() {
        let tensor = |name: &str, from: u64| {
            format!(
                r#""{name}":{{"dtype":"U8","shape":[4],"data_offsets":[{from},{}]}}"#,
                from + 4
            )
        };
        let (_dir, path) = file(&format!("{{{},{}}}", tensor("a", 0), tensor("b", 2)), 6);
        assert!(read(&path).unwrap_err().contains("`b`"));
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..64), header in "[{}\\[\\]\":,a0-9]{0,40}") {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("x.safetensors");
            std::fs::write(&path, &bytes).unwrap();
            let _ = read(&path);
            let (_dir, path) = file(&header, bytes.len());
            let _ = read(&path);
        }
    }
}
