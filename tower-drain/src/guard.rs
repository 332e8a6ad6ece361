use std::{fmt, sync::Arc};

use tower_outcome::body::{End, OnEnd};

use crate::{count::Kind, drain::Shared};

/// An in-flight guard: the drain waits until it is dropped. There is one for each task, connection or request.
///
/// [`Drain::guard`](crate::Drain::guard) makes one for a task of the application, or for a connection that was upgraded
/// under another accept loop than this crate's. Keep it for as long as the work must not be cut:
///
/// ```
/// # use tower_drain::Drain;
/// # let drain = Drain::new();
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// let guard = drain.guard();
/// tokio::spawn(async move {
///     // ... write the last batch ...
///     drop(guard);
/// });
/// # });
/// ```
///
/// It costs one atomic addition when created and one when dropped. A guard created after [`Phase::Done`](crate::Phase) has
/// no effect.
#[must_use = "it counts for as long as it is kept"]
pub struct Guard {
    shared: Arc<Shared>,
    kind: Kind,
}

// === impl Guard ===

impl Guard {
    pub(crate) fn new(shared: Arc<Shared>, kind: Kind) -> Self {
        shared.count.enter(kind);
        Self { shared, kind }
    }

    pub(crate) const fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }
}

impl OnEnd for Guard {
    /// The body has ended, and with it the request, with any outcome.
    fn on_end(self, _: End<'_>) {}
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.shared.leave(self.kind);
    }
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guard")
            .field("kind", &self.kind)
            .finish_non_exhaustive()
    }
}
