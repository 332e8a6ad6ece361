//! Signals, in a separate process.

use std::time::Duration;

use rustix::process::{Signal, getpid, kill_process};
use tokio::time::timeout;
use tower_drain::{Drain, Phase};

#[tokio::test]
async fn the_first_signal_begins_and_the_second_forces() {
    if !testkit::alone("signal::the_first_signal_begins_and_the_second_forces") {
        return;
    }
    let drain = Drain::builder().force(Duration::ZERO).build();
    let guard = drain.guard();
    let signals = tokio::spawn(drain.on_signals());
    // Sent before the task was ever polled: the handlers are in place already.
    kill_process(getpid(), Signal::TERM).unwrap();
    timeout(Duration::from_secs(5), drain.announcing())
        .await
        .unwrap();
    assert_eq!(drain.phase(), Phase::Announcing);
    kill_process(getpid(), Signal::INT).unwrap();
    let report = timeout(Duration::from_secs(3), drain.done()).await.unwrap();
    assert_eq!((report.forced, report.leaked), (1, 1));
    timeout(Duration::from_secs(1), signals)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    drop(guard);
}
