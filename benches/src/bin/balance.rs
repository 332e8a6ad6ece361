//! What a balance costs that no instruction count shows: two threads in one, a change of one endpoint, memory.
//!
//! Prints one Markdown table. The endpoints do nothing, and are all ready.
#![forbid(unsafe_code)]
#![expect(clippy::disallowed_types, reason = "there is no runtime here, and the clock is never paused")]

use std::time::Instant;

use allocation_counter::measure;
use tower_benches::{
    balanced::Balanced,
    contend::{calls_a_second, one_and_two, shown, spread},
    drive::Bare,
};
use tower_resolve::policy::{LeastRequest, Maglev, PeakEwma, Policy, RingHash, RoundRobin, WeightedRoundRobin};

fn main() {
    println!(
        "| policy | endpoints | 1 thread M/s | 2 threads M/s | 2T/1T | one out and one in, µs | bytes an endpoint |"
    );
    println!("|---|---|---|---|---|---|---|");
    let bare = one_and_two(ROUNDS, |threads| calls_a_second(threads, &Bare)).map(shown);
    println!("| (no balance) | | {} | | |", bare.join(" | "));
    for endpoints in [2, 10, 100, 1_000, 10_000] {
        row("round robin", endpoints, RoundRobin::new);
        row("least request", endpoints, || LeastRequest);
        row("weighted round robin", endpoints, WeightedRoundRobin::new);
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

    let threads = one_and_two(ROUNDS, |threads| calls_a_second(threads, &balanced.balance)).map(shown);
    let change = (0..ROUNDS as u32).map(|round| {
        let began = Instant::now();
        (0..CHANGES).for_each(|index| balanced.change((round * CHANGES + index) * 7_919 % endpoints));
        began.elapsed().as_secs_f64() * 1e6 / f64::from(CHANGES)
    });
    let (change, bytes) = (shown(spread(change)), (all - fixed) / i64::from(endpoints));
    println!("| {name} | {endpoints} | {} | {change} | {bytes} |", threads.join(" | "));
}

const ROUNDS: usize = 5;
const CHANGES: u32 = 20;
