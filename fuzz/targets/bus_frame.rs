#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| realtime_fuzz::properties::bus_frame::check(data));
