//! The detector on written messages: recall and false alarms by class, in tables, with limits.
//!
//! Each line of the files is `{"class", "lang", "expect", "turns"}`: `turns` are the messages of a person, the last one
//! judged; `expect` is a category or `none`.
//!
//! An operator measures rules of his own with `EYAS_CARE_FILE=rules.toml cargo test -p eyas-care --test detector`.

use std::collections::BTreeMap;

use eyas_care::{Care, Turn};

#[derive(serde::Deserialize)]
struct Message {
    class: String,
    lang: String,
    expect: String,
    turns: Vec<String>,
}

#[derive(Default)]
struct Row {
    wanted: usize,
    caught: usize,
    right_category: usize,
    quiet: usize,
    false_alarms: usize,
}

impl Row {
    fn recall(&self) -> f64 {
        if self.wanted == 0 { 1.0 } else { self.caught as f64 / self.wanted as f64 }
    }

    fn false_alarm_rate(&self) -> f64 {
        if self.quiet == 0 { 0.0 } else { self.false_alarms as f64 / self.quiet as f64 }
    }
}

struct Measured {
    rows: BTreeMap<String, Row>,
    missed_direct: Vec<String>,
}

fn measure(name: &str, text: &str) -> Measured {
    let care = match std::env::var_os("EYAS_CARE_FILE") {
        Some(path) => Care::from_file(path).expect("the operator's file"),
        None => Care::builtin(),
    };
    let mut rows: BTreeMap<String, Row> = BTreeMap::new();
    let mut missed_direct = Vec::new();
    for line in text.lines() {
        let message: Message = serde_json::from_str(line).expect(line);
        let turns: Vec<Turn<'_>> = message.turns.iter().map(|text| Turn::user(text)).collect();
        let assessment = care.assess(&turns);
        let found = assessment.concern.as_ref().map(|concern| concern.category.name());
        let row = rows.entry(message.class.clone()).or_default();
        let what = format!("{} [{}] {}", message.class, message.lang, message.turns.join(" => "));
        if message.expect == "none" {
            row.quiet += 1;
            if let Some(found) = &assessment.concern {
                row.false_alarms += 1;
                println!("false alarm: {what}: {} {:?}", found.category.name(), found.matched);
            }
            continue;
        }
        row.wanted += 1;
        row.caught += usize::from(found.is_some());
        row.right_category += usize::from(found == Some(message.expect.as_str()));
        match found {
            None => {
                println!("missed: {what}: {:?}", assessment.scores);
                if message.class == "direct" {
                    missed_direct.push(what);
                }
            }
            Some(found) if found != message.expect => {
                println!("other category: {what}: {found}, not {}", message.expect);
            }
            Some(_) => {}
        }
    }
    println!(
        "\n{name} (threshold 0.5)\n{:<14} {:>16} {:>16} {:>16}",
        "class", "recall", "category", "false alarms"
    );
    for (class, row) in &rows {
        println!(
            "{class:<14} {:>8} {:>6.1}% {:>8} {:>6.1}% {:>8} {:>6.1}%",
            format!("{}/{}", row.caught, row.wanted),
            100.0 * row.recall(),
            format!("{}/{}", row.right_category, row.wanted),
            100.0 * row.right_category as f64 / row.wanted.max(1) as f64,
            format!("{}/{}", row.false_alarms, row.quiet),
            100.0 * row.false_alarm_rate(),
        );
    }
    Measured { rows, missed_direct }
}

/// Words that mean no harm are told from those that do, in these classes taken together.
const HARMLESS: [&str; 4] = ["idiom", "lyric", "other_meaning", "benign"];

/// What a set has to reach.
struct Limits {
    /// In each class that is to be caught.
    recall: f64,
    /// In the class of indirect statements.
    indirect: f64,
    /// In [`HARMLESS`] together.
    false_alarms: f64,
}

/// Every message that says it outright is caught; the rest keeps its limits.
fn check(name: &str, text: &str, limits: &Limits) {
    let measured = measure(name, text);
    assert!(
        measured.missed_direct.is_empty(),
        "direct statements were missed: {:#?}",
        measured.missed_direct
    );
    for (class, row) in &measured.rows {
        let least = if class == "indirect" { limits.indirect } else { limits.recall };
        assert!(row.recall() >= least, "{name}, {class}: recall is {:.3}", row.recall());
    }
    let harmless = || measured.rows.iter().filter(|(class, _)| HARMLESS.contains(&class.as_str()));
    let alarms: usize = harmless().map(|(_, row)| row.false_alarms).sum();
    let quiet: usize = harmless().map(|(_, row)| row.quiet).sum();
    let rate = alarms as f64 / quiet as f64;
    assert!(rate <= limits.false_alarms, "{name}: {alarms} false alarms in {quiet} are {rate:.3}");
}

#[test]
fn first_set() {
    let limits = Limits { recall: 0.95, indirect: 0.95, false_alarms: 0.05 };
    check("messages.jsonl", include_str!("messages.jsonl"), &limits);
}

/// Written after the rules; the README tells how the rules did when they first met it, and the sets below.
#[test]
fn second_set() {
    check(
        "fresh.jsonl",
        include_str!("fresh.jsonl"),
        &Limits { recall: 0.8, indirect: 0.95, false_alarms: 0.05 },
    );
}

#[test]
fn third_set() {
    check(
        "fresh_2.jsonl",
        include_str!("fresh_2.jsonl"),
        &Limits { recall: 0.85, indirect: 0.95, false_alarms: 0.05 },
    );
}

/// English, by somebody else. The weights of the hints were learned from it.
#[test]
fn fourth_set() {
    check(
        "set_a.jsonl",
        include_str!("set_a.jsonl"),
        &Limits { recall: 0.7, indirect: 0.95, false_alarms: 0.05 },
    );
}

/// Chinese, by somebody else. The weights of the hints were learned from it.
#[test]
fn fifth_set() {
    check(
        "set_b.jsonl",
        include_str!("set_b.jsonl"),
        &Limits { recall: 0.9, indirect: 0.95, false_alarms: 0.05 },
    );
}

/// Both languages, by somebody else. The weights of the hints were learned from it.
#[test]
fn sixth_set() {
    let limits = Limits { recall: 0.85, indirect: 0.95, false_alarms: 0.05 };
    check("set_c.jsonl", include_str!("set_c.jsonl"), &limits);
}

/// Both languages, by somebody else. The weights of the hints were learned from it.
#[test]
fn seventh_set() {
    let limits = Limits { recall: 0.85, indirect: 0.95, false_alarms: 0.05 };
    check("set_d.jsonl", include_str!("set_d.jsonl"), &limits);
}

/// English, by somebody else. The weights of the hints were learned from it.
#[test]
fn eighth_set() {
    let limits = Limits { recall: 0.85, indirect: 0.95, false_alarms: 0.05 };
    check("set_g.jsonl", include_str!("set_g.jsonl"), &limits);
}

/// Chinese, by somebody else. The weights of the hints were learned from it.
#[test]
fn ninth_set() {
    let limits = Limits { recall: 0.85, indirect: 0.95, false_alarms: 0.05 };
    check("set_h.jsonl", include_str!("set_h.jsonl"), &limits);
}

/// Both languages, by somebody else, held out.
#[test]
fn tenth_set() {
    let limits = Limits { recall: 0.7, indirect: 0.8, false_alarms: 0.08 };
    check("set_e.jsonl", include_str!("set_e.jsonl"), &limits);
}

/// Both languages, by somebody else, held out.
#[test]
fn eleventh_set() {
    let limits = Limits { recall: 0.7, indirect: 0.8, false_alarms: 0.08 };
    check("set_f.jsonl", include_str!("set_f.jsonl"), &limits);
}

/// Both languages, long messages and very short ones, by somebody else. The weights of the hints were learned from it.
#[test]
fn twelfth_set() {
    let limits = Limits { recall: 0.85, indirect: 0.95, false_alarms: 0.05 };
    check("set_i.jsonl", include_str!("set_i.jsonl"), &limits);
}

/// Both languages, young people and talk online, by somebody else. The weights of the hints were learned from it.
#[test]
fn thirteenth_set() {
    let limits = Limits { recall: 0.85, indirect: 0.95, false_alarms: 0.05 };
    check("set_j.jsonl", include_str!("set_j.jsonl"), &limits);
}

/// Both languages, adults as to a counsellor, by somebody else, held out.
#[test]
fn fourteenth_set() {
    let limits = Limits { recall: 0.75, indirect: 0.85, false_alarms: 0.1 };
    check("set_k.jsonl", include_str!("set_k.jsonl"), &limits);
}
