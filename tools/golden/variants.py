"""Adapters that use more of PEFT's configuration, each on one of the bases."""

from dataclasses import dataclass
from pathlib import Path

import torch
from peft.tuners.lora import LoraLayer

from .adapters import asked, lora_config, new_adapter, randomise_b, save_adapter
from .bases import Base, load_base
from .batches import flat_logits
from .files import versions, write_json, write_tensors


@dataclass
class Variant:
    """A LoRA configuration to try on a base."""

    name: str
    base: str
    target_modules: list[str] | str
    options: dict


VARIANTS = [
    Variant("lora-rslora", "llama2", ["q_proj", "v_proj"], {"use_rslora": True}),
    Variant(
        "lora-patterns",
        "qwen2",
        ["q_proj", "v_proj", "down_proj"],
        {
            "rank_pattern": {"q_proj": 3, "layers.1.self_attn.v_proj": 2, "^model.layers.0.mlp.down_proj": 1},
            "alpha_pattern": {"q_proj": 12, r"layers\.1\.mlp\.\w+": 5},
        },
    ),
    Variant("lora-regex", "falcon-7b", r".*\.1\.self_attention\.(query_key_value|dense)", {}),
    Variant("lora-all-linear", "qwen3", "all-linear", {"r": 2}),
    Variant("lora-all-linear-names", "smollm2", "all-linear", {"r": 1}),
]


def write_variant(variant: Variant, base: Base, base_folder: Path, folder: Path) -> None:
    """The adapter as PEFT saves it, with the logits it gives on its base's batch."""
    config = lora_config(variant.target_modules, **variant.options)
    model = new_adapter(load_base(base, base_folder), config, base.seed + 4)
    randomise_b(model, base.seed + 5)
    save_adapter(model, folder)
    with torch.no_grad():
        write_tensors(folder / "golden.safetensors", {"logits.adapter": flat_logits(model, asked(base)[0])})
    layers = {
        name.removeprefix("base_model.model."): {"r": layer.r["default"], "scaling": layer.scaling["default"]}
        for name, layer in model.named_modules()
        if isinstance(layer, LoraLayer)
    }
    saved = model.peft_config["default"].target_modules
    write_json(
        folder / "golden.json",
        {
            "case": variant.name,
            "versions": versions(),
            "base": variant.base,
            "asked_target_modules": variant.target_modules,
            "saved_target_modules": saved if isinstance(saved, str) else sorted(saved),
            "modules": layers,
        },
    )
