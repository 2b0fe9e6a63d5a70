//! What the agent costs DNS, and whether it counts every query: servers in one namespace, a client in another, all in a pod, so
//! that the agent sees each message at both ends.
//!
//! Two servers: CoreDNS as clusters run it, and a bare responder that turns a query into an answer and sends it back, which is
//! less than any real server does: its ratio is the worst that a client can see.

use std::net::{Ipv4Addr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::bpf;
use super::compare::compare;
use super::empty;
use super::flood::pin;
use super::pods::Pods;
use super::process::{Agent, Running, SETTLES_IN, alone, certificates};
use crate::bench::space::Space;
use crate::bench::table::{Row, Table, Target};
use crate::parts;

pub(super) const TITLE: &str = "DNS";

const RUN: Duration = Duration::from_millis(300);
/// Queries that wait for their answers at one time: the rate of a busy node's resolvers, not of one that waits for each.
const WINDOW: u16 = 32;
const BARE: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 2);
const COREDNS: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 3);
/// Queries a second at which none may be lost, and for how long.
const PACE: u32 = 50_000;
const PACED_FOR: Duration = Duration::from_secs(3);

const NAME: &str = "web.shop.svc.cluster.local";

/// What must be left of the rate.
const RATIO: f64 = 0.97;

pub(super) struct Dns {
    agent: PathBuf,
    certificates: tempfile::TempDir,
    client: Space,
    _coredns: Running,
    _zone: tempfile::TempDir,
    pods: Pods,
    stop: Arc<AtomicBool>,
    responder: Option<JoinHandle<()>>,
}

impl Dns {
    pub(super) fn new(agent: &Path) -> Result<Self> {
        let pods = Pods::joined()?;
        let (client, server) = (Space::new()?, Space::new()?);
        client.sh(&format!("ip link add out type veth peer name in netns {}", server.path()))?;
        client.sh("ip addr add 10.78.0.1/24 dev out; ip link set out up")?;
        server.sh(&format!("ip addr add {BARE}/24 dev in; ip addr add {COREDNS}/24 dev in; ip link set in up"))?;
        let socket = server.run(|| UdpSocket::bind((BARE, 53)).context("cannot listen on port 53"))?;
        let stop = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&stop);
        let responder = thread::spawn(move || respond(&socket, &ended));
        let zone = tempfile::tempdir().context("cannot create a folder for CoreDNS")?;
        let coredns = coredns(&server, zone.path())?;
        client.run(answers)?;
        Ok(Self {
            agent: agent.to_owned(),
            certificates: certificates()?,
            client,
            _coredns: coredns,
            _zone: zone,
            pods,
            stop,
            responder: Some(responder),
        })
    }

    pub(super) fn measure(&self, rounds: usize) -> Result<Table> {
        let how = format!(
            "client on processor 0, servers and agent on processor 1, {WINDOW} queries open, {rounds} rounds of {} ms; medians. \
             Then {PACE} queries/s to the bare responder for {} s, whatever becomes of them",
            RUN.as_millis(),
            PACED_FOR.as_secs()
        );
        alone()?;
        let mut rows = Vec::new();
        for (name, server) in [("CoreDNS", COREDNS), ("a bare responder", BARE)] {
            let agent = compare(rounds, || self.start(), || self.rate(server))?;
            let empty = compare(rounds, || self.start_empty(), || self.rate(server))?;
            let what = format!("through {name}: queries/s with netdiag ÷ without");
            rows.extend([
                if server == COREDNS {
                    Row::new(what, agent.ratio, Target::AtLeast(RATIO))
                } else {
                    Row::beside(what, agent.ratio)
                },
                Row::beside("    with empty programs wherever netdiag looks ÷ without", empty.ratio),
                Row::beside("    queries/s with netdiag", agent.with),
                Row::beside("    queries/s without", agent.without),
            ]);
        }
        rows.extend(self.paced()?);
        Ok(Table { title: TITLE, how, missing: Vec::new(), rows })
    }

    /// Sends at a steady pace, and asks the agent what it saw.
    fn paced(&self) -> Result<Vec<Row>> {
        let (bare_sent, bare_answered) = self.client.run(send_paced)?;
        let agent = self.start()?;
        let before = Counted::ask(&agent)?;
        let (sent, answered) = self.client.run(send_paced)?;
        // Longer than the agent reuses what it saw: the last answers reach the client after it has stopped reading.
        thread::sleep(Duration::from_millis(1200));
        let after = Counted::ask(&agent)?;
        let grown = |of: fn(&Counted) -> f64| of(&after) - of(&before);
        let counted = grown(|counted| counted.ends.iter().sum::<f64>() + counted.open);
        let seconds = PACED_FOR.as_secs_f64();
        let mut rows = vec![
            // Others on this machine may ask too; what they add can only hide a loss where there are more of them than lost.
            Row::new(
                format!("queries not counted, of {sent} at {:.0}/s", sent / seconds),
                (sent - counted).max(0.0),
                Target::AtMost(0.0),
            ),
        ];
        for (n, end) in ENDS.iter().enumerate() {
            rows.push(Row::beside(format!("    counted as {end}"), after.ends[n] - before.ends[n]));
        }
        rows.extend([
            Row::beside("    counted as open still", grown(|counted| counted.open)),
            Row::beside("    answers that the client read", answered),
            Row::beside(format!("    the same without netdiag, of {bare_sent}"), bare_answered),
            Row::new(
                "    names lost because the ring was full",
                grown(|counted| counted.names_lost),
                Target::AtMost(0.0),
            ),
            Row::beside("    share of names held back, and said so", grown(|counted| counted.suppressed) / sent),
        ]);
        Ok(rows)
    }

    /// Queries a second that were answered.
    fn rate(&self, server: Ipv4Addr) -> Result<f64> {
        self.client.run(|| {
            pin(0)?;
            let socket = client(server)?;
            let mut bytes = [0; 512];
            for id in 0..WINDOW {
                socket.send(&query(id)).context("cannot send a query")?;
            }
            let (started, mut answers) = (Instant::now(), 0_u32);
            while started.elapsed() < RUN {
                socket.recv(&mut bytes).with_context(|| format!("{server} is silent"))?;
                answers += 1;
                // The id that is free again.
                socket.send(&query(u16::from_be_bytes([bytes[0], bytes[1]]))).context("cannot send a query")?;
            }
            let rate = f64::from(answers) / started.elapsed().as_secs_f64();
            // Nothing of this run reaches the next.
            for _ in 0..WINDOW {
                socket.recv(&mut bytes).with_context(|| format!("{server} is silent"))?;
            }
            Ok(rate)
        })
    }

    fn start_empty(&self) -> Result<Running> {
        alone()?;
        Ok(Running::descriptors(empty::everywhere(&self.pods.group())?))
    }

    fn start(&self) -> Result<Agent<'_>> {
        let agent = Agent::start(&self.agent, self.certificates.path(), &["--cgroup-root", &self.pods.root])?;
        ensure!(
            bpf::programs().iter().any(|program| program.name.starts_with("netdiag_dns")),
            "the agent runs without its DNS programs: netdiag-node's log says why"
        );
        thread::sleep(SETTLES_IN);
        Ok(agent)
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

/// CoreDNS, with the one name that is asked for.
fn coredns(space: &Space, folder: &Path) -> Result<Running> {
    let part = parts::CLUSTER.iter().find(|part| part.name == "coredns").expect("every cluster has CoreDNS");
    let program = parts::ensure(part)?.join("coredns");
    let corefile = folder.join("Corefile");
    let text = format!("cluster.local:53 {{\n bind {COREDNS}\n hosts {{\n  10.96.0.80 {NAME}\n }}\n}}\n");
    std::fs::write(&corefile, text).with_context(|| format!("cannot write {}", corefile.display()))?;
    space.run(|| Running::child(Command::new(program).arg("-conf").arg(&corefile)))
}

/// Waits until CoreDNS answers.
fn answers() -> Result<()> {
    const WITHIN: Duration = Duration::from_secs(10);
    let (started, mut bytes) = (Instant::now(), [0; 512]);
    while started.elapsed() < WITHIN {
        let socket = client(COREDNS)?;
        if socket.send(&query(1)).and_then(|_| socket.recv(&mut bytes)).is_ok() {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(20));
    }
    bail!("CoreDNS did not answer within {} s", WITHIN.as_secs())
}

/// How a query ends, in the words of the agent's metrics.
const ENDS: [&str; 4] = ["answered", "unanswered", "unparsed", "shed"];

/// Totals of the agent's metrics.
struct Counted {
    ends: [f64; ENDS.len()],
    open: f64,
    suppressed: f64,
    names_lost: f64,
}

impl Counted {
    fn ask(agent: &Agent<'_>) -> Result<Self> {
        const QUERIES: &str = "netdiag_dns_queries_total";
        let metrics = agent.metrics()?;
        ensure!(metrics.has(QUERIES), "the agent's metrics have no {QUERIES}");
        let lost = |cause| metrics.sum("netdiag_lost_events_total", cause);
        Ok(Self {
            ends: ENDS.map(|end| metrics.sum(QUERIES, &format!("end=\"{end}\""))),
            open: metrics.sum("netdiag_dns_queries_open", ""),
            suppressed: lost("cause=\"name_suppressed\""),
            names_lost: lost("cause=\"name_lost\""),
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
    /// A second query of a socket with the id of one that waits would be its retry, and no query more.
    const IDS: u32 = 65_536;
    pin(0)?;
    let mut sockets = Vec::new();
    for _ in 0..(PACE * u32::try_from(PACED_FOR.as_secs()).expect("seconds")).div_ceil(IDS) {
        let socket = client(BARE)?;
        socket.set_nonblocking(true).context("cannot make a socket not wait")?;
        sockets.push(socket);
    }
    let (mut sent, mut answered, mut bytes) = (0_u32, 0_u32, [0; 512]);
    let mut read = |sockets: &[UdpSocket]| {
        for socket in sockets {
            while socket.recv(&mut bytes).is_ok() {
                answered += 1;
            }
        }
    };
    let started = Instant::now();
    while started.elapsed() < PACED_FOR {
        let due = u32::try_from(started.elapsed().as_micros() * u128::from(PACE) / 1_000_000).expect("150 000 queries");
        while sent < due {
            let n = usize::try_from(sent / IDS).expect("a few sockets").min(sockets.len() - 1);
            if sockets[n].send(&query(u16::try_from(sent % IDS).expect("below 65 536"))).is_ok() {
                sent += 1;
            }
            read(&sockets[n..=n]);
        }
        read(&sockets);
        thread::sleep(BATCH);
    }
    thread::sleep(Duration::from_millis(100));
    read(&sockets);
    Ok((f64::from(sent), f64::from(answered)))
}

fn client(server: Ipv4Addr) -> Result<UdpSocket> {
    let socket = UdpSocket::bind("0.0.0.0:0").context("cannot open a socket")?;
    socket.connect((server, 53)).context("cannot connect a socket")?;
    socket.set_read_timeout(Some(Duration::from_secs(2))).context("cannot limit a socket's waiting")?;
    Ok(socket)
}

/// [`NAME`], A.
fn query(id: u16) -> Vec<u8> {
    let [high, low] = id.to_be_bytes();
    let mut message = vec![high, low, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in NAME.split('.') {
        message.push(u8::try_from(label.len()).expect("labels are short"));
        message.extend(label.as_bytes());
    }
    message.extend(b"\0\0\x01\0\x01");
    message
}
