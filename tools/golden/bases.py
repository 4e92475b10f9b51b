"""The tiny random base models: one a family layout, with awkward sizes, written as Hugging Face folders."""

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    FalconConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

FALCON_LINEARS = ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]
LLAMA_LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass
class Base:
    """One base model and the sequences it is asked about."""

    name: str
    config: object
    dtype: torch.dtype = torch.bfloat16
    shard_size: str | None = None
    lengths: list[int] = field(default_factory=lambda: [7, 1, 11, 4])
    old_config: dict | None = None
    """A spelling of the same configuration from before transformers 5, saved as `config.old.json`."""

    @property
    def linears(self) -> list[str]:
        """The names of every linear layer of a decoder block."""
        return FALCON_LINEARS if self.config.model_type == "falcon" else LLAMA_LINEARS

    @property
    def seed(self) -> int:
        """A seed of its own for each case, independent of the order of the cases."""
        return sum((i + 1) * ord(c) for i, c in enumerate(self.name))


def _falcon(**kw) -> FalconConfig:
    common = dict(num_hidden_layers=2, bos_token_id=11, eos_token_id=11, max_position_embeddings=128)
    return FalconConfig(**(common | kw))


def _llama(kind=LlamaConfig, **kw):
    common = dict(num_hidden_layers=2, hidden_size=72, bos_token_id=1, eos_token_id=2, max_position_embeddings=128)
    return kind(**(common | kw))


OLD_FALCON = {
    "alibi": False,
    "apply_residual_connection_post_layernorm": False,
    "attention_dropout": 0.0,
    "bias": False,
    "bos_token_id": 11,
    "eos_token_id": 11,
    "hidden_dropout": 0.0,
    "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.27.4",
    "use_cache": True,
}

OLD_FALCON_7B = OLD_FALCON | {
    "architectures": ["RWForCausalLM"],
    "auto_map": {
        "AutoConfig": "configuration_RW.RWConfig",
        "AutoModel": "modelling_RW.RWModel",
        "AutoModelForCausalLM": "modelling_RW.RWForCausalLM",
    },
    "model_type": "RefinedWebModel",
    "hidden_size": 56,
    "vocab_size": 100,
    "n_head": 7,
    "n_layer": 2,
    "multi_query": True,
    "parallel_attn": True,
}

# 40B's first configuration had neither `new_decoder_architecture` nor an inner size; `RefinedWeb` meant the first,
# and the inner size was always four times the hidden size (given here, since the tiny model keeps it smaller).
OLD_FALCON_40B = OLD_FALCON | {
    "architectures": ["RWForCausalLM"],
    "model_type": "RefinedWeb",
    "hidden_size": 64,
    "vocab_size": 98,
    "n_head": 8,
    "n_head_kv": 2,
    "n_layer": 2,
    "parallel_attn": True,
    "ffn_hidden_size": 100,
}

OLD_FALCON_RW = OLD_FALCON | {
    "architectures": ["RWForCausalLM"],
    "model_type": "RefinedWebModel",
    "hidden_size": 72,
    "vocab_size": 96,
    "n_head": 12,
    "n_layer": 2,
    "alibi": True,
    "bias": True,
    "multi_query": False,
    "parallel_attn": False,
    "ffn_hidden_size": 102,
}


def _old_llama(config, **kw) -> dict:
    """A configuration as transformers 4 wrote it: `rope_theta` and `rope_scaling` at the top, `torch_dtype`."""
    old = json.loads(config.to_json_string(use_diff=False))
    keep = [
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "hidden_act", "max_position_embeddings", "initializer_range", "rms_norm_eps",
        "use_cache", "tie_word_embeddings", "bos_token_id", "eos_token_id", "attention_dropout",
    ]  # fmt: skip
    architecture = type(config).__name__.replace("Config", "ForCausalLM")
    rope = dict(config.rope_parameters)
    theta, kind = rope.pop("rope_theta"), rope.pop("rope_type")
    scaling = {"rope_scaling": None if kind == "default" else rope | {"rope_type": kind}, "rope_theta": theta}
    spoken = {"architectures": [architecture], "model_type": config.model_type, "torch_dtype": "bfloat16"}
    return spoken | {key: old[key] for key in keep} | scaling | {"transformers_version": "4.43.0"} | kw


def bases() -> list[Base]:
    """Every base model, the ones that most depends on first."""
    llama2 = _llama(num_attention_heads=6, intermediate_size=100, vocab_size=96, rms_norm_eps=1e-5)
    smollm2 = _llama(
        num_hidden_layers=3, num_attention_heads=9, num_key_value_heads=3, intermediate_size=100, vocab_size=104,
        tie_word_embeddings=True, rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
    )  # fmt: skip
    llama3 = _llama(
        num_attention_heads=6, num_key_value_heads=2, intermediate_size=100, vocab_size=110, rms_norm_eps=1e-5,
        rope_parameters={
            "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
        },
    )  # fmt: skip
    mistral = _llama(
        MistralConfig, hidden_size=48, num_attention_heads=6, num_key_value_heads=2, intermediate_size=70,
        vocab_size=96, sliding_window=5, rms_norm_eps=1e-5,
    )  # fmt: skip
    qwen2 = _llama(
        Qwen2Config, num_attention_heads=6, num_key_value_heads=2, intermediate_size=92, vocab_size=108,
        tie_word_embeddings=True, sliding_window=64, max_window_layers=2,
        rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
    )  # fmt: skip
    qwen3 = _llama(
        Qwen3Config, hidden_size=64, num_attention_heads=4, num_key_value_heads=2, head_dim=24,
        intermediate_size=90, vocab_size=100,
        rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
    )  # fmt: skip
    return [
        Base("llama2", llama2, dtype=torch.float16, old_config=_old_llama(llama2, torch_dtype="float16")),
        Base("smollm2", smollm2, old_config=_old_llama(smollm2)),
        Base(
            "falcon-7b",
            _falcon(hidden_size=56, num_attention_heads=7, vocab_size=100, bias=False),
            old_config=OLD_FALCON_7B,
        ),
        Base(
            "falcon-40b",
            _falcon(
                hidden_size=64, num_attention_heads=8, num_kv_heads=2, vocab_size=98, ffn_hidden_size=100,
                new_decoder_architecture=True,
            ),
            old_config=OLD_FALCON_40B,
        ),
        Base(
            "falcon-11b",
            _falcon(
                hidden_size=60, num_attention_heads=6, num_kv_heads=3, vocab_size=97, ffn_hidden_size=132,
                new_decoder_architecture=True, num_ln_in_parallel_attn=1, tie_word_embeddings=False,
            ),
        ),
        Base(
            "falcon-rw",
            _falcon(
                hidden_size=72, num_attention_heads=12, vocab_size=96, ffn_hidden_size=102, alibi=True, bias=True,
                multi_query=False, parallel_attn=False,
            ),
            lengths=[9, 2, 21],
            old_config=OLD_FALCON_RW,
        ),
        Base("llama3", llama3, lengths=[13, 2, 24], old_config=_old_llama(llama3)),
        Base(
            "mistral",
            mistral,
            dtype=torch.float32,
            lengths=[13, 2, 9, 5],
            old_config=_old_llama(mistral, sliding_window=5, torch_dtype="float32"),
        ),
        Base(
            "qwen2",
            qwen2,
            old_config=_old_llama(qwen2, sliding_window=64, use_sliding_window=False, max_window_layers=2),
        ),
        Base("qwen3", qwen3, shard_size="60KB", old_config=_old_llama(qwen3, head_dim=24, attention_bias=False)),
    ]  # fmt: skip


def _fill(model: torch.nn.Module, generator: torch.Generator) -> None:
    """Random values at the scale of a trained model, so that no part of it is near to doing nothing."""
    # A tied head sees the last token's own embedding in the residual: kept small, or it would only repeat itself.
    spread = 0.1 if model.config.tie_word_embeddings else 0.3
    done = set()
    for name, parameter in model.named_parameters():
        if parameter.data_ptr() in done:
            continue
        done.add(parameter.data_ptr())
        noise = torch.randn(parameter.shape, generator=generator)
        if "embed" in name or "lm_head" in name:
            value = spread * noise
        elif parameter.dim() == 2:
            value = noise / parameter.shape[1] ** 0.5
        elif name.endswith("bias"):
            value = 0.1 * noise
        else:
            value = 1 + 0.1 * noise
        parameter.data.copy_(value)


def write_base(base: Base, folder: Path) -> None:
    """Makes the folder of a base model."""
    model = AutoModelForCausalLM.from_config(base.config, attn_implementation="eager")
    _fill(model, torch.Generator().manual_seed(base.seed))
    model = model.to(base.dtype)
    model.config.dtype = base.dtype
    shard = {"max_shard_size": base.shard_size} if base.shard_size else {}
    model.save_pretrained(folder, **shard)
    if base.old_config:
        text = json.dumps(base.old_config, indent=2, sort_keys=True)
        (folder / "config.old.json").write_text(text + "\n")


def load_base(base: Base, folder: Path, **kw):
    """The model as a user would load it, computing in f32; `kw` goes to `from_pretrained`.

    With ALiBi attention is transformers' `sdpa`: its `eager` path adds the bias a second time, through the mask.
    """
    attention = "sdpa" if getattr(base.config, "alibi", False) else "eager"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation=attention, **kw)
    # The path would otherwise be written into adapter_config.json.
    model.name_or_path = model.config._name_or_path = f"tiny/{base.name}"
    model.config.use_cache = False
    return model.eval()


def load_old(base: Base, folder: Path):
    """The model described by `config.old.json`; Falcon's first names are translated, for transformers forgot them."""
    old = json.loads((folder / "config.old.json").read_text())
    if old["model_type"].startswith("RefinedWeb"):
        old["new_decoder_architecture"] = old.pop("model_type") == "RefinedWeb"
        names = {"n_head": "num_attention_heads", "n_layer": "num_hidden_layers", "n_head_kv": "num_kv_heads"}
        old = {names.get(key, key): value for key, value in old.items()}
    return load_base(base, folder, config=type(base.config).from_dict(old))


def write_old_falcon(source: Path, folder: Path) -> None:
    """Falcon-7B as its first checkpoints came: old names, PyTorch shards with an index, the tied head repeated."""
    folder.mkdir(parents=True)
    shutil.copyfile(source / "config.old.json", folder / "config.json")
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    names = sorted(state)
    cut = len(names) // 2
    index = {"metadata": {"total_size": sum(t.nbytes for t in state.values())}, "weight_map": {}}
    for number, part in enumerate((names[:cut], names[cut:]), start=1):
        file = f"pytorch_model-{number:05}-of-00002.bin"
        torch.save({name: state[name] for name in part}, folder / file)
        index["weight_map"] |= {name: file for name in part}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index, indent=2) + "\n")


def write_quantised(base: Base, source: Path, folder: Path) -> None:
    """A checkpoint already in NF4 with double quantisation, as transformers and bitsandbytes save it."""
    quantisation = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )  # fmt: skip
    model = load_base(base, source, quantization_config=quantisation, device_map="cpu")
    model.save_pretrained(folder)
