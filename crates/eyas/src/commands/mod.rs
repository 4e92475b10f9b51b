//! The commands, one file each.

pub mod chat;
pub mod compare;
pub mod demo;
pub mod generate;
pub mod recipe;
pub mod serve;
pub mod train;
