//! Attempts to connect are counted by how they end, on the running kernel: each way to end is made to happen, the sums hold
//! under load, and full tables lose detail but no connection. Needs root, BTF and the built programs.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

#[expect(dead_code, reason = "shared with the other kernel tests")]
mod support;

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use netdiag_common::Window;
use netdiag_common::observation::Owner;
use netdiag_common::observation::tcp::{Outcome, Side, Tcp, TcpGroup};
use netdiag_node::clock::now;
use netdiag_node::kernel::{EventSize, KernelTcp, Sizes};
use support::patience::slowness;
use support::{Namespace, Stop, eventually, load_part, owner, patient};

const CLIENT4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 77, 0, 1));
const SERVER4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 77, 0, 2));
const SERVER6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 2));

/// One test at a time. An interrupt that finds a program running on its CPU does not start it again: the kernel counts the event
/// as missed, and under the load of one test beside it another would not count exactly.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    // A test that failed says so itself.
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn load(test: &str, size: Option<EventSize>) -> Option<KernelTcp> {
    let mut sizes = Sizes::for_this_machine();
    sizes.tcp.events = size.unwrap_or(sizes.tcp.events);
    load_part(test, sizes, KernelTcp::load)
}

/// A client and a server on one cable, with addresses of both families and neighbours that know each other.
fn pair() -> (Namespace, Namespace) {
    let (client, server) = (Namespace::new(), Namespace::new());
    client.connect("eth0", &server, "eth0");
    for (space, n) in [(&client, 1), (&server, 2)] {
        space.sh(&format!("ip addr add 10.77.0.{n}/24 dev eth0; ip addr add fd77::{n}/64 dev eth0 nodad"));
        space.sh("echo 0 >/proc/sys/net/ipv4/icmp_ratelimit");
    }
    (client, server)
}

fn harvested(tcp: &mut KernelTcp, resolve: &dyn Fn(u64) -> Owner) -> Tcp {
    tcp.harvest(now());
    let seen = tcp.observe(now(), Window::FiveMinutes, resolve);
    assert_eq!(seen.accounts.unaccounted(), 0, "{:?}", seen.accounts);
    seen
}

fn group<'a>(seen: &'a Tcp, pod: &str, side: Side, service: SocketAddr) -> Option<&'a TcpGroup> {
    seen.groups.iter().find(|group| {
        group.netns == Owner::Pod { uid: pod.to_owned() } && group.side == side && group.service == Some(service)
    })
}

/// A listener in `space` whose connections `each` gets, until the value is dropped.
struct Server {
    stop: std::sync::Arc<AtomicBool>,
    at: SocketAddr,
    space: Namespace,
    thread: Option<thread::JoinHandle<()>>,
}

impl Server {
    fn new(space: &Namespace, at: SocketAddr, each: impl Fn(TcpStream) + Send + 'static) -> Self {
        let listener = space.run(|| TcpListener::bind(at).unwrap());
        let stop = std::sync::Arc::new(AtomicBool::new(false));
        let stopped = std::sync::Arc::clone(&stop);
        let thread = thread::spawn(move || {
            for stream in listener.incoming() {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                each(stream.unwrap());
            }
        });
        Self { stop, at, space: space.clone(), thread: Some(thread) }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let at = self.at;
        self.space.run(|| drop(TcpStream::connect(at)));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn connect(client: &Namespace, to: SocketAddr, times: usize) -> Vec<std::io::Result<TcpStream>> {
    client.run(|| (0..times).map(|_| TcpStream::connect(to)).collect())
}

#[test]
fn each_attempt_is_counted_by_how_it_ended() {
    const TEST: &str = "each_attempt_is_counted_by_how_it_ended";
    let _alone = alone();
    let Some(mut tcp) = load(TEST, None) else { return };
    let (client, server) = pair();
    let owner = owner(&[(&client, "client"), (&server, "server")]);
    server.sh("nft 'table inet guard { chain i { type filter hook input priority 0; tcp dport 9090 drop; }; }'
               echo 1 >/proc/sys/net/ipv4/ip_forward
               ip route add unreachable 10.99.0.0/24");
    // Since Linux 6.5 the first four retries come on top of the limit.
    client.sh("echo 1 >/proc/sys/net/ipv4/tcp_syn_retries
               linear=/proc/sys/net/ipv4/tcp_syn_linear_timeouts; [ ! -e $linear ] || echo 0 >$linear
               ip route add 10.99.0.0/24 via 10.77.0.2");

    let open: Vec<SocketAddr> = vec![(SERVER4, 8080).into(), (SERVER6, 8080).into()];
    let _listeners: Vec<Server> = open.iter().map(|at| Server::new(&server, *at, drop)).collect();
    for to in &open {
        assert!(connect(&client, *to, 20).iter().all(Result::is_ok));
    }
    // An IPv6 socket that speaks IPv4 is IPv4's.
    let mapped = SocketAddr::from((Ipv4Addr::new(10, 77, 0, 2).to_ipv6_mapped(), 8080));
    assert!(connect(&client, mapped, 5).iter().all(Result::is_ok));
    let closed: Vec<SocketAddr> = vec![(SERVER4, 81).into(), (SERVER6, 81).into()];
    for to in &closed {
        assert!(connect(&client, *to, 7).iter().all(Result::is_err));
    }
    // The server breaks what it accepted, by a RST; not before the client knows that it is connected.
    let rude: SocketAddr = (SERVER4, 8081).into();
    let _rude = Server::new(&server, rude, |stream| {
        (&stream).read_exact(&mut [0]).unwrap();
        socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    });
    client.run(|| {
        for _ in 0..5 {
            let mut stream = TcpStream::connect(rude).unwrap();
            stream.write_all(b"x").unwrap();
            let error = stream.read(&mut [0]).unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        }
    });
    let silent: SocketAddr = (SERVER4, 9090).into();
    let nowhere: SocketAddr = (IpAddr::from([10, 99, 0, 9]), 80).into();
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| client.run(|| TcpStream::connect_timeout(&silent, Duration::from_millis(300)).unwrap_err()));
        }
        let fails = |to, kind| assert_eq!(connect(&client, to, 1).remove(0).unwrap_err().kind(), kind);
        for _ in 0..2 {
            scope.spawn(move || fails(silent, std::io::ErrorKind::TimedOut));
        }
        // One after the other: up to Linux 5.15 a router without a limit for ICMP answers such packets once a second
        // (`ip_error()`, whose tokens `inet_peer_xrlim_allow()` takes away).
        for _ in 0..2 {
            fails(nowhere, std::io::ErrorKind::HostUnreachable);
            thread::sleep(Duration::from_millis(1100));
        }
    });

    let seen = harvested(&mut tcp, &owner);
    let of = |service: SocketAddr| group(&seen, "client", Side::Client, service).unwrap();
    let ends = |service: SocketAddr, outcome: Outcome, errno: i32| {
        let group = of(service);
        let same = group.results.iter().find(|result| (result.outcome, result.errno) == (outcome, errno));
        same.map_or(0, |result| result.time.count)
    };
    assert_eq!((of(open[0]).connects, ends(open[0], Outcome::Established, 0)), (25, 25), "{:#?}", seen.groups);
    assert_eq!((of(open[1]).connects, ends(open[1], Outcome::Established, 0)), (20, 20));
    for at in &closed {
        assert_eq!((of(*at).connects, ends(*at, Outcome::Refused, libc::ECONNREFUSED)), (7, 7));
    }
    assert_eq!(of(silent).connects, 5);
    let given_up = (of(silent).ended(Outcome::Abandoned), ends(silent, Outcome::TimedOut, libc::ETIMEDOUT));
    assert_eq!(given_up, (3, 2), "{:?}", seen.accounts);
    assert_eq!(of(silent).syn_retransmits, 2);
    assert_eq!((of(nowhere).connects, of(nowhere).ended(Outcome::Unreachable)), (2, 2));
    assert_eq!((of(rude).connects, of(rude).ended(Outcome::Established)), (5, 5));
    let broken: Vec<_> = of(rude).broken.iter().map(|broken| (broken.errno, broken.count)).collect();
    assert_eq!(broken, [(libc::ECONNRESET, 5)]);
    assert!(seen.groups.iter().all(|group| group.open == 0));

    // A handshake on this machine takes less than a second, a time-out with one retry three.
    let time = |at: SocketAddr, outcome: Outcome| {
        of(at).results.iter().find(|result| result.outcome == outcome).unwrap().time.clone()
    };
    assert!(time(open[0], Outcome::Established).sum_us < 25_000_000);
    assert!(time(silent, Outcome::TimedOut).below_us(0.0).unwrap() >= 1 << 21);
    let abandoned = time(silent, Outcome::Abandoned);
    assert!(abandoned.sum_us >= 900_000, "three attempts of 300 ms: {abandoned:?}");
    assert!(of(open[0]).round_trip.count > 0, "connections that were closed had a round trip");

    for (at, times) in [(open[0], 25), (open[1], 20), (rude, 5)] {
        let listener = group(&seen, "server", Side::Server, at).unwrap();
        assert_eq!((listener.accepted, listener.connects), (times, 0), "{at}");
    }
    let accounts = seen.accounts;
    assert!(accounts.established >= 50 && accounts.refused >= 14 && accounts.timed_out >= 2, "{accounts:?}");
    assert!(accounts.unreachable >= 2 && accounts.abandoned >= 3 && accounts.broken >= 5, "{accounts:?}");
}

#[test]
fn an_attempt_under_way_is_open_until_it_is_given_up() {
    const TEST: &str = "an_attempt_under_way_is_open_until_it_is_given_up";
    let _alone = alone();
    let Some(mut tcp) = load(TEST, None) else { return };
    let (client, server) = pair();
    let owner = owner(&[(&client, "client"), (&server, "server")]);
    server.sh("nft 'table inet guard { chain i { type filter hook input priority 0; tcp dport 9090 drop; }; }'");
    let silent: SocketAddr = (SERVER4, 9090).into();
    let began = now();
    let sockets: Vec<socket2::Socket> = client.run(|| {
        let begin = |_| {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
            socket.set_nonblocking(true).unwrap();
            assert_eq!(socket.connect(&silent.into()).unwrap_err().raw_os_error(), Some(libc::EINPROGRESS));
            socket
        };
        (0..3).map(begin).collect()
    });
    let seen = harvested(&mut tcp, &owner);
    let waiting = group(&seen, "client", Side::Client, silent).unwrap();
    assert_eq!((waiting.connects, waiting.open, waiting.failed()), (3, 3, 0));
    assert!(waiting.oldest_open_at.is_some_and(|at| at >= began && at <= now()));
    assert!(seen.accounts.open >= 3);
    drop(sockets);
    let seen = harvested(&mut tcp, &owner);
    let given_up = group(&seen, "client", Side::Client, silent).unwrap();
    assert_eq!((given_up.connects, given_up.open, given_up.ended(Outcome::Abandoned)), (3, 0, 3));
}

#[test]
fn an_attempt_without_a_free_port_says_so() {
    const TEST: &str = "an_attempt_without_a_free_port_says_so";
    let _alone = alone();
    let Some(mut tcp) = load(TEST, None) else { return };
    let (client, server) = pair();
    let owner = owner(&[(&client, "client"), (&server, "server")]);
    client.sh("echo 40000 40001 >/proc/sys/net/ipv4/ip_local_port_range");
    let at: SocketAddr = (SERVER4, 8080).into();
    let kept = Mutex::new(Vec::new());
    let _listener = Server::new(&server, at, move |stream| kept.lock().unwrap().push(stream));
    let _held = connect(&client, at, 2);
    for refused in connect(&client, at, 4) {
        assert_eq!(refused.unwrap_err().raw_os_error(), Some(libc::EADDRNOTAVAIL));
    }
    let seen = harvested(&mut tcp, &owner);
    let to = group(&seen, "client", Side::Client, at).unwrap();
    assert_eq!((to.connects, to.ended(Outcome::Established), to.ended(Outcome::NoPort)), (6, 2, 4));
}

#[test]
fn what_is_sent_again_is_counted_as_the_kernel_counts_it() {
    const TEST: &str = "what_is_sent_again_is_counted_as_the_kernel_counts_it";
    let _alone = alone();
    let Some(mut tcp) = load(TEST, None) else { return };
    let (client, server) = pair();
    let owner = owner(&[(&client, "client"), (&server, "server")]);
    let at: SocketAddr = (SERVER4, 8080).into();
    let kept = Mutex::new(Vec::new());
    let _listener = Server::new(&server, at, move |stream| kept.lock().unwrap().push(stream));
    let mut stream = connect(&client, at, 1).remove(0).unwrap();
    server.sh("nft 'table inet guard { chain i { type filter hook input priority 0; tcp dport 8080 drop; }; }'");
    stream.write_all(b"lost").unwrap();
    let resent = || {
        let text = client.sh("cat /proc/net/snmp");
        let tcp: Vec<&str> = text.lines().filter(|line| line.starts_with("Tcp:")).collect();
        let column = tcp[0].split(' ').position(|name| name == "RetransSegs").unwrap();
        tcp[1].split(' ').nth(column).unwrap().parse::<u64>().unwrap()
    };
    eventually("three segments sent again", || (resent() >= 3).then_some(()));
    server.sh("nft delete table inet guard");
    // The peer's answer ends it: from here the two counts stand still.
    eventually("an answer", || {
        let before = resent();
        thread::sleep(patient(Duration::from_millis(500)));
        (resent() == before).then_some(())
    });
    let seen = harvested(&mut tcp, &owner);
    assert_eq!(group(&seen, "client", Side::Client, at).unwrap().retransmits, resent());

    // A SYN-ACK that never arrives is sent again by the listener.
    client.sh("nft 'table inet guard { chain i { type filter hook input priority 0; tcp sport 8080 drop; }; }'");
    let _ = client.run(|| TcpStream::connect_timeout(&at, patient(Duration::from_millis(2500))));
    let seen = harvested(&mut tcp, &owner);
    let listener = group(&seen, "server", Side::Server, at).unwrap();
    assert!(listener.synack_retransmits >= 1, "{listener:#?}");
    assert!(group(&seen, "client", Side::Client, at).unwrap().syn_retransmits >= 1);
}

#[test]
fn thousands_of_connects_keep_the_sums() {
    const TEST: &str = "thousands_of_connects_keep_the_sums";
    const THREADS: usize = 4;
    const EACH: usize = 1000;
    let _alone = alone();
    let Some(mut tcp) = load(TEST, None) else { return };
    let (client, server) = pair();
    let owner = owner(&[(&client, "client"), (&server, "server")]);
    let open: SocketAddr = (SERVER4, 8080).into();
    let closed: SocketAddr = (SERVER4, 81).into();
    let _listener = Server::new(&server, open, |stream| {
        let _ = (&stream).write(b"x");
    });
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let enough = Stop(&done);
        let harvests = scope.spawn(|| {
            // Harvests in the middle of it must neither lose nor repeat a connection.
            while !done.load(Ordering::Relaxed) {
                harvested(&mut tcp, &owner);
                thread::sleep(Duration::from_millis(100));
            }
        });
        let threads: Vec<_> = (0..THREADS)
            .map(|_| {
                scope.spawn(|| {
                    client.run(|| {
                        for _ in 0..EACH {
                            let mut stream = TcpStream::connect(open).unwrap();
                            // The server closes first: it keeps the waiting state, and ports are free again at once.
                            let _ = stream.read(&mut [0; 2]);
                            let _ = stream.read(&mut [0; 2]);
                            assert!(TcpStream::connect(closed).is_err());
                        }
                    });
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        drop(enough);
        harvests.join().unwrap();
    });
    let seen = harvested(&mut tcp, &owner);
    let expected = (THREADS * EACH) as u64;
    let (to_open, to_closed) =
        (group(&seen, "client", Side::Client, open).unwrap(), group(&seen, "client", Side::Client, closed).unwrap());
    let accepted = group(&seen, "server", Side::Server, open).unwrap().accepted;
    let missed = seen.accounts.missed;
    eprintln!("{} attempts, {missed} events missed: {:?}", 2 * expected, seen.accounts);
    for (what, counted) in [
        ("begun to the open port", to_open.connects),
        ("established", to_open.ended(Outcome::Established)),
        ("begun to the closed port", to_closed.connects),
        ("refused", to_closed.ended(Outcome::Refused)),
        ("accepted", accepted),
    ] {
        assert!(
            counted <= expected && counted + missed >= expected,
            "{what}: {counted} of {expected}, {missed} missed"
        );
    }
    // A program that is interrupted, or preempted where the kernel does that, misses what happens meanwhile on its processor.
    // An emulated one runs so much longer.
    assert!(missed * 20 < expected * u64::from(slowness()), "{missed} events were missed");
}

#[test]
fn full_sets_lose_detail_and_no_connection() {
    const TEST: &str = "full_sets_lose_detail_and_no_connection";
    const PORTS: u16 = 60;
    let _alone = alone();
    let Some(mut tcp) = load(TEST, Some(EventSize { ipv4: 1, ipv6: 1 })) else { return };
    let (client, server) = pair();
    let owner = owner(&[(&client, "client"), (&server, "server")]);
    for port in 100..100 + PORTS {
        assert!(connect(&client, (SERVER4, port).into(), 1)[0].is_err());
    }
    let seen = harvested(&mut tcp, &owner);
    let accounts = seen.accounts;
    // The only set may have been full of other tests' keys before ours came.
    assert!(accounts.coarse > 0 && accounts.attributed + accounts.foreign_netns > 0, "{accounts:?}");
    let ours = |group: &&TcpGroup| group.netns == Owner::Pod { uid: "client".to_owned() };
    let refused: u64 = seen.groups.iter().filter(ours).map(|group| group.ended(Outcome::Refused)).sum();
    let begun: u64 = seen.groups.iter().filter(ours).map(|group| group.connects).sum();
    for counted in [begun, refused] {
        let all = u64::from(PORTS);
        assert!(counted <= all && counted + accounts.total_only >= all, "{counted} of {all}: {:#?}", seen.groups);
    }
    assert!(seen.groups.iter().filter(ours).any(|group| group.service.is_none()), "a coarse group has no service");
    assert!(!seen.groups.iter().any(|group| group.service.is_some_and(|at| at.ip() == CLIENT4)));
}
