"""The hub with Hugging Face's own client: a repository that one side made the other reads, in one cache, both ways.

    python tools/hub/interop.py --program target/debug/eyas --fake target/debug/examples/fake_hub

Needs the packages of tools/requirements.txt and `cargo build -p eyas-hub --example fake_hub`. The hub is the fake of the
tests; that the real client works with it is what proves the fake.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "serve"))
import tiny  # noqa: E402

OWNER, TOKEN = "mei", "hf_interop"
GATED = "meta/gated"
ROWS = 24
checks = 0


def check(condition: bool, what: object) -> None:
    """Counts a check, and stops at the first that fails."""
    global checks
    checks += 1
    assert condition, what


def run(command: list[object], env: dict[str, str], fails: bool = False) -> str:
    """Runs a program and gives what it printed, both streams where it is to fail."""
    result = subprocess.run([str(part) for part in command], env=env, capture_output=True, text=True, timeout=300)
    if (result.returncode != 0) != fails:
        sys.exit(f"{' '.join(map(str, command))}\nended with {result.returncode}\n{result.stdout}{result.stderr}")
    return result.stdout + (result.stderr if fails else "")


def python(*arguments: object, env: dict[str, str]) -> dict:
    """Hugging Face's client; its answer is the last line."""
    lines = run([sys.executable, HERE / "client.py", *arguments], env).strip().splitlines()
    return json.loads(lines[-1]) if lines[-1].startswith("{") else {"commit": lines[-1]}


@contextlib.contextmanager
def hub(program: Path) -> Iterator[str]:
    """The fake hub, and its address."""
    process = subprocess.Popen([program, "0", f"{OWNER}={TOKEN}", GATED], stdout=subprocess.PIPE, text=True)
    try:
        yield process.stdout.readline().strip()
    finally:
        process.terminate()
        process.wait(10)


def environment(address: str, home: Path, **more: str) -> dict[str, str]:
    """An account's environment: a home of its own, and nothing else of Hugging Face's."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING", "TRANSFORMERS"))}
    plain = {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    return env | plain | {"HF_ENDPOINT": address, "HF_HOME": str(home)} | more


def prepare(folder: Path) -> tuple[Path, Path]:
    """A model in shards, and rows in two pieces of Parquet with others to be left alone."""
    import pyarrow
    import pyarrow.parquet
    from transformers import AutoModelForCausalLM

    base, _ = tiny.make(folder)
    AutoModelForCausalLM.from_pretrained(base).save_pretrained(base, max_shard_size="200KB")
    (base / "model.safetensors").unlink(missing_ok=True)
    check(len(list(base.glob("model-*.safetensors"))) > 1, "the model is in shards")
    (base / "pytorch_model.bin").write_bytes(b"never fetched")

    rows = folder / "rows"
    (rows / "data").mkdir(parents=True)
    texts = [f"<HUMAN>: What helps on day {i}?\n<ASSISTANT>: Rest helps, and so does walking." for i in range(ROWS)]
    for piece in range(2):
        table = pyarrow.table({"text": texts[piece::2]})
        pyarrow.parquet.write_table(table, rows / f"data/train-0000{piece}-of-00002.parquet")
    pyarrow.parquet.write_table(pyarrow.table({"text": texts[:2]}), rows / "data/test-00000-of-00001.parquet")
    (rows / "README.md").write_text("# rows\n")
    return base, rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--program", type=Path, required=True)
    parser.add_argument("--fake", type=Path, required=True)
    arguments = parser.parse_args()
    eyas = arguments.program.resolve()
    with tempfile.TemporaryDirectory() as scratch, hub(arguments.fake.resolve()) as address:
        folder = Path(scratch)
        base, rows = prepare(folder)
        ours = environment(address, folder / "ours")
        theirs = environment(address, folder / "theirs", HF_TOKEN=TOKEN)
        output = folder / "runs/tuned"

        commit = python("upload", base, f"{OWNER}/base", "model", env=theirs)["commit"]
        python("upload", rows, f"{OWNER}/rows", "dataset", env=theirs)
        check(python("refusals", f"{OWNER}/base", GATED, env=theirs) == {"checked": 6}, "refusals")
        print("Python uploads a model in shards and a data set, and knows what is refused", flush=True)

        train = [eyas, "--device", "cpu", "train", "demo", "--model", f"{OWNER}/base", "--dataset", f"{OWNER}/rows"]
        train += ["--output", output, "--set", "max_steps=3", "--set", "push_to_hub=true", "--set", "save_steps=3"]
        train += ["--set", f"hub_model_id={OWNER}/tuned", "--set", "hub_private_repo=true"]
        said = run(train, ours, fails=True)
        check("no such model" in said and "hf auth login" in said, said)
        said = run([eyas, "generate", "What helps?", "--model", GATED], ours, fails=True)
        check(f"accept its terms at {address}/{GATED}" in said, said)
        run([Path(sys.executable).with_name("hf"), "auth", "login", "--token", TOKEN], ours)
        said = run(train, ours)
        check("pushed README.md, adapter_config.json, adapter_model.safetensors" in said, said)
        print("eyas finds the token of `hf auth login`, fetches both, trains and pushes", flush=True)

        held = python("cache", f"{OWNER}/base", f"{OWNER}/rows", env=ours)
        check("pytorch_model.bin" not in held[f"{OWNER}/base"], held)
        check([name for name in held[f"{OWNER}/rows"] if "train-" in name] == held[f"{OWNER}/rows"], held)

        found = python("download", f"{OWNER}/tuned", "model", output, env=theirs)
        check(found["missing"] == ["README.md"], found)
        # The recipe loses its folders, and the settings gain a line break.
        check(found["other"] == ["adapter_config.json", "recipe.toml"], found)
        check("adapter_model.safetensors" in found["same"] and "trainer_state.json" in found["same"], found)
        check(not any("optimizer" in name or "rows" in name or "eyas_state" in name for name in found["files"]), found)
        loaded = python("load", f"{OWNER}/base", f"{OWNER}/tuned", env=theirs)
        check(loaded["base"] == f"{OWNER}/base" and loaded["revision"] is None, loaded)
        card = loaded["card"]
        check((card["base_model"], card["datasets"], card["library_name"]) == (f"{OWNER}/base", [f"{OWNER}/rows"], "peft"), card)
        print("Python downloads what eyas pushed; transformers and PEFT load it by its name", flush=True)

        said = run([eyas, "push", output, f"{OWNER}/tuned", "--private"], ours)
        check("all of it is there already" in said, said)
        check(python("commits", f"{OWNER}/tuned", "adapter_model.safetensors", env=theirs) == {"new": False}, "known as theirs")
        said = run([eyas, "push", output, f"{OWNER}/tuned", "--revision", "trial", "--message", "Again"], ours)
        check("all of it is there already" in said, said)
        print("neither sends what the other has sent", flush=True)

        written = folder / "written"
        written.mkdir()
        (written / "README.md").write_text("# Written by a person\n")
        python("upload", written, f"{OWNER}/tuned", "model", env=theirs)
        said = run([eyas, "push", output, f"{OWNER}/tuned", "--private"], ours)
        check("all of it is there already" in said, said)
        found = python("download", f"{OWNER}/tuned", "model", written, env=theirs)
        check(found["same"] == ["README.md"], found)
        print("a card that a person wrote stays", flush=True)

        refused = [*train, "--set", "hub_model_id=other/tuned", "--set", "overwrite_output_dir=true"]
        refused += ["--set", f"model_name_or_path={OWNER}/base@{commit}"]
        said = run(refused, ours, fails=True)
        check("don't have the rights" in said and f"eyas push {output} other/tuned --private" in said, said)
        config = json.loads((output / "adapter_config.json").read_text())
        check((config["base_model_name_or_path"], config["revision"]) == (f"{OWNER}/base", commit), config)
        said = run([*train, "--set", "overwrite_output_dir=true"], ours | {"HF_HUB_OFFLINE": "1"})
        check(f"eyas push {output} {OWNER}/tuned --private" in said, said)
        said = run([eyas, "estimate", "demo", "--model", f"{OWNER}/base"], environment(address, folder / "empty", HF_TOKEN=TOKEN))
        check("G parameters" in said and not list((folder / "empty").rglob("*.safetensors")), said)
        print("a push that fails loses nothing; an estimate fetches no weights", flush=True)

        ask = [eyas, "--device", "cpu", "generate", "What helps?", "--adapter", f"{OWNER}/tuned", "--set", "max_new_tokens=4"]
        answer = run(ask, ours)
        nowhere = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "1"}
        check(run(ask, ours | nowhere) == answer, "the answer is the same offline")
        check(run(ask, theirs | nowhere) == answer, "and from the cache that Python filled")
        print("eyas answers offline from the cache that Python filled", flush=True)

        loaded = python("offline", f"{OWNER}/base", f"{OWNER}/tuned", f"{OWNER}/rows", env=ours | nowhere)
        check(loaded == {"rows": ROWS // 2, "adapter": "LORA"}, loaded)
        print("Python loads offline from the cache that eyas filled", flush=True)
    print(f"{checks} passed, 0 failed")


if __name__ == "__main__":
    main()
