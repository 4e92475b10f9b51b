//! The safety layer's tables, for the page. They are there with the layer switched off, too.

use std::sync::Arc;

use axum::Json;
use axum::extract::{FromRequestParts, Query, State};
use axum::http::request::Parts;
use eyas_care::{Language, ReminderKind};
use serde::Deserialize;
use serde_json::{Value, json};

use super::App;
use crate::openai::ApiError;

#[derive(Debug, Deserialize)]
pub(super) struct Asked {
    language: Option<String>,
    region: Option<String>,
}

impl FromRequestParts<Arc<App>> for Asked {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &Arc<App>) -> Result<Self, ApiError> {
        let query = Query::try_from_uri(&parts.uri);
        query.map(|Query(asked)| asked).map_err(|error| ApiError::invalid("query", error.body_text()))
    }
}

impl Asked {
    fn language(&self) -> Language {
        self.language.as_deref().map(Language::from_tag).unwrap_or_default()
    }
}

/// Countries and territories with their names.
pub(super) async fn regions(State(app): State<Arc<App>>, asked: Asked) -> Json<Value> {
    Json(json!({"regions": app.config.care.care.regions(asked.language())}))
}

/// Where to turn in a region.
pub(super) async fn helplines(State(app): State<Arc<App>>, asked: Asked) -> Json<Value> {
    let care = &app.config.care;
    let region = care.region(asked.region.as_deref());
    let helplines = care.care.helplines(region, asked.language());
    Json(json!({"region": region.map(str::to_ascii_uppercase), "helplines": helplines}))
}

/// What reminds people that this is a program, and when.
pub(super) async fn reminders(State(app): State<Arc<App>>, asked: Asked) -> Json<Value> {
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
pub(super) async fn questionnaires(State(app): State<Arc<App>>, asked: Asked) -> Json<Value> {
    Json(json!({"questionnaires": app.config.care.care.questionnaires(asked.language())}))
}
