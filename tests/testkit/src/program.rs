#![expect(clippy::disallowed_types, reason = "a program's time cannot be paused")]

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    thread,
    time::{Duration, Instant},
};

/// A program under test, run as its user runs it. Killed when dropped.
///
/// What it prints is read line by line, each wait bounded by [`Program::PATIENCE`]; what it logs goes to the test's own
/// standard error.
#[derive(Debug)]
pub struct Program {
    child: Child,
    lines: Receiver<String>,
}

impl Program {
    /// Nothing that a test waits for takes longer, unless it hangs.
    pub const PATIENCE: Duration = Duration::from_secs(30);

    /// Starts it.
    ///
    /// # Panics
    ///
    /// If it cannot be started.
    pub fn start(path: impl AsRef<Path>, arguments: &[&str]) -> Self {
        let mut command = Command::new(path.as_ref());
        command
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        let mut child = command
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}", path.as_ref().display()));
        let output = BufReader::new(child.stdout.take().expect("piped"));
        let (told, lines) = channel();
        // Ends with the program's standard output.
        thread::spawn(move || {
            output
                .lines()
                .map_while(Result::ok)
                .try_for_each(|line| told.send(line))
        });
        Self { child, lines }
    }

    /// Waits for a line that begins with `prefix`, and gives the rest of it.
    ///
    /// # Panics
    ///
    /// If it ends, or does not print such a line in time.
    pub fn told(&self, prefix: &str) -> String {
        let deadline = Instant::now() + Self::PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = self
                .lines
                .recv_timeout(left)
                .unwrap_or_else(|_| panic!("it never printed {prefix:?}"));
            if let Some(rest) = line.strip_prefix(prefix) {
                return rest.to_owned();
            }
        }
    }

    /// Sends it a signal, by name (`TERM`).
    ///
    /// # Panics
    ///
    /// If the signal cannot be sent.
    pub fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        let sent = Command::new("kill")
            .args([&format!("-{name}"), &id])
            .status();
        assert!(
            sent.is_ok_and(|status| status.success()),
            "no {name} for process {id}"
        );
    }

    /// Waits for its end: its exit code, `None` after a signal that killed it, and the lines not read before.
    ///
    /// # Panics
    ///
    /// If it does not end in time.
    pub fn ended(mut self) -> (Option<i32>, Vec<String>) {
        let deadline = Instant::now() + Self::PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().expect("a child of this process") {
                return (status.code(), self.lines.iter().collect());
            }
            assert!(Instant::now() < deadline, "it does not end");
            thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
