"""Merged models beside PEFT's `merge_and_unload`, on every golden base: transformers loads what `eyas merge` writes, with
the same logits and the same weights.

    python tools/interop_merge.py --program target/debug/eyas

Needs the packages of tools/requirements.txt, and `cargo build -p eyas`.
"""

import argparse
import json
import subprocess
import tempfile
from functools import partial
from pathlib import Path

import gguf
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from interop_peft import load_base, logits

ROOT = Path(__file__).resolve().parent.parent
FIXTURES = ROOT / "crates/eyas-model/tests/fixtures"
BASES = [
    "llama2", "llama3", "mistral", "qwen2", "qwen3", "smollm2", "falcon-7b", "falcon-40b", "falcon-11b", "falcon-rw",
]  # fmt: skip
TOLERANCE = 1e-5


def merge(program: Path, base: Path, adapter: Path, output: Path, *options: str) -> str:
    """Runs `eyas merge`; returns what it printed."""
    command = [program, "merge", "--model", base, "--adapter", adapter, "--output", output, *options]
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert result.returncode == 0, f"{command}\n{result.stdout}{result.stderr}"
    return result.stdout


def reference(base: Path, adapter: Path, nf4: bool = False, dtype: torch.dtype = torch.float32):
    """The base with its adapter, merged by PEFT."""
    model = load_base(base, nf4).to(dtype)
    return PeftModel.from_pretrained(model, str(adapter)).merge_and_unload().eval()


def sequences(vocab: int) -> list[torch.Tensor]:
    """Ids to ask about."""
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(0, vocab, (n,), generator=generator) for n in (9, 1, 16)]


def compare(name: str, folder: Path, expected, tolerance: float = TOLERANCE) -> None:
    """A folder's logits in transformers are those of a model."""
    model = load_base(folder, False)
    ids = sequences(model.config.vocab_size)
    ours, theirs = logits(model, ids), logits(expected, ids)
    distance = ((ours - theirs).abs().max() / theirs.abs().max()).item()
    assert distance <= tolerance, f"{name}: logits differ by {distance:.2g} of the largest"


def check_base(program: Path, name: str, scratch: Path) -> None:
    """In f32 and shards, in the base's own type, and merged into the quantised weights."""
    base, adapter = FIXTURES / name, FIXTURES / name / "adapter"
    output = scratch / "f32"
    printed = merge(program, base, adapter, output, "--dtype", "f32", "--max-shard-size", "100KB")
    assert "peak memory" in printed and f"eyas chat --model {output}" in printed, printed
    assert json.loads((output / "model.safetensors.index.json").read_text())["metadata"]["total_size"] > 100_000
    compare(name, output, reference(base, adapter))

    # The same sum, rounded once. Another order of summation shows in f32's last places, and hardly ever in half's.
    merge(program, base, adapter, scratch / "own")
    ours = AutoModelForCausalLM.from_pretrained(scratch / "own").state_dict()
    own = AutoModelForCausalLM.from_pretrained(base).dtype
    theirs = reference(base, adapter, dtype=own).state_dict()
    assert ours.keys() == theirs.keys(), ours.keys() ^ theirs.keys()
    for key, value in theirs.items():
        assert ours[key].dtype == own, f"{name}: {key} is {ours[key].dtype}"
        differ = (ours[key].float() - value.float()).abs() > (1e-6 if own == torch.float32 else 0)
        share = differ.float().mean().item()
        assert share < 0.001, f"{name}: {share:.2%} of {key} are not PEFT's"

    merge(program, base, adapter, scratch / "nf4", "--dtype", "f32", "--from-quantised")
    # bitsandbytes' paths themselves disagree by a code in the nested scales, and ours takes the nearest.
    compare(f"{name}, quantised", scratch / "nf4", reference(base, adapter, nf4=True), 3e-3)


def check_first_falcon(program: Path, scratch: Path) -> None:
    """transformers has no code for the first Falcon configurations; the merged model's is today's."""
    adapter = FIXTURES / "falcon-7b/adapter"
    merge(program, FIXTURES / "falcon-refinedweb", adapter, scratch / "merged", "--dtype", "f32")
    compare("falcon-refinedweb", scratch / "merged", reference(FIXTURES / "falcon-7b", adapter))


def write_gguf(path: Path, base: Path, architecture: str) -> None:
    """A fixture as llama.cpp's converter writes it, with a vocabulary of letters."""
    model = load_base(base, False)
    config, state = model.config, model.state_dict()
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    letters = [chr(code) for code in range(ord("!"), ord("!") + 90)]
    tokens = ["<s>", "</s>", "ab", *letters]
    tokens += [f"<unused{i}>" for i in range(config.vocab_size - len(tokens))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3] + [1] * (len(tokens) - 2))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_chat_template("{{ messages[0].content }}")
    kind = gguf.MODEL_ARCH.LLAMA if architecture == "llama" else gguf.MODEL_ARCH.QWEN2
    names = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
    for key, value in state.items():
        if key == "lm_head.weight" and config.tie_word_embeddings:
            continue
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(key.split(".")[-2])
        if architecture == "llama" and heads:
            value = value.reshape(heads, 2, value.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(value.shape)
        writer.add_tensor(names.get_name(key, (".weight", ".bias")), value.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def check_gguf(program: Path, name: str, architecture: str, scratch: Path) -> None:
    """A GGUF base becomes a Hugging Face folder, tokenizer and all."""
    path, adapter = scratch / "model.gguf", FIXTURES / name / "adapter"
    write_gguf(path, FIXTURES / name, architecture)
    output = scratch / "merged"
    merge(program, path, adapter, output, "--dtype", "f32")
    compare(f"{name}, GGUF", output, reference(FIXTURES / name, adapter))
    tokenizer = AutoTokenizer.from_pretrained(output)
    assert tokenizer("abc", add_special_tokens=False)["input_ids"] == [2, 3 + ord("c") - ord("!")]
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<s>", "</s>")
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hello"}], tokenize=False) == "hello"
    model = AutoModelForCausalLM.from_pretrained(output)
    assert model.generation_config.eos_token_id in (1, [1]), model.generation_config


def refused(command: list, why: str) -> None:
    """A command fails with a message that says why."""
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert result.returncode == 1 and why in result.stderr, f"{command}\n{result.stdout}{result.stderr}"


def check_refusals(program: Path, scratch: Path) -> None:
    """An adapter of another model, and a folder that is in use."""
    output, used = scratch / "output", scratch / "used"
    for base, adapter in (("falcon-7b", "llama2/adapter"), ("llama3", "llama2/adapter"), ("smollm2", "lora-patterns")):
        command = [program, "merge", "--model", FIXTURES / base, "--adapter", FIXTURES / adapter]
        refused([*command, "--output", output], "It was trained for")
        assert not output.exists()
    used.mkdir()
    (used / "file").write_text("precious")
    command = [program, "merge", "--model", FIXTURES / "llama2", "--adapter", FIXTURES / "llama2/adapter"]
    refused([*command, "--output", used], "new or empty")
    assert [path.name for path in used.iterdir()] == ["file"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--program", type=Path, required=True)
    program = parser.parse_args().program.resolve()
    torch.set_num_threads(1)
    checks = {f"{name}: as PEFT merges it": partial(check_base, program, name) for name in BASES}
    checks |= {
        "falcon-7b's first configuration and .bin: as PEFT merges it": partial(check_first_falcon, program),
        "llama2 from GGUF: as PEFT merges it": partial(check_gguf, program, "llama2", "llama"),
        "qwen2 from GGUF: as PEFT merges it": partial(check_gguf, program, "qwen2", "qwen2"),
        "adapters of other models and folders in use: refused": partial(check_refusals, program),
    }
    for what, check in checks.items():
        with tempfile.TemporaryDirectory() as scratch:
            check(Path(scratch))
        print(what, flush=True)
    print(f"{len(checks)} passed, 0 failed")


if __name__ == "__main__":
    main()
