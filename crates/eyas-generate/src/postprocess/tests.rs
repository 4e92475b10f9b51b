use proptest::prelude::*;
use proptest::test_runner::RngSeed;

use super::*;

/// Answer, what is left of it.
const CASES: &[(&str, &str, &str)] = &[
    (
        "invented turns",
        " You can prevent both by walking, reading and resting.\n<HUMAN>: What are the signs?\n<ASSISTANT>: Fear.",
        "You can prevent both by walking, reading and resting.",
    ),
    ("a marker inside a line", "Rest well. <HUMAN>: And then?", "Rest well."),
    ("a template's marker", "Rest well.<|im_end|>\n<|im_start|>user", "Rest well."),
    ("the memory's line", "Rest well.\nHere, is the next QUESTION:\nWhy?", "Rest well."),
    ("a speaker's name at the start of a line", "Rest well.\nUser: why?", "Rest well."),
    ("a speaker's name inside a line", "Say to the User: rest well.", "Say to the User: rest well."),
    ("a repeated header", "<ASSISTANT>: Rest well.", "Rest well."),
    ("only an invented turn", "<HUMAN>: Why?", ""),
    (
        "the article's tuned answer, cut by the limit",
        "There are several things that help:\n1. Move: A walk a day lifts the mood. Win-win.\n2. Breathe: Slow breaths \
         calm the body.\n3. Manage Stress: Find ways to cope with str",
        "There are several things that help:\n1. Move: A walk a day lifts the mood. Win-win.\n2. Breathe: Slow breaths \
         calm the body.",
    ),
    ("a dangling list number", "Try these:\n1. Walk.\n2. Sleep.\n3.", "Try these:\n1. Walk.\n2. Sleep."),
    ("a dangling number with a bracket", "1) Walk.\n2)", "1) Walk."),
    ("a dangling bullet", "- Walk.\n- Sleep.\n-", "- Walk.\n- Sleep."),
    ("a dangling bold number", "1. Walk.\n**2.", "1. Walk."),
    ("a dangling number inside a line", "1. Walk. 2. Sleep. 3.", "1. Walk. 2. Sleep."),
    ("numbers that dangle one after another", "1. Walk\n- Rest. 3. 12)", "1. Walk\n- Rest."),
    ("a number that ends a sentence", "Rate it from 1 to 10.", "Rate it from 1 to 10."),
    ("an unfinished sentence", "It helps to talk. A friend may", "It helps to talk."),
    ("one unfinished sentence", "It helps to talk to a", "It helps to talk to a"),
    ("an abbreviation at the cut", "Talk to someone. For example to Dr. Li", "Talk to someone."),
    ("an abbreviation at the end", "Find a hobby. Choose a calm one, e.g.", "Find a hobby."),
    ("e.g. and a small letter", "Find a hobby, e.g. painting or", "Find a hobby, e.g. painting or"),
    ("etc. at the end", "Try painting, music, etc.", "Try painting, music, etc."),
    ("etc. inside", "Try painting, etc. and see. Then", "Try painting, etc. and see."),
    ("decimals", "Sleep 7.5 hours. About 1.5 of", "Sleep 7.5 hours."),
    ("an initial", "Martin L. King said so. He also", "Martin L. King said so."),
    ("a letter that ends a sentence", "Get some vitamin D. It", "Get some vitamin D."),
    ("quotes", "She said \"I am tired.\" Then she", "She said \"I am tired.\""),
    ("a quote that goes on", "\"Why me?\" he asked. So", "\"Why me?\" he asked."),
    ("brackets", "Rest (a lot!). It is", "Rest (a lot!)."),
    ("bold", "**Rest.** Then **wal", "**Rest.**"),
    ("an ellipsis", "It takes time… Be pat", "It takes time…"),
    ("an emoji after the end", "You can do it! 😊", "You can do it! 😊"),
    ("full-width marks", "休息很重要。多走路", "休息很重要。"),
    ("goodbye", "Rest well. Goodbye! I am a program", "Rest well."),
    ("take care, alone", "Rest well. Take care.", "Rest well."),
    ("take care, with a name", "Rest well.\n\nTake care, my friend!", "Rest well."),
    ("take care and goodbye", "Rest well. Take care and goodbye!", "Rest well."),
    ("goodbye for now", "Rest well. Goodbye for now.", "Rest well."),
    ("best wishes", "Rest well.\nBest wishes,\nThe team", "Rest well."),
    ("best wishes to somebody", "Rest well. Best wishes to you and yours!", "Rest well."),
    ("take care in bold", "Rest well.\n**Take care!**", "Rest well."),
    ("take care of is advice", "Take care of your sleep. Walk.", "Take care of your sleep. Walk."),
    (
        "advice further on",
        "Rest. Take care of yourself and eat. Walk.",
        "Rest. Take care of yourself and eat. Walk.",
    ),
    (
        "take care, then advice",
        "Rest. Take care, as pills can harm. Walk.",
        "Rest. Take care, as pills can harm. Walk.",
    ),
    (
        "goodbye inside a sentence",
        "Saying goodbye hurts. Goodbye letters help.",
        "Saying goodbye hurts. Goodbye letters help.",
    ),
    ("only a closing", "Goodbye!", "Goodbye!"),
    ("a closing first", "Goodbye! Rest well. Take care!", "Goodbye! Rest well."),
    ("blank lines", "One.\n\n\n  \nTwo.  \nThree.\r\n\r\n\r\nFour.\n\n", "One.\n\nTwo.\nThree.\n\nFour."),
    (
        "a list without full stops",
        "Try:\n- Walk\n- Read a book\n- Sleep",
        "Try:\n- Walk\n- Read a book\n- Sleep",
    ),
    ("prose after such a list", "Rest. Try:\n- Walk\n- Sleep\nAnd then you", "Rest. Try:\n- Walk\n- Sleep"),
    ("a heading for what never came", "Rest well.\n\n**Other things that help", "Rest well."),
    ("nothing", "", ""),
    ("spaces", " \n ", ""),
];

#[test]
fn answers_are_tidied() {
    for (name, answer, expected) in CASES {
        assert_eq!(postprocess(answer), *expected, "{name}");
    }
}

#[test]
fn an_answer_that_the_model_ended_keeps_its_last_sentence() {
    let complete = Tidy { unfinished: false, ..Tidy::recipe() };
    assert_eq!(complete.apply("Rest well. Talk to a friend"), "Rest well. Talk to a friend");
    assert_eq!(complete.apply("Rest well.\n2. Take care!\n3."), "Rest well.\n2. Take care!");
}

#[test]
fn sentences_are_shown_as_soon_as_they_are_safe() {
    let mut stream = Tidy::recipe().stream();
    let mut shown = Vec::new();
    for piece in [
        "There", " are", " ways:", "\n1.", " Walk", ".", "\n", "2.", " Sleep", " well.", " Take", " care",
        ".",
    ] {
        shown.push(stream.push(piece));
    }
    assert_eq!(shown.concat(), "There are ways:\n1. Walk.\n2. Sleep well.");
    assert_eq!(shown[7], "There are ways:\n1. Walk.");
    assert_eq!(stream.finish(false), "");
}

/// Fragments that the rules look for, so that random texts meet them.
fn fragment() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => "[a-zA-Z]{1,6} ?",
        3 => prop::sample::select(vec![
            ". ", "! ", "?", "\n", "\n\n\n", ".\n", ", ", ":", "...", "…", "\" ", "\"", ")", "**", "😊", "。", "」", "3.5", " ",
        ]).prop_map(str::to_owned),
        2 => prop::sample::select(vec![
            "\n1. ", "\n2.", "\n- ", "\n* ", " 3. ", "12)", "a. ", "e.g. ", "Dr. ", "etc. ", "J. ", "\r\n", "\r",
        ]).prop_map(str::to_owned),
        2 => prop::sample::select(vec![
            "Goodbye", "Take care", "Best wishes", " for now", " and ", "take care", "Take care of", "Goodbye! ",
        ]).prop_map(str::to_owned),
        1 => prop::sample::select(vec![
            "<HUMAN>:", "<HUM", "<ASSISTANT>:", "User:", "\nUser:", "\nQ", "<|im_end|>", "Assistant", "Assistant:",
        ]).prop_map(str::to_owned),
    ]
}

fn answer() -> impl Strategy<Value = Vec<String>> {
    prop::collection::vec(fragment(), 0..40)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, rng_seed: RngSeed::Fixed(1), ..ProptestConfig::default() })]

    #[test]
    fn tidying_twice_changes_nothing(pieces in answer(), unfinished: bool) {
        let tidy = Tidy { unfinished, ..Tidy::recipe() };
        let once = tidy.apply(&pieces.concat());
        prop_assert_eq!(tidy.apply(&once), once);
    }

    #[test]
    fn an_answer_is_never_emptied_but_by_a_marker(pieces in answer()) {
        let text = pieces.concat();
        let before = fold_lines(&text);
        let before = without_header(&before);
        let kept = before[..Tidy::recipe().marker(before).unwrap_or(before.len())].trim();
        prop_assert_eq!(postprocess(&text).is_empty(), kept.is_empty());
    }

    #[test]
    fn what_was_shown_is_never_taken_back(pieces in answer(), complete: bool) {
        let mut stream = Tidy::recipe().stream();
        let mut shown: String = pieces.iter().map(|piece| stream.push(piece)).collect();
        shown.push_str(&stream.finish(complete));
        let whole = Tidy { unfinished: !complete, ..Tidy::recipe() }.apply(&pieces.concat());
        prop_assert_eq!(shown, whole);
    }

    #[test]
    fn any_text_at_all_is_tidied(text in "\\PC{0,60}") {
        postprocess(&text);
    }
}
