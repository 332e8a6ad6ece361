//! The crate as its users see it.

mod body;
mod respond;
