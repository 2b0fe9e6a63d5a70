//! What this kernel and these rights allow, and the remedy for what they do not.
//!
//! Rights and kernel do not change while a process runs: they are looked at once. Memory, load and the certificate are
//! added to each answer.

use std::path::Path;

use netdiag_common::observation::preflight::{Check, Preflight};
use nix::sys::socket::SockProtocol;

use crate::attribution::KubeletRoot;
use crate::host::netlink::Netlink;
use crate::host::{Host, file, process};
use crate::netns::own_cookie;

/// A capability and what cannot be seen without it.
pub struct Right {
    pub name: &'static str,
    /// Number in linux/capability.h.
    pub bit: u8,
    pub lost: &'static str,
}

/// All capabilities that the agent uses, and nothing else: the manifests and the docs follow this table.
pub const RIGHTS: [Right; 8] = [
    // The folder /proc/PID/fd is its user's alone (mode 0500).
    Right {
        name: "DAC_READ_SEARCH",
        bit: 2,
        lost: "which process holds a socket, and its open files, of programs that do not run as root",
    },
    Right { name: "NET_ADMIN", bit: 12, lost: "packet filter rules, service rules, connection tracking statistics" },
    Right { name: "NET_RAW", bit: 13, lost: "probes by ICMP" },
    Right {
        name: "SYS_PTRACE",
        bit: 19,
        lost: "which namespace a pod uses, which process holds a socket, resolv.conf of pods",
    },
    Right { name: "SYS_ADMIN", bit: 21, lost: "everything inside pods' namespaces: sockets, routes, rules, probes" },
    Right { name: "SYSLOG", bit: 34, lost: "names of the kernel functions that dropped packets" },
    Right { name: "PERFMON", bit: 38, lost: "packets dropped by the kernel" },
    Right { name: "BPF", bit: 39, lost: "packets dropped by the kernel" },
];

/// Ways to ask the kernel, and what cannot be read without them.
const NETLINK: [(SockProtocol, &str, &str); 4] = [
    (SockProtocol::NetlinkRoute, "netlink route", "links, addresses, routes and neighbours"),
    (SockProtocol::NetlinkSockDiag, "netlink sock_diag", "listening sockets, their queues and limits"),
    (SockProtocol::NetlinkGeneric, "netlink generic", "standard counters of NICs, peers of WireGuard"),
    (SockProtocol::NetlinkNetFilter, "netlink netfilter", "packet filter rules and connection tracking"),
];

const STATUS_BYTES: u64 = 64 * 1024;

/// The checks that hold for the life of this process.
#[derive(Debug, Clone)]
pub struct Fixed {
    kernel: String,
    checks: Vec<Check>,
}

impl Fixed {
    pub fn read(host: &Host, programs: Vec<Check>) -> Self {
        let kernel = nix::sys::utsname::uname()
            .map_or_else(|_| String::new(), |name| name.release().to_string_lossy().into_owned());
        let status = file::text(&host.proc.join("self/status"), STATUS_BYTES).unwrap_or_default();
        let effective = effective_capabilities(&status).unwrap_or(0);
        let mut checks: Vec<Check> = RIGHTS.iter().map(|right| capability(right, effective)).collect();
        checks.extend(NETLINK.map(|(protocol, name, lost)| netlink(protocol, name, lost)));
        checks.push(btf());
        checks.extend(programs);
        checks.push(whole_node(&host.proc));
        checks.push(cookie());
        checks.push(cgroup(host));
        Self { kernel, checks }
    }
}

impl From<Fixed> for Preflight {
    fn from(fixed: Fixed) -> Self {
        Self { kernel: fixed.kernel, checks: fixed.checks, ..Self::default() }
    }
}

/// Memory of this process now, from the second field of `/proc/self/statm`.
pub fn resident_bytes(proc: &Path) -> u64 {
    const STATM_BYTES: u64 = 256;
    let text = file::text(&proc.join("self/statm"), STATM_BYTES).unwrap_or_default();
    let pages: u64 = text.split(' ').nth(1).and_then(|pages| pages.parse().ok()).unwrap_or(0);
    let page_bytes = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten().unwrap_or(4096);
    pages * u64::try_from(page_bytes).unwrap_or(4096)
}

fn capability(right: &Right, effective: u64) -> Check {
    let name = format!("capability {}", right.name);
    if effective >> right.bit & 1 == 1 {
        passed(&name, "effective")
    } else {
        let remedy = format!("add {} to securityContext.capabilities.add of the agent", right.name);
        missed(&name, "not effective", right.lost, &remedy)
    }
}

/// `CapEff` of /proc/self/status.
fn effective_capabilities(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

fn netlink(protocol: SockProtocol, name: &str, lost: &str) -> Check {
    match Netlink::open(protocol) {
        Ok(_) => passed(name, "opens"),
        Err(error) => missed(
            name,
            &error.to_string(),
            lost,
            "use a kernel with this netlink family, and a seccomp profile that allows it",
        ),
    }
}

fn btf() -> Check {
    let path = Path::new("/sys/kernel/btf/vmlinux");
    match file::open(path) {
        Ok(_) => passed("btf", "/sys/kernel/btf/vmlinux"),
        Err(error) => missed(
            "btf",
            &error.to_string(),
            "packets dropped by the kernel",
            "use a kernel with CONFIG_DEBUG_INFO_BTF=y, and mount /sys into the agent",
        ),
    }
}

fn whole_node(proc: &Path) -> Check {
    match process::sees_whole_node(proc) {
        Ok(()) => passed("host processes", "visible"),
        Err(error) => missed(
            "host processes",
            &error.to_string(),
            "every pod but the agent's own: their namespaces, sockets and probes",
            "set hostPID: true in the agent's pod",
        ),
    }
}

fn cookie() -> Check {
    match own_cookie() {
        Some(cookie) => passed("namespace cookies", &format!("own is {cookie}")),
        None => missed(
            "namespace cookies",
            "SO_NETNS_COOKIE is not known",
            "telling apart a namespace from an older one with the same number",
            "use Linux 5.14 or newer",
        ),
    }
}

fn cgroup(host: &Host) -> Check {
    let detail = match KubeletRoot::of(host) {
        KubeletRoot::Given(root) => format!("{root} as given"),
        KubeletRoot::Own(root) if root.is_empty() => "/ as the agent's own pod".to_owned(),
        KubeletRoot::Own(root) => format!("{root} as the agent's own pod"),
        KubeletRoot::Unknown => "unknown: pods are those that a veth of this node leads to".to_owned(),
    };
    passed("cgroup root", &detail)
}

fn passed(name: &str, detail: &str) -> Check {
    Check { name: name.to_owned(), ok: true, detail: detail.to_owned(), lost: String::new(), remedy: String::new() }
}

fn missed(name: &str, detail: &str, lost: &str, remedy: &str) -> Check {
    Check {
        name: name.to_owned(),
        ok: false,
        detail: detail.to_owned(),
        lost: lost.to_owned(),
        remedy: remedy.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_capability_says_what_is_lost() {
        let effective = effective_capabilities("Name:\tx\nCapEff:\t0000000000001000\n").unwrap();
        let checks: Vec<Check> = RIGHTS.iter().map(|right| capability(right, effective)).collect();
        assert_eq!(checks.iter().filter(|check| check.ok).count(), 1);
        assert!(checks[1].ok && checks[1].name == "capability NET_ADMIN");
        assert!(checks.iter().all(|check| check.ok || !(check.lost.is_empty() || check.remedy.is_empty())));
    }

    #[test]
    fn this_process_uses_some_memory() {
        assert!(resident_bytes(Path::new("/proc")) > 100_000);
    }
}
