//! What may be asked for at all: the limits of the wire's words, and of each kind.

use std::net::{IpAddr, SocketAddr};

use netdiag_common::observation::series::path::PathBy;
use netdiag_common::observation::series::transport::RawSegment;
use netdiag_common::observation::series::{
    MAX_ATTEMPT_TIMEOUT_MS, MAX_SERIES_ATTEMPTS, MAX_SERIES_PARALLEL, PathProbe, Probe, RawProbe, SeriesRequest,
    ThroughputProbe, UdpProbe,
};

use super::caps::not_allowed;
use crate::gap::Failure;

/// Largest payload of a datagram: 65 535 bytes less the headers of IPv4 and UDP.
const MAX_DATAGRAM_BYTES: u16 = 65_507;
const MAX_PAYLOAD_BYTES: usize = 1_024;
const MAX_DATAGRAMS: u16 = 1_000;
const MAX_RAW_BYTES: u16 = 8_000;
/// Of each size of a path MTU probe, and for each hop of a path.
const MAX_TRIES: u8 = 5;
const MAX_HOPS: u8 = 32;
/// Of a throughput probe.
const MAX_FILL_MS: u32 = 10_000;
const MAX_FILL_BYTES: u64 = 256 * 1024 * 1024;

/// Refuses what is beyond a limit, with the limit.
pub(super) fn check(request: &SeriesRequest) -> Result<(), Failure> {
    let within = |name: &str, value: u32, most: u32| {
        if (1..=most).contains(&value) {
            return Ok(());
        }
        Err(format!("a series of {name} {value} was asked, an agent makes 1 to {most}"))
    };
    within("attempts:", request.count, MAX_SERIES_ATTEMPTS)
        .and_then(|()| within("milliseconds of timeout:", request.timeout_ms, MAX_ATTEMPT_TIMEOUT_MS))
        .and_then(|()| within("attempts at one time:", request.parallel.into(), MAX_SERIES_PARALLEL.into()))
        .and_then(|()| kind(&request.probe))
        .map_err(|why| not_allowed(&why, "ask within the limits"))
}

/// The one address that a probe is sent to; none where names or redirects decide.
pub(super) fn target(probe: &Probe) -> Option<IpAddr> {
    match probe {
        Probe::Icmp(probe) => Some(probe.to),
        _ => address(probe).map(|to| to.ip()),
    }
}

/// The one address and port that a probe is sent to.
pub(super) fn address(probe: &Probe) -> Option<SocketAddr> {
    use netdiag_common::observation::series::dns::DnsAsking;
    match probe {
        Probe::Tcp(probe) => Some(probe.to),
        Probe::Udp(probe) => Some(probe.to),
        Probe::Tls(probe) => Some(probe.to),
        Probe::PathMtu(probe) => Some(probe.to),
        Probe::Path(probe) => Some(probe.to),
        Probe::Throughput(probe) => Some(probe.to),
        Probe::Raw(probe) => Some(probe.to),
        Probe::Http(probe) => probe.to,
        Probe::Dns(probe) => match probe.asking {
            DnsAsking::Server { server, .. } => Some(server),
            DnsAsking::Lookup { .. } => None,
        },
        Probe::Icmp(_) => None,
    }
}

fn kind(probe: &Probe) -> Result<(), String> {
    let needs_port = match probe {
        Probe::Tcp(_) | Probe::Udp(_) | Probe::Tls(_) | Probe::Throughput(_) | Probe::Http(_) | Probe::Dns(_) => true,
        Probe::Raw(probe) => probe.segment != RawSegment::Echo,
        Probe::Icmp(_) | Probe::PathMtu(_) | Probe::Path(_) => false,
    };
    if needs_port && address(probe).is_some_and(|to| to.port() == 0) {
        return Err("port 0 cannot be probed".to_owned());
    }
    match probe {
        Probe::Udp(probe) => udp(probe),
        Probe::Raw(probe) => raw(probe),
        Probe::PathMtu(probe) => tries(probe.tries),
        Probe::Path(probe) => path(probe),
        Probe::Throughput(probe) => throughput(probe),
        Probe::Icmp(probe) if probe.bytes > MAX_DATAGRAM_BYTES => Err(format!(
            "{} bytes of ICMP payload were asked for, an agent sends {MAX_DATAGRAM_BYTES} at most",
            probe.bytes
        )),
        _ => Ok(()),
    }
}

fn udp(probe: &UdpProbe) -> Result<(), String> {
    let payload_bytes = probe.payload.as_ref().map_or(0, Vec::len);
    if probe.bytes > MAX_DATAGRAM_BYTES || payload_bytes > MAX_PAYLOAD_BYTES {
        return Err(format!(
            "datagrams of {} bytes were asked for, an agent sends {MAX_DATAGRAM_BYTES} at most, and {MAX_PAYLOAD_BYTES} of a \
             payload that is given",
            payload_bytes.max(probe.bytes.into())
        ));
    }
    if !(1..=MAX_DATAGRAMS).contains(&probe.datagrams) {
        return Err(format!(
            "{} datagrams were asked for, an agent sends 1 to {MAX_DATAGRAMS} in one attempt",
            probe.datagrams
        ));
    }
    Ok(())
}

fn tries(tries: u8) -> Result<(), String> {
    if (1..=MAX_TRIES).contains(&tries) {
        return Ok(());
    }
    Err(format!("{tries} packets of each kind were asked for, an agent sends 1 to {MAX_TRIES}"))
}

fn path(probe: &PathProbe) -> Result<(), String> {
    if !(1..=MAX_HOPS).contains(&probe.max_hops) {
        return Err(format!("{} hops were asked for, an agent looks for 1 to {MAX_HOPS}", probe.max_hops));
    }
    if probe.to.port() == 0 && probe.by != PathBy::Icmp {
        return Err("a path by UDP or TCP needs a port: only ICMP has none".to_owned());
    }
    tries(probe.tries)
}

fn throughput(probe: &ThroughputProbe) -> Result<(), String> {
    if !(1..=MAX_FILL_MS).contains(&probe.duration_ms) || !(1..=MAX_FILL_BYTES).contains(&probe.max_bytes) {
        return Err(format!(
            "{} bytes in {} ms were asked for, an agent sends 1 to {MAX_FILL_BYTES} bytes in 1 to {MAX_FILL_MS} ms",
            probe.max_bytes, probe.duration_ms
        ));
    }
    Ok(())
}

fn raw(probe: &RawProbe) -> Result<(), String> {
    if probe.bytes > MAX_RAW_BYTES {
        return Err(format!("{} bytes of payload were asked for, an agent sends {MAX_RAW_BYTES} at most", probe.bytes));
    }
    if probe.fragment_bytes.is_some_and(|bytes| bytes < 8 || bytes % 8 != 0) {
        return Err("fragments have a multiple of 8 bytes, 8 at least (RFC 791)".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use netdiag_common::observation::series::transport::TcpClose;
    use netdiag_common::observation::series::{Identity, TcpProbe};

    use super::*;

    fn request(probe: Probe) -> SeriesRequest {
        let identity = Identity::default();
        SeriesRequest { probe, count: 1, interval_us: 0, timeout_ms: 1_000, parallel: 1, identity, asked_by: None }
    }

    fn tcp(to: &str) -> Probe {
        Probe::Tcp(TcpProbe { to: to.parse().unwrap(), source_port: None, close: TcpClose::default() })
    }

    fn why(request: &SeriesRequest) -> String {
        check(request).unwrap_err().to_string()
    }

    #[test]
    fn what_is_over_a_limit_is_refused() {
        let good = request(tcp("10.0.0.1:80"));
        assert!(check(&good).is_ok());
        assert!(why(&SeriesRequest { count: 0, ..good.clone() }).contains("1 to 100000"));
        assert!(why(&SeriesRequest { timeout_ms: 25_001, ..good.clone() }).contains("25000"));
        assert!(why(&SeriesRequest { parallel: 1_001, ..good.clone() }).contains("1000"));
        assert!(why(&request(tcp("10.0.0.1:0"))).contains("port 0"));
    }

    #[test]
    fn each_kind_has_its_own_limits() {
        let udp = UdpProbe {
            to: "10.0.0.1:53".parse().unwrap(),
            source_port: None,
            bytes: 32,
            payload: None,
            datagrams: 1,
            gap_us: 0,
        };
        assert!(check(&request(Probe::Udp(udp.clone()))).is_ok());
        assert!(why(&request(Probe::Udp(UdpProbe { datagrams: 0, ..udp.clone() }))).contains("1 to 1000"));
        assert!(why(&request(Probe::Udp(UdpProbe { payload: Some(vec![0; 1_025]), ..udp }))).contains("1024"));
        let to = "10.0.0.1:0".parse().unwrap();
        let raw =
            RawProbe { to, source_port: None, segment: RawSegment::Echo, ttl: None, bytes: 0, fragment_bytes: None };
        assert!(check(&request(Probe::Raw(raw.clone()))).is_ok(), "an echo has no port");
        assert!(why(&request(Probe::Raw(RawProbe { segment: RawSegment::Udp, ..raw.clone() }))).contains("port 0"));
        assert!(why(&request(Probe::Raw(RawProbe { fragment_bytes: Some(12), ..raw }))).contains("multiple of 8"));
    }
}
