use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use http::{
    Response,
    header::{CONTENT_LENGTH, CONTENT_TYPE},
};
use http_body::Body;
use pin_project::pin_project;
use tower_outcome::refuse::{Auto, Protocol};

use crate::{
    bell::Heard,
    body::DrainBody,
    close::Closable,
    cut::{CUT, Cut},
    guard::Guard,
};

/// The response future of a [`Guarded`](crate::Guarded) service.
#[pin_project]
#[must_use = "futures do nothing unless polled"]
pub struct ResponseFuture<F> {
    /// `None` once it is cut.
    #[pin]
    inner: Option<F>,
    guard: Option<Guard>,
    cut: Cut,
    /// Set when the request had to wait.
    #[pin]
    heard: Option<Heard>,
    closable: Closable,
    protocol: Protocol,
}

// === impl ResponseFuture ===

impl<F> ResponseFuture<F> {
    pub(crate) fn new(inner: F, guard: Guard, closable: Closable, protocol: Protocol) -> Self {
        Self {
            inner: Some(inner),
            cut: Cut::at_the_end_of(Arc::clone(guard.shared())),
            heard: None,
            guard: Some(guard),
            closable,
            protocol,
        }
    }
}

impl<F, B, E> Future for ResponseFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
    B: Body,
{
    type Output = Result<Response<DrainBody<B>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let inner = this.inner.as_mut().as_pin_mut();
        let inner = inner.expect("polled after it was ready");
        if !this.cut.is_due() {
            if let Poll::Ready(result) = inner.poll(cx) {
                let guard = this.guard.take().expect("polled after it was ready");
                return Poll::Ready(result.map(|mut response| {
                    if !guard.shared().is_serving() {
                        this.closable.close(&mut response);
                    }
                    response.map(|body| DrainBody::new(body, guard))
                }));
            }
            if this.heard.is_none() {
                this.heard.set(this.cut.heard());
            }
            let Some(heard) = this.heard.as_pin_mut() else {
                return Poll::Pending;
            };
            ready!(heard.poll(cx));
        }
        this.inner.set(None);
        *this.guard = None;
        let mut response = instead(*this.protocol);
        this.closable.close(&mut response);
        Poll::Ready(Ok(response))
    }
}

impl<F> fmt::Debug for ResponseFuture<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture")
            .field("guard", &self.guard)
            .finish_non_exhaustive()
    }
}

/// The response to a request that was cut. It has no body, since the body's type is that of the inner service.
fn instead<B>(protocol: Protocol) -> Response<DrainBody<B>> {
    let refusal = CUT.with_retry_after(Some(Duration::from_secs(1)));
    let mut response = Auto::new().response::<()>(protocol, &refusal, refusal);
    if protocol == Protocol::Http {
        response.headers_mut().remove(CONTENT_LENGTH);
        response.headers_mut().remove(CONTENT_TYPE);
    }
    response.map(|_| DrainBody::empty())
}
