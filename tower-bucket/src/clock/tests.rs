use proptest::prelude::*;

use super::*;

proptest! {
    #[test]
    fn an_instant_is_read_as_it_would_be_subtracted(before in 0..u64::MAX / 8, nanos in 0..u64::MAX / 8) {
        let instant = Instant::now() + Duration::from_nanos(before);
        let start = Start::at(instant);
        let later = instant + Duration::from_nanos(nanos);
        prop_assert_eq!(start.until(later), nanos);
        prop_assert_eq!(Start { read: None, ..start }.until(later), nanos);
    }
}

/// Elsewhere it need not be, and is slower.
#[cfg(target_os = "linux")]
#[test]
fn here_an_instant_can_be_read() {
    assert!(Start::now().read.is_some());
}

/// Each as some platform or library might hash an instant one day.
#[test]
fn what_is_hashed_in_another_way_is_not_read() {
    let nothing = |_: u64, reading: &mut Reading| reading.write(&[1, 2, 3]);
    let one_number = |nanos: u64, reading: &mut Reading| reading.write_u64(nanos);
    let coarse = |nanos: u64, reading: &mut Reading| {
        reading.write_u64(nanos / 1_000_000_000);
        reading.write_u32((nanos % 1_000_000_000 / 100) as u32);
    };
    let more = |nanos: u64, reading: &mut Reading| {
        reading.write_u64(nanos / 1_000_000_000);
        reading.write_u32((nanos % 1_000_000_000) as u32);
        reading.write_u32(1);
    };
    let ways: [fn(u64, &mut Reading); 4] = [nothing, one_number, coarse, more];
    for way in ways {
        let read = |nanos| {
            let mut reading = Reading::default();
            way(5_000_000_000 + nanos, &mut reading);
            reading.finish()
        };
        assert!(!Reading::is_true_of(read));
    }
}

#[test]
fn before_the_start_it_is_zero_and_beyond_the_horizon_it_stands_still() {
    let instant = Instant::now() + Duration::from_secs(10);
    for start in [
        Start::at(instant),
        Start {
            instant,
            read: None,
        },
    ] {
        assert_eq!(start.until(instant - Duration::from_nanos(1)), 0);
        assert_eq!(start.until(instant - Duration::from_secs(9)), 0);
        let far = instant + Duration::from_nanos(HORIZON) + Duration::from_secs(1);
        assert!((HORIZON - 1..=HORIZON).contains(&start.until(far)));
    }
}
