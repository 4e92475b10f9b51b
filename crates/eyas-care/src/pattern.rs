//! The little language of `rules.toml`, and its matcher.
//!
//! A pattern is a row of elements with spaces between:
//!
//! | element | stands for |
//! |---|---|
//! | `die`, `想死` | the word; each Chinese character is one token |
//! | `wake_up` | words in a row, as one element |
//! | `end\|stop\|wake_up` | one of these |
//! | `hang*` | a word that starts so |
//! | `@want` | anything of the class `want` |
//! | `over?` | may be missing |
//! | `~3` | up to 3 tokens of the same sentence |
//! | `~~9` | up to 9 tokens, also of the next sentences |
//! | `!of\|in` | what follows is none of these |
//! | `<wo` | what stands before is none of these (words of one token) |
//! | `#` | a number |
//! | `^`, `$` | start and end of a clause (at punctuation) |
//! | `^^`, `$$` | start and end of the message |

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::{HashMap, HashSet};
use std::rc::Rc;

use crate::error::{Result, rule_error};
use crate::text::{Spelling, Token, tokens};

#[derive(Debug, Clone)]
enum Element {
    Word(String),
    Prefix(String),
    Number,
    Class(usize),
    OneOf(Vec<Vec<Element>>),
    Optional(Vec<Vec<Element>>),
    Not(Vec<Vec<Element>>),
    NotAfter(Vec<String>),
    Gap { most: usize, across: bool },
    ClauseStart,
    ClauseEnd,
    MessageStart,
    MessageEnd,
}

/// A compiled pattern.
#[derive(Debug, Clone)]
pub(crate) struct Pattern(Vec<Element>);

/// So many marks more than words may stand in a gap.
const MARKS: usize = 8;

/// Where a pattern matched: tokens `start..end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) start: usize,
    pub(crate) end: usize,
}

/// Named classes of words, compiled.
#[derive(Debug, Default)]
pub(crate) struct Classes {
    names: HashMap<String, usize>,
    patterns: Vec<Vec<Pattern>>,
}

impl Classes {
    /// Compiles all classes. They may use each other, not themselves.
    pub(crate) fn compile<'a>(
        classes: impl IntoIterator<Item = (&'a String, &'a Vec<String>)>,
        spelling: &Spelling,
    ) -> Result<Self> {
        let classes: Vec<_> = classes.into_iter().collect();
        let names = classes.iter().enumerate().map(|(index, (name, _))| ((*name).clone(), index)).collect();
        let mut compiled = Self { names, patterns: Vec::new() };
        for (name, patterns) in &classes {
            let patterns = compiled.compile_all(patterns, spelling, &format!("classes.{name}"))?;
            compiled.patterns.push(patterns);
        }
        for (index, (name, _)) in classes.iter().enumerate() {
            if compiled.reaches(index, index, &mut vec![false; classes.len()]) {
                return Err(rule_error(format!("classes.{name}"), "the class uses itself"));
            }
        }
        Ok(compiled)
    }

    fn reaches(&self, from: usize, target: usize, seen: &mut [bool]) -> bool {
        let mut used = Vec::new();
        self.patterns[from].iter().for_each(|pattern| used_classes(&pattern.0, &mut used));
        used.into_iter().any(|class| {
            class == target
                || (!std::mem::replace(&mut seen[class], true) && self.reaches(class, target, seen))
        })
    }

    /// Compiles patterns that may use the classes; `place` names them in errors.
    pub(crate) fn compile_all(
        &self,
        patterns: &[String],
        spelling: &Spelling,
        place: &str,
    ) -> Result<Vec<Pattern>> {
        patterns
            .iter()
            .enumerate()
            .map(|(index, text)| {
                self.pattern(text, spelling)
                    .map(Pattern)
                    .map_err(|message| rule_error(format!("{place}[{index}] \"{text}\""), message))
            })
            .collect()
    }

    fn pattern(&self, text: &str, spelling: &Spelling) -> std::result::Result<Vec<Element>, String> {
        let mut elements = Vec::new();
        for part in text.split_whitespace() {
            match part {
                "^" => elements.push(Element::ClauseStart),
                "$" => elements.push(Element::ClauseEnd),
                "^^" => elements.push(Element::MessageStart),
                "$$" => elements.push(Element::MessageEnd),
                "#" => elements.push(Element::Number),
                _ => {
                    if let Some(gap) = part.strip_prefix('~') {
                        let (gap, across) = gap.strip_prefix('~').map_or((gap, false), |gap| (gap, true));
                        let most: usize =
                            gap.parse().map_err(|_| format!("{part}: a gap is ~ and a number"))?;
                        if most > 40 {
                            return Err(format!("{part}: a gap is 40 tokens at most"));
                        }
                        elements.push(Element::Gap { most, across });
                    } else if let Some(not) = part.strip_prefix('!') {
                        elements.push(Element::Not(self.alternatives(not, spelling)?));
                    } else if let Some(before) = part.strip_prefix('<') {
                        let words = before.split('|').flat_map(tokens).map(|token| token.text).collect();
                        elements.push(Element::NotAfter(words));
                    } else if let Some(optional) = part.strip_suffix('?').filter(|p| !p.is_empty()) {
                        elements.push(Element::Optional(self.alternatives(optional, spelling)?));
                    } else {
                        let mut alternatives = self.alternatives(part, spelling)?;
                        match alternatives.len() {
                            0 => {}
                            1 => elements.append(&mut alternatives[0]),
                            _ => elements.push(Element::OneOf(alternatives)),
                        }
                    }
                }
            }
        }
        let says_something = elements.iter().any(|element| {
            matches!(
                element,
                Element::Word(_)
                    | Element::Prefix(_)
                    | Element::Class(_)
                    | Element::OneOf(_)
                    | Element::Number
            )
        });
        if says_something { Ok(elements) } else { Err("a pattern needs a word or a class".to_owned()) }
    }

    fn alternatives(
        &self,
        text: &str,
        spelling: &Spelling,
    ) -> std::result::Result<Vec<Vec<Element>>, String> {
        // A filler says nothing here either.
        let mut all = text
            .split('|')
            .map(|atom| self.atom(atom, spelling))
            .collect::<std::result::Result<Vec<_>, _>>()?;
        all.retain(|elements| !elements.is_empty());
        Ok(all)
    }

    fn atom(&self, atom: &str, spelling: &Spelling) -> std::result::Result<Vec<Element>, String> {
        if let Some(name) = atom.strip_prefix('@') {
            let class = self.names.get(name).ok_or_else(|| format!("there is no class {name}"))?;
            return Ok(vec![Element::Class(*class)]);
        }
        match atom {
            "#" => return Ok(vec![Element::Number]),
            "$" => return Ok(vec![Element::ClauseEnd]),
            "^" => return Ok(vec![Element::ClauseStart]),
            _ => {}
        }
        if let Some(start) = atom.strip_suffix('*') {
            return Ok(vec![Element::Prefix(start.to_lowercase())]);
        }
        let mut words = Vec::new();
        for token in tokens(atom) {
            let expanded =
                if token.text.is_ascii() { spelling.expand(&token.text) } else { vec![token.text] };
            words.extend(expanded);
        }
        if words.is_empty() {
            return Err(format!("\"{atom}\" holds no word"));
        }
        Ok(spelling.without_fillers(words).into_iter().map(Element::Word).collect())
    }
}

/// Every Latin word in a pattern's text, for the spelling to know.
pub(crate) fn words_of(pattern: &str) -> impl Iterator<Item = String> {
    pattern
        .split_whitespace()
        .filter(|part| !part.starts_with('~') && !part.starts_with('^') && !part.starts_with('$'))
        .flat_map(|part| part.trim_start_matches(['!', '<']).trim_end_matches('?').split('|'))
        .filter(|atom| !atom.starts_with('@') && !atom.ends_with('*'))
        .flat_map(tokens)
        .map(|token| token.text)
        .filter(|word| word.bytes().all(|b| b.is_ascii_alphabetic()))
}

fn used_classes(elements: &[Element], used: &mut Vec<usize>) {
    for element in elements {
        match element {
            Element::Class(class) => used.push(*class),
            Element::OneOf(all) | Element::Optional(all) | Element::Not(all) => {
                all.iter().for_each(|elements| used_classes(elements, used));
            }
            _ => {}
        }
    }
}

/// The ends of matches of a class from a start.
type ClassEnds = HashMap<(usize, usize), Rc<[usize]>>;

/// Matches patterns against one text, remembering where classes match.
#[derive(Debug)]
pub(crate) struct Matcher<'a> {
    classes: &'a Classes,
    pub(crate) tokens: &'a [Token],
    /// The first word, and the end of the last.
    words: (usize, usize),
    /// Every token's text, and of each class the patterns whose words are all among them: most patterns need no search.
    present: HashSet<&'a str>,
    possible: Vec<OnceCell<Vec<usize>>>,
    seen: RefCell<ClassEnds>,
    /// How many steps were taken, for tests of how the work grows.
    pub(crate) steps: Cell<usize>,
}

impl<'a> Matcher<'a> {
    pub(crate) fn new(classes: &'a Classes, tokens: &'a [Token]) -> Self {
        let is_word = |token: &Token| !token.is_mark();
        let first = tokens.iter().position(is_word).unwrap_or(tokens.len());
        let end = tokens.iter().rposition(is_word).map_or(0, |last| last + 1);
        Self {
            classes,
            tokens,
            words: (first, end),
            present: tokens.iter().map(|token| token.text.as_str()).collect(),
            possible: vec![OnceCell::new(); classes.patterns.len()],
            seen: RefCell::default(),
            steps: Cell::new(0),
        }
    }

    /// Counts a step of whoever goes through what was matched.
    pub(crate) fn count_step(&self) {
        self.steps.set(self.steps.get() + 1);
    }

    /// Every start where a pattern matches, with its shortest end.
    pub(crate) fn find_all(&self, pattern: &Pattern) -> Vec<Span> {
        if !self.is_possible(&pattern.0) {
            return Vec::new();
        }
        (0..self.tokens.len())
            .filter_map(|start| {
                let ends = self.ends(&pattern.0, start);
                ends.into_iter().filter(|end| *end > start).min().map(|end| Span { start, end })
            })
            .collect()
    }

    /// Every start where one of the patterns matches, with its longest end.
    pub(crate) fn find_longest(&self, patterns: &[Pattern]) -> Vec<Span> {
        let patterns: Vec<_> = patterns.iter().filter(|pattern| self.is_possible(&pattern.0)).collect();
        (0..self.tokens.len())
            .filter_map(|start| {
                let ends = patterns.iter().flat_map(|pattern| self.ends(&pattern.0, start));
                ends.filter(|end| *end > start).max().map(|end| Span { start, end })
            })
            .collect()
    }

    /// Whether one of the patterns matches somewhere that `accept` agrees to.
    pub(crate) fn any(&self, patterns: &[Pattern], mut accept: impl FnMut(Span) -> bool) -> bool {
        patterns.iter().any(|pattern| self.find_all(pattern).into_iter().any(&mut accept))
    }

    /// Every place of [`Self::find_all`] for all of the patterns, by start.
    pub(crate) fn find_any(&self, patterns: &[Pattern]) -> Vec<Span> {
        let mut spans: Vec<Span> = patterns.iter().flat_map(|pattern| self.find_all(pattern)).collect();
        spans.sort_unstable_by_key(|span| (span.start, span.end));
        spans.dedup();
        spans
    }

    /// Whether the text holds every word that the elements need, wherever it stands.
    fn is_possible(&self, elements: &[Element]) -> bool {
        elements.iter().all(|element| match element {
            Element::Word(word) => self.present.contains(word.as_str()),
            Element::Prefix(start) => self.present.iter().any(|word| word.starts_with(start)),
            Element::OneOf(all) => all.iter().any(|elements| self.is_possible(elements)),
            Element::Class(class) => !self.possible(*class).is_empty(),
            _ => true,
        })
    }

    /// The patterns of a class that the text holds the words for.
    fn possible(&self, class: usize) -> &[usize] {
        self.possible[class].get_or_init(|| {
            let patterns = self.classes.patterns[class].iter().enumerate();
            patterns.filter(|(_, pattern)| self.is_possible(&pattern.0)).map(|(index, _)| index).collect()
        })
    }

    fn ends(&self, elements: &[Element], start: usize) -> Vec<usize> {
        let mut at = vec![start];
        for element in elements {
            let mut next = Vec::new();
            for position in &at {
                self.step(element, *position, &mut next);
            }
            next.sort_unstable();
            next.dedup();
            if next.is_empty() {
                return next;
            }
            at = next;
        }
        at
    }

    fn step(&self, element: &Element, at: usize, next: &mut Vec<usize>) {
        self.count_step();
        let token = self.tokens.get(at);
        let mut when = |holds: bool, to: usize| {
            if holds {
                next.push(to);
            }
        };
        match element {
            Element::Word(word) => when(token.is_some_and(|token| token.text == *word), at + 1),
            Element::Prefix(start) => when(token.is_some_and(|token| token.text.starts_with(start)), at + 1),
            Element::Number => when(token.is_some_and(Token::is_number), at + 1),
            Element::ClauseStart => when(at == 0 || self.tokens[at - 1].is_mark(), at),
            Element::ClauseEnd => when(token.is_none_or(Token::is_mark), at),
            Element::MessageStart => when(at <= self.words.0, at),
            Element::MessageEnd => when(at >= self.words.1, at),
            Element::Not(all) => when(all.iter().all(|elements| self.ends(elements, at).is_empty()), at),
            Element::NotAfter(words) => when(at == 0 || !words.contains(&self.tokens[at - 1].text), at),
            Element::Gap { most, across } => {
                // Commas and quotation marks cost nothing, but not without end.
                let mut left = *most;
                next.push(at);
                for (to, token) in self.tokens.iter().enumerate().skip(at).take(2 * most + MARKS) {
                    if token.is_stop() && !across {
                        break;
                    }
                    if !token.is_mark() {
                        if left == 0 {
                            break;
                        }
                        left -= 1;
                    }
                    next.push(to + 1);
                }
            }
            Element::OneOf(all) => all.iter().for_each(|elements| next.extend(self.ends(elements, at))),
            Element::Optional(all) => {
                next.push(at);
                all.iter().for_each(|elements| next.extend(self.ends(elements, at)));
            }
            Element::Class(class) => {
                if at < self.tokens.len() {
                    next.extend_from_slice(&self.class(*class, at));
                }
            }
        }
    }

    fn class(&self, class: usize, at: usize) -> Rc<[usize]> {
        if let Some(ends) = self.seen.borrow().get(&(class, at)) {
            return Rc::clone(ends);
        }
        let patterns = &self.classes.patterns[class];
        let mut ends: Vec<_> =
            self.possible(class).iter().flat_map(|index| self.ends(&patterns[*index].0, at)).collect();
        ends.sort_unstable();
        ends.dedup();
        let ends: Rc<[usize]> = ends.into();
        self.seen.borrow_mut().insert((class, at), Rc::clone(&ends));
        ends
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, text: &str) -> Option<(usize, usize)> {
        let spelling = Spelling::default();
        let table = std::collections::BTreeMap::from([
            ("want".to_owned(), vec!["want to".to_owned(), "想|要".to_owned()]),
            ("end".to_owned(), vec!["die".to_owned(), "end it !in".to_owned(), "死".to_owned()]),
        ]);
        let classes = Classes::compile(&table, &spelling).expect("classes");
        let pattern = classes.compile_all(&[pattern.to_owned()], &spelling, "test").expect("a pattern");
        let tokens = tokens(text);
        let found = Matcher::new(&classes, &tokens).find_all(&pattern[0]);
        found.first().map(|span| (span.start, span.end))
    }

    #[test]
    fn classes_and_gaps_stay_in_the_sentence() {
        assert_eq!(matches("@want ~2 @end", "i want to, well, die"), Some((1, 7)));
        assert_eq!(matches("@want ~2 @end", "what i want to. die hard"), None);
        assert_eq!(matches("@want ~~2 @end", "what i want to. die hard"), Some((2, 6)));
        assert_eq!(matches("@want ~2 @end", "我好想去死"), Some((2, 5)));
    }

    #[test]
    fn what_must_not_follow() {
        assert_eq!(matches("@want @end", "want to end it in june"), None);
        assert_eq!(matches("@want @end", "want to end it"), Some((0, 4)));
        assert_eq!(matches("想 ~2 <砍 死", "想砍死"), None);
        assert_eq!(matches("想 ~2 <砍 死", "想就死"), Some((0, 3)));
    }

    #[test]
    fn optional_words_anchors_and_numbers() {
        assert_eq!(matches("^ die soon? $", "oh, die soon."), Some((2, 4)));
        assert_eq!(matches("^^ die $$", "oh, die."), None);
        assert_eq!(matches("# pill*", "took 20 pills"), Some((1, 3)));
    }

    #[test]
    fn mistakes_are_named() {
        let spelling = Spelling::default();
        let circle = std::collections::BTreeMap::from([
            ("a".to_owned(), vec!["x @b".to_owned()]),
            ("b".to_owned(), vec!["@a".to_owned()]),
        ]);
        let error = Classes::compile(&circle, &spelling).expect_err("a circle").to_string();
        assert!(error.contains("classes.a"), "{error}");
        let error = Classes::default()
            .compile_all(&["die @nothing".to_owned()], &spelling, "rules.x.patterns")
            .expect_err("an unknown class")
            .to_string();
        assert!(error.contains("rules.x.patterns[0]") && error.contains("nothing"), "{error}");
    }
}
