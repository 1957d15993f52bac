#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| scx_metronome_fuzz::turn::run(input));
