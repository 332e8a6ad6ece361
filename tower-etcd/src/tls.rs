use std::fmt;

use etcd_client::{Certificate, Identity, TlsOptions};

/// How to trust the members of a cluster, and what to show them. All in PEM.
#[derive(Clone)]
pub struct Tls(TlsOptions);

// === impl Tls ===

impl Tls {
    /// Trusts members whose certificates this authority has signed.
    #[must_use]
    pub fn new(ca: impl AsRef<[u8]>) -> Self {
        Self(TlsOptions::new().ca_certificate(Certificate::from_pem(ca)))
    }

    /// Shows this certificate to members that want one (`--client-cert-auth`). Default: none.
    #[must_use]
    pub fn identity(self, cert: impl AsRef<[u8]>, key: impl AsRef<[u8]>) -> Self {
        Self(self.0.identity(Identity::from_pem(cert, key)))
    }

    /// The name that members' certificates must carry. Default: the host of the endpoint.
    #[must_use]
    pub fn domain(self, name: &str) -> Self {
        Self(self.0.domain_name(name))
    }

    pub(crate) fn into_options(self) -> TlsOptions {
        self.0
    }
}

impl fmt::Debug for Tls {
    // Not the options: they hold the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").finish_non_exhaustive()
    }
}
