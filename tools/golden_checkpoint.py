"""Writes the weight files that eyas-checkpoint is tested on, and what their tensors hold.

Run with torch, numpy, safetensors and gguf installed:

    python tools/golden_checkpoint.py

It fills crates/eyas-checkpoint/tests/fixtures. `expected.json` maps each file or folder there to its tensors: shape,
type, and the values as the bits of f32 (floats, dequantised by the `gguf` package where they are blocks) or as the
stored bytes (all others). A second run gives the same bytes, except in `legacy.bin`, where PyTorch names storages after
their addresses.
"""

import json
import os
import struct
from collections import OrderedDict
from pathlib import Path

import gguf
import numpy as np
import safetensors.torch
import torch
from gguf import GGMLQuantizationType, GGUFValueType

FIXTURES = Path(__file__).resolve().parent.parent / "crates/eyas-checkpoint/tests/fixtures"
SPECIAL = [0.0, -0.0, 1.0, -2.5, float("inf"), float("-inf"), float("nan"), 1e-7, 65504.0, 0.333251953125]
TORCH_NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
    torch.uint64: "U64", torch.uint32: "U32", torch.uint16: "U16", torch.uint8: "U8", torch.bool: "Bool",
}  # fmt: skip


def entry(shape, dtype, *, floats=None, raw=None):
    if floats is not None:
        values = np.ascontiguousarray(floats, dtype=np.float32).reshape(-1)
        return {"shape": list(shape), "dtype": dtype, "f32_bits": values.view(np.uint32).tolist()}
    return {"shape": list(shape), "dtype": dtype, "bytes": raw.hex()}


def of_torch(tensor):
    tensor = tensor.detach().contiguous()
    dtype = TORCH_NAMES[tensor.dtype]
    if tensor.is_floating_point():
        return entry(tensor.shape, dtype, floats=tensor.float().numpy())
    return entry(tensor.shape, dtype, raw=tensor.numpy().tobytes())


def of_state(state):
    return {name: of_torch(tensor) for name, tensor in state.items()}


def every_dtype():
    state = {}
    for dtype, name in TORCH_NAMES.items():
        if dtype.is_floating_point:
            state[f"special.{name}"] = torch.tensor(SPECIAL).to(dtype).reshape(2, 5)
        elif dtype is torch.bool:
            state[f"special.{name}"] = torch.tensor([True, False, True])
        else:
            info = torch.iinfo(dtype)
            state[f"special.{name}"] = torch.tensor([info.min, 0, 7, info.max], dtype=dtype)
    state["empty"] = torch.zeros(0, 4)
    state["scalar"] = torch.tensor(3.25)
    return state


def two_layers():
    torch.manual_seed(1)
    return {
        "model.embed.weight": torch.randn(7, 6, dtype=torch.bfloat16),
        "model.layers.0.weight": torch.randn(4, 6, dtype=torch.bfloat16),
        "model.layers.1.weight": torch.randn(4, 6).half(),
        "model.norm.weight": torch.randn(6),
    }


def sharded(folder, stem, suffix, save):
    folder.mkdir(parents=True, exist_ok=True)
    state = two_layers()
    names = list(state)
    weight_map = {}
    for number, part in enumerate((names[:2], names[2:]), start=1):
        shard = f"{stem}-0000{number}-of-00002.{suffix}"
        save({name: state[name] for name in part}, folder / shard)
        weight_map |= dict.fromkeys(part, shard)
    index = {"metadata": {"total_size": sum(t.nbytes for t in state.values())}, "weight_map": weight_map}
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(index, indent=2) + "\n")
    return of_state(state)


def views():
    """Tensors whose storage is not their own values in order."""
    torch.manual_seed(2)
    flat = torch.randn(40)
    embed = torch.nn.Parameter(torch.randn(5, 4, dtype=torch.bfloat16))
    return OrderedDict(
        [
            ("embed.weight", embed),
            ("lm_head.weight", embed),
            ("view.first", flat[:12].reshape(3, 4)),
            ("view.second", flat[12:32].reshape(4, 5)),
            ("transposed", torch.randn(3, 5).half().t()),
            ("every_other_row", torch.randn(6, 4)[::2]),
            ("column", torch.randn(4, 3, dtype=torch.bfloat16)[:, 1]),
        ]
    )


class Hostile:
    """Unpickled by Python, this makes a folder."""

    def __reduce__(self):
        return (os.makedirs, ("hostile-pickle-ran",))


def write_gguf(path, alignment=None):
    writer = gguf.GGUFWriter(path, "llama")
    if alignment:
        writer.add_custom_alignment(alignment)
    numbers = {"uint8": 200, "int8": -100, "uint16": 60000, "int16": -30000, "uint32": 4000000000,
               "int32": -2000000000, "uint64": 1 << 63, "int64": -(1 << 62), "float32": 0.1, "float64": 0.1}  # fmt: skip
    for name, value in numbers.items():
        kind = GGUFValueType[name.upper()]
        writer.add_key_value(f"test.{name}", value, kind)
        writer.add_key_value(f"test.{name}s", [value, value], GGUFValueType.ARRAY, sub_type=kind)
    writer.add_bool("test.bool", True)
    writer.add_key_value("test.bools", [True, False], GGUFValueType.ARRAY, sub_type=GGUFValueType.BOOL)
    writer.add_string("test.string", "Grüße, 世界 \n")
    writer.add_array("test.strings", ["", "<s>", "Ġthe", "🦅"])

    rng = np.random.default_rng(3)
    expected = {}

    def add(name, stored, kind, shape, floats=None):
        writer.add_tensor(name, stored, raw_dtype=kind)
        raw = None if floats is not None else stored.tobytes()
        expected[name] = entry(shape, kind.name, floats=floats, raw=raw)

    for kind in (GGMLQuantizationType.Q8_0, GGMLQuantizationType.Q4_0, GGMLQuantizationType.Q4_1):
        for shape in ((3, 64), (2, 2, 32), (96,)):
            values = (rng.standard_normal(shape) * 3).astype(np.float32)
            values.reshape(-1)[:32] = 0
            stored = gguf.quants.quantize(values, kind)
            add(f"blocks.{kind.name}.{len(shape)}", stored, kind, shape, gguf.quants.dequantize(stored, kind))
    special = np.array(SPECIAL, dtype=np.float32).reshape(2, 5)
    with np.errstate(over="ignore"):
        half = special.astype(np.float16)
    add("special.F32", special, GGMLQuantizationType.F32, (2, 5), special)
    add("special.F16", half, GGMLQuantizationType.F16, (2, 5), half.astype(np.float32))
    add("special.F64", special.astype(np.float64), GGMLQuantizationType.F64, (2, 5), special)
    brain = gguf.quants.quantize(special, GGMLQuantizationType.BF16)
    add("special.BF16", brain, GGMLQuantizationType.BF16, (2, 5),
        gguf.quants.dequantize(brain, GGMLQuantizationType.BF16))  # fmt: skip
    for kind in ("int8", "int16", "int32", "int64"):
        info = np.iinfo(kind)
        stored = np.array([info.min, -1, info.max], dtype=kind)
        add(f"special.I{info.bits}", stored, GGMLQuantizationType[f"I{info.bits}"], (3,))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return expected


def main():
    FIXTURES.mkdir(parents=True, exist_ok=True)
    expected = {}

    expected["v3.gguf"] = write_gguf(FIXTURES / "v3.gguf")
    # Version 2 differs from 3 in the version number alone, as long as the file is little endian.
    expected["v2-aligned.gguf"] = write_gguf(FIXTURES / "v2-aligned.gguf", alignment=128)
    with open(FIXTURES / "v2-aligned.gguf", "r+b") as file:
        file.seek(4)
        file.write(struct.pack("<I", 2))

    state = every_dtype()
    safetensors.torch.save_file(state, FIXTURES / "dtypes.safetensors", metadata={"format": "pt"})
    expected["dtypes.safetensors"] = of_state(state)
    expected["sharded-safetensors"] = sharded(
        FIXTURES / "sharded-safetensors", "model", "safetensors",
        lambda part, path: safetensors.torch.save_file(part, path, metadata={"format": "pt"}),
    )  # fmt: skip

    torch.save(state, FIXTURES / "dtypes.bin")
    expected["dtypes.bin"] = of_state(state)
    expected["sharded-bin"] = sharded(FIXTURES / "sharded-bin", "pytorch_model", "bin", torch.save)
    torch.save(views(), FIXTURES / "views.bin")
    expected["views.bin"] = of_state(views())
    torch.save(views(), FIXTURES / "legacy.bin", _use_new_zipfile_serialization=False)
    expected["legacy.bin"] = of_state(views())
    torch.save({"weight": torch.ones(2), "trap": Hostile()}, FIXTURES / "hostile.bin")

    with open(FIXTURES / "expected.json", "w") as file:
        json.dump(expected, file, separators=(",", ":"))
        file.write("\n")


main()
