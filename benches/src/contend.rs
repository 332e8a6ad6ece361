//! Calls on one thread and on two at once. Only time can tell.

#![expect(clippy::disallowed_types, reason = "there is no runtime here, and the clock is never paused")]

use std::{
    fmt::Debug,
    hint::black_box,
    pin::pin,
    sync::Barrier,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use tower_service::Service;

/// Calls a second, all threads together, each through a clone of its own.
///
/// # Panics
///
/// If a call is not done at once.
pub fn calls_a_second<S>(threads: usize, service: &S) -> f64
where
    S: Service<u32, Error: Debug> + Clone + Send,
{
    let services = vec![service.clone(); threads];
    rate(services, |service, index| {
        let mut context = Context::from_waker(Waker::noop());
        assert!(service.poll_ready(&mut context).is_ready());
        let future = pin!(service.call(black_box(index)));
        let Poll::Ready(answer) = future.poll(&mut context) else { panic!("a call that waits") };
        drop(black_box(answer.expect("a call that succeeds")));
    })
}

/// How often a second all of them together do something: of the time that each was on a processor, because on a machine
/// with other work two threads do not run as often as one.
pub fn rate<T: Send>(each: Vec<T>, what: impl Fn(&mut T, u32) + Sync) -> f64 {
    let start = Barrier::new(each.len());
    let rate = |mut own: T| {
        start.wait();
        let (began, ran) = (Instant::now(), on_cpu());
        let mut done = 0_u32;
        while began.elapsed() < ROUND {
            for _ in 0..1_000 {
                what(&mut own, done);
                done = done.wrapping_add(1);
            }
        }
        f64::from(done) / (on_cpu() - ran).as_secs_f64()
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = each.into_iter().map(|own| scope.spawn(|| rate(own))).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).sum()
    })
}

/// Rates of one thread and of two, in turns, in millions; and the ratio of each turn.
pub fn one_and_two(rounds: usize, mut rate: impl FnMut(usize) -> f64) -> [[f64; 3]; 3] {
    let rounds: Vec<_> = (0..rounds).map(|_| (rate(1) / 1e6, rate(2) / 1e6)).collect();
    [
        spread(rounds.iter().map(|(one, _)| *one)),
        spread(rounds.iter().map(|(_, two)| *two)),
        spread(rounds.iter().map(|(one, two)| two / one)),
    ]
}

/// Median, lowest and highest.
pub fn spread(values: impl Iterator<Item = f64>) -> [f64; 3] {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    [values[values.len() / 2], values[0], values[values.len() - 1]]
}

/// As the tables show it.
pub fn shown([median, low, high]: [f64; 3]) -> String {
    format!("{median:.2} ({low:.2}–{high:.2})")
}

/// How long this thread has been on a processor. Linux only.
fn on_cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux with schedstats");
    let nanos = stat.split(' ').next().and_then(|nanos| nanos.parse().ok());
    Duration::from_nanos(nanos.expect("a number first"))
}

const ROUND: Duration = Duration::from_millis(300);
