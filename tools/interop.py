"""Adapters to and from PEFT on every golden base: what eyas trains, PEFT loads with the same logits; what PEFT writes,
eyas loads with the same logits.

    python tools/interop.py --program target/debug/examples/interop

Needs the packages of tools/requirements.txt, and `cargo build --example interop -p eyas-train`.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FIXTURES = ROOT / "crates/eyas-model/tests/fixtures"
BASES = ["llama3", "mistral", "qwen2", "qwen3", "smollm2", "falcon-7b", "falcon-40b", "falcon-rw"]


def run(*command) -> None:
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if result.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}\nexit code {result.returncode}\n{result.stdout}{result.stderr}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--program", type=Path, required=True)
    program = parser.parse_args().program.resolve()
    peft = [sys.executable, ROOT / "tools/interop_peft.py"]
    for base in BASES:
        with tempfile.TemporaryDirectory() as scratch:
            folder, ours, theirs = FIXTURES / base, Path(scratch, "ours"), Path(scratch, "theirs")
            logits = Path(scratch, "logits.safetensors")
            run(program, "train", folder, ours, logits)
            run(*peft, "check", "--base", folder, "--adapter", ours, "--logits", logits, "--tolerance", "1e-5")
            run(*peft, "make", "--base", folder, "--adapter", theirs, "--logits", logits)
            run(program, "check", folder, theirs, logits)
        print(f"{base}: PEFT loads ours, we load PEFT's", flush=True)
    print(f"{2 * len(BASES)} passed, 0 failed")


if __name__ == "__main__":
    main()
