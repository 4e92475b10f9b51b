"""A few steps of TRL's SFTTrainer, for the shape of its `trainer_state.json` and of a checkpoint folder."""

import json
import tempfile
from pathlib import Path

from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

from .adapters import lora_config
from .bases import Base, load_base
from .files import versions, write_json

WORDS = "<unk> <pad> <eos> how what is are you anxiety sleep help calm breathe walk talk friend today".split()
CLOCKED = ("runtime", "per_second")


def _tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", pad_token="<pad>", eos_token="<eos>")


def _without_clock(state: dict) -> dict:
    """Seconds and rates set to zero: they differ at every run."""
    for entry in state["log_history"]:
        for key in entry:
            if any(part in key for part in CLOCKED):
                entry[key] = 0.0
    return state


def write_trainer(base: Base, base_folder: Path, folder: Path) -> None:
    """Six steps with two rows kept out; a checkpoint every two steps."""
    rows = [{"text": " ".join(WORDS[3 + (i + j * j) % (len(WORDS) - 3)] for j in range(4 + i % 5))} for i in range(12)]
    with tempfile.TemporaryDirectory() as output:
        trainer = SFTTrainer(
            model=load_base(base, base_folder),
            processing_class=_tokenizer(),
            train_dataset=Dataset.from_list(rows[:10]),
            eval_dataset=Dataset.from_list(rows[10:]),
            peft_config=lora_config(base.linears),
            args=SFTConfig(
                output_dir=output, max_steps=6, per_device_train_batch_size=2, gradient_accumulation_steps=2,
                per_device_eval_batch_size=2, learning_rate=2e-4, lr_scheduler_type="cosine", warmup_steps=1,
                max_grad_norm=0.3, logging_steps=1, save_steps=2, eval_strategy="steps", eval_steps=2, seed=42,
                use_cpu=True, report_to=[], disable_tqdm=True, bf16=False, gradient_checkpointing=False,
                dataloader_pin_memory=False, max_length=64, include_num_input_tokens_seen="no",
            ),
        )  # fmt: skip
        trainer.train()
        trainer.save_state()
        trainer.save_model()
        root = Path(output)
        for name, source in (("checkpoint-4", root / "checkpoint-4"), ("final", root)):
            state = json.loads((source / "trainer_state.json").read_text())
            text = json.dumps(_without_clock(state), indent=2, sort_keys=True)
            (folder / name).mkdir(parents=True)
            (folder / name / "trainer_state.json").write_text(text + "\n")
        listing = sorted(str(file.relative_to(root)) for file in root.rglob("*") if file.is_file())
        steps = [entry for entry in trainer.state.log_history if "loss" in entry]
        write_json(
            folder / "golden.json",
            {
                "versions": versions(),
                "base": base.name,
                "files": listing,
                "log_keys": sorted({key for entry in trainer.state.log_history for key in entry}),
                "logged_steps": len(steps),
            },
        )
