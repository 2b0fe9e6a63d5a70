//! A kubelet's DNS settings, found through its process: by its flags and by its file as its own mounts show it.

use netdiag_common::observation::Observation;
use netdiag_common::observation::kubelet::{Kubelet, SettingFrom};
use netdiag_common::{Need, Reading, Topic};

use crate::fake::{FakeDaemon, wait_for};
use crate::lab::{self, Agent, NODE, Namespace};

/// None while there is no such process.
fn settings(agent: &Agent) -> Option<Kubelet> {
    match agent.read(&Need::host(NODE, Topic::Kubelet)) {
        Reading::Seen { value: Observation::Kubelet(found), .. } => Some(found),
        Reading::Absent { .. } => None,
        other => panic!("{other:?}"),
    }
}

#[test]
fn settings_are_read_as_the_kubelet_sees_them() {
    if !lab::can_run() {
        return;
    }
    let node = Namespace::new("kubelet");
    let folder = tempfile::tempdir().unwrap();
    let file = "kind: KubeletConfiguration\nclusterDNS: [10.96.0.99]\nclusterDomain: cluster.local\n";
    std::fs::write(folder.path().join("kubelet.yaml"), file).unwrap();

    let agent = Agent::of_node(&node, &lab::kubelet_root("kubelet"));
    assert_eq!(settings(&agent), None, "kubelets of other nodes are none of this one");
    let flags = "--config=/mnt/kubelet.yaml --cluster-domain corp.example";
    let _kubelet = FakeDaemon::start(&node, "kubelet", folder.path(), (".", "/mnt"), flags);
    let found = wait_for("kubelet", || settings(&agent));
    assert_eq!(found.cluster_dns.value, ["10.96.0.99".parse::<std::net::IpAddr>().unwrap()]);
    assert_eq!(found.cluster_dns.from, SettingFrom::File { path: "/mnt/kubelet.yaml".to_owned() });
    assert_eq!(found.cluster_domain.value, "corp.example");
    assert_eq!(found.cluster_domain.from, SettingFrom::Flag { name: "--cluster-domain".to_owned() });
    assert_eq!(
        (found.resolv_conf.value.as_str(), &found.resolv_conf.from),
        ("/etc/resolv.conf", &SettingFrom::Default)
    );
}
