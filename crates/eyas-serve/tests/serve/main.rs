//! The server over the fake engine, spoken to over real connections, and over a tiny model.

mod access;
mod chat;
mod common;
mod completions;
mod limits;
mod model;
mod safety;
