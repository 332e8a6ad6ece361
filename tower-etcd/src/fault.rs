//! What may have happened in a call that failed: by what etcd and the transport say, not by hope.

use std::{error::Error, fmt, time::Duration};

use tonic::Code;
use tower_lease::{Fault, StoreError};

/// A request that did not succeed.
#[derive(Debug)]
pub(crate) enum Failed {
    TimedOut(Duration),
    Etcd(etcd_client::Error),
    /// The server refused in a message of a stream, with this reason.
    Refused(String),
}

/// Part of etcd's message when a token has expired, or was made before the rights were changed.
///
/// As a status it is `etcdserver: invalid auth token` with the code `Unauthenticated`. The reason why a watch was canceled
/// is such a status as Go prints it, `rpc error: code = Unauthenticated desc = etcdserver: invalid auth token`. (Before
/// etcd's change 14322, of 2022, it was `permission denied` for all of them.) An error that etcd did not translate begins
/// with `auth: ` and has the code `Unknown`; `revision in header is old` exists in that form only.
const STALE_TOKEN: [&str; 4] = [
    "invalid auth token",
    "revision of auth store is old",
    "revision in header is old",
    "user name is empty",
];
/// The code, as Go prints it.
const UNAUTHENTICATED: &str = "code = Unauthenticated";

// === impl Failed ===

impl Failed {
    pub(crate) fn fault(&self) -> Fault {
        match self {
            Self::TimedOut(_) => Fault::Unknown,
            Self::Etcd(error) => fault(error),
            Self::Refused(_) => Fault::Refused,
        }
    }

    /// Whether another token may help.
    pub(crate) fn is_stale_token(&self) -> bool {
        match self {
            Self::Refused(reason) => is_stale_token(reason),
            _ => self.status().is_some_and(|(code, message)| {
                code == Code::Unauthenticated || is_stale_token(message)
            }),
        }
    }

    /// Whether another token may help to open a watch: older versions of etcd cancel one that came with an expired token
    /// for the same reason as one without the right to the key.
    pub(crate) fn may_be_stale_token(&self) -> bool {
        let is_denied =
            matches!(self, Self::Refused(reason) if reason.contains("permission denied"));
        is_denied || self.is_stale_token()
    }

    /// The id of a lease is taken: by an earlier request of ours, because ids are random.
    pub(crate) fn is_lease_there(&self) -> bool {
        self.says(Code::FailedPrecondition, "etcdserver: lease already exists")
    }

    /// The lease has expired or was revoked.
    pub(crate) fn is_lease_gone(&self) -> bool {
        let told_by_stream = matches!(self, Self::Etcd(etcd_client::Error::LeaseKeepAliveError(why)) if why == "lease not found");
        told_by_stream || self.says(Code::NotFound, "etcdserver: requested lease not found")
    }

    /// Nothing happened, and another member may do better: this one was not reached, or is cut off from the others.
    pub(crate) fn may_go_elsewhere(&self) -> bool {
        self.fault() == Fault::NotSent || self.says(Code::Unavailable, "etcdserver: no leader")
    }

    /// A revision that was asked for is forgotten, or was never reached.
    pub(crate) fn is_out_of_history(&self) -> bool {
        self.says(
            Code::OutOfRange,
            "etcdserver: mvcc: required revision has been compacted",
        ) || self.says(
            Code::OutOfRange,
            "etcdserver: mvcc: required revision is a future revision",
        )
    }

    /// The answer is longer than the client takes.
    pub(crate) fn is_too_long(&self) -> bool {
        self.status().is_some_and(|(code, message)| {
            code == Code::OutOfRange && message.contains("message length")
        })
    }

    fn says(&self, code: Code, message: &str) -> bool {
        self.status() == Some((code, message))
    }

    fn status(&self) -> Option<(Code, &str)> {
        match self {
            Self::Etcd(etcd_client::Error::GRpcStatus(status)) => {
                Some((status.code(), status.message()))
            }
            _ => None,
        }
    }
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TimedOut(after) => write!(f, "no answer in {after:?}"),
            Self::Etcd(error) => error.fmt(f),
            Self::Refused(reason) => f.write_str(reason),
        }
    }
}

impl Error for Failed {}

impl From<Failed> for StoreError {
    fn from(failed: Failed) -> Self {
        match failed.fault() {
            Fault::NotSent => Self::not_sent(failed),
            Fault::Refused => Self::refused(failed),
            Fault::Lost => Self::lost(failed),
            Fault::Unknown => Self::unknown(failed),
        }
    }
}

/// Whether a message, or the reason of a canceled watch, is about a token that is not valid any more. More may stand before
/// and behind it.
fn is_stale_token(message: &str) -> bool {
    message.contains(UNAUTHENTICATED) || STALE_TOKEN.iter().any(|known| message.contains(known))
}

fn fault(error: &etcd_client::Error) -> Fault {
    use etcd_client::Error as E;
    match error {
        E::GRpcStatus(status) if could_not_connect(status) => Fault::NotSent,
        E::GRpcStatus(status) => fault_of_status(status.code(), status.message()),
        E::TransportError(error) if could_not_connect(error) => Fault::NotSent,
        E::InvalidArgs(_) | E::InvalidUri(_) | E::InvalidMetadataValue(_) | E::EndpointError(_) => {
            Fault::NotSent
        }
        _ => Fault::Unknown,
    }
}

/// The connector's failure is found in the chain; a connection that broke later has another one.
fn could_not_connect(error: &(dyn Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        next = error.source();
    }
    false
}

/// etcd says `Unavailable` and `Unknown` of requests that it may have carried out (timed out, leader changed), and the
/// other codes before it does anything.
fn fault_of_status(code: Code, message: &str) -> Fault {
    match code {
        // Said at the door, before a request is proposed.
        Code::Unavailable if message == "etcdserver: no leader" => Fault::Refused,
        Code::Unknown if is_stale_token(message) => Fault::Refused,
        // The client's own words, when its connections are gone.
        Code::Unknown if message.starts_with("Service was not ready") => Fault::NotSent,
        Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::ResourceExhausted
        | Code::FailedPrecondition
        | Code::Unimplemented
        | Code::Unauthenticated => Fault::Refused,
        _ => Fault::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use tonic::Status;

    use super::*;

    fn failed(code: Code, message: &str) -> Failed {
        Failed::Etcd(etcd_client::Error::GRpcStatus(Status::new(code, message)))
    }

    #[test]
    fn r15_what_may_have_happened_decides() {
        let cases = [
            (
                Code::Unavailable,
                "etcdserver: request timed out",
                Fault::Unknown,
            ),
            (
                Code::Unavailable,
                "etcdserver: leader changed",
                Fault::Unknown,
            ),
            (Code::Unavailable, "etcdserver: no leader", Fault::Refused),
            (
                Code::Unavailable,
                "error reading a body from connection",
                Fault::Unknown,
            ),
            (Code::Cancelled, "Timeout expired", Fault::Unknown),
            (
                Code::DeadlineExceeded,
                "context deadline exceeded",
                Fault::Unknown,
            ),
            (Code::Internal, "h2 protocol error", Fault::Unknown),
            (Code::Unknown, "transport error", Fault::Unknown),
            (
                Code::Unknown,
                "Service was not ready: transport error",
                Fault::NotSent,
            ),
            (
                Code::ResourceExhausted,
                "etcdserver: mvcc: database space exceeded",
                Fault::Refused,
            ),
            (
                Code::PermissionDenied,
                "etcdserver: permission denied",
                Fault::Refused,
            ),
            (
                Code::InvalidArgument,
                "etcdserver: revision of auth store is old",
                Fault::Refused,
            ),
            (
                Code::NotFound,
                "etcdserver: requested lease not found",
                Fault::Refused,
            ),
        ];
        for (code, message, fault) in cases {
            assert_eq!(failed(code, message).fault(), fault, "{code:?} {message}");
        }
        assert_eq!(
            Failed::TimedOut(Duration::from_secs(1)).fault(),
            Fault::Unknown
        );
    }

    #[test]
    fn r15_a_connection_that_was_never_made_carried_nothing() {
        let mut status = Status::new(Code::Unavailable, "tcp connect error");
        status.set_source(std::sync::Arc::new(tonic::ConnectError(
            "connection refused".into(),
        )));
        assert_eq!(
            Failed::Etcd(etcd_client::Error::GRpcStatus(status)).fault(),
            Fault::NotSent
        );
    }

    /// As etcd 3.4 to 3.6 send it, in a status and as the reason of a canceled watch.
    #[test]
    fn a_stale_token_is_recognized_by_code_or_by_message_in_every_form() {
        let statuses = [
            (Code::Unauthenticated, "etcdserver: invalid auth token"),
            (Code::Unauthenticated, "in other words"),
            (
                Code::InvalidArgument,
                "etcdserver: revision of auth store is old",
            ),
            (Code::InvalidArgument, "etcdserver: user name is empty"),
            // Not translated by etcd, or twice.
            (Code::Unknown, "auth: invalid auth token"),
            (Code::Unknown, "auth: revision in header is old"),
            (Code::Unknown, "auth: user name is empty"),
            (
                Code::Unknown,
                "rpc error: code = InvalidArgument desc = etcdserver: revision of auth store is old",
            ),
        ];
        for (code, message) in statuses {
            let failed = failed(code, message);
            assert!(failed.is_stale_token(), "{code:?} {message}");
            assert_eq!(failed.fault(), Fault::Refused, "{code:?} {message}");
        }
        let reasons = [
            "rpc error: code = Unauthenticated desc = etcdserver: invalid auth token",
            "rpc error: code = InvalidArgument desc = etcdserver: revision of auth store is old",
            "rpc error: code = InvalidArgument desc = etcdserver: user name is empty",
            "rpc error: code = Unauthenticated desc = in other words",
            // As a proxy of etcd sends them.
            "etcdserver: invalid auth token",
            "etcdserver: revision of auth store is old",
            "etcdserver: user name is empty",
        ];
        for reason in reasons {
            let canceled = Failed::Refused(reason.to_owned());
            assert!(canceled.is_stale_token(), "{reason}");
            assert!(canceled.may_be_stale_token(), "{reason}");
        }
    }

    #[test]
    fn a_missing_right_is_no_stale_token_but_a_watch_may_have_one_all_the_same() {
        let denied = "etcdserver: permission denied";
        let status = failed(Code::PermissionDenied, denied);
        assert!(!status.is_stale_token() && !status.may_be_stale_token());
        for reason in [
            denied,
            "rpc error: code = PermissionDenied desc = etcdserver: permission denied",
        ] {
            let canceled = Failed::Refused(reason.to_owned());
            assert!(!canceled.is_stale_token(), "{reason}");
            assert!(canceled.may_be_stale_token(), "{reason}");
        }
        for (code, message) in [
            (
                Code::InvalidArgument,
                "etcdserver: authentication failed, invalid user ID or password",
            ),
            (
                Code::FailedPrecondition,
                "etcdserver: authentication is not enabled",
            ),
            (Code::Unavailable, "etcdserver: no leader"),
            (Code::Unknown, "transport error"),
        ] {
            assert!(!failed(code, message).is_stale_token(), "{message}");
        }
        let other = Failed::Refused("etcdserver: mvcc: watch is slow".to_owned());
        assert!(!other.may_be_stale_token());
    }
}
