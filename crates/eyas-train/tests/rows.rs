//! Rows: read, split by question and encoded as a recipe asks, and what people see when they are not there.

use std::path::Path;

use eyas_data::{PromptFormat, Tokenizer};
use eyas_train::{Recipe, RowFiles, Rows};

/// A tokenizer of single characters, with `</s>` (id 0) at the end.
fn tokenizer(folder: &Path) -> Tokenizer {
    let mut vocab = serde_json::Map::from_iter([("</s>".to_owned(), 0.into()), ("?".to_owned(), 1.into())]);
    for character in (' '..='~').chain(['\n']).filter(|character| *character != '?') {
        vocab.insert(character.into(), vocab.len().into());
    }
    let tokenizer = serde_json::json!({
        "version": "1.0",
        "added_tokens": [
            {"id": 0, "content": "</s>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true}
        ],
        "pre_tokenizer": {"type": "Split", "pattern": {"String": ""}, "behavior": "Isolated", "invert": false},
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "?"},
    });
    std::fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    std::fs::write(folder.join("tokenizer_config.json"), r#"{"eos_token": "</s>"}"#).unwrap();
    Tokenizer::from_folder(folder).unwrap()
}

fn recipe(dataset: &Path) -> Recipe {
    let mut recipe = Recipe::default();
    recipe.data.dataset = Some(dataset.display().to_string());
    recipe
}

/// Twenty questions, each with an answer.
fn texts(folder: &Path) -> std::path::PathBuf {
    let row = |i| {
        serde_json::json!({"text": format!("<HUMAN>: Question {i}?\n<ASSISTANT>: Answer {i}.")}).to_string()
            + "\n"
    };
    let path = folder.join("rows.jsonl");
    std::fs::write(&path, (0..20).map(row).collect::<String>()).unwrap();
    path
}

#[test]
fn a_share_is_held_out_unless_told_not_to() {
    let folder = tempfile::tempdir().unwrap();
    let tokenizer = tokenizer(folder.path());
    let mut recipe = recipe(&texts(folder.path()));
    let rows = Rows::load(&recipe, &tokenizer, None).unwrap();
    assert_eq!((rows.train.len(), rows.eval.len()), (18, 2));
    assert!(rows.to_string().contains("18 rows to train on (18 questions), 2 held out"), "{rows}");
    assert!(rows.format.is_none());
    let row = &rows.train[0];
    assert_eq!((row.input_ids.last(), row.target_mask.last()), (Some(&0), Some(&true)));
    recipe.data.eval_share = 0.0;
    let rows = Rows::load(&recipe, &tokenizer, None).unwrap();
    assert_eq!((rows.train.len(), rows.eval.len()), (20, 0));
}

#[test]
fn a_second_file_may_be_held_out_instead() {
    let folder = tempfile::tempdir().unwrap();
    let tokenizer = tokenizer(folder.path());
    let mut recipe = recipe(&texts(folder.path()));
    let eval = folder.path().join("eval.jsonl");
    std::fs::write(&eval, "{\"text\": \"held out\"}\n").unwrap();
    recipe.data.eval_dataset = Some(eval.display().to_string());
    let rows = Rows::load(&recipe, &tokenizer, None).unwrap();
    assert_eq!((rows.train.len(), rows.eval.len()), (20, 1));
    assert!(rows.split.is_none());
}

#[test]
fn rows_may_lie_in_several_files_under_another_name() {
    let folder = tempfile::tempdir().unwrap();
    let tokenizer = tokenizer(folder.path());
    let mut recipe = recipe(Path::new("owner/rows"));
    recipe.data.eval_share = 0.0;
    let second = folder.path().join("second.jsonl");
    std::fs::write(&second, "{\"text\": \"another\"}\n{\"text\": \"another\"}\n").unwrap();
    let files = RowFiles { dataset: vec![texts(folder.path()), second], ..RowFiles::default() };
    let rows = Rows::load_files(&recipe, &files, &tokenizer, None).unwrap();
    assert_eq!((rows.train.len(), rows.train_report.read, rows.train_report.duplicates), (22, 22, 1));
}

#[test]
fn long_rows_are_cut_and_counted() {
    let folder = tempfile::tempdir().unwrap();
    let tokenizer = tokenizer(folder.path());
    let mut recipe = recipe(&texts(folder.path()));
    recipe.data.max_length = 12;
    let rows = Rows::load(&recipe, &tokenizer, None).unwrap();
    assert!(rows.train.iter().all(|row| row.input_ids.len() == 12));
    assert_eq!(rows.train_report.truncated, 18);
}

#[test]
fn messages_without_a_template_take_the_recipe_form() {
    let folder = tempfile::tempdir().unwrap();
    let tokenizer = tokenizer(folder.path());
    let path = folder.path().join("chats.jsonl");
    let row =
        r#"{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}"#;
    std::fs::write(&path, row).unwrap();
    let mut recipe = recipe(&path);
    recipe.data.eval_share = 0.0;
    recipe.data.assistant_only_loss = true;
    let rows = Rows::load(&recipe, &tokenizer, None).unwrap();
    assert!(matches!(rows.format, Some(PromptFormat::HumanAssistant { preamble: None })));
    // " Hello" and the end.
    assert_eq!(rows.train[0].target_tokens(), 7);
}

#[test]
fn rows_that_are_not_there_are_told_from_names_on_the_hub() {
    let folder = tempfile::tempdir().unwrap();
    let tokenizer = tokenizer(folder.path());
    let mut recipe = Recipe::default();
    let message = |recipe: &Recipe| Rows::load(recipe, &tokenizer, None).unwrap_err().to_string();
    assert!(message(&recipe).contains("`dataset` is not set"));
    recipe.set("dataset=owner/name").unwrap();
    let told = message(&recipe);
    assert!(
        told.starts_with("--set dataset=owner/name: `dataset` is \"owner/name\", which looks like"),
        "{told}"
    );
    recipe.set("dataset=missing.jsonl").unwrap();
    assert!(message(&recipe).contains("is no file here"));
    recipe.set("dataset=builtin").unwrap();
    recipe.set("prompt_format=chat_template").unwrap();
    assert!(message(&recipe).contains("the model has none"));
}

#[test]
fn an_empty_row_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let tokenizer = tokenizer(folder.path());
    let path = folder.path().join("rows.jsonl");
    std::fs::write(&path, "{\"text\": \"one\"}\n{\"text\": \" \"}\n").unwrap();
    let message = Rows::load(&recipe(&path), &tokenizer, None).unwrap_err().to_string();
    assert!(message.contains("rows.jsonl:line 2: column `text` is empty"), "{message}");
}
