"""Makes the golden files of crates/eyas-model/tests/fixtures.

    python tools/golden_models.py [--only CASE ...]

    pip install torch transformers peft bitsandbytes accelerate trl datasets

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
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "PYTHONWARNINGS": "ignore",
}
if any(os.environ.get(key) != value for key, value in FIXED.items()):
    os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | FIXED)

import argparse
import shutil
import tempfile
from pathlib import Path

import torch

from golden.adapters import write_case
from golden.bases import bases, load_base, write_base, write_old_falcon, write_quantised
from golden.generation import write_greedy, write_processors
from golden.quantised import write_quantised_linears
from golden.schedule import write_schedule
from golden.trainer import write_trainer
from golden.variants import VARIANTS, write_variant

FIXTURES = Path(__file__).resolve().parent.parent / "crates/eyas-model/tests/fixtures"


def cases() -> dict:
    """Every fixture by name: a folder, or a file where the name has a suffix. Later ones read earlier ones."""
    known = {base.name: base for base in bases()}
    made = {}
    for base in known.values():

        def write(path: Path, base=base) -> None:
            write_base(base, path)
            write_case(base, path)
            write_quantised_linears(base, path)

        made[base.name] = write
    made["falcon-refinedweb"] = lambda path: write_old_falcon(FIXTURES / "falcon-7b", path)
    made["mistral-bnb-nf4"] = lambda path: write_quantised(known["mistral"], FIXTURES / "mistral", path)
    for variant in VARIANTS:
        made[variant.name] = lambda path, variant=variant: write_variant(
            variant, known[variant.base], FIXTURES / variant.base, path
        )
    llama2 = known["llama2"]
    made["trainer"] = lambda path: write_trainer(llama2, FIXTURES / "llama2", path)
    made["generation.json"] = lambda path: write_processors(load_base(llama2, FIXTURES / "llama2"), path)
    made["greedy.json"] = lambda path: write_greedy(list(known.values()), FIXTURES, path)
    made["schedule.json"] = write_schedule
    return made


def main() -> None:
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    known = cases()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=known, metavar="CASE", help="make these cases only")
    for name in parser.parse_args().only or known:
        with tempfile.TemporaryDirectory() as temporary:
            made, target = Path(temporary) / name, FIXTURES / name
            known[name](made)
            if made.is_dir():
                shutil.rmtree(target, ignore_errors=True)
                shutil.copytree(made, target)
            else:
                shutil.copyfile(made, target)
        files = [target] if target.is_file() else [file for file in target.rglob("*") if file.is_file()]
        for file in files:
            file.chmod(0o644)  # safetensors writes files for their owner only
        print(f"{name:22} {sum(file.stat().st_size for file in files) / 1024:8.0f} KiB", flush=True)


if __name__ == "__main__":
    main()
