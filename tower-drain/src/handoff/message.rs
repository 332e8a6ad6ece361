//! The messages between two processes. One message per packet, with sockets attached.

use std::fmt;

/// A message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Message {
    /// New to old: request for the sockets.
    Hello { version: u16, pid: u32 },
    /// Old to new: some of the sockets, in the order of the attached descriptors.
    Listeners {
        generation: u64,
        last: bool,
        sockets: Vec<Socket>,
    },
    /// New to old: it accepts connections; and again, when the old one is draining: it listens at the path.
    Ready,
    /// Old to new: the probation is over, and the old process drains.
    Draining,
    /// Old to new: the drain of the old process is over.
    Done {
        drained: u64,
        forced: u64,
        leaked: u64,
    },
    /// Old to new: rejected; try again later.
    Refused,
}

/// The identity of a socket, unique in one process.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Socket {
    pub(crate) kind: Kind,
    /// The name that the application has given it.
    pub(crate) name: String,
    /// As configured: an address with port, or a path.
    pub(crate) addr: String,
    /// The index among several sockets of one address.
    pub(crate) shard: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    Tcp = 0,
    Unix = 1,
}

/// The bytes are not a valid message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Garbled;

// === impl Message ===

impl Message {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        match self {
            Self::Hello { version, pid } => {
                bytes.push(0);
                bytes.extend(version.to_be_bytes());
                bytes.extend(pid.to_be_bytes());
            }
            Self::Listeners {
                generation,
                last,
                sockets,
            } => {
                bytes.push(1);
                bytes.extend(generation.to_be_bytes());
                bytes.push(u8::from(*last));
                bytes.extend((sockets.len() as u16).to_be_bytes());
                sockets.iter().for_each(|socket| socket.encode(&mut bytes));
            }
            Self::Ready => bytes.push(2),
            Self::Draining => bytes.push(3),
            Self::Done {
                drained,
                forced,
                leaked,
            } => {
                bytes.push(4);
                [drained, forced, leaked]
                    .into_iter()
                    .for_each(|count| bytes.extend(count.to_be_bytes()));
            }
            Self::Refused => bytes.push(5),
        }
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Garbled> {
        let mut reader = Reader(bytes.strip_prefix(MAGIC).ok_or(Garbled)?);
        let message = match reader.u8()? {
            0 => Self::Hello {
                version: reader.u16()?,
                pid: reader.u32()?,
            },
            1 => {
                let (generation, last, count) = (reader.u64()?, reader.u8()? != 0, reader.u16()?);
                if usize::from(count) > MOST {
                    return Err(Garbled);
                }
                let sockets = (0..count)
                    .map(|_| Socket::decode(&mut reader))
                    .collect::<Result<_, _>>()?;
                Self::Listeners {
                    generation,
                    last,
                    sockets,
                }
            }
            2 => Self::Ready,
            3 => Self::Draining,
            4 => Self::Done {
                drained: reader.u64()?,
                forced: reader.u64()?,
                leaked: reader.u64()?,
            },
            5 => Self::Refused,
            _ => return Err(Garbled),
        };
        if reader.0.is_empty() {
            Ok(message)
        } else {
            Err(Garbled)
        }
    }
}

// === impl Socket ===

impl Socket {
    fn encode(&self, bytes: &mut Vec<u8>) {
        bytes.push(self.kind as u8);
        bytes.extend(self.shard.to_be_bytes());
        for text in [&self.name, &self.addr] {
            bytes.extend((text.len() as u16).to_be_bytes());
            bytes.extend(text.as_bytes());
        }
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, Garbled> {
        let kind = match reader.u8()? {
            0 => Kind::Tcp,
            1 => Kind::Unix,
            _ => return Err(Garbled),
        };
        let shard = reader.u16()?;
        Ok(Self {
            kind,
            shard,
            name: reader.text()?,
            addr: reader.text()?,
        })
    }

    /// Whether `MOST` sockets of this length fit into one message.
    pub(crate) fn is_short(&self) -> bool {
        self.name.len() <= LONGEST && self.addr.len() <= LONGEST
    }
}

impl fmt::Display for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name, self.addr)
    }
}

// === impl Garbled ===

impl fmt::Display for Garbled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the other process does not speak this language")
    }
}

impl std::error::Error for Garbled {}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], Garbled> {
        let (taken, rest) = self.0.split_first_chunk::<N>().ok_or(Garbled)?;
        self.0 = rest;
        Ok(*taken)
    }

    fn u8(&mut self) -> Result<u8, Garbled> {
        self.take().map(u8::from_be_bytes)
    }

    fn u16(&mut self) -> Result<u16, Garbled> {
        self.take().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Result<u32, Garbled> {
        self.take().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Result<u64, Garbled> {
        self.take().map(u64::from_be_bytes)
    }

    fn text(&mut self) -> Result<String, Garbled> {
        let length = usize::from(self.u16()?);
        let (text, rest) = self
            .0
            .split_at_checked(length)
            .filter(|_| length <= LONGEST)
            .ok_or(Garbled)?;
        self.0 = rest;
        String::from_utf8(text.to_vec()).map_err(|_| Garbled)
    }
}

pub(crate) const VERSION: u16 = 1;
/// The kernel takes 253 descriptors in one packet; a quarter of that keeps packets small.
pub(crate) const MOST: usize = 64;
/// The longest packet: `MOST` sockets with names and paths as long as they may be.
pub(crate) const PACKET: usize = 64 * 1024;
const LONGEST: usize = 400;
const MAGIC: &[u8] = b"tower-drain\0";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sockets() -> impl Strategy<Value = Socket> {
        (
            any::<bool>(),
            "[a-z:0-9.]{0,400}",
            "\\PC{0,100}",
            any::<u16>(),
        )
            .prop_map(|(tcp, name, addr, shard)| Socket {
                kind: if tcp { Kind::Tcp } else { Kind::Unix },
                name,
                addr: addr.chars().take(90).collect(),
                shard,
            })
    }

    fn messages() -> impl Strategy<Value = Message> {
        prop_oneof![
            any::<(u16, u32)>().prop_map(|(version, pid)| Message::Hello { version, pid }),
            (
                any::<u64>(),
                any::<bool>(),
                proptest::collection::vec(sockets(), 0..MOST)
            )
                .prop_map(|(generation, last, sockets)| Message::Listeners {
                    generation,
                    last,
                    sockets
                }),
            Just(Message::Ready),
            Just(Message::Draining),
            any::<(u64, u64, u64)>().prop_map(|(drained, forced, leaked)| Message::Done {
                drained,
                forced,
                leaked
            }),
            Just(Message::Refused),
        ]
    }

    proptest! {
        #[test]
        fn each_message_decodes_to_itself(message in messages()) {
            let bytes = message.encode();
            prop_assert!(bytes.len() <= PACKET);
            prop_assert_eq!(Message::decode(&bytes), Ok(message));
        }

        #[test]
        fn what_is_cut_or_too_long_is_garbled(message in messages(), cut in 1_usize..30) {
            let mut bytes = message.encode();
            prop_assert_eq!(Message::decode(&bytes[..bytes.len().saturating_sub(cut)]), Err(Garbled));
            bytes.push(0);
            prop_assert_eq!(Message::decode(&bytes), Err(Garbled));
        }

        #[test]
        fn anything_is_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Message::decode(&bytes);
            let _ = Message::decode(&[MAGIC, &bytes].concat());
        }
    }
}
