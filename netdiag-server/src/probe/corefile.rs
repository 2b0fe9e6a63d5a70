//! Where CoreDNS leads a name, as its Corefile says: to itself (plugin kubernetes), or to upstreams (plugin forward).
//!
//! <https://coredns.io/plugins/forward/>, <https://coredns.io/plugins/kubernetes/>

use std::net::{IpAddr, SocketAddr};

use crate::evidence::corefile::{Block, blocks};

/// What becomes of one name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Led {
    /// It is in this zone of the cluster: no upstream is asked.
    Itself(String),
    /// By each `forward` that takes the name; empty where there is none.
    To(Vec<Upstream>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Upstream {
    /// The server, and whether it is asked by TLS.
    Server(SocketAddr, bool),
    /// The servers of this file as CoreDNS's own pods have it: `/etc/resolv.conf`.
    File(String),
    /// Neither; as it is written.
    Strange(String),
}

/// Ports that are not written: RFC 1035 §4.2, RFC 7858 §3.1.
const PLAIN_PORT: u16 = 53;
const TLS_PORT: u16 = 853;

pub(super) fn led(corefile: &str, name: &str) -> Led {
    let blocks = blocks(corefile);
    // The block with the longest zone that has the name is the one that answers.
    let longest = |block: &Block| block.zones.iter().filter(|zone| holds(zone, name)).map(|zone| labels(zone)).max();
    let Some(best) = blocks.iter().filter_map(longest).max() else { return Led::To(Vec::new()) };
    let mut upstreams = Vec::new();
    for block in blocks.iter().filter(|block| longest(block) == Some(best)) {
        for plugin in &block.plugins {
            match plugin.as_slice() {
                ["kubernetes", zones @ ..] => {
                    let zones: Vec<&str> = if zones.is_empty() { block.zones.clone() } else { zones.to_vec() };
                    if let Some(zone) = zones.into_iter().find(|zone| holds(zone, name)) {
                        return Led::Itself(zone.trim_end_matches('.').to_owned());
                    }
                }
                ["forward", from, to @ ..] if holds(from, name) => upstreams.extend(to.iter().map(|to| upstream(to))),
                _ => {}
            }
        }
    }
    Led::To(upstreams)
}

fn labels(zone: &str) -> usize {
    zone.split('.').filter(|label| !label.is_empty()).count()
}

/// The name is the zone's own, or below it.
fn holds(zone: &str, name: &str) -> bool {
    let split = |text: &str| {
        text.split('.').rev().filter(|label| !label.is_empty()).map(str::to_ascii_lowercase).collect::<Vec<_>>()
    };
    split(name).starts_with(&split(zone))
}

fn upstream(to: &str) -> Upstream {
    let (by_tls, rest) = match to.split_once("://") {
        None => (false, to),
        Some(("dns", rest)) => (false, rest),
        Some(("tls", rest)) => (true, rest),
        Some(_) => return Upstream::Strange(to.to_owned()),
    };
    if rest.starts_with('/') {
        return Upstream::File(rest.to_owned());
    }
    let port = if by_tls { TLS_PORT } else { PLAIN_PORT };
    let address = rest.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    match rest.parse::<SocketAddr>().or_else(|_| address.map(|ip| SocketAddr::new(ip, port))) {
        Ok(server) => Upstream::Server(server, by_tls),
        Err(_) => Upstream::Strange(to.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const USUAL: &str = ".:53 {
    errors
    health {
        lameduck 5s
    }
    kubernetes cluster.local in-addr.arpa ip6.arpa {
        pods insecure
        fallthrough in-addr.arpa ip6.arpa
    }
    # forward . 9.9.9.9
    forward . /etc/resolv.conf 8.8.8.8 tls://[2001:db8::1] {
        max_concurrent 1000
    }
    cache 30
}
corp.example:53 {
    forward . 10.0.0.53:5353 dns://10.0.0.54 $UPSTREAM
    forward lab.corp.example 10.0.0.55
}
";

    fn server(text: &str, by_tls: bool) -> Upstream {
        Upstream::Server(text.parse().expect("an address with a port"), by_tls)
    }

    #[test]
    fn names_of_the_cluster_go_to_no_upstream() {
        for name in ["web.shop.svc.cluster.local", "web.shop.svc.CLUSTER.local.", "cluster.local"] {
            assert_eq!(led(USUAL, name), Led::Itself("cluster.local".to_owned()), "{name}");
        }
    }

    #[test]
    fn other_names_go_where_forward_says() {
        let all = vec![
            Upstream::File("/etc/resolv.conf".to_owned()),
            server("8.8.8.8:53", false),
            server("[2001:db8::1]:853", true),
        ];
        for name in ["example.com", "web.shop", "notcluster.local"] {
            assert_eq!(led(USUAL, name), Led::To(all.clone()), "{name}");
        }
    }

    #[test]
    fn the_block_of_the_longest_zone_answers() {
        let corp = vec![
            server("10.0.0.53:5353", false),
            server("10.0.0.54:53", false),
            Upstream::Strange("$UPSTREAM".to_owned()),
        ];
        assert_eq!(led(USUAL, "git.corp.example"), Led::To(corp.clone()));
        assert_eq!(led(USUAL, "a.lab.corp.example"), Led::To([corp, vec![server("10.0.0.55:53", false)]].concat()));
    }

    #[test]
    fn nothing_is_led_anywhere_by_a_file_that_says_nothing() {
        for strange in ["", "}", "{", ".:53 {", "forward . 8.8.8.8", "}}}}\n{ {"] {
            assert_eq!(led(strange, "example.com"), Led::To(Vec::new()), "{strange:?}");
        }
    }
}
