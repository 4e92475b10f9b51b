#!/usr/bin/env python3
"""Measures the detector on real questions: those of counsel-chat, a public data set of a counselling site.

    cargo build -p eyas-care --example hints
    python tools/care/measure_questions.py target/debug/examples/hints counsel-chat.jsonl

The file has an object a line with `question_id` and `prompt` (title and text of a question, a line break between); several
answers to one question count once. Nothing of it is in this project or is learned from. counsel_chat_labels.json says by
question what a crisis worker would do, in the judgement of one reader who did not know the detector: "none" (would not
ask), "maybe" (two would disagree; left out of the rates), or the category of the concern. --show prints what was missed
and what alarmed for nothing. Needs Python only.
"""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

LABELS = json.loads((Path(__file__).parent / "counsel_chat_labels.json").read_text())


def main():
    program, file = sys.argv[1:3]
    questions = {}
    for line in Path(file).read_text().splitlines():
        row = json.loads(line)
        questions.setdefault(str(row["question_id"]), row["prompt"])
    known = [(LABELS[key], text) for key, text in questions.items() if key in LABELS]
    if not known:
        sys.exit(f"{file}: no question_id is one of counsel_chat_labels.json")
    lines = "".join(json.dumps({"turns": [text]}) + "\n" for _, text in known)
    done = subprocess.run([program], input=lines, capture_output=True, text=True, check=True)
    concerns = [json.loads(line)["concern"] for line in done.stdout.splitlines()]
    asked, alarms = Counter(), Counter()
    for (label, text), concern in zip(known, concerns):
        asked[label] += 1
        alarms[label] += concern is not None
        if "--show" in sys.argv and label != "maybe" and (concern is None) == (label != "none"):
            print("missed" if concern is None else "false alarm", label, concern, " ".join(text.split()))
    for label in sorted(asked):
        print(f"{label}: help shown for {alarms[label]} of {asked[label]}")


if __name__ == "__main__":
    main()
