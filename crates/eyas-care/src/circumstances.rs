//! What lowers a match where it stands: negation, past, fiction and the like.

use std::cell::OnceCell;

use crate::detector::{Lower, Rule, Scope};
use crate::pattern::{Matcher, Span};
use crate::text::Token;
use crate::types::Category;

/// Where the patterns of a [`Lower`] are, looked for once in a message.
#[derive(Default)]
struct Places {
    patterns: OnceCell<Vec<Span>>,
    near: OnceCell<Vec<Span>>,
    /// The tokens that a blocker covers.
    blocked: OnceCell<Vec<bool>>,
    unless: OnceCell<bool>,
}

/// What is further away in a sentence lowers nothing.
const SENTENCE: usize = 120;

/// No pattern reaches further back.
const LONGEST_MATCH: usize = 120;

/// The circumstances of a message.
pub(crate) struct Circumstances<'a, 'm> {
    lower: &'a [Lower],
    places: Vec<Places>,
    matcher: &'m Matcher<'m>,
}

impl<'a, 'm> Circumstances<'a, 'm> {
    pub(crate) fn new(lower: &'a [Lower], matcher: &'m Matcher<'m>) -> Self {
        Self { lower, places: lower.iter().map(|_| Places::default()).collect(), matcher }
    }

    /// What lowers a match of a rule.
    pub(crate) fn of<'s>(
        &'s self,
        rule: &'s Rule,
        category: Category,
        span: Span,
    ) -> impl Iterator<Item = &'a Lower> + 's {
        let all = self.lower.iter().zip(&self.places);
        all.filter(move |(lower, places)| self.applies(lower, places, rule, category, span))
            .map(|(lower, _)| lower)
    }

    fn applies(&self, lower: &Lower, places: &Places, rule: &Rule, category: Category, span: Span) -> bool {
        if lower.categories.as_ref().is_some_and(|categories| !categories.contains(&category))
            || lower.spares.contains(&rule.name)
        {
            return false;
        }
        let matcher = self.matcher;
        let patterns = places.patterns.get_or_init(|| matcher.find_any(&lower.patterns));
        let here = match lower.scope {
            Scope::Before => {
                let from = span.start.saturating_sub(lower.within + LONGEST_MATCH);
                self.spans(patterns, from, span.start)
                    .any(|found| self.stands_before(lower, places, found, span))
            }
            Scope::Sentence => {
                let (start, end) = self.sentence(span);
                self.spans(patterns, start, end).any(|found| found.end <= end)
            }
            Scope::Message => !patterns.is_empty(),
        };
        here && (lower.near.is_empty() || {
            let near = places.near.get_or_init(|| matcher.find_any(&lower.near));
            let from = span.start.saturating_sub(LONGEST_MATCH);
            self.spans(near, from, span.end).any(|found| found.end + 4 >= span.start)
        }) && !places.unless.get_or_init(|| matcher.any(&lower.unless, |_| true))
    }

    /// The spans, sorted by start, that start in a range.
    fn spans<'s>(&'s self, spans: &'s [Span], from: usize, to: usize) -> impl Iterator<Item = Span> + 's {
        let first = spans.partition_point(|span| span.start < from);
        spans[first..]
            .iter()
            .take_while(move |span| span.start < to)
            .inspect(|_| self.matcher.count_step())
            .copied()
    }

    fn stands_before(&self, lower: &Lower, places: &Places, found: Span, span: Span) -> bool {
        if found.end > span.start || found.end + lower.within < span.start {
            return false;
        }
        let blocked = places.blocked.get_or_init(|| {
            let mut blocked = vec![false; self.matcher.tokens.len()];
            for span in self.matcher.find_any(&lower.blockers) {
                blocked[span.start..span.end].fill(true);
            }
            blocked
        });
        let between = found.end..span.start;
        !self.matcher.tokens[between.clone()].iter().any(Token::is_mark)
            && !blocked[between].iter().any(|blocked| *blocked)
    }

    /// The sentence that a match stands in, as far as it is near.
    fn sentence(&self, span: Span) -> (usize, usize) {
        let tokens = self.matcher.tokens;
        let (first, last) = (span.start.saturating_sub(SENTENCE), (span.end + SENTENCE).min(tokens.len()));
        let start =
            tokens[first..span.start].iter().rposition(Token::is_stop).map_or(first, |at| first + at + 1);
        let end = tokens[span.end..last].iter().position(Token::is_stop).map_or(last, |at| span.end + at);
        (start, end)
    }
}
