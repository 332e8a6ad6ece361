use std::{
    convert::Infallible,
    fmt,
    future::Future,
    marker::PhantomData,
    pin::Pin,
    task::{Context, Poll, ready},
};

use http::{Request, Response};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use crate::{
    BoxError, Class, Refusal,
    body::RespondBody,
    refuse::{self, Refuse},
};

/// Turns errors into responses, so that a service that rejects with errors can be used in an axum `Router`.
///
/// The class of a [`Refusal`] in the error's chain decides the status: 503 if a balance has no endpoint, 504 for a timeout, and
/// the corresponding status in gRPC. All other errors become the refusal set with [`otherwise`](Self::otherwise), by default
/// a 502, because the service behind this layer is usually an upstream. Their text is not sent to the client.
///
/// The error type of the service is `Infallible`.
///
/// ```
/// use http::{Request, Response};
/// use tower_layer::Layer;
/// use tower_outcome::{BoxError, Class, Refusal, RespondLayer};
/// use tower_service::Service;
///
/// # #[derive(Clone)] struct Client;
/// # impl Service<Request<()>> for Client {
/// #     type Response = Response<String>;
/// #     type Error = BoxError;
/// #     type Future = std::future::Ready<Result<Response<String>, BoxError>>;
/// #     fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), BoxError>> {
/// #         std::task::Poll::Ready(Ok(()))
/// #     }
/// #     fn call(&mut self, _: Request<()>) -> Self::Future {
/// #         std::future::ready(Err(Refusal::new(Class::Unavailable, "no-endpoints").into()))
/// #     }
/// # }
/// # async fn example(client: Client) {
/// let mut service = RespondLayer::new().layer(client); // whose error is a `BoxError`
/// let response = service.call(Request::new(())).await.unwrap();
/// assert_eq!(response.status(), 503);
/// # }
/// ```
///
/// A response made from a refusal has it [in its extensions](crate::refuse). A response made from another error has not, so a
/// circuit further out counts it as a failure.
#[derive(Clone, Copy, Debug)]
pub struct RespondLayer<R = refuse::Auto> {
    refuse: R,
    otherwise: Refusal,
}

/// Turns errors into responses. Created by [`RespondLayer`].
pub struct RespondService<S, R = refuse::Auto> {
    inner: S,
    refuse: R,
    otherwise: Refusal,
    /// The error of `poll_ready`, which the next `call` turns into a response.
    failed: Option<BoxError>,
}

pin_project! {
    /// The future of [`RespondService`].
    ///
    /// # Cancel safety
    ///
    /// Dropping it drops the inner future.
    pub struct RespondFuture<F, R, C, A> {
        #[pin]
        state: State<F>,
        refuse: R,
        context: C,
        otherwise: Refusal,
        request: PhantomData<fn(A)>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<F> {
        Called {
            #[pin]
            inner: F,
        },
        Failed {
            error: BoxError,
        },
    }
}

// === impl RespondLayer ===

impl RespondLayer {
    /// Responds in the protocol of the request ([`refuse::Auto`]); other errors become a 502 with the code `upstream-failed`.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            refuse: refuse::Auto::new(),
            otherwise: Refusal::new(Class::BadUpstream, "upstream-failed"),
        }
    }
}

impl<R> RespondLayer<R> {
    /// Renders refusals with `refuse`, for example [`refuse::Custom`] or `refuse::Http::new().problem_json()`.
    #[must_use]
    pub fn with<R2>(self, refuse: R2) -> RespondLayer<R2> {
        RespondLayer {
            refuse,
            otherwise: self.otherwise,
        }
    }

    /// The refusal to render for errors that contain none, for example `Refusal::new(Class::Internal, "internal")` if the
    /// service behind this layer is the application and not an upstream.
    #[must_use]
    pub const fn otherwise(mut self, refusal: Refusal) -> Self {
        self.otherwise = refusal;
        self
    }
}

impl Default for RespondLayer {
    fn default() -> Self {
        Self::new()
    }
}

impl<S, R: Clone> Layer<S> for RespondLayer<R> {
    type Service = RespondService<S, R>;

    fn layer(&self, inner: S) -> RespondService<S, R> {
        RespondService {
            inner,
            refuse: self.refuse.clone(),
            otherwise: self.otherwise,
            failed: None,
        }
    }
}

// === impl RespondService ===

impl<S, R, A, B> Service<Request<A>> for RespondService<S, R>
where
    S: Service<Request<A>, Response = Response<B>>,
    S::Error: Into<BoxError>,
    R: Refuse<
            Request<A>,
            Response<B>,
            Infallible,
            Response = Response<RespondBody<B>>,
            Error = Infallible,
        > + Clone,
{
    type Response = Response<RespondBody<B>>;
    type Error = Infallible;
    type Future = RespondFuture<S::Future, R, R::Context, A>;

    /// Keeps an error of the inner service for the next `call`, which responds without calling the inner service.
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        if self.failed.is_none() {
            self.failed = ready!(self.inner.poll_ready(cx)).err().map(Into::into);
        }
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<A>) -> Self::Future {
        RespondFuture {
            context: self.refuse.context(&request),
            state: match self.failed.take() {
                Some(error) => State::Failed { error },
                None => State::Called {
                    inner: self.inner.call(request),
                },
            },
            refuse: self.refuse.clone(),
            otherwise: self.otherwise,
            request: PhantomData,
        }
    }
}

impl<S: Clone, R: Clone> Clone for RespondService<S, R> {
    /// The clone has not been polled for readiness, so it does not get an error that `poll_ready` returned.
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            refuse: self.refuse.clone(),
            otherwise: self.otherwise,
            failed: None,
        }
    }
}

impl<S: fmt::Debug, R> fmt::Debug for RespondService<S, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RespondService")
            .field("inner", &self.inner)
            .finish_non_exhaustive()
    }
}

// === impl RespondFuture ===

impl<F, R, A, B, E> Future for RespondFuture<F, R, R::Context, A>
where
    F: Future<Output = Result<Response<B>, E>>,
    E: Into<BoxError>,
    R: Refuse<
            Request<A>,
            Response<B>,
            Infallible,
            Response = Response<RespondBody<B>>,
            Error = Infallible,
        >,
{
    type Output = Result<Response<RespondBody<B>>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let found = match this.state.project() {
            StateProj::Called { inner } => match ready!(inner.poll(cx)) {
                Ok(response) => return Poll::Ready(R::pass(Ok(response))),
                Err(error) => Refusal::find(&*error.into()).copied(),
            },
            StateProj::Failed { error } => Refusal::find(&**error).copied(),
        };
        let mut response = this
            .refuse
            .refuse(*this.context, found.unwrap_or(*this.otherwise))?;
        if found.is_none() {
            response.extensions_mut().remove::<Refusal>();
        }
        Poll::Ready(Ok(response))
    }
}

impl<F, R, C, A> fmt::Debug for RespondFuture<F, R, C, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RespondFuture").finish_non_exhaustive()
    }
}
