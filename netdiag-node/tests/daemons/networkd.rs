//! systemd-networkd, found through its process: its start, and its settings and links as its own mounts show them.

use netdiag_common::observation::Observation;
use netdiag_common::observation::kubelet::SettingFrom;
use netdiag_common::observation::networkd::Networkd;
use netdiag_common::{Need, Reading, Topic};

use crate::fake::{FakeDaemon, wait_for};
use crate::lab::{self, Agent, NODE, Namespace};

/// None while there is no such process.
fn found(agent: &Agent) -> Option<Networkd> {
    match agent.read(&Need::host(NODE, Topic::Networkd)) {
        Reading::Seen { value: Observation::Networkd(found), .. } => Some(found),
        Reading::Absent { .. } => None,
        other => panic!("{other:?}"),
    }
}

#[test]
fn networkd_is_read_as_it_sees_its_files() {
    if !lab::can_run() {
        return;
    }
    let node = Namespace::new("networkd");
    let folder = tempfile::tempdir().unwrap();
    let (additions, links) = (folder.path().join("systemd/networkd.conf.d"), folder.path().join("systemd/netif/links"));
    std::fs::create_dir_all(&additions).unwrap();
    std::fs::create_dir_all(&links).unwrap();
    // By its name behind whatever this machine has.
    std::fs::write(additions.join("zz-rules.conf"), "[Network]\nManageForeignRoutingPolicyRules=no\n").unwrap();
    std::fs::write(links.join("2"), "NETWORK_FILE=/run/systemd/network/a.network\n").unwrap();
    std::fs::write(links.join("3"), "ADMIN_STATE=unmanaged\n").unwrap();

    let agent = Agent::of_node(&node, &lab::kubelet_root("networkd"));
    assert_eq!(found(&agent), None, "that of another node is none of this one");
    let _networkd = FakeDaemon::start(&node, "systemd-networkd", folder.path(), (".", "/run"), "");
    let found = wait_for("systemd-networkd", || found(&agent));
    assert!(!found.removes_rules.value);
    let path = "/run/systemd/networkd.conf.d/zz-rules.conf".to_owned();
    assert_eq!(found.removes_rules.from, SettingFrom::File { path });
    assert_eq!(found.links, [2]);
}
