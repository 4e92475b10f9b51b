//! Reading a request's body, within its limits.

use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, StatusCode, header};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use serde::de::DeserializeOwned;

use super::App;
use crate::openai::ApiError;

/// How much of a body that is too large is read and thrown away, and for how long, so that its sender sees the answer
/// instead of a broken connection.
const LINGER_BYTES: usize = 64 << 20;
const LINGER: Duration = Duration::from_secs(10);

/// The body of a JSON request.
pub(super) async fn read(app: &App, request: Request) -> Result<Bytes, ApiError> {
    let limits = &app.config.limits;
    let (parts, body) = request.into_parts();
    // It also keeps other sites' forms out: a browser sends this type only after asking.
    if !is_json(&parts.headers) {
        let message = "the body must be JSON, with `Content-Type: application/json`";
        return Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", message));
    }
    if parts.headers.get(header::CONTENT_ENCODING).is_some_and(|coding| coding != "identity") {
        let message = "the body is compressed; send it as it is, without `Content-Encoding`";
        return Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", message));
    }
    let announced =
        parts.headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    if announced.is_some_and(|length: u64| length > limits.max_body as u64) {
        linger(body);
        return Err(too_large(limits.max_body));
    }
    match tokio::time::timeout(limits.body_timeout, collect(body, limits.max_body)).await {
        Ok(result) => result,
        Err(_) => {
            let message = format!("the body did not come within {} seconds", limits.body_timeout.as_secs());
            Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, "timeout", message))
        }
    }
}

async fn collect(mut body: Body, most: usize) -> Result<Bytes, ApiError> {
    let mut collected = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| {
            ApiError::new(StatusCode::BAD_REQUEST, "incomplete_body", "the body broke off or is damaged")
        })?;
        let Ok(data) = frame.into_data() else { continue };
        if data.len() > most - collected.len() {
            linger(body);
            return Err(too_large(most));
        }
        collected.extend_from_slice(&data);
    }
    Ok(collected.freeze())
}

fn linger(mut body: Body) {
    tokio::spawn(tokio::time::timeout(LINGER, async move {
        let mut read = 0;
        while read < LINGER_BYTES
            && let Some(Ok(frame)) = body.frame().await
        {
            read += frame.data_ref().map_or(0, Bytes::len);
        }
    }));
}

fn too_large(most: usize) -> ApiError {
    let message = format!("the body has more than {most} bytes");
    ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", message)
}

fn is_json(headers: &HeaderMap) -> bool {
    let Some(value) = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()) else {
        return false;
    };
    let essence = value.split(';').next().unwrap_or_default().trim();
    essence.eq_ignore_ascii_case("application/json")
}

/// Reads a body's fields; those that `T` does not know are left alone.
pub(super) fn parse<T: DeserializeOwned>(body: &Bytes) -> Result<T, ApiError> {
    let invalid = |message: String| ApiError::new(StatusCode::BAD_REQUEST, "invalid_json", message);
    if let Err(error) = std::str::from_utf8(body) {
        return Err(invalid(format!("the body is not UTF-8 at byte {}", error.valid_up_to())));
    }
    if body.trim_ascii_start().first().is_some_and(|&first| first != b'{') {
        return Err(invalid("the body is not a JSON object".into()));
    }
    let mut reader = serde_json::Deserializer::from_slice(body);
    let value = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        let path = error.path().to_string();
        let inner = error.into_inner();
        if inner.is_data() && path != "." {
            ApiError::invalid(path, in_words(&inner.to_string()))
        } else {
            invalid(format!("the body is not the JSON that is expected: {inner}"))
        }
    })?;
    reader.end().map_err(|error| invalid(format!("the body is not one JSON value: {error}")))?;
    Ok(value)
}

/// A message of serde's with the names of Rust's types in words.
fn in_words(message: &str) -> String {
    const TYPES: [(&str, &str); 3] = [
        ("expected f64", "expected a number"),
        ("expected u32", "expected a whole number"),
        ("expected u64", "expected a whole number"),
    ];
    TYPES.iter().fold(message.to_owned(), |message, (name, words)| message.replace(name, words))
}
