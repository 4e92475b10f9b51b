//! Text: streaming, stop texts, answers, comparison, memory, with a small tokenizer made for the purpose.

mod common;

use std::sync::atomic::{AtomicBool, Ordering};

use common::{backend, greedy, load};
use eyas_data::{Example, PromptFormat, Tokenizer};
use eyas_generate::stream::AnswerStream;
use eyas_generate::{
    Answer, ChatSession, Comparison, Engine, EngineOptions, Error, FinishReason, Generator, HeldOut, Request,
    SamplingParams, Side, TextEvent, compare, evaluate,
};
use serde_json::json;

/// As many tokens as the tiny model has: an end token, the bytes of three characters, and words of one letter.
fn tokenizer() -> Tokenizer {
    let mut tokens = vec!["<unk>".to_owned(), "</s>".to_owned()];
    tokens.extend("好😊é".bytes().map(|byte| format!("<0x{byte:02X}>")));
    let letters = (' '..='~').filter(|c| !"<>/".contains(*c)).map(String::from);
    tokens.extend(letters);
    tokens.push("<HUMAN>".into());
    assert!(tokens.len() <= 104, "{}", tokens.len());
    let vocab: serde_json::Map<_, _> =
        tokens.iter().enumerate().map(|(id, t)| (t.clone(), json!(id))).collect();
    let special = json!({"id": 1, "content": "</s>", "special": true, "single_word": false, "lstrip": false,
        "rstrip": false, "normalized": false});
    let description = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [special], "normalizer": null,
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "<HUMAN>|[^\\n]"}, "behavior": "Isolated", "invert": false},
        "post_processor": null,
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"}
    });
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("tokenizer.json"), description.to_string()).unwrap();
    std::fs::write(folder.path().join("tokenizer_config.json"), json!({"eos_token": "</s>"}).to_string())
        .unwrap();
    Tokenizer::from_folder(folder.path()).unwrap()
}

/// A stop flag that nobody raises.
fn go_on() -> AtomicBool {
    AtomicBool::new(false)
}

fn ids(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
    tokenizer.encode(text, false).unwrap()
}

#[test]
fn only_whole_characters_come_out() {
    let tokenizer = tokenizer();
    let mut stream = AnswerStream::new(&tokenizer, Vec::new());
    let bytes: Vec<u32> = (2..9).collect(); // 好 and 😊
    let pieces: Vec<String> = bytes.iter().map(|&id| stream.push(id).unwrap().0).collect();
    assert_eq!(pieces, ["", "", "好", "", "", "", "😊"]);
    let letter = ids(&tokenizer, "a")[0];
    assert_eq!(stream.push(letter).unwrap(), ("a".into(), false));
    assert_eq!(stream.push(9).unwrap(), (String::new(), false));
    assert_eq!(stream.finish().unwrap(), ("\u{fffd}".into(), false));
}

#[test]
fn a_stop_text_is_found_across_tokens() {
    let tokenizer = tokenizer();
    let mut stream = AnswerStream::new(&tokenizer, vec!["b好".into()]);
    let mut shown = String::new();
    let mut stopped = Vec::new();
    for id in [&ids(&tokenizer, "aba")[..], &ids(&tokenizer, "b"), &[2, 3, 4]].concat() {
        let (text, stop) = stream.push(id).unwrap();
        shown += &text;
        stopped.push(stop);
    }
    assert_eq!(shown, "aba");
    assert_eq!(stopped, [false, false, false, false, false, false, true]);
}

#[test]
fn a_stop_text_ends_the_sequence() {
    let (backend, tokenizer) = (backend(), tokenizer());
    let model = load(&backend, "smollm2", None);
    let engine = Engine::new(&backend, &model, EngineOptions::new(1, 60)).unwrap();
    let mut generator = Generator::new(engine, &tokenizer).unwrap();
    let params = SamplingParams { max_new_tokens: 30, ignore_eos: true, ..SamplingParams::default() };
    let request = Request::new(ids(&tokenizer, "Why so?"), params, None);
    let whole = generator.generate(request.clone(), &mut |_| {}).unwrap();
    assert_eq!((whole.tokens.len(), whole.finish), (30, FinishReason::Length));
    assert_eq!(whole.text, tokenizer.decode(&whole.tokens, true).unwrap());

    let characters: Vec<char> = whole.text.chars().collect();
    let stop: String = characters[10..13].iter().collect();
    let mut request = request;
    request.params.stop = vec![stop.clone()];
    let mut streamed = String::new();
    let short = generator.generate(request, &mut |text| streamed += text).unwrap();
    assert_eq!(short.finish, FinishReason::Stop);
    assert_eq!(short.text, whole.text[..whole.text.find(&stop).unwrap()]);
    assert_eq!(streamed, short.text);
    assert!(short.tokens.len() < 30);
    assert_eq!(generator.engine().free_slots(), 1);
}

#[test]
fn more_requests_than_slots_are_all_answered_in_their_order() {
    let (backend, tokenizer) = (backend(), tokenizer());
    let model = load(&backend, "smollm2", None);
    let requests: Vec<Request> = (0..7u32)
        .map(|i| {
            let params = SamplingParams {
                max_new_tokens: 3 + i as usize,
                ignore_eos: true,
                ..SamplingParams::recipe()
            };
            Request { stream: i, ..Request::new(ids(&tokenizer, &"ab?"[..1 + i as usize % 3]), params, None) }
        })
        .collect();
    let answers = |slots: usize| {
        let engine = Engine::new(&backend, &model, EngineOptions::new(slots, 30)).unwrap();
        let mut generator = Generator::new(engine, &tokenizer).unwrap();
        let mut streamed = vec![String::new(); requests.len()];
        let answers = generator.generate_all(requests.clone(), &mut |i, text| streamed[i] += text).unwrap();
        assert_eq!(streamed, answers.iter().map(|answer| answer.text.clone()).collect::<Vec<_>>());
        answers.into_iter().map(|answer| answer.tokens).collect::<Vec<_>>()
    };
    let three = answers(3);
    assert_eq!(three.iter().map(Vec::len).collect::<Vec<_>>(), [3, 4, 5, 6, 7, 8, 9]);
    assert_eq!(three, answers(1));
}

#[test]
fn the_tokenizers_end_token_ends_an_answer_and_is_not_shown() {
    let (backend, tokenizer) = (backend(), tokenizer());
    let model = load(&backend, "smollm2", None);
    let engine = Engine::new(&backend, &model, EngineOptions::new(1, 30)).unwrap();
    let mut generator = Generator::new(engine, &tokenizer).unwrap();
    let params = SamplingParams { logit_bias: [(1, 100.0)].into(), ..greedy(5) };
    let answer = generator.generate(Request::new(vec![20, 21], params, None), &mut |_| {}).unwrap();
    assert_eq!((answer.text.as_str(), &answer.tokens[..], answer.finish), ("", &[1][..], FinishReason::Eos));
}

#[test]
fn steps_report_text_and_log_probabilities() {
    let (backend, tokenizer) = (backend(), tokenizer());
    let model = load(&backend, "smollm2", None);
    let engine = Engine::new(&backend, &model, EngineOptions::new(2, 30)).unwrap();
    let mut generator = Generator::new(engine, &tokenizer).unwrap();
    let params = SamplingParams { logprobs: Some(3), ignore_eos: true, ..greedy(4) };
    let id = generator.submit(Request::new(vec![20, 21], params, None)).unwrap();
    let gone = generator.submit(Request::new(vec![30], greedy(20), None)).unwrap();
    let mut events = Vec::new();
    generator.step(&mut events).unwrap();
    assert!(generator.remove(gone));
    while generator.engine().active() > 0 {
        generator.step(&mut events).unwrap();
    }
    let mut last = None;
    for event in events {
        let TextEvent::Token { sequence, token, logprobs, finish, .. } = event else { panic!("{event:?}") };
        if sequence == id {
            let logprobs = logprobs.unwrap();
            assert_eq!(logprobs.top[0].0, token, "greedy takes the likeliest");
            assert_eq!(logprobs.top[0].1, logprobs.logprob);
            assert_eq!(logprobs.top.len(), 3);
            last = finish;
        }
    }
    assert_eq!(last, Some(FinishReason::Length));
}

#[test]
fn base_and_adapter_answer_the_same_prompts() {
    let (backend, tokenizer) = (backend(), tokenizer());
    let model = load(&backend, "smollm2", None);
    let (engine, adapter) = common::engine(&backend, &model, "smollm2", EngineOptions::new(2, 60));
    let mut generator = Generator::new(engine, &tokenizer).unwrap();
    let questions = ["One?".to_owned(), "And two?".to_owned(), "3?".to_owned()];
    let params = SamplingParams { max_new_tokens: 12, ignore_eos: true, ..SamplingParams::recipe() };
    let mut told = Vec::new();
    let format = PromptFormat::human_assistant();
    let found =
        compare(&mut generator, &format, &questions, &params, adapter, &mut |number, side, _: &Answer| {
            told.push((number, side));
        })
        .unwrap();
    assert_eq!(told.len(), 6);
    assert_eq!(told[..3].iter().filter(|(_, side)| *side == Side::Base).count(), 3);
    for (comparison, question) in found.iter().zip(&questions) {
        assert_eq!(&comparison.question, question);
        let request = |adapter| Request::new(ids(&tokenizer, &comparison.prompt), params.clone(), adapter);
        let alone = generator.generate(request(None), &mut |_| {}).unwrap();
        assert_eq!(comparison.base.tokens, alone.tokens);
        let alone = generator.generate(request(Some(adapter)), &mut |_| {}).unwrap();
        assert_eq!(comparison.tuned.tokens, alone.tokens);
        let text = comparison.recipe_text();
        let dashes = "-".repeat(49);
        assert!(
            text.starts_with(&format!("{dashes}\nORIGINAL MODEL RESPONSE:\n<HUMAN>: {question}")),
            "{text}"
        );
        assert_eq!(text.lines().filter(|line| *line == dashes).count(), 3);
    }
    assert!(found.iter().any(|comparison| comparison.base.tokens != comparison.tuned.tokens));
}

#[test]
fn held_out_losses_of_both_sides_are_measured() {
    let (backend, tokenizer) = (backend(), tokenizer());
    let model = load(&backend, "smollm2", None);
    let (engine, adapter) = common::engine(&backend, &model, "smollm2", EngineOptions::new(1, 60));
    let generator = Generator::new(engine, &tokenizer).unwrap();
    let row = |text: &str| {
        let input_ids = ids(&tokenizer, text);
        Example { target_mask: vec![true; input_ids.len()], input_ids }
    };
    let rows = [row("a short row"), row("and another one")];
    let mut told = Vec::new();
    let found =
        HeldOut::measure(&generator, adapter, &rows, &mut |side, progress| told.push((side, progress.done)))
            .unwrap();
    assert_eq!(told, [(Side::Base, 24), (Side::Tuned, 24)]);
    let engine = generator.engine();
    let tuned = engine.adapter(adapter).unwrap();
    assert_eq!(found.base, evaluate(&backend, &model, None, &rows, &mut |_| {}).unwrap());
    assert_eq!(found.tuned, evaluate(&backend, &model, Some(tuned), &rows, &mut |_| {}).unwrap());
    assert_ne!(found.base.total_loss, found.tuned.total_loss);
    let table = found.table();
    assert!(table.starts_with("held out: 2 rows, 24 target tokens\nbase "), "{table}");
    assert!(table.contains(&format!("{:.4}", found.tuned.loss())), "{table}");
    assert!(HeldOut::measure(&generator, adapter, &[], &mut |_, _| {}).is_err());
}

#[test]
fn a_session_forgets_what_does_not_fit() {
    let tokenizer = tokenizer();
    let mut session = ChatSession::new(PromptFormat::human_assistant()).with_memory(4);
    session.remember("aaaa", "bbbb");
    session.remember("cccc", "dddd");
    let whole = session.prompt("e?", &tokenizer, 1000).unwrap();
    assert_eq!((whole.forgotten, whole.text.contains("aaaa")), (0, true));
    let shorter = session.prompt("e?", &tokenizer, whole.ids.len() - 1).unwrap();
    assert_eq!(
        (shorter.forgotten, shorter.text.contains("aaaa"), shorter.text.contains("cccc")),
        (1, false, true)
    );
    let alone = session.prompt("e?", &tokenizer, shorter.ids.len() - 1).unwrap();
    assert_eq!(alone.text, "<HUMAN>: e?\n<ASSISTANT>:");
    let error = session.prompt("e?", &tokenizer, alone.ids.len() - 1).unwrap_err();
    assert!(matches!(error, Error::PromptTooLong { .. }), "{error}");
}

#[test]
fn a_conversation_is_asked_and_remembered() {
    let (backend, tokenizer) = (backend(), tokenizer());
    let model = load(&backend, "smollm2", None);
    let (engine, adapter) = common::engine(&backend, &model, "smollm2", EngineOptions::new(1, 64));
    let mut generator = Generator::new(engine, &tokenizer).unwrap();
    let mut session = ChatSession::new(PromptFormat::human_assistant());
    let params = SamplingParams { max_new_tokens: 10, ignore_eos: true, ..SamplingParams::recipe() };
    let mut shown = String::new();
    let first = session
        .ask(&mut generator, " a? ", &params, Some(adapter), &go_on(), &mut |text| shown += text)
        .unwrap();
    assert_eq!(shown, first.text);
    assert_eq!(first.text, Comparison::tidied(&first.answer));
    assert_eq!(session.history()[0].question, "a?");
    assert_eq!(session.history()[0].answer, first.text);
    assert!(session.prompt_text("b?").unwrap().contains("Here, is the next QUESTION:"));
    // The line before the question alone is too long for what is left of this context.
    let second = session.ask(&mut generator, "b?", &params, None, &go_on(), &mut |_| {}).unwrap();
    assert_eq!((second.forgotten, session.history().len()), (1, 2));
    assert!(session.ask(&mut generator, "", &params, None, &go_on(), &mut |_| {}).is_err());
    assert_eq!(session.history().len(), 2);
}

#[test]
fn a_stopped_answer_is_remembered_as_far_as_it_came() {
    let (backend, tokenizer) = (backend(), tokenizer());
    let model = load(&backend, "smollm2", None);
    let engine = Engine::new(&backend, &model, EngineOptions::new(1, 64)).unwrap();
    let mut generator = Generator::new(engine, &tokenizer).unwrap();
    let params = SamplingParams { max_new_tokens: 30, ignore_eos: true, ..SamplingParams::recipe() };
    let request = Request::new(ids(&tokenizer, "a?"), params.clone(), None);
    let stop = go_on();
    let mut pieces = 0;
    let answer = generator
        .generate_until(request, &stop, &mut |_| {
            pieces += 1;
            stop.store(pieces == 3, Ordering::SeqCst);
        })
        .unwrap();
    assert_eq!((answer.finish, pieces), (FinishReason::Interrupted, 3));
    assert!(answer.tokens.len() < 30);
    assert_eq!(generator.engine().free_slots(), 1);

    let mut session = ChatSession::new(PromptFormat::human_assistant());
    let reply = session.ask(&mut generator, "a?", &params, None, &stop, &mut |_| {}).unwrap();
    assert_eq!((reply.text.as_str(), reply.answer.finish), ("", FinishReason::Interrupted));
    assert_eq!(session.history().len(), 1);
}

#[test]
fn a_tokenizer_of_another_model_is_refused() {
    let (backend, tokenizer) = (backend(), tokenizer());
    let model = load(&backend, "mistral", None); // 96 tokens
    let engine = Engine::new(&backend, &model, EngineOptions::new(1, 30)).unwrap();
    assert!(Generator::new(engine, &tokenizer).is_err());
}
