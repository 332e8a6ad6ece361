use std::sync::atomic::{AtomicU32, Ordering};

use super::*;

/// A temporary path, removed at the end.
struct Place(PathBuf);

impl Place {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "tower-lease-mark-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let folder = std::env::temp_dir().join(name);
        fs::create_dir_all(&folder).unwrap();
        Self(folder.join("floors"))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(self.0.parent().unwrap());
    }
}

fn token(key: &str, epoch: u64) -> FencingToken {
    FencingToken::new(LeaseKey::new(key).unwrap(), NonZeroU64::new(epoch).unwrap())
}

fn open(place: &Place) -> Log {
    Log::open(Os, place.0.clone()).unwrap()
}

/// A disk that loses power after a number of steps; every later step fails.
#[derive(Clone)]
struct Frail(Arc<std::sync::Mutex<State>>);

struct State {
    steps: usize,
    files: Vec<Written>,
    /// Which file has which name: now, and after a power failure.
    names: BTreeMap<PathBuf, usize>,
    synced: BTreeMap<PathBuf, usize>,
}

#[derive(Clone)]
struct Written {
    data: Vec<u8>,
    synced: usize,
}

/// What became of that which was not synced: a disk may have kept any of it.
#[derive(Clone, Copy, Debug)]
enum Unsynced {
    Lost,
    Half,
    Kept,
}

impl Frail {
    fn new(steps: usize) -> Self {
        Self(Arc::new(std::sync::Mutex::new(State {
            steps,
            files: Vec::new(),
            names: BTreeMap::new(),
            synced: BTreeMap::new(),
        })))
    }

    fn step(&self) -> io::Result<std::sync::MutexGuard<'_, State>> {
        let mut state = self.0.lock().unwrap();
        state.steps = state.steps.checked_sub(1).ok_or(io::ErrorKind::Other)?;
        Ok(state)
    }

    /// The same disk after the power came back.
    fn restarted(&self, data: Unsynced, names: Unsynced) -> Self {
        let (before, after) = (self.0.lock().unwrap(), Self::new(usize::MAX));
        let mut state = after.0.lock().unwrap();
        state.files = before.files.clone();
        for file in &mut state.files {
            let kept = match data {
                Unsynced::Lost => file.synced,
                Unsynced::Half => file.synced.midpoint(file.data.len()),
                Unsynced::Kept => file.data.len(),
            };
            file.data.truncate(kept);
            file.synced = kept;
        }
        let names = match names {
            Unsynced::Kept => &before.names,
            _ => &before.synced,
        };
        (state.names, state.synced) = (names.clone(), names.clone());
        drop(state);
        after
    }
}

impl Disk for Frail {
    type File = usize;
    type Lock = ();

    fn lock(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn read(&self, path: &Path) -> io::Result<String> {
        let state = self.step()?;
        let file = *state.names.get(path).ok_or(io::ErrorKind::NotFound)?;
        Ok(String::from_utf8(state.files[file].data.clone()).unwrap())
    }

    fn create(&self, path: &Path) -> io::Result<usize> {
        let mut state = self.step()?;
        let (data, file) = (Vec::new(), state.files.len());
        state.files.push(Written { data, synced: 0 });
        state.names.insert(path.into(), file);
        Ok(file)
    }

    fn append(&self, file: &mut usize, bytes: &[u8]) -> io::Result<()> {
        self.step()?.files[*file].data.extend_from_slice(bytes);
        Ok(())
    }

    fn sync_data(&self, file: &usize) -> io::Result<()> {
        self.sync_all(file)
    }

    fn sync_all(&self, file: &usize) -> io::Result<()> {
        let mut state = self.step()?;
        let file = &mut state.files[*file];
        file.synced = file.data.len();
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.step()?;
        let file = state.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
        state.names.insert(to.into(), file);
        Ok(())
    }

    fn sync_folder(&self, _: &Path) -> io::Result<()> {
        let mut state = self.step()?;
        state.synced = state.names.clone();
        Ok(())
    }
}

/// Raises some floors, with a rewrite and a restart in between, and returns those that were acknowledged.
fn acknowledged(disk: &Frail) -> Vec<FencingToken> {
    let mut acknowledged = Vec::new();
    for (epoch, restarts) in [(1, true), (2, false), (3, true), (4, false)] {
        let Ok(mut log) = Log::open(disk.clone(), "floors".into()) else {
            continue;
        };
        for key in ["a", "b"] {
            let token = token(key, epoch);
            acknowledged.extend(log.raise(&token).is_ok().then_some(token));
            if !restarts {
                log.lines = 2 * SPARE_LINES;
            }
        }
    }
    acknowledged
}

#[test]
fn r21_what_was_acknowledged_is_there_after_a_power_failure_at_any_time() {
    let all = acknowledged(&Frail::new(usize::MAX)).len();
    assert_eq!(all, 8);
    for steps in 0.. {
        let disk = Frail::new(steps);
        let known = acknowledged(&disk);
        for data in [Unsynced::Lost, Unsynced::Half, Unsynced::Kept] {
            for names in [Unsynced::Lost, Unsynced::Kept] {
                let disk = disk.restarted(data, names);
                let log = Log::open(disk, "floors".into());
                let mut log = log.unwrap_or_else(|error| panic!("{steps} {data:?}: {error}"));
                for token in &known {
                    let floor = log.raise(&self::token(token.key().as_str(), 1)).unwrap();
                    assert!(
                        floor >= token.epoch(),
                        "after {steps} steps, data {data:?}, names {names:?}: {token} was acknowledged, and the floor \
                         is {floor}"
                    );
                }
            }
        }
        if known.len() == all {
            assert!(steps > 40, "{steps} steps");
            return;
        }
    }
}

/// Neither a pipe nor a folder of `/proc` can be synced: the call returns an error.
#[cfg(target_os = "linux")]
#[test]
fn r21_the_system_is_asked_to_sync() {
    let (_reader, writer) = io::pipe().unwrap();
    let pipe = fs::File::from(std::os::fd::OwnedFd::from(writer));
    assert!(Os.sync_data(&pipe).is_err());
    assert!(Os.sync_all(&pipe).is_err());
    assert!(Os.sync_folder(Path::new("/proc")).is_err());
}

#[test]
fn r21_a_floor_is_there_after_a_restart() {
    let place = Place::new();
    let mut log = open(&place);
    assert_eq!(log.raise(&token("a", 7)).unwrap().get(), 7);
    assert_eq!(log.raise(&token("b", 3)).unwrap().get(), 3);
    assert_eq!(log.raise(&token("a", 5)).unwrap().get(), 7);
    drop(log);
    let mut log = open(&place);
    assert_eq!(log.raise(&token("a", 6)).unwrap().get(), 7);
    assert_eq!(log.raise(&token("b", 4)).unwrap().get(), 4);
}

#[test]
fn half_a_line_was_never_acknowledged_and_nonsense_is_an_error() {
    let place = Place::new();
    fs::write(&place.0, "a;7\na;9").unwrap();
    assert_eq!(open(&place).raise(&token("a", 1)).unwrap().get(), 7);
    assert_eq!(fs::read_to_string(&place.0).unwrap(), "a;7\n");
    fs::write(&place.0, "a;7\nlost\nb;1\n").unwrap();
    assert_eq!(
        Log::open(Os, place.0.clone()).err().unwrap().kind(),
        io::ErrorKind::InvalidData
    );
}

/// A disk that was full for a moment must not glue two lines into one.
#[test]
fn after_a_failed_write_the_file_is_made_whole_first() {
    let place = Place::new();
    let mut log = open(&place);
    log.raise(&token("a", 7)).unwrap();
    // As if half a line had been written.
    log.file.write_all(b"a;99").unwrap();
    log.is_torn = true;
    log.raise(&token("a", 8)).unwrap();
    drop(log);
    assert_eq!(fs::read_to_string(&place.0).unwrap(), "a;7\na;8\n");
}

#[test]
fn a_write_that_fails_raises_nothing() {
    let place = Place::new();
    let mut log = open(&place);
    log.raise(&token("a", 7)).unwrap();
    log.file = fs::File::open(&place.0).unwrap();
    assert!(
        log.raise(&token("a", 8)).is_err(),
        "opened for reading only"
    );
    assert_eq!(log.floors[&LeaseKey::new("a").unwrap()].get(), 7);
    assert_eq!(
        log.raise(&token("a", 8)).unwrap().get(),
        8,
        "the next attempt makes a new file"
    );
}

#[test]
fn the_file_does_not_grow_for_ever() {
    let place = Place::new();
    let mut log = open(&place);
    log.lines = 2 * SPARE_LINES;
    log.raise(&token("a", 1)).unwrap();
    assert_eq!(log.lines, 1);
}

/// Two that each know half of what was raised would let a token pass that the other has refused.
#[test]
fn i2_one_at_a_time_has_it_open() {
    let place = Place::new();
    let mut log = open(&place);
    log.raise(&token("a", 7)).unwrap();
    assert_eq!(
        Log::open(Os, place.0.clone()).err().unwrap().kind(),
        io::ErrorKind::ResourceBusy
    );
    // A new file in its place changes nothing about that.
    log.lines = 2 * SPARE_LINES;
    log.raise(&token("a", 8)).unwrap();
    assert_eq!(
        Log::open(Os, place.0.clone()).err().unwrap().kind(),
        io::ErrorKind::ResourceBusy
    );
    drop(log);
    assert_eq!(open(&place).raise(&token("a", 1)).unwrap().get(), 8);
}

/// Between the writing of a new file and its renaming, or in the middle of that.
#[test]
fn r21_what_a_crash_left_beside_it_is_no_floor() {
    let place = Place::new();
    open(&place).raise(&token("a", 7)).unwrap();
    fs::write(beside(&place.0, ".new"), "a;9\nb").unwrap();
    assert_eq!(open(&place).raise(&token("a", 1)).unwrap().get(), 7);
    assert!(!beside(&place.0, ".new").exists());
}

#[tokio::test]
async fn it_works_as_a_mark() {
    let place = Place::new();
    let mark = FileMark::open(&place.0).unwrap();
    assert_eq!(mark.raise(&token("a", 7)).await.unwrap().unwrap().get(), 7);
    assert_eq!(
        mark.clone()
            .raise(&token("a", 2))
            .await
            .unwrap()
            .unwrap()
            .get(),
        7
    );
}
