//! Pods and nodes made of network namespaces: the agent finds them, looks inside, probes from inside, and leaves nothing.

#![expect(clippy::unwrap_used, reason = "the helpers of these tests too")]

mod lab;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use lab::pair::{Lab, NODE_ADDRESS, POD_ADDRESS};
use lab::{CONTAINER, FakePod, LISTENS, NODE, Namespace, UID, ip, patient};
use netdiag_common::observation::Observation;
use netdiag_common::observation::pod::AttributionMethod;
use netdiag_common::observation::probe::{Outcome, ProbeRequest, ProbeResult, Stage};
use netdiag_common::{GapReason, Need, Reading, Topic};

const OTHER_UID: &str = "1f6d6c5e-2a5f-4f43-9b0c-1b2f4a1d9e77";

/// A pod of another node that shares the machine.
struct Elsewhere {
    _pod: FakePod,
    _namespace: Namespace,
}

/// The other node's pod is there before the agent looks for the first time.
fn start(role: &str) -> Option<(Lab, Elsewhere)> {
    if !lab::can_run() {
        return None;
    }
    let namespace = Namespace::new(&format!("{role}-else"));
    let root = format!("{}x", lab::kubelet_root(role));
    let pod = FakePod::start(&namespace, &root, OTHER_UID, CONTAINER, LISTENS.parse().unwrap());
    Some((Lab::start(role)?, Elsewhere { _pod: pod, _namespace: namespace }))
}

fn probe(lab: &Lab, need: &Need) -> ProbeResult {
    match lab.agent.seen(need) {
        Observation::Probe(result) => result,
        other => panic!("{other:?}"),
    }
}

fn connect(address: &str, port: u16) -> Topic {
    let address: IpAddr = address.parse().unwrap();
    Topic::Probe(ProbeRequest::TcpConnect { address, port, timeout_ms: 300, attempts: 1, source_port: None })
}

#[test]
fn pod_is_found_by_cgroup_and_veth() {
    let Some((lab, _elsewhere)) = start("found") else { return };
    let Observation::Pods(pods) = lab.agent.seen(&Need::host(NODE, Topic::Pods)) else { panic!() };
    assert_eq!(pods.len(), 1, "a pod of another cgroup root is not ours: {pods:?}");
    assert_eq!(pods[0].uid, UID);
    assert_eq!(pods[0].container_ids, [CONTAINER]);
    assert_eq!(pods[0].method, AttributionMethod::CgroupAndVeth);
    assert!(!pods[0].host_network);
    assert_eq!(
        pods[0].netns_cookie.is_some(),
        netdiag_node::netns::own_cookie().is_some(),
        "as the kernel has cookies"
    );
}

#[test]
fn each_namespace_shows_its_own_side() {
    let Some((lab, _elsewhere)) = start("sides") else { return };
    ip(&format!("-n {} route add 198.51.100.0/24 dev toPod mtu 1400", lab.node.name));
    let Observation::Network(node) = lab.agent.seen(&Need::host(NODE, Topic::Network)) else { panic!() };
    let Observation::Network(pod) = lab.agent.seen(&Need::pod(NODE, UID, Topic::Network)) else { panic!() };
    let outside = node.links.iter().find(|link| link.name == "toPod").unwrap();
    let eth0 = pod.links.iter().find(|link| link.name == "eth0").unwrap();
    assert_eq!((outside.kind.as_str(), outside.peer_index), ("veth", Some(eth0.index)));
    assert_eq!(eth0.peer_index, Some(outside.index));
    assert!(eth0.carrier && eth0.up);
    let mtu = |address: &str| node.route_to(address.parse().unwrap()).unwrap().mtu;
    assert_eq!((mtu("198.51.100.1"), mtu(POD_ADDRESS)), (Some(1400), None));
    assert_eq!(pod.route_to(NODE_ADDRESS.parse().unwrap()).unwrap().destination.to_string(), "10.202.0.0/24");

    ip(&format!("-n {} link set toPod down", lab.node.name));
    let Observation::Network(pod) = lab.agent.seen(&Need::pod(NODE, UID, Topic::Network)) else { panic!() };
    assert!(!pod.links.iter().find(|link| link.name == "eth0").unwrap().carrier);
}

#[test]
fn overlay_is_told_with_what_it_sends_where() {
    let Some((lab, _elsewhere)) = start("overlay") else { return };
    let inside = |tool: &str, words: &str| {
        let status = Command::new(tool).args(["-n", &lab.node.name]).args(words.split(' ')).status();
        status.is_ok_and(|status| status.success())
    };
    let vxlan = format!("link add flannel.1 type vxlan id 7 local {NODE_ADDRESS} dev toPod dstport 8472 nolearning");
    if !inside("ip", &vxlan) {
        return lab::skip("this kernel has no VXLAN");
    }
    assert!(inside("bridge", "fdb append 02:0e:00:00:00:02 dev flannel.1 dst 10.202.0.9 self permanent"));
    assert!(inside(
        "bridge",
        "fdb append 02:0e:00:00:00:03 dev flannel.1 dst 10.202.0.8 port 4789 vni 9 self permanent"
    ));
    let Observation::Network(node) = lab.agent.seen(&Need::host(NODE, Topic::Network)) else { panic!() };
    let device = node.links.iter().find(|link| link.name == "flannel.1").unwrap();
    let lower = node.links.iter().find(|link| link.name == "toPod").unwrap();
    let tunnel = device.tunnel.as_ref().unwrap();
    assert_eq!((tunnel.id, tunnel.port, tunnel.learning), (Some(7), Some(8_472), Some(false)), "{tunnel:?}");
    assert_eq!((tunnel.local, tunnel.remote), (Some(NODE_ADDRESS.parse().unwrap()), None));
    assert_eq!((tunnel.lower_index, tunnel.external), (Some(lower.index), false));
    let entries = node.forwarding.iter().filter(|entry| entry.link_index == device.index);
    let told: Vec<_> = entries
        .map(|entry| {
            (entry.mac.as_str(), entry.destination.unwrap().to_string(), entry.port, entry.id, entry.is_static)
        })
        .collect();
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(told.contains(&("02:0e:00:00:00:02", "10.202.0.9".to_owned(), None, None, true)), "{told:?}");
    assert!(told.contains(&("02:0e:00:00:00:03", "10.202.0.8".to_owned(), Some(4_789), Some(9), true)), "{told:?}");
    assert!(lower.tunnel.is_none());
}

#[test]
fn listener_is_found_with_process_and_container() {
    let Some((lab, _elsewhere)) = start("listen") else { return };
    let Observation::Listeners(found) = lab.agent.seen(&Need::pod(NODE, UID, Topic::Listeners)) else { panic!() };
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!((found[0].address.to_string().as_str(), found[0].port, found[0].backlog), ("127.0.0.1", 8080, 16));
    let process = found[0].process.as_ref().unwrap();
    assert_eq!((process.name.as_str(), process.pid), ("sleep", lab.pod.child.id()));
    assert_eq!(process.container_id.as_deref(), Some(CONTAINER));
    let Observation::Listeners(found) = lab.agent.seen(&Need::host(NODE, Topic::Listeners)) else { panic!() };
    assert!(found.is_empty(), "the agent's own socket is in another namespace: {found:?}");
}

#[test]
fn sysctls_are_those_of_the_namespace_asked() {
    let Some((lab, _elsewhere)) = start("sysctl") else { return };
    // Reads through the agent's /proc, written inside the node's namespace.
    let write = Command::new("nsenter")
        .arg(format!("--net={}", lab.node.path().display()))
        .args(["sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"])
        .status();
    assert!(write.unwrap().success());
    let forward = |need: &Need| match lab.agent.seen(need) {
        Observation::Sysctls(found) => found.values["net.ipv4.ip_forward"].clone(),
        other => panic!("{other:?}"),
    };
    assert_eq!(forward(&Need::host(NODE, Topic::Sysctls)), "1");
    assert_eq!(forward(&Need::pod(NODE, UID, Topic::Sysctls)), "0");
}

#[test]
fn probe_leaves_from_the_pod() {
    let Some((lab, _elsewhere)) = start("probe") else { return };
    let refused = probe(&lab, &Need::pod(NODE, UID, connect(NODE_ADDRESS, 81)));
    assert_eq!(refused.attempts[0].source.unwrap().ip().to_string(), POD_ADDRESS);
    assert!(refused.attempts[0].outcome.is_refused());
    assert_eq!(probe(&lab, &Need::pod(NODE, UID, connect("127.0.0.1", 8080))).succeeded(), 1);
    let from_node = probe(&lab, &Need::host(NODE, connect(POD_ADDRESS, 8080)));
    assert!(from_node.attempts[0].outcome.is_refused(), "bound to loopback: {from_node:?}");
    let nowhere = probe(&lab, &Need::pod(NODE, UID, connect("198.51.100.1", 80)));
    let unreachable = Outcome::Failed { stage: Stage::Connect, errno: "ENETUNREACH".to_owned() };
    assert_eq!(nowhere.attempts[0].outcome, unreachable);
}

#[test]
fn pod_that_ended_is_gone_and_its_namespace_is_not_held() {
    let Some((mut lab, _elsewhere)) = start("gone") else { return };
    lab.agent.seen(&Need::pod(NODE, UID, Topic::Network));
    lab.pod.child.kill().unwrap();
    lab.pod.child.wait().unwrap();
    let Reading::Unavailable { gap } = lab.agent.read(&Need::pod(NODE, UID, Topic::Network)) else { panic!() };
    assert_eq!(gap.reason, GapReason::Gone, "{gap:?}");
    // A namespace that nobody holds takes its veth pair with it.
    ip(&format!("netns del {}", lab.inside.name));
    let started = Instant::now();
    let has_veth = || {
        let Observation::Network(node) = lab.agent.seen(&Need::host(NODE, Topic::Network)) else { panic!() };
        node.links.iter().any(|link| link.name == "toPod")
    };
    while has_veth() {
        assert!(started.elapsed() < patient(Duration::from_secs(10)), "the agent holds the pod's namespace");
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn nothing_remains_after_sigkill() {
    let Some((mut lab, _elsewhere)) = start("sigkill") else { return };
    for topic in [Topic::Pods, Topic::Network, Topic::Listeners, Topic::Rules, Topic::Drops] {
        lab.agent.read(&Need::host(NODE, topic));
    }
    probe(&lab, &Need::pod(NODE, UID, connect(NODE_ADDRESS, 81)));
    let agent = lab.agent.child.id();
    let programs = lab::ids_in_kernel(agent, "prog_id:");
    let before = world(&lab, agent, &programs);
    assert!(before.contains("process") && before.contains("listening socket"), "{before:?}");
    lab.agent.child.kill().unwrap();
    lab.agent.child.wait().unwrap();
    let started = Instant::now();
    loop {
        let left = world(&lab, agent, &programs);
        if left.is_empty() {
            return;
        }
        assert!(started.elapsed() < patient(Duration::from_secs(5)), "left behind: {left:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// What can be seen of the agent from outside: process, socket, programs, pins, rules.
fn world(lab: &Lab, agent: u32, programs: &BTreeSet<u32>) -> BTreeSet<String> {
    let loaded = aya::programs::loaded_programs().flatten().map(|program| program.id());
    let mut found: BTreeSet<String> =
        loaded.filter(|id| programs.contains(id)).map(|id| format!("program {id}")).collect();
    if std::path::Path::new(&format!("/proc/{agent}")).exists() {
        found.insert("process".to_owned());
    }
    if std::net::TcpStream::connect(lab.agent.address).is_ok() {
        found.insert("listening socket".to_owned());
    }
    for folder in ["/run/netns", "/sys/fs/bpf"] {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.contains("netdiag") {
                found.insert(format!("{folder}/{name}"));
            }
        }
    }
    // In the node's namespace nobody but an agent could have written rules or made sockets.
    let inside = |program: &str, arguments: &[&str]| {
        let netns = format!("--net={}", lab.node.path().display());
        let output = Command::new("nsenter").arg(netns).arg(program).args(arguments).output();
        output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default()
    };
    for (name, text) in
        [("rules", inside("nft", &["list", "tables"])), ("sockets", inside("ss", &["--no-header", "-tuln"]))]
    {
        if !text.is_empty() {
            found.insert(format!("{name}: {text}"));
        }
    }
    found
}
