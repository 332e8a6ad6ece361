use std::{
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::Mutex,
    time::{Instant, sleep},
};

use super::{
    error::{FileError, Kind},
    format::{Format, Names},
};
use crate::{Generation, SourceId};

/// Reads the file for all followers: one read at a time, and not more often than configured.
pub(super) struct Reader {
    path: Arc<PathBuf>,
    format: Format,
    every: Duration,
    max_bytes: usize,
    known: Mutex<Known>,
}

/// The last known contents of the file.
#[derive(Clone, Default)]
pub(super) struct View {
    /// The last valid contents.
    pub(super) content: Option<(Generation, Arc<Names>)>,
    /// Why they are not the current ones.
    pub(super) trouble: Option<Arc<FileError>>,
}

struct Known {
    next: Generation,
    looked_at: Option<Instant>,
    seen: Option<Seen>,
    view: View,
}

/// The result of a read: the text, or an error.
type Seen = Result<Vec<u8>, Arc<io::Error>>;

// === impl Reader ===

impl Reader {
    pub(super) fn new(path: PathBuf, format: Format) -> Self {
        Self {
            path: Arc::new(path),
            format,
            every: Duration::from_secs(1),
            max_bytes: 16 << 20,
            known: Mutex::new(Known::new()),
        }
    }

    pub(super) fn with_every(&self, every: Duration) -> Self {
        Self {
            path: self.path.clone(),
            known: Mutex::new(Known::new()),
            every,
            ..*self
        }
    }

    pub(super) fn with_max_bytes(&self, max_bytes: usize) -> Self {
        Self {
            path: self.path.clone(),
            known: Mutex::new(Known::new()),
            max_bytes,
            ..*self
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn every(&self) -> Duration {
        self.every
    }

    pub(super) fn check(&self) -> Result<(), FileError> {
        self.understand(&read(&self.path, self.max_bytes).map_err(Arc::new))
            .map(drop)
    }

    /// The contents of the file, read now unless another follower just did.
    ///
    /// Cancel safety: what a dropped read has read, the next one reads again.
    pub(super) async fn look(&self) -> View {
        let mut known = self.known.lock().await;
        // Half of it, so that followers in step share a read and none sees one that is an interval old.
        if known
            .looked_at
            .is_none_or(|at| at.elapsed() >= self.every / 2)
        {
            let seen = self.read_still(known.seen.as_ref()).await;
            known.looked_at = Some(Instant::now());
            if !is_same(known.seen.as_ref(), &seen) {
                let understood = self.understand(&seen);
                known.learn(understood);
                known.seen = Some(seen);
            }
        }
        known.view.clone()
    }

    /// Reads until the result was the same twice, or known before.
    async fn read_still(&self, known: Option<&Seen>) -> Seen {
        let mut seen = self.read().await;
        for _ in 0..STILL_TRIES {
            if is_same(known, &seen) {
                break;
            }
            sleep(STILL_FOR).await;
            let again = self.read().await;
            if is_same(Some(&seen), &again) {
                break;
            }
            seen = again;
        }
        seen
    }

    async fn read(&self) -> Seen {
        let (path, max_bytes) = (self.path.clone(), self.max_bytes);
        let read = tokio::task::spawn_blocking(move || read(&path, max_bytes)).await;
        read.unwrap_or_else(|error| Err(io::Error::other(error)))
            .map_err(Arc::new)
    }

    fn understand(&self, seen: &Seen) -> Result<Names, FileError> {
        let broken = |kind| FileError::new(&self.path, kind);
        let bytes = match seen {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::FileTooLarge => {
                return Err(broken(Kind::TooLarge {
                    max: self.max_bytes,
                }));
            }
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                return Err(broken(Kind::NoFile));
            }
            Err(error) => {
                return Err(broken(Kind::Unreadable(io::Error::new(
                    error.kind(),
                    error.clone(),
                ))));
            }
        };
        let text = std::str::from_utf8(bytes).map_err(|error| {
            let line = 1 + bytes[..error.valid_up_to()]
                .iter()
                .filter(|byte| **byte == b'\n')
                .count();
            broken(Kind::Broken("is not UTF-8".to_owned())).at_line(Some(line))
        })?;
        if text.trim().is_empty() {
            return Err(broken(Kind::Empty));
        }
        (self.format)(text).map_err(|found| broken(Kind::Broken(found.message)).at_line(found.line))
    }
}

/// All of an ordinary file, if it is not too large.
fn read(path: &Path, max_bytes: usize) -> io::Result<Vec<u8>> {
    // Checked first, because opening a pipe would wait for its writer.
    if !std::fs::metadata(path)?.is_file() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut bytes = Vec::new();
    let limit = u64::try_from(max_bytes)
        .unwrap_or(u64::MAX)
        .saturating_add(1);
    File::open(path)?.take(limit).read_to_end(&mut bytes)?;
    if bytes.len() > max_bytes {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    Ok(bytes)
}

fn is_same(known: Option<&Seen>, seen: &Seen) -> bool {
    match (known, seen) {
        (Some(Ok(known)), Ok(seen)) => known == seen,
        (Some(Err(known)), Err(seen)) => known.kind() == seen.kind(),
        _ => false,
    }
}

// === impl Known ===

impl Known {
    fn new() -> Self {
        Self {
            next: Generation::new(SourceId::unique(), 1),
            looked_at: None,
            seen: None,
            view: View::default(),
        }
    }

    /// The only place that replaces the contents. Only a difference uses a generation.
    fn learn(&mut self, understood: Result<Names, FileError>) {
        match understood {
            Ok(names) => {
                self.view.trouble = None;
                if self
                    .view
                    .content
                    .as_ref()
                    .is_some_and(|(_, known)| **known == names)
                {
                    return;
                }
                tracing::info!(generation = self.next.value, "a file of endpoints was read");
                self.view.content = Some((self.next, Arc::new(names)));
                self.next = self.next.next();
            }
            Err(error) => {
                tracing::warn!(%error, "a file of endpoints cannot be used");
                self.view.trouble = Some(Arc::new(error));
            }
        }
    }
}

/// What was read is used when it was the same after this time: longer than the gap between two writes of a file that is
/// written in place.
const STILL_FOR: Duration = Duration::from_millis(50);

/// A file that changes all the time is used as it is after this number of reads.
const STILL_TRIES: usize = 20;
