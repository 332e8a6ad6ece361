//! PROXY headers: a reader that takes what it is asked for never reads beyond the header, whatever comes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tower_drain::proxy::{Parsed, parse};

fuzz_target!(|bytes: &[u8]| {
    let mut read = 0;
    loop {
        match parse(&bytes[..read]) {
            Parsed::Needs(more) => {
                assert!(more > 0);
                read += more;
                if read > bytes.len() {
                    return;
                }
            }
            Parsed::Done(_, length) => return assert_eq!(length, read),
            Parsed::Invalid => return,
        }
    }
});
