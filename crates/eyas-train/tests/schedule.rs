//! Learning rates equal those of transformers' schedulers.

use std::path::Path;

use eyas_train::{LrSchedulerType, Schedule};
use serde::Deserialize;

#[derive(Deserialize)]
struct Golden {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    lr_scheduler_type: LrSchedulerType,
    max_steps: u64,
    warmup_ratio: f64,
    warmup_steps: u64,
    learning_rate: f64,
    rates: Vec<f64>,
}

#[test]
fn rates_equal_those_of_transformers() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../eyas-model/tests/fixtures/schedule.json");
    let golden: Golden = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    assert!(golden.cases.len() >= 4);
    for case in golden.cases {
        assert_eq!(Schedule::warmup_steps(case.max_steps, case.warmup_ratio), case.warmup_steps);
        let schedule = Schedule {
            lr_scheduler_type: case.lr_scheduler_type,
            learning_rate: case.learning_rate,
            warmup_steps: case.warmup_steps,
            max_steps: case.max_steps,
        };
        for (step, &expected) in case.rates.iter().enumerate() {
            let rate = schedule.rate(step as u64);
            let close = (rate - expected).abs() <= 1e-12 * case.learning_rate;
            assert!(close, "{:?}, step {step}: {rate} instead of {expected}", case.lr_scheduler_type);
        }
    }
}
