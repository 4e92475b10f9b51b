"""Writing golden files so that the same run gives the same bytes."""

import importlib.metadata
import json
import math
import platform
from pathlib import Path

import torch
from safetensors.torch import save_file

PACKAGES = ["torch", "transformers", "peft", "bitsandbytes", "accelerate", "trl", "safetensors", "tokenizers"]


def versions() -> dict[str, str]:
    """The versions that the figures come from."""
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    return found | {"python": platform.python_version()}


def write_json(path: Path, value) -> None:
    """Indented JSON, but lists of numbers on one line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_render(value, 0) + "\n", encoding="utf-8")


def _render(value, depth: int) -> str:
    pad, inner = "  " * depth, "  " * (depth + 1)
    if isinstance(value, dict) and value:
        items = [f"{inner}{json.dumps(key)}: {_render(item, depth + 1)}" for key, item in value.items()]
        return "{\n" + ",\n".join(items) + f"\n{pad}}}"
    if isinstance(value, list) and any(isinstance(item, (dict, list)) for item in value):
        return "[\n" + ",\n".join(inner + _render(item, depth + 1) for item in value) + f"\n{pad}]"
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def f32(value):
    """An f32 number (or tensor, as nested lists) with just the digits that give its bits back."""
    if isinstance(value, torch.Tensor):
        return f32(value.tolist())
    if isinstance(value, list):
        return [f32(item) for item in value]
    if not math.isfinite(value):
        raise ValueError(f"{value} cannot be a golden figure")
    return float(f"{value:.9g}")


def write_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """A safetensors file with its keys in order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ordered = {key: tensors[key].detach().contiguous() for key in sorted(tensors)}
    save_file(ordered, str(path), metadata={"format": "pt"})
