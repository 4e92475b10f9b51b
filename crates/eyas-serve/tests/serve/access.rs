//! Who may call the server, the headers of its answers, and what it tells about itself.

use crate::common::{Server, Setup, request};
use eyas_serve::Config;
use serde_json::json;

#[test]
fn an_api_key_guards_the_models_and_the_figures() {
    let mut setup = Setup::default();
    setup.config.api_key = Some("right".into());
    let server = setup.start();
    for headers in
        ["", "authorization: Bearer wrong\r\n", "authorization: right\r\n", "authorization: Basic right\r\n"]
    {
        let answer = server.get_with("/v1/models", headers);
        answer.is_error(401, "invalid_api_key", None);
        assert_eq!(answer.header("www-authenticate"), Some("bearer"));
        server.get_with("/metrics", headers).is_error(401, "invalid_api_key", None);
        let chat =
            request("/v1/chat/completions", b"{}", &format!("content-type: application/json\r\n{headers}"));
        server.raw(&chat).is_error(401, "invalid_api_key", None);
    }
    let key = "authorization: bearer right\r\n";
    assert_eq!(server.get_with("/v1/models", key).status, 200);
    assert_eq!(server.get_with("/metrics", key).status, 200);
    // Health, the page and the helplines are for everybody.
    for path in ["/health", "/api/page", "/api/care/helplines?region=TW"] {
        assert_eq!(server.get(path).status, 200, "{path}");
    }
    assert_eq!(server.get("/api/page").json()["auth"]["required"], true);
}

#[test]
fn a_foreign_name_is_refused() {
    let mut setup = Setup::default();
    setup.config.allowed_hosts = Some(Config::LOOPBACK_HOSTS.map(str::to_owned).to_vec());
    let server = setup.start();
    let with_host = |host: &str| {
        server.raw(format!("GET /health HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n").as_bytes())
    };
    for host in ["localhost", "LOCALHOST:8080", "127.0.0.1:1", "[::1]:1"] {
        assert_eq!(with_host(host).status, 200, "{host}");
    }
    for host in ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example:80", ""] {
        with_host(host).is_error(403, "host_not_allowed", None);
    }
    with_host("localhost\r\nhost: evil.example").is_error(400, "invalid_request", None);
    let nameless = server.raw(b"GET /health HTTP/1.0\r\n\r\n");
    nameless.is_error(403, "host_not_allowed", None);
}

fn preflight(server: &Server, origin: &str) -> crate::common::Answer {
    let head = format!(
        "OPTIONS /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\norigin: {origin}\r\n\
         access-control-request-method: POST\r\naccess-control-request-headers: content-type\r\n\r\n"
    );
    server.raw(head.as_bytes())
}

#[test]
fn scripts_of_other_sites_may_not_call_unless_allowed() {
    let allowed = "access-control-allow-origin";
    let server = Setup::default().start();
    let answer = preflight(&server, "https://other.example");
    assert_eq!((answer.status, answer.header(allowed)), (405, None));
    assert_eq!(server.get_with("/v1/models", "origin: https://other.example\r\n").header(allowed), None);

    let mut setup = Setup::default();
    setup.config.cors_origins = vec!["https://app.example".into()];
    let server = setup.start();
    assert_eq!(preflight(&server, "https://app.example").header(allowed), Some("https://app.example"));
    assert_eq!(preflight(&server, "https://other.example").header(allowed), None);
    let answer = server.get_with("/v1/models", "origin: https://app.example\r\n");
    assert_eq!(answer.header(allowed), Some("https://app.example"));
}

#[test]
fn every_answer_has_the_security_headers() {
    let server = Setup::default().start();
    for answer in
        [server.get("/"), server.get("/api/page"), server.get("/nowhere"), server.chat("#a*1", json!({}))]
    {
        let policy = answer.header("content-security-policy").unwrap();
        assert!(policy.starts_with("default-src 'none'; script-src 'self'; "), "{policy}");
        assert!(policy.ends_with("; require-trusted-types-for 'script'; trusted-types 'none'"), "{policy}");
        assert!(!policy.contains("unsafe"), "{policy}");
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
        assert_eq!(answer.header("referrer-policy"), Some("no-referrer"));
        assert_eq!(answer.header("x-frame-options"), Some("deny"));
    }
    assert_eq!(server.get("/api/page").header("cache-control"), Some("no-store"));
}

#[test]
fn the_page_is_sent_once_and_compressed() {
    let server = Setup::default().start();
    let plain = server.get("/");
    assert_eq!((plain.status, plain.header("content-type")), (200, Some("text/html; charset=utf-8")));
    assert!(plain.text().to_lowercase().starts_with("<!doctype html>"));
    let zipped = server.get_with("/", "accept-encoding: gzip, br\r\n");
    assert_eq!(zipped.header("content-encoding"), Some("gzip"));
    assert!(zipped.body.len() < plain.body.len());
    let tag = zipped.header("etag").unwrap();
    assert_ne!(Some(tag), plain.header("etag"));
    let known = server.get_with("/", &format!("accept-encoding: gzip\r\nif-none-match: {tag}\r\n"));
    assert_eq!((known.status, known.body.len()), (304, 0));
}

#[test]
fn nothing_but_the_page_is_served() {
    let server = Setup::default().start();
    for path in [
        "/assets/../../Cargo.toml",
        "/assets/..%2f..%2fCargo.toml",
        "/assets/%2e%2e/API.md",
        "/API.md",
        "/assets/",
        "/assets//etc/passwd",
        "/assets/nothing.js",
    ] {
        server.get(path).is_error(404, "not_found", None);
    }
}

#[test]
fn the_page_is_told_what_it_needs() {
    let server = Setup::default().start();
    let page = server.get("/api/page").json();
    let models = json!([
        {"id": "fake", "kind": "base", "base": null}, {"id": "fake-tuned", "kind": "adapter", "base": "fake"}
    ]);
    assert_eq!(page["models"], models);
    let defaults = json!({
        "temperature": 0.4, "top_p": 0.6, "repetition_penalty": 1.3, "max_tokens": 256, "remember": 2, "system": null,
        "tidy": true,
    });
    assert_eq!(page["defaults"], defaults);
    assert_eq!(page["limits"], json!({"max_prompt_tokens": 1023, "max_tokens": 1023, "max_body": 1048576}));
    assert_eq!(page["care"], json!({"enabled": false, "default_region": null}));
    assert_eq!(page["storage"], json!({"enabled": false, "consent_text": null, "consent_id": null}));
}

#[test]
fn the_models_are_listed() {
    let server = Setup::default().start();
    let list = server.get("/v1/models").json();
    assert_eq!(list["object"], "list");
    assert_eq!(list["data"][1]["id"], "fake-tuned");
    assert_eq!(list["data"][1]["parent"], "fake");
    assert_eq!(server.get("/v1/models/fake").json()["object"], "model");
}

#[test]
fn requests_are_counted_by_route_and_never_by_path() {
    let server = Setup::default().start();
    server.get("/secret-words");
    server.get("/v1/models/secret-words");
    server.chat("#a*2", json!({}));
    let text = server.get("/metrics").text();
    assert!(text.contains("eyas_requests_total{route=\"other\",status=\"404\"} 1"), "{text}");
    assert!(text.contains("eyas_requests_total{route=\"/v1/models/{*id}\",status=\"404\"} 1"), "{text}");
    assert!(text.contains("eyas_time_to_first_token_seconds_count 1"), "{text}");
    assert!(text.contains("eyas_time_per_token_seconds_count 2"), "{text}");
    assert!(!text.contains("secret"), "{text}");
}
