//! The DNS settings of the node's kubelet, from its command line and its configuration files as its own process sees them.
//!
//! Its files are read through /proc/PID/root, so that neither a mount nor an option is needed. A kubelet that is a part of another
//! process (k3s, for example) has no process of its own, and none is found. Folders within the folder of `--config-dir` are not
//! entered.

mod parse;

use std::path::Path;

use netdiag_common::observation::kubelet::{Kubelet, Setting, SettingFrom};

use super::{ReadError, file, process};

const MAX_COMMAND_BYTES: u64 = 64 * 1024;
const MAX_FILE_BYTES: u64 = 256 * 1024;
/// Looked at in the folder of `--config-dir`.
const MAX_NAMES: usize = 1024;
/// What a file there must end with (cmd/kubelet/app/server.go, `mergeKubeletConfigurations`, 1.28).
const EXTENSION: &str = "conf";
/// `ResolvConfDefault` (pkg/kubelet/types/constants.go).
const USUAL_RESOLV_CONF: &str = "/etc/resolv.conf";

/// Of the node whose network namespace has the inode `netns`. None when no kubelet runs there.
pub(crate) fn read(proc: &Path, netns: u64) -> Result<Option<Kubelet>, ReadError> {
    process::sees_whole_node(proc)?;
    for pid in process::pids(proc)? {
        if process::name(proc, pid).as_deref() != Some("kubelet") {
            continue;
        }
        // One inside a pod starts none of this node's.
        if !process::is_in_netns(proc, pid, netns)? || process::pod(proc, pid).is_some() {
            continue;
        }
        let command = file::text_if_there(&proc.join(format!("{pid}/cmdline")), MAX_COMMAND_BYTES)?;
        // It ended, or is in the middle of execve(), where it has its name already and no words yet.
        let Some(command) = command.filter(|command| !command.is_empty()) else { continue };
        return settings(&command, &proc.join(format!("{pid}/root"))).map(Some);
    }
    Ok(None)
}

fn settings(command: &str, root: &Path) -> Result<Kubelet, ReadError> {
    let flags = parse::flags(command);
    let mut found = Kubelet {
        resolv_conf: Setting { value: USUAL_RESOLV_CONF.to_owned(), from: SettingFrom::Default },
        ..Kubelet::default()
    };
    if let Some(path) = flags.config {
        let Some(text) = file::text_below(root, absolute(path)?, MAX_FILE_BYTES)? else {
            return Err(malformed(path, "there is no such file".to_owned()));
        };
        take(&mut found, path, &text)?;
    }
    if let Some(folder) = flags.config_dir {
        let mut names = file::names_below(root, absolute(folder)?, MAX_NAMES)?.unwrap_or_default();
        names.retain(|name| Path::new(name).extension().is_some_and(|own| own == EXTENSION));
        names.sort_unstable();
        for name in names {
            let path = format!("{folder}/{name}");
            if let Some(text) = file::text_below(root, &path, MAX_FILE_BYTES)? {
                take(&mut found, &path, &text)?;
            }
        }
    }
    if let Some(words) = flags.cluster_dns {
        set_dns(&mut found, words, &SettingFrom::Flag { name: "--cluster-dns".to_owned() });
    }
    let flag = |name: &str, value: &str| Setting {
        value: value.to_owned(),
        from: SettingFrom::Flag { name: name.to_owned() },
    };
    if let Some(domain) = flags.cluster_domain {
        found.cluster_domain = flag("--cluster-domain", domain);
    }
    if let Some(path) = flags.resolv_conf {
        found.resolv_conf = flag("--resolv-conf", path);
    }
    Ok(found)
}

/// The kubelet makes a relative path absolute by the folder it was started in, which it may have left since.
fn absolute(path: &str) -> Result<&str, ReadError> {
    if path.starts_with('/') {
        return Ok(path);
    }
    Err(malformed(
        path,
        "it is relative to a folder that is not known; start the kubelet with an absolute path".to_owned(),
    ))
}

fn take(found: &mut Kubelet, path: &str, text: &str) -> Result<(), ReadError> {
    let file = parse::file(text).map_err(|why| malformed(path, why))?;
    let from = SettingFrom::File { path: path.to_owned() };
    if let Some(words) = file.cluster_dns {
        set_dns(found, words, &from);
    }
    if let Some(value) = file.cluster_domain {
        found.cluster_domain = Setting { value, from: from.clone() };
    }
    if let Some(value) = file.resolv_conf {
        found.resolv_conf = Setting { value, from };
    }
    Ok(())
}

/// All of what an earlier file or the file said is replaced.
fn set_dns(found: &mut Kubelet, words: Vec<String>, from: &SettingFrom) {
    found.cluster_dns = Setting { value: Vec::new(), from: from.clone() };
    found.unusable.clear();
    for word in words {
        match word.parse() {
            Ok(address) => found.cluster_dns.value.push(address),
            Err(_) => found.unusable.push(word),
        }
    }
}

fn malformed(path: &str, why: String) -> ReadError {
    ReadError::Malformed { what: format!("the kubelet's configuration {path}"), why }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    /// `/config.yaml` below a root, and what a kubelet with these flags takes from it.
    fn read_with(flags: &[&str], files: &[(&str, &str)]) -> Result<Kubelet, ReadError> {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("more")).unwrap();
        for (name, text) in files {
            std::fs::write(root.path().join(name), text).unwrap();
        }
        settings(&format!("/usr/bin/kubelet\0{}\0", flags.join("\0")), root.path())
    }

    fn addresses(found: &Kubelet) -> Vec<String> {
        found.cluster_dns.value.iter().map(IpAddr::to_string).collect()
    }

    #[test]
    fn file_says_what_pods_get() {
        let text = "kind: KubeletConfiguration\nclusterDNS: [10.96.0.10, fd00::a, dns]\nclusterDomain: corp.example\n";
        let found = read_with(&["--config=/config.yaml"], &[("config.yaml", text)]).unwrap();
        assert_eq!(addresses(&found), ["10.96.0.10", "fd00::a"]);
        assert_eq!(found.unusable, ["dns"]);
        assert_eq!(found.cluster_dns.from, SettingFrom::File { path: "/config.yaml".to_owned() });
        assert_eq!(found.cluster_domain.value, "corp.example");
        assert_eq!(
            (found.resolv_conf.value.as_str(), &found.resolv_conf.from),
            ("/etc/resolv.conf", &SettingFrom::Default)
        );
    }

    #[test]
    fn without_any_word_there_is_no_server() {
        let found = read_with(&["--v=2"], &[]).unwrap();
        assert!(found.cluster_dns.value.is_empty() && found.cluster_domain.value.is_empty());
        assert_eq!(found.cluster_dns.from, SettingFrom::Default);
    }

    #[test]
    fn flags_go_before_files_and_later_files_before_earlier() {
        let files = [
            ("config.yaml", "clusterDNS: [10.96.0.10]\nclusterDomain: a\n"),
            ("more/20-b.conf", "clusterDomain: c\nresolvConf: \"\"\n"),
            ("more/10-a.conf", "{\"clusterDomain\": \"b\", \"clusterDNS\": [\"10.96.0.11\"]}"),
            ("more/30-c.yaml", "clusterDomain: d\n"),
        ];
        let config = ["--config", "/config.yaml", "--config-dir=/more"];
        let found = read_with(&config, &files).unwrap();
        assert_eq!((addresses(&found), found.cluster_domain.value.as_str()), (vec!["10.96.0.11".to_owned()], "c"));
        assert_eq!(found.resolv_conf.value, "");
        let flags = ["--cluster_dns=10.0.0.1,10.0.0.2", "--cluster-dns", "10.0.0.3", "--resolv-conf=/run/resolv.conf"];
        let found = read_with(&[config.as_slice(), flags.as_slice()].concat(), &files).unwrap();
        assert_eq!(addresses(&found), ["10.0.0.1", "10.0.0.2", "10.0.0.3"]);
        assert_eq!(found.cluster_dns.from, SettingFrom::Flag { name: "--cluster-dns".to_owned() });
        assert_eq!(found.resolv_conf.value, "/run/resolv.conf");
    }

    #[test]
    fn what_cannot_be_read_is_no_default() {
        let error = |flags: &[&str], text| read_with(flags, &[("config.yaml", text)]).unwrap_err().to_string();
        assert!(error(&["--config=config.yaml"], "").contains("absolute path"));
        assert!(error(&["--config=/other.yaml"], "").contains("/other.yaml"));
        assert!(error(&["--config=/config.yaml"], "clusterDNS: 10.96.0.10").contains("clusterDNS"));
        assert!(error(&["--config=/config.yaml"], "clusterDNS: [").contains("/config.yaml"));
    }
}
