//! What a balance costs that no instruction count shows: two threads in one, a change of one endpoint, memory.
//!
//! Prints one Markdown table. The endpoints do nothing, and are all ready. The last ratio is of calls with a microsecond of
//! something else after each, which is still less than any endpoint takes. A line is how long a cache line takes from one
//! thread to the other, which is what threads that write to one endpoint cannot do without.
#![forbid(unsafe_code)]
#![expect(
    clippy::disallowed_types,
    reason = "there is no runtime here, and the clock is never paused"
)]

use std::{fmt::Debug, time::Instant};

use allocation_counter::measure;
use tower_benches::{
    balanced::Balanced,
    contend::{calls_a_second, one_and_two, shown, spread, transfer},
    drive::Bare,
};
use tower_resolve::policy::{LeastRequest, Maglev, PeakEwma, Policy, RingHash, RoundRobin};
use tower_service::Service;

fn main() {
    println!(
        "| policy | endpoints | a line, ns | 1 thread M/s | 2 threads M/s | 2T/1T | 2T/1T, 1 µs between | one out and one in, µs | bytes an endpoint |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    println!("| (no balance) | | {} | | |", threads(&Bare));
    for endpoints in [2, 10, 100, 1_000, 10_000] {
        row("round robin", endpoints, RoundRobin::new);
        row("least request", endpoints, || LeastRequest);
        row("peak EWMA", endpoints, || PeakEwma);
        row("ring hash", endpoints, || RingHash::new(key));
        row("maglev", endpoints, || Maglev::new(key));
    }
}

#[expect(clippy::unnecessary_wraps, reason = "not every request has one")]
fn key(request: &u32) -> Option<u64> {
    Some(u64::from(*request))
}

fn row<P: Policy<u32>>(name: &str, endpoints: u32, policy: impl Fn() -> P) {
    let mut balanced = None;
    let all = measure(|| balanced = Some(Balanced::new(endpoints, policy()))).bytes_current;
    let mut balanced = balanced.expect("it was made");
    // What a balance costs before it has any.
    let mut none = None;
    let fixed = measure(|| none = Some(Balanced::new(0, policy()))).bytes_current;
    drop(none);

    let threads = threads(&balanced.balance);
    let change = (0..ROUNDS as u32).map(|round| {
        let began = Instant::now();
        (0..CHANGES)
            .for_each(|index| balanced.change((round * CHANGES + index) * 7_919 % endpoints));
        began.elapsed().as_secs_f64() * 1e6 / f64::from(CHANGES)
    });
    let (change, bytes) = (shown(spread(change)), (all - fixed) / i64::from(endpoints));
    println!("| {name} | {endpoints} | {threads} | {change} | {bytes} |");
}

/// The columns of what threads do to each other.
fn threads<S>(service: &S) -> String
where
    S: Service<u32, Error: Debug> + Clone + Send,
{
    let [one, two, ratio] =
        one_and_two(ROUNDS, |threads| calls_a_second(threads, service, 0)).map(shown);
    let [.., busy] = one_and_two(ROUNDS, |threads| {
        calls_a_second(threads, service, A_MICROSECOND)
    })
    .map(shown);
    // After, so that a host that moves a processor meanwhile is seen.
    let line = shown(spread((0..3).map(|_| transfer())));
    [line, one, two, ratio, busy].join(" | ")
}

const ROUNDS: usize = 5;
/// Of multiplications.
const A_MICROSECOND: u32 = 1_000;
const CHANGES: u32 = 20;
