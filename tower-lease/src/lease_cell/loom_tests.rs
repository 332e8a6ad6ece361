use loom::{sync::Arc, thread};

use super::*;

const fn at(nanos: u64) -> BootInstant {
    BootInstant::from_nanos(nanos)
}

/// Each epoch has its own hundred: a reading that mixes two epochs shows.
#[test]
fn loom_a_reading_is_of_one_epoch() {
    loom::model(|| {
        let cell = Arc::new(LeaseCell::new());
        cell.open(1, at(100));
        let writer = {
            let cell = cell.clone();
            thread::spawn(move || {
                cell.extend(at(110));
                cell.close();
                cell.open(2, at(200));
            })
        };
        let reading = cell.read();
        let of = reading.until.as_nanos() / 100;
        assert!(of == 0 || of == reading.epoch, "{reading:?}");
        writer.join().unwrap();
    });
}

/// a request in its grace period learns the end of the epoch it belongs to, or that it was long ago.
#[test]
fn loom_r28_an_end_is_of_ones_own_epoch() {
    loom::model(|| {
        let cell = Arc::new(LeaseCell::new());
        cell.open(1, at(100));
        let writer = {
            let cell = cell.clone();
            thread::spawn(move || {
                cell.close();
                cell.open(2, at(200));
                cell.close();
            })
        };
        let ended = cell.ended_by(1);
        assert!(ended.is_none_or(|end| end == at(100)), "{ended:?}");
        writer.join().unwrap();
        assert_eq!((cell.ended_by(1), cell.ended_by(2)), (None, Some(at(200))));
    });
}

/// I3: a thread that knows of a loss finds the gate closed, for new requests and for those in flight.
#[test]
fn loom_i3_a_thread_that_knows_of_the_loss_finds_the_gate_closed() {
    loom::model(|| {
        let cell = Arc::new(LeaseCell::new());
        let told = Arc::new(AtomicUsize::new(0));
        cell.open(1, at(100));
        let keeper = {
            let (cell, told) = (cell.clone(), told.clone());
            thread::spawn(move || {
                cell.close();
                told.store(1, Ordering::Release);
            })
        };
        cell.enter();
        let inside = cell.read().seems_open();
        let knows = told.load(Ordering::Acquire) == 1;
        let answer = cell.read();
        if knows {
            assert!(
                !answer.seems_open() && !answer.lasts(at(0)),
                "let in: {inside}"
            );
        }
        cell.leave();
        keeper.join().unwrap();
        assert!(!cell.read().lasts(at(0)));
    });
}

/// when the keeper has drained and the count is zero, no request is admitted any more.
#[test]
fn loom_r29_no_request_is_admitted_after_the_count_was_zero() {
    loom::model(|| {
        let cell = Arc::new(LeaseCell::new());
        let released = Arc::new(AtomicUsize::new(0));
        cell.open(1, at(100));
        let request = {
            let (cell, released) = (cell.clone(), released.clone());
            thread::spawn(move || {
                cell.enter();
                let reading = cell.read();
                if reading.seems_open() {
                    // Inside: the lease must not have been given back.
                    assert_eq!(released.load(Ordering::Relaxed), 0);
                }
                cell.leave();
            })
        };
        cell.drain();
        if cell.in_flight() == 0 {
            released.store(1, Ordering::Relaxed);
        }
        request.join().unwrap();
    });
}

/// R-29, the other way round: what happened inside happened before the count came to zero.
#[test]
fn loom_r29_the_effects_of_an_ended_request_are_visible() {
    loom::model(|| {
        let cell = Arc::new(LeaseCell::new());
        let effects = Arc::new(AtomicUsize::new(0));
        cell.open(1, at(100));
        let request = {
            let (cell, effects) = (cell.clone(), effects.clone());
            thread::spawn(move || {
                cell.enter();
                let inside = cell.read().seems_open();
                if inside {
                    effects.store(1, Ordering::Relaxed);
                }
                cell.leave();
                inside
            })
        };
        cell.drain();
        let empty = cell.in_flight() == 0;
        let seen = effects.load(Ordering::Relaxed);
        let inside = request.join().unwrap();
        if empty && inside {
            assert_eq!(seen, 1, "counted as gone, so its effect is known");
        }
    });
}
