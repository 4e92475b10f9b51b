//! Fine-tune, compare and serve large language models: the command line.
fn main() {}
