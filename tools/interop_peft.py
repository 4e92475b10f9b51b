"""Adapters to and from PEFT: does the same adapter on the same base give the same logits in both programs?

    python tools/interop_peft.py check --base DIR --adapter DIR --logits FILE [--tolerance 1e-4] [--nf4]
    python tools/interop_peft.py make  --base DIR --adapter DIR --logits FILE [--ids FILE] [--r 8] ... [--nf4]

`check` loads an adapter that eyas wrote with `PeftModel.from_pretrained` and compares its logits with FILE.
`make` writes a random adapter with PEFT, and to FILE the logits that eyas should find with it.

FILE is safetensors: `input_ids` [T] (any integer type), `cu_seqlens` [sequences + 1] (without it: one sequence) and
`logits` f32 [T, vocab]. `--ids` names a file with the first two; without it `make` draws three short sequences.
`--nf4` computes with the base quantised by bitsandbytes to NF4 with double quantisation, dequantised to f32.
Exit code: 0 the same, 1 not the same, 2 something could not be read.

Needs: pip install torch transformers peft bitsandbytes
"""

import argparse
import os
import sys
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from golden.adapters import quantise_base, randomise_b, save_adapter
from golden.files import write_tensors


class Unreadable(Exception):
    """An input that cannot be used, and why."""


class Different(Exception):
    """The two programs disagree, and where."""


def load_base(folder: Path, nf4: bool):
    """The base in f32. Falcon's ALiBi needs `sdpa`: the `eager` path adds the bias twice."""
    if not (folder / "config.json").is_file():
        raise Unreadable(f"{folder} has no config.json: --base must be a Hugging Face model folder")
    config = AutoConfig.from_pretrained(folder)
    attention = "sdpa" if getattr(config, "alibi", False) else "eager"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation=attention)
    if nf4:
        quantise_base(model)
    return model.eval()


def load_sequences(path: Path, vocab: int) -> tuple[dict[str, torch.Tensor], list[torch.Tensor]]:
    """The file's tensors, and its ids cut into sequences."""
    if not path.is_file():
        raise Unreadable(f"{path} does not exist")
    tensors = load_file(path)
    if "input_ids" not in tensors or tensors["input_ids"].dim() != 1:
        raise Unreadable(f"{path} must hold `input_ids` of one axis; it holds {sorted(tensors)}")
    ids = tensors["input_ids"].long()
    ends = tensors["cu_seqlens"].long() if "cu_seqlens" in tensors else torch.tensor([0, len(ids)])
    lengths = ends.diff()
    if ends.numel() < 2 or ends[0] != 0 or ends[-1] != len(ids) or (lengths < 1).any():
        raise Unreadable(f"{path}: cu_seqlens {ends.tolist()} do not cut {len(ids)} ids into sequences")
    if ids.min() < 0 or ids.max() >= vocab:
        raise Unreadable(f"{path}: ids go from {ids.min()} to {ids.max()}; the base has a vocabulary of {vocab}")
    return tensors, list(ids.split(lengths.tolist()))


@torch.no_grad()
def logits(model, sequences: list[torch.Tensor]) -> torch.Tensor:
    """Logits of each sequence alone, laid end to end, [T, vocab]."""
    return torch.cat([model(input_ids=ids[None], use_cache=False).logits[0] for ids in sequences])


def check(args) -> str:
    """Compares an adapter's logits with those in the file."""
    model = load_base(args.base, args.nf4)
    tensors, sequences = load_sequences(args.logits, model.config.vocab_size)
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        if not (args.adapter / file).is_file():
            raise Unreadable(f"{args.adapter} has no {file}")
    model = PeftModel.from_pretrained(model, str(args.adapter)).eval()

    # PEFT only warns about keys that it misses or does not know.
    saved = load_file(args.adapter / "adapter_model.safetensors")
    wanted = get_peft_model_state_dict(model)
    for what, keys in (("lacks", wanted.keys() - saved.keys()), ("has unknown", saved.keys() - wanted.keys())):
        if keys:
            raise Different(f"{args.adapter}: adapter_model.safetensors {what} {len(keys)} keys, as {min(keys)}")

    if "logits" not in tensors:
        raise Unreadable(f"{args.logits} holds no `logits`")
    expected, found = tensors["logits"].float(), logits(model, sequences)
    if expected.shape != found.shape:
        raise Different(f"{args.logits}: logits are {list(expected.shape)}; PEFT's are {list(found.shape)}")
    distance = (found - expected).abs()
    if not torch.isfinite(expected).all():
        raise Different(f"{args.logits}: some logits are not finite")
    relative = (distance.max() / found.abs().max()).item()
    token, word = divmod(distance.argmax().item(), found.shape[1])
    where = f"token {token}, id {word}: {expected[token, word]:.7g}, PEFT {found[token, word]:.7g}"
    if relative > args.tolerance:
        raise Different(f"logits differ by {relative:.3g} of the largest, over {args.tolerance:g}; worst at {where}")
    with model.disable_adapter():
        change = (logits(model, sequences) - found).abs().max().item()
    if change == 0:
        raise Different(f"{args.adapter}: the adapter changes no logit, so the comparison says nothing")
    return (
        f"{len(found)} tokens: logits differ by {relative:.3g} of the largest (allowed {args.tolerance:g}); "
        f"the adapter moves them by {change:.3g}"
    )


def make(args) -> str:
    """Writes a random adapter and the logits it gives."""
    model = load_base(args.base, args.nf4)
    vocab = model.config.vocab_size
    if args.ids:
        sequences = load_sequences(args.ids, vocab)[1]
    else:
        generator = torch.Generator().manual_seed(args.seed)
        sequences = [torch.randint(0, vocab, (n,), generator=generator) for n in (9, 1, 16)]
    targets = args.target_modules if len(args.target_modules) > 1 else args.target_modules[0]
    torch.manual_seed(args.seed)
    config = LoraConfig(
        r=args.r, lora_alpha=args.lora_alpha, lora_dropout=0.05, bias="none", task_type="CAUSAL_LM",
        target_modules=targets, use_rslora=args.use_rslora,
    )  # fmt: skip
    model = get_peft_model(model, config).eval()
    randomise_b(model, args.seed + 1)
    save_adapter(model, args.adapter)
    ends = torch.tensor([0] + [len(ids) for ids in sequences]).cumsum(0)
    found = {"input_ids": torch.cat(sequences), "cu_seqlens": ends}
    found = {key: value.to(torch.int32) for key, value in found.items()}
    write_tensors(args.logits, found | {"logits": logits(model, sequences)})
    count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return f"{args.adapter}: {count} parameters; {args.logits}: logits of {int(ends[-1])} tokens"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for run in (check, make):
        command = commands.add_parser(run.__name__, help=run.__doc__)
        command.set_defaults(run=run)
        for name in ("--base", "--adapter", "--logits"):
            command.add_argument(name, type=Path, required=True)
        command.add_argument("--nf4", action="store_true")
    commands.choices["check"].add_argument("--tolerance", type=float, default=1e-4)
    options = commands.choices["make"]
    options.add_argument("--ids", type=Path)
    options.add_argument("--r", type=int, default=8)
    options.add_argument("--lora-alpha", type=int, default=16)
    options.add_argument("--target-modules", nargs="+", default=["all-linear"], help="names, or one name or regex")
    options.add_argument("--use-rslora", action="store_true")
    options.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    try:
        print(args.run(args))
        return 0
    except Different as error:
        print(f"different: {error}", file=sys.stderr)
        return 1
    # Whatever the packages say about a folder that they cannot load is the message.
    except Exception as error:
        print(f"cannot compare: {type(error).__name__}: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
