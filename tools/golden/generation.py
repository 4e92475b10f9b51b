"""Decoding: what each sampling processor leaves of random logits, and greedy continuations."""

from pathlib import Path

import torch
from peft import PeftModel
from transformers import GenerationConfig

from .bases import Base, load_base
from .files import f32, versions, write_json

NEW_TOKENS = 24
CLOSE = 4e-3  # a margin between the best two logits far above rounding, which is near 1e-5

SAMPLERS = {
    "plain": {},
    "temperature": {"temperature": 0.4},
    "hot": {"temperature": 1.7},
    "top_k": {"top_k": 5},
    "top_k_of_one": {"top_k": 1},
    "top_k_larger_than_vocabulary": {"top_k": 500},
    "top_p": {"top_p": 0.6},
    "top_p_tiny": {"top_p": 0.01},
    "min_p": {"min_p": 0.08},
    "repetition_penalty": {"repetition_penalty": 1.3},
    "recipe": {"temperature": 0.4, "top_p": 0.6, "repetition_penalty": 1.3},
    "all": {"temperature": 0.8, "top_k": 12, "top_p": 0.85, "min_p": 0.05, "repetition_penalty": 1.2},
}


def _processors(model, options: dict):
    """transformers' own list, in its own order, for one sequence that samples."""
    config = GenerationConfig(do_sample=True, **({"top_k": 0} | options))
    return model._get_logits_processor(config, input_ids_seq_length=1)


def write_processors(model, path: Path) -> None:
    """Probabilities after the processors, for one row of logits and the ids seen so far."""
    generator = torch.Generator().manual_seed(7)
    rows = {"random": 2.5 * torch.randn(48, generator=generator)}
    rows["ties"] = (rows["random"] * 2).round() / 2
    seen = torch.tensor([[3, 17, 17, 40, 5]])
    cases = []
    for row, logits in rows.items():
        for name, options in SAMPLERS.items():
            # Which of two equals top_p keeps is left to the sort: not a thing to hold anybody to.
            if row == "ties" and "top_p" in options:
                continue
            processors = _processors(model, options)
            scores = processors(seen, logits[None].clone())
            cases.append(
                {
                    "name": f"{name} ({row})",
                    "options": options,
                    "order": [type(p).__name__ for p in processors],
                    "logits": row,
                    "probabilities": f32(scores.softmax(-1)[0]),
                }
            )
    write_json(
        path,
        {
            "versions": versions(),
            "seen_ids": seen[0].tolist(),
            "logits": {row: f32(logits) for row, logits in rows.items()},
            "cases": cases,
        },
    )


def greedy(model, prompt: torch.Tensor, penalty: float) -> dict:
    """The continuation, by `generate` with its cache and again without one; they must agree."""
    model.generation_config.eos_token_id = None  # or generate would take it from there and stop
    config = GenerationConfig(
        do_sample=False, max_new_tokens=NEW_TOKENS, pad_token_id=0, repetition_penalty=penalty
    )
    mask = torch.ones_like(prompt)[None]
    made = model.generate(input_ids=prompt[None], attention_mask=mask, generation_config=config, use_cache=True)
    made = made[0, len(prompt) :]
    assert len(made) == NEW_TOKENS
    processors = model._get_logits_processor(config, input_ids_seq_length=len(prompt))
    ids, margin = prompt[None], float("inf")
    for token in made:
        scores = processors(ids, model(input_ids=ids, use_cache=False).logits[:, -1])
        best = scores[0].topk(2)
        assert best.indices[0] == token, "generate disagrees with the argmax of a fresh forward"
        margin = min(margin, (best.values[0] - best.values[1]).item())
        ids = torch.cat([ids, token[None, None]], dim=1)
    return {"repetition_penalty": penalty, "ids": made.tolist(), "smallest_margin": f32(margin)}


@torch.no_grad()
def write_greedy(bases: list[Base], fixtures: Path, path: Path) -> None:
    """Greedy continuations of every base and of its adapter, from a prompt that leaves no step too close to call."""
    found = {"versions": versions(), "new_tokens": NEW_TOKENS, "cases": {}}
    for base in bases:
        generator = torch.Generator().manual_seed(base.seed + 6)
        model = load_base(base, fixtures / base.name)
        adapted = load_base(base, fixtures / base.name)
        adapted = PeftModel.from_pretrained(adapted, str(fixtures / base.name / "adapter"))
        margin = 0.0
        while margin < CLOSE:
            prompt = torch.randint(0, base.config.vocab_size, (5,), generator=generator)
            runs = {
                name: [greedy(asked, prompt, penalty) for penalty in (1.0, 1.3)]
                for name, asked in (("base", model), ("adapter", adapted))
            }
            margin = min(run["smallest_margin"] for pair in runs.values() for run in pair)
        found["cases"][base.name] = {"prompt": prompt.tolist()} | runs
    write_json(path, found)
