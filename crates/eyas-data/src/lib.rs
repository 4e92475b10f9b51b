//! Rows of a data set to conversations, tokens and flat batches.
