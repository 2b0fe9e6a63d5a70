//! A client, a router and a server in three namespaces, and the programs that follow a packet between them.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::{Mutex, MutexGuard};

use netdiag_common::forwarding::conntrack::Direction;
use netdiag_common::observation::tag::{TagEvent, TagPoint, TagRequest, TagTuple, Tagged};
use netdiag_common::observation::{Owner, Protocol};
use netdiag_node::clock::now;
use netdiag_node::kernel::{KernelTags, Sizes};

use crate::support::{Namespace, eventually, load_part, owner};

pub const CLIENT: &str = "10.79.1.1";
pub const SERVER: &str = "10.79.2.2";
pub const CLIENT6: &str = "fd79:1::1";
pub const SERVER6: &str = "fd79:2::2";

/// One for all tests of this file, one after the other: loading them takes a second.
static KERNEL: Mutex<Option<KernelTags>> = Mutex::new(None);

pub struct Lab {
    pub client: Namespace,
    pub router: Namespace,
    pub server: Namespace,
    pub kernel: MutexGuard<'static, Option<KernelTags>>,
}

impl Lab {
    /// None where the programs cannot run, after saying why.
    pub fn start(test: &str) -> Option<Self> {
        // A test that failed has left its tag armed.
        let mut kernel = KERNEL.lock().unwrap_or_else(|failed| {
            KERNEL.clear_poison();
            let mut kernel = failed.into_inner();
            *kernel = None;
            kernel
        });
        if kernel.is_none() {
            *kernel = Some(load_part(test, Sizes::for_this_machine(), |_| KernelTags::load())?);
        } else {
            load_part(test, Sizes::for_this_machine(), |_| Ok(()))?;
        }
        let (client, router, server) = (Namespace::new(), Namespace::new(), Namespace::new());
        router.connect("toClient", &client, "eth0");
        router.connect("toServer", &server, "eth0");
        router.sh("echo 1 >/proc/sys/net/ipv4/ip_forward; echo 1 >/proc/sys/net/ipv6/conf/all/forwarding");
        router.sh("echo 0 >/proc/sys/net/ipv4/conf/all/rp_filter");
        for (device, n) in [("toClient", 1), ("toServer", 2)] {
            router.sh(&format!("echo 0 >/proc/sys/net/ipv4/conf/{device}/rp_filter"));
            router.sh(&format!("ip addr add 10.79.{n}.254/24 dev {device}"));
            router.sh(&format!("ip addr add fd79:{n}::254/64 dev {device} nodad"));
        }
        for (space, n) in [(&client, 1), (&server, 2)] {
            space.sh(&format!("ip addr add 10.79.{n}.{n}/24 dev eth0; ip route add default via 10.79.{n}.254"));
            space.sh(&format!("ip addr add fd79:{n}::{n}/64 dev eth0 nodad"));
            space.sh(&format!("ip route add default via fd79:{n}::254"));
        }
        // Neighbours are known from the start: a program that drops everything drops ARP, ARP asks in the name of the packet's
        // source, and neighbour discovery waits until the link's own address is proven to be nobody else's.
        for (device, space, n) in [("toClient", &client, 1), ("toServer", &server, 2)] {
            let (here, there) = (format!("02:00:00:79:0{n}:fe"), format!("02:00:00:79:0{n}:0{n}"));
            router.sh(&format!("ip link set {device} address {here}"));
            space.sh(&format!("ip link set eth0 address {there}"));
            for network in [format!("10.79.{n}."), format!("fd79:{n}::")] {
                router.sh(&format!("ip neigh replace {network}{n} lladdr {there} dev {device} nud permanent"));
                space.sh(&format!("ip neigh replace {network}254 lladdr {here} dev eth0 nud permanent"));
            }
        }
        Some(Self { client, router, server, kernel })
    }

    pub fn kernel(&mut self) -> &mut KernelTags {
        self.kernel.as_mut().unwrap()
    }

    /// What is seen of a tag while `work` is done, once there are so many events.
    pub fn follow(&mut self, request: &TagRequest, events: usize, work: impl FnOnce(&Self)) -> Tagged {
        let since = now();
        let number = self.kernel().arm(request).unwrap();
        assert!(self.kernel().is_attached());
        work(self);
        let mut read = 0;
        eventually(&format!("{events} events of {}", request.tuple), || {
            read += self.kernel().drain();
            (read >= events).then_some(())
        });
        let caught = self.kernel().disarm(number).unwrap();
        assert!(!self.kernel().is_attached(), "nobody is left");
        let pods = [(&self.client, "client"), (&self.router, "host"), (&self.server, "server")];
        let owner = owner(&pods);
        let tagged = self.kernel().tell(caught, (since, now()), &owner);
        assert_eq!(tagged.accounts.unaccounted(), 0, "{:?}", tagged.accounts);
        tagged
    }

    /// A datagram of the client: to `to`, from the port that its tag has.
    pub fn datagram(&mut self, to: &str, port: u16, events: usize, options: impl FnOnce(&UdpSocket) + Send) -> Tagged {
        let to: SocketAddr = (to.parse::<IpAddr>().unwrap(), port).into();
        let from: IpAddr = if to.is_ipv4() { CLIENT } else { CLIENT6 }.parse().unwrap();
        self.datagram_from(from, to, events, options)
    }

    pub fn datagram_from(
        &mut self,
        from: IpAddr,
        to: SocketAddr,
        events: usize,
        options: impl FnOnce(&UdpSocket) + Send,
    ) -> Tagged {
        let socket = self.client.run(|| UdpSocket::bind((from, 0)).unwrap());
        let request = request(Protocol::Udp, socket.local_addr().unwrap(), to);
        self.follow(&request, events, |lab| {
            lab.client.run(|| {
                options(&socket);
                let _ = socket.send_to(&[b'n'; 1200], to);
            });
        })
    }
}

pub fn request(protocol: Protocol, from: SocketAddr, to: SocketAddr) -> TagRequest {
    TagRequest { tuple: tuple(protocol, from, to), alternatives: Vec::new(), seconds: 10, asked_by: None }
}

pub fn tuple(protocol: Protocol, from: SocketAddr, to: SocketAddr) -> TagTuple {
    TagTuple {
        protocol,
        source: Some(from.ip()),
        source_port: Some(from.port()),
        destination: to.ip(),
        destination_port: Some(to.port()),
    }
}

pub fn whose(event: &TagEvent) -> &str {
    match &event.netns {
        Owner::Host => "router",
        Owner::Pod { uid } => uid,
        Owner::Unknown { .. } => "unknown",
    }
}

/// The way of the packets in one direction, in few words.
pub fn way(tagged: &Tagged, direction: Direction) -> Vec<String> {
    let words = |event: &TagEvent| match &event.point {
        TagPoint::Received => format!("{} received", whose(event)),
        TagPoint::Sent => format!("{} sent", whose(event)),
        TagPoint::Dropped { .. } => format!("{} dropped", whose(event)),
        TagPoint::Delivered => format!("{} delivered", whose(event)),
        TagPoint::Connected => format!("{} connected", whose(event)),
    };
    tagged.events.iter().filter(|event| event.direction == direction).map(words).collect()
}
