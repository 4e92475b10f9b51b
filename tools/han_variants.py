"""Makes crates/eyas-care/src/text/han.txt: traditional characters and the simplified ones that they are folded to.

Input: Unihan_Variants.txt of the Unicode Character Database (Unicode licence v3; Debian's package `unicode-data`
has it). Only the 5401 common characters of Big5 are kept, the first simplified form that GB 2312 has.

    python tools/han_variants.py Unihan_Variants.txt > crates/eyas-care/src/text/han.txt
"""

import sys


def is_common(character):
    try:
        code = character.encode("big5")
    except UnicodeEncodeError:
        return False
    return len(code) == 2 and 0xA4 <= code[0] <= 0xC6


def is_simplified(character):
    try:
        return len(character.encode("gb2312")) == 2
    except UnicodeEncodeError:
        return False


# Not variants of the writing system, but of the word: forms that people mix freely.
BY_HAND = {"妳": "你", "喫": "吃", "著": "着", "説": "说", "裏": "里", "裡": "里", "牀": "床", "噁": "恶", "甚": "什", "菸": "烟", "羨": "羡", "託": "托", "餘": "余", "遊": "游", "諗": "谂", "淨": "净", "紮": "扎", "於": "于", "乾": "干", "麼": "么", "瞭": "了", "藉": "借", "佔": "占", "週": "周", "傢": "家", "鎅": "界", "𠝹": "界"}

pairs = {}
with open(sys.argv[1], encoding="utf-8") as file:
    for line in file:
        fields = line.rstrip("\n").split("\t")
        if len(fields) == 3 and fields[1] == "kSimplifiedVariant":
            source = chr(int(fields[0][2:], 16))
            targets = [chr(int(target[2:], 16)) for target in fields[2].split()]
            targets = [target for target in targets if is_simplified(target)]
            if targets and is_common(source) and source not in targets:
                pairs[source] = targets[0]
pairs.update(BY_HAND)
print("# Traditional to simplified, from Unihan's kSimplifiedVariant by tools/han_variants.py; not for editing.")
for start in range(0, len(pairs), 50):
    print(" ".join(a + b for a, b in sorted(pairs.items())[start : start + 50]))
