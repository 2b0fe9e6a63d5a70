//! Probes of this machine's loopback: what each way of failing looks like.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, TcpListener, UdpSocket};
use std::path::Path;

use hickory_proto::op::{Message, MessageType, ResponseCode};
use netdiag_common::observation::probe::DnsRecord;

use super::*;

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

fn own_netns() -> NetnsHandle {
    NetnsHandle::open(Path::new("/proc/self/ns/net")).unwrap()
}

fn tcp(port: u16, attempts: u8) -> ProbeRequest {
    ProbeRequest::TcpConnect { address: LOOPBACK, port, timeout_ms: 1_000, attempts, source_port: None }
}

fn dns(port: u16, name: &str) -> ProbeRequest {
    let (name, record) = (name.to_owned(), DnsRecord::A);
    ProbeRequest::Dns { server: LOOPBACK, zone: None, port, name, record, timeout_ms: 500 }
}

/// A server that answers one query with `edit` applied to a plain answer.
fn dns_server(edit: impl FnOnce(&mut Message) + Send + 'static) -> u16 {
    let socket = UdpSocket::bind((LOOPBACK, 0)).unwrap();
    let port = socket.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let mut bytes = [0; 512];
        let (length, from) = socket.recv_from(&mut bytes).unwrap();
        let mut message = Message::from_vec(&bytes[..length]).unwrap();
        message.metadata.message_type = MessageType::Response;
        edit(&mut message);
        socket.send_to(&message.to_vec().unwrap(), from).unwrap();
        // Keeps the port: closing it would turn a wrong answer into a refusal.
        std::thread::sleep(Duration::from_secs(1));
    });
    port
}

#[tokio::test]
async fn listening_port_connects_each_time() {
    let listener = TcpListener::bind((LOOPBACK, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let result = run(&own_netns(), &tcp(port, 3)).await.unwrap();
    assert_eq!(result.succeeded(), 3);
    assert!(result.attempts.iter().all(|a| a.source.is_some_and(|s| s.ip() == LOOPBACK && s.port() != 0)));
}

#[tokio::test]
async fn closed_port_is_refused() {
    let port = TcpListener::bind((LOOPBACK, 0)).unwrap().local_addr().unwrap().port();
    let result = run(&own_netns(), &tcp(port, 1)).await.unwrap();
    let expected = Outcome::Failed { stage: Stage::Connect, errno: "ECONNREFUSED".to_owned() };
    assert_eq!(result.attempts[0].outcome, expected);
}

#[tokio::test]
async fn server_that_greets_sees_an_orderly_end() {
    let listener = TcpListener::bind((LOOPBACK, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"220 hello\r\n").unwrap();
        stream.read(&mut [0; 16])
    });
    run(&own_netns(), &tcp(port, 1)).await.unwrap();
    // ECONNRESET here would be our RST.
    let ended = tokio::task::spawn_blocking(|| server.join().unwrap()).await.unwrap();
    assert_eq!(ended.unwrap(), 0);
}

#[tokio::test]
async fn full_backlog_times_out() {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&std::net::SocketAddr::from((LOOPBACK, 0)).into()).unwrap();
    socket.listen(0).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    let _fills_the_queue = std::net::TcpStream::connect(address).unwrap();
    let request = ProbeRequest::TcpConnect {
        address: LOOPBACK,
        port: address.port(),
        timeout_ms: 100,
        attempts: 1,
        source_port: None,
    };
    let result = run(&own_netns(), &request).await.unwrap();
    assert_eq!(result.attempts[0].outcome, Outcome::TimedOut { stage: Stage::Connect });
    assert!(result.attempts[0].elapsed_us >= 100_000);
}

#[tokio::test]
async fn limits_are_refused_and_named() {
    let asked =
        ProbeRequest::TcpConnect { address: LOOPBACK, port: 80, timeout_ms: 60_000, attempts: 1, source_port: None };
    let error = run(&own_netns(), &asked).await.unwrap_err().to_string();
    assert!(error.contains("60000 ms") && error.contains("5000 ms"), "{error}");
    assert!(run(&own_netns(), &tcp(80, 0)).await.is_err());
    assert!(run(&own_netns(), &tcp(0, 1)).await.is_err());
}

#[tokio::test]
async fn name_that_does_not_exist() {
    let port = dns_server(|message| message.metadata.response_code = ResponseCode::NXDomain);
    let result = run(&own_netns(), &dns(port, "nope.shop.svc.cluster.local")).await.unwrap();
    let expected = Outcome::Answered { rcode: "NXDOMAIN".to_owned(), addresses: Vec::new(), truncated: false };
    assert_eq!(result.attempts[0].outcome, expected);
}

#[tokio::test]
async fn answer_to_another_query_is_not_ours() {
    let port = dns_server(|message| message.metadata.id = message.metadata.id.wrapping_add(1));
    let result = run(&own_netns(), &dns(port, "a.example")).await.unwrap();
    assert_eq!(result.attempts[0].outcome, Outcome::TimedOut { stage: Stage::Answer });
}

#[tokio::test]
async fn closed_udp_port_is_refused() {
    let port = UdpSocket::bind((LOOPBACK, 0)).unwrap().local_addr().unwrap().port();
    let result = run(&own_netns(), &dns(port, "a.example")).await.unwrap();
    let expected = Outcome::Failed { stage: Stage::Answer, errno: "ECONNREFUSED".to_owned() };
    assert_eq!(result.attempts[0].outcome, expected);
}

#[tokio::test]
async fn link_local_server_is_asked_by_its_interface() {
    for (zone, errno) in [(None, "EINVAL"), (Some("nowhere"), "ENODEV")] {
        let request = ProbeRequest::Dns {
            server: "fe80::53".parse().unwrap(),
            zone: zone.map(str::to_owned),
            port: 53,
            name: "a.example".to_owned(),
            record: DnsRecord::A,
            timeout_ms: 500,
        };
        let result = run(&own_netns(), &request).await.unwrap();
        let Outcome::Failed { errno: told, .. } = &result.attempts[0].outcome else { panic!("{result:?}") };
        assert_eq!(told, errno, "{zone:?}");
    }
    // With an interface it is sent: lo leads nowhere else, and who has the address is asked in vain or not at all.
    let mut request = dns(53, "a.example");
    if let ProbeRequest::Dns { server, zone, .. } = &mut request {
        (*server, *zone) = ("fe80::53".parse().unwrap(), Some("lo".to_owned()));
    }
    let result = run(&own_netns(), &request).await.unwrap();
    let is_refused =
        matches!(&result.attempts[0].outcome, Outcome::Failed { errno, .. } if errno == "EINVAL" || errno == "ENODEV");
    assert!(!is_refused, "{result:?}");
}

#[tokio::test]
async fn impossible_name_is_refused() {
    let error = run(&own_netns(), &dns(53, &"a".repeat(64))).await.unwrap_err().to_string();
    assert!(error.contains("is not a DNS name"), "{error}");
}
