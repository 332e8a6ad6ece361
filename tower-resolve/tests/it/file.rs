//! Endpoints from a file that is being written, correctly or not, and often. The files are real; the time is not.

use std::{
    fs,
    io::Write as _,
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    time::Duration,
};

use futures_util::StreamExt;
use tokio::time::timeout;
use tower_resolve::{
    CachedResolver, FileError, FileResolver, FileUpdates, Generation, Resolve, Topology, Update,
    diff::Fold,
};

/// A separate folder for each test, removed with it.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "tower-resolve-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Relaxed)
        );
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// In the recommended way: another file, then a rename.
    fn replace(&self, name: &str, text: &str) {
        let next = self.path("next");
        fs::write(&next, text).unwrap();
        fs::rename(next, self.path(name)).unwrap();
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Follows a name and applies its updates, checking that it never goes back.
struct Follower {
    updates: FileUpdates,
    fold: Fold,
}

impl Follower {
    fn new(resolver: &FileResolver, name: &str) -> Self {
        Self {
            updates: resolver.resolve(name),
            fold: Fold::new(),
        }
    }

    /// Reads updates until the known set satisfies `until`.
    async fn hear(&mut self, until: impl Fn(&Fold) -> bool) {
        let hearing = async {
            while !until(&self.fold) {
                let before = self.generation();
                let _ = self
                    .fold
                    .apply(self.updates.next().await.expect("updates never end"));
                assert!(
                    before.is_none_or(|before| Some(before) <= self.generation()),
                    "never back"
                );
            }
        };
        timeout(Duration::from_secs(30), hearing)
            .await
            .expect("in bounded time");
    }

    async fn hear_ports(&mut self, ports: &[u16]) {
        self.hear(|fold| {
            fold.degraded().is_none()
                && fold
                    .topology()
                    .is_some_and(|known| self::ports(known) == ports)
        })
        .await;
    }

    async fn hear_trouble(&mut self, text: &str) {
        self.hear(|fold| {
            fold.degraded()
                .is_some_and(|cause| cause.to_string().contains(text))
        })
        .await;
    }

    fn generation(&self) -> Option<Generation> {
        self.fold.topology().map(Topology::generation)
    }

    fn ports(&self) -> Vec<u16> {
        self.fold.topology().map(ports).unwrap_or_default()
    }
}

fn ports(topology: &Topology) -> Vec<u16> {
    let mut ports: Vec<_> = topology
        .iter()
        .map(|endpoint| endpoint.addr().port())
        .collect();
    ports.sort_unstable();
    ports
}

fn text(ports: &[u16]) -> String {
    let endpoint = |port: &u16| format!("[[echo]]\naddress = \"127.0.0.1:{port}\"\n");
    match ports {
        [] => "echo = []\n".to_owned(),
        ports => ports.iter().map(endpoint).collect(),
    }
}

fn followed(folder: &Folder) -> (FileResolver, Follower) {
    let resolver = FileResolver::toml(folder.path("echo.toml")).every(Duration::from_millis(20));
    let follower = Follower::new(&resolver, "echo");
    (resolver, follower)
}

#[tokio::test(start_paused = true)]
async fn a_file_that_is_replaced_is_followed() {
    let folder = Folder::new();
    folder.replace("echo.toml", &text(&[1, 2]));
    let (resolver, mut follower) = followed(&folder);
    follower.hear_ports(&[1, 2]).await;
    let first = follower.generation().unwrap();
    folder.replace("echo.toml", &text(&[2, 3]));
    follower.hear_ports(&[2, 3]).await;
    assert!(follower.generation().unwrap() > first);
    let mut other = Follower::new(&resolver, "other");
    other
        .hear(|fold| fold.topology().is_some_and(|known| !known.exists()))
        .await;
    folder.replace("echo.toml", &text(&[]));
    follower
        .hear(|fold| {
            fold.topology()
                .is_some_and(|known| known.exists() && known.is_empty())
        })
        .await;
    assert!(follower.fold.degraded().is_none(), "an empty list is meant");
}

#[tokio::test(start_paused = true)]
async fn an_invalid_file_keeps_the_last_good_set_and_names_the_line_and_the_correction() {
    let folder = Folder::new();
    folder.replace("echo.toml", &text(&[1]));
    let (resolver, mut follower) = followed(&folder);
    follower.hear_ports(&[1]).await;
    folder.replace("echo.toml", "[[echo]]\nadress = \"127.0.0.1:2\"\n");
    follower
        .hear_trouble("echo.toml:2: unknown field `adress`")
        .await;
    assert_eq!(follower.ports(), [1]);
    let cause = follower.fold.degraded().unwrap();
    assert!(
        cause
            .to_string()
            .ends_with("correct it, the last good set stays in use until then"),
        "{cause}"
    );
    let error: &FileError = cause.downcast_ref().unwrap();
    assert_eq!(
        (error.line(), error.path()),
        (Some(2), &*folder.path("echo.toml"))
    );
    assert_eq!(resolver.check().unwrap_err().line(), Some(2));
    folder.replace("echo.toml", &text(&[2]));
    follower.hear_ports(&[2]).await;
    resolver.check().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_new_follower_of_an_invalid_file_gets_the_error_and_no_old_set() {
    let folder = Folder::new();
    folder.replace("echo.toml", &text(&[1]));
    let (resolver, mut follower) = followed(&folder);
    follower.hear_ports(&[1]).await;
    folder.replace("echo.toml", "echo = 7");
    follower.hear_trouble("expected a list").await;
    let mut late = Follower::new(&resolver, "echo");
    late.hear_trouble("expected a list").await;
    assert!(
        late.fold.topology().is_none(),
        "only the cache keeps old sets"
    );
}

#[tokio::test(start_paused = true)]
async fn a_truncated_or_deleted_file_removes_nothing() {
    let folder = Folder::new();
    let path = folder.path("echo.toml");
    let (_resolver, mut follower) = followed(&folder);
    follower
        .hear_trouble("there is no such file; put it there")
        .await;
    folder.replace("echo.toml", &text(&[1, 2]));
    follower.hear_ports(&[1, 2]).await;
    fs::File::options()
        .write(true)
        .truncate(true)
        .open(&path)
        .unwrap();
    follower.hear_trouble("is empty").await;
    fs::remove_file(&path).unwrap();
    follower.hear_trouble("there is no such file").await;
    fs::create_dir(&path).unwrap();
    follower.hear_trouble("no ordinary file").await;
    fs::remove_dir(&path).unwrap();
    fs::write(&path, b"echo = \"\xff\"").unwrap();
    follower.hear_trouble("echo.toml:1: is not UTF-8").await;
    assert_eq!(follower.ports(), [1, 2]);
    fs::write(&path, text(&[3])).unwrap();
    follower.hear_ports(&[3]).await;
}

#[tokio::test(start_paused = true)]
async fn a_file_in_the_middle_of_being_written_is_not_taken_for_a_shorter_one() {
    let folder = Folder::new();
    let path = folder.path("echo.toml");
    let all: Vec<u16> = (1..=20).collect();
    fs::write(&path, text(&all)).unwrap();
    let (_resolver, mut follower) = followed(&folder);
    follower.hear_ports(&all).await;
    let writer = tokio::spawn(async move {
        // In place, a line at a time: every prefix that ends between two endpoints is a valid file.
        let mut file = fs::File::create(path).unwrap();
        for line in text(&(1..=21).collect::<Vec<_>>()).split_inclusive('\n') {
            file.write_all(line.as_bytes()).unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let grown: Vec<u16> = (1..=21).collect();
    follower
        .hear(|fold| {
            let known = ports(fold.topology().unwrap());
            assert!(known.len() >= 20, "{known:?}");
            known == grown
        })
        .await;
    writer.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn many_quick_changes_end_in_the_last_one() {
    let folder = Folder::new();
    folder.replace("echo.toml", &text(&[1]));
    let (_resolver, mut follower) = followed(&folder);
    follower.hear_ports(&[1]).await;
    let path = folder.path("echo.toml");
    for port in 2..300 {
        match port % 3 {
            0 => fs::write(&path, text(&[port])).unwrap(),
            1 => folder.replace("echo.toml", &text(&[port])),
            _ => folder.replace("echo.toml", "echo = "),
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    folder.replace("echo.toml", &text(&[300]));
    follower.hear_ports(&[300]).await;
}

#[cfg(unix)]
#[tokio::test(start_paused = true)]
async fn a_file_behind_a_link_is_followed_when_the_link_changes() {
    let folder = Folder::new();
    fs::write(folder.path("one"), text(&[1])).unwrap();
    fs::write(folder.path("two"), text(&[2])).unwrap();
    std::os::unix::fs::symlink(folder.path("one"), folder.path("echo.toml")).unwrap();
    let (_resolver, mut follower) = followed(&folder);
    follower.hear_ports(&[1]).await;
    std::os::unix::fs::symlink(folder.path("two"), folder.path("next")).unwrap();
    fs::rename(folder.path("next"), folder.path("echo.toml")).unwrap();
    follower.hear_ports(&[2]).await;
}

#[tokio::test(start_paused = true)]
async fn a_file_that_is_too_large_is_an_error_and_a_comment_is_no_change() {
    let folder = Folder::new();
    folder.replace("echo.toml", &text(&[1]));
    let resolver = FileResolver::toml(folder.path("echo.toml"))
        .every(Duration::from_millis(20))
        .max_bytes(200);
    let mut follower = Follower::new(&resolver, "echo");
    follower.hear_ports(&[1]).await;
    let generation = follower.generation();
    folder.replace(
        "echo.toml",
        &format!("# {}\n{}", "long".repeat(100), text(&[2])),
    );
    follower
        .hear_trouble("more than 200 bytes; raise `max_bytes`")
        .await;
    folder.replace("echo.toml", &format!("# short\n{}", text(&[1])));
    follower.hear_ports(&[1]).await;
    assert_eq!(follower.generation(), generation, "the same endpoints");
}

#[tokio::test(start_paused = true)]
async fn a_cache_over_an_invalid_file_reports_one_error_and_one_recovery() {
    let folder = Folder::new();
    fs::write(
        folder.path("echo.json"),
        r#"{"echo": [{"address": "127.0.0.1:1"}]}"#,
    )
    .unwrap();
    let file = FileResolver::json(folder.path("echo.json")).every(Duration::from_millis(10));
    // It queries a degraded source again, many times in this test.
    let cached = CachedResolver::new(file)
        .ttl(Duration::from_millis(100))
        .negative_ttl(Duration::from_millis(20));
    let mut updates = cached.resolve("echo");
    let patience = Duration::from_secs(30);
    assert!(matches!(
        timeout(patience, updates.next()).await,
        Ok(Some(Update::Snapshot(_)))
    ));
    fs::write(folder.path("echo.json"), "{").unwrap();
    let mut seen = timeout(patience, updates.next()).await.unwrap().unwrap();
    while let Update::Progress(_) = seen {
        seen = timeout(patience, updates.next()).await.unwrap().unwrap();
    }
    assert!(matches!(seen, Update::Degraded(_)), "{seen:?}");
    let quiet = timeout(Duration::from_millis(500), updates.next()).await;
    assert!(quiet.is_err(), "no flapping: {quiet:?}");
    assert_eq!(cached.peek("echo").unwrap().topology.len(), 1);
    fs::write(folder.path("echo.json"), r#"{"echo": []}"#).unwrap();
    let mut fold = Fold::new();
    let emptied = async {
        while fold.topology().is_none_or(|known| !known.is_empty()) || fold.degraded().is_some() {
            let _ = fold.apply(updates.next().await.unwrap());
        }
    };
    timeout(patience, emptied)
        .await
        .expect("an emptied set is confirmed by the next look");
}
