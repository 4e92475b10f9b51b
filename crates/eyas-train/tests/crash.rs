//! Runs in a process of their own that is killed, or whose disk is full.
#![cfg(unix)]

mod common;

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use common::card::{Card, Fault};
use common::*;
use eyas_model::LoraAdapter;
use eyas_train::checkpoint::find_last;
use eyas_train::recipe::ResumeFrom;
use eyas_train::{Event, Recipe, Replica};

/// Where the child writes; without it there is nothing to do.
const FOLDER: &str = "EYAS_TEST_OUTPUT";

/// Bytes that the child is left with in its fourth step; without it nobody takes any.
const LEFT: &str = "EYAS_TEST_LEFT";
/// How many cards the child has; without it one.
const CARDS: &str = "EYAS_TEST_CARDS";
/// Bytes of each of the child's cards.
const SIZE: u64 = 1 << 40;

fn settings(folder: &Path) -> Recipe {
    let mut recipe = recipe(folder);
    recipe.training.save_steps = 1;
    recipe.training.save_total_limit = Some(2);
    recipe.training.resume_from_checkpoint = ResumeFrom::Last;
    recipe
}

/// The run of the tests below, in a process of its own. It prints a line an event.
#[test]
#[ignore = "started by the other tests"]
fn child() {
    let Some(folder) = std::env::var_os(FOLDER) else { panic!("{FOLDER} is not set") };
    let left: Option<u64> = std::env::var(LEFT).ok().map(|left| left.parse().unwrap());
    let count = std::env::var(CARDS).map_or(1, |count| count.parse().unwrap());
    let cards: Vec<Card> = (0..count).map(|_| Card::new(SIZE)).collect();
    let models: Vec<_> = cards.iter().map(|card| load(card, "llama2", Some(Default::default()))).collect();
    let replicas = cards.iter().zip(&models).map(|(card, model)| Replica::alone(card, model)).collect();
    let take = || {
        if let (Some(left), Some(card)) = (left, cards.last()) {
            card.break_at(Fault { op: "project_backward", after: 3, taken: Some(SIZE - left) });
        }
    };
    let mut out = std::io::stdout();
    let mut tell = |event: &Event<'_>| {
        let name = match event {
            Event::Started(summary) if summary.global_step == 3 => return take(),
            Event::MicroBatch { .. } => "micro-batch",
            Event::Step(report) => {
                if report.global_step == 3 {
                    take();
                }
                "step"
            }
            Event::Saved { .. } => "saved",
            _ => return,
        };
        writeln!(out, "event {name}").unwrap();
        out.flush().unwrap();
    };
    let recipe = settings(Path::new(&folder));
    let (outcome, _) = run_shared(replicas, &recipe, &rows(19), &AtomicBool::new(false), &mut tell);
    if let Err(error) = outcome {
        eprintln!("error: {error}");
        std::process::exit(7);
    }
}

/// The child; `limit` is the size in blocks of 512 bytes at which its files are full.
fn start(folder: &Path, limit: Option<u64>, left: Option<u64>, cards: usize) -> Child {
    let exe = std::env::current_exe().unwrap();
    // With the signal ignored, a write past the limit fails like one on a full disk.
    let limit = limit.map_or(String::new(), |blocks| format!("trap '' XFSZ; ulimit -f {blocks}; "));
    Command::new("sh")
        .arg("-c")
        .arg(format!("{limit}exec \"$0\" --exact child --ignored --nocapture --test-threads 1"))
        .arg(exe)
        .env(FOLDER, folder)
        .env(CARDS, cards.to_string())
        .envs(left.map(|left| (LEFT, left.to_string())))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn params(folder: &Path) -> Vec<u32> {
    let model = load(&backend(), "llama2", Some(Default::default()));
    let adapter = LoraAdapter::load(folder, model.decoder()).unwrap();
    adapter.params.iter().map(|value| value.to_bits()).collect()
}

/// Kills runs at any moment until one ends: its bits are those of a run that nobody killed.
fn kill_anywhere(left: Option<u64>, cards: usize) {
    let whole = tempfile::tempdir().unwrap();
    assert!(start(whole.path(), None, left, cards).wait_with_output().unwrap().status.success());
    let expected = params(whole.path());

    let folder = tempfile::tempdir().unwrap();
    let mut random = 88_172_645_463_325_252_u64;
    let mut next = |bound: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % bound
    };
    let mut kills = 0;
    loop {
        let mut child = start(folder.path(), None, left, cards);
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        // After a few events, and a little later: within a micro-batch, or while a checkpoint is written.
        let events = 2 + next(9);
        let finished =
            lines.map_while(Result::ok).filter(|line| line.contains("event")).nth(events as usize).is_none();
        if finished {
            assert!(child.wait().unwrap().success());
            break;
        }
        std::thread::sleep(Duration::from_micros(next(4000)));
        child.kill().unwrap();
        child.wait().unwrap();
        kills += 1;
        assert!(kills < 60, "the run makes no headway");
        // Whatever the moment, what is found is whole.
        let found = find_last(folder.path()).unwrap();
        assert!(found.damaged.is_empty(), "{found:?}");
    }
    assert!(kills >= 3, "{kills} kills");
    assert_eq!(params(folder.path()), expected);
    let state = std::fs::read_to_string(folder.path().join("trainer_state.json")).unwrap();
    let batch = if left.is_some() { 1 } else { 2 };
    assert!(state.contains(&format!("\"train_batch_size\": {batch},")), "{state}");
}

#[test]
fn a_run_killed_anywhere_ends_in_the_same_bits() {
    kill_anywhere(None, 1);
}

#[test]
fn so_does_one_on_several_cards() {
    kill_anywhere(None, 3);
}

#[test]
fn so_does_one_whose_memory_was_taken_before() {
    let card = Card::new(SIZE);
    let model = load(&card, "llama2", Some(Default::default()));
    let folder = tempfile::tempdir().unwrap();
    let least = plans(&model, &card, &settings(folder.path())).last().unwrap().total();
    kill_anywhere(Some(least - 1), 1);
}

#[test]
fn a_full_disk_leaves_the_last_checkpoint_whole() {
    let backend = backend();
    let model = load(&backend, "llama2", Some(Default::default()));
    // Each limit stops the writing at another file: 35 kB of adapter, 70 kB of moments.
    for blocks in [1, 40, 100] {
        let folder = tempfile::tempdir().unwrap();
        let recipe = settings(folder.path());
        run_rows(&model, &backend, &recipe, &rows(19), Some(3)).unwrap();

        let output = start(folder.path(), Some(blocks), None, 1).wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(7));
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        for part in ["error: step 4: the checkpoint could not be written", "File too large", "checkpoint-3"] {
            assert!(message.contains(part), "{message}");
        }
        let found = find_last(folder.path()).unwrap();
        assert_eq!(found.newest, Some(folder.path().join("checkpoint-3")));
        assert!(found.damaged.is_empty());
        let left = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name());
        assert!(left.into_iter().all(|name| !name.to_string_lossy().starts_with('.')));
    }
}
