//! A client, two replicas and the registry from which the client gets them, disconnected from each other in every
//! combination, and then at random. Simulated hosts, time and network; the seed of a failed run is printed.
//!
//! Replicas renew their registration; the registry removes a replica without a renewal for two seconds. The client follows
//! the registry through a cache and balances over the known endpoints.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    io,
    net::IpAddr,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use futures_util::{StreamExt, stream, stream::BoxStream};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    sync::watch,
    time::{Instant, sleep, timeout},
};
use tower::{BoxError, Service, ServiceExt};
use tower_outcome::{Refusal, Unsent};
use tower_resolve::{
    Balance, CachedResolver, Endpoint, EndpointId, Generation, Resolve, SourceId, Topology, Update,
    policy::RoundRobin,
};
use turmoil::{
    Builder,
    net::{TcpListener, TcpStream},
};

/// The links that can be cut.
const LINES: [(&str, &str); 5] = [
    ("client", "registry"),
    ("client", "one"),
    ("client", "two"),
    ("registry", "one"),
    ("registry", "two"),
];
const REPLICAS: [&str; 2] = ["one", "two"];
const REGISTRY: u16 = 1;
const ECHO: u16 = 2;

type Outcome = turmoil::Result;

// === the registry ===

/// Its set and the number of changes. Lines to a follower: `GENERATION ID=ADDRESS ...`.
type Set = (u64, BTreeMap<String, IpAddr>);

async fn registry() -> Outcome {
    let listener = TcpListener::bind(("0.0.0.0", REGISTRY)).await?;
    let (set, seen) = (
        watch::Sender::<Set>::new((1, BTreeMap::new())),
        Arc::<Mutex<BTreeMap<String, Instant>>>::default(),
    );
    tokio::spawn(expire(set.clone(), seen.clone()));
    loop {
        let (stream, peer) = listener.accept().await?;
        let (set, seen) = (set.clone(), seen.clone());
        tokio::spawn(async move {
            let mut stream = BufReader::new(stream);
            match line(&mut stream).await.as_deref() {
                Ok("follow") => tell(stream, set.subscribe()).await,
                Ok(id) => renew(id.to_owned(), peer.ip(), stream, &set, &seen).await,
                Err(_) => {}
            }
        });
    }
}

/// Sends each change to a follower, and twice a second a line without a change.
async fn tell(mut stream: BufReader<TcpStream>, mut set: watch::Receiver<Set>) {
    loop {
        let text = {
            let (generation, replicas) = &*set.borrow_and_update();
            let replicas: String = replicas
                .iter()
                .map(|(id, addr)| format!(" {id}={addr}"))
                .collect();
            format!("{generation}{replicas}\n")
        };
        if stream.write_all(text.as_bytes()).await.is_err() {
            return;
        }
        let _ = timeout(Duration::from_millis(500), set.changed()).await;
    }
}

async fn renew(
    id: String,
    addr: IpAddr,
    mut stream: BufReader<TcpStream>,
    set: &watch::Sender<Set>,
    seen: &Mutex<BTreeMap<String, Instant>>,
) {
    loop {
        seen.lock().unwrap().insert(id.clone(), Instant::now());
        set.send_if_modified(|(generation, replicas)| {
            let is_news = replicas.insert(id.clone(), addr).is_none();
            *generation += u64::from(is_news);
            is_news
        });
        if stream.write_all(b"ok\n").await.is_err() || line(&mut stream).await.is_err() {
            return;
        }
    }
}

async fn expire(set: watch::Sender<Set>, seen: Arc<Mutex<BTreeMap<String, Instant>>>) {
    loop {
        sleep(Duration::from_millis(100)).await;
        set.send_if_modified(|(generation, replicas)| {
            let seen = seen.lock().unwrap();
            let before = replicas.len();
            replicas.retain(|id, _| seen[id].elapsed() < Duration::from_secs(2));
            *generation += u64::from(before != replicas.len());
            before != replicas.len()
        });
    }
}

// === a replica ===

async fn replica(id: &'static str) -> Outcome {
    tokio::spawn(async move {
        loop {
            let _ = register(id).await;
            sleep(Duration::from_millis(200)).await;
        }
    });
    let listener = TcpListener::bind(("0.0.0.0", ECHO)).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        tokio::spawn(async move {
            let mut stream = BufReader::new(stream);
            let text = line(&mut stream).await?;
            stream
                .write_all(format!("{id} {text}\n").as_bytes())
                .await?;
            line(&mut stream).await.map(drop)
        });
    }
}

async fn register(id: &str) -> io::Result<()> {
    let mut stream = BufReader::new(connect(turmoil::lookup("registry"), REGISTRY).await?);
    loop {
        stream.write_all(format!("{id}\n").as_bytes()).await?;
        line(&mut stream).await?;
        sleep(Duration::from_millis(300)).await;
    }
}

// === the client's side of both ===

async fn connect(host: IpAddr, port: u16) -> io::Result<TcpStream> {
    timeout(Duration::from_millis(500), TcpStream::connect((host, port))).await?
}

/// One line, in bounded time, because a cut link gives no error.
async fn line(stream: &mut BufReader<TcpStream>) -> io::Result<String> {
    let mut text = String::new();
    let read = timeout(Duration::from_millis(1_500), stream.read_line(&mut text)).await??;
    if read == 0 {
        Err(io::ErrorKind::UnexpectedEof.into())
    } else {
        Ok(text.trim_end().to_owned())
    }
}

/// Follows the registry.
struct FromRegistry(SourceId);

impl Resolve for FromRegistry {
    type Updates = BoxStream<'static, Update>;

    fn resolve(&self, _: &str) -> Self::Updates {
        let source = self.0;
        let lines = stream::unfold(None, move |connection| async move {
            let (update, connection) = match follow(connection).await {
                Ok((text, connection)) => (snapshot(source, &text), Some(connection)),
                Err(error) => {
                    sleep(Duration::from_millis(200)).await;
                    (Update::degraded(error), None)
                }
            };
            Some((update, connection))
        });
        lines.boxed()
    }
}

async fn follow(
    connection: Option<BufReader<TcpStream>>,
) -> io::Result<(String, BufReader<TcpStream>)> {
    let mut connection = match connection {
        Some(connection) => connection,
        None => {
            let mut connection =
                BufReader::new(connect(turmoil::lookup("registry"), REGISTRY).await?);
            connection.write_all(b"follow\n").await?;
            connection
        }
    };
    let text = line(&mut connection).await?;
    Ok((text, connection))
}

fn snapshot(source: SourceId, text: &str) -> Update {
    let mut words = text.split(' ');
    let generation = Generation::new(source, words.next().unwrap().parse().unwrap());
    let endpoint = |word: &str| {
        let (id, addr) = word.split_once('=').unwrap();
        Endpoint::new(
            EndpointId::from(id),
            (addr.parse::<IpAddr>().unwrap(), ECHO).into(),
        )
    };
    Update::Snapshot(Topology::new(generation, words.map(endpoint)))
}

/// Sends one line to a replica. What could not be sent is returned.
#[derive(Clone)]
struct Say(IpAddr);

impl Service<String> for Say {
    type Response = String;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<String, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: String) -> Self::Future {
        let host = self.0;
        Box::pin(async move {
            let mut stream = match connect(host, ECHO).await {
                Ok(stream) => BufReader::new(stream),
                Err(error) => return Err(Unsent::new(request, error).into()),
            };
            stream.write_all(format!("{request}\n").as_bytes()).await?;
            Ok(line(&mut stream).await?)
        })
    }
}

/// The client: a balance, and access to its cache.
struct Client {
    balance: Balance<Say, String, RoundRobin>,
    cached: CachedResolver<FromRegistry>,
    newest: Option<Generation>,
}

impl Client {
    fn new() -> Self {
        let cached = CachedResolver::new(FromRegistry(SourceId::unique()));
        let (balance, driver) = Balance::builder()
            .policy(RoundRobin::new())
            .build(cached.resolve("echo"), |endpoint: &Endpoint, _| {
                Say(endpoint.addr().ip())
            });
        tokio::spawn(driver);
        Self {
            balance,
            cached,
            newest: None,
        }
    }

    /// Sends one request and returns the name of the replica, or the error. Checks I5 and the time limit on every call.
    async fn ask(&mut self) -> Result<String, BoxError> {
        let began = Instant::now();
        let answer = self.balance.clone().oneshot("hello".to_owned()).await;
        assert!(
            began.elapsed() < Duration::from_secs(4),
            "an answer or an error in {:?}",
            began.elapsed()
        );
        if let Some(known) = self.cached.peek("echo") {
            let now = known.topology.generation();
            assert!(
                self.newest.is_none_or(|newest| newest <= now),
                "back from {:?} to {now:?}",
                self.newest
            );
            self.newest = Some(now);
        }
        answer.map(|text| text.split(' ').next().unwrap().to_owned())
    }

    /// Sends requests for this time, a few per second.
    async fn ask_for(&mut self, time: Duration) -> Answers {
        let (until, mut answers) = (Instant::now() + time, Answers::default());
        while Instant::now() < until {
            match self.ask().await {
                Ok(id) => _ = answers.by.insert(id),
                Err(error) if Refusal::find(&*error).is_some() => answers.refused += 1,
                Err(error) => answers.failed.push(error.to_string()),
            }
            sleep(Duration::from_millis(100)).await;
        }
        answers
    }

    fn known(&self) -> BTreeSet<String> {
        let known = self.cached.peek("echo").expect("something is known");
        known
            .topology
            .iter()
            .map(|endpoint| endpoint.id().to_string())
            .collect()
    }

    /// I5: with every link restored, both replicas are known and respond.
    async fn converges(&mut self) {
        // Registrations (1.5 s until the old connection is abandoned, 0.5 s) and then the TTL of the cache.
        let _ = self.ask_for(Duration::from_secs(8)).await;
        let answers = self.ask_for(Duration::from_secs(2)).await;
        assert_eq!(
            (answers.refused, answers.failed.len()),
            (0, 0),
            "{answers:?}"
        );
        assert_eq!((answers.by, self.known()), (both(), both()));
        assert!(self.cached.peek("echo").unwrap().degraded.is_none());
    }
}

#[derive(Debug, Default)]
struct Answers {
    by: BTreeSet<String>,
    refused: usize,
    failed: Vec<String>,
}

fn both() -> BTreeSet<String> {
    REPLICAS.map(str::to_owned).into()
}

fn simulate<F: Future<Output = Outcome> + 'static>(
    seed: u64,
    seconds: u64,
    client: impl FnOnce() -> F,
) {
    let mut sim = Builder::new()
        .simulation_duration(Duration::from_secs(seconds))
        .tick_duration(Duration::from_millis(10))
        .min_message_latency(Duration::from_millis(1))
        .max_message_latency(Duration::from_millis(30))
        .rng_seed(seed)
        .build();
    sim.host("registry", registry);
    for id in REPLICAS {
        sim.host(id, move || replica(id));
    }
    sim.client("client", client());
    let run = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| sim.run()));
    match run {
        Ok(Ok(())) => {}
        Ok(Err(error)) => panic!("seed {seed}: {error}"),
        Err(panic) => {
            eprintln!("seed {seed}");
            std::panic::resume_unwind(panic);
        }
    }
}

/// The guarantees while these links are cut, and after.
async fn cut_and_mend(cut: Vec<(&'static str, &'static str)>) -> Outcome {
    let mut client = Client::new();
    client.ask_for(Duration::from_secs(2)).await;
    let answers = client.ask_for(Duration::from_secs(1)).await;
    assert_eq!(
        (answers.by, answers.refused),
        (both(), 0),
        "all is well at first"
    );
    let is_cut = |a, b| cut.contains(&(a, b));
    cut.iter().for_each(|(a, b)| turmoil::partition(*a, *b));

    // At once: at least one of the two responds, and without the registry nothing changes.
    let answers = client.ask_for(Duration::from_secs(1)).await;
    if !is_cut("client", "one") && !is_cut("client", "two") && is_cut("client", "registry") {
        assert_eq!(
            (answers.by.len(), answers.refused, answers.failed.len()),
            (2, 0, 0),
            "{cut:?} {answers:?}"
        );
    }
    // The registrations expire (2 s after the last), and the registry reports it over the links that remain.
    client.ask_for(Duration::from_secs(4)).await;
    let known: BTreeSet<_> = REPLICAS
        .into_iter()
        .filter(|id| is_cut("client", "registry") || !is_cut("registry", id))
        .collect();
    assert_eq!(
        client.known(),
        known.iter().map(|id| (*id).to_owned()).collect(),
        "{cut:?}"
    );
    let reachable: BTreeSet<_> = known
        .iter()
        .filter(|id| !is_cut("client", id))
        .map(|id| (*id).to_owned())
        .collect();
    let answers = client.ask_for(Duration::from_secs(3)).await;
    assert_eq!(answers.by, reachable, "{cut:?} {answers:?}");
    assert!(
        answers.failed.is_empty(),
        "nothing was sent in vain: {cut:?} {answers:?}"
    );
    assert_eq!(
        answers.refused == 0,
        !reachable.is_empty(),
        "{cut:?} {answers:?}"
    );

    cut.iter().for_each(|(a, b)| turmoil::repair(*a, *b));
    client.converges().await;
    Ok(())
}

#[test]
fn every_combination_of_cut_lines() {
    for bits in 0..1_u64 << LINES.len() {
        let cut = LINES
            .into_iter()
            .enumerate()
            .filter(|(line, _)| bits >> line & 1 == 1)
            .map(|(_, line)| line)
            .collect();
        simulate(bits, 60, || cut_and_mend(cut));
    }
}

/// Links that fail at random, in one direction too, and are restored at the end.
async fn cut_at_random(seed: u64) -> Outcome {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut client = Client::new();
    client.ask_for(Duration::from_secs(3)).await;
    for _ in 0..random.usize(3..12) {
        let (a, b) = LINES[random.usize(..LINES.len())];
        match random.u8(..4) {
            0 => turmoil::partition(a, b),
            1 => turmoil::partition_oneway(a, b),
            2 => turmoil::partition_oneway(b, a),
            _ => turmoil::repair(a, b),
        }
        client
            .ask_for(Duration::from_millis(random.u64(50..3_000)))
            .await;
    }
    for (a, b) in LINES {
        turmoil::repair(a, b);
    }
    client.converges().await;
    Ok(())
}

#[test]
fn lines_that_come_and_go() {
    let first = fastrand::u64(..1 << 40);
    for seed in (0..8).chain(first..first + 4) {
        simulate(seed, 120, || cut_at_random(seed));
    }
}
