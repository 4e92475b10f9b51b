"""Adapters and training: logits, gradients and twenty AdamW steps through PEFT and torch."""

import hashlib
import math
import shutil
import tempfile
from pathlib import Path

import bitsandbytes.functional as bnb
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from transformers import get_scheduler

from .bases import Base, load_base, load_old
from .batches import Batch, flat_logits, summed_loss, unpadded_logits
from .files import f32, versions, write_json, write_tensors

STEPS, WARMUP_RATIO, LEARNING_RATE, MAX_GRAD_NORM = 20, 0.1, 1e-2, 0.3
MICRO_LENGTHS = [[5, 9], [3, 1, 6], [8], [2, 7, 4], [10, 3], [6, 6]]


def lora_config(targets, **kw) -> LoraConfig:
    """The adapter of the golden files: rank 4, alpha 8, no dropout."""
    common = dict(r=4, lora_alpha=8, lora_dropout=0.0, bias="none", task_type="CAUSAL_LM")
    return LoraConfig(target_modules=targets, **(common | kw))


def new_adapter(model, config: LoraConfig, seed: int) -> PeftModel:
    """PEFT's own initialisation (A kaiming uniform, B zero) from a seed."""
    torch.manual_seed(seed)
    return get_peft_model(model, config)


def randomise_b(model: PeftModel, seed: int) -> None:
    """Gives every B values, so that the adapter changes the answers and A has a gradient."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            parameter.data.copy_(0.1 * torch.randn(parameter.shape, generator=generator))


def save_adapter(model: PeftModel, folder: Path) -> None:
    """`adapter_config.json` and `adapter_model.safetensors` as PEFT writes them, without the model card."""
    with tempfile.TemporaryDirectory() as temporary:
        model.save_pretrained(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for file in ("adapter_config.json", "adapter_model.safetensors"):
            shutil.copyfile(Path(temporary) / file, folder / file)


def saved_name(parameter: str) -> str:
    """A parameter's name as PEFT saves it."""
    return parameter.replace(".default.", ".")


def gradients(model: PeftModel) -> dict[str, torch.Tensor]:
    """The gradient of every LoRA matrix under its saved name."""
    return {saved_name(n): p.grad for n, p in model.named_parameters() if p.requires_grad}


def quantise_base(model) -> dict[str, str]:
    """Replaces the weights of every linear but the head by what bitsandbytes' NF4 with double quantisation gives back.

    The modules stay plain linears: the product is then f32 whatever bitsandbytes' CPU kernels do, and
    transformers' `FalconLinear` (which its own replacement does not know) is treated like any other.
    Returns the SHA-256 of each dequantised weight's little-endian f32 bytes.
    """
    sums = {}
    head = model.get_output_embeddings()
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and module is not head:
            packed, state = bnb.quantize_4bit(
                module.weight.data, blocksize=64, compress_statistics=True, quant_type="nf4"
            )
            weight = bnb.dequantize_4bit(packed, state)
            _check_dequantised(weight, packed, state)
            module.weight.data = weight
            sums[f"{name}.weight"] = hashlib.sha256(weight.numpy().tobytes()).hexdigest()
    return sums


def _check_dequantised(weight: torch.Tensor, packed: torch.Tensor, state) -> None:
    """bitsandbytes must have computed in f32: value = level * scale, each product rounded once."""
    assert weight.dtype == torch.float32 and state.dtype == torch.float32
    nested = state.state2
    scale = nested.code[state.absmax.long()] * nested.absmax.repeat_interleave(nested.blocksize)[: len(state.absmax)]
    scale = scale + state.offset
    nibbles = torch.stack([packed.flatten() >> 4, packed.flatten() & 15], 1).flatten()[: weight.numel()]
    again = (state.code[nibbles.long()] * scale.repeat_interleave(64)[: weight.numel()]).view_as(weight)
    # The scale may be fused (one rounding fewer): allow the last place.
    assert torch.allclose(again, weight, rtol=3e-7, atol=0), (again - weight).abs().max()


def train(model: PeftModel, micro: list[Batch], logits=flat_logits) -> dict:
    """Twenty AdamW steps, two micro-batches each, normalised over all target tokens of the two."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, lr=LEARNING_RATE, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, foreach=False
    )
    warmup = math.ceil(STEPS * WARMUP_RATIO)
    schedule = get_scheduler("cosine", optimizer, num_warmup_steps=warmup, num_training_steps=STEPS)
    log = {"learning_rate": [], "loss": [], "grad_norm": []}
    for pair in accumulation(len(micro)):
        total = sum(micro[i].targets() for i in pair)
        loss = 0.0
        for i in pair:
            part = summed_loss(logits(model, micro[i]), micro[i]) / total
            part.backward()
            loss += part.item()
        norm = torch.nn.utils.clip_grad_norm_(parameters, MAX_GRAD_NORM, foreach=False)
        log["learning_rate"].append(schedule.get_last_lr()[0])
        log["loss"].append(f32(loss))
        log["grad_norm"].append(f32(norm.item()))
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return log


def accumulation(count: int) -> list[list[int]]:
    """Which micro-batches each step accumulates."""
    return [[2 * step % count, (2 * step + 1) % count] for step in range(STEPS)]


def asked(base: Base) -> tuple[Batch, torch.Generator]:
    """The batch whose logits are recorded, and the generator to draw more from."""
    generator = torch.Generator().manual_seed(base.seed + 1)
    return Batch(base.lengths, base.config.vocab_size, generator), generator


def write_case(base: Base, folder: Path) -> None:
    """The golden files of one base model beside it."""
    batch, generator = asked(base)
    vocab = base.config.vocab_size
    micro = [Batch(lengths, vocab, generator) for lengths in MICRO_LENGTHS]
    tensors = {f"padded.{key}": value for key, value in batch.padded().items()}
    tensors |= {f"flat.{key}": value for key, value in batch.flat().items()}
    for i, part in enumerate(micro):
        tensors |= {f"train.{i}.{key}": value for key, value in part.flat().items()}

    model = load_base(base, folder)
    with torch.no_grad():
        tensors["logits.base"] = flat_logits(model, batch)
        padding = (tensors["logits.base"] - unpadded_logits(model, batch)).abs().max().item()
        if base.old_config:
            assert torch.equal(flat_logits(load_old(base, folder), batch), tensors["logits.base"]), base.name
    losses = {"base": (summed_loss(tensors["logits.base"], batch) / batch.targets()).item()}
    all_linear = get_peft_model(model, lora_config("all-linear")).peft_config["default"].target_modules

    model = new_adapter(load_base(base, folder), lora_config(base.linears), base.seed + 2)
    randomise_b(model, base.seed + 3)
    save_adapter(model, folder / "adapter")
    logits = flat_logits(model, batch)
    loss = summed_loss(logits, batch) / batch.targets()
    loss.backward()
    tensors["logits.adapter"] = logits
    losses["adapter"] = loss.item()
    write_tensors(folder / "gradients.safetensors", gradients(model))

    training = {
        "optim": "torch.optim.AdamW", "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.0,
        "learning_rate": LEARNING_RATE, "lr_scheduler_type": "cosine", "warmup_ratio": WARMUP_RATIO,
        "max_steps": STEPS, "max_grad_norm": MAX_GRAD_NORM, "micro_batches": accumulation(len(micro)),
        "micro_batch_targets": [part.targets() for part in micro],
    }  # fmt: skip
    sums = {}
    for kind in ("f32", "nf4"):

        def fresh():
            model = load_base(base, folder)
            if kind == "nf4":
                sums.update(quantise_base(model))
            return model

        if kind == "nf4":
            with torch.no_grad():
                tensors["logits.nf4"] = flat_logits(fresh(), batch)
        model = new_adapter(fresh(), lora_config(base.linears), base.seed + 2)
        log = train(model, micro)
        trained = {saved_name(k): v for k, v in get_peft_model_state_dict(model).items()}
        write_tensors(folder / f"trained.{kind}.safetensors", trained)
        # The same without padding: how far rounding alone carries the figures.
        model = new_adapter(fresh(), lora_config(base.linears), base.seed + 2)
        again = train(model, micro, unpadded_logits)
        other = get_peft_model_state_dict(model)
        spread = {key: max(abs(a - b) for a, b in zip(log[key], again[key])) for key in ("loss", "grad_norm")}
        spread["weight"] = max((trained[saved_name(k)] - v).abs().max().item() for k, v in other.items())
        training[kind] = log | {"rounding_spread": f32_dict(spread)}

    write_tensors(folder / "golden.safetensors", tensors)
    write_json(
        folder / "golden.json",
        {
            "case": base.name,
            "versions": versions(),
            "attention": "sdpa" if getattr(base.config, "alibi", False) else "eager",
            "num_targets": batch.targets(),
            "loss": f32_dict(losses),
            "padding_difference": f32(padding),
            "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
            "all_linear": sorted(all_linear),
            "train": training,
            "nf4_sha256": dict(sorted(sums.items())),
        },
    )


def f32_dict(values: dict[str, float]) -> dict[str, float]:
    """`f32` of each value."""
    return {key: f32(value) for key, value in values.items()}
