//! Weights in several safetensors files with an index, as `save_pretrained` of transformers lays them out.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::layout::{INDEX_ENDING, WEIGHTS};
use crate::{Error, Result, SafetensorsWriter, TensorInfo, write_atomic};

/// The name of weights that fit in one file.
const SINGLE_FILE: &str = WEIGHTS[0];

/// Writes a model's tensors into as many files as a largest size asks for, one tensor after the other:
/// `model.safetensors`, or `model-00001-of-00002.safetensors` and so on with `model.safetensors.index.json`.
#[derive(Debug)]
pub struct ShardedWriter {
    folder: PathBuf,
    shards: Vec<Vec<TensorInfo>>,
}

impl ShardedWriter {
    /// Shares tensors out among files in their order. A file holds at most `largest` bytes of tensors, or one tensor
    /// that is larger.
    pub fn new(folder: &Path, tensors: Vec<TensorInfo>, largest: u64) -> Self {
        let mut shards: Vec<Vec<TensorInfo>> = Vec::new();
        let mut size = 0u64;
        for tensor in tensors {
            let bytes = tensor.byte_len() as u64;
            match shards.last_mut() {
                Some(shard) if size.saturating_add(bytes) <= largest => {
                    size += bytes;
                    shard.push(tensor);
                }
                _ => {
                    size = bytes;
                    shards.push(vec![tensor]);
                }
            }
        }
        Self { folder: folder.into(), shards }
    }

    /// The files' names.
    pub fn names(&self) -> Vec<String> {
        let count = self.shards.len();
        match count {
            1 => vec![SINGLE_FILE.into()],
            _ => (1..=count).map(|shard| format!("model-{shard:05}-of-{count:05}.safetensors")).collect(),
        }
    }

    /// Bytes of all tensors.
    pub fn total_size(&self) -> u64 {
        self.shards.iter().flatten().map(|tensor| tensor.byte_len() as u64).sum()
    }

    /// Writes every file, then the index. `fill` is asked for each tensor once and writes its bytes, in pieces of any
    /// length.
    ///
    /// # Errors
    /// As for [`SafetensorsWriter`], and those of `fill`.
    pub fn write<E: From<Error>>(
        &self,
        mut fill: impl FnMut(&TensorInfo, &mut SafetensorsWriter) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
        for (name, tensors) in self.names().iter().zip(&self.shards) {
            let mut writer = SafetensorsWriter::create(&self.folder.join(name), tensors, &metadata)?;
            for tensor in writer.order().to_vec() {
                fill(&tensor, &mut writer)?;
            }
            writer.finish()?;
        }
        Ok(self.write_index()?)
    }

    fn write_index(&self) -> Result<()> {
        let names = self.names();
        if names.len() < 2 {
            return Ok(());
        }
        let map: BTreeMap<&str, &str> = names
            .iter()
            .zip(&self.shards)
            .flat_map(|(name, tensors)| {
                tensors.iter().map(move |tensor| (tensor.name.as_str(), name.as_str()))
            })
            .collect();
        let index = json!({ "metadata": { "total_size": self.total_size() }, "weight_map": map });
        let text = format!("{index:#}\n");
        write_atomic(&self.folder.join(format!("{SINGLE_FILE}{INDEX_ENDING}")), |file| {
            file.write_all(text.as_bytes())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Checkpoint, TensorDtype};

    fn tensor(name: &str, len: usize) -> TensorInfo {
        TensorInfo { name: name.into(), shape: vec![len], dtype: TensorDtype::F32 }
    }

    #[test]
    fn files_hold_at_most_the_largest_size_or_one_tensor() {
        let folder = tempfile::tempdir().unwrap();
        let tensors = vec![tensor("a", 2), tensor("b", 2), tensor("c", 9), tensor("d", 1), tensor("e", 4)];
        let writer = ShardedWriter::new(folder.path(), tensors, 20);
        let sizes: Vec<Vec<&str>> = writer
            .shards
            .iter()
            .map(|shard| shard.iter().map(|tensor| tensor.name.as_str()).collect())
            .collect();
        assert_eq!(sizes, [vec!["a", "b"], vec!["c"], vec!["d", "e"]]);
        let fill = |tensor: &TensorInfo, writer: &mut SafetensorsWriter| {
            (0..tensor.rows()).try_for_each(|row| writer.write(&(row as f32).to_le_bytes()))
        };
        writer.write::<Error>(fill).unwrap();
        let read = Checkpoint::open(folder.path()).unwrap();
        assert_eq!((read.files().len(), read.tensors().len()), (3, 5));
        let mut values = Vec::new();
        read.read_f32("e", &mut values).unwrap();
        assert_eq!(values, [0.0, 1.0, 2.0, 3.0]);
    }

    #[test]
    fn one_file_needs_no_index_and_has_the_bytes_of_one_written_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let tensors = vec![tensor("b", 1), tensor("a", 2)];
        ShardedWriter::new(folder.path(), tensors, 100)
            .write::<Error>(|tensor, writer| writer.write(&vec![1; tensor.byte_len()]))
            .unwrap();
        let names: Vec<_> =
            std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, [SINGLE_FILE]);
        let view = |name, shape, data| crate::TensorView { name, shape, dtype: TensorDtype::F32, data };
        let path = folder.path().join("whole");
        let metadata = BTreeMap::from([("format".into(), "pt".into())]);
        crate::write_safetensors(&path, &[view("a", &[2], &[1; 8]), view("b", &[1], &[1; 4])], &metadata)
            .unwrap();
        assert_eq!(std::fs::read(path).unwrap(), std::fs::read(folder.path().join(SINGLE_FILE)).unwrap());
    }

    #[test]
    fn a_file_with_too_few_or_too_many_bytes_never_gets_its_name() {
        let folder = tempfile::tempdir().unwrap();
        for given in [3, 5] {
            let writer = ShardedWriter::new(folder.path(), vec![tensor("a", 1)], 100);
            let error = writer.write::<Error>(|_, writer| writer.write(&vec![0; given])).unwrap_err();
            assert!(error.to_string().contains("bytes were given"), "{error}");
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
