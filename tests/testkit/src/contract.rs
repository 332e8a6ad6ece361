//! The contract of `tower-service`, as every layer must keep it while it admits requests.
//!
//! Call [`check`] with a function that wraps a [`Probe`] in the layer under test, in a state in which the layer lets
//! requests through. The refusing states are each crate's own business.

use std::{
    future::Future,
    pin::pin,
    task::{Context, Poll},
};

use http::{Request, Response};
use tower_service::Service;

use crate::{Answer, Probe, ProbeHandle, Script, Step, Wakes};

/// Runs every rule. Panics, naming the rule, at the first that is broken.
///
/// `wrap` makes a fresh layered service around a probe each time; it may need a runtime, which the caller provides.
pub fn check<S, B>(mut wrap: impl FnMut(Probe) -> S)
where
    S: Service<Request<String>, Response = Response<B>> + Clone,
{
    readiness_is_asked_of_the_inner_service(&mut wrap);
    a_clone_asks_for_itself(&mut wrap);
    a_service_swapped_out_after_readiness_still_works(&mut wrap);
    a_dropped_call_is_dropped_inside(&mut wrap);
    a_failed_inner_service_stays_failed(&mut wrap);
    errors_come_through(&mut wrap);
    nothing_is_left_behind(&mut wrap);
    a_panic_inside_leaves_nothing_behind(&mut wrap);
}

fn readiness_is_asked_of_the_inner_service<S, B>(wrap: &mut impl FnMut(Probe) -> S)
where
    S: Service<Request<String>, Response = Response<B>> + Clone,
{
    let (mut service, probe) = wrapped(wrap);
    probe.be_pending();
    let (wakes, waker) = Wakes::new();
    let mut cx = Context::from_waker(&waker);
    assert!(
        service.poll_ready(&mut cx).is_pending(),
        "the inner service is not ready, so the layer is not"
    );
    let before = wakes.count();
    assert_eq!(
        before, 0,
        "Pending must not wake its own task: that is a busy loop"
    );
    probe.be_ready();
    assert!(
        wakes.count() > 0,
        "when the inner service becomes ready, the caller is woken"
    );
    assert!(is_ready(&mut service), "and then the layer is ready");
    assert!(is_ready(&mut service), "and stays so until called");
    assert_eq!(status(service.call(request())), Some(200));
    assert!(is_ready(&mut service), "and is ready for the next call");
    assert_eq!(status(service.call(request())), Some(200));
    assert_eq!(probe.calls(), 2);
}

fn a_clone_asks_for_itself<S, B>(wrap: &mut impl FnMut(Probe) -> S)
where
    S: Service<Request<String>, Response = Response<B>> + Clone,
{
    let (mut service, probe) = wrapped(wrap);
    assert!(is_ready(&mut service));
    // The strict probe panics if a clone takes over readiness it never asked for.
    let mut clone = service.clone();
    assert!(is_ready(&mut clone));
    assert_eq!(status(clone.call(request())), Some(200));
    assert_eq!(status(service.call(request())), Some(200));
    let mut clone = service.clone();
    drop(service);
    assert!(is_ready(&mut clone));
    assert_eq!(status(clone.call(request())), Some(200));
    assert_eq!(probe.calls(), 3);
}

fn a_service_swapped_out_after_readiness_still_works<S, B>(wrap: &mut impl FnMut(Probe) -> S)
where
    S: Service<Request<String>, Response = Response<B>> + Clone,
{
    let (mut service, _probe) = wrapped(wrap);
    assert!(is_ready(&mut service));
    let clone = service.clone();
    let mut ready = std::mem::replace(&mut service, clone);
    assert_eq!(status(ready.call(request())), Some(200));
}

fn a_dropped_call_is_dropped_inside<S, B>(wrap: &mut impl FnMut(Probe) -> S)
where
    S: Service<Request<String>, Response = Response<B>> + Clone,
{
    let (mut service, probe) = wrapped(wrap);
    assert!(is_ready(&mut service));
    drop(service.call(request()));
    assert_eq!(
        probe.in_flight(),
        0,
        "a future dropped before it was polled drops the inner one"
    );
    probe.answer(Answer::Hang);
    assert!(is_ready(&mut service));
    {
        let mut call = pin!(service.call(request()));
        assert!(poll(call.as_mut()).is_pending());
    }
    assert_eq!(
        probe.in_flight(),
        0,
        "a future dropped while it waits drops the inner one"
    );
    assert!(is_ready(&mut service), "and the layer takes the next call");
    assert_eq!(status(service.call(request())), Some(200));
}

fn a_failed_inner_service_stays_failed<S, B>(wrap: &mut impl FnMut(Probe) -> S)
where
    S: Service<Request<String>, Response = Response<B>> + Clone,
{
    let (mut service, probe) = wrapped(wrap);
    probe.be_failed();
    let (_, waker) = Wakes::new();
    let ready = service.poll_ready(&mut Context::from_waker(&waker));
    assert!(
        matches!(ready, Poll::Ready(Err(_))),
        "an inner service that is finished finishes the layer"
    );
}

fn errors_come_through<S, B>(wrap: &mut impl FnMut(Probe) -> S)
where
    S: Service<Request<String>, Response = Response<B>> + Clone,
{
    let (mut service, probe) = wrapped(wrap);
    probe.answer(Answer::Fail);
    assert!(is_ready(&mut service));
    assert_eq!(
        status(service.call(request())),
        None,
        "an inner error is the layer's error"
    );
    assert!(
        is_ready(&mut service),
        "one error does not finish the layer"
    );
}

fn nothing_is_left_behind<S, B>(wrap: &mut impl FnMut(Probe) -> S)
where
    S: Service<Request<String>, Response = Response<B>> + Clone,
{
    let (mut service, probe) = wrapped(wrap);
    assert!(is_ready(&mut service));
    probe.answer(Answer::Body(
        200,
        Script::new([Step::Data("x"), Step::Hang]),
    ));
    let response = finish(service.call(request()));
    drop(service);
    assert_eq!(probe.clones(), 0, "a response must not keep the service");
    drop(response);
    assert_eq!(probe.in_flight(), 0);
}

fn a_panic_inside_leaves_nothing_behind<S, B>(wrap: &mut impl FnMut(Probe) -> S)
where
    S: Service<Request<String>, Response = Response<B>> + Clone,
{
    let (mut service, probe) = wrapped(wrap);
    probe.answer(Answer::Panic);
    assert!(is_ready(&mut service));
    let call = service.call(request());
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| finish(call).is_err()));
    assert!(outcome.is_err(), "a panic is not swallowed");
    assert_eq!(probe.in_flight(), 0);
    assert!(is_ready(&mut service), "and the layer takes the next call");
    assert_eq!(status(service.call(request())), Some(200));
}

fn wrapped<S>(wrap: &mut impl FnMut(Probe) -> S) -> (S, ProbeHandle) {
    let (probe, handle) = Probe::new();
    (wrap(probe), handle)
}

fn request() -> Request<String> {
    Request::new(String::new())
}

fn is_ready<S: Service<Request<String>>>(service: &mut S) -> bool {
    let (_, waker) = Wakes::new();
    matches!(
        service.poll_ready(&mut Context::from_waker(&waker)),
        Poll::Ready(Ok(()))
    )
}

fn poll<F: Future>(future: std::pin::Pin<&mut F>) -> Poll<F::Output> {
    let (_, waker) = Wakes::new();
    future.poll(&mut Context::from_waker(&waker))
}

fn finish<F: Future>(future: F) -> F::Output {
    match poll(pin!(future)) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("the inner service has answered, so the layer must"),
    }
}

fn status<F, B, E>(future: F) -> Option<u16>
where
    F: Future<Output = Result<Response<B>, E>>,
{
    finish(future)
        .ok()
        .map(|response| response.status().as_u16())
}
