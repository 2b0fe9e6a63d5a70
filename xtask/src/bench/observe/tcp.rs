//! What the agent costs connections: short ones, through an address that the node between client and server translates.
//!
//! Client, node and server are namespaces; the agent takes the one in the middle for its node, so that it hears of the flows
//! too, and both ends are in a pod. The server closes first, as servers of HTTP/1.0 do: the client has all its ports again.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::ReceiveTimeout;
use nix::sys::time::{TimeVal, TimeValLike as _};

use super::bpf;
use super::compare::compare;
use super::empty;
use super::flood::pin;
use super::pods::Pods;
use super::process::{Agent, Running, SETTLES_IN, alone, certificates, median};
use crate::bench::space::Space;
use crate::bench::table::{Row, Table, Target};

pub(super) const TITLE: &str = "TCP connections";

const RUN: Duration = Duration::from_millis(400);
/// Long enough for hundreds of connections, so that one more or less is none; what else the machine does spoils some slices.
const SLICE: Duration = Duration::from_millis(20);
/// What must be left of the rate.
const RATIO: f64 = 0.97;
/// Where the server runs. Beside its client nothing waits for anything but the processor, so every nanosecond shows; on the
/// other one each message has to wake somebody up, as between any two machines and in netperf's TCP_CRR.
const PLACEMENTS: [(&str, usize); 2] = [("server on another processor", 1), ("server on the client's processor", 0)];
const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 80);
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 79, 2, 2);
const PORT: u16 = 80;
const REQUEST_BYTES: usize = 64;
const RESPONSE_BYTES: usize = 256;
/// A connection that takes longer than this does not come at all.
const PATIENCE: Duration = Duration::from_secs(2);

pub(super) struct Tcp {
    agent: PathBuf,
    certificates: tempfile::TempDir,
    client: Space,
    node: Space,
    pods: Pods,
    stop: Arc<AtomicBool>,
    server_on: Arc<AtomicUsize>,
    server: Option<JoinHandle<()>>,
}

impl Tcp {
    pub(super) fn new(agent: &Path) -> Result<Self> {
        let pods = Pods::joined()?;
        let (client, node, server) = (Space::new()?, Space::new()?, Space::new()?);
        node.sh(&format!(
            "ip link add to_client type veth peer name eth0 netns {}
             ip link add to_server type veth peer name eth0 netns {}
             ip addr add 10.79.1.1/24 dev to_client; ip link set to_client up
             ip addr add 10.79.2.1/24 dev to_server; ip link set to_server up
             echo 1 > /proc/sys/net/ipv4/ip_forward
             nft 'table ip bench {{
               chain services {{ type nat hook prerouting priority dstnat; ip daddr {SERVICE} tcp dport {PORT} dnat to {SERVER}:{PORT}; }}
             }}'",
            client.path(),
            server.path()
        ))?;
        for (space, network) in [(&client, "10.79.1"), (&server, "10.79.2")] {
            space.sh(&format!(
                "ip addr add {network}.2/24 dev eth0; ip link set eth0 up; ip route add default via {network}.1"
            ))?;
        }
        let listener = server.run(|| TcpListener::bind((SERVER, PORT)).context("cannot listen on port 80"))?;
        // accept() looks up now and then whether it is still wanted.
        setsockopt(&listener, ReceiveTimeout, &TimeVal::milliseconds(100))
            .context("cannot limit accept()'s waiting")?;
        let stop = Arc::new(AtomicBool::new(false));
        let server_on = Arc::new(AtomicUsize::new(0));
        let (ended, processor) = (Arc::clone(&stop), Arc::clone(&server_on));
        let server = thread::spawn(move || serve(&listener, &ended, &processor));
        let certificates = certificates()?;
        Ok(Self { agent: agent.to_owned(), certificates, client, node, pods, stop, server_on, server: Some(server) })
    }

    pub(super) fn measure(&self, rounds: usize) -> Result<Table> {
        let how = format!(
            "connect, {REQUEST_BYTES} bytes there, {RESPONSE_BYTES} back, close, one after the other, through nft DNAT and two \
             veth pairs; client on processor 0, the agent on processor 1, {rounds} rounds of {} ms; medians of slices of {} ms, \
             then of rounds",
            RUN.as_millis(),
            SLICE.as_millis()
        );
        alone()?;
        let mut rows = Vec::new();
        for (placement, server_on) in PLACEMENTS {
            self.server_on.store(server_on, Ordering::Relaxed);
            let agent = compare(rounds, || self.start(), || self.rate())?;
            let empty = compare(rounds, || self.start_empty(), || self.rate())?;
            let what = format!("{placement}: connections/s with netdiag ÷ without");
            rows.extend([
                match server_on {
                    0 => Row::beside(what, agent.ratio),
                    _ => Row::new(what, agent.ratio, Target::AtLeast(RATIO)),
                },
                Row::beside("    with empty programs wherever netdiag looks ÷ without", empty.ratio),
                Row::beside("    connections/s with netdiag", agent.with),
                Row::beside("    connections/s without", agent.without),
                Row::beside(
                    "    µs per connection that netdiag adds",
                    (agent.with.recip() - agent.without.recip()) * 1e6,
                ),
            ]);
        }
        Ok(Table { title: TITLE, how, missing: Vec::new(), rows })
    }

    fn start(&self) -> Result<Agent<'_>> {
        let arguments = ["--host-netns", &self.node.path(), "--cgroup-root", &self.pods.root];
        let agent = Agent::start(&self.agent, self.certificates.path(), &arguments)?;
        ensure!(
            bpf::programs().iter().any(|program| program.name.starts_with("netdiag_tcp")),
            "the agent runs without its TCP programs: netdiag-node's log says why"
        );
        thread::sleep(SETTLES_IN);
        Ok(agent)
    }

    fn start_empty(&self) -> Result<Running> {
        alone()?;
        Ok(Running::descriptors(empty::everywhere(&self.pods.group())?))
    }

    /// Connections a second.
    fn rate(&self) -> Result<f64> {
        self.client.run(|| {
            pin(0)?;
            let (started, mut slices) = (Instant::now(), Vec::new());
            while started.elapsed() < RUN {
                let (slice, mut connections) = (Instant::now(), 0_u32);
                while slice.elapsed() < SLICE {
                    exchange().context("a connection through the node failed")?;
                    connections += 1;
                }
                slices.push(f64::from(connections) / slice.elapsed().as_secs_f64());
            }
            Ok(median(&slices))
        })
    }
}

impl Drop for Tcp {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(server) = self.server.take() {
            let _ = server.join();
        }
    }
}

fn exchange() -> std::io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&SocketAddr::from((SERVICE, PORT)), PATIENCE)?;
    stream.write_all(&[b'q'; REQUEST_BYTES])?;
    let mut response = [0; RESPONSE_BYTES + 1];
    let mut length = 0;
    loop {
        match stream.read(&mut response[length..])? {
            0 if length == RESPONSE_BYTES => return Ok(()),
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            more => length += more,
        }
    }
}

fn serve(listener: &TcpListener, ended: &AtomicBool, processor: &AtomicUsize) {
    let mut on = None;
    let mut request = [0; REQUEST_BYTES];
    while !ended.load(Ordering::Relaxed) {
        let wanted = processor.load(Ordering::Relaxed);
        if on != Some(wanted) {
            let _ = pin(wanted);
            on = Some(wanted);
        }
        let Ok((mut stream, _)) = listener.accept() else { continue };
        // A client that gives up is told by its own error.
        if stream.read_exact(&mut request).is_ok() && stream.write_all(&[b'r'; RESPONSE_BYTES]).is_ok() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}
