//! Our lookup held against this machine's own glibc: the same name servers are asked the same questions in the same order, and
//! the program is told the same.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::process::Command;
use std::sync::{Arc, Mutex};

use netdiag_common::observation::resolver::{HostsEntry, Resolver, Zone};
use netdiag_common::observation::series::dns::{DnsAsking, DnsType};
use netdiag_common::observation::series::{DnsProbe, Probe};

use crate::dns::{good, name_of, negative, record_type};
use crate::host::Host;
use crate::support::skipped;
use crate::way::report;

/// Prints getaddrinfo's code by its number in netdb.h, 0 for success, and the addresses behind it.
const PROGRAM: &str = "
import socket, sys
try:
    found = socket.getaddrinfo(sys.argv[1], 80, type=socket.SOCK_STREAM)
    print(0, *sorted(set(one[4][0] for one in found)))
except socket.gaierror as error:
    print(error.errno)
";

/// Server, name, type.
type Question = (String, String, u8);
type Asked = Arc<Mutex<Vec<Question>>>;

struct Case {
    options: &'static str,
    servers: &'static [&'static str],
    name: &'static str,
}

/// What a server does with a question: by its address, so that one lab serves all cases.
fn respond(server: &str, query: &[u8]) -> Option<Vec<u8>> {
    let (name, kind) = (name_of(query), record_type(query));
    let has = |names: &[&str]| names.contains(&name.as_str());
    match server {
        // Knows some names: one of a domain, one of both types, one of IPv4 alone, one without any address.
        "127.0.0.1" => Some(match kind {
            _ if has(&["web.shop.svc.cluster.local", "both.example", "a.b.c.d.e.f"]) => good(query),
            1 if has(&["four.example"]) => good(query),
            _ if has(&["four.example", "none.example", "none.example.svc.cluster.local"]) => negative(query, 0),
            _ => negative(query, 3),
        }),
        ZONED => Some(good(query)),
        "127.0.0.2" => Some(negative(query, 2)),
        "127.0.0.3" => Some(negative(query, 5)),
        "127.0.0.4" => None,
        // Fails for the search list alone.
        "127.0.0.5" => Some(if has(&["both.example"]) { good(query) } else { negative(query, 2) }),
        // Answers one type only, and says nothing to the other.
        "127.0.0.6" => (kind == 1).then(|| good(query)),
        "127.0.0.7" => Some(negative(query, 1)),
        // SERVFAIL for one type of two.
        "127.0.0.8" => Some(if kind == 1 { good(query) } else { negative(query, 2) }),
        _ => Some(if kind == 1 { negative(query, 0) } else { negative(query, 2) }),
    }
}

/// Only servers that say nothing have a short timeout: a busy machine is no silent one.
const CASES: &[Case] = &[
    Case { options: "ndots:5", servers: &["127.0.0.1"], name: "web" },
    Case { options: "ndots:5", servers: &["127.0.0.1"], name: "both.example" },
    Case { options: "ndots:1", servers: &["127.0.0.1"], name: "both.example" },
    Case { options: "ndots:5", servers: &["127.0.0.1"], name: "both.example." },
    Case { options: "ndots:5", servers: &["127.0.0.1"], name: "a.b.c.d.e.f" },
    Case { options: "ndots:5", servers: &["127.0.0.1"], name: "four.example" },
    Case { options: "ndots:5", servers: &["127.0.0.1"], name: "none.example" },
    Case { options: "ndots:1", servers: &["127.0.0.1"], name: "none.example" },
    Case { options: "ndots:5", servers: &["127.0.0.1"], name: "nowhere.example" },
    Case { options: "ndots:2", servers: &["127.0.0.1"], name: "a.b.nowhere" },
    Case { options: "ndots:5 single-request", servers: &["127.0.0.1"], name: "web" },
    Case { options: "ndots:5 single-request-reopen", servers: &["127.0.0.1"], name: "web" },
    Case { options: "ndots:5 attempts:1", servers: &["127.0.0.2"], name: "both.example" },
    Case { options: "ndots:1 attempts:2", servers: &["127.0.0.2"], name: "both.example" },
    Case { options: "ndots:1", servers: &["127.0.0.3", "127.0.0.1"], name: "both.example" },
    Case { options: "ndots:5 attempts:1", servers: &["127.0.0.3"], name: "both.example" },
    Case { options: "ndots:1 timeout:2 attempts:1", servers: &["127.0.0.4", "127.0.0.1"], name: "both.example" },
    Case { options: "ndots:5 timeout:2 attempts:1", servers: &["127.0.0.4"], name: "both.example" },
    Case { options: "ndots:5 attempts:1", servers: &["127.0.0.5"], name: "both.example" },
    Case { options: "ndots:1 timeout:2 attempts:1", servers: &["127.0.0.6"], name: "both.example" },
    Case { options: "ndots:1 attempts:1", servers: &["127.0.0.7"], name: "both.example" },
    Case { options: "ndots:1 attempts:1", servers: &["127.0.0.8"], name: "both.example" },
    Case { options: "ndots:1 attempts:1", servers: &["127.0.0.9"], name: "both.example" },
    Case { options: "ndots:1", servers: &["127.0.0.10", "127.0.0.1"], name: "both.example" },
    Case { options: "ndots:5", servers: &["127.0.0.10"], name: "both.example" },
    Case { options: "ndots:1", servers: &[ZONED], name: "both.example" },
    Case { options: "ndots:1", servers: &["fe80::53", "127.0.0.1"], name: "both.example" },
    Case { options: "ndots:1", servers: &["fe80::53%nowhere", "127.0.0.1"], name: "both.example" },
    Case { options: "ndots:5", servers: &["127.0.0.1"], name: "pinned.example" },
    Case { options: "ndots:5", servers: &["127.0.0.1"], name: "PINNED" },
    Case { options: "ndots:5", servers: &["127.0.0.1"], name: "pinned.example." },
    Case { options: "ndots:5", servers: &["127.0.0.1"], name: "six.pinned.example" },
    Case { options: "ndots:5", servers: &["127.0.0.1"], name: "web.pin" },
    Case { options: "ndots:5", servers: &["127.0.0.1"], name: "two.pinned.example" },
];

/// What programs find without asking anybody.
const HOSTS: &[(&str, &[&str])] = &[
    ("10.3.0.4", &["pinned.example", "pinned"]),
    ("10.3.0.5", &["pinned.example"]),
    ("10.3.0.6", &["two.pinned.example"]),
    ("fd03::7", &["two.pinned.example"]),
    ("fd03::6", &["six.pinned.example"]),
    ("10.3.0.7", &["web.pinned"]),
];

/// Where nobody listens, or where no interface leads.
const NOBODY: [&str; 3] = ["127.0.0.10", "fe80::53", "fe80::53%nowhere"];
/// A link-local server, by its interface.
const ZONED: &str = "fe80::53%dns0";

#[test]
fn questions_and_result_are_those_of_glibc() {
    let test = "questions_and_result_are_those_of_glibc";
    let Some(host) = Host::new(test) else { return };
    let version = Command::new("getconf").arg("GNU_LIBC_VERSION").output();
    if !version.is_ok_and(|output| output.status.success()) || Command::new("python3").arg("-V").output().is_err() {
        return skipped(test, "needs glibc and python3");
    }
    host.namespace.sh("ip link add dns0 type veth peer name dns1
        ip link set dns0 up; ip link set dns1 up
        ip addr add fe80::53/64 dev dns0 nodad");
    let asked = Asked::default();
    let servers: BTreeSet<_> = CASES.iter().flat_map(|case| case.servers).filter(|one| !NOBODY.contains(one)).collect();
    for server in servers {
        let noted = Arc::clone(&asked);
        host.datagrams(listens(&host, server), move |socket, query, from| {
            noted.lock().unwrap().push(((*server).to_owned(), name_of(query), record_type(query)));
            if let Some(bytes) = respond(server, query) {
                let _ = socket.send_to(&bytes, from);
            }
        });
    }
    let folder = tempfile::tempdir().unwrap();
    let mut wrong = Vec::new();
    for case in CASES {
        let told = by_glibc(&host, folder.path(), case);
        let glibc = (std::mem::take(&mut *asked.lock().unwrap()), told);
        let told = by_us(&host, case);
        let ours = (std::mem::take(&mut *asked.lock().unwrap()), told);
        if glibc != ours {
            let (servers, options, name) = (case.servers, case.options, case.name);
            wrong.push(format!("{name} at {servers:?} with {options}:\n  glibc {glibc:?}\n  ours  {ours:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Port 53 of a server as it is written in resolv.conf.
fn listens(host: &Host, server: &str) -> SocketAddr {
    match server.split_once('%') {
        Some((address, zone)) => {
            let scope = host.namespace.run(|| nix::net::if_::if_nametoindex(zone).unwrap());
            SocketAddrV6::new(address.parse().unwrap(), 53, 0, scope).into()
        }
        None => SocketAddr::new(server.parse().unwrap(), 53),
    }
}

/// A real program in the namespace, with files of its own where glibc looks.
fn by_glibc(host: &Host, folder: &std::path::Path, case: &Case) -> String {
    let mut text = "search shop.svc.cluster.local svc.cluster.local\n".to_owned();
    for server in case.servers {
        text += &format!("nameserver {server}\n");
    }
    text += &format!("options {}\n", case.options);
    std::fs::write(folder.join("resolv.conf"), text).unwrap();
    let hosts: Vec<_> = HOSTS.iter().map(|(address, names)| format!("{address} {}\n", names.join(" "))).collect();
    std::fs::write(folder.join("hosts"), hosts.concat()).unwrap();
    std::fs::write(folder.join("nsswitch.conf"), "hosts: files dns\n").unwrap();
    std::fs::write(folder.join("program.py"), PROGRAM).unwrap();
    let folder = folder.display();
    let script = format!(
        "mount --bind {folder}/resolv.conf /etc/resolv.conf; mount --bind {folder}/nsswitch.conf /etc/nsswitch.conf; mount --bind {folder}/hosts /etc/hosts; exec python3 {folder}/program.py {}",
        case.name
    );
    host.namespace.sh(&format!("unshare --mount --propagation private sh -ec '{script}'")).trim().to_owned()
}

fn by_us(host: &Host, case: &Case) -> String {
    let mut options: Vec<String> = case.options.split(' ').map(ToOwned::to_owned).collect();
    let ndots = options.remove(0).strip_prefix("ndots:").unwrap().parse().unwrap();
    let (mut nameservers, mut zones) = (Vec::<IpAddr>::new(), Vec::new());
    for (nameserver, server) in case.servers.iter().enumerate() {
        let (address, zone) = server.split_once('%').map_or((*server, None), |(address, zone)| (address, Some(zone)));
        nameservers.push(address.parse().unwrap());
        zones.extend(zone.map(|name| Zone { nameserver, name: name.to_owned() }));
    }
    let resolver = Resolver {
        nameservers,
        zones,
        search: ["shop.svc.cluster.local", "svc.cluster.local"].map(ToOwned::to_owned).into(),
        ndots,
        options,
        hosts: HOSTS
            .iter()
            .map(|(address, names)| HostsEntry {
                address: address.parse().unwrap(),
                names: names.iter().map(|name| (*name).to_owned()).collect(),
            })
            .collect(),
        hosts_unseen: String::new(),
    };
    let asking = DnsAsking::Lookup { together: true };
    let records = vec![DnsType::A, DnsType::Aaaa];
    let probe = DnsProbe { name: case.name.to_owned(), records, asking, edns_bytes: None };
    let attempt = host.attempt_with(Probe::Dns(probe), 20_000, Some(resolver));
    let found = report!(attempt, Dns);
    match found.getaddrinfo.as_deref() {
        None => {
            let addresses: BTreeSet<_> = found.addresses.iter().map(ToString::to_string).collect();
            addresses.iter().fold("0".to_owned(), |text, address| format!("{text} {address}"))
        }
        Some("EAI_NONAME") => "-2".to_owned(),
        Some("EAI_AGAIN") => "-3".to_owned(),
        Some("EAI_FAIL") => "-4".to_owned(),
        Some("EAI_NODATA") => "-5".to_owned(),
        Some(other) => other.to_owned(),
    }
}
