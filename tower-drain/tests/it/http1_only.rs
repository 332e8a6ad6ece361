//! Builds without the feature `http2`: `cargo test -p tower-drain`.

use crate::support::{GET, app, quick, serve, soon};

const PREFACE: &str = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

#[tokio::test]
async fn a_connection_that_begins_http2_is_closed_and_http1_is_served() {
    let drain = quick();
    let server = serve(&drain, app()).await;
    let mut http2 = server.client().await;
    http2.send(PREFACE).await;
    http2.send("\0\0\0\x04\0\0\0\0\0").await;
    assert!(http2.is_closed().await);
    assert!(server.client().await.ask(GET).await.ok());
    drain.shutdown();
    assert!(soon(server.report()).await.is_clean());
}
