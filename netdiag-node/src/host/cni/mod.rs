//! The container runtime's folder of CNI network configurations, as the runtime sees it: through /proc/PID/root of its own
//! process, so that neither a mount nor an option is needed.
//!
//! Which runtime it is, and where its folder is: a process named `containerd` or `crio` of the node's network namespace. Of
//! containerd's configuration `conf_dir` is read, but no files that it imports; CRI-O and others are taken to use the usual folder.

mod parse;

use std::path::{Path, PathBuf};

use netdiag_common::observation::cni::{Cni, CniContent, CniFile};

use super::{ReadError, file, process};

/// Without `conf_dir` (containerd `pkg/cri/config`, CRI-O `network_dir`, and cri-dockerd's `--cni-conf-dir`).
const USUAL_FOLDER: &str = "/etc/cni/net.d";
/// containerd's `--config` when none is given.
const CONTAINERD_CONFIGURATION: &str = "/etc/containerd/config.toml";
const MAX_CONFIGURATION_BYTES: u64 = 256 * 1024;
/// A network's configuration is at most some KiB.
const MAX_FILE_BYTES: u64 = 64 * 1024;
/// Looked at in the folder: plugins keep binaries' kubeconfigs and backups beside their configurations.
const MAX_NAMES: usize = 1024;
const MAX_FILES: usize = 64;
const MAX_COMMAND_BYTES: u64 = 64 * 1024;
/// What libcni's `ConfFiles` is asked for.
const EXTENSIONS: [&str; 3] = ["conf", "conflist", "json"];

/// Where a runtime's folder is.
struct Runtime {
    name: Option<String>,
    /// `/proc/PID/root`.
    root: PathBuf,
    folder: String,
}

/// Of the node whose network namespace has the inode `netns`. None when there is no such folder.
pub(crate) fn read(proc: &Path, netns: u64) -> Result<Option<Cni>, ReadError> {
    process::sees_whole_node(proc)?;
    let runtime = match runtime(proc, netns)? {
        Some(found) => found,
        None => Runtime { name: None, root: root(proc, 1), folder: USUAL_FOLDER.to_owned() },
    };
    let Some((files, omitted)) = read_folder(&runtime.root, &runtime.folder)? else { return Ok(None) };
    Ok(Some(Cni { folder: runtime.folder, runtime: runtime.name, files, omitted }))
}

/// The first runtime of the node that connects pods. An error when there is one that may not be looked at.
fn runtime(proc: &Path, netns: u64) -> Result<Option<Runtime>, ReadError> {
    for pid in process::pids(proc)? {
        let Some(name) = process::name(proc, pid).filter(|name| matches!(name.as_str(), "containerd" | "crio")) else {
            continue;
        };
        // One inside a pod connects none of this node's.
        if !process::is_in_netns(proc, pid, netns)? || process::pod(proc, pid).is_some() {
            continue;
        }
        let root = root(proc, pid);
        let folder = match name.as_str() {
            "containerd" => containerd_folder(proc, pid, &root)?,
            _ => Some(USUAL_FOLDER.to_owned()),
        };
        if let Some(folder) = folder {
            return Ok(Some(Runtime { name: Some(name), root, folder }));
        }
    }
    Ok(None)
}

fn root(proc: &Path, pid: u32) -> PathBuf {
    proc.join(format!("{pid}/root"))
}

/// None when this containerd starts no pods, as Docker's own.
fn containerd_folder(proc: &Path, pid: u32, root: &Path) -> Result<Option<String>, ReadError> {
    let command = file::text(&proc.join(format!("{pid}/cmdline")), MAX_COMMAND_BYTES)?;
    let path = parse::configuration_of(&command).unwrap_or(CONTAINERD_CONFIGURATION);
    let Some(text) = file::text_below(root, path, MAX_CONFIGURATION_BYTES)? else {
        return Ok(Some(USUAL_FOLDER.to_owned()));
    };
    let found = parse::containerd(&text);
    Ok(found.starts_pods.then(|| found.folder.unwrap_or_else(|| USUAL_FOLDER.to_owned())))
}

/// Its files in the runtime's order, and how many were left out. None when there is no such folder.
fn read_folder(root: &Path, folder: &str) -> Result<Option<(Vec<CniFile>, u64)>, ReadError> {
    let Some(mut names) = file::names_below(root, folder, MAX_NAMES)? else { return Ok(None) };
    names.retain(|name| Path::new(name).extension().is_some_and(|own| EXTENSIONS.iter().any(|known| own == *known)));
    names.sort_unstable();
    let omitted = names.len().saturating_sub(MAX_FILES) as u64;
    names.truncate(MAX_FILES);
    let mut files = Vec::new();
    for name in names {
        let content = match file::text_below(root, &format!("{folder}/{name}"), MAX_FILE_BYTES) {
            // Gone since its name was read.
            Ok(None) => continue,
            Ok(Some(text)) => match parse::network(&name, &text) {
                Ok(network) => CniContent::Network(network),
                Err(why) => CniContent::Unusable { why },
            },
            Err(error) => CniContent::Unusable { why: error.to_string() },
        };
        files.push(CniFile { name, content });
    }
    Ok(Some((files, omitted)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_come_in_the_order_of_their_names() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("etc/cni/net.d");
        std::fs::create_dir_all(folder.join("20-folder.conf")).unwrap();
        for (name, text) in [
            ("10-pods.conflist", r#"{"cniVersion": "1.0.0", "name": "pods", "plugins": [{"type": "ptp"}]}"#),
            ("05-old.conf", r#"{"name": "old", "type": "bridge"}"#),
            ("05-old.conf.bak", "x"),
            ("99-broken.json", "{"),
            ("calico-kubeconfig", "x"),
        ] {
            std::fs::write(folder.join(name), text).unwrap();
        }
        let (files, omitted) = read_folder(root.path(), "/etc/cni/net.d").unwrap().unwrap();
        let names: Vec<&str> = files.iter().map(|file| file.name.as_str()).collect();
        assert_eq!((names, omitted), (vec!["05-old.conf", "10-pods.conflist", "20-folder.conf", "99-broken.json"], 0));
        assert_eq!(files[0].network().unwrap().name, "old");
        assert!(matches!(&files[2].content, CniContent::Unusable { why } if why.contains("not a regular file")));
        assert!(files[3].network().is_none());
    }

    #[test]
    fn without_a_folder_there_is_none() {
        let root = tempfile::tempdir().unwrap();
        assert!(read_folder(root.path(), "/etc/cni/net.d").unwrap().is_none());
    }

    #[test]
    fn link_of_a_file_stays_below_the_runtimes_root() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("run/cni")).unwrap();
        std::fs::write(root.path().join("run/cni/pods"), r#"{"name": "pods", "type": "ptp"}"#).unwrap();
        std::os::unix::fs::symlink("/run/cni/pods", root.path().join("10-pods.conf")).unwrap();
        let (files, _) = read_folder(root.path(), "/").unwrap().unwrap();
        assert_eq!(files[0].network().unwrap().name, "pods");
    }
}
