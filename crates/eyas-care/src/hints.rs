//! The second reading of a message: what it speaks of, weighed.
//!
//! Rules foresee phrases; people find other words. Here the message is taken as a set of hints: subjects from a lexicon,
//! words, words in a row and words near each other. Each has a weight for each
//! category, learned from written messages by `tools/care/fit_hints.py` and kept as a table that can be read and changed.
//! The weights of the hints found are added and divided by the root of their number; a softmax over the categories and
//! "nothing" makes them chances. Turns that belong together are read as one message: the union of their hints.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::Deserialize;

use crate::error::{Result, rule_error};
use crate::text::{Spelling, Token, tokens};
use crate::types::Category;

/// `hints.toml` and `weights.toml` as they are written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct HintsEntry {
    threshold: f32,
    doubt: f32,
    together: f32,
    framed: f32,
    frames: Vec<String>,
    subjects: BTreeMap<String, Vec<String>>,
    categories: [Category; Category::ALL.len()],
    bias: Weights,
    weights: BTreeMap<String, Weights>,
}

/// One weight for each category, in the order of the file's `categories`.
type Weights = [f32; Category::ALL.len()];

/// The hints, ready.
#[derive(Debug)]
pub(crate) struct Hints {
    threshold: f32,
    /// Below this chance a rule that does not say it outright is doubted.
    doubt: f32,
    /// From this chance on a turn is read together with those before it.
    together: f32,
    /// The threshold after turns about a game, a film, a garden.
    framed: f32,
    /// The subjects that tell what a talk is about, such as a game, as hints.
    frames: BTreeSet<String>,
    lexicon: Lexicon,
    categories: [Category; Category::ALL.len()],
    bias: Weights,
    weights: HashMap<String, Weights>,
}

/// What the hints of a message come to.
#[derive(Debug, PartialEq)]
pub(crate) struct Reading {
    /// The chance that a trained reader would ask, from 0 to 1.
    pub(crate) chance: f32,
    /// The likeliest category.
    pub(crate) category: Category,
    /// The hints that spoke for it most, strongest first.
    pub(crate) strongest: Vec<String>,
}

/// Fewer hints are weighed as if there were so many: a short message says little. As in `tools/care/fit_hints.py`.
const FEWEST: usize = 10;

/// How many hints are named as the reason.
const NAMED: usize = 4;

impl HintsEntry {
    /// Compiles the entry; subjects are spelled as messages are.
    pub(crate) fn compile(self, spelling: &Spelling) -> Result<Hints> {
        for (name, value) in [("threshold", self.threshold), ("framed", self.framed)] {
            if !(value > 0.0 && value < 1.0) {
                return Err(rule_error(format!("hints.{name}"), "a chance between 0 and 1 is needed"));
            }
        }
        for (name, value) in [("doubt", self.doubt), ("together", self.together)] {
            if !(0.0..=1.0).contains(&value) {
                return Err(rule_error(format!("hints.{name}"), "a chance from 0 to 1 is needed"));
            }
        }
        if let Some(frame) = self.frames.iter().find(|frame| !self.subjects.contains_key(*frame)) {
            return Err(rule_error("hints.frames", format!("there is no subject {frame}")));
        }
        let mut all = self.categories;
        all.sort_unstable();
        if all != Category::ALL {
            return Err(rule_error("hints.categories", "each category is needed, once"));
        }
        if let Some((name, _)) =
            self.weights.iter().find(|(_, weights)| weights.iter().any(|w| !w.is_finite()))
        {
            return Err(rule_error(format!("hints.weights.\"{name}\""), "a weight is a finite number"));
        }
        Ok(Hints {
            threshold: self.threshold,
            doubt: self.doubt,
            together: self.together,
            framed: self.framed,
            frames: self.frames.iter().map(|frame| format!("@{frame}")).collect(),
            lexicon: Lexicon::new(&self.subjects, spelling)?,
            categories: self.categories,
            bias: self.bias,
            // A hint whose weights are all zero is off: it is not counted either.
            weights: self.weights.into_iter().filter(|(_, w)| w.iter().any(|w| *w != 0.0)).collect(),
        })
    }
}

impl Hints {
    /// Everything in a message that could be a hint, known or not.
    pub(crate) fn names(&self, tokens: &[Token]) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        for sentence in tokens.split(Token::is_stop) {
            found.extend(self.lexicon.subjects(sentence).into_iter().map(|subject| format!("@{subject}")));
            near(sentence, &mut found);
        }
        for (at, token) in tokens.iter().enumerate() {
            if token.text == "?" || token.text == "\"" {
                found.insert(token.text.clone());
            }
            if token.is_mark() {
                continue;
            }
            let mut row = stem(&token.text).to_owned();
            found.insert(row.clone());
            if let Some(next) = tokens.get(at + 1).filter(|next| !next.is_mark()) {
                if !(token.is_han() && next.is_han()) {
                    row.push(' ');
                }
                row.push_str(stem(&next.text));
                found.insert(row);
            }
        }
        found
    }

    /// Weighs hints; nothing where none has a weight.
    pub(crate) fn read(&self, names: &BTreeSet<String>) -> Option<Reading> {
        let found: Vec<_> = names.iter().filter_map(|name| Some((name, self.weights.get(name)?))).collect();
        if found.is_empty() {
            return None;
        }
        let scale = 1.0 / (found.len().max(FEWEST) as f32).sqrt();
        let mut sums = self.bias;
        for (_, weights) in &found {
            for (sum, weight) in sums.iter_mut().zip(*weights) {
                *sum += weight * scale;
            }
        }
        let powers = sums.map(|sum| sum.min(40.0).exp());
        let total: f32 = powers.iter().sum();
        let best = (0..powers.len()).max_by(|a, b| powers[*a].total_cmp(&powers[*b]))?;
        let mut strongest: Vec<_> = found
            .iter()
            .filter(|(_, weights)| weights[best] > 0.0)
            .map(|(name, w)| (w[best], *name))
            .collect();
        strongest.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| a.1.cmp(b.1)));
        Some(Reading {
            chance: total / (1.0 + total),
            category: self.categories[best],
            strongest: strongest.into_iter().take(NAMED).map(|(_, name)| name.clone()).collect(),
        })
    }

    /// Weighs the hints of a turn, in the light of those of the turns before it where it is not plainly harmless.
    pub(crate) fn read_after(&self, earlier: &BTreeSet<String>, last: &BTreeSet<String>) -> Option<Reading> {
        let alone = self.read(last);
        if earlier.is_empty() || alone.as_ref().is_none_or(|reading| reading.chance < self.together) {
            return alone;
        }
        self.read(&earlier.union(last).cloned().collect())
    }

    /// Whether the hints make a rule doubtful.
    pub(crate) fn doubts(&self, reading: Option<&Reading>, is_framed: bool) -> bool {
        let least = if is_framed { self.framed } else { self.doubt };
        reading.is_none_or(|reading| reading.chance < least)
    }

    /// Whether one of the hints tells what the talk is about: a game, a film, code.
    pub(crate) fn is_framed(&self, names: &BTreeSet<String>) -> bool {
        !self.frames.is_disjoint(names)
    }

    /// A chance as the weight of evidence: 0.5 at the threshold, so that what is below it needs support.
    pub(crate) fn evidence(&self, chance: f32, is_framed: bool) -> f32 {
        let threshold = if is_framed { self.framed } else { self.threshold };
        if chance < threshold {
            0.5 * chance / threshold
        } else {
            0.5 + 0.45 * (chance - threshold) / (1.0 - threshold)
        }
    }
}

/// Words of a sentence with one or two others between, in Latin letters.
fn near(sentence: &[Token], found: &mut BTreeSet<String>) {
    let words: Vec<&str> =
        sentence.iter().filter(|token| !token.is_mark()).map(|token| stem(&token.text)).collect();
    for (at, first) in words.iter().enumerate().filter(|(_, first)| first.is_ascii()) {
        let others = words.iter().skip(at + 2).take(2).filter(|second| second.is_ascii());
        found.extend(others.map(|second| format!("{first} _ {second}")));
    }
}

/// A word without its commonest endings, so that "waking" and "wake" differ less.
fn stem(word: &str) -> &str {
    ["ing", "ed", "ies", "es", "ly", "s"]
        .iter()
        .filter_map(|ending| word.strip_suffix(ending))
        .find(|start| start.len() >= 3 && start.is_ascii())
        .unwrap_or(word)
}

/// Subjects by the words that speak of them.
#[derive(Debug, Default)]
struct Lexicon {
    names: Vec<String>,
    /// By first word: the words after it, and the subject.
    phrases: HashMap<String, Vec<(Vec<String>, usize)>>,
    /// Beginnings of words.
    starts: HashMap<String, Vec<usize>>,
}

/// A beginning has at least so many letters.
const SHORTEST_START: usize = 3;

impl Lexicon {
    fn new(subjects: &BTreeMap<String, Vec<String>>, spelling: &Spelling) -> Result<Self> {
        let mut lexicon = Self::default();
        for (index, (name, phrases)) in subjects.iter().enumerate() {
            lexicon.names.push(name.clone());
            for phrase in phrases {
                if let Some(start) = phrase.strip_suffix('*') {
                    if start.len() < SHORTEST_START || !start.bytes().all(|b| b.is_ascii_lowercase()) {
                        let place = format!("hints.subjects.{name} \"{phrase}\"");
                        return Err(rule_error(place, "before * stand at least three small letters"));
                    }
                    lexicon.starts.entry(start.to_owned()).or_default().push(index);
                    continue;
                }
                let words =
                    tokens(phrase).into_iter().filter(|token| !token.is_mark()).map(|token| token.text);
                let words = spelling.without_fillers(words.flat_map(|word| spelling.expand(&word)).collect());
                // A filler says nothing here either.
                let Some((first, rest)) = words.split_first() else { continue };
                lexicon.phrases.entry(first.clone()).or_default().push((rest.to_vec(), index));
            }
        }
        Ok(lexicon)
    }

    fn subjects(&self, sentence: &[Token]) -> BTreeSet<&str> {
        let mut found = BTreeSet::new();
        for (at, token) in sentence.iter().enumerate() {
            for (rest, index) in self.phrases.get(&token.text).into_iter().flatten() {
                let here = sentence.get(at + 1..at + 1 + rest.len());
                if here.is_some_and(|here| here.iter().map(|token| &token.text).eq(rest)) {
                    found.insert(self.names[*index].as_str());
                }
            }
            if token.text.is_ascii() {
                for end in SHORTEST_START..=token.text.len().min(16) {
                    for index in self.starts.get(&token.text[..end]).into_iter().flatten() {
                        found.insert(self.names[*index].as_str());
                    }
                }
            }
        }
        found
    }
}
