use std::marker::PhantomData;

use tower_outcome::{
    classify::{self, AnyErr},
    refuse::{self, Fail},
};

use crate::shared::Caller;

/// How a layer and its services classify responses and reject calls.
#[derive(Clone, Debug)]
pub(crate) struct Handling<C, R, N = ()> {
    pub(crate) classify: C,
    pub(crate) refuse: R,
    pub(crate) caller: Caller,
    set: PhantomData<N>,
}

/// Marks a layer with the default classification.
#[derive(Clone, Copy, Debug)]
pub enum DefaultClassify {}

/// Marks a layer whose classification was set.
#[derive(Clone, Copy, Debug)]
pub enum CustomClassify {}

// === impl Handling ===

impl Handling<AnyErr, Fail, DefaultClassify> {
    pub(crate) fn new() -> Self {
        Self::with(AnyErr, Fail, Caller::Application)
    }
}

impl<C, R> Handling<C, R, DefaultClassify> {
    pub(crate) fn respond(self) -> Handling<classify::Auto, refuse::Auto, DefaultClassify> {
        Handling::with(
            classify::Auto::server(),
            refuse::Auto::new(),
            Caller::Client,
        )
    }
}

impl<C, R, N> Handling<C, R, N> {
    fn with(classify: C, refuse: R, caller: Caller) -> Self {
        Self {
            classify,
            refuse,
            caller,
            set: PhantomData,
        }
    }

    pub(crate) fn classify<K>(self, classify: K) -> Handling<K, R, CustomClassify> {
        Handling::with(classify, self.refuse, self.caller)
    }

    pub(crate) fn respond_with<T>(self, refuse: T) -> Handling<C, T, N> {
        Handling::with(self.classify, refuse, Caller::Client)
    }
}

impl<C: Clone, R: Clone, N> Handling<C, R, N> {
    /// That of a service, to which the marker of the layer does not matter.
    pub(crate) fn of_service(&self) -> Handling<C, R> {
        Handling::with(self.classify.clone(), self.refuse.clone(), self.caller)
    }
}
