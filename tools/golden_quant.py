"""Runs bitsandbytes on a CPU and writes the golden files of crates/eyas-quant.

    python tools/golden_quant.py crates/eyas-quant/tests/fixtures

Needs torch, numpy, safetensors and bitsandbytes 0.50.2. The output is the same at every run; it depends on the
processor only through the offset (a mean that torch sums in an order of its own).

Inputs are not stored. `values(seed, n)` makes them from integers alone, so that Rust makes the same bits.

`quant.safetensors` holds for each case `<name>`:
    <name>/<key>       what bitsandbytes' QuantState.as_dict(packed=True) gives, and `packed`
    <name>/plain_absmax and <name>/out   SHA-256 of the scales before double quantisation and of the matrix read back
and in the metadata the case's seed, shape, dtype, type and block size. Large cases keep a SHA-256 of long tensors.
`edges.safetensors` holds inputs that sit on a decision, denormals and zeros, with their codes and scales.
`maps.safetensors` holds the 8-bit maps, vectors quantised on them, and the 4-bit levels.
"""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import torch
from bitsandbytes import functional as F
from bitsandbytes.backends.default.ops import _get_4bit_quantize_bounds
from safetensors.torch import save_file

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
BLOCK_SIZES = [32, 64, 128, 256, 512, 1024, 2048, 4096]


def values(seed: int, n: int) -> np.ndarray:
    """Bell-shaped f32 values, exact in f32, with outliers and a magnitude that changes along the vector.

    splitmix64 of `seed + i + 1` steps; the four 16-bit fields are summed and centred (18 bits); times 2^-20, times 8
    where i % 509 == 7, divided by 2^((i / 4096) % 4).
    """
    with np.errstate(over="ignore"):
        i = np.arange(n, dtype=np.uint64)
        z = np.uint64(seed) + (i + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    mask = np.uint64(0xFFFF)
    total = sum(((z >> np.uint64(16 * k)) & mask).astype(np.int64) for k in range(4)) - 131070
    scaled = total.astype(np.float32) * np.float32(2.0**-20)
    scaled = np.where(i % np.uint64(509) == 7, scaled * np.float32(8), scaled)
    return (scaled * np.exp2(-((i // np.uint64(4096)) % np.uint64(4)).astype(np.float32))).astype(np.float32)


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


def digest(tensor: torch.Tensor) -> torch.Tensor:
    return torch.tensor(list(hashlib.sha256(raw(tensor)).digest()), dtype=torch.uint8)


def quantise(tensor, quant_type, block_size, double):
    packed, state = F.quantize_4bit(
        tensor, blocksize=block_size, quant_type=quant_type, compress_statistics=double
    )
    return packed, state


def matrix_cases(tensors, cases):
    """Every block size, type, input type and both kinds of scales, over shapes with and without a tail."""
    seed = 0
    shapes = [(37, 66), (5, 33), (130, 128), (3, 1365)]
    for block_size in BLOCK_SIZES:
        for quant_type in ("nf4", "fp4"):
            for d, dtype in enumerate(DTYPES):
                for double in (False, True):
                    seed += 1
                    shape = shapes[seed % len(shapes)] if block_size < 1024 else shapes[2 + seed % 2]
                    add_case(tensors, cases, seed, shape, dtype, quant_type, block_size, double, "small")
    # Falcon-7B's fused query_key_value, as QLoRA quantises it, and in the other type.
    add_case(tensors, cases, 1001, (4672, 4544), "bfloat16", "nf4", 64, True, "large")
    add_case(tensors, cases, 1002, (4672, 4544), "float16", "fp4", 64, True, "large")


def add_case(tensors, cases, seed, shape, dtype, quant_type, block_size, double, size):
    tensor = torch.from_numpy(values(seed, shape[0] * shape[1])).reshape(shape).to(DTYPES[dtype])
    packed, state = quantise(tensor, quant_type, block_size, double)
    plain = quantise(tensor, quant_type, block_size, False)[1].absmax
    out = F.dequantize_4bit(packed, state)
    name = f"{quant_type}-{block_size}-{dtype}-{'double' if double else 'plain'}-{shape[0]}x{shape[1]}"
    case = {
        "name": name, "seed": seed, "rows": shape[0], "cols": shape[1], "dtype": dtype,
        "quant_type": quant_type, "block_size": block_size, "double_quant": double, "size": size,
    }
    parts = {"packed": packed, **state.as_dict(packed=True)}
    if size == "large":
        parts = {key: digest(value) if value.numel() > 4096 else value for key, value in parts.items()}
    parts["plain_absmax"] = digest(plain)
    parts["out"] = digest(out)
    for key, value in parts.items():
        tensors[f"{name}/{key}"] = value.contiguous()
    cases.append(case)


def edge_cases():
    """Blocks of 64 whose scaled values sit on a decision, one step below and one above it, and odd blocks."""
    blocks = {}
    for quant_type in ("nf4", "fp4"):
        bounds = _get_4bit_quantize_bounds(quant_type, torch.device("cpu"))[0].numpy()
        near = np.concatenate([np.nextafter(bounds, np.float32(-2)), bounds, np.nextafter(bounds, np.float32(2))])
        block = np.zeros(64, np.float32)
        block[: len(near)] = near
        block[63] = 1.0
        blocks[f"{quant_type}/on"] = block
        # The same divided decision under other scales, where x * (1 / a) and x / a may fall on different sides. The
        # second half is a tail, which bitsandbytes divides.
        rows, rng = [], np.random.RandomState(7)
        while len(rows) < 64:
            a = np.float32(rng.uniform(0.5, 2))
            x = (bounds * a).astype(np.float32)
            inverse = np.float32(1) / a
            differ = [v for t, v in zip(bounds, x) if (v * inverse > t) != (v / a > t)]
            if differ:
                row = np.zeros(64, np.float32)
                row[: len(differ)] = differ
                row[62] = a
                rows.append(row)
        full = np.concatenate(rows)
        blocks[f"{quant_type}/straddle"] = full
        for i in range(8):
            blocks[f"{quant_type}/straddle-tail{i}"] = rows[i][:63].copy()
        tiny = np.frombuffer(np.arange(1, 65, dtype=np.uint32).tobytes(), np.float32).copy()
        blocks[f"{quant_type}/denormal"] = np.concatenate([tiny, -tiny, tiny[:31]])
        blocks[f"{quant_type}/zero"] = np.concatenate([np.zeros(64, np.float32), np.full(65, -0.0, np.float32)])
        blocks[f"{quant_type}/huge"] = np.linspace(-3.4e38, 3.4e38, 130, dtype=np.float32)
        blocks[f"{quant_type}/one"] = np.array([-0.25], np.float32)
    tensors = {}
    for name, block in blocks.items():
        tensor = torch.from_numpy(block)
        packed, state = quantise(tensor, name.split("/")[0], 64, False)
        tensors[f"{name}/input"] = tensor
        tensors[f"{name}/packed"] = packed.flatten()
        tensors[f"{name}/absmax"] = state.absmax
    return tensors


def map_cases():
    tensors = {}
    for quant_type in ("nf4", "fp4"):
        tensors[f"levels/{quant_type}"] = F.get_4bit_type(quant_type, device="cpu")
        tensors[f"bounds/{quant_type}"] = _get_4bit_quantize_bounds(quant_type, torch.device("cpu"))[0]
    for name, signed in (("signed", True), ("unsigned", False)):
        code = F.create_dynamic_map(signed=signed)
        tensor = torch.from_numpy(values(2000 + signed, 5000))
        tensor = tensor if signed else tensor.abs()
        codes, state = F.quantize_blockwise(tensor, code=code.clone(), blocksize=256)
        tensors[f"{name}/map"] = code
        tensors[f"{name}/codes"] = codes
        tensors[f"{name}/absmax"] = state.absmax
        tensors[f"{name}/out"] = digest(F.dequantize_blockwise(codes, state))
    return tensors


def main():
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    tensors, cases = {}, []
    matrix_cases(tensors, cases)
    save_file(tensors, folder / "quant.safetensors", {"cases": json.dumps(cases)})
    save_file(edge_cases(), folder / "edges.safetensors")
    save_file(map_cases(), folder / "maps.safetensors")


if __name__ == "__main__":
    main()
