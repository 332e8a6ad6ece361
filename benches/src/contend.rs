//! Calls on one thread and on two at once, measured by time.

#![expect(
    clippy::disallowed_types,
    reason = "there is no runtime here, and the clock is never paused"
)]

use std::{
    fmt::Debug,
    hint::{black_box, spin_loop},
    pin::pin,
    sync::{
        Barrier,
        atomic::{
            AtomicU32,
            Ordering::{Acquire, Release},
        },
    },
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use tower_service::Service;

/// Calls per second of all threads together, each with its own clone. Between two calls, a thread does `between` dependent
/// multiplications of about a nanosecond each.
///
/// # Panics
///
/// If a call is not done at once.
pub fn calls_a_second<S>(threads: usize, service: &S, between: u32) -> f64
where
    S: Service<u32, Error: Debug> + Clone + Send,
{
    let services = vec![service.clone(); threads];
    rate(services, |service, index| {
        let mut context = Context::from_waker(Waker::noop());
        assert!(service.poll_ready(&mut context).is_ready());
        let future = pin!(service.call(black_box(index)));
        let Poll::Ready(answer) = future.poll(&mut context) else {
            panic!("a call that waits")
        };
        drop(black_box(answer.expect("a call that succeeds")));
        black_box((0..between).fold(u64::from(index) | 1, |product, _| {
            black_box(product).wrapping_mul(5)
        }));
    })
}

/// How often a second all of them together do something: of the time that each was on a processor.
///
/// Only a round counts in which all of them were, nearly all the time. Threads that take turns on a machine with other work
/// do nothing to each other, and would look as good as two of everything.
///
/// # Panics
///
/// If there is no such round among many.
pub fn rate<T: Send>(mut each: Vec<T>, what: impl Fn(&mut T, u32) + Sync) -> f64 {
    for _ in 0..TRIES {
        let start = Barrier::new(each.len());
        let round = |own: &mut T, first: u32| {
            start.wait();
            let (began, ran) = (Instant::now(), on_cpu());
            let mut done = first;
            while began.elapsed() < ROUND {
                for _ in 0..1_000 {
                    what(own, done);
                    done = done.wrapping_add(1);
                }
            }
            let (took, ran) = (
                began.elapsed().as_secs_f64(),
                (on_cpu() - ran).as_secs_f64(),
            );
            (f64::from(done.wrapping_sub(first)) / ran, ran / took)
        };
        let round = &round;
        let rounds: Vec<_> = std::thread::scope(|scope| {
            // From different numbers on, or all of them would have the same at the same time.
            let firsts = (0..u32::MAX).step_by(1 << 30);
            let threads = each
                .iter_mut()
                .zip(firsts)
                .map(|(own, first)| scope.spawn(move || round(own, first)));
            let threads: Vec<_> = threads.collect();
            threads
                .into_iter()
                .map(|thread| thread.join().expect("no panic"))
                .collect()
        });
        if rounds.iter().all(|(_, part)| *part > AT_ONCE) {
            return rounds.into_iter().map(|(rate, _)| rate).sum();
        }
    }
    panic!(
        "the threads never ran at once: the machine has too much else to do (`chrt -r 10` puts them first)"
    );
}

/// How long a cache line takes from one thread to another, in nanoseconds: what no layout can do without when both write to
/// one endpoint. On a virtual machine it depends on where the host has put the processors, and changes with that.
pub fn transfer() -> f64 {
    let ball = AtomicU32::new(0);
    let play = |mine: u32| {
        let began = Instant::now();
        for turn in 0..TURNS {
            while ball.load(Acquire) != 2 * turn + mine {
                spin_loop();
            }
            ball.store(2 * turn + mine + 1, Release);
        }
        began.elapsed().as_secs_f64() * 1e9 / f64::from(2 * TURNS)
    };
    std::thread::scope(|scope| {
        let other = scope.spawn(|| play(1));
        let own = play(0);
        other.join().map_or(own, |other| own.min(other))
    })
}

/// Rates of one thread and of two, in turns, in millions; and the ratio of each turn.
pub fn one_and_two(rounds: usize, mut rate: impl FnMut(usize) -> f64) -> [[f64; 3]; 3] {
    let rounds: Vec<_> = (0..rounds)
        .map(|_| (rate(1) / 1e6, rate(2) / 1e6))
        .collect();
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
    [
        values[values.len() / 2],
        values[0],
        values[values.len() - 1],
    ]
}

/// As the tables show it.
pub fn shown([median, low, high]: [f64; 3]) -> String {
    format!("{median:.2} ({low:.2}–{high:.2})")
}

/// How long this thread has been on a processor. Linux only.
fn on_cpu() -> Duration {
    let stat =
        std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux with schedstats");
    let nanos = stat.split(' ').next().and_then(|nanos| nanos.parse().ok());
    Duration::from_nanos(nanos.expect("a number first"))
}

/// Short, so that some are undisturbed.
const ROUND: Duration = Duration::from_millis(100);

/// The part of a round that each thread has to be on a processor.
const AT_ONCE: f64 = 0.95;

const TRIES: usize = 100;

const TURNS: u32 = 20_000;
