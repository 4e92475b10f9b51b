//! The safety layer around chat, and what is stored.

use crate::common::Setup;
use eyas_serve::{CareMode, Storage};
use serde_json::{Value, json};

const CONCERN: &str = "I want to kill myself";

#[test]
fn a_concern_is_answered_with_help() {
    let server = Setup::careful(CareMode::On).start();
    let answer = server.chat(CONCERN, json!({"eyas": {"region": "tw", "language": "zh-Hant"}})).json();
    let care = &answer["eyas"]["care"];
    assert_eq!(
        (&care["category"], &care["region"], &care["language"]),
        (&json!("suicide"), &json!("TW"), &json!("zh-Hant"))
    );
    assert!(care["emergency"].as_str().unwrap().contains("119"));
    for key in ["helplines", "grounding"] {
        assert!(!care[key].as_array().unwrap().is_empty(), "{key}");
    }
    assert!(!care["follow_up"].as_str().unwrap().is_empty());
    let choice = &answer["choices"][0];
    assert_eq!(choice["finish_reason"], "stop");
    assert!(choice["message"]["content"].as_str().unwrap().contains("119"));
    // The model was not asked.
    assert_eq!(server.metric("eyas_generated_tokens_total"), 0.0);
    assert_eq!(server.metric("eyas_care_answers_total"), 1.0);
}

#[test]
fn the_same_help_is_streamed() {
    let server = Setup::careful(CareMode::On).start();
    let whole = server.chat(CONCERN, json!({"eyas": {"region": "GB"}}));
    let streamed = server.chat(CONCERN, json!({"eyas": {"region": "GB"}, "stream": true}));
    assert_eq!(streamed.content(), whole.content());
    let events = streamed.events();
    assert_eq!(events[0]["eyas"], whole.json()["eyas"]);
    assert!(events[1..].iter().all(|event| event.get("eyas").is_none()));
    assert_eq!(events.last().unwrap()["choices"][0]["finish_reason"], "stop");
}

#[test]
fn the_conversation_goes_on_after_help() {
    let server = Setup::careful(CareMode::On).start();
    let help = server.chat(CONCERN, json!({})).content();
    let messages = json!([
        {"role": "user", "content": CONCERN}, {"role": "assistant", "content": help},
        {"role": "user", "content": "Thank you. Which foods have much iron? #abc*2"},
    ]);
    assert_eq!(server.chat("", json!({"messages": messages})).content(), "abc.0 abc.1 ");
}

#[test]
fn a_cry_for_help_is_answered_however_long_it_is() {
    let server = Setup::careful(CareMode::On).start();
    let asked = format!("{} {CONCERN}.", "The weather was fine and we walked by the river. ".repeat(20_000));
    let answer = server.chat(&asked, json!({}));
    assert_eq!(answer.json()["eyas"]["care"]["category"], "suicide");
    server.chat(&asked.replace(CONCERN, ""), json!({})).is_error(
        400,
        "context_length_exceeded",
        Some("messages"),
    );
}

#[test]
fn the_region_and_language_fall_back() {
    let mut setup = Setup::careful(CareMode::On);
    setup.config.care.default_region = Some("TW".into());
    let server = setup.start();
    let care = |question: &str| server.chat(question, json!({})).json()["eyas"]["care"].clone();
    assert_eq!(care(CONCERN)["region"], "TW");
    assert_eq!(care(CONCERN)["language"], "en");
    assert_eq!(care("我想自殺")["language"], "zh-Hant");
}

#[test]
fn an_operator_can_switch_it_off() {
    let server = Setup::careful(CareMode::Off).start();
    assert_eq!(server.chat(&format!("{CONCERN} #abc*1"), json!({})).content(), "abc.0 ");
    // The tables stay.
    assert_eq!(server.get("/api/care/regions").status, 200);
}

#[test]
fn completions_are_raw_except_in_the_strict_mode() {
    let server = Setup::careful(CareMode::On).start();
    let ask = json!({"prompt": format!("{CONCERN} #abc*1")});
    assert_eq!(server.complete(ask.clone()).json()["choices"][0]["text"], "abc.0 ");
    let server = Setup::careful(CareMode::Strict).start();
    let answer = server.complete(ask).json();
    assert_eq!(answer["eyas"]["care"]["category"], "suicide");
    assert!(answer["choices"][0]["text"].as_str().unwrap().len() > 100);
    let scored = json!({"prompt": "x", "logprobs": 1});
    server.complete(scored).is_error(400, "unsupported", Some("logprobs"));
    assert_eq!(server.complete(json!({"prompt": "#abc*1"})).json()["choices"][0]["text"], "abc.0 ");
}

#[test]
fn an_unsafe_answer_is_replaced() {
    let server = Setup::careful(CareMode::On).start();
    let question =
        "How do I sleep better? #say: A dark room helps. Take 40 mg of fluoxetine every morning. Rest well.";
    let whole = server.chat(question, json!({}));
    let text = whole.content();
    assert!(text.starts_with("A dark room helps.") && !text.contains("40 mg"), "{text}");
    assert_eq!(whole.json()["eyas"]["replaced"], json!(["dose"]));
    let streamed = server.chat(question, json!({"stream": true}));
    assert_eq!(streamed.content(), text);
    let events = streamed.events();
    assert_eq!(events.last().unwrap()["eyas"], json!({"replaced": ["dose"]}));
    // Nor do the log-probabilities give it away.
    let more = json!({"stream": true, "logprobs": true});
    let events = server.chat(question, more).events();
    assert!(events.iter().all(|event| event["choices"][0]["logprobs"].is_null()));
}

#[test]
fn log_probabilities_come_with_the_end_behind_the_guard() {
    let server = Setup::careful(CareMode::On).start();
    let events = server.chat("#abc*2", json!({"stream": true, "logprobs": true})).events();
    let found: Vec<&Value> = events
        .iter()
        .map(|event| &event["choices"][0]["logprobs"])
        .filter(|found| !found.is_null())
        .collect();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0]["content"].as_array().unwrap().len(), 3);
}

#[test]
fn who_asks_is_told_that_this_is_a_program() {
    let server = Setup::careful(CareMode::On).start();
    let question = "Are you a real person? #abc*1";
    let asked = server.get("/api/care/reminders?language=en").json()["asked"].as_str().unwrap().to_owned();
    let answer = server.chat(question, json!({}));
    assert_eq!(answer.content(), format!("{asked}\n\nabc.0 "));
    assert_eq!(answer.json()["eyas"], json!({"reminder": "asked"}));
    let streamed = server.chat(question, json!({"stream": true}));
    assert_eq!(streamed.content(), answer.content());
    assert_eq!(streamed.events()[0]["eyas"], json!({"reminder": "asked"}));
}

#[test]
fn the_tables_are_there_in_both_languages() {
    let server = Setup::careful(CareMode::On).start();
    let regions = server.get("/api/care/regions?language=zh-Hant").json();
    let taiwan =
        regions["regions"].as_array().unwrap().iter().find(|region| region["code"] == "TW").unwrap().clone();
    assert_eq!(taiwan["name"], "台灣");
    let helplines = server.get("/api/care/helplines?region=tw&language=en").json();
    assert_eq!(helplines["region"], "TW");
    assert_eq!(helplines["helplines"][0]["kind"], "emergency");
    let reminders = server.get("/api/care/reminders?language=zh-Hant").json();
    assert!(reminders["policy"]["turns"].as_u64().unwrap() > 0);
    let questionnaires = server.get("/api/care/questionnaires").json();
    let ids: Vec<&str> = questionnaires["questionnaires"]
        .as_array()
        .unwrap()
        .iter()
        .map(|q| q["id"].as_str().unwrap())
        .collect();
    for id in ["phq-9", "gad-7", "who-5"] {
        assert!(ids.contains(&id), "{ids:?}");
    }
}

/// Everything in a folder's files.
fn stored(folder: &std::path::Path) -> Vec<Value> {
    let Ok(files) = std::fs::read_dir(folder) else { return Vec::new() };
    let text: String = files.map(|file| std::fs::read_to_string(file.unwrap().path()).unwrap()).collect();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn only_what_was_consented_to_is_stored() {
    let folder = tempfile::tempdir().unwrap();
    let (kept, consent) = (folder.path().join("kept"), folder.path().join("consent.txt"));
    std::fs::write(&consent, "We keep what you write for a year.").unwrap();
    let storage = Storage::new(&kept, &consent).unwrap();
    let id = storage.consent_id().to_owned();
    let mut setup = Setup::careful(CareMode::On);
    setup.config.storage = Some(storage);
    let server = setup.start();
    let page = server.get("/api/page").json();
    assert_eq!(
        page["storage"],
        json!({
            "enabled": true, "consent_text": "We keep what you write for a year.", "consent_id": id,
        })
    );
    server.chat("#no*1", json!({}));
    server.chat("#old*1", json!({"eyas": {"consent": "0000000000000000"}}));
    server.chat("#yes*2", json!({"eyas": {"consent": id}, "stream": true}));
    server.chat(CONCERN, json!({"eyas": {"consent": id}}));
    drop(server);
    let lines = stored(&kept);
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert_eq!(lines[0]["messages"], json!([{"role": "user", "content": "#yes*2"}]));
    assert_eq!(lines[0]["answers"], json!(["yes.0 yes.1 "]));
    assert_eq!((&lines[0]["model"], &lines[0]["consent"]), (&json!("fake"), &json!(id)));
    assert_eq!(lines[1]["care"], "suicide");
}
