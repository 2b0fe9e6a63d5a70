//! The options of resolv.conf that glibc's resolver acts on (resolv.conf(5); `res_setoptions`, resolv/res_init.c).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::time::Duration;

use netdiag_common::observation::resolver::Resolver;

/// The limits and defaults of glibc's resolv/resolv.h.
const MAXNS: usize = 3;
const RES_MAXNDOTS: u8 = 15;
const RES_TIMEOUT: u32 = 5;
const RES_MAXRETRANS: u32 = 30;
const RES_DFLRETRY: u32 = 2;
const RES_MAXRETRY: u32 = 5;
const DNS_PORT: u16 = 53;

/// How a program in the namespace would ask.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "resolv.conf has so many switches")]
pub(super) struct Options {
    pub(super) servers: Vec<SocketAddr>,
    pub(super) search: Vec<String>,
    pub(super) ndots: u8,
    pub(super) timeout_s: u32,
    pub(super) attempts: u32,
    pub(super) rotate: bool,
    /// A and AAAA one after the other.
    pub(super) single_request: bool,
    /// The same, each from a socket of its own.
    pub(super) single_request_reopen: bool,
    pub(super) use_tcp: bool,
    pub(super) edns: bool,
    /// AAAA is not asked for (glibc 2.36).
    pub(super) no_aaaa: bool,
}

impl Options {
    /// Interfaces of link-local servers are looked up in the calling thread's namespace.
    pub(super) fn new(resolver: &Resolver) -> Self {
        let nameservers = resolver.nameservers.iter().take(MAXNS).enumerate();
        let mut servers: Vec<_> = nameservers.map(|(place, address)| server(*address, resolver.zone(place))).collect();
        if servers.is_empty() {
            // What an empty file means: a resolver on this host.
            servers.push(SocketAddr::new(IpAddr::from(Ipv4Addr::LOCALHOST), DNS_PORT));
        }
        let has = |word: &str| resolver.options.iter().any(|option| option == word);
        let number = |word: &str, default: u32, max: u32| {
            let values = resolver.options.iter().filter_map(|option| option.strip_prefix(word)?.strip_prefix(':'));
            // As atoi(3) reads it, the last one.
            values.map(leading_number).next_back().map_or(default, |value| value.min(max))
        };
        let reopen = has("single-request-reopen");
        Self {
            servers,
            search: resolver.search.clone(),
            ndots: resolver.ndots.min(RES_MAXNDOTS),
            timeout_s: number("timeout", RES_TIMEOUT, RES_MAXRETRANS),
            attempts: number("attempts", RES_DFLRETRY, RES_MAXRETRY),
            rotate: has("rotate"),
            single_request: reopen || has("single-request"),
            single_request_reopen: reopen,
            use_tcp: has("use-vc"),
            edns: has("edns0"),
            no_aaaa: has("no-aaaa"),
        }
    }

    /// How long one server is waited for (`send_dg`, resolv/res_send.c): later ones share twice the time.
    pub(super) fn wait(&self, server: usize) -> Duration {
        let shared = self.timeout_s << server.min(MAXNS);
        let count = u32::try_from(self.servers.len()).unwrap_or(1).max(1);
        let seconds = if server > 0 { shared / count } else { shared };
        Duration::from_secs(seconds.max(1).into())
    }
}

/// Where a zone leads to no interface, the server is asked without one, as glibc does: the kernel refuses that.
fn server(address: IpAddr, zone: Option<&str>) -> SocketAddr {
    match address {
        IpAddr::V4(_) => SocketAddr::new(address, DNS_PORT),
        IpAddr::V6(address) => {
            let scope = zone.and_then(|zone| scope_id(address, zone)).unwrap_or(0);
            SocketAddrV6::new(address, DNS_PORT, 0, scope).into()
        }
    }
}

/// glibc's `__inet6_scopeid_pton` (inet/inet6_scopeid_pton.c): names count for link-local addresses only, numbers for all.
fn scope_id(address: Ipv6Addr, zone: &str) -> Option<u32> {
    let by_name = || nix::net::if_::if_nametoindex(zone).ok();
    let is_number = zone.bytes().all(|byte| byte.is_ascii_digit());
    let by_number = || if is_number { zone.parse().ok() } else { None };
    if address.is_unicast_link_local() { by_name().or_else(by_number) } else { by_number() }
}

fn leading_number(text: &str) -> u32 {
    let digits: String = text.chars().take_while(char::is_ascii_digit).take(9).collect();
    digits.parse().unwrap_or(0)
}

/// The names that are asked for one that was typed, in order (`__res_context_search`, resolv/res_query.c).
///
/// The first of a pair says whether it is the name as it is: what that one met counts more than what the search list met.
pub(super) fn candidates(name: &str, options: &Options) -> Vec<(bool, String)> {
    let bare = name.strip_suffix('.').unwrap_or(name);
    let is_absolute = bare.len() != name.len();
    let dots = bare.matches('.').count();
    let mut found = Vec::new();
    if is_absolute || dots >= usize::from(options.ndots) {
        found.push((true, bare.to_owned()));
    }
    if is_absolute {
        return found;
    }
    let mut has_root = false;
    for domain in &options.search {
        let domain = domain.strip_prefix('.').unwrap_or(domain);
        let domain = domain.strip_suffix('.').unwrap_or(domain);
        has_root |= domain.is_empty();
        found.push((false, if domain.is_empty() { bare.to_owned() } else { format!("{bare}.{domain}") }));
    }
    // Last as it is, unless that was asked first or the search list has the root.
    if !has_root && found.first().is_none_or(|(is_as_it_is, _)| !is_as_it_is) {
        found.push((true, bare.to_owned()));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(words: &[&str]) -> Options {
        let nameservers = ["10.96.0.10", "10.96.0.11", "10.96.0.12", "10.96.0.13"].map(|one| one.parse().unwrap());
        let search = ["shop.svc.cluster.local", "svc.cluster.local"].map(ToOwned::to_owned);
        Options::new(&Resolver {
            nameservers: nameservers.into(),
            search: search.into(),
            ndots: 5,
            options: words.iter().map(|one| (*one).to_owned()).collect(),
            ..Resolver::default()
        })
    }

    fn names(name: &str, options: &Options) -> Vec<String> {
        candidates(name, options).into_iter().map(|(_, name)| name).collect()
    }

    #[test]
    fn search_list_is_asked_in_glibcs_order() {
        let few = options(&[]);
        assert_eq!(names("web", &few), ["web.shop.svc.cluster.local", "web.svc.cluster.local", "web"]);
        assert_eq!(names("a.b.c.d.e.f", &few)[0], "a.b.c.d.e.f", "five dots");
        assert_eq!(names("a.b.c.d.e.f", &few).len(), 3);
        assert_eq!(names("web.", &few), ["web"]);
        let root = Options { search: vec![".".to_owned(), "x.".to_owned()], ..few };
        assert_eq!(names("web", &root), ["web", "web.x"], "the root on the list is the name as it is");
    }

    #[test]
    fn waits_are_glibcs() {
        let seconds = |options: &Options| [0, 1, 2].map(|server| options.wait(server).as_secs());
        assert_eq!(options(&[]).servers.len(), 3, "MAXNS");
        assert_eq!(seconds(&options(&[])), [5, 3, 6]);
        assert_eq!(seconds(&options(&["timeout:1"])), [1, 1, 1]);
        assert_eq!(seconds(&options(&["timeout:0"])), [1, 1, 1]);
        assert_eq!(options(&["timeout:99", "attempts:9"]).timeout_s, 30);
        assert_eq!(options(&["attempts:9"]).attempts, 5);
        assert_eq!(options(&["timeout:2x"]).timeout_s, 2);
        assert!(options(&["single-request-reopen"]).single_request);
    }

    #[test]
    fn zones_are_interfaces_of_link_local_servers() {
        let scope = |address: &str, zone: Option<&str>| match server(address.parse().unwrap(), zone) {
            SocketAddr::V6(server) => server.scope_id(),
            SocketAddr::V4(server) => panic!("{server}"),
        };
        assert_eq!(scope("fe80::1", Some("lo")), 1, "lo is the first interface of every namespace");
        assert_eq!(scope("fe80::1", Some("7")), 7);
        assert_eq!(scope("fd00::1", Some("lo")), 0, "only link-local addresses have interfaces");
        assert_eq!(scope("fd00::1", Some("7")), 7);
        assert_eq!([Some("no such"), Some("+7"), Some("99999999999"), None].map(|zone| scope("fe80::1", zone)), [0; 4]);
    }
}
