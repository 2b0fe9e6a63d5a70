//! A started agent with its own certificates, a client for it, and pods made of a namespace and a cgroup.
#![allow(dead_code, reason = "each test file uses a part")]
#![expect(clippy::unwrap_used, clippy::disallowed_methods, reason = "only tests call this")]

pub mod pair;
#[path = "../support/patience.rs"]
mod patience;

use std::collections::BTreeSet;
use std::fmt::Display;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use netdiag_common::observation::Observation;
use netdiag_common::observation::fate::{Fate, FateRequest};
use netdiag_common::wire::{AGENT_TLS_NAME, Ask, NodeReading, Report, SERVER_TLS_NAME, WIRE_MAX};
use netdiag_common::{Need, Reading};
use netdiag_node::host::ReadError;
use netdiag_node::host::forwarding::{self, Surroundings};
use netdiag_node::netns::NetnsHandle;
pub use patience::patient;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

pub const NODE: &str = "n1";
/// Of a pod and its container.
pub const UID: &str = "2f6d6c5e-2a5f-4f43-9b0c-1b2f4a1d9e77";
pub const CONTAINER: &str = "4f1c0d9e8b7a695847362514039281706f5e4d3c2b1a09f8e7d6c5b4a3928170";
/// Where a pod's process does, in its own namespace.
pub const LISTENS: &str = "127.0.0.1:8080";

/// A CA and leaves, as PEM.
pub struct Authority {
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
    pub pem: String,
}

pub struct Leaf {
    pub certificate: String,
    pub key: String,
}

impl Authority {
    pub fn new() -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: rcgen::Issuer::new(params, key), pem }
    }

    pub fn leaf(&self, name: &str) -> Leaf {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap().pem();
        Leaf { certificate, key: key.serialize_pem() }
    }

    pub fn write(&self, folder: &Path, leaf: &Leaf) {
        for (name, text) in [("ca.crt", &self.pem), ("node.crt", &leaf.certificate), ("node.key", &leaf.key)] {
            std::fs::write(folder.join(name), text).unwrap();
        }
    }
}

/// Lines of an agent's log since it listens.
type Log = Arc<Mutex<Vec<String>>>;

/// A running netdiag-node. Killed when dropped.
pub struct Agent {
    pub child: Child,
    log: Log,
    pub address: SocketAddr,
    pub authority: Authority,
    pub folder: tempfile::TempDir,
    server: Leaf,
}

impl Agent {
    pub fn start(arguments: &[&str]) -> Self {
        let authority = Authority::new();
        let folder = tempfile::tempdir().unwrap();
        authority.write(folder.path(), &authority.leaf(AGENT_TLS_NAME));
        let mut child = Command::new(env!("CARGO_BIN_EXE_netdiag-node"))
            .args(["--node-name", NODE, "--listen", "127.0.0.1:0", "--tls-dir"])
            .arg(folder.path())
            .args(arguments)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (address, log) = listen_address(&mut child);
        let server = authority.leaf(SERVER_TLS_NAME);
        Self { child, log, address, authority, folder, server }
    }

    /// The agent of a node whose kubelet has this cgroup root.
    pub fn of_node(node: &Namespace, root: &str) -> Self {
        Self::start(&["--host-netns", node.path().to_str().unwrap(), "--cgroup-root", &format!("/{root}")])
    }

    /// Lines of its log with these words.
    pub fn logged(&self, words: &str) -> Vec<String> {
        self.log.lock().unwrap().iter().filter(|line| line.contains(words)).cloned().collect()
    }

    pub fn pid(&self) -> nix::unistd::Pid {
        nix::unistd::Pid::from_raw(self.child.id().cast_signed())
    }

    /// Status and body of one request of the server.
    pub fn request(&self, head: &str, body: &str) -> io::Result<(u16, String)> {
        self.request_as(&self.server, head, body)
    }

    pub fn request_as(&self, client: &Leaf, head: &str, body: &str) -> io::Result<(u16, String)> {
        let mut stream = self.connect(client)?;
        let length = body.len();
        write!(
            stream,
            "{head} HTTP/1.1\r\nHost: {AGENT_TLS_NAME}\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
        )?;
        let mut bytes = Vec::new();
        // An end without close_notify is fine: the length tells whether all is there.
        match stream.read_to_end(&mut bytes) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {}
            Err(error) => return Err(error),
        }
        let text = String::from_utf8(bytes).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").ok_or(io::ErrorKind::UnexpectedEof)?;
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Ok((status, body.to_owned()))
    }

    /// Sends a request and closes the connection, without waiting for the answer, when `meanwhile` has ended.
    pub fn hang_up_after(&self, head: &str, body: &str, meanwhile: impl FnOnce()) {
        let mut stream = self.connect(&self.server).unwrap();
        let length = body.len();
        let head = format!("{head} HTTP/1.1\r\nHost: {AGENT_TLS_NAME}\r\nContent-Length: {length}\r\n\r\n{body}");
        stream.write_all(head.as_bytes()).unwrap();
        stream.flush().unwrap();
        meanwhile();
    }

    pub fn report(&self, needs: Vec<serde_json::Value>) -> Report<serde_json::Value> {
        let ask = Ask { wire: WIRE_MAX, needs, budget_ms: 20_000 };
        let (status, body) = self.request("POST /v1/readings", &serde_json::to_string(&ask).unwrap()).unwrap();
        assert_eq!(status, 200, "{body}");
        serde_json::from_str(&body).unwrap()
    }

    pub fn read(&self, need: &Need) -> Reading<Observation> {
        let mut report = self.report(vec![serde_json::to_value(need).unwrap()]);
        let NodeReading { reading, .. } = report.readings.remove(0);
        reading
    }

    /// What must be there to be seen.
    pub fn seen(&self, need: &Need) -> Observation {
        match self.read(need) {
            Reading::Seen { value, .. } => value,
            other => panic!("{need:?}: {other:?}"),
        }
    }

    fn connect(&self, client: &Leaf) -> io::Result<StreamOwned<ClientConnection, TcpStream>> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.authority.pem.as_bytes()).unwrap()).unwrap();
        let chain = vec![CertificateDer::from_pem_slice(client.certificate.as_bytes()).unwrap()];
        let key = PrivateKeyDer::from_pem_slice(client.key.as_bytes()).unwrap();
        let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)
            .unwrap();
        let connection =
            ClientConnection::new(Arc::new(config), ServerName::try_from(AGENT_TLS_NAME).unwrap()).unwrap();
        let stream = TcpStream::connect(self.address)?;
        stream.set_read_timeout(Some(patient(Duration::from_secs(25))))?;
        Ok(StreamOwned::new(connection, stream))
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// From the line that says so; the rest of the log is kept, and goes to the test's output.
fn listen_address(child: &mut Child) -> (SocketAddr, Log) {
    let mut log = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    loop {
        line.clear();
        assert_ne!(log.read_line(&mut line).unwrap(), 0, "the agent ended before it listened");
        if let Some(rest) = line.split("listen=").nth(1) {
            let address = rest.split_whitespace().next().unwrap().parse().unwrap();
            let kept = Log::default();
            let lines = Arc::clone(&kept);
            std::thread::spawn(move || {
                for line in log.lines().map_while(Result::ok) {
                    eprintln!("agent: {line}");
                    lines.lock().unwrap().push(line);
                }
            });
            return (address, kept);
        }
        eprint!("agent: {line}");
    }
}

/// What becomes of a packet in the calling thread's namespace.
pub fn fate(request: &FateRequest) -> Result<Fate, ReadError> {
    fate_in(request, false)
}

/// The same, of a namespace that is a pod's.
pub fn fate_in_pod(request: &FateRequest) -> Result<Fate, ReadError> {
    fate_in(request, true)
}

fn fate_in(request: &FateRequest, is_pod: bool) -> Result<Fate, ReadError> {
    use std::os::unix::fs::MetadataExt as _;
    let netns = std::fs::metadata("/proc/thread-self/ns/net").unwrap().ino();
    let (is_own, owner) = (&|_| false, &mut |_| None);
    forwarding::fate(request, &mut Surroundings { proc: Path::new("/proc"), netns, is_pod, is_own, owner })
}

/// Runs `ip` with these words.
pub fn ip(words: &str) {
    let output = Command::new("ip").args(words.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {words}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Ids of what a process holds in the kernel: programs (`prog_id:`), maps (`map_id:`).
pub fn ids_in_kernel(pid: u32, field: &str) -> BTreeSet<u32> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/fdinfo")).unwrap();
    let texts = entries.flatten().filter_map(|entry| std::fs::read_to_string(entry.path()).ok());
    texts.filter_map(|text| text.lines().find_map(|line| line.strip_prefix(field)?.trim().parse().ok())).collect()
}

/// Whether a test that needs namespaces can run here; says why not.
pub fn can_run() -> bool {
    if !nix::unistd::geteuid().is_root() {
        skip("not root");
        return false;
    }
    if Command::new("ip").arg("-V").output().is_err() {
        skip("no ip command (iproute2)");
        return false;
    }
    true
}

/// Says that this test, or the rest of it, does not run here.
pub fn skip(reason: impl Display) {
    let thread = std::thread::current();
    println!("netdiag-skip: {}: {reason}", thread.name().unwrap_or("a test"));
}

/// A named network namespace, removed when dropped.
pub struct Namespace {
    pub name: String,
}

impl Namespace {
    pub fn new(role: &str) -> Self {
        let name = format!("ndtest-{}-{role}", std::process::id());
        ip(&format!("netns add {name}"));
        ip(&format!("-n {name} link set lo up"));
        Self { name }
    }

    pub fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.name)
    }

    /// Runs `work` on a thread inside.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        NetnsHandle::open(&self.path()).unwrap().run(|| Ok(work())).unwrap()
    }

    /// Runs a shell command inside.
    pub fn sh(&self, script: &str) {
        self.run(|| {
            let output = Command::new("sh").args(["-ec", script]).output().unwrap();
            assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
        });
    }

    /// A veth pair from `device` here to the other's `eth0`, both up.
    pub fn connect(&self, device: &str, other: &Self) {
        ip(&format!("-n {} link add {device} type veth peer name eth0 netns {}", self.name, other.name));
        ip(&format!("-n {} link set {device} up", self.name));
        ip(&format!("-n {} link set eth0 up", other.name));
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).stderr(Stdio::null()).status();
    }
}

/// A kubelet's cgroup root that no other test has.
pub fn kubelet_root(role: &str) -> String {
    format!("ndtest-{}-{role}", std::process::id())
}

/// A pod as the agent can see one: a process in a kubelet-like cgroup, in a namespace, holding a listening socket.
pub struct FakePod {
    pub child: Child,
    groups: Vec<PathBuf>,
}

impl FakePod {
    /// `root` is the kubelet's cgroupRoot. The process listens on `listen`, inside the namespace.
    pub fn start(namespace: &Namespace, root: &str, uid: &str, container: &str, listen: SocketAddr) -> Self {
        use std::os::unix::process::CommandExt as _;
        let netns = std::fs::File::open(namespace.path()).unwrap();
        let mut command = Command::new("sleep");
        command.arg("600");
        // SAFETY: between fork and exec only system calls are made: setns, socket, bind, listen, fcntl.
        unsafe {
            command.pre_exec(move || {
                nix::sched::setns(&netns, nix::sched::CloneFlags::CLONE_NEWNET)?;
                let socket = socket2::Socket::new(
                    socket2::Domain::for_address(listen),
                    socket2::Type::STREAM,
                    Some(socket2::Protocol::TCP),
                )?;
                socket.bind(&listen.into())?;
                socket.listen(16)?;
                // Outlives this closure, and the exec: `sleep` is the process that listens.
                socket.set_cloexec(false)?;
                std::mem::forget(socket);
                Ok(())
            });
        }
        let child = command.spawn().unwrap();
        let mut groups = Vec::new();
        for base in cgroup_hierarchies() {
            let path = base.join(format!("{root}/kubepods/burstable/pod{uid}/{container}"));
            if std::fs::create_dir_all(&path).is_ok()
                && std::fs::write(path.join("cgroup.procs"), child.id().to_string()).is_ok()
            {
                groups.push(base.join(root).join(format!("kubepods/burstable/pod{uid}/{container}")));
                break;
            }
        }
        assert!(!groups.is_empty(), "no writable cgroup hierarchy");
        Self { child, groups }
    }
}

impl Drop for FakePod {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        for group in &self.groups {
            // From the container's group up to the root's: five levels.
            for path in group.ancestors().take(5) {
                let started = Instant::now();
                // Another pod's group is inside: its end removes what is above too.
                while !has_groups(path)
                    && std::fs::remove_dir(path).is_err()
                    && started.elapsed() < Duration::from_millis(200)
                {
                    std::thread::sleep(Duration::from_millis(10));
                }
            }
        }
    }
}

fn has_groups(path: &Path) -> bool {
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    entries.into_iter().any(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
}

/// cgroup v2, and on v1 the controllers whose groups need no setup before a process may enter.
fn cgroup_hierarchies() -> Vec<PathBuf> {
    let base = Path::new("/sys/fs/cgroup");
    if base.join("cgroup.controllers").exists() {
        return vec![base.to_owned()];
    }
    ["pids", "freezer", "devices", "systemd"].map(|name| base.join(name)).into()
}
