//! The sysctls that decide about forwarding, from /proc/sys.
//!
//! /proc/sys/net shows the network namespace of the thread that opens it, whatever mount it comes from.

use std::collections::BTreeMap;
use std::path::Path;

use netdiag_common::observation::sysctl::Sysctls;

use super::{ReadError, file};

/// Below /proc/sys. Of settings that hold where `all` or the interface has them (`IN_DEV_MAXCONF`, `IN_DEV_ORCONF` in
/// include/linux/inetdevice.h), `all` is read, and the interfaces' own only of [`PER_INTERFACE`].
const SINGLE: [&str; 13] = [
    "net/ipv4/ip_forward",
    "net/ipv4/ip_local_port_range",
    "net/ipv4/conf/all/accept_local",
    "net/ipv4/conf/all/arp_announce",
    "net/ipv4/conf/all/arp_filter",
    "net/ipv4/conf/all/arp_ignore",
    "net/ipv4/conf/all/src_valid_mark",
    "net/ipv6/conf/all/forwarding",
    "net/ipv6/conf/all/disable_ipv6",
    "net/bridge/bridge-nf-call-iptables",
    "net/bridge/bridge-nf-call-ip6tables",
    "net/netfilter/nf_conntrack_max",
    "net/netfilter/nf_conntrack_tcp_be_liberal",
];
/// Below /proc/sys/net/ipv4/conf/INTERFACE; also for `all` and `default`.
const PER_INTERFACE: [&str; 3] = ["forwarding", "rp_filter", "route_localnet"];
/// As many as links are listed.
const MAX_INTERFACES: usize = 4_096;
const VALUE_BYTES: u64 = 256;

/// The calling thread's namespace.
pub(crate) fn read(proc: &Path) -> Result<Sysctls, ReadError> {
    let sys = proc.join("sys");
    let mut values = BTreeMap::new();
    let mut note = |path: &str| -> Result<(), ReadError> {
        if let Some(text) = file::text_if_there(&sys.join(path), VALUE_BYTES)? {
            values.insert(name(path), parse(&text));
        }
        Ok(())
    };
    for path in SINGLE {
        note(path)?;
    }
    for interface in file::names(&sys.join("net/ipv4/conf"), MAX_INTERFACES)? {
        for key in PER_INTERFACE {
            note(&format!("net/ipv4/conf/{interface}/{key}"))?;
        }
    }
    Ok(Sysctls { values })
}

/// Several numbers are separated by tabs in /proc/sys and by spaces everywhere else.
fn parse(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// sysctl(8) swaps dots and slashes, so that the interface `eth0.10` becomes `eth0/10`.
fn name(path: &str) -> String {
    path.chars()
        .map(|c| match c {
            '/' => '.',
            '.' => '/',
            other => other,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_sysctl() {
        assert_eq!(name("net/ipv4/conf/eth0.10/rp_filter"), "net.ipv4.conf.eth0/10.rp_filter");
    }

    #[test]
    fn ranges_are_separated_by_one_space() {
        assert_eq!(parse("32768\t60999\n"), "32768 60999");
    }

    #[test]
    fn this_machine_knows_whether_it_forwards() {
        let sysctls = read(Path::new("/proc")).unwrap();
        assert!(matches!(sysctls.values["net.ipv4.ip_forward"].as_str(), "0" | "1"));
        assert!(sysctls.values.contains_key("net.ipv4.conf.lo.rp_filter"));
        assert!(sysctls.values.contains_key("net.ipv4.conf.all.arp_ignore"));
    }
}
