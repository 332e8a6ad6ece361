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

#[cfg(all(test, not(loom)))]
mod tests;

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
        // Before a thread is taken: a caller that times out while the disk hangs leaves no work behind.
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
