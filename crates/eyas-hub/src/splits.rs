//! Which files of a data set's repository are the rows to train on, found by their names.

use std::collections::BTreeMap;

use crate::name::HubName;
use crate::{Error, Result};

/// Endings of files of rows; where the same rows are there in several, the earlier is taken.
const ENDINGS: [&str; 6] = ["parquet", "jsonl", "ndjson", "json", "csv", "tsv"];
/// Words in a name that say what the rows are for.
const WORDS: [(&str, Part); 7] = [
    ("train", Part::Train),
    ("training", Part::Train),
    ("validation", Part::Other),
    ("valid", Part::Other),
    ("dev", Part::Other),
    ("test", Part::Other),
    ("eval", Part::Other),
];

/// What rows are for, by the name of their file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Train,
    Other,
    Unnamed,
}

/// The files of rows that were chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Choice {
    /// Files of one table, in order.
    pub files: Vec<String>,
    /// Files of rows that were left, one name for the pieces of a table.
    pub left: Vec<String>,
}

/// Chooses the rows to train on, or those of the file that was named: a file, or a table by the name that its pieces share.
///
/// # Errors
/// When there are none, or several tables to choose from.
pub(crate) fn choose(name: &HubName, names: &[String]) -> Result<Choice> {
    let mut tables: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for file in names.iter().filter(|file| ending(file).is_some() && !is_about_rows(file)) {
        tables.entry(table(file)).or_default().push(file.clone());
    }
    tables.values_mut().for_each(|files| files.sort());
    if let Some(file) = name.file() {
        return match tables.remove(file) {
            Some(files) => Ok(Choice { files, left: Vec::new() }),
            None if names.iter().any(|known| known == file) => {
                Ok(Choice { files: vec![file.into()], left: Vec::new() })
            }
            None => Err(Error::NoFile {
                name: name.id().into(),
                revision: name.revision().into(),
                file: file.into(),
            }),
        };
    }
    for part in [Part::Train, Part::Unnamed] {
        let mut found: Vec<&String> = tables.keys().filter(|table| part_of(table) == part).collect();
        // The same rows in another format are no other rows.
        let best = found.iter().filter_map(|table| ending(table)).min();
        found.retain(|table| ending(table) == best);
        match found.as_slice() {
            [] => {}
            [one] => {
                let one = (*one).clone();
                let files = tables.remove(&one).unwrap_or_default();
                return Ok(Choice { files, left: tables.into_keys().collect() });
            }
            several => {
                let id = name.id();
                let list: String = several
                    .iter()
                    .filter_map(|table| tables[*table].first())
                    .map(|file| format!("\n    {id}/{file}"))
                    .collect();
                return Err(Error::NotFound(format!(
                    "{name} holds several tables of rows; name a file:{list}"
                )));
            }
        }
    }
    Err(Error::NotFound(match tables.keys().next() {
        Some(table) => format!(
            "{name} has rows, but none to train on by their names; name a file, such as {}/{table}",
            name.id()
        ),
        None => format!(
            "{name} has no Parquet, JSONL, JSON or CSV file. The hub may have made Parquet of it: try \
             {}@refs/convert/parquet",
            name.id()
        ),
    }))
}

/// The place of a file's ending in the order of preference.
fn ending(file: &str) -> Option<usize> {
    let (_, ending) = file.rsplit_once('.')?;
    ENDINGS.iter().position(|known| known.eq_ignore_ascii_case(ending))
}

/// Files in a format of rows that describe the data set instead.
fn is_about_rows(file: &str) -> bool {
    let base = file.rsplit('/').next().unwrap_or(file);
    file.split('/').any(|part| part.starts_with('.'))
        || ["dataset_infos.json", "dataset_info.json", "state.json", "config.json", "metadata.json"]
            .contains(&base)
}

/// A file's name without the number of its piece: `train-00000-of-00002-5a3c.parquet` is `train.parquet`.
fn table(file: &str) -> String {
    let Some((stem, ending)) = file.rsplit_once('.') else { return file.into() };
    let digits = |text: &str| text.len() >= 4 && text.bytes().all(|byte| byte.is_ascii_digit());
    let parts: Vec<&str> = stem.split('-').collect();
    let of = parts.iter().rposition(|part| *part == "of");
    match of {
        Some(of)
            if of >= 1 && parts.get(of + 1).is_some_and(|part| digits(part)) && digits(parts[of - 1]) =>
        {
            format!("{}.{ending}", parts[..of - 1].join("-"))
        }
        // The hub's own conversion: `default/train/0000.parquet`.
        _ if stem.rsplit('/').next().is_some_and(digits) && stem.contains('/') => {
            let folder = &stem[..stem.rfind('/').unwrap_or(0)];
            format!("{folder}.{ending}")
        }
        _ => file.into(),
    }
}

/// What a table is for: the last of its words that says so.
fn part_of(table: &str) -> Part {
    let lower = table.to_ascii_lowercase();
    let mut words = lower.rsplit(|c: char| !c.is_ascii_alphanumeric());
    let found = words.find_map(|word| WORDS.iter().find(|(known, _)| *known == word));
    found.map_or(Part::Unnamed, |(_, part)| *part)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(names: &[&str]) -> Result<Choice> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        choose(&HubName::parse("owner/rows").unwrap(), &names)
    }

    #[test]
    fn the_recipes_own_data_set_is_one_file() {
        let choice =
            chosen(&[".gitattributes", "README.md", "data/train-00000-of-00001-01391a60ef5c00d9.parquet"])
                .unwrap();
        assert_eq!(choice.files, ["data/train-00000-of-00001-01391a60ef5c00d9.parquet"]);
        assert_eq!(choice.left, [""; 0]);
    }

    #[test]
    fn the_pieces_of_a_table_come_in_order_and_other_splits_stay() {
        let choice = chosen(&[
            "data/test-00000-of-00001.parquet",
            "data/train-00001-of-00002.parquet",
            "data/train-00000-of-00002.parquet",
            "dataset_infos.json",
        ]);
        let choice = choice.unwrap();
        assert_eq!(choice.files, ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"]);
        assert_eq!(choice.left, ["data/test.parquet"]);
    }

    #[test]
    fn a_file_that_says_nothing_is_taken_where_it_is_the_only_one() {
        assert_eq!(chosen(&["README.md", "counsel.csv"]).unwrap().files, ["counsel.csv"]);
        assert_eq!(chosen(&["rows.json", "rows.parquet"]).unwrap().files, ["rows.parquet"]);
        assert_eq!(chosen(&["default/train/0000.parquet"]).unwrap().files, ["default/train/0000.parquet"]);
    }

    #[test]
    fn a_table_is_named_as_a_file_would_be() {
        let names =
            ["data/test-00000-of-00002.parquet", "data/test-00001-of-00002.parquet", "data/train.parquet"];
        let names = names.map(str::to_owned);
        let files = |file: &str| {
            choose(&HubName::parse(&format!("owner/rows/{file}")).unwrap(), &names).map(|choice| choice.files)
        };
        assert_eq!(files("data/test.parquet").unwrap(), names[..2]);
        assert_eq!(files("data/test-00001-of-00002.parquet").unwrap(), names[1..2]);
        assert_eq!(files("data/train.parquet").unwrap(), names[2..]);
        assert!(matches!(files("data/dev.parquet"), Err(Error::NoFile { .. })));
    }

    #[test]
    fn several_tables_are_listed() {
        let message = chosen(&["en/train.jsonl", "zh/train.jsonl"]).unwrap_err().to_string();
        assert!(message.contains("owner/rows/zh/train.jsonl"), "{message}");
        let message = chosen(&["README.md", "rows.py"]).unwrap_err().to_string();
        assert!(message.contains("refs/convert/parquet"), "{message}");
        let message = chosen(&["test.jsonl"]).unwrap_err().to_string();
        assert!(message.contains("owner/rows/test.jsonl"), "{message}");
    }
}
