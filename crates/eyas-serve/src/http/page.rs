//! What the page asks for about itself.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

use super::App;
use crate::care::CareMode;
use crate::storage::Storage;

/// Everything that the page shows before the first message.
pub(super) async fn page(State(app): State<Arc<App>>) -> Json<Value> {
    let models: Vec<Value> = app
        .models
        .list()
        .iter()
        .map(|model| {
            let kind = if model.base.is_some() { "adapter" } else { "base" };
            json!({"id": model.id, "kind": kind, "base": model.base})
        })
        .collect();
    // The last one is the newest adapter, or the base where there is none.
    let defaults = app.models.list().last().map(|model| &model.defaults);
    let storage = app.config.storage.as_ref();
    let longest = app.models.positions().saturating_sub(1);
    Json(json!({
        "title": app.config.title,
        "version": env!("CARGO_PKG_VERSION"),
        "models": models,
        "defaults": {
            "temperature": defaults.map(|params| round(if params.do_sample { params.temperature } else { 0.0 })),
            "top_p": defaults.map(|params| round(params.top_p)),
            "repetition_penalty": defaults.map(|params| round(params.repetition_penalty)),
            "max_tokens": defaults.map(|params| params.max_new_tokens),
            "remember": eyas_generate::conversation::MEMORY_TURNS,
            "system": null,
            "tidy": true,
        },
        "care": {"enabled": app.cares(CareMode::On).is_some(), "default_region": app.config.care.default_region},
        "limits": {
            "max_prompt_tokens": longest,
            "max_tokens": longest,
            "max_body": app.config.limits.max_body,
        },
        "storage": {
            "enabled": storage.is_some(),
            "consent_text": storage.map(Storage::consent_text),
            "consent_id": storage.map(Storage::consent_id),
        },
        "auth": {"required": app.config.api_key.is_some()},
    }))
}

/// A setting as it was written: 0.4, not 0.4000000059604645.
fn round(value: f32) -> f64 {
    (f64::from(value) * 1e6).round() / 1e6
}
