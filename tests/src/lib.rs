//! Doubles and helpers for tests that need more than one crate.
