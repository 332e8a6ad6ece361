use loom::{sync::Arc, thread};

use super::*;

/// I2: two tokens at once, as `Fence::raise` does it but without the turns. If the lower one passes after the higher
/// one has, the fence is broken.
#[test]
fn loom_i2_a_lower_token_never_passes_behind_a_higher_one() {
    loom::model(|| {
        let (floor, mark) = (
            Arc::new(CachedHighWater::new()),
            Arc::new(AtomicU64::new(0)),
        );
        let passed = Arc::new(AtomicU64::new(0));
        let pass = |epoch: u64| {
            let (floor, mark, passed) = (floor.clone(), mark.clone(), passed.clone());
            move || {
                // What had passed before this one began.
                let before = passed.load(Ordering::Acquire);
                let floor_now = match floor.compare(epoch) {
                    Comparison::Current => epoch,
                    Comparison::Below(floor) => floor,
                    Comparison::Unknown => {
                        let highest = mark.fetch_max(epoch, Ordering::AcqRel).max(epoch);
                        floor.raise(highest).max(highest)
                    }
                };
                if floor_now == epoch {
                    assert!(before <= epoch, "{epoch} passes behind {before}");
                    passed.fetch_max(epoch, Ordering::AcqRel);
                }
            }
        };
        let (low, high) = (pass(1), pass(2));
        let high = thread::spawn(high);
        low();
        high.join().unwrap();
        assert_eq!(floor.epoch(), Some(2));
    });
}
