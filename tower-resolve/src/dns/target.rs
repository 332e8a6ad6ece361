use std::net::SocketAddr;

use hickory_resolver::proto::rr::Name;

use super::DnsError;

/// What a name refers to.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Target {
    /// An address that needs no query.
    Fixed(SocketAddr),
    /// The addresses of a host.
    Host(Name, u16),
    /// The hosts of a service.
    Service(Name),
}

// === impl Target ===

impl Target {
    pub(super) fn parse(name: &str) -> Result<Self, DnsError> {
        if let Ok(addr) = name.parse() {
            return Ok(Self::Fixed(addr));
        }
        let bad = || DnsError::name(name);
        let labels = |text: &str| {
            Name::from_utf8(text)
                .ok()
                .filter(|name| !name.is_root() && name.num_labels() > 0)
        };
        if name.starts_with('_') {
            let service = labels(name).filter(|name| name.num_labels() > 2);
            return service.map(Self::Service).ok_or_else(bad);
        }
        let (host, port) = name.rsplit_once(':').ok_or_else(bad)?;
        let port = port.parse().ok().filter(|port| *port > 0).ok_or_else(bad)?;
        labels(host)
            .map(|host| Self::Host(host, port))
            .ok_or_else(bad)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_an_address_a_host_or_a_service() {
        let name = |text| Name::from_utf8(text).unwrap();
        for (text, target) in [
            ("echo:80", Target::Host(name("echo"), 80)),
            (
                "echo.example.:8080",
                Target::Host(name("echo.example."), 8080),
            ),
            (
                "_echo._tcp.example",
                Target::Service(name("_echo._tcp.example")),
            ),
            (
                "192.0.2.1:80",
                Target::Fixed("192.0.2.1:80".parse().unwrap()),
            ),
            ("[::1]:80", Target::Fixed("[::1]:80".parse().unwrap())),
        ] {
            assert_eq!(Target::parse(text).unwrap(), target);
        }
    }

    #[test]
    fn an_invalid_name_is_an_error_with_the_valid_form() {
        for text in [
            "",
            "echo",
            ":80",
            ".:80",
            "echo:",
            "echo:0",
            "echo:70000",
            "echo:http",
            "_echo._tcp",
            "_",
            "a..b:1",
        ] {
            let error = Target::parse(text).unwrap_err().to_string();
            assert!(error.contains("write `host:port`"), "{text}: {error}");
        }
    }
}
