#!/usr/bin/env python3
"""Learns the weights of the hints from written messages: crates/eyas-care/weights.toml.

    cargo build -p eyas-care --example hints
    python tools/care/fit_hints.py target/debug/examples/hints

Needs numpy, scipy and scikit-learn. The messages are the sets in crates/eyas-care/tests (without those that are held out),
the files beside this program and the questions of the built-in conversations. A multinomial logistic regression on the hints
that the detector itself finds, the turns of a person together; each message is scaled to length one or less, and a hint
that many messages hold weighs less to begin with. What is too small to matter is dropped and the rest fitted again.

With --check the whole detector is measured instead, leaving out one writer at a time: each set is judged by weights that
were learned from all others. Rebuild the program before, where lexicons have changed.
"""

import json
import os
import subprocess
import sys
import tempfile
import tomllib
from collections import Counter
from pathlib import Path

import numpy as np
from scipy.sparse import csr_matrix
from sklearn.linear_model import LogisticRegression

ROOT = Path(__file__).resolve().parents[2]
CARE = ROOT / "crates/eyas-care"
SETS = ["messages", "fresh", "fresh_2", "set_a", "set_b", "set_c", "set_d", "set_g", "set_h", "set_i", "set_j"]
OTHERS = [name for name in SETS if name.startswith("set_")]  # by writers other than the rules' author
# Written for learning, beside this program: concerns and the like, ordinary talk of people who seek help, concerns said in
# passing.
WRITTEN = ["written", "ordinary", "passing"]
QUESTIONS = "questions"
FOLDS = 6  # the questions are left out by sixths
# Questions elsewhere in those conversations at which help is shown rightly.
RIGHTLY = ["never hits me", "cuts herself", "self-harm", "killing himself", "shouldn't exist", "pushing someone", "hate myself"]
# Order of precedence, as in the crate.
CATEGORIES = ["overdose", "suicide", "violence", "abuse", "self_harm", "third_person"]
STRENGTH = 20.0  # inverse of the L2 penalty
SEEN = 2  # a hint counts from so many messages on
RARE = 8.0  # a hint in a share of exp(-RARE) of the messages or less is scaled by one, more frequent ones by less,
STEEP = 1.5  # to this power
FEWEST = 10  # fewer hints are weighed as if there were so many, as in the crate
SMALL = 1.2  # hints whose weights are all below are dropped


def read(path):
    """The messages of a file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def messages():
    """All messages to learn from, each with the set it is of."""
    sets = {name: read(CARE / f"tests/{name}.jsonl") for name in SETS}
    sets |= {name: read(ROOT / f"tools/care/{name}.jsonl") for name in WRITTEN}
    sets[QUESTIONS] = questions()
    return [dict(row, set=name) for name, rows in sets.items() for row in rows]


def questions():
    """The questions of the built-in conversations that are not about a crisis, as harmless talk."""
    rows = []
    for conversation in read(ROOT / "data/mental-health.jsonl"):
        question = conversation["text"].split("<HUMAN>:")[1].split("<ASSISTANT>:")[0].strip()
        if conversation["topic"] != "crisis" and not any(part in question for part in RIGHTLY):
            rows.append({"class": "benign", "lang": "en", "expect": "none", "turns": [question]})
    return rows


def ask(program, rows, file=None):
    """What the crate's own example finds in each message: its hints and the concern."""
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    env = dict(os.environ, **({"EYAS_CARE_FILE": str(file)} if file else {}))
    done = subprocess.run([program], input=lines, capture_output=True, text=True, check=True, env=env)
    return [json.loads(line) for line in done.stdout.splitlines()]


def matrix(found, scales):
    """One row a message, of length one or less."""
    at = {hint: column for column, hint in enumerate(scales)}
    rows, columns, values = [], [], []
    for row, hints in enumerate(found):
        here = [hint for hint in hints if hint in scales]
        rows += [row] * len(here)
        columns += [at[hint] for hint in here]
        values += [scales[hint] / np.sqrt(max(FEWEST, len(here))) for hint in here]
    return csr_matrix((values, (rows, columns)), shape=(len(found), len(scales)))


def fit(found, wanted):
    """The weights of the hints that matter, and the biases, of each category against "none"."""
    seen = Counter(hint for hints in found for hint in hints)
    enough = sorted(hint for hint, n in seen.items() if n >= SEEN)
    scales = {hint: min(1.0, np.log(len(found) / seen[hint]) / RARE) ** STEEP for hint in enough}
    for again in (True, False):
        model = LogisticRegression(C=STRENGTH, max_iter=5000).fit(matrix(found, scales), wanted)
        order = list(model.classes_)
        at, none = [order.index(category) for category in CATEGORIES], order.index("none")
        weights = (model.coef_[at] - model.coef_[none]).T * np.array(list(scales.values()))[:, None]
        named = dict(zip(scales, weights))
        if again:
            scales = {hint: scale for hint, scale in scales.items() if np.abs(named[hint]).max() >= SMALL}
    return named, model.intercept_[at] - model.intercept_[none]


def row(values):
    """Weights as TOML."""
    return "[" + ", ".join(f"{value + 0.0:.1f}".replace("-0.0", "0.0") for value in values) + "]"


def table(weights, bias):
    """The file of the weights, the strongest first."""
    lines = [
        "# The weights of the hints (see hints.toml), learned by tools/care/fit_hints.py. Above zero a hint speaks for the",
        "# category, below zero against it. The strongest come first. @ marks a subject, _ one or two words between.",
        "[hints]",
        f"categories = {json.dumps(CATEGORIES)}",
        f"bias = {row(bias)}",
        "",
        "[hints.weights]",
    ]
    order = sorted(weights, key=lambda name: (-weights[name].max(), name))
    return lines + [f"{json.dumps(name, ensure_ascii=False)} = {row(weights[name])}" for name in order]


def check(program, rows, hints):
    """Recall and false alarms by class, each message judged by weights that were learned without its writer."""
    builtin = tomllib.loads((CARE / "weights.toml").read_text())["hints"]["weights"]
    nth = Counter()
    fold_of = []
    for message in rows:
        nth[message["set"]] += 1
        fold_of.append(nth[message["set"]] % FOLDS if message["set"] == QUESTIONS else None)
    figures = {}
    for fold, name in enumerate(OTHERS):
        left_out = [m["set"] == name or f == fold for m, f in zip(rows, fold_of)]
        train = [i for i, out in enumerate(left_out) if not out]
        weights, bias = fit([hints[i] for i in train], [rows[i]["expect"] for i in train])
        off = {hint: np.zeros(len(CATEGORIES)) for hint in builtin}
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "weights.toml"
            file.write_text("\n".join(table(off | weights, bias)) + "\n")
            test = [message for message, out in zip(rows, left_out) if out]
            for message, answer in zip(test, ask(program, test, file)):
                kind = QUESTIONS if message["set"] == QUESTIONS else message["class"]
                kind += " (none)" if message["expect"] == "none" else ""
                alarm = answer["concern"] is not None
                for key in (message["set"], "all"):
                    entry = figures.setdefault((key, message["lang"]), {}).setdefault(kind, [0, 0])
                    entry[0] += alarm
                    entry[1] += 1
                if alarm == (message["expect"] == "none") and "--show" in sys.argv:
                    print("false alarm" if alarm else "missed", message["set"], message["class"], message["turns"])
    for (name, language), kinds in sorted(figures.items()):
        print(name, language, ", ".join(f"{kind} {a}/{b}" for kind, (a, b) in sorted(kinds.items())))


def main():
    program = sys.argv[1]
    rows = messages()
    hints = [answer["hints"] for answer in ask(program, rows)]
    if "--check" in sys.argv:
        check(program, rows, hints)
        return
    weights, bias = fit(hints, [message["expect"] for message in rows])
    (CARE / "weights.toml").write_text("\n".join(table(weights, bias)) + "\n")
    print(f"{len(weights)} hints from {len(rows)} messages")


if __name__ == "__main__":
    main()
