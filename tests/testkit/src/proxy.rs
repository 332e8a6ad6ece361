use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{mpsc, watch},
    task::AbortHandle,
    time::{Instant, sleep_until},
};

/// A bad network on loopback: a TCP proxy whose ways can be cut and slowed, and whose connections can be dropped.
///
/// A cut holds what is sent and delivers it when it is healed, as TCP does when segments are lost and sent again; what
/// must never arrive is held, and then its connection dropped. Ends with its value.
#[derive(Debug)]
pub struct Proxy {
    addr: SocketAddr,
    weather: watch::Sender<Weather>,
    accepted: Arc<AtomicUsize>,
    accepting: AbortHandle,
}

/// A direction through a [`Proxy`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// What clients send.
    ToServer,
    /// What the server sends.
    ToClient,
    /// All of it.
    Both,
}

#[derive(Clone, Copy, Debug)]
struct Weather {
    /// Where new connections lead.
    server: SocketAddr,
    cut_to_server: bool,
    cut_to_client: bool,
    delay: Duration,
    refusing: bool,
    /// Connections of an earlier one are dead.
    generation: u64,
}

/// At most this much is under way per connection and direction; then the sender has to wait.
const CHUNK: usize = 16 * 1024;
const CHUNKS: usize = 64;

// === impl Proxy ===

impl Proxy {
    /// A proxy before `server`, at an address the system chooses.
    ///
    /// # Errors
    ///
    /// No port could be had.
    pub async fn start(server: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let addr = listener.local_addr()?;
        let (weather, told) = watch::channel(Weather::before(server));
        let accepted = Arc::<AtomicUsize>::default();
        let accepting = tokio::spawn(accept(listener, told, accepted.clone())).abort_handle();
        Ok(Self {
            addr,
            weather,
            accepted,
            accepting,
        })
    }

    /// Where clients connect.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Nothing goes that way from now on, on connections that are open and on new ones.
    pub fn cut(&self, way: Way) {
        self.weather.send_modify(|weather| weather.set(way, true));
    }

    /// What was held goes on, in its order.
    pub fn heal(&self) {
        self.weather
            .send_modify(|weather| weather.set(Way::Both, false));
    }

    /// Everything takes that much longer, each way.
    pub fn delay(&self, delay: Duration) {
        self.weather.send_modify(|weather| weather.delay = delay);
    }

    /// Closes the connections that are open, with what they held.
    pub fn drop_connections(&self) {
        self.weather.send_modify(|weather| weather.generation += 1);
    }

    /// How many connections clients have opened so far.
    #[must_use]
    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }

    /// New connections lead to that server; those that are open stay where they are.
    pub fn lead_to(&self, server: SocketAddr) {
        self.weather.send_modify(|weather| weather.server = server);
    }

    /// Whether new connections are closed as soon as they are open.
    pub fn refuse(&self, refusing: bool) {
        self.weather
            .send_modify(|weather| weather.refusing = refusing);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
        self.drop_connections();
    }
}

// === impl Weather ===

impl Weather {
    /// A good one.
    const fn before(server: SocketAddr) -> Self {
        Self {
            server,
            cut_to_server: false,
            cut_to_client: false,
            delay: Duration::ZERO,
            refusing: false,
            generation: 0,
        }
    }

    fn set(&mut self, way: Way, cut: bool) {
        if way != Way::ToClient {
            self.cut_to_server = cut;
        }
        if way != Way::ToServer {
            self.cut_to_client = cut;
        }
    }

    fn is_cut(&self, way: Way) -> bool {
        if way == Way::ToServer {
            self.cut_to_server
        } else {
            self.cut_to_client
        }
    }
}

async fn accept(
    listener: TcpListener,
    weather: watch::Receiver<Weather>,
    accepted: Arc<AtomicUsize>,
) {
    while let Ok((client, _)) = listener.accept().await {
        accepted.fetch_add(1, Ordering::Relaxed);
        if !weather.borrow().refusing {
            tokio::spawn(carry(client, weather.clone()));
        }
    }
}

/// One connection's whole life.
async fn carry(client: TcpStream, weather: watch::Receiver<Weather>) {
    let Weather {
        server,
        generation: born,
        ..
    } = *weather.borrow();
    let Ok(server) = TcpStream::connect(server).await else {
        return;
    };
    let ((from_client, to_client), (from_server, to_server)) =
        (client.into_split(), server.into_split());
    let mut end = weather.clone();
    tokio::select! {
        biased;
        // First: what was held is lost, even if it would be let go in the same moment.
        _ = end.wait_for(|weather| weather.generation != born) => {}
        () = forward(from_client, to_server, Way::ToServer, &weather) => {}
        () = forward(from_server, to_client, Way::ToClient, &weather) => {}
    }
}

/// Until one side ends. What comes is stamped, so that a delay does not add up.
async fn forward(
    from: OwnedReadHalf,
    to: OwnedWriteHalf,
    way: Way,
    weather: &watch::Receiver<Weather>,
) {
    let (sender, receiver) = mpsc::channel(CHUNKS);
    tokio::join!(
        read(from, sender),
        write(to, receiver, way, weather.clone())
    );
}

async fn read(mut from: OwnedReadHalf, chunks: mpsc::Sender<(Instant, Vec<u8>)>) {
    loop {
        let mut chunk = vec![0; CHUNK];
        match from.read(&mut chunk).await {
            Ok(0) | Err(_) => return,
            Ok(length) => chunk.truncate(length),
        }
        if chunks.send((Instant::now(), chunk)).await.is_err() {
            return;
        }
    }
}

async fn write(
    mut to: OwnedWriteHalf,
    mut chunks: mpsc::Receiver<(Instant, Vec<u8>)>,
    way: Way,
    mut weather: watch::Receiver<Weather>,
) {
    while let Some((came, chunk)) = chunks.recv().await {
        let delay = weather.borrow().delay;
        sleep_until(came + delay).await;
        if weather
            .wait_for(|weather| !weather.is_cut(way))
            .await
            .is_err()
            || to.write_all(&chunk).await.is_err()
        {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    const SOON: Duration = Duration::from_secs(10);
    const QUIET: Duration = Duration::from_millis(50);

    /// A proxy before a server that sends back what it gets.
    async fn echo() -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut from, mut to) = stream.split();
                    let _ = tokio::io::copy(&mut from, &mut to).await;
                });
            }
        });
        Proxy::start(addr).await.unwrap()
    }

    async fn hears(stream: &mut TcpStream, within: Duration) -> Option<u8> {
        timeout(within, stream.read_u8()).await.ok()?.ok()
    }

    #[tokio::test]
    async fn a_cut_holds_each_way_and_a_heal_delivers() {
        let proxy = echo().await;
        let mut stream = TcpStream::connect(proxy.addr()).await.unwrap();
        for (byte, way) in [(1, Way::Both), (2, Way::ToServer), (3, Way::ToClient)] {
            proxy.cut(way);
            stream.write_u8(byte).await.unwrap();
            assert_eq!(hears(&mut stream, QUIET).await, None, "{way:?}");
            proxy.heal();
            assert_eq!(hears(&mut stream, SOON).await, Some(byte), "{way:?}");
        }
    }

    #[tokio::test]
    async fn new_connections_lead_elsewhere_and_old_ones_stay() {
        let (proxy, silent) = (
            echo().await,
            TcpListener::bind("127.0.0.1:0").await.unwrap(),
        );
        let mut old = TcpStream::connect(proxy.addr()).await.unwrap();
        old.write_u8(1).await.unwrap();
        assert_eq!(hears(&mut old, SOON).await, Some(1));
        proxy.lead_to(silent.local_addr().unwrap());
        let mut new = TcpStream::connect(proxy.addr()).await.unwrap();
        let (mut there, _) = timeout(SOON, silent.accept()).await.unwrap().unwrap();
        there.write_u8(2).await.unwrap();
        assert_eq!(hears(&mut new, SOON).await, Some(2));
        old.write_u8(3).await.unwrap();
        assert_eq!(hears(&mut old, SOON).await, Some(3));
        assert_eq!(proxy.accepted(), 2);
    }

    #[tokio::test]
    async fn a_delay_does_not_add_up() {
        let proxy = echo().await;
        proxy.delay(Duration::from_millis(200));
        let mut stream = TcpStream::connect(proxy.addr()).await.unwrap();
        let start = Instant::now();
        for byte in 0..10 {
            stream.write_u8(byte).await.unwrap();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        for byte in 0..10 {
            assert_eq!(hears(&mut stream, SOON).await, Some(byte));
        }
        assert!(
            (400..2_000).contains(&start.elapsed().as_millis()),
            "{:?}",
            start.elapsed()
        );
    }

    #[tokio::test]
    async fn dropped_connections_lose_what_they_held_and_new_ones_may_be_refused() {
        let proxy = echo().await;
        let mut stream = TcpStream::connect(proxy.addr()).await.unwrap();
        proxy.cut(Way::ToClient);
        stream.write_u8(7).await.unwrap();
        assert_eq!(hears(&mut stream, QUIET).await, None);
        proxy.drop_connections();
        proxy.heal();
        assert_eq!(
            timeout(SOON, stream.read(&mut [0]))
                .await
                .unwrap()
                .unwrap_or(0),
            0,
            "closed, and nothing came"
        );
        proxy.refuse(true);
        let mut refused = TcpStream::connect(proxy.addr()).await.unwrap();
        assert_eq!(
            timeout(SOON, refused.read(&mut [0]))
                .await
                .unwrap()
                .unwrap_or(0),
            0
        );
    }
}
