use std::{future::Future, io};

use crate::drain::Drain;

impl Drain {
    /// Lets the first `SIGTERM` or `SIGINT` [begin](Drain::begin_drain) the drain and every later one
    /// [force](Drain::force) it. On Windows that is ctrl-c alone.
    ///
    /// The handlers are in place when this returns, not only when the future is polled. It ends when the drain is done.
    /// tokio keeps the handlers for the rest of the process, so a signal after that does nothing.
    ///
    /// ```no_run
    /// # async fn run(drain: tower_drain::Drain) {
    /// tokio::spawn(drain.on_signals());
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// When a handler cannot be installed.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime with signals enabled.
    pub fn on_signals(&self) -> impl Future<Output = io::Result<()>> + Send + use<> {
        let (drain, signals) = (self.clone(), system::Signals::new());
        async move {
            let mut signals = signals?;
            let mut done = std::pin::pin!(drain.done());
            loop {
                tokio::select! {
                    _ = &mut done => return Ok(()),
                    name = signals.next() => tracing::info!(signal = name, "drain"),
                }
                drain.escalate();
            }
        }
    }
}

#[cfg(unix)]
mod system {
    use std::io;

    use tokio::{
        select,
        signal::unix::{Signal, SignalKind, signal},
    };

    pub(super) struct Signals {
        terminate: Signal,
        interrupt: Signal,
    }

    impl Signals {
        pub(super) fn new() -> io::Result<Self> {
            let (terminate, interrupt) = (
                signal(SignalKind::terminate())?,
                signal(SignalKind::interrupt())?,
            );
            Ok(Self {
                terminate,
                interrupt,
            })
        }

        pub(super) async fn next(&mut self) -> &'static str {
            select! {
                _ = self.terminate.recv() => "SIGTERM",
                _ = self.interrupt.recv() => "SIGINT",
            }
        }
    }
}

#[cfg(windows)]
mod system {
    use std::io;

    use tokio::signal::windows::{CtrlC, ctrl_c};

    pub(super) struct Signals(CtrlC);

    impl Signals {
        pub(super) fn new() -> io::Result<Self> {
            ctrl_c().map(Self)
        }

        pub(super) async fn next(&mut self) -> &'static str {
            self.0.recv().await;
            "ctrl-c"
        }
    }
}
