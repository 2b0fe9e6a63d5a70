//! Uprobes: a lookup that fails and a TLS handshake that fails are found with their names and results, in their pod; and what
//! they cost. Off unless asked for. Needs root, BTF, the built programs, python3, openssl and curl.

#![expect(clippy::unwrap_used, clippy::disallowed_methods, reason = "the helpers of these tests too")]

mod lab;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use lab::{Agent, FakePod, NODE, Namespace, ip, patient};
use netdiag_common::observation::library::{Libraries, LibraryCall, LibraryGroup};
use netdiag_common::observation::{Observation, Owner};
use netdiag_common::{Need, Netns, Reading, Topic, Window};
use netdiag_node::host::library::{self, Library};
use netdiag_node::kernel::library::Uprobes;
use netdiag_node::kernel::{KernelLibraries, Sizes};

const UID: &str = "5d6d6c5e-2a5f-4f43-9b0c-1b2f4a1d9e70";
const CONTAINER: &str = "5e1c0d9e8b7a695847362514039281706f5e4d3c2b1a09f8e7d6c5b4a3928170";

/// A process in the pod. Ended when dropped.
struct Inside(Child);

impl Drop for Inside {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A node with one pod, which has no way out.
struct Lab {
    agent: Agent,
    _pod: FakePod,
    _node: Namespace,
    inside: Namespace,
    _python: Inside,
}

impl Lab {
    fn start(role: &str, arguments: &[&str]) -> Option<Self> {
        let missing = ["python3", "openssl", "curl"].into_iter().find(|tool| {
            Command::new(tool).arg("--help").stdout(Stdio::null()).stderr(Stdio::null()).status().is_err()
        });
        if !lab::can_run() {
            return None;
        }
        if let Some(tool) = missing {
            lab::skip(format!("no {tool}"));
            return None;
        }
        let (node, inside) = (Namespace::new(&format!("{role}-node")), Namespace::new(&format!("{role}-pod")));
        ip(&format!("-n {} link add toPod type veth peer name eth0 netns {}", node.name, inside.name));
        let root = format!("ndtest-{}-{role}", std::process::id());
        let pod = FakePod::start(&inside, &root, UID, CONTAINER, "127.0.0.1:8080".parse().unwrap());
        // What the pod's programs use must be in one of them when the agent looks.
        let wait = "import ssl, time; print('ready', flush=True); time.sleep(600)";
        let mut python = Inside(command(&inside, "python3", &["-c", wait]).stdout(Stdio::piped()).spawn().unwrap());
        python.0.stdout.as_mut().unwrap().read_exact(&mut [0; 5]).unwrap();
        let joined = groups(&root).iter().any(|group| std::fs::write(group, python.0.id().to_string()).is_ok());
        assert!(joined, "the process is in the pod");
        let netns = node.path();
        let root = format!("/{root}");
        let own = ["--host-netns", netns.to_str().unwrap(), "--cgroup-root", &root];
        let agent = Agent::start(&[&own, arguments].concat());
        Some(Self { agent, _pod: pod, _node: node, inside, _python: python })
    }

    fn read(&self) -> Reading<Observation> {
        let (node, topic) = (NODE.to_owned(), Topic::Libraries);
        self.agent.read(&Need { node, netns: Netns::Host, topic, window: Window::FiveMinutes })
    }

    fn seen(&self) -> Libraries {
        match self.read() {
            Reading::Seen { value: Observation::Libraries(found), .. } => {
                assert_eq!(found.accounts.unaccounted(), 0, "{found:#?}");
                found
            }
            other => panic!("{other:?}"),
        }
    }

    fn run(&self, program: &str, arguments: &[&str]) -> Output {
        command(&self.inside, program, arguments).output().unwrap()
    }
}

fn command(inside: &Namespace, program: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", &inside.name, program]).args(arguments);
    command
}

fn groups(root: &str) -> Vec<PathBuf> {
    let of = |base: &Path| base.join(format!("{root}/kubepods/burstable/pod{UID}/{CONTAINER}/cgroup.procs"));
    let base = Path::new("/sys/fs/cgroup");
    ["", "pids", "freezer", "devices", "systemd"]
        .iter()
        .map(|name| of(&base.join(name)))
        .filter(|at| at.exists())
        .collect()
}

fn wait_until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let (started, limit) = (Instant::now(), patient(Duration::from_secs(40)));
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(started.elapsed() < limit, "not seen in {} s: {what}", limit.as_secs());
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn group<'a>(seen: &'a Libraries, call: LibraryCall, name: &str) -> Vec<&'a LibraryGroup> {
    seen.groups.iter().filter(|group| group.call == call && group.name == name).collect()
}

#[test]
fn failed_lookups_and_handshakes_are_found_in_their_pod() {
    let Some(lab) = Lab::start("uprobe", &["--uprobes", "getaddrinfo,tls"]) else { return };
    if let Reading::Unavailable { gap } = lab.read() {
        return lab::skip(format!("{}; {}", gap.why, gap.remedy));
    }
    let files = wait_until("both libraries probed", || {
        let files = lab.seen().files;
        let has = |name: &str| files.iter().any(|file| file.path.contains(name) && file.why_not.is_empty());
        (has("libc.so") && has("libssl.so")).then_some(files)
    });
    assert_eq!(files.len(), 2, "the pod's processes share them: {files:?}");

    let script = "import socket\n\
                  for name in ['no-such.invalid', '127.0.0.1']:\n\
                  \x20 try: socket.getaddrinfo(name, 80); print(0)\n\
                  \x20 except socket.gaierror as error: print(error.errno)";
    let printed = lab.run("python3", &["-c", script]);
    let codes: Vec<i32> = String::from_utf8_lossy(&printed.stdout).lines().map(|line| line.parse().unwrap()).collect();
    assert!(codes[0] < 0 && codes[1] == 0, "{printed:?}");

    // A server with a certificate of its own, which one client is told to trust and the other is not.
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (key, certificate) = (path("key"), path("certificate"));
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=shop.example"])
        .args(["-addext", "subjectAltName=DNS:shop.example", "-keyout", &key, "-out", &certificate])
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    let serve = ["s_server", "-accept", "127.0.0.1:8443", "-key", &key, "-cert", &certificate, "-www", "-quiet"];
    let _server = Inside(command(&lab.inside, "openssl", &serve).stderr(Stdio::null()).spawn().unwrap());
    let ask = ["-sS", "--noproxy", "*", "--resolve", "shop.example:8443:127.0.0.1", "https://shop.example:8443/"];
    let trusting: Vec<&str> = ["--cacert", &certificate].into_iter().chain(ask).collect();
    let succeeded = wait_until("a server", || {
        let output = lab.run("curl", &trusting);
        output.status.success().then_some(1)
    });
    for _ in 0..3 {
        let output = lab.run("curl", &ask);
        assert_eq!(output.status.code(), Some(60), "CURLE_PEER_FAILED_VERIFICATION: {output:?}");
    }

    let seen = lab.seen();
    let pod = Owner::Pod { uid: UID.to_owned() };
    let [missing] = group(&seen, LibraryCall::Lookup, "no-such.invalid")[..] else { panic!("{seen:#?}") };
    assert_eq!((&missing.netns, missing.result, missing.times), (&pod, codes[0], 1), "{seen:#?}");
    let found = group(&seen, LibraryCall::Lookup, "127.0.0.1");
    assert!(found.iter().all(|group| group.result == 0 && group.netns == pod) && !found.is_empty(), "{seen:#?}");
    let handshakes = group(&seen, LibraryCall::Handshake, "shop.example");
    let of = |result: &dyn Fn(i32) -> bool| -> u64 {
        handshakes.iter().filter(|group| result(group.result)).map(|group| group.times).sum()
    };
    assert_eq!((of(&|result| result <= 0), of(&|result| result == 1)), (3, succeeded), "{seen:#?}");
    assert!(handshakes.iter().all(|group| group.netns == pod && group.total_us > 0), "{handshakes:#?}");
    assert!(handshakes.iter().all(|group| group.first_at <= group.last_at), "{handshakes:#?}");
    let lost = (seen.accounts.no_room, seen.accounts.ring_full, seen.accounts.nameless);
    assert_eq!(lost, (0, 0, 0), "{:?}", seen.accounts);
}

#[test]
fn uprobes_are_off_unless_asked_for() {
    let Some(lab) = Lab::start("noprobe", &[]) else { return };
    let Reading::Unavailable { gap } = lab.read() else { panic!("nobody asked for uprobes") };
    if gap.why.contains("built without kernel programs") {
        return lab::skip(gap.why);
    }
    assert!(gap.why.contains("off") && gap.remedy.contains("--uprobes"), "{gap:?}");
}

/// Prints what a probed call costs; see docs/uprobes.md.
#[test]
fn a_probe_costs_a_call_this_much() {
    /// Fewer than the ring holds.
    const CALLS: u32 = 1_000;
    const ROUNDS: u32 = 30;
    const TOO_MANY: u32 = 5_000;
    let wanted = Uprobes { getaddrinfo: true, tls: true };
    let sizes = Sizes { libraries: wanted, ..Sizes::for_this_machine() };
    let mut kernel = match KernelLibraries::load(sizes) {
        Ok(Some(kernel)) => kernel,
        Ok(None) => panic!("it was asked for"),
        Err(error) => return lab::skip(format!("{error}; {}", error.remedy())),
    };
    let mapped = library::read(Path::new("/proc"), std::process::id()).unwrap();
    let Some(libc) = mapped.iter().find(|mapped| mapped.library == Library::Libc) else {
        return lab::skip("a static test has no libc to probe");
    };
    let each_ns = || {
        let started = Instant::now();
        (0..CALLS).for_each(|_| look_up(c"127.0.0.1"));
        started.elapsed().as_nanos() / u128::from(CALLS)
    };
    let (mut without, mut with) = (u128::MAX, u128::MAX);
    for _ in 0..ROUNDS {
        without = without.min(each_ns());
        let probed = kernel.probe(libc.library, &libc.path).unwrap();
        with = with.min(each_ns());
        drop(probed);
        kernel.tick();
    }
    println!("getaddrinfo of an address: {without} ns, probed {with} ns: the best of {ROUNDS} rounds of {CALLS} calls");
    let accounts = |kernel: &mut KernelLibraries| {
        kernel.harvest();
        kernel.observe(jiff::Timestamp::now(), Window::FiveMinutes, &|_| Owner::Host).accounts
    };
    let before = accounts(&mut kernel);
    assert!(before.total >= u64::from(CALLS * ROUNDS) && before.unaccounted() == 0, "{before:?}");
    // Others use this machine too: only what is absurd fails.
    assert!(with < without + 100_000, "{with} ns");

    let _probed = kernel.probe(libc.library, &libc.path).unwrap();
    (0..TOO_MANY).for_each(|_| look_up(c"127.0.0.1"));
    let after = accounts(&mut kernel);
    assert!(after.ring_full > before.ring_full && after.unaccounted() == 0, "{after:?}");
    let told = after.total + after.ring_full - before.total - before.ring_full;
    assert!(told >= u64::from(TOO_MANY), "what is not told is counted: {after:?}");
}

/// Prints what the probes cost a TLS client from its first step to its end; see docs/uprobes.md.
#[test]
fn a_handshake_pays_this_much() {
    const ROUNDS: u32 = 30;
    // Without anybody to talk to: the first step, which sends the greeting and waits.
    const CLIENTS: &str = "import ssl, sys, time\n\
        context = ssl.create_default_context()\n\
        def client():\n\
        \x20 begun = context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname='shop.example')\n\
        \x20 try: begun.do_handshake()\n\
        \x20 except ssl.SSLWantReadError: pass\n\
        print(0, flush=True)\n\
        for line in sys.stdin:\n\
        \x20 start = time.perf_counter_ns()\n\
        \x20 for _ in range(300): client()\n\
        \x20 print((time.perf_counter_ns() - start) // 300, flush=True)";
    let wanted = Uprobes { getaddrinfo: false, tls: true };
    let mut kernel = match KernelLibraries::load(Sizes { libraries: wanted, ..Sizes::for_this_machine() }) {
        Ok(Some(kernel)) => kernel,
        Ok(None) => panic!("it was asked for"),
        Err(error) => return lab::skip(format!("{error}; {}", error.remedy())),
    };
    let mut command = Command::new("python3");
    let Ok(child) = command.args(["-c", CLIENTS]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn() else {
        return lab::skip("no python3");
    };
    let mut python = Inside(child);
    let mut answers = BufReader::new(python.0.stdout.take().unwrap()).lines();
    let mut answer = || answers.next().expect("python goes on").unwrap().parse::<u64>().unwrap();
    answer();
    let mapped = library::read(Path::new("/proc"), python.0.id()).unwrap();
    let Some(ssl) = mapped.iter().find(|mapped| mapped.library == Library::Ssl) else {
        return lab::skip("this python's libssl is not a file of its own");
    };
    let asks = python.0.stdin.as_mut().unwrap();
    let mut each_ns = || {
        asks.write_all(b"\n").unwrap();
        answer()
    };
    let (mut without, mut with) = (u64::MAX, u64::MAX);
    for _ in 0..ROUNDS {
        without = without.min(each_ns());
        let probed = kernel.probe(ssl.library, &ssl.path).unwrap();
        with = with.min(each_ns());
        drop(probed);
        kernel.tick();
    }
    println!("a client's first step and end: {without} ns, probed {with} ns: the best of {ROUNDS} rounds of 300");
    kernel.harvest();
    let seen = kernel.observe(jiff::Timestamp::now(), Window::FiveMinutes, &|_| Owner::Host);
    let failed = group(&seen, LibraryCall::Handshake, "shop.example").iter().map(|group| group.times).sum::<u64>();
    assert_eq!(failed + seen.accounts.ring_full, u64::from(300 * ROUNDS), "{:?}", seen.accounts);
}

fn look_up(name: &std::ffi::CStr) {
    let mut found = std::ptr::null_mut();
    // SAFETY: zeroes are valid hints.
    let mut hints: libc::addrinfo = unsafe { std::mem::zeroed() };
    (hints.ai_flags, hints.ai_socktype) = (libc::AI_NUMERICHOST, libc::SOCK_STREAM);
    // SAFETY: a name that ends with a zero, hints, and a place for the result, which is freed once.
    unsafe {
        assert_eq!(libc::getaddrinfo(name.as_ptr(), std::ptr::null(), &raw const hints, &raw mut found), 0);
        libc::freeaddrinfo(found);
    }
}
