//! A router in a network namespace with two cables, whose other ends are in a second namespace.
//!
//! ```text
//! p0 ──── r0  router  r1 ──── p1
//!     10.1.0.1/24   10.2.0.1/24    default via 10.2.0.254; 10.9.0.0/16 is a blackhole
//!     fd01::1/64    fd02::1/64     packets with mark 7 by table 100: via 10.1.0.254
//! ```

use std::cell::Cell;
use std::io::Write as _;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::process::{Command, Stdio};
use std::sync::mpsc;

use netdiag_common::forwarding::packet::{Origin, Packet, Protocol};
use nix::sched::{CloneFlags, CpuSet, sched_setaffinity, unshare};
use nix::unistd::Pid;

use crate::cable::packet_socket;
use crate::wire;

/// Marks the packets of the test, as identification of IPv4 and flow label of IPv6.
pub const MARKER: u16 = 0x4e44;
/// Of the packet that is sent behind each, so that its trace says that all others are there.
pub const LAST: u16 = 0x4e45;

pub struct Lab {
    pub r0: u32,
    pub r1: u32,
    /// Sockets on p0 and p1, for whole frames.
    cables: [OwnedFd; 2],
    /// Hardware addresses of r0, r1.
    router: [[u8; 6]; 2],
    /// Of p0, p1.
    hardware: [String; 2],
    /// Once r0 and r1 are ports of one.
    bridge: Cell<Option<u32>>,
    /// Of this host's own packets, with their headers.
    raw: [OwnedFd; 2],
    /// On the ports that packets go to, so that nobody answers that there is none.
    _listeners: Vec<std::net::UdpSocket>,
}

/// Runs `test` in a fresh lab; says so when this machine does not allow one.
pub fn in_lab(name: &'static str, test: impl FnOnce(&Lab) + Send + 'static) {
    let thread = std::thread::spawn(move || match Lab::new() {
        Ok(lab) => test(&lab),
        Err(why) => println!("netdiag-skip: {name}: {why}"),
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

impl Lab {
    fn new() -> Result<Self, String> {
        unshare(CloneFlags::CLONE_NEWNET).map_err(|errno| format!("cannot create a network namespace: {errno}"))?;
        if Command::new("nft").arg("--version").output().is_err() {
            return Err("cannot run nft".into());
        }
        // On one processor, packets are worked off in the order in which they are sent.
        let mut first = CpuSet::new();
        first.set(0).unwrap();
        sched_setaffinity(Pid::from_raw(0), &first)
            .map_err(|errno| format!("cannot stay on one processor: {errno}"))?;
        let peer = Peer::new()?;
        for (here, there) in [("r0", "p0"), ("r1", "p1")] {
            ip(&format!("link add {here} type veth peer name {there} netns {}", peer.thread));
        }
        // This host answers nothing by itself that would change connections.
        for setting in [
            "ipv4/ip_forward=1",
            "ipv6/conf/all/forwarding=1",
            "ipv4/conf/all/rp_filter=0",
            "ipv4/icmp_echo_ignore_all=1",
            "ipv6/icmp/echo_ignore_all=1",
        ] {
            let (path, value) = setting.split_once('=').unwrap();
            std::fs::write(format!("/proc/sys/net/{path}"), value).unwrap();
        }
        for link in ["r0", "r1"] {
            std::fs::write(format!("/proc/sys/net/ipv4/conf/{link}/rp_filter"), "0").unwrap();
            std::fs::write(format!("/proc/sys/net/ipv6/conf/{link}/accept_dad"), "0").unwrap();
        }
        ip("link set lo up");
        for link in ["r0", "r1"] {
            ip(&format!("link set {link} up"));
        }
        for (address, link) in [
            ("10.1.0.1/24", "r0"),
            ("10.2.0.1/24", "r1"),
            ("10.2.0.5/24", "r1"),
            ("10.3.0.1/24", "r1"),
            ("fd01::1/64", "r0"),
            ("fd02::1/64", "r1"),
        ] {
            // Addresses of IPv6 are not used before nobody else has answered for them, unless told so.
            let at_once = if address.contains(':') { " nodad" } else { "" };
            ip(&format!("addr add {address} dev {link}{at_once}"));
        }
        let (cables, there) = peer.cables()?;
        for host in (2..=9).chain(100..=103).chain([254]) {
            for (net, link, hardware) in [("1", "r0", &there[0]), ("2", "r1", &there[1])] {
                ip(&format!("neigh add 10.{net}.0.{host} lladdr {hardware} dev {link} nud permanent"));
                // The same digits, and the router's: ::100 is not .100.
                let host = if host == 254 { "fe".to_owned() } else { host.to_string() };
                ip(&format!("neigh add fd0{net}::{host} lladdr {hardware} dev {link} nud permanent"));
            }
        }
        ip("route add default via 10.2.0.254");
        ip("-6 route add default via fd02::fe");
        ip("route add blackhole 10.9.0.0/16");
        ip("-6 route add blackhole fd09::/64");
        ip("route add default via 10.1.0.254 table 100");
        ip("rule add fwmark 7 table 100");
        let listeners = crate::rules::PORTS
            .iter()
            .chain(&[8000, 8001, 8002, 8003, 9090])
            .map(|port| std::net::UdpSocket::bind(("::", *port)).unwrap());
        let index = |name: &str| nix::net::if_::if_nametoindex(name).unwrap();
        let router = ["r0", "r1"].map(hardware_address);
        Ok(Self {
            r0: index("r0"),
            r1: index("r1"),
            cables,
            router,
            hardware: there,
            bridge: Cell::new(None),
            raw: [raw_socket(false), raw_socket(true)],
            _listeners: listeners.collect(),
        })
    }

    /// Sends a packet where it is from: over a cable, or from this host with a mark.
    pub fn send(&self, packet: &Packet, mark: u32) {
        match packet.origin {
            Origin::Received { interface } => {
                let cable = usize::from(interface == self.r1);
                let frame = [&packet.link[..], &packet.bytes].concat();
                let sent =
                    nix::sys::socket::send(self.cables[cable].as_raw_fd(), &frame, nix::sys::socket::MsgFlags::empty());
                assert_eq!(sent, Ok(frame.len()));
            }
            Origin::Sent => {
                let raw = &self.raw[usize::from(packet.protocol == Protocol::Ipv6)];
                wire::send_raw(raw, packet.protocol, &packet.bytes, mark);
            }
        }
    }

    /// The Ethernet header that r0 or r1 sees.
    pub fn link_header(&self, interface: u32, protocol: Protocol) -> Vec<u8> {
        let kind: u16 = if protocol == Protocol::Ipv4 { 0x0800 } else { 0x86dd };
        [&self.router[usize::from(interface == self.r1)][..], &[2, 0, 0, 0, 0, 9], &kind.to_be_bytes()].concat()
    }

    /// Makes r0 and r1 ports of one bridge, which has the router's addresses of IPv4 and neighbours from then on.
    pub fn bridge(&self) {
        ip("link add br0 type bridge");
        for (setting, value) in [("ipv4/conf/br0/rp_filter", "0"), ("ipv6/conf/br0/disable_ipv6", "1")] {
            std::fs::write(format!("/proc/sys/net/{setting}"), value).unwrap();
        }
        ip("link set br0 up");
        // A port may give the bridge its address, and then the bridge forgets its neighbours (`neigh_changeaddr`).
        for link in ["r0", "r1"] {
            ip(&format!("addr flush dev {link}"));
            ip(&format!("link set {link} master br0"));
        }
        for (net, link, hardware) in [("1", "r0", &self.hardware[0]), ("2", "r1", &self.hardware[1])] {
            ip(&format!("addr add 10.{net}.0.1/24 dev br0"));
            for host in 2..=9 {
                ip(&format!("neigh add 10.{net}.0.{host} lladdr {hardware} dev br0 nud permanent"));
            }
            run("bridge", &format!("fdb add {hardware} dev {link} master static"));
        }
        self.bridge.set(Some(nix::net::if_::if_nametoindex("br0").unwrap()));
    }

    /// The Ethernet address of p0 or p1.
    pub fn other_end(&self, cable: usize) -> [u8; 6] {
        bytes_of(&self.hardware[cable])
    }

    /// Packets of the test that came out of r0 or r1, or of the bridge that they are ports of, since the last call, without their
    /// Ethernet headers.
    pub fn left(&self) -> Vec<(u32, Vec<u8>)> {
        let mut found = Vec::new();
        for (cable, interface) in self.cables.iter().zip([self.r0, self.r1]) {
            let mut frame = [0; 2048];
            while let Ok(length @ 14..) =
                nix::sys::socket::recv(cable.as_raw_fd(), &mut frame, nix::sys::socket::MsgFlags::MSG_DONTWAIT)
            {
                // What this test sends itself on the cable is not shown to the socket that sends it.
                let bytes = &frame[14..length];
                if wire::marker_of(bytes) == Some(MARKER) {
                    found.push((self.bridge.get().unwrap_or(interface), bytes.to_vec()));
                }
            }
        }
        found
    }
}

/// The namespace of the other ends: a thread that waits in it.
struct Peer {
    thread: libc::pid_t,
    requests: mpsc::Sender<mpsc::Sender<([OwnedFd; 2], [String; 2])>>,
}

impl Peer {
    fn new() -> Result<Self, String> {
        let (requests, inbox) = mpsc::channel::<mpsc::Sender<([OwnedFd; 2], [String; 2])>>();
        let (ready, thread) = mpsc::channel();
        std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            ready.send(nix::unistd::gettid().as_raw()).unwrap();
            for answer in inbox {
                // No address of its own: what arrives is seen by the sockets and by nobody else.
                for link in ["p0", "p1"] {
                    std::fs::write(format!("/proc/sys/net/ipv6/conf/{link}/disable_ipv6"), "1").unwrap();
                    ip(&format!("link set {link} up"));
                }
                let hardware = ["p0", "p1"].map(|link| wire::hardware_text(hardware_address(link)));
                let _ = answer.send((["p0", "p1"].map(packet_socket), hardware));
            }
        });
        let thread = thread.recv().map_err(|_| "cannot create a second network namespace".to_owned())?;
        Ok(Self { thread, requests })
    }

    fn cables(&self) -> Result<([OwnedFd; 2], [String; 2]), String> {
        let (answer, cables) = mpsc::channel();
        self.requests.send(answer).map_err(|_| "the second namespace is gone".to_owned())?;
        cables.recv().map_err(|_| "the second namespace has no links".to_owned())
    }
}

/// Runs `ip` with these words.
pub fn ip(arguments: &str) {
    run("ip", arguments);
}

fn run(tool: &str, arguments: &str) {
    let output = Command::new(tool).args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "{tool} {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Loads rules; the error of nft otherwise.
pub fn nft(rules: &str) -> Result<(), String> {
    feed("nft", &["-f", "-"], rules)
}

/// Loads rules without those that nft refuses, such as one about two protocols at once; what was loaded.
pub fn nft_without_refused(rules: &str) -> Result<String, String> {
    const MOST: usize = 12;
    let mut lines: Vec<&str> = rules.lines().collect();
    for _ in 0..MOST {
        let text = lines.join("\n") + "\n";
        let Err(why) = nft(&text) else { return Ok(text) };
        let line = why.strip_prefix("/dev/stdin:").and_then(|rest| rest.split(':').next()?.parse::<usize>().ok());
        match line {
            Some(line) if line <= lines.len() => lines.remove(line - 1),
            _ => return Err(why),
        };
    }
    Err(format!("nft refuses more than {MOST} rules of\n{rules}"))
}

/// Runs a tool with this input; what it complains about otherwise.
pub fn feed(tool: &str, arguments: &[&str], input: &str) -> Result<(), String> {
    let mut child = Command::new(tool)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| format!("cannot run {tool}: {error}"))?;
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}

fn hardware_address(link: &str) -> [u8; 6] {
    let output = Command::new("ip").args(["-br", "link", "show", link]).output().unwrap();
    let line = String::from_utf8(output.stdout).unwrap();
    bytes_of(line.split_whitespace().nth(2).unwrap())
}

fn bytes_of(hardware: &str) -> [u8; 6] {
    let bytes: Vec<u8> = hardware.split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
    bytes.try_into().unwrap()
}

/// A socket that takes packets with their headers.
fn raw_socket(ipv6: bool) -> OwnedFd {
    let family = if ipv6 { socket2::Domain::IPV6 } else { socket2::Domain::IPV4 };
    let socket = socket2::Socket::new(family, socket2::Type::RAW, Some(socket2::Protocol::from(libc::IPPROTO_RAW)));
    socket.unwrap().into()
}
