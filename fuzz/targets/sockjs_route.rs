#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| realtime_fuzz::properties::sockjs_route::check(data));
