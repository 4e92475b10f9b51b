//! The evidence for a concern: the rules that matched, weighed together, and what the hints come to.

use std::collections::{BTreeMap, HashSet};

use crate::pattern::Span;
use crate::types::Category;

/// Hints below this do not speak for themselves in the light of earlier turns.
const FAINT: f32 = 0.35;

/// What is left of rules that the hints make doubtful: none alarms alone.
const DOUBTED: f32 = 0.5;

/// The evidence for one category.
#[derive(Debug, Default)]
pub(crate) struct Evidence {
    /// The strongest weight of each rule, after lowering, and whether anything lowered it.
    pub(crate) rules: BTreeMap<String, (f32, bool)>,
    /// The strongest rule that nothing lowered.
    pub(crate) strongest: f32,
    /// Where the rules matched.
    pub(crate) places: Vec<Span>,
    /// Whether the hints make the rules doubtful.
    pub(crate) doubted: bool,
    /// What the hints come to. They read the same words as the rules, so the stronger of the two counts, not their sum.
    pub(crate) hints: Option<(String, f32)>,
}

/// Evidence by category; `None` holds what needs context.
pub(crate) type Found = BTreeMap<Option<Category>, Evidence>;

impl Evidence {
    pub(crate) fn add(&mut self, name: &str, weight: f32, lowered: &[&str]) {
        let name =
            if lowered.is_empty() { name.to_owned() } else { format!("{name} ({})", lowered.join(", ")) };
        let entry = self.rules.entry(name).or_insert((0.0, !lowered.is_empty()));
        entry.0 = entry.0.max(weight);
    }

    pub(crate) fn score(&self, counts: impl Fn(bool) -> bool) -> f32 {
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
    pub(crate) fn is_plain(&self) -> bool {
        self.rules.values().any(|(_, lowered)| !lowered)
            || self.hints.as_ref().is_some_and(|(_, hints)| *hints >= FAINT)
    }

    pub(crate) fn names(self) -> Vec<String> {
        self.rules.into_keys().chain(self.hints.map(|(name, _)| name)).collect()
    }
}

/// A rule at a place, lowered by its circumstances.
pub(crate) struct Match<'a> {
    pub(crate) rule: &'a str,
    pub(crate) category: Option<Category>,
    pub(crate) span: Span,
    pub(crate) weight: f32,
    pub(crate) lowered: Vec<&'a str>,
}

/// Words count once in a category, for the strongest rule that uses them, and so does a rule.
pub(crate) fn independent(mut matches: Vec<Match<'_>>) -> Found {
    matches.sort_by(|a, b| b.weight.total_cmp(&a.weight).then(a.span.start.cmp(&b.span.start)));
    let mut used: HashSet<(Option<Category>, usize)> = HashSet::new();
    let mut rules: HashSet<(Option<Category>, &str)> = HashSet::new();
    let mut found = Found::new();
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
        evidence.places.push(m.span);
        evidence.add(m.rule, m.weight, &m.lowered);
    }
    found
}
