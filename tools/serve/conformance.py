"""Checks `eyas serve` with the programs that people use: the openai clients of Python and JavaScript, curl, lm-eval.

    python tools/serve/conformance.py --program target/release/eyas

Needs the packages of tools/serve/requirements.txt, npm and curl. The model is tiny and has random weights; lm-eval's
scores through the server are compared with those that it computes with transformers.
"""

import argparse
import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import openai
import tiny
from server import running

HERE = Path(__file__).parent
KEY = "conformance-key"
NPM_OPENAI = "openai@7.57.0"
checks = 0


def check(condition: bool, what: object) -> None:
    """Counts a check, and stops at the first that fails."""
    global checks
    checks += 1
    assert condition, what


def raises(kind: type[openai.APIStatusError], code: str, call) -> None:
    """Checks that a call is refused as OpenAI's client knows it."""
    try:
        call()
    except kind as error:
        check(error.code == code, error)
        return
    check(False, f"no {kind.__name__}")


def with_python(address: str) -> None:
    """The openai package."""
    client = openai.OpenAI(base_url=f"{address}/v1", api_key=KEY, max_retries=0)
    check([m.id for m in client.models.list()] == ["tiny-llama", "tuned"], "models")
    check(client.models.retrieve("tuned").object == "model", "model")
    ask = {"model": "tiny-llama", "messages": [{"role": "user", "content": "What helps?"}], "max_tokens": 12}

    whole = client.chat.completions.create(**ask, seed=5, temperature=0.8)
    again = client.chat.completions.create(**ask, seed=5, temperature=0.8)
    text = whole.choices[0].message.content
    check(text == again.choices[0].message.content, "equal seeds give equal answers")
    check(whole.choices[0].finish_reason in ("stop", "length"), whole)
    check(whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens, whole.usage)
    tuned = client.chat.completions.create(**(ask | {"model": "tuned"}), seed=5, temperature=0.8)
    check(tuned.choices[0].message.content != text, "the adapter answers differently")

    pieces, usage = [], None
    options = {"include_usage": True}
    for chunk in client.chat.completions.create(**ask, seed=5, temperature=0.8, stream=True, stream_options=options):
        usage = chunk.usage or usage
        pieces += [c.delta.content or "" for c in chunk.choices]
    check("".join(pieces) == text, (pieces, text))
    check(usage == whole.usage, usage)

    several = client.chat.completions.create(**ask, n=3, seed=1)
    check([c.index for c in several.choices] == [0, 1, 2], several)
    check(len({c.message.content for c in several.choices}) > 1, "answers to one prompt differ")

    scored = client.completions.create(model="tiny-llama", prompt="Rest helps", max_tokens=2, logprobs=3, echo=True, temperature=0)
    found = scored.choices[0].logprobs
    check(found.token_logprobs[0] is None and all(p <= 0 for p in found.token_logprobs[1:]), found)
    check("".join(found.tokens[:-2]) == "Rest helps", found.tokens)
    check(len(found.tokens) == len(found.text_offset) == len(found.top_logprobs), found)
    greedy = max(found.top_logprobs[-1], key=found.top_logprobs[-1].get)
    check(greedy == found.tokens[-1], "temperature 0 takes the likeliest")
    stop = scored.choices[0].text[-1:]
    stopped = client.completions.create(model="tiny-llama", prompt="Rest helps", max_tokens=20, temperature=0, stop=[stop])
    check(stop not in stopped.choices[0].text, stopped)

    with client.chat.completions.create(**(ask | {"max_tokens": 300}), stream=True, extra_body={"ignore_eos": True}) as stream:
        next(iter(stream))
    raises(openai.NotFoundError, "model_not_found", lambda: client.chat.completions.create(**(ask | {"model": "gpt-4"})))
    raises(openai.BadRequestError, "invalid_value", lambda: client.chat.completions.create(**ask, temperature=-1))
    raises(openai.BadRequestError, "context_length_exceeded", lambda: client.chat.completions.create(**(ask | {"max_tokens": 99999})))
    stranger = client.with_options(api_key="wrong")
    raises(openai.AuthenticationError, "invalid_api_key", lambda: stranger.chat.completions.create(**ask))
    care = client.chat.completions.create(model="tuned", messages=[{"role": "user", "content": "I want to kill myself"}],
                                          extra_body={"eyas": {"region": "US"}})
    check("988" in care.choices[0].message.content and care.eyas["care"]["region"] == "US", care)


def with_javascript(address: str, folder: Path) -> None:
    """The openai package of npm."""
    shutil.copy(HERE / "conformance.mjs", folder)
    (folder / "package.json").write_text('{"private": true}')
    subprocess.run(["npm", "install", "--silent", "--no-audit", "--no-fund", NPM_OPENAI], cwd=folder, check=True)
    subprocess.run(["node", "conformance.mjs", address, KEY], cwd=folder, check=True)


def curl(address: str, path: str, *options: str) -> tuple[int, str]:
    """Calls curl; gives status and body."""
    command = ["curl", "-sS", "-m", "60", "-o", "-", "-w", "\n%{http_code}", "-H", f"Authorization: Bearer {KEY}"]
    done = subprocess.run([*command, *options, address + path], capture_output=True, text=True, check=True)
    body, _, status = done.stdout.rpartition("\n")
    return int(status), body


def with_curl(address: str, folder: Path) -> None:
    """curl, which shows what is really sent."""
    json_type = ("-H", "Content-Type: application/json")
    ask = json.dumps({"model": "tuned", "messages": [{"role": "user", "content": "Hi"}], "stream": True, "max_tokens": 4})
    status, body = curl(address, "/v1/chat/completions", "-N", *json_type, "-d", ask)
    lines = [line for line in body.splitlines() if line]
    check(status == 200 and all(line.startswith("data: ") for line in lines) and lines[-1] == "data: [DONE]", body)
    check([json.loads(line[6:])["object"] for line in lines[:-1]].count("chat.completion.chunk") == len(lines) - 1, body)
    check(curl(address, "/health")[0] == 200, "health")
    check("eyas_requests_total" in curl(address, "/metrics")[1], "metrics")
    check(curl(address, "/v1/chat/completions", "-d", ask)[0] == 415, "a form")
    check(curl(address, "/v1/chat/completions")[0] == 405, "GET")
    check(curl(address, "/v1/nowhere")[0] == 404, "nowhere")
    large = folder / "large.json"
    large.write_bytes(b" " * (40 << 20))
    status, body = curl(address, "/v1/chat/completions", *json_type, "--data-binary", f"@{large}")
    check(status == 413 and json.loads(body)["error"]["code"] == "body_too_large", (status, body))
    status, body = curl(address, "/v1/chat/completions", *json_type, "-d", "{")
    check(status == 400 and json.loads(body)["error"]["code"] == "invalid_json", body)


def tasks(folder: Path) -> list[str]:
    """Two small tasks of our own: choices to score, and questions to answer."""
    rows = [
        {"question": "What helps against stress?", "choices": ["walking every day", "never sleeping", "說說話"], "answer": 0},
        {"question": "A warning sign of depression is", "choices": ["a loss of interest", "a loud radio"], "answer": 0},
        {"question": "壓力大的時候", "choices": ["可以先慢慢呼吸", "不要睡"], "answer": 0},
        {"question": "Who can help?", "choices": ["someone you trust", "nobody at all", "x"], "answer": 0},
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = f"dataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {folder}/rows.jsonl\ntest_split: test\n"
    (folder / "choices.yaml").write_text(
        "task: eyas_choices\noutput_type: multiple_choice\n" + common
        + 'doc_to_text: "Question: {{question}}\\nAnswer:"\ndoc_to_choice: "{{choices}}"\ndoc_to_target: answer\n'
        "metric_list:\n  - metric: acc\n"
    )
    (folder / "answers.yaml").write_text(
        "task: eyas_answers\noutput_type: generate_until\n" + common
        + 'doc_to_text: "Question: {{question}}\\nAnswer:"\ndoc_to_target: "{{choices[0]}}"\n'
        'generation_kwargs:\n  until: ["\\n"]\n  max_gen_toks: 8\n  do_sample: false\nmetric_list:\n  - metric: exact_match\n'
    )
    return ["eyas_choices", "eyas_answers"]


def with_lm_eval(address: str, base: Path, folder: Path) -> None:
    """lm-eval through the server, and with transformers."""
    os.environ["OPENAI_API_KEY"] = KEY
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(folder / "cache"), "TOKENIZERS_PARALLELISM": "false"}
    import lm_eval
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(folder), include_defaults=False)
    names = tasks(folder)
    manager = TaskManager(include_path=str(folder), include_defaults=False)

    def scores(model: str, arguments: dict) -> dict:
        found = lm_eval.simple_evaluate(model=model, model_args=arguments, tasks=names, task_manager=manager,
                                        bootstrap_iters=0, batch_size=2)
        return {task: [sample["resps"] for sample in sorted(rows, key=lambda row: row["doc_id"])]
                for task, rows in found["samples"].items()}

    expected = scores("hf", {"pretrained": str(base), "dtype": "float32", "device": "cpu"})
    for tokenized in (True, False):
        found = scores("local-completions", {
            "model": "tiny-llama", "base_url": f"{address}/v1/completions", "tokenizer": str(base),
            "tokenizer_backend": "huggingface", "num_concurrent": 1, "max_retries": 1, "tokenized_requests": tokenized,
        })
        worst = 0.0
        for ours, theirs in zip(found["eyas_choices"], expected["eyas_choices"], strict=True):
            for [(score, is_greedy)], [(peer_score, peer_greedy)] in zip(ours, theirs, strict=True):
                worst = max(worst, abs(float(score) - float(peer_score)))
                check(is_greedy == peer_greedy, (ours, theirs))
        check(worst < 1e-3, worst)
        check(found["eyas_answers"] == expected["eyas_answers"], (found["eyas_answers"], expected["eyas_answers"]))
        print(f"  tokens {'by the client' if tokenized else 'by the server'}: scores differ by {worst:.1e} at most")


def main() -> None:
    """All of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--program", type=Path, default="target/release/eyas")
    program = parser.parse_args().program.resolve()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        base, adapter = tiny.make(folder)
        command = [str(program), "serve", "--model", str(base), "--adapter", f"tuned={adapter}", "--port", "0",
                   "--set", "load_in_4bit=false", "--set", "bf16=false", "--set", "bnb_4bit_compute_dtype=float32", "--max-concurrent", "4"]
        with running(command, os.environ | {"EYAS_API_KEY": KEY}) as (address, _):
            for name, part in [
                ("openai for Python", lambda: with_python(address)),
                ("openai for JavaScript", lambda: with_javascript(address, folder)),
                ("curl", lambda: with_curl(address, folder)),
                ("lm-eval", lambda: with_lm_eval(address, base, folder)),
            ]:
                start = time.monotonic()
                part()
                print(f"{name}: good ({time.monotonic() - start:.0f} s)", flush=True)
    print(f"{checks} checks passed, and those of conformance.mjs")


if __name__ == "__main__":
    main()
