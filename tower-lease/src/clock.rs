use std::time::Duration;

use tokio::time::{Instant, Sleep};

/// An instant on a [`Clock`], in nanoseconds since some start that only this clock knows.
///
/// It is meaningful only beside instants of the same clock: it goes into no message and no file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BootInstant(u64);

/// The clock by which a holder judges its own validity.
///
/// It must never go back, and should count the time the machine was suspended: a holder that slept through the end of
/// its lease must know so at the first look. The generic parameter keeps it off the vtable; it is read on every request.
pub trait Clock: Clone + Send + Sync + 'static {
    /// The time now.
    fn now(&self) -> BootInstant;

    /// Sleeps about that long. The caller reads [`now`](Self::now) again, because timers may run at another rate
    /// than this clock (in suspend, in simulations).
    fn sleep_until(&self, deadline: BootInstant) -> Sleep {
        tokio::time::sleep(deadline.since(self.now()))
    }
}

/// The time since boot, suspend included: `CLOCK_BOOTTIME` on Linux and Android, `CLOCK_MONOTONIC` on Apple's systems.
/// Elsewhere the standard library's monotonic clock, and whether that counts suspend is the platform's choice (Windows:
/// yes).
///
/// The standard library's clock stops on Linux and on Apple's systems while the machine is suspended, so after a resume a
/// lease would seem younger than it is.
///
/// No guest clock covers a **paused virtual machine** for certain: a hypervisor that pauses a guest, migrates it or restores
/// it from a snapshot need not advance any of the guest's clocks. A token check at the resource ([`fence`](crate::fence))
/// protects in that case too.
///
/// Tokio's timers do not count suspend. So after a resume a waiting request may be *woken* late, by up to a renewal
/// period; its answer is withheld all the same, because this clock is read before the response leaves.
///
/// All of a process agree. Do not pair it with a paused Tokio clock: timers would then fire at once, before the deadline
/// on this clock. Use [`TokioClock`] there.
#[derive(Clone, Copy, Debug, Default)]
pub struct BootClock(());

/// Tokio's clock, which a test can pause and advance.
///
/// It does not count suspend: for tests and simulations, not for holders on machines that sleep.
#[derive(Clone, Copy, Debug)]
pub struct TokioClock {
    origin: Instant,
}

// === impl BootInstant ===

impl BootInstant {
    /// 584 years after the start: never.
    pub(crate) const END: Self = Self(u64::MAX);

    /// That many nanoseconds after the clock's start.
    #[must_use]
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Nanoseconds since the clock's start.
    #[must_use]
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// How long after `earlier` this is; zero if it is not.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// The instant this long after; the end of time (584 years) if there is none.
    #[must_use]
    pub fn after(self, duration: Duration) -> Self {
        Self(
            self.0
                .saturating_add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)),
        )
    }
}

// === impl TokioClock ===

impl TokioClock {
    /// A clock that starts now. Its clones agree with it; another `new()` does not.
    #[must_use]
    pub fn new() -> Self {
        Self {
            origin: Instant::now(),
        }
    }
}

impl Default for TokioClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for TokioClock {
    fn now(&self) -> BootInstant {
        BootInstant(0).after(self.origin.elapsed())
    }
}

// === impl BootClock ===

impl BootClock {
    /// The machine's clock.
    #[must_use]
    pub fn new() -> Self {
        Self(())
    }
}

impl Clock for BootClock {
    fn now(&self) -> BootInstant {
        boot::now()
    }
}

#[cfg(any(target_os = "linux", target_os = "android", target_vendor = "apple"))]
mod boot {
    use std::time::Duration;

    use rustix::time::{ClockId, clock_gettime};

    use super::BootInstant;

    #[cfg(not(target_vendor = "apple"))]
    pub(super) const CLOCK: ClockId = ClockId::Boottime;
    /// Apple's counts sleep (clock_gettime(3) there), unlike the `CLOCK_UPTIME_RAW` of the standard library.
    #[cfg(target_vendor = "apple")]
    pub(super) const CLOCK: ClockId = ClockId::Monotonic;

    pub(super) fn now() -> BootInstant {
        let now = clock_gettime(CLOCK);
        // Never negative: it counts from boot.
        let (seconds, nanos) = (u64::try_from(now.tv_sec), u32::try_from(now.tv_nsec));
        BootInstant(0).after(Duration::new(seconds.unwrap_or(0), nanos.unwrap_or(0)))
    }
}

#[cfg(not(any(target_os = "linux", target_os = "android", target_vendor = "apple")))]
use self::elsewhere as boot;

#[cfg(any(
    test,
    not(any(target_os = "linux", target_os = "android", target_vendor = "apple"))
))]
mod elsewhere {
    use std::sync::LazyLock;

    use super::{BootInstant, Clock, TokioClock};

    /// One for the process, so that instants of different `BootClock`s compare.
    static SINCE_FIRST_USE: LazyLock<TokioClock> = LazyLock::new(TokioClock::new);

    pub(super) fn now() -> BootInstant {
        SINCE_FIRST_USE.now()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The two clocks read alike on a machine that was never suspended, so no reading shows which of them is used.
    #[cfg(any(target_os = "linux", target_os = "android"))]
    #[test]
    fn r3_the_boot_clock_is_the_one_that_counts_suspend() {
        assert_eq!(boot::CLOCK, rustix::time::ClockId::Boottime);
    }

    #[test]
    fn r3_the_boot_clock_does_not_go_back() {
        let clock = BootClock::new();
        let first = clock.now();
        assert!(clock.now() >= first);
        assert!(first > BootInstant::from_nanos(0));
    }

    /// A store computes the age of a session from two readings, each of a clock that was just made.
    #[test]
    fn r3_clocks_made_apart_agree_on_every_platform() {
        for read in [super::elsewhere::now, || BootClock::new().now()] {
            let first = read();
            std::thread::sleep(Duration::from_millis(5));
            assert!(read().since(first) >= Duration::from_millis(5));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_tokio_clock_goes_with_paused_time() {
        let clock = TokioClock::new();
        let start = clock.now();
        tokio::time::advance(Duration::from_secs(3)).await;
        assert_eq!(clock.now().since(start), Duration::from_secs(3));
        assert_eq!(start.since(clock.now()), Duration::ZERO);
    }

    #[test]
    fn time_ends_instead_of_overflowing() {
        assert_eq!(
            BootInstant::from_nanos(5).after(Duration::MAX).as_nanos(),
            u64::MAX
        );
    }
}
