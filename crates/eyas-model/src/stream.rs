//! The residual stream: the input of every block, on the device or in host memory.
//!
//! Inputs in host memory pass through two tensors in turn: while a block computes, the input of its neighbour is on
//! its way. Copies run beside the computation and are waited for by the device alone.
//!
//! A pass that no backward follows keeps nothing, whatever the plan: each block writes its output over its input.

use eyas_backend::Backend;

use crate::Result;
use crate::activations::{MemoryPlan, Retain};

/// The inputs of all blocks, and the output of the last.
#[derive(Debug)]
pub(crate) struct Stream<B: Backend> {
    /// `[T, hidden]` each.
    tensors: Vec<B::Tensor>,
    /// The tensor of each block's input; last, that of the last block's output.
    places: Vec<usize>,
    /// Inputs whose home is host memory.
    host: Vec<Option<B::HostBuffer>>,
    /// Of each tensor, the block in host memory whose input is in it, or on its way out or in.
    held: Vec<Option<usize>>,
    /// Whether the pass under way keeps the inputs for a backward.
    keeps: bool,
}

/// How many tensors there are, and which of them holds the input of each block and the last one's output.
fn places(plan: &MemoryPlan, blocks: usize) -> (usize, Vec<usize>) {
    if !plan.trains() {
        return (1, vec![0; blocks + 1]);
    }
    let mut turn = 0;
    let mut own = plan.on_host().min(2);
    let places = (0..=blocks)
        .map(|block| match plan.blocks.get(block) {
            Some(Retain::RecomputeFromHost) => {
                turn += 1;
                (turn - 1) % 2
            }
            _ => {
                own += 1;
                own - 1
            }
        })
        .collect();
    (own, places)
}

impl<B: Backend> Stream<B> {
    /// Allocates it for `blocks` blocks.
    pub(crate) fn new(backend: &B, plan: &MemoryPlan, blocks: usize, hidden: usize) -> Result<Self> {
        let (count, places) = places(plan, blocks);
        let (dtype, tokens) = (backend.compute_dtype(), plan.max_tokens);
        let tensors =
            (0..count).map(|_| backend.zeros(dtype, tokens, hidden)).collect::<Result<Vec<_>, _>>()?;
        let host = (0..blocks)
            .map(|block| match plan.blocks.get(block) {
                Some(Retain::RecomputeFromHost) => backend.new_host_buffer(dtype, tokens, hidden).map(Some),
                _ => Ok(None),
            })
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Self { held: vec![None; tensors.len()], tensors, places, host, keeps: plan.trains() })
    }

    /// Tensors on the device.
    pub(crate) fn tensors(plan: &MemoryPlan, blocks: usize) -> usize {
        places(plan, blocks).0
    }

    /// The tensor of a block's input in the pass under way.
    fn place(&self, block: usize) -> usize {
        if self.keeps { self.places[block] } else { 0 }
    }

    /// Begins a pass, which keeps the inputs for a backward or not; the first block's input, to be written.
    pub(crate) fn begin(&mut self, backend: &B, keeps: bool) -> Result<&mut B::Tensor> {
        self.keeps = keeps;
        let place = self.claim(backend, 0)?;
        Ok(&mut self.tensors[place])
    }

    /// Every block's input, which becomes its output, in a pass that keeps nothing.
    pub(crate) fn in_place(&mut self) -> &mut B::Tensor {
        &mut self.tensors[0]
    }

    /// A block's input, and its output to be written, in a pass that keeps the inputs. The input sets out for the host
    /// where that is its home.
    pub(crate) fn step(
        &mut self,
        backend: &B,
        tokens: usize,
        block: usize,
    ) -> Result<(&B::Tensor, &mut B::Tensor)> {
        let (from, to) = (self.place(block), self.claim(backend, block + 1)?);
        if let Some(host) = self.host[block].as_mut() {
            backend.offload(tokens, &self.tensors[from], host)?;
        }
        let [input, output] = self.tensors.get_disjoint_mut([from, to]).unwrap_or_else(|_| {
            unreachable!(
                "neighbours are in different tensors: turns alternate, and all others have their own"
            )
        });
        Ok((input, output))
    }

    /// The last block's output.
    pub(crate) fn output(&self) -> &B::Tensor {
        &self.tensors[self.place(self.host.len())]
    }

    /// Before the backward: the topmost input in host memory sets out.
    pub(crate) fn turn_back(&mut self, backend: &B, tokens: usize) -> Result<()> {
        self.prefetch(backend, tokens, self.host.len())
    }

    /// A block's input, in the backward. Where it comes from the host, the next such input below sets out.
    pub(crate) fn input(&mut self, backend: &B, tokens: usize, block: usize) -> Result<&B::Tensor> {
        if let Some(host) = &self.host[block] {
            backend.await_copy(host)?;
            self.prefetch(backend, tokens, block)?;
        }
        Ok(&self.tensors[self.places[block]])
    }

    /// Makes the tensor of a block's input writable, and says which it is: a copy out of it or into it comes first.
    fn claim(&mut self, backend: &B, block: usize) -> Result<usize> {
        let place = self.place(block);
        let held = &mut self.held[place];
        if let Some(host) = held.and_then(|block| self.host[block].as_ref()) {
            backend.await_copy(host)?;
        }
        let leaves = self.keeps && self.host.get(block).is_some_and(Option::is_some);
        *held = leaves.then_some(block);
        Ok(place)
    }

    /// Fetches the topmost input in host memory below a block, unless it is there.
    fn prefetch(&mut self, backend: &B, tokens: usize, below: usize) -> Result<()> {
        let found =
            self.host[..below].iter().enumerate().rev().find_map(|(i, host)| Some((i, host.as_ref()?)));
        let Some((block, host)) = found else { return Ok(()) };
        let place = self.places[block];
        if self.held[place] != Some(block) {
            backend.fetch(tokens, host, &mut self.tensors[place])?;
            self.held[place] = Some(block);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use eyas_backend::CpuBackend;

    use super::*;

    /// Two passes over five blocks, and after each one that keeps nothing: each input comes back as it was written, in
    /// whatever order blocks keep theirs.
    #[test]
    fn inputs_come_back_as_they_went() {
        use Retain::{Keep, Recompute, RecomputeFromHost as Host};
        let backend = CpuBackend::new(Default::default()).unwrap();
        for blocks in [[Host; 5], [Host, Host, Host, Recompute, Keep], [Host, Keep, Host, Recompute, Host]] {
            let plan = MemoryPlan { max_tokens: 3, max_sequences: 1, logit_rows: 1, blocks: blocks.to_vec() };
            let mut stream = Stream::new(&backend, &plan, 5, 4).unwrap();
            for pass in [0.0, 100.0] {
                let value = |block: usize| vec![pass + block as f32; 8];
                let forward = |stream: &mut Stream<CpuBackend>, value: &dyn Fn(usize) -> Vec<f32>| {
                    backend.upload(&value(0), stream.begin(&backend, true).unwrap()).unwrap();
                    for block in 0..5 {
                        let (input, output) = stream.step(&backend, 2, block).unwrap();
                        assert_eq!(input.data()[..8], value(block), "{blocks:?}, forward");
                        backend.upload(&value(block + 1), output).unwrap();
                    }
                    assert_eq!(stream.output().data()[..8], value(5), "{blocks:?}");
                };
                forward(&mut stream, &value);
                stream.turn_back(&backend, 2).unwrap();
                for block in (0..5).rev() {
                    let input = stream.input(&backend, 2, block).unwrap();
                    assert_eq!(input.data()[..8], value(block), "{blocks:?}, backward");
                }
                let homes = |stream: &Stream<CpuBackend>| {
                    stream.host.iter().flatten().map(|host| host.data().to_vec()).collect::<Vec<_>>()
                };
                let before = homes(&stream);
                stream.begin(&backend, false).unwrap();
                backend.upload(&[50.0; 8], stream.in_place()).unwrap();
                assert_eq!(stream.output().data()[..8], [50.0; 8]);
                assert_eq!(homes(&stream), before, "{blocks:?}: an evaluation moved inputs to the host");
            }
        }
    }

    #[test]
    fn inputs_in_host_memory_take_turns_in_two_tensors() {
        use Retain::{Keep, Recompute, RecomputeFromHost as Host};
        let plan = |blocks: &[Retain]| MemoryPlan {
            max_tokens: 1,
            max_sequences: 1,
            logit_rows: 1,
            blocks: blocks.to_vec(),
        };
        let of = |blocks: &[Retain]| places(&plan(blocks), blocks.len());
        assert_eq!(of(&[Host, Host, Host, Recompute, Keep]), (5, vec![0, 1, 0, 2, 3, 4]));
        assert_eq!(of(&[Keep, Host, Keep]), (4, vec![1, 0, 2, 3]));
        assert_eq!(of(&[Host, Keep, Host, Host]), (4, vec![0, 2, 1, 0, 3]));
        assert_eq!(places(&MemoryPlan::forward_only(1, 1, 1), 3), (1, vec![0; 4]));
    }
}
