//! From turns to a concern.

use serde::{Deserialize, Serialize};

use crate::rules::Rules;
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
    /// The rules that led to it, with what raised or lowered them, such as `wish_to_die` or `wish_to_die (past)`.
    pub matched: Vec<String>,
}

pub(crate) fn assess(rules: &Rules, turns: &[Turn<'_>]) -> Assessment {
    let Some(turn) = turns.iter().rev().find(|turn| turn.role == Role::User) else {
        return Assessment::default();
    };
    let text = turn.text.to_lowercase();
    let mut scores: Vec<Concern> = Vec::new();
    for (name, rule) in &rules.rules {
        if rule.patterns.iter().any(|pattern| text.contains(pattern)) {
            scores.push(Concern {
                category: rule.category,
                severity: rule.weight,
                threshold: rules.thresholds[rule.category.name()],
                matched: vec![name.clone()],
            });
        }
    }
    scores.sort_by(|a, b| b.severity.total_cmp(&a.severity).then(a.category.cmp(&b.category)));
    let concern = scores.iter().find(|concern| concern.severity >= concern.threshold).cloned();
    Assessment { concern, scores }
}
