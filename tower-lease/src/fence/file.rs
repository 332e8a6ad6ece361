use std::{
    collections::BTreeMap,
    ffi::OsString,
    fmt, fs,
    io::{self, Write},
    num::NonZeroU64,
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio::sync::Mutex;
use tower_outcome::BoxError;

use super::{
    HighWaterCache, HighWaterMark,
    high_water_mark::{MAX_KEYS, raise},
};
use crate::{FencingToken, LeaseKey};

/// Keeps the highest tokens in a file: one line each time one rises, on the disk before the request passes.
///
/// At most 65 536 keys. The file is rewritten when it has grown to twice its keys and 1 024 lines; what a crash left
/// half-written was never acknowledged, and is dropped. The writes are made on Tokio's threads for blocking work.
///
/// One process at a time has it open, for each would miss what the other raised: a second one is refused. For that, and
/// for as long as a clone lives, a file beside it (`.lock`) is locked; the system lets go of it when the process ends.
/// (By `flock` on Unix, by not sharing it on Windows. Elsewhere nothing stops a second one.)
#[derive(Clone)]
pub struct FileMark {
    log: Arc<Mutex<Log>>,
    cache: HighWaterCache,
}

struct Log<D: Disk = Os> {
    disk: D,
    path: PathBuf,
    file: D::File,
    lines: usize,
    /// What is on the disk for certain.
    floors: BTreeMap<LeaseKey, NonZeroU64>,
    /// A write failed, so the file's end is not to be trusted.
    is_torn: bool,
    /// Closed last, and so let go.
    _lock: D::Lock,
}

/// What a log wants of a disk. Nothing is there after a power failure but what was synced: the tests have a disk to try
/// that with.
trait Disk {
    type File;
    type Lock;

    fn lock(&self, path: &Path) -> io::Result<Self::Lock>;
    fn read(&self, path: &Path) -> io::Result<String>;
    /// A new file, or an empty one in the place of what was there.
    fn create(&self, path: &Path) -> io::Result<Self::File>;
    fn append(&self, file: &mut Self::File, bytes: &[u8]) -> io::Result<()>;
    /// What was appended is on the disk.
    fn sync_data(&self, file: &Self::File) -> io::Result<()>;
    /// The file is on the disk, though perhaps not its name.
    fn sync_all(&self, file: &Self::File) -> io::Result<()>;
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// The names in the folder are on the disk.
    fn sync_folder(&self, folder: &Path) -> io::Result<()>;
}

#[derive(Clone, Copy)]
struct Os;

const SPARE_LINES: usize = 1_024;

// === impl FileMark ===

impl FileMark {
    /// Reads the file, or makes it. It blocks: call it at the start.
    ///
    /// # Errors
    ///
    /// It cannot be read and written; another one has it open (`ResourceBusy`); or it is not of this kind
    /// (`InvalidData`): a floor that cannot be read is not to be passed over.
    pub fn open(path: impl Into<PathBuf>) -> io::Result<Self> {
        Ok(Self {
            log: Arc::new(Mutex::new(Log::open(Os, path.into())?)),
            cache: HighWaterCache::new(),
        })
    }
}

impl HighWaterMark for FileMark {
    fn cache(&self) -> &HighWaterCache {
        &self.cache
    }

    async fn raise(&self, token: &FencingToken) -> Result<Option<NonZeroU64>, BoxError> {
        // Before a thread is taken: whoever gives up waiting for a disk that hangs leaves nothing behind.
        let (mut log, token) = (self.log.clone().lock_owned().await, token.clone());
        Ok(Some(
            tokio::task::spawn_blocking(move || log.raise(&token)).await??,
        ))
    }
}

impl fmt::Debug for FileMark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileMark").finish_non_exhaustive()
    }
}

// === impl Log ===

impl<D: Disk> Log<D> {
    fn open(disk: D, path: PathBuf) -> io::Result<Self> {
        let lock = disk.lock(&beside(&path, ".lock"))?;
        let text = match disk.read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            read => read?,
        };
        let floors = read(&text)?;
        let file = rewrite(&disk, &path, &floors)?;
        Ok(Self {
            disk,
            path,
            file,
            lines: floors.len(),
            floors,
            is_torn: false,
            _lock: lock,
        })
    }

    fn raise(&mut self, token: &FencingToken) -> io::Result<NonZeroU64> {
        match self.floors.get(token.key()) {
            Some(floor) if *floor >= token.epoch() => return Ok(*floor),
            None if self.floors.len() >= MAX_KEYS => {
                return Err(io::Error::other("as many keys as there may be"));
            }
            _ => {}
        }
        self.make_whole()?;
        self.is_torn = true;
        self.disk
            .append(&mut self.file, format!("{token}\n").as_bytes())?;
        self.disk.sync_data(&self.file)?;
        self.is_torn = false;
        self.lines += 1;
        Ok(raise(&mut self.floors, token))
    }

    fn make_whole(&mut self) -> io::Result<()> {
        if self.is_torn || self.lines > 2 * self.floors.len() + SPARE_LINES {
            self.file = rewrite(&self.disk, &self.path, &self.floors)?;
            (self.lines, self.is_torn) = (self.floors.len(), false);
        }
        Ok(())
    }
}

/// The lines of a file. A last one without its end was never acknowledged.
fn read(text: &str) -> io::Result<BTreeMap<LeaseKey, NonZeroU64>> {
    let mut floors = BTreeMap::new();
    for line in text
        .split_inclusive('\n')
        .filter_map(|line| line.strip_suffix('\n'))
    {
        let token = line
            .parse()
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        raise(&mut floors, &token);
    }
    Ok(floors)
}

fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut beside = OsString::from(path);
    beside.push(ending);
    beside.into()
}

/// Puts a new file in the place of the old one, in one step, and opens it at its end.
fn rewrite<D: Disk>(
    disk: &D,
    path: &Path,
    floors: &BTreeMap<LeaseKey, NonZeroU64>,
) -> io::Result<D::File> {
    let beside = beside(path, ".new");
    let lines: String = floors
        .iter()
        .map(|(key, epoch)| format!("{key};{epoch}\n"))
        .collect();
    let mut file = disk.create(&beside)?;
    disk.append(&mut file, lines.as_bytes())?;
    disk.sync_all(&file)?;
    disk.rename(&beside, path)?;
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    disk.sync_folder(folder)?;
    Ok(file)
}

// === impl Os ===

impl Disk for Os {
    type File = fs::File;
    type Lock = fs::File;

    fn lock(&self, path: &Path) -> io::Result<fs::File> {
        lock::take(path)
    }

    fn read(&self, path: &Path) -> io::Result<String> {
        fs::read_to_string(path)
    }

    fn create(&self, path: &Path) -> io::Result<fs::File> {
        fs::File::create(path)
    }

    fn append(&self, file: &mut fs::File, bytes: &[u8]) -> io::Result<()> {
        file.write_all(bytes)
    }

    fn sync_data(&self, file: &fs::File) -> io::Result<()> {
        file.sync_data()
    }

    fn sync_all(&self, file: &fs::File) -> io::Result<()> {
        file.sync_all()
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        // Not every system lets a folder be opened; those that need it synced do.
        match fs::File::open(folder) {
            Ok(folder) => folder.sync_all(),
            Err(_) => Ok(()),
        }
    }
}

#[cfg(unix)]
mod lock {
    use std::{fs::File, io, path::Path};

    use rustix::fs::{FlockOperation, flock};

    pub(super) fn take(path: &Path) -> io::Result<File> {
        let file = File::options().create(true).append(true).open(path)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(file),
            Err(error) if error == rustix::io::Errno::WOULDBLOCK => Err(super::busy()),
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(windows)]
mod lock {
    use std::{fs::File, io, os::windows::fs::OpenOptionsExt, path::Path};

    const SHARING_VIOLATION: i32 = 32;

    pub(super) fn take(path: &Path) -> io::Result<File> {
        let opened = File::options()
            .create(true)
            .append(true)
            .share_mode(0)
            .open(path);
        opened.map_err(|error| {
            if error.raw_os_error() == Some(SHARING_VIOLATION) {
                super::busy()
            } else {
                error
            }
        })
    }
}

#[cfg(not(any(unix, windows)))]
mod lock {
    use std::{fs::File, io, path::Path};

    pub(super) fn take(path: &Path) -> io::Result<File> {
        File::options().create(true).append(true).open(path)
    }
}

#[cfg(any(unix, windows))]
fn busy() -> io::Error {
    io::Error::new(
        io::ErrorKind::ResourceBusy,
        "another fence has the file of these floors open",
    )
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    /// A path of its own, removed in the end.
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

    /// A disk that loses power after so many steps, and then does nothing more.
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

    /// Raises some floors, with a rewriting and a restart in between, and says which were acknowledged.
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

    /// Neither a pipe nor a folder of `/proc` can be synced, and who asks is told so.
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
}
