//! Reading `X-Forwarded-For` and `Forwarded` (RFC 7239) from the right.
//!
//! The right end is what our own proxies wrote; anything further left may be a client's invention. So each line is read
//! backwards, element by element, and no further than the trusted proxies. What is broken on the left, such as a quote that
//! never ends, cannot change what is read on the right.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The elements of a line, last first. `Err` is one that is not to be read, and ends it; empty ones are passed over (RFC 9110
/// section 5.6.1).
#[derive(Clone, Debug)]
pub(super) struct FromRight<'a> {
    rest: &'a [u8],
    quotes: bool,
}

/// An element that does not name an address: `unknown`, a made-up name, or junk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Junk;

// === impl FromRight ===

impl<'a> FromRight<'a> {
    /// With `quotes`, a comma between quotes is part of its element.
    pub(super) const fn new(line: &'a [u8], quotes: bool) -> Self {
        Self { rest: line, quotes }
    }

    /// Where the last element begins: behind its comma.
    fn last_begins(&self) -> Result<usize, Junk> {
        let mut quoted = false;
        for at in (0..self.rest.len()).rev() {
            match self.rest[at] {
                b',' if !quoted => return Ok(at + 1),
                _ if self.rest.len() - at > LONGEST => return Err(Junk),
                b'"' if self.quotes && !is_escaped(self.rest, at) => quoted = !quoted,
                _ => {}
            }
        }
        if quoted { Err(Junk) } else { Ok(0) }
    }
}

impl<'a> Iterator for FromRight<'a> {
    type Item = Result<&'a [u8], Junk>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.rest.is_empty() {
            let Ok(begin) = self.last_begins() else {
                self.rest = &[];
                return Some(Err(Junk));
            };
            let element = self.rest[begin..].trim_ascii();
            self.rest = &self.rest[..begin.saturating_sub(1)];
            if !element.is_empty() {
                return Some(Ok(element));
            }
        }
        None
    }
}

/// The address in an element of `X-Forwarded-For`: IPv4 or IPv6, in brackets or not, in quotes or not, with a port or not.
pub(super) fn x_forwarded_for(element: &[u8]) -> Result<IpAddr, Junk> {
    let element = element
        .strip_prefix(b"\"")
        .and_then(|rest| rest.strip_suffix(b"\""))
        .unwrap_or(element);
    node(element)
}

/// The address of the `for` in an element of `Forwarded`. It must be there, and only once.
pub(super) fn forwarded(element: &[u8]) -> Result<IpAddr, Junk> {
    let mut address = Err(Junk);
    for pair in pairs(element) {
        let Some(at) = pair.iter().position(|&byte| byte == b'=') else {
            return Err(Junk);
        };
        let (name, value) = (pair[..at].trim_ascii(), pair[at + 1..].trim_ascii());
        if name.eq_ignore_ascii_case(b"for") {
            if address.is_ok() {
                return Err(Junk);
            }
            address = Ok(x_forwarded_for(value)?);
        }
    }
    address
}

/// Splits at semicolons outside of quotes.
fn pairs(element: &[u8]) -> impl Iterator<Item = &[u8]> {
    let (mut quoted, mut escaped) = (false, false);
    element
        .split(move |&byte| {
            let quote = byte == b'"' && !escaped;
            escaped = byte == b'\\' && quoted && !escaped;
            quoted ^= quote;
            byte == b';' && !quoted
        })
        .filter(|pair| !pair.trim_ascii().is_empty())
}

/// RFC 7239 section 6, and bare IPv6 besides, as `X-Forwarded-For` has it.
fn node(text: &[u8]) -> Result<IpAddr, Junk> {
    let text = std::str::from_utf8(text).map_err(|_| Junk)?;
    if let Some(rest) = text.strip_prefix('[') {
        let (address, port) = rest.split_once(']').ok_or(Junk)?;
        let address: Ipv6Addr = address.parse().map_err(|_| Junk)?;
        return if port.is_empty() || port.strip_prefix(':').is_some_and(is_port) {
            Ok(address.into())
        } else {
            Err(Junk)
        };
    }
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let (address, port) = text.split_once(':').ok_or(Junk)?;
    let address: Ipv4Addr = address.parse().map_err(|_| Junk)?;
    if is_port(port) {
        Ok(address.into())
    } else {
        Err(Junk)
    }
}

/// A number, or a made-up name with a `_` before it.
fn is_port(text: &str) -> bool {
    match text.strip_prefix('_') {
        Some(name) => {
            !name.is_empty()
                && name
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
        }
        None => matches!(text.len(), 1..=5) && text.bytes().all(|byte| byte.is_ascii_digit()),
    }
}

fn is_escaped(text: &[u8], at: usize) -> bool {
    text[..at]
        .iter()
        .rev()
        .take_while(|&&byte| byte == b'\\')
        .count()
        % 2
        == 1
}

/// Bytes of an element that are read at most. Our own proxies' elements must fit, and what a client may have in them, as the
/// `host` of `Forwarded`: a name has up to 253.
const LONGEST: usize = 1024;

#[cfg(test)]
mod tests;
