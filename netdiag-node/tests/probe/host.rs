//! One namespace with servers on loopback, written by hand so that they can misbehave, and attempts sent inside it.

use std::io::{Read as _, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use netdiag_common::observation::resolver::Resolver;
use netdiag_common::observation::series::{
    FailureClass, Identity, Probe, ProbeStage, SeriesAttempt, SeriesRequest, SeriesResult,
};
use netdiag_node::netns::NetnsHandle;
use netdiag_node::probe::series::{AllowList, Engine, Place};

use crate::support::{Namespace, patient, skipped};

pub const LOCAL: [&str; 2] = ["127.0.0.1", "::1"];

pub struct Host {
    pub namespace: Namespace,
}

impl Host {
    /// None, said loudly, when this machine cannot do it.
    pub fn new(test: &str) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            skipped(test, "not root");
            return None;
        }
        Some(Self { namespace: Namespace::new() })
    }

    /// Serves each connection on a thread of its own, until the tests end.
    pub fn serve(&self, address: &str, each: impl Fn(TcpStream) + Send + Sync + 'static) -> SocketAddr {
        self.serve_at(SocketAddr::new(address.parse().unwrap(), 0), each)
    }

    pub fn serve_at(&self, address: SocketAddr, each: impl Fn(TcpStream) + Send + Sync + 'static) -> SocketAddr {
        let listener = self.namespace.run(|| TcpListener::bind(address).unwrap());
        let bound = listener.local_addr().unwrap();
        let each = Arc::new(each);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let each = Arc::clone(&each);
                std::thread::spawn(move || each(stream));
            }
        });
        bound
    }

    /// Answers datagrams until the tests end.
    pub fn datagrams(
        &self,
        address: SocketAddr,
        mut each: impl FnMut(&UdpSocket, &[u8], SocketAddr) + Send + 'static,
    ) -> SocketAddr {
        let socket = self.namespace.run(|| UdpSocket::bind(address).unwrap());
        let bound = socket.local_addr().unwrap();
        std::thread::spawn(move || {
            let mut bytes = [0; 2_048];
            while let Ok((length, from)) = socket.recv_from(&mut bytes) {
                each(&socket, &bytes[..length], from);
            }
        });
        bound
    }

    /// A socket of the namespace beside the server's.
    pub fn udp(&self, address: &str) -> UdpSocket {
        let address = SocketAddr::new(address.parse().unwrap(), 0);
        self.namespace.run(|| UdpSocket::bind(address).unwrap())
    }

    pub fn attempt(&self, probe: Probe, timeout_ms: u32) -> SeriesAttempt {
        self.attempt_with(probe, timeout_ms, None)
    }

    /// An attempt whose namespace has this resolv.conf. It must end soon after its time.
    pub fn attempt_with(&self, probe: Probe, timeout_ms: u32, resolver: Option<Resolver>) -> SeriesAttempt {
        let started = Instant::now();
        let mut result = self.series(probe, 1, timeout_ms, resolver);
        let limit = patient(Duration::from_millis(u64::from(timeout_ms) + 5_000));
        assert!(started.elapsed() < limit, "ended after {:?}", started.elapsed());
        assert_eq!((result.made, result.attempts.len()), (1, 1), "{result:?}");
        result.attempts.remove(0)
    }

    pub fn series(&self, probe: Probe, count: u16, timeout_ms: u32, resolver: Option<Resolver>) -> SeriesResult {
        let netns = self.namespace.run(|| NetnsHandle::open("/proc/thread-self/ns/net".as_ref()).unwrap());
        let place =
            Place { node: netns.clone(), netns, resolver: resolver.map(Arc::new), group: None, unseen: Vec::new() };
        let request = SeriesRequest {
            probe,
            count: count.into(),
            interval_us: 0,
            timeout_ms,
            parallel: count,
            identity: Identity::default(),
            asked_by: None,
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let until = Instant::now() + patient(Duration::from_secs(25));
        runtime.block_on(Engine::new(AllowList::default(), false).run(place, &request, until)).unwrap()
    }
}

/// Class, stage and errno of a failure.
pub fn failure(attempt: &SeriesAttempt) -> Option<(FailureClass, ProbeStage, Option<&str>)> {
    attempt.failure.as_ref().map(|failure| (failure.class, failure.stage, failure.errno.as_deref()))
}

pub fn why(attempt: &SeriesAttempt) -> &str {
    attempt.failure.as_ref().map_or("", |failure| &failure.why)
}

/// Reads a request's head; false where none came.
pub fn read_head(stream: &mut TcpStream) -> bool {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read(&mut byte) {
            Ok(1) => head.push(byte[0]),
            _ => return false,
        }
    }
    true
}

/// Ends a connection by RST.
pub fn reset(stream: TcpStream) {
    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
}

/// One byte after the other, until the far side is gone.
pub fn drip(mut stream: impl Write, bytes: impl IntoIterator<Item = u8>) {
    for byte in bytes {
        if stream.write_all(&[byte]).is_err() {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Keeps a connection open until the far side closes it.
pub fn hold(mut stream: TcpStream) {
    let mut bytes = [0; 1_024];
    while matches!(stream.read(&mut bytes), Ok(count) if count > 0) {}
}
