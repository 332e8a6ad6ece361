use std::{error::Error, fmt};

/// What was given to a [`ClusterBuilder`](crate::ClusterBuilder) does not make a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BuildError {
    /// There is no endpoint.
    NoEndpoint,
    /// This is no `http://host:port` or `https://host:port`.
    InvalidEndpoint(String),
    /// This endpoint is `https://`, which needs the feature `tls`.
    NeedsTls(String),
    /// TLS was asked for, and this endpoint is `http://`.
    NotTls(String),
    /// A duration that must be above zero is zero.
    Zero(&'static str),
}

// === impl BuildError ===

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoEndpoint => f.write_str("an etcd cluster needs at least one endpoint"),
            Self::InvalidEndpoint(url) => {
                write!(f, "{url:?} is no endpoint such as http://10.0.0.7:2379")
            }
            Self::NeedsTls(url) => write!(f, "the endpoint {url} needs tower-etcd's feature `tls`"),
            Self::NotTls(url) => {
                write!(f, "the endpoint {url} is not https, but TLS is configured")
            }
            Self::Zero(what) => write!(f, "{what} must be longer than zero"),
        }
    }
}

impl Error for BuildError {}
