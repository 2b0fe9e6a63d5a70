//! Virtual servers as kube-proxy makes them in IPVS mode, read back from the kernel.
#![expect(clippy::unwrap_used, reason = "a test ends at the first thing that is not as expected")]

#[expect(dead_code, reason = "other tests use the rest")]
#[path = "rules/sandbox.rs"]
mod sandbox;

use std::io;
use std::net::IpAddr;

use netdiag_common::observation::Protocol;
use netdiag_common::observation::service_rules::{Endpoint, Proxier, ServiceAction, ServiceRules};
use netdiag_node::host::service_rules;
use netlink_sys::protocols::NETLINK_GENERIC;
use netlink_sys::{Socket, SocketAddr};

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
