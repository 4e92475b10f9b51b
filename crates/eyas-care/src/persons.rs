//! Whom a match is about: the person, somebody else, people in general, or the reader.

use std::collections::HashSet;

use crate::detector::{Rule, Subjects};
use crate::pattern::{Matcher, Pattern, Span};
use crate::text::Token;
use crate::types::Category;

/// Who is spoken of at a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Person {
    First,
    Second,
    Third,
    Generic,
}

/// The persons of a message.
pub(crate) struct Persons<'a> {
    matcher: &'a Matcher<'a>,
    /// The person that the token at an index names, and whether only as the one spoken to ("I told my mum").
    persons: Vec<Option<Person>>,
    blocks: Vec<bool>,
    reported: Vec<Span>,
    /// Where what describes somebody begins.
    described: HashSet<usize>,
}

impl<'a> Persons<'a> {
    pub(crate) fn new(subjects: &Subjects, matcher: &'a Matcher<'a>) -> Self {
        let count = matcher.tokens.len();
        let mut persons = vec![None; count];
        let mut mark = |patterns: &[Pattern], person| {
            for span in matcher.find_longest(patterns) {
                persons[span.start..span.end].fill(person);
            }
        };
        mark(&subjects.first, Some(Person::First));
        mark(&subjects.second, Some(Person::Second));
        mark(&subjects.third, Some(Person::Third));
        mark(&subjects.generic, Some(Person::Generic));
        mark(&subjects.listener, None);
        let mut blocks = vec![false; count];
        for span in matcher.find_longest(&subjects.blocks) {
            blocks[span.start..span.end].fill(true);
        }
        let mut reported = matcher.find_any(&subjects.reported);
        reported.sort_unstable_by_key(|span| span.end);
        let described =
            matcher.find_longest(&subjects.described).into_iter().map(|span| span.start).collect();
        Self { matcher, persons, blocks, reported, described }
    }

    /// The category of a match, by whom it is about; nothing where it is about the reader ("you").
    pub(crate) fn attribute(&self, rule: &Rule, span: Span) -> Option<(Category, f32)> {
        let own = Some((rule.category, rule.weight));
        let other = Some((Category::ThirdPerson, rule.weight));
        let says_me = self.persons[span.start..span.end].contains(&Some(Person::First));
        match rule.category {
            Category::ThirdPerson => own,
            // What is done to the person is theirs, whoever does it.
            Category::Abuse => match self.before(span) {
                Some(Person::Third) if !says_me => other,
                _ => own,
            },
            Category::Violence => match self.before(span) {
                // "Mum will kill me" is a manner of speaking, or abuse.
                Some(Person::Third) if says_me => None,
                Some(Person::Third) => other,
                _ => own,
            },
            Category::Overdose if !self.is_reported(span) => match self.before(span) {
                Some(Person::Third) => other,
                Some(Person::Generic | Person::Second) => None,
                _ => own,
            },
            Category::Suicide | Category::SelfHarm | Category::Overdose => {
                if self.is_reported(span) {
                    return other;
                }
                if rule.about_self || says_me {
                    return own;
                }
                match self.subject(span) {
                    None | Some(Person::First) => own,
                    Some(Person::Third) => other,
                    Some(Person::Generic) => Some((Category::ThirdPerson, rule.weight * 0.4)),
                    Some(Person::Second) => None,
                }
            }
        }
    }

    /// Who a match without "me" is about: named before it in its clause, described by it ("想自殺的朋友"), or in it.
    fn subject(&self, span: Span) -> Option<Person> {
        if self.described.contains(&span.end)
            || span.end.checked_sub(1).is_some_and(|at| self.described.contains(&at))
        {
            return Some(Person::Third);
        }
        self.before(span).or_else(|| self.persons[span.start..span.end].iter().flatten().next_back().copied())
    }

    fn before(&self, span: Span) -> Option<Person> {
        for at in (span.start.saturating_sub(14)..span.start).rev() {
            if self.matcher.tokens[at].is_mark() || self.blocks[at] {
                return None;
            }
            if self.persons[at].is_some() {
                return self.persons[at];
            }
        }
        None
    }

    /// Whether somebody else's words are told: `he said, "I want to die"`.
    fn is_reported(&self, span: Span) -> bool {
        let from = self.reported.partition_point(|reported| reported.end + 16 < span.start);
        self.reported[from..].iter().take_while(|reported| reported.end <= span.start + 1).any(|reported| {
            self.matcher.count_step();
            !self.matcher.tokens[reported.end.min(span.start)..span.start].iter().any(Token::is_stop)
        })
    }
}
