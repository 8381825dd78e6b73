//! The guest side of a relay, and the relay itself.
