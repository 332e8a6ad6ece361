//! The crate as its users see it, over a real redis-server.

mod common;
mod limiter;
