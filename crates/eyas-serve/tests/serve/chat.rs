//! `/v1/chat/completions` over the fake engine.

use crate::common::{Setup, question_body};
use serde_json::{Value, json};

#[test]
fn an_answer_has_openais_shape() {
    let server = Setup::default().start();
    let answer = server.chat("Hello #abc*3", json!({}));
    assert_eq!(answer.status, 200);
    let answer = answer.json();
    assert!(answer["id"].as_str().unwrap().starts_with("chatcmpl-"));
    assert!(answer["created"].as_u64().unwrap() > 1_600_000_000);
    assert_eq!((&answer["object"], &answer["model"]), (&json!("chat.completion"), &json!("fake")));
    let expected = json!([{
        "index": 0,
        "message": {"role": "assistant", "content": "abc.0 abc.1 abc.2 ", "refusal": null},
        "logprobs": null,
        "finish_reason": "stop",
    }]);
    assert_eq!(answer["choices"], expected);
    // The prompt is ChatML: a token a byte, and two control tokens a turn.
    assert_eq!(answer["usage"], json!({"prompt_tokens": 31, "completion_tokens": 4, "total_tokens": 35}));
}

#[test]
fn a_stream_is_the_answer_in_pieces() {
    let server = Setup::default().start();
    let answer = server.chat("#abc*3", json!({"stream": true}));
    let events = answer.events();
    let first = &events[0]["choices"][0];
    assert_eq!(first["delta"], json!({"role": "assistant", "content": ""}));
    let last = &events[events.len() - 1]["choices"][0];
    assert_eq!((&last["delta"], &last["finish_reason"]), (&json!({}), &json!("stop")));
    assert_eq!(answer.content(), "abc.0 abc.1 abc.2 ");
    assert_eq!(events.len(), 5);
    assert!(
        events
            .iter()
            .all(|event| event["object"] == "chat.completion.chunk" && event["id"] == events[0]["id"])
    );
    assert!(events.iter().all(|event| event.get("usage").is_none()));
}

#[test]
fn usage_comes_in_a_chunk_of_its_own_where_it_is_asked_for() {
    let server = Setup::default().start();
    let more = json!({"stream": true, "stream_options": {"include_usage": true}});
    let events = server.chat("#abc*3", more).events();
    let (last, others) = events.split_last().unwrap();
    assert_eq!((&last["choices"], &last["usage"]["completion_tokens"]), (&json!([]), &json!(4)));
    assert!(others.iter().all(|event| event["usage"].is_null() && event.get("usage").is_some()));
}

#[test]
fn several_answers_are_told_apart_by_their_index() {
    let server = Setup::default().start();
    let answer = server.chat("#abc*2", json!({"n": 3})).json();
    let texts: Vec<&str> = answer["choices"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| c["message"]["content"].as_str().unwrap())
        .collect();
    assert_eq!(texts, ["abc.0 abc.1 ", "1:abc.0 1:abc.1 ", "2:abc.0 2:abc.1 "]);
    assert_eq!(answer["usage"]["completion_tokens"], 9);

    let events = server.chat("#abc*2", json!({"n": 3, "stream": true})).events();
    let text = |index: usize| -> String {
        let choices =
            events.iter().map(|event| &event["choices"][0]).filter(|choice| choice["index"] == index);
        choices.filter_map(|choice| choice["delta"]["content"].as_str()).collect()
    };
    assert_eq!([text(0), text(1), text(2)], ["abc.0 abc.1 ", "1:abc.0 1:abc.1 ", "2:abc.0 2:abc.1 "]);
}

#[test]
fn more_answers_than_slots_wait_for_each_other() {
    let server = Setup { slots: 2, ..Setup::default() }.start();
    let answer = server.chat("#abc*2", json!({"n": 5})).json();
    assert_eq!(answer["choices"][4]["message"]["content"], "4:abc.0 4:abc.1 ");
}

#[test]
fn a_stop_text_ends_the_answer_before_it() {
    let server = Setup::default().start();
    for stop in [json!("c.2"), json!(["never", "c.2"])] {
        let answer = server.chat("#abc", json!({"stop": stop}));
        assert_eq!(answer.content(), "abc.0 abc.1 ab");
        assert_eq!(answer.json()["choices"][0]["finish_reason"], "stop");
    }
}

#[test]
fn the_length_is_what_was_asked_for() {
    let server = Setup::default().start();
    let answer = server.chat("#abc", json!({"max_tokens": 2}));
    assert_eq!(answer.content(), "abc.0 abc.1 ");
    assert_eq!(answer.json()["choices"][0]["finish_reason"], "length");
    let answer = server.chat("#abc", json!({"max_tokens": 2, "max_completion_tokens": 3}));
    assert_eq!(answer.json()["usage"]["completion_tokens"], 3);
    // The recipe's length where nothing is said.
    assert_eq!(server.chat("#abc", json!({})).json()["usage"]["completion_tokens"], 256);
}

#[test]
fn log_probabilities_have_openais_shape() {
    let server = Setup::default().start();
    let more = json!({"logprobs": true, "top_logprobs": 2, "max_tokens": 2});
    let answer = server.chat("#abc", more.clone()).json();
    let content = &answer["choices"][0]["logprobs"]["content"];
    let entry = |byte: u8, logprob: f64| json!({"token": char::from(byte).to_string(), "logprob": logprob, "bytes": [byte]});
    let mut second = entry(1, -0.25);
    second["top_logprobs"] = json!([entry(1, -0.25), entry(2, -1.25)]);
    assert_eq!(content[1], second);
    assert_eq!(content.as_array().unwrap().len(), 2);

    let events = server
        .chat("#abc", {
            let mut more = more;
            more["stream"] = json!(true);
            more
        })
        .events();
    let streamed: Vec<&Value> = events
        .iter()
        .filter_map(|event| event["choices"][0]["logprobs"]["content"].as_array())
        .flatten()
        .collect();
    assert_eq!(json!(streamed), *content);
}

#[test]
fn a_model_is_chosen_by_its_name() {
    let server = Setup::default().start();
    let mut body = question_body("#abc*1", json!({}));
    body["model"] = json!("fake-tuned");
    let tuned = server.post("/v1/chat/completions", &body).json();
    assert_eq!(tuned["model"], "fake-tuned");
    // It sees the recipe's prompt, which is longer.
    assert!(tuned["usage"]["prompt_tokens"].as_u64().unwrap() > 200);
    body["model"] = json!("gpt-4");
    server.post("/v1/chat/completions", &body).is_error(404, "model_not_found", Some("model"));
    body.as_object_mut().unwrap().remove("model");
    server.post("/v1/chat/completions", &body).is_error(400, "invalid_value", Some("model"));
}

#[test]
fn a_model_of_the_recipes_form_speaks_one_turn() {
    let server = Setup::default().start();
    let more = json!({"model": "fake-tuned"});
    assert_eq!(server.chat("#say: Rest.\\n\\x3cHUMAN>: And then?", more.clone()).content(), "Rest.\n");
}

#[test]
fn tidying_is_the_recipes() {
    let server = Setup::default().start();
    let question = "#say: Walk every day.\\n\\n\\n\\nSleep well. Take care!";
    for stream in [false, true] {
        let answer = server.chat(question, json!({"eyas": {"tidy": true}, "stream": stream}));
        assert_eq!(answer.content(), "Walk every day.\n\nSleep well.");
    }
    assert_eq!(server.chat(question, json!({})).content(), "Walk every day.\n\n\n\nSleep well. Take care!");
}

#[test]
fn memory_reaches_as_far_as_asked() {
    let server = Setup::default().start();
    let messages = json!([
        {"role": "user", "content": "first question"}, {"role": "assistant", "content": "first answer"},
        {"role": "user", "content": "second question"}, {"role": "assistant", "content": "second answer"},
        {"role": "user", "content": "#abc*1"},
    ]);
    let tokens = |remember: Value| {
        let more = json!({"messages": messages, "eyas": {"remember": remember}});
        server.chat("", more).json()["usage"]["prompt_tokens"].as_u64().unwrap()
    };
    let alone = server.chat("#abc*1", json!({})).json()["usage"]["prompt_tokens"].as_u64().unwrap();
    assert_eq!(tokens(json!(0)), alone);
    assert!(tokens(json!(2)) > alone);
    assert!(tokens(json!(4)) > tokens(json!(2)));
    assert_eq!(tokens(json!(4)), tokens(json!(null)));
    // What cannot fit is forgotten, and not looked at.
    let mut long = messages.clone();
    long[1]["content"] = json!("[INST]".repeat(100_000));
    let more = json!({"messages": long, "eyas": {"remember": 4}});
    assert_eq!(server.chat("", more).json()["usage"]["prompt_tokens"], tokens(json!(2)));
}

#[test]
fn content_may_come_in_parts() {
    let server = Setup::default().start();
    let parts = json!([{"role": "user", "content": [{"type": "text", "text": "Say"}, {"type": "text", "text": "#abc*1"}]}]);
    assert_eq!(server.chat("", json!({"messages": parts})).content(), "abc.0 ");
    let image = json!([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]);
    let answer = server.chat("", json!({"messages": image}));
    answer.is_error(400, "unsupported", Some("messages[0].content[0]"));
}

#[test]
fn what_cannot_be_served_is_refused_with_its_field() {
    let server = Setup::default().start();
    let cases = [
        (json!({"messages": []}), "invalid_value", "messages"),
        (json!({"messages": null}), "invalid_value", "messages"),
        (json!({"messages": [{"role": "system", "content": "x"}]}), "invalid_value", "messages"),
        (json!({"messages": [{"role": "wizard", "content": "x"}]}), "invalid_value", "messages[0].role"),
        (json!({"messages": [{"role": "user", "content": 7}]}), "invalid_value", "messages[0].content"),
        (json!({"messages": [{"role": "user", "content": " "}]}), "invalid_value", "messages[0].content"),
        (json!({"temperature": -1}), "invalid_value", "temperature"),
        (json!({"temperature": "hot"}), "invalid_value", "temperature"),
        (json!({"top_p": 1.5}), "invalid_value", "top_p"),
        (json!({"top_k": -7}), "invalid_value", "top_k"),
        (json!({"min_p": 2}), "invalid_value", "min_p"),
        (json!({"repeat_penalty": 0}), "invalid_value", "repetition_penalty"),
        (json!({"presence_penalty": 0.5}), "unsupported", "presence_penalty"),
        (json!({"logit_bias": {"258": 1}}), "invalid_value", "logit_bias"),
        (json!({"logit_bias": {"1": 101}}), "invalid_value", "logit_bias"),
        (json!({"n": 0}), "invalid_value", "n"),
        (json!({"n": 129}), "invalid_value", "n"),
        (json!({"max_tokens": 0}), "invalid_value", "max_tokens"),
        (json!({"max_tokens": -1}), "invalid_value", "max_tokens"),
        (json!({"max_tokens": 2000}), "context_length_exceeded", "max_tokens"),
        (json!({"stop": ""}), "invalid_value", "stop"),
        (json!({"top_logprobs": 3}), "invalid_value", "top_logprobs"),
        (json!({"logprobs": true, "top_logprobs": 21}), "invalid_value", "top_logprobs"),
        (json!({"tools": [{"type": "function"}]}), "unsupported", "tools"),
        (json!({"response_format": {"type": "json_object"}}), "unsupported", "response_format"),
        (json!({"eyas": {"regoin": "TW"}}), "invalid_value", "eyas.regoin"),
    ];
    for (more, code, param) in cases {
        server.chat("x", more.clone()).is_error(400, code, Some(param));
    }
    // Nothing of it reached the engine.
    assert_eq!(server.metric("eyas_prompt_tokens_total"), 0.0);
}

#[test]
fn settings_that_change_nothing_here_are_taken() {
    let server = Setup::default().start();
    let more = json!({
        "temperature": 0.7, "top_p": 0.9, "top_k": 40, "min_p": 0.05, "repetition_penalty": 1.1, "seed": -3,
        "logit_bias": {"5": -100}, "presence_penalty": 0, "frequency_penalty": null, "user": "someone", "tools": [],
        "response_format": {"type": "text"}, "stream_options": null, "store": false,
    });
    assert_eq!(server.chat("#abc*1", more).content(), "abc.0 ");
}

#[test]
fn a_prompt_that_is_too_long_says_how_long_it_is() {
    let server = Setup::default().start();
    let answer = server.chat(&"x".repeat(1100), json!({}));
    answer.is_error(400, "context_length_exceeded", Some("messages"));
    assert!(answer.text().contains("1119"), "{}", answer.text());
    let far_too_long = server.chat(&"[INST]".repeat(100_000), json!({"eyas": {"remember": 2}}));
    far_too_long.is_error(400, "context_length_exceeded", Some("messages"));
    let remembered = server.chat(&"x".repeat(1100), json!({"eyas": {"remember": 2}}));
    remembered.is_error(400, "context_length_exceeded", Some("messages"));
}

#[test]
fn a_failure_of_one_answer_reaches_its_client_only() {
    let server = Setup::default().start();
    server.chat("#fail", json!({})).is_error(500, "internal_error", None);
    let events = server.chat("#fail", json!({"stream": true})).events();
    assert_eq!(events.last().unwrap()["error"]["type"], "server_error");
    assert_eq!(server.chat("#abc*1", json!({})).content(), "abc.0 ");
}

#[test]
fn what_is_cut_to_fit_needs_no_length_that_fits() {
    let server = Setup::default().start();
    let answer = server.chat("#abc*1", json!({"max_tokens": 2000, "eyas": {"remember": 2}}));
    assert_eq!(answer.content(), "abc.0 ");
}

#[test]
fn any_whole_number_is_a_seed() {
    let server = Setup::default().start();
    for seed in [json!(0), json!(-1), json!(u64::MAX)] {
        assert_eq!(server.chat("#abc*1", json!({"seed": seed})).content(), "abc.0 ");
    }
}
