//! Runs the gateway as a program, kills what it stands on, and looks from outside.
#![forbid(unsafe_code)]

mod bodies;
mod common;
mod config;
mod drain;
mod failover;
mod limits;
mod wire;
