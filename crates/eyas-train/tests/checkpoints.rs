//! Checkpoints: their files, damage, rotation, and runs that they do not belong to.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::*;
use eyas_checkpoint::Checkpoint;
use eyas_model::LoraAdapter;
use eyas_train::checkpoint::find_last;
use eyas_train::recipe::{Optim, ResumeFrom};
use eyas_train::{Ending, Error};

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// An output folder with `checkpoint-2`, `-4` and `-6` of a run of 9 steps.
fn stopped(model: &eyas_model::Model<eyas_backend::CpuBackend>) -> (tempfile::TempDir, eyas_train::Recipe) {
    let folder = tempfile::tempdir().unwrap();
    let mut recipe = recipe(folder.path());
    recipe.training.save_steps = 2;
    let (outcome, _) = run_rows(model, &backend(), &recipe, &rows(19), Some(6)).unwrap();
    assert_eq!(outcome.ending, Ending::Interrupted);
    recipe.training.resume_from_checkpoint = ResumeFrom::Last;
    (folder, recipe)
}

fn damage(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_checkpoint_is_laid_out_as_hugging_face_does() {
    let model = load(&backend(), "llama2", None);
    let (folder, _) = stopped(&model);
    assert_eq!(names(folder.path()), ["checkpoint-2", "checkpoint-4", "checkpoint-6"]);
    let newest = folder.path().join("checkpoint-6");
    assert_eq!(
        names(&newest),
        [
            "adapter_config.json",
            "adapter_model.safetensors",
            "eyas_state.json",
            "optimizer.safetensors",
            "recipe.toml",
            "trainer_state.json"
        ]
    );
    let adapter = LoraAdapter::load(&newest, model.decoder()).unwrap();
    let moments = Checkpoint::open(newest.join("optimizer.safetensors")).unwrap();
    let name = "exp_avg_sq.base_model.model.model.layers.1.mlp.down_proj.lora_B.weight";
    assert_eq!(moments.info(name).unwrap().shape, [72, 4]);
    assert!(floats(&moments, name).iter().all(|value| *value > 0.0));
    assert_eq!(moments.tensors().count(), 4 * adapter.layout.targets().len());
}

#[cfg(unix)]
#[test]
fn a_checkpoint_is_not_private_to_its_writer() {
    use std::os::unix::fs::PermissionsExt;
    let model = load(&backend(), "llama2", None);
    let (folder, _) = stopped(&model);
    let plain = folder.path().join("plain");
    fs::create_dir(&plain).unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&folder.path().join("checkpoint-2")), mode(&plain));
}

#[test]
fn only_the_newest_checkpoints_are_kept() {
    let backend = backend();
    let model = load(&backend, "llama2", None);
    let folder = tempfile::tempdir().unwrap();
    let mut recipe = recipe(folder.path());
    recipe.training.save_steps = 2;
    recipe.training.save_total_limit = Some(2);
    let (outcome, told) = run(&model, &backend, &recipe).unwrap();
    assert_eq!(told.saved, [2, 4, 6, 8, 9]);
    let folders: Vec<String> =
        names(folder.path()).into_iter().filter(|name| name.contains("checkpoint")).collect();
    assert_eq!(folders, ["checkpoint-8", "checkpoint-9"]);
    assert_eq!(outcome.checkpoint, Some(folder.path().join("checkpoint-9")));
}

#[test]
fn a_damaged_checkpoint_is_passed_over_by_name() {
    let backend = backend();
    let model = load(&backend, "llama2", None);
    let whole = tempfile::tempdir().unwrap();
    let (expected, _) = run(&model, &backend, &recipe(whole.path())).unwrap();
    type Damage = fn(&Path);
    let damages: [(Damage, &str); 6] = [
        (|f| damage(&f.join("adapter_model.safetensors")), "adapter_model.safetensors has been changed"),
        (|f| damage(&f.join("optimizer.safetensors")), "optimizer.safetensors has been changed"),
        (
            |f| fs::write(f.join("trainer_state.json"), "{}").unwrap(),
            "trainer_state.json has 2 bytes instead of",
        ),
        (|f| fs::remove_file(f.join("adapter_config.json")).unwrap(), "adapter_config.json cannot be read"),
        (|f| fs::write(f.join("eyas_state.json"), "{\"for").unwrap(), "eyas_state.json is not valid"),
        (|f| fs::remove_file(f.join("eyas_state.json")).unwrap(), "eyas_state.json cannot be read"),
    ];
    for (damage, reason) in damages {
        let (folder, recipe) = stopped(&model);
        damage(&folder.path().join("checkpoint-6"));
        let found = find_last(folder.path()).unwrap();
        assert_eq!(found.newest, Some(folder.path().join("checkpoint-4")));
        assert_eq!(found.damaged.len(), 1);
        let (outcome, told) = run(&model, &backend, &recipe).unwrap();
        assert_eq!(told.losses.len(), 5);
        assert!(
            told.warnings[0].contains("checkpoint-6 is damaged") && told.warnings[0].contains(reason),
            "{told:?}"
        );
        assert_eq!(bits(&outcome), bits(&expected));
        assert_eq!(find_last(folder.path()).unwrap().newest, Some(folder.path().join("checkpoint-9")));
    }
}

#[test]
fn with_no_whole_checkpoint_the_run_starts_at_the_beginning() {
    let backend = backend();
    let model = load(&backend, "llama2", None);
    let (folder, mut recipe) = stopped(&model);
    for step in [2, 4, 6] {
        fs::remove_file(folder.path().join(format!("checkpoint-{step}/eyas_state.json"))).unwrap();
    }
    let (_, told) = run(&model, &backend, &recipe).unwrap();
    assert_eq!((told.losses.len(), told.warnings.len()), (9, 3));
    assert!(told.warnings[2].contains("the run starts at the beginning"), "{told:?}");

    let empty = tempfile::tempdir().unwrap();
    recipe.training.output_dir = empty.path().display().to_string();
    let (_, told) = run(&model, &backend, &recipe).unwrap();
    assert!(told.warnings[0].contains("holds no checkpoint"), "{told:?}");
}

#[test]
fn a_named_checkpoint_must_be_whole() {
    let backend = backend();
    let model = load(&backend, "llama2", None);
    let (folder, mut recipe) = stopped(&model);
    let named = folder.path().join("checkpoint-4");
    recipe.training.resume_from_checkpoint = ResumeFrom::Folder(named.display().to_string());
    assert_eq!(run(&model, &backend, &recipe).unwrap().1.losses.len(), 5);
    damage(&named.join("optimizer.safetensors"));
    let message = run(&model, &backend, &recipe).unwrap_err().to_string();
    assert!(message.contains("checkpoint-4: optimizer.safetensors has been changed"), "{message}");
}

#[test]
fn the_checkpoint_of_another_run_is_refused_with_what_differs() {
    let backend = backend();
    let model = load(&backend, "llama2", None);
    let (folder, recipe) = stopped(&model);
    let refused = |result: eyas_train::Result<(eyas_train::Outcome, Told)>, part: &str| {
        let error = result.unwrap_err();
        let message = error.to_string();
        assert!(matches!(error, Error::OtherRun { .. }), "{message}");
        assert!(message.contains(part) && message.contains("checkpoint-6"), "{message}");
    };
    let mut other = recipe.clone();
    other.training.learning_rate = 1e-3;
    other.training.seed = 7;
    refused(
        run(&model, &backend, &other),
        "learning_rate was 0.005 and is now 0.001; seed was 42 and is now 7",
    );
    let mut other = recipe.clone();
    other.lora.lora_alpha = 16.0;
    refused(run(&model, &backend, &other), "lora_alpha was 8.0 and is now 16.0");
    refused(run_rows(&model, &backend, &recipe, &rows(18), None), "rows was 19 and is now 18");
    let mut changed = rows(19);
    changed[3].target_mask[3] = !changed[3].target_mask[3];
    refused(
        run_rows(&model, &backend, &recipe, &changed, None),
        "the rows, or how they are encoded, are others",
    );
    let quantised = load(&backend, "llama2", Some(Default::default()));
    refused(run(&quantised, &backend, &recipe), "the model's weights are others");
    // None of it has touched the checkpoints.
    assert_eq!(find_last(folder.path()).unwrap().newest, Some(folder.path().join("checkpoint-6")));
}

#[test]
fn a_checkpoint_goes_on_with_the_same_rows_a_step_shared_out_otherwise() {
    let backend = backend();
    let model = load(&backend, "llama2", None);
    let (_folder, recipe) = stopped(&model);
    let mut other = recipe.clone();
    other.training.per_device_train_batch_size = 1;
    let message = run(&model, &backend, &other).unwrap_err().to_string();
    assert!(message.contains("per_device_train_batch_size was 2 and is now 1"), "{message}");
    other.training.gradient_accumulation_steps = 4;
    let (outcome, told) = run(&model, &backend, &other).unwrap();
    assert_eq!((outcome.global_step, told.losses.len()), (9, 3));
    assert!(told.warnings[0].contains("was 2 and is now 1, with as many rows a step"), "{told:?}");
}

/// A value read back and quantised again need not keep its byte, so the bytes themselves are saved.
#[test]
fn moments_of_8_bits_are_saved_as_they_are() {
    let backend = backend();
    let model = load(&backend, "llama2", None);
    let whole = tempfile::tempdir().unwrap();
    let mut settings = recipe(whole.path());
    settings.training.optim = Optim::PagedAdamw8bit;
    let (expected, _) = run(&model, &backend, &settings).unwrap();
    let full = tempfile::tempdir().unwrap();
    assert_ne!(bits(&run(&model, &backend, &recipe(full.path())).unwrap().0), bits(&expected));

    let folder = tempfile::tempdir().unwrap();
    settings.training.output_dir = folder.path().display().to_string();
    run_rows(&model, &backend, &settings, &rows(19), Some(4)).unwrap();
    let state = Checkpoint::open(folder.path().join("checkpoint-4/optimizer.safetensors")).unwrap();
    let parameters = expected.adapter.params.len();
    assert_eq!(state.info("state1").unwrap().shape, [parameters]);
    assert_eq!(state.info("absmax2").unwrap().shape, [parameters.div_ceil(256)]);
    settings.training.resume_from_checkpoint = ResumeFrom::Last;
    let mut other = settings.clone();
    other.training.optim = Optim::AdamwTorch;
    let message = run(&model, &backend, &other).unwrap_err().to_string();
    assert!(message.contains("in 8 bits in one of them and in 32 in the other"), "{message}");
    // Where they are kept is no matter.
    settings.training.optim = Optim::AdamwBnb8bit;
    assert_eq!(bits(&run(&model, &backend, &settings).unwrap().0), bits(&expected));
}

#[test]
fn another_number_of_steps_is_allowed_and_told() {
    let backend = backend();
    let model = load(&backend, "llama2", None);
    let (_folder, mut recipe) = stopped(&model);
    recipe.training.max_steps = 12;
    let (outcome, told) = run(&model, &backend, &recipe).unwrap();
    assert_eq!(outcome.global_step, 12);
    assert!(told.warnings[0].contains("max_steps was 9 and is now 12"), "{told:?}");
    assert!(told.warnings[0].contains("new schedule"), "{told:?}");
}

#[test]
fn a_finished_run_that_is_resumed_changes_nothing() {
    let backend = backend();
    let model = load(&backend, "llama2", None);
    let (folder, recipe) = stopped(&model);
    let (first, _) = run(&model, &backend, &recipe).unwrap();
    let state = fs::read(folder.path().join("checkpoint-9/trainer_state.json")).unwrap();
    let (again, told) = run(&model, &backend, &recipe).unwrap();
    assert!(told.losses.is_empty());
    assert_eq!(bits(&again), bits(&first));
    assert_eq!(fs::read(folder.path().join("checkpoint-9/trainer_state.json")).unwrap(), state);
}

#[test]
fn an_earlier_run_is_not_overwritten_unasked() {
    let backend = backend();
    let model = load(&backend, "llama2", None);
    let (folder, mut recipe) = stopped(&model);
    recipe.training.resume_from_checkpoint = ResumeFrom::Never;
    let message = run(&model, &backend, &recipe).unwrap_err().to_string();
    assert!(message.contains("checkpoint-6") && message.contains("overwrite_output_dir"), "{message}");
    recipe.training.overwrite_output_dir = true;
    recipe.training.save_steps = 5;
    run(&model, &backend, &recipe).unwrap();
    let folders: Vec<String> =
        names(folder.path()).into_iter().filter(|name| name.contains("checkpoint")).collect();
    assert_eq!(folders, ["checkpoint-5", "checkpoint-9"]);
}

#[test]
fn what_a_crash_left_behind_is_removed() {
    let backend = backend();
    let model = load(&backend, "llama2", None);
    let (folder, recipe) = stopped(&model);
    let left: PathBuf = folder.path().join(".checkpoint-abc.tmp");
    fs::create_dir(&left).unwrap();
    fs::write(left.join("optimizer.safetensors"), "half").unwrap();
    run(&model, &backend, &recipe).unwrap();
    assert!(!left.exists());
}

#[test]
fn an_output_folder_that_cannot_be_is_named_before_the_first_step() {
    let backend = backend();
    let model = load(&backend, "llama2", None);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let recipe = recipe(&file.join("output"));
    let message = run(&model, &backend, &recipe).unwrap_err().to_string();
    assert!(message.contains("file"), "{message}");
}
