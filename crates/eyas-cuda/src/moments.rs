//! An optimiser's moments: in the card's memory, or in pinned host memory that kernels reach over the bus.

use eyas_backend::moments::{Blockwise8, MOMENT_BLOCK, moment_map, zero_code};
use eyas_backend::{HostMoments, MomentFormat, MomentStorage, Result};

use crate::backend::CudaBackend;
use crate::device::{Buffer, Pinned, Ptr};

/// Each part starts on a multiple of this.
const ALIGNMENT: usize = 256;
/// Bytes of the levels of two maps.
const MAPS_BYTES: usize = 2 * 256 * 4;

/// AdamW's moments. In one piece of memory: the first, the second; of 8 bits each, their codes in whole blocks, then
/// their scales.
#[derive(Debug)]
pub struct CudaMoments {
    memory: Memory,
    /// The levels of both moments' bytes; of full precision there are none.
    maps: Option<Buffer>,
    parameters: usize,
    format: MomentFormat,
}

#[derive(Debug)]
enum Memory {
    Card(Buffer),
    Host(Pinned),
}

/// A part of the memory: where it starts, and its bytes.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Part {
    start: usize,
    bytes: usize,
}

/// Values or codes of a moment, and its scales.
fn parts(format: MomentFormat, parameters: usize) -> [[Part; 2]; 2] {
    let blocks = parameters.div_ceil(MOMENT_BLOCK);
    let (values, room, scales) = match format {
        MomentFormat::F32 => (parameters * 4, parameters * 4, 0),
        MomentFormat::Blockwise8 => (parameters, blocks * MOMENT_BLOCK, blocks * 4),
    };
    let moment = |from: usize| {
        let scales_start = from + room.next_multiple_of(ALIGNMENT);
        [Part { start: from, bytes: values }, Part { start: scales_start, bytes: scales }]
    };
    let first = moment(0);
    [first, moment(first[1].start + scales.next_multiple_of(ALIGNMENT))]
}

fn bytes(format: MomentFormat, parameters: usize) -> usize {
    let [_, [_, last]] = parts(format, parameters);
    last.start + last.bytes.next_multiple_of(ALIGNMENT)
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

impl CudaMoments {
    pub(crate) fn parameters(&self) -> usize {
        self.parameters
    }

    pub(crate) fn format(&self) -> MomentFormat {
        self.format
    }

    /// Where the levels of both moments lie.
    pub(crate) fn maps(&self) -> Ptr {
        self.maps.as_ref().map_or(Ptr::NULL, Buffer::ptr)
    }

    /// Addresses of the values or codes of each moment, and of its scales.
    pub(crate) fn pointers(&self) -> [[Ptr; 2]; 2] {
        let base = match &self.memory {
            Memory::Card(buffer) => buffer.ptr(),
            Memory::Host(pinned) => pinned.ptr(),
        };
        parts(self.format, self.parameters).map(|moment| moment.map(|part| base.add(part.start)))
    }
}

impl CudaBackend {
    /// Bytes of the card that moments take.
    pub(crate) fn planned_moments(parameters: usize, storage: MomentStorage) -> u64 {
        let maps = if storage.format == MomentFormat::Blockwise8 { MAPS_BYTES } else { 0 };
        let moments = if storage.paged { 0 } else { bytes(storage.format, parameters) };
        (maps + moments) as u64
    }

    pub(crate) fn create_moments(&self, parameters: usize, storage: MomentStorage) -> Result<CudaMoments> {
        let format = storage.format;
        let len = bytes(format, parameters);
        let [[first, _], _] = parts(format, parameters);
        // The signed map has its zero in the middle. The rest of the last block is nobody's.
        let zero = if format == MomentFormat::Blockwise8 { zero_code(true) } else { 0 };
        let memory = if storage.paged {
            let mut pinned = Pinned::new(&self.device, len)?;
            pinned.bytes_mut().fill(0);
            pinned.bytes_mut()[..first.bytes].fill(zero);
            Memory::Host(pinned)
        } else {
            let buffer = self.device.alloc(len)?;
            self.device.zero(buffer.ptr(), buffer.bytes())?;
            self.device.fill(buffer.ptr(), zero, first.bytes)?;
            Memory::Card(buffer)
        };
        let maps = match format {
            MomentFormat::F32 => None,
            MomentFormat::Blockwise8 => {
                let buffer = self.device.alloc(MAPS_BYTES)?;
                self.staging.upload(buffer.ptr(), bytemuck::cast_slice(&[*moment_map(0), *moment_map(1)]))?;
                Some(buffer)
            }
        };
        Ok(CudaMoments { memory, maps, parameters, format })
    }

    pub(crate) fn download_moments(&self, moments: &CudaMoments) -> Result<HostMoments> {
        self.device.synchronize()?;
        let read = |part: Part| -> Result<Vec<u8>> {
            match &moments.memory {
                Memory::Host(pinned) => Ok(pinned.bytes()[part.start..][..part.bytes].to_vec()),
                Memory::Card(buffer) => {
                    let mut bytes = vec![0; part.bytes];
                    self.staging.download_with(
                        buffer.ptr().add(part.start),
                        part.bytes,
                        |start, piece| {
                            bytes[start..][..piece.len()].copy_from_slice(piece);
                        },
                    )?;
                    Ok(bytes)
                }
            }
        };
        let [first, second] = parts(moments.format, moments.parameters);
        Ok(match moments.format {
            MomentFormat::F32 => HostMoments::F32([floats(&read(first[0])?), floats(&read(second[0])?)]),
            MomentFormat::Blockwise8 => {
                let moment = |[codes, absmax]: [Part; 2]| -> Result<Blockwise8> {
                    Ok(Blockwise8 { codes: read(codes)?, absmax: floats(&read(absmax)?) })
                };
                HostMoments::Blockwise8([moment(first)?, moment(second)?])
            }
        })
    }

    pub(crate) fn upload_moments(&self, from: &HostMoments, moments: &mut CudaMoments) -> Result<()> {
        from.check("write_moments", moments.parameters, moments.format)?;
        self.device.synchronize()?;
        let places = parts(moments.format, moments.parameters);
        let mut write = |part: Part, bytes: &[u8]| -> Result<()> {
            match &mut moments.memory {
                Memory::Host(pinned) => {
                    pinned.bytes_mut()[part.start..][..part.bytes].copy_from_slice(bytes);
                    Ok(())
                }
                Memory::Card(buffer) => self.staging.upload(buffer.ptr().add(part.start), bytes),
            }
        };
        match from {
            HostMoments::F32(values) => {
                for (values, [part, _]) in values.iter().zip(places) {
                    write(part, bytemuck::cast_slice(values))?;
                }
            }
            HostMoments::Blockwise8(values) => {
                for (Blockwise8 { codes, absmax }, [part, scales]) in values.iter().zip(places) {
                    write(part, codes)?;
                    write(scales, bytemuck::cast_slice(absmax))?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_aligned_and_do_not_overlap() {
        for format in [MomentFormat::F32, MomentFormat::Blockwise8] {
            for parameters in [0, 1, 256, 70_001] {
                let parts = parts(format, parameters).concat();
                assert!(parts.iter().all(|part| part.start.is_multiple_of(ALIGNMENT)), "{format:?}");
                assert!(parts.windows(2).all(|p| p[0].start + p[0].bytes <= p[1].start), "{format:?}");
                assert!(parts[3].start + parts[3].bytes <= bytes(format, parameters));
            }
        }
        // A lane of the last block reads its eight codes whether or not there are parameters for them.
        let [[codes, scales], _] = parts(MomentFormat::Blockwise8, 257);
        assert_eq!((codes.bytes, scales.start), (257, 512));
    }

    #[test]
    fn paged_moments_take_nothing_of_the_card() {
        let planned =
            |paged| CudaBackend::planned_moments(1 << 20, MomentStorage { format: MomentFormat::F32, paged });
        assert_eq!((planned(true), planned(false)), (0, 8 << 20));
    }
}
