//! A network namespace with five links, v0 to v4, and what is set up in it.
//!
//! Link v1 has 10.1.0.1/24, 10.1.0.5/24 and fd01::1/64, and so on. The other ends, p0 to p4, are in the same namespace and
//! have nothing.

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::{Command, Stdio};

use nix::sched::{CloneFlags, unshare};

pub const LINKS: u32 = 5;

/// Lines for ip(8), with their family in front, and settings below /proc/sys/net. What the kernel refuses is not there, for it and for the evaluator.
#[derive(Debug, Default)]
pub struct Setup {
    pub lines: Vec<String>,
    pub settings: Vec<(String, String)>,
}

impl Setup {
    /// From one text: a line with `=` and without a space is a setting.
    pub fn of(text: &str) -> Self {
        let mut setup = Self::default();
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
            match line.split_once('=') {
                Some((setting, value)) if !line.contains(' ') => setup.settings.push((setting.into(), value.into())),
                _ => setup.lines.push(line.into()),
            }
        }
        setup
    }
}

/// Runs `test` in a namespace of its own; none, said loudly, when this machine does not allow one.
pub fn in_namespace<T: Send>(name: &str, test: impl FnOnce() -> T + Send) -> Option<T> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| match unshare(CloneFlags::CLONE_NEWNET) {
            Ok(()) => Some(test()),
            Err(errno) => {
                println!("netdiag-skip: {name}: cannot create a network namespace: {errno}");
                None
            }
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Makes the links, then what the setup adds.
pub fn apply(setup: &Setup) {
    let mut base = String::from("link set lo up\n");
    for link in 0..LINKS {
        let _ = writeln!(base, "link add v{link} type veth peer name p{link}");
        let _ = writeln!(base, "link set v{link} addrgenmode none\nlink set p{link} addrgenmode none");
    }
    batch("", &base).unwrap();
    let (early, late): (Vec<_>, Vec<_>) = setup.settings.iter().partition(|(setting, _)| !setting.contains("/all/"));
    for link in 0..LINKS {
        set(&format!("ipv6/conf/p{link}/disable_ipv6"), "1");
        set(&format!("ipv6/conf/v{link}/accept_dad"), "0");
        set(&format!("ipv4/conf/v{link}/rp_filter"), "0");
    }
    set("ipv4/conf/all/rp_filter", "0");
    // Those of all interfaces overwrite those of each.
    late.iter().chain(&early).for_each(|(setting, value)| set(setting, value));
    // A link whose other end never was up has no carrier from the beginning, which nobody has to wait for.
    let without_carrier = |link: u32| setup.lines.contains(&format!("link set p{link} down"));
    let mut addresses = String::new();
    for link in 0..LINKS {
        if !without_carrier(link) {
            let _ = writeln!(addresses, "link set p{link} up");
        }
        let _ = writeln!(addresses, "link set v{link} up");
        for address in [format!("10.{link}.0.1/24"), format!("10.{link}.0.5/24"), format!("fd0{link}::1/64 nodad")] {
            let _ = writeln!(addresses, "addr add {address} dev v{link}");
        }
    }
    batch("", &addresses).unwrap();
    for lines in setup.lines.chunk_by(|a, b| family(a) == family(b)) {
        let option = family(&lines[0]);
        let without: Vec<&str> = lines.iter().map(|line| line.trim_start_matches(option).trim()).collect();
        let _ = batch(option, &(without.join("\n") + "\n"));
    }
}

pub fn set(setting: &str, value: &str) {
    let path = format!("/proc/sys/net/{setting}");
    std::fs::write(&path, value).unwrap_or_else(|error| panic!("{path}: {error}"));
}

/// `-4`, `-6` or neither: ip(8) takes it for all lines that it reads at once.
fn family(line: &str) -> &'static str {
    ["-4", "-6"].into_iter().find(|option| line.starts_with(option)).unwrap_or("")
}

/// What ip(8) complains about; it goes on behind lines that are refused.
fn batch(family: &str, lines: &str) -> Result<(), String> {
    let mut child = Command::new("ip")
        .args(Some(family).filter(|family| !family.is_empty()))
        .args(["-force", "-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}

pub fn index(link: &str) -> u32 {
    nix::net::if_::if_nametoindex(link).unwrap()
}
