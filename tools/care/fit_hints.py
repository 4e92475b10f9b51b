#!/usr/bin/env python3
"""Learns the weights of the hints from written messages: crates/eyas-care/weights.toml.

    cargo build -p eyas-care --example hints
    python tools/care/fit_hints.py target/debug/examples/hints

Needs numpy, scipy and scikit-learn. The messages are the sets in crates/eyas-care/tests (without those that are held out),
tools/care/written.jsonl and the questions of the built-in conversations. A multinomial logistic regression on the hints that the detector itself finds, each message
scaled to length one; what is too small to matter is dropped and the rest fitted again. With --check the figures of an
eight-fold cross-validation are printed instead.
"""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
from scipy.sparse import csr_matrix
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold

ROOT = Path(__file__).resolve().parents[2]
CARE = ROOT / "crates/eyas-care"
SETS = ["messages", "fresh", "fresh_2", "set_a", "set_b"]
# Questions elsewhere in those conversations at which help is shown rightly.
RIGHTLY = ["never hits me", "cuts herself", "self-harm", "killing himself", "shouldn't exist", "pushing someone", "hate myself"]
# Order of precedence, as in the crate.
CATEGORIES = ["overdose", "suicide", "violence", "abuse", "self_harm", "third_person"]
STRENGTH = 4.0  # inverse of the L2 penalty
SEEN = 2  # a word counts from so many messages on,
PAIR_SEEN = 4  # a pair of subjects from so many
FEWEST = 10  # fewer hints are weighed as if there were so many, as in the crate
SMALL = 0.4  # weights below are dropped


def messages():
    """All messages to learn from."""
    paths = [CARE / f"tests/{name}.jsonl" for name in SETS] + [ROOT / "tools/care/written.jsonl"]
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()] + questions()


def questions():
    """The questions of the built-in conversations that are not about a crisis, as harmless talk."""
    rows = []
    for line in (ROOT / "data/mental-health.jsonl").read_text().splitlines():
        conversation = json.loads(line)
        question = conversation["text"].split("<HUMAN>:")[1].split("<ASSISTANT>:")[0].strip()
        if conversation["topic"] != "crisis" and not any(part in question for part in RIGHTLY):
            rows.append({"class": "benign", "lang": "en", "expect": "none", "turns": [question]})
    return rows


def hints_of(program, rows):
    """The hints of each message, found by the crate's own example."""
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    done = subprocess.run([program], input=lines, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def matrix(found, known):
    """One row a message, of length one or less."""
    rows, columns, values = [], [], []
    for row, hints in enumerate(found):
        here = [known[hint] for hint in hints if hint in known]
        rows += [row] * len(here)
        columns += here
        values += [1 / np.sqrt(max(FEWEST, len(here)))] * len(here)
    return csr_matrix((values, (rows, columns)), shape=(len(found), len(known)))


def fit(found, wanted, known=None):
    """The regression and the hints that it knows."""
    if known is None:
        seen = Counter(hint for hints in found for hint in hints)
        enough = (hint for hint, n in seen.items() if n >= (PAIR_SEEN if " + @" in hint else SEEN))
        known = {hint: at for at, hint in enumerate(sorted(enough))}
    model = LogisticRegression(C=STRENGTH, max_iter=5000).fit(matrix(found, known), wanted)
    return model, known


def against_none(model):
    """Weights and biases of each category, those of "none" taken away."""
    order = list(model.classes_)
    none = order.index("none")
    at = [order.index(category) for category in CATEGORIES]
    return model.coef_[at] - model.coef_[none], model.intercept_[at] - model.intercept_[none]


def row(values):
    """Weights as TOML."""
    return "[" + ", ".join(f"{value + 0.0:.1f}".replace("-0.0", "0.0") for value in values) + "]"


def check(found, rows, wanted):
    """Recall and false alarms where each message is judged by weights that never saw it."""
    chances = np.zeros(len(rows))
    for train, test in StratifiedKFold(8, shuffle=True, random_state=1).split(rows, [row["class"] for row in rows]):
        model, known = fit([found[i] for i in train], [wanted[i] for i in train])
        none = list(model.classes_).index("none")
        chances[test] = 1 - model.predict_proba(matrix([found[i] for i in test], known))[:, none]
    for threshold in (0.5, 0.6, 0.7, 0.8, 0.9):
        table = {}
        for row, chance in zip(rows, chances):
            key = row["class"] + (" (none)" if row["expect"] == "none" else "")
            entry = table.setdefault(key, [0, 0])
            entry[0] += int(chance >= threshold)
            entry[1] += 1
        print(threshold, ", ".join(f"{key} {a}/{b}" for key, (a, b) in sorted(table.items())))


def main():
    program = sys.argv[1]
    rows = messages()
    found = hints_of(program, rows)
    wanted = [row["expect"] for row in rows]
    if "--check" in sys.argv:
        check(found, rows, wanted)
        return
    model, known = fit(found, wanted)
    weights, _ = against_none(model)
    names = sorted(known, key=known.get)
    kept = [name for name in names if np.abs(weights[:, known[name]]).max() >= SMALL]
    model, known = fit(found, wanted, {name: at for at, name in enumerate(kept)})
    weights, bias = against_none(model)
    lines = [
        "# The weights of the hints (see hints.toml), learned by tools/care/fit_hints.py. Above zero a hint speaks for the",
        "# category, below zero against it. The strongest come first. Pairs of subjects are written @one + @other.",
        "[hints]",
        f"categories = {json.dumps(CATEGORIES)}",
        f"bias = {row(bias)}",
        "",
        "[hints.weights]",
    ]
    order = sorted(kept, key=lambda name: -weights[:, known[name]].max())
    lines += [f"{json.dumps(name, ensure_ascii=False)} = {row(weights[:, known[name]])}" for name in order]
    (CARE / "weights.toml").write_text("\n".join(lines) + "\n")
    print(f"{len(order)} hints from {len(rows)} messages")


if __name__ == "__main__":
    main()
