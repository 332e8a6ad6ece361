//! Endpoints in a TOML or JSON file, followed while it changes.

mod error;
mod format;
mod reader;

use std::{
    collections::VecDeque,
    fmt,
    path::PathBuf,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures_core::{Stream, stream::BoxStream};
use futures_util::{StreamExt, stream};

pub use self::error::FileError;
use self::reader::{Reader, View};
use crate::{Generation, Resolve, Topology, Update, backoff::FOR_EVER};

/// Names and their endpoints from a TOML or JSON file, followed while it changes.
///
/// ```toml
/// # Each name is a list of endpoints. Only `address` is needed; the other lines show what there is.
/// [[echo]]
/// address = "127.0.0.1:8081"
/// id = "echo-1"                       # default: the address
/// weight = 2                          # default: 1
/// priority = 1                        # default: 0, which goes first
/// zone = "eu-1"                       # default: unknown
/// epoch = 42                          # default: not leased
/// phase = "ready"                     # or starting, draining, fenced
/// metadata = { version = "1.4.0" }    # default: none
///
/// [[echo]]
/// address = "127.0.0.1:8082"
/// ```
///
/// JSON has the same shape: `{"echo": [{"address": "127.0.0.1:8081"}]}`. A name with an empty list has no endpoints; a name
/// that is missing does not exist.
///
/// The file is read once a second ([`every`](Self::every)), by one reader for all followers of its names, and compared by
/// content. So it works the same for a file that is replaced, written in place, swapped behind a symbolic link, or on a
/// network file system, where notifications are not available. A content is used once it was read twice, 50 ms apart, so a
/// file that is being written is not taken for a shorter one. (It is better to write another file and rename it.)
///
/// A file that is invalid, empty, too large, or missing is [`Update::Degraded`] with a [`FileError`], which names the line
/// and the correction; the last good set stays in use. The generation counts the changes of content.
///
/// ```no_run
/// use tower_resolve::{CachedResolver, FileResolver, Resolve};
///
/// # fn main() -> Result<(), tower_resolve::FileError> {
/// let file = FileResolver::toml("/etc/echo/endpoints.toml");
/// file.check()?; // Fails early if the file is invalid.
/// let updates = CachedResolver::new(file).resolve("echo");
/// # Ok(())
/// # }
/// ```
///
/// It costs a read of the file per interval, in Tokio's blocking pool, while there are followers, and the memory of its
/// text.
///
/// # Panics
///
/// The updates panic when they are polled outside of a Tokio runtime.
#[derive(Clone)]
pub struct FileResolver {
    reader: Arc<Reader>,
}

/// The updates of one name in a [`FileResolver`].
pub struct FileUpdates(BoxStream<'static, Update>);

/// The state that one follower has seen.
struct Follower {
    reader: Arc<Reader>,
    name: String,
    known: Option<Topology>,
    trouble: Option<Arc<FileError>>,
    queue: VecDeque<Update>,
    is_new: bool,
}

// === impl FileResolver ===

impl FileResolver {
    /// Follows a TOML file.
    pub fn toml(path: impl Into<PathBuf>) -> Self {
        Self {
            reader: Arc::new(Reader::new(path.into(), format::toml)),
        }
    }

    /// Follows a JSON file.
    pub fn json(path: impl Into<PathBuf>) -> Self {
        Self {
            reader: Arc::new(Reader::new(path.into(), format::json)),
        }
    }

    /// How often the file is read. Default: 1 s, which is soon for a file and costs little. At least 10 ms. Discards what
    /// was read before, so set it first.
    #[must_use]
    pub fn every(self, every: Duration) -> Self {
        Self {
            reader: Arc::new(
                self.reader
                    .with_every(every.clamp(Duration::from_millis(10), FOR_EVER)),
            ),
        }
    }

    /// The maximum size. Default: 16 MiB, which is some hundred thousand endpoints. Discards what was read before, so set it
    /// first.
    #[must_use]
    pub fn max_bytes(self, bytes: usize) -> Self {
        Self {
            reader: Arc::new(self.reader.with_max_bytes(bytes)),
        }
    }

    /// Reads the file now and returns whether it is valid: for the start of a program, where an invalid file should be an
    /// error and not an empty set. Blocks on the file.
    ///
    /// # Errors
    ///
    /// What is wrong with the file, where, and how to correct it.
    pub fn check(&self) -> Result<(), FileError> {
        self.reader.check()
    }
}

impl Resolve for FileResolver {
    type Updates = FileUpdates;

    fn resolve(&self, name: &str) -> FileUpdates {
        let follower = Follower {
            reader: self.reader.clone(),
            name: name.to_owned(),
            known: None,
            trouble: None,
            queue: VecDeque::new(),
            is_new: true,
        };
        FileUpdates(
            stream::unfold(follower, |follower| async { Some(follower.next().await) }).boxed(),
        )
    }
}

impl fmt::Debug for FileResolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileResolver")
            .field("path", &self.reader.path())
            .finish_non_exhaustive()
    }
}

// === impl FileUpdates ===

impl Stream for FileUpdates {
    type Item = Update;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Update>> {
        self.0.poll_next_unpin(cx)
    }
}

impl fmt::Debug for FileUpdates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileUpdates").finish_non_exhaustive()
    }
}

// === impl Follower ===

impl Follower {
    async fn next(mut self) -> (Update, Self) {
        loop {
            if let Some(update) = self.queue.pop_front() {
                return (update, self);
            }
            if !std::mem::take(&mut self.is_new) {
                tokio::time::sleep(self.reader.every()).await;
            }
            let view = self.reader.look().await;
            self.hear(&view);
        }
    }

    /// An error is reported once; a valid file is a sign of life each time.
    fn hear(&mut self, view: &View) {
        match (&view.trouble, &view.content) {
            (Some(trouble), _) => {
                if self
                    .trouble
                    .as_ref()
                    .is_none_or(|known| !Arc::ptr_eq(known, trouble))
                {
                    self.queue.push_back(Update::Degraded(trouble.clone()));
                }
            }
            (None, Some((generation, names))) => {
                let next = match names.get(self.name.as_str()) {
                    Some(endpoints) => Topology::new(*generation, endpoints.iter().cloned()),
                    None => Topology::missing(*generation),
                };
                let update = self.told(next, *generation);
                self.queue.push_back(update);
            }
            (None, None) => {}
        }
        self.trouble = view.trouble.clone();
    }

    fn told(&mut self, next: Topology, generation: Generation) -> Update {
        if self
            .known
            .as_ref()
            .is_some_and(|known| known.has_same_endpoints(&next))
        {
            return Update::Progress(generation);
        }
        self.known = Some(next.clone());
        if next.exists() {
            Update::Snapshot(next)
        } else {
            Update::DoesNotExist(generation)
        }
    }
}
