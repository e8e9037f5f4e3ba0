//! A safetensors header: names, types, shapes and bounds, without reading a weight.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use safetensors::SafeTensors;
use safetensors::tensor::Metadata;

/// The largest header that is read; safetensors itself allows 100 MB.
const MOST_BYTES: u64 = 100_000_000;

/// What a header says.
#[derive(Debug, Clone)]
pub(super) struct Header {
    pub(super) file_bytes: u64,
    pub(super) parameters: u64,
    pub(super) names: Vec<String>,
}

/// Reads and checks the header of a file.
pub(super) fn read(path: &Path) -> Result<Header, String> {
    let wrong = |what: String| format!("{}: {what}", path.display());
    let mut file = File::open(path).map_err(|error| wrong(error.to_string()))?;
    let file_bytes = file.metadata().map_err(|error| wrong(error.to_string()))?.len();
    let mut length = [0; 8];
    file.read_exact(&mut length).map_err(|_| wrong("too short for a safetensors file".into()))?;
    let header_bytes = u64::from_le_bytes(length);
    if header_bytes > MOST_BYTES || header_bytes.saturating_add(8) > file_bytes {
        return Err(wrong(format!("its header says {header_bytes} bytes, the file has {file_bytes}")));
    }
    let mut bytes = length.to_vec();
    file.take(header_bytes).read_to_end(&mut bytes).map_err(|error| wrong(error.to_string()))?;
    let (_, metadata): (usize, Metadata) = SafeTensors::read_metadata(&bytes).map_err(|error| wrong(error.to_string()))?;
    let data_bytes = metadata.data_len() as u64;
    if header_bytes + 8 + data_bytes != file_bytes {
        return Err(wrong(format!(
            "its tensors need {} bytes, the file has {file_bytes}: it is cut off or damaged",
            header_bytes + 8 + data_bytes
        )));
    }
    let tensors = metadata.tensors();
    let elements = |shape: &[usize]| shape.iter().fold(1u64, |product, extent| product.saturating_mul(*extent as u64));
    Ok(Header {
        file_bytes,
        parameters: tensors.values().map(|tensor| elements(&tensor.shape)).fold(0, u64::saturating_add),
        names: tensors.into_keys().collect(),
    })
}
