//! A tiny DNS server that does what the first label of a name says, and messages for it.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use crate::support::{Namespace, patient};

pub const A: u16 = 1;
pub const AAAA: u16 = 28;

const TC: u8 = 0x02;

/// Answers in a namespace until it is dropped:
/// `nx` NXDOMAIN, `fail` SERVFAIL, `big` TC by UDP and 64 KiB by TCP, `silent` nothing, all others one address. Whatever ends in
/// `cluster.local` does not exist.
pub struct Server {
    stop: Arc<AtomicBool>,
    pub received: Arc<AtomicU64>,
    pub address: SocketAddr,
}

impl Server {
    pub fn start(namespace: &Namespace, ip: IpAddr) -> Self {
        let address = SocketAddr::new(ip, 53);
        let (udp, tcp) = namespace.run(|| (UdpSocket::bind(address).unwrap(), TcpListener::bind(address).unwrap()));
        let (stop, received) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        udp.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        tcp.set_nonblocking(true).unwrap();
        let (ended, counted) = (Arc::clone(&stop), Arc::clone(&received));
        thread::spawn(move || {
            let mut bytes = [0; 2048];
            while !ended.load(Ordering::Relaxed) {
                let Ok((length, from)) = udp.recv_from(&mut bytes) else { continue };
                counted.fetch_add(1, Ordering::Relaxed);
                if let Some(answer) = answer(&bytes[..length], false) {
                    let _ = udp.send_to(&answer, from);
                }
            }
        });
        let ended = Arc::clone(&stop);
        thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                match tcp.accept() {
                    Ok((stream, _)) => drop(thread::spawn(move || serve(stream))),
                    Err(_) => thread::sleep(Duration::from_millis(5)),
                }
            }
        });
        Self { stop, received, address }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn serve(mut stream: TcpStream) {
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let mut length = [0; 2];
    while stream.read_exact(&mut length).is_ok() {
        let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
        if stream.read_exact(&mut message).is_err() {
            return;
        }
        if let Some(answer) = answer(&message, true) {
            let _ = stream.write_all(&framed(&answer));
        }
    }
}

/// None when nobody shall answer.
fn answer(query: &[u8], by_tcp: bool) -> Option<Vec<u8>> {
    let label = query.get(13..13 + usize::from(*query.get(12)?))?;
    let mut answer = query.to_vec();
    answer[2] |= 0x80;
    answer[3] = 0x80;
    let does_not_exist = query.windows(13).any(|part| part == b"cluster\x05local");
    match label {
        b"silent" => return None,
        b"nx" => answer[3] |= 3,
        b"fail" => answer[3] |= 2,
        _ if does_not_exist => answer[3] |= 3,
        b"big" if !by_tcp => answer[2] |= TC,
        b"big" => {
            answer[7] = 1;
            answer.extend([0xc0, 12, 0, 16, 0, 1, 0, 0, 0, 0, 0xf0, 0]);
            answer.resize(65_535, 0x80);
        }
        _ => {
            answer[7] = 1;
            answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 1]);
        }
    }
    Some(answer)
}

/// With its length in front, as by TCP.
pub fn framed(message: &[u8]) -> Vec<u8> {
    [&u16::try_from(message.len()).unwrap().to_be_bytes()[..], message].concat()
}

pub fn query(id: u16, name: &str, kind: u16) -> Vec<u8> {
    let [high, low] = id.to_be_bytes();
    let mut message = vec![high, low, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        message.push(u8::try_from(label.len()).unwrap());
        message.extend(label.as_bytes());
    }
    let [high, low] = kind.to_be_bytes();
    message.extend([0, high, low, 0, 1]);
    message
}

/// Asks by UDP from a socket of its own and waits for the answer; its flags.
pub fn ask(server: SocketAddr, name: &str, kind: u16) -> u16 {
    let socket = client(server);
    socket.send(&query(7, name, kind)).unwrap();
    receive(&socket)
}

pub fn client(server: SocketAddr) -> UdpSocket {
    let local = if server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(local).unwrap();
    socket.connect(server).unwrap();
    socket.set_read_timeout(Some(patient(Duration::from_secs(5)))).unwrap();
    socket
}

pub fn receive(socket: &UdpSocket) -> u16 {
    let mut bytes = [0; 2048];
    assert!(socket.recv(&mut bytes).unwrap() >= 12);
    u16::from_be_bytes([bytes[2], bytes[3]])
}

/// Asks by TCP: sends these bytes in one segment each, and reads as many whole answers.
pub fn ask_by_tcp(server: SocketAddr, segments: &[&[u8]], answers: usize) -> Vec<usize> {
    let mut stream = TcpStream::connect(server).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(patient(Duration::from_secs(5)))).unwrap();
    for segment in segments {
        stream.write_all(segment).unwrap();
        // Not to be put together with the next.
        thread::sleep(Duration::from_millis(20));
    }
    let mut lengths = Vec::new();
    for _ in 0..answers {
        let mut length = [0; 2];
        stream.read_exact(&mut length).unwrap();
        let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
        stream.read_exact(&mut message).unwrap();
        lengths.push(message.len());
    }
    lengths
}
