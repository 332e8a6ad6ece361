//! A real server from Debian: `apt-get install dnsmasq-base`.

use std::{
    fs,
    net::{SocketAddr, UdpSocket},
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use tower_resolve::DnsResolver;

use super::Follower;

/// A dnsmasq on a port that the system chose. Its hosts are a folder of files, which it follows by itself; its SRV
/// records are options, so that changing them is a restart.
struct Dnsmasq {
    folder: PathBuf,
    addr: SocketAddr,
    options: Vec<String>,
    child: Option<Child>,
}

impl Dnsmasq {
    fn new() -> Self {
        let port = UdpSocket::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let folder = std::env::temp_dir().join(format!(
            "tower-resolve-dnsmasq-{}-{port}",
            std::process::id()
        ));
        fs::create_dir_all(folder.join("hosts")).unwrap();
        Self {
            folder,
            addr: ([127, 0, 0, 1], port).into(),
            options: Vec::new(),
            child: None,
        }
    }

    fn hosts(&self, lines: &str) {
        let next = self.folder.join("next");
        fs::write(&next, lines).unwrap();
        fs::rename(next, self.folder.join("hosts/all")).unwrap();
    }

    fn option(&mut self, option: &str) {
        self.options.push(option.to_owned());
    }

    fn start(&mut self) {
        let mut command = Command::new("dnsmasq");
        command
            .args([
                "--keep-in-foreground",
                "--no-hosts",
                "--no-resolv",
                "--conf-file=/dev/null",
                "--pid-file=",
            ])
            .args([
                "--bind-interfaces",
                "--listen-address=127.0.0.1",
                "--user=",
                "--local=/test/",
                "--auth-ttl=0",
            ])
            .args(["--local-ttl=0", "--neg-ttl=0"])
            .arg(format!("--port={}", self.addr.port()))
            .arg(format!(
                "--hostsdir={}",
                self.folder.join("hosts").display()
            ))
            .args(&self.options)
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        self.child = Some(
            command
                .spawn()
                .expect("dnsmasq is there: apt-get install dnsmasq-base"),
        );
    }

    fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Drop for Dnsmasq {
    fn drop(&mut self) {
        self.stop();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn resolver(server: &Dnsmasq) -> DnsResolver {
    DnsResolver::servers([server.addr])
        .unwrap()
        .min_ttl(Duration::from_millis(50))
        .max_ttl(Duration::from_millis(200))
}

#[tokio::test]
#[ignore = "needs dnsmasq"]
async fn addresses_are_followed_while_they_change_and_over_a_restart() {
    let mut server = Dnsmasq::new();
    server.hosts("192.0.2.1 echo.test\n2001:db8::1 echo.test\n");
    let mut follower = Follower::new(&resolver(&server), "echo.test.:80");
    follower.hear(|fold| fold.degraded().is_some()).await;
    assert!(follower.fold.topology().is_none(), "no answer yet");
    server.start();
    follower
        .hear_ids(&["192.0.2.1:80", "[2001:db8::1]:80"])
        .await;
    server.hosts("192.0.2.2 echo.test\n192.0.2.3 echo.test\n");
    // It adds new entries of the folder by itself, and forgets removed ones when it starts.
    server.stop();
    follower.hear(|fold| fold.degraded().is_some()).await;
    assert_eq!(
        follower.fold.topology().unwrap().len(),
        2,
        "the last good set"
    );
    server.start();
    follower.hear_ids(&["192.0.2.2:80", "192.0.2.3:80"]).await;
}

#[tokio::test]
#[ignore = "needs dnsmasq"]
async fn a_record_that_is_added_at_run_time_is_seen() {
    let mut server = Dnsmasq::new();
    server.hosts("192.0.2.1 echo.test\n");
    server.start();
    let mut missing = Follower::new(&resolver(&server), "other.test.:80");
    let mut follower = Follower::new(&resolver(&server), "echo.test.:80");
    follower.hear_ids(&["192.0.2.1:80"]).await;
    missing.hear_missing().await;
    fs::write(
        server.folder.join("hosts/more"),
        "192.0.2.2 echo.test\n192.0.2.9 other.test\n",
    )
    .unwrap();
    follower.hear_ids(&["192.0.2.1:80", "192.0.2.2:80"]).await;
    missing.hear_ids(&["192.0.2.9:80"]).await;
}

#[tokio::test]
#[ignore = "needs dnsmasq"]
async fn a_service_is_followed() {
    let mut server = Dnsmasq::new();
    server.hosts("192.0.2.1 one.test\n192.0.2.2 two.test\n");
    server.option("--srv-host=_echo._tcp.test,one.test,8081,10,5");
    server.start();
    let mut follower = Follower::new(&resolver(&server), "_echo._tcp.test.");
    follower.hear_ids(&["192.0.2.1:8081"]).await;
    let known = follower
        .fold
        .topology()
        .unwrap()
        .get("192.0.2.1:8081")
        .unwrap()
        .clone();
    assert_eq!((known.priority(), known.weight().get()), (10, 5));
    server.stop();
    server.option("--srv-host=_echo._tcp.test,two.test,8082,20,1");
    server.start();
    follower
        .hear_ids(&["192.0.2.1:8081", "192.0.2.2:8082"])
        .await;
}

#[tokio::test]
#[ignore = "needs dnsmasq"]
async fn more_addresses_than_fit_a_datagram_come_over_tcp() {
    let mut server = Dnsmasq::new();
    let lines: String = (1..=250)
        .map(|host| format!("192.0.2.{host} many.test\n"))
        .collect();
    server.hosts(&lines);
    server.start();
    let mut follower = Follower::new(&resolver(&server), "many.test.:80");
    follower
        .hear(|fold| fold.topology().is_some_and(|known| known.len() == 250))
        .await;
}
