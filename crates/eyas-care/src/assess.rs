//! From turns to a concern.
//!
//! The last turn of the person is read: idioms and titles are masked, every rule is matched, each match is attributed to
//! the person or to somebody else and lowered by its circumstances (negation, past, fiction, ...). The weights that remain
//! combine as independent pieces of evidence, `1 - product of (1 - weight)`. Earlier turns add what is left of their own
//! concern, never enough by itself to reach a threshold.

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet, HashSet};

use serde::{Deserialize, Serialize};

use crate::detector::{Detector, Lower, Rule, Scope};
use crate::pattern::{Matcher, Pattern, Span};
use crate::text::Token;
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

/// Stands for masked words; no pattern can name it.
const MASK: &str = "\u{25a2}";

/// Hints below this do not speak for themselves in the light of earlier turns.
const FAINT: f32 = 0.35;

/// What is left of rules that the hints make doubtful: none alarms alone.
const DOUBTED: f32 = 0.5;

/// A rule of suicide with this weight says it outright, and no hint makes it doubtful.
const OUTRIGHT: f32 = 0.9;

/// A rule of suicide with this weight is doubted after talk about a game as elsewhere, no sooner.
const STRONG: f32 = 0.7;

/// The evidence for one category.
#[derive(Debug, Default)]
struct Evidence {
    /// The strongest weight of each rule, after lowering, and whether anything lowered it.
    rules: BTreeMap<String, (f32, bool)>,
    /// The strongest rule that nothing lowered.
    strongest: f32,
    /// Whether the hints make the rules doubtful.
    doubted: bool,
    /// What the hints come to. They read the same words as the rules, so the stronger of the two counts, not their sum.
    hints: Option<(String, f32)>,
}

impl Evidence {
    fn add(&mut self, name: &str, weight: f32, lowered: &[&str]) {
        let name =
            if lowered.is_empty() { name.to_owned() } else { format!("{name} ({})", lowered.join(", ")) };
        let entry = self.rules.entry(name).or_insert((0.0, !lowered.is_empty()));
        entry.0 = entry.0.max(weight);
    }

    fn score(&self, counts: impl Fn(bool) -> bool) -> f32 {
        let rules = 1.0
            - self
                .rules
                .values()
                .filter(|(_, lowered)| counts(*lowered))
                .map(|(w, _)| 1.0 - w)
                .product::<f32>();
        let rules = if self.doubted { rules * DOUBTED } else { rules };
        self.hints.as_ref().map_or(rules, |(_, hints)| rules.max(*hints))
    }

    /// Whether something counts that nothing lowered: a rule, or hints that are more than noise.
    fn is_plain(&self) -> bool {
        self.rules.values().any(|(_, lowered)| !lowered)
            || self.hints.as_ref().is_some_and(|(_, hints)| *hints >= FAINT)
    }

    fn names(self) -> Vec<String> {
        self.rules.into_keys().chain(self.hints.map(|(name, _)| name)).collect()
    }
}

pub(crate) fn assess(detector: &Detector, turns: &[Turn<'_>]) -> Assessment {
    let Some(last) = turns.iter().rposition(|turn| turn.role == Role::User) else {
        return Assessment::default();
    };
    let earlier = earlier(detector, &turns[..last]);
    let mut found = read(detector, turns[last].text, &earlier);
    let carried = earlier.carried;
    answer_to_question(detector, turns, last, &mut found);

    // What needs context speaks of whatever was the matter.
    let context_category = carried.iter().max_by(|a, b| a.1.total_cmp(b.1)).map(|(category, _)| *category);
    if let (Some(category), Some(evidence)) = (context_category, found.remove(&None)) {
        found.entry(Some(category)).or_default().rules.extend(evidence.rules);
    }

    let mut scores: Vec<Concern> = found
        .into_iter()
        .filter_map(|(category, evidence)| {
            let category = category?;
            let own = evidence.score(|_| true);
            // A denial after an alarm is not a new one.
            let plain = if evidence.is_plain() { evidence.score(|lowered| !lowered) } else { 0.0 };
            let carried = carried.get(&category).copied().unwrap_or(0.0);
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

/// What earlier turns of the person leave.
#[derive(Default)]
struct Earlier {
    /// Of the concern that they raised, by category.
    carried: BTreeMap<Category, f32>,
    /// Their hints, but for those of a concern that has had its answer: the conversation goes on after it.
    hints: BTreeSet<String>,
}

fn earlier(detector: &Detector, turns: &[Turn<'_>]) -> Earlier {
    let mut earlier = Earlier::default();
    let answer = turns.iter().rposition(|turn| turn.role == Role::Assistant);
    let users = turns.iter().enumerate().rev().filter(|(_, turn)| turn.role == Role::User);
    for (age, (at, turn)) in users.take(detector.context.turns).enumerate() {
        let mut counted = false;
        for (category, evidence) in read(detector, turn.text, &Earlier::default()) {
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
            earlier.hints.extend(detector.hints.names(&words(detector, turn.text)));
        }
    }
    earlier
}

/// "Are you thinking of ending your life?" - "yes". "Are you safe?" - "no".
fn answer_to_question(
    detector: &Detector,
    turns: &[Turn<'_>],
    last: usize,
    found: &mut BTreeMap<Option<Category>, Evidence>,
) {
    let Some(question) =
        last.checked_sub(1).map(|before| turns[before]).filter(|turn| turn.role == Role::Assistant)
    else {
        return;
    };
    let (asked, answer) = (detector.spelling.read(question.text), detector.spelling.read(turns[last].text));
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

/// The evidence of one message after others. `None` holds what needs context.
fn read(detector: &Detector, text: &str, earlier: &Earlier) -> BTreeMap<Option<Category>, Evidence> {
    let tokens = words(detector, text);
    let reader = Reader::new(detector, &tokens);
    let mut found = independent(matches(detector, &reader, !earlier.carried.is_empty()));
    let hints = &detector.hints;
    let reading = hints.read_after(&earlier.hints, &hints.names(&tokens));
    // After a concern the talk is about that, whatever else was named.
    let is_framed = earlier.carried.is_empty() && hints.is_framed(&earlier.hints);
    for evidence in found.values_mut() {
        evidence.doubted = match evidence.strongest {
            OUTRIGHT.. => is_framed && hints.doubts(reading.as_ref(), false),
            STRONG.. => hints.doubts(reading.as_ref(), false),
            _ => hints.doubts(reading.as_ref(), is_framed),
        };
    }
    if let Some(reading) = reading {
        let name = format!("hints ({})", reading.strongest.join(", "));
        let evidence = hints.evidence(reading.chance, is_framed);
        found.entry(Some(reading.category)).or_default().hints = Some((name, evidence));
    }
    found
}

/// Every rule wherever it matches.
fn matches<'a>(detector: &'a Detector, reader: &Reader<'_>, in_context: bool) -> Vec<Match<'a>> {
    let mut matches = Vec::new();
    for rule in &detector.rules {
        if rule.needs_context && !in_context {
            continue;
        }
        for span in rule.patterns.iter().flat_map(|pattern| reader.matcher.find_all(pattern)) {
            let Some((category, mut weight)) = reader.attribute(rule, span) else { continue };
            let mut lowered = Vec::new();
            for (lower, places) in detector.lower.iter().zip(&reader.lower) {
                if reader.applies(lower, places, rule, category, span) {
                    weight *= lower.factor;
                    lowered.push(lower.name.as_str());
                }
            }
            let category = (!rule.needs_context).then_some(category);
            matches.push(Match { rule: &rule.name, category, span, weight, lowered });
        }
    }
    matches
}

/// A rule at a place, lowered by its circumstances.
struct Match<'a> {
    rule: &'a str,
    category: Option<Category>,
    span: Span,
    weight: f32,
    lowered: Vec<&'a str>,
}

/// Words count once in a category, for the strongest rule that uses them, and so does a rule.
fn independent(mut matches: Vec<Match<'_>>) -> BTreeMap<Option<Category>, Evidence> {
    matches.sort_by(|a, b| b.weight.total_cmp(&a.weight).then(a.span.start.cmp(&b.span.start)));
    let mut used: HashSet<(Option<Category>, usize)> = HashSet::new();
    let mut rules: HashSet<(Option<Category>, &str)> = HashSet::new();
    let mut found: BTreeMap<Option<Category>, Evidence> = BTreeMap::new();
    for m in matches {
        let words = || (m.span.start..m.span.end).map(|at| (m.category, at));
        if rules.contains(&(m.category, m.rule)) || words().any(|word| used.contains(&word)) {
            continue;
        }
        used.extend(words());
        rules.insert((m.category, m.rule));
        let evidence = found.entry(m.category).or_default();
        if m.category == Some(Category::Suicide) && m.lowered.is_empty() {
            evidence.strongest = evidence.strongest.max(m.weight);
        }
        evidence.add(m.rule, m.weight, &m.lowered);
    }
    found
}

/// The hints of turns, see [`crate::Care::hints`].
pub(crate) fn hints(detector: &Detector, texts: &[&str]) -> BTreeSet<String> {
    texts.iter().flat_map(|text| detector.hints.names(&words(detector, text))).collect()
}

/// A message in plain spelling, idioms and titles masked.
fn words(detector: &Detector, text: &str) -> Vec<Token> {
    let mut tokens = detector.spelling.read(text);
    mask_idioms(detector, &mut tokens);
    tokens
}

fn mask_idioms(detector: &Detector, tokens: &mut [Token]) {
    let matcher = Matcher::new(&detector.classes, tokens);
    let spans: Vec<Span> = detector.idioms.iter().flat_map(|pattern| matcher.find_all(pattern)).collect();
    for span in spans {
        for token in &mut tokens[span.start..span.end] {
            if !token.is_mark() {
                token.text = MASK.to_owned();
            }
        }
    }
}

/// Who is spoken of at a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Person {
    First,
    Second,
    Third,
    Generic,
}

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

struct Reader<'a> {
    lower: Vec<Places>,
    matcher: Matcher<'a>,
    /// The person that the token at an index names, and whether only as the one spoken to ("I told my mum").
    persons: Vec<Option<Person>>,
    blocks: Vec<bool>,
    reported: Vec<Span>,
    /// Where what describes somebody begins.
    described: HashSet<usize>,
}

impl<'a> Reader<'a> {
    fn new(detector: &'a Detector, tokens: &'a [Token]) -> Self {
        let matcher = Matcher::new(&detector.classes, tokens);
        let subjects = &detector.subjects;
        let mut persons = vec![None; tokens.len()];
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
        let mut blocks = vec![false; tokens.len()];
        for span in matcher.find_longest(&subjects.blocks) {
            blocks[span.start..span.end].fill(true);
        }
        let mut reported = matcher.find_any(&subjects.reported);
        reported.sort_unstable_by_key(|span| span.end);
        let described =
            matcher.find_longest(&subjects.described).into_iter().map(|span| span.start).collect();
        let lower = detector.lower.iter().map(|_| Places::default()).collect();
        Self { lower, matcher, persons, blocks, reported, described }
    }

    /// The category of a match, by whom it is about; nothing where it is about the reader ("you").
    fn attribute(&self, rule: &Rule, span: Span) -> Option<(Category, f32)> {
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
            self.step();
            !self.matcher.tokens[reported.end.min(span.start)..span.start].iter().any(Token::is_stop)
        })
    }

    fn step(&self) {
        self.matcher.steps.set(self.matcher.steps.get() + 1);
    }

    fn applies(&self, lower: &Lower, places: &Places, rule: &Rule, category: Category, span: Span) -> bool {
        if lower.categories.as_ref().is_some_and(|categories| !categories.contains(&category))
            || lower.spares.contains(&rule.name)
        {
            return false;
        }
        let matcher = &self.matcher;
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
        spans[first..].iter().take_while(move |span| span.start < to).inspect(|_| self.step()).copied()
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::care::Care;

    /// The steps that reading a message takes.
    fn work(text: &str) -> usize {
        let care = Care::builtin();
        let detector = &care.rules.detector;
        let tokens = words(detector, text);
        let reader = Reader::new(detector, &tokens);
        matches(detector, &reader, false);
        reader.matcher.steps.get()
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
