//! What the host reads from an agent.

#![no_main]

mod splits;

libfuzzer_sys::fuzz_target!(|input: &[u8]| splits::decode::<agent::message::ToHost>(input));
