//! See [`fuzz::split_ring`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::split_ring::run(data));
