//! Between two nodes large packets vanish and nobody says so; small ones get through, a handshake among them.

use std::net::{IpAddr, SocketAddr};

use jiff::Timestamp;
use netdiag_common::observation::Protocol;
use netdiag_common::observation::series::transport::TcpClose;
use netdiag_common::observation::series::{
    Identity, PathMtuProbe, PathMtuReport, Probe, ProbeReport, SeriesRequest, SeriesResult, TcpProbe,
};
use netdiag_common::{Gap, GapReason};

use super::between::{crosses, pairs};
use super::trace::{Met, probe_of};
use super::{Condition, Read, Severity, Verdict, Words};
use crate::evidence::object::Object;
use crate::evidence::{Look, ObjectRef, View};
use crate::finding::{Finding, Fix, Impact, Proof};
use crate::path::{Backend, Client, Path};

pub const CONDITION: Condition = Condition {
    code: "path_mtu_black_hole",
    severity: Severity::High,
    words: Words {
        means: "packets above a certain size vanish between two nodes of the path and no \"too big\" comes back: connections open, and \
                hang with the first large request or answer",
        how_we_know: "where a connection got through, echoes that must not be fragmented are sent from the client to the endpoint: \
                      large ones vanish while smaller ones before and after them are answered, too often for loss by chance; TCP \
                      agrees on segments that do not fit, and the devices at both ends take them",
        silent_when: "echoes of the device's whole MTU are answered, somebody says \"too big\" (then senders learn), smaller packets are \
                      lost as well, or both ends are on one node; it cannot be told where echoes of no size are answered, nor where \
                      TCP's segments fit (a clamped MSS, MTU probing from the start), since the other end's are not seen; a filter \
                      against large echoes alone looks the same, and in which of the two directions they vanish is not known",
        what_to_do: "let ICMP \"fragmentation needed\" and ICMPv6 \"packet too big\" pass on the way, or give pods the MTU that the way \
                     between the nodes carries",
        sources: &[
            "RFC 2923, 2.1: black hole detection",
            "RFC 1191, RFC 8201: path MTU discovery",
            "net/ipv4/tcp_output.c: tcp_mtu_to_mss",
            "https://docs.tigera.io/calico/latest/networking/configuring/mtu",
        ],
    },
    faults: &["cni-mtu-blackhole"],
    reads: &[Read::Topic("network"), Read::Topic("probe"), Read::Topic("series")],
    lookalikes: &["host_firewall_drops_path", "plugin_rule_stops_path", "overlay_ends_differ"],
    explains: &[],
    judge,
};

/// Pairs of a client and an endpoint that are measured: echoes of the same two nodes say the same.
const MAX_MEASURED: usize = 4;
/// Echoes of one size before it counts as lost, and the time for all of them: a search among lost sizes sends some sixty.
const TRIES: u8 = 2;
const TIMEOUT_MS: u32 = 8_000;
/// As the endpoint's other probes: one SYN and its first retransmission.
const HANDSHAKE_MS: u32 = 1_500;
/// Of IP and TCP without options. With options, as timestamps, a full segment's packet is larger by these.
const HEADERS_V4: u32 = 40;
const HEADERS_V6: u32 = 60;

/// A way that loses large packets.
struct Hole<'p> {
    client: &'p Client,
    backend: &'p Backend,
    /// The largest that is answered, bytes of the IP packet.
    fits: u32,
    /// What TCP may send in one segment there, bytes.
    segment: u32,
    device_mtu: Option<u32>,
    last_hop: Option<IpAddr>,
    at: Timestamp,
}

enum Found<'p> {
    Hole(Hole<'p>),
    Fine(String),
    Dark,
}

fn judge(path: &Path, view: &mut View) -> Verdict {
    if !path.is_asked() || path.protocol != Protocol::Tcp {
        return Verdict::not_applicable("large packets are sent for TCP paths that somebody asks about");
    }
    let crossing: Vec<_> = pairs(path).into_iter().filter(|pair| crosses(*pair)).take(MAX_MEASURED).collect();
    if crossing.is_empty() {
        return Verdict::not_applicable("no endpoint of the path is a pod of another node");
    }
    let (mut holes, mut fine, mut dark): (Vec<Hole>, Option<String>, bool) = (Vec::new(), None, false);
    for (client, backend) in crossing {
        // Where no small packet gets through there is nothing to say about large ones.
        if probe_of(path, view, client, backend) != Met::GotThrough {
            continue;
        }
        match measure(client, backend, view) {
            Found::Hole(hole) => holes.push(hole),
            Found::Fine(because) => fine = Some(because),
            Found::Dark => dark = true,
        }
    }
    let Some(first) = holes.first() else {
        return match fine {
            _ if dark => Verdict::unknown(view),
            Some(because) => Verdict::clear(because),
            None => Verdict::not_applicable("no connection to another node's pod got through"),
        };
    };
    let (near, far) = (place(first.client), place_of(first.backend));
    let mut claim = format!(
        "packets of more than {} bytes between {near} and {far} vanish, and nobody says \"too big\"",
        first.fits
    );
    if let Some(hop) = first.last_hop {
        claim.push_str(&format!("; the last that hears them is {hop}"));
    }
    let (mut subjects, mut proofs): (Vec<ObjectRef>, Vec<Proof>) = (Vec::new(), Vec::new());
    for hole in &holes {
        for node in [&hole.client.node, &hole.backend.node] {
            ObjectRef::of_node(node).add_once(&mut subjects);
        }
        proofs.push(Proof::probe(
            format!("probe from {}", place(hole.client)),
            &hole.client.node,
            hole.at,
            format!(
                "echoes to {} of {} bytes are answered, larger ones{} are not, and smaller ones between them are",
                hole.backend.address,
                hole.fits,
                hole.device_mtu.map(|mtu| format!(" up to the device's {mtu}")).unwrap_or_default()
            ),
        ));
        proofs.push(Proof::probe(
            format!("connection from {}", place(hole.client)),
            &hole.client.node,
            hole.at,
            format!("TCP to {} may send {} bytes in one segment", hole.backend.address, hole.segment),
        ));
    }
    proofs.extend(ends(first, view));
    let fix = Fix {
        text: format!(
            "find what carries no packets of more than {} bytes between nodes {} and {} and drops ICMP \"too big\"; let these pass, \
             or set the network plugin's MTU to {} on all nodes and start the pods anew",
            first.fits, first.client.node, first.backend.node, first.fits
        ),
        commands: Vec::new(),
        verify: path.ask_again(),
    };
    // Small packets get through: whatever the share of such ways, none of them is cut.
    Verdict::found(Finding { subjects, since: None, impact: Impact::Degrades, claim, proofs, predicts: &[], fix })
}

fn measure<'p>(client: &'p Client, backend: &'p Backend, view: &mut View) -> Found<'p> {
    let Look::Seen(seen) = view.series(&client.node, &client.netns, echoes(backend.address)) else {
        return Found::Dark;
    };
    let (fits, report) = match told(seen.value) {
        Ok(told) => told,
        Err(why) => {
            view.leave_open(untold(client, backend, why));
            return Found::Dark;
        }
    };
    if report.black_hole {
        let PathMtuReport { device_mtu, last_hop, .. } = *report;
        let Some(segment) = segment(client, backend, fits, view) else { return Found::Dark };
        return Found::Hole(Hole { client, backend, fits, segment, device_mtu, last_hop, at: seen.at });
    }
    let said = report.said_by.map(|from| format!(", and {from} says so to larger ones")).unwrap_or_default();
    Found::Fine(format!("packets of {fits} bytes get from {} to {}{said}", place(client), place_of(backend)))
}

/// What TCP may send in one segment, where that does not fit; none, with the reason left open, where it does or is not known.
fn segment(client: &Client, backend: &Backend, fits: u32, view: &mut View) -> Option<u32> {
    let to = SocketAddr::new(backend.address, backend.port);
    let handshake = Probe::Tcp(TcpProbe { to, source_port: None, close: TcpClose::default() });
    let Look::Seen(seen) = view.series(&client.node, &client.netns, once(handshake, HANDSHAKE_MS)) else { return None };
    let told = seen.value.attempts.first().and_then(|attempt| match &attempt.report {
        ProbeReport::Tcp(report) => report.send_mss,
        _ => None,
    });
    let headers = if backend.address.is_ipv4() { HEADERS_V4 } else { HEADERS_V6 };
    match told {
        Some(segment) if segment.saturating_add(headers) > fits => Some(segment),
        Some(segment) => {
            let why = format!(
                "echoes of more than {fits} bytes vanish, but TCP there sends at most {segment} bytes in one segment, which fit; what \
                 the endpoint sends is not seen"
            );
            view.leave_open(untold(client, backend, why));
            None
        }
        None => {
            view.leave_open(untold(client, backend, "the size of TCP's segments is not told".to_owned()));
            None
        }
    }
}

/// By ICMP, since the endpoint's port is TCP's.
fn echoes(to: IpAddr) -> SeriesRequest {
    let to = SocketAddr::new(to, 0);
    once(Probe::PathMtu(PathMtuProbe { to, from_bytes: None, tries: TRIES, source_port: None }), TIMEOUT_MS)
}

fn once(probe: Probe, timeout_ms: u32) -> SeriesRequest {
    SeriesRequest {
        probe,
        count: 1,
        interval_us: 0,
        timeout_ms,
        parallel: 1,
        identity: Identity::default(),
        asked_by: None,
    }
}

/// The largest size that is answered, and the rest; an error: why that is not known.
fn told(result: &SeriesResult) -> Result<(u32, &PathMtuReport), String> {
    let Some(attempt) = result.attempts.first() else {
        return Err(result.untried_because.clone().unwrap_or_else(|| "no echo was sent".to_owned()));
    };
    match (&attempt.report, &attempt.failure) {
        // The failure of a black hole is what was asked about.
        (ProbeReport::PathMtu(report), failure) if failure.is_none() || report.black_hole => {
            report.path_mtu.map(|fits| (fits, report)).ok_or_else(|| "echoes of no size are answered".to_owned())
        }
        (_, Some(failure)) => Err(failure.why.clone()),
        (_, None) => Err("the agent tells no path MTU".to_owned()),
    }
}

fn untold(client: &Client, backend: &Backend, why: String) -> Gap {
    Gap {
        what: format!("path MTU from {} to {}", place(client), place_of(backend)),
        node: Some(client.node.clone()),
        reason: GapReason::Failed,
        why,
        remedy: "let ICMP echoes pass between the two, or send large requests and look at `netdiag observe tcp`"
            .to_owned(),
    }
}

/// What the devices at both ends take: larger packets than the way between them carries.
fn ends(hole: &Hole, view: &mut View) -> Vec<Proof> {
    let source = hole.client.addresses.iter().copied().find(|own| own.is_ipv4() == hole.backend.address.is_ipv4());
    let near = (&hole.client.node, Some(hole.client.netns.clone()), Some(hole.backend.address), place(hole.client));
    let far = (&hole.backend.node, hole.backend.netns(), source, place_of(hole.backend));
    let mut proofs = Vec::new();
    for (node, netns, to, place) in [near, far] {
        let (Some(netns), Some(to)) = (netns, to) else { continue };
        let Look::Seen(network) = view.network(node, &netns) else { continue };
        let link = network.value.route_to(to).and_then(|route| network.value.link(route.link_index?));
        let Some(link) = link.filter(|link| link.mtu > hole.fits) else { continue };
        let text = format!("{} of {place} takes packets of {} bytes", link.name, link.mtu);
        proofs.push(Proof::programmed("links", node, network.at, text));
    }
    proofs
}

/// `Pod shop/client on node n1`, `node n1`.
fn place(client: &Client) -> String {
    match &client.pod {
        Some(pod) => format!("{} on node {}", pod.reference(), client.node),
        None => format!("node {}", client.node),
    }
}

fn place_of(backend: &Backend) -> String {
    match &backend.pod {
        Some(pod) => format!("{} on node {}", pod.reference(), backend.node),
        None => backend.address.to_string(),
    }
}
