//! Working memory that outlives a call, so that a step allocates nothing once one of its size has run.

use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, PoisonError};

use bytemuck::Pod;

/// Bytes to which buffers are aligned: a cache line.
const ALIGN: usize = 64;

/// Buffers not in use, to be taken again.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    free: Mutex<Vec<Vec<f32>>>,
}

impl Scratch {
    /// Borrows a buffer of `len` elements with arbitrary contents.
    pub fn take<E: Pod>(&self, len: usize) -> Buffer<'_, E> {
        let words = (len * size_of::<E>()).div_ceil(size_of::<f32>()) + ALIGN / size_of::<f32>();
        let mut vec = {
            let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
            // The smallest that is large enough, or else the largest, to be enlarged.
            let best = (0..free.len()).min_by_key(|&i| match free[i].capacity() {
                capacity if capacity >= words => (0, capacity),
                capacity => (1, usize::MAX - capacity),
            });
            best.map(|i| free.swap_remove(i)).unwrap_or_default()
        };
        if vec.capacity() < words {
            // What it held is of no use: do not let it be copied.
            vec = Vec::with_capacity(words);
        }
        // Never shortened, so that no length is filled twice.
        if vec.len() < words {
            vec.resize(words, 0.0);
        }
        let start = vec.as_ptr().align_offset(ALIGN);
        Buffer { vec, start, len, pool: self, element: std::marker::PhantomData }
    }
}

/// A buffer on loan from [`Scratch`].
#[derive(Debug)]
pub(super) struct Buffer<'a, E> {
    vec: Vec<f32>,
    start: usize,
    len: usize,
    pool: &'a Scratch,
    element: std::marker::PhantomData<E>,
}

impl<E: Pod> Deref for Buffer<'_, E> {
    type Target = [E];

    fn deref(&self) -> &[E] {
        &bytemuck::cast_slice(&self.vec[self.start..])[..self.len]
    }
}

impl<E: Pod> DerefMut for Buffer<'_, E> {
    fn deref_mut(&mut self) -> &mut [E] {
        &mut bytemuck::cast_slice_mut(&mut self.vec[self.start..])[..self.len]
    }
}

impl<E> Drop for Buffer<'_, E> {
    fn drop(&mut self) {
        let vec = std::mem::take(&mut self.vec);
        self.pool.free.lock().unwrap_or_else(PoisonError::into_inner).push(vec);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_returned_buffer_is_taken_again() {
        let scratch = Scratch::default();
        let first = scratch.take::<f32>(100).as_ptr();
        assert_eq!(first as usize % ALIGN, 0);
        assert_eq!(scratch.take::<half::bf16>(150).as_ptr().cast(), first);
        let a = scratch.take::<f32>(10);
        let b = scratch.take::<f32>(10);
        assert_ne!(a.as_ptr(), b.as_ptr());
    }
}
