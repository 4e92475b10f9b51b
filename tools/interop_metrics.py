"""Metrics that eyas writes, read by the programs that they are for: TensorBoard's own reader, and `wandb sync`, which
uploads the offline run to a server that this script plays.

    python tools/interop_metrics.py --program target/debug/examples/interop

The run ends after its fifth step with its last checkpoint after the fourth, as if it had been killed, and goes on from
there to the end, and once more from the end: both readers must have every step once, with the values of `trainer_state.json`.

Needs the packages of tools/requirements.txt, and `cargo build --example interop -p eyas-train`.
"""

import argparse
import http.server
import json
import os
import struct
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

ROOT = Path(__file__).resolve().parent.parent
BASE = ROOT / "crates/eyas-model/tests/fixtures/llama2"

# What ends a run is in wandb's summary, not a point of its curves.
SINGLE = {"train_runtime", "train_samples_per_second", "train_steps_per_second", "train_loss", "total_flos"}


def f32(value: float) -> float:
    return struct.unpack("f", struct.pack("f", value))[0]


def tag(name: str) -> str:
    """A metric's name as transformers' callbacks have it."""
    return f"eval/{name.removeprefix('eval_')}" if name.startswith("eval_") else f"train/{name}"


def check_tensorboard(output: Path, log: list[dict]) -> None:
    """The folder holds exactly the log, once."""
    (folder,) = (output / "runs").iterdir()
    assert len(list(folder.iterdir())) == 3, "each process writes a file of its own into the same folder"
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    events.Reload()
    expected = {}
    for entry in log:
        for name in entry.keys() - {"step"}:
            expected.setdefault(tag(name), []).append((entry["step"], f32(entry[name])))
    assert set(events.Tags()["scalars"]) == set(expected), (events.Tags(), sorted(expected))
    for name, values in expected.items():
        found = [(point.step, point.value) for point in events.Scalars(name)]
        assert found == values, f"{name}: {found}, the log has {values}"
    (args,) = events.Tensors("args/text_summary")
    assert b'"run_name": "interop"' in args.tensor_proto.string_val[0]
    assert events.SummaryMetadata("args/text_summary").plugin_data.plugin_name == "text"


class Received:
    """What `wandb sync` uploaded."""

    def __init__(self):
        self.run, self.history, self.summary, self.exit = {}, {}, {}, None

    def graphql(self, request: dict) -> dict:
        variables = request.get("variables") or {}
        if "UpsertBucket" in request["query"]:
            self.run.update({key: value for key, value in variables.items() if value is not None})
        bucket = {
            "id": "1", "name": self.run.get("name"), "displayName": self.run.get("displayName"), "historyLineCount": 0,
            "project": {"id": "1", "name": self.run.get("project"), "entity": {"id": "1", "name": "somebody"}},
        }  # fmt: skip
        return {
            "viewer": {"id": "1", "username": "somebody", "entity": "somebody", "flags": "{}", "teams": {"edges": []}},
            "serverInfo": {"features": [], "cliVersionInfo": {"max_cli_version": "1.0.0"}},
            "upsertBucket": {"bucket": bucket, "inserted": True},
            "createRunFiles": {"runID": "1", "uploadHeaders": [], "files": []},
        }

    def file_stream(self, request: dict) -> None:
        files = request.get("files", {})
        if history := files.get("wandb-history.jsonl"):
            for place, line in enumerate(history["content"], history["offset"]):
                self.history[place] = json.loads(line)
        if summary := files.get("wandb-summary.json"):
            self.summary = json.loads(summary["content"][-1])
        if request.get("complete"):
            self.exit = request["exitcode"]


def serve(received: Received) -> http.server.ThreadingHTTPServer:
    """As much of wandb's server as an upload needs."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def do_POST(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            answer = {}
            if self.path.endswith("/graphql"):
                answer = {"data": received.graphql(json.loads(body))}
            elif self.path.endswith("/file_stream"):
                received.file_stream(json.loads(body))
            answer = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def check_wandb(output: Path, log: list[dict]) -> None:
    """The upload of the one offline run holds exactly the log, once."""
    (folder,) = (output / "wandb").glob("offline-run-*")
    received = Received()
    server = serve(received)
    environment = os.environ | {
        "WANDB_BASE_URL": f"http://127.0.0.1:{server.server_port}",
        "WANDB_API_KEY": "0" * 40,
        "WANDB_ERROR_REPORTING": "false",
        "WANDB_CONFIG_DIR": str(output / "config"),
        "WANDB_CACHE_DIR": str(output / "cache"),
    }
    wandb = Path(sys.executable).with_name("wandb")
    command = [wandb, "sync", "--yes", folder]
    # It leaves logs where it is started.
    result = subprocess.run(command, env=environment, cwd=output, capture_output=True, text=True)
    server.shutdown()
    assert result.returncode == 0, result.stdout + result.stderr

    assert received.run["project"] == "eyas" and received.run["name"] == folder.name.rsplit("-", 1)[1]
    config = json.loads(received.run["config"])
    assert config["learning_rate"]["value"] == 2e-4 and config["run_name"]["value"] == "interop", config
    points = [received.history[place] for place in sorted(received.history)]
    assert [point["_step"] for point in points] == list(range(len(points))) and len(points) == len(log)
    for point, entry in zip(points, log, strict=True):
        expected = {tag(name): value for name, value in entry.items() if name not in SINGLE | {"step"}}
        found = {name: value for name, value in point.items() if not name.startswith("_")}
        assert found == expected | {"train/global_step": entry["step"]}, (found, entry)
    assert received.summary["train_loss"] == log[-1]["train_loss"]
    assert received.exit == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--program", type=Path, required=True)
    program = parser.parse_args().program.resolve()
    with tempfile.TemporaryDirectory() as scratch:
        output = Path(scratch, "run")
        subprocess.run([program, "metrics", BASE, output], check=True)
        log = json.loads((output / "trainer_state.json").read_text())["log_history"]
        assert [entry["step"] for entry in log if "loss" in entry] == list(range(1, 9))
        for name, check in (("TensorBoard", check_tensorboard), ("wandb sync", check_wandb)):
            check(output, log)
            print(f"{name} reads our metrics", flush=True)
    print("2 passed, 0 failed")


if __name__ == "__main__":
    main()
