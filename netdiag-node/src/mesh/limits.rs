//! What an agent accepts, whatever the server asks.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use netdiag_common::observation::mesh::{
    Assignment, EVERY, INTERVAL_MS, MAX_ASKERS, MAX_ATTEMPTS_PER_S, MAX_AUTHORITIES_BYTES, MAX_LEASE_MS,
    MAX_NAME_BYTES, MAX_TARGETS, Target, TargetProbe, not_a_host,
};
use netdiag_common::observation::probe::MAX_PROBE_TIMEOUT_MS;

use super::means;
use crate::probe::ProbeRefused;
use crate::probe::dns::Query;
use crate::probe::series::{check_http, check_tls};

/// Why an assignment is not carried out.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    #[error("{0} targets in one assignment, {MAX_TARGETS} are the limit: split the mesh over more rounds")]
    Targets(usize),
    #[error("an attempt every {0} ms, {lowest} to {highest} are allowed", lowest = INTERVAL_MS.start(), highest = INTERVAL_MS.end())]
    Interval(u32),
    #[error("a timeout of {0} ms, 1 to {MAX_PROBE_TIMEOUT_MS} are allowed")]
    Timeout(u32),
    #[error("a lease of {0} ms, 1 to {MAX_LEASE_MS} are allowed: renew it in time")]
    Lease(u32),
    #[error("{wanted_per_1000s} attempts in 1000 s together with what runs already, {limit} are the limit: use a longer interval", limit = MAX_ATTEMPTS_PER_S * 1_000)]
    Rate { wanted_per_1000s: u64 },
    #[error(
        "{MAX_ASKERS} others assign to this agent already, which is the limit: try again when one of them has ended"
    )]
    Askers,
    #[error("a name of {0} bytes, 1 to {MAX_NAME_BYTES} are allowed")]
    Name(usize),
    #[error("two targets are named {0:?}")]
    Twice(String),
    #[error("target {name:?} is {destination}, which is no single host: {why}")]
    Destination { name: String, destination: SocketAddr, why: &'static str },
    #[error("target {name:?}: {source}")]
    Probe { name: String, source: ProbeRefused },
    #[error("target {name:?}: {why}")]
    Words { name: String, why: String },
    #[error("target {name:?} is to be probed in one of {every} intervals, {lowest} to {highest} are allowed", lowest = EVERY.start(), highest = EVERY.end())]
    Every { name: String, every: u32 },
}

/// One assignment by itself.
pub(super) fn check(assignment: &Assignment) -> Result<(), Refused> {
    name(&assignment.asker)?;
    if assignment.targets.len() > MAX_TARGETS {
        return Err(Refused::Targets(assignment.targets.len()));
    }
    if !INTERVAL_MS.contains(&assignment.interval_ms) {
        return Err(Refused::Interval(assignment.interval_ms));
    }
    if !(1..=MAX_PROBE_TIMEOUT_MS).contains(&assignment.timeout_ms) {
        return Err(Refused::Timeout(assignment.timeout_ms));
    }
    if !(1..=MAX_LEASE_MS).contains(&assignment.lease_ms) {
        return Err(Refused::Lease(assignment.lease_ms));
    }
    let mut names = BTreeSet::new();
    for target in &assignment.targets {
        name(&target.name)?;
        if !names.insert(&target.name) {
            return Err(Refused::Twice(target.name.clone()));
        }
        if !EVERY.contains(&target.every) {
            return Err(Refused::Every { name: target.name.clone(), every: target.every });
        }
        if let Some(timeout_ms) = target.timeout_ms.filter(|ms| !(1..=MAX_PROBE_TIMEOUT_MS).contains(ms)) {
            return Err(Refused::Timeout(timeout_ms));
        }
        destination(target)?;
        words(target)?;
    }
    Ok(())
}

/// A single host with a port. What a URL's host is may be known later.
fn destination(target: &Target) -> Result<(), Refused> {
    let Some(destination) = target.probe.destination() else { return Ok(()) };
    let refused = |why| Refused::Destination { name: target.name.clone(), destination, why };
    if let Some(why) = not_a_host(destination.ip()) {
        return Err(refused(why));
    }
    match &target.probe {
        TargetProbe::Icmp { .. } => Ok(()),
        _ if destination.port() == 0 => Err(refused("it is port 0")),
        _ => Ok(()),
    }
}

fn words(target: &Target) -> Result<(), Refused> {
    let refused = |why| Refused::Words { name: target.name.clone(), why };
    let short = |authorities: Option<&str>| match authorities.map_or(0, str::len) {
        ..=MAX_AUTHORITIES_BYTES => Ok(()),
        bytes => Err(refused(format!("authorities of {bytes} bytes, {MAX_AUTHORITIES_BYTES} are the limit"))),
    };
    match &target.probe {
        TargetProbe::Tcp { .. } | TargetProbe::Icmp { .. } => Ok(()),
        TargetProbe::Dns { name, record, .. } => {
            let query = Query::new(name, *record).map(|_| ());
            query.map_err(|source| Refused::Probe { name: target.name.clone(), source })
        }
        TargetProbe::Tls { address, port, server_name, authorities } => {
            let (to, authorities) = (SocketAddr::new(*address, *port), authorities.as_deref());
            short(authorities)?;
            check_tls(&means::tls(to, server_name.as_deref(), authorities)).map_err(refused)
        }
        TargetProbe::Http { url, dns, expect, authorities } => {
            let authorities = authorities.as_deref();
            short(authorities)?;
            if let Some(why) = dns.and_then(not_a_host) {
                return Err(refused(format!("its DNS server is no single host: {why}")));
            }
            check_http(&means::http(url, expect, authorities)).map_err(refused)
        }
    }
}

/// Together with what others have at work.
pub(super) fn check_rate(assignment: &Assignment, others_per_1000s: u64) -> Result<(), Refused> {
    let wanted_per_1000s = others_per_1000s + assignment.attempts_per_1000s();
    if wanted_per_1000s > MAX_ATTEMPTS_PER_S * 1_000 {
        return Err(Refused::Rate { wanted_per_1000s });
    }
    Ok(())
}

fn name(name: &str) -> Result<(), Refused> {
    if (1..=MAX_NAME_BYTES).contains(&name.len()) { Ok(()) } else { Err(Refused::Name(name.len())) }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use netdiag_common::observation::probe::DnsRecord;

    use super::*;

    fn target(number: u8) -> Target {
        let address = IpAddr::from([10, 0, 0, number]);
        Target::new(format!("t{number}"), TargetProbe::Tcp { address, port: 9443 })
    }

    fn assignment(targets: Vec<Target>) -> Assignment {
        Assignment {
            asker: "server".to_owned(),
            generation: 1,
            interval_ms: 2_000,
            timeout_ms: 1_000,
            lease_ms: 60_000,
            targets,
        }
    }

    /// The refusal of an assignment of one target after `edit`.
    fn refusal(edit: impl FnOnce(&mut Assignment)) -> String {
        let mut asked = assignment(vec![target(1)]);
        edit(&mut asked);
        check(&asked).unwrap_err().to_string()
    }

    #[test]
    fn what_is_within_the_limits_is_accepted() {
        let full = assignment((1..=96).map(target).collect());
        check(&full).unwrap();
        check_rate(&full, MAX_ATTEMPTS_PER_S * 1_000 - full.attempts_per_1000s()).unwrap();
    }

    #[test]
    fn who_looks_beside_a_server_may_probe_as_many_targets() {
        let kept = assignment((1..=96).map(target).collect());
        let besides = Assignment { interval_ms: 1_000, ..kept.clone() };
        check_rate(&besides, kept.attempts_per_1000s()).unwrap();
        check_rate(&besides, besides.attempts_per_1000s()).unwrap_err();
    }

    #[test]
    fn what_is_over_a_limit_is_refused_with_the_limit() {
        let too_many = check(&assignment((1..=97).map(target).collect())).unwrap_err().to_string();
        assert!(too_many.starts_with("97 targets in one assignment, 96 are the limit"), "{too_many}");
        assert_eq!(refusal(|a| a.interval_ms = 99), "an attempt every 99 ms, 100 to 60000 are allowed");
        assert_eq!(refusal(|a| a.timeout_ms = 5_001), "a timeout of 5001 ms, 1 to 5000 are allowed");
        assert!(refusal(|a| a.lease_ms = 0).starts_with("a lease of 0 ms"));
        assert!(refusal(|a| a.asker = String::new()).starts_with("a name of 0 bytes"));
        assert!(refusal(|a| a.targets[0].name = "x".repeat(321)).starts_with("a name of 321 bytes"));
        assert_eq!(refusal(|a| a.targets.push(target(1))), "two targets are named \"t1\"");
        let fast = Assignment { interval_ms: 100, ..assignment((1..=16).map(target).collect()) };
        check(&fast).unwrap();
        let rate = check_rate(&fast, 0).unwrap_err().to_string();
        assert!(rate.starts_with("160000 attempts in 1000 s") && rate.contains("150000 are the limit"), "{rate}");
    }

    #[test]
    fn urls_authorities_and_turns_are_held_against_their_limits() {
        let http = |url: &str, authorities: Option<String>| {
            let url = url.to_owned();
            refusal(|a| a.targets[0].probe = TargetProbe::Http { url, dns: None, expect: Vec::new(), authorities })
        };
        assert!(http("ftp://web/", None).contains("only http:// and https://"));
        assert!(http("http://web:0/", None).contains("port 0"));
        assert!(http("https://web/", Some("x".repeat(8_193))).contains("8193 bytes, 8192 are the limit"));
        assert!(http("https://web/", Some("no PEM".to_owned())).contains("no usable certificate"));
        let said = refusal(|a| a.targets[0].every = 31);
        assert_eq!(said, "target \"t1\" is to be probed in one of 31 intervals, 1 to 30 are allowed");
        assert!(refusal(|a| a.targets[0].timeout_ms = Some(0)).starts_with("a timeout of 0 ms"));
        let mut asked = assignment(vec![target(1)]);
        let (url, expect) = ("http://web.shop.svc.cluster.local/healthz".to_owned(), vec![200]);
        asked.targets[0].probe = TargetProbe::Http { url, dns: None, expect, authorities: None };
        check(&asked).unwrap();
    }

    #[test]
    fn what_is_no_single_host_is_not_probed() {
        for (address, why) in [
            ("0.0.0.0", "no address"),
            ("224.0.0.1", "multicast"),
            ("255.255.255.255", "broadcast"),
            ("fe80::1", "interface"),
        ] {
            let said = refusal(|a| a.targets[0].probe = TargetProbe::Icmp { address: address.parse().unwrap() });
            assert!(said.contains(why), "{said}");
        }
        let said = refusal(|a| a.targets[0].probe = TargetProbe::Tcp { address: IpAddr::from([10, 0, 0, 1]), port: 0 });
        assert!(said.contains("port 0"), "{said}");
        let probe = TargetProbe::Dns {
            server: IpAddr::from([10, 0, 0, 1]),
            port: 53,
            name: "a..b".to_owned(),
            record: DnsRecord::A,
        };
        let said = refusal(|a| a.targets[0].probe = probe);
        assert!(said.contains("not a DNS name"), "{said}");
    }
}
