//! What the agent reads from its host.

#![no_main]

mod splits;

libfuzzer_sys::fuzz_target!(|input: &[u8]| splits::decode::<agent::message::ToAgent>(input));
