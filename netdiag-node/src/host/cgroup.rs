//! Which pod and container a process belongs to, from `/proc/PID/cgroup`, and where the groups of all pods are.
//!
//! Layouts of the kubelet (`pkg/kubelet/cm/pod_container_manager_linux.go`), with cgroup v1 and v2:
//! - driver cgroupfs: `ROOT/kubepods/[burstable|besteffort]/podUID/CONTAINER`
//! - driver systemd: `ROOT/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podUID.slice/RUNTIME-CONTAINER.scope`

use std::fs::File;
use std::io::Write as _;
use std::path::Path;

use super::{ReadError, file};

/// A pod's UID: an RFC 4122 UUID, or the 32 hexadecimal digits that the kubelet gives to static pods.
const UID_LENGTHS: [usize; 2] = [36, 32];
/// Digits of a container id, for containerd, CRI-O and dockershim alike (SHA-256).
const CONTAINER_ID_LENGTH: usize = 64;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodCgroup {
    /// With dashes, as the API server knows it.
    pub pod_uid: String,
    /// None for a process in the pod's own group (a sandbox or shim of some runtimes).
    pub container_id: Option<String>,
    /// What is above `kubepods`, without a slash at the end: empty on an ordinary node. None when the path is relative to a cgroup
    /// namespace that hides it (`/../../podUID/…`).
    pub root: Option<String>,
}

/// The first line that tells a pod: cgroup v1 has one line per controller, all with the same path under the kubelet.
pub fn parse(text: &str) -> Option<PodCgroup> {
    text.lines().find_map(|line| parse_path(line.splitn(3, ':').nth(2)?))
}

fn parse_path(path: &str) -> Option<PodCgroup> {
    let mut root = None;
    let mut above = String::new();
    // containerd that disagrees with the kubelet about the driver writes `POD.slice:cri-containerd:CONTAINER`.
    let mut parts = path.split(['/', ':']).filter(|part| !part.is_empty());
    while let Some(part) = parts.next() {
        if root.is_none() && is_kubepods(part) {
            root = Some(above.clone());
        }
        if let Some(pod_uid) = pod_uid(part) {
            let container_id = parts.find_map(container_id);
            return Some(PodCgroup { pod_uid, container_id, root });
        }
        above.push('/');
        above.push_str(part);
    }
    None
}

/// A process's group of one controller, and its pod's group above.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// From the hierarchy's root: `/kubepods/podUID`.
    pub pod: String,
    /// The same for the container; none for a process in the pod's own group.
    pub container: Option<(String, String)>,
}

/// The group for `controller`: on cgroup v2 (no controller's name in the line), or on v1 where it has a hierarchy. The
/// second value tells v1 by its hierarchy's name: `cpu,cpuacct`.
pub fn group(text: &str, controller: &str) -> Option<(Group, Option<String>)> {
    let mut unified = None;
    for line in text.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else { continue };
        if controllers.is_empty() {
            unified = parse_group(path);
        } else if controllers.split(',').any(|name| name == controller) {
            return Some((parse_group(path)?, Some(controllers.to_owned())));
        }
    }
    Some((unified?, None))
}

fn parse_group(path: &str) -> Option<Group> {
    let mut end = 0;
    let mut pod = None;
    for part in path.split('/') {
        end += part.len();
        match &pod {
            None if pod_uid(part).is_some() => pod = Some(path[..end].to_owned()),
            Some(pod) => {
                if let Some(id) = container_id(part) {
                    return Some(Group { pod: pod.clone(), container: Some((id, path[..end].to_owned())) });
                }
            }
            None => {}
        }
        end += 1;
    }
    Some(Group { pod: pod?, container: None })
}

/// `kubepods`, `kubepods.slice`, and with a cgroup root `ROOT-kubepods.slice`.
fn is_kubepods(part: &str) -> bool {
    let name = part.strip_suffix(".slice").unwrap_or(part);
    name == "kubepods" || name.ends_with("-kubepods")
}

fn pod_uid(part: &str) -> Option<String> {
    let name = part.strip_suffix(".slice").unwrap_or(part);
    let uid = match name.strip_prefix("pod") {
        Some(uid) => uid,
        None => name.rsplit_once("-pod")?.1,
    };
    // systemd reserves the dash in slice names, so the kubelet writes underscores there.
    let uid = uid.replace('_', "-");
    let plausible = UID_LENGTHS.contains(&uid.len()) && uid.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-');
    plausible.then_some(uid)
}

/// `CONTAINER`, `cri-containerd-CONTAINER.scope`, `crio-CONTAINER.scope`, `docker-CONTAINER.scope`.
fn container_id(part: &str) -> Option<String> {
    let name = part.strip_suffix(".scope").unwrap_or(part);
    let id = name.rsplit_once('-').map_or(name, |(_, id)| id);
    (id.len() == CONTAINER_ID_LENGTH && id.bytes().all(|b| b.is_ascii_hexdigit())).then(|| id.to_owned())
}

/// A group of the cgroup v2 tree, to attach programs to.
pub(crate) struct Attachable {
    pub(crate) group: File,
    /// Whether it holds pods alone; else every process of the machine is below.
    pub(crate) is_pods: bool,
}

/// Moves the calling process into a group of the cgroup v2 tree. Needs `CAP_SYS_ADMIN` or that the files are its user's, and a cgroup
/// namespace that shows both groups.
pub(crate) fn join(folder: &Path) -> Result<(), ReadError> {
    // Never made where there is none: outside a cgroup tree that would be a plain file.
    let opened = std::fs::OpenOptions::new().write(true).open(folder.join("cgroup.procs"));
    // 0 is whoever writes (`cgroup_procs_write_start`, kernel/cgroup/cgroup.c).
    opened
        .and_then(|mut processes| processes.write_all(b"0"))
        .map_err(|source| ReadError::Call { step: "enter it".to_owned(), source })
}

/// The group above all pods of the kubelet with this cgroup root. The tree's root where the kubelet keeps no groups there
/// (cgroup v1, or no kubelet).
pub(crate) fn pods(kubelet_root: &str) -> Result<Attachable, ReadError> {
    let root = root()?;
    let attachable = |path: &Path, is_pods| Ok(Attachable { group: file::open(path)?, is_pods });
    let below = root.join(kubelet_root.trim_start_matches('/'));
    // The name depends on the kubelet's driver and root; where none can be listed there is none.
    let names =
        std::fs::read_dir(&below).into_iter().flatten().filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    match names.filter(|name| is_kubepods(name)).min() {
        Some(name) => attachable(&below.join(name), true),
        None => attachable(root, false),
    }
}

/// The root of the cgroup v2 tree, where every process's group is below, also of those that cgroup v1 manages.
///
/// Mounted at one of the usual places; in a container these may show the container's own group, which is no root. Then
/// process 1 sees it.
pub(crate) fn root() -> Result<&'static Path, ReadError> {
    const MOUNTS: [&str; 4] = [
        "/sys/fs/cgroup",
        "/sys/fs/cgroup/unified",
        "/proc/1/root/sys/fs/cgroup",
        "/proc/1/root/sys/fs/cgroup/unified",
    ];
    // Every group has a type, except the root (Documentation/admin-guide/cgroup-v2.rst).
    let is_root = |path: &&&str| {
        let path = Path::new(path);
        path.join("cgroup.controllers").exists() && !path.join("cgroup.type").exists()
    };
    match MOUNTS.iter().find(is_root) {
        Some(path) => Ok(Path::new(*path)),
        None => {
            Err(ReadError::Unsupported { feature: "cgroup v2 tree mounted, as a whole, at /sys/fs/cgroup".to_owned() })
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd as _;

    use super::*;

    const UID: &str = "0f6d6c5e-2a5f-4f43-9b0c-1b2f4a1d9e77";
    const SYSTEMD_UID: &str = "0f6d6c5e_2a5f_4f43_9b0c_1b2f4a1d9e77";
    const ID: &str = "3f1c0d9e8b7a695847362514039281706f5e4d3c2b1a09f8e7d6c5b4a3928170";

    #[test]
    fn layouts_of_kubelets_and_runtimes() {
        let cases = [
            (format!("4:memory:/nd/n1/kubepods/burstable/pod{UID}/{ID}"), Some("/nd/n1"), true),
            (format!("0::/kubepods/pod{UID}/{ID}"), Some(""), true),
            (
                format!(
                    "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{SYSTEMD_UID}.slice/cri-containerd-{ID}.scope"
                ),
                Some(""),
                true,
            ),
            (format!("0::/kubepods.slice/kubepods-pod{SYSTEMD_UID}.slice/crio-{ID}.scope/container"), Some(""), true),
            (
                format!(
                    "0::/docker/{ID}/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice/kubelet-kubepods-besteffort-pod{SYSTEMD_UID}.slice/docker-{ID}.scope"
                ),
                Some(&*format!("/docker/{ID}/kubelet.slice")),
                true,
            ),
            (
                format!(
                    "3:cpu:/system.slice/containerd.service/kubepods-burstable-pod{SYSTEMD_UID}.slice:cri-containerd:{ID}"
                ),
                None,
                true,
            ),
            (format!("0::/../../pod{UID}/{ID}"), None, true),
            (format!("0::/kubepods/besteffort/pod{UID}"), Some(""), false),
        ];
        for (line, root, has_container) in cases {
            let found = parse(&line).unwrap_or_else(|| panic!("no pod in {line}"));
            assert_eq!(found.pod_uid, UID, "{line}");
            assert_eq!(found.root.as_deref(), root, "{line}");
            assert_eq!(found.container_id.as_deref(), has_container.then_some(ID), "{line}");
        }
    }

    #[test]
    fn programs_go_to_the_pods_of_one_kubelet_or_to_all_processes() {
        let Ok(root) = root() else {
            return eprintln!(
                "netdiag-skip: programs_go_to_the_pods_of_one_kubelet_or_to_all_processes: no cgroup v2 tree"
            );
        };
        let kubelet = format!("netdiag-cgroup-{}", std::process::id());
        let pods_of = |group: &str| {
            let found = pods(group).unwrap();
            (std::fs::read_link(format!("/proc/self/fd/{}", found.group.as_raw_fd())).unwrap(), found.is_pods)
        };
        let nothing = (root.to_owned(), false);
        assert_eq!(pods_of(&kubelet), nothing, "no such kubelet");
        let group = root.join(&kubelet).join("kubepods.slice");
        if let Err(error) = std::fs::create_dir_all(&group) {
            return eprintln!("netdiag-skip: programs_go_to_the_pods_of_one_kubelet_or_to_all_processes: {error}");
        }
        let found = pods_of(&format!("/{kubelet}"));
        std::fs::remove_dir(&group).unwrap();
        let without = pods_of(&kubelet);
        std::fs::remove_dir(root.join(&kubelet)).unwrap();
        assert_eq!(found, (group, true));
        assert_eq!(without, nothing);
    }

    #[test]
    fn groups_of_both_versions() {
        let container = format!("/kubepods/burstable/pod{UID}/{ID}");
        let v1 = format!("4:cpu,cpuacct:{container}\n3:memory:/other\n0::/unified\n");
        let (found, hierarchy) = group(&v1, "cpu").unwrap();
        assert_eq!(found.pod, format!("/kubepods/burstable/pod{UID}"));
        assert_eq!(found.container, Some((ID.to_owned(), container)));
        assert_eq!(hierarchy.as_deref(), Some("cpu,cpuacct"));
        assert_eq!(group(&v1, "memory"), None, "not in a pod there");
        let scope = format!("/kubepods.slice/kubepods-pod{SYSTEMD_UID}.slice/crio-{ID}.scope");
        let (found, hierarchy) = group(&format!("0::{scope}/container\n"), "memory").unwrap();
        assert_eq!((found.container.unwrap().1, hierarchy), (scope, None));
        assert_eq!(group("0::/kubepods/besteffort/podx", "cpu"), None);
    }

    #[test]
    fn processes_of_the_machine_belong_to_no_pod() {
        let text = "9:name=systemd:/\n4:memory:/process_api/a05e30e65b0872c507e36894bfb03c4d\n0::/\n";
        for line in [text, "0::/system.slice/kubelet.service", "0::/user.slice/podman-1234.scope", "", "x", "1:2"] {
            assert_eq!(parse(line), None, "{line}");
        }
    }

    #[test]
    fn static_pods_have_a_uid_without_dashes() {
        let found = parse("0::/kubepods/burstable/pod8a2bd6f4b9e0c1d2a3f4e5d6c7b8a990").unwrap();
        assert_eq!(found.pod_uid, "8a2bd6f4b9e0c1d2a3f4e5d6c7b8a990");
    }

    #[test]
    fn later_controllers_are_looked_at_too() {
        let found = parse(&format!("9:name=systemd:/\n4:memory:/nd/n1/kubepods/pod{UID}/{ID}\n")).unwrap();
        assert_eq!(found.pod_uid, UID);
    }
}
