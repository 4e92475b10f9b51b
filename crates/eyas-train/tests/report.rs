//! Metrics for TensorBoard and Weights & Biases, read back byte by byte.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::*;
use crc::{CRC_32_ISCSI, CRC_32_ISO_HDLC, Crc};
use eyas_model::Model;
use eyas_train::recipe::ResumeFrom;
use eyas_train::{Ending, Recipe};
use serde_json::Value;

/// The one entry of a folder whose name holds `part`.
fn only(folder: &Path, part: &str) -> PathBuf {
    let mut found = matching(folder, part);
    assert_eq!(found.len(), 1, "{found:?}");
    found.remove(0)
}

fn matching(folder: &Path, part: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut found: Vec<PathBuf> = entries.filter(|path| path.to_str().unwrap().contains(part)).collect();
    found.sort();
    found
}

fn asking(output: &Path, reporter: &str) -> Recipe {
    let mut recipe = recipe(output);
    recipe.set(&format!("report_to={reporter}")).unwrap();
    recipe.training.eval_steps = 4;
    recipe
}

/// The fields of a protobuf message: number and value, a varint or the bytes.
#[derive(Clone, Debug, PartialEq)]
enum Field {
    Number(u64),
    Bytes(Vec<u8>),
}

fn fields(mut bytes: &[u8]) -> Vec<(u64, Field)> {
    fn varint(bytes: &mut &[u8]) -> u64 {
        let length = bytes.iter().position(|byte| byte & 0x80 == 0).unwrap() + 1;
        let (own, rest) = bytes.split_at(length);
        *bytes = rest;
        own.iter().rev().fold(0, |value, byte| value << 7 | u64::from(byte & 0x7f))
    }
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes);
        let length = match key & 7 {
            0 => {
                found.push((key >> 3, Field::Number(varint(&mut bytes))));
                continue;
            }
            1 => 8,
            2 => varint(&mut bytes) as usize,
            5 => 4,
            other => panic!("wire type {other}"),
        };
        found.push((key >> 3, Field::Bytes(bytes[..length].to_vec())));
        bytes = &bytes[length..];
    }
    found
}

fn bytes_of(fields: &[(u64, Field)], wanted: u64) -> Option<Vec<u8>> {
    fields.iter().find_map(|(number, field)| match field {
        Field::Bytes(bytes) if *number == wanted => Some(bytes.clone()),
        _ => None,
    })
}

fn text_of(fields: &[(u64, Field)], wanted: u64) -> Option<String> {
    bytes_of(fields, wanted).map(|bytes| String::from_utf8(bytes).unwrap())
}

fn number_of(fields: &[(u64, Field)], wanted: u64) -> u64 {
    let found = fields.iter().find_map(|(number, field)| match field {
        Field::Number(value) if *number == wanted => Some(*value),
        _ => None,
    });
    found.unwrap_or(0)
}

/// What an event file says.
#[derive(Debug, Default)]
struct Events {
    version: Option<String>,
    restarts: Vec<u64>,
    scalars: Vec<(String, u64, f32)>,
    texts: Vec<(String, String)>,
}

fn read_events(path: &Path) -> Events {
    let checksum = Crc::<u32>::new(&CRC_32_ISCSI);
    let masked = |data: &[u8]| {
        let crc = checksum.checksum(data);
        crc.rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
    };
    let mut events = Events::default();
    let file = fs::read(path).unwrap();
    let mut rest = file.as_slice();
    while !rest.is_empty() {
        let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
        assert_eq!(rest[8..12], masked(&rest[..8]));
        let data = &rest[12..12 + length];
        assert_eq!(rest[12 + length..16 + length], masked(data));
        rest = &rest[16 + length..];
        let event = fields(data);
        let step = number_of(&event, 2);
        events.version = events.version.or(text_of(&event, 3));
        if let Some(session) = bytes_of(&event, 7) {
            assert_eq!(number_of(&fields(&session), 1), 1);
            events.restarts.push(step);
        }
        for (_, value) in bytes_of(&event, 5).iter().flat_map(|summary| fields(summary)) {
            let Field::Bytes(value) = value else { panic!("a value is a message") };
            let value = fields(&value);
            let tag = text_of(&value, 1).unwrap();
            match bytes_of(&value, 8) {
                Some(tensor) => events.texts.push((tag, text_of(&fields(&tensor), 8).unwrap())),
                None => {
                    let scalar = bytes_of(&value, 2).unwrap();
                    events.scalars.push((tag, step, f32::from_le_bytes(scalar.try_into().unwrap())));
                }
            }
        }
    }
    events
}

/// Steps of a tag.
fn steps(events: &Events, tag: &str) -> Vec<u64> {
    events.scalars.iter().filter(|(name, ..)| name == tag).map(|(_, step, _)| *step).collect()
}

/// A run of nine steps that was stopped after the seventh, one after a point that the checkpoint does not have, and
/// resumed at the fourth.
fn stopped_and_resumed(
    model: &Model<eyas_backend::CpuBackend>,
    recipe: &mut Recipe,
    between: impl FnOnce(&Path),
) {
    recipe.training.save_steps = 4;
    let (outcome, _) = run_rows(model, &backend(), recipe, &rows(19), Some(7)).unwrap();
    assert_eq!(outcome.ending, Ending::Interrupted);
    let output = PathBuf::from(&recipe.training.output_dir);
    fs::remove_dir_all(output.join("checkpoint-7")).unwrap();
    between(&output);
    recipe.training.resume_from_checkpoint = ResumeFrom::Last;
    let (outcome, told) = run(model, &backend(), recipe).unwrap();
    assert_eq!((outcome.ending, told.warnings), (Ending::Finished, vec![]));
}

#[test]
fn events_have_the_values_of_the_log_under_transformers_tags() {
    let folder = tempfile::tempdir().unwrap();
    let model = load(&backend(), "llama2", None);
    let recipe = asking(folder.path(), "tensorboard");
    run(&model, &backend(), &recipe).unwrap();

    let own = only(&folder.path().join("runs"), "runs");
    let events = read_events(&only(&own, "events.out.tfevents."));
    assert_eq!(events.version.as_deref(), Some("brain.Event:2"));
    assert!(events.restarts.is_empty());
    assert_eq!(steps(&events, "train/loss"), [2, 4, 6, 8]);
    assert_eq!(steps(&events, "eval/loss"), [0, 4, 8, 9]);
    assert_eq!(steps(&events, "train/train_loss"), [9]);

    let state = fs::read_to_string(folder.path().join("trainer_state.json")).unwrap();
    let state: Value = serde_json::from_str(&state).unwrap();
    let mut expected = Vec::new();
    for entry in state["log_history"].as_array().unwrap() {
        for (name, value) in entry.as_object().unwrap().iter().filter(|(name, _)| *name != "step") {
            let tag = match name.strip_prefix("eval_") {
                Some(rest) => format!("eval/{rest}"),
                None => format!("train/{name}"),
            };
            expected.push((tag, entry["step"].as_u64().unwrap(), value.as_f64().unwrap() as f32));
        }
    }
    assert_eq!(events.scalars, expected);

    let names: Vec<&str> = events.texts.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["args/text_summary", "model_config/text_summary"]);
    assert!(events.texts[0].1.contains("\"learning_rate\": 0.005"), "{}", events.texts[0].1);
    assert!(events.texts[1].1.contains("\"hidden_size\": 72"), "{}", events.texts[1].1);
}

#[test]
fn a_resumed_run_says_from_which_step_its_earlier_events_are_void() {
    let folder = tempfile::tempdir().unwrap();
    let model = load(&backend(), "llama2", None);
    let mut recipe = asking(folder.path(), "tensorboard");
    stopped_and_resumed(&model, &mut recipe, |_| {});
    let own = only(&folder.path().join("runs"), "runs");
    let files = matching(&own, "tfevents");
    assert_eq!(files.len(), 2);
    let (before, after) = (read_events(&files[0]), read_events(&files[1]));
    assert_eq!(steps(&before, "train/loss"), [2, 4, 6]);
    // The checkpoint's own step is written again, as the checkpoint has it.
    assert_eq!((after.restarts.as_slice(), steps(&after, "train/loss")), (&[4][..], vec![4, 6, 8]));
    assert!(after.texts.is_empty());
}

#[test]
fn a_run_resumed_without_its_event_files_writes_the_whole_log() {
    let folder = tempfile::tempdir().unwrap();
    let model = load(&backend(), "llama2", None);
    let mut recipe = asking(folder.path(), "tensorboard");
    stopped_and_resumed(&model, &mut recipe, |output| fs::remove_dir_all(output.join("runs")).unwrap());
    let own = only(&folder.path().join("runs"), "runs");
    let events = read_events(&only(&own, "tfevents"));
    assert_eq!(steps(&events, "train/loss"), [2, 4, 6, 8]);
    assert_eq!((events.restarts.len(), events.texts.len()), (0, 2));
}

#[test]
fn a_logging_dir_is_taken_as_it_is_and_an_earlier_run_in_it_gives_way() {
    let folder = tempfile::tempdir().unwrap();
    let model = load(&backend(), "llama2", None);
    let logs = folder.path().join("logs");
    let mut recipe = asking(&folder.path().join("out"), "tensorboard");
    recipe.training.logging_dir = Some(logs.display().to_string());
    run(&model, &backend(), &recipe).unwrap();
    run(&model, &backend(), &recipe).unwrap();
    let files = matching(&logs, "tfevents");
    assert_eq!(files.len(), 2);
    assert_eq!(read_events(&files[1]).restarts, [0]);
    assert!(!folder.path().join("out/runs").exists());
}

#[test]
fn nothing_is_written_where_nothing_is_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let model = load(&backend(), "llama2", None);
    run(&model, &backend(), &recipe(folder.path())).unwrap();
    assert!(!folder.path().join("runs").exists() && !folder.path().join("wandb").exists());
}

#[test]
fn metrics_that_cannot_be_written_are_an_error_before_the_first_step() {
    let folder = tempfile::tempdir().unwrap();
    let model = load(&backend(), "llama2", None);
    fs::write(folder.path().join("runs"), "a file").unwrap();
    let error = run(&model, &backend(), &asking(folder.path(), "tensorboard")).unwrap_err();
    assert!(error.to_string().contains("runs"), "{error}");
}

/// The records of a run's log: field number and message.
fn read_run(path: &Path) -> Vec<(u64, Vec<(u64, Field)>)> {
    const BLOCK: usize = 32 * 1024;
    let checksum = Crc::<u32>::new(&CRC_32_ISO_HDLC);
    let file = fs::read(path).unwrap();
    assert_eq!(&file[..7], b":W&B\xe1\xbe\0");
    let (mut at, mut record, mut records) = (7, Vec::new(), Vec::new());
    while at < file.len() {
        if BLOCK - at % BLOCK < 7 {
            at = at.next_multiple_of(BLOCK);
            continue;
        }
        let length = usize::from(u16::from_le_bytes([file[at + 4], file[at + 5]]));
        assert!(at % BLOCK + 7 + length <= BLOCK);
        let typed = &file[at + 6..at + 7 + length];
        assert_eq!(file[at..at + 4], checksum.checksum(typed).to_le_bytes());
        record.extend_from_slice(&typed[1..]);
        at += 7 + length;
        if matches!(typed[0], 1 | 4) {
            let message = fields(&std::mem::take(&mut record));
            assert_eq!(number_of(&message, 1), records.len() as u64 + 1);
            let (kind, content) = message
                .iter()
                .find_map(|(number, field)| match field {
                    Field::Bytes(bytes) => Some((*number, bytes.clone())),
                    Field::Number(_) => None,
                })
                .unwrap();
            records.push((kind, fields(&content)));
        }
    }
    records
}

/// Names and values of a record's items.
fn items(record: &[(u64, Field)]) -> Vec<(String, Value)> {
    let messages = record.iter().filter_map(|(number, field)| match field {
        Field::Bytes(bytes) if *number == 1 => Some(fields(bytes)),
        _ => None,
    });
    messages
        .map(|item| {
            let name = text_of(&item, 2).or(text_of(&item, 1)).unwrap();
            (name, serde_json::from_str(&text_of(&item, 16).unwrap()).unwrap())
        })
        .collect()
}

/// `(point, step, loss)` of every point that has a loss.
fn losses(records: &[(u64, Vec<(u64, Field)>)]) -> Vec<(u64, u64, f64)> {
    const HISTORY: u64 = 2;
    let points = records.iter().filter(|(kind, _)| *kind == HISTORY).map(|(_, record)| items(record));
    points
        .filter_map(|point| {
            let value =
                |name: &str| point.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
            let loss = value("train/loss")?.as_f64()?;
            Some((value("_step")?.as_u64()?, value("train/global_step")?.as_u64()?, loss))
        })
        .collect()
}

/// That each logged step has one point, between those of the evaluations.
fn assert_has_every_step(records: &[(u64, Vec<(u64, Field)>)]) {
    let steps: Vec<(u64, u64)> = losses(records).iter().map(|(point, step, _)| (*point, *step)).collect();
    assert_eq!(steps, [(1, 2), (2, 4), (4, 6), (5, 8)]);
}

/// The file of the only offline run of an output folder.
fn offline_run(output: &Path) -> PathBuf {
    only(&only(&output.join("wandb"), "offline-run-"), ".wandb")
}

fn kinds(records: &[(u64, Vec<(u64, Field)>)]) -> Vec<u64> {
    records.iter().map(|(kind, _)| *kind).collect()
}

#[test]
fn an_offline_run_has_header_settings_points_and_an_end() {
    let folder = tempfile::tempdir().unwrap();
    let model = load(&backend(), "llama2", None);
    let mut recipe = asking(folder.path(), "wandb");
    recipe.training.run_name = Some("first try".into());
    run(&model, &backend(), &recipe).unwrap();
    let own = only(&folder.path().join("wandb"), "offline-run-");
    assert!(own.join("files").is_dir());
    let path = only(&own, ".wandb");
    let id = path.file_stem().unwrap().to_str().unwrap().strip_prefix("run-").unwrap();
    let records = read_run(&path);
    assert_eq!(kinds(&records)[..4], [21, 17, 12, 12]);
    assert_eq!(kinds(&records).last(), Some(&18));

    let described = &records[1].1;
    assert_eq!(text_of(described, 1).as_deref(), Some(id));
    assert_eq!(text_of(described, 3).as_deref(), Some("eyas"));
    assert_eq!(text_of(described, 8).as_deref(), Some("first try"));
    let config = items(&fields(&bytes_of(described, 4).unwrap()));
    assert!(config.contains(&("learning_rate".into(), Value::from(5e-3))), "{config:?}");

    assert_has_every_step(&records);
    let (_, summary) = records.iter().rfind(|(kind, _)| *kind == 3).unwrap();
    assert!(items(summary).iter().any(|(name, _)| name == "train_loss"));
}

#[test]
fn a_resumed_offline_run_is_one_run_without_a_step_twice() {
    let folder = tempfile::tempdir().unwrap();
    let model = load(&backend(), "llama2", None);
    let mut recipe = asking(folder.path(), "wandb");
    // Killed while it was writing: the last record is torn.
    stopped_and_resumed(&model, &mut recipe, |output| {
        let path = offline_run(output);
        let mut bytes = fs::read(&path).unwrap();
        bytes.truncate(bytes.len() - 3);
        fs::write(&path, bytes).unwrap();
    });
    let records = read_run(&offline_run(folder.path()));
    assert_has_every_step(&records);
    assert_eq!(kinds(&records).iter().filter(|kind| **kind == 18).count(), 1);
}

#[test]
fn an_offline_run_that_lost_points_has_all_of_them_again() {
    let folder = tempfile::tempdir().unwrap();
    let model = load(&backend(), "llama2", None);
    let mut recipe = asking(folder.path(), "wandb");
    stopped_and_resumed(&model, &mut recipe, |output| {
        let path = offline_run(output);
        let mut bytes = fs::read(&path).unwrap();
        // A byte of the first point.
        let at = bytes.windows(9).position(|window| window == b"eval/loss").unwrap();
        bytes[at] ^= 1;
        fs::write(&path, bytes).unwrap();
    });
    let records = read_run(&offline_run(folder.path()));
    assert_has_every_step(&records);
}

#[test]
fn a_record_longer_than_a_block_is_cut_and_read_again() {
    let folder = tempfile::tempdir().unwrap();
    let model = load(&backend(), "llama2", None);
    let mut recipe = asking(folder.path(), "wandb");
    recipe.training.run_name = Some("a long name ".repeat(6000));
    stopped_and_resumed(&model, &mut recipe, |_| {});
    let records = read_run(&offline_run(folder.path()));
    assert_eq!(text_of(&records[1].1, 8), recipe.training.run_name);
    assert_eq!(losses(&records).len(), 4);
}
