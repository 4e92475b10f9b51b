//! Characters that read alike become one.

use std::collections::HashMap;
use std::sync::LazyLock;

/// Traditional to simplified, and letters of other scripts to the Latin ones they pass for.
static FOLDED: LazyLock<HashMap<char, char>> = LazyLock::new(|| {
    let han =
        include_str!("han.txt").lines().filter(|line| !line.starts_with('#')).flat_map(str::split_whitespace);
    LOOKALIKES
        .split_whitespace()
        .chain(han)
        .chain(VARIANTS.split_whitespace())
        .filter_map(|pair| {
            let mut chars = pair.chars();
            Some((chars.next()?, chars.next()?))
        })
        .collect()
});

/// Capitals of Greek, which differ from their small letters, and small letters: Cyrillic, Greek, Armenian and Latin letters with strokes.
const LOOKALIKES: &str = "Αa Βb Εe Ζz Ηh Ιi Κk Μm Νn Οo Ρp Τt Υy Χx \
    аa вb сc ԁd еe ɡg һh іi јj кk мm нh оo рp ԛq гr ѕs тt уy хx ѵv ԝw ӏl зe \
    αa βb εe ηn ιi κk νv οo ρp τt υu χx ωw γy σo \
    օo ոn սu հh ցg քp ıi łl øo đd ħh ŧt ʟl ɪi ʀr ɴn ʜh ɢg ʙb ɑa ɩi ȷj ⅼl ∅o";

/// Characters that the table of variants keeps apart and people do not.
const VARIANTS: &str = "諮咨 谘咨";

/// A compatibility-decomposed character in plain lower case. A capital is folded before its case: N in Greek is no v.
pub(crate) fn fold_case(c: char) -> impl Iterator<Item = char> {
    fold_char(c).to_lowercase().map(fold_char)
}

/// The plain form of a character.
pub(crate) fn fold_char(c: char) -> char {
    let code = c as u32;
    // Letters in squares and circles, and the letters that flags are made of.
    for start in [0x1F130, 0x1F150, 0x1F170, 0x1F1E6] {
        if (start..start + 26).contains(&code) {
            return char::from(b'a' + (code - start) as u8);
        }
    }
    if c.is_ascii() { c } else { FOLDED.get(&c).copied().unwrap_or(c) }
}

/// Characters that show nothing: zero-width, direction, variation, tags, and controls except line breaks and tabs.
pub(crate) fn is_invisible(c: char) -> bool {
    matches!(c as u32,
        0x00AD | 0x034F | 0x061C | 0x115F..=0x1160 | 0x17B4..=0x17B5 | 0x180B..=0x180F | 0x200B..=0x200F
        | 0x202A..=0x202E | 0x2060..=0x206F | 0x3164 | 0xFE00..=0xFE0F | 0xFEFF | 0xFFA0 | 0xFFF9..=0xFFFB
        | 0x1D173..=0x1D17A | 0xE0000..=0xE0FFF)
        || (c.is_control() && !matches!(c, '\n' | '\r' | '\t'))
}
