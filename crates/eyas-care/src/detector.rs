//! The detector's files (`rules.toml`, `classes.toml`, `idioms.toml`, `spelling.toml`, `hints.toml`), compiled.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::error::{Result, rule_error};
use crate::hints::{Hints, HintsEntry};
use crate::pattern::{Classes, Pattern, words_of};
use crate::text::Spelling;
use crate::types::Category;

type Patterns = Vec<String>;

/// The files as they are written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DetectorFile {
    thresholds: BTreeMap<Category, f32>,
    context: ContextEntry,
    spelling: SpellingEntry,
    subjects: SubjectsEntry,
    classes: BTreeMap<String, Patterns>,
    idioms: BTreeMap<String, Patterns>,
    lower: BTreeMap<String, LowerEntry>,
    rules: BTreeMap<String, RuleEntry>,
    hints: HintsEntry,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ContextEntry {
    carry: f32,
    decay: f32,
    turns: usize,
    asks: Patterns,
    yes: Patterns,
    unsafe_asks: Patterns,
    no: Patterns,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SpellingEntry {
    expansions: BTreeMap<String, String>,
    keys: Vec<String>,
    not_slips: Vec<String>,
    fillers: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SubjectsEntry {
    first: Patterns,
    second: Patterns,
    third: Patterns,
    generic: Patterns,
    listener: Patterns,
    blocks: Patterns,
    reported: Patterns,
    described: Patterns,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RuleEntry {
    category: Category,
    weight: f32,
    #[serde(default)]
    about_self: bool,
    #[serde(default)]
    needs_context: bool,
    #[serde(default)]
    off: bool,
    patterns: Patterns,
}

/// How far a circumstance reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Scope {
    /// Right before the match.
    Before,
    /// In its sentence.
    Sentence,
    /// Anywhere in the message.
    Message,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct LowerEntry {
    scope: Scope,
    factor: f32,
    patterns: Patterns,
    #[serde(default)]
    within: usize,
    #[serde(default)]
    blockers: Patterns,
    #[serde(default)]
    unless: Patterns,
    #[serde(default)]
    near: Patterns,
    categories: Option<Vec<Category>>,
    #[serde(default)]
    spares: Vec<String>,
}

/// A rule, compiled.
#[derive(Debug)]
pub(crate) struct Rule {
    pub(crate) name: String,
    pub(crate) category: Category,
    pub(crate) weight: f32,
    /// Its words name the person, so nobody else can be meant.
    pub(crate) about_self: bool,
    /// It counts only after an earlier turn raised concern.
    pub(crate) needs_context: bool,
    pub(crate) patterns: Vec<Pattern>,
}

/// A circumstance that lowers a match.
#[derive(Debug)]
pub(crate) struct Lower {
    pub(crate) name: String,
    pub(crate) scope: Scope,
    pub(crate) factor: f32,
    pub(crate) within: usize,
    pub(crate) patterns: Vec<Pattern>,
    pub(crate) blockers: Vec<Pattern>,
    pub(crate) unless: Vec<Pattern>,
    pub(crate) near: Vec<Pattern>,
    pub(crate) categories: Option<Vec<Category>>,
    pub(crate) spares: Vec<String>,
}

/// Who is spoken of.
#[derive(Debug)]
pub(crate) struct Subjects {
    pub(crate) first: Vec<Pattern>,
    pub(crate) second: Vec<Pattern>,
    pub(crate) third: Vec<Pattern>,
    pub(crate) generic: Vec<Pattern>,
    pub(crate) listener: Vec<Pattern>,
    pub(crate) blocks: Vec<Pattern>,
    pub(crate) reported: Vec<Pattern>,
    pub(crate) described: Vec<Pattern>,
}

/// What earlier turns do.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) carry: f32,
    pub(crate) decay: f32,
    pub(crate) turns: usize,
    pub(crate) asks: Vec<Pattern>,
    pub(crate) yes: Vec<Pattern>,
    pub(crate) unsafe_asks: Vec<Pattern>,
    pub(crate) no: Vec<Pattern>,
}

/// The detector, ready.
#[derive(Debug)]
pub(crate) struct Detector {
    pub(crate) spelling: Spelling,
    pub(crate) classes: Classes,
    pub(crate) thresholds: BTreeMap<Category, f32>,
    pub(crate) context: Context,
    pub(crate) subjects: Subjects,
    pub(crate) idioms: Vec<Pattern>,
    pub(crate) lower: Vec<Lower>,
    pub(crate) rules: Vec<Rule>,
    pub(crate) hints: Hints,
}

impl DetectorFile {
    /// The top-level keys of this part.
    pub(crate) const KEYS: [&str; 9] =
        ["thresholds", "context", "spelling", "subjects", "classes", "idioms", "lower", "rules", "hints"];

    fn all_patterns(&self) -> impl Iterator<Item = &String> {
        let subjects = &self.subjects;
        let subjects = [
            &subjects.first,
            &subjects.second,
            &subjects.third,
            &subjects.generic,
            &subjects.listener,
            &subjects.blocks,
            &subjects.reported,
            &subjects.described,
        ];
        let context = [&self.context.asks, &self.context.yes, &self.context.unsafe_asks, &self.context.no];
        let lower = self
            .lower
            .values()
            .flat_map(|lower| [&lower.patterns, &lower.blockers, &lower.unless, &lower.near]);
        self.classes
            .values()
            .chain(self.idioms.values())
            .chain(self.rules.values().map(|rule| &rule.patterns))
            .chain(subjects)
            .chain(context)
            .chain(lower)
            .flatten()
    }

    /// Compiles everything; `others` are patterns elsewhere that use the same words.
    pub(crate) fn compile(self, others: &[String]) -> Result<Detector> {
        for category in Category::ALL {
            match self.thresholds.get(&category) {
                Some(threshold) if threshold.is_finite() && *threshold > 0.0 => {}
                _ => {
                    let message = "a number above zero is needed; above 1 switches the category off";
                    return Err(rule_error(format!("thresholds.{}", category.name()), message));
                }
            }
        }
        let entry = &self.spelling;
        let mut spelling = Spelling::new(&entry.expansions, &entry.keys, &entry.not_slips, &entry.fillers);
        let words: Vec<_> = self.all_patterns().chain(others).flat_map(|pattern| words_of(pattern)).collect();
        words.iter().for_each(|word| spelling.learn(word));
        let classes = Classes::compile(&self.classes, &spelling)?;
        let compile = |patterns: &Patterns, place: &str| classes.compile_all(patterns, &spelling, place);

        let mut rules = Vec::new();
        for (name, rule) in &self.rules {
            if !(0.0..=1.0).contains(&rule.weight) {
                return Err(rule_error(format!("rules.{name}.weight"), "a weight is from 0 to 1"));
            }
            if rule.off {
                continue;
            }
            rules.push(Rule {
                name: name.clone(),
                category: rule.category,
                weight: rule.weight,
                about_self: rule.about_self,
                needs_context: rule.needs_context,
                patterns: compile(&rule.patterns, &format!("rules.{name}.patterns"))?,
            });
        }
        let mut lower = Vec::new();
        for (name, entry) in &self.lower {
            let place = |key: &str| format!("lower.{name}.{key}");
            if !(0.0..=1.0).contains(&entry.factor) {
                return Err(rule_error(place("factor"), "a factor is from 0 to 1"));
            }
            if let Some(rule) = entry.spares.iter().find(|rule| !self.rules.contains_key(*rule)) {
                return Err(rule_error(place("spares"), format!("there is no rule {rule}")));
            }
            lower.push(Lower {
                name: name.clone(),
                scope: entry.scope,
                factor: entry.factor,
                within: entry.within,
                patterns: compile(&entry.patterns, &place("patterns"))?,
                blockers: compile(&entry.blockers, &place("blockers"))?,
                unless: compile(&entry.unless, &place("unless"))?,
                near: compile(&entry.near, &place("near"))?,
                categories: entry.categories.clone(),
                spares: entry.spares.clone(),
            });
        }
        let mut idioms = Vec::new();
        for (name, patterns) in &self.idioms {
            idioms.extend(compile(patterns, &format!("idioms.{name}"))?);
        }
        let context = &self.context;
        if !(0.0..=1.0).contains(&context.carry) || !(0.0..=1.0).contains(&context.decay) {
            return Err(rule_error("context", "carry and decay are from 0 to 1"));
        }
        Ok(Detector {
            context: Context {
                carry: context.carry,
                decay: context.decay,
                turns: context.turns,
                asks: compile(&context.asks, "context.asks")?,
                yes: compile(&context.yes, "context.yes")?,
                unsafe_asks: compile(&context.unsafe_asks, "context.unsafe_asks")?,
                no: compile(&context.no, "context.no")?,
            },
            subjects: Subjects {
                first: compile(&self.subjects.first, "subjects.first")?,
                second: compile(&self.subjects.second, "subjects.second")?,
                third: compile(&self.subjects.third, "subjects.third")?,
                generic: compile(&self.subjects.generic, "subjects.generic")?,
                listener: compile(&self.subjects.listener, "subjects.listener")?,
                blocks: compile(&self.subjects.blocks, "subjects.blocks")?,
                reported: compile(&self.subjects.reported, "subjects.reported")?,
                described: compile(&self.subjects.described, "subjects.described")?,
            },
            hints: self.hints.compile(&spelling)?,
            thresholds: self.thresholds,
            idioms,
            lower,
            rules,
            classes,
            spelling,
        })
    }
}
