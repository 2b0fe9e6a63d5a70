//! Traffic that fails often enough to be worth a question: who, to what, how.

use std::collections::BTreeMap;

use jiff::Timestamp;
use netdiag_common::observation::Protocol;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{DnsRow, DropRow, Peer, Place, RejectRow, Rows, Subject, TcpRow};
use crate::path::{FEWEST_FAILURES, SMALLEST_SHARE_PERCENT};

/// Dropped packets of one kind from here on say that something is wrong: retries of one connection are fewer in a minute.
const FEWEST_DROPS: u64 = 10;

/// Reasons that no healthy network drops packets for: full queues, missing routes and neighbours, filters, wrong sizes.
/// What a policy is meant to deny is told apart by asking about the path.
const TELLING_REASONS: &[&str] = &[
    "CPU_BACKLOG",
    "FULL_RING",
    "IP_INNOROUTES",
    "IP_OUTNOROUTES",
    "IP_RPFILTER",
    "NEIGH_CREATEFAIL",
    "NEIGH_FAILED",
    "NEIGH_QUEUEFULL",
    "NETFILTER_DROP",
    "PKT_TOO_BIG",
    "QDISC_DROP",
    "SOCKET_RCVBUFF",
    "TCP_OVERFLOW",
    "TC_EGRESS",
    "TC_INGRESS",
];

/// One kind of failure towards one address.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Failing {
    /// Where most of it happened.
    #[serde(flatten)]
    pub place: Place,
    pub subject: Subject,
    pub to: Peer,
    pub protocol: String,
    /// `31 of 40 connects: 30 timed out, 1 refused`.
    pub what: String,
    pub failed: u64,
    /// Pods and hosts that it happened to.
    pub places: usize,
    #[schemars(with = "String")]
    pub last_at: Timestamp,
    /// Where the connection starts, as `netdiag diagnose --from` takes it; empty when nobody knows.
    pub from: String,
}

/// All that is telling, most failures first; the same failure towards the same address once.
pub fn failing(rows: &Rows) -> Vec<Failing> {
    let tcp = rows.tcp.rows.iter().filter_map(of_tcp);
    let dns = rows.dns.rows.iter().filter_map(of_dns);
    let refusals = rows.rejects.rows.iter().filter_map(of_refusal);
    let drops = rows.drops.rows.iter().filter_map(of_drop);
    let mut all: Vec<Failing> = tcp.chain(dns).chain(refusals).chain(drops).collect();
    all.sort_by_key(|failing| std::cmp::Reverse(failing.failed));
    let mut known: BTreeMap<(Subject, String), usize> = BTreeMap::new();
    let mut once: Vec<Failing> = Vec::new();
    for failing in all {
        match known.get(&(failing.subject, failing.to.address.clone())) {
            Some(index) => once[*index].places += 1,
            None => {
                known.insert((failing.subject, failing.to.address.clone()), once.len());
                once.push(failing);
            }
        }
    }
    // What sockets met says more than the packets that were dropped of them.
    let met: Vec<String> = once.iter().filter(|f| f.subject != Subject::Drops).flat_map(Failing::names).collect();
    let dns: Vec<String> = once.iter().filter(|f| f.subject == Subject::Dns).map(|f| f.to.address.clone()).collect();
    once.retain(|failing| match failing.subject {
        Subject::Drops => !failing.names().iter().any(|name| met.contains(name)),
        Subject::Rejects => !dns.contains(&failing.to.address),
        _ => true,
    });
    once
}

fn of_tcp(row: &TcpRow) -> Option<Failing> {
    let to = row.service.clone().filter(|_| row.side == "client")?;
    // Applications that race connections to several addresses abandon the slower ones.
    let abandoned = if row.established == 0 { row.abandoned } else { 0 };
    let terms = [
        (row.refused, "refused"),
        (row.timed_out, "timed out"),
        (row.unreachable, "unreachable"),
        (abandoned, "given up without an answer"),
    ];
    let failed: u64 = terms.iter().map(|(count, _)| count).sum();
    let of = row.established + row.failed();
    let words: Vec<String> =
        terms.iter().filter(|(count, _)| *count > 0).map(|(count, word)| format!("{count} {word}")).collect();
    is_telling(failed, of).then(|| Failing {
        from: origin(&row.place),
        place: row.place.clone(),
        subject: Subject::Tcp,
        to,
        protocol: Protocol::Tcp.to_string(),
        what: format!("{failed} of {of} connects failed: {}", words.join(", ")),
        failed,
        places: 1,
        last_at: row.last_at,
    })
}

fn of_dns(row: &DnsRow) -> Option<Failing> {
    let errors = row.server_errors();
    let (failed, of) = (row.unanswered + errors, row.answered + row.unanswered);
    is_telling(failed, of).then(|| Failing {
        from: origin(&row.place),
        place: row.place.clone(),
        subject: Subject::Dns,
        to: row.server.clone(),
        protocol: row.protocol.to_string(),
        what: format!("{failed} of {of} DNS queries failed: {} without answer, {errors} errors", row.unanswered),
        failed,
        places: 1,
        last_at: row.last_at,
    })
}

/// What sockets other than TCP's were told, mostly by ICMP: nobody counts their attempts.
fn of_refusal(row: &RejectRow) -> Option<Failing> {
    let to = row.to.clone().filter(|to| to.address.parse::<std::net::SocketAddr>().is_ok())?;
    let is_telling = row.kind == "error" && row.protocol == "udp" && row.packets >= FEWEST_FAILURES;
    is_telling.then(|| Failing {
        from: origin(&row.place),
        place: row.place.clone(),
        subject: Subject::Rejects,
        to,
        protocol: row.protocol.clone(),
        what: format!("{} times {}", row.packets, row.detail),
        failed: row.packets,
        places: 1,
        last_at: row.last_at,
    })
}

fn of_drop(row: &DropRow) -> Option<Failing> {
    let is_telling = row.harmless.is_empty()
        && row.packets >= FEWEST_DROPS
        && TELLING_REASONS.contains(&row.reason.as_str())
        && matches!(row.protocol.as_str(), "tcp" | "udp");
    let (from, to) = (row.from.as_ref()?, row.asked.as_ref().or(row.to.as_ref())?);
    // Only the service's side of a connection has its port here: an answer that is dropped does not say to whom it goes.
    let has_port = to.address.parse::<std::net::SocketAddr>().is_ok();
    (is_telling && has_port).then(|| Failing {
        from: from.object(),
        place: row.place.clone(),
        subject: Subject::Drops,
        to: to.clone(),
        protocol: row.protocol.clone(),
        what: format!("{} packets dropped: {} at {}", row.packets, row.reason, row.location),
        failed: row.packets,
        places: 1,
        last_at: row.last_at,
    })
}

fn is_telling(failed: u64, of: u64) -> bool {
    failed >= FEWEST_FAILURES && failed * 100 >= of.max(1) * SMALLEST_SHARE_PERCENT
}

/// `pod/shop/web-1`, `node/n1`, or empty.
fn origin(place: &Place) -> String {
    match (place.pod.as_str(), place.name.as_str()) {
        ("", "host") => format!("node/{}", place.node),
        ("", _) => String::new(),
        (pod, _) => format!("pod/{}/{pod}", place.namespace),
    }
}

impl Peer {
    /// As `netdiag diagnose` names it, without a port: `service/shop/web`; empty for what is not in the cluster.
    fn object(&self) -> String {
        self.name.replacen(' ', "/", 1)
    }

    /// As `netdiag diagnose --to` takes it.
    pub fn target(&self) -> String {
        match (self.object().as_str(), self.address.rsplit_once(':')) {
            ("", _) | (_, None) => format!("ip/{}", self.address),
            (object, Some((_, port))) => format!("{object}:{port}"),
        }
    }
}

impl Failing {
    /// The command that asks why.
    pub fn ask(&self) -> String {
        let from = if self.from.is_empty() { String::new() } else { format!(" --from {}", self.from) };
        let protocol = if self.protocol == "udp" { " --protocol udp" } else { "" };
        format!("netdiag diagnose{from} --to {}{protocol}", self.to.target())
    }

    /// `shop/client on n1 (and 2 more places) to service shop/web:80: 31 of 40 connects failed: 31 timed out`.
    pub fn words(&self) -> String {
        let more = if self.places > 1 { format!(" (and {} more places)", self.places - 1) } else { String::new() };
        format!(
            "{} on {}{more} to {}/{}: {}",
            self.place.name,
            self.place.node,
            self.to.words(),
            self.protocol,
            self.what
        )
    }

    fn names(&self) -> Vec<String> {
        [&self.to.name, &self.to.address].into_iter().filter(|name| !name.is_empty()).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(refused: u64, established: u64) -> TcpRow {
        let at: Timestamp = "2026-01-01T12:00:00Z".parse().expect("a time");
        TcpRow {
            place: Place {
                node: "n1".to_owned(),
                namespace: "shop".to_owned(),
                pod: "client".to_owned(),
                name: "shop/client".to_owned(),
            },
            side: "client".to_owned(),
            service: Some(Peer { address: "10.96.0.7:80".to_owned(), name: "service shop/web".to_owned() }),
            connects: refused + established,
            open: 0,
            established,
            refused,
            timed_out: 0,
            reset: 0,
            unreachable: 0,
            abandoned: 0,
            no_port: 0,
            other: 0,
            accepted: 0,
            broken: 0,
            syn_retransmits: 0,
            synack_retransmits: 0,
            retransmits: 0,
            handshake_p50_us: None,
            handshake_p99_us: None,
            round_trip_p50_us: None,
            first_at: at,
            last_at: at,
        }
    }

    fn rows(tcp: Vec<TcpRow>) -> Rows {
        let mut rows = Rows::default();
        rows.tcp.rows = tcp;
        rows
    }

    #[test]
    fn a_failing_service_is_one_line_that_can_be_asked_about() {
        let failing = failing(&rows(vec![row(30, 10), row(7, 0)]));
        assert_eq!(failing.len(), 1);
        assert_eq!(failing[0].ask(), "netdiag diagnose --from pod/shop/client --to service/shop/web:80");
        assert_eq!(
            failing[0].words(),
            "shop/client on n1 (and 1 more places) to service shop/web:80/tcp: 30 of 40 connects failed: 30 refused"
        );
    }

    #[test]
    fn noise_is_quiet() {
        let lost_race = TcpRow { abandoned: 50, ..row(0, 50) };
        assert_eq!(failing(&rows(vec![row(4, 0), row(9, 100), lost_race])), []);
        let served = TcpRow { side: "server".to_owned(), ..row(30, 0) };
        assert_eq!(failing(&rows(vec![served])), [], "the client's side has the same failures");
    }
}
