//! What the agent costs DNS, and whether it counts every query: a bare responder in one namespace, a client in another.
//!
//! The responder turns a query into an answer and sends it back, which is less than any real server does: the ratio is the
//! worst that a client can see. Before and after each run with the agent there is one without.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};

use super::bpf;
use super::flood::{Space, pin};
use super::storm::{Running, certificates, median};
use super::table::{Row, Target};

const RUN: Duration = Duration::from_millis(300);
/// Queries that wait for their answers at one time: the rate of a busy node's resolvers, not of one that waits for each.
const WINDOW: u16 = 32;
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 2);
/// Queries a second at which none may be lost, and for how long.
const PACE: u32 = 50_000;
const PACED_FOR: Duration = Duration::from_secs(3);

/// What must be left of the rate.
const RATIO: f64 = 0.97;

pub(super) struct Dns {
    agent: PathBuf,
    certificates: tempfile::TempDir,
    client: Space,
    stop: Arc<AtomicBool>,
    responder: Option<JoinHandle<()>>,
}

impl Dns {
    pub(super) fn new(agent: &Path) -> Result<Self> {
        let (client, server) = (Space::new()?, Space::new()?);
        client.sh(&format!("ip link add out type veth peer name in netns {}", server.path()))?;
        client.sh("ip addr add 10.78.0.1/24 dev out; ip link set out up")?;
        server.sh("ip addr add 10.78.0.2/24 dev in; ip link set in up")?;
        let socket = server.run(|| UdpSocket::bind((SERVER, 53)).context("cannot listen on port 53"))?;
        let stop = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&stop);
        let responder = thread::spawn(move || respond(&socket, &ended));
        Ok(Self { agent: agent.to_owned(), certificates: certificates()?, client, stop, responder: Some(responder) })
    }

    pub(super) fn measure(&self, rounds: usize) -> Result<Vec<Row>> {
        println!(
            "dns: client on processor 0, responder and agent on processor 1, {WINDOW} queries open, {rounds} rounds of {} ms; medians",
            RUN.as_millis()
        );
        let (mut ratios, mut rates) = (Vec::new(), Vec::new());
        let mut before = self.rate()?;
        for _ in 0..rounds {
            let with = {
                let _running = self.start(free_port()?)?;
                self.rate()?
            };
            let after = self.rate()?;
            ratios.push(with / f64::midpoint(before, after));
            rates.push(with);
            before = after;
        }
        let mut rows = vec![
            Row::new(
                "DNS queries/s through a bare responder with netdiag ÷ without",
                median(&ratios),
                Target::AtLeast(RATIO),
            ),
            Row::beside("    queries/s with netdiag", median(&rates)),
        ];
        rows.extend(self.paced()?);
        Ok(rows)
    }

    /// Sends at a steady pace, and asks the agent what it saw.
    fn paced(&self) -> Result<Vec<Row>> {
        let port = free_port()?;
        let _running = self.start(port)?;
        let before = Counted::ask(port)?;
        let (sent, answered) = self.client.run(send_paced)?;
        // The last answers reach the client's socket after it has stopped reading.
        thread::sleep(Duration::from_millis(200));
        let after = Counted::ask(port)?;
        let counted = after.closed + after.open - before.closed - before.open;
        let seconds = PACED_FOR.as_secs_f64();
        Ok(vec![
            // Others on this machine may ask too; what they add can only hide a loss where there are more of them than lost.
            Row::new(
                format!("DNS queries not counted, of {sent} at {:.0}/s", sent / seconds),
                (sent - counted).max(0.0),
                Target::AtMost(0.0),
            ),
            Row::new(
                "    names lost because the ring was full",
                after.names_lost - before.names_lost,
                Target::AtMost(0.0),
            ),
            Row::beside("    answers that the client read", answered),
            Row::beside("    share of names held back, and said so", (after.suppressed - before.suppressed) / sent),
        ])
    }

    /// Queries a second that were answered.
    fn rate(&self) -> Result<f64> {
        self.client.run(|| {
            pin(0)?;
            let socket = client()?;
            let mut bytes = [0; 512];
            for id in 0..WINDOW {
                socket.send(&query(id)).context("cannot send a query")?;
            }
            let (started, mut answers) = (Instant::now(), 0_u32);
            while started.elapsed() < RUN {
                socket.recv(&mut bytes).context("the responder is silent")?;
                answers += 1;
                // The id that is free again.
                socket.send(&query(u16::from_be_bytes([bytes[0], bytes[1]]))).context("cannot send a query")?;
            }
            let rate = f64::from(answers) / started.elapsed().as_secs_f64();
            // Nothing of this run reaches the next.
            for _ in 0..WINDOW {
                socket.recv(&mut bytes).context("the responder is silent")?;
            }
            Ok(rate)
        })
    }

    fn start(&self, metrics_port: u16) -> Result<Running> {
        let running = Running::child(
            Command::new(&self.agent)
                .args(["--node-name", "bench", "--listen", "127.0.0.1:0", "--metrics-listen"])
                .arg(format!("127.0.0.1:{metrics_port}"))
                .arg("--tls-dir")
                .arg(self.certificates.path())
                .env("RUST_LOG", "error"),
        )?;
        let deadline = Instant::now() + Duration::from_mins(1);
        while TcpStream::connect((Ipv4Addr::LOCALHOST, metrics_port)).is_err() {
            if Instant::now() > deadline {
                bail!("the agent did not start within a minute");
            }
            thread::sleep(Duration::from_millis(20));
        }
        if !bpf::programs().iter().any(|program| program.name.starts_with("netdiag_dns")) {
            bail!("the agent runs without its DNS programs: netdiag-node's log says why");
        }
        Ok(running)
    }
}

impl Drop for Dns {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(responder) = self.responder.take() {
            let _ = responder.join();
        }
    }
}

/// Totals of the agent's metrics.
struct Counted {
    closed: f64,
    open: f64,
    suppressed: f64,
    names_lost: f64,
}

impl Counted {
    fn ask(port: u16) -> Result<Self> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).context("cannot reach the agent's metrics")?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text).context("cannot read the agent's metrics")?;
        let sum = |wanted: &dyn Fn(&str) -> bool| {
            let lines = text.lines().filter(|line| wanted(line));
            lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum::<f64>()
        };
        if !text.contains("netdiag_dns_queries_total{") {
            return Err(anyhow!("the agent's metrics have no DNS queries"));
        }
        Ok(Self {
            closed: sum(&|line| line.starts_with("netdiag_dns_queries_total{")),
            open: sum(&|line| line.starts_with("netdiag_dns_queries_open ")),
            suppressed: sum(&|line| line.starts_with("netdiag_lost_events_total") && line.contains("name_suppressed")),
            names_lost: sum(&|line| line.starts_with("netdiag_lost_events_total") && line.contains("name_lost")),
        })
    }
}

fn respond(socket: &UdpSocket, ended: &AtomicBool) {
    /// A message with a question for a client that is gone by then costs nobody anything.
    const IDLE: Duration = Duration::from_millis(100);
    let _ = pin(1);
    let _ = socket.set_read_timeout(Some(IDLE));
    let mut bytes = [0; 512];
    while !ended.load(Ordering::Relaxed) {
        let Ok((length, from)) = socket.recv_from(&mut bytes) else { continue };
        bytes[2] |= 0x80;
        let _ = socket.send_to(&bytes[..length], from);
    }
}

/// Queries sent and answers read.
fn send_paced() -> Result<(f64, f64)> {
    /// Sent together: timers are no finer.
    const BATCH: Duration = Duration::from_millis(2);
    pin(0)?;
    let socket = client()?;
    socket.set_nonblocking(true).context("cannot make a socket not wait")?;
    let (mut sent, mut answered, mut bytes) = (0_u32, 0_u32, [0; 512]);
    let started = Instant::now();
    while started.elapsed() < PACED_FOR {
        let due = u32::try_from(started.elapsed().as_micros() * u128::from(PACE) / 1_000_000).expect("150 000 queries");
        while sent < due {
            // An id is free again long before it is used again.
            let id = u16::try_from(sent % 65_536).expect("below 65 536");
            if socket.send(&query(id)).is_ok() {
                sent += 1;
            }
            while socket.recv(&mut bytes).is_ok() {
                answered += 1;
            }
        }
        thread::sleep(BATCH);
    }
    thread::sleep(Duration::from_millis(100));
    while socket.recv(&mut bytes).is_ok() {
        answered += 1;
    }
    Ok((f64::from(sent), f64::from(answered)))
}

fn client() -> Result<UdpSocket> {
    let socket = UdpSocket::bind("0.0.0.0:0").context("cannot open a socket")?;
    socket.connect((SERVER, 53)).context("cannot connect a socket")?;
    socket.set_read_timeout(Some(Duration::from_secs(2))).context("cannot limit a socket's waiting")?;
    Ok(socket)
}

/// `web.shop.svc.cluster.local`, A.
fn query(id: u16) -> Vec<u8> {
    let [high, low] = id.to_be_bytes();
    let mut message = vec![high, low, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    message.extend(b"\x03web\x04shop\x03svc\x07cluster\x05local\0\0\x01\0\x01");
    message
}

/// A port that was free a moment ago.
fn free_port() -> Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0").context("cannot listen on loopback")?;
    Ok(listener.local_addr().map(|address: SocketAddr| address.port())?)
}
