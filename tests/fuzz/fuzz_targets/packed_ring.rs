//! See [`fuzz::packed_ring`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::packed_ring::run(data));
