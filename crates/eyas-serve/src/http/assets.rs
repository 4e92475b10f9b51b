//! The page's files, which are inside the program.

use std::collections::HashMap;
use std::io::Write;
use std::sync::{LazyLock, Mutex, PoisonError};

use axum::extract::Path;
use axum::extract::rejection::PathRejection;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use rust_embed::{Embed, EmbeddedFile};

use crate::openai::ApiError;

#[derive(Embed)]
#[folder = "web/"]
#[include = "index.html"]
#[include = "assets/*"]
struct Files;

/// Smaller files gain nothing.
const WORTH_COMPRESSING: usize = 512;

/// The page itself.
pub(super) async fn index(headers: HeaderMap) -> Response {
    serve("index.html", &headers)
}

/// What it loads.
pub(super) async fn file(path: Result<Path<String>, PathRejection>, headers: HeaderMap) -> Response {
    // No name of ours is beyond UTF-8.
    let path = path.map_or_else(|_| String::new(), |Path(path)| path);
    serve(&format!("assets/{path}"), &headers)
}

fn serve(path: &str, headers: &HeaderMap) -> Response {
    // A debug build reads the folder itself, where such parts would mean something.
    let is_plain =
        path.split('/').all(|part| !matches!(part, "" | "." | "..") && !part.contains(['\\', '\0']));
    let Some(file) = Some(path).filter(|_| is_plain).and_then(Files::get) else {
        return ApiError::new(StatusCode::NOT_FOUND, "not_found", "there is no such file").into_response();
    };
    let hash = file.metadata.sha256_hash();
    let mime = mime_guess::from_path(path).first_or_octet_stream();
    let is_text =
        mime.type_() == "text" || mime.type_() == "application" || mime.subtype().as_str().ends_with("svg");
    let mime = match mime.type_().as_str() {
        "text" => format!("{mime}; charset=utf-8"),
        _ => mime.to_string(),
    };
    let body = Bytes::from(file.data.clone().into_owned());
    let zipped = (is_text && accepts_gzip(headers)).then(|| gzip(&file, hash)).flatten();
    // The two forms are different representations, so that each needs a tag of its own.
    let tag = hash[..12].iter().fold(String::from("\""), |tag, byte| format!("{tag}{byte:02x}"))
        + if zipped.is_some() { "-gzip\"" } else { "\"" };
    let mut response = if is_known(headers, &tag) {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        ([(header::CONTENT_TYPE, mime)], zipped.clone().unwrap_or(body)).into_response()
    };
    let set = response.headers_mut();
    set.insert(header::VARY, HeaderValue::from_static("accept-encoding"));
    // Asked for again each time, and not sent again while the tag is the same.
    set.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    if zipped.is_some() && response.status() == StatusCode::OK {
        response.headers_mut().insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        response.headers_mut().insert(header::ETAG, tag);
    }
    response
}

fn is_known(headers: &HeaderMap, tag: &str) -> bool {
    let Some(known) = headers.get(header::IF_NONE_MATCH).and_then(|value| value.to_str().ok()) else {
        return false;
    };
    known
        .split(',')
        .map(|known| known.trim().trim_start_matches("W/"))
        .any(|known| known == tag || known == "*")
}

fn accepts_gzip(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(header::ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    accepted.flat_map(|value| value.split(',')).any(|coding| {
        let (name, weight) = coding.split_once(';').unwrap_or((coding, ""));
        let refused =
            weight.trim().strip_prefix("q=").and_then(|q| q.trim().parse::<f32>().ok()) == Some(0.0);
        name.trim().eq_ignore_ascii_case("gzip") && !refused
    })
}

/// A file compressed, once; `None` where that does not make it smaller.
fn gzip(file: &EmbeddedFile, hash: [u8; 32]) -> Option<Bytes> {
    static DONE: LazyLock<Mutex<HashMap<[u8; 32], Option<Bytes>>>> = LazyLock::new(Mutex::default);
    let mut done = DONE.lock().unwrap_or_else(PoisonError::into_inner);
    let compressed = done.entry(hash).or_insert_with(|| {
        if file.data.len() < WORTH_COMPRESSING {
            return None;
        }
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(&file.data).ok()?;
        encoder.finish().ok().filter(|zipped| zipped.len() < file.data.len()).map(Bytes::from)
    });
    compressed.clone()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gzip_is_sent_to_those_who_take_it() {
        let accepts = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static(value));
            accepts_gzip(&headers)
        };
        assert!(accepts("gzip, deflate, br"));
        assert!(accepts("br;q=1.0, GZIP;q=0.5"));
        assert!(!accepts("gzip;q=0"));
        assert!(!accepts("br"));
        assert!(!accepts_gzip(&HeaderMap::new()));
    }
}
