//! Text generation: key/value cache, sampling, streaming, comparison of base and adapter.
