//! What people and models write: the detector, the checks of answers, the sanitiser. Streaming equals the whole.

#![no_main]

use std::sync::LazyLock;

use eyas_care::{Care, Language, Turn, sanitize_turn};
use libfuzzer_sys::fuzz_target;

static CARE: LazyLock<Care> = LazyLock::new(Care::builtin);

fuzz_target!(|texts: (&str, &str)| {
    let (first, second) = texts;
    CARE.assess(&[Turn::user(first), Turn::assistant(second), Turn::user(second)]);

    let clean = sanitize_turn(first, &["<HUMAN>:", second]);
    assert_eq!(sanitize_turn(&clean, &["<HUMAN>:", second]), clean);

    let whole = CARE.check_answer(first, second, Language::En);
    let mut guard = CARE.guard(first, Language::En);
    let mut shown: String = second.chars().map(|c| guard.push(c.encode_utf8(&mut [0; 4]))).collect();
    shown.push_str(&guard.finish());
    assert_eq!(whole.text(second), shown);
});
