//! What connections and lookups of a path met by themselves, as the client's kernel counted them: no packet of ours.

use std::net::{IpAddr, SocketAddr};

use jiff::Timestamp;
use netdiag_common::Netns;
use netdiag_common::observation::dns::{Dns, DnsClient};
use netdiag_common::observation::tcp::{Outcome, Side, Tcp, TcpGroup};
use netdiag_common::observation::{Owner, Protocol};

use super::symptom::{MAX_CLIENT_PROBES, MAX_NAME_SERVERS};
use super::{Client, Path};
use crate::evidence::{Look, View};
use crate::finding::Fate;
use crate::question::Origin;

/// Failures of one kind from here on say that something is wrong; fewer may be a restart or a single slow answer.
pub const FEWEST_FAILURES: u64 = 5;
/// And so does their share of all attempts, in percent.
pub const SMALLEST_SHARE_PERCENT: u64 = 10;

/// Failures of one kind, of one client at one address.
#[derive(Debug, Clone, PartialEq)]
pub struct Lived {
    /// Index into [`Path::clients`].
    pub client: usize,
    pub to: SocketAddr,
    pub fate: Fate,
    pub failed: u64,
    /// Attempts that came to an end, `failed` among them.
    pub of: u64,
    pub window_s: f64,
    pub last_at: Timestamp,
    /// When it was read.
    pub at: Timestamp,
}

/// Failures of the path's own traffic. Nothing for UDP other than DNS, whose sockets tell no results.
pub fn lived(path: &Path, view: &mut View) -> Vec<Lived> {
    let mut lived = Vec::new();
    for (index, client) in path.clients.iter().enumerate().take(MAX_CLIENT_PROBES) {
        if let (Protocol::Tcp, Some(port), false) = (path.protocol, path.port, path.addresses.is_empty())
            && let Look::Seen(tcp) = view.tcp(&client.node, &Netns::Host)
        {
            let dialled = |group: &&TcpGroup| {
                let service = group.service.filter(|service| service.port() == port);
                service.is_some_and(|service| path.addresses.contains(&service.ip()))
            };
            let own = tcp.value.groups.iter().filter(|group| group.side == Side::Client);
            let own = own.filter(dialled).filter(|group| is_of(path, client, &group.netns));
            lived.extend(own.flat_map(|group| connects(index, group, tcp.value, tcp.at)));
        }
        let servers = name_servers(path, client, view);
        if !servers.is_empty()
            && let Look::Seen(dns) = view.dns(&client.node, &Netns::Host)
        {
            let asked = |group: &&DnsClient| servers.contains(&group.server.ip()) && is_of(path, client, &group.netns);
            lived.extend(
                dns.value.clients.iter().filter(asked).flat_map(|group| queries(index, group, dns.value, dns.at)),
            );
            lived.extend(no_such_name(path, index, client, dns.value, dns.at, &servers));
        }
    }
    lived
}

/// Asked from everywhere, every pod of the node speaks for it.
fn is_of(path: &Path, client: &Client, owner: &Owner) -> bool {
    match (&path.question.from, owner, &client.netns) {
        (Origin::EveryNode, Owner::Host | Owner::Pod { .. }, _) | (_, Owner::Host, Netns::Host) => true,
        (_, Owner::Pod { uid }, Netns::Pod(own)) => uid == own,
        _ => false,
    }
}

/// Of a name, the client's servers; of the DNS Service itself, its address.
fn name_servers(path: &Path, client: &Client, view: &mut View) -> Vec<IpAddr> {
    if path.is_dns() {
        return path.addresses.clone();
    }
    if path.name.is_none() || path.question.from == Origin::EveryNode {
        return Vec::new();
    }
    let Look::Seen(resolver) = view.resolver(&client.node, &client.netns) else { return Vec::new() };
    resolver.value.nameservers.iter().copied().take(MAX_NAME_SERVERS).collect()
}

fn connects(client: usize, group: &TcpGroup, tcp: &Tcp, at: Timestamp) -> Vec<Lived> {
    let Some(to) = group.service else { return Vec::new() };
    let fates = [
        (Outcome::Refused, Fate::Refused),
        (Outcome::TimedOut, Fate::Silence),
        (Outcome::Abandoned, Fate::Silence),
        (Outcome::Unreachable, Fate::Unreachable),
    ];
    let of = group.ended(Outcome::Established) + group.failed();
    let failures = fates.map(|(outcome, fate)| (fate, group.ended(outcome)));
    failed(failures, |fate, failed| Lived {
        client,
        to,
        fate,
        failed,
        of,
        window_s: tcp.window_s,
        last_at: group.last_at,
        at,
    })
}

fn queries(client: usize, group: &DnsClient, dns: &Dns, at: Timestamp) -> Vec<Lived> {
    let errors = group.rcodes.iter().filter(|(code, _)| !matches!(code.as_str(), "NOERROR" | "NXDOMAIN"));
    let failures =
        [(Fate::LookupSilence, group.unanswered), (Fate::LookupServerError, errors.map(|(_, count)| count).sum())];
    failed(failures, |fate, failed| Lived {
        client,
        to: group.server,
        fate,
        failed,
        of: group.answered + group.unanswered,
        window_s: dns.window_s,
        last_at: group.last_at,
        at,
    })
}

/// Every way of writing the asked name was answered with NXDOMAIN: one that a search list made is no failure while another
/// is found.
fn no_such_name(
    path: &Path,
    index: usize,
    client: &Client,
    dns: &Dns,
    at: Timestamp,
    servers: &[IpAddr],
) -> Option<Lived> {
    let name = path.name.as_ref()?;
    let asked = dns.names.iter().filter(|asked| is_of(path, client, &asked.netns));
    let asked: Vec<_> = asked.filter(|asked| name.candidates.contains(&asked.name)).collect();
    let last = asked.iter().find(|found| found.name == name.asked)?;
    let none_found = asked.iter().all(|found| found.nxdomain == found.queries);
    none_found.then(|| Lived {
        client: index,
        to: SocketAddr::new(servers[0], 53),
        fate: Fate::LookupNoSuchName,
        failed: last.nxdomain,
        of: last.queries,
        window_s: dns.window_s,
        last_at: at,
        at,
    })
}

fn failed<const N: usize>(failures: [(Fate, u64); N], lived: impl Fn(Fate, u64) -> Lived) -> Vec<Lived> {
    let mut all: Vec<Lived> = Vec::new();
    for (fate, count) in failures.into_iter().filter(|(_, count)| *count > 0) {
        match all.iter_mut().find(|known| known.fate == fate) {
            Some(known) => known.failed += count,
            None => all.push(lived(fate, count)),
        }
    }
    all
}

impl Lived {
    /// Too many, and too large a share, to be chance.
    pub fn is_telling(&self) -> bool {
        self.failed >= FEWEST_FAILURES && self.failed * 100 >= self.of.max(1) * SMALLEST_SHARE_PERCENT
    }

    /// `12 of 15 own connects of Pod shop/client to 10.96.0.7:80 in 300 s: no answer`.
    pub fn words(&self, path: &Path) -> String {
        let who = match (&path.question.from, path.clients.get(self.client)) {
            (Origin::EveryNode, Some(client)) => format!("of node {} and its pods", client.node),
            (_, Some(client)) => format!("of {}", client.reference),
            (_, None) => String::new(),
        };
        let what = if self.fate.is_lookup() { "queries" } else { "connects" };
        let Self { failed, of, to, window_s, .. } = self;
        format!("{failed} of {of} {what} {who} to {to} in {window_s:.0} s: {}", self.fate.words())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn single_failures_and_small_shares_tell_nothing() {
        let at: Timestamp = "2026-01-01T12:00:00Z".parse().expect("a time");
        let lived = |failed, of| Lived {
            client: 0,
            to: "10.96.0.7:80".parse().expect("a socket"),
            fate: Fate::Silence,
            failed,
            of,
            window_s: 300.0,
            last_at: at,
            at,
        };
        assert!(!lived(4, 4).is_telling());
        assert!(!lived(9, 100).is_telling());
        assert!(lived(5, 50).is_telling());
    }
}
