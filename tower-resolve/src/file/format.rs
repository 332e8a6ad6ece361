use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt,
    marker::PhantomData,
    net::SocketAddr,
    num::{NonZeroU32, NonZeroU64},
    sync::Arc,
};

use serde::{
    Deserialize, Deserializer,
    de::{Error, MapAccess, SeqAccess, Visitor},
};

use crate::{Endpoint, Phase};

/// The contents of a file.
#[derive(Debug, PartialEq)]
pub(super) struct Names(HashMap<String, List>);

/// What is wrong with a text, and on which line.
#[derive(Debug, PartialEq)]
pub(super) struct Broken {
    pub(super) line: Option<usize>,
    pub(super) message: String,
}

/// Reads one of the formats.
pub(super) type Format = fn(&str) -> Result<Names, Broken>;

#[derive(Debug, PartialEq)]
struct List(Vec<Arc<Endpoint>>);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    address: SocketAddr,
    id: Option<String>,
    weight: Option<NonZeroU32>,
    #[serde(default)]
    priority: u16,
    zone: Option<String>,
    epoch: Option<NonZeroU64>,
    #[serde(default)]
    phase: PhaseName,
    #[serde(default)]
    metadata: BTreeMap<String, String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum PhaseName {
    Starting,
    #[default]
    Ready,
    Draining,
    Fenced,
}

pub(super) fn toml(text: &str) -> Result<Names, Broken> {
    toml::from_str(text).map_err(|error| Broken {
        line: error.span().map(|span| line_at(text, span.start)),
        message: one_line(error.message()),
    })
}

pub(super) fn json(text: &str) -> Result<Names, Broken> {
    serde_json::from_str(text).map_err(|error: serde_json::Error| {
        let (line, message) = (error.line(), error.to_string());
        let place = format!(" at line {line} column {}", error.column());
        Broken {
            line: (line > 0).then_some(line),
            message: one_line(message.trim_end_matches(&place)),
        }
    })
}

fn line_at(text: &str, offset: usize) -> usize {
    1 + text
        .bytes()
        .take(offset)
        .filter(|byte| *byte == b'\n')
        .count()
}

fn one_line(message: &str) -> String {
    message.lines().collect::<Vec<_>>().join(" ")
}

// === impl Names ===

impl Names {
    pub(super) fn get(&self, name: &str) -> Option<&[Arc<Endpoint>]> {
        self.0.get(name).map(|list| &*list.0)
    }
}

impl<'de> Deserialize<'de> for Names {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Strict(PhantomData::<Self>))
    }
}

impl<'de> Deserialize<'de> for List {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(Strict(PhantomData::<Self>))
    }
}

/// Rejects duplicate keys.
struct Strict<T>(PhantomData<T>);

impl<'de> Visitor<'de> for Strict<Names> {
    type Value = Names;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("names, each with a list of endpoints")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Names, A::Error> {
        let mut names = HashMap::new();
        while let Some((name, list)) = map.next_entry::<String, List>()? {
            if names.contains_key(&name) {
                return Err(A::Error::custom(format_args!(
                    "the name `{name}` is there twice"
                )));
            }
            names.insert(name, list);
        }
        Ok(Names(names))
    }
}

impl<'de> Visitor<'de> for Strict<List> {
    type Value = List;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of endpoints")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<List, A::Error> {
        let (mut ids, mut list) = (HashSet::new(), Vec::new());
        while let Some(record) = seq.next_element::<Record>()? {
            let endpoint = Endpoint::from(record);
            if !ids.insert(endpoint.id().clone()) {
                return Err(A::Error::custom(format_args!(
                    "the endpoint `{}` is there twice",
                    endpoint.id()
                )));
            }
            list.push(Arc::new(endpoint));
        }
        Ok(List(list))
    }
}

// === impl Record ===

impl From<Record> for Endpoint {
    fn from(record: Record) -> Self {
        let id = record.id.unwrap_or_else(|| record.address.to_string());
        let mut endpoint = Self::new(id, record.address)
            .with_epoch(record.epoch)
            .with_weight(record.weight.unwrap_or(NonZeroU32::MIN))
            .with_priority(record.priority)
            .with_phase(record.phase.into());
        if let Some(zone) = record.zone {
            endpoint = endpoint.with_zone(zone);
        }
        record
            .metadata
            .into_iter()
            .fold(endpoint, |endpoint, (key, value)| {
                endpoint.with_metadata(key, value)
            })
    }
}

impl From<PhaseName> for Phase {
    fn from(name: PhaseName) -> Self {
        match name {
            PhaseName::Starting => Self::Starting,
            PhaseName::Ready => Self::Ready,
            PhaseName::Draining => Self::Draining,
            PhaseName::Fenced => Self::Fenced,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: &str = r#"
        empty = []

        [[echo]]
        address = "127.0.0.1:8081"
        id = "echo-1"
        weight = 2
        priority = 1
        zone = "eu-1"
        epoch = 42
        phase = "draining"
        metadata = { version = "1.4.0" }

        [[echo]]
        address = "[::1]:8082"
    "#;

    fn whole() -> [Endpoint; 2] {
        let one = Endpoint::new("echo-1", ([127, 0, 0, 1], 8081).into())
            .with_weight(NonZeroU32::new(2).unwrap())
            .with_priority(1)
            .with_zone("eu-1")
            .with_epoch(NonZeroU64::new(42))
            .with_phase(Phase::Draining)
            .with_metadata("version", "1.4.0");
        [
            one,
            Endpoint::new("[::1]:8082", "[::1]:8082".parse().unwrap()),
        ]
    }

    #[test]
    fn both_formats_have_the_same_result() {
        let json_text = r#"{"empty": [], "echo": [
            {"address": "127.0.0.1:8081", "id": "echo-1", "weight": 2, "priority": 1, "zone": "eu-1", "epoch": 42,
             "phase": "draining", "metadata": {"version": "1.4.0"}},
            {"address": "[::1]:8082"}]}"#;
        for names in [toml(WHOLE).unwrap(), json(json_text).unwrap()] {
            assert_eq!(names.get("echo").unwrap(), whole().map(Arc::new));
            assert_eq!(names.get("empty").unwrap(), []);
            assert!(names.get("other").is_none());
        }
    }

    #[test]
    fn an_error_names_its_line() {
        for (text, line, message) in [
            (
                "[[a]]\naddress = \"localhost:80\"",
                2,
                "invalid socket address syntax",
            ),
            (
                "[[a]]\nadress = \"127.0.0.1:80\"",
                2,
                "unknown field `adress`",
            ),
            (
                "[[a]]\naddress = \"127.0.0.1:80\"\nweight = 0",
                3,
                "integer `0`",
            ),
            (
                "[[a]]\naddress = \"127.0.0.1:80\"\nphase = \"gone\"",
                3,
                "unknown variant `gone`",
            ),
            ("[[a]]\nid = \"x\"", 1, "missing field `address`"),
            ("a = 3", 1, "expected a list of endpoints"),
            ("[[a]]\naddress = \"127.0.0.1", 2, ""),
            (
                "[[a]]\naddress = \"127.0.0.1:80\"\n[[a]]\naddress = \"127.0.0.1:80\"",
                1,
                "`127.0.0.1:80` is there twice",
            ),
        ] {
            let broken = toml(text).unwrap_err();
            assert_eq!(broken.line, Some(line), "{text}: {broken:?}");
            assert!(broken.message.contains(message), "{text}: {broken:?}");
        }
        for (text, line, message) in [
            (
                "{\"a\": [\n{\"address\": \"localhost:80\"}]}",
                2,
                "invalid socket address syntax",
            ),
            ("{\"a\": [],\n\"a\": []}", 2, "the name `a` is there twice"),
            (
                "{\"a\": [{\"address\": \"127.0.0.1:80\"},\n{\"address\": \"127.0.0.1:80\"}]}",
                2,
                "is there twice",
            ),
            ("{\"a\": [", 1, "EOF"),
        ] {
            let broken = json(text).unwrap_err();
            assert_eq!(broken.line, Some(line), "{text}: {broken:?}");
            assert!(broken.message.contains(message), "{text}: {broken:?}");
            assert!(
                !broken.message.contains("column"),
                "the place is told once: {broken:?}"
            );
        }
    }
}
