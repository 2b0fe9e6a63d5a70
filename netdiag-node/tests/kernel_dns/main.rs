//! DNS queries are counted exactly, on the running kernel: each event once, in the namespace where it happened, under load,
//! with full tables and with hostile messages. Needs root, BTF, cgroup v2 and the built programs; says loudly what is missing.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

mod resolver;
#[path = "../support/mod.rs"]
#[expect(dead_code, reason = "other tests use the rest")]
mod support;

use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use netdiag_common::observation::dns::{Dns, DnsClient, DnsName, DnsNames};
use netdiag_common::observation::{Owner, Protocol};
use netdiag_node::clock::now;
use netdiag_node::kernel::{DnsSize, KernelDns, Sizes};
use resolver::{A, AAAA, Server, ask, ask_by_tcp, client, framed, query, receive};
use support::patience::slowness;
use support::{Namespace, Stop, eventually, load_part, owner};

const MINUTE_NS: u64 = 60_000_000_000;

fn load(test: &str, size: DnsSize) -> Option<KernelDns> {
    load_part(test, Sizes { dns: size, ..Sizes::for_this_machine() }, KernelDns::load)
}

/// Gives up soon, so that a test need not wait.
fn impatient() -> DnsSize {
    DnsSize { patience_ms: 400, ..DnsSize::default() }
}

fn harvested(dns: &mut KernelDns, resolve: &dyn Fn(u64) -> Owner) -> Dns {
    dns.harvest(now());
    let seen = dns.observe(now(), MINUTE_NS, resolve);
    assert_eq!(seen.accounts.unaccounted(), 0, "{:?}", seen.accounts);
    seen
}

fn pod(uid: &str) -> Owner {
    Owner::Pod { uid: uid.to_owned() }
}

fn client_group<'a>(seen: &'a Dns, uid: &str, server: SocketAddr, protocol: Protocol) -> &'a DnsClient {
    let found = seen
        .clients
        .iter()
        .find(|group| group.netns == pod(uid) && group.server == server && group.protocol == protocol);
    found.unwrap_or_else(|| panic!("no group of {uid} for {server} by {protocol}: {:#?}", seen.clients))
}

fn name<'a>(seen: &'a Dns, uid: &str, name: &str, record: &str) -> &'a DnsName {
    let found = seen.names.iter().find(|found| found.netns == pod(uid) && found.name == name && found.record == record);
    found.unwrap_or_else(|| panic!("{uid} did not ask for {name} {record}: {:#?}", seen.names))
}

fn names<'a>(seen: &'a Dns, uid: &str) -> &'a DnsNames {
    seen.reading.iter().find(|of| of.netns == pod(uid)).unwrap()
}

fn pairs(counts: &[(&str, u64)]) -> std::collections::BTreeMap<String, u64> {
    counts.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect()
}

/// A client and a server with a cable between them.
fn two_pods() -> [Namespace; 2] {
    let [one, two] = std::array::from_fn(|_| Namespace::new());
    one.connect("eth0", &two, "eth0");
    for (pod, n) in [(&one, 1), (&two, 2)] {
        pod.sh(&format!("ip addr add 10.53.0.{n}/24 dev eth0; ip addr add fd53::{n}/64 dev eth0 nodad"));
    }
    [one, two]
}

fn server_of(pod: &Namespace) -> Server {
    Server::start(pod, "10.53.0.2".parse().unwrap())
}

#[test]
fn each_answer_is_counted_once_where_it_was_asked_for() {
    const TEST: &str = "each_answer_is_counted_once_where_it_was_asked_for";
    let Some(mut dns) = load(TEST, DnsSize::default()) else { return };
    let [asking, serving] = two_pods();
    let (server, server6) = (server_of(&serving), Server::start(&serving, "fd53::2".parse().unwrap()));
    asking.run(|| {
        assert_eq!(ask(server.address, "Web.shop.example", A) & 0xf, 0);
        assert_eq!(ask(server.address, "nx.example", AAAA) & 0xf, 3);
        assert_eq!(ask(server.address, "fail.example", 33) & 0xf, 2);
        assert_eq!(ask(server6.address, "web.example", 65) & 0xf, 0);
        // As glibc asks: both at once from one socket.
        let socket = client(server.address);
        socket.send(&query(1, "both.example", A)).unwrap();
        socket.send(&query(2, "both.example", AAAA)).unwrap();
        receive(&socket);
        receive(&socket);
        // Too large for UDP, asked again by TCP.
        assert_ne!(ask(server.address, "big.example", 16) & 0x200, 0);
        assert_eq!(ask_by_tcp(server.address, &[&framed(&query(3, "big.example", 16))], 1), [65_535]);
    });
    let seen = harvested(&mut dns, &owner(&[(&asking, "asking"), (&serving, "serving")]));

    let udp = client_group(&seen, "asking", server.address, Protocol::Udp);
    assert_eq!((udp.answered, udp.unanswered, udp.retries, udp.truncated), (6, 0, 0, 1));
    assert_eq!(udp.rcodes, pairs(&[("NOERROR", 4), ("NXDOMAIN", 1), ("SERVFAIL", 1)]));
    assert_eq!(udp.types, pairs(&[("A", 2), ("AAAA", 2), ("SRV", 1), ("TXT", 1)]));
    assert_eq!(udp.latency.count, 6);
    assert!(udp.latency.sum_us > 0 && !udp.node_local);
    let tcp = client_group(&seen, "asking", server.address, Protocol::Tcp);
    assert_eq!((tcp.answered, tcp.truncated), (1, 0));
    let v6 = client_group(&seen, "asking", server6.address, Protocol::Udp);
    assert_eq!((v6.answered, &v6.types), (1, &pairs(&[("HTTPS", 1)])));
    // The rest of the 64 KiB is no message.
    assert!(seen.accounts.tcp_rest > 0);

    let served = |protocol| {
        seen.servers.iter().find(|found| found.address == server.address && found.protocol == protocol).unwrap()
    };
    assert_eq!((&served(Protocol::Udp).netns, served(Protocol::Udp).queries), (&pod("serving"), 6));
    assert_eq!((served(Protocol::Udp).answers, served(Protocol::Udp).truncated), (6, 1));
    assert_eq!(served(Protocol::Tcp).queries, 1);
    // On a slow machine TCP sends segments again.
    assert!((1..=u64::from(slowness())).contains(&served(Protocol::Tcp).answers), "{:?}", served(Protocol::Tcp));
    assert!(!seen.clients.iter().any(|group| group.netns == pod("serving")), "a server asks nobody");

    assert_eq!(name(&seen, "asking", "web.shop.example", "A").queries, 1);
    assert_eq!(name(&seen, "asking", "nx.example", "AAAA").nxdomain, 1);
    assert_eq!(name(&seen, "asking", "fail.example", "SRV").failed, 1);
    assert_eq!(name(&seen, "asking", "both.example", "AAAA").queries, 1);
    assert_eq!((names(&seen, "asking").read, names(&seen, "asking").rest), (8, 0));
    let exemplar = |name: &str| seen.exemplars.iter().find(|found| found.name == name && found.netns == pod("asking"));
    assert_eq!(exemplar("fail.example").unwrap().rcode.as_deref(), Some("SERVFAIL"));
    assert!(exemplar("big.example").unwrap().truncated);
    assert_eq!(exemplar("both.example"), None, "nothing is wrong with it");
}

#[test]
fn queries_without_an_answer_are_given_up_with_their_tries() {
    const TEST: &str = "queries_without_an_answer_are_given_up_with_their_tries";
    let Some(mut dns) = load(TEST, impatient()) else { return };
    let [asking, serving] = two_pods();
    let server = server_of(&serving);
    let resolve = owner(&[(&asking, "asking"), (&serving, "serving")]);
    asking.run(|| {
        let socket = client(server.address);
        for _ in 0..3 {
            socket.send(&query(9, "silent.example", A)).unwrap();
            thread::sleep(Duration::from_millis(50));
        }
        // Another question under an id that is open is not followed; it is no repeat either.
        socket.send(&query(9, "silent.other.example", A)).unwrap();
    });
    let before = harvested(&mut dns, &resolve);
    assert!(before.accounts.open >= 1);
    thread::sleep(Duration::from_millis(600));
    let seen = harvested(&mut dns, &resolve);
    let group = client_group(&seen, "asking", server.address, Protocol::Udp);
    assert_eq!((group.answered, group.unanswered, group.shed, group.retries), (0, 1, 1, 2));
    assert_eq!(group.types, pairs(&[("A", 2)]));
    let found = name(&seen, "asking", "silent.example", "A");
    assert_eq!((found.unanswered, found.retries), (1, 2));
    let exemplar = seen.exemplars.iter().find(|found| found.name == "silent.example").unwrap();
    assert_eq!((exemplar.tries, &exemplar.rcode, exemplar.latency_us), (3, &None, None));
}

/// The default timeout of glibc and musl.
#[test]
fn a_repeat_after_five_seconds_is_known_as_such() {
    let Some(mut dns) = load("a_repeat_after_five_seconds_is_known_as_such", DnsSize::default()) else { return };
    let [asking, serving] = two_pods();
    let server = server_of(&serving);
    asking.run(|| {
        let socket = client(server.address);
        socket.send(&query(4, "silent.example", A)).unwrap();
        thread::sleep(Duration::from_secs(5));
        socket.send(&query(4, "silent.example", A)).unwrap();
    });
    let seen = harvested(&mut dns, &owner(&[(&asking, "asking")]));
    let group = client_group(&seen, "asking", server.address, Protocol::Udp);
    assert_eq!((group.retries, group.retries_after_5s, group.unanswered), (1, 1, 0));
}

#[test]
fn names_that_a_search_list_made_are_told_apart() {
    let Some(mut dns) = load("names_that_a_search_list_made_are_told_apart", DnsSize::default()) else { return };
    let [asking, serving] = two_pods();
    let server = server_of(&serving);
    asking.run(|| {
        for suffix in [".shop.svc.cluster.local", ".svc.cluster.local", ".cluster.local", ""] {
            ask(server.address, &format!("api.example{suffix}"), A);
        }
        ask(server.address, "web.shop.svc.cluster.local.shop.svc.cluster.local", A);
    });
    let seen = harvested(&mut dns, &owner(&[(&asking, "asking")]));
    let together = names(&seen, "asking");
    assert_eq!((together.read, together.search_tries, together.doubled_suffix), (5, 3, 1));
    assert_eq!(together.search_example.as_deref(), Some("web.shop.svc.cluster.local.shop.svc.cluster.local"));
}

/// NodeLocal DNSCache listens in the node's own namespace, at a link-local address or at the Service's.
#[test]
fn a_cache_on_the_node_is_recognised() {
    let Some(mut dns) = load("a_cache_on_the_node_is_recognised", DnsSize::default()) else { return };
    let [asking, node] = two_pods();
    node.sh("ip addr add 169.254.20.10/32 dev lo");
    asking.sh("ip route add 169.254.20.10/32 via 10.53.0.2");
    let (cache, service) = (Server::start(&node, "169.254.20.10".parse().unwrap()), server_of(&node));
    asking.run(|| [cache.address, service.address].map(|server| ask(server, "web.example", A)));
    let seen = harvested(&mut dns, &owner(&[(&asking, "asking"), (&node, "host")]));
    assert!(client_group(&seen, "asking", cache.address, Protocol::Udp).node_local);
    assert!(client_group(&seen, "asking", service.address, Protocol::Udp).node_local);
    let elsewhere = dns.observe(now(), MINUTE_NS, &owner(&[(&asking, "asking"), (&node, "pod")]));
    assert!(client_group(&elsewhere, "asking", cache.address, Protocol::Udp).node_local, "link-local");
    assert!(!client_group(&elsewhere, "asking", service.address, Protocol::Udp).node_local);
}

#[test]
fn messages_in_tcp_are_found_however_they_are_cut() {
    let Some(mut dns) = load("messages_in_tcp_are_found_however_they_are_cut", DnsSize::default()) else { return };
    let [asking, serving] = two_pods();
    let server = server_of(&serving);
    asking.run(|| {
        // As glibc sends them: two in one segment.
        let both = [framed(&query(1, "both.example", A)), framed(&query(2, "both.example", AAAA))].concat();
        assert_eq!(ask_by_tcp(server.address, &[&both], 2).len(), 2);
        // The length in a segment of its own.
        let (length, message) = (framed(&query(3, "cut.example", A)), query(3, "cut.example", A));
        assert_eq!(ask_by_tcp(server.address, &[&length[..2], &message], 1).len(), 1);
    });
    let seen = harvested(&mut dns, &owner(&[(&asking, "asking"), (&serving, "serving")]));
    let group = client_group(&seen, "asking", server.address, Protocol::Tcp);
    assert_eq!((group.answered, &group.types), (3, &pairs(&[("A", 2), ("AAAA", 1)])));
    assert_eq!(name(&seen, "asking", "cut.example", "A").queries, 1);
}

#[test]
fn a_late_answer_is_nobodys() {
    let Some(mut dns) = load("a_late_answer_is_nobodys", impatient()) else { return };
    let [asking, serving] = two_pods();
    let server: SocketAddr = "10.53.0.2:53".parse().unwrap();
    let (socket, late) = (asking.run(|| client(server)), serving.run(|| UdpSocket::bind(server).unwrap()));
    socket.send(&query(1, "slow.example", A)).unwrap();
    let mut bytes = [0; 512];
    let (length, from) = late.recv_from(&mut bytes).unwrap();
    thread::sleep(Duration::from_millis(600));
    let resolve = owner(&[(&asking, "asking")]);
    let before = harvested(&mut dns, &resolve).accounts.unmatched;
    bytes[2] |= 0x80;
    late.send_to(&bytes[..length], from).unwrap();
    receive(&socket);
    let seen = harvested(&mut dns, &resolve);
    assert!(seen.accounts.unmatched > before);
    let group = client_group(&seen, "asking", server, Protocol::Udp);
    assert_eq!((group.answered, group.unanswered), (0, 1));
}

#[test]
fn nothing_is_lost_under_load_and_the_identity_holds_meanwhile() {
    const TEST: &str = "nothing_is_lost_under_load_and_the_identity_holds_meanwhile";
    const SOCKETS: u16 = 4;
    const ROUNDS: u16 = 3000;
    let Some(mut dns) = load(TEST, DnsSize { names_per_second: 200, ..DnsSize::default() }) else { return };
    let [asking, serving] = two_pods();
    let server = server_of(&serving);
    let resolve = owner(&[(&asking, "asking"), (&serving, "serving")]);
    let (stop, started) = (AtomicBool::new(false), Instant::now());
    thread::scope(|scope| {
        let clients: Vec<_> = (0..SOCKETS)
            .map(|_| {
                scope.spawn(|| {
                    asking.run(|| {
                        let socket = client(server.address);
                        for round in 0..ROUNDS {
                            socket.send(&query(round, "load.example", A)).unwrap();
                            receive(&socket);
                        }
                    });
                })
            })
            .collect();
        scope.spawn(|| {
            let _enough = Stop(&stop);
            for client in clients {
                client.join().unwrap();
            }
        });
        while !stop.load(Ordering::Relaxed) {
            harvested(&mut dns, &resolve);
        }
    });
    let seen = harvested(&mut dns, &resolve);
    let sent = u64::from(SOCKETS) * u64::from(ROUNDS);
    let group = client_group(&seen, "asking", server.address, Protocol::Udp);
    assert_eq!((group.answered, group.shed, group.unanswered), (sent, 0, 0));
    assert_eq!(server.received.load(Ordering::Relaxed), sent);
    let served = seen.servers.iter().find(|found| found.address == server.address).unwrap();
    assert_eq!((served.queries, served.answers), (sent, sent));
    let accounts = seen.accounts;
    assert!(accounts.answered >= sent && accounts.names_lost == 0);
    let with_names = accounts.names_read + accounts.names_suppressed;
    assert_eq!(with_names, accounts.answered + accounts.unanswered, "each has a name or a reason why not");
    assert!(accounts.names_suppressed > 0, "more than 200 a second, in {:?}", started.elapsed());
    assert!(seen.unseen.iter().any(|gap| gap.what.starts_with("names of ")), "{:?}", seen.unseen);
}

#[test]
fn a_full_table_sheds_and_says_so() {
    let size = DnsSize { open: 64, ..impatient() };
    let Some(mut dns) = load("a_full_table_sheds_and_says_so", size) else { return };
    let [asking, serving] = two_pods();
    let server = server_of(&serving);
    let resolve = owner(&[(&asking, "asking"), (&serving, "serving")]);
    asking.run(|| {
        let socket = client(server.address);
        for id in 0..500 {
            socket.send(&query(id, "silent.example", A)).unwrap();
        }
    });
    harvested(&mut dns, &resolve);
    thread::sleep(Duration::from_millis(600));
    let seen = harvested(&mut dns, &resolve);
    let group = client_group(&seen, "asking", server.address, Protocol::Udp);
    assert_eq!(group.unanswered + group.shed, 500);
    // The kernel keeps a few entries more than it was told to, one per CPU.
    assert!(group.shed >= 400, "{group:?}");
    assert!(seen.unseen.iter().any(|gap| gap.what.starts_with("answers to ")), "{:?}", seen.unseen);
    eventually("the table to be as empty as the counters say", || {
        let seen = harvested(&mut dns, &resolve);
        (dns.walk_open() as u64 == seen.accounts.open).then_some(())
    });
}

#[test]
fn hostile_messages_are_counted_and_harm_nobody() {
    let Some(mut dns) = load("hostile_messages_are_counted_and_harm_nobody", impatient()) else { return };
    let [asking, serving] = two_pods();
    let server = server_of(&serving);
    let resolve = owner(&[(&asking, "asking"), (&serving, "serving")]);
    let looping = [&query(1, "x", A)[..12], &[0xc0, 12, 0, 1, 0, 1]].concat();
    let labels = [&query(2, "x", A)[..12], &[63; 600]].concat();
    let zeroes = [&query(3, "x", A)[..12], &[3, 0, 0, 0, 0, 0, 1, 0, 1]].concat();
    let many = [&[0, 4, 1, 0, 0xff, 0xff][..], &[0xff; 700]].concat();
    let long = query(5, &vec!["a".repeat(60); 4].join("."), A);
    asking.run(|| {
        let socket = client(server.address);
        for message in [&looping, &labels, &zeroes, &many, &long] {
            socket.send(message).unwrap();
        }
        // Every length with every byte, some of them by chance a query.
        for n in 0..1000_usize {
            let byte = u8::try_from(n % 256).unwrap();
            socket.send(&vec![byte; n % 300]).unwrap();
        }
        for segment in [&[0_u8, 200][..], &[0xff; 3000], &framed(&looping), &[0, 0, 0]] {
            let mut stream = TcpStream::connect(server.address).unwrap();
            std::io::Write::write_all(&mut stream, segment).unwrap();
            thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(ask(server.address, "fine.example", A) & 0xf, 0, "what is in order still works");
    });
    thread::sleep(Duration::from_millis(600));
    let seen = harvested(&mut dns, &resolve);
    assert!(seen.accounts.unparsed >= 990, "{:?}", seen.accounts);
    assert!(seen.accounts.tcp_rest >= 2, "{:?}", seen.accounts);
    assert_eq!(name(&seen, "asking", "fine.example", "A").queries, 1);
    assert!(seen.names.iter().any(|found| found.name.ends_with('…')), "a name longer than its copy: {:#?}", seen.names);
}

#[test]
fn another_port_is_followed_when_it_is_configured() {
    let size = DnsSize { ports: [53, 5353, 53, 53], ..DnsSize::default() };
    let Some(mut dns) = load("another_port_is_followed_when_it_is_configured", size) else { return };
    let pod = Namespace::new();
    let ip: IpAddr = "127.0.0.1".parse().unwrap();
    pod.run(|| {
        for port in [5353, 5354] {
            let server = UdpSocket::bind((ip, port)).unwrap();
            let socket = client(SocketAddr::new(ip, port));
            socket.send(&query(1, "web.example", A)).unwrap();
            let mut bytes = [0; 64];
            let (length, from) = server.recv_from(&mut bytes).unwrap();
            bytes[2] |= 0x80;
            server.send_to(&bytes[..length], from).unwrap();
            receive(&socket);
        }
    });
    let seen = harvested(&mut dns, &owner(&[(&pod, "pod")]));
    assert_eq!(client_group(&seen, "pod", SocketAddr::new(ip, 5353), Protocol::Udp).empty, 1);
    assert!(!seen.clients.iter().any(|group| group.server.port() == 5354));
}
