use std::{array, sync::Arc};

use super::slot::Slot;
use crate::{
    Endpoint,
    policy::{Candidates, Estimate, PickContext},
};

/// The candidates, without gaps, in pieces that successive published versions share. A change copies one or two pieces and
/// the list of pieces: some 220 pointers with 10 000 endpoints.
#[derive(Debug)]
pub(super) struct Shelf<S> {
    pieces: Vec<Arc<Piece<S>>>,
    count: usize,
}

type Piece<S> = [Option<Arc<Slot<S>>>; PIECE];

/// A published version of a [`Shelf`].
#[derive(Debug)]
pub(super) struct Shown<S> {
    pieces: Box<[Arc<Piece<S>>]>,
    count: usize,
    heaviest: u32,
    total_weight: u64,
}

// === impl Shelf ===

impl<S> Shelf<S> {
    pub(super) const fn new() -> Self {
        Self {
            pieces: Vec::new(),
            count: 0,
        }
    }

    /// Returns its position.
    pub(super) fn push(&mut self, slot: Arc<Slot<S>>) -> usize {
        let index = self.count;
        if index == self.pieces.len() * PIECE {
            self.pieces.push(Arc::new(array::from_fn(|_| None)));
        }
        *self.at(index) = Some(slot);
        self.count += 1;
        index
    }

    pub(super) fn replace(&mut self, index: usize, slot: Arc<Slot<S>>) {
        *self.at(index) = Some(slot);
    }

    /// Removes an entry and moves the last one to its position. Returns that one, unless the last one was removed.
    pub(super) fn remove(&mut self, index: usize) -> Option<Arc<Slot<S>>> {
        self.count -= 1;
        let last = self.at(self.count).take();
        if self.count.is_multiple_of(PIECE) {
            self.pieces.pop();
        }
        if index == self.count {
            return None;
        }
        self.at(index).clone_from(&last);
        last
    }

    pub(super) fn show(&self, heaviest: u32, total_weight: u64) -> Shown<S> {
        Shown {
            pieces: self.pieces.clone().into(),
            count: self.count,
            heaviest,
            total_weight,
        }
    }

    fn at(&mut self, index: usize) -> &mut Option<Arc<Slot<S>>> {
        &mut Arc::make_mut(&mut self.pieces[index / PIECE])[index % PIECE]
    }
}

// === impl Shown ===

impl<S> Shown<S> {
    pub(super) fn slot(&self, index: usize) -> &Slot<S> {
        self.pieces[index / PIECE][index % PIECE]
            .as_ref()
            .expect("an index below the count")
    }
}

impl<S> Shown<S> {
    /// Replaces the description of an endpoint. Returns whether it was found; costs a walk.
    pub(super) fn replace(&mut self, after: &Arc<Slot<S>>) -> bool {
        let is_same = |slot: &Option<Arc<Slot<S>>>| {
            slot.as_ref()
                .is_some_and(|slot| Arc::ptr_eq(&slot.stats, &after.stats))
        };
        for piece in &mut self.pieces {
            if let Some(index) = piece.iter().position(is_same) {
                Arc::make_mut(piece)[index] = Some(after.clone());
                return true;
            }
        }
        false
    }
}

impl<S> Clone for Shown<S> {
    fn clone(&self) -> Self {
        Self {
            pieces: self.pieces.clone(),
            ..*self
        }
    }
}

impl<S> Candidates for Shown<S> {
    fn count(&self) -> usize {
        self.count
    }

    fn endpoint(&self, index: usize) -> &Endpoint {
        &self.slot(index).endpoint
    }

    fn in_flight(&self, index: usize) -> u32 {
        self.slot(index).stats.in_flight()
    }

    fn penalty(&self, index: usize) -> u32 {
        self.slot(index).stats.penalty()
    }

    fn weight(&self, index: usize) -> u32 {
        self.slot(index).stats.weight()
    }

    fn heaviest(&self) -> u32 {
        self.heaviest
    }

    fn total_weight(&self) -> u64 {
        self.total_weight
    }

    fn warmth(&self, index: usize) -> f32 {
        self.slot(index).stats.warmth()
    }

    fn latency(&self, index: usize, context: &PickContext) -> Estimate {
        self.slot(index).stats.latency(context.nanos())
    }

    fn total_in_flight(&self) -> u64 {
        self.slot(0).stats.hub().total()
    }
}

/// The root of 4 096: with that number of entries a piece is as long as the list of pieces.
const PIECE: usize = 64;
