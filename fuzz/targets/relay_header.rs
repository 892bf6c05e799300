#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| realtime_fuzz::properties::relay_header::check(data));
