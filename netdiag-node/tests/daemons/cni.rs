//! A container runtime's network configurations, found through its process: in its own mounts, where its configuration says.

use netdiag_common::observation::Observation;
use netdiag_common::observation::cni::Cni;
use netdiag_common::{Need, Reading, Topic};

use crate::fake::{FakeDaemon, wait_for};
use crate::lab::{self, Agent, NODE, Namespace};

/// None until the process is there: then the folder is that of process 1, which not every machine lets a test look at.
fn of_runtime(agent: &Agent) -> Option<Cni> {
    match agent.read(&Need::host(NODE, Topic::Cni)) {
        Reading::Seen { value: Observation::Cni(found), .. } => found.runtime.is_some().then_some(found),
        Reading::Absent { .. } | Reading::Unavailable { .. } => None,
        other => panic!("{other:?}"),
    }
}

#[test]
fn folder_of_the_runtime_is_read_as_the_runtime_sees_it() {
    if !lab::can_run() {
        return;
    }
    let node = Namespace::new("cni");
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("net.d")).unwrap();
    let network = |name: &str, kind: &str| {
        format!(r#"{{"cniVersion": "1.0.0", "name": "{name}", "plugins": [{{"type": "{kind}"}}]}}"#)
    };
    std::fs::write(folder.path().join("net.d/10-pods.conflist"), network("pods", "ptp")).unwrap();
    std::fs::write(folder.path().join("net.d/05-other.conflist"), network("other", "bridge")).unwrap();
    let configuration = "version = 3\n[plugins.'io.containerd.cri.v1.runtime'.cni]\nconf_dir = \"/mnt\"\n";
    std::fs::write(folder.path().join("config.toml"), configuration).unwrap();

    let agent = Agent::of_node(&node, &lab::kubelet_root("cni"));
    assert_eq!(of_runtime(&agent), None, "runtimes of other nodes are none of this one");
    let (at, shown) = (folder.path(), ("net.d", "/mnt"));
    let flags = format!("--config {}/config.toml", at.display());
    let _runtime = FakeDaemon::start(&node, "containerd", at, shown, &flags);
    let found = wait_for("runtime", || of_runtime(&agent));
    assert_eq!((found.runtime.as_deref(), found.folder.as_str()), (Some("containerd"), "/mnt"));
    let names: Vec<&str> = found.files.iter().map(|file| file.name.as_str()).collect();
    assert_eq!(names, ["05-other.conflist", "10-pods.conflist"]);
    let (file, taken) = found.taken().unwrap();
    assert_eq!((file.name.as_str(), taken.main_plugin().unwrap().kind.as_str()), ("05-other.conflist", "bridge"));
}
