use std::{
    error::Error,
    fmt, io,
    path::{Path, PathBuf},
};

/// What is wrong with a file of endpoints, where, and how to correct it.
///
/// The text is one line, such as `echo.toml:7: weight: invalid value: integer 0, expected a nonzero u32; correct it, the
/// last good set stays in use until then`.
#[derive(Debug)]
pub struct FileError {
    path: PathBuf,
    line: Option<usize>,
    kind: Kind,
}

#[derive(Debug)]
pub(super) enum Kind {
    Unreadable(io::Error),
    NoFile,
    TooLarge { max: usize },
    Empty,
    Broken(String),
}

// === impl FileError ===

impl FileError {
    pub(super) fn new(path: &Path, kind: Kind) -> Self {
        Self {
            path: path.to_owned(),
            line: None,
            kind,
        }
    }

    pub(super) fn at_line(self, line: Option<usize>) -> Self {
        Self { line, ..self }
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The line, counted from 1, if known.
    #[must_use]
    pub fn line(&self) -> Option<usize> {
        self.line
    }
}

impl fmt::Display for FileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        f.write_str(": ")?;
        match &self.kind {
            Kind::Unreadable(error) if error.kind() == io::ErrorKind::NotFound => {
                f.write_str("there is no such file; put it there or correct the path")?;
            }
            Kind::Unreadable(_) => f.write_str("cannot be read; see that this program may read it")?,
            Kind::NoFile => f.write_str("is no ordinary file; name one")?,
            Kind::TooLarge { max } => write!(f, "has more than {max} bytes; raise `max_bytes` or split it")?,
            Kind::Empty => f.write_str(
                "is empty, as a file is whose writing was cut off; to say that a name has no endpoints, write `name = []`",
            )?,
            Kind::Broken(message) => write!(f, "{message}; correct it")?,
        }
        f.write_str(", the last good set stays in use until then")
    }
}

impl Error for FileError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match &self.kind {
            Kind::Unreadable(error) => Some(error),
            _ => None,
        }
    }
}
