"""Learning rates of transformers' schedules."""

import math
from pathlib import Path

import torch
from transformers import get_scheduler

from .files import versions, write_json

RUNS = [(320, 0.03), (20, 0.1), (7, 0.0), (5, 0.5), (1, 0.03), (3, 1.0)]
KINDS = ["cosine", "linear", "constant", "constant_with_warmup"]


def write_schedule(path: Path) -> None:
    """The rate that each optimiser step uses, step 0 first."""
    cases = []
    for kind in KINDS:
        for steps, ratio in RUNS:
            optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2e-4)
            warmup = math.ceil(steps * ratio)
            schedule = get_scheduler(kind, optimizer, num_warmup_steps=warmup, num_training_steps=steps)
            rates = []
            for _ in range(steps):
                rates.append(schedule.get_last_lr()[0])
                optimizer.step()
                schedule.step()
            cases.append(
                {
                    "lr_scheduler_type": kind, "max_steps": steps, "warmup_ratio": ratio, "warmup_steps": warmup,
                    "learning_rate": 2e-4, "rates": rates,
                }
            )  # fmt: skip
    write_json(path, {"versions": versions(), "cases": cases})
