//! The fine-tuning run: recipe, planner, loop, optimiser, schedule, checkpoints, metrics.
