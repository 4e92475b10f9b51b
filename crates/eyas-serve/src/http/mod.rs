//! The routes, and what every request passes through.

mod assets;
mod body;
mod care;
mod chat;
mod chat_answer;
mod completions;
pub(crate) mod connection;
mod layers;
mod page;
mod run;

use std::sync::Arc;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router, middleware};
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::cors::{AllowOrigin, CorsLayer};

use crate::care::{CareMode, CareSettings};
use crate::config::Config;
use crate::metrics::Metrics;
use crate::models::Models;
use crate::openai::ApiError;
use crate::queue::Queue;
use crate::storage::Exchange;

/// What handlers share.
#[derive(Debug)]
pub(crate) struct App {
    pub config: Config,
    pub models: Models,
    pub queue: Arc<Queue>,
    pub metrics: Arc<Metrics>,
    /// Sequences at once.
    pub slots: usize,
    /// Requests that are read at a time.
    pub readers: Arc<Semaphore>,
    /// Seconds since 1970 at the start.
    pub created: u64,
}

/// All routes.
pub(crate) fn router(app: Arc<App>) -> Router {
    let guarded = Router::new()
        .route("/v1/chat/completions", post(chat::answer))
        .route("/v1/completions", post(completions::answer))
        .route("/v1/models", get(list_models))
        .route("/v1/models/{*id}", get(one_model))
        .route("/metrics", get(metrics))
        .route_layer(middleware::from_fn_with_state(Arc::clone(&app), layers::authorise));
    let open = Router::new()
        .route("/health", get(health))
        .route("/", get(assets::index))
        .route("/assets/{*path}", get(assets::file))
        .route("/api/page", get(page::page))
        .route("/api/care/regions", get(care::regions))
        .route("/api/care/helplines", get(care::helplines))
        .route("/api/care/reminders", get(care::reminders))
        .route("/api/care/questionnaires", get(care::questionnaires));
    let mut routes = guarded
        .merge(open)
        .method_not_allowed_fallback(method_not_allowed)
        .fallback(not_found)
        .layer(CatchPanicLayer::custom(panicked));
    if let Some(cors) = cors(&app.config.cors_origins) {
        routes = routes.layer(cors);
    }
    routes
        .layer(middleware::from_fn_with_state(Arc::clone(&app), layers::check_host))
        .layer(middleware::from_fn_with_state(Arc::clone(&app), layers::observe))
        .with_state(app)
}

/// Lets the scripts of these origins call the API; without any nobody's but the page's own may.
fn cors(origins: &[String]) -> Option<CorsLayer> {
    if origins.is_empty() {
        return None;
    }
    let origin = if origins.iter().any(|origin| origin == "*") {
        AllowOrigin::any()
    } else {
        AllowOrigin::list(origins.iter().filter_map(|origin| HeaderValue::from_str(origin).ok()))
    };
    let layer = CorsLayer::new()
        .allow_origin(origin)
        .allow_methods([Method::GET, Method::POST])
        .allow_headers([header::CONTENT_TYPE, header::AUTHORIZATION])
        .expose_headers([header::RETRY_AFTER]);
    Some(layer)
}

async fn health(State(app): State<Arc<App>>) -> Response {
    let status = if app.queue.is_open() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let word = if status == StatusCode::OK { "ok" } else { "stopping" };
    (status, Json(json!({"status": word, "version": env!("CARGO_PKG_VERSION")}))).into_response()
}

async fn metrics(State(app): State<Arc<App>>) -> Response {
    const TEXT: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, TEXT)], app.metrics.text(app.queue.len())).into_response()
}

fn describe_model(app: &App, model: &crate::models::ServedModel) -> Value {
    json!({
        "id": model.id,
        "object": "model",
        "created": app.created,
        "owned_by": "eyas",
        "parent": model.base,
        "max_model_len": app.models.positions(),
    })
}

async fn list_models(State(app): State<Arc<App>>) -> Json<Value> {
    let models: Vec<Value> = app.models.list().iter().map(|model| describe_model(&app, model)).collect();
    Json(json!({"object": "list", "data": models}))
}

async fn one_model(
    State(app): State<Arc<App>>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<Value>, ApiError> {
    let id = id.map_or_else(|_| String::from("\u{fffd}"), |Path(id)| id);
    let (_, model) = app.model(Some(&id))?;
    Ok(Json(describe_model(&app, model)))
}

async fn not_found() -> ApiError {
    ApiError::new(StatusCode::NOT_FOUND, "not_found", "there is nothing at this address")
}

async fn method_not_allowed() -> ApiError {
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "this address takes another method")
}

fn panicked(_: Box<dyn std::any::Any + Send>) -> Response {
    ApiError::internal("the server made a mistake with this request").into_response()
}

impl App {
    /// A served model and its place. Without a name it is the only one there is.
    fn model(&self, id: Option<&str>) -> Result<(usize, &crate::models::ServedModel), ApiError> {
        let list = self.models.list();
        let Some(id) = id else {
            return match list {
                [only] => Ok((0, only)),
                _ => Err(ApiError::invalid("model", format!("is missing; choose {}", self.known()))),
            };
        };
        self.models.find(id).ok_or_else(|| ApiError::model_not_found(id, &self.known()))
    }

    /// The safety layer, where it reaches as far as this.
    fn cares(&self, least: CareMode) -> Option<&CareSettings> {
        Some(&self.config.care).filter(|care| care.mode >= least)
    }

    /// Keeps an exchange, where the operator stores any; the person's consent is asked before.
    fn store(&self, exchange: &Exchange) {
        if let Some(storage) = &self.config.storage {
            storage.store(exchange);
        }
    }

    fn known(&self) -> String {
        let ids: Vec<&str> = self.models.list().iter().map(|model| model.id.as_str()).collect();
        ids.join(", ")
    }
}
