//! A store on a separate host, and the client by which keepers on other hosts reach it.
//!
//! Datagrams carry numbers; what the numbers stand for lies in a shared table, so nothing needs a wire format. Loss,
//! delay, reordering and partitions are the simulated network's, repetition and late answers the server's.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    rc::Rc,
    sync::{Arc, Mutex},
    time::Duration,
};

use fastrand::Rng;
use tokio::time::{Instant, sleep, timeout_at};
use tower_lease::{
    Acquired, Capabilities, Claim, Fault, FencingToken, Grant, LeaseKey, LeaseStore, MemoryStore,
    Record, Revision, StoreError, Watch, WatchEvent, fencing,
};
use turmoil::net::UdpSocket;

/// What is on its way, by number.
#[derive(Default)]
pub(crate) struct Post {
    requests: HashMap<u64, Request>,
    answers: HashMap<u64, Answer>,
    numbers: u64,
    acquires: u64,
}

/// How bad the server is.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Weather {
    /// Answers to requests come up to that much later, by chance.
    pub(crate) late_by: Duration,
    /// How many in a thousand are carried out twice.
    pub(crate) repeated: u32,
    /// How many acquires in a thousand are carried out and not answered.
    pub(crate) unanswered_acquires: u32,
}

/// The client.
#[derive(Clone)]
pub(crate) struct RemoteStore {
    post: Arc<Mutex<Post>>,
    watches: bool,
}

pub(crate) struct RemoteWatch {
    store: RemoteStore,
    key: LeaseKey,
    from: Revision,
    socket: Option<(UdpSocket, u64)>,
    heard: Instant,
    last: Option<(WatchEvent, Revision)>,
}

#[derive(Clone)]
enum Request {
    Acquire(Claim),
    Renew(Claim),
    Release(Claim),
    Revoke(LeaseKey, Option<FencingToken>),
    Inspect(LeaseKey),
    Transfer(Claim, Claim),
    Watch(LeaseKey, Revision),
    Unwatch(u64),
}

#[derive(Clone)]
enum Answer {
    Acquired(Result<Acquired, Fault>),
    Renewed(Result<Duration, Fault>),
    Done(Result<(), Fault>),
    Read(Result<Option<Record>, Fault>),
    Transferred(Result<Grant, Fault>),
    Event(WatchEvent),
}

const PORT: u16 = 1;
const ANY: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);
const HEARTBEAT: Duration = Duration::from_millis(250);
/// A watch that hears nothing for that long is broken.
const SILENCE: Duration = Duration::from_secs(1);

// === impl Post ===

impl Post {
    fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    pub(crate) fn acquires(&self) -> u64 {
        self.acquires
    }
}

// === impl RemoteStore ===

impl RemoteStore {
    pub(crate) fn new(post: Arc<Mutex<Post>>, watches: bool) -> Self {
        Self { post, watches }
    }

    fn send(&self, request: Request) -> u64 {
        let mut post = self.post.lock().unwrap();
        let number = post.number();
        post.requests.insert(number, request);
        number
    }

    async fn ask(&self, request: Request) -> Result<Answer, StoreError> {
        let number = self.send(request);
        let socket = UdpSocket::bind(ANY).await.map_err(StoreError::not_sent)?;
        let message = number.to_be_bytes();
        socket
            .send_to(&message, ("store", PORT))
            .await
            .map_err(StoreError::not_sent)?;
        loop {
            let mut buffer = [0; 16];
            socket
                .recv_from(&mut buffer)
                .await
                .map_err(StoreError::unknown)?;
            let (of, answer) = numbers(buffer);
            if of == number {
                return Ok(self.post.lock().unwrap().answers[&answer].clone());
            }
        }
    }
}

fn numbers(buffer: [u8; 16]) -> (u64, u64) {
    let both = u128::from_be_bytes(buffer);
    ((both >> 64) as u64, both as u64)
}

fn told<T>(result: Result<T, Fault>) -> Result<T, StoreError> {
    result.map_err(StoreError::new)
}

fn nonsense<T>() -> Result<T, StoreError> {
    Err(StoreError::unknown("an answer of another kind"))
}

impl LeaseStore for RemoteStore {
    type Watch = RemoteWatch;
    type Fencing = fencing::Monotonic;

    fn capabilities(&self) -> Capabilities {
        Capabilities::new().with_watch(self.watches)
    }

    async fn acquire(&self, claim: &Claim) -> Result<Acquired, StoreError> {
        match self.ask(Request::Acquire(claim.clone())).await? {
            Answer::Acquired(result) => told(result),
            _ => nonsense(),
        }
    }

    async fn renew(&self, claim: &Claim) -> Result<Duration, StoreError> {
        match self.ask(Request::Renew(claim.clone())).await? {
            Answer::Renewed(result) => told(result),
            _ => nonsense(),
        }
    }

    async fn release(&self, claim: &Claim) -> Result<(), StoreError> {
        match self.ask(Request::Release(claim.clone())).await? {
            Answer::Done(result) => told(result),
            _ => nonsense(),
        }
    }

    async fn revoke(&self, key: &LeaseKey, guard: Option<&FencingToken>) -> Result<(), StoreError> {
        match self
            .ask(Request::Revoke(key.clone(), guard.cloned()))
            .await?
        {
            Answer::Done(result) => told(result),
            _ => nonsense(),
        }
    }

    async fn inspect(&self, key: &LeaseKey) -> Result<Option<Record>, StoreError> {
        match self.ask(Request::Inspect(key.clone())).await? {
            Answer::Read(result) => told(result),
            _ => nonsense(),
        }
    }

    fn watch(&self, key: &LeaseKey, from: Revision) -> RemoteWatch {
        let (store, key) = (self.clone(), key.clone());
        RemoteWatch {
            store,
            key,
            from,
            socket: None,
            heard: Instant::now(),
            last: None,
        }
    }

    async fn transfer(&self, from: &Claim, to: &Claim) -> Result<Grant, StoreError> {
        match self
            .ask(Request::Transfer(from.clone(), to.clone()))
            .await?
        {
            Answer::Transferred(result) => told(result),
            _ => nonsense(),
        }
    }
}

// === impl RemoteWatch ===

impl RemoteWatch {
    async fn subscribed(&mut self) -> Result<u64, StoreError> {
        if self.socket.is_none() {
            let socket = UdpSocket::bind(ANY).await.map_err(StoreError::not_sent)?;
            let number = self.store.send(Request::Watch(self.key.clone(), self.from));
            socket
                .try_send_to(&number.to_be_bytes(), (turmoil::lookup("store"), PORT))
                .map_err(StoreError::not_sent)?;
            self.heard = Instant::now();
            self.socket = Some((socket, number));
        }
        Ok(self.socket.as_ref().map_or(0, |(_, number)| *number))
    }
}

impl Watch for RemoteWatch {
    async fn next(&mut self) -> Result<WatchEvent, StoreError> {
        let number = self.subscribed().await?;
        loop {
            let Some((socket, _)) = &self.socket else {
                return nonsense();
            };
            let mut buffer = [0; 16];
            let received = timeout_at(self.heard + SILENCE, socket.recv_from(&mut buffer)).await;
            received
                .map_err(|_| StoreError::unknown("silence"))?
                .map_err(StoreError::unknown)?;
            let (of, answer) = numbers(buffer);
            if of != number {
                continue;
            }
            self.heard = Instant::now();
            let Answer::Event(event) = self.store.post.lock().unwrap().answers[&answer].clone()
            else {
                return nonsense();
            };
            // A heartbeat repeats the state; what was overtaken is old.
            let at = revision_of(&event);
            if self.last.as_ref().is_none_or(|(_, seen)| at > *seen) {
                self.last = Some((event.clone(), at));
                return Ok(event);
            }
        }
    }
}

impl Drop for RemoteWatch {
    fn drop(&mut self) {
        // At the end of a world there is no network any more.
        if let Some((socket, number)) = self.socket.as_ref().filter(|_| turmoil::in_simulation()) {
            let number = self.store.send(Request::Unwatch(*number));
            _ = socket.try_send_to(&number.to_be_bytes(), (turmoil::lookup("store"), PORT));
        }
    }
}

fn revision_of(event: &WatchEvent) -> Revision {
    match event {
        WatchEvent::Held(_, at) | WatchEvent::Vacant(_, at) => *at,
        _ => Revision::START,
    }
}

// === the server ===

pub(crate) async fn serve(
    store: MemoryStore,
    post: Arc<Mutex<Post>>,
    weather: Arc<Mutex<Weather>>,
    seed: u64,
) -> turmoil::Result {
    let socket = Rc::new(UdpSocket::bind((IpAddr::V4(Ipv4Addr::UNSPECIFIED), PORT)).await?);
    let rng = Rc::new(Mutex::new(Rng::with_seed(seed)));
    let mut watches = HashMap::new();
    loop {
        let mut buffer = [0; 8];
        let (_, from) = socket.recv_from(&mut buffer).await?;
        let number = u64::from_be_bytes(buffer);
        let request = post.lock().unwrap().requests[&number].clone();
        let (store, post, socket) = (store.clone(), post.clone(), socket.clone());
        match request {
            Request::Watch(key, since) => {
                let watch = store.watch(&key, since);
                watches.insert(
                    number,
                    tokio::task::spawn_local(push(watch, post, socket, number, from)),
                );
            }
            Request::Unwatch(which) => drop(watches.remove(&which).map(|task| task.abort())),
            request => {
                let (weather, mut draw) = (*weather.lock().unwrap(), rng.lock().unwrap());
                let late = weather.late_by.mul_f64(draw.f64());
                let times = 1 + usize::from(draw.u32(0..1000) < weather.repeated);
                let is_acquire = matches!(request, Request::Acquire(_));
                let silent = is_acquire && draw.u32(0..1000) < weather.unanswered_acquires;
                post.lock().unwrap().acquires += u64::from(is_acquire);
                tokio::task::spawn_local(async move {
                    for _ in 0..times {
                        let answer = carry_out(&store, request.clone()).await;
                        sleep(late).await;
                        if !silent {
                            send(&socket, &post, number, answer, from);
                        }
                    }
                });
            }
        }
    }
}

async fn push(
    mut watch: tower_lease::MemoryWatch,
    post: Arc<Mutex<Post>>,
    socket: Rc<UdpSocket>,
    number: u64,
    to: SocketAddr,
) {
    let mut state: Option<WatchEvent> = None;
    loop {
        tokio::select! {
            biased;
            event = watch.next() => state = Some(event.expect("the memory's watch does not break")),
            () = sleep(HEARTBEAT) => {}
        }
        if let Some(state) = &state {
            send(&socket, &post, number, Answer::Event(state.clone()), to);
        }
    }
}

fn send(socket: &UdpSocket, post: &Mutex<Post>, number: u64, answer: Answer, to: SocketAddr) {
    let mut post = post.lock().unwrap();
    let of = post.number();
    post.answers.insert(of, answer);
    let message = (u128::from(number) << 64 | u128::from(of)).to_be_bytes();
    _ = socket.try_send_to(&message, to);
}

async fn carry_out(store: &MemoryStore, request: Request) -> Answer {
    fn fault<T>(result: Result<T, StoreError>) -> Result<T, Fault> {
        result.map_err(|error| error.fault())
    }
    match request {
        Request::Acquire(claim) => Answer::Acquired(fault(store.acquire(&claim).await)),
        Request::Renew(claim) => Answer::Renewed(fault(store.renew(&claim).await)),
        Request::Release(claim) => Answer::Done(fault(store.release(&claim).await)),
        Request::Revoke(key, guard) => {
            Answer::Done(fault(store.revoke(&key, guard.as_ref()).await))
        }
        Request::Inspect(key) => Answer::Read(fault(store.inspect(&key).await)),
        Request::Transfer(from, to) => Answer::Transferred(fault(store.transfer(&from, &to).await)),
        Request::Watch(..) | Request::Unwatch(_) => Answer::Done(Err(Fault::Refused)),
    }
}
