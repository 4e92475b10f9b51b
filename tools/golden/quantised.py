"""A base whose linears bitsandbytes has quantised, under bitsandbytes' own checkpoint keys."""

from pathlib import Path

import bitsandbytes.functional as bnb
import torch

from golden.bases import Base, load_base
from golden.files import write_tensors


def write_quantised_linears(base: Base, folder: Path) -> None:
    """`model.nf4.safetensors`: every linear but the head in NF4 with double quantisation, from the f32 weight; the
    rest as `model.safetensors` has it, in bf16 where that loses nothing."""
    model = load_base(base, folder)
    head = model.get_output_embeddings()
    linears = {
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    }
    tensors = {}
    for name, value in model.state_dict().items():
        if name in linears:
            packed, state = bnb.quantize_4bit(value, blocksize=64, compress_statistics=True, quant_type="nf4")
            tensors[name] = packed
            tensors |= {f"{name}.{key}": part for key, part in state.as_dict(packed=True).items()}
        elif name != "lm_head.weight" or not model.config.tie_word_embeddings:
            narrow = value.to(torch.bfloat16)
            tensors[name] = narrow if torch.equal(narrow.float(), value) else value
    write_tensors(folder / "model.nf4.safetensors", tensors)
