//! PyTorch `.bin` and `.pt` files, through the `pytorch-reader` crate: the pickle is interpreted against a list of
//! allowed types and no code in it is run.

use std::path::Path;

use pytorch_reader::{DType, PytorchError, PytorchReader, Tensor};

use crate::tensor::checked_byte_len;
use crate::{Error, Result, TensorDtype, TensorInfo};

/// Opens a file and lists its tensors. Their bytes stay on the disk.
pub(crate) fn open(path: &Path) -> Result<Vec<(TensorInfo, Tensor)>> {
    let file_len = std::fs::metadata(path)
        .map_err(|e| Error::io(path, "open the file", "check that it exists and that you may read it", e))?
        .len();
    let reader = PytorchReader::new(path).map_err(|e| match e {
        PytorchError::Io(e) if e.raw_os_error().is_some() => {
            Error::io(path, "read the file", "check that you may read it", e)
        }
        other => Error::damaged(path, format!("the checkpoint cannot be read: {other}")),
    })?;
    let mut tensors = Vec::with_capacity(reader.len());
    for (name, tensor) in reader.into_tensors() {
        let dtype = dtype(tensor.dtype());
        let shape = tensor.shape().to_vec();
        // A view with stride 0 lets a few bytes claim any number of values. No model is saved like that.
        let fits = checked_byte_len(&shape, dtype)
            .is_some_and(|len| u64::try_from(len).is_ok_and(|len| len <= file_len));
        if !fits {
            return Err(Error::damaged(
                path,
                format!(
                    "tensor `{name}`, {dtype} {shape:?}, is larger than the whole file of {file_len} bytes"
                ),
            ));
        }
        tensors.push((TensorInfo { name, shape, dtype }, tensor));
    }
    Ok(tensors)
}

/// Reads a tensor's bytes: little endian, row-major whatever its strides in the file.
pub(crate) fn read(path: &Path, info: &TensorInfo, tensor: &Tensor) -> Result<Vec<u8>> {
    let bytes = tensor.read().map_err(|e| {
        if e.raw_os_error().is_some() {
            Error::io(path, "read the file", "check the disk", e)
        } else {
            Error::damaged(path, e.to_string())
        }
    })?;
    if bytes.len() != info.byte_len() {
        return Err(Error::damaged(
            path,
            format!("tensor `{}` has {} bytes instead of {}", info.name, bytes.len(), info.byte_len()),
        ));
    }
    Ok(bytes)
}

fn dtype(dtype: DType) -> TensorDtype {
    match dtype {
        DType::F64 => TensorDtype::F64,
        DType::F32 => TensorDtype::F32,
        DType::F16 => TensorDtype::F16,
        DType::BF16 => TensorDtype::BF16,
        DType::I64 => TensorDtype::I64,
        DType::I32 => TensorDtype::I32,
        DType::I16 => TensorDtype::I16,
        DType::I8 => TensorDtype::I8,
        DType::U64 => TensorDtype::U64,
        DType::U32 => TensorDtype::U32,
        DType::U16 => TensorDtype::U16,
        DType::U8 => TensorDtype::U8,
        DType::Bool => TensorDtype::Bool,
    }
}
