//! Bad input, slow clients, too many of them, and those who go away.

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use crate::common::{Answer, Setup, question_body, request};
use serde_json::json;

const CHAT: &str = "/v1/chat/completions";
const JSON: &str = "content-type: application/json\r\n";

#[test]
fn what_is_not_json_is_refused() {
    let server = Setup::default().start();
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let nested = format!("{{\"model\":\"fake\",\"messages\":{deep}}}");
    for body in [
        &b""[..],
        b"{",
        b"[]",
        b"[1]",
        b"null",
        b"{\"model\": \"fake\"} trailing",
        b"{\"model\": \"fa\xff\"}",
        deep.as_bytes(),
        nested.as_bytes(),
        b"{\"temperature\": 1e999}",
        b"{\"model\": \"fake\", \"model\": \"fake\"}",
    ] {
        let answer = server.raw(&request(CHAT, body, JSON));
        assert_eq!(
            answer.status,
            400,
            "{:?}: {}",
            String::from_utf8_lossy(&body[..body.len().min(40)]),
            answer.text()
        );
        assert_eq!(answer.json()["error"]["type"], "invalid_request_error");
    }
}

#[test]
fn another_type_of_body_is_refused() {
    let server = Setup::default().start();
    for headers in ["", "content-type: text/plain\r\n", "content-type: application/x-www-form-urlencoded\r\n"]
    {
        server.raw(&request(CHAT, b"{}", headers)).is_error(415, "unsupported_media_type", None);
    }
    let body = question_body("#abc*1", json!({})).to_string();
    let with_charset = request(CHAT, body.as_bytes(), "Content-Type: Application/JSON; charset=utf-8\r\n");
    assert_eq!(server.raw(&with_charset).content(), "abc.0 ");
}

#[test]
fn a_wrong_type_is_told_in_words() {
    let server = Setup::default().start();
    for (field, value, words) in [
        ("n", json!(-1), "expected a whole number"),
        ("max_tokens", json!(1.5), "expected a whole number"),
        ("seed", json!("x"), "expected a JSON number"),
        ("seed", json!(1.5), "it must be a whole number of at most 64 bits"),
        ("temperature", json!("NaN"), "expected a number"),
        ("stop", json!(5), "expected a text or a list of texts"),
        ("logit_bias", json!({"1": 1e300}), "is 1e300 for token 1; it must be between -100 and 100"),
    ] {
        let answer = server.chat("#a*1", json!({(field): value}));
        answer.is_error(400, "invalid_value", Some(field));
        assert!(answer.text().contains(words), "{}", answer.text());
    }
    let content = json!({"model": "fake", "messages": [{"role": "user", "content": 5}]});
    let answer = server.post(CHAT, &content);
    answer.is_error(400, "invalid_value", Some("messages[0].content"));
    assert!(answer.text().contains("expected a text or a list of parts"), "{}", answer.text());
}

#[test]
fn a_compressed_body_is_refused() {
    let server = Setup::default().start();
    let body = question_body("#abc*1", json!({})).to_string();
    let zipped = request(CHAT, body.as_bytes(), &format!("{JSON}content-encoding: gzip\r\n"));
    server.raw(&zipped).is_error(415, "unsupported_media_type", None);
}

#[test]
fn odd_requests_are_answered_as_http_says() {
    let server = Setup::default().start();
    let ask = |line: &str, headers: &str| {
        server.raw(format!("{line}\r\nhost: x\r\nconnection: close\r\n{headers}\r\n").as_bytes())
    };
    let head = ask("HEAD /health HTTP/1.1", "");
    assert_eq!((head.status, head.body.len()), (200, 0));
    assert_eq!(ask("GET /health HTTP/1.0", "").status, 200);
    assert_eq!(ask("TRACE / HTTP/1.1", "").status, 405);
    for framing in [
        "content-length: 2\r\ncontent-length: 3\r\n",
        "content-length: +2\r\n",
        "content-length: -2\r\n",
        "content-length: 99999999999999999999999\r\n",
        "content-length : 2\r\n",
        "transfer-encoding: xchunked\r\n",
        "transfer-encoding: chunked, identity\r\n",
        "x: a\r\n folded\r\n",
    ] {
        assert_eq!(
            ask(&format!("POST {CHAT} HTTP/1.1"), &format!("{JSON}{framing}")).status,
            400,
            "{framing}"
        );
    }
    assert_eq!(ask("GET /health HTTP/1.1", &"x: y\r\n".repeat(1000)).status, 431);
    // What is no path, query or name of ours is told in the shape of every error.
    ask("GET /assets/%ff HTTP/1.1", "").is_error(404, "not_found", None);
    ask("GET /v1/models/%ff HTTP/1.1", "").is_error(404, "model_not_found", Some("model"));
    ask("GET /api/care/helplines?region=TW&region=US HTTP/1.1", "").is_error(
        400,
        "invalid_value",
        Some("query"),
    );
}

#[test]
fn a_body_that_is_too_large_is_refused_before_it_is_read() {
    let server = Setup::default().start();
    // Announced: nothing of it needs to be sent.
    let mut stream = server.connect();
    let head = format!(
        "POST {CHAT} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{JSON}content-length: 1000000000\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    Answer::read(&mut stream).is_error(413, "body_too_large", None);
    // In chunks: as soon as the limit is passed.
    let mut stream = server.connect();
    let head = format!(
        "POST {CHAT} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{JSON}transfer-encoding: chunked\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).unwrap();
    let chunk = [b"10000\r\n", &[b' '; 0x10000][..], b"\r\n"].concat();
    for _ in 0..20 {
        stream.write_all(&chunk).unwrap();
    }
    stream.write_all(b"0\r\n\r\n").unwrap();
    Answer::read(&mut stream).is_error(413, "body_too_large", None);
}

#[test]
fn addresses_and_methods_that_are_not_there_are_named_so() {
    let server = Setup::default().start();
    server.get("/v1/nothing").is_error(404, "not_found", None);
    server.get("/v1/models/gpt-4").is_error(404, "model_not_found", Some("model"));
    server.get(CHAT).is_error(405, "method_not_allowed", None);
    assert_eq!(server.get(CHAT).header("allow"), Some("post"));
}

#[test]
fn a_body_must_come_in_time() {
    let mut setup = Setup::default();
    setup.config.limits.body_timeout = Duration::from_millis(200);
    let server = setup.start();
    let mut stream = server.connect();
    let head = format!(
        "POST {CHAT} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{JSON}content-length: 100\r\n\r\n{{\"mod"
    );
    stream.write_all(head.as_bytes()).unwrap();
    Answer::read(&mut stream).is_error(408, "timeout", None);
}

#[test]
fn a_head_must_come_in_time() {
    let mut setup = Setup::default();
    setup.config.limits.header_timeout = Duration::from_millis(200);
    let server = setup.start();
    let mut slow = server.connect();
    slow.write_all(b"GET /health HTTP/1.1\r\nhost: ").unwrap();
    let mut idle = server.connect();
    let start = Instant::now();
    let mut bytes = Vec::new();
    let _ = slow.read_to_end(&mut bytes);
    let _ = idle.read_to_end(&mut bytes);
    assert!(start.elapsed() < Duration::from_secs(5));
    assert_eq!(server.get("/health").status, 200);
}

#[test]
fn half_a_body_leaves_nothing_behind() {
    let server = Setup::default().start();
    let mut stream = server.connect();
    let head = format!("POST {CHAT} HTTP/1.1\r\nhost: x\r\n{JSON}content-length: 100\r\n\r\n{{\"mod");
    stream.write_all(head.as_bytes()).unwrap();
    drop(stream);
    server.wait_for("eyas_connections", 1.0);
    assert_eq!(server.chat("#abc*1", json!({})).content(), "abc.0 ");
}

#[test]
fn connections_have_a_limit() {
    let mut setup = Setup::default();
    setup.config.limits.max_connections = 3;
    let server = setup.start();
    let kept: Vec<_> = (0..3)
        .map(|_| {
            let mut stream = server.connect();
            stream.write_all(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
            let mut some = [0; 64];
            assert!(stream.read(&mut some).unwrap() > 0);
            stream
        })
        .collect();
    let answer = server.get("/health");
    answer.is_error(503, "too_many_connections", None);
    assert!(answer.header("retry-after").is_some());
    drop(kept);
    let start = Instant::now();
    while server.get("/health").status != 200 {
        assert!(start.elapsed() < Duration::from_secs(5));
    }
}

/// Starts an answer without an end and returns its connection after the first bytes.
fn endless(server: &crate::common::Server) -> std::net::TcpStream {
    let body = question_body("#abc", json!({"stream": true, "max_tokens": 900}));
    let mut stream = server.connect();
    stream.write_all(&request(CHAT, body.to_string().as_bytes(), JSON)).unwrap();
    let mut some = [0; 1024];
    while !String::from_utf8_lossy(&some).contains("data: ") {
        assert!(stream.read(&mut some).unwrap() > 0);
    }
    stream
}

#[test]
fn a_client_that_goes_away_frees_its_slot() {
    let server = Setup { slots: 1, delay: Duration::from_millis(20), ..Setup::default() }.start();
    let gone = endless(&server);
    assert_eq!(server.metric("eyas_active_sequences"), 1.0);
    drop(gone);
    server.wait_for("eyas_active_sequences", 0.0);
    assert_eq!(server.metric("eyas_cancelled_sequences_total"), 1.0);
}

#[test]
fn a_client_that_goes_away_before_its_turn_frees_its_place() {
    let server = Setup { slots: 1, delay: Duration::from_millis(20), ..Setup::default() }.start();
    let running = endless(&server);
    let body = question_body("#abc", json!({}));
    let mut waiting = server.connect();
    waiting.write_all(&request(CHAT, body.to_string().as_bytes(), JSON)).unwrap();
    server.wait_for("eyas_queue_length", 1.0);
    drop(waiting);
    server.wait_for("eyas_queue_length", 0.0);
    drop(running);
}

#[test]
fn a_full_queue_says_when_to_come_back() {
    let mut setup = Setup { slots: 1, delay: Duration::from_millis(20), ..Setup::default() };
    setup.config.limits.max_queue = 1;
    let server = setup.start();
    let running = endless(&server);
    let body = question_body("#abc*1", json!({}));
    let mut waiting = server.connect();
    waiting.write_all(&request(CHAT, body.to_string().as_bytes(), JSON)).unwrap();
    server.wait_for("eyas_queue_length", 1.0);
    let refused = server.chat("#abc", json!({}));
    refused.is_error(429, "queue_full", None);
    assert!(refused.header("retry-after").unwrap().parse::<u64>().unwrap() >= 1);
    // Who waited is served when the place is free.
    drop(running);
    assert_eq!(Answer::read(&mut waiting).content(), "abc.0 ");
}

#[test]
fn a_client_that_does_not_read_is_let_go() {
    let mut setup = Setup { slots: 1, delay: Duration::ZERO, ..Setup::default() };
    setup.config.limits.write_timeout = Duration::from_millis(300);
    let server = setup.start();
    // Far more than the buffers between the two hold.
    let body = json!({"model": "fake", "prompt": "#abc", "stream": true, "n": 100, "max_tokens": 900, "logprobs": 20});
    let mut deaf = server.connect();
    deaf.write_all(&request("/v1/completions", body.to_string().as_bytes(), JSON)).unwrap();
    let start = Instant::now();
    while server.metric("eyas_cancelled_sequences_total") == 0.0 && server.metric("eyas_connections") > 1.0 {
        assert!(start.elapsed() < Duration::from_secs(20), "{}", server.get("/metrics").text());
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(server.chat("#abc*1", json!({})).content(), "abc.0 ");
}

#[test]
fn many_at_once_get_each_their_own() {
    let mut setup = Setup { slots: 3, ..Setup::default() };
    setup.config.limits.max_queue = 100;
    let server = setup.start();
    std::thread::scope(|scope| {
        for client in 0..40 {
            let server = &server;
            scope.spawn(move || {
                let answer = server.chat(&format!("#c{client}*20"), json!({"stream": client % 2 == 0}));
                let expected: String = (0..20).map(|word| format!("c{client}.{word} ")).collect();
                assert_eq!(answer.content(), expected);
            });
        }
    });
    assert_eq!(server.metric("eyas_generated_tokens_total"), 40.0 * 21.0);
}

#[test]
fn stopping_lets_answers_end() {
    let mut server = Setup { delay: Duration::from_millis(10), ..Setup::default() }.start();
    let body = question_body("#abc*40", json!({"stream": true}));
    let mut stream = server.connect();
    stream.write_all(&request(CHAT, body.to_string().as_bytes(), JSON)).unwrap();
    server.wait_for("eyas_active_sequences", 1.0);
    server.ask_to_stop();
    let answer = Answer::read(&mut stream);
    assert_eq!(answer.content(), (0..40).map(|word| format!("abc.{word} ")).collect::<String>());
    server.join();
}

#[test]
fn stopping_cuts_off_what_takes_too_long() {
    let mut setup = Setup { delay: Duration::from_millis(10), ..Setup::default() };
    setup.config.grace = Duration::from_millis(200);
    let mut server = setup.start();
    let mut stream = endless(&server);
    server.ask_to_stop();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert!(text.contains("\"code\":\"shutting_down\"") && text.contains("data: [DONE]"), "{text}");
    server.join();
}

#[test]
fn stopping_refuses_those_who_wait() {
    let mut setup = Setup { slots: 1, delay: Duration::from_millis(20), ..Setup::default() };
    setup.config.grace = Duration::from_millis(300);
    let mut server = setup.start();
    let running = endless(&server);
    let mut waiting = server.connect();
    let body = question_body("#abc*1", json!({}));
    waiting.write_all(&request(CHAT, body.to_string().as_bytes(), JSON)).unwrap();
    server.wait_for("eyas_queue_length", 1.0);
    server.ask_to_stop();
    Answer::read(&mut waiting).is_error(503, "shutting_down", None);
    drop(running);
    server.join();
}
