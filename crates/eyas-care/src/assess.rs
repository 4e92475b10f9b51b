//! From turns to a concern.
//!
//! The last turn of the person is read: idioms and titles are masked, every rule is matched, each match is attributed to
//! the person or to somebody else and lowered by its circumstances (negation, past, fiction, ...). The weights that remain
//! combine as independent pieces of evidence, `1 - product of (1 - weight)`. Earlier turns add what is left of their own
//! concern, never enough by itself to reach a threshold. A long turn is read in pieces, and the strongest speaks for it.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::detector::Detector;
use crate::evidence::Found;
use crate::message::Message;
use crate::pattern::Matcher;
use crate::types::{Category, Role, Turn};

/// What the recent turns call for.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Assessment {
    /// The strongest concern at or above its threshold.
    pub concern: Option<Concern>,
    /// The score of every category that has one, strongest first, also below its threshold.
    pub scores: Vec<Concern>,
}

/// A concern and why.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Concern {
    /// What it is about.
    pub category: Category,
    /// How strong, from 0 to 1.
    pub severity: f32,
    /// The severity from which on it counts.
    pub threshold: f32,
    /// The rules that led to it, with what lowered them, such as `wish_to_die` or `wish_to_die (past)`.
    pub matched: Vec<String>,
}

/// Characters that are read at once, so that what is said in one place is not outweighed by the rest, and how many of
/// them are read again with the next.
const PIECE: usize = 600;
const OVERLAP: usize = 150;

pub(crate) fn assess(detector: &Detector, turns: &[Turn<'_>]) -> Assessment {
    let Some(last) = turns.iter().rposition(|turn| turn.role == Role::User) else {
        return Assessment::default();
    };
    let earlier = Earlier::read(detector, &turns[..last]);
    let mut strongest = Assessment::default();
    for (at, piece) in pieces(turns[last].text).enumerate() {
        let message = Message::new(detector, piece);
        let mut found = message.evidence(&earlier.hints, !earlier.carried.is_empty());
        if at == 0 {
            answer_to_question(detector, &turns[..last], piece, &mut found);
        }
        let assessment = earlier.weigh(detector, found);
        if at == 0 || assessment.strength() > strongest.strength() {
            strongest = assessment;
        }
    }
    strongest
}

/// A text in pieces that overlap, so that nothing is said between two of them.
fn pieces(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let text = rest.take()?;
        let at = |characters: usize| text.char_indices().nth(characters).map(|(at, _)| at);
        let Some(end) = at(PIECE) else { return Some(text) };
        rest = at(PIECE - OVERLAP).map(|start| &text[start..]);
        Some(&text[..end])
    })
}

impl Assessment {
    /// The severity of the concern, and below it that of what comes nearest to one.
    fn strength(&self) -> (f32, f32) {
        let severity = |concern: Option<&Concern>| concern.map_or(0.0, |concern| concern.severity);
        (severity(self.concern.as_ref()), severity(self.scores.first()))
    }
}

/// What earlier turns of the person leave.
#[derive(Default)]
struct Earlier {
    /// Of the concern that they raised, by category.
    carried: BTreeMap<Category, f32>,
    /// Their hints, but for those of a concern that has had its answer: the conversation goes on after it.
    hints: BTreeSet<String>,
}

impl Earlier {
    /// Of a long turn the last piece is read.
    fn read(detector: &Detector, turns: &[Turn<'_>]) -> Self {
        let mut earlier = Self::default();
        let nothing = BTreeSet::new();
        let answer = turns.iter().rposition(|turn| turn.role == Role::Assistant);
        let users = turns.iter().enumerate().rev().filter(|(_, turn)| turn.role == Role::User);
        for (age, (at, turn)) in users.take(detector.context.turns).enumerate() {
            let message = Message::new(detector, pieces(turn.text).last().unwrap_or_default());
            let mut counted = false;
            for (category, evidence) in message.evidence(&nothing, false) {
                let Some(category) = category else { continue };
                let score = evidence.score(|_| true);
                if score >= detector.thresholds[&category] {
                    let left = score * detector.context.carry * detector.context.decay.powi(age as i32);
                    let entry = earlier.carried.entry(category).or_default();
                    *entry = entry.max(left);
                    counted = true;
                }
            }
            if !(counted && answer.is_some_and(|answer| answer > at)) {
                earlier.hints.extend(message.hints);
            }
        }
        earlier
    }

    /// What the evidence of a message comes to after these turns.
    fn weigh(&self, detector: &Detector, mut found: Found) -> Assessment {
        // What needs context speaks of whatever was the matter.
        let matter = self.carried.iter().max_by(|a, b| a.1.total_cmp(b.1)).map(|(category, _)| *category);
        if let (Some(category), Some(evidence)) = (matter, found.remove(&None)) {
            found.entry(Some(category)).or_default().rules.extend(evidence.rules);
        }
        let mut scores: Vec<Concern> = found
            .into_iter()
            .filter_map(|(category, evidence)| {
                let category = category?;
                let own = evidence.score(|_| true);
                // A denial after an alarm is not a new one.
                let plain = if evidence.is_plain() { evidence.score(|lowered| !lowered) } else { 0.0 };
                let carried = self.carried.get(&category).copied().unwrap_or(0.0);
                let with_context = if plain > 0.0 { 1.0 - (1.0 - plain) * (1.0 - carried) } else { 0.0 };
                let mut matched = evidence.names();
                if with_context > own {
                    matched.push("earlier turns".to_owned());
                }
                Some(Concern {
                    category,
                    severity: own.max(with_context),
                    threshold: detector.thresholds[&category],
                    matched,
                })
            })
            .collect();
        scores.sort_by(|a, b| {
            let reaches = |c: &Concern| c.severity >= c.threshold;
            let level = |c: &Concern| (c.severity * 10.0).round() as i32;
            reaches(b).cmp(&reaches(a)).then(level(b).cmp(&level(a))).then(a.category.cmp(&b.category))
        });
        let concern = scores.first().filter(|concern| concern.severity >= concern.threshold).cloned();
        Assessment { concern, scores }
    }
}

/// "Are you thinking of ending your life?" - "yes". "Are you safe?" - "no".
fn answer_to_question(detector: &Detector, before: &[Turn<'_>], answer: &str, found: &mut Found) {
    let Some(question) = before.last().filter(|turn| turn.role == Role::Assistant) else { return };
    let (asked, answer) = (detector.spelling.read(question.text), detector.spelling.read(answer));
    let asked = Matcher::new(&detector.classes, &asked);
    let answer = Matcher::new(&detector.classes, &answer);
    let context = &detector.context;
    for (asks, answers, name) in [
        (&context.asks, &context.yes, "yes, asked about suicide"),
        (&context.unsafe_asks, &context.no, "no, asked about safety"),
    ] {
        if asked.any(asks, |_| true) && answer.any(answers, |_| true) {
            found.entry(Some(Category::Suicide)).or_default().add(name, 0.8, &[]);
        }
    }
}

/// The hints of turns, see [`crate::Care::hints`].
pub(crate) fn hints(detector: &Detector, texts: &[&str]) -> BTreeSet<String> {
    texts.iter().flat_map(|text| Message::new(detector, text).hints).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::care::Care;

    #[test]
    fn pieces_overlap_and_reach_the_end() {
        assert_eq!(pieces("short").collect::<Vec<_>>(), ["short"]);
        assert_eq!(pieces("").collect::<Vec<_>>(), [""]);
        let text: String = ('\u{4e00}'..).take(1300).collect();
        let found: Vec<&str> = pieces(&text).collect();
        let lengths: Vec<usize> = found.iter().map(|piece| piece.chars().count()).collect();
        assert_eq!(lengths, [600, 600, 400]);
        assert!(
            text.ends_with(found[2]) && found[0].ends_with(&found[1].chars().take(150).collect::<String>())
        );
    }

    #[test]
    fn a_concern_is_found_anywhere_in_a_long_message() {
        let filler = "The weather was fine and we walked by the river. ".repeat(30);
        let care = Care::builtin();
        let concern = |text: &str| care.assess(&[Turn::user(text)]).concern;
        for text in [
            format!("I want to kill myself. {filler}"),
            format!("{filler} I want to kill myself. {filler}"),
            format!("{filler} I want to kill myself."),
        ] {
            assert_eq!(concern(&text).map(|found| found.category), Some(Category::Suicide), "{text}");
        }
        assert_eq!(concern(&filler), None);
    }

    #[test]
    fn a_yes_is_looked_for_at_the_beginning_of_a_long_answer() {
        let care = Care::builtin();
        let filler = "The weather was fine and we walked by the river. ".repeat(30);
        let concern = |answer: &str| {
            let question = Turn::assistant("Are you thinking of ending your life?");
            care.assess(&[question, Turn::user(answer)]).concern
        };
        assert!(concern(&format!("Yes. {filler}")).is_some());
        // Here a piece begins with the word.
        let walk: String = filler.chars().take(PIECE - OVERLAP).collect();
        assert_eq!(concern(&format!("{walk}yes, {filler}")), None);
    }
}
