//! The built-in files, and what an operator lays over them.

use std::collections::BTreeSet;

use eyas_care::{
    Assessment, Care, Category, Concern, HelplineKind, Language, Questionnaire, Reason, Role, ScoreUnit,
    Turn, Verdict, score,
};

fn concern(category: Category) -> Concern {
    Concern { category, severity: 0.9, threshold: 0.5, matched: vec!["test".to_owned()] }
}

fn questionnaire(care: &Care, id: &str) -> Questionnaire {
    care.questionnaires(Language::En).into_iter().find(|q| q.id == id).expect(id)
}

/// Every text in Traditional Chinese, with the place where it stands.
fn chinese(place: &str, value: &toml::Value, out: &mut Vec<(String, String)>) {
    match value {
        toml::Value::Table(table) => {
            for (key, value) in table {
                match value {
                    toml::Value::String(text) if key == "zh-Hant" => {
                        out.push((place.to_owned(), text.clone()))
                    }
                    value => chinese(&format!("{place}.{key}"), value, out),
                }
            }
        }
        toml::Value::Array(all) => all.iter().for_each(|value| chinese(place, value, out)),
        _ => {}
    }
}

#[test]
fn chinese_sentences_have_full_width_signs() {
    let is_han = |c: Option<&char>| c.is_some_and(|c| ('\u{3400}'..='\u{9fff}').contains(c));
    let mut texts = Vec::new();
    for (name, file) in [
        ("texts", include_str!("../texts.toml")),
        ("helplines", include_str!("../helplines.toml")),
        ("questionnaires", include_str!("../questionnaires.toml")),
    ] {
        chinese(name, &toml::Value::Table(file.parse().expect("TOML")), &mut texts);
    }
    assert!(texts.len() > 100, "{} texts", texts.len());
    for (place, text) in texts {
        let chars: Vec<char> = text.chars().collect();
        for (at, sign) in
            chars.iter().enumerate().filter(|(_, c)| matches!(c, ',' | ';' | ':' | '?' | '!' | '(' | ')'))
        {
            let before = at.checked_sub(1).and_then(|at| chars.get(at));
            assert!(!is_han(before) && !is_han(chars.get(at + 1)), "{place}: {sign} in {text}");
        }
    }
}

#[test]
fn helplines_of_many_regions_emergency_first() {
    let care = Care::builtin();
    let regions = care.regions(Language::ZhHant);
    assert!(regions.len() >= 30, "{} regions", regions.len());
    let codes: BTreeSet<_> = regions.iter().map(|region| region.code.as_str()).collect();
    assert_eq!(codes.len(), regions.len());
    for region in &regions {
        for language in [Language::En, Language::ZhHant] {
            let lines = care.helplines(Some(&region.code), language);
            assert_eq!(lines[0].kind, HelplineKind::Emergency, "{}", region.code);
            assert!(lines[0].phone.is_some());
            assert_eq!(lines[lines.len() - 1].kind, HelplineKind::Directory);
            for line in lines {
                assert!(line.source.starts_with("https://"), "{}: {}", region.code, line.name);
                assert_eq!(line.checked.len(), "2025-01-01".len(), "{}: {}", region.code, line.name);
                assert!(!line.hours.is_empty() && !line.name.is_empty());
            }
        }
    }
}

/// README.md tells how many entries were found confirmed; `confirmed` in the table is what counts.
#[test]
fn the_readme_counts_what_is_confirmed() {
    let table: toml::Table = include_str!("../helplines.toml").parse().expect("TOML");
    let regions = table["helplines"]["region"].as_table().expect("regions");
    let (mut lines, mut confirmed, mut emergency) = (0, std::collections::BTreeMap::new(), 0);
    for region in regions.values() {
        emergency += usize::from(region.get("emergency_confirmed").is_some());
        for line in region.get("line").and_then(|line| line.as_array()).into_iter().flatten() {
            lines += 1;
            if let Some(kind) = line.get("confirmed").and_then(|c| c["kind"].as_str()) {
                *confirmed.entry(kind).or_insert(0) += 1;
            }
        }
    }
    let of = |kind| confirmed.get(kind).copied().unwrap_or(0);
    let sum: usize = confirmed.values().sum();
    let readme = include_str!("../README.md").split_whitespace().collect::<Vec<_>>().join(" ");
    for part in [
        format!("{sum} of {lines} lines"),
        format!("{} pages of the organisation itself", of("own")),
        format!("{} of another public body", of("public")),
        format!("{} of the press", of("press")),
        format!("{} other pages and lists", of("other")),
        format!("Nothing confirms the other {}", lines - sum),
        format!("{emergency} of {} regions", regions.len()),
    ] {
        assert!(readme.contains(&part), "{part}");
    }
}

/// A newer page moves the date that is shown; an older one does not.
#[test]
fn the_date_is_that_of_the_newest_knowledge() {
    let care = Care::builtin();
    let date = |region, phone: &str| {
        let lines = care.helplines(Some(region), Language::En);
        lines.into_iter().find(|line| line.phone.as_deref() == Some(phone)).expect(phone).checked
    };
    assert_eq!(date("PT", "1411"), "2025-09-10");
    assert_eq!(date("FR", "3114"), "2025-01-01");
}

#[test]
fn known_numbers_are_right() {
    let care = Care::builtin();
    for (region, number) in [
        ("US", "988"),
        ("ca", "988"),
        ("GB", "116 123"),
        ("AU", "13 11 14"),
        ("NZ", "1737"),
        ("TW", "1925"),
        ("HK", "2896 0000"),
        ("SG", "1767"),
        ("DE", "0800 111 0 111"),
        ("FR", "3114"),
        ("PT", "1411"),
        ("AT", "142"),
        ("CH", "143"),
        ("NL", "113"),
        ("BE", "1813"),
        ("ES", "024"),
        ("IN", "14416"),
        ("BR", "188"),
        ("JP", "0120-279-338"),
        ("KR", "109"),
    ] {
        let lines = care.helplines(Some(region), Language::En);
        assert!(lines.iter().any(|line| line.phone.as_deref() == Some(number)), "{region}: {number}");
    }
}

#[test]
fn every_category_has_a_whole_answer() {
    let care = Care::builtin();
    for category in Category::ALL {
        for language in [Language::En, Language::ZhHant] {
            for region in [None, Some("TW"), Some("us"), Some("XX")] {
                let answer = care.response(&concern(category), region, language);
                assert!(!answer.text.contains('{'), "an unfilled place: {}", answer.text);
                assert!(answer.text.contains(&answer.emergency));
                assert!(answer.text.contains(&answer.follow_up));
                assert!(answer.grounding.iter().all(|step| answer.text.contains(step)));
                assert!(answer.helplines.iter().all(|line| answer.text.contains(&line.name)));
                assert!(!answer.helplines.is_empty());
                serde_json::to_string(&answer).expect("JSON");
            }
        }
    }
    let poison = care.response(&concern(Category::Overdose), Some("US"), Language::En).helplines;
    assert_eq!(poison[0].kind, HelplineKind::Emergency);
    assert_eq!(poison[1].kind, HelplineKind::Poison);
}

/// What is fixed must pass the checks that a model's answer has to pass, but for the numbers.
#[test]
fn fixed_words_pass_the_checks() {
    let care = Care::builtin();
    for category in Category::ALL {
        for language in [Language::En, Language::ZhHant] {
            let text = care.response(&concern(category), None, language).text;
            if let Verdict::Replace { reasons, .. } = care.check_answer("", &text, language).verdict {
                assert_eq!(reasons, [Reason::PhoneNumber], "{category:?}: {text}");
            }
        }
    }
}

#[test]
fn phq_9() {
    let care = Care::builtin();
    let phq = questionnaire(&care, "phq-9");
    assert_eq!((phq.items.len(), phq.options.len()), (9, 4));
    for (answers, total, band) in [
        ([0, 0, 0, 0, 0, 0, 0, 0, 0], 0, "Minimal"),
        ([1, 1, 1, 1, 0, 0, 0, 0, 0], 4, "Minimal"),
        ([1, 1, 1, 1, 1, 0, 0, 0, 0], 5, "Mild"),
        ([3, 3, 3, 0, 0, 0, 0, 0, 0], 9, "Mild"),
        ([3, 3, 3, 1, 0, 0, 0, 0, 0], 10, "Moderate"),
        ([3, 3, 3, 3, 2, 0, 0, 0, 0], 14, "Moderate"),
        ([3, 3, 3, 3, 3, 0, 0, 0, 0], 15, "Moderately severe"),
        ([3, 3, 3, 3, 3, 3, 1, 0, 0], 19, "Moderately severe"),
        ([3, 3, 3, 3, 3, 3, 2, 0, 0], 20, "Severe"),
        ([3, 3, 3, 3, 3, 3, 3, 3, 3], 27, "Severe"),
    ] {
        let score = score(&phq, &answers).expect("fitting answers");
        assert_eq!((score.total, score.band.as_str()), (total, band));
        assert_eq!(score.percentage, None);
    }
    let quiet = score(&phq, &[1, 1, 0, 0, 0, 0, 0, 0, 0]).expect("fitting answers");
    let ninth = score(&phq, &[0, 0, 0, 0, 0, 0, 0, 0, 1]).expect("fitting answers");
    assert!(!quiet.shows_help && ninth.shows_help);
    assert!(ninth.text.starts_with("You answered"), "{}", ninth.text);
}

#[test]
fn gad_7_and_who_5() {
    let care = Care::builtin();
    let gad = questionnaire(&care, "gad-7");
    for (answers, band) in [
        ([1, 1, 1, 1, 0, 0, 0], "Minimal"),
        ([1, 1, 1, 1, 1, 0, 0], "Mild"),
        ([3, 3, 3, 1, 0, 0, 0], "Moderate"),
        ([3, 3, 3, 3, 3, 0, 0], "Severe"),
    ] {
        assert_eq!(score(&gad, &answers).expect("fitting answers").band, band);
    }
    let who = questionnaire(&care, "who-5");
    assert_eq!(who.unit, ScoreUnit::Percentage);
    for (answers, percentage, band) in [
        ([5, 5, 5, 5, 5], 100, "Good"),
        ([3, 3, 3, 2, 2], 52, "Good"),
        ([3, 3, 2, 2, 2], 48, "Low"),
        ([1, 1, 1, 2, 2], 28, "Very low"),
    ] {
        let score = score(&who, &answers).expect("fitting answers");
        assert_eq!((score.percentage, score.band.as_str()), (Some(percentage), band));
    }
}

#[test]
fn answers_that_do_not_fit_are_refused() {
    let gad = questionnaire(&Care::builtin(), "gad-7");
    let error = score(&gad, &[0; 6]).expect_err("one is missing").to_string();
    assert!(error.contains("gad-7") && error.contains("7 items"), "{error}");
    let error = score(&gad, &[0, 0, 9, 0, 0, 0, 0]).expect_err("too high").to_string();
    assert!(error.contains("answer 3 is 9"), "{error}");
}

/// The page scores from the JSON alone.
#[test]
fn the_json_of_a_questionnaire_holds_what_scoring_needs() {
    for language in [Language::En, Language::ZhHant] {
        for questionnaire in Care::builtin().questionnaires(language) {
            let json = serde_json::to_value(&questionnaire).expect("JSON");
            for key in [
                "items",
                "options",
                "factor",
                "unit",
                "bands",
                "help_items",
                "help_text",
                "note",
                "source",
                "licence",
            ] {
                assert!(json.get(key).is_some(), "{key}");
            }
            let ends: Vec<_> =
                json["bands"].as_array().expect("bands").iter().map(|band| band["to"].as_u64()).collect();
            assert!(ends.is_sorted());
        }
    }
}

#[test]
fn an_operator_changes_single_keys() {
    let care = Care::from_toml(
        r#"
        [thresholds]
        violence = 2.0
        [rules.wish_to_die]
        off = true
        [rules.our_phrase]
        category = "self_harm"
        weight = 0.9
        patterns = ["red butterfly ~2 tonight"]
        [helplines.region.XX]
        name = { en = "Nowhere", zh-Hant = "無處" }
        emergency = [{ number = "1" }]
        emergency_source = "https://example.org"
        "#,
    )
    .expect("a valid overlay");
    let assess = |text: &str| care.assess(&[Turn { role: Role::User, text }]);
    assert_eq!(
        assess("the red butterfly is here tonight").concern.map(|c| c.category),
        Some(Category::SelfHarm)
    );
    assert_eq!(assess("I am going to kill him").concern, None);
    assert!(
        assess("I want to die").scores.iter().all(|score| !score.matched.contains(&"wish_to_die".to_owned()))
    );
    assert!(care.regions(Language::En).iter().any(|region| region.name == "Nowhere"));
    assert_eq!(care.helplines(Some("xx"), Language::En)[0].phone.as_deref(), Some("1"));
}

#[test]
fn mistakes_of_an_operator_are_named() {
    for (text, part) in [
        ("x = [", "TOML"),
        ("nonsense = 1", "nonsense"),
        ("[thresholds]\nsuicide = 0.0", "thresholds.suicide"),
        ("[rules.a]\ncategory = \"suicide\"\nweight = 3.0\npatterns = []", "rules.a.weight"),
        ("[rules.a]\ncategory = \"suicide\"\nweight = 0.3\npatterns = [\"die @nobody_here\"]", "nobody_here"),
        (
            "[helplines.region.xx]\nname = { en = \"a\", zh-Hant = \"b\" }\nemergency = []\nemergency_source = \"https://a.b\"",
            "helplines.region.xx",
        ),
        (
            "[helplines.region.XX]\nname = { en = \"a\", zh-Hant = \"b\" }\nemergency = [{ number = \"1\" }]\nemergency_source = \"https://a.b\"\nemergency_confirmed = { page = \"a page\", kind = \"other\" }",
            "confirmed.page",
        ),
        (
            "[[helplines.directory]]\nname = { en = \"a\", zh-Hant = \"b\" }\nkind = \"crisis\"\nphone = \"1\"\nhours = \"always\"\nlanguages = []\nsource = \"https://a.org\"\nconfirmed = { page = \"https://not-a.org/x\", kind = \"own\" }",
            "confirmed.kind",
        ),
        (
            "[[helplines.directory]]\nname = { en = \"a\", zh-Hant = \"b\" }\nkind = \"crisis\"\nphone = \"1\"\nhours = \"always\"\nlanguages = []\nsource = \"https://a.org\"\nconfirmed = { page = \"http://help.a.org\", kind = \"own\", dated = \"May 2025\" }",
            "confirmed.dated",
        ),
        ("[questionnaire.phq-9]\nhelp_items = [9]", "help_items"),
        ("[lower.past]\nspares = [\"no_rule\"]", "no_rule"),
    ] {
        let error = Care::from_toml(text).expect_err(text).to_string();
        assert!(error.contains(part), "{error}");
    }
    let error = Care::from_file("/no/such/care.toml").expect_err("no file").to_string();
    assert!(error.contains("/no/such/care.toml"), "{error}");
}

#[test]
fn files_are_read_from_disk() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("care.toml");
    std::fs::write(&path, "[reminder_policy]\nturns = 3\n").expect("written");
    assert_eq!(Care::from_file(&path).expect("valid").reminder_policy().turns, 3);
}

#[test]
fn answers_to_the_programs_own_question_count() {
    let care = Care::builtin();
    let after = |question, answer| {
        care.assess(&[Turn::assistant(question), Turn::user(answer)]).concern.map(|c| c.category)
    };
    assert_eq!(after("Are you thinking about suicide?", "yes"), Some(Category::Suicide));
    assert_eq!(after("你是不是想結束生命?", "嗯"), Some(Category::Suicide));
    assert_eq!(after("Are you safe right now?", "no"), Some(Category::Suicide));
    assert_eq!(after("Are you thinking about suicide?", "no, not at all"), None);
    assert_eq!(after("Do you like tea?", "yes"), None);
    assert_eq!(care.assess(&[]), Assessment::default());
}

#[test]
fn care_is_shared_between_threads() {
    fn shared<T: Clone + Send + Sync + 'static>(_: &T) {}
    shared(&Care::builtin());
}
