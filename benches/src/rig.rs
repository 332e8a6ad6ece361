//! A loopback listener, a runtime and an end.

use std::{io, net::Ipv4Addr};

use tokio::{
    net::{TcpListener, TcpStream},
    runtime::{Builder, Runtime},
    select,
    signal::unix::{SignalKind, signal},
};

/// A multi-thread runtime of `TOKIO_WORKER_THREADS` workers, two by default.
///
/// One worker is for instruction counts, which repeat better without work being stolen.
///
/// # Errors
///
/// The operating system's, when it starts no thread.
pub fn runtime() -> io::Result<Runtime> {
    let mut builder = Builder::new_multi_thread();
    if std::env::var_os("TOKIO_WORKER_THREADS").is_none() {
        builder.worker_threads(2);
    }
    builder.enable_all().build()
}

/// Serves every connection to a loopback port of the system's choice, which it prints, until SIGTERM.
///
/// # Errors
///
/// The operating system's; a benchmark has no use for a listener that limps.
pub async fn serve<F>(mut connection: impl FnMut(TcpStream) -> F) -> io::Result<()>
where
    F: Future<Output = ()> + Send + 'static,
{
    let mut end = signal(SignalKind::terminate())?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    println!("listening on {}", listener.local_addr()?);
    loop {
        select! {
            accepted = listener.accept() => {
                let (stream, _) = accepted?;
                stream.set_nodelay(true)?;
                tokio::spawn(connection(stream));
            }
            _ = end.recv() => return Ok(()),
        }
    }
}
