//! Several cards on the command line, where no card is needed for an answer.

use std::process::{Command, Output};

fn eyas(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_eyas")).args(arguments).output().unwrap()
}

#[test]
fn an_estimate_for_several_cards_has_a_plan_for_the_first_and_one_for_the_others() {
    let fixed = ["estimate", "demo", "--shape", "smollm2-135m", "--device"];
    let output = eyas(&[&fixed[..], &["cuda:0,1,2"]].concat());
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    for part in [
        "on 3 NVIDIA cards",
        "24 rows a step: 3 cards x 2 micro-batches x 4 rows",
        "the first card, which has the optimiser:",
        "each of the others:",
        "of host memory for gradients and adapter between the devices",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert_eq!(text.matches("  optimiser ").count(), 1, "{text}");

    let one = String::from_utf8(eyas(&[&fixed[..], &["cuda:1"]].concat()).stdout).unwrap();
    assert!(one.contains("on an NVIDIA card") && !one.contains("each of the others"), "{one}");
}

#[test]
fn a_device_that_makes_no_sense_is_refused_with_those_that_do() {
    let output = eyas(&["doctor", "--device", "cuda:0,"]);
    assert!(!output.status.success());
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("cuda:NUMBER,NUMBER,... or cuda:all was expected"), "{text}");
}
