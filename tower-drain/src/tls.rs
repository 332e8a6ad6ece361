//! TLS as a layer of connections.

use std::{
    fmt,
    future::Future,
    io,
    pin::Pin,
    sync::{Arc, PoisonError, RwLock},
    task::{Context, Poll, ready},
    time::Duration,
};

use pin_project::pin_project;
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{Accept, TlsAcceptor, server::TlsStream};
use tower_layer::Layer;
use tower_outcome::BoxError;
use tower_service::Service;

use crate::{
    accepted::Accepted,
    drain::{Drain, bounded},
    patience::Patience,
};

/// Certificates that can be replaced at run time: a handle, cheap to clone.
///
/// A handshake uses the configuration at its begin; open connections are not affected.
///
/// ```no_run
/// # fn run() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
/// use tower_drain::Tls;
///
/// let tls = Tls::from_pem(&std::fs::read("cert.pem")?, &std::fs::read("key.pem")?)?;
/// // Later, when the files have changed. A pair that does not match is rejected, and the old one stays.
/// tls.reload_pem(&std::fs::read("cert.pem")?, &std::fs::read("key.pem")?)?;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Tls {
    config: Arc<RwLock<Arc<ServerConfig>>>,
}

/// Performs the TLS handshake, and then calls the inner service with an [`Accepted`] of [`TlsStream`].
///
/// The handshake runs in the connection's task, within 10 s; this includes the wait for the inner service to be ready.
/// When closing begins, a handshake under way has a second left, so silent peers do not delay the drain. It costs one
/// lock, held for a clone, per handshake.
///
/// The stream has the protocol that was negotiated (ALPN); [`Http`](crate::Http) detects it from the first bytes.
#[derive(Clone, Debug)]
pub struct TlsLayer {
    drain: Drain,
    tls: Tls,
    timeout: Duration,
}

/// A connection service with TLS. Made by [`TlsLayer`].
#[derive(Clone, Debug)]
pub struct TlsService<S> {
    inner: S,
    layer: TlsLayer,
}

/// The future of a connection: performs the handshake, waits for the service, and runs it.
#[pin_project]
#[must_use = "futures do nothing unless polled"]
pub struct TlsFuture<S, Io>
where
    S: Service<Accepted<TlsStream<Io>>>,
    Io: AsyncRead + AsyncWrite + Unpin,
{
    #[pin]
    stage: Stage<S, Io>,
}

#[pin_project(project = StageProj)]
#[allow(
    clippy::large_enum_variant,
    reason = "it lives in the allocation of its task"
)]
enum Stage<S, Io>
where
    S: Service<Accepted<TlsStream<Io>>>,
    Io: AsyncRead + AsyncWrite + Unpin,
{
    /// -> `Living` when the handshake is done and the service is ready.
    Waiting {
        #[pin]
        handshake: Accept<Io>,
        /// Taken when the handshake is done.
        rest: Option<Accepted<()>>,
        accepted: Option<Accepted<TlsStream<Io>>>,
        service: Option<S>,
        #[pin]
        patience: Patience,
    },
    Living(#[pin] S::Future),
}

// === impl Tls ===

impl Tls {
    /// Uses `config` unchanged, so it must have its ALPN protocols.
    #[must_use]
    pub fn new(config: impl Into<Arc<ServerConfig>>) -> Self {
        Self {
            config: Arc::new(RwLock::new(config.into())),
        }
    }

    /// A certificate chain and its key, both PEM; HTTP/1.1 by ALPN, and HTTP/2 first with the feature `http2`; no client
    /// certificates; ring.
    ///
    /// # Errors
    ///
    /// If one of them is invalid, or they do not match.
    pub fn from_pem(chain: &[u8], key: &[u8]) -> Result<Self, BoxError> {
        read_pem(chain, key).map(Self::new)
    }

    /// New handshakes use `config` from now on.
    pub fn reload(&self, config: impl Into<Arc<ServerConfig>>) {
        *self.config.write().unwrap_or_else(PoisonError::into_inner) = config.into();
        tracing::info!("tls: new certificates");
    }

    /// As [`reload`](Self::reload), from PEM as in [`from_pem`](Self::from_pem).
    ///
    /// # Errors
    ///
    /// As there. The configuration in use is kept.
    pub fn reload_pem(&self, chain: &[u8], key: &[u8]) -> Result<(), BoxError> {
        self.reload(read_pem(chain, key)?);
        Ok(())
    }

    fn acceptor(&self) -> TlsAcceptor {
        self.config
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
            .into()
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tls")
    }
}

fn read_pem(chain: &[u8], key: &[u8]) -> Result<ServerConfig, BoxError> {
    let chain = CertificateDer::pem_slice_iter(chain).collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_slice(key)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    config.alpn_protocols = ALPN.iter().map(|protocol| protocol.to_vec()).collect();
    Ok(config)
}

#[cfg(feature = "http2")]
const ALPN: &[&[u8]] = &[b"h2", b"http/1.1"];
#[cfg(not(feature = "http2"))]
const ALPN: &[&[u8]] = &[b"http/1.1"];

// === impl TlsLayer ===

impl TlsLayer {
    /// Uses the certificates of `tls`; `drain` ends handshakes when it is closing.
    #[must_use]
    pub fn new(drain: &Drain, tls: &Tls) -> Self {
        Self {
            drain: drain.clone(),
            tls: tls.clone(),
            timeout: HANDSHAKE,
        }
    }

    /// How long a handshake may take. Default: 10 s.
    #[must_use]
    pub fn handshake_timeout(self, timeout: Duration) -> Self {
        Self {
            timeout: bounded(timeout),
            ..self
        }
    }
}

impl<S> Layer<S> for TlsLayer {
    type Service = TlsService<S>;

    fn layer(&self, inner: S) -> TlsService<S> {
        TlsService {
            inner,
            layer: self.clone(),
        }
    }
}

// === impl TlsService ===

impl<S, Io> Service<Accepted<Io>> for TlsService<S>
where
    S: Service<Accepted<TlsStream<Io>>, Response = (), Error: Into<BoxError>> + Clone,
    Io: AsyncRead + AsyncWrite + Unpin,
{
    type Response = ();
    type Error = BoxError;
    type Future = TlsFuture<S, Io>;

    /// The reservation of the inner service moves into the connection's future, which polls readiness again after the
    /// handshake.
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, accepted: Accepted<Io>) -> TlsFuture<S, Io> {
        let (io, rest) = accepted.split();
        // The service that is ready moves into the future; a clone would not have its reservation.
        let next = self.inner.clone();
        let service = std::mem::replace(&mut self.inner, next);
        let stage = Stage::Waiting {
            handshake: self.layer.tls.acceptor().accept(io),
            rest: Some(rest),
            accepted: None,
            service: Some(service),
            patience: Patience::new(&self.layer.drain, self.layer.timeout),
        };
        TlsFuture { stage }
    }
}

// === impl TlsFuture ===

impl<S, Io> Future for TlsFuture<S, Io>
where
    S: Service<Accepted<TlsStream<Io>>, Response = (), Error: Into<BoxError>>,
    Io: AsyncRead + AsyncWrite + Unpin,
{
    type Output = Result<(), BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut stage = self.project().stage;
        loop {
            let next = match stage.as_mut().project() {
                StageProj::Waiting {
                    handshake,
                    rest,
                    accepted,
                    service,
                    patience,
                } => {
                    if rest.is_some()
                        && let Poll::Ready(stream) = handshake.poll(cx)?
                    {
                        *accepted = rest.take().map(|rest| rest.with(stream));
                    }
                    let asked = service.as_mut().expect("called once");
                    if accepted.is_none() || asked.poll_ready(cx).map_err(Into::into)?.is_pending()
                    {
                        ready!(patience.poll(cx));
                        return Poll::Ready(Err(io::Error::from(io::ErrorKind::TimedOut).into()));
                    }
                    let (accepted, mut service) =
                        accepted.take().zip(service.take()).expect("called once");
                    Stage::Living(service.call(accepted))
                }
                StageProj::Living(life) => return life.poll(cx).map_err(Into::into),
            };
            stage.set(next);
        }
    }
}

impl<S, Io> fmt::Debug for TlsFuture<S, Io>
where
    S: Service<Accepted<TlsStream<Io>>>,
    Io: AsyncRead + AsyncWrite + Unpin,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsFuture")
            .field("waiting", &matches!(self.stage, Stage::Waiting { .. }))
            .finish()
    }
}

const HANDSHAKE: Duration = Duration::from_secs(10);
