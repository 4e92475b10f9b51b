"""Random batches, padded as transformers takes them and flat as this project does."""

import torch

IGNORE = -100


class Batch:
    """Sequences with labels: `labels[i]` is the id at position i, or -100 where predicting it does not count."""

    def __init__(self, lengths: list[int], vocab: int, generator: torch.Generator, masked: float = 0.25):
        self.ids = [torch.randint(0, vocab, (n,), generator=generator) for n in lengths]
        self.labels = []
        for ids in self.ids:
            hidden = torch.rand(len(ids), generator=generator) < masked
            self.labels.append(torch.where(hidden, IGNORE, ids))

    def padded(self, pad: int = 0) -> dict[str, torch.Tensor]:
        """`input_ids`, `attention_mask` and `labels`, each [batch, longest], padded on the right by position."""
        longest = max(map(len, self.ids))

        def rows(parts, value):
            return torch.stack([torch.nn.functional.pad(p, (0, longest - len(p)), value=value) for p in parts])

        mask = rows([torch.ones_like(ids) for ids in self.ids], 0)
        return {"input_ids": rows(self.ids, pad), "attention_mask": mask, "labels": rows(self.labels, IGNORE)}

    def flat(self) -> dict[str, torch.Tensor]:
        """`input_ids` [T], `targets` [T] (shifted labels) and `cu_seqlens` [batch + 1], all int32."""
        ends = torch.tensor([0] + [len(ids) for ids in self.ids]).cumsum(0)
        shifted = [torch.cat([labels[1:], torch.tensor([IGNORE])]) for labels in self.labels]
        flat = {"input_ids": torch.cat(self.ids), "targets": torch.cat(shifted), "cu_seqlens": ends}
        return {key: value.to(torch.int32) for key, value in flat.items()}

    def targets(self) -> int:
        """How many tokens count towards the loss."""
        return int((self.flat()["targets"] != IGNORE).sum())


def flat_logits(model, batch: Batch) -> torch.Tensor:
    """Logits of the padded batch at its real positions, [T, vocab]."""
    padded = batch.padded()
    logits = model(input_ids=padded["input_ids"], attention_mask=padded["attention_mask"], use_cache=False).logits
    return logits[padded["attention_mask"].bool()]


def unpadded_logits(model, batch: Batch) -> torch.Tensor:
    """The same, one sequence at a time and never padded, [T, vocab]."""
    return torch.cat([model(input_ids=ids[None], use_cache=False).logits[0] for ids in batch.ids])


def summed_loss(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Cross-entropy summed over the target tokens."""
    targets = batch.flat()["targets"].long()
    return torch.nn.functional.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="sum")
