"""Training and generation on a CPU, eyas beside transformers + PEFT + bitsandbytes on the same machine.

    cargo build --release -p eyas -p eyas-generate --bins --example decode
    python tools/bench_cpu.py [--threads 2]

The shape of SmolLM2-135M with random weights (speed does not depend on the values), LoRA r 32 on every linear layer,
batch 4 x 256. The peer runs with the base in NF4 and in f32, and with bf16 where the processor has its dot product; its
best figure counts. Every figure is from its own process, one at a time; ours runs before and after the peer.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TOKENS, LENGTH, BATCH, STEPS = 24, 256, 4, 4
RELEASE = Path(__file__).resolve().parent.parent / "target/release"


def make_model(folder: Path) -> None:
    import torch
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, max_position_embeddings=8192, rope_theta=1e5, tie_word_embeddings=True, eos_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    words = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"w{i}": i for i in range(3, 1000)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>").save_pretrained(folder)


def peer(folder: str, store: str, threads: int) -> dict:
    """Runs in a process of its own."""
    import torch
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    torch.set_num_threads(threads)
    options = {"dtype": torch.bfloat16 if store == "bf16" else torch.float32}
    if store == "nf4":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.float32,
        )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(folder, device_map="cpu", **options).eval()
    ids = torch.randint(3, 49000, (1, 64))
    start = time.perf_counter()
    model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=TOKENS, min_new_tokens=TOKENS,
        do_sample=False, pad_token_id=2,
    )  # fmt: skip
    generation = TOKENS / (time.perf_counter() - start)
    if store == "nf4":
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    lora = LoraConfig(r=32, lora_alpha=32, lora_dropout=0.05, task_type="CAUSAL_LM", target_modules="all-linear")
    model = get_peft_model(model, lora).train()
    model.config.use_cache = False
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=2e-4)
    seconds = []
    for _ in range(STEPS):
        ids = torch.randint(3, 49000, (BATCH, LENGTH))
        start = time.perf_counter()
        model(input_ids=ids, labels=ids).loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 0.3)
        optimiser.step()
        optimiser.zero_grad()
        seconds.append(time.perf_counter() - start)
    step = statistics.median(seconds[1:])
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return {"train_tok_s": BATCH * LENGTH / step, "gen_tok_s": generation, "peak_rss_GB": memory}


def run(command: list, threads: int) -> str:
    environment = os.environ | {"RAYON_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    if result.returncode != 0:
        sys.exit(f"{command}\n{result.stdout}{result.stderr}")
    return result.stdout + result.stderr


def figures(command: list, threads: int) -> dict:
    """The last line that is a JSON object; libraries print others around it."""
    lines = [line for line in run(command, threads).splitlines() if line.startswith("{")]
    return json.loads(lines[-1])


def ours(threads: int) -> dict:
    command = [RELEASE / "eyas", "bench", "train", "--device", "cpu", "--threads", str(threads), "--json"]
    shape = ["--shape", "smollm2-135m", "--batch", str(BATCH), "--length", str(LENGTH)]
    found = figures(command + shape, threads)
    return {"train_tok_s": found["tokens_per_second"], "peak_rss_GB": found["peak_bytes"] / 1e9}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--model", help="the folder of the shape; made where it is not given")
    parser.add_argument("--peer", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peer:
        print(json.dumps(peer(args.model, args.peer, args.threads)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.model or str(Path(scratch, "model"))
        if not args.model:
            make_model(Path(folder))
        flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
        stores = ["nf4", "f32"] + (["bf16"] if "avx512_bf16" in flags else [])
        rows = {"eyas, before": ours(args.threads)}
        for store in stores:
            command = [sys.executable, __file__, "--peer", store, "--model", folder, "--threads", str(args.threads)]
            rows[f"peer, {store}"] = figures(command, args.threads)
        rows["eyas, after"] = ours(args.threads)
        print(run([RELEASE / "examples/decode", folder, "--tokens", "128"], args.threads))
    for name, row in rows.items():
        print(name, json.dumps({key: round(value, 2) if isinstance(value, float) else value for key, value in row.items()}))
    best = max(row["train_tok_s"] for name, row in rows.items() if name.startswith("peer"))
    mine = statistics.mean(row["train_tok_s"] for name, row in rows.items() if name.startswith("eyas"))
    print(f"training: {mine / best:.2f} x the peer's best")


if __name__ == "__main__":
    main()
