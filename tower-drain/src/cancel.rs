use std::{fmt, sync::Arc};

use http::Extensions;

#[cfg(feature = "http")]
use crate::http::Exchange;
use crate::{
    drain::{Drain, Shared},
    phase::Phase,
    wait::Reached,
};

/// The cancellation token of every handler: it fires when the drain is forced.
///
/// [`Http`](crate::Http) and [`DrainLayer`](crate::DrainLayer) put one into the extensions of each request, and
/// [`Drain::cancellation`] makes one for tasks. A handler that awaits it has the force time to send a response; a handler
/// that does not is dropped at its next `await` when that time is over, and counted as leaked.
///
/// ```
/// use axum::Extension;
/// use tower_drain::Cancellation;
///
/// async fn slow(Extension(cancellation): Extension<Cancellation>) -> &'static str {
///     tokio::select! {
///         () = cancellation.cancelled() => "shutting down",
///         () = tokio::time::sleep(std::time::Duration::from_secs(60)) => "done",
///     }
/// }
/// ```
#[derive(Clone)]
pub struct Cancellation {
    shared: Arc<Shared>,
    /// The exchange of the request, for a [`StreamingLayer`](crate::StreamingLayer): stored here it costs no extra extension.
    #[cfg(feature = "http")]
    exchange: Option<Arc<Exchange>>,
}

// === impl Cancellation ===

impl Cancellation {
    pub(crate) const fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            #[cfg(feature = "http")]
            exchange: None,
        }
    }

    #[cfg(feature = "http")]
    pub(crate) fn with_exchange(self, exchange: Option<Arc<Exchange>>) -> Self {
        Self { exchange, ..self }
    }

    #[cfg(feature = "http")]
    pub(crate) fn allow_silence(&self) {
        if let Some(exchange) = &self.exchange {
            exchange.allow_silence();
        }
    }

    /// Inserts it unless a server of this drain or another layer has done so.
    #[cfg_attr(not(feature = "http"), allow(unused_mut))]
    pub(crate) fn insert_into(mut self, extensions: &mut Extensions) {
        if let Some(there) = extensions.get::<Self>() {
            if Arc::ptr_eq(&there.shared, &self.shared) {
                return;
            }
            #[cfg(feature = "http")]
            self.exchange.clone_from(&there.exchange);
        }
        extensions.insert(self);
    }

    /// Ready once it has fired. Dropping the future changes nothing.
    pub fn cancelled(&self) -> Reached {
        Reached::new(self.shared.clone(), Phase::Forced)
    }

    /// Whether it has fired.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.shared.look().0 >= Phase::Forced
    }
}

impl Drain {
    /// The cancellation of this drain, for a task or a handler.
    #[must_use]
    pub fn cancellation(&self) -> Cancellation {
        Cancellation::new(self.shared.clone())
    }
}

impl fmt::Debug for Cancellation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cancellation")
            .field("phase", &self.shared.told())
            .finish()
    }
}
