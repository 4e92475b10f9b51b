//! The commands, one file each.

pub mod bench;
pub mod bench_generate;
pub mod bench_train;
pub mod chat;
pub mod compare;
pub mod demo;
pub mod doctor;
pub mod estimate;
pub mod generate;
pub mod merge;
pub mod push;
pub mod recipe;
pub mod serve;
pub mod train;
