use std::{fmt, sync::Arc, time::Duration};

use etcd_client::ConnectOptions;
use http::Uri;

use crate::{BuildError, pool::Pool};

/// The connections to the members of one etcd cluster. Cheap to clone; a store and a resolver may share it.
///
/// There is one connection per member and purpose: requests go to one member until it does not answer in time,
/// then to the next. A client that balances over all members goes on asking one that is paused: 3.3 to 4.7 s without a
/// renewal were measured so. Watches have connections of their own, so that one that is not read holds up no renewal.
/// Nothing is connected before it is used, and what broke is connected again when it is used.
#[derive(Clone)]
pub struct Cluster {
    pub(crate) shared: Arc<Shared>,
}

pub(crate) struct Shared {
    pub(crate) calls: Arc<Pool>,
    pub(crate) watches: Arc<Pool>,
    pub(crate) request_timeout: Duration,
}

/// Where the members are, and how patient to be with them.
#[derive(Clone)]
#[must_use = "`build` makes the cluster"]
pub struct ClusterBuilder {
    endpoints: Vec<String>,
    options: ConnectOptions,
    has_tls: bool,
    connect_timeout: Duration,
    request_timeout: Duration,
}

/// Below the shortest attempt of a keeper of ten seconds, so that its next one goes elsewhere.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(1);
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);
/// etcd hangs up on who pings more often than every five seconds (its `--grpc-keepalive-min-time`).
const KEEP_ALIVE: Duration = Duration::from_secs(6);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(2);

// === impl Cluster ===

impl Cluster {
    /// A cluster whose members serve clients at these URLs: `http://10.0.0.7:2379`. Name all of them: what is not named
    /// is not asked.
    pub fn builder<I>(endpoints: I) -> ClusterBuilder
    where
        I: IntoIterator,
        I::Item: Into<String>,
    {
        ClusterBuilder {
            endpoints: endpoints.into_iter().map(Into::into).collect(),
            options: ConnectOptions::new(),
            has_tls: false,
            connect_timeout: CONNECT_TIMEOUT,
            request_timeout: REQUEST_TIMEOUT,
        }
    }

    /// Connects anew at the next use: what is connected may not be what the endpoints lead to now.
    pub(crate) fn reconnect(&self) {
        self.shared.calls.reconnect();
        self.shared.watches.reconnect();
    }
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster")
            .field("endpoints", &self.shared.calls.endpoints())
            .finish_non_exhaustive()
    }
}

// === impl ClusterBuilder ===

impl ClusterBuilder {
    /// Who we are, if the cluster asks. Default: nobody. A token that has expired, or that was made before the rights
    /// were changed, is renewed by itself.
    pub fn user(self, name: &str, password: &str) -> Self {
        Self {
            options: self.options.with_user(name, password),
            ..self
        }
    }

    /// How to trust the members and what to show them. Default: the endpoints are plain `http://`.
    #[cfg(feature = "tls")]
    #[cfg_attr(docsrs, doc(cfg(feature = "tls")))]
    pub fn tls(self, tls: crate::Tls) -> Self {
        Self {
            options: self.options.with_tls(tls.into_options()),
            has_tls: true,
            ..self
        }
    }

    /// How long a connection may take. Default: 500 ms, so that within the time of one request there is some left to ask
    /// the next member. (For a claim of 6 s or less the request's own time ends first, and its next attempt goes elsewhere.)
    pub fn connect_timeout(self, connect_timeout: Duration) -> Self {
        Self {
            connect_timeout,
            ..self
        }
    }

    /// How long one request may take before the next member is asked. Default: 1 s. For a claim it is never more than a
    /// twelfth of its TTL, because a keeper gives an attempt a tenth.
    pub fn request_timeout(self, request_timeout: Duration) -> Self {
        Self {
            request_timeout,
            ..self
        }
    }

    /// Checks it. Nothing is connected yet.
    ///
    /// # Errors
    ///
    /// There is no endpoint, one is no URL, or its scheme does not fit; a timeout is zero.
    pub fn build(self) -> Result<Cluster, BuildError> {
        self.check()?;
        let options = self
            .options
            .with_connect_timeout(self.connect_timeout)
            .with_keep_alive(KEEP_ALIVE, KEEP_ALIVE_TIMEOUT)
            .with_keep_alive_while_idle(true)
            .with_require_leader(true);
        // Not all processes with the same list begin with the same member.
        let first = fastrand::usize(..self.endpoints.len());
        let pool = || {
            Arc::new(Pool::new(
                &self.endpoints,
                first,
                options.clone(),
                self.request_timeout,
            ))
        };
        let shared = Shared {
            calls: pool(),
            watches: pool(),
            request_timeout: self.request_timeout,
        };
        Ok(Cluster {
            shared: Arc::new(shared),
        })
    }

    fn check(&self) -> Result<(), BuildError> {
        if self.endpoints.is_empty() {
            return Err(BuildError::NoEndpoint);
        }
        for (what, duration) in [
            ("connect_timeout", self.connect_timeout),
            ("request_timeout", self.request_timeout),
        ] {
            if duration.is_zero() {
                return Err(BuildError::Zero(what));
            }
        }
        self.endpoints
            .iter()
            .try_for_each(|url| self.check_endpoint(url))
    }

    fn check_endpoint(&self, url: &str) -> Result<(), BuildError> {
        let invalid = || BuildError::InvalidEndpoint(url.to_owned());
        let uri: Uri = url.parse().map_err(|_| invalid())?;
        if uri.host().is_none_or(str::is_empty)
            || uri.path_and_query().is_some_and(|rest| rest != "/")
        {
            return Err(invalid());
        }
        match uri.scheme_str() {
            Some("https") if cfg!(feature = "tls") => Ok(()),
            Some("https") => Err(BuildError::NeedsTls(url.to_owned())),
            Some("http") if self.has_tls => Err(BuildError::NotTls(url.to_owned())),
            Some("http") => Ok(()),
            _ => Err(invalid()),
        }
    }
}

impl fmt::Debug for ClusterBuilder {
    // Not the options: they hold the password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClusterBuilder")
            .field("endpoints", &self.endpoints)
            .field("connect_timeout", &self.connect_timeout)
            .field("request_timeout", &self.request_timeout)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn build(endpoints: &[&str]) -> Result<Cluster, BuildError> {
        Cluster::builder(endpoints.iter().copied()).build()
    }

    #[test]
    fn an_endpoint_is_a_url() {
        assert!(build(&["http://127.0.0.1:2379", "http://etcd-1.example/"]).is_ok());
        assert_eq!(build(&[]).unwrap_err(), BuildError::NoEndpoint);
        for bad in [
            "127.0.0.1:2379",
            "",
            "ftp://a",
            "http://",
            "http://a/b",
            "http://a b",
        ] {
            assert_eq!(
                build(&[bad]).unwrap_err(),
                BuildError::InvalidEndpoint(bad.to_owned())
            );
        }
    }

    /// etcd's default for `--grpc-keepalive-min-time`.
    #[test]
    fn r10_pings_are_no_more_frequent_than_etcd_allows() {
        assert!(KEEP_ALIVE > Duration::from_secs(5));
    }

    #[test]
    fn a_timeout_is_longer_than_zero() {
        let zero = Cluster::builder(["http://a"])
            .request_timeout(Duration::ZERO)
            .build();
        assert_eq!(zero.unwrap_err(), BuildError::Zero("request_timeout"));
    }

    #[test]
    fn a_password_is_not_shown() {
        let builder = Cluster::builder(["http://a"]).user("root", "geheim");
        assert!(!format!("{builder:?} {:?}", builder.clone().build().unwrap()).contains("geheim"));
    }
}
