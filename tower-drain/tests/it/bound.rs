//! A `BoundListener` closes without resetting connections; a listener that is just closed resets those in its queue.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    os::fd::AsFd,
    time::Duration,
};

use tokio::{io::AsyncReadExt, net::TcpListener, task::spawn_blocking, time::sleep};
use tower_drain::{Drain, Listen, ListenerConfig, Phase, Server};

use crate::support::{GET, app, defer_accept, ms, soon};

const LOOPBACKS: [&str; 2] = ["127.0.0.1:0", "[::1]:0"];

fn addr(listener: &impl Listen) -> SocketAddr {
    Listen::local_addr(listener).unwrap().ip().unwrap()
}

/// Whether the handshake completes while the client waits, shorter than it takes to send the SYN again.
fn connects(addr: SocketAddr) -> io::Result<TcpStream> {
    TcpStream::connect_timeout(&addr, ms(300))
}

#[tokio::test]
async fn a_client_that_connects_after_closing_began_is_not_connected() {
    for loopback in LOOPBACKS {
        let mut listener = ListenerConfig::new()
            .bind(loopback.parse().unwrap())
            .unwrap();
        let early = connects(addr(&listener)).unwrap();
        listener.begin_close();
        assert_eq!(
            connects(addr(&listener)).unwrap_err().kind(),
            io::ErrorKind::TimedOut
        );
        let (_, peer) = listener
            .try_accept()
            .unwrap()
            .expect("an earlier connection is in the queue");
        assert_eq!(peer.ip(), early.local_addr().ok());
        assert!(listener.try_accept().unwrap().is_none());
    }
}

#[tokio::test]
async fn a_listener_that_is_just_closed_resets_connected_clients() {
    let mut listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = addr(&listener);
    listener.begin_close();
    assert!(listener.try_accept().unwrap().is_none(), "the last look");
    let mut client = connects(addr).unwrap();
    drop(listener);
    let lost = client
        .write_all(GET.as_bytes())
        .and_then(|()| client.read(&mut [0]));
    assert_eq!(lost.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn an_address_for_both_families_rejects_both() {
    let mut listener = ListenerConfig::new()
        .bind("[::]:0".parse().unwrap())
        .unwrap();
    let port = addr(&listener).port();
    let ipv4 = SocketAddr::from(([127, 0, 0, 1], port));
    drop(connects(ipv4).expect("as with any listener, IPv6 takes IPv4 too"));
    listener.begin_close();
    assert_eq!(connects(ipv4).unwrap_err().kind(), io::ErrorKind::TimedOut);
    let ipv6 = SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, port));
    assert_eq!(connects(ipv6).unwrap_err().kind(), io::ErrorKind::TimedOut);
}

#[tokio::test]
async fn a_handshake_under_way_completes() {
    for loopback in LOOPBACKS {
        let mut listener = ListenerConfig::new()
            .bind(loopback.parse().unwrap())
            .unwrap();
        let target = addr(&listener);
        defer_accept(&listener.as_fd());
        let mut half = connects(target).unwrap();
        sleep(ms(50)).await;
        assert!(listener.try_accept().unwrap().is_none(), "not there yet");
        listener.begin_close();
        half.write_all(b"hello").unwrap();
        let (mut stream, peer) = soon(listener.accept()).await.unwrap();
        assert_eq!(peer.ip(), half.local_addr().ok());
        // Accepted from the socket that drops SYNs, and it must not inherit that.
        let mut heard = [0; 5];
        soon(stream.read_exact(&mut heard)).await.unwrap();
        for _ in 0..3 {
            half.write_all(b"again").unwrap();
            soon(stream.read_exact(&mut heard)).await.unwrap();
            assert_eq!(&heard, b"again");
        }
        drop(half);
        assert_eq!(soon(stream.read(&mut heard)).await.unwrap(), 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_client_that_was_connected_is_reset_by_the_end_of_a_server() {
    for _ in 0..10 {
        let drain = Drain::builder()
            .announce(Duration::ZERO)
            .close(Duration::from_secs(10))
            .build();
        let server = Server::bind(
            "127.0.0.1:0".parse().unwrap(),
            ListenerConfig::new().drain(&drain),
        )
        .unwrap();
        let addr = server.local_addr().unwrap().ip().unwrap();
        let ended = tokio::spawn(server.serve(app()));
        let clients: Vec<_> = (0..4)
            .map(|_| spawn_blocking(move || ask_until_refused(addr)))
            .collect();
        sleep(ms(100)).await;
        drain.begin_drain();
        for client in clients {
            assert!(soon(client).await.unwrap() > 0);
        }
        assert!(soon(ended).await.unwrap().unwrap().is_clean());
        assert_eq!(drain.phase(), Phase::Done);
    }
}

/// Returns the number of responses.
fn ask_until_refused(addr: SocketAddr) -> u32 {
    let mut answered = 0;
    loop {
        let mut stream = match TcpStream::connect_timeout(&addr, Duration::from_secs(5)) {
            Ok(stream) => stream,
            Err(error) => {
                assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused, "{error}");
                return answered;
            }
        };
        stream
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        let asked = b"GET / HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n";
        let mut answer = String::new();
        stream
            .write_all(asked)
            .and_then(|()| stream.read_to_string(&mut answer))
            .expect("a connected client gets a response");
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        answered += 1;
    }
}
