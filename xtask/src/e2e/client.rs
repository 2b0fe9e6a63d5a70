//! The judge of every case: what a client in its own pod feels, by Kubernetes' test program, without netdiag.

use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::os::unix::process::ExitStatusExt as _;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;

use super::case::{Case, End, Symptom};
use super::observed::{Space, query};
use crate::cluster::Cluster;

/// A fault must show within this: kube-proxy and CoreDNS (5 s cache of negative answers) have had their time.
const SHOWS_WITHIN: Duration = Duration::from_secs(25);
/// A restored world must be well again within this.
const HEALS_WITHIN: Duration = Duration::from_secs(45);
/// Connects that decide about "some fail": with one bad endpoint of three, all 24 would go well once in 17 000 runs.
const SAMPLE: usize = 24;
/// How long one connect may take: longer than a SYN retransmission, shorter than Go's DNS timeout.
const PATIENCE: &str = "--timeout=2s";
/// How long an answer of a name server may take: it has it at hand.
const LOOKUP_PATIENCE: Duration = Duration::from_secs(1);

/// Waits until the client feels what the case says; twice in a row, so that a transition does not count.
pub(super) fn feels(cluster: &Cluster, case: &Case) -> Result<Vec<End>> {
    let started = Instant::now();
    loop {
        let first = sample(cluster, case)?;
        let matches = |ends: &[End]| is_as_told(&case.symptom, ends);
        if matches(&first) && matches(&sample(cluster, case)?) {
            return Ok(first);
        }
        if started.elapsed() > SHOWS_WITHIN {
            bail!("the client does not feel it: {:?} instead of {:?}", first, case.symptom.ends);
        }
        std::thread::sleep(Duration::from_millis(300));
    }
}

/// Waits until the world's own connection works, from both clients, by address and by name.
pub(super) fn is_well(cluster: &Cluster) -> Result<()> {
    let started = Instant::now();
    loop {
        let mut bad = Vec::new();
        for (client, target) in [("client", "10.96.0.80:80"), ("client-2", "web.shop.svc.cluster.local.:80")] {
            for _ in 0..4 {
                let end = connect(cluster, client, target)?;
                if end != End::Connected {
                    bad.push(format!("{client} to {target}: {end:?}"));
                    break;
                }
            }
        }
        if bad.is_empty() {
            return Ok(());
        }
        if started.elapsed() > HEALS_WITHIN {
            bail!("the world is not well: {}", bad.join(", "));
        }
        std::thread::sleep(Duration::from_millis(300));
    }
}

fn is_as_told(symptom: &Symptom, ends: &[End]) -> bool {
    let good = ends.iter().filter(|end| **end == End::Connected).count();
    let bad: Vec<&End> = ends.iter().filter(|end| **end != End::Connected).collect();
    let known = bad.iter().all(|end| symptom.ends.contains(end));
    match (symptom.ends.is_empty(), symptom.some) {
        (true, _) => bad.is_empty(),
        (false, true) => good > 0 && !bad.is_empty() && known,
        (false, false) => good == 0 && known,
    }
}

fn sample(cluster: &Cluster, case: &Case) -> Result<Vec<End>> {
    let target = match case.symptom.connect.split_once(':') {
        Some(("pod", pod)) => address_of(cluster, pod)?,
        Some(("node", node)) => {
            let (name, port) = node.rsplit_once(':').context("a node target is NAME:PORT")?;
            format!("{}:{port}", cluster.node_address(name))
        }
        _ => case.symptom.connect.clone(),
    };
    // Go's resolver gives up after 10 s a name when nobody answers, whatever the timeout of the connect.
    let is_name = target.parse::<SocketAddr>().is_err();
    let tries = match (case.symptom.some, is_name) {
        (true, _) => SAMPLE,
        (false, true) => 1,
        (false, false) => 2,
    };
    let mut ends = Vec::new();
    for _ in 0..tries {
        let connected = match case.symptom.udp_from {
            Some(port) => lookup(cluster, &case.symptom.from, &target, port)?,
            None => connect(cluster, &case.symptom.from, &target)?,
        };
        ends.push(match (case.symptom.bytes, connected) {
            (None, end) => end,
            (Some(bytes), End::Connected) => request(cluster, &case.symptom.from, &target, bytes)?,
            // Not what the case is about.
            (Some(_), _) => End::Other,
        });
        // Both have been seen: more connects, each of which may take its whole patience, say nothing new.
        if case.symptom.some && ends.contains(&End::Connected) && ends.iter().any(|end| *end != End::Connected) {
            break;
        }
    }
    Ok(ends)
}

/// `shop/web-2:8080` as the pod's address and port.
fn address_of(cluster: &Cluster, pod: &str) -> Result<String> {
    let (path, port) = pod.rsplit_once(':').context("a pod target is NAMESPACE/NAME:PORT")?;
    let (namespace, name) = path.split_once('/').context("a pod target is NAMESPACE/NAME:PORT")?;
    Ok(format!("{}:{port}", pod_address(cluster, namespace, name)?))
}

pub(super) fn pod_address(cluster: &Cluster, namespace: &str, name: &str) -> Result<String> {
    cluster.kubectl(&["-n", namespace, "get", "pod", name, "-o", "jsonpath={.status.podIP}"])
}

fn connect(cluster: &Cluster, client: &str, target: &str) -> Result<End> {
    let mut command = cluster.pod_command("shop", client)?;
    let output = command
        .args(["/agnhost", "connect", PATIENCE, target])
        .output()
        .with_context(|| format!("cannot start agnhost in pod shop/{client}"))?;
    if output.status.success() {
        return Ok(End::Connected);
    }
    let said = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    match said.split_whitespace().next() {
        Some("REFUSED") => Ok(End::Refused),
        Some("TIMEOUT") => Ok(End::Timeout),
        Some("DNS:" | "DNS") => Ok(End::Dns),
        Some("OTHER:" | "OTHER") => Ok(End::Other),
        _ => bail!("agnhost connect {target} in pod shop/{client} said something unknown: {said:?}"),
    }
}

/// A question by UDP from one port, as of a program that keeps its socket.
pub(super) fn lookup(cluster: &Cluster, client: &str, server: &str, port: u16) -> Result<End> {
    let server: SocketAddr = server.parse().with_context(|| format!("{server} is no ADDRESS:PORT"))?;
    Space::of_pod(cluster, "shop", client)?.run(|| {
        let socket = UdpSocket::bind(("0.0.0.0", port)).with_context(|| format!("cannot bind UDP port {port}"))?;
        socket.set_read_timeout(Some(LOOKUP_PATIENCE)).context("cannot set a timeout")?;
        socket.connect(server).with_context(|| format!("cannot connect to {server}"))?;
        let answered = socket.send(&query("web.shop.svc.cluster.local")).and_then(|_| socket.recv(&mut [0; 512]));
        Ok(match answered.map_err(|error| error.kind()) {
            Ok(_) => End::Connected,
            Err(ErrorKind::ConnectionRefused) => End::Refused,
            Err(ErrorKind::WouldBlock | ErrorKind::TimedOut) => End::Timeout,
            Err(_) => End::Other,
        })
    })
}

/// An HTTP request to the world's servers, which send its words back.
fn request(cluster: &Cluster, client: &str, target: &str, bytes: u16) -> Result<End> {
    let url = format!("http://{target}/echo?msg={}", "x".repeat(bytes.into()));
    let mut command = cluster.pod_command("shop", client)?;
    let output = command
        .args(["/bin/busybox", "timeout", "2", "wget", "-q", "-O", "/dev/null", &url])
        .output()
        .with_context(|| format!("cannot start wget in pod shop/{client}"))?;
    Ok(match output.status.code() {
        Some(0) => End::Connected,
        // It was still waiting: nsenter ends as the program did, by the signal.
        None if output.status.signal() == Some(Signal::SIGTERM as i32) => End::Timeout,
        _ => End::Other,
    })
}
