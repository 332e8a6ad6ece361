//! Runs the app as a program.
#![forbid(unsafe_code)]

mod program;
