//! `/v1/completions` over the fake engine.

use crate::common::Setup;
use serde_json::{Value, json};

#[test]
fn a_continuation_has_openais_shape() {
    let server = Setup::default().start();
    let answer = server.complete(json!({"prompt": "Go #abc*2"})).json();
    assert_eq!(answer["object"], "text_completion");
    let expected = json!([{"index": 0, "text": "abc.0 abc.1 ", "logprobs": null, "finish_reason": "stop"}]);
    assert_eq!(answer["choices"], expected);
    assert_eq!(answer["usage"], json!({"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12}));
    // OpenAI's length where nothing is said.
    assert_eq!(server.complete(json!({"prompt": "#abc"})).json()["usage"]["completion_tokens"], 16);
}

#[test]
fn prompts_may_be_text_or_tokens_one_or_many() {
    let server = Setup::default().start();
    let ids = |text: &str| -> Vec<u32> {
        // The fake has a token a byte, numbered by it.
        text.bytes().map(u32::from).collect()
    };
    let texts = |prompt: Value| -> Vec<String> {
        let answer = server.complete(json!({"prompt": prompt, "max_tokens": 1})).json();
        let choices = answer["choices"].as_array().unwrap();
        choices.iter().map(|choice| choice["text"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(texts(json!("#a")), ["a.0 "]);
    assert_eq!(texts(json!(["#a", "#b"])), ["a.0 ", "b.0 "]);
    assert_eq!(texts(json!(ids("#a"))), ["a.0 "]);
    assert_eq!(texts(json!([ids("#a"), ids("#b")])), ["a.0 ", "b.0 "]);
}

#[test]
fn the_answers_to_each_prompt_follow_each_other() {
    let server = Setup::default().start();
    let answer = server.complete(json!({"prompt": ["#a", "#b"], "n": 2, "max_tokens": 1})).json();
    let texts: Vec<&str> =
        answer["choices"].as_array().unwrap().iter().map(|choice| choice["text"].as_str().unwrap()).collect();
    assert_eq!(texts, ["a.0 ", "1:a.0 ", "b.0 ", "1:b.0 "]);
    assert_eq!(answer["choices"][3]["index"], 3);
    assert_eq!(answer["usage"]["prompt_tokens"], 4);
}

#[test]
fn an_echoed_prompt_is_scored() {
    let server = Setup::default().start();
    let answer =
        server.complete(json!({"prompt": "ab", "echo": true, "logprobs": 2, "max_tokens": 1})).json();
    let choice = &answer["choices"][0];
    assert_eq!(choice["text"], "abword.0 ");
    let expected = json!({
        "tokens": ["a", "b", "\u{0}"],
        "token_logprobs": [null, -0.375, -0.125],
        "top_logprobs": [null, {"b": -0.375, "c": -1.375}, {"\u{0}": -0.125, "\u{1}": -1.125}],
        "text_offset": [0, 1, 2],
    });
    assert_eq!(choice["logprobs"], expected);
}

#[test]
fn a_prompt_alone_can_be_scored() {
    let server = Setup::default().start();
    let answer =
        server.complete(json!({"prompt": ["ab", "c"], "echo": true, "logprobs": 0, "max_tokens": 0})).json();
    assert_eq!(answer["choices"][0]["text"], "ab");
    assert_eq!(answer["choices"][0]["logprobs"]["token_logprobs"], json!([null, -0.375]));
    assert_eq!(answer["choices"][1]["logprobs"]["token_logprobs"], json!([null]));
    assert_eq!(answer["usage"]["completion_tokens"], 0);
    server.complete(json!({"prompt": "ab", "max_tokens": 0})).is_error(
        400,
        "invalid_value",
        Some("max_tokens"),
    );
}

#[test]
fn a_part_of_a_character_is_written_as_its_bytes() {
    let server = Setup::default().start();
    let answer =
        server.complete(json!({"prompt": "好", "echo": true, "logprobs": 0, "max_tokens": 0})).json();
    assert_eq!(
        answer["choices"][0]["logprobs"]["tokens"],
        json!(["bytes:\\xe5", "bytes:\\xa5", "bytes:\\xbd"])
    );
}

#[test]
fn a_stream_is_the_continuation_in_pieces() {
    let server = Setup::default().start();
    let more =
        json!({"prompt": "#abc*2", "stream": true, "echo": true, "stream_options": {"include_usage": true}});
    let events = server.complete(more).events();
    let text: String = events.iter().filter_map(|event| event["choices"][0]["text"].as_str()).collect();
    assert_eq!(text, "#abc*2abc.0 abc.1 ");
    let finishes: Vec<&Value> = events
        .iter()
        .map(|event| &event["choices"][0]["finish_reason"])
        .filter(|finish| !finish.is_null())
        .collect();
    assert_eq!(finishes, ["stop"]);
    assert_eq!(events.last().unwrap()["usage"]["completion_tokens"], 3);
}

#[test]
fn what_cannot_be_served_is_refused_with_its_field() {
    let server = Setup::default().start();
    let cases = [
        (json!({}), "invalid_value", "prompt"),
        (json!({"prompt": ""}), "invalid_value", "prompt"),
        (json!({"prompt": []}), "invalid_value", "prompt"),
        (json!({"prompt": [[]]}), "invalid_value", "prompt"),
        (json!({"prompt": [258]}), "invalid_value", "prompt"),
        (json!({"prompt": [-1]}), "invalid_value", "prompt"),
        (json!({"prompt": {"text": "x"}}), "invalid_value", "prompt"),
        (json!({"prompt": "x", "logprobs": 21}), "invalid_value", "logprobs"),
        (json!({"prompt": "x", "best_of": 2}), "unsupported", "best_of"),
        (json!({"prompt": "x", "suffix": "y"}), "unsupported", "suffix"),
        (json!({"prompt": vec!["x"; 129]}), "invalid_value", "prompt"),
        (json!({"prompt": "x".repeat(1024)}), "context_length_exceeded", "prompt"),
    ];
    for (more, code, param) in cases {
        server.complete(more).is_error(400, code, Some(param));
    }
}
