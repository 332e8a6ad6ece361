//! Clients that read slowly, on sockets with their kernel buffers.

use std::{convert::Infallible, io, time::Duration};

use axum::{Router, body::Body, body::Bytes, routing::get};
use tokio::{
    io::AsyncReadExt,
    net::{TcpListener, TcpStream},
    time::{Instant, sleep, sleep_until},
};
use tower_drain::{Addr, Drain, Http, Listen, Server};

use crate::support::*;

/// More than two kernels hold.
const LENGTH: usize = 8_000_000;
const STALL: Duration = Duration::from_secs(5);

async fn download() -> Body {
    let pieces = (0..LENGTH / 16_000).map(|_| Ok::<_, Infallible>(Bytes::from(vec![b'x'; 16_000])));
    Body::from_stream(futures_util::stream::iter(pieces))
}

/// A custom listener that sets no options: the kernel takes megabytes at once, and then nothing for minutes.
struct Raw(TcpListener);

impl Listen for Raw {
    type Io = TcpStream;

    async fn accept(&mut self) -> io::Result<(TcpStream, Addr)> {
        let (stream, peer) = self.0.accept().await?;
        Ok((stream, Addr::Ip(peer)))
    }

    fn local_addr(&self) -> io::Result<Addr> {
        self.0.local_addr().map(Addr::Ip)
    }
}

fn serve_downloads<L: Listen<Io = TcpStream>>(drain: &Drain, listener: L) {
    let http = Http::new(drain, Router::new().route("/", get(download))).write_stall(STALL);
    tokio::spawn(Server::new(drain, listener).run(http));
}

/// Reads at this rate for a while, and then the rest. How many bytes there were.
async fn read_at(mut client: Client, rate: usize, time: Duration) -> usize {
    client
        .send("GET / HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n")
        .await;
    let (start, mut read) = (Instant::now(), 0);
    let mut bytes = vec![0; rate / 10];
    while start.elapsed() < time {
        sleep_until(start + Duration::from_secs_f64(read as f64 / rate as f64)).await;
        match client.0.read(&mut bytes).await {
            Ok(0) | Err(_) => return read,
            Ok(more) => read += more,
        }
    }
    let mut rest = Vec::new();
    let _ = client.0.read_to_end(&mut rest).await;
    read + rest.len()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_reads_slowly_gets_its_whole_response() {
    let drain = Drain::new();
    let ((ours, ours_at), (raw, raw_at)) = (listen().await, listen().await);
    serve_downloads(&drain, ours);
    serve_downloads(&drain, Raw(raw));
    let mut clients = Vec::new();
    for addr in [ours_at, raw_at] {
        for rate in [40_000, 80_000] {
            let client = Client(TcpStream::connect(addr).await.unwrap());
            let reading = tokio::spawn(read_at(client, rate, 3 * STALL));
            clients.push((addr == ours_at, rate, reading));
        }
    }
    for (ours, rate, reading) in clients {
        let read = reading.await.unwrap();
        assert!(read > LENGTH, "{read} bytes: {ours} {rate}");
    }
}

#[tokio::test]
async fn a_client_that_reads_nothing_is_cut() {
    let drain = Drain::new();
    let ((ours, ours_at), (raw, raw_at)) = (listen().await, listen().await);
    serve_downloads(&drain, ours);
    serve_downloads(&drain, Raw(raw));
    let mut clients = Vec::new();
    for addr in [ours_at, raw_at] {
        let mut client = Client(TcpStream::connect(addr).await.unwrap());
        client.send(GET).await;
        clients.push(client);
    }
    sleep(STALL - ms(500)).await;
    assert_eq!(drain.snapshot().guests, 2);
    sleep(ms(2500)).await;
    assert_eq!(drain.snapshot().guests, 0);
}
