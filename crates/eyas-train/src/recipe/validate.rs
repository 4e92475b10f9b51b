//! Checks of a recipe's values, alone and with one another.

use super::Recipe;
use crate::Result;

impl Recipe {
    /// Checks every value.
    ///
    /// # Errors
    /// The first that makes no sense, by its key and with the place where it was set.
    pub fn validate(&self) -> Result<()> {
        self.check_quantization()?;
        self.check_lora()?;
        self.check_data()?;
        self.check_steps()?;
        self.check_optimizer()?;
        self.check_generation()
    }

    /// What is understood but does something else than the key may promise, one sentence each.
    pub fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if self.generation.do_sample && self.generation.temperature == 0.0 {
            notes
                .push("`temperature` is 0: the most likely token is taken, as with do_sample = false".into());
        }
        notes
    }

    fn check_quantization(&self) -> Result<()> {
        let quantization = &self.quantization;
        if let Some(config) = quantization.config() {
            config.validate().map_err(|_| {
                let size = quantization.bnb_4bit_blocksize;
                self.wrong(
                    "bnb_4bit_blocksize",
                    format!("is {size}; a power of two from 32 to 4096 was expected"),
                )
            })?;
        }
        let training = &self.training;
        if training.bf16 && training.fp16 {
            return Err(
                self.wrong("fp16", "and `bf16` are both true; activations have one type: keep one of them")
            );
        }
        let asked = quantization.bnb_4bit_compute_dtype.dtype();
        let used = self.compute_dtype();
        if quantization.load_in_4bit && asked.is_some() && asked != used {
            return Err(self.wrong(
                "bnb_4bit_compute_dtype",
                "and `bf16` or `fp16` name different types; activations have one type: keep one of the keys",
            ));
        }
        Ok(())
    }

    fn check_lora(&self) -> Result<()> {
        let lora = &self.lora;
        if lora.bias != "none" {
            return Err(
                self.wrong("bias", format!("is `{}`; eyas trains no biases: use \"none\"", lora.bias))
            );
        }
        if lora.task_type != "CAUSAL_LM" {
            let reason =
                format!("is `{}`; eyas trains causal language models: use \"CAUSAL_LM\"", lora.task_type);
            return Err(self.wrong("task_type", reason));
        }
        self.at_least("r", lora.r as f64, 1.0)?;
        if let Some((pattern, _)) = lora.rank_pattern.iter().find(|(_, r)| **r == 0) {
            return Err(
                self.wrong("rank_pattern", format!("gives `{pattern}` the rank 0; at least 1 was expected"))
            );
        }
        self.within("lora_alpha", lora.lora_alpha, f64::MIN_POSITIVE, 1e9)?;
        self.share("lora_dropout", lora.lora_dropout)
    }

    fn check_data(&self) -> Result<()> {
        self.share("eval_share", self.data.eval_share)?;
        self.at_least("max_length", self.data.max_length as f64, 2.0)
    }

    fn check_steps(&self) -> Result<()> {
        let training = &self.training;
        self.at_least("per_device_train_batch_size", training.per_device_train_batch_size as f64, 1.0)?;
        self.at_least("per_device_eval_batch_size", training.per_device_eval_batch_size as f64, 1.0)?;
        self.at_least("gradient_accumulation_steps", training.gradient_accumulation_steps as f64, 1.0)?;
        if training.max_steps == 0 || training.max_steps < -1 || training.max_steps > i64::from(u32::MAX) {
            let reason = format!(
                "is {}; a number of steps was expected, or -1 to go by num_train_epochs",
                training.max_steps
            );
            return Err(self.wrong("max_steps", reason));
        }
        self.within("num_train_epochs", training.num_train_epochs, f64::MIN_POSITIVE, 1e6)?;
        self.share("warmup_ratio", training.warmup_ratio)?;
        if training.save_total_limit == Some(0) {
            return Err(self.wrong("save_total_limit", "is 0; keep at least 1, or set save_steps = 0"));
        }
        if training.output_dir.is_empty() {
            return Err(self.wrong("output_dir", "is empty; name a folder"));
        }
        Ok(())
    }

    fn check_optimizer(&self) -> Result<()> {
        let training = &self.training;
        self.within("learning_rate", training.learning_rate, f64::MIN_POSITIVE, 1e3)?;
        self.share("adam_beta1", training.adam_beta1)?;
        self.share("adam_beta2", training.adam_beta2)?;
        self.within("adam_epsilon", training.adam_epsilon, 0.0, 1.0)?;
        self.within("weight_decay", training.weight_decay, 0.0, 1e3)?;
        self.within("max_grad_norm", training.max_grad_norm, 0.0, 1e9)
    }

    fn check_generation(&self) -> Result<()> {
        let generation = &self.generation;
        self.at_least("max_new_tokens", generation.max_new_tokens as f64, 1.0)?;
        self.within("temperature", generation.temperature, 0.0, 100.0)?;
        self.within("top_p", generation.top_p, f64::MIN_POSITIVE, 1.0)?;
        self.within("repetition_penalty", generation.repetition_penalty, f64::MIN_POSITIVE, 100.0)
    }

    fn at_least(&self, key: &str, value: f64, least: f64) -> Result<()> {
        if value >= least {
            Ok(())
        } else {
            Err(self.wrong(key, format!("is {value}; at least {least} was expected")))
        }
    }

    fn within(&self, key: &str, value: f64, least: f64, most: f64) -> Result<()> {
        if value >= least && value <= most {
            return Ok(());
        }
        let least = if least == f64::MIN_POSITIVE { "above 0".into() } else { format!("at least {least}") };
        Err(self.wrong(key, format!("is {value}; {least} and at most {most} was expected")))
    }

    fn share(&self, key: &str, value: f64) -> Result<()> {
        if (0.0..1.0).contains(&value) {
            return Ok(());
        }
        Err(self.wrong(key, format!("is {value}; at least 0 and below 1 was expected")))
    }
}
