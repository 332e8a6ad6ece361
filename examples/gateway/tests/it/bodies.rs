//! Bodies stream in both directions, and one that breaks off never ends cleanly.

use std::convert::Infallible;

use crate::common::{AnyBody, Backend, Gateway, get};
use bytes::Bytes;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

const GIB: u64 = 1 << 30;
const CHUNK: usize = 64 << 10;
/// What the gateway may hold of a body on its way; far less than the body.
const FLAT: u64 = 48 << 20;

/// `total` bytes in chunks, of unknown length.
fn bytes(total: u64) -> AnyBody {
    let chunk = Bytes::from_static(&[7; CHUNK]);
    let chunks =
        (0..total / CHUNK as u64).map(move |_| Ok::<_, Infallible>(Frame::data(chunk.clone())));
    StreamBody::new(futures_util::stream::iter(chunks))
        .map_err(|never| match never {})
        .boxed()
}

async fn length<B: http_body::Body<Data = Bytes> + Unpin>(mut body: B) -> Result<u64, B::Error> {
    let mut length = 0;
    while let Some(frame) = body.frame().await {
        length += frame?.data_ref().map_or(0, |data| data.len() as u64);
    }
    Ok(length)
}

/// The most memory the process has had, in bytes. The kernel adds up counters of several threads, so a later reading may be a few
/// pages smaller than an earlier one.
fn peak(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .unwrap();
    line.trim()
        .trim_end_matches(" kB")
        .trim()
        .parse::<u64>()
        .unwrap()
        * 1024
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "moves 2 GiB over loopback: some seconds"]
async fn a_gibibyte_passes_each_way_with_flat_memory() {
    let backend = Backend::new(|request| async {
        if request.method() == "GET" {
            return Response::new(bytes(GIB));
        }
        let length = length(request.into_body()).await.unwrap();
        Response::new(crate::common::full(length.to_string()))
    })
    .await;
    let gateway = Gateway::with_backends(&[backend.address], "").await;
    gateway.get(1, "/nothing-yet").await;
    let before = peak(gateway.pid());

    let mut connection = gateway.connect(1).await;
    let download = connection.send_request(get("/")).await.unwrap();
    assert_eq!(length(download.into_body()).await.unwrap(), GIB);
    connection.ready().await.unwrap();
    let upload = Request::post("/")
        .header("host", "test")
        .body(bytes(GIB))
        .unwrap();
    let answer = connection.send_request(upload).await.unwrap();
    assert_eq!(
        answer.into_body().collect().await.unwrap().to_bytes(),
        GIB.to_string()
    );

    let grown = peak(gateway.pid()).saturating_sub(before);
    assert!(grown < FLAT, "the gateway grew by {} MiB", grown >> 20);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_reader_holds_the_backend_back_and_not_the_gateways_memory() {
    let backend = Backend::new(|_| async { Response::new(bytes(GIB)) }).await;
    let gateway = Gateway::with_backends(&[backend.address], "").await;
    let before = peak(gateway.pid());
    let mut connection = gateway.connect(1).await;
    let mut body = connection.send_request(get("/")).await.unwrap().into_body();
    for _ in 0..20 {
        body.frame().await.unwrap().unwrap();
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let grown = peak(gateway.pid()).saturating_sub(before);
    assert!(grown < FLAT, "the gateway grew by {} MiB", grown >> 20);
}

/// A backend that answers every connection with these bytes and closes it.
async fn rude(answer: &'static str) -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0; 1024];
            let _ = stream.read(&mut request).await;
            let _ = stream.write_all(answer.as_bytes()).await;
            // So that the answer is read before the end is seen.
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_breaks_off_is_not_forwarded_as_a_clean_end() {
    for answer in [
        "HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nonly this",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nonly\r\n",
    ] {
        let gateway = Gateway::with_backends(&[rude(answer).await], "").await;
        let mut connection = gateway.connect(1).await;
        let response = connection.send_request(get("/")).await.unwrap();
        assert_eq!(response.status(), 200);
        let ended = response.into_body().collect().await;
        assert!(ended.is_err(), "told as whole: {answer:?}");

        let mut connection = crate::common::connect_h2(gateway.address, 2).await;
        let request = Request::get(format!("http://{}/", gateway.address))
            .body(crate::common::empty())
            .unwrap();
        let response = connection.send_request(request).await.unwrap();
        assert!(
            response.into_body().collect().await.is_err(),
            "told as whole over HTTP/2: {answer:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_that_closes_without_an_answer_is_a_502() {
    let gateway = Gateway::with_backends(&[rude("").await], "").await;
    let answer = gateway.get(1, "/").await;
    assert_eq!(answer.status, 502);
    assert!(answer.text.contains("upstream-failed"), "{}", answer.text);
}
