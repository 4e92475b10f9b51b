//! Reading files: every format and shape, and what damaged ones are answered.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::golden;
use eyas_data::conversation::{Role, Sample};
use eyas_data::dataset::{self, DatasetOptions, Row, Schema};
use eyas_data::{LoadOptions, load};
use proptest::prelude::*;
use tempfile::TempDir;

struct File {
    _folder: TempDir,
    path: PathBuf,
}

fn file(name: &str, content: impl AsRef<[u8]>) -> File {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    fs::write(&path, content).unwrap();
    File { _folder: folder, path }
}

fn read(path: &Path) -> Vec<Row> {
    dataset::open(path, &DatasetOptions::default()).unwrap().map(Result::unwrap).collect()
}

fn texts(rows: &[Row]) -> Vec<&str> {
    rows.iter()
        .map(|row| if let Sample::Text(text) = &row.sample { text.as_str() } else { panic!() })
        .collect()
}

/// The message for a file that cannot be read to its end, without the folder's name.
fn refused_with(name: &str, content: impl AsRef<[u8]>, options: &LoadOptions) -> String {
    let file = file(name, content);
    let message = load(&file.path, options).unwrap_err().to_string();
    let folder = format!("{}/", file.path.parent().unwrap().display());
    assert!(message.contains(&folder), "no file in {message}");
    message.replace(&folder, "")
}

fn refused(name: &str, content: impl AsRef<[u8]>) -> String {
    refused_with(name, content, &LoadOptions::default())
}

#[test]
fn json_lines_skip_blank_lines_and_know_their_lines() {
    let file = file(
        "a.jsonl",
        "\u{feff}\n{\"text\": \"one\"}\r\n\n  {\"topic\": \"t\", \"text\": \"two\", \"group\": 7}",
    );
    let rows = read(&file.path);
    assert_eq!(texts(&rows), ["one", "two"]);
    assert_eq!((rows[1].at.row, rows[1].at.line), (2, Some(4)));
    assert_eq!((rows[1].group.as_deref(), rows[1].topic.as_deref()), (Some("7"), Some("t")));
}

#[test]
fn a_json_array_is_read_a_row_at_a_time() {
    let content = "[\n {\"text\": \"a ] } \\\" {\", \"extra\": [1, {\"x\": \"]\"}]},\n{\"text\":\"b\"}\n]\n";
    let file = file("a.json", content);
    let rows = read(&file.path);
    assert_eq!(texts(&rows), ["a ] } \" {", "b"]);
    assert_eq!((rows[1].at.row, rows[1].at.line), (2, Some(3)));
    // Many name JSON Lines `.json`.
    assert_eq!(read(&self::file("b.json", "{\"text\": \"x\"}\n{\"text\": \"y\"}").path).len(), 2);
}

#[test]
fn csv_has_quotes_and_line_breaks_in_fields() {
    let rows = read(&file("a.csv", "\u{feff}text,topic\n\"one, \"\"two\"\"\nthree\",t\nfour,\n").path);
    assert_eq!(texts(&rows), ["one, \"two\"\nthree", "four"]);
    assert_eq!(rows[1].at.line, Some(4));
    assert_eq!(texts(&read(&file("a.tsv", "id\ttext\n1\tx, y\n").path)), ["x, y"]);
}

#[test]
fn parquet_texts_are_read_in_every_encoding_and_over_row_groups() {
    for name in ["text", "large", "view", "dictionary"] {
        let rows = read(&golden(&format!("parquet/{name}.parquet")));
        assert_eq!(rows.len(), 25, "{name}");
        for (i, text) in texts(&rows).into_iter().enumerate() {
            assert_eq!(text, format!("<HUMAN>: Question {i}?\n<ASSISTANT>: Answer {i}, ça va."), "{name}");
        }
        assert_eq!((rows[24].at.row, rows[24].at.line), (25, None));
    }
    let rows = read(&golden("parquet/text.parquet"));
    assert_eq!(rows[9].group.as_deref(), Some("4"));
    let rows = read(&golden("parquet/dictionary.parquet"));
    assert_eq!((rows[0].topic.as_deref(), rows[1].topic.as_deref()), (Some("a"), None));
}

#[test]
fn parquet_messages_are_lists_of_structs() {
    let rows = read(&golden("parquet/messages.parquet"));
    let Sample::Chat { turns, prompt_turns: 0 } = &rows[1].sample else { panic!() };
    assert_eq!(
        (turns.len(), turns[0].role, turns[4].content.as_str()),
        (5, Role::System, "ça va 🤗\nsecond line")
    );
    let rows = read(&golden("parquet/sharegpt.parquet"));
    let Sample::Chat { turns, .. } = &rows[0].sample else { panic!() };
    assert_eq!(
        (turns[0].role, turns[1].role, turns[1].content.as_str()),
        (Role::User, Role::Assistant, "Hello.")
    );
}

#[test]
fn every_shape_is_found() {
    let schema = |columns: &[&str], field: Option<&str>| {
        let options = DatasetOptions { dataset_text_field: field.map(String::from), ..Default::default() };
        Schema::detect(columns.iter().copied(), &options)
    };
    let text = |column: &str| Schema::Text { column: column.into() };
    assert_eq!(schema(&["id", "text"], None), Ok(text("text")));
    assert_eq!(schema(&["text", "completion", "prompt"], None), Ok(Schema::PromptCompletion));
    assert_eq!(schema(&["text", "messages"], None), Ok(Schema::Messages { column: "messages".into() }));
    assert_eq!(schema(&["body", "messages"], Some("body")), Ok(text("body")));
    assert!(schema(&["a"], Some("body")).unwrap_err().contains("has no column `body`"));
    let message = schema(&["question", "answer"], None).unwrap_err();
    assert!(message.contains("its columns are `question`, `answer`"), "{message}");
}

#[test]
fn message_contents_may_be_text_parts() {
    let content = r#"{"prompt": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}],
        "completion": [{"role": "assistant", "content": "c"}]}"#;
    let rows = read(&file("a.jsonl", content.replace('\n', "")).path);
    let Sample::Chat { turns, prompt_turns: 1 } = &rows[0].sample else { panic!() };
    assert_eq!((turns[0].content.as_str(), turns[1].content.as_str()), ("ab", "c"));
}

#[test]
fn a_bad_row_is_named_by_file_line_and_column() {
    for (content, expected) in [
        (
            "{\"text\": \"a\"}\n{\"txt\": \"b\"}",
            "a.jsonl:line 2: column `text` is missing; the row has `txt`",
        ),
        ("{\"text\": \"a\"}\n\n{\"text\": \" \\n\"}", "a.jsonl:line 3 (row 2): column `text` is empty"),
        ("{\"text\": 5}", "a.jsonl:line 1: column `text` must be text, not a number"),
        ("{\"text\": null}", "a.jsonl:line 1: column `text` must be text, not null"),
        (
            "{\"text\": \"a\"",
            "a.jsonl:line 1: is not valid JSON: EOF while parsing an object at line 1 column 12",
        ),
        ("\"text\"", "a.jsonl:line 1: is not a JSON object; a row looks like {\"text\": \"...\"}"),
        ("{\"prompt\": \"a\", \"completion\": \"\"}", "a.jsonl:line 1: column `completion` is empty"),
        (
            "{\"prompt\": \"a\", \"completion\": \"b\"}\n{\"prompt\": \"a\"}",
            "a.jsonl:line 2: column `completion` is missing; the row has none",
        ),
        ("{\"messages\": []}", "a.jsonl:line 1: column `messages` has no messages"),
        ("{\"messages\": \"hi\"}", "a.jsonl:line 1: column `messages` must be a list of messages, not text"),
        (
            "{\"messages\": [{\"role\": \"user\"}]}",
            "a.jsonl:line 1: column `messages`, message 1: `content` is missing",
        ),
        (
            "{\"messages\": [{\"role\": \"usr\", \"content\": \"a\"}]}",
            "a.jsonl:line 1: column `messages`, message 1: role `usr` is unknown; known are system, user and assistant",
        ),
        (
            "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}, {\"role\": \"assistant\", \"content\": \"\"}]}",
            "a.jsonl:line 1: column `messages`, message 2: `content` is empty",
        ),
        (
            "{\"messages\": [{\"role\": \"user\", \"content\": [{\"type\": \"image\"}]}]}",
            "a.jsonl:line 1: column `messages`, message 1: `content` may hold text parts only; images are not supported",
        ),
        (
            "{\"text\": \"a\", \"group\": [1]}",
            "a.jsonl:line 1: column `group` must be text or a number, not a list",
        ),
    ] {
        assert_eq!(refused("a.jsonl", content), expected);
    }
    assert_eq!(
        refused("a.jsonl", b"{\"text\": \"a\xff\"}"),
        "a.jsonl:line 1: is not UTF-8 at byte 12 of the row"
    );
    assert_eq!(
        refused("a.csv", "text,b\na,b\nc\n"),
        "a.csv:line 3 (row 2): has 1 fields where the header has 2"
    );
    assert_eq!(refused("a.csv", b"text\n\xff\n"), "a.csv:line 2 (row 1): column `text` is not UTF-8");
    let null = load(&golden("parquet/null.parquet"), &LoadOptions::default()).unwrap_err().to_string();
    assert!(null.ends_with("null.parquet:row 2: column `completion` must be text, not null"), "{null}");
}

#[test]
fn a_file_that_cannot_be_used_says_why() {
    for (name, content, expected) in [
        ("a.jsonl", "", "a.jsonl: is empty; it needs at least one row"),
        ("a.jsonl", "\n \n", "a.jsonl: is empty; it needs at least one row"),
        ("a.json", "[]", "a.json: has no rows"),
        ("a.json", "[{\"text\": \"a\"}", "a.json: line 1: the array is not closed; the file is cut short"),
        ("a.json", "[{\"text\": \"a\"", "a.json: line 1: a row is not closed; the file is cut short"),
        (
            "a.json",
            "[{\"text\": \"a\"} {\"text\": \"b\"}]",
            "a.json: line 1: a comma is missing between two rows",
        ),
        (
            "a.json",
            "[{\"text\": \"a\"}] x",
            "a.json: line 1: there is text after the array's closing bracket",
        ),
        ("a.json", "[1]", "a.json: line 1: a row must be a JSON object such as {\"text\": \"...\"}"),
        ("a.csv", "", "a.csv: is empty; it needs a header line and at least one row"),
        ("a.csv", "text\n", "a.csv: has no rows"),
        (
            "a.txt",
            "text",
            "a.txt: is of an unknown format; the extension must be .jsonl, .json, .parquet, .csv or .tsv",
        ),
        ("a.jsonl", "\u{1f}\u{8}", "a.jsonl:line 1: is not valid JSON: expected value at line 1 column 1"),
    ] {
        assert_eq!(refused(name, content), expected);
    }
    assert_eq!(refused("a.jsonl", b"\x1f\x8b\x08"), "a.jsonl: is compressed with gzip; unpack it first");
    assert_eq!(refused("a.jsonl", b"\xff\xfe{\0"), "a.jsonl: is UTF-16; convert it to UTF-8 first");
    assert!(refused("a.csv", "question,answer\n").contains("has no column to train on"));
    assert!(refused("a.parquet", "PAR1 no").starts_with("a.parquet: is not a whole Parquet file"));
    let whole = fs::read(golden("parquet/text.parquet")).unwrap();
    assert!(refused("a.parquet", &whole[..whole.len() / 2]).contains("is not a whole Parquet file"));
    let message = |name: &str| load(&golden(name), &LoadOptions::default()).unwrap_err().to_string();
    assert!(
        message("parquet/binary.parquet").contains("row 1: column `text`: its type Binary is not supported")
    );
    assert!(message("parquet/empty.parquet").ends_with("empty.parquet: has no rows"));
    assert!(message("parquet").ends_with("is a folder; name one .jsonl, .json, .parquet or .csv file in it"));
    assert!(message("nowhere.jsonl").contains("nowhere.jsonl: "));
}

#[test]
fn an_absurd_row_is_refused_without_being_held() {
    let dataset = DatasetOptions { max_row_bytes: 100, ..Default::default() };
    let options = LoadOptions { dataset, ..Default::default() };
    let long = "x".repeat(1 << 20);
    let lines = format!("{{\"text\": \"{long}\"}}\n{{\"text\": \"b\"}}\n");
    let expected = "a.jsonl:line 1: is longer than 100 bytes; is this a JSON Lines file?";
    assert_eq!(refused_with("a.jsonl", &lines, &options), expected);
    assert!(
        refused_with("a.json", format!("[{{\"text\": \"{long}\"}}]"), &options)
            .contains("is longer than 100 bytes")
    );
    assert!(
        refused_with("a.csv", format!("text\n\"{long}\n"), &options).contains("is longer than 100 bytes")
    );
    // The rows after it are good all the same.
    let file = file("a.jsonl", &lines);
    let skip = LoadOptions { skip_bad_rows: true, ..options };
    let (rows, report) = load(&file.path, &skip).unwrap();
    assert_eq!((texts(&rows), report.bad, rows[0].at.line), (vec!["b"], 1, Some(2)));
}

#[test]
fn bad_rows_may_be_passed_over_and_are_counted() {
    let content = "{\"text\": \"a\u{a0}b \"}\n{\"text\": \"\"}\nnot json\n{\"text\": \"a b\"}\n{\"text\": \"me@example.org\"}\n";
    let file = file("a.jsonl", content);
    let options =
        LoadOptions { skip_bad_rows: true, anonymise: true, drop_duplicates: true, ..Default::default() };
    let (rows, report) = load(&file.path, &options).unwrap();
    assert_eq!(texts(&rows), ["a b", "[EMAIL]"]);
    assert_eq!((report.read, report.bad, report.empty, report.duplicates), (5, 1, 1, 1));
    assert_eq!((report.cleaned.spaces, report.cleaned.trailing, report.anonymised.emails), (1, 1, 1));
    let (rows, report) = load(&file.path, &LoadOptions { drop_duplicates: false, ..options }).unwrap();
    assert_eq!((rows.len(), report.duplicates), (3, 1));
    let none = self::file("a.jsonl", "{\"text\": \"\"}\n{}");
    let skip = LoadOptions { skip_bad_rows: true, ..Default::default() };
    assert!(load(&none.path, &skip).unwrap_err().to_string().ends_with("has no usable row among 2"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn damaged_parquet_is_an_error_or_rows(
        name in prop::sample::select(vec!["text", "large", "dictionary", "messages"]),
        damage in prop::collection::vec((0.0..1.0, any::<u8>()), 1..6),
        cut in prop::option::of(0.0..1.0),
    ) {
        let mut bytes = fs::read(golden(&format!("parquet/{name}.parquet"))).unwrap();
        for (at, byte) in damage {
            let at = (at * bytes.len() as f64) as usize;
            bytes[at] = byte;
        }
        if let Some(cut) = cut {
            bytes.truncate((cut * bytes.len() as f64) as usize);
        }
        let file = file("a.parquet", bytes);
        let _ = load(&file.path, &LoadOptions::default());
    }

    #[test]
    fn any_bytes_are_an_error_or_rows(
        name in prop::sample::select(vec!["a.jsonl", "a.json", "a.csv"]),
        bytes in prop::collection::vec(prop::sample::select(b"{}[]\",:\\ \ntextab1\xff".to_vec()), 0..80),
    ) {
        let file = file(name, bytes);
        let options = LoadOptions { skip_bad_rows: true, ..Default::default() };
        let _ = load(&file.path, &options);
        if let Ok(rows) = dataset::open(&file.path, &DatasetOptions::default()) {
            // It ends whatever the bytes are: no error comes for ever.
            prop_assert!(rows.take(200).count() < 200);
        }
    }

    #[test]
    fn json_lines_and_arrays_agree(texts in prop::collection::vec("[a-z\\PC\"\\\\]{1,12}", 1..6)) {
        let rows: Vec<String> = texts.iter().map(|t| serde_json::json!({"text": t}).to_string()).collect();
        let lines = read(&file("a.jsonl", rows.join("\n")).path);
        let array = read(&file("a.json", format!("[{}]", rows.join(" , "))).path);
        prop_assert_eq!(self::texts(&lines), texts.iter().map(String::as_str).collect::<Vec<_>>());
        prop_assert_eq!(self::texts(&array), self::texts(&lines));
    }
}
