//! BPF programs and tc filters.
#![expect(clippy::disallowed_methods, reason = "tests open what they attach to")]

use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use netdiag_common::forwarding::path::End;
use netdiag_common::observation::fate::{Fate, FateInterfaceKey, FateOrigin, FateRequest, FateTransport};
use netdiag_node::host::forwarding::{self, Bypassed};

use crate::attach::{
    CONNECT4, GROUP_EGRESS, Hook, Link, RECEIVE4, SOCKET_CREATE, SOCKET_LOOKUP, SOCKET_OPERATIONS, TC, TCX_EGRESS,
    TCX_INGRESS, XDP, attach, load, pin,
};
use crate::lab::{self, fate, fate_in_pod};
use crate::way::{BACKEND, CLIENT, NODE, Way, request, unseen};

/// None, said loudly, when this kernel or this user cannot attach it.
fn attached(hook: Hook, name: &str, target: u32) -> Option<Link> {
    attach(hook, name, target).map_err(|error| lab::skip(format!("cannot attach {hook:?}: {error}"))).ok()
}

/// What is named, with the numbers of programs left out.
fn named(fate: &Fate) -> Vec<String> {
    let without_number = |what: String| match (what.find("id "), what.find([',', ')'])) {
        (Some(from), Some(to)) => format!("{}id N{}", &what[..from], &what[to..]),
        _ => what,
    };
    unseen(fate).into_iter().map(without_number).collect()
}

fn index(way: &Way, device: &str) -> u32 {
    way.node.run(|| nix::net::if_::if_nametoindex(device).unwrap())
}

#[test]
fn nothing_is_named_where_nothing_is() {
    let Some(way) = Way::start("none") else { return };
    let fate = way.received(BACKEND, 80);
    assert_eq!((unseen(&fate), &fate.outcome.paths[0].gaps), (vec![], &vec![]));
    assert!(matches!(fate.outcome.paths[0].end, End::Sent { .. }));
}

#[test]
fn programs_at_the_devices_of_the_way_are_named_with_their_owner() {
    let Some(way) = Way::start("devices") else { return };
    let (r0, r1) = (index(&way, "r0"), index(&way, "r1"));
    let links = way.node.run(|| {
        let ingress = attached(TCX_INGRESS, "cil_from_container", r0)?;
        let egress = attached(TCX_EGRESS, "cali_tc_main", r1)?;
        // Those that see other packets: what leaves by the one, what comes in by the other.
        Some([
            ingress,
            egress,
            attached(TCX_EGRESS, "aside", r0)?,
            attached(XDP, "aside", r1)?,
            attached(XDP, "mine", r0)?,
        ])
    });
    let Some(links) = links else { return };
    let fate = way.received(BACKEND, 80);
    let expected = [
        "BPF program mine (id N) at generic XDP of r0",
        "BPF program cil_from_contai (id N, of Cilium) at tcx ingress of r0",
        "BPF program cali_tc_main (id N, of Calico) at tcx egress of r1",
    ];
    assert_eq!(named(&fate), expected);
    assert!(fate.unseen[1].remedy.contains("cilium-dbg"), "{:?}", fate.unseen[1]);
    let gaps = &fate.outcome.paths[0].gaps;
    assert!(gaps.len() == 3 && gaps[0].ends_with("XDP of r0 is not evaluated"), "{gaps:?}");
    drop(links);
    assert_eq!(unseen(&way.received(BACKEND, 80)), [""; 0]);
}

#[test]
fn tc_filters_are_named_with_what_they_do() {
    let Some(way) = Way::start("tc") else { return };
    way.node.sh(
        "tc qdisc add dev r0 clsact
         tc filter add dev r0 ingress protocol ip prio 7 u32 match ip dst 10.2.0.9/32 action mirred egress redirect dev r1
         tc qdisc add dev r1 handle ffff: ingress
         tc filter add dev r1 parent ffff: protocol ip u32 match ip dst 10.2.0.9/32 action mirred egress mirror dev r0",
    );
    let r1 = index(&way, "r1");
    let found = unseen(&way.received(BACKEND, 80));
    assert_eq!(found, [format!("filter u32 (redirected to interface {r1}) at tc ingress of r0")]);

    let Some(bpffs) = BpfFilesystem::mount() else { return };
    let program = load(TC, "cil_from_container").unwrap();
    let path = bpffs.folder.path().join("cil_from_container");
    pin(&program, &path).unwrap();
    way.node.sh(&format!("tc filter add dev r0 ingress prio 1 bpf direct-action object-pinned {}", path.display()));
    let found = named(&way.received(BACKEND, 80));
    assert_eq!(found[0], "BPF program cil_from_contai (id N, of Cilium) at tc ingress of r0");
    assert_eq!(found.len(), 2, "{found:?}");
}

#[test]
fn programs_of_the_senders_group_are_named() {
    let Some(way) = Way::start("group") else { return };
    let Some(group) = Group::make(&way, "sender") else { return };
    let above = std::fs::File::open(group.path.parent().unwrap()).unwrap();
    let own = std::fs::File::open(&group.path).unwrap();
    let Some(connect) = attached(CONNECT4, "cil_sock4_connect", above.as_raw_fd().cast_unsigned()) else { return };
    let Some(egress) = attached(GROUP_EGRESS, "theirs", own.as_raw_fd().cast_unsigned()) else { return };
    let sent = request(FateOrigin::Sent, BACKEND, 80);
    let in_pod = way.client.run(|| fate_in_pod(&sent).unwrap());
    let found = named(&in_pod);
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(
        found[0].starts_with("BPF program cil_sock4_conne (id N, of Cilium) at connect4 of control group /"),
        "{found:?}"
    );
    assert!(found[1].starts_with("BPF program theirs (id N) at egress of control group /"), "{found:?}");
    // A tunnel's device has no process that sends.
    let by_kernel = FateRequest { by_kernel: true, ..sent.clone() };
    assert_eq!(unseen(&way.client.run(|| fate_in_pod(&by_kernel).unwrap())), [""; 0]);
    // Another process of the node may send: only what is for all of them is said.
    assert_eq!(unseen(&way.client.run(|| fate(&sent).unwrap())), [""; 0]);
    drop((connect, egress));
    assert_eq!(unseen(&way.client.run(|| fate_in_pod(&sent).unwrap())), [""; 0]);
}

#[test]
fn programs_of_each_stage_of_a_connection_are_named_where_they_matter() {
    let Some(way) = Way::start("stages") else { return };
    let Some(group) = Group::make(&way, "stages") else { return };
    let place = std::fs::File::open(&group.path).unwrap();
    let target = place.as_raw_fd().cast_unsigned();
    let Some(create) = attached(SOCKET_CREATE, "creates", target) else { return };
    let Some(operations) = attached(SOCKET_OPERATIONS, "operates", target) else { return };
    let Some(receive) = attached(RECEIVE4, "receives", target) else { return };
    let in_pod = |request: &_| named(&way.client.run(|| fate_in_pod(request).unwrap()));
    let is_named = |found: &[String], places: &[&str]| {
        found.len() == places.len() && found.iter().zip(places).all(|(found, place)| found.contains(place))
    };
    let found = in_pod(&request(FateOrigin::Sent, BACKEND, 80));
    assert!(is_named(&found, &["creates (id N) at sock_create of", "operates (id N) at sock_ops of"]), "{found:?}");
    let mut received = request(FateOrigin::Received(FateInterfaceKey::Name("eth0".into())), CLIENT, 80);
    received.source = Some(BACKEND.parse().unwrap());
    let found = in_pod(&received);
    assert!(is_named(&found, &["operates (id N) at sock_ops of"]), "{found:?}");
    // A datagram is no connection, and has a sender that may be told otherwise.
    received.transport = FateTransport::Udp { source_port: Some(40_000), destination_port: Some(53) };
    let found = in_pod(&received);
    assert!(is_named(&found, &["receives (id N) at recvmsg4 of"]), "{found:?}");
    received.by_kernel = true;
    assert_eq!(in_pod(&received), [""; 0]);
    drop((create, operations, receive));
}

#[test]
fn programs_that_probes_do_not_pass_are_named() {
    let Some(way) = Way::start("bypassed") else { return };
    let Some(group) = Group::make(&way, "bypassed") else { return };
    let place = std::fs::File::open(&group.path).unwrap();
    let Some(connect) = attached(CONNECT4, "cil_sock4_connect", place.as_raw_fd().cast_unsigned()) else { return };
    let Some(egress) = attached(GROUP_EGRESS, "theirs", place.as_raw_fd().cast_unsigned()) else { return };
    let look = |pid: u32, ports| forwarding::bypassed(Path::new("/proc"), &[pid], ports, &|_| false).unwrap();
    let bypassed = |pid: u32, ports| look(pid, ports).at_group;
    let pod = group.process.id();
    let found = bypassed(pod, true);
    assert_eq!((look(pod, true).group, look(pod, true).elsewhere), (Some(group.path.clone()), Vec::new()));
    assert_eq!(found.len(), 2, "{found:?}");
    let tells = |name: &str, place: &str, remedy: &str| {
        found.iter().any(|one| one.contains(name) && one.contains(place) && one.contains(remedy))
    };
    assert!(tells("cil_sock4_conne", "at connect4 of control group /", "cilium-dbg"), "{found:?}");
    assert!(tells("theirs", "at egress of control group /", "bpftool"), "{found:?}");
    assert_eq!(bypassed(pod, false).len(), 1, "an echo is no connection");
    assert_eq!(bypassed(std::process::id(), true), [""; 0], "what this process passes, its probes pass");
    drop((connect, egress));
    assert_eq!(look(pod, true), Bypassed::default());
}

#[test]
fn a_program_that_chooses_the_socket_is_named() {
    let Some(way) = Way::start("lookup") else { return };
    let namespace = std::fs::File::open(way.node.path()).unwrap();
    let Some(link) = attached(SOCKET_LOOKUP, "choose", namespace.as_raw_fd().cast_unsigned()) else { return };
    let found = named(&way.received(NODE, 80));
    assert!(found.contains(&"BPF program choose (id N) at the lookup of sockets".to_owned()), "{found:?}");
    assert_eq!(unseen(&way.received(BACKEND, 80)), [""; 0], "what is forwarded needs no socket");
    drop(link);
}

/// A bpffs of its own, for programs that tc attaches by their path.
struct BpfFilesystem {
    folder: tempfile::TempDir,
}

impl BpfFilesystem {
    fn mount() -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let status = Command::new("mount").args(["-t", "bpf", "none"]).arg(folder.path()).status();
        if status.is_ok_and(|status| status.success()) {
            return Some(Self { folder });
        }
        lab::skip("cannot mount a bpffs");
        None
    }
}

impl Drop for BpfFilesystem {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.folder.path()).status();
    }
}

/// A group of the cgroup v2 tree in another one, with a process of the client's namespace.
struct Group {
    path: PathBuf,
    process: Child,
}

impl Group {
    fn make(way: &Way, role: &str) -> Option<Self> {
        let mounts = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];
        let Some(root) = mounts.iter().find(|path| Path::new(path).join("cgroup.controllers").exists()) else {
            lab::skip("no cgroup v2 tree");
            return None;
        };
        let path = Path::new(root).join(format!("ndtest-{}-{role}/inner", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        let process = way.client.run(|| Command::new("sleep").arg("600").spawn().unwrap());
        std::fs::write(path.join("cgroup.procs"), process.id().to_string()).unwrap();
        Some(Self { path, process })
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let outer = self.path.parent().map(Path::to_owned);
        for path in [Some(self.path.clone()), outer].into_iter().flatten() {
            // The process leaves its group a moment after it ended.
            for _ in 0..50 {
                if std::fs::remove_dir(&path).is_ok() {
                    break;
                }
                std::thread::sleep(std::time::Duration::from_millis(4));
            }
        }
    }
}
