//! The guard in the body: settled once, at the end or at an error, or cancelled by a drop.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::mpsc,
    task::{Context, Poll},
};

use http::{Method, Request, Response};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use testkit::{Broken, Script, Step};
use tower_outcome::{
    BoxError, Class, Outcome, Refusal, Settle,
    body::{ClientBody, RespondBody},
    classify::{AnyErr, Auto, AutoClassifier, Classify, ClassifyResponse, Judge, Judged, Scope},
};

/// Sends its outcome, or `None` if it is dropped without one, to the first channel, and calls of `head_received` to the second.
struct Recorder(Option<mpsc::Sender<Option<Outcome>>>, mpsc::Sender<()>);

impl Settle for Recorder {
    fn head_received(&mut self) {
        assert!(self.0.is_some(), "never after the outcome");
        let _ = self.1.send(());
    }

    fn settle(mut self, outcome: Outcome) {
        self.0.take().unwrap().send(Some(outcome)).unwrap();
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        if let Some(sender) = self.0.take() {
            let _ = sender.send(None);
        }
    }
}

type Outcomes = mpsc::Receiver<Option<Outcome>>;
type Attached<C, Res, E> = (Result<Judged<C, Recorder, Res, E>, E>, Outcomes);
type AttachedAndHeads<C, Res, E> = (
    Result<Judged<C, Recorder, Res, E>, E>,
    Outcomes,
    mpsc::Receiver<()>,
);

fn attach<C, Res, E>(classifier: C, result: Result<Res, E>) -> Attached<C, Res, E>
where
    C: ClassifyResponse<Res, E>,
    C::Scope: Scope<Res, Judge<C, Recorder>>,
{
    let (result, outcomes, _) = attach_and_heads(classifier, result);
    (result, outcomes)
}

/// Also returns the calls of `head_received`.
fn attach_and_heads<C, Res, E>(classifier: C, result: Result<Res, E>) -> AttachedAndHeads<C, Res, E>
where
    C: ClassifyResponse<Res, E>,
    C::Scope: Scope<Res, Judge<C, Recorder>>,
{
    let ((sender, outcomes), (head, heads)) = (mpsc::channel(), mpsc::channel());
    (
        Judge::new(classifier, Recorder(Some(sender), head)).attach(result),
        outcomes,
        heads,
    )
}

fn http() -> AutoClassifier {
    Auto::new().classify(&Request::new(()))
}

fn grpc() -> AutoClassifier {
    let request = Request::builder()
        .method(Method::POST)
        .header("content-type", "application/grpc");
    Auto::new().classify(&request.body(()).unwrap())
}

fn body(steps: impl IntoIterator<Item = Step>) -> Result<Response<Script>, Infallible> {
    Ok(Response::new(Script::new(steps)))
}

fn grpc_body(steps: impl IntoIterator<Item = Step>) -> Result<Response<Script>, Infallible> {
    let response = Response::builder().header("content-type", "application/grpc");
    Ok(response.body(Script::new(steps)).unwrap())
}

#[tokio::test]
async fn a_success_is_recorded_at_the_end_of_the_body_and_not_before() {
    let (response, outcomes) = attach(http(), body([Step::Data("a"), Step::Data("b")]));
    let mut body = response.unwrap().into_body();
    for _ in 0..2 {
        body.frame().await.unwrap().unwrap();
        assert_eq!(outcomes.try_recv(), Err(mpsc::TryRecvError::Empty));
    }
    assert!(body.frame().await.is_none());
    assert_eq!(outcomes.try_recv(), Ok(Some(Outcome::SUCCESS)));
    assert!(
        body.frame().await.is_none(),
        "polled past its end, it ends again and records nothing"
    );
    assert_eq!(outcomes.try_recv(), Err(mpsc::TryRecvError::Disconnected));
}

#[tokio::test]
async fn a_good_head_is_reported_once_and_before_the_end() {
    let (response, outcomes, heads) = attach_and_heads(http(), body([Step::Data("a")]));
    assert_eq!(
        (heads.try_iter().count(), outcomes.try_recv()),
        (1, Err(mpsc::TryRecvError::Empty))
    );
    response.unwrap().into_body().collect().await.unwrap();
    assert_eq!(
        (heads.try_iter().count(), outcomes.try_recv()),
        (0, Ok(Some(Outcome::SUCCESS)))
    );
}

#[test]
fn a_head_that_decides_the_outcome_is_not_reported_separately() {
    let response = |status| {
        Ok::<_, Infallible>(
            Response::builder()
                .status(status)
                .body(Script::new([]))
                .unwrap(),
        )
    };
    for (status, heads) in [(200, 1), (404, 1), (204, 0), (500, 0), (429, 0)] {
        let (_response, _told, outcomes) = attach_and_heads(http(), response(status));
        assert_eq!(outcomes.try_iter().count(), heads, "{status}");
    }
    let (_, _, heads) = attach_and_heads::<_, u8, BoxError>(AnyErr, Ok(7));
    assert_eq!(heads.try_iter().count(), 0, "there is no body to wait for");
    let (_, _, heads) =
        attach_and_heads::<_, Response<Script>, BoxError>(http(), Err("reset".into()));
    assert_eq!(heads.try_iter().count(), 0);
}

#[tokio::test]
async fn a_body_that_reports_its_end_is_settled_with_its_last_frame() {
    // A server drops such a body without polling it again.
    let script = Script::new([Step::Data("a"), Step::Data("b")]).telling_end();
    let (response, outcomes) = attach::<_, _, Infallible>(http(), Ok(Response::new(script)));
    let mut body = response.unwrap().into_body();
    body.frame().await;
    assert_eq!(outcomes.try_recv(), Err(mpsc::TryRecvError::Empty));
    body.frame().await;
    assert_eq!(outcomes.try_recv(), Ok(Some(Outcome::SUCCESS)));
}

#[tokio::test]
async fn a_body_with_a_content_length_is_settled_with_its_last_byte_without_an_end_report() {
    // hyper sends the number of bytes in `Content-Length` and drops the body without polling it again.
    let with_length = |length: &str| Response::builder().header("content-length", length);
    let script = Script::new([Step::Data("abc"), Step::Data("de"), Step::Hang]);
    let (response, outcomes) =
        attach::<_, _, Infallible>(http(), Ok(with_length("5").body(script).unwrap()));
    let mut body = response.unwrap().into_body();
    body.frame().await;
    assert_eq!(outcomes.try_recv(), Err(mpsc::TryRecvError::Empty));
    body.frame().await;
    assert_eq!(outcomes.try_recv(), Ok(Some(Outcome::SUCCESS)));

    let (_response, outcomes) =
        attach::<_, _, Infallible>(http(), Ok(with_length("0").body(Script::new([])).unwrap()));
    assert_eq!(outcomes.try_recv(), Ok(Some(Outcome::SUCCESS)));

    let short = with_length("5")
        .body(Script::new([Step::Data("abc"), Step::Break]))
        .unwrap();
    let (response, outcomes) = attach::<_, _, Infallible>(http(), Ok(short));
    response.unwrap().into_body().collect().await.unwrap_err();
    assert_eq!(outcomes.try_recv(), Ok(Some(Outcome::FAILURE)));
}

/// A wrapper with an exact size hint and the default `is_end_stream`.
struct Sized(Script, u64);

impl Body for Sized {
    type Data = bytes::Bytes;
    type Error = testkit::Broken;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<bytes::Bytes>, Broken>>> {
        Pin::new(&mut self.0).poll_frame(cx)
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.1)
    }
}

#[tokio::test]
async fn a_body_that_knows_its_length_is_settled_with_its_last_byte() {
    let script = Script::new([Step::Data("abc"), Step::Data("de"), Step::Hang]);
    let response = Response::new(Sized(script, 5));
    let (response, outcomes) = attach::<_, _, Infallible>(http(), Ok(response));
    let mut body = response.unwrap().into_body();
    body.frame().await;
    assert_eq!(outcomes.try_recv(), Err(mpsc::TryRecvError::Empty));
    body.frame().await;
    assert_eq!(outcomes.try_recv(), Ok(Some(Outcome::SUCCESS)));
}

#[tokio::test]
async fn a_body_that_ends_short_of_its_length_is_a_failure() {
    let short = Response::builder()
        .header("content-length", "5")
        .body(Script::new([Step::Data("abc")]))
        .unwrap();
    let (response, outcomes) = attach::<_, _, Infallible>(http(), Ok(short));
    response.unwrap().into_body().collect().await.unwrap();
    assert_eq!(outcomes.try_recv(), Ok(Some(Outcome::FAILURE)));
}

#[tokio::test]
async fn a_grpc_call_ends_with_its_trailers_even_if_a_length_was_announced() {
    let response = Response::builder()
        .header("content-type", "application/grpc")
        .header("content-length", "1");
    let script = Script::new([Step::Data("a"), Step::grpc_status("0")]);
    let (response, outcomes) =
        attach::<_, _, Infallible>(grpc(), Ok(response.body(script).unwrap()));
    response.unwrap().into_body().collect().await.unwrap();
    assert_eq!(outcomes.try_recv(), Ok(Some(Outcome::SUCCESS)));
}

#[test]
fn an_empty_body_is_settled_at_the_head() {
    let response = Response::new(Script::new([]).telling_end());
    let (response, outcomes) = attach::<_, _, Infallible>(http(), Ok(response));
    assert_eq!(outcomes.try_recv(), Ok(Some(Outcome::SUCCESS)));
    assert!(response.unwrap().body().is_end_stream());
}

#[tokio::test]
async fn a_body_that_breaks_off_is_a_failure() {
    let (response, outcomes) = attach(http(), body([Step::Data("a"), Step::Break]));
    response.unwrap().into_body().collect().await.unwrap_err();
    assert_eq!(outcomes.try_recv(), Ok(Some(Outcome::FAILURE)));
}

#[tokio::test]
async fn a_body_cut_by_a_local_rejection_is_ignored() {
    const LOST: Refusal = Refusal::new(Class::Unavailable, "lease-lost");
    let cut = Script::new([Step::Break]).map_err(|Broken| BoxError::from(LOST));
    let (response, outcomes) = attach::<_, _, Infallible>(http(), Ok(Response::new(cut)));
    response.unwrap().into_body().collect().await.unwrap_err();
    assert_eq!(outcomes.try_recv(), Ok(Some(Outcome::IGNORE)));
}

#[tokio::test]
async fn a_body_dropped_halfway_cancels_its_guard() {
    let (response, outcomes) = attach(http(), body([Step::Data("a"), Step::Hang]));
    let mut body = response.unwrap().into_body();
    body.frame().await;
    assert_eq!(outcomes.try_recv(), Err(mpsc::TryRecvError::Empty));
    drop(body);
    assert_eq!(outcomes.try_recv(), Ok(None));
}

#[test]
fn a_failure_is_recorded_at_the_head() {
    let response = Response::builder()
        .status(500)
        .body(Script::new([Step::Hang]))
        .unwrap();
    let (_response, outcomes) = attach::<_, _, Infallible>(http(), Ok(response));
    assert_eq!(outcomes.try_recv(), Ok(Some(Outcome::FAILURE)));
}

#[tokio::test]
async fn a_grpc_call_is_classified_by_its_trailers() {
    for (code, expected) in [
        ("0", Outcome::SUCCESS),
        ("14", Outcome::FAILURE),
        ("8", Outcome::THROTTLED),
    ] {
        let (response, outcomes) = attach(
            grpc(),
            grpc_body([Step::Data("a"), Step::grpc_status(code)]),
        );
        response.unwrap().into_body().collect().await.unwrap();
        assert_eq!(outcomes.try_recv(), Ok(Some(expected)), "{code}");
    }
    let (response, outcomes) = attach(grpc(), grpc_body([Step::Data("a")]));
    response.unwrap().into_body().collect().await.unwrap();
    assert_eq!(
        outcomes.try_recv(),
        Ok(Some(Outcome::FAILURE)),
        "a stream cut before its status"
    );
}

#[test]
fn a_client_cannot_turn_plain_responses_into_failures_by_labelling_its_requests_as_grpc() {
    let (_, outcomes) = attach(grpc(), body([Step::Data("a")]));
    assert_eq!(outcomes.try_recv(), Ok(Some(Outcome::SUCCESS)));
    for (status, expected) in [
        (404, Outcome::SUCCESS),
        (415, Outcome::SUCCESS),
        (502, Outcome::FAILURE),
    ] {
        let response = Response::builder()
            .status(status)
            .body(Script::new([]))
            .unwrap();
        let (_, outcomes) = attach::<_, _, Infallible>(grpc(), Ok(response));
        assert_eq!(outcomes.try_recv(), Ok(Some(expected)), "{status}");
    }
}

#[test]
fn a_classification_at_the_head_keeps_the_response_type() {
    let (response, outcomes) = attach::<_, u8, BoxError>(AnyErr, Ok(7));
    let seven: u8 = response.unwrap();
    assert_eq!(
        (seven, outcomes.try_recv()),
        (7, Ok(Some(Outcome::SUCCESS)))
    );
    let (_, outcomes) = attach::<_, u8, BoxError>(AnyErr, Err("reset".into()));
    assert_eq!(outcomes.try_recv(), Ok(Some(Outcome::FAILURE)));
}

#[tokio::test]
async fn a_refusals_text_is_a_body_of_known_length() {
    let body = RespondBody::<Script>::refusal("no");
    assert_eq!(body.size_hint().exact(), Some(2));
    assert_eq!(body.collect().await.unwrap().to_bytes(), "no");
    let body = RespondBody::<Script>::refusal("");
    assert!(body.is_end_stream());
    assert_eq!(body.size_hint().exact(), Some(0));
}

#[test]
fn bodies_are_send_and_unpin_as_their_inner_ones_are() {
    fn check<T: Send + Sync + Unpin>() {}
    check::<tower_outcome::body::GuardedBody<String, Judge<AutoClassifier, Recorder>>>();
    check::<RespondBody<String>>();
}

#[tokio::test]
async fn a_broken_upload_is_the_clients_fault_in_the_error_chain_of_an_http_client() {
    let mut body = ClientBody::new(Script::new([Step::Data("a"), Step::Break]));
    body.frame().await.unwrap().unwrap();
    let error: BoxError = body.frame().await.unwrap().unwrap_err().into();
    let refusal = Refusal::find(&*error).unwrap();
    assert_eq!(
        (refusal.class(), refusal.code()),
        (Class::BadRequest, "request-body-broke-off")
    );
    let (_, outcomes) = attach::<_, Response<Script>, BoxError>(http(), Err(error));
    assert_eq!(outcomes.try_recv(), Ok(Some(Outcome::IGNORE)));
}

/// Panics on its first poll.
struct Panics;

impl Body for Panics {
    type Data = bytes::Bytes;
    type Error = Broken;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<bytes::Bytes>, Broken>>> {
        panic!("the body's")
    }
}

#[tokio::test]
async fn a_body_that_panics_is_a_failure() {
    let (response, outcomes) = attach::<_, _, Infallible>(http(), Ok(Response::new(Panics)));
    let body = response.unwrap().into_body();
    let reader = tokio::spawn(async move { body.collect().await.map(drop) });
    assert!(reader.await.unwrap_err().is_panic());
    assert_eq!(outcomes.try_recv(), Ok(Some(Outcome::FAILURE)));
}

#[tokio::test]
async fn a_body_dropped_by_another_panic_is_cancelled() {
    let (response, outcomes) = attach(http(), body([Step::Data("a"), Step::Hang]));
    let mut body = response.unwrap().into_body();
    let reader = tokio::spawn(async move {
        body.frame().await.unwrap().unwrap();
        panic!("the reader's")
    });
    assert!(reader.await.unwrap_err().is_panic());
    assert_eq!(outcomes.try_recv(), Ok(None));
}
