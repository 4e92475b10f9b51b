//! The safety layer's tables, for the page. They are there with the layer switched off, too.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Query, State};
use eyas_care::{Language, ReminderKind};
use serde::Deserialize;
use serde_json::{Value, json};

use super::App;

#[derive(Debug, Deserialize)]
pub(super) struct Asked {
    language: Option<String>,
    region: Option<String>,
}

impl Asked {
    fn language(&self) -> Language {
        self.language.as_deref().map(Language::from_tag).unwrap_or_default()
    }
}

/// Countries and territories with their names.
pub(super) async fn regions(State(app): State<Arc<App>>, Query(asked): Query<Asked>) -> Json<Value> {
    Json(json!({"regions": app.config.care.care.regions(asked.language())}))
}

/// Where to turn in a region.
pub(super) async fn helplines(State(app): State<Arc<App>>, Query(asked): Query<Asked>) -> Json<Value> {
    let care = &app.config.care;
    let region = care.region(asked.region.as_deref());
    let helplines = care.care.helplines(region, asked.language());
    Json(json!({"region": region.map(str::to_ascii_uppercase), "helplines": helplines}))
}

/// What reminds people that this is a program, and when.
pub(super) async fn reminders(State(app): State<Arc<App>>, Query(asked): Query<Asked>) -> Json<Value> {
    let care = &app.config.care.care;
    let text = |kind| care.reminder(kind, asked.language());
    Json(json!({
        "start": text(ReminderKind::Start),
        "asked": text(ReminderKind::Asked),
        "long_session": text(ReminderKind::LongSession),
        "policy": care.reminder_policy(),
    }))
}

/// The self-assessments; they are scored in the browser and never sent.
pub(super) async fn questionnaires(State(app): State<Arc<App>>, Query(asked): Query<Asked>) -> Json<Value> {
    Json(json!({"questionnaires": app.config.care.care.questionnaires(asked.language())}))
}
