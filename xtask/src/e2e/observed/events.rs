//! The events.
//!
//! All are made by the pod shop/client on n1, most of them at Service pay/observed, whose only endpoint is pay/ledger-1 on n2. So
//! the client's side is told by n1, the server's by n2, and what is between them by the host of n1.

use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::look::Observer;
use super::space::Space;
use crate::cluster::Cluster;

const WEB: &str = "10.96.0.80:80";
pub(super) const LEDGER: &str = "10.96.0.81:80";
pub(super) const DNS: &str = "10.96.0.10:53";
pub(super) const OBSERVED: &str = "10.96.0.82";

/// The agent calls a query unanswered 6 s after its last try, and looks for such every second.
const DNS_PATIENCE: Duration = Duration::from_secs(8);
const MOMENT: Duration = Duration::from_millis(50);

/// A rule that drops and one that rejects, on the client's node, where the Service's address is translated already.
const RULES: &str = "\
nft add table inet observed
nft add chain inet observed fw '{ type filter hook forward priority 10; policy accept; }'
nft add rule inet observed fw ip daddr LEDGER tcp dport 7001 counter drop
nft add rule inet observed fw ip daddr LEDGER tcp dport 7003 counter reject with icmpx admin-prohibited";

/// A device with a queue of a few packets, and one whose other end is down; nobody else has these addresses (RFC 5737).
const DEVICES: &str = "\
ip link add obs0 type veth peer name obs1
ip link add obs2 type veth peer name obs3
ip addr add 198.51.100.1/30 dev obs0
ip link set obs0 up; ip link set obs1 up; ip link set obs2 up
ip neigh add 198.51.100.2 lladdr 02:00:00:00:00:02 dev obs0
tc qdisc add dev obs0 root tbf rate 8kbit burst 1600 limit 3000";

/// What was made. What is counted by somebody else is kept, to compare with.
pub(super) struct Events {
    client: Space,
    pub(super) server_address: String,
    pub(super) stray: String,
    pub(super) datagrams_kept: u64,
    pub(super) queue_drops: u64,
    /// Open as long as they are looked for.
    held: (TcpListener, UdpSocket, Vec<TcpStream>),
}

/// Whether Service pay/observed leads to its endpoint.
pub(super) fn is_ready(cluster: &Cluster) -> bool {
    let connected = Space::of_pod(cluster, "shop", "client").and_then(|client| client.connects(to(80)?, 1));
    connected.is_ok_and(|connects| connects.iter().all(Result::is_ok))
}

/// What goes on in every cluster: connections that work, a name that is there, and one that is not.
pub(super) fn everyday(cluster: &Cluster) -> Result<()> {
    let client = Space::of_pod(cluster, "shop", "client")?;
    for answer in client.connects(WEB.parse()?, 4)? {
        answer.context("the world is not well: Service shop/web does not answer")?;
    }
    ask(&client, DNS, &["web.shop.svc.cluster.local", "web.shop.svc.cluster.local.shop.svc.cluster.local"])
}

impl Events {
    pub(super) fn make(observer: &Observer) -> Result<Self> {
        let cluster = observer.cluster;
        let (client, server) = (Space::of_pod(cluster, "shop", "client")?, Space::of_pod(cluster, "pay", "ledger-1")?);
        let server_address =
            cluster.kubectl(&["-n", "pay", "get", "pod", "ledger-1", "-o", "jsonpath={.status.podIP}"])?;
        cluster.node_exec("n1", &["sh", "-ec", &RULES.replace("LEDGER", &server_address)])?;
        client.sh(DEVICES)?;
        let silent = server.deaf_socket(53)?;
        let full = server.deaf_socket(7005)?;
        let listener = server.deaf_listener(7006, 1)?;
        // Growth is told from the second look at a device on.
        observer.look(&["devices", "--pod", "shop/client"])?;

        let started = Instant::now();
        ask_in_vain(&client, &format!("{OBSERVED}:53"))?;
        ask(&client, DNS, &["observed.shop.svc.cluster.local"; 3])?;
        client.connects(to(7001)?, 1)?;
        client.connects(to(7002)?, 6)?;
        client.connects(to(7003)?, 1)?;
        client.datagrams(to(7004)?, b"x", 3, MOMENT)?;
        client.datagrams(to(7005)?, &[b'x'; 500], 200, Duration::ZERO)?;
        let waiting: Vec<TcpStream> = client.connects(to(7006)?, 4)?.into_iter().flatten().collect();
        client.connects(LEDGER.parse()?, 5)?;
        client.datagrams("198.51.100.2:9".parse()?, &[b'x'; 500], 100, Duration::ZERO)?;
        let stray = stray(&cluster.node_address("n1"));
        Space::of_node(cluster, "n1")?.datagrams(format!("{stray}:9").parse()?, b"x", 3, Duration::ZERO)?;

        let queue_drops = queue_drops(&client.sh("tc -s qdisc show dev obs0")?)?;
        let datagrams_kept = std::iter::from_fn(|| full.recv(&mut [0; 512]).ok()).count() as u64;
        thread::sleep(DNS_PATIENCE.saturating_sub(started.elapsed()));
        let held = (listener, silent, waiting);
        Ok(Self { client, server_address: server_address.trim().to_owned(), stray, datagrams_kept, queue_drops, held })
    }

    pub(super) fn end(self, cluster: &Cluster) -> Result<()> {
        drop(self.held);
        self.client.sh("ip link del obs0; ip link del obs2")?;
        cluster.node_exec("n1", &["nft", "delete", "table", "inet", "observed"]).map(drop)
    }
}

fn to(port: u16) -> Result<SocketAddr> {
    Ok(format!("{OBSERVED}:{port}").parse()?)
}

/// An address of the node's network that no host has.
fn stray(node: &str) -> String {
    let network = node.rsplit_once('.').map_or("", |(network, _)| network);
    format!("{network}.200")
}

/// `Sent 1626 bytes 3 pkt (dropped 97, overlimits 100 requeues 0)`.
fn queue_drops(text: &str) -> Result<u64> {
    let number = text.split_once("dropped ").and_then(|(_, rest)| rest.split_once(','));
    number.and_then(|(number, _)| number.parse().ok()).with_context(|| format!("tc counts no drops: {text}"))
}

/// Asks for addresses of names and waits for each answer.
fn ask(client: &Space, server: &str, names: &[&str]) -> Result<()> {
    client.run_in_group(|| {
        for name in names {
            let socket = UdpSocket::bind("0.0.0.0:0").context("cannot open a socket")?;
            socket.set_read_timeout(Some(Duration::from_secs(2))).context("cannot set a timeout")?;
            socket.connect(server).with_context(|| format!("cannot connect to {server}"))?;
            socket.send(&query(name)).with_context(|| format!("cannot ask {server}"))?;
            socket.recv(&mut [0; 512]).with_context(|| format!("{server} does not answer for {name}"))?;
        }
        Ok(())
    })
}

fn ask_in_vain(client: &Space, server: &str) -> Result<()> {
    let server: SocketAddr = server.parse().with_context(|| format!("{server} is no address"))?;
    (0..2).try_for_each(|_| client.datagrams(server, &query("silent.example"), 1, Duration::ZERO))
}

/// One question for the IPv4 address of a name (RFC 1035 §4).
pub(in crate::e2e) fn query(name: &str) -> Vec<u8> {
    let mut message = vec![0x6e, 0x64, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        message.push(u8::try_from(label.len()).expect("a label has at most 63 bytes"));
        message.extend(label.as_bytes());
    }
    message.extend([0, 0, 1, 0, 1]);
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_of_tc_are_found() {
        let text =
            "qdisc tbf 8001: root refcnt 5 rate 8Kbit\n Sent 1626 bytes 3 pkt (dropped 97, overlimits 100 requeues 0)";
        assert_eq!(queue_drops(text).unwrap(), 97);
        assert!(queue_drops("qdisc noqueue").is_err());
        assert_eq!(stray("172.30.7.11"), "172.30.7.200");
    }
}
