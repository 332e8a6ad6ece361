use std::{error::Error, fmt};

use tower_outcome::BoxError;

/// Why a name cannot be looked up in DNS just now.
#[derive(Debug)]
pub struct DnsError {
    kind: Kind,
    cause: Option<BoxError>,
}

#[derive(Debug)]
enum Kind {
    Name(String),
    System,
    NoServers,
    Lookup(String),
    TimedOut(String),
}

// === impl DnsError ===

impl DnsError {
    pub(super) fn name(name: &str) -> Self {
        Self {
            kind: Kind::Name(name.to_owned()),
            cause: None,
        }
    }

    pub(super) fn system(cause: impl Into<BoxError>) -> Self {
        Self {
            kind: Kind::System,
            cause: Some(cause.into()),
        }
    }

    pub(super) fn no_servers() -> Self {
        Self {
            kind: Kind::NoServers,
            cause: None,
        }
    }

    pub(super) fn lookup(name: impl fmt::Display, cause: impl Into<BoxError>) -> Self {
        Self {
            kind: Kind::Lookup(name.to_string()),
            cause: Some(cause.into()),
        }
    }

    pub(super) fn timed_out(name: impl fmt::Display) -> Self {
        Self {
            kind: Kind::TimedOut(name.to_string()),
            cause: None,
        }
    }
}

impl fmt::Display for DnsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            Kind::Name(name) => write!(
                f,
                "`{name}` is no name that DNS could know: write `host:port`, or `_service._protocol.domain` for SRV records"
            ),
            Kind::System => f.write_str(
                "the system's DNS configuration cannot be used; correct it or name the servers",
            ),
            Kind::NoServers => f.write_str("no DNS server to ask; name at least one"),
            Kind::Lookup(name) => write!(f, "no answer from DNS for `{name}`"),
            Kind::TimedOut(name) => write!(f, "no answer from DNS for `{name}` in time"),
        }
    }
}

impl Error for DnsError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.cause.as_deref().map(|cause| cause as _)
    }
}
