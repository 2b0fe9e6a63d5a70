//! What was asked: a path from somewhere to something, or a scan. Parsing is pure; whether things exist is the path's matter.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use netdiag_common::Tier;
use netdiag_common::observation::Protocol;

/// Where the connection starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    Pod {
        namespace: String,
        name: String,
    },
    Node {
        name: String,
    },
    /// Not said: from each node's host.
    EveryNode,
}

/// Where it is meant to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    Service {
        namespace: String,
        name: String,
        port: Option<PortName>,
    },
    Pod {
        namespace: String,
        name: String,
        port: Option<u16>,
    },
    Node {
        name: String,
        port: Option<u16>,
    },
    Address(SocketAddr),
    /// A DNS name as the client would ask for it, with or without search list.
    Name {
        name: String,
        port: Option<u16>,
    },
}

/// A Service's port by number or name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PortName {
    Number(u16),
    Name(String),
}

/// Why the question is asked: decides whether intended denials are worth naming.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Somebody asks about exactly this path.
    Diagnose,
    /// One of many paths of a scan: what is meant to be denied stays quiet.
    Scan,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    pub from: Origin,
    pub to: Target,
    pub protocol: Protocol,
    pub purpose: Purpose,
    /// The highest tier that may be used.
    pub tier: Tier,
    /// Time until the answer must be given.
    pub budget: Duration,
}

/// How long an answer may take unless told otherwise: below the patience of a person and of most MCP clients.
pub const DEFAULT_BUDGET: Duration = Duration::from_secs(20);

/// Kind, namespace (63), name (253, RFC 1123) and port with what separates them, rounded up. Unknown names are compared with
/// those that exist, which takes time with their length.
const MAX_LENGTH: usize = 400;

/// The text of an argument that is not understood, and what is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    #[error("{text:?} is not a source: use pod/NAMESPACE/NAME or node/NAME")]
    Origin { text: String },
    #[error(
        "{text:?} is not a target: use service/NAMESPACE/NAME:PORT, pod/NAMESPACE/NAME:PORT, node/NAME:PORT, \
         ip/ADDRESS:PORT (IPv6 in brackets) or name/FQDN:PORT"
    )]
    Target { text: String },
    #[error(
        "a source or target of {length} characters is too long: no name in Kubernetes needs more than {MAX_LENGTH}"
    )]
    TooLong { length: usize },
    #[error("{port:?} in {text:?} is not a port: use a number from 1 to 65535{}", if *.named { " or a port's name" } else { "" })]
    Port { text: String, port: String, named: bool },
}

impl std::str::FromStr for Origin {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        not_too_long(text)?;
        let bad = || ParseError::Origin { text: text.to_owned() };
        match *text.split('/').collect::<Vec<_>>().as_slice() {
            ["pod", namespace, name] if !namespace.is_empty() && !name.is_empty() => {
                Ok(Self::Pod { namespace: namespace.to_owned(), name: name.to_owned() })
            }
            ["node", name] if !name.is_empty() => Ok(Self::Node { name: name.to_owned() }),
            _ => Err(bad()),
        }
    }
}

impl std::str::FromStr for Target {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        not_too_long(text)?;
        let bad = || ParseError::Target { text: text.to_owned() };
        let (kind, rest) = text.split_once('/').ok_or_else(bad)?;
        if kind == "ip" {
            return rest.parse().map(Self::Address).map_err(|_| bad());
        }
        let (path, port) = match rest.rsplit_once(':') {
            Some((path, port)) => (path, Some(port)),
            None => (rest, None),
        };
        let number = |port: &str| {
            port.parse::<u16>().ok().filter(|n| *n > 0).ok_or_else(|| ParseError::Port {
                text: text.to_owned(),
                port: port.to_owned(),
                named: kind == "service",
            })
        };
        match (kind, path.split('/').collect::<Vec<_>>().as_slice()) {
            (_, parts) if parts.iter().any(|part| part.is_empty()) => Err(bad()),
            ("service" | "svc", [namespace, name]) => {
                let port = match port {
                    None => None,
                    Some(port) if is_port_name(port) => Some(PortName::Name(port.to_owned())),
                    Some(port) => Some(PortName::Number(number(port)?)),
                };
                Ok(Self::Service { namespace: (*namespace).to_owned(), name: (*name).to_owned(), port })
            }
            ("pod", [namespace, name]) => Ok(Self::Pod {
                namespace: (*namespace).to_owned(),
                name: (*name).to_owned(),
                port: port.map(number).transpose()?,
            }),
            ("node", [name]) => Ok(Self::Node { name: (*name).to_owned(), port: port.map(number).transpose()? }),
            ("name", [name]) => Ok(Self::Name { name: (*name).to_owned(), port: port.map(number).transpose()? }),
            _ => Err(bad()),
        }
    }
}

fn not_too_long(text: &str) -> Result<(), ParseError> {
    if text.len() > MAX_LENGTH { Err(ParseError::TooLong { length: text.len() }) } else { Ok(()) }
}

/// An IANA service name as Kubernetes allows it: at least one letter (validation `IsValidPortName`).
fn is_port_name(port: &str) -> bool {
    port.len() <= 15
        && port.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && port.bytes().any(|b| b.is_ascii_lowercase())
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Pod { namespace, name } => write!(f, "pod/{namespace}/{name}"),
            Self::Node { name } => write!(f, "node/{name}"),
            Self::EveryNode => f.write_str("every node's host"),
        }
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (text, port) = match self {
            Self::Service { namespace, name, port } => {
                (format!("service/{namespace}/{name}"), port.as_ref().map(ToString::to_string))
            }
            Self::Pod { namespace, name, port } => (format!("pod/{namespace}/{name}"), port.map(|p| p.to_string())),
            Self::Node { name, port } => (format!("node/{name}"), port.map(|p| p.to_string())),
            Self::Address(address) => (format!("ip/{address}"), None),
            Self::Name { name, port } => (format!("name/{name}"), port.map(|p| p.to_string())),
        };
        match port {
            Some(port) => write!(f, "{text}:{port}"),
            None => f.write_str(&text),
        }
    }
}

impl std::fmt::Display for PortName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Number(number) => write!(f, "{number}"),
            Self::Name(name) => f.write_str(name),
        }
    }
}

impl Target {
    /// The address of an `ip/` target.
    pub fn address(&self) -> Option<IpAddr> {
        match self {
            Self::Address(address) => Some(address.ip()),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_type_is_understood_and_printed_back() {
        for text in [
            "service/shop/web:80",
            "service/shop/web:http",
            "service/shop/web",
            "pod/shop/web-1:8080",
            "node/n1:22",
            "ip/10.0.0.1:80",
            "ip/[fd00::1]:80",
            "name/web.shop.svc.cluster.local:80",
        ] {
            assert_eq!(text.parse::<Target>().expect(text).to_string(), text);
        }
    }

    #[test]
    fn what_no_object_can_be_named_is_not_looked_for() {
        let name = "a".repeat(MAX_LENGTH);
        assert_eq!(
            format!("pod/shop/{name}:80").parse::<Target>(),
            Err(ParseError::TooLong { length: MAX_LENGTH + 12 })
        );
        assert_eq!(format!("pod/shop/{name}").parse::<Origin>(), Err(ParseError::TooLong { length: MAX_LENGTH + 9 }));
    }

    #[test]
    fn what_is_not_understood_says_what_would_be() {
        for text in [
            "web",
            "service/web:80",
            "service//web:80",
            "ip/10.0.0.1",
            "ip/fd00::1:80",
            "pod/a/b/c:1",
            "x/y:1",
            "service/a/b:0",
            "node/:1",
        ] {
            let error = text.parse::<Target>().expect_err(text).to_string();
            assert!(error.contains("use "), "{error}");
        }
    }
}
