//! The socket that takes what is delivered.

use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};

use netdiag_common::observation::fate::{Fate, FateInterfaceKey, FateOrigin, FateRequest, FateTransport};
use socket2::{Domain, Protocol, Socket, Type};

use crate::lab::{CONTAINER, FakePod, UID, fate, kubelet_root};
use crate::way::{BACKEND, NODE, Way, request};

/// What is said about the only path.
fn words(fate: &Fate) -> Vec<String> {
    let [delivery] = &fate.deliveries[..] else { panic!("{:?}", fate.deliveries) };
    assert_eq!(delivery.path, 0);
    delivery.sockets.iter().map(netdiag_common::observation::fate::FateSocket::words).collect()
}

fn datagram(port: u16) -> FateRequest {
    let transport = FateTransport::Udp { source_port: Some(40_000), destination_port: Some(port) };
    FateRequest { transport, ..request(FateOrigin::Received(FateInterfaceKey::Name("r0".into())), NODE, port) }
}

#[test]
fn who_listens_is_named_with_its_process() {
    let Some(way) = Way::start("listens") else { return };
    let root = kubelet_root("listens");
    let pod = FakePod::start(&way.node, &root, UID, CONTAINER, "0.0.0.0:80".parse().unwrap());
    let found = words(&way.received(NODE, 80));
    assert_eq!(found, [format!("pid {} (sleep) listening on 0.0.0.0:80", pod.child.id())]);
    assert_eq!(words(&way.received(NODE, 81)), [""; 0], "nobody listens");
    assert!(way.received(BACKEND, 80).deliveries.is_empty(), "it is not delivered here");
}

#[test]
fn a_translated_packet_is_for_the_port_that_it_is_sent_to() {
    let Some(way) = Way::start("redirect") else { return };
    way.node.sh(
        "nft 'table ip t { chain c { type nat hook prerouting priority -100; tcp dport 80 redirect to :8080; }; }'",
    );
    let _listener = way.node.run(|| TcpListener::bind("10.1.0.1:8080").unwrap());
    assert_eq!(words(&way.received(NODE, 80)), ["a socket of an unknown process listening on 10.1.0.1:8080"]);
}

#[test]
fn sockets_of_both_families_and_of_one_device_are_told_apart() {
    let Some(way) = Way::start("families") else { return };
    let open = |address: &str, only_v6: bool| {
        let address: SocketAddr = address.parse().unwrap();
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP)).unwrap();
        if address.is_ipv6() {
            socket.set_only_v6(only_v6).unwrap();
        }
        socket
    };
    let sockets = way.node.run(|| {
        let (both, only, device) = (open("[::]:81", false), open("[::]:82", true), open("0.0.0.0:83", false));
        device.bind_device(Some(b"r1")).unwrap();
        for (socket, address) in [(&both, "[::]:81"), (&only, "[::]:82"), (&device, "0.0.0.0:83")] {
            socket.bind(&address.parse::<SocketAddr>().unwrap().into()).unwrap();
            socket.listen(8).unwrap();
        }
        [both, only, device]
    });
    assert_eq!(words(&way.received(NODE, 81)), ["a socket of an unknown process listening on [::]:81"]);
    assert_eq!(words(&way.received(NODE, 82)), [""; 0]);
    assert_eq!(words(&way.received(NODE, 83)), [""; 0], "it takes what comes in by r1");
    drop(sockets);
}

#[test]
fn sockets_that_share_a_port_are_told_together() {
    let Some(way) = Way::start("shared") else { return };
    let sockets: Vec<Socket> = way.node.run(|| {
        let open = |kind: Type| {
            let socket = Socket::new(Domain::IPV4, kind, None).unwrap();
            socket.set_reuse_port(true).unwrap();
            socket.bind(&"10.1.0.1:84".parse::<SocketAddr>().unwrap().into()).unwrap();
            if kind == Type::STREAM {
                socket.listen(8).unwrap();
            }
            socket
        };
        [Type::STREAM, Type::STREAM, Type::STREAM, Type::DGRAM, Type::DGRAM].map(open).into()
    });
    assert_eq!(words(&way.received(NODE, 84)).len(), 3);
    let datagrams = way.node.run(|| fate(&datagram(84)).unwrap());
    assert_eq!(words(&datagrams), ["a socket of an unknown process listening on 10.1.0.1:84"; 2]);
    drop(sockets);
}

#[test]
fn a_connections_packets_are_for_its_own_socket() {
    let Some(way) = Way::start("connected") else { return };
    let listener = way.node.run(|| TcpListener::bind("0.0.0.0:85").unwrap());
    let client = way.client.run(|| TcpStream::connect((NODE, 85)).unwrap());
    let (_server, from) = listener.accept().unwrap();
    assert_eq!(from, client.local_addr().unwrap());
    let transport = FateTransport::Tcp { source_port: Some(from.port()), destination_port: Some(85), flags: 16 };
    let request = FateRequest { transport, ..datagram(85) };
    let found = words(&way.node.run(|| fate(&request).unwrap()));
    assert_eq!(found, [format!("a socket of an unknown process connected to {from}")]);

    let connected = way.node.run(|| UdpSocket::bind("10.1.0.1:86").unwrap());
    connected.connect("10.1.0.2:40000").unwrap();
    let found = words(&way.node.run(|| fate(&datagram(86)).unwrap()));
    assert_eq!(found, ["a socket of an unknown process connected to 10.1.0.2:40000"]);
    let other = FateTransport::Udp { source_port: Some(1), destination_port: Some(86) };
    let found = words(&way.node.run(|| fate(&FateRequest { transport: other, ..datagram(86) }).unwrap()));
    assert_eq!(found, [""; 0]);
}
