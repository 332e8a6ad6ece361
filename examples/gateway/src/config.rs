//! The configuration file: its keys, their defaults, and the place of each mistake.

use std::{
    fmt,
    fs::File as OpenFile,
    io::Read as _,
    net::SocketAddr,
    num::{NonZeroU32, NonZeroUsize},
    ops::Range,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Deserialize;
use toml::Spanned;

/// A configuration in which every value has been checked.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    /// Where clients connect.
    pub(crate) listen: SocketAddr,
    /// Where operators connect.
    pub(crate) admin: SocketAddr,
    /// What is served from; empty in the demo, whose replicas come and go.
    pub(crate) backends: Vec<Backend>,
    /// `None`: no limit per client.
    pub(crate) per_client: Option<PerClient>,
    pub(crate) circuit: Circuit,
    pub(crate) timeouts: Timeouts,
    pub(crate) balance: Balance,
    pub(crate) upstream: Upstream,
    pub(crate) drain: Drain,
    /// Client connections at once; what comes on top is answered 503.
    pub(crate) max_connections: NonZeroUsize,
    /// A client that has closed its half still gets its answer.
    pub(crate) half_close: bool,
}

/// Settings of the command line, which replace those of the file.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Own {
    pub(crate) listen: Option<SocketAddr>,
    pub(crate) admin: Option<SocketAddr>,
}

/// One upstream address.
#[derive(Clone, Debug)]
pub(crate) struct Backend {
    pub(crate) name: String,
    pub(crate) address: SocketAddr,
}

/// How many requests one client (IPv4 address, or IPv6 /64) may make.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PerClient {
    pub(crate) rate: NonZeroU32,
    pub(crate) per: Per,
    pub(crate) burst: NonZeroU32,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Per {
    Second,
    Minute,
    Hour,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Circuit {
    pub(crate) consecutive_failures: NonZeroU32,
    pub(crate) open_for: Duration,
    pub(crate) probe_deadline: Duration,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Timeouts {
    /// To connect to a backend.
    pub(crate) connect: Duration,
    /// To the head of the response, from when the request was sent. An upload may take as long as it moves; the body of a
    /// response has no limit of time.
    pub(crate) response: Duration,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Balance {
    pub(crate) policy: Policy,
    /// How long a request may wait for an endpoint to become ready.
    pub(crate) max_wait: Duration,
    pub(crate) max_waiting: NonZeroUsize,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Policy {
    LeastRequest,
    RoundRobin,
}

/// Limits of one backend.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Upstream {
    pub(crate) max_connections: NonZeroUsize,
    pub(crate) max_idle: NonZeroUsize,
    pub(crate) idle_timeout: Duration,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Drain {
    pub(crate) announce: Duration,
    pub(crate) close: Duration,
    pub(crate) force: Duration,
}

/// What is wrong with a file: every mistake, each with its place and what to do.
#[derive(Debug)]
pub(crate) struct Invalid {
    file: PathBuf,
    mistakes: Vec<Mistake>,
}

#[derive(Debug)]
struct Mistake {
    /// Line and column, from 1; `None` if the file could not be read at all.
    place: Option<(usize, usize)>,
    text: String,
}

// === impl Config ===

impl Config {
    /// What runs when no file is given: a gateway on loopback, with limits low enough to be seen.
    pub(crate) fn demo() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], DEFAULT_PORT)),
            admin: SocketAddr::from(([127, 0, 0, 1], DEFAULT_ADMIN_PORT)),
            backends: Vec::new(),
            per_client: Some(PerClient {
                rate: const { NonZeroU32::new(50).unwrap() },
                per: Per::Second,
                burst: const { NonZeroU32::new(100).unwrap() },
            }),
            circuit: Circuit::default(),
            timeouts: Timeouts::default(),
            balance: Balance::default(),
            upstream: Upstream::default(),
            drain: Drain::default(),
            max_connections: DEFAULT_MAX_CONNECTIONS,
            half_close: false,
        }
    }

    /// Reads and checks a file.
    pub(crate) fn load(file: &Path, own: Own) -> Result<Self, Invalid> {
        let read = || Self::parse(&read(file)?, own);
        read().map_err(|mistakes| Invalid {
            file: file.to_owned(),
            mistakes,
        })
    }

    fn parse(text: &str, own: Own) -> Result<Self, Vec<Mistake>> {
        let file: File =
            toml::from_str(text).map_err(|error| vec![Mistake::syntax(text, &error)])?;
        let mut check = Check {
            text,
            mistakes: Vec::new(),
        };
        let config = file.check(&mut check, own);
        if check.mistakes.is_empty() {
            Ok(config)
        } else {
            Err(check.mistakes)
        }
    }
}

fn read(file: &Path) -> Result<String, Vec<Mistake>> {
    let mut bytes = Vec::new();
    let read =
        OpenFile::open(file).and_then(|file| file.take(LONGEST_FILE + 1).read_to_end(&mut bytes));
    if let Err(error) = read {
        let text = format!(
            "cannot be read: {error}; give the path of a TOML file that this user may read"
        );
        return Err(vec![Mistake { place: None, text }]);
    }
    if bytes.len() as u64 > LONGEST_FILE {
        let text = "is longer than 1 MiB, so it is no configuration; give the path of a TOML file"
            .to_owned();
        return Err(vec![Mistake { place: None, text }]);
    }
    String::from_utf8(bytes).map_err(|error| {
        let place = Some(place(error.as_bytes(), error.utf8_error().valid_up_to()));
        vec![Mistake {
            place,
            text: "this is not UTF-8; save the file as UTF-8 text".to_owned(),
        }]
    })
}

/// Ten thousand backends take less.
const LONGEST_FILE: u64 = 1 << 20;

impl Default for Circuit {
    fn default() -> Self {
        Self {
            consecutive_failures: const { NonZeroU32::new(5).unwrap() },
            open_for: Duration::from_secs(10),
            probe_deadline: Duration::from_secs(10),
        }
    }
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(1),
            response: Duration::from_secs(15),
        }
    }
}

impl Default for Balance {
    fn default() -> Self {
        Self {
            policy: Policy::LeastRequest,
            max_wait: Duration::from_secs(1),
            max_waiting: const { NonZeroUsize::new(1024).unwrap() },
        }
    }
}

impl Default for Upstream {
    fn default() -> Self {
        Self {
            max_connections: const { NonZeroUsize::new(1024).unwrap() },
            max_idle: const { NonZeroUsize::new(1024).unwrap() },
            idle_timeout: Duration::from_secs(4),
        }
    }
}

impl Default for Drain {
    fn default() -> Self {
        Self {
            announce: Duration::from_secs(5),
            close: Duration::from_secs(20),
            force: Duration::from_secs(2),
        }
    }
}

const DEFAULT_PORT: u16 = 8080;
const DEFAULT_ADMIN_PORT: u16 = 9901;
const DEFAULT_MAX_CONNECTIONS: NonZeroUsize = NonZeroUsize::new(10_000).unwrap();

// === the file as written ===

/// The file's own shape: everything with its place, nothing checked beyond its type.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    listen: Option<Spanned<String>>,
    admin: Option<Spanned<String>>,
    max_connections: Option<Spanned<i64>>,
    half_close: Option<bool>,
    #[serde(default)]
    backend: Vec<Spanned<BackendEntry>>,
    per_client: Option<PerClientTable>,
    circuit: Option<CircuitTable>,
    timeouts: Option<TimeoutsTable>,
    balance: Option<BalanceTable>,
    upstream: Option<UpstreamTable>,
    drain: Option<DrainTable>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BackendEntry {
    name: Spanned<String>,
    address: Spanned<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PerClientTable {
    rate: Spanned<i64>,
    per: Option<Per>,
    burst: Option<Spanned<i64>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CircuitTable {
    consecutive_failures: Option<Spanned<i64>>,
    open_for: Option<Spanned<String>>,
    probe_deadline: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TimeoutsTable {
    connect: Option<Spanned<String>>,
    response: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BalanceTable {
    policy: Option<Policy>,
    max_wait: Option<Spanned<String>>,
    max_waiting: Option<Spanned<i64>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct UpstreamTable {
    max_connections: Option<Spanned<i64>>,
    max_idle: Option<Spanned<i64>>,
    idle_timeout: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DrainTable {
    announce: Option<Spanned<String>>,
    close: Option<Spanned<String>>,
    force: Option<Spanned<String>>,
}

impl File {
    fn check(self, check: &mut Check<'_>, own: Own) -> Config {
        let default = Config::demo();
        let place = self
            .admin
            .as_ref()
            .or(self.listen.as_ref())
            .map(Spanned::span)
            .unwrap_or_default();
        let listen = check.address("listen", self.listen, default.listen);
        let admin = check.address("admin", self.admin, default.admin);
        let (listen, admin) = (own.listen.unwrap_or(listen), own.admin.unwrap_or(admin));
        if is_same(listen, admin) {
            check.wrong(
                place,
                format!("`listen` and `admin` are both {admin}; use two different ports"),
            );
        }
        Config {
            listen,
            admin,
            backends: check.backends(self.backend, [listen, admin]),
            per_client: self.per_client.map(|table| table.check(check)),
            circuit: self
                .circuit
                .map(|table| table.check(check))
                .unwrap_or_default(),
            timeouts: self
                .timeouts
                .map(|table| table.check(check))
                .unwrap_or_default(),
            balance: self
                .balance
                .map(|table| table.check(check))
                .unwrap_or_default(),
            upstream: self
                .upstream
                .map(|table| table.check(check))
                .unwrap_or_default(),
            drain: self
                .drain
                .map(|table| table.check(check))
                .unwrap_or_default(),
            max_connections: check.size(
                "max_connections",
                self.max_connections,
                default.max_connections,
            ),
            half_close: self.half_close.unwrap_or(default.half_close),
        }
    }
}

/// Whether a connection to `there` reaches `own`. A port that the system will choose is reached by none.
fn is_same(own: SocketAddr, there: SocketAddr) -> bool {
    let is_every =
        own.ip().is_unspecified() && (there.ip().is_loopback() || there.ip().is_unspecified());
    let is_loopback = there.ip().is_unspecified() && own.ip().is_loopback();
    own.port() != 0
        && own.port() == there.port()
        && (own.ip() == there.ip() || is_every || is_loopback)
}

impl PerClientTable {
    fn check(self, check: &mut Check<'_>) -> PerClient {
        let rate = check.count("rate", Some(self.rate), NonZeroU32::MIN);
        PerClient {
            rate,
            per: self.per.unwrap_or(Per::Second),
            burst: check.count("burst", self.burst, rate),
        }
    }
}

impl CircuitTable {
    fn check(self, check: &mut Check<'_>) -> Circuit {
        let default = Circuit::default();
        Circuit {
            consecutive_failures: check.count(
                "consecutive_failures",
                self.consecutive_failures,
                default.consecutive_failures,
            ),
            open_for: check.time("open_for", self.open_for, default.open_for),
            probe_deadline: check.time(
                "probe_deadline",
                self.probe_deadline,
                default.probe_deadline,
            ),
        }
    }
}

impl TimeoutsTable {
    fn check(self, check: &mut Check<'_>) -> Timeouts {
        let default = Timeouts::default();
        Timeouts {
            connect: check.time("connect", self.connect, default.connect),
            response: check.time("response", self.response, default.response),
        }
    }
}

impl BalanceTable {
    fn check(self, check: &mut Check<'_>) -> Balance {
        let default = Balance::default();
        Balance {
            policy: self.policy.unwrap_or(default.policy),
            max_wait: check.time_or_zero("max_wait", self.max_wait, default.max_wait),
            max_waiting: check.size("max_waiting", self.max_waiting, default.max_waiting),
        }
    }
}

impl UpstreamTable {
    fn check(self, check: &mut Check<'_>) -> Upstream {
        let default = Upstream::default();
        Upstream {
            max_connections: check.size(
                "max_connections",
                self.max_connections,
                default.max_connections,
            ),
            max_idle: check.size("max_idle", self.max_idle, default.max_idle),
            idle_timeout: check.time("idle_timeout", self.idle_timeout, default.idle_timeout),
        }
    }
}

impl DrainTable {
    fn check(self, check: &mut Check<'_>) -> Drain {
        let default = Drain::default();
        Drain {
            announce: check.time_or_zero("announce", self.announce, default.announce),
            close: check.time_or_zero("close", self.close, default.close),
            force: check.time_or_zero("force", self.force, default.force),
        }
    }
}

// === checking ===

/// Collects mistakes instead of stopping at the first; a value that is wrong is replaced by its default meanwhile.
struct Check<'a> {
    text: &'a str,
    mistakes: Vec<Mistake>,
}

impl Check<'_> {
    fn wrong(&mut self, span: Range<usize>, text: String) {
        self.mistakes.push(Mistake {
            place: Some(place(self.text.as_bytes(), span.start)),
            text,
        });
    }

    fn address(
        &mut self,
        key: &str,
        value: Option<Spanned<String>>,
        default: SocketAddr,
    ) -> SocketAddr {
        let Some(value) = value else { return default };
        value.get_ref().parse().unwrap_or_else(|_| {
            let text = format!(
                "`{key}` is no address: {:?}; write an IP address and a port, such as \"127.0.0.1:8080\" or \"[::]:8080\"",
                value.get_ref()
            );
            self.wrong(value.span(), text);
            default
        })
    }

    fn count(&mut self, key: &str, value: Option<Spanned<i64>>, default: NonZeroU32) -> NonZeroU32 {
        let Some(value) = value else { return default };
        u32::try_from(*value.get_ref())
            .ok()
            .and_then(NonZeroU32::new)
            .unwrap_or_else(|| {
                self.wrong(
                    value.span(),
                    format!(
                        "`{key}` is {}; write a whole number from 1 to {}",
                        value.get_ref(),
                        u32::MAX
                    ),
                );
                default
            })
    }

    fn size(
        &mut self,
        key: &str,
        value: Option<Spanned<i64>>,
        default: NonZeroUsize,
    ) -> NonZeroUsize {
        let Some(value) = value else { return default };
        let checked = u32::try_from(*value.get_ref())
            .ok()
            .and_then(|value| NonZeroUsize::new(value as usize));
        checked
            .filter(|size| size.get() <= MAX_SIZE)
            .unwrap_or_else(|| {
                self.wrong(
                    value.span(),
                    format!(
                        "`{key}` is {}; write a whole number from 1 to {MAX_SIZE}",
                        value.get_ref()
                    ),
                );
                default
            })
    }

    fn time(&mut self, key: &str, value: Option<Spanned<String>>, default: Duration) -> Duration {
        let span = value.as_ref().map(Spanned::span);
        let time = self.time_or_zero(key, value, default);
        if time.is_zero() {
            self.wrong(
                span.unwrap_or_default(),
                format!("`{key}` is zero; write a time such as \"500ms\" or \"10s\""),
            );
            return default;
        }
        time
    }

    fn time_or_zero(
        &mut self,
        key: &str,
        value: Option<Spanned<String>>,
        default: Duration,
    ) -> Duration {
        let Some(value) = value else { return default };
        match humantime::parse_duration(value.get_ref()) {
            Ok(time) if time <= MAX_TIME => time,
            Ok(_) => {
                self.wrong(
                    value.span(),
                    format!(
                        "`{key}` is {:?}; the longest time is \"1day\"",
                        value.get_ref()
                    ),
                );
                default
            }
            Err(error) => {
                let text = format!(
                    "`{key}` is no time: {:?} ({error}); write a number and a unit, such as \"500ms\", \"10s\" or \"1m 30s\"",
                    value.get_ref()
                );
                self.wrong(value.span(), text);
                default
            }
        }
    }

    fn backends(
        &mut self,
        entries: Vec<Spanned<BackendEntry>>,
        own: [SocketAddr; 2],
    ) -> Vec<Backend> {
        if entries.is_empty() {
            let text = "there is no backend; add at least one, with a line `[[backend]]` and then `name` and `address`";
            self.wrong(0..0, text.to_owned());
        }
        let mut backends: Vec<Backend> = Vec::with_capacity(entries.len());
        for entry in entries {
            let BackendEntry { name, address } = entry.into_inner();
            if name.get_ref().is_empty() {
                self.wrong(
                    name.span(),
                    "`name` is empty; give the backend a unique name".to_owned(),
                );
            } else if backends.iter().any(|other| other.name == *name.get_ref()) {
                let text = format!(
                    "`name` is {:?}, which another backend has too; give each its own",
                    name.get_ref()
                );
                self.wrong(name.span(), text);
            }
            let (span, known) = (address.span(), self.mistakes.len());
            let address = self.address(
                "address",
                Some(address),
                SocketAddr::from(([0, 0, 0, 0], 0)),
            );
            if self.mistakes.len() > known {
                // Reported already.
            } else if address.port() == 0 {
                self.wrong(
                    span,
                    "`address` has port 0; write the port that the backend listens on".to_owned(),
                );
            } else if own.iter().any(|own| is_same(*own, address)) {
                let text = format!(
                    "`address` {address} is the gateway's own; write where the backend listens"
                );
                self.wrong(span, text);
            } else if let Some(other) = backends.iter().find(|other| other.address == address) {
                let text = format!(
                    "`address` {address} is backend {:?} too; list each address once",
                    other.name
                );
                self.wrong(span, text);
            }
            backends.push(Backend {
                name: name.into_inner(),
                address,
            });
        }
        backends
    }
}

/// No timeout or period is longer than a day.
const MAX_TIME: Duration = Duration::from_secs(24 * 60 * 60);
/// More connections or waiters than this no machine can have.
const MAX_SIZE: usize = 10_000_000;

// === impl Mistake ===

impl Mistake {
    fn syntax(text_of_file: &str, error: &toml::de::Error) -> Self {
        let message = error.message().trim_end().replace('\n', ": ");
        let text = match message.split_once(", expected ") {
            Some((found, expected)) if found.starts_with("invalid type") => {
                format!("{found}; write {}", in_words(expected))
            }
            _ if message.starts_with("missing field") => format!("{message}; add it to this table"),
            _ if message.starts_with("unknown field") => {
                format!("{message}; correct the name or take the line out")
            }
            _ if message.starts_with("unknown variant") => format!("{message}; write one of these"),
            _ if message.starts_with("duplicate key") => format!("{message}; keep one of the two"),
            _ => format!(
                "{message}; this is no TOML: texts, times and addresses stand in quotes, such as \"127.0.0.1:8080\""
            ),
        };
        Self {
            place: error
                .span()
                .map(|span| place(text_of_file.as_bytes(), span.start)),
            text,
        }
    }
}

/// serde's name of a type, in the terms of TOML.
fn in_words(expected: &str) -> &str {
    match expected {
        "i64" => "a whole number",
        "a string" => "a text in quotes, such as \"10s\" or \"127.0.0.1:8080\"",
        "a boolean" => "true or false",
        "a sequence" => "it as a list: a line `[[backend]]` before each",
        table if table.starts_with("struct") => {
            "it as a table: its name in brackets, and its keys on the lines below"
        }
        other => other,
    }
}

fn place(text: &[u8], offset: usize) -> (usize, usize) {
    let before = &text[..offset.min(text.len())];
    let line = before.iter().filter(|&&byte| byte == b'\n').count() + 1;
    let column = before
        .iter()
        .rev()
        .take_while(|&&byte| byte != b'\n')
        .count()
        + 1;
    (line, column)
}

// === impl Invalid ===

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, Mistake { place, text }) in self.mistakes.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            write!(f, "{}", self.file.display())?;
            if let Some((line, column)) = place {
                write!(f, ":{line}:{column}")?;
            }
            write!(f, ": {text}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Invalid {}

#[cfg(test)]
mod tests {
    use super::*;

    fn mistakes(text: &str) -> String {
        let mistakes = Config::parse(text, Own::default()).expect_err("a wrong file");
        Invalid {
            file: "gateway.toml".into(),
            mistakes,
        }
        .to_string()
    }

    #[test]
    fn the_shortest_file_gets_every_default() {
        let config = Config::parse(
            "[[backend]]\nname = 'a'\naddress = '127.0.0.1:9001'\n",
            Own::default(),
        )
        .unwrap();
        assert_eq!(config.listen.port(), 8080);
        assert_eq!(config.backends.len(), 1);
        assert!(config.per_client.is_none(), "nobody asked for a limit");
        assert_eq!(config.drain.announce, Duration::from_secs(5));
    }

    #[test]
    fn every_mistake_is_reported_with_its_line_and_a_remedy() {
        let text = "listen = '8080'\nmax_connections = 0\n\n[[backend]]\nname = 'a'\naddress = 'localhost'\n\n[[backend]]\nname = 'a'\naddress = '127.0.0.1:1'\n\n[per_client]\nrate = -1\n\n[drain]\nannounce = '5'\n\n[timeouts]\nconnect = '0s'\n";
        let told = mistakes(text);
        for expected in [
            "gateway.toml:1:10: `listen` is no address",
            "gateway.toml:2:19: `max_connections` is 0; write a whole number from 1",
            "gateway.toml:6:11: `address` is no address",
            "gateway.toml:9:8: `name` is \"a\", which another backend has too",
            "gateway.toml:13:8: `rate` is -1; write a whole number from 1",
            "gateway.toml:16:12: `announce` is no time",
            "gateway.toml:19:11: `connect` is zero",
        ] {
            assert!(
                told.contains(expected),
                "{expected:?} is missing in:\n{told}"
            );
        }
        assert_eq!(told.lines().count(), 7);
    }

    #[test]
    fn no_address_is_let_through_for_looking_like_a_placeholder() {
        let nowhere = "[[backend]]\nname = 'a'\naddress = '0.0.0.0:0'\n";
        assert!(
            mistakes(nowhere).contains("gateway.toml:3:11: `address` has port 0"),
            "{}",
            mistakes(nowhere)
        );
    }

    #[test]
    fn invalid_toml_and_unknown_keys_are_reported_with_their_line() {
        assert!(mistakes("listen = \n").starts_with("gateway.toml:1:"));
        let told = mistakes("[[backend]]\nname = 'a'\naddress = '127.0.0.1:1'\nweight = 3\n");
        assert!(
            told.starts_with("gateway.toml:4:1: unknown field `weight`"),
            "{told}"
        );
        let told = mistakes("[[backend]]\nname = 'a'\n");
        assert!(
            told.contains("missing field `address`; add it to this table"),
            "{told}"
        );
        assert!(mistakes("").contains("there is no backend"));
    }

    #[test]
    fn the_example_file_has_the_defaults() {
        let config = Config::parse(include_str!("../gateway.toml"), Own::default()).unwrap();
        let default = Config::demo();
        assert_eq!(
            format!("{:?}", config.circuit),
            format!("{:?}", default.circuit)
        );
        assert_eq!(
            format!("{:?}", config.timeouts),
            format!("{:?}", default.timeouts)
        );
        assert_eq!(
            format!("{:?}", config.balance),
            format!("{:?}", default.balance)
        );
        assert_eq!(
            format!("{:?}", config.upstream),
            format!("{:?}", default.upstream)
        );
        assert_eq!(
            format!("{:?}", config.drain),
            format!("{:?}", default.drain)
        );
        assert_eq!(
            (config.listen, config.admin),
            (default.listen, default.admin)
        );
        assert_eq!(
            (config.max_connections, config.half_close),
            (default.max_connections, default.half_close)
        );
    }

    #[test]
    fn a_wrong_type_is_reported_in_the_terms_of_toml() {
        for (line, expected) in [
            ("max_connections = '10'", "; write a whole number"),
            ("max_connections = 1.5", "; write a whole number"),
            (
                "max_connections = 92233720368547758070",
                "; write a whole number",
            ),
            ("listen = 8080", "; write a text in quotes"),
            ("listen = 127.0.0.1:8080", "stand in quotes"),
            ("half_close = 1", "; write true or false"),
            ("drain = 5", "; write it as a table"),
            (
                "backend = 'x'",
                "; write it as a list: a line `[[backend]]` before each",
            ),
            (
                "balance.policy = 'random'",
                "expected `least-request` or `round-robin`; write one of these",
            ),
            (
                "listen = '[::1]:1'\nlisten = '[::1]:1'",
                "duplicate key; keep one of the two",
            ),
        ] {
            let told = mistakes(line);
            assert!(
                told.starts_with("gateway.toml:") && told.contains(expected),
                "{line}: {told}"
            );
        }
    }

    #[test]
    fn the_gateway_is_not_its_own_backend_and_has_two_ports() {
        let parse = |listen: &str, backend: &str, own| {
            let text = format!(
                "listen = '{listen}'\nadmin = '127.0.0.1:2'\n[[backend]]\nname = 'a'\naddress = '{backend}'\n"
            );
            Config::parse(&text, own).map_err(|mistakes| {
                Invalid {
                    file: "f".into(),
                    mistakes,
                }
                .to_string()
            })
        };
        let own = Own::default();
        for (listen, backend) in [
            ("127.0.0.1:1", "127.0.0.1:1"),
            ("127.0.0.1:1", "127.0.0.1:2"),
            ("0.0.0.0:1", "127.0.0.1:1"),
            ("[::]:1", "127.0.0.1:1"),
            ("127.0.0.1:1", "0.0.0.0:1"),
        ] {
            let told = parse(listen, backend, own).unwrap_err();
            assert!(
                told.starts_with("f:5:11: ") && told.contains("the gateway's own"),
                "{told}"
            );
        }
        assert!(parse("0.0.0.0:1", "192.0.2.1:1", own).is_ok());
        assert!(parse("127.0.0.1:0", "127.0.0.1:1", own).is_ok());
        let told = parse("127.0.0.1:2", "192.0.2.1:1", own).unwrap_err();
        assert!(
            told.starts_with("f:2:9: `listen` and `admin` are both 127.0.0.1:2"),
            "{told}"
        );
        let elsewhere = Own {
            listen: Some("127.0.0.1:3".parse().unwrap()),
            admin: None,
        };
        assert!(
            parse("127.0.0.1:1", "127.0.0.1:1", elsewhere).is_ok(),
            "the command line says another address"
        );
        assert!(parse("127.0.0.1:1", "127.0.0.1:3", elsewhere).is_err());
    }

    #[test]
    fn a_file_that_cannot_be_read_is_reported_by_name() {
        let load = |path: &str| {
            Config::load(Path::new(path), Own::default())
                .unwrap_err()
                .to_string()
        };
        let told = load("no-such-file.toml");
        assert!(
            told.starts_with("no-such-file.toml: cannot be read"),
            "{told}"
        );
        assert!(
            load(env!("CARGO_MANIFEST_DIR")).contains("cannot be read"),
            "a folder"
        );
        assert!(
            load("/dev/zero").contains("longer than 1 MiB"),
            "{}",
            load("/dev/zero")
        );
    }

    #[test]
    fn invalid_utf_8_is_reported_with_its_place() {
        let file = std::env::temp_dir().join(format!("gateway-utf8-{}.toml", std::process::id()));
        std::fs::write(&file, b"# fine\n# \xff\n").unwrap();
        let told = Config::load(&file, Own::default()).unwrap_err().to_string();
        std::fs::remove_file(&file).unwrap();
        assert!(
            told.ends_with(":2:3: this is not UTF-8; save the file as UTF-8 text"),
            "{told}"
        );
    }
}
