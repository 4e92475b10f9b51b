//! Storage of large files: signed addresses, parts of files, and faults.

use std::io;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{Method, Response, StatusCode};
use futures_util::{StreamExt, stream};
use serde_json::{Value, json};

use super::reading::visible;
use super::state::sha256;
use super::{Answer, FaultKind, Request, State, json as answer, refuse};

/// What is to be sent, and where to.
pub fn batch(state: &State, request: &Request, kind: &str, id: &str) -> Answer {
    if let Err(refusal) = visible(state, request, kind, id) {
        return *refusal;
    }
    let Ok(body) = serde_json::from_slice::<Value>(&request.body) else {
        return refuse(StatusCode::BAD_REQUEST, "", "not JSON");
    };
    let transfers = body["transfers"].as_array().cloned().unwrap_or_default();
    if body["operation"] != "upload" || body["hash_algo"] != "sha256" || !transfers.contains(&json!("basic"))
    {
        return refuse(StatusCode::BAD_REQUEST, "", "not a batch of uploads");
    }
    let storage = format!("http://localhost:{}/storage", request.address.port());
    let mut multipart = false;
    let objects: Vec<Value> = body["objects"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|object| {
            let (oid, size) = (object["oid"].as_str().unwrap(), object["size"].as_u64().unwrap());
            if state.objects.contains_key(oid) {
                return json!({"oid": oid, "size": size});
            }
            let verify = json!({"href": format!("http://{}/storage/verify/{oid}", request.address)});
            let upload = match state.chunk.filter(|chunk| size > *chunk) {
                None => json!({"href": format!("{storage}/objects/{oid}?signature=write"), "header": {}}),
                Some(chunk) => {
                    multipart = true;
                    let mut header = json!({"chunk_size": chunk.to_string()});
                    for part in 1..=size.div_ceil(chunk) {
                        let href = format!("{storage}/parts/{oid}/{part}?signature=write");
                        header[format!("{part:05}")] = json!(href);
                    }
                    let href = format!("http://{}/storage/complete/{oid}?signature=write", request.address);
                    json!({"href": href, "header": header})
                }
            };
            json!({"oid": oid, "size": size, "authenticated": true, "actions": {"upload": upload, "verify": verify}})
        })
        .collect();
    let transfer = if multipart { "multipart" } else { "basic" };
    answer(StatusCode::OK, &json!({"transfer": transfer, "objects": objects}))
}

pub fn route(state: &mut State, request: &Request, rest: &[&str]) -> Answer {
    let is_signed = request.query.contains("signature=");
    // A real storage refuses requests with two kinds of permission, and a token has no business there.
    if request.headers.contains_key("authorization") && rest.first() != Some(&"verify") {
        return refuse(StatusCode::BAD_REQUEST, "", "a token came to the storage");
    }
    // Nor does it take what comes without its length.
    if request.method == Method::PUT && !request.headers.contains_key("content-length") {
        return refuse(StatusCode::LENGTH_REQUIRED, "", "an upload without its length");
    }
    match (&request.method, rest) {
        (&Method::GET, ["objects", oid]) if is_signed => {
            let Some(bytes) = state.objects.get(*oid).cloned() else {
                return refuse(StatusCode::NOT_FOUND, "", "no such object");
            };
            serve(state, request, oid, &bytes)
        }
        (&Method::PUT, ["objects", oid]) if is_signed => {
            if sha256(&request.body) != **oid {
                return refuse(StatusCode::BAD_REQUEST, "", "the checksum is another");
            }
            state.objects.insert((*oid).into(), request.body.to_vec());
            with_etag("\"whole\"")
        }
        (&Method::PUT, ["parts", oid, part]) if is_signed => {
            let part: usize = part.parse().unwrap();
            state.parts.insert(((*oid).into(), part), request.body.to_vec());
            with_etag(&format!("\"part-{part}\""))
        }
        (&Method::POST, ["complete", oid]) if is_signed => complete(state, request, oid),
        (&Method::POST, ["verify", oid]) => {
            let body: Value = serde_json::from_slice(&request.body).unwrap_or_default();
            let account = state.account(&request.headers);
            let size = state.objects.get(*oid).map(|bytes| bytes.len() as u64);
            match account {
                Ok(Some(_)) if size.is_some() && body["size"].as_u64() == size && body["oid"] == **oid => {
                    answer(StatusCode::OK, &json!({}))
                }
                _ => refuse(StatusCode::BAD_REQUEST, "", "not verified"),
            }
        }
        _ => refuse(StatusCode::FORBIDDEN, "", "no signature"),
    }
}

fn complete(state: &mut State, request: &Request, oid: &str) -> Answer {
    let body: Value = serde_json::from_slice(&request.body).unwrap_or_default();
    let mut whole = Vec::new();
    for (place, part) in body["parts"].as_array().into_iter().flatten().enumerate() {
        let number = place + 1;
        if part["partNumber"] != number || part["etag"] != format!("\"part-{number}\"") {
            return refuse(StatusCode::BAD_REQUEST, "", "a part is out of order");
        }
        match state.parts.get(&(oid.to_owned(), number)) {
            Some(bytes) => whole.extend_from_slice(bytes),
            None => return refuse(StatusCode::BAD_REQUEST, "", "a part is missing"),
        }
    }
    if sha256(&whole) != oid {
        return refuse(StatusCode::BAD_REQUEST, "", "the checksum is another");
    }
    state.objects.insert(oid.into(), whole);
    answer(StatusCode::OK, &json!({}))
}

fn with_etag(etag: &str) -> Answer {
    Response::builder().header("etag", etag).body(Body::empty()).unwrap()
}

/// A file or a part of it, less what goes wrong on the way.
pub fn serve(state: &mut State, request: &Request, name: &str, bytes: &[u8]) -> Answer {
    let path = format!("{}/{name}", request.parts.join("/"));
    let mut bytes = bytes.to_vec();
    if state.fault(&path, |kind| kind == FaultKind::Corrupt).is_some() && !bytes.is_empty() {
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
    }
    let range = request.headers.get("range").and_then(|range| range.to_str().ok()?.strip_prefix("bytes="));
    let start = range.and_then(|range| range.split('-').next()?.parse::<usize>().ok());
    let start = start.filter(|_| state.fault(&path, |kind| kind == FaultKind::IgnoreRange).is_none());
    let total = bytes.len();
    let mut response = Response::builder().header("accept-ranges", "bytes");
    let piece = match start {
        Some(start) if start >= total => {
            return refuse(StatusCode::RANGE_NOT_SATISFIABLE, "", "the file is shorter");
        }
        Some(start) => {
            let range = format!("bytes {start}-{}/{total}", total - 1);
            response = response.status(StatusCode::PARTIAL_CONTENT).header("content-range", range);
            bytes.split_off(start)
        }
        None => bytes,
    };
    response = response.header("content-length", piece.len());
    let cut = state.fault(&path, |kind| matches!(kind, FaultKind::Cut(_)));
    let body = match cut {
        Some(FaultKind::Cut(after)) => {
            let kept = Bytes::copy_from_slice(&piece[..after.min(piece.len())]);
            let broken = async {
                // What came before has to be on its way: a connection that ends takes what waits along.
                tokio::time::sleep(Duration::from_millis(200)).await;
                Err(io::Error::new(io::ErrorKind::ConnectionReset, "cut on demand"))
            };
            Body::from_stream(stream::iter([Ok(kept)]).chain(stream::once(broken)))
        }
        _ => Body::from(piece),
    };
    response.body(body).unwrap()
}
