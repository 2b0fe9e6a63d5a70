//! A router between a client and a backend, with rules that translate and drop.
//!
//! ```text
//! client eth0 ── r0 router r1 ── eth0 backend
//!    10.1.0.2   .1         10.2.0.1    10.2.0.2, echoes datagrams to port 8080
//! ```

use std::io::Write as _;
use std::net::{SocketAddr, UdpSocket};
use std::process::{Command, Stdio};
use std::time::Duration;

use netdiag_common::observation::trace::TraceRequest;
use netdiag_node::host::ReadError;
use netdiag_node::host::trace::{self, Armed};

use crate::lab::{self, Namespace, ip};

pub const CLIENT: &str = "10.1.0.2";
pub const BACKEND: &str = "10.2.0.2";
pub const PORT: u16 = 8080;
/// Led to the backend's port.
pub const SERVICE: &str = "10.9.0.1";

const RULES: &str = "
table ip t {
    chain raw { type filter hook prerouting priority raw; counter; }
    chain pre { type nat hook prerouting priority dstnat; ip daddr 10.9.0.1 udp dport 80 dnat to 10.2.0.2:8080; }
    chain names { udp dport 53 counter drop comment \"no names\"; }
    chain passing { type filter hook forward priority filter; ip saddr 10.1.0.2 jump names; ct state established,related accept; }
    chain post { type nat hook postrouting priority srcnat; oifname r1 masquerade; }
}";

pub struct Router {
    pub node: Namespace,
    client: Namespace,
    backend: Namespace,
    echo: Option<std::thread::JoinHandle<()>>,
    echo_address: SocketAddr,
}

impl Router {
    /// None, said loudly, when this machine cannot have it.
    pub fn start(role: &str) -> Option<Self> {
        if !lab::can_run() {
            return None;
        }
        if Command::new("nft").arg("--version").output().is_err() {
            lab::skip("cannot run nft");
            return None;
        }
        let node = Namespace::new(&format!("{role}-router"));
        let client = Namespace::new(&format!("{role}-client"));
        let backend = Namespace::new(&format!("{role}-backend"));
        node.connect("r0", &client);
        node.connect("r1", &backend);
        for (namespace, device, address) in [
            (&node, "r0", "10.1.0.1/24"),
            (&node, "r1", "10.2.0.1/24"),
            (&client, "eth0", "10.1.0.2/24"),
            (&backend, "eth0", "10.2.0.2/24"),
        ] {
            ip(&format!("-n {} addr add {address} dev {device}", namespace.name));
        }
        ip(&format!("-n {} route add default via 10.1.0.1", client.name));
        ip(&format!("-n {} route add default via 10.2.0.1", backend.name));
        node.sh("echo 1 > /proc/sys/net/ipv4/ip_forward");
        let echo_address = SocketAddr::new(BACKEND.parse().unwrap(), PORT);
        let socket = backend.run(|| UdpSocket::bind(echo_address).unwrap());
        let echo = std::thread::spawn(move || {
            let mut buffer = [0; 64];
            while let Ok((length, from)) = socket.recv_from(&mut buffer) {
                if &buffer[..length] == b"end" {
                    return;
                }
                let _ = socket.send_to(&buffer[..length], from);
            }
        });
        let router = Self { node, client, backend, echo: Some(echo), echo_address };
        router.nft(RULES);
        Some(router)
    }

    pub fn nft(&self, rules: &str) {
        self.node.run(|| {
            let mut child = Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn().unwrap();
            child.stdin.take().unwrap().write_all(rules.as_bytes()).unwrap();
            assert!(child.wait().unwrap().success(), "{rules}");
        });
    }

    /// Whether a trace is armed.
    pub fn has_table(&self) -> bool {
        let output = self.node.run(|| Command::new("nft").args(["list", "tables"]).output().unwrap());
        String::from_utf8_lossy(&output.stdout).contains("netdiag-trace")
    }

    /// An armed trace; none, said loudly, on a kernel that cannot.
    pub fn armed(&self, name: &str, request: &TraceRequest) -> Option<Armed> {
        match self.node.run(|| trace::arm(request)) {
            Err(ReadError::Unsupported { feature }) => {
                println!("netdiag-skip: {name}: this kernel has no {feature}");
                None
            }
            armed => Some(armed.unwrap()),
        }
    }

    /// Sends datagrams from the client.
    pub fn send(&self, to: &str, from_port: u16, port: u16, count: usize) {
        let socket = self.socket(from_port);
        for number in 0..count {
            let _ = socket.send_to(b"hello", (to, port));
            // Not faster than a queue of 1000 packets is worked off.
            if number % 256 == 255 {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }

    /// Sends one datagram and waits for its echo.
    pub fn ask(&self, to: &str, from_port: u16, port: u16) {
        let socket = self.socket(from_port);
        socket.set_read_timeout(Some(lab::patient(Duration::from_secs(5)))).unwrap();
        socket.send_to(b"hello", (to, port)).unwrap();
        socket.recv_from(&mut [0; 16]).unwrap();
    }

    fn socket(&self, port: u16) -> UdpSocket {
        self.client.run(|| UdpSocket::bind((CLIENT, port)).unwrap())
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        // The echo's socket keeps its namespace.
        let address = self.echo_address;
        self.backend.run(|| {
            let socket = UdpSocket::bind("10.2.0.2:0").unwrap();
            let _ = socket.send_to(b"end", address);
        });
        if let Some(echo) = self.echo.take() {
            let _ = echo.join();
        }
    }
}
