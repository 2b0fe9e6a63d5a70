//! The node's systemd-networkd: its start from /proc, its settings and the links that it manages from its files, as its own process
//! sees them.
//!
//! Its files are read through /proc/PID/root, so that neither a mount nor an option is needed.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use jiff::{SignedDuration, Timestamp};
use netdiag_common::observation::kubelet::{Setting, SettingFrom};
use netdiag_common::observation::networkd::Networkd;

use super::{ReadError, file, process};
use crate::clock;

const PROGRAM: &str = "systemd-networkd";
/// What the kernel keeps of a process's name: 15 bytes (`TASK_COMM_LEN`).
const NAME: &str = "systemd-network";
const MAX_COMMAND_BYTES: u64 = 64 * 1024;
const MAX_STAT_BYTES: u64 = 4 * 1024;
const MAX_FILE_BYTES: u64 = 64 * 1024;
/// Looked at in each folder; a node has a link for each of some hundred pods.
const MAX_NAMES: usize = 4_096;
/// Clock ticks of /proc in a second: `USER_HZ`, which is 100 wherever agents run (include/asm-generic/param.h).
const TICKS: u64 = 100;

/// Where its configuration may be; the first goes before the others (networkd.conf(5)).
const FOLDERS: [&str; 4] = ["/etc/systemd", "/run/systemd", "/usr/local/lib/systemd", "/usr/lib/systemd"];
/// One file for each link, called by its index.
const LINKS: &str = "/run/systemd/netif/links";
/// Written for links that are managed (`link_save` of src/network/networkd-state-file.c).
const MANAGED: &str = "NETWORK_FILE=";

/// Of the node whose network namespace has the inode `netns`. None when it does not run there.
pub(crate) fn read(proc: &Path, netns: u64) -> Result<Option<Networkd>, ReadError> {
    process::sees_whole_node(proc)?;
    for pid in process::pids(proc)? {
        if process::name(proc, pid).as_deref() != Some(NAME) {
            continue;
        }
        // One inside a pod manages none of this node's links.
        if !process::is_in_netns(proc, pid, netns)? || process::pod(proc, pid).is_some() {
            continue;
        }
        let command = file::text_if_there(&proc.join(format!("{pid}/cmdline")), MAX_COMMAND_BYTES)?;
        let program = command.as_deref().and_then(|command| command.split('\0').next()).unwrap_or_default();
        if program.rsplit('/').next() != Some(PROGRAM) {
            continue;
        }
        let stat = file::text_if_there(&proc.join(format!("{pid}/stat")), MAX_STAT_BYTES)?;
        // It has ended meanwhile.
        let Some(stat) = stat else { continue };
        let Some(ticks) = start_ticks(&stat) else {
            let why = "it has no start time".to_owned();
            return Err(ReadError::Malformed { what: format!("/proc/{pid}/stat"), why });
        };
        return found(started(ticks), &proc.join(format!("{pid}/root"))).map(Some);
    }
    Ok(None)
}

/// Field 22 (proc_pid_stat(5)); the name before may hold anything.
fn start_ticks(stat: &str) -> Option<u64> {
    let (_, after) = stat.rsplit_once(')')?;
    after.split_whitespace().nth(19)?.parse().ok()
}

/// By the node's clock as it goes now: ticks are counted from boot on.
fn started(ticks: u64) -> Timestamp {
    let since_boot_ns = ticks.saturating_mul(1_000_000_000 / TICKS);
    let age = SignedDuration::from_nanos(clock::boottime_ns().saturating_sub(since_boot_ns).cast_signed());
    let now = clock::now();
    now.checked_sub(age).unwrap_or(now)
}

fn found(started: Timestamp, root: &Path) -> Result<Networkd, ReadError> {
    let usual = Setting { value: true, from: SettingFrom::Default };
    let mut found =
        Networkd { started, removes_routes: usual.clone(), removes_rules: usual, links: managed_links(root)? };
    for path in configuration(root)? {
        if let Some(text) = text(root, &path)? {
            take(&mut found, &path, &text);
        }
    }
    Ok(found)
}

/// Its files in the order in which they are read: the first main file, then additions by their names.
fn configuration(root: &Path) -> Result<Vec<String>, ReadError> {
    let mut paths = Vec::new();
    let mut additions = BTreeMap::new();
    for folder in FOLDERS {
        let main = format!("{folder}/networkd.conf");
        if paths.is_empty() && text(root, &main)?.is_some() {
            paths.push(main);
        }
        let folder = format!("{folder}/networkd.conf.d");
        for name in file::names_below(root, &folder, MAX_NAMES)?.unwrap_or_default() {
            if Path::new(&name).extension().is_some_and(|end| end == "conf") {
                let path = format!("{folder}/{name}");
                additions.entry(name).or_insert(path);
            }
        }
    }
    paths.extend(additions.into_values());
    Ok(paths)
}

/// None also for a link to /dev/null, which hides a file of the same name elsewhere, and for what is no text.
fn text(root: &Path, path: &str) -> Result<Option<String>, ReadError> {
    match file::text_below(root, path, MAX_FILE_BYTES) {
        Err(ReadError::File { source, .. }) if source.kind() == io::ErrorKind::InvalidData => Ok(None),
        found => found,
    }
}

/// What is no boolean is left out, as systemd does.
fn take(found: &mut Networkd, path: &str, text: &str) {
    let mut section = "";
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            section = name;
        }
        let Some((key, value)) = line.split_once('=').filter(|_| section == "Network") else { continue };
        let setting = match key.trim() {
            "ManageForeignRoutes" => &mut found.removes_routes,
            "ManageForeignRoutingPolicyRules" => &mut found.removes_rules,
            _ => continue,
        };
        if let Some(value) = boolean(value.trim()) {
            *setting = Setting { value, from: SettingFrom::File { path: path.to_owned() } };
        }
    }
}

/// `parse_boolean` of src/basic/parse-util.c.
fn boolean(word: &str) -> Option<bool> {
    match word.to_ascii_lowercase().as_str() {
        "1" | "yes" | "y" | "true" | "t" | "on" => Some(true),
        "0" | "no" | "n" | "false" | "f" | "off" => Some(false),
        _ => None,
    }
}

fn managed_links(root: &Path) -> Result<Vec<u32>, ReadError> {
    let mut links = Vec::new();
    for name in file::names_below(root, LINKS, MAX_NAMES)?.unwrap_or_default() {
        let Ok(index) = name.parse() else { continue };
        let state = text(root, &format!("{LINKS}/{name}"))?.unwrap_or_default();
        if state.lines().any(|line| line.starts_with(MANAGED)) {
            links.push(index);
        }
    }
    links.sort_unstable();
    Ok(links)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is found below a root with these files.
    fn read_with(files: &[(&str, &str)]) -> Networkd {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        found(Timestamp::UNIX_EPOCH, root.path()).unwrap()
    }

    fn from(path: &str) -> SettingFrom {
        SettingFrom::File { path: path.to_owned() }
    }

    #[test]
    fn without_any_file_everything_is_removed() {
        let found = read_with(&[]);
        assert_eq!(found.removes_routes, Setting { value: true, from: SettingFrom::Default });
        assert!(found.removes_rules.value && found.links.is_empty());
    }

    #[test]
    fn additions_go_before_the_main_file_and_etc_before_lib() {
        let found = read_with(&[
            ("etc/systemd/networkd.conf", "[Network]\n#ManageForeignRoutes=no\nManageForeignRoutingPolicyRules = no\n"),
            ("usr/lib/systemd/networkd.conf", "[Network]\nManageForeignRoutes=no\n"),
            ("usr/lib/systemd/networkd.conf.d/10-a.conf", "[Network]\nManageForeignRoutes=no\n"),
            ("etc/systemd/networkd.conf.d/10-a.conf", "[DHCPv4]\nManageForeignRoutes=no\n"),
            ("usr/lib/systemd/networkd.conf.d/20-b.conf", "[Network]\nManageForeignRoutingPolicyRules=TRUE\n"),
            ("usr/lib/systemd/networkd.conf.d/30-c", "[Network]\nManageForeignRoutes=no\n"),
        ]);
        assert_eq!(found.removes_routes, Setting { value: true, from: SettingFrom::Default });
        let path = "/usr/lib/systemd/networkd.conf.d/20-b.conf";
        assert_eq!(found.removes_rules, Setting { value: true, from: from(path) });
    }

    #[test]
    fn what_is_no_boolean_is_left_out() {
        let text = "[Network]\nManageForeignRoutes=no\nManageForeignRoutes=maybe\n";
        let found = read_with(&[("run/systemd/networkd.conf", text)]);
        assert_eq!(found.removes_routes, Setting { value: false, from: from("/run/systemd/networkd.conf") });
    }

    #[test]
    fn links_with_a_network_file_are_managed() {
        let found = read_with(&[
            ("run/systemd/netif/links/1", "ADMIN_STATE=unmanaged\nOPER_STATE=carrier\n"),
            ("run/systemd/netif/links/12", "ADMIN_STATE=configured\nNETWORK_FILE=/etc/systemd/network/a.network\n"),
            ("run/systemd/netif/links/2", "ADMIN_STATE=configured\nNETWORK_FILE=/run/systemd/network/b.network\n"),
        ]);
        assert_eq!(found.links, [2, 12]);
    }

    #[test]
    fn start_is_found_behind_any_name() {
        let numbers: Vec<String> = (4..=52).map(|field| field.to_string()).collect();
        let stat = format!("7 (a) b (c) S {}", numbers.join(" "));
        assert_eq!(start_ticks(&stat), Some(22));
        assert_eq!(start_ticks("7 (a) S 1"), None);
        let own = started(start_ticks(&file::text(Path::new("/proc/self/stat"), MAX_STAT_BYTES).unwrap()).unwrap());
        let age = clock::now().duration_since(own);
        assert!(age >= SignedDuration::ZERO - SignedDuration::from_secs(1), "{age:?}");
    }
}
