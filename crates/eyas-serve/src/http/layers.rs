//! What every request passes through: counting, security headers, the host check, the API key.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use subtle::ConstantTimeEq;

use super::App;
use crate::metrics::RequestLabels;
use crate::openai::ApiError;

/// Only the page's own files, and no code or style inside the page: what a model writes can never run. No text becomes
/// markup or code either: with no trusted type there is none that a script could hand to `innerHTML` and its like.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; \
     font-src 'self'; connect-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; \
     frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'";

const SECURITY_HEADERS: [(&str, &str); 7] = [
    ("content-security-policy", CONTENT_SECURITY_POLICY),
    ("x-content-type-options", "nosniff"),
    ("x-frame-options", "DENY"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
    ("permissions-policy", "camera=(), microphone=(), geolocation=(), browsing-topics=()"),
];

/// Counts the request and sets the headers that every answer has. Logs the route and nothing of its content.
pub(super) async fn observe(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let start = Instant::now();
    // A path that nobody serves may hold anything.
    let route = request.extensions().get::<MatchedPath>().map_or("other", MatchedPath::as_str).to_owned();
    let mut response = next.run(request).await;
    let status = response.status().as_u16();
    tracing::debug!("{route} {status} after {} ms", start.elapsed().as_millis());
    app.metrics.requests.get_or_create(&RequestLabels { route, status }).inc();
    let headers = response.headers_mut();
    let cross_origin = headers.contains_key(header::ACCESS_CONTROL_ALLOW_ORIGIN);
    for (name, value) in SECURITY_HEADERS {
        // An origin that may read the answer must be able to load it.
        let value =
            if cross_origin && name == "cross-origin-resource-policy" { "cross-origin" } else { value };
        headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    if !headers.contains_key(header::CACHE_CONTROL) {
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }
    response
}

/// Refuses names under which the server is not to be called.
pub(super) async fn check_host(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let Some(allowed) = &app.config.allowed_hosts else { return next.run(request).await };
    if request.headers().get_all(header::HOST).iter().nth(1).is_some() {
        let message = "the request names two hosts";
        return ApiError::new(StatusCode::BAD_REQUEST, "invalid_request", message).into_response();
    }
    let authority = request.uri().authority().map(|authority| authority.as_str());
    let host = authority.or_else(|| request.headers().get(header::HOST)?.to_str().ok());
    let name = host.map(without_port).unwrap_or_default();
    if allowed.iter().any(|known| known.eq_ignore_ascii_case(name)) {
        return next.run(request).await;
    }
    let message = "the server is not called that; start it with --allowed-host NAME to allow the name";
    ApiError::new(StatusCode::FORBIDDEN, "host_not_allowed", message).into_response()
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    }
}

/// Refuses requests without the API key, if there is one.
pub(super) async fn authorise(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let Some(key) = &app.config.api_key else { return next.run(request).await };
    if bearer(request.headers()).is_some_and(|given| bool::from(given.as_bytes().ct_eq(key.as_bytes()))) {
        return next.run(request).await;
    }
    let message = "the API key is missing or wrong; send it as `Authorization: Bearer KEY`";
    ApiError::new(StatusCode::UNAUTHORIZED, "invalid_api_key", message).into_response()
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, key) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(key.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_no_part_of_a_name() {
        let cases = [
            ("localhost:8080", "localhost"),
            ("localhost", "localhost"),
            ("[::1]:80", "[::1]"),
            ("[::1]", "[::1]"),
            ("evil.example:x", "evil.example:x"),
        ];
        for (host, name) in cases {
            assert_eq!(without_port(host), name);
        }
    }
}
