//! Out of descriptors, in a separate process.

use std::fs::File;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{net::TcpStream, time::sleep};

use crate::support::*;

#[tokio::test]
async fn queued_connections_are_closed_while_there_are_no_descriptors_and_later_ones_are_served() {
    if !testkit::alone(
        "descriptors::queued_connections_are_closed_while_there_are_no_descriptors_and_later_ones_are_served",
    ) {
        return;
    }
    let drain = quick();
    let (listener, addr) = listen().await;
    let server = Running {
        addr,
        task: tokio::spawn(drain.serve(listener, app())),
    };
    assert!(server.client().await.ask(GET).await.ok());
    guests(&drain, 0).await;

    // The runtime has one thread, which is this one's until it waits: the server has not accepted it yet.
    let waiting = std::net::TcpStream::connect(addr).unwrap();
    waiting.set_nonblocking(true).unwrap();
    let mut waiting = Client(TcpStream::from_std(waiting).unwrap());
    let hoard = hoard();
    assert!(
        waiting.is_closed().await,
        "turned away, instead of hanging in the queue"
    );
    sleep(ms(100)).await;
    drop(hoard);
    let mut late = server.client().await;
    assert!(late.ask(GET).await.ok());
    drop((waiting, late));
    drain.shutdown();
    assert!(server.report().await.is_clean());
}

/// Takes all descriptors.
fn hoard() -> Vec<File> {
    let limit = Rlimit {
        current: Some(256),
        maximum: getrlimit(Resource::Nofile).maximum,
    };
    setrlimit(Resource::Nofile, limit).unwrap();
    std::iter::from_fn(|| File::open("/dev/null").ok()).collect()
}
