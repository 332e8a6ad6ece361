//! Handoffs between two simulated processes, which share only a path.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    time::Duration,
};

use axum::{Router, routing::get};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{net::TcpStream, task::JoinHandle, time::sleep};
use tower_drain::{
    Addr, Drain, Listen, ListenerConfig, Phase, Report, Server,
    handoff::{Handoff, HandoffMode, Inheritance, Origin},
};

use crate::support::*;

/// A directory of the test's own.
struct Place(PathBuf);

impl Place {
    fn new() -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let name = format!(
            "tower-drain-handoff-{}-{}",
            std::process::id(),
            COUNT.fetch_add(1, Relaxed)
        );
        let dir = std::env::temp_dir().join(name);
        fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }

    fn path(&self) -> PathBuf {
        self.0.join("handoff")
    }

    fn handoff(&self) -> Handoff {
        Handoff::at(self.path()).probation(ms(200))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A simulated process: it responds with its name.
struct Process {
    drain: Drain,
    addr: SocketAddr,
    server: JoinHandle<std::io::Result<Report>>,
    incumbent: JoinHandle<std::io::Result<()>>,
}

fn named(name: &'static str) -> Router {
    Router::new().route("/", get(move || async move { name }))
}

const ANY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

async fn start(name: &'static str, mut inheritance: Inheritance) -> Process {
    let drain = quick();
    let listener = inheritance
        .tcp("http", ANY, &ListenerConfig::new())
        .unwrap();
    let addr = listener.local_addr().unwrap().ip().unwrap();
    let server = tokio::spawn(Server::new(&drain, listener).serve(named(name)));
    let incumbent = inheritance.ready().await.unwrap();
    assert_eq!(incumbent.mode(), HandoffMode::Descriptor);
    let incumbent = tokio::spawn(incumbent.serve(drain.clone()));
    Process {
        drain,
        addr,
        server,
        incumbent,
    }
}

async fn who(addr: SocketAddr) -> String {
    let mut client = Client(TcpStream::connect(addr).await.unwrap());
    client.ask(GET).await.body
}

/// Until the path has a socket that answers.
async fn open(path: &Path) {
    soon(async {
        while !path.exists() {
            sleep(ms(1)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn the_new_one_takes_the_socket_and_the_old_one_drains() {
    let place = Place::new();
    let first = place
        .handoff()
        .probation(Duration::from_secs(2))
        .inherit()
        .await
        .unwrap();
    assert_eq!(first.origin(), Origin::Bound);
    let old = start("old", first).await;
    open(&place.path()).await;
    let mut kept = Client(TcpStream::connect(old.addr).await.unwrap());
    assert_eq!(kept.ask(GET).await.body, "old");

    let second = place.handoff().inherit().await.unwrap();
    assert_eq!(second.origin(), Origin::Predecessor);
    let new = start("new", second).await;
    assert_eq!(new.addr, old.addr);
    sleep(ms(50)).await;
    for _ in 0..20 {
        assert_eq!(who(old.addr).await, "new", "only the new one accepts");
    }
    let answer = kept.ask(GET).await;
    assert_eq!(
        (answer.body.as_str(), answer.closes()),
        ("old", 0),
        "the drain does not begin in the probation"
    );
    soon(old.drain.closing()).await;
    let answer = kept.ask(GET).await;
    assert_eq!((answer.body.as_str(), answer.closes()), ("old", 1));
    drop(kept);
    assert!(soon(old.server).await.unwrap().unwrap().is_clean());
    soon(old.incumbent).await.unwrap().unwrap();

    // And on to a third, from the second.
    sleep(ms(50)).await;
    let third = start("third", place.handoff().inherit().await.unwrap()).await;
    soon(new.server).await.unwrap().unwrap();
    assert_eq!(who(third.addr).await, "third");
}

#[tokio::test]
async fn when_the_old_one_begins_to_drain_the_new_one_listens_at_the_path() {
    // Else a third process could find no listener at the path once the old one has stopped, and try to bind.
    let place = Place::new();
    let old = start("old", place.handoff().inherit().await.unwrap()).await;
    open(&place.path()).await;
    let _new = start("new", place.handoff().inherit().await.unwrap()).await;
    soon(old.drain.closing()).await;
    let third = soon(place.handoff().inherit())
        .await
        .expect("it is not too early");
    assert_eq!(third.origin(), Origin::Predecessor);
}

#[tokio::test]
async fn once_the_new_one_is_ready_the_old_one_does_not_accept() {
    let place = Place::new();
    let old = start("old", long(&place).inherit().await.unwrap()).await;
    open(&place.path()).await;
    let mut inheritance = long(&place).inherit().await.unwrap();
    let listener = inheritance
        .tcp("http", ANY, &ListenerConfig::new())
        .unwrap();
    // Ready, but it does not accept: so the test shows that the old one does not either.
    let _incumbent = inheritance.ready().await.unwrap();
    sleep(ms(100)).await;
    let mut client = Client(TcpStream::connect(old.addr).await.unwrap());
    client.send(GET).await;
    sleep(ms(100)).await;
    assert_eq!(old.drain.snapshot().guests, 0);
    tokio::spawn(Server::new(&quick(), listener).serve(named("new")));
    assert_eq!(client.answer().await.body, "new");
}

#[tokio::test]
async fn one_that_dies_before_it_is_ready_has_changed_nothing() {
    let place = Place::new();
    let old = start("old", place.handoff().inherit().await.unwrap()).await;
    open(&place.path()).await;
    let mut stillborn = place.handoff().inherit().await.unwrap();
    let listener = stillborn.tcp("http", ANY, &ListenerConfig::new()).unwrap();
    drop((listener, stillborn));
    for _ in 0..5 {
        assert_eq!(who(old.addr).await, "old");
    }
    sleep(ms(50)).await;
    let new = start("new", place.handoff().inherit().await.unwrap()).await;
    soon(old.server).await.unwrap().unwrap();
    assert_eq!(who(new.addr).await, "new", "and the next one may try");
}

#[tokio::test]
async fn one_that_dies_in_its_probation_gives_the_queue_back() {
    let place = Place::new();
    let handoff = || Handoff::at(place.path()).probation(Duration::from_secs(60));
    let old = start("old", handoff().inherit().await.unwrap()).await;
    open(&place.path()).await;
    let doomed = start("doomed", handoff().inherit().await.unwrap()).await;
    sleep(ms(50)).await;
    assert_eq!(who(old.addr).await, "doomed");
    // A crash: its tasks are dropped, and with them its descriptors. New connections wait in the queue.
    doomed.server.abort();
    soon(doomed.server).await.unwrap_err();
    let mut waiting = Client(TcpStream::connect(old.addr).await.unwrap());
    waiting.send(GET).await;
    sleep(ms(50)).await;
    doomed.incumbent.abort();
    assert_eq!(waiting.answer().await.body, "old");
    assert_eq!(
        (who(old.addr).await.as_str(), old.drain.phase()),
        ("old", Phase::Serving)
    );

    let new = start("new", handoff().inherit().await.unwrap()).await;
    sleep(ms(50)).await;
    assert_eq!(who(new.addr).await, "new", "and the next one may try");
}

#[tokio::test]
async fn an_old_one_that_dies_leaves_the_queue_to_the_new_one() {
    let place = Place::new();
    let old = start("old", place.handoff().inherit().await.unwrap()).await;
    open(&place.path()).await;
    let new = start("new", place.handoff().inherit().await.unwrap()).await;
    old.server.abort();
    old.incumbent.abort();
    for _ in 0..5 {
        assert_eq!(who(new.addr).await, "new");
    }
    sleep(ms(50)).await;
    let third = start("third", place.handoff().inherit().await.unwrap()).await;
    soon(new.server).await.unwrap().unwrap();
    assert_eq!(who(third.addr).await, "third");
}

#[tokio::test]
async fn an_inherited_socket_that_is_not_taken_is_not_lost() {
    let place = Place::new();
    let old = start("old", place.handoff().inherit().await.unwrap()).await;
    open(&place.path()).await;
    let mut forgetful = place.handoff().inherit().await.unwrap();
    let _other = forgetful.tcp("https", ANY, &ListenerConfig::new()).unwrap();
    let error = forgetful.ready().await.unwrap_err();
    assert!(error.to_string().contains("http (127.0.0.1:0)"), "{error}");
    assert_eq!(who(old.addr).await, "old");
}

async fn start_unix(name: &'static str, path: &Path, mut inheritance: Inheritance) -> Drain {
    let drain = quick();
    let listener = inheritance.unix("app", path).unwrap();
    assert_eq!(
        listener.local_addr().unwrap(),
        Addr::Unix(Some(path.into()))
    );
    tokio::spawn(Server::new(&drain, listener).serve(named(name)));
    tokio::spawn(inheritance.ready().await.unwrap().serve(drain.clone()));
    drain
}

#[tokio::test]
async fn unix_sockets_are_handed_on_too() {
    let place = Place::new();
    let path = place.0.join("app");
    let old = start_unix("old", &path, place.handoff().inherit().await.unwrap()).await;
    open(&place.path()).await;
    let new = start_unix("new", &path, place.handoff().inherit().await.unwrap()).await;
    soon(old.done()).await;
    assert_eq!(new.phase(), Phase::Serving);
    let mut client = Client(tokio::net::UnixStream::connect(&path).await.unwrap());
    assert_eq!(client.ask(GET).await.body, "new");
}

#[tokio::test]
async fn more_sockets_than_one_packet_holds_are_handed_on_each_as_itself() {
    if !testkit::alone("handoff::more_sockets_than_one_packet_holds_are_handed_on_each_as_itself") {
        return;
    }
    // The kernel takes 253 descriptors in one packet. Each socket is here in both processes, for use and to hand on.
    const SOCKETS: usize = 300;
    let hard = getrlimit(Resource::Nofile).maximum;
    setrlimit(
        Resource::Nofile,
        Rlimit {
            current: hard.map_or(Some(8192), |hard| Some(hard.min(8192))),
            maximum: hard,
        },
    )
    .unwrap();
    let place = Place::new();
    let take = |inheritance: &mut Inheritance| {
        let names = (0..SOCKETS).map(|index| format!("socket {index}"));
        let config = ListenerConfig::new().backlog(1);
        names
            .map(|name| {
                inheritance
                    .tcp(&name, ANY, &config)
                    .unwrap()
                    .local_addr()
                    .unwrap()
            })
            .collect::<Vec<_>>()
    };
    let mut old = place.handoff().inherit().await.unwrap();
    let addrs = take(&mut old);
    tokio::spawn(old.ready().await.unwrap().serve(quick()));
    let mut new = soon(place.handoff().inherit()).await.unwrap();
    assert_eq!(take(&mut new), addrs);
    drop(soon(new.ready()).await.expect("none is left over"));
}

#[tokio::test]
async fn without_a_successor_a_drain_closes_the_socket() {
    let place = Place::new();
    let alone = start("alone", place.handoff().inherit().await.unwrap()).await;
    assert_eq!(who(alone.addr).await, "alone");
    alone.drain.shutdown();
    soon(alone.server).await.unwrap().unwrap();
    soon(alone.incumbent).await.unwrap().unwrap();
    assert!(
        TcpStream::connect(alone.addr).await.is_err(),
        "no copy of it is kept open"
    );
}

#[tokio::test]
async fn a_peer_with_another_protocol_gets_no_sockets() {
    use rustix::net::{
        AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, recv, send, socket_with,
    };
    let place = Place::new();
    let old = start("old", place.handoff().inherit().await.unwrap()).await;
    open(&place.path()).await;
    let path = place.path();
    let heard = tokio::task::spawn_blocking(move || {
        let socket = socket_with(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .unwrap();
        connect(&socket, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        send(
            &socket,
            b"give me your sockets",
            rustix::net::SendFlags::empty(),
        )
        .unwrap();
        recv(
            &socket,
            &mut [0_u8; 64][..],
            rustix::net::RecvFlags::empty(),
        )
        .map(|(length, _)| length)
    });
    assert!(matches!(soon(heard).await.unwrap(), Ok(0) | Err(_)));
    assert_eq!(who(old.addr).await, "old");
    sleep(ms(50)).await;
    let new = start("new", place.handoff().inherit().await.unwrap()).await;
    soon(old.server).await.unwrap().unwrap();
    assert_eq!(who(new.addr).await, "new");
}

#[tokio::test]
async fn the_path_is_for_its_user_alone() {
    use std::os::unix::fs::PermissionsExt;
    let place = Place::new();
    let _old = start("old", place.handoff().inherit().await.unwrap()).await;
    open(&place.path()).await;
    assert_eq!(
        fs::metadata(place.path()).unwrap().permissions().mode() & 0o777,
        0o600
    );
}

/// A probation that no test waits for.
fn long(place: &Place) -> Handoff {
    Handoff::at(place.path()).probation(Duration::from_secs(60))
}

#[tokio::test]
async fn one_that_begins_to_drain_in_its_probation_gives_the_queue_back() {
    // A release that is rolled back at once: without this both processes would drain.
    let place = Place::new();
    let old = start("old", long(&place).inherit().await.unwrap()).await;
    open(&place.path()).await;
    let new = start("new", long(&place).inherit().await.unwrap()).await;
    sleep(ms(50)).await;
    assert_eq!(who(old.addr).await, "new");
    new.drain.begin_drain();
    assert!(soon(new.server).await.unwrap().unwrap().is_clean());
    soon(new.incumbent).await.unwrap().unwrap();
    assert_eq!(
        (who(old.addr).await.as_str(), old.drain.phase()),
        ("old", Phase::Serving)
    );

    let next = start("next", long(&place).inherit().await.unwrap()).await;
    sleep(ms(50)).await;
    assert_eq!(who(next.addr).await, "next", "and the next one may try");
}

#[tokio::test]
async fn an_old_one_that_dies_before_the_new_one_is_ready_loses_no_connection() {
    let place = Place::new();
    let old = start("old", place.handoff().inherit().await.unwrap()).await;
    open(&place.path()).await;
    let mut inheritance = place.handoff().inherit().await.unwrap();
    let listener = inheritance
        .tcp("http", ANY, &ListenerConfig::new())
        .unwrap();
    old.server.abort();
    old.incumbent.abort();
    let _ = (old.server.await, old.incumbent.await);
    let mut waiting = Client(TcpStream::connect(old.addr).await.unwrap());
    waiting.send(GET).await;
    let drain = quick();
    tokio::spawn(Server::new(&drain, listener).serve(named("new")));
    let incumbent = inheritance.ready().await.expect("its queue is here");
    tokio::spawn(incumbent.serve(drain.clone()));
    assert_eq!(waiting.answer().await.body, "new");
    sleep(ms(50)).await;
    assert_eq!(
        place.handoff().inherit().await.unwrap().origin(),
        Origin::Predecessor,
        "and it can be inherited from"
    );
}

#[tokio::test]
async fn a_third_process_gets_an_error_until_the_handoff_is_over() {
    let place = Place::new();
    let old = start("old", long(&place).inherit().await.unwrap()).await;
    open(&place.path()).await;
    let slow = long(&place).inherit().await.unwrap();
    let too_early = |tried: std::io::Result<Inheritance>| {
        tried.unwrap_err().kind() == std::io::ErrorKind::ResourceBusy
    };
    assert!(
        too_early(soon(long(&place).inherit()).await),
        "one is warming up"
    );
    let new = start("new", slow).await;
    assert!(
        too_early(soon(long(&place).inherit()).await),
        "one is in its probation"
    );
    assert_eq!(who(old.addr).await, "new");
    drop(new);
}

#[tokio::test]
async fn no_connection_is_accepted_before_it_is_ready() {
    let place = Place::new();
    let (drain, mut inheritance) = (quick(), place.handoff().inherit().await.unwrap());
    let listener = inheritance
        .tcp("http", ANY, &ListenerConfig::new())
        .unwrap();
    let addr = listener.local_addr().unwrap().ip().unwrap();
    let server = tokio::spawn(Server::new(&drain, listener).serve(named("late")));
    let mut client = Client(TcpStream::connect(addr).await.unwrap());
    client.send(GET).await;
    sleep(ms(100)).await;
    assert_eq!(drain.snapshot().guests, 0);
    let incumbent = inheritance.ready().await.unwrap();
    assert_eq!(client.answer().await.body, "late");
    drop((incumbent, client));
    drain.shutdown();
    assert!(soon(server).await.unwrap().unwrap().is_clean());
}

#[tokio::test]
async fn a_process_that_is_never_ready_gets_an_error_instead_of_waiting_for_ever() {
    let place = Place::new();
    let (drain, mut inheritance) = (quick(), place.handoff().inherit().await.unwrap());
    let listener = inheritance
        .tcp("http", ANY, &ListenerConfig::new())
        .unwrap();
    let server = tokio::spawn(Server::new(&drain, listener).serve(named("never")));
    drop(inheritance);
    let error = soon(server).await.unwrap().unwrap_err();
    assert!(error.to_string().contains("before it was ready"), "{error}");
}

#[tokio::test]
async fn an_old_one_that_drains_in_the_probation_of_its_successor_ends_the_probation_at_once() {
    let place = Place::new();
    let old = start("old", long(&place).inherit().await.unwrap()).await;
    open(&place.path()).await;
    let new = start("new", long(&place).inherit().await.unwrap()).await;
    sleep(ms(50)).await;
    old.drain.shutdown();
    assert!(soon(old.server).await.unwrap().unwrap().is_clean());
    soon(old.incumbent).await.unwrap().unwrap();
    assert_eq!(who(new.addr).await, "new");
    sleep(ms(50)).await;
    let third = start("third", long(&place).inherit().await.unwrap()).await;
    sleep(ms(50)).await;
    assert_eq!(who(third.addr).await, "third");
}

#[tokio::test]
async fn an_old_one_that_drains_before_its_successor_is_ready_loses_no_connection() {
    let place = Place::new();
    let old = start("old", long(&place).inherit().await.unwrap()).await;
    open(&place.path()).await;
    let inheritance = long(&place).inherit().await.unwrap();
    old.drain.shutdown();
    assert!(soon(old.server).await.unwrap().unwrap().is_clean());
    // Its listener is known by its port alone now, and still the same.
    let new = start("new", inheritance).await;
    assert_eq!((new.addr, who(old.addr).await.as_str()), (old.addr, "new"));
}

/// Connects to the path and sends nothing.
fn silent_peer(path: &Path) -> std::os::fd::OwnedFd {
    use rustix::net::{
        AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with,
    };
    let socket = socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .unwrap();
    connect(&socket, &SocketAddrUnix::new(path).unwrap()).unwrap();
    socket
}

#[tokio::test]
async fn a_silent_peer_does_not_keep_the_socket_open_beyond_the_drain() {
    let place = Place::new();
    let alone = start("alone", place.handoff().inherit().await.unwrap()).await;
    open(&place.path()).await;
    let _silent = silent_peer(&place.path());
    sleep(ms(50)).await;
    alone.drain.shutdown();
    tokio::time::timeout(Duration::from_secs(3), alone.incumbent)
        .await
        .expect("at once")
        .unwrap()
        .unwrap();
    assert!(TcpStream::connect(alone.addr).await.is_err());
}

#[tokio::test]
async fn a_link_at_the_path_is_replaced_and_not_followed() {
    use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};
    let place = Place::new();
    let victim = place.0.join("victim");
    fs::write(&victim, "precious").unwrap();
    fs::set_permissions(&victim, fs::Permissions::from_mode(0o644)).unwrap();
    // A dangling link, which looks like a path without a process.
    symlink(place.0.join("missing"), place.path()).unwrap();
    let inheritance = place.handoff().inherit().await.unwrap();
    fs::remove_file(place.path()).unwrap();
    symlink(&victim, place.path()).unwrap();
    let _process = start("one", inheritance).await;
    soon(async {
        while !fs::symlink_metadata(place.path())
            .unwrap()
            .file_type()
            .is_socket()
        {
            sleep(ms(1)).await;
        }
    })
    .await;
    assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
    assert_eq!(
        fs::metadata(&victim).unwrap().permissions().mode() & 0o777,
        0o644
    );
}

#[tokio::test]
async fn a_unix_socket_that_is_listened_to_or_a_file_is_never_replaced() {
    let place = Place::new();
    let path = place.0.join("app");
    let mut inheritance = place.handoff().inherit().await.unwrap();
    let in_use = |tried: std::io::Result<_>| matches!(tried, Err(error) if error.kind() == std::io::ErrorKind::AddrInUse);

    let living = std::os::unix::net::UnixListener::bind(&path).unwrap();
    assert!(
        in_use(inheritance.unix("app", &path).map(drop)),
        "its clients would never know"
    );
    drop(living);
    drop(
        inheritance
            .unix("app", &path)
            .expect("no process listens any more"),
    );

    let file = place.0.join("file");
    fs::write(&file, "precious").unwrap();
    assert!(in_use(inheritance.unix("file", &file).map(drop)));
    assert_eq!(fs::read_to_string(&file).unwrap(), "precious");
}

#[tokio::test]
async fn descriptors_are_not_inherited_by_programs_that_are_started() {
    let place = Place::new();
    let _process = start("one", place.handoff().inherit().await.unwrap()).await;
    open(&place.path()).await;
    let mut heir = place.handoff().inherit().await.unwrap();
    let _listener = heir.tcp("http", ANY, &ListenerConfig::new()).unwrap();
    let mut sockets = 0;
    for fd in fs::read_dir("/proc/self/fd").unwrap().flatten() {
        let is_socket = fs::read_link(fd.path())
            .is_ok_and(|link| link.to_string_lossy().starts_with("socket:"));
        let info = fs::read_to_string(format!(
            "/proc/self/fdinfo/{}",
            fd.file_name().to_string_lossy()
        ));
        let (true, Ok(info)) = (is_socket, info) else {
            continue;
        };
        let flags = info
            .lines()
            .find_map(|line| line.strip_prefix("flags:"))
            .unwrap()
            .trim();
        let flags = u32::from_str_radix(flags, 8).unwrap();
        assert_ne!(flags & 0o2_000_000, 0, "{info}");
        sockets += 1;
    }
    assert!(sockets >= 5, "{sockets}");
}
