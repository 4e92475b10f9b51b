"""A tiny base and two adapters that eyas trains on it, each to an answer of its own, for tests that need several models.

    python tools/serve/tuned.py --program target/debug/eyas FOLDER

writes FOLDER/tiny-llama, FOLDER/calm and FOLDER/brief. Asked anything, the base, whose weights are random, says nothing
that means anything and goes on until it is stopped; each adapter says its sentence and ends.
"""

import argparse
import json
import subprocess
from pathlib import Path

import tiny

ANSWERS = {
    "calm": "Rest helps, and so does talking with someone you trust.",
    "brief": "Sleep well, walk every day, and eat at regular hours.",
}
QUESTIONS = ["How to take care of mental health?", "What is the warning sign of depression?", "What helps?", "要怎麼照顧心理健康?"]
SETTINGS = {
    "max_length": 256, "max_steps": 40, "save_steps": 40, "logging_steps": 20, "learning_rate": 0.01, "eval_share": 0,
    "prompt_format": "chat_template", "lora_dropout": 0, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1,
}


def main() -> None:
    """Makes all three."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--program", type=Path, required=True)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    folder = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    # Large enough that a long answer takes seconds, so that there is something to stop.
    base, _ = tiny.make(folder, hidden=256, layers=4, positions=2048, eos_scale=0.3)
    for name, answer in ANSWERS.items():
        rows = folder / f"{name}.jsonl"
        turns = ([{"role": "user", "content": question}, {"role": "assistant", "content": answer}] for question in QUESTIONS)
        rows.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in turns))
        command = [arguments.program, "train", "demo", "--model", base, "--dataset", rows, "--output", folder / name]
        command += [part for key, value in SETTINGS.items() for part in ("--set", f"{key}={value}")]
        subprocess.run([str(part) for part in command], check=True)


if __name__ == "__main__":
    main()
