//! The server behind the measured proxies: HTTP/1.1 with keep-alive on a loopback port of the system's choice.
//!
//! Any request is answered with 200 and a few dozen bytes, after its body was read; `/bytes/N` streams `N` bytes.
#![forbid(unsafe_code)]

use std::{convert::Infallible, error::Error, io};

use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt, Either, Full, StreamBody};
use hyper::{
    Request, Response,
    body::{Body, Frame, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tower_benches::rig;

fn main() -> io::Result<()> {
    rig::runtime()?.block_on(rig::serve(async |stream| {
        // A client that goes away in the middle is no business of a backend's.
        let _ = http1::Builder::new()
            .serve_connection(TokioIo::new(stream), service_fn(answer))
            .await;
    }))
}

type BoxError = Box<dyn Error + Send + Sync>;

async fn answer(
    request: Request<Incoming>,
) -> Result<Response<impl Body<Data = Bytes, Error = BoxError>>, BoxError> {
    let bytes = request
        .uri()
        .path()
        .strip_prefix("/bytes/")
        .and_then(|n| n.parse().ok());
    let mut body = request.into_body();
    while let Some(frame) = body.frame().await {
        frame?;
    }
    Ok(Response::new(match bytes {
        Some(n) => Either::Right(StreamBody::new(zeros(n))),
        None => Either::Left(Full::new(Bytes::from_static(HELLO))),
    }))
}

/// `n` bytes, a chunk at a time.
fn zeros(n: u64) -> impl futures_util::Stream<Item = Result<Frame<Bytes>, Infallible>> {
    stream::iter((0..n.div_ceil(CHUNK)).map(move |chunk| {
        let length = CHUNK.min(n - chunk * CHUNK);
        Ok(Frame::data(Bytes::from_static(&ZEROS[..length as usize])))
    }))
}

const HELLO: &[u8] = b"hello from the backend behind the proxy\n";
const CHUNK: u64 = 64 * 1024;
static ZEROS: [u8; CHUNK as usize] = [0; CHUNK as usize];
