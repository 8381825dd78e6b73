//! See [`fuzz::net_header`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::net_header::run(data));
