//! The conversations that come with the program, and the questions that are asked before and after training.

use std::path::Path;

use crate::dataset::{self, Row};
use crate::error::Result;
use crate::load::{LoadOptions, collect};
use crate::report::Report;

/// The file, as it is in the sources.
pub const CONVERSATIONS: &str = include_str!("../../../data/mental-health.jsonl");

/// The name of the built-in conversations in messages.
pub const NAME: &str = "mental-health.jsonl (built in)";

/// The published recipe's questions. Neither they nor close paraphrases are among the conversations.
pub const QUESTIONS: [&str; 3] = [
    "How can I prevent anxiety and depression?",
    "How to take care of mental health?",
    "What is the warning sign of depression?",
];

/// Reads the built-in conversations.
///
/// # Errors
/// As [`crate::load::load`].
pub fn rows(options: &LoadOptions) -> Result<(Vec<Row>, Report)> {
    collect(dataset::from_jsonl(NAME, CONVERSATIONS, &options.dataset)?, Path::new(NAME), options)
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};

    use regex::Regex;

    use super::*;
    use crate::conversation::{Role, Sample, find_turns, parse_turns};
    use crate::split::{question_key, split};

    const TOPICS: [&str; 8] = [
        "conditions",
        "symptoms",
        "treatments",
        "coping",
        "self-care",
        "supporting-others",
        "stigma",
        "crisis",
    ];

    struct Entry {
        question: String,
        answer: String,
        topic: String,
        group: Option<String>,
    }

    fn entries() -> Vec<Entry> {
        let (rows, _) = rows(&LoadOptions::default()).unwrap();
        rows.into_iter()
            .map(|row| {
                let Sample::Text(text) = &row.sample else { panic!("a row is not text") };
                let turns = parse_turns(text).unwrap_or_else(|| panic!("not in the recipe's form: {text}"));
                assert_eq!(turns.len(), 2, "not one question and one answer: {text}");
                assert_eq!((turns[0].role, turns[1].role), (Role::User, Role::Assistant));
                Entry {
                    question: turns[0].content.clone(),
                    answer: turns[1].content.clone(),
                    topic: row.topic.unwrap_or_default(),
                    group: row.group,
                }
            })
            .collect()
    }

    fn words(text: &str) -> Vec<String> {
        question_key(text).split(' ').map(String::from).collect()
    }

    fn runs(text: &str, length: usize) -> HashSet<Vec<String>> {
        words(text).windows(length).map(<[String]>::to_vec).collect()
    }

    /// The share of the smaller set that the two have in common.
    fn overlap<T: std::hash::Hash + Eq>(a: &HashSet<T>, b: &HashSet<T>) -> f64 {
        a.intersection(b).count() as f64 / a.len().min(b.len()).max(1) as f64
    }

    #[test]
    fn there_are_enough_on_every_topic() {
        let entries = entries();
        assert!(entries.len() >= 240, "{} conversations", entries.len());
        let mut counts: HashMap<&str, usize> = HashMap::new();
        for entry in &entries {
            assert!(TOPICS.contains(&entry.topic.as_str()), "unknown topic {:?}", entry.topic);
            *counts.entry(&entry.topic).or_default() += 1;
        }
        assert!(TOPICS.iter().all(|topic| counts[topic] >= 20), "{counts:?}");
    }

    #[test]
    fn they_are_clean_and_in_the_recipe_form() {
        let (rows, report) = rows(&LoadOptions { anonymise: true, ..Default::default() }).unwrap();
        assert_eq!(report.cleaned.total(), 0, "{}", report.cleaned);
        assert_eq!(report.anonymised.total(), 0, "{}", report.anonymised);
        assert_eq!(report.duplicates, 0);
        for row in rows {
            let Sample::Text(text) = &row.sample else { panic!("a row is not text") };
            let turns = find_turns(text);
            assert!(
                text.starts_with("<HUMAN>: ") && !text[turns[0].content.clone()].contains('\n'),
                "{text}"
            );
            assert!(text[turns[1].whole.clone()].starts_with("<ASSISTANT>: "), "{text}");
            assert!(!text.contains("\n\n"), "blank line: {text}");
        }
    }

    #[test]
    fn lengths_are_within_bounds() {
        for Entry { question, answer, .. } in entries() {
            let (asked, told) = (question.split_whitespace().count(), answer.split_whitespace().count());
            assert!((2..=100).contains(&asked), "{asked} words: {question}");
            assert!((40..=200).contains(&told), "{told} words: {answer}");
            assert!(answer.ends_with(['.', '?', '!', '"', '\'']), "unfinished: {answer}");
        }
    }

    #[test]
    fn no_question_repeats_and_no_answer_nearly_does() {
        let entries = entries();
        let questions: HashSet<String> = entries.iter().map(|e| question_key(&e.question)).collect();
        assert_eq!(questions.len(), entries.len());
        let runs: Vec<_> = entries.iter().map(|e| runs(&e.answer, 5)).collect();
        for i in 0..entries.len() {
            for j in 0..i {
                let share = overlap(&runs[i], &runs[j]);
                assert!(share < 0.3, "{share:.2}: {} / {}", entries[i].question, entries[j].question);
            }
        }
    }

    #[test]
    fn the_demo_questions_are_held_out() {
        const COMMON: [&str; 16] = [
            "how", "can", "i", "to", "what", "is", "the", "of", "and", "a", "do", "my", "are", "in", "for",
            "or",
        ];
        let telling = |text: &str| -> HashSet<String> {
            words(text).into_iter().filter(|word| !COMMON.contains(&word.as_str())).collect()
        };
        for asked in QUESTIONS {
            let asked_words = telling(asked);
            for entry in entries() {
                assert_ne!(question_key(&entry.question), question_key(asked));
                let shared = telling(&entry.question).intersection(&asked_words).count();
                assert!(shared < asked_words.len(), "close to {asked:?}: {}", entry.question);
            }
        }
    }

    #[test]
    fn a_split_leaks_no_question_and_no_group() {
        let entries = entries();
        let (rows, _) = rows(&LoadOptions::default()).unwrap();
        for seed in 0..20 {
            let split = split(&rows, 0.1, seed).unwrap();
            assert!((20..=30).contains(&split.eval.len()), "{split}");
            let side = |places: &[usize]| -> HashSet<String> {
                let keys = |&i: &usize| [Some(question_key(&entries[i].question)), entries[i].group.clone()];
                places.iter().flat_map(keys).flatten().collect()
            };
            assert!(side(&split.train).is_disjoint(&side(&split.eval)), "seed {seed}");
        }
    }

    #[test]
    fn groups_pair_two_wordings() {
        let mut groups: HashMap<String, usize> = HashMap::new();
        entries()
            .into_iter()
            .filter_map(|e| e.group)
            .for_each(|group| *groups.entry(group).or_default() += 1);
        assert!(!groups.is_empty() && groups.values().all(|&rows| rows >= 2), "{groups:?}");
    }

    #[test]
    fn answers_keep_to_safe_messaging() {
        let forbidden = [
            r"\bcommit(ted|s|ting)? suicide",
            r"\b(successful|failed|unsuccessful) (suicide|attempt)",
            r"\byou (have|suffer from|are suffering from) (depression|anxiety disorder|bipolar|ptsd|ocd|adhd|schizophrenia)\b",
            r"\byou(?:'re| are) (bipolar|schizophrenic|depressed|autistic|mentally ill)\b",
            r"\d+\s?-?(mg|mcg|milligrams?|micrograms?)\b",
            r"\b(stop|quit) taking your (medication|medicine|pills|antidepressants?)\b",
            r"\b(everything will be (fine|ok|okay|alright)|just cheer up|snap out of it|it'?s all in your head)\b",
            r"\b(goodbye|take care|best wishes)\b",
            r"\b(addicts?|the mentally ill|crazy people|junkies?)\b",
        ];
        let forbidden: Vec<Regex> =
            forbidden.iter().map(|p| Regex::new(&format!("(?i){p}")).unwrap()).collect();
        for Entry { question, answer, .. } in entries() {
            for pattern in &forbidden {
                let found = pattern.find(&answer).map(|m| m.as_str());
                assert_eq!(found, None, "in the answer to {question:?}");
            }
        }
    }

    #[test]
    fn crisis_answers_lead_to_help() {
        let help = Regex::new(
            r"(?i)emergency|crisis (line|service|team)|helpline|hotline|lifeline|doctor|someone (you trust|close|near)|counsell?or",
        )
        .unwrap();
        for Entry { question, answer, topic, .. } in entries() {
            assert!(topic != "crisis" || help.is_match(&answer), "{question}\n{answer}");
        }
    }
}
