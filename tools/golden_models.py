"""Makes the golden files of crates/eyas-model/tests/fixtures.

    python tools/golden_models.py [--only CASE ...]

They are what the reference packages answer on tiny random models, in f32 on one thread of a CPU: torch 2.15.0,
transformers 5.23.0, peft 0.21.2, bitsandbytes 0.50.2, accelerate 1.15.0, trl 1.16.0, datasets 5.2.0,
safetensors 0.8.0, tokenizers 0.23.3. The same versions on the same kind of CPU give the same bytes.
The files are described in the README.md beside them.
"""

import os
import sys

FIXED = {
    "PYTHONHASHSEED": "0",  # PEFT writes target_modules in the order of a set
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}
if any(os.environ.get(key) != value for key, value in FIXED.items()):
    os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | FIXED)

import argparse
import shutil
import tempfile
from pathlib import Path

import torch

from golden.adapters import write_case
from golden.bases import bases, write_base, write_old_falcon

FIXTURES = Path(__file__).resolve().parent.parent / "crates/eyas-model/tests/fixtures"


def _base(base):
    def write(folder: Path) -> None:
        write_base(base, folder)
        write_case(base, folder)

    return write


def main() -> None:
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    cases = {base.name: _base(base) for base in bases()}
    cases["falcon-refinedweb"] = lambda folder: write_old_falcon(FIXTURES / "falcon-7b", folder)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=cases, help="make these cases only")
    chosen = parser.parse_args().only or list(cases)
    for name in chosen:
        with tempfile.TemporaryDirectory() as temporary:
            made = Path(temporary) / name
            cases[name](made)
            target = FIXTURES / name
            if target.is_dir():
                shutil.rmtree(target)
            shutil.copytree(made, target)
        size = sum(file.stat().st_size for file in target.rglob("*") if file.is_file())
        print(f"{name:20} {size / 1024:8.0f} KiB")


if __name__ == "__main__":
    main()
