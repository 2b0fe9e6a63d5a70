//! Sets of `ipset` that random rules ask.

use std::sync::LazyLock;

use crate::lab::feed;
use crate::random::Random;

/// Whether this machine has the command, and the kernel sets.
static AVAILABLE: LazyLock<bool> = LazyLock::new(|| make().is_ok());

const SETS: &str = "create hosts4 hash:ip
add hosts4 10.1.0.2
add hosts4 10.2.0.2
create nets4 hash:net
add nets4 10.1.0.0/24
add nets4 10.1.0.9 nomatch
add nets4 10.2.0.0/30
create services4 hash:ip,port
add services4 10.2.0.2,tcp:80
add services4 10.2.0.2,udp:53
add services4 10.1.0.1,udp:22
add services4 10.2.0.2,icmp:8/0
create netports4 hash:net,port
add netports4 10.2.0.0/24,tcp:443
add netports4 10.1.0.0/24,udp:53
create both4 hash:ip,port,net
add both4 10.2.0.2,tcp:80,10.1.0.0/16
add both4 10.2.0.2,udp:53,10.1.0.0/16
create pairs4 hash:ip,port,ip
add pairs4 10.2.0.2,tcp:80,10.1.0.2
create places4 hash:net,iface
add places4 10.1.0.0/16,r0
add places4 10.2.0.0/16,r1
create range4 bitmap:ip range 10.1.0.0/24
add range4 10.1.0.3
create ports bitmap:port range 0-65535
add ports 53
add ports 80
create hosts6 hash:ip family inet6
add hosts6 fd01::2
add hosts6 fd02::2
create nets6 hash:net family inet6
add nets6 fd02::/64
create services6 hash:ip,port family inet6
add services6 fd02::2,tcp:80
add services6 fd02::2,udp:53
add services6 fd02::2,icmpv6:128/0
create all list:set
add all hosts4
add all hosts6
";

/// Makes the sets in this network namespace, if they are not there.
pub fn make() -> Result<(), String> {
    feed("ipset", &["restore", "-exist"], SETS)
}

/// A match of one of them; none when there can be none.
pub fn matches(random: &mut Random, v6: bool) -> Option<String> {
    if !*AVAILABLE {
        return None;
    }
    make().ok()?;
    let (one, two, three) =
        (["src", "dst"], ["src,src", "dst,dst", "src,dst", "dst,src"], ["dst,dst,src", "src,src,dst"]);
    let (set, directions): (&str, &[&str]) = match (random.below(10), v6) {
        (0 | 1, false) => ("hosts4", &one),
        (2, false) => ("nets4", &one),
        (3, false) => ("services4", &two),
        (4, false) => ("netports4", &two),
        (5, false) => (random.pick(&["both4", "pairs4"]), &three),
        (6, false) => ("places4", &two[..1]),
        (7, false) => ("range4", &one),
        (0..3, true) => ("hosts6", &one),
        (3..6, true) => ("nets6", &one),
        (6 | 7, true) => ("services6", &two),
        (8, _) => ("ports", &one),
        _ => ("all", &one),
    };
    Some(format!("-m set {}--match-set {set} {}", random.pick(&["", "", "! "]), random.pick(directions)))
}
