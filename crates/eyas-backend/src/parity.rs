//! Parity of a backend's operations with a plain `f64` reference.
