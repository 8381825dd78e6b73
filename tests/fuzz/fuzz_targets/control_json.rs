//! See [`fuzz::control_json`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::control_json::run(data));
