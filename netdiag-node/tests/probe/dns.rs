//! DNS answers that are right, wrong and hostile, and the lookups that glibc would make.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use netdiag_common::observation::resolver::Resolver;
use netdiag_common::observation::series::FailureClass::{
    Closed, Limit, Local, NoData, Protocol, Rcode, Refused, Silence,
};
use netdiag_common::observation::series::ProbeStage::{Answer, Lookup};
use netdiag_common::observation::series::dns::{DnsAsking, DnsTransport, DnsType};
use netdiag_common::observation::series::{DnsProbe, Probe, SeriesAttempt};

use crate::host::{Host, LOCAL, failure, hold, why};
use crate::way::report;

const PATIENT_MS: u32 = 10_000;
const SHORT_MS: u32 = 1_000;
const NAME: &str = "web.example";

fn ask(server: SocketAddr, transport: DnsTransport, records: &[DnsType]) -> Probe {
    let asking = DnsAsking::Server { server, transport };
    Probe::Dns(DnsProbe { name: NAME.to_owned(), records: records.to_vec(), asking, edns_bytes: Some(1_232) })
}

/// The question's end: behind its name, type and class.
fn question_end(query: &[u8]) -> usize {
    12 + query[12..].iter().position(|byte| *byte == 0).unwrap() + 5
}

pub fn record_type(query: &[u8]) -> u8 {
    query[question_end(query) - 3]
}

pub fn name_of(query: &[u8]) -> String {
    let (mut at, mut labels) = (12, Vec::new());
    while query[at] != 0 {
        let length = usize::from(query[at]);
        labels.push(String::from_utf8_lossy(&query[at + 1..=at + length]).into_owned());
        at += length + 1;
    }
    labels.join(".")
}

/// An answer with this rcode and these bytes of records, `count` of them by its header.
fn answer(query: &[u8], rcode: u8, count: u8, records: &[u8]) -> Vec<u8> {
    let mut bytes = query[..question_end(query)].to_vec();
    bytes[2] = 0x81;
    bytes[3] = 0x80 | rcode;
    bytes[6..12].copy_from_slice(&[0, count, 0, 0, 0, 0]);
    bytes.extend(records);
    bytes
}

/// One address with a TTL of 30 s, of the type that is asked; another type has none.
pub fn good(query: &[u8]) -> Vec<u8> {
    match record_type(query) {
        1 => answer(query, 0, 1, &[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 30, 0, 4, 192, 0, 2, 1]),
        28 => {
            let mut record = vec![0xc0, 12, 0, 28, 0, 1, 0, 0, 0, 30, 0, 16];
            record.extend("2001:db8::1".parse::<std::net::Ipv6Addr>().unwrap().octets());
            answer(query, 0, 1, &record)
        }
        _ => answer(query, 0, 0, &[]),
    }
}

/// The SOA of `example`, in the authority section.
pub fn negative(query: &[u8], rcode: u8) -> Vec<u8> {
    let soa = [
        7, b'e', b'x', b'a', b'm', b'p', b'l', b'e', 0, 0, 6, 0, 1, 0, 0, 0, 5, 0, 22, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0,
        0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1,
    ];
    let mut bytes = answer(query, rcode, 0, &soa);
    bytes[9] = 1;
    bytes
}

fn by_udp(host: &Host, address: &str, each: impl Fn(&UdpSocket, &[u8], SocketAddr) + Send + 'static) -> SocketAddr {
    host.datagrams(SocketAddr::new(address.parse().unwrap(), 0), each)
}

#[test]
pub fn good_answer_is_told_in_both_families() {
    let Some(host) = Host::new("good_answer_is_told_in_both_families") else { return };
    for address in LOCAL {
        let server = by_udp(&host, address, |socket, query, from| drop(socket.send_to(&good(query), from)));
        let attempt = host.attempt(ask(server, DnsTransport::Udp, &[DnsType::A, DnsType::Aaaa]), PATIENT_MS);
        let found = report!(attempt, Dns);
        assert_eq!(failure(&attempt), None, "{attempt:?}");
        assert_eq!(found.addresses, ["192.0.2.1", "2001:db8::1"].map(|one| one.parse::<IpAddr>().unwrap()));
        assert_eq!(found.queries.len(), 2);
        let told = found.queries[0].answer.as_ref().unwrap();
        assert_eq!((told.rcode.as_str(), told.ttl), ("NOERROR", Some(30)));
        assert_eq!(told.flags, ["rd", "ra"]);
        assert_eq!(told.records, ["web.example. 30 A 192.0.2.1"]);
        assert_eq!(
            attempt.source.map(|source| (source.ip(), Some(source.port()))),
            Some((server.ip(), found.queries[0].source_port))
        );
    }
}

#[test]
fn answers_that_say_no_have_their_class() {
    let Some(host) = Host::new("answers_that_say_no_have_their_class") else { return };
    for (rcode, class, words) in
        [(3, Rcode, "NXDOMAIN"), (2, Rcode, "SERVFAIL"), (5, Rcode, "REFUSED"), (0, NoData, "without a record")]
    {
        let server =
            by_udp(&host, LOCAL[0], move |socket, query, from| drop(socket.send_to(&negative(query, rcode), from)));
        let attempt = host.attempt(ask(server, DnsTransport::Udp, &[DnsType::A]), PATIENT_MS);
        assert_eq!(failure(&attempt), Some((class, Answer, None)), "{attempt:?}");
        assert!(why(&attempt).contains(words), "{}", why(&attempt));
        assert_eq!(report!(attempt, Dns).queries[0].answer.as_ref().unwrap().soa.as_deref(), Some("example."));
    }
    let attempt = host.attempt(ask("127.0.0.1:9".parse().unwrap(), DnsTransport::Udp, &[DnsType::A]), PATIENT_MS);
    assert_eq!(
        failure(&attempt).map(|(class, _, errno)| (class, errno)),
        Some((Refused, Some("ECONNREFUSED"))),
        "{attempt:?}"
    );
    let said = attempt.failure.unwrap();
    assert_eq!(
        (said.said_by, said.icmp.unwrap().words.as_str()),
        (Some(LOCAL[0].parse().unwrap()), "port unreachable")
    );
}

#[test]
fn forged_answers_are_counted_and_the_true_one_is_taken() {
    let Some(host) = Host::new("forged_answers_are_counted_and_the_true_one_is_taken") else { return };
    let stranger = host.udp(LOCAL[0]);
    let server = by_udp(&host, LOCAL[0], move |socket, query, from| {
        let true_one = good(query);
        let changed = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut bytes = true_one.clone();
            change(&mut bytes);
            bytes
        };
        let _ = stranger.send_to(&true_one, from);
        for forged in [
            changed(&|bytes| bytes[0] ^= 0xff),
            changed(&|bytes| bytes[13] = b'X'),
            changed(&|bytes| bytes[2] &= 0x7f),
            // The question's name points to itself.
            changed(&|bytes| bytes[12..14].copy_from_slice(&[0xc0, 12])),
            // The answer's name does, behind a good question.
            changed(&|bytes| {
                let at = question_end(bytes);
                bytes[at + 1] = u8::try_from(at).unwrap();
            }),
            // 65 535 answers that are not there.
            changed(&|bytes| bytes[6..8].fill(0xff)),
            changed(&|bytes| bytes.truncate(20)),
            changed(&|bytes| bytes.truncate(3)),
            Vec::new(),
        ] {
            let _ = socket.send_to(&forged, from);
        }
        let _ = socket.send_to(&true_one, from);
    });
    let attempt = host.attempt(ask(server, DnsTransport::Udp, &[DnsType::A]), PATIENT_MS);
    let found = report!(attempt, Dns);
    assert_eq!(failure(&attempt), None, "{attempt:?}");
    assert_eq!((found.queries[0].ignored, found.addresses.len()), (10, 1), "{attempt:?}");
}

#[test]
fn lies_alone_end_in_time_with_what_they_were() {
    let Some(host) = Host::new("lies_alone_end_in_time_with_what_they_were") else { return };
    let malformed = by_udp(&host, LOCAL[0], |socket, query, from| {
        let mut bytes = good(query);
        bytes[6..8].fill(0xff);
        let _ = socket.send_to(&bytes, from);
    });
    let attempt = host.attempt(ask(malformed, DnsTransport::Udp, &[DnsType::A]), SHORT_MS);
    assert_eq!(failure(&attempt), Some((Protocol, Answer, None)), "{attempt:?}");
    assert!(why(&attempt).starts_with("malformed"), "{}", why(&attempt));

    let silent = by_udp(&host, LOCAL[0], |_, _, _| {});
    let attempt = host.attempt(ask(silent, DnsTransport::Udp, &[DnsType::A, DnsType::Aaaa]), SHORT_MS);
    assert_eq!(failure(&attempt), Some((Silence, Answer, None)), "{attempt:?}");
    assert_eq!(report!(attempt, Dns).queries.len(), 2, "the second is asked too");

    let flood = by_udp(&host, LOCAL[0], |socket, query, from| {
        let mut bytes = good(query);
        bytes[0] ^= 0xff;
        // No faster than they are read: what the socket cannot hold is lost.
        for _ in 0..20_000 {
            let _ = socket.send_to(&bytes, from);
            std::thread::sleep(Duration::from_micros(20));
        }
    });
    let attempt = host.attempt(ask(flood, DnsTransport::Udp, &[DnsType::A]), PATIENT_MS);
    assert_eq!(failure(&attempt), Some((Limit, Answer, None)), "{attempt:?}");
    assert_eq!(report!(attempt, Dns).queries[0].ignored, 1_000);
}

#[test]
fn size_that_a_server_takes_is_told() {
    let Some(host) = Host::new("size_that_a_server_takes_is_told") else { return };
    let server = by_udp(&host, LOCAL[0], |socket, query, from| {
        let mut bytes = good(query);
        // One additional record: OPT with 1 024 as its class (RFC 6891 §6.1.2).
        bytes[11] = 1;
        bytes.extend([0, 0, 41, 4, 0, 0, 0, 0, 0, 0, 0]);
        let _ = socket.send_to(&bytes, from);
    });
    let attempt = host.attempt(ask(server, DnsTransport::Udp, &[DnsType::A]), PATIENT_MS);
    assert_eq!(failure(&attempt), None, "{attempt:?}");
    assert_eq!(report!(attempt, Dns).queries[0].answer.as_ref().unwrap().edns_bytes, Some(1_024));
}

/// Answers over TCP, and truncated over UDP, at one port.
fn truncating(host: &Host) -> SocketAddr {
    let server = by_udp(host, LOCAL[0], |socket, query, from| {
        let mut bytes = answer(query, 0, 1, &[]);
        bytes[2] |= 2;
        let _ = socket.send_to(&bytes, from);
    });
    host.serve_at(server, |mut stream| {
        let mut length = [0; 2];
        while stream.read_exact(&mut length).is_ok() {
            let mut query = vec![0; u16::from_be_bytes(length).into()];
            stream.read_exact(&mut query).unwrap();
            let bytes = good(&query);
            let _ = stream.write_all(&[&u16::try_from(bytes.len()).unwrap().to_be_bytes(), bytes.as_slice()].concat());
        }
    })
}

#[test]
fn truncated_answer_is_asked_for_by_tcp() {
    let Some(host) = Host::new("truncated_answer_is_asked_for_by_tcp") else { return };
    let attempt = host.attempt(ask(truncating(&host), DnsTransport::Udp, &[DnsType::A]), PATIENT_MS);
    let found = report!(attempt, Dns);
    assert_eq!(failure(&attempt), None, "{attempt:?}");
    let transports: Vec<_> = found.queries.iter().map(|query| query.transport.as_str()).collect();
    assert_eq!(transports, ["udp", "tcp"]);
    assert!(found.queries[0].answer.as_ref().unwrap().flags.contains(&"tc".to_owned()));
}

#[test]
fn streams_that_break_have_their_class() {
    let Some(host) = Host::new("streams_that_break_have_their_class") else { return };
    let closes = host.serve(LOCAL[0], |mut stream| drop(stream.read(&mut [0; 512])));
    let attempt = host.attempt(ask(closes, DnsTransport::Tcp, &[DnsType::A]), PATIENT_MS);
    assert_eq!(failure(&attempt).map(|(class, ..)| class), Some(Closed), "{attempt:?}");
    let holds = host.serve(LOCAL[0], |mut stream| {
        let _ = stream.write_all(&[0xff, 0xff, 1, 2, 3]);
        hold(stream);
    });
    let attempt = host.attempt(ask(holds, DnsTransport::Tcp, &[DnsType::A]), SHORT_MS);
    assert_eq!(failure(&attempt), Some((Silence, Answer, None)), "{attempt:?}");
    let plain = host.serve(LOCAL[0], |mut stream| {
        let _ = stream.read(&mut [0; 512]);
        let _ = stream.write_all(b"no tls here");
    });
    let attempt = host.attempt(ask(plain, DnsTransport::Tls { server_name: None }, &[DnsType::A]), PATIENT_MS);
    assert_eq!(failure(&attempt).map(|(class, ..)| class), Some(Protocol), "{attempt:?}");
}

#[test]
fn names_that_cannot_be_asked_are_refused_in_words() {
    let Some(host) = Host::new("names_that_cannot_be_asked_are_refused_in_words") else { return };
    for (name, words) in [
        ("x".repeat(64), "a label of 64 bytes"),
        (vec!["abcdefg"; 32].join("."), "a name of 255 bytes"),
        (vec!["abcdefg"; 40].join("."), "a name of 319 bytes"),
    ] {
        let asking = DnsAsking::Server { server: "127.0.0.1:53".parse().unwrap(), transport: DnsTransport::Udp };
        let probe = DnsProbe { name, records: vec![DnsType::A], asking, edns_bytes: None };
        let attempt = host.attempt(Probe::Dns(probe), PATIENT_MS);
        assert_eq!(failure(&attempt), Some((Local, Lookup, None)));
        assert!(why(&attempt).contains(words), "{}", why(&attempt));
    }
}

/// What a name server was asked: name and type.
type Asked = Arc<Mutex<Vec<(String, u8)>>>;

/// At port 53, as a resolv.conf names it.
fn name_server(host: &Host, address: &str, answers: impl Fn(&[u8]) -> Option<Vec<u8>> + Send + 'static) -> Asked {
    let asked = Asked::default();
    let noted = Arc::clone(&asked);
    host.datagrams(SocketAddr::new(address.parse().unwrap(), 53), move |socket, query, from| {
        noted.lock().unwrap().push((name_of(query), record_type(query)));
        if let Some(bytes) = answers(query) {
            let _ = socket.send_to(&bytes, from);
        }
    });
    asked
}

fn lookup(host: &Host, servers: &[&str], options: &[&str], name: &str, timeout_ms: u32) -> SeriesAttempt {
    let resolver = Resolver {
        nameservers: servers.iter().map(|one| one.parse().unwrap()).collect(),
        search: ["shop.svc.cluster.local", "svc.cluster.local"].map(ToOwned::to_owned).into(),
        ndots: 5,
        options: options.iter().map(|one| (*one).to_owned()).collect(),
        ..Resolver::default()
    };
    let asking = DnsAsking::Lookup { together: true };
    let probe = DnsProbe { name: name.to_owned(), records: vec![DnsType::A, DnsType::Aaaa], asking, edns_bytes: None };
    host.attempt_with(Probe::Dns(probe), timeout_ms, Some(resolver))
}

fn names(asked: &Asked) -> Vec<(String, u8)> {
    asked.lock().unwrap().clone()
}

#[test]
fn search_list_is_walked_with_both_types_at_each_step() {
    let Some(host) = Host::new("search_list_is_walked_with_both_types_at_each_step") else { return };
    let asked = name_server(&host, "127.0.0.1", |query| {
        Some(if name_of(query) == NAME { good(query) } else { negative(query, 3) })
    });
    let attempt = lookup(&host, &["127.0.0.1"], &[], NAME, PATIENT_MS);
    let found = report!(attempt, Dns);
    assert_eq!((failure(&attempt), found.addresses.len()), (None, 2), "{attempt:?}");
    let steps = [format!("{NAME}.shop.svc.cluster.local"), format!("{NAME}.svc.cluster.local"), NAME.to_owned()];
    let expected: Vec<_> = steps.iter().flat_map(|name| [(name.clone(), 1), (name.clone(), 28)]).collect();
    assert_eq!(names(&asked), expected);
    let ports: Vec<_> = found.queries.iter().map(|query| query.source_port).collect();
    assert_eq!(ports[0], ports[1], "A and AAAA from one socket");
    assert_eq!(found.timeouts, None);

    let attempt = lookup(&host, &["127.0.0.1"], &[], "nowhere.example.", PATIENT_MS);
    let found = report!(attempt, Dns);
    assert_eq!((found.queries.len(), found.getaddrinfo.as_deref()), (2, Some("EAI_NONAME")), "absolute: {attempt:?}");
    assert_eq!(failure(&attempt), Some((Rcode, Lookup, None)));
}

#[test]
fn silence_is_counted_in_resolver_timeouts() {
    let Some(host) = Host::new("silence_is_counted_in_resolver_timeouts") else { return };
    name_server(&host, "127.0.0.1", |_| None);
    name_server(&host, "127.0.0.2", |query| Some(good(query)));
    let attempt = lookup(&host, &["127.0.0.1", "127.0.0.2"], &["timeout:2"], "a.b.c.d.e.f", PATIENT_MS);
    let found = report!(attempt, Dns);
    assert_eq!(failure(&attempt), None, "{attempt:?}");
    let servers: Vec<_> = found.queries.iter().map(|query| query.server.ip().to_string()).collect();
    assert_eq!(servers, ["127.0.0.1", "127.0.0.1", "127.0.0.2", "127.0.0.2"]);
    assert_eq!(found.timeouts.map(|timeouts| (timeouts.count, timeouts.each_ms)), Some((1, 2_000)));
    assert!(attempt.elapsed_us >= 2_000_000);

    let attempt = lookup(&host, &["127.0.0.1"], &["timeout:2", "attempts:2"], "a.b.c.d.e.f.", PATIENT_MS);
    let found = report!(attempt, Dns);
    assert_eq!((found.getaddrinfo.as_deref(), found.timeouts.unwrap().count), (Some("EAI_AGAIN"), 2), "{attempt:?}");
    assert_eq!(failure(&attempt), Some((Silence, Lookup, None)));
}

#[test]
fn lost_half_of_a_pair_is_asked_again_alone() {
    let Some(host) = Host::new("lost_half_of_a_pair_is_asked_again_alone") else { return };
    // As where two packets of one socket race for a connection tracking entry: the second of each pair is lost.
    let count = std::sync::atomic::AtomicU32::new(0);
    let asked = name_server(&host, "127.0.0.1", move |query| {
        let number = count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        (number != 1).then(|| good(query))
    });
    let attempt = lookup(&host, &["127.0.0.1"], &["timeout:2"], "a.b.c.d.e.f.", PATIENT_MS);
    let found = report!(attempt, Dns);
    assert_eq!((failure(&attempt), found.addresses.len()), (None, 2), "{attempt:?}");
    assert_eq!(names(&asked).iter().map(|(_, kind)| *kind).collect::<Vec<_>>(), [1, 28, 1, 28]);
    assert_eq!(found.timeouts.unwrap().count, 1);
}

#[test]
fn servers_that_fail_and_nobody_have_glibcs_words() {
    let Some(host) = Host::new("servers_that_fail_and_nobody_have_glibcs_words") else { return };
    name_server(&host, "127.0.0.1", |query| Some(negative(query, 2)));
    let attempt = lookup(&host, &["127.0.0.1"], &["timeout:2"], NAME, PATIENT_MS);
    assert_eq!(report!(attempt, Dns).getaddrinfo.as_deref(), Some("EAI_AGAIN"), "{attempt:?}");
    assert_eq!((failure(&attempt), why(&attempt)), (Some((Rcode, Lookup, None)), "web.example: SERVFAIL"));

    let attempt = lookup(&host, &["127.0.0.9"], &[], NAME, PATIENT_MS);
    let found = report!(attempt, Dns);
    assert_eq!(found.getaddrinfo.as_deref(), Some("EAI_AGAIN"), "{attempt:?}");
    assert_eq!(failure(&attempt), Some((Refused, Lookup, Some("ECONNREFUSED"))));
    assert!(
        found.queries.iter().all(|query| query.name.ends_with("shop.svc.cluster.local")),
        "the search ends: {found:?}"
    );

    name_server(&host, "127.0.0.3", |query| Some(negative(query, 0)));
    let attempt = lookup(&host, &["127.0.0.3"], &[], NAME, PATIENT_MS);
    assert_eq!(report!(attempt, Dns).getaddrinfo.as_deref(), Some("EAI_NODATA"), "{attempt:?}");
    assert_eq!(failure(&attempt), Some((NoData, Lookup, None)));
}
