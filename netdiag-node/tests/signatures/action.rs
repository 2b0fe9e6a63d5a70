//! The verbs of the table: sockets, frames, programs and devices of a namespace.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::attach;
use crate::frame::{self, Words};
use crate::support::Namespace;

/// What lives until its entry ends.
#[derive(Default)]
pub struct Held {
    pub descriptors: Vec<OwnedFd>,
    /// Control group of the entry's commands.
    pub group: Option<PathBuf>,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.descriptors.clear();
        if let Some(group) = &self.group {
            let started = Instant::now();
            while fs::remove_dir(group).is_err() && started.elapsed() < Duration::from_secs(1) {
                thread::sleep(Duration::from_millis(20));
            }
        }
    }
}

pub fn act(namespace: &Namespace, words: &[String], held: &mut Held) {
    let (verb, words) = words.split_first().expect("a verb");
    let first = words.first().map_or("", String::as_str);
    match verb.as_str() {
        "tcp" => namespace.run(|| tcp(first, &Words(words))).into_iter().for_each(|kept| held.descriptors.push(kept)),
        "udp" => namespace.run(|| udp(first, &Words(words))),
        "listen" => held.descriptors.push(namespace.run(|| listen(first, &Words(&words[1..]), &words[1]))),
        "frame" => {
            let all = Words(words);
            let built = frame::build(first, &words[2], &all);
            let frames = vec![built; all.number("times", 1)];
            assert_eq!(namespace.send_frames(first, &frames), frames.len(), "frames sent from {first}");
        }
        "attach" => attach_program(namespace, first, &words[1], held),
        "tun" => {
            held.descriptors.push(namespace.run(|| tun(first, &words[1])));
            namespace.sh(&format!("ip link set {first} txqueuelen {} up", words[2]));
        }
        "close" => held.descriptors.clear(),
        "wait" => thread::sleep(Duration::from_millis(first.parse().unwrap())),
        _ => panic!("no such verb: {verb}"),
    }
}

/// Connects, or fails to; the connection when it is to be kept.
fn tcp(to: &str, words: &Words<'_>) -> Option<OwnedFd> {
    let to: SocketAddr = to.parse().unwrap();
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP)).unwrap();
    if let Some(port) = words.get("from") {
        socket.bind(&SocketAddr::from(([0, 0, 0, 0], port.parse().unwrap())).into()).unwrap();
    }
    let patience = Duration::from_millis(words.number("patience", 300));
    let connected = socket.connect_timeout(&to.into(), patience);
    if !words.has("keep") {
        return None;
    }
    connected.unwrap();
    socket.set_nonblocking(true).unwrap();
    let mut left: usize = words.number("send", 0);
    let started = Instant::now();
    while left > 0 && started.elapsed() < Duration::from_millis(300) {
        match (&socket).write(&vec![b'x'; left.min(16_384)]) {
            Ok(sent) => left -= sent,
            Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(Duration::from_millis(10)),
            Err(error) => panic!("{error}"),
        }
    }
    Some(socket.into())
}

fn udp(to: &str, words: &Words<'_>) {
    if let Some(cpu) = words.get("cpu") {
        // This thread ends with the verb.
        let mut cpus = nix::sched::CpuSet::new();
        cpus.set(cpu.parse().unwrap()).unwrap();
        nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &cpus).unwrap();
    }
    let to: SocketAddr = to.parse().unwrap();
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any).unwrap();
    socket.set_broadcast(words.has("broadcast")).unwrap();
    // Packets in another namespace's queue count as this socket's: without room it would wait for them.
    option(&socket, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, &(64_i32 << 20));
    let payload = vec![b'x'; words.number("length", 18)];
    for _ in 0..words.number("times", 1) {
        // An error is the answer to an earlier datagram, or what the entry is about.
        let _ = socket.send_to(&payload, to);
    }
}

/// A socket that nobody reads.
fn listen(kind: &str, words: &Words<'_>, port: &str) -> OwnedFd {
    let socket = match kind {
        "tcp" => Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)),
        _ => Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP)),
    }
    .unwrap();
    if let Some(bytes) = words.get("rcvbuf") {
        socket.set_recv_buffer_size(bytes.parse().unwrap()).unwrap();
    }
    if words.has("filter") {
        // A classic filter of one instruction: return 0, keep nothing.
        let nothing = libc::sock_filter { code: 0x06, jt: 0, jf: 0, k: 0 };
        let program = libc::sock_fprog { len: 1, filter: (&raw const nothing).cast_mut() };
        option(&socket, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program);
    }
    if let Some(peer) = words.get("md5") {
        let peer: SocketAddr = format!("{peer}:0").parse().unwrap();
        let mut signature =
            Signature { address: [0; 128], flags: 0, prefix: 0, key_length: 3, ifindex: 0, key: [0; 80] };
        let address = SockAddr::from(peer);
        // SAFETY: the address has `len` bytes, fewer than 128.
        let bytes = unsafe { std::slice::from_raw_parts(address.as_ptr().cast::<u8>(), address.len() as usize) };
        signature.address[..bytes.len()].copy_from_slice(bytes);
        signature.key[..3].copy_from_slice(b"key");
        option(&socket, libc::IPPROTO_TCP, TCP_MD5SIG, &signature);
    }
    socket.bind(&SocketAddr::from(([0, 0, 0, 0], port.parse().unwrap())).into()).unwrap();
    if kind == "tcp" {
        socket.listen(16).unwrap();
    }
    socket.into()
}

const TCP_MD5SIG: libc::c_int = 14;

/// `struct tcp_md5sig` of include/uapi/linux/tcp.h.
#[repr(C)]
struct Signature {
    address: [u8; 128],
    flags: u8,
    prefix: u8,
    key_length: u16,
    ifindex: i32,
    key: [u8; 80],
}

fn option<T>(socket: &impl AsRawFd, level: libc::c_int, name: libc::c_int, value: &T) {
    let length = libc::socklen_t::try_from(size_of::<T>()).unwrap();
    // SAFETY: the kernel reads `length` bytes of `value`.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const *value).cast(), length) };
    assert_eq!(result, 0, "option {name}: {}", std::io::Error::last_os_error());
}

/// Control groups made by this process.
static GROUPS: AtomicU32 = AtomicU32::new(0);

fn attach_program(namespace: &Namespace, hook: &str, device: &str, held: &mut Held) {
    if device != "-" {
        let link = namespace.run(|| attach::drop_all(hook, nix::net::if_::if_nametoindex(device).unwrap()));
        return held.descriptors.push(link.unwrap());
    }
    let number = GROUPS.fetch_add(1, Ordering::Relaxed);
    let group = control_groups().join(format!("netdiag-signature-{}-{number}", std::process::id()));
    fs::create_dir(&group).unwrap();
    held.group = Some(group.clone());
    #[expect(clippy::disallowed_methods, reason = "a test opens its own control group")]
    let directory = File::open(&group).unwrap();
    let link = attach::drop_all(hook, directory.as_raw_fd().cast_unsigned()).unwrap();
    held.descriptors.extend([link, directory.into()]);
}

/// Where version 2 of the control groups is mounted.
pub fn control_groups() -> PathBuf {
    let alone = PathBuf::from("/sys/fs/cgroup");
    if alone.join("cgroup.controllers").exists() { alone } else { alone.join("unified") }
}

/// A device whose user, the test, never reads.
fn tun(name: &str, kind: &str) -> OwnedFd {
    const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
    let file = fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun").unwrap();
    let mut request = [0_u8; 40];
    request[..name.len()].copy_from_slice(name.as_bytes());
    let flags: u16 = 0x1000 | if kind == "tun" { 1 } else { 2 };
    request[16..18].copy_from_slice(&flags.to_ne_bytes());
    // SAFETY: `struct ifreq` has 40 bytes.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, request.as_mut_ptr()) };
    assert_eq!(result, 0, "{name}: {}", std::io::Error::last_os_error());
    file.into()
}
