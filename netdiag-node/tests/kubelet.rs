//! A kubelet's DNS settings, found through its process: by its flags and by its file as its own mounts show it.

#![expect(clippy::unwrap_used, reason = "the helpers of these tests too")]

mod lab;

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use lab::{Agent, NODE, Namespace};
use netdiag_common::observation::Observation;
use netdiag_common::observation::kubelet::{Kubelet, SettingFrom};
use netdiag_common::{Need, Reading, Topic};

/// A process named `kubelet` in the node's network namespace that sees `folder` as `/mnt`.
struct Process(Child);

impl Process {
    fn start(node: &Namespace, folder: &Path) -> Self {
        // A shell that waits for the end of its input, by another name: what the kernel calls a process is its file's name.
        std::fs::copy("/bin/sh", folder.join("kubelet")).unwrap();
        std::fs::write(folder.join("wait"), "read line\n").unwrap();
        let at = folder.display();
        let flags = "--config=/mnt/kubelet.yaml --cluster-domain corp.example";
        let script = format!("mount --bind {at} /mnt; exec /mnt/kubelet /mnt/wait {flags}");
        let netns = format!("--net={}", node.path().display());
        let child = Command::new("nsenter")
            .args([netns.as_str(), "unshare", "--mount", "--propagation=private", "sh", "-ec", &script])
            .stdin(Stdio::piped())
            .spawn();
        Self(child.unwrap())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

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
    let _process = Process::start(&node, folder.path());
    let started = Instant::now();
    let found = loop {
        if let Some(found) = settings(&agent) {
            break found;
        }
        assert!(started.elapsed() < Duration::from_secs(30), "no kubelet is found");
        std::thread::sleep(Duration::from_millis(50));
    };
    assert_eq!(found.cluster_dns.value, ["10.96.0.99".parse::<std::net::IpAddr>().unwrap()]);
    assert_eq!(found.cluster_dns.from, SettingFrom::File { path: "/mnt/kubelet.yaml".to_owned() });
    assert_eq!(found.cluster_domain.value, "corp.example");
    assert_eq!(found.cluster_domain.from, SettingFrom::Flag { name: "--cluster-domain".to_owned() });
    assert_eq!(
        (found.resolv_conf.value.as_str(), &found.resolv_conf.from),
        ("/etc/resolv.conf", &SettingFrom::Default)
    );
}
