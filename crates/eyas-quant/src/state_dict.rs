//! A quantised matrix as bitsandbytes keeps it in a checkpoint.
//!
//! A weight `W` becomes these tensors:
//!
//! | key | type | holds |
//! |---|---|---|
//! | `W` | u8 `[n / 2, 1]` | the packed codes |
//! | `W.absmax` | f32 or, quantised twice, u8 | the scales |
//! | `W.quant_map` | f32 `[16]` | the levels |
//! | `W.nested_absmax` | f32 | the scales of the scales |
//! | `W.nested_quant_map` | f32 `[256]` | the 8-bit levels |
//! | `W.quant_state.bitsandbytes__nf4` (or `fp4`) | u8 | JSON: the settings, shape and offset |
//!
//! The `nested_` keys exist only with double quantisation.

use std::borrow::Cow;
use std::collections::BTreeMap;

use half::{bf16, f16};
use serde::Deserialize;

use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::quant_type::QuantType;
use crate::quantized::{Absmax, Quantized, element_count};

/// How far a stored level may be from ours. Older writers rounded the FP4 levels to four decimals.
const LEVEL_TOLERANCE: f32 = 1e-4;

/// The type of a checkpoint tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TensorDtype {
    /// Bytes.
    U8,
    /// Floats.
    Float(Dtype),
}

impl TensorDtype {
    /// The name that safetensors uses.
    pub const fn safetensors_name(self) -> &'static str {
        match self {
            Self::U8 => "U8",
            Self::Float(Dtype::F32) => "F32",
            Self::Float(Dtype::F16) => "F16",
            Self::Float(Dtype::Bf16) => "BF16",
        }
    }

    const fn size(self) -> usize {
        match self {
            Self::U8 => 1,
            Self::Float(dtype) => dtype.size(),
        }
    }
}

/// A checkpoint tensor: little-endian and row-major, borrowed where it can be.
#[derive(Debug, Clone, PartialEq)]
pub struct StateTensor<'a> {
    /// The element type.
    pub dtype: TensorDtype,
    /// The dimensions.
    pub shape: Vec<usize>,
    /// The elements.
    pub data: Cow<'a, [u8]>,
}

/// The tensors of one quantised weight, by key.
pub type StateDict<'a> = BTreeMap<String, StateTensor<'a>>;

/// The JSON beside the tensors. Its keys are the format's.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct QuantState {
    quant_type: String,
    blocksize: usize,
    dtype: String,
    shape: Vec<usize>,
    nested_blocksize: Option<usize>,
    nested_dtype: Option<String>,
    nested_offset: Option<f64>,
}

/// The keys under which bitsandbytes may keep the settings of the weight `name`.
pub fn quant_state_keys(name: &str) -> [(QuantType, String); 2] {
    [QuantType::Nf4, QuantType::Fp4]
        .map(|quant_type| (quant_type, format!("{name}.quant_state.bitsandbytes__{}", quant_type.name())))
}

impl Quantized {
    /// The tensors of this matrix as the weight `name` of a checkpoint, with bitsandbytes' own keys and bytes.
    pub fn to_state_dict(&self, name: &str) -> StateDict<'_> {
        let mut tensors = StateDict::new();
        tensors.insert(name.into(), borrowed(self.packed(), vec![self.packed().len(), 1]));
        // The sum turns FP4's negative zero into the plain one that the format keeps.
        let levels = self.levels().map(|level| level + 0.0);
        tensors.insert(
            format!("{name}.quant_map"),
            StateTensor {
                dtype: TensorDtype::Float(Dtype::F32),
                shape: vec![16],
                data: Cow::Owned(bytemuck::cast_slice(&levels).to_vec()),
            },
        );
        let mut json = format!(
            r#"{{"quant_type": "{}", "blocksize": {}, "dtype": "{}", "shape": [{}, {}]"#,
            self.quant_type().name(),
            self.block_size(),
            self.dtype().name(),
            self.rows(),
            self.cols()
        );
        match self.absmax() {
            Absmax::Plain(absmax) => {
                tensors.insert(format!("{name}.absmax"), floats(absmax));
            }
            Absmax::Nested { codes, nested_absmax, nested_block_size, offset, map } => {
                tensors.insert(format!("{name}.absmax"), borrowed(codes, vec![codes.len()]));
                tensors.insert(format!("{name}.nested_absmax"), floats(nested_absmax));
                tensors.insert(format!("{name}.nested_quant_map"), floats(&**map));
                json += &format!(
                    r#", "nested_blocksize": {nested_block_size}, "nested_dtype": "float32", "nested_offset": {}"#,
                    python_float(f64::from(*offset))
                );
            }
        }
        json.push('}');
        let [(_, nf4), (_, fp4)] = quant_state_keys(name);
        let key = if self.quant_type() == QuantType::Nf4 { nf4 } else { fp4 };
        let shape = vec![json.len()];
        let state = StateTensor { dtype: TensorDtype::U8, shape, data: Cow::Owned(json.into_bytes()) };
        tensors.insert(key, state);
        tensors
    }

    /// Reads the weight `name` from a checkpoint; `tensor` finds a tensor by its key.
    ///
    /// A weight packed in a wider type (`bnb_4bit_quant_storage`) is read by its bytes; float tensors may be halves. A
    /// one-dimensional weight becomes a single row.
    ///
    /// # Errors
    /// [`Error::MissingKey`] for an absent tensor, [`Error::Tensor`] for one that is not well formed, and the errors
    /// of [`Quantized::from_parts`].
    pub fn from_state_dict<'a>(name: &str, tensor: impl Fn(&str) -> Option<StateTensor<'a>>) -> Result<Self> {
        let [nf4, fp4] = quant_state_keys(name);
        let (quant_type, state_key, state) = match (tensor(&nf4.1), tensor(&fp4.1)) {
            (Some(state), None) => (nf4.0, nf4.1, state),
            (None, Some(state)) => (fp4.0, fp4.1, state),
            (None, None) => {
                return Err(Error::MissingKey {
                    key: nf4.1,
                    reason: "nor the same for fp4; it holds the settings of a 4-bit weight",
                });
            }
            (Some(_), Some(_)) => return Err(bad(&fp4.1, format!("`{}` exists too; keep one", nf4.1))),
        };
        let state = parse_state(&state_key, &state, quant_type)?;
        let (rows, cols) = match state.shape[..] {
            [len] => (1, len),
            [rows, cols] => (rows, cols),
            _ => {
                return Err(bad(&state_key, format!("shape {:?} is not that of a matrix", state.shape)));
            }
        };
        let dtype = Dtype::from_name(&state.dtype).ok_or_else(|| {
            bad(&state_key, format!("dtype `{}` is not a float type of the format", state.dtype))
        })?;

        let weight = find(&tensor, name, "it holds the packed codes")?;
        let len = element_count(rows, cols)?;
        if weight.data.len() != len.div_ceil(2) {
            return Err(bad(
                name,
                format!("shape {rows} x {cols} needs {} bytes, not {}", len.div_ceil(2), weight.data.len()),
            ));
        }

        let key = format!("{name}.quant_map");
        let levels = read_floats(&key, &find(&tensor, &key, "it holds the levels")?)?;
        let known = quant_type.levels();
        if levels.len() != 16
            || levels.iter().zip(known).any(|(a, b)| (a - b).abs() > LEVEL_TOLERANCE || a.is_nan())
        {
            return Err(bad(&key, format!("these are not the 16 levels of {}", quant_type.name())));
        }

        let key = format!("{name}.absmax");
        let absmax = find(&tensor, &key, "it holds the scales")?;
        let absmax = match (state.nested_blocksize, state.nested_offset) {
            (Some(nested_block_size), Some(offset)) => {
                if let Some(dtype) = state.nested_dtype.filter(|dtype| dtype != "float32") {
                    return Err(bad(
                        &state_key,
                        format!("nested_dtype `{dtype}` is not supported: use float32"),
                    ));
                }
                if absmax.dtype != TensorDtype::U8 {
                    return Err(bad(&key, "a nested state needs scales as u8 codes".into()));
                }
                let nested_key = format!("{name}.nested_absmax");
                let nested_absmax = read_floats(
                    &nested_key,
                    &find(&tensor, &nested_key, "it holds the scales of the scales")?,
                )?;
                let map_key = format!("{name}.nested_quant_map");
                let map = read_floats(&map_key, &find(&tensor, &map_key, "it holds the 8-bit levels")?)?;
                let map = <Box<[f32; 256]>>::try_from(map.into_boxed_slice())
                    .map_err(|map| bad(&map_key, format!("has {} levels, not 256", map.len())))?;
                let codes = absmax.data.into_owned();
                Absmax::Nested { codes, nested_absmax, nested_block_size, offset: offset as f32, map }
            }
            (None, None) => Absmax::Plain(read_floats(&key, &absmax)?),
            _ => {
                return Err(bad(&state_key, "nested_blocksize and nested_offset must stand together".into()));
            }
        };
        Self::from_parts(rows, cols, quant_type, state.blocksize, dtype, weight.data.into_owned(), absmax)
    }
}

fn bad(key: &str, reason: String) -> Error {
    Error::Tensor { key: key.into(), reason }
}

fn borrowed(data: &[u8], shape: Vec<usize>) -> StateTensor<'_> {
    StateTensor { dtype: TensorDtype::U8, shape, data: Cow::Borrowed(data) }
}

fn floats(values: &[f32]) -> StateTensor<'_> {
    StateTensor {
        dtype: TensorDtype::Float(Dtype::F32),
        shape: vec![values.len()],
        data: Cow::Borrowed(bytemuck::cast_slice(values)),
    }
}

/// Finds a tensor and checks that its bytes fill its shape.
fn find<'a>(
    tensor: &impl Fn(&str) -> Option<StateTensor<'a>>,
    key: &str,
    reason: &'static str,
) -> Result<StateTensor<'a>> {
    let found = tensor(key).ok_or_else(|| Error::MissingKey { key: key.into(), reason })?;
    check_size(key, &found)?;
    Ok(found)
}

fn check_size(key: &str, tensor: &StateTensor<'_>) -> Result<()> {
    let bytes = tensor.shape.iter().try_fold(tensor.dtype.size(), |bytes, dim| bytes.checked_mul(*dim));
    if bytes == Some(tensor.data.len()) {
        return Ok(());
    }
    Err(bad(
        key,
        format!(
            "{} bytes do not fill shape {:?} of {}",
            tensor.data.len(),
            tensor.shape,
            tensor.dtype.safetensors_name()
        ),
    ))
}

fn read_floats(key: &str, tensor: &StateTensor<'_>) -> Result<Vec<f32>> {
    fn widen_all<const N: usize>(data: &[u8], widen: impl Fn([u8; N]) -> f32) -> Vec<f32> {
        data.as_chunks::<N>().0.iter().map(|bytes| widen(*bytes)).collect()
    }
    match tensor.dtype {
        TensorDtype::Float(Dtype::F32) => Ok(widen_all(&tensor.data, f32::from_le_bytes)),
        TensorDtype::Float(Dtype::F16) => {
            Ok(widen_all(&tensor.data, |bytes| f16::from_le_bytes(bytes).to_f32()))
        }
        TensorDtype::Float(Dtype::Bf16) => {
            Ok(widen_all(&tensor.data, |bytes| bf16::from_le_bytes(bytes).to_f32()))
        }
        TensorDtype::U8 => Err(bad(key, "holds u8, where floats are needed".into())),
    }
}

fn parse_state(key: &str, tensor: &StateTensor<'_>, quant_type: QuantType) -> Result<QuantState> {
    check_size(key, tensor)?;
    if tensor.dtype != TensorDtype::U8 {
        return Err(bad(key, format!("holds {}, where u8 is needed", tensor.dtype.safetensors_name())));
    }
    let state: QuantState = serde_json::from_slice(&tensor.data)
        .map_err(|error| bad(key, format!("is not a quantisation state in JSON: {error}")))?;
    if state.quant_type != quant_type.name() {
        return Err(bad(key, format!("says quant_type `{}` inside", state.quant_type)));
    }
    Ok(state)
}

/// A float as Python's `repr` writes it: the shortest digits that read back, with an exponent below 1e-4 and from
/// 1e16 on.
fn python_float(value: f64) -> String {
    let magnitude = value.abs();
    if magnitude != 0.0 && !(1e-4..1e16).contains(&magnitude) {
        let text = format!("{value:e}");
        if let Some((digits, exponent)) = text.split_once('e') {
            let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |e| ('-', e));
            return format!("{digits}e{sign}{exponent:0>2}");
        }
    }
    format!("{value:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_are_written_as_python_writes_them() {
        for (value, text) in [
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (1.0, "1.0"),
            (2.531681776046753, "2.531681776046753"),
            (1e-4, "0.0001"),
            (9.999e-5, "9.999e-05"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.5e-10, "1.5e-10"),
            (-2.5e-300, "-2.5e-300"),
        ] {
            assert_eq!(python_float(value), text);
        }
    }
}
