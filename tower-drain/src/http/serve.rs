use std::{future::Future, io};

use http::{Request, Response};
use http_body::Body;
use tokio::io::{AsyncRead, AsyncWrite};
use tower_outcome::BoxError;
use tower_service::Service;

use super::{Http, RequestBody};
use crate::{accepted::Accepted, drain::Drain, listen::Listen, report::Report, server::Server};

impl<L: Listen, R> Server<L, R> {
    /// Serves `app` over HTTP with the default limits of [`Http`].
    ///
    /// # Errors
    ///
    /// Those of [`Drain::accept_loop`].
    pub fn serve<App, B>(
        self,
        app: App,
    ) -> impl Future<Output = io::Result<Report>> + Send + use<L, App, B, R>
    where
        L::Io: AsyncRead + AsyncWrite + Unpin,
        R: Service<Accepted<L::Io>, Response = (), Future: Send + 'static> + Clone + Send + 'static,
        App: Service<
                Request<RequestBody>,
                Response = Response<B>,
                Error: Into<BoxError>,
                Future: Send,
            > + Clone
            + Send
            + 'static,
        B: Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
    {
        let http = Http::new(&self.drain_handle(), app);
        self.run(http)
    }
}

impl Drain {
    /// Serves `app` on `listener` until this drain is over: HTTP/1.1, and HTTP/2 with the feature `http2`, at most 10 000
    /// connections, with the default limits of [`Http`]. [`Server`] has the settings, and with [`Server::bind`] a listener
    /// that closes without resetting clients that connect as it closes ([`BoundListener`](crate::BoundListener)).
    ///
    /// ```no_run
    /// # async fn run() -> std::io::Result<()> {
    /// use axum::{Router, routing::get};
    /// use tokio::net::TcpListener;
    /// use tower_drain::Drain;
    ///
    /// let drain = Drain::new();
    /// let app = Router::new().route("/", get(|| async { "hello" }));
    /// let report = drain.serve(TcpListener::bind("0.0.0.0:8080").await?, app).await?;
    /// println!("{report}");
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors, panics, cancel safety
    ///
    /// As [`accept_loop`](Self::accept_loop).
    pub fn serve<L, App, B>(
        &self,
        listener: L,
        app: App,
    ) -> impl Future<Output = io::Result<Report>> + Send + use<L, App, B>
    where
        L: Listen<Io: AsyncRead + AsyncWrite + Unpin>,
        App: Service<
                Request<RequestBody>,
                Response = Response<B>,
                Error: Into<BoxError>,
                Future: Send,
            > + Clone
            + Send
            + 'static,
        B: Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
    {
        Server::new(self, listener).serve(app)
    }
}
