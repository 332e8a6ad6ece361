use super::*;

const fn at(nanos: u64) -> BootInstant {
    BootInstant::from_nanos(nanos)
}

#[test]
fn it_is_closed_until_it_is_opened_and_after_it_was_closed() {
    let cell = LeaseCell::new();
    assert!(!cell.read().lasts(at(0)));
    cell.open(3, at(100));
    assert_eq!(
        cell.read(),
        Reading {
            epoch: 3,
            until: at(100),
            draining: false
        }
    );
    assert!(cell.read().lasts(at(99)) && !cell.read().lasts(at(100)));
    cell.close();
    assert!(!cell.read().lasts(at(0)));
    assert!(!cell.read().seems_open());
}

#[test]
fn a_draining_gate_lasts_for_those_inside_and_stays_draining_when_extended() {
    let cell = LeaseCell::new();
    cell.open(1, at(100));
    cell.drain();
    cell.extend(at(201));
    assert_eq!(
        cell.read(),
        Reading {
            epoch: 1,
            until: at(200),
            draining: true
        }
    );
    assert!(!cell.read().seems_open());
}

#[test]
fn draining_a_closed_gate_does_not_open_it() {
    let cell = LeaseCell::new();
    cell.drain();
    assert_eq!(
        cell.read(),
        Reading {
            epoch: 0,
            until: at(0),
            draining: false
        }
    );
}
