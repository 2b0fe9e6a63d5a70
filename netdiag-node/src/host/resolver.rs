//! `resolv.conf` and `hosts` as a pod sees them, read through /proc/PID/root: no mount namespace is entered.

use std::net::IpAddr;
use std::path::Path;

use netdiag_common::observation::resolver::{HostsEntry, Resolver, Zone};

use super::{ReadError, file};

const RESOLV_CONF: &str = "etc/resolv.conf";
const HOSTS: &str = "etc/hosts";
/// Kubernetes allows 2048 characters of search list; a pod may write what it likes.
const MAX_BYTES: u64 = 64 * 1024;
/// Lines of hosts that are kept. The kubelet writes some ten and the pod's hostAliases.
const MAX_HOSTS: usize = 500;
/// resolv.conf(5): "The default for n is 1".
const DEFAULT_NDOTS: u8 = 1;

/// From the first of these processes that has one. None when all of them have none.
pub(crate) fn read(proc: &Path, pids: &[u32]) -> Result<Option<Resolver>, ReadError> {
    let mut last_error = None;
    for pid in pids {
        let root = proc.join(format!("{pid}/root"));
        match file::text_below(&root, RESOLV_CONF, MAX_BYTES) {
            Ok(Some(text)) => {
                let hosts = file::text_below(&root, HOSTS, MAX_BYTES);
                return Ok(Some(with_hosts(parse(&text), hosts)));
            }
            // The process ended, or its container has no such file: a pause image, for example.
            Ok(None) => {}
            Err(error) => last_error = Some(error),
        }
    }
    match last_error {
        Some(error) => Err(error),
        None => Ok(None),
    }
}

/// The node's. Process 1 is the node's with hostPID; where it may not be looked at, the agent's own file is the node's too.
pub(crate) fn read_node(proc: &Path) -> Result<Option<Resolver>, ReadError> {
    match read(proc, &[1]) {
        Ok(Some(found)) => Ok(Some(found)),
        Ok(None) | Err(_) => read_own(),
    }
}

/// As the agent itself sees it: with `dnsPolicy: Default` in its pod, that is the node's.
fn read_own() -> Result<Option<Resolver>, ReadError> {
    let Some(text) = file::text_if_there(Path::new("/etc/resolv.conf"), MAX_BYTES)? else { return Ok(None) };
    Ok(Some(with_hosts(parse(&text), file::text_if_there(Path::new("/etc/hosts"), MAX_BYTES))))
}

fn with_hosts(mut resolver: Resolver, read: Result<Option<String>, ReadError>) -> Resolver {
    match read {
        Ok(text) => {
            let mut entries = text.as_deref().into_iter().flat_map(str::lines).filter_map(host);
            resolver.hosts = entries.by_ref().take(MAX_HOSTS).collect();
            let left = entries.count();
            if left > 0 {
                resolver.hosts_unseen = format!("{left} lines of /etc/hosts beyond the first {MAX_HOSTS}");
            }
        }
        Err(error) => resolver.hosts_unseen = format!("/etc/hosts: {error}"),
    }
    resolver
}

/// hosts(5): an address, a canonical name and aliases; what is no such line is passed over, as glibc does.
fn host(line: &str) -> Option<HostsEntry> {
    let mut words = line.split('#').next()?.split_whitespace();
    let (address, _) = address(words.next()?)?;
    let names: Vec<String> = words.map(str::to_owned).collect();
    (!names.is_empty()).then_some(HostsEntry { address, names })
}

/// resolv.conf(5): the last of several `search` or `domain` lines counts, options add up.
fn parse(text: &str) -> Resolver {
    let mut found = Resolver { ndots: DEFAULT_NDOTS, ..Resolver::default() };
    for line in text.lines() {
        let line = line.split(['#', ';']).next().unwrap_or_default();
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => {
                let Some((server, zone)) = words.next().and_then(address) else { continue };
                let zone = zone.map(|name| Zone { nameserver: found.nameservers.len(), name: name.to_owned() });
                found.zones.extend(zone);
                found.nameservers.push(server);
            }
            Some("search" | "domain") => found.search = words.map(str::to_owned).collect(),
            Some("options") => {
                for option in words {
                    match option.strip_prefix("ndots:").map(str::parse) {
                        Some(Ok(ndots)) => found.ndots = ndots,
                        _ => found.options.push(option.to_owned()),
                    }
                }
            }
            _ => {}
        }
    }
    found
}

/// An address, and the interface that stands behind it where one does: `fe80::1%eth0`.
fn address(word: &str) -> Option<(IpAddr, Option<&str>)> {
    match word.split_once('%') {
        // IPv4 has no zones: glibc passes over such a line.
        Some((address, zone)) => Some((IpAddr::V6(address.parse().ok()?), Some(zone).filter(|zone| !zone.is_empty()))),
        None => Some((word.parse().ok()?, None)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kubelet_writes() {
        let text =
            "search shop.svc.cluster.local svc.cluster.local cluster.local\nnameserver 10.96.0.10\noptions ndots:5\n";
        let found = parse(text);
        assert_eq!(found.nameservers, ["10.96.0.10".parse::<IpAddr>().unwrap()]);
        assert_eq!(found.search, ["shop.svc.cluster.local", "svc.cluster.local", "cluster.local"]);
        assert_eq!((found.ndots, found.options.len()), (5, 0));
    }

    #[test]
    fn defaults_comments_and_later_lines() {
        let text = "; written by hand\ndomain a.example\nsearch b.example c.example # the last counts\nnameserver x\nnameserver 10.0.0.1%eth0\nnameserver fd00::1\nnameserver fe80::1%eth0\nnameserver fe80::2%\noptions timeout:1 attempts:2\n";
        let found = parse(text);
        assert_eq!(found.search, ["b.example", "c.example"]);
        assert_eq!(found.nameservers, ["fd00::1", "fe80::1", "fe80::2"].map(|one| one.parse::<IpAddr>().unwrap()));
        assert_eq!([0, 1, 2, 3].map(|place| found.zone(place)), [None, Some("eth0"), None, None]);
        assert_eq!((found.ndots, found.options), (1, vec!["timeout:1".to_owned(), "attempts:2".to_owned()]));
    }

    #[test]
    fn hosts_are_names_of_addresses() {
        let text = "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n10.0.0.9 db.example db # hostAliases\n::1 localhost\nx y\n10.0.0.8\n";
        let found = with_hosts(Resolver::default(), Ok(Some(text.to_owned())));
        assert_eq!((found.hosts.len(), found.hosts_unseen.as_str()), (3, ""));
        assert_eq!(found.in_hosts("DB"), ["10.0.0.9".parse::<IpAddr>().unwrap()]);
        assert_eq!(found.in_hosts("localhost").len(), 2);
        assert!(found.in_hosts("example").is_empty());
    }

    #[test]
    fn hosts_that_were_not_all_read_say_so() {
        let long = "10.0.0.1 a\n".repeat(MAX_HOSTS + 7);
        let found = with_hosts(Resolver::default(), Ok(Some(long)));
        assert_eq!(found.hosts.len(), MAX_HOSTS);
        assert!(found.hosts_unseen.starts_with("7 lines"), "{}", found.hosts_unseen);
        assert!(with_hosts(Resolver::default(), Ok(None)).hosts_unseen.is_empty());
        let source = std::io::Error::from(std::io::ErrorKind::PermissionDenied);
        let failed = ReadError::File { path: "/proc/1/root/etc/hosts".into(), source };
        assert!(with_hosts(Resolver::default(), Err(failed)).hosts_unseen.contains("/etc/hosts"));
    }

    #[test]
    fn link_cannot_leave_the_container() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("etc")).unwrap();
        std::os::unix::fs::symlink("/etc/hostname", folder.path().join(RESOLV_CONF)).unwrap();
        let error = file::open_below(folder.path(), RESOLV_CONF).unwrap_err();
        assert!(matches!(error, ReadError::File { source, .. } if source.kind() == std::io::ErrorKind::NotFound));
        std::fs::write(folder.path().join("etc/hostname"), "inside").unwrap();
        assert!(file::open_below(folder.path(), RESOLV_CONF).is_ok());
    }

    #[test]
    fn pipe_does_not_block_the_reader() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("etc")).unwrap();
        nix::unistd::mkfifo(&folder.path().join(RESOLV_CONF), nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(file::open_below(folder.path(), RESOLV_CONF).unwrap_err().to_string().contains("not a regular file"));
    }

    #[test]
    fn own_process_has_the_file_of_this_machine() {
        let found = read(Path::new("/proc"), &[u32::MAX, std::process::id()]).unwrap();
        assert_eq!(found.is_some(), Path::new("/etc/resolv.conf").exists());
    }

    /// What lines are made of, and what stands where it does not belong.
    fn word() -> impl proptest::strategy::Strategy<Value = &'static str> {
        let words =
            "nameserver |search |domain |options |ndots:|255|256|-1|10.0.0.1|fd00::1|fe80::1%|eth0|%|#|;| |\t|\n";
        proptest::sample::select(words.split('|').collect::<Vec<_>>())
    }

    /// Nothing is told that was not in the text, and every zone is that of a server.
    fn keeps_within(text: &str) {
        let found = with_hosts(parse(text), Ok(Some(text.to_owned())));
        let lines = text.lines().count();
        assert!(found.nameservers.len() <= lines && found.hosts.len() <= lines.min(MAX_HOSTS), "{found:?}");
        assert!(found.zones.iter().all(|zone| zone.nameserver < found.nameservers.len()), "{found:?}");
        let told = found.search.iter().chain(&found.options).chain(found.zones.iter().map(|zone| &zone.name));
        assert!(told.map(String::len).sum::<usize>() <= text.len(), "{found:?}");
        let names = found.hosts.iter().flat_map(|entry| &entry.names);
        assert!(names.map(String::len).sum::<usize>() <= text.len(), "{found:?}");
    }

    proptest::proptest! {
        #[test]
        fn any_text_ends(text in "(?s).{0,400}") {
            keeps_within(&text);
        }

        #[test]
        fn any_words_end(words in proptest::collection::vec(word(), 0..60)) {
            keeps_within(&words.concat());
        }
    }
}
