//! Examples beside those that TRL prepares, templates beside what `transformers` renders.

mod common;

use common::{golden, ids, json, turns};
use eyas_data::template::SpecialTokenTexts;
use eyas_data::{
    ChatTemplate, EncodeOptions, Encoded, Encoder, PromptFormat, Report, Sample, Tokenizer, Truncation,
};
use serde_json::Value;

fn special() -> SpecialTokenTexts {
    [("bos_token", "<|im_start|>"), ("eos_token", "<|im_end|>")].map(|(k, v)| (k.into(), v.into())).into()
}

fn folder(name: &str) -> (Tokenizer, PromptFormat) {
    let path = golden("folders").join(name);
    let template = ChatTemplate::from_folder(&path).unwrap().unwrap();
    (Tokenizer::from_folder(&path).unwrap(), PromptFormat::ChatTemplate(Box::new(template)))
}

#[test]
fn templates_render_as_transformers_renders_them() {
    let golden = json("templates.json");
    for case in golden["cases"].as_array().unwrap() {
        let source = golden["templates"][case["template"].as_str().unwrap()].as_str().unwrap();
        let template = ChatTemplate::new(source, special()).unwrap();
        let turns = turns(&golden["chats"][case["chat"].as_str().unwrap()]);
        let rendered = template.render(&turns, case["add_generation_prompt"].as_bool().unwrap());
        match case["error"].as_str() {
            None => assert_eq!(rendered.unwrap(), case["rendered"].as_str().unwrap(), "{case}"),
            Some(error) => assert!(rendered.unwrap_err().to_string().contains(error), "{case}"),
        }
    }
}

#[test]
fn the_assistant_share_is_that_of_transformers() {
    let expected = json("folders/expected.json");
    let chats = &json("templates.json")["chats"];
    for (name, case) in expected.as_object().unwrap() {
        let (tokenizer, format) = folder(name);
        let options = EncodeOptions { assistant_only_loss: true, ..Default::default() };
        let encoder = Encoder::new(&tokenizer, Some(format), options).unwrap();
        for chat in ["one", "system"] {
            let sample = Sample::Chat { turns: turns(&chats[chat]), prompt_turns: 0 };
            let Encoded::Example(example, 0) = encoder.encode(&sample).unwrap() else { panic!("left out") };
            let expected = &case["chats"][chat];
            let count = expected["ids"].as_array().unwrap().len();
            assert_eq!(example.input_ids[..count], ids(&expected["ids"]), "{name}, {chat}");
            let mask: Vec<u32> = example.target_mask[..count].iter().map(|&m| u32::from(m)).collect();
            assert_eq!(mask, ids(&expected["mask"]), "{name}, {chat}");
        }
    }
}

#[test]
fn prefixes_find_the_share_that_generation_blocks_mark() {
    let golden = json("templates.json");
    let (tokenizer, _) = folder("chatml");
    let template = ChatTemplate::new(golden["templates"]["chatml"].as_str().unwrap(), special()).unwrap();
    let rendered = template.render_marked(&turns(&golden["chats"]["system"])).unwrap();
    let spoken: Vec<&str> = rendered.assistant.iter().map(|span| &rendered.text[span.clone()]).collect();
    assert_eq!(spoken, ["Hello, you.<|im_end|>\n", "ça va 🤗\nsecond line<|im_end|>\n"]);
    let format = PromptFormat::ChatTemplate(Box::new(template));
    let options = EncodeOptions { assistant_only_loss: true, ..Default::default() };
    let encoder = Encoder::new(&tokenizer, Some(format), options).unwrap();
    let sample = Sample::Chat { turns: turns(&golden["chats"]["one"]), prompt_turns: 0 };
    let Encoded::Example(example, _) = encoder.encode(&sample).unwrap() else { panic!("left out") };
    let learned: Vec<u32> =
        example.input_ids.iter().zip(&example.target_mask).filter(|(_, m)| **m).map(|(id, _)| *id).collect();
    assert_eq!(tokenizer.decode(&learned, false).unwrap(), "A response to pressure.<|im_end|>\n");
}

#[test]
fn a_template_that_rewrites_the_past_is_refused_for_its_share_only() {
    // Earlier answers are shortened, as templates of reasoning models do.
    let source =
        "{% for m in messages %}{{ m.role }}:{{ m.content if loop.last else m.content[:1] }};{% endfor %}";
    let template = ChatTemplate::new(source, special()).unwrap();
    let turns = turns(&json("templates.json")["chats"]["system"]);
    assert!(template.render(&turns, false).is_ok());
    let message = template.render_marked(&turns).unwrap_err().to_string();
    assert!(message.contains("turn 3 is rendered differently once more turns follow"), "{message}");
}

fn samples(kind: &str, rows: &Value) -> Vec<Sample> {
    let text = |value: &Value| value.as_str().unwrap().to_string();
    let sample = |row: &Value| match kind {
        "text" => Sample::Text(text(&row["text"])),
        "prompt_completion" => {
            Sample::PromptCompletion { prompt: text(&row["prompt"]), completion: text(&row["completion"]) }
        }
        "messages" => Sample::Chat { turns: turns(&row["messages"]), prompt_turns: 0 },
        _ => {
            let mut all = turns(&row["prompt"]);
            let prompt_turns = all.len();
            all.extend(turns(&row["completion"]));
            Sample::Chat { turns: all, prompt_turns }
        }
    };
    rows.as_array().unwrap().iter().map(sample).collect()
}

#[test]
fn examples_are_those_of_trl() {
    for case in json("examples.json").as_array().unwrap() {
        let kind = case["kind"].as_str().unwrap();
        let (tokenizer, format) = folder(case["folder"].as_str().unwrap());
        let options = EncodeOptions {
            max_length: Some(case["max_length"].as_u64().unwrap() as usize),
            assistant_only_loss: case["assistant_only_loss"].as_bool().unwrap(),
            ..Default::default()
        };
        let chat = !matches!(kind, "text" | "prompt_completion");
        let encoder = Encoder::new(&tokenizer, chat.then_some(format), options).unwrap();
        let mut report = Report::default();
        let samples = samples(kind, &case["rows"]);
        let (examples, _) = encoder.encode_all(&samples, &mut report).map_err(|(_, e)| e).unwrap();
        let found: Vec<Value> = examples.iter().map(|e| e.input_ids.clone().into()).collect();
        assert_eq!(Value::from(found), case["input_ids"], "{case}");
        let labels = |e: &eyas_data::Example| -> Value {
            let label = |(&id, &counts): (&u32, &bool)| if counts { i64::from(id) } else { -100 };
            e.input_ids.iter().zip(&e.target_mask).map(label).collect::<Vec<_>>().into()
        };
        assert_eq!(Value::from(examples.iter().map(labels).collect::<Vec<_>>()), case["labels"], "{case}");
    }
}

fn only(tokenizer: &Tokenizer, options: EncodeOptions, text: &str) -> Encoded {
    Encoder::new(tokenizer, None, options).unwrap().encode(&Sample::Text(text.into())).unwrap()
}

#[test]
fn a_sequence_ends_in_one_end_token_that_is_learned() {
    for name in ["chatml", "bos", "bos_eos"] {
        let (tokenizer, _) = folder(name);
        let eos = tokenizer.eos().unwrap();
        for text in ["Worry", "Worry<|im_end|>", "Worry<|im_end|><|im_end|>", "one<|im_end|>two"] {
            let Encoded::Example(example, 0) = only(&tokenizer, EncodeOptions::default(), text) else {
                panic!()
            };
            let run = example.input_ids.iter().rev().take_while(|&&id| id == eos).count();
            assert_eq!((run, example.target_mask.last()), (1, Some(&true)), "{name}: {text}");
        }
    }
}

#[test]
fn pad_that_equals_eos_is_learned_by_position() {
    let (tokenizer, _) = folder("chatml");
    assert_eq!(tokenizer.special().pad, tokenizer.special().eos);
    let text = "<HUMAN>: a<|im_end|>\n<ASSISTANT>: b";
    let options = EncodeOptions { assistant_only_loss: true, ..Default::default() };
    let Encoded::Example(example, _) = only(&tokenizer, options, text) else { panic!() };
    let ends: Vec<bool> = (0..example.input_ids.len())
        .filter(|&i| example.input_ids[i] == 2)
        .map(|i| example.target_mask[i])
        .collect();
    assert_eq!(ends, [false, true]);
    let learned: Vec<u32> =
        example.input_ids.iter().zip(&example.target_mask).filter(|(_, m)| **m).map(|(id, _)| *id).collect();
    assert_eq!(tokenizer.decode(&learned, false).unwrap(), " b<|im_end|>");
}

#[test]
fn long_rows_are_cut_or_left_out_and_counted() {
    let (tokenizer, _) = folder("bos_eos");
    let rows = ["Worry is a habit of the mind.", "a"].map(|text| Sample::Text(text.into()));
    let whole = tokenizer.encode("Worry is a habit of the mind.", true).unwrap();
    let encode = |truncation| {
        let options = EncodeOptions { max_length: Some(4), truncation, ..Default::default() };
        let mut report = Report::default();
        let encoder = Encoder::new(&tokenizer, None, options).unwrap();
        let (examples, places) = encoder.encode_all(&rows, &mut report).map_err(|(_, e)| e).unwrap();
        (examples, places, report)
    };
    let lost = whole.len() as u64 - 4;
    let (examples, places, report) = encode(Truncation::KeepStart);
    assert_eq!(examples[0].input_ids, whole[..4]);
    assert_eq!((report.kept, report.truncated, report.tokens_lost, places.len()), (2, 1, lost, 2));
    assert_eq!((report.longest, report.longest_uncut), (4, whole.len() as u64));
    let (examples, ..) = encode(Truncation::KeepEnd);
    assert_eq!(examples[0].input_ids, whole[whole.len() - 4..]);
    let (examples, places, report) = encode(Truncation::Drop);
    assert_eq!((examples.len(), places, report.too_long, report.left_out()), (1, vec![1], 1, 1));
    assert!(report.to_string().contains("1 too long"));
    assert!(
        Encoder::new(&tokenizer, None, EncodeOptions { max_length: Some(1), ..Default::default() }).is_err()
    );
}

#[test]
fn a_loss_that_does_not_apply_is_refused() {
    let (tokenizer, _) = folder("bos");
    let refuse = |format, options: EncodeOptions, sample: Sample| {
        Encoder::new(&tokenizer, format, options).unwrap().encode(&sample).unwrap_err().to_string()
    };
    let completion = EncodeOptions { completion_only_loss: Some(true), ..Default::default() };
    assert!(
        refuse(None, completion, Sample::Text("a".into())).starts_with("completion_only_loss: needs rows")
    );
    let assistant = EncodeOptions { assistant_only_loss: true, ..Default::default() };
    assert!(refuse(None, assistant, Sample::Text("a".into())).starts_with("assistant_only_loss: needs rows"));
    let chat = Sample::Chat { turns: vec![], prompt_turns: 0 };
    assert!(refuse(None, EncodeOptions::default(), chat).contains("no chat template"));
}

#[test]
fn the_recipe_form_is_rendered_in_any_format() {
    let (tokenizer, chat) = folder("chatml");
    let text = "<HUMAN>: Why?\n<ASSISTANT>: So.";
    let encode = |format| {
        let encoder = Encoder::new(&tokenizer, format, EncodeOptions::default()).unwrap();
        let Encoded::Example(example, _) = encoder.encode(&Sample::Text(text.into())).unwrap() else {
            panic!()
        };
        tokenizer.decode(&example.input_ids, false).unwrap()
    };
    assert_eq!(encode(None), format!("{text}<|im_end|>"));
    assert_eq!(encode(Some(PromptFormat::human_assistant())), format!("{text}<|im_end|>"));
    let preamble = eyas_data::prompt::RECIPE_PREAMBLE;
    assert_eq!(encode(Some(PromptFormat::recipe())), format!("{preamble}\n{text}<|im_end|>"));
    let expected = "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\nSo.<|im_end|>\n";
    assert_eq!(encode(Some(chat)), expected);
}

#[test]
fn a_template_that_cannot_be_used_says_why() {
    let refuse = |source: &str| match ChatTemplate::new(source, special()) {
        Err(e) => e.to_string(),
        Ok(template) => template.render(&[], true).unwrap_err().to_string(),
    };
    assert!(refuse("{% if %}").starts_with("chat template: line 1: "));
    assert!(refuse("a\n{{ messages[0].content.x.y }}").contains("line 2"));
    assert!(
        refuse("{% for a in range(9999) %}{% for b in range(9999) %}{{ a }}{% endfor %}{% endfor %}")
            .contains("fuel")
    );
    assert!(
        refuse("{% generation %}{% generation %}a{% endgeneration %}{% endgeneration %}").contains("nested")
    );
}

#[test]
fn a_template_may_be_one_of_several_and_the_time_may_be_fixed() {
    let folder = tempfile::tempdir().unwrap();
    let config = r#"{"eos_token": "</s>", "chat_template": [
        {"name": "tool_use", "template": "x"}, {"name": "default", "template": "{{ strftime_now('%Y-%m-%d') }}{{ eos_token }}"}]}"#;
    std::fs::write(folder.path().join("tokenizer_config.json"), config).unwrap();
    let template = ChatTemplate::from_folder(folder.path()).unwrap().unwrap();
    let day =
        chrono::DateTime::parse_from_rfc3339("2024-07-26T12:00:00Z").unwrap().with_timezone(&chrono::Local);
    assert_eq!(template.with_time(day).render(&[], false).unwrap(), "2024-07-26</s>");
    std::fs::write(folder.path().join("chat_template.jinja"), "first").unwrap();
    let template = ChatTemplate::from_folder(folder.path()).unwrap().unwrap();
    assert_eq!(template.render(&[], false).unwrap(), "first");
    assert!(ChatTemplate::from_folder(&golden("parquet")).unwrap().is_none());
}
