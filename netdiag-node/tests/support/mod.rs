//! What kernel tests share: saying loudly why one is skipped, and network namespaces that vanish with their test.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

pub mod patience;

use std::fmt::Display;
use std::fs::File;
use std::net::{IpAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use netdiag_common::observation::Owner;
use netdiag_common::observation::kfree_skb::Drops;
use netdiag_common::observation::preflight::Check;
use netdiag_node::kernel::{KernelDrops, LoadError, Sizes, TableSize};
use netdiag_node::netns::{NetnsHandle, own_cookie};
pub use patience::patient;

/// The drop program in the kernel; or none, after saying why.
pub fn load(test: &str, size: Option<TableSize>) -> Option<KernelDrops> {
    let mut sizes = Sizes::for_this_machine();
    sizes.drops = size.unwrap_or(sizes.drops);
    load_part(test, sizes, KernelDrops::load)
}

/// Some subjects' programs in the kernel.
pub fn load_part<T>(test: &str, sizes: Sizes, part: impl FnOnce(Sizes) -> Result<T, LoadError>) -> Option<T> {
    if !nix::unistd::geteuid().is_root() {
        return skip(test, "not root");
    }
    for tool in ["ip", "nft"] {
        if Command::new(tool).arg("-V").output().is_err() {
            return skip(test, format!("{tool} is not installed"));
        }
    }
    match part(sizes) {
        Ok(loaded) => Some(loaded),
        Err(error @ (LoadError::NotBuilt | LoadError::NoBtf(_) | LoadError::NotPermitted { .. })) => {
            skip(test, format!("{error}; {}", error.remedy()))
        }
        Err(error) => panic!("the programs do not load: {error}"),
    }
}

/// Whether this kernel lacks the tracepoint that the test is about; says so when it does.
pub fn lacks(test: &str, checks: &[Check], tracepoint: &str) -> bool {
    let name = format!("program {tracepoint}");
    let Some(missing) = checks.iter().find(|check| check.name == name && !check.ok) else { return false };
    skipped(test, &missing.detail);
    true
}

/// Says that the test ends here, and why.
pub fn skipped(test: &str, reason: impl Display) {
    eprintln!("netdiag-skip: {test}: {reason}");
}

fn skip<T>(test: &str, reason: impl Display) -> Option<T> {
    skipped(test, reason);
    None
}

/// A network namespace without a name: it ends with the last handle, also when the test is killed.
#[derive(Clone)]
pub struct Namespace {
    handle: NetnsHandle,
    /// The same, where `ip` can find it.
    file: Arc<File>,
    /// As the kernel programs write it: the cookie, on kernels without (before Linux 5.14) the inode.
    pub id: u64,
}

impl Namespace {
    /// New and empty but for loopback, which is up.
    pub fn new() -> Self {
        let create = || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            let path = "/proc/thread-self/ns/net";
            #[expect(clippy::disallowed_methods, reason = "a test opens its own namespace")]
            let file = Arc::new(File::open(path).unwrap());
            let handle = NetnsHandle::open(Path::new(path)).unwrap();
            let id = own_cookie().unwrap_or_else(|| file.metadata().unwrap().ino());
            Self { handle, file, id }
        };
        let namespace = thread::spawn(create).join().unwrap();
        namespace.sh("ip link set lo up");
        namespace
    }

    /// Runs `work` inside.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.handle.run(|| Ok(work())).unwrap()
    }

    /// Runs each line as a command inside; every one must succeed.
    pub fn sh(&self, script: &str) -> String {
        self.run(|| {
            let output = Command::new("sh").args(["-ec", script]).output().unwrap();
            let error = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success(), "{script}: {error}");
            String::from_utf8_lossy(&output.stdout).into_owned()
        })
    }

    /// A cable between `name` here and `peer_name` in `peer`, both up.
    pub fn connect(&self, name: &str, peer: &Namespace, peer_name: &str) {
        let there = format!("/proc/{}/fd/{}", std::process::id(), peer.file.as_raw_fd());
        self.sh(&format!("ip link add {name} type veth peer name {peer_name} netns {there}"));
        self.sh(&format!("ip link set {name} up"));
        peer.sh(&format!("ip link set {peer_name} up"));
    }

    /// Sends `count` datagrams of 18 bytes to `port`, and to the ones above it in turn when `ports` is more than 1.
    pub fn send(&self, to: IpAddr, port: u16, ports: u16, count: usize) {
        self.run(|| {
            let socket = match to {
                IpAddr::V4(_) => UdpSocket::bind("0.0.0.0:0").unwrap(),
                IpAddr::V6(_) => UdpSocket::bind("[::]:0").unwrap(),
            };
            for n in 0..count {
                let offset = u16::try_from(n % usize::from(ports)).unwrap();
                socket.send_to(&[b'n'; 18], (to, port + offset)).unwrap();
                // Not faster than one CPU's queue (`netdev_max_backlog`, 1000 packets) is worked off.
                if n % 256 == 255 {
                    thread::sleep(Duration::from_millis(1));
                }
            }
        });
    }

    /// Sends whole Ethernet frames out of `interface`; a frame the kernel refuses does not count.
    pub fn send_frames(&self, interface: &str, frames: &[Vec<u8>]) -> usize {
        self.run(|| {
            let raw = socket2::Type::from(libc::SOCK_RAW);
            let socket = socket2::Socket::new(socket2::Domain::PACKET, raw, None).unwrap();
            // SAFETY: all fields of sockaddr_ll are integers.
            let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
            address.sll_family = u16::try_from(libc::AF_PACKET).unwrap();
            address.sll_ifindex = i32::try_from(nix::net::if_::if_nametoindex(interface).unwrap()).unwrap();
            let length = libc::socklen_t::try_from(size_of_val(&address)).unwrap();
            let sent = |frame: &&Vec<u8>| {
                // SAFETY: the frame and the address live for the call and have the lengths given.
                let sent = unsafe {
                    libc::sendto(
                        socket.as_raw_fd(),
                        frame.as_ptr().cast(),
                        frame.len(),
                        0,
                        (&raw const address).cast(),
                        length,
                    )
                };
                sent >= 0
            };
            frames.iter().filter(sent).count()
        })
    }
}

/// Says stop when it goes: a thread that looks for it ends with its test also when the test fails, instead of hanging.
pub struct Stop<'a>(pub &'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Pods by namespace; everything else is unknown, like another node's.
pub fn owner(of: &[(&Namespace, &str)]) -> impl Fn(u64) -> Owner + Sync + use<> {
    let known: Vec<(u64, String)> = of.iter().map(|(space, name)| (space.id, (*name).to_owned())).collect();
    move |id| match known.iter().find(|(known, _)| *known == id) {
        Some((_, name)) if name == "host" => Owner::Host,
        Some((_, name)) => Owner::Pod { uid: name.clone() },
        None => Owner::Unknown { id },
    }
}

/// Whether a drop's reason is the one wanted. Before Linux 5.17 the kernel passes none.
pub fn is_reason(found: &str, wanted: &str) -> bool {
    found == wanted || found == "UNREPORTED"
}

/// Packets of the groups that `wanted` accepts.
pub fn packets(drops: &Drops, wanted: impl Fn(&netdiag_common::observation::kfree_skb::DropGroup) -> bool) -> u64 {
    drops.groups.iter().filter(|group| wanted(group)).map(|group| group.packets).sum()
}

/// Looks again until `found` has an answer, for at most 10 s ([`patient`] ones).
pub fn eventually<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let (started, limit) = (Instant::now(), patient(Duration::from_secs(10)));
    loop {
        if let Some(value) = found() {
            return value;
        }
        assert!(started.elapsed() < limit, "{what} did not happen within {} s", limit.as_secs());
        thread::sleep(Duration::from_millis(20));
    }
}
