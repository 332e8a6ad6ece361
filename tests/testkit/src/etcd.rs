use std::{
    fs::File,
    io::{self, Write},
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Once, OnceLock, atomic::AtomicU32, atomic::Ordering, mpsc},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, sleep, timeout},
};

/// Real etcd members on loopback, on ports chosen by the system, in a temporary folder.
///
/// The program is `etcd` from the path, or the value of the variable `ETCD`. Its version is printed to the error output, past
/// the test runner's capture. The members are killed by their ids when this is dropped, also by a panic, and by the
/// kernel when the test's process is killed.
#[derive(Debug)]
pub struct Etcd {
    dir: PathBuf,
    members: Vec<Member>,
    scheme: &'static str,
}

/// How to start an [`Etcd`].
#[derive(Clone, Debug)]
pub struct EtcdBuilder {
    members: usize,
    args: Vec<String>,
    tls: Option<TlsFiles>,
}

/// Files in PEM for a server that wants certificates of its clients.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// Of the authority that signed all of them.
    pub ca: String,
    /// The server's certificate.
    pub cert: String,
    /// Its key.
    pub key: String,
}

#[derive(Debug)]
struct Member {
    args: Vec<String>,
    client: SocketAddr,
    metrics: SocketAddr,
    log: PathBuf,
    child: Option<Child>,
}

/// For one member's start; a loaded machine takes seconds.
const START: Duration = Duration::from_secs(60);
/// For one look at a member.
const LOOK: Duration = Duration::from_secs(2);
/// A port chosen by the system may be taken by another process before the member binds it.
const TRIES: usize = 3;

// === impl Etcd ===

impl Etcd {
    /// One member.
    pub async fn start() -> Self {
        Self::builder().start().await
    }

    /// That many members, which have elected a leader.
    pub async fn cluster(members: usize) -> Self {
        Self::builder().members(members).start().await
    }

    /// One member, default timings, no TLS.
    #[must_use]
    pub fn builder() -> EtcdBuilder {
        EtcdBuilder {
            members: 1,
            args: Vec::new(),
            tls: None,
        }
    }

    /// The version that the program prints: `3.4.23`.
    #[must_use]
    pub fn version() -> String {
        let output = Command::new(program())
            .arg("--version")
            .output()
            .expect("etcd is installed");
        let text = String::from_utf8_lossy(&output.stdout);
        let version = text
            .lines()
            .find_map(|line| line.strip_prefix("etcd Version: "));
        version.expect("the version is printed").to_owned()
    }

    /// The URLs of all members.
    #[must_use]
    pub fn endpoints(&self) -> Vec<String> {
        self.members
            .iter()
            .map(|member| format!("{}://{}", self.scheme, member.client))
            .collect()
    }

    /// Where a member serves its clients.
    #[must_use]
    pub fn addr(&self, member: usize) -> SocketAddr {
        self.members[member].client
    }

    /// Stops a member as it stands; its connections stay open. All of its threads stand still when this returns.
    ///
    /// # Panics
    ///
    /// It does not stop.
    pub fn pause(&self, member: usize) {
        self.members[member].signal(Signal::STOP);
        self.members[member].wait_until_stopped();
    }

    /// Lets a paused member go on.
    pub fn resume(&self, member: usize) {
        self.members[member].signal(Signal::CONT);
    }

    /// Ends a member without warning. Its data stays.
    pub fn kill(&mut self, member: usize) {
        self.members[member].kill();
    }

    /// Starts a member that was killed, on its address and with its data.
    pub async fn restart(&mut self, member: usize) {
        self.members[member].kill();
        self.members[member].spawn();
        assert!(
            self.members[member].is_up().await,
            "the member does not come back: {}",
            self.members[member].tail()
        );
    }

    /// How much processor time a member has used.
    #[must_use]
    pub fn cpu_time(&self, member: usize) -> Duration {
        let child = self.members[member]
            .child
            .as_ref()
            .expect("the member runs");
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.id()))
            .expect("it runs on Linux");
        // After the name, which is in parentheses, user and system time are the 12th and 13th.
        let words = stat
            .rsplit(") ")
            .next()
            .into_iter()
            .flat_map(str::split_whitespace);
        let ticks: u64 = words
            .skip(11)
            .take(2)
            .filter_map(|ticks| ticks.parse::<u64>().ok())
            .sum();
        Duration::from_millis(1_000 * ticks / rustix::param::clock_ticks_per_second())
    }

    /// The member that leads, once there is one.
    pub async fn leader(&self) -> usize {
        let deadline = Instant::now() + START;
        while Instant::now() < deadline {
            for (index, member) in self.members.iter().enumerate() {
                if member.leads().await {
                    return index;
                }
            }
            sleep(Duration::from_millis(50)).await;
        }
        panic!("no leader in {START:?}");
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.members.iter_mut().for_each(Member::kill);
        if !std::thread::panicking() {
            let _ = std::fs::remove_dir_all(&self.dir);
        }
    }
}

// === impl EtcdBuilder ===

impl EtcdBuilder {
    /// How many members. Default: 1.
    #[must_use]
    pub fn members(self, members: usize) -> Self {
        Self { members, ..self }
    }

    /// One more argument for the program.
    #[must_use]
    pub fn arg(mut self, arg: &str) -> Self {
        self.args.push(arg.to_owned());
        self
    }

    /// Clients need TLS and a client certificate.
    #[must_use]
    pub fn tls(self, tls: TlsFiles) -> Self {
        Self {
            tls: Some(tls),
            ..self
        }
    }

    /// Starts it, and waits until every member serves.
    ///
    /// # Panics
    ///
    /// It does not come up.
    pub async fn start(self) -> Etcd {
        tell_version();
        for _ in 0..TRIES {
            if let Some(etcd) = self.try_start().await {
                return etcd;
            }
        }
        panic!("etcd does not start; its last words are above");
    }

    async fn try_start(&self) -> Option<Etcd> {
        let mut etcd = self.prepare().expect("a folder and ports");
        etcd.members.iter_mut().for_each(Member::spawn);
        for member in &mut etcd.members {
            if !member.is_up().await {
                eprintln!("etcd did not come up: {}", member.tail());
                return None;
            }
        }
        Some(etcd)
    }

    fn prepare(&self) -> io::Result<Etcd> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "testkit-etcd-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let dir = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&dir)?;
        // All at once, so that no two are the same.
        let ports = (0..3 * self.members)
            .map(|_| TcpListener::bind("127.0.0.1:0"))
            .collect::<io::Result<Vec<_>>>()?;
        let ports = ports
            .iter()
            .map(TcpListener::local_addr)
            .collect::<io::Result<Vec<_>>>()?;
        let peers: Vec<_> = ports
            .iter()
            .step_by(3)
            .enumerate()
            .map(|(n, peer)| format!("m{n}=http://{peer}"))
            .collect();
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        let member = |(n, ports): (usize, &[SocketAddr])| {
            self.member(n, ports, &peers.join(","), scheme, &dir)
        };
        let members = ports.chunks(3).enumerate().map(member).collect();
        Ok(Etcd {
            members,
            dir,
            scheme,
        })
    }

    fn member(
        &self,
        number: usize,
        ports: &[SocketAddr],
        peers: &str,
        scheme: &str,
        dir: &Path,
    ) -> Member {
        let (peer, client, metrics) = (ports[0], ports[1], ports[2]);
        let mut args = vec![
            format!("--name=m{number}"),
            format!("--data-dir={}", dir.join(format!("m{number}")).display()),
            format!("--listen-peer-urls=http://{peer}"),
            format!("--initial-advertise-peer-urls=http://{peer}"),
            format!("--listen-client-urls={scheme}://{client}"),
            format!("--advertise-client-urls={scheme}://{client}"),
            format!("--listen-metrics-urls=http://{metrics}"),
            format!("--initial-cluster={peers}"),
            "--logger=zap".to_owned(),
            "--log-level=warn".to_owned(),
        ];
        if let Some(TlsFiles { ca, cert, key }) = &self.tls {
            args.extend([
                format!("--trusted-ca-file={ca}"),
                format!("--cert-file={cert}"),
                format!("--key-file={key}"),
            ]);
            args.push("--client-cert-auth".to_owned());
        }
        args.extend(self.args.iter().cloned());
        Member {
            args,
            client,
            metrics,
            log: dir.join(format!("m{number}.log")),
            child: None,
        }
    }
}

// === impl Member ===

impl Member {
    fn spawn(&mut self) {
        let log = File::options()
            .create(true)
            .append(true)
            .open(&self.log)
            .expect("the log opens");
        // The kernel ends it with the thread that started it, and that one lives as long as the process does.
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", &program()])
            .args(&self.args);
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a handle"))
            .stderr(log);
        self.child = Some(spawn_for_life(command).expect("setpriv and etcd are installed"));
    }

    fn signal(&self, signal: Signal) {
        let child = self.child.as_ref().expect("the member runs");
        kill_process(Pid::from_child(child), signal).expect("it is ours");
    }

    /// One thread takes the signal and stops the other threads: on a loaded machine they continue until it is scheduled.
    fn wait_until_stopped(&self) {
        let child = self.child.as_ref().expect("the member runs");
        let tasks = format!("/proc/{}/task", child.id());
        // Its state stands after its name, which is in parentheses.
        let stands_still = |stat: io::Result<String>| {
            stat.is_ok_and(|stat| {
                stat.rsplit(") ")
                    .next()
                    .is_some_and(|state| state.starts_with('T'))
            })
        };
        let is_stopped = || {
            let mut tasks = std::fs::read_dir(&tasks).expect("it runs on Linux");
            tasks.all(|task| {
                stands_still(
                    task.and_then(|task| std::fs::read_to_string(task.path().join("stat"))),
                )
            })
        };
        let deadline = Instant::now() + START;
        while !is_stopped() {
            assert!(Instant::now() < deadline, "the member does not stop");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Whether it serves, with a leader; false if it has ended or takes too long.
    async fn is_up(&mut self) -> bool {
        let deadline = Instant::now() + START;
        while Instant::now() < deadline {
            match self.child.as_mut().map(Child::try_wait) {
                Some(Ok(None)) => {}
                _ => return false,
            }
            if self
                .look("/health")
                .await
                .is_some_and(|page| page.contains(r#""health":"true""#))
            {
                return true;
            }
            sleep(Duration::from_millis(50)).await;
        }
        false
    }

    async fn leads(&self) -> bool {
        let page = if self.child.is_some() {
            self.look("/metrics").await
        } else {
            None
        };
        page.is_some_and(|page| page.lines().any(|line| line == "etcd_server_is_leader 1"))
    }

    async fn look(&self, path: &str) -> Option<String> {
        let request = format!("GET {path} HTTP/1.0\r\n\r\n");
        let ask = async {
            let mut stream = TcpStream::connect(self.metrics).await?;
            stream.write_all(request.as_bytes()).await?;
            let mut page = String::new();
            stream.read_to_string(&mut page).await?;
            io::Result::Ok(page)
        };
        timeout(LOOK, ask).await.ok()?.ok()
    }

    fn tail(&self) -> String {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(10)..].join("\n")
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.kill();
    }
}

fn program() -> String {
    std::env::var("ETCD").unwrap_or_else(|_| "etcd".to_owned())
}

fn tell_version() {
    static TOLD: Once = Once::new();
    // Not `eprintln!`, which the test runner keeps to itself.
    TOLD.call_once(|| drop(writeln!(io::stderr(), "etcd {}", Etcd::version())));
}

/// Starts it from a thread that never ends.
fn spawn_for_life(command: Command) -> io::Result<Child> {
    type Job = (Command, mpsc::Sender<io::Result<Child>>);
    static SPAWNER: OnceLock<mpsc::Sender<Job>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (sender, jobs) = mpsc::channel::<Job>();
        std::thread::spawn(move || {
            for (mut command, answer) in jobs {
                let _ = answer.send(command.spawn());
            }
        });
        sender
    });
    let (answer, child) = mpsc::channel();
    spawner
        .send((command, answer))
        .expect("the thread never ends");
    child.recv().expect("the thread never ends")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    #[ignore = "needs etcd"]
    async fn three_members_elect_another_leader_when_theirs_is_paused_or_killed() {
        let mut etcd = Etcd::cluster(3).await;
        let first = etcd.leader().await;
        etcd.pause(first);
        let second = etcd.leader().await;
        assert_ne!(first, second);
        etcd.resume(first);
        etcd.kill(second);
        assert_ne!(etcd.leader().await, second);
        etcd.restart(second).await;
        let ids: Vec<_> = etcd
            .members
            .iter()
            .map(|member| member.child.as_ref().unwrap().id())
            .collect();
        drop(etcd);
        assert!(
            ids.iter()
                .all(|id| !Path::new(&format!("/proc/{id}")).exists()),
            "nothing is left behind"
        );
    }
}
