//! The model card that goes to the hub with an adapter.

use std::fmt::Write;

use eyas_hub::HubName;
use eyas_train::recipe::{PromptStyle, QuantName};
use eyas_train::{BUILTIN, Recipe, TrainerState};
use serde_json::Value;

/// The line by which a card is known as eyas' own: one without it belongs to a person and is left alone.
pub const MARK: &str =
    "<!-- Written by eyas push. Take this line out, and pushing again leaves your changes alone. -->";

/// The published recipe's data set.
const PUBLISHED_ROWS: &str = "heliosbrahma/mental_health_chatbot_dataset";

/// What a card is written from.
#[derive(Debug)]
pub struct Card<'a> {
    /// The repository.
    pub name: &'a HubName,
    /// The base model on the hub, and its revision.
    pub base: (&'a str, Option<&'a str>),
    /// How it was trained, if that is known.
    pub recipe: Option<&'a Recipe>,
    /// The run's log, if it is there.
    pub state: Option<&'a TrainerState>,
    /// What the run noted of its rows.
    pub rows: Option<&'a Value>,
}

/// Losses before, on the way and after.
#[derive(Debug, Default, PartialEq)]
struct Losses {
    /// Of training: the first and the last that were logged.
    train: Option<(f64, f64)>,
    /// Of the rows held out: before the first step and after the last.
    eval: Option<(f64, f64)>,
}

impl Losses {
    fn of(state: &TrainerState) -> Self {
        let ends = |key: &str| {
            let mut values = state.log_history.iter().filter_map(|entry| entry.get(key)?.as_f64());
            let first = values.next()?;
            Some((first, values.next_back().unwrap_or(first)))
        };
        Self { train: ends("loss"), eval: ends("eval_loss") }
    }
}

impl Card<'_> {
    /// The whole card, in Markdown with the hub's metadata in front.
    pub fn text(&self) -> String {
        let title = self.name.id().rsplit('/').next().unwrap_or_default();
        let mut text = self.metadata();
        let _ = write!(text, "\n{MARK}\n\n# {title}\n\n");
        let _ = writeln!(
            text,
            "A LoRA adapter for [{0}](https://huggingface.co/{0}), trained with eyas. It is of no use without its base \
             model, whose licence holds for it too.",
            self.base.0
        );
        if self.is_about_mental_health() {
            text += SAFETY;
        }
        self.write_data(&mut text);
        self.write_training(&mut text);
        self.write_results(&mut text);
        self.write_limits(&mut text);
        self.write_usage(&mut text);
        text
    }

    /// The hub's metadata. Names in it are of letters, digits and `-_./` alone, so they need no quotes.
    fn metadata(&self) -> String {
        let mut text =
            format!("---\nlibrary_name: peft\npipeline_tag: text-generation\nbase_model: {}\n", self.base.0);
        if let Some(dataset) = self.dataset().and_then(HubName::parse) {
            let _ = write!(text, "datasets:\n- {}\n", dataset.id());
        }
        text += "tags:\n- lora\n- qlora\n- eyas\n";
        if self.is_about_mental_health() {
            text += "- mental-health\n";
        }
        text + "---\n"
    }

    fn dataset(&self) -> Option<&str> {
        self.recipe.and_then(|recipe| recipe.data.dataset.as_deref())
    }

    /// Whether people in distress may talk to it: by its rows' name and its own. Rather once too often.
    fn is_about_mental_health(&self) -> bool {
        const WORDS: [&str; 6] = ["mental", "psych", "counsel", "therap", "depress", "anxiety"];
        let about = |name: &str| {
            let name = name.to_lowercase();
            name == BUILTIN
                || name.starts_with(PUBLISHED_ROWS)
                || WORDS.iter().any(|word| name.contains(word))
        };
        self.dataset().is_some_and(about) || about(self.name.id())
    }

    fn write_data(&self, text: &mut String) {
        text.push_str("\n## Rows\n\n");
        let name = match self.dataset() {
            Some(BUILTIN) => "The conversations about mental health that are built into eyas".to_owned(),
            Some(name) => match HubName::parse(name) {
                Some(on_hub) => format!("[{0}](https://huggingface.co/datasets/{0})", on_hub.id()),
                None => format!("A file of its author's, `{name}`, which is not published here"),
            },
            None => "It is not known which rows it was trained on".to_owned(),
        };
        let count = |key: &str| self.rows.and_then(|rows| rows[key].as_u64());
        let _ = match (count("train_rows"), count("eval_rows"), count("train_tokens")) {
            (Some(train), Some(0), Some(tokens)) => {
                writeln!(text, "{name}: {train} rows ({tokens} tokens) to learn from, none held out.")
            }
            (Some(train), Some(eval), Some(tokens)) => {
                writeln!(text, "{name}: {train} rows ({tokens} tokens) to learn from, {eval} held out.")
            }
            _ => writeln!(text, "{name}."),
        };
        if self.recipe.is_some_and(|recipe| recipe.data.anonymise) {
            text.push_str(
                "\nE-mail addresses, telephone numbers and other personal data that has a form were replaced before \
                 training; names and stories were not.\n",
            );
        }
    }

    fn write_training(&self, text: &mut String) {
        let Some(recipe) = self.recipe else { return };
        let (lora, training) = (&recipe.lora, &recipe.training);
        text.push_str("\n## Training\n\nThe whole recipe is in `recipe.toml`.\n\n| | |\n|---|---|\n");
        let quantised = match recipe.quantization.load_in_4bit {
            true => format!(
                "4 bits, {}{}",
                match recipe.quantization.bnb_4bit_quant_type {
                    QuantName::Nf4 => "NF4",
                    QuantName::Fp4 => "FP4",
                },
                if recipe.quantization.bnb_4bit_use_double_quant { ", double quantisation" } else { "" }
            ),
            false => "as published".into(),
        };
        let steps = self.state.map_or("not known".into(), |state| {
            format!("{} ({:.2} passes over the rows)", state.global_step, state.epoch)
        });
        let devices = match self.rows.and_then(|rows| rows["devices"].as_u64()) {
            Some(count @ 2..) => format!(" on each of {count} devices"),
            _ => String::new(),
        };
        let rows = [
            ("base", quantised),
            (
                "adapter",
                format!("r {}, lora_alpha {}, dropout {}", lora.r, lora.lora_alpha, lora.lora_dropout),
            ),
            (
                "rows a step",
                format!(
                    "{} x {}{devices}",
                    training.per_device_train_batch_size, training.gradient_accumulation_steps
                ),
            ),
            ("steps", steps),
            ("learning rate", format!("{:e}", training.learning_rate)),
            ("optimiser", String::from(training.optim)),
            ("longest row", format!("{} tokens", recipe.data.max_length)),
            ("seed", training.seed.to_string()),
        ];
        for (name, value) in rows {
            let _ = writeln!(text, "| {name} | {value} |");
        }
    }

    fn write_results(&self, text: &mut String) {
        let Some(state) = self.state else { return };
        let losses = Losses::of(state);
        text.push_str("\n## Results\n\n");
        if losses == Losses::default() {
            text.push_str("No loss was logged.\n");
            return;
        }
        text.push_str("| loss | before | after |\n|---|---|---|\n");
        if let Some((first, last)) = losses.eval {
            let _ = writeln!(text, "| held-out rows | {first:.3} | {last:.3} |");
            let _ = writeln!(text, "| held-out rows, perplexity | {:.2} | {:.2} |", first.exp(), last.exp());
        }
        if let Some((first, last)) = losses.train {
            let _ = writeln!(text, "| rows trained on, first and last logged | {first:.3} | {last:.3} |");
        }
        if losses.eval.is_none() {
            let _ = writeln!(
                text,
                "\nNothing was held out, so it cannot be told what it learned from what it knows by heart after {:.0} \
                 passes.",
                state.epoch
            );
        }
    }

    fn write_limits(&self, text: &mut String) {
        text.push_str(
            "\n## Intended use and limits\n\nFor research and for trying out fine-tuning. The losses above measure how well it \
             predicts rows like those that it was trained on; nobody has measured whether its answers are true, useful or \
             harmless. It writes plausible text, makes things up, repeats what its base and its rows have of prejudice, and may \
             repeat rows word for word. Check what it says before anybody relies on it.\n",
        );
        if self.is_about_mental_health() {
            text.push_str(
                "\nNot for diagnosis, treatment, or decisions about a person; not for people in crisis; not for children; not \
                 without somebody who answers for it.\n",
            );
        }
    }

    fn write_usage(&self, text: &mut String) {
        let (base, revision) = self.base;
        let name = self.name.id();
        let human =
            self.recipe.is_some_and(|recipe| recipe.data.prompt_format == PromptStyle::HumanAssistant);
        let asked = match human || self.dataset().is_some_and(|rows| rows.starts_with(PUBLISHED_ROWS)) {
            true => {
                "It learned from texts of the form `<HUMAN>: question`, a line break, `<ASSISTANT>: answer`: ask it alike.\n\n"
            }
            false => "",
        };
        let at = revision.map_or(String::new(), |revision| format!(", revision=\"{revision}\""));
        let _ = write!(
            text,
            "\n## Use\n\n{asked}With PEFT:\n\n```python\n\
             from peft import PeftModel\n\
             from transformers import AutoModelForCausalLM, AutoTokenizer\n\n\
             base = AutoModelForCausalLM.from_pretrained(\"{base}\"{at})\n\
             tokenizer = AutoTokenizer.from_pretrained(\"{base}\"{at})\n\
             model = PeftModel.from_pretrained(base, \"{name}\")\n```\n\n\
             With eyas:\n\n```\neyas chat --adapter {name}\n```\n"
        );
    }
}

/// What stands above all else where people in distress may be reached.
const SAFETY: &str = "
## Before anybody talks to it

**This is a program, not a therapist.** It does not understand, does not diagnose, and does not know who is writing. It can
answer somebody who is thinking of suicide with something harmful, and it has not been reviewed by clinicians. It must never
be the only thing between a person and help.

If you or somebody else is in danger, call your local emergency number or a crisis line now; <https://findahelpline.com>
lists lines by country.

Whoever offers it to others needs more than the model: rules that recognise a crisis and answer with fixed words and
helplines before the model is asked, people who look after it, and a plain notice that it is a program. `eyas serve` has such
a layer switched on; with PEFT alone there is none.
";

#[cfg(test)]
mod tests {
    use super::*;

    fn state(entries: &str) -> TrainerState {
        let state = serde_json::json!({
            "best_global_step": null, "best_metric": null, "best_model_checkpoint": null, "epoch": 2.5,
            "eval_steps": 0, "global_step": 40, "is_hyper_param_search": false, "is_local_process_zero": true,
            "is_world_process_zero": true, "log_history": serde_json::from_str::<Value>(entries).unwrap(),
            "logging_steps": 10, "max_steps": 40, "num_input_tokens_seen": 0, "num_train_epochs": 3, "save_steps": 10,
            "stateful_callbacks": {}, "total_flos": 0.0, "train_batch_size": 4, "trial_name": null, "trial_params": null
        });
        serde_json::from_value(state).unwrap()
    }

    fn card(name: &str, dataset: &str, entries: &str, rows: &Value) -> String {
        let mut recipe = Recipe::default();
        recipe.data.dataset = Some(dataset.into());
        let (name, state) = (HubName::parse(name).unwrap(), state(entries));
        Card {
            name: &name,
            base: ("tiiuae/falcon-7b", Some("abc")),
            recipe: Some(&recipe),
            state: Some(&state),
            rows: Some(rows),
        }
        .text()
    }

    #[test]
    fn a_card_has_metadata_figures_and_the_way_to_load_it() {
        let entries = r#"[{"eval_loss": 4.0}, {"loss": 3.5}, {"loss": 2.5}, {"eval_loss": 3.0}]"#;
        let rows = serde_json::json!({"train_rows": 155, "eval_rows": 17, "train_tokens": 40000});
        let text = card("mei/recipes-bot", "mei/recipes@v1", entries, &rows);
        for expected in [
            "---\nlibrary_name: peft\npipeline_tag: text-generation\nbase_model: tiiuae/falcon-7b\ndatasets:\n- mei/recipes\n",
            "155 rows (40000 tokens) to learn from, 17 held out.",
            "| held-out rows | 4.000 | 3.000 |",
            "| rows trained on, first and last logged | 3.500 | 2.500 |",
            "| steps | 40 (2.50 passes over the rows) |",
            "from_pretrained(\"tiiuae/falcon-7b\", revision=\"abc\")",
            "eyas chat --adapter mei/recipes-bot",
            MARK,
        ] {
            assert!(text.contains(expected), "{expected}\n---\n{text}");
        }
        assert!(!text.contains("therapist"), "{text}");
        assert!(text.contains("| rows a step | 8 x 1 |"), "{text}");
        let on_two = serde_json::json!({"devices": 2});
        let text = card("mei/recipes-bot", "mei/recipes@v1", entries, &on_two);
        assert!(text.contains("| rows a step | 8 x 1 on each of 2 devices |"), "{text}");
    }

    #[test]
    fn what_people_in_distress_may_reach_has_a_warning_above_all_else() {
        for (name, dataset) in [
            ("mei/bot", BUILTIN),
            ("mei/bot", PUBLISHED_ROWS),
            ("mei/mental-health-bot", "rows.jsonl"),
            ("mei/bot", "counselling.jsonl"),
        ] {
            let text = card(name, dataset, "[]", &Value::Null);
            let (warning, rows) = (text.find("not a therapist").unwrap(), text.find("## Rows").unwrap());
            assert!(
                warning < rows && text.contains("crisis line") && text.contains("- mental-health\n"),
                "{text}"
            );
        }
    }

    #[test]
    fn a_run_without_held_out_rows_says_what_cannot_be_known() {
        let text = card("mei/bot", "rows.jsonl", r#"[{"loss": 0.03}]"#, &Value::Null);
        assert!(text.contains("Nothing was held out"), "{text}");
        assert!(text.contains("A file of its author's, `rows.jsonl`"), "{text}");
        assert!(!text.contains("datasets:"), "{text}");
    }
}
