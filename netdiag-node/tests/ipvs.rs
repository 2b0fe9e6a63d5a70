//! Virtual servers as kube-proxy makes them in IPVS mode, read back from the kernel, and what they do with packets.
#![expect(clippy::unwrap_used, reason = "a test ends at the first thing that is not as expected")]

#[expect(dead_code, reason = "other tests use the rest")]
#[path = "rules/sandbox.rs"]
mod sandbox;
#[expect(dead_code, reason = "other tests use the rest")]
mod support;

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, TcpListener, TcpStream};
use std::time::Duration;

use netdiag_common::forwarding::conntrack::{Connection, Direction, Entry};
use netdiag_common::forwarding::packet::{Origin, TCP, tcp};
use netdiag_common::forwarding::path::End;
use netdiag_common::forwarding::{Fact, Packet, Path};
use netdiag_common::observation::Protocol;
use netdiag_common::observation::service_rules::{Endpoint, Proxier, ServiceAction, ServiceRules};
use netdiag_node::host::forwarding::evaluate;
use netdiag_node::host::service_rules;
use netlink_sys::protocols::NETLINK_GENERIC;
use netlink_sys::{Socket, SocketAddr};
use support::{Namespace, eventually, patient};

// Of linux/ip_vs.h and linux/genetlink.h.
const NEW_SERVICE: u8 = 1;
const NEW_DESTINATION: u8 = 5;
const SERVICE: u16 = 1;
const DESTINATION: u16 = 2;
const PERSISTENT: u32 = 1;

/// The family IPVS of generic netlink, for changes.
struct Kernel {
    socket: Socket,
    family: u16,
}

impl Kernel {
    /// None without IPVS in this kernel.
    fn open() -> Option<Self> {
        let mut socket = Socket::new(NETLINK_GENERIC).unwrap();
        socket.bind_auto().unwrap();
        socket.connect(&SocketAddr::new(0, 0)).unwrap();
        let answer = ask(&socket, 0x10, 3, &attribute(2, b"IPVS\0")).ok()?;
        // Attributes behind the headers of netlink and generic netlink; the family's number is the first of type 1.
        let mut rest = &answer[20..];
        while rest.len() >= 4 {
            let length = usize::from(u16::from_ne_bytes([rest[0], rest[1]]));
            if u16::from_ne_bytes([rest[2], rest[3]]) == 1 {
                return Some(Self { socket, family: u16::from_ne_bytes([rest[4], rest[5]]) });
            }
            rest = &rest[length.next_multiple_of(4)..];
        }
        panic!("a family without a number: {answer:?}")
    }

    fn serve(&self, address: &str, port: u16, flags: u32, reals: &[(&str, u16, u32)]) {
        let (family, bytes) = union(address);
        let mask = if family == 2 { u32::MAX } else { 128 };
        let known_by = [
            attribute(1, &family.to_ne_bytes()),
            attribute(2, &6_u16.to_ne_bytes()),
            attribute(3, &bytes),
            attribute(4, &port.to_be_bytes()),
        ]
        .concat();
        let more = [
            attribute(6, b"rr\0"),
            attribute(7, &[flags.to_ne_bytes(), u32::MAX.to_ne_bytes()].concat()),
            attribute(8, &10_800_u32.to_ne_bytes()),
            attribute(9, &mask.to_ne_bytes()),
        ]
        .concat();
        let whole = attribute(SERVICE, &[known_by.clone(), more].concat());
        ask(&self.socket, self.family, NEW_SERVICE, &whole).unwrap();
        for (real, port, weight) in reals {
            let (family, bytes) = union(real);
            let fields = [
                attribute(1, &bytes),
                attribute(2, &port.to_be_bytes()),
                attribute(3, &0_u32.to_ne_bytes()),
                attribute(4, &weight.to_ne_bytes()),
                attribute(5, &0_u32.to_ne_bytes()),
                attribute(6, &0_u32.to_ne_bytes()),
                attribute(11, &family.to_ne_bytes()),
            ]
            .concat();
            let both = [attribute(SERVICE, &known_by), attribute(DESTINATION, &fields)].concat();
            ask(&self.socket, self.family, NEW_DESTINATION, &both).unwrap();
        }
    }
}

fn union(address: &str) -> (u16, Vec<u8>) {
    match address.parse().unwrap() {
        IpAddr::V4(address) => (2, [&address.octets()[..], &[0; 12]].concat()),
        IpAddr::V6(address) => (10, address.octets().to_vec()),
    }
}

fn attribute(kind: u16, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len() + 4).unwrap();
    let mut bytes = [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), payload].concat();
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// One command; its answer, or the acknowledgement.
fn ask(socket: &Socket, family: u16, command: u8, attributes: &[u8]) -> io::Result<Vec<u8>> {
    const ERROR: u16 = 2;
    let length = u32::try_from(20 + attributes.len()).unwrap();
    // NLM_F_REQUEST and NLM_F_ACK
    let header =
        [&length.to_ne_bytes()[..], &family.to_ne_bytes(), &5_u16.to_ne_bytes(), &[0; 8], &[command, 1, 0, 0]].concat();
    socket.send(&[&header, attributes].concat(), 0)?;
    let mut answer = None;
    loop {
        let (bytes, _) = socket.recv_from_full()?;
        let mut rest = &bytes[..];
        while rest.len() >= 16 {
            let length = usize::try_from(u32::from_ne_bytes(rest[..4].try_into().unwrap())).unwrap();
            if u16::from_ne_bytes([rest[4], rest[5]]) == ERROR {
                return match i32::from_ne_bytes(rest[16..20].try_into().unwrap()) {
                    0 => Ok(answer.unwrap_or_default()),
                    errno => Err(io::Error::from_raw_os_error(-errno)),
                };
            }
            answer = Some(rest[..length].to_vec());
            rest = &rest[length.next_multiple_of(4).min(rest.len())..];
        }
    }
}

/// Services' addresses on kube-ipvs0, and one of the node.
fn addresses() {
    for words in [
        "link set lo up",
        "link add kube-ipvs0 type dummy",
        "addr add 10.96.0.1/32 dev kube-ipvs0",
        "addr add fd00:96::1/128 dev kube-ipvs0 nodad",
        "link add node type dummy",
        "addr add 10.0.0.7/24 dev node",
        "link set node up",
    ] {
        let output = std::process::Command::new("ip").args(words.split(' ')).output().unwrap();
        assert!(output.status.success(), "ip {words}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

fn action(rules: &ServiceRules, address: &str, port: u16) -> ServiceAction {
    let found = rules.find(address.parse().unwrap(), Protocol::Tcp, port);
    found.unwrap_or_else(|| panic!("no {address} {port} in {rules:#?}")).action.clone()
}

fn to(endpoints: &[(&str, u16)]) -> ServiceAction {
    let endpoint = |(address, port): &(&str, u16)| Endpoint { address: address.parse().unwrap(), port: *port };
    ServiceAction::Endpoints(endpoints.iter().map(endpoint).collect())
}

#[test]
fn virtual_servers_are_read_as_services_and_node_ports() {
    const TEST: &str = "virtual_servers_are_read_as_services_and_node_ports";
    sandbox::in_namespace(TEST, || {
        let Some(kernel) = Kernel::open() else {
            println!("netdiag-skip: {TEST}: this kernel has no IPVS");
            return;
        };
        addresses();
        assert_eq!(service_rules::read().unwrap().proxier, Proxier::None);
        kernel.serve("10.96.0.1", 443, PERSISTENT, &[("10.244.1.2", 6443, 1), ("10.244.1.3", 6443, 0)]);
        kernel.serve("fd00:96::1", 80, 0, &[("fd00:244::2", 8080, 1), ("fd00:244::3", 8080, 1)]);
        kernel.serve("10.96.0.1", 81, 0, &[]);
        kernel.serve("10.0.0.7", 30_080, 0, &[("10.244.1.2", 8080, 1)]);
        kernel.serve("10.96.0.66", 80, 0, &[]);
        let rules = service_rules::read().unwrap();
        assert_eq!((rules.proxier, rules.hooked), (Proxier::Ipvs, true));
        assert_eq!(action(&rules, "10.96.0.1", 443), to(&[("10.244.1.2", 6443)]), "without weight it gets nothing new");
        assert_eq!(action(&rules, "fd00:96::1", 80), to(&[("fd00:244::2", 8080), ("fd00:244::3", 8080)]));
        assert_eq!(action(&rules, "10.96.0.1", 81), ServiceAction::Reject);
        let sticky: Vec<u16> =
            rules.entries.iter().filter(|e| e.terms.as_ref().unwrap().sticky).map(|e| e.port).collect();
        assert_eq!(sticky, [443]);
        let node_ports: Vec<u16> = rules.node_ports.unwrap().iter().map(|rule| rule.port).collect();
        assert_eq!(node_ports, [30_080]);
        assert_eq!(rules.undecoded.len(), 1, "{:?}", rules.undecoded);
        assert!(rules.undecoded[0].contains("10.96.0.66:80"), "no device has it: {:?}", rules.undecoded);
    });
}

/// A client, a balancer with a virtual server, and a namespace with both real servers, between cables. What goes to real
/// servers is masqueraded, as kube-proxy does with marked packets.
fn balanced() -> [Namespace; 3] {
    let [client, balancer, servers] = std::array::from_fn(|_| Namespace::new());
    client.connect("c0", &balancer, "b0");
    balancer.connect("b1", &servers, "s0");
    client.sh("ip addr add 10.1.0.2/24 dev c0; ip route add default via 10.1.0.1");
    servers.sh("ip addr add 10.2.0.2/24 dev s0; ip addr add 10.2.0.3/24 dev s0; ip route add default via 10.2.0.1");
    balancer.sh("ip addr add 10.1.0.1/24 dev b0; ip addr add 10.2.0.1/24 dev b1
                 ip link add kube-ipvs0 type dummy; ip addr add 10.96.0.1/32 dev kube-ipvs0
                 echo 1 >/proc/sys/net/ipv4/ip_forward
                 nft 'table ip nat {
                     chain post { type nat hook postrouting priority 100; oifname \"b1\" masquerade; }
                 }'");
    let serve = || Kernel::open().unwrap().serve("10.96.0.1", 80, 0, &[("10.2.0.2", 8080, 1), ("10.2.0.3", 8080, 1)]);
    balancer.run(serve);
    balancer.sh("echo 1 >/proc/sys/net/ipv4/vs/conntrack");
    [client, balancer, servers]
}

fn tcp_packet(balancer: &Namespace, input: &str, ends: [std::net::SocketAddr; 2], flags: u8) -> Packet {
    let interface = balancer.run(|| nix::net::if_::if_nametoindex(input).unwrap());
    let [from, to] = ends;
    let transport = tcp(from.port(), to.port(), flags);
    Packet::between(Origin::Received { interface }, from.ip(), to.ip(), TCP, &transport).unwrap()
}

fn paths(balancer: &Namespace, packet: &Packet) -> Vec<Path> {
    let paths = balancer.run(|| evaluate(packet).unwrap()).outcome.paths;
    for path in &paths {
        assert_eq!(path.gaps, [""; 0], "{path:#?}");
    }
    paths
}

/// Source and destination.
fn ends(packet: &Packet) -> [std::net::SocketAddr; 2] {
    let (from, to) = packet.ports().unwrap();
    [(packet.source(), from).into(), (packet.destination(), to).into()]
}

#[test]
fn connections_arrive_where_the_evaluator_says() {
    const TEST: &str = "connections_arrive_where_the_evaluator_says";
    sandbox::in_namespace(TEST, || {
        if Kernel::open().is_none() {
            println!("netdiag-skip: {TEST}: this kernel has no IPVS");
            return;
        }
        let [client, balancer, servers] = balanced();
        let listeners = servers.run(|| ["10.2.0.2:8080", "10.2.0.3:8080"].map(|at| TcpListener::bind(at).unwrap()));
        let dialled: std::net::SocketAddr = "10.96.0.1:80".parse().unwrap();
        let limit = patient(Duration::from_secs(10));
        let mut met = BTreeSet::new();
        // One after the other: each real server has its turn.
        for _ in &listeners {
            // The answer comes back by the balancer, which gives it the address that was dialled.
            let stream = client.run(|| TcpStream::connect_timeout(&dialled, limit).unwrap());
            let asked = tcp_packet(&balancer, "b0", [stream.local_addr().unwrap(), dialled], 2);
            let paths = paths(&balancer, &asked);
            let arrives = |listener: &TcpListener| {
                listener.set_nonblocking(true).unwrap();
                let (_, peer) = listener.accept().ok()?;
                Some([peer, listener.local_addr().unwrap()])
            };
            let arrived = eventually("the connection's arrival", || listeners.iter().find_map(arrives));
            let taken = paths.iter().find(|path| ends(&path.packet) == arrived);
            let taken = taken.unwrap_or_else(|| panic!("nobody said {arrived:?}: {paths:#?}"));
            assert_eq!(paths.iter().map(Path::chance).collect::<Vec<_>>(), [Some(0.5); 2]);
            met.insert(arrived[1]);
            let mut answer = tcp_packet(&balancer, "b1", [arrived[1], arrived[0]], 18);
            let entry = Entry { direction: Direction::Reply, ..taken.connection.clone().unwrap() };
            answer.connection = Fact::Known(Connection::Existing(entry));
            let [back]: [Path; 1] = self::paths(&balancer, &answer).try_into().unwrap();
            assert_eq!(ends(&back.packet), [dialled, stream.local_addr().unwrap()]);
            assert!(matches!(back.end, End::Sent { .. }), "{back:#?}");
        }
        assert_eq!(met.len(), 2);
        balancer.run(|| Kernel::open().unwrap().serve("10.96.0.1", 81, 0, &[("10.2.0.2", 8080, 0)]));
        let unserved = "10.96.0.1:81".parse().unwrap();
        let refused = client.run(|| TcpStream::connect_timeout(&unserved, limit).unwrap_err());
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused, "no real server takes connections");
        let asked = tcp_packet(&balancer, "b0", ["10.1.0.2:4242".parse().unwrap(), unserved], 2);
        let [told]: [Path; 1] = paths(&balancer, &asked).try_into().unwrap();
        assert!(matches!(told.end, End::Rejected { .. }), "{told:#?}");
    });
}
