use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use tower_outcome::{BoxError, Class, Refusal, Unsent};

use super::{UpstreamBody, connection::Connection, pool::Pool};

/// The response future of an [`Upstream`](super::Upstream).
pub struct ResponseFuture<B> {
    pool: Arc<Pool<B>>,
    state: State<B>,
}

enum State<B> {
    /// Written, or about to be. -> `Connecting` if the connection was dead already.
    Sent(Connection<B>),
    /// No connection was idle. -> `Sent`
    Connecting {
        connecting: Connecting<B>,
        request: Box<Request<B>>,
    },
    Done,
}

type Connecting<B> = Pin<Box<dyn Future<Output = Result<Connection<B>, BoxError>> + Send>>;

// === impl ResponseFuture ===

impl<B: Body<Data = Bytes> + Send + 'static> ResponseFuture<B>
where
    B::Error: Into<BoxError>,
{
    pub(super) fn new(pool: Arc<Pool<B>>, request: Request<B>) -> Self {
        let state = State::begin(&pool, request);
        Self { pool, state }
    }
}

impl<B> Future for ResponseFuture<B>
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Output = Result<Response<UpstreamBody<B>>, BoxError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        loop {
            match &mut this.state {
                State::Sent(connection) => {
                    let answer = ready!(connection.poll_answer(cx));
                    let State::Sent(connection) = std::mem::replace(&mut this.state, State::Done)
                    else {
                        unreachable!()
                    };
                    match answer {
                        Ok(response) => {
                            let pool = this.pool.clone();
                            return Poll::Ready(Ok(
                                response.map(|body| UpstreamBody::new(body, connection, pool))
                            ));
                        }
                        Err(mut error) => match error.take_message() {
                            // Found closed before anything was written: it was from the pool, so the pool provides another.
                            Some(request) if connection.is_reused() => {
                                this.state = State::begin(&this.pool, request);
                            }
                            Some(request) => {
                                return Poll::Ready(Err(
                                    Unsent::new(request, error.into_error()).into()
                                ));
                            }
                            None => return Poll::Ready(Err(broken(error.into_error()))),
                        },
                    }
                }
                State::Connecting { connecting, .. } => {
                    let made = ready!(connecting.as_mut().poll(cx));
                    let State::Connecting { request, .. } =
                        std::mem::replace(&mut this.state, State::Done)
                    else {
                        unreachable!()
                    };
                    match made {
                        Ok(connection) => this.state = State::send(connection, *request),
                        Err(cause) => return Poll::Ready(Err(Unsent::new(*request, cause).into())),
                    }
                }
                State::Done => panic!("polled after it was ready"),
            }
        }
    }
}

impl<B> fmt::Debug for ResponseFuture<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match &self.state {
            State::Sent(_) => "Sent",
            State::Connecting { .. } => "Connecting",
            State::Done => "Done",
        };
        f.debug_struct("ResponseFuture")
            .field("state", &state)
            .finish_non_exhaustive()
    }
}

// === impl State ===

impl<B: Body<Data = Bytes> + Send + 'static> State<B>
where
    B::Error: Into<BoxError>,
{
    fn begin(pool: &Arc<Pool<B>>, request: Request<B>) -> Self {
        match pool.take() {
            Some(connection) => Self::send(connection, request),
            None => {
                let pool = pool.clone();
                let connecting = Box::pin(async move { pool.connect().await });
                Self::Connecting {
                    connecting,
                    request: Box::new(request),
                }
            }
        }
    }

    fn send(mut connection: Connection<B>, request: Request<B>) -> Self {
        connection.send(request);
        Self::Sent(connection)
    }
}

/// If the body of a request failed, its sender ended the request: that is no failure of the other side.
fn broken(error: hyper::Error) -> BoxError {
    if error.is_user() {
        Refusal::new(Class::BadRequest, "request-body").into()
    } else {
        error.into()
    }
}
