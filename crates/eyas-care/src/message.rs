//! One message: spelled plainly, idioms masked, its rules matched and its hints weighed.

use std::collections::BTreeSet;

use crate::circumstances::Circumstances;
use crate::detector::Detector;
use crate::evidence::{Found, Match, independent};
use crate::pattern::{Matcher, Span};
use crate::persons::Persons;
use crate::text::Token;

/// A rule of suicide with this weight says it outright, and no hint makes it doubtful.
const OUTRIGHT: f32 = 0.9;

/// A rule of suicide with this weight is doubted after talk about a game as elsewhere, no sooner.
const STRONG: f32 = 0.7;

/// A message, spelled plainly.
pub(crate) struct Message<'a> {
    detector: &'a Detector,
    tokens: Vec<Token>,
    /// Everything that could be a hint.
    pub(crate) hints: BTreeSet<String>,
}

impl<'a> Message<'a> {
    pub(crate) fn new(detector: &'a Detector, text: &str) -> Self {
        let mut tokens = detector.spelling.read(text);
        mask_idioms(detector, &mut tokens);
        let hints = detector.hints.names(&tokens);
        Self { detector, tokens, hints }
    }

    /// The evidence after turns with these hints; after a concern what needs context counts too.
    pub(crate) fn evidence(&self, earlier: &BTreeSet<String>, after_concern: bool) -> Found {
        let matcher = Matcher::new(&self.detector.classes, &self.tokens);
        let mut found = independent(matches(self.detector, &matcher, after_concern));
        let hints = &self.detector.hints;
        let reading = hints.read_after(earlier, &self.hints);
        // After a concern the talk is about that, whatever else was named.
        let is_framed = !after_concern && hints.is_framed(earlier);
        for evidence in found.values_mut() {
            let frame = match evidence.strongest {
                OUTRIGHT.. if !is_framed => continue,
                STRONG.. => false,
                _ => is_framed,
            };
            // What is said in passing is judged by what stands around it: the rest of a long message is about something else.
            evidence.doubted = hints.doubts(reading.as_ref(), frame)
                && evidence.places.iter().all(|place| {
                    let around = self.around(*place);
                    // Where that is the whole message, it has been read.
                    around.len() == self.tokens.len()
                        || hints.doubts(hints.read_after(earlier, &hints.names(around)).as_ref(), frame)
                });
        }
        if let Some(reading) = reading {
            let name = format!("hints ({})", reading.strongest.join(", "));
            let evidence = hints.evidence(reading.chance, is_framed);
            found.entry(Some(reading.category)).or_default().hints = Some((name, evidence));
        }
        found
    }

    /// The sentences of a place, with one before and one after.
    fn around(&self, place: Span) -> &[Token] {
        let is_stop = |at: &usize| self.tokens[*at].is_stop();
        let start = (0..place.start).rev().filter(is_stop).nth(1).map_or(0, |at| at + 1);
        let end = (place.end..self.tokens.len()).filter(is_stop).nth(1).unwrap_or(self.tokens.len());
        &self.tokens[start..end]
    }
}

/// Every rule wherever it matches.
fn matches<'a>(detector: &'a Detector, matcher: &Matcher<'_>, after_concern: bool) -> Vec<Match<'a>> {
    let persons = Persons::new(&detector.subjects, matcher);
    let circumstances = Circumstances::new(&detector.lower, matcher);
    let mut matches = Vec::new();
    for rule in &detector.rules {
        if rule.needs_context && !after_concern {
            continue;
        }
        for span in rule.patterns.iter().flat_map(|pattern| matcher.find_all(pattern)) {
            let Some((category, mut weight)) = persons.attribute(rule, span) else { continue };
            let mut lowered = Vec::new();
            for lower in circumstances.of(rule, category, span) {
                weight *= lower.factor;
                lowered.push(lower.name.as_str());
            }
            let category = (!rule.needs_context).then_some(category);
            matches.push(Match { rule: &rule.name, category, span, weight, lowered });
        }
    }
    matches
}

fn mask_idioms(detector: &Detector, tokens: &mut [Token]) {
    let matcher = Matcher::new(&detector.classes, tokens);
    let spans: Vec<Span> = detector.idioms.iter().flat_map(|pattern| matcher.find_all(pattern)).collect();
    for span in spans {
        tokens[span.start..span.end].iter_mut().for_each(Token::mask);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::care::Care;

    /// The steps that reading a message takes.
    fn work(text: &str) -> usize {
        let care = Care::builtin();
        let detector = &care.rules.detector;
        let message = Message::new(detector, text);
        let matcher = Matcher::new(&detector.classes, &message.tokens);
        matches(detector, &matcher, false);
        matcher.steps.get()
    }

    #[test]
    fn the_work_grows_with_the_length_alone() {
        for part in [
            "i never want to die and he said i want to die, ",
            "\"\" kill ",
            "我不想活了",
            "想死。没有人",
            "a ",
        ] {
            let (once, twice) = (work(&part.repeat(60)), work(&part.repeat(120)));
            assert!(twice <= 2 * once + once / 4, "{part:?}: {once} steps, then {twice}");
        }
    }
}
