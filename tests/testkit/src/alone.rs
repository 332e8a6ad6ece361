use std::{
    env,
    process::{Command, Stdio},
};

/// Runs a test again in a separate process, or returns true in that process. For tests of process-wide state: signals, limits,
/// the cache of `tracing` subscribers. The other tests of a binary are threads of the same process.
///
/// ```no_run
/// # // In a file `signal.rs`:
/// #[test]
/// fn a_signal_is_received() {
///     if !testkit::alone("signal::a_signal_is_received") {
///         return;
///     }
///     // Here no other test runs.
/// }
/// ```
///
/// # Panics
///
/// If there is no such test, or it fails.
pub fn alone(test: &str) -> bool {
    if env::var_os(MARKER).is_some_and(|marked| marked == test) {
        return true;
    }
    let mut command = Command::new(env::current_exe().expect("a test binary"));
    command
        .args(["--exact", test, "--include-ignored", "--nocapture"])
        .env(MARKER, test);
    passes(test, &mut command);
    false
}

/// Runs one test of a test binary by this command, to its end, and prints its output.
///
/// # Panics
///
/// If no test ran, or it failed.
pub fn passes(test: &str, command: &mut Command) {
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .unwrap_or_else(|error| panic!("{test}: {error}"));
    let said = String::from_utf8_lossy(&output.stdout);
    print!("{said}");
    // A name that is wrong selects nothing, and that passes.
    assert!(
        output.status.success() && said.contains("test result: ok. 1 passed"),
        "{test} did not pass in its own process"
    );
}

const MARKER: &str = "TESTKIT_ALONE";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_runs_again_in_another_process() {
        let name = "alone::tests::a_test_runs_again_in_another_process";
        if alone(name) {
            assert_eq!(env::args().nth(2).as_deref(), Some(name));
        }
    }

    #[test]
    #[should_panic(expected = "did not pass")]
    fn a_name_that_no_test_has_does_not_pass() {
        alone("alone::tests::nobody");
    }
}
