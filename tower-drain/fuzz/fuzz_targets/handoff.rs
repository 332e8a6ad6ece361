//! Handoff messages: whatever is understood is said again in the same words.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| tower_drain::handoff::fuzz(bytes));
