//! The keepers' state machine with the embedded store's table, without tasks and sockets: exhaustively, and by random histories.

#[cfg(not(loom))]
mod search;
mod simulation;
