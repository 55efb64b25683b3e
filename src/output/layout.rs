//! Where every output tensor goes: files, absolute offsets and complete headers, all known before a byte is written.
//!
//! Files are cut as Hugging Face cuts them: greedily in the base's order, a tensor larger than a shard alone in its
//! own. Within a file, tensors stand by element size, largest first, so that each starts at a multiple of its element
//! size without gaps (safetensors allows none); the header is padded with spaces so that the data starts at a
//! multiple of [`DATA_ALIGNMENT`]. Tensors of an adapter stand apart, in the one file of the adapter's folder.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde::Serialize;

use crate::dtype::Dtype;
use crate::error::{Error, Result};

/// The data section of every file starts at a multiple of this many bytes, as direct I/O wants it.
pub const DATA_ALIGNMENT: u64 = 4096;

/// The longest header that readers of safetensors accept, in bytes.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// Name of the index of a sharded output.
pub const INDEX_NAME: &str = "model.safetensors.index.json";

/// Name of the file of tensors in an adapter's folder.
pub const ADAPTER_NAME: &str = "adapter_model.safetensors";

/// One tensor to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// Its name, which no other tensor of the output has.
    pub name: String,
    /// The folder in OUT of the adapter that it belongs to; its name then begins with `FOLDER/`, which the file leaves out.
    /// Empty, where OUT itself is the adapter's folder.
    pub folder: Option<String>,
    /// Its stored element type.
    pub dtype: Dtype,
    /// Its shape; empty for a scalar.
    pub shape: Vec<u64>,
    /// Its stored size in bytes, which must be what `shape` and `dtype` make.
    pub bytes: u64,
}

impl TensorSpec {
    /// Its name in its file.
    pub fn stored_name(&self) -> &str {
        let within = |folder: &String| self.name.strip_prefix(folder.as_str())?.strip_prefix('/');
        self.folder.as_ref().and_then(within).unwrap_or(&self.name)
    }
}

/// Where a tensor's bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placement {
    /// Index of the file in [`Layout::files`].
    pub file: usize,
    /// Offset of the first byte from the start of the file.
    pub offset: u64,
    /// Number of bytes.
    pub bytes: u64,
}

/// One output file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileLayout {
    /// Its name in OUT: a plain one, or that of an adapter's folder, a slash, and [`ADAPTER_NAME`].
    pub name: String,
    /// The bytes in front of the data: the length word and the padded JSON.
    pub header: Vec<u8>,
    /// Size of the whole file in bytes.
    pub bytes: u64,
    /// Indices of its tensors in [`Layout::tensors`], in the order in which they are stored.
    pub tensors: Vec<usize>,
}

/// The whole output's layout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    tensors: Vec<TensorSpec>,
    placements: Vec<Placement>,
    files: Vec<FileLayout>,
    by_name: HashMap<String, usize>,
    data_bytes: u64,
}

impl Layout {
    /// Lays out `tensors` (in the base's order) in files of at most `shard_bytes` of data each.
    ///
    /// # Errors
    ///
    /// Two tensors of one name, a name that safetensors reserves, a size that does not belong to its shape, a header
    /// that no reader would accept, or sizes beyond 2⁶³.
    pub fn new(tensors: &[TensorSpec], shard_bytes: u64) -> Result<Self> {
        Self::with_metadata(tensors, shard_bytes, &[])
    }

    /// As [`Layout::new`], with entries for the metadata of the model's own files beside their `format`.
    ///
    /// # Errors
    ///
    /// As [`Layout::new`].
    pub fn with_metadata(tensors: &[TensorSpec], shard_bytes: u64, metadata: &[(&str, String)]) -> Result<Self> {
        check(tensors)?;
        if shard_bytes == 0 {
            return Err(Error::input("the shard size is 0 bytes").hint("give a size such as `--shard-size 5GB`"));
        }
        let shards = cut(tensors, shard_bytes)?;
        let adapters = adapters(tensors);
        let mut placements = vec![Placement { file: 0, offset: 0, bytes: 0 }; tensors.len()];
        let mut files = Vec::with_capacity(shards.len() + adapters.len());
        for (i, mut members) in shards.iter().chain(&adapters).cloned().enumerate() {
            // Stable: equal element sizes keep the base's order.
            members.sort_by_key(|&t| std::cmp::Reverse(tensors[t].dtype.bitsize()));
            let folder = members.first().and_then(|&t| tensors[t].folder.as_ref());
            let name = match folder {
                Some(folder) if folder.is_empty() => ADAPTER_NAME.into(),
                Some(folder) => format!("{folder}/{ADAPTER_NAME}"),
                None => file_name(i, shards.len()),
            };
            let metadata = if folder.is_some() { &[] } else { metadata };
            let (header, data_bytes) = header(tensors, &members, &name, metadata)?;
            let start = header.len() as u64;
            let mut offset = start;
            for &t in &members {
                placements[t] = Placement { file: i, offset, bytes: tensors[t].bytes };
                offset = add(offset, tensors[t].bytes)?;
            }
            let bytes = add(start, data_bytes)?;
            if offset != bytes || i64::try_from(bytes).is_err() {
                return Err(Error::internal(format!("`{name}` would have {bytes} bytes, its tensors end at {offset}")));
            }
            files.push(FileLayout { name, header, bytes, tensors: members });
        }
        let by_name = tensors.iter().enumerate().map(|(i, t)| (t.name.clone(), i)).collect();
        let data_bytes = tensors.iter().try_fold(0, |sum, t| add(sum, t.bytes))?;
        Ok(Self { tensors: tensors.to_vec(), placements, files, by_name, data_bytes })
    }

    /// The tensors, in the order in which they were given.
    pub fn tensors(&self) -> &[TensorSpec] {
        &self.tensors
    }

    /// The files: the model's in the order of their names, then the adapters'.
    pub fn files(&self) -> &[FileLayout] {
        &self.files
    }

    /// Place of the tensor with this index in [`Layout::tensors`].
    pub fn placement(&self, tensor: usize) -> Placement {
        self.placements[tensor]
    }

    /// Name of the file that holds the tensor of this name.
    pub fn file_of(&self, tensor: &str) -> Option<&str> {
        let index = self.index_of(tensor)?;
        Some(self.files[self.placements[index].file].name.as_str())
    }

    /// Index of the tensor of this name.
    pub fn index_of(&self, name: &str) -> Option<usize> {
        self.by_name.get(name).copied()
    }

    /// Bytes of all tensors, without headers.
    pub fn data_bytes(&self) -> u64 {
        self.data_bytes
    }

    /// Bytes of all files, with headers.
    pub fn file_bytes(&self) -> u64 {
        self.files.iter().fold(0, |sum, f| sum.saturating_add(f.bytes))
    }

    /// The text of `model.safetensors.index.json`, sorted as Hugging Face sorts it; `None` for a single file.
    pub fn index_json(&self) -> Result<Option<String>> {
        let own = || self.tensors.iter().zip(&self.placements).filter(|(t, _)| t.folder.is_none());
        if self.files.iter().filter(|f| !f.name.contains('/')).count() < 2 {
            return Ok(None);
        }
        #[derive(Serialize)]
        struct Metadata {
            total_size: u64,
        }
        #[derive(Serialize)]
        struct Index<'a> {
            metadata: Metadata,
            weight_map: BTreeMap<&'a str, &'a str>,
        }
        let weight_map = own().map(|(t, p)| (t.name.as_str(), self.files[p.file].name.as_str())).collect();
        let total_size = own().map(|(t, _)| t.bytes).sum();
        let index = Index { metadata: Metadata { total_size }, weight_map };
        let mut text = serde_json::to_string_pretty(&index).map_err(|e| Error::internal(format!("index: {e}")))?;
        text.push('\n');
        Ok(Some(text))
    }

    /// A digest (blake3, hexadecimal) of everything that decides where bytes go; part of a plan's fingerprint.
    pub fn digest(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        for file in &self.files {
            // Names have no NUL and headers carry their own length, so the concatenation is unambiguous.
            hasher.update(file.name.as_bytes()).update(&[0]).update(&file.header).update(&file.bytes.to_le_bytes());
        }
        hasher.finalize().to_hex().to_string()
    }
}

/// The i-th (from 0) of n files' name.
fn file_name(i: usize, n: usize) -> String {
    if n == 1 { "model.safetensors".into() } else { format!("model-{:05}-of-{n:05}.safetensors", i + 1) }
}

fn add(a: u64, b: u64) -> Result<u64> {
    a.checked_add(b).ok_or_else(|| Error::input("the output's tensors have more than 2^64 bytes together"))
}

fn check(tensors: &[TensorSpec]) -> Result<()> {
    let mut seen = HashSet::with_capacity(tensors.len());
    for tensor in tensors {
        let name = &tensor.name;
        if name == "__metadata__" {
            return Err(Error::input("a tensor is named `__metadata__`, a name that safetensors reserves"));
        }
        if !seen.insert(name.as_str()) {
            return Err(Error::input(format!("the output would have two tensors named `{name}`")));
        }
        // Multiplied in the order in which readers multiply: what overflows here would be refused there.
        let elems = tensor.shape.iter().try_fold(1_u64, |n, &d| n.checked_mul(d));
        let bits = elems.and_then(|n| n.checked_mul(tensor.dtype.bitsize() as u64));
        if bits.is_none_or(|b| b % 8 != 0 || b / 8 != tensor.bytes) {
            return Err(Error::internal(format!(
                "tensor `{name}`: {} bytes are not what shape {:?} of {} makes",
                tensor.bytes, tensor.shape, tensor.dtype
            )));
        }
    }
    Ok(())
}

/// Cuts the tensors into shards as Hugging Face does: a tensor larger than a shard gets its own, which comes before
/// the shard that was open at that moment.
fn cut(tensors: &[TensorSpec], shard_bytes: u64) -> Result<Vec<Vec<usize>>> {
    let mut shards = Vec::new();
    let mut open = Vec::new();
    let mut open_bytes = 0_u64;
    for (i, tensor) in tensors.iter().enumerate().filter(|(_, t)| t.folder.is_none()) {
        if tensor.bytes > shard_bytes {
            shards.push(vec![i]);
            continue;
        }
        if add(open_bytes, tensor.bytes)? > shard_bytes {
            shards.push(std::mem::take(&mut open));
            open_bytes = 0;
        }
        open.push(i);
        open_bytes = add(open_bytes, tensor.bytes)?;
    }
    let is_adapter = !tensors.is_empty() && tensors.iter().all(|t| t.folder.as_deref() == Some(""));
    if !open.is_empty() || (shards.is_empty() && !is_adapter) {
        shards.push(open);
    }
    Ok(shards)
}

/// The tensors of each adapter, in the order in which their folders come up.
fn adapters(tensors: &[TensorSpec]) -> Vec<Vec<usize>> {
    let mut places: HashMap<&str, usize> = HashMap::new();
    let mut adapters: Vec<Vec<usize>> = Vec::new();
    for (i, folder) in tensors.iter().enumerate().filter_map(|(i, t)| Some((i, t.folder.as_deref()?))) {
        let place = *places.entry(folder).or_insert(adapters.len());
        if place == adapters.len() {
            adapters.push(Vec::new());
        }
        adapters[place].push(i);
    }
    adapters
}

#[derive(Serialize)]
struct HeaderEntry<'a> {
    dtype: Dtype,
    shape: &'a [u64],
    data_offsets: [u64; 2],
}

/// The length word and the padded JSON of a file with these members, and the number of data bytes behind them.
fn header(
    tensors: &[TensorSpec],
    members: &[usize],
    file: &str,
    metadata: &[(&str, String)],
) -> Result<(Vec<u8>, u64)> {
    let internal = |e| Error::internal(format!("cannot write the header of `{file}`: {e}"));
    let mut json = br#"{"__metadata__":{"format":"pt""#.to_vec();
    for (key, value) in metadata {
        json.push(b',');
        serde_json::to_writer(&mut json, key).map_err(internal)?;
        json.push(b':');
        serde_json::to_writer(&mut json, value).map_err(internal)?;
    }
    json.push(b'}');
    let mut offset = 0_u64;
    for &t in members {
        let tensor = &tensors[t];
        let end = add(offset, tensor.bytes)?;
        json.push(b',');
        serde_json::to_writer(&mut json, tensor.stored_name()).map_err(internal)?;
        json.push(b':');
        let entry = HeaderEntry { dtype: tensor.dtype, shape: &tensor.shape, data_offsets: [offset, end] };
        serde_json::to_writer(&mut json, &entry).map_err(internal)?;
        offset = end;
    }
    json.push(b'}');
    let start = (json.len() as u64 + 8).next_multiple_of(DATA_ALIGNMENT);
    if start - 8 > MAX_HEADER_BYTES {
        let n = members.len();
        return Err(Error::input(format!(
            "the header of `{file}` would have {} bytes for {n} tensors; readers accept {MAX_HEADER_BYTES}",
            start - 8
        ))
        .hint("give a smaller `--shard-size`, so that each file has fewer tensors"));
    }
    json.resize((start - 8) as usize, b' ');
    let mut bytes = (start - 8).to_le_bytes().to_vec();
    bytes.append(&mut json);
    Ok((bytes, offset))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn spec(name: &str, dtype: Dtype, shape: &[u64]) -> TensorSpec {
        let bytes = (shape.iter().product::<u64>() * dtype.bitsize() as u64) / 8;
        TensorSpec { name: name.into(), folder: None, dtype, shape: shape.into(), bytes }
    }

    fn names(layout: &Layout, file: usize) -> Vec<&str> {
        layout.files()[file].tensors.iter().map(|&t| layout.tensors()[t].name.as_str()).collect()
    }

    #[test]
    fn one_file_has_the_plain_name_and_no_index() {
        let layout = Layout::new(&[spec("a", Dtype::F32, &[2, 3])], 1000).unwrap();
        assert_eq!(layout.files()[0].name, "model.safetensors");
        assert_eq!(layout.placement(0), Placement { file: 0, offset: 4096, bytes: 24 });
        assert_eq!(layout.files()[0].bytes, 4120);
        assert_eq!(layout.index_json().unwrap(), None);
    }

    #[test]
    fn no_tensors_make_one_empty_file() {
        let layout = Layout::new(&[], 1000).unwrap();
        assert_eq!(layout.files().len(), 1);
        assert!(safetensors::SafeTensors::deserialize(&layout.files()[0].header).unwrap().is_empty());
    }

    #[test]
    fn shards_fill_greedily_in_base_order_and_a_tensor_above_the_limit_stands_alone() {
        let sizes = [("a", 6), ("b", 4), ("big", 11), ("c", 1), ("d", 10)];
        let tensors: Vec<_> = sizes.iter().map(|(n, s)| spec(n, Dtype::U8, &[*s])).collect();
        let layout = Layout::new(&tensors, 10).unwrap();
        let found: Vec<_> = (0..layout.files().len()).map(|i| names(&layout, i)).collect();
        assert_eq!(found, [vec!["big"], vec!["a", "b"], vec!["c"], vec!["d"]]);
        assert_eq!(layout.files()[3].name, "model-00004-of-00004.safetensors");
        let index: serde_json::Value = serde_json::from_str(&layout.index_json().unwrap().unwrap()).unwrap();
        assert_eq!(index["metadata"]["total_size"], 32);
        assert_eq!(index["weight_map"]["a"], "model-00002-of-00004.safetensors");
        let keys: Vec<_> = index["weight_map"].as_object().unwrap().keys().collect();
        assert_eq!(keys, ["a", "b", "big", "c", "d"]);
    }

    #[test]
    fn tensors_stand_by_element_size_then_in_base_order() {
        let tensors = [
            spec("flag", Dtype::BOOL, &[3]),
            spec("half", Dtype::BF16, &[5]),
            spec("nibbles", Dtype::F4, &[6]),
            spec("wide", Dtype::F64, &[1]),
            spec("half2", Dtype::F16, &[1]),
        ];
        let layout = Layout::new(&tensors, 1 << 30).unwrap();
        assert_eq!(names(&layout, 0), ["wide", "half", "half2", "flag", "nibbles"]);
    }

    #[test]
    fn what_no_reader_would_accept_is_refused() {
        let twice = [spec("a", Dtype::U8, &[1]), spec("a", Dtype::U8, &[1])];
        assert!(Layout::new(&twice, 10).unwrap_err().to_string().contains("two tensors named `a`"));
        assert!(Layout::new(&[spec("__metadata__", Dtype::U8, &[1])], 10).is_err());
        assert!(Layout::new(&[], 0).is_err());
        let wrong = TensorSpec { bytes: 5, ..spec("a", Dtype::F32, &[1]) };
        assert!(Layout::new(&[wrong], 10).unwrap_err().to_string().contains("5 bytes"));
        let overflow = TensorSpec { shape: vec![1 << 62, 4], bytes: 0, ..spec("a", Dtype::F32, &[1]) };
        assert!(Layout::new(&[overflow], 10).is_err());
        let half_byte = TensorSpec { shape: vec![3], bytes: 1, ..spec("a", Dtype::F4, &[2]) };
        assert!(Layout::new(&[half_byte], 10).is_err());
        let huge = |n: usize| (0..n).map(|i| spec(&format!("t{i}"), Dtype::U8, &[(1 << 61) - 1])).collect::<Vec<_>>();
        assert!(Layout::new(&huge(9), u64::MAX).unwrap_err().to_string().contains("2^64"));
        assert!(Layout::new(&huge(9), 1 << 61).is_err(), "in files of their own, too");
        assert!(Layout::new(&huge(5), u64::MAX).is_err(), "no file has 2^63 bytes");
    }

    #[test]
    fn an_empty_tensor_with_a_vast_other_dimension_has_no_bytes() {
        let tensor = TensorSpec { shape: vec![1 << 63, 0, 7], bytes: 0, ..spec("a", Dtype::F32, &[0]) };
        let layout = Layout::new(&[tensor], 10).unwrap();
        assert_eq!(layout.placement(0).bytes, 0);
        assert_eq!(safetensors::SafeTensors::deserialize(&layout.files()[0].header).unwrap().len(), 1);
    }

    fn dtype() -> impl Strategy<Value = Dtype> {
        use Dtype::*;
        prop::sample::select(vec![F64, F32, BF16, F16, F8_E4M3, F8_E5M2, I64, I32, I16, U8, BOOL, C64])
    }

    fn tensors() -> impl Strategy<Value = Vec<TensorSpec>> {
        let one = (dtype(), prop::collection::vec(0_u64..5, 0..4), "[a-z\"\\\\\u{e9}\u{1}]{0,6}");
        prop::collection::vec(one, 0..24).prop_map(|list| {
            let unique = |(i, (dtype, shape, name)): (usize, (Dtype, Vec<u64>, String))| {
                spec(&format!("{name}.{i}"), dtype, &shape)
            };
            list.into_iter().enumerate().map(unique).collect()
        })
    }

    proptest! {
        #[test]
        fn every_file_is_read_back_by_the_safetensors_crate(tensors in tensors(), shard in 1_u64..600) {
            let layout = Layout::new(&tensors, shard).unwrap();
            let mut files: Vec<Vec<u8>> = layout.files().iter().map(|f| {
                let mut bytes = f.header.clone();
                bytes.resize(f.bytes as usize, 0);
                bytes
            }).collect();
            let content = |i: usize, n: u64| vec![i as u8 + 1; n as usize];
            for (i, tensor) in tensors.iter().enumerate() {
                let p = layout.placement(i);
                let align = tensor.dtype.bitsize() as u64 / 8;
                prop_assert_eq!(p.offset % align, 0, "aligned to its element");
                let range = p.offset as usize..(p.offset + p.bytes) as usize;
                prop_assert!(files[p.file][range.clone()].iter().all(|&b| b == 0), "no two tensors overlap");
                files[p.file][range].copy_from_slice(&content(i, p.bytes));
            }
            for (f, bytes) in layout.files().iter().zip(&files) {
                prop_assert_eq!(f.header.len() as u64 % DATA_ALIGNMENT, 0);
                let data: u64 = f.tensors.iter().map(|&t| tensors[t].bytes).sum();
                prop_assert!(data <= shard || f.tensors.len() == 1);
                let read = safetensors::SafeTensors::deserialize(bytes).unwrap();
                prop_assert_eq!(read.len(), f.tensors.len());
                for &t in &f.tensors {
                    let view = read.tensor(&tensors[t].name).unwrap();
                    let shape: Vec<u64> = view.shape().iter().map(|&d| d as u64).collect();
                    prop_assert_eq!(&shape, &tensors[t].shape);
                    prop_assert_eq!(view.dtype(), tensors[t].dtype);
                    prop_assert_eq!(view.data(), &content(t, tensors[t].bytes)[..]);
                }
            }
        }
    }
}
