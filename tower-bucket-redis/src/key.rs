use std::io::Write as _;

use http::HeaderValue;

use tower_bucket::{ClientIp, UriPath};

/// A key as its bytes in Redis, after the limiter's prefix: the same on every machine, and different for different keys.
///
/// The parts of a tuple are separated by a zero byte, which occurs in neither addresses nor an HTTP head.
pub trait RedisKey {
    /// Writes the key.
    fn write_to(&self, name: &mut Vec<u8>);
}

// === impl RedisKey ===

impl RedisKey for ClientIp {
    fn write_to(&self, name: &mut Vec<u8>) {
        let _ = write!(name, "{self}");
    }
}

impl RedisKey for UriPath {
    fn write_to(&self, name: &mut Vec<u8>) {
        self.as_str().write_to(name);
    }
}

impl RedisKey for HeaderValue {
    fn write_to(&self, name: &mut Vec<u8>) {
        name.extend_from_slice(self.as_bytes());
    }
}

impl RedisKey for str {
    fn write_to(&self, name: &mut Vec<u8>) {
        name.extend_from_slice(self.as_bytes());
    }
}

impl RedisKey for String {
    fn write_to(&self, name: &mut Vec<u8>) {
        self.as_str().write_to(name);
    }
}

impl RedisKey for u64 {
    fn write_to(&self, name: &mut Vec<u8>) {
        let _ = write!(name, "{self}");
    }
}

impl<K: RedisKey + ?Sized> RedisKey for &K {
    fn write_to(&self, name: &mut Vec<u8>) {
        (**self).write_to(name);
    }
}

impl<A: RedisKey, B: RedisKey> RedisKey for (A, B) {
    fn write_to(&self, name: &mut Vec<u8>) {
        self.0.write_to(name);
        name.push(0);
        self.1.write_to(name);
    }
}

impl<A: RedisKey, B: RedisKey, C: RedisKey> RedisKey for (A, B, C) {
    fn write_to(&self, name: &mut Vec<u8>) {
        ((&self.0, &self.1), &self.2).write_to(name);
    }
}
