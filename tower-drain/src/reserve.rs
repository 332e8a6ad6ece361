//! A spare descriptor for when the process has run out of them.

use std::fs::File;

/// Without one, a process that has used up its descriptors can neither accept a connection nor close it, so clients hang
/// in the queue until they give up.
#[derive(Debug)]
pub(crate) struct Reserve(Option<File>);

// === impl Reserve ===

impl Reserve {
    pub(crate) fn new() -> Self {
        Self(open())
    }

    /// Closes the descriptor while `turn_away` runs, which must have closed all that it opened when it returns.
    pub(crate) fn lend<T>(&mut self, turn_away: impl FnOnce() -> T) -> T {
        drop(self.0.take());
        let turned = turn_away();
        *self = Self::new();
        turned
    }
}

#[cfg(unix)]
fn open() -> Option<File> {
    File::open("/dev/null").ok()
}

#[cfg(not(unix))]
fn open() -> Option<File> {
    None
}
