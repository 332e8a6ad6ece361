//! The handling of errors of `accept`.

use std::{io, time::Duration};

/// The kinds of accept errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// An error of that one connection: the next may succeed.
    Passing,
    /// The process or the system is out of memory: retrying at once would only waste CPU time.
    Scarce,
    /// It is out of descriptors.
    Full,
    /// The listener itself is broken.
    Fatal,
}

/// The backoff while a resource is exhausted: 10 ms, doubling to 1 s.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    last: Option<Duration>,
}

// === impl Fault ===

impl Fault {
    pub(crate) fn of(error: &io::Error) -> Self {
        use io::ErrorKind as Kind;
        if let Some(fault) = by_number(error) {
            return fault;
        }
        match error.kind() {
            Kind::ConnectionAborted
            | Kind::ConnectionReset
            | Kind::ConnectionRefused
            | Kind::Interrupted
            | Kind::WouldBlock
            | Kind::TimedOut => Self::Passing,
            Kind::OutOfMemory => Self::Scarce,
            _ => Self::Fatal,
        }
    }
}

/// Linux returns network errors of the new connection from `accept` (see its manual page), so they are transient too.
#[cfg(unix)]
fn by_number(error: &io::Error) -> Option<Fault> {
    use rustix::io::Errno;
    match Errno::from_io_error(error)? {
        Errno::MFILE | Errno::NFILE => Some(Fault::Full),
        Errno::NOBUFS | Errno::NOMEM => Some(Fault::Scarce),
        Errno::PROTO
        | Errno::NOPROTOOPT
        | Errno::NETDOWN
        | Errno::NETUNREACH
        | Errno::HOSTUNREACH
        | Errno::HOSTDOWN
        | Errno::PERM => Some(Fault::Passing),
        _ => None,
    }
}

#[cfg(not(unix))]
fn by_number(_: &io::Error) -> Option<Fault> {
    None
}

// === impl Backoff ===

impl Backoff {
    pub(crate) fn next(&mut self) -> Duration {
        let next = self.last.map_or(FIRST, |last| (last * 2).min(LONGEST));
        *self.last.insert(next)
    }

    /// Whether the last attempt failed too.
    pub(crate) const fn is_running(&self) -> bool {
        self.last.is_some()
    }

    pub(crate) fn reset(&mut self) {
        self.last = None;
    }
}

const FIRST: Duration = Duration::from_millis(10);
const LONGEST: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(unix)]
    #[test]
    fn errors_are_classified_by_their_number() {
        use rustix::io::Errno;
        for (errno, fault) in [
            (Errno::CONNABORTED, Fault::Passing),
            (Errno::INTR, Fault::Passing),
            (Errno::PROTO, Fault::Passing),
            (Errno::PERM, Fault::Passing),
            (Errno::MFILE, Fault::Full),
            (Errno::NFILE, Fault::Full),
            (Errno::NOBUFS, Fault::Scarce),
            (Errno::NOMEM, Fault::Scarce),
            (Errno::BADF, Fault::Fatal),
            (Errno::INVAL, Fault::Fatal),
            (Errno::NOTSOCK, Fault::Fatal),
        ] {
            assert_eq!(Fault::of(&errno.into()), fault, "{errno:?}");
        }
    }

    #[test]
    fn the_pause_doubles_up_to_a_second() {
        let mut backoff = Backoff::default();
        let pauses: Vec<_> = (0..9).map(|_| backoff.next().as_millis()).collect();
        assert_eq!(pauses, [10, 20, 40, 80, 160, 320, 640, 1000, 1000]);
        backoff.reset();
        assert_eq!(backoff.next().as_millis(), 10);
    }
}
