#!/usr/bin/env python3
"""Makes the fixtures of crates/eyas-data/tests/golden by running the reference packages.

    python tools/golden_data.py

Needs transformers, tokenizers, sentencepiece, gguf, pyarrow, trl and jinja2. The tokenizers are tiny and trained here on
sentences written here; nothing is downloaded. Everything is seeded, so a second run writes the same bytes.

Two more files are for tests/real.rs and are not kept with the project: `--smollm2 FILE.gguf --out FILE.json` writes what the
library makes of a real GGUF file's own vocabulary, `--templates FILE.json` what transformers renders with published templates.
"""

import argparse
import io
import json
import shutil
from pathlib import Path

import gguf
import pyarrow as pa
import pyarrow.parquet as pq
import sentencepiece as spm
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast
from transformers.trainer_pt_utils import get_length_grouped_indices

GOLDEN = Path(__file__).resolve().parent.parent / "crates" / "eyas-data" / "tests" / "golden"

CORPUS = [
    "Worry is a habit of the mind, and habits can change slowly.",
    "Write down three things that went well today, however small they were.",
    "Sleep, food, movement and company: when one is missing, the others get harder.",
    "You don't have to carry it alone; telling one person is a start.",
    "Breathe in for 4 seconds, hold for 7, and breathe out for 8 seconds.",
    "Was fehlt dir? Ça va, même en été; año nuevo, naïve façade.",
    "Calls went from 12 to 1234 in 2023, or 15 a day.",
    "She's sure they've asked, he'd say we'll see, I'm here, you're there, it isn't theirs.",
    "def worry(x):\n    return x * 2\n\n\tif not x:\n\t\tpass\n",
] * 4

TEXTS = [
    "",
    " ",
    "   ",
    "\n",
    "\n\n \t\n",
    "Hello world",
    " Hello  world ",
    "Worry isn't a habit; it's the mind's.",
    "In 2023 there were 1234567 calls, or 15.5 a day.",
    "I'M HERE. YOU'RE THERE!",
    "naïve façade, año, Übergröße, ½ ² ٣",
    "日本語のテキスト and русский текст",
    "family: 👨‍👩‍👧 and 🤗!",
    "tabs\tand\n\nlines\r\nand   spaces   \n  end",
    "x = [1,2,3]; y != z // comment\n\treturn x==y",
    "a" * 50,
    "   leading and trailing   ",
    "half<|im_end|>way <|im_start|>user\nhi",
    "e\u0301 and \u00e9 differ before normalisation",
    "no\u00a0break\u2003spaces\u200band zero",
]

CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nBe kind<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

TEMPLATES = {
    "chatml": CHATML,
    "generation": """
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {{- '<|im_start|>assistant\n' }}
        {%- generation %}
        {{- message.content + '<|im_end|>' }}
        {%- endgeneration %}
        {{- '\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}
""",
    "generation_plain_tags": (
        "{% for m in messages %}{% if m.role == 'assistant' %}A: {% generation %}{{ m.content }}{{ eos_token }}"
        "{% endgeneration %}\n{% else %}Q: {{ m.content }}\n{% endif %}{% endfor %}{% if add_generation_prompt %}A: {% endif %}"
    ),
    "generation_scopes": """
{%- set last = namespace(role='') %}
{%- set word = 'outer' %}
{% for message in messages %}
  {% if message.role == 'assistant' %}
    {%+ generation +%}
    {%- set last.role = message.role %}
    {%- set word = 'inner' %}
 {{ word }} {{ message.content }}
    {% endgeneration %}
after {{ word }}
    {% generation -%}

   second
    {%+ endgeneration %}
  {% else %}
{{ last.role }}: {{ message.content }}
  {% endif %}
{% endfor %}
""",
    "whitespace": """
{% for message in messages %}
    {% if loop.index0 % 2 == 0 %}
even {{ message['content'] | trim }}
    {% else %}
odd {{ message['content'].strip().upper() }}
    {% endif %}
{% endfor %}
end
""",
    "features": """
{%- set ns = namespace(seen=0, system='') -%}
{%- if messages[0].role == 'system' -%}
  {%- set ns.system = messages[0].content -%}
  {%- set loop_messages = messages[1:] -%}
{%- else -%}
  {%- set loop_messages = messages -%}
{%- endif -%}
{{- bos_token -}}
{%- for message in loop_messages -%}
  {%- if (message.role == 'user') != (loop.index0 % 2 == 0) -%}
    {{- raise_exception('roles must alternate') -}}
  {%- endif -%}
  {%- if ns.seen >= 3 -%}{%- break -%}{%- endif -%}
  {%- set ns.seen = ns.seen + 1 -%}
  {%- if message.content.startswith('skip') -%}{%- continue -%}{%- endif -%}
  {%- if loop.first and ns.system -%}[{{ ns.system }}] {% endif -%}
  {{- message.role | capitalize }}={{ message.content.split(' ')[0] }}|{{ message.content | length }}|
  {{- {'role': message.role, 'text': message.content, 'n': [1, 2.5, none, true]} | tojson }}
  {{- ['<a & b>', "é'"] | tojson(indent=2) }}
  {{- message.content.replace('o', '0').rstrip('.') ~ eos_token }}
  {%- if 'tools' in message %}never{% endif %}
  {%- if tools is iterable and tools | length > 0 %}never{% endif %}
  {%- if message.content is string and tools is none and documents is not defined or tools is none %} ok{% endif %}
{%- endfor -%}
{%- macro close(word) -%}<{{ word }}>{%- endmacro -%}
{{- close('end') }}
""",
}

CHATS = {
    "one": [{"role": "user", "content": "What is stress?"}, {"role": "assistant", "content": "A response to pressure."}],
    "system": [
        {"role": "system", "content": "Answer briefly."},
        {"role": "user", "content": " Hello there. "},
        {"role": "assistant", "content": "Hello, you."},
        {"role": "user", "content": "skip this"},
        {"role": "assistant", "content": "ça va 🤗\nsecond line"},
    ],
    "question": [{"role": "user", "content": "Why do I worry?"}],
    "out_of_order": [{"role": "assistant", "content": "I speak first."}, {"role": "user", "content": "Oh."}],
}

SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n")


def byte_level(pre, normalizer=None, ignore_merges=False, vocab_size=420):
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = pre
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def split(pattern):
    from tokenizers import Regex

    return pre_tokenizers.Split(Regex(pattern), "isolated")


def bytes_only():
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def bytes_regex():
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def pre_tokenizer_kinds():
    """The published tokenizer.json of each family, without its vocabulary."""
    sequence = pre_tokenizers.Sequence
    return {
        "gpt-2": dict(pre=bytes_regex()),
        "smollm": dict(pre=sequence([pre_tokenizers.Digits(individual_digits=True), bytes_regex()])),
        "falcon": dict(
            pre=sequence(
                [
                    pre_tokenizers.Punctuation("contiguous"),
                    bytes_regex(),
                    pre_tokenizers.Digits(individual_digits=False),
                    split("[0-9][0-9][0-9]"),
                ]
            )
        ),
        "llama-bpe": dict(pre=sequence([split(CL100K % r"\p{N}{1,3}"), bytes_only()]), ignore_merges=True),
        "qwen2": dict(pre=sequence([split(CL100K % r"\p{N}"), bytes_only()]), normalizer=normalizers.NFC()),
    }


def gguf_file(path, keys):
    writer = gguf.GGUFWriter(str(path), "llama")
    for key, value in keys.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def encodings(tokenizer, add_special):
    cases = []
    for text in TEXTS:
        encoding = tokenizer.encode(text, add_special_tokens=add_special)
        starts = [0]
        for character in text:
            starts.append(starts[-1] + len(character.encode()))
        # Offsets of the Python package count characters; those of the library count bytes.
        offsets = [[starts[a], starts[b]] for a, b in encoding.offsets]
        cases.append(
            {
                "text": text,
                "ids": encoding.ids,
                "offsets": offsets,
                "decoded": tokenizer.decode(encoding.ids, skip_special_tokens=True),
                "decoded_whole": tokenizer.decode(encoding.ids, skip_special_tokens=False),
            }
        )
    return cases


def byte_level_ggufs():
    for name, kind in pre_tokenizer_kinds().items():
        tokenizer = byte_level(**kind)
        model = json.loads(tokenizer.to_str())["model"]
        tokens = [token for token, _ in sorted(model["vocab"].items(), key=lambda item: item[1])]
        merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
        if name == "llama-bpe":
            tokenizer.post_processor = processors.TemplateProcessing(
                single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
            )
        gguf_file(
            GOLDEN / "gguf" / f"{name}.gguf",
            {
                "tokenizer.ggml.model": "gpt2",
                "tokenizer.ggml.pre": name,
                "tokenizer.ggml.tokens": tokens,
                "tokenizer.ggml.merges": merges,
                "tokenizer.ggml.token_type": [3 if token in SPECIALS else 1 for token in tokens],
                "tokenizer.ggml.bos_token_id": 0,
                "tokenizer.ggml.eos_token_id": 2,
                "tokenizer.chat_template": CHATML,
            },
        )
        write(GOLDEN / "gguf" / f"{name}.json", encodings(tokenizer, name == "llama-bpe"))


def sentence_piece_gguf():
    buffer = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_writer=buffer,
        model_type="bpe",
        vocab_size=420,
        byte_fallback=True,
        character_coverage=0.98,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        num_threads=1,
        minloglevel=2,
    )
    model = spm.SentencePieceProcessor(model_proto=buffer.getvalue())
    ids = range(model.vocab_size())

    def kind(i):
        if model.is_unknown(i):
            return 2
        if model.is_control(i):
            return 3
        return 6 if model.is_byte(i) else 1

    gguf_file(
        GOLDEN / "gguf" / "llama.gguf",
        {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.pre": "default",
            "tokenizer.ggml.tokens": [model.id_to_piece(i) for i in ids],
            "tokenizer.ggml.scores": [float(model.get_score(i)) for i in ids],
            "tokenizer.ggml.token_type": [kind(i) for i in ids],
            "tokenizer.ggml.bos_token_id": 1,
            "tokenizer.ggml.eos_token_id": 2,
            "tokenizer.ggml.unknown_token_id": 0,
        },
    )
    # SentencePiece takes control tokens in a text for text, so no case holds one.
    cases = []
    for text in TEXTS:
        encoded = [1] + model.encode(text)
        cases.append({"text": text, "ids": encoded, "decoded": model.decode(encoded[1:])})
    write(GOLDEN / "gguf" / "llama.json", cases)


def folders():
    """Folders as transformers writes them, one a way to say which tokens are special, and what it makes of texts and chats."""
    base = byte_level(**pre_tokenizer_kinds()["smollm"])
    variants = {
        "chatml": dict(bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|im_end|>", unk_token="<|endoftext|>"),
        "bos": dict(bos_token="<|endoftext|>", eos_token="<|im_end|>", add_bos_token=True),
        "bos_eos": dict(bos_token="<|endoftext|>", eos_token="<|im_end|>", add_bos_token=True, add_eos_token=True),
        "pad_added": dict(eos_token="<|endoftext|>", pad_token=AddedToken("<pad>", special=True, normalized=False)),
        "trimmed_offsets": dict(bos_token="<|endoftext|>", eos_token="<|im_end|>"),
    }
    results = {}
    for name, special in variants.items():
        folder = GOLDEN / "folders" / name
        tokenizer = Tokenizer.from_str(base.to_str())
        if name == "trimmed_offsets":
            tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
        fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
        fast.chat_template = TEMPLATES["generation" if name == "chatml" else "generation_plain_tags"]
        fast.save_pretrained(folder)
        for extra in folder.iterdir():
            if extra.name not in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
                extra.unlink()
        fast = PreTrainedTokenizerFast.from_pretrained(folder)
        chats = {}
        for key in ("one", "system"):
            out = fast.apply_chat_template(
                CHATS[key], tokenize=True, return_dict=True, return_assistant_tokens_mask=True
            )
            chats[key] = {"ids": list(out["input_ids"]), "mask": list(out["assistant_masks"])}
        results[name] = {
            "bos": fast.bos_token_id,
            "eos": fast.eos_token_id,
            "pad": fast.pad_token_id,
            "unk": fast.unk_token_id,
            "size": len(fast),
            "texts": [{"text": text, "ids": fast(text)["input_ids"]} for text in TEXTS],
            "chats": chats,
        }
    (GOLDEN / "folders" / "chatml" / "generation_config.json").write_text('{"eos_token_id": [2, 0]}\n')
    (GOLDEN / "folders" / "bos" / "config.json").write_text('{"eos_token_id": 0}\n')
    write(GOLDEN / "folders" / "expected.json", results)


def templates():
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=byte_level(**pre_tokenizer_kinds()["smollm"]), bos_token="<|im_start|>", eos_token="<|im_end|>"
    )
    cases = []
    for name, source in TEMPLATES.items():
        for chat, messages in CHATS.items():
            for add_generation_prompt in (False, True):
                case = {"template": name, "chat": chat, "add_generation_prompt": add_generation_prompt}
                try:
                    case["rendered"] = tokenizer.apply_chat_template(
                        messages, chat_template=source, tokenize=False, add_generation_prompt=add_generation_prompt
                    )
                except Exception as error:
                    case["error"] = str(error)
                cases.append(case)
    write(GOLDEN / "templates.json", {"templates": TEMPLATES, "chats": CHATS, "cases": cases})


def examples():
    """Labels as TRL's SFTTrainer prepares them."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    class Prepare(SFTTrainer):
        def __init__(self, tokenizer, completion_only_loss):
            self._tokenizer = tokenizer
            self.chat_template = None
            self.completion_only_loss = completion_only_loss

    rows = {
        "text": [{"text": "<HUMAN>: Why do I worry?\n<ASSISTANT>: Worry is a habit."}, {"text": "Ends<|im_end|>"}],
        "prompt_completion": [
            {"prompt": "Why do I worry?", "completion": " Worry is a habit."},
            {"prompt": "Q: a\nA:", "completion": "b<|im_end|>"},
            {"prompt": "half a wo", "completion": "rd merges"},
        ],
        "prompt_completion_chat": [{"prompt": CHATS["system"][:4], "completion": CHATS["system"][4:]}],
        "messages": [{"messages": CHATS["one"]}, {"messages": CHATS["system"]}],
    }
    cases = []
    for folder in ("chatml", "bos"):
        tokenizer = PreTrainedTokenizerFast.from_pretrained(GOLDEN / "folders" / folder)
        for kind, data in rows.items():
            for max_length in (1024, 12):
                for assistant_only in (False, True):
                    if assistant_only and kind in ("text", "prompt_completion"):
                        continue
                    args = SFTConfig(
                        output_dir="/tmp/unused",
                        max_length=max_length,
                        assistant_only_loss=assistant_only,
                        report_to=[],
                        bf16=False,
                        use_cpu=True,
                        shuffle_dataset=False,
                    )
                    trainer = Prepare(tokenizer, kind.startswith("prompt"))
                    dataset = trainer._prepare_dataset(Dataset.from_list(data), tokenizer, args, False, None, "train")
                    cases.append(
                        {
                            "folder": folder,
                            "kind": kind,
                            "max_length": max_length,
                            "assistant_only_loss": assistant_only,
                            "rows": data,
                            "input_ids": [list(row["input_ids"]) for row in dataset],
                            "labels": [list(row["labels"]) for row in dataset],
                        }
                    )
    write(GOLDEN / "examples.json", cases)


def grouping():
    import torch

    cases = []
    for n, rows_per_step, seed in ((10, 4, 1), (100, 8, 2), (997, 16, 3), (50, 64, 4)):
        lengths = torch.randint(5, 60, (n,), generator=torch.Generator().manual_seed(seed)).tolist()
        shuffled = torch.randperm(n, generator=torch.Generator().manual_seed(seed)).tolist()
        grouped = get_length_grouped_indices(lengths, rows_per_step, generator=torch.Generator().manual_seed(seed))
        cases.append({"rows_per_step": rows_per_step, "lengths": lengths, "shuffled": shuffled, "grouped": grouped})
    (GOLDEN / "grouping.json").write_text(json.dumps(cases) + "\n")


def parquet():
    folder = GOLDEN / "parquet"
    folder.mkdir(parents=True, exist_ok=True)
    texts = [f"<HUMAN>: Question {i}?\n<ASSISTANT>: Answer {i}, ça va." for i in range(25)]
    for name, kind in {"text": pa.string(), "large": pa.large_string(), "view": pa.string_view()}.items():
        table = pa.table({"id": list(range(25)), "text": pa.array(texts, kind), "group": [i // 2 for i in range(25)]})
        pq.write_table(table, folder / f"{name}.parquet", row_group_size=7, compression="zstd" if name == "large" else "snappy")
    table = pa.table({"text": pa.array(texts).dictionary_encode(), "topic": pa.array(["a", None] * 12 + ["b"])})
    pq.write_table(table, folder / "dictionary.parquet", row_group_size=10)
    messages = [CHATS["one"], CHATS["system"], CHATS["question"] + CHATS["one"][1:]]
    pq.write_table(pa.table({"messages": messages}), folder / "messages.parquet", row_group_size=2)
    sharegpt = [[{"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "Hello."}]]
    pq.write_table(pa.table({"conversations": sharegpt}), folder / "sharegpt.parquet")
    pairs = pa.table({"prompt": ["a", "b"], "completion": ["x", None]})
    pq.write_table(pairs, folder / "null.parquet", compression="none")
    pq.write_table(pa.table({"text": pa.array([b"\xff\xfe"], pa.binary())}), folder / "binary.parquet")
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), folder / "empty.parquet")


def smollm2(path, out):
    reader = gguf.GGUFReader(path)
    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    merges = reader.fields["tokenizer.ggml.merges"].contents()
    types = reader.fields["tokenizer.ggml.token_type"].contents()
    model = models.BPE({token: i for i, token in enumerate(tokens)}, [tuple(merge.split(" ")) for merge in merges])
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizer_kinds()["smollm"]["pre"]
    tokenizer.decoder = decoders.ByteLevel()
    special = [AddedToken(t, special=True, normalized=False) for t, kind in zip(tokens, types) if kind == 3]
    tokenizer.add_special_tokens(special)
    more = [json.loads(line)["text"] for line in (GOLDEN.parents[3] / "data" / "mental-health.jsonl").open()]
    global TEXTS
    TEXTS = TEXTS + CORPUS[:9] + more
    write(Path(out), encodings(tokenizer, False))


def published_templates(out):
    """What transformers renders with the chat templates that the trl package carries, several model families' own."""
    import trl
    from transformers.utils.chat_template_utils import render_jinja_template

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=byte_level(**pre_tokenizer_kinds()["smollm"]), bos_token="<|im_start|>", eos_token="<|im_end|>"
    )
    cases, sources = [], {}
    for path in sorted((Path(trl.__file__).parent / "chat_templates").glob("*.jinja")):
        sources[path.stem] = path.read_text()
        for chat in ("one", "system", "question"):
            for add_generation_prompt in (False, True):
                case = {"template": path.stem, "chat": chat, "add_generation_prompt": add_generation_prompt}
                try:
                    case["rendered"] = tokenizer.apply_chat_template(
                        CHATS[chat],
                        chat_template=sources[path.stem],
                        tokenize=False,
                        add_generation_prompt=add_generation_prompt,
                    )
                    if "endgeneration" in sources[path.stem] and not add_generation_prompt:
                        (text,), (spans,) = render_jinja_template(
                            conversations=[CHATS[chat]],
                            chat_template=sources[path.stem],
                            return_assistant_tokens_mask=True,
                            **tokenizer.special_tokens_map,
                        )
                        case["assistant"] = [text[a:b] for a, b in spans if a < b]
                except Exception as error:
                    case["error"] = str(error)
                cases.append(case)
    write(Path(out), {"templates": sources, "chats": CHATS, "cases": cases})


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--templates")
    parser.add_argument("--smollm2")
    parser.add_argument("--out")
    options = parser.parse_args()
    if options.templates:
        published_templates(options.templates)
        return
    if options.smollm2:
        smollm2(options.smollm2, options.out)
        return
    shutil.rmtree(GOLDEN, ignore_errors=True)
    (GOLDEN / "gguf").mkdir(parents=True)
    byte_level_ggufs()
    sentence_piece_gguf()
    folders()
    templates()
    examples()
    grouping()
    parquet()


if __name__ == "__main__":
    main()
