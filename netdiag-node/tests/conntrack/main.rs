//! Flows of real tables: what the agent says of them, made to happen in namespaces of its own.

#![expect(clippy::unwrap_used, reason = "the helpers of these tests too")]

mod entries;
#[path = "../lab/mod.rs"]
mod lab;

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use entries::{insert, insert_one};
use lab::{Agent, CONTAINER, FakePod, LISTENS, NODE, Namespace, UID, ip};
use netdiag_common::observation::flow::{Flow, FlowChanges, FlowMapping, FlowQuery, Flows, FoundFlows, RulesToday};
use netdiag_common::observation::{Observation, Protocol};
use netdiag_common::{Need, Netns, Topic};
use nix::sys::signal::{Signal, kill};

const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 202, 1, 2);
const SERVERS: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 202, 2, 2), Ipv4Addr::new(10, 202, 2, 3)];
const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 50);

/// kube-proxy's layout with one Service, `shop/dns` at UDP port 53, which leads to port 5353 of one endpoint, and `shop/web`
/// at TCP port 80, which leads to port 8080 of another.
fn service_rules(dns: Ipv4Addr, web: Ipv4Addr) -> String {
    let type_of_services = "type ipv4_addr . inet_proto . inet_service : verdict";
    let type_of_ports = "type inet_proto . inet_service : verdict";
    format!(
        "table ip kube-proxy {{
            map no-endpoint-services {{ {type_of_services}; }}
            map no-endpoint-nodeports {{ {type_of_ports}; }}
            map service-nodeports {{ {type_of_ports}; }}
            set nodeport-ips {{ type ipv4_addr; }}
            chain service-AAAA-shop/dns/udp/ {{ meta l4proto udp dnat to {dns}:5353; }}
            chain service-BBBB-shop/web/tcp/ {{ meta l4proto tcp dnat to {web}:8080; }}
            map service-ips {{
                {type_of_services};
                elements = {{
                    {SERVICE} . udp . 53 : goto service-AAAA-shop/dns/udp/,
                    {SERVICE} . tcp . 80 : goto service-BBBB-shop/web/tcp/
                }}
            }}
            chain services {{ ip daddr . meta l4proto . th dport vmap @service-ips; }}
            chain nat-prerouting {{ type nat hook prerouting priority dstnat; jump services; }}
            chain nat-output {{ type nat hook output priority -100; jump services; }}
        }}"
    )
}

/// A client, a node that routes and translates, and two servers; the client's namespace is a pod of the node.
struct Lab {
    agent: Agent,
    client: Namespace,
    node: Namespace,
    server: Namespace,
    _pod: FakePod,
}

impl Lab {
    /// None when this machine cannot do it.
    fn start(role: &str) -> Option<Self> {
        if !lab::can_run() {
            return None;
        }
        let [client, node, server] =
            ["ct-client", "ct-node", "ct-server"].map(|kind| Namespace::new(&format!("{role}-{kind}")));
        for (other, device, first, hosts) in
            [(&client, "toClient", "10.202.1", vec![CLIENT]), (&server, "toServer", "10.202.2", SERVERS.to_vec())]
        {
            node.connect(device, other);
            ip(&format!("-n {} addr add {first}.1/24 dev {device}", node.name));
            for host in hosts {
                ip(&format!("-n {} addr add {host}/24 dev eth0", other.name));
            }
            ip(&format!("-n {} route add default via {first}.1", other.name));
        }
        node.run(|| std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap());
        if !nft(&node, &service_rules(SERVERS[0], SERVERS[0])) {
            lab::skip("no nft command");
            return None;
        }
        let root = lab::kubelet_root(role);
        let pod = FakePod::start(&client, &root, UID, CONTAINER, LISTENS.parse().unwrap());
        let agent = Agent::of_node(&node, &root);
        Some(Self { agent, client, node, server, _pod: pod })
    }

    fn flows(&self) -> Flows {
        let Observation::Flows(flows) = self.agent.seen(&Need::host(NODE, Topic::Flows)) else { panic!() };
        flows
    }

    /// Asks again until a pass was made after now. Passes are reused for a few seconds, and for twenty times as long as they
    /// took: some seconds each on a machine that is busy with other things.
    fn fresh_flows(&self) -> Flows {
        let before = self.flows().snapshot.at;
        let started = Instant::now();
        loop {
            let flows = self.flows();
            if flows.snapshot.at > before {
                return flows;
            }
            assert!(started.elapsed() < Duration::from_mins(4), "no new pass: {flows:?}");
            std::thread::sleep(Duration::from_millis(500));
        }
    }

    fn find(&self, query: FlowQuery) -> FoundFlows {
        let Observation::FoundFlows(found) = self.agent.seen(&Need::host(NODE, Topic::FindFlows(query))) else {
            panic!()
        };
        found
    }

    fn changes(&self) -> FlowChanges {
        self.flows().changes.unwrap()
    }

    fn resident_bytes(&self) -> u64 {
        let Observation::Preflight(found) = self.agent.seen(&Need::host(NODE, Topic::Preflight)) else { panic!() };
        found.resident_bytes
    }

    /// Waits until the agent has heard what the kernel announced.
    fn changes_when(&self, enough: impl Fn(&FlowChanges) -> bool) -> FlowChanges {
        let started = Instant::now();
        loop {
            let changes = self.changes();
            if enough(&changes) || started.elapsed() > Duration::from_secs(30) {
                return changes;
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

/// False when there is no nft.
fn nft(namespace: &Namespace, rules: &str) -> bool {
    let netns = format!("--net={}", namespace.path().display());
    let child = Command::new("nsenter").arg(netns).args(["nft", "-f", "-"]).stdin(Stdio::piped()).spawn();
    let Ok(mut child) = child else { return false };
    child.stdin.take().unwrap().write_all(rules.as_bytes()).unwrap();
    child.wait().unwrap().success()
}

fn udp(namespace: &Namespace, address: Ipv4Addr, port: u16) -> UdpSocket {
    let socket = namespace.run(|| UdpSocket::bind((address, port)).unwrap());
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    socket
}

/// One question and one answer through the Service.
fn ask_dns(client: &UdpSocket, server: &UdpSocket) {
    client.send_to(b"?", (SERVICE, 53)).unwrap();
    let mut buffer = [0; 16];
    let (_, from) = server.recv_from(&mut buffer).unwrap();
    server.send_to(b"!", from).unwrap();
    client.recv_from(&mut buffer).unwrap();
}

fn mapping(flows: &Flows, port: u16, endpoint: Ipv4Addr) -> &FlowMapping {
    let found = flows.snapshot.mappings.iter().find(|m| m.port == port && m.endpoint.address == IpAddr::V4(endpoint));
    found.unwrap_or_else(|| panic!("no mapping of port {port} to {endpoint} in {:#?}", flows.snapshot))
}

fn to_service() -> FlowQuery {
    FlowQuery { server: Some(SERVICE.into()), ..FlowQuery::default() }
}

#[test]
fn service_flow_shows_its_endpoint() {
    let Some(lab) = Lab::start("mapping") else { return };
    lab.changes_when(|changes| changes.listened_s > 0.0);
    let listener = lab.server.run(|| TcpListener::bind((SERVERS[0], 8080)).unwrap());
    let mut client = lab.client.run(|| TcpStream::connect((SERVICE, 80)).unwrap());
    let (mut served, _) = listener.accept().unwrap();
    client.write_all(b"?").unwrap();
    served.read_exact(&mut [0]).unwrap();

    let flows = lab.fresh_flows();
    let web = mapping(&flows, 80, SERVERS[0]);
    assert_eq!((web.flows, web.unreplied, web.assured), (1, 0, 1), "{web:?}");
    assert_eq!((web.rules, web.service.as_deref()), (RulesToday::LeadThere, Some("shop/web")));
    assert_eq!((web.endpoint.port, web.latest_packet_s.is_some_and(|s| s < 30)), (8080, true), "{web:?}");
    assert_eq!((flows.snapshot.outdated_flows, flows.snapshot.limits.len()), (0, 0), "{:?}", flows.snapshot);
    let established = flows.snapshot.groups.iter().find(|group| group.state.as_deref() == Some("ESTABLISHED"));
    assert_eq!(established.unwrap().flows, 1);
    assert_eq!(flows.tables[0].netns, Netns::Host);
    assert_eq!(flows.tables[0].entries, flows.snapshot.entries);
    assert_eq!((flows.tables.len(), flows.pods_without_entries), (1, 1), "nothing in the pod makes the kernel track");

    let port = client.local_addr().unwrap().port();
    let is_it = |flow: &Flow| flow.original.source_port == port && flow.reply.source == IpAddr::V4(SERVERS[0]);
    for query in [
        to_service(),
        FlowQuery { server: Some(SERVERS[0].into()), port: Some(8080), ..FlowQuery::default() },
        FlowQuery { client: Some(CLIENT.into()), ..FlowQuery::default() },
        FlowQuery {
            client: Some(CLIENT.into()),
            server: Some(SERVICE.into()),
            protocol: Some(Protocol::Tcp),
            port: Some(80),
        },
        FlowQuery { protocol: Some(Protocol::Tcp), ..FlowQuery::default() },
    ] {
        let found = lab.find(query.clone());
        assert_eq!(found.flows.len(), 1, "{query:?}: {found:?}");
        assert!(is_it(&found.flows[0]), "{found:?}");
        assert!(found.flows[0].is_destination_rewritten() && found.flows[0].is_replied());
    }
    for query in [
        FlowQuery { server: Some(SERVERS[1].into()), ..FlowQuery::default() },
        FlowQuery { client: Some(SERVERS[1].into()), ..FlowQuery::default() },
        FlowQuery { port: Some(8080), ..to_service() },
        FlowQuery { protocol: Some(Protocol::Udp), ..to_service() },
        FlowQuery { server: Some("fd00::1".parse().unwrap()), ..FlowQuery::default() },
    ] {
        assert_eq!(lab.find(query.clone()).flows, [], "{query:?}");
    }
    let changes = lab.changes_when(|changes| changes.protocols.iter().any(|rate| rate.protocol_number == 6));
    assert_eq!(changes.protocols[0].new, 1, "{changes:?}");
    assert!(changes.not_listening.is_none() && changes.listened_s > 0.0 && changes.lost == 0, "{changes:?}");
}

#[test]
fn flow_to_an_endpoint_that_the_rules_left_is_outdated() {
    let Some(lab) = Lab::start("outdated") else { return };
    let [old, new] = SERVERS.map(|address| udp(&lab.server, address, 5353));
    let client = udp(&lab.client, CLIENT, 40_053);
    ask_dns(&client, &old);
    let flows = lab.flows();
    assert_eq!((mapping(&flows, 53, SERVERS[0]).rules, flows.snapshot.outdated_flows), (RulesToday::LeadThere, 0));

    // The Service's endpoint is replaced; nobody removes the entry, and the old address answers no more.
    assert!(nft(&lab.node, &format!("delete table ip kube-proxy\n{}", service_rules(SERVERS[1], SERVERS[0]))));
    drop(old);
    client.send_to(b"?", (SERVICE, 53)).unwrap();
    ask_dns(&udp(&lab.client, CLIENT, 40_054), &new);

    let flows = lab.fresh_flows();
    let gone = mapping(&flows, 53, SERVERS[0]);
    assert_eq!((gone.rules, gone.flows), (RulesToday::LeadElsewhere, 1), "{gone:?}");
    assert_eq!(gone.service.as_deref(), Some("shop/dns"));
    assert!(gone.latest_packet_s.is_some_and(|s| s < 60), "{gone:?}");
    assert_eq!(mapping(&flows, 53, SERVERS[1]).rules, RulesToday::LeadThere);
    assert_eq!(flows.snapshot.outdated_flows, 1);
    assert_eq!(flows.snapshot.outdated[0].original.source_port, 40_053);
    assert_eq!(flows.snapshot.outdated[0].reply.source, IpAddr::V4(SERVERS[0]));
}

#[test]
fn silence_is_unreplied() {
    let Some(lab) = Lab::start("silent") else { return };
    // Somebody is there, and says nothing: no ICMP error ends the flow.
    let _server = udp(&lab.server, SERVERS[0], 5353);
    let client = udp(&lab.client, CLIENT, 40_001);
    client.send_to(b"?", (SERVICE, 53)).unwrap();
    let flows = lab.flows();
    let dns = mapping(&flows, 53, SERVERS[0]);
    assert_eq!((dns.flows, dns.unreplied, dns.assured), (1, 1, 0));
    let found = lab.find(to_service());
    assert!(!found.flows[0].is_replied() && found.flows[0].expires_s.is_some_and(|s| s <= 30), "{found:?}");

    // The same in a zone with a mark, as networks that share addresses have it.
    let zones = "table ip zones {
        chain zones { type filter hook prerouting priority -300; udp dport 7777 ct zone set 7; }
        chain marks { type filter hook forward priority 0; udp dport 7777 ct mark set 42; }
    }";
    assert!(nft(&lab.node, zones));
    client.send_to(b"?", (SERVERS[0], 7777)).unwrap();
    let found = lab.find(FlowQuery { port: Some(7777), ..FlowQuery::default() });
    assert_eq!((found.flows[0].zone, found.flows[0].mark), (7, 42), "{found:?}");
    let found = lab.find(FlowQuery { port: Some(7777), server: Some(SERVERS[0].into()), ..FlowQuery::default() });
    assert_eq!(found.flows.len(), 1, "the kernel's filter does not hide a zone: {found:?}");
    let flows = lab.fresh_flows();
    assert!(flows.snapshot.zones.iter().any(|zone| (zone.zone, zone.flows) == (7, 1)), "{:?}", flows.snapshot.zones);
}

#[test]
fn flow_of_ipv6_is_found_by_its_addresses() {
    let Some(lab) = Lab::start("six") else { return };
    let [client, server, other]: [SocketAddr; 3] =
        ["[fd00:1::2]:40000", "[fd00:2::2]:5353", "[fd00:2::3]:5353"].map(|text| text.parse().unwrap());
    for to in [server, other] {
        lab.node.run(|| insert_one(client, to));
    }
    let udp = FlowQuery { protocol: Some(Protocol::Udp), ..FlowQuery::default() };
    for query in [
        FlowQuery { server: Some(server.ip()), ..FlowQuery::default() },
        FlowQuery { server: Some(server.ip()), client: Some(client.ip()), ..udp.clone() },
        FlowQuery { server: Some(server.ip()), port: Some(5353), ..udp.clone() },
    ] {
        let found = lab.find(query.clone());
        assert_eq!(found.flows.len(), 1, "{query:?}: {found:?}");
        assert_eq!(found.flows[0].original.destination, server.ip());
    }
    assert_eq!(lab.find(FlowQuery { client: Some(client.ip()), ..udp }).flows.len(), 2);
    for query in [
        FlowQuery { client: Some(server.ip()), ..FlowQuery::default() },
        FlowQuery { server: Some(server.ip()), protocol: Some(Protocol::Tcp), ..FlowQuery::default() },
    ] {
        assert_eq!(lab.find(query.clone()).flows, [], "{query:?}");
    }
}

#[test]
fn full_table_and_both_tables_in_bounded_memory() {
    let Some(lab) = Lab::start("full") else { return };
    let before = lab.changes_when(|changes| changes.window_s > 1.0);
    assert!(before.failures.get("drop").is_none_or(|drop| drop.delta == Some(0)), "{before:?}");
    let limit = lab.flows().tables[0].limit;
    if limit > 300_000 {
        return lab::skip(format!("the limit of {limit} is too high to fill"));
    }
    let resident_before = lab.resident_bytes();
    let inserted = u32::try_from(limit).unwrap();
    // Both namespaces: the node's, and that of its pod.
    for namespace in [&lab.node, &lab.client] {
        namespace.run(|| insert(0..inserted));
    }
    let server = udp(&lab.server, SERVERS[0], 5353);
    server.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    udp(&lab.client, CLIENT, 40_001).send_to(b"?", (SERVICE, 53)).unwrap();
    assert!(server.recv_from(&mut [0; 16]).is_err(), "the packet has no entry, so the node drops it");

    let changes = lab.changes_when(|changes| changes.failures.get("drop").is_some_and(|drop| drop.delta > Some(0)));
    assert!(changes.failures["drop"].grew() && changes.failures["drop"].first_at.is_some(), "{changes:?}");
    // The statistics tell the same without a pass over the full table; a pod's are not followed.
    let statistics = |need: Need| {
        let Observation::Conntrack(found) = lab.agent.seen(&need) else { panic!() };
        found
    };
    let of_node = statistics(Need::host(NODE, Topic::Conntrack));
    assert!(of_node.window_s > 0.0 && of_node.failures["drop"].grew(), "{of_node:?}");
    assert!(of_node.drop > of_node.insert_failed, "an entry that finds no room is no clash: {of_node:?}");
    let of_pod = statistics(Need::pod(NODE, UID, Topic::Conntrack));
    assert!(of_pod.entries == limit && of_pod.failures.is_empty(), "{of_pod:?}");
    let flows = lab.fresh_flows();
    assert_eq!((flows.tables[0].entries, flows.snapshot.entries), (limit, limit));
    assert_eq!(flows.tables[1].netns, Netns::Pod(UID.to_owned()));
    assert_eq!((flows.tables[1].entries, flows.pods_without_entries), (limit, 0));
    let Observation::Flows(pod) = lab.agent.seen(&Need::pod(NODE, UID, Topic::Flows)) else { panic!() };
    assert!(pod.changes.is_none() && pod.snapshot.entries == limit, "{:?}", pod.snapshot);
    let found = lab.find(FlowQuery { protocol: Some(Protocol::Udp), ..FlowQuery::default() });
    assert_eq!((found.flows.len() as u64 + found.omitted, found.flows.len()), (limit, 256));
    let started = Instant::now();
    let one = FlowQuery { client: Some(Ipv4Addr::new(10, 128, 0, 7).into()), ..FlowQuery::default() };
    assert_eq!(lab.find(one).flows.len(), 1);
    let took = started.elapsed();

    let grown = lab.resident_bytes().saturating_sub(resident_before);
    println!(
        "2 x {limit} entries: pass of the node {} ms, of the pod {} ms, one flow {} ms, agent grew by {} KiB",
        flows.snapshot.took_ms,
        pod.snapshot.took_ms,
        took.as_millis(),
        grown / 1024
    );
    assert!(grown < 16 * 1024 * 1024, "the agent grew by {grown} bytes");
}

#[test]
fn a_flood_is_sampled_and_losses_are_counted() {
    const INSERTED: u32 = 20_000;
    let Some(lab) = Lab::start("flood") else { return };
    lab.changes_when(|changes| changes.listened_s > 1.0);
    // While the agent cannot read, its socket's buffer takes what it can.
    kill(lab.agent.pid(), Signal::SIGSTOP).unwrap();
    lab.node.run(|| insert(0..INSERTED));
    kill(lab.agent.pid(), Signal::SIGCONT).unwrap();
    let announced =
        |changes: &FlowChanges| changes.lost + changes.protocols.iter().map(|rate| rate.new + rate.ended).sum::<u64>();
    let changes = lab.changes_when(|changes| announced(changes) >= u64::from(INSERTED));
    assert_eq!(announced(&changes), u64::from(INSERTED), "heard and lost make all: {changes:?}");
    assert!(changes.lost > 0 && changes.protocols[0].new > 0, "{changes:?}");

    // The budget is spent for the next seconds: the agent does not listen, and says for how long it did.
    let pause = Instant::now();
    lab.node.run(|| insert(INSERTED..2 * INSERTED));
    let changes = lab.changes();
    assert!(pause.elapsed() < Duration::from_secs(10), "too slow to tell");
    assert_eq!(announced(&changes), u64::from(INSERTED), "{changes:?}");
    std::thread::sleep(Duration::from_secs(2));
    let changes = lab.changes();
    assert!(changes.listened_s + 1.0 < changes.window_s, "{changes:?}");
    assert_eq!(lab.flows().snapshot.limits, Vec::<String>::new());
}
